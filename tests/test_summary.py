"""The summary log: one write a record, whatever else goes on, and readers that pass over what they cannot use."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import resource
from datetime import UTC, date, datetime, timedelta

import pytest
import world

from dataflow.lib import summary
from dataflow.lib.summary import SummaryLog

BEFORE_MIDNIGHT = datetime(2026, 11, 30, 23, 59, 59, 999_000, tzinfo=UTC)


@pytest.fixture
def here(tmp_path):
    return world.make(tmp_path).here("borealis")


@pytest.fixture
def clock():
    made = world.Clock()
    made.stop_at(BEFORE_MIDNIGHT)
    return made


@pytest.fixture
def log(here, clock):
    made = SummaryLog(here, "rsync_to_nas", "run-1", clock)
    yield made
    made.close()


def test_a_record_is_one_line_of_the_contract(here, log):
    log.write("file", file="x", outcome="done", reason=None, destination=here.logs)
    path = here.logs / "rsync_to_nas/summary/2026/11/20261130.sas.rsync_to_nas.jsonl"
    assert path == summary.log_file(here, "rsync_to_nas", date(2026, 11, 30))
    assert json.loads(path.read_text()) == {
        "v": 1, "time": "2026-11-30T23:59:59.999000Z", "run": "run-1", "host": "borealis", "machine": "sas-borealis",
        "radar": "sas", "step": "rsync_to_nas", "event": "file", "file": "x", "outcome": "done", "destination": str(here.logs),
    }  # fmt: skip


def test_each_record_is_one_write(log, monkeypatch):
    log.write("start")
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: written.append(content) or write(descriptor, content))
    log.write("alert", message="a\nb \u2028 caf\u00e9 \udcff", traceback="x" * 100_000)
    assert len(written) == 1 and written[0].count(b"\n") == 1 and written[0].endswith(b"\n") and written[0].isascii()


def _write_many(here, number):
    log = SummaryLog(here, "rsync_to_nas", f"run-{number}", lambda: BEFORE_MIDNIGHT)
    for count in range(300):
        log.write("file", outcome="done", file=f"{count}", filler="x" * (count * 37 % 6000))
    log.close()


def test_two_processes_never_mix_their_lines(here):
    writers = [multiprocessing.get_context("fork").Process(target=_write_many, args=(here, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = list(summary.records(summary.own_files(here, date(2026, 11, 30))))
    lines = summary.log_file(here, "rsync_to_nas", date(2026, 11, 30)).read_bytes().splitlines()
    assert len(found) == len(lines) == 900
    for number in range(3):
        assert [record["file"] for record in found if record["run"] == f"run-{number}"] == [str(count) for count in range(300)]


def test_a_line_that_another_process_is_writing_is_not_taken_for_a_torn_one(here, log, clock):
    log.write("start")
    log.close()
    (path,) = summary.own_files(here, date(2026, 11, 30))
    line = path.read_bytes()
    writer = multiprocessing.get_context("fork").Process(target=_write_many, args=(here, 1))
    with path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line[:20])
        writer.start()
        writer.join(0.5)
        assert writer.is_alive() and path.read_bytes() == line + line[:20]
        other.write(line[20:])
        fcntl.flock(other, fcntl.LOCK_UN)  # the writer was forked and has it, too
    writer.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 302 and len(list(summary.records([path]))) == 302


def test_a_run_over_midnight_goes_on_in_the_next_day(here, log, clock, monkeypatch):
    synced, fsync, path_of = [], os.fsync, "/proc/self/fd/{}".format
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(path_of(descriptor))) or fsync(descriptor))
    log.write("file", outcome="done", file="before")
    clock.advance(0.001)
    log.write("file", outcome="done", file="after")
    log.sync()
    november, december = summary.own_files(here, date(2026, 11, 30))
    assert (november.name, december.name) == ("20261130.sas.rsync_to_nas.jsonl", "20261201.sas.rsync_to_nas.jsonl")
    assert december.parent.name == "12"
    assert [record["file"] for record in summary.records([november, december])] == ["before", "after"]
    assert {str(november), str(december)} <= set(synced), "sync means every record since the last, also yesterday's"


def test_torn_lines_and_strange_ones_are_passed_over(here, log, tmp_path):
    log.write("start")
    log.write("end")
    file = summary.own_files(here, date(2026, 11, 30))[0]
    good = file.read_bytes()
    for line in (
        b'{"v":1,"event":"fi',
        b"\xff\xfe",
        b"",
        b"[]",
        b"1",
        b'{"v":2,"event":"x"}',
        b'{"v":"1"}',
        b'{"v":null}',
        b'{"a":1}',
    ):
        file.write_bytes(good.replace(b"\n", b"\n" + line + b"\n", 1))
        assert [record["event"] for record in summary.records([file])] == ["start", "end"]


@pytest.mark.parametrize("time", ["", "yesterday", "2026-11-30", "2026-13-30T00:00:00.000000Z", "2026-11-30T00:00:00.000000"])
def test_a_record_with_a_damaged_time_is_none(here, log, time):
    log.write("start")
    (file,) = summary.own_files(here, date(2026, 11, 30))
    (record,) = summary.records([file])
    log.write("end")
    file.write_text(file.read_text().replace(record["time"], time, 1))
    assert [record["event"] for record in summary.records([file])] == ["end"]


def test_records_about_some_files_are_found_without_parsing_the_others(here, log, monkeypatch):
    log.write("start")
    for name in ("a.h5", "b.h5", 'with "quotes".h5', "folder/c.h5"):
        log.write("file", file=name, outcome="done", reason='it says "file": "d.h5"')
    files, parsed, loads = summary.own_files(here, date(2026, 11, 30)), [], json.loads
    monkeypatch.setattr(summary.json, "loads", lambda line: parsed.append(line) or loads(line))
    found = [record["file"] for record in summary.records(files, about={"b.h5", "c.h5", "d.h5", 'with "quotes".h5'})]
    assert found == ["b.h5", 'with "quotes".h5', "folder/c.h5"] and len(parsed) == 3


def test_what_a_crash_tore_takes_no_other_record_along(here, log, clock):
    log.write("start")
    file = summary.own_files(here, date(2026, 11, 30))[0]
    file.write_bytes(file.read_bytes() + b'{"v":1,"event":"file","outc')
    later = SummaryLog(here, "rsync_to_nas", "run-2", clock)
    later.write("file", outcome="done", file="whole")
    later.close()
    assert [record["event"] for record in summary.records([file])] == ["start", "file"]


def test_a_log_that_cannot_be_written_whole_is_an_error(here, log):
    log.write("start")
    file = summary.own_files(here, date(2026, 11, 30))[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 50, limits[1]))
    try:
        with pytest.raises(OSError):
            log.write("file", outcome="done", file="x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("end")
    assert [record["event"] for record in summary.records([file])] == ["start", "end"]


def test_files_are_found_by_day_and_radar(here, clock, tmp_path):
    for radar, days in (("sas", 0), ("sas", 5), ("pgr", 0)):
        moment = BEFORE_MIDNIGHT + timedelta(days=days)
        log = SummaryLog(world.make(tmp_path).here("borealis", radar), "send_flag", "r", lambda moment=moment: moment)
        log.write("start")
        log.close()
    relayed = here.relayed_logs / "sas/send_flag/20261130.sas.send_flag.site-linux.jsonl"
    relayed.parent.mkdir(parents=True)
    relayed.write_text("{}\n")
    assert [path.name[:12] for path in summary.own_files(here, date(2026, 11, 30))] == ["20261130.sas", "20261205.sas"]
    assert [path.name[:8] for path in summary.own_files(here, date(2026, 12, 1), "send_flag")] == ["20261205"]
    assert summary.own_files(here, date(2026, 11, 30), "other_step") == []
    assert summary.relayed_files(here, date(2026, 11, 30)) == [relayed]


def test_times_are_written_and_read_in_utc():
    moment = datetime(2026, 3, 29, 1, 30, 0, 7, tzinfo=UTC)
    assert summary.timestamp(moment) == "2026-03-29T01:30:00.000007Z"
    assert summary.moment(summary.timestamp(moment)) == moment
    assert summary.day_before(datetime(2026, 3, 1, 0, 30, tzinfo=UTC), 1) == date(2026, 2, 28)
