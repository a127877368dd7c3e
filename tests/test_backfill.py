"""Backfill: what is missing is asked for, comes verified or not at all, once, and whatever happens meanwhile is told."""

from __future__ import annotations

import argparse
import bz2
import os
import signal
import sys
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import mirror_world
import pytest
import sftp_server
from faulty_store import FaultyStore, fails, install
from mirror_world import NOW, dmap_bytes, holding, mirror_folder, neighbour, on_mirror, records, sha1, world

from dataflow.lib.checksum import sha256
from dataflow.lib.errors import BadConfig, Exit, HostDown, TryLater
from dataflow.lib.summary import SummaryLog
from dataflow.mirror import backfill, fulfil, layout, requests, stores
from dataflow.mirror.requests import CANCELLED, DONE, GIVEN_UP, OPEN

A, B, C, D = (f"20261001.{hour:02}00.01.sas.a.rawacf.bz2" for hour in (0, 2, 4, 6))
FAR = "20260801.0000.01.sas.rawacf.bz2"
SPAN = (date(2026, 8, 1), date(2026, 10, 31))
SOURCES = "mirror.backfill.sources=[{name: bas, partner: bas}, {name: nssc, partner: nssc}]"
KILL_STRIDE = 3
"""Every how manieth change is tried when killing: there are sixty-five, and a kill costs a third of a second."""
SHELF = "{name: shelf, store: {kind: directory, root: neighbours/shelf}}"


@pytest.fixture
def loaded(tmp_path):
    return made(tmp_path)


def made(folder: Path, *overrides: str):
    """A mirror with file A, whose partners are asked in turn."""
    loaded = world(folder, [SOURCES, *overrides])
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    return loaded


def ask(loaded, radar="sas", span=SPAN, **fields):
    return mirror_world.run(loaded, "backfill", lambda job: backfill.backfill(job, radar, *span), "backfill", **fields)


def work_off(loaded, **fields):
    return mirror_world.run(loaded, "backfill", backfill.work_off, "backfill", **fields)


def at(days: float):
    return lambda: NOW + timedelta(days=days)


def book(loaded):
    return requests.load(loaded.mirror()[1]).requests


def states(loaded) -> dict[str, str]:
    return {name: request.state for name, request in book(loaded).items()}


def waiting(loaded, name="main") -> dict[str, bytes]:
    """What lies in a holding directory, parts and all."""
    return {path.name: path.read_bytes() for path in holding(loaded, name).iterdir()}


def staged(loaded, name: str, digest: str | None) -> None:
    """Our own record that a file was handed out."""
    log = SummaryLog(loaded.here("campus", "sas"), "distribute_borealis_data", "fed", lambda: NOW)
    log.write("action", file=name, source="there", action="staged", sha256=digest)
    log.close()


def damage(loaded, partner: str, name: str, content: bytes = b"damaged") -> None:
    """The file of a partner is something else than his list says."""
    (neighbour(loaded, partner) / layout.data_folder("", name[:6]) / name).write_bytes(content)


def alerts(loaded, condition: bool = False) -> list[str]:
    """What a person was told once: of events, or of conditions that last."""
    return [record["message"] for record in records(loaded, "backfill", "alert") if ("condition" in record) == condition]


def reasons(loaded) -> dict[str, str]:
    """The last reason of each file."""
    return {record["file"]: record.get("reason", "") for record in records(loaded, "backfill", "file")}


def tries(loaded) -> list[tuple[str, str]]:
    """From whom was fetched, and with what outcome."""
    return [(record["source"].partition(":")[0], record["outcome"]) for record in records(loaded, "backfill", "action")]


def accounted_once(loaded) -> bool:
    """Each file has one outcome in each run, and the counts of the run are those."""
    of_run: list[str] = []
    for record in records(loaded, "backfill"):
        if record["event"] == "start":
            of_run = []
        elif record["event"] == "file":
            of_run.append(record["file"])
        elif record["event"] == "end" and (len(set(of_run)) != len(of_run) or record["found"] != len(of_run)):
            return False
    return True


# -- what comes


def test_what_a_partner_has_and_we_lack_comes_into_the_holding_directory(loaded):
    on_mirror(neighbour(loaded, "bas"), {A: dmap_bytes(A), B: dmap_bytes(B), FAR: dmap_bytes(FAR)})
    code, job = ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B), FAR: dmap_bytes(FAR)}
    assert states(loaded) == {FAR: DONE, B: DONE}
    assert code == Exit.ACCOUNTED and job.counts == {"done": 2} and accounted_once(loaded)
    record = next(record for record in records(loaded, "backfill", "file") if record["file"] == B)
    path = holding(loaded, "main") / B
    assert (record["action"], record["source"], record["destination"]) == ("backfilled", "bas", str(path))
    assert (record["sha1"], record["sha256"], record["bytes"]) == (sha1(path), sha256(path), path.stat().st_size)
    assert oct(path.stat().st_mode & 0o777) == "0o664"


def test_other_radars_and_days_are_not_asked_for(loaded):
    late, other = "20261101.0000.01.sas.a.rawacf.bz2", "20261001.0000.01.pgr.a.rawacf.bz2"
    on_mirror(neighbour(loaded, "bas"), {name: dmap_bytes(name) for name in (B, FAR, late, other)})
    ask(loaded, span=(date(2026, 10, 1), date(2026, 10, 1)))
    assert waiting(loaded).keys() == {B}
    assert ask(loaded, "mcm")[1].counts == {}


def test_nothing_is_asked_for_twice(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    ask(loaded)
    code, job = ask(loaded)
    assert (code, job.counts) == (Exit.ACCOUNTED, {}), "it waits in the holding directory"
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    (holding(loaded, "main") / B).unlink()
    assert ask(loaded)[1].counts == {}, "it is published"


def test_an_open_request_whose_file_came_another_way_is_done(loaded):
    staged(loaded, B, None)
    ask(loaded)
    assert states(loaded) == {B: OPEN}
    mirror_world.dmap_file(holding(loaded, "bas"), B)
    code, job = work_off(loaded)
    assert (code, job.counts) == (Exit.ACCOUNTED, {"skipped": 1})
    assert states(loaded) == {B: DONE}


@pytest.mark.parametrize("left", [None, b"", bz2.compress(b"")])
def test_what_our_mirror_lists_and_lost_comes_with_the_hash_that_it_lists(loaded, left):
    path = mirror_folder(loaded) / layout.data_folder("", "202610") / A
    path.unlink() if left is None else path.write_bytes(left)
    on_mirror(neighbour(loaded, "bas"), {A: dmap_bytes(A, salt=1)})
    on_mirror(neighbour(loaded, "nssc"), {A: dmap_bytes(A)})
    ask(loaded)
    assert waiting(loaded) == {A: dmap_bytes(A)} and tries(loaded) == [("nssc", "done")]


def test_a_file_that_our_mirror_holds_and_never_listed_is_brought_back_to_publishing(tmp_path):
    """M1: a file that was let go of before it was listed is found by our own record of it, and listed after all."""
    loaded = made(tmp_path, "mirror.backfill.sources=[{name: mirror}]")
    lost = mirror_folder(loaded) / layout.data_folder("", "202610") / B
    lost.write_bytes(dmap_bytes(B))
    staged(loaded, B, sha256(lost))
    ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B)} and lost.exists()


@pytest.mark.parametrize("folder", ["", "raw/2026/10"])
@pytest.mark.parametrize("digest", ["known", None])
def test_a_folder_is_a_source_flat_or_by_month(tmp_path, folder, digest):
    loaded = made(tmp_path, f"mirror.backfill.sources=[{SHELF}]")
    path = mirror_world.dmap_file(neighbour(loaded, "shelf") / folder, B)
    staged(loaded, B, sha256(path) if digest else None)
    ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B)} and path.exists()


# -- what does not


def test_a_wrong_hash_at_the_first_source_and_a_right_one_at_the_second(loaded):
    """M24: what comes is held against the hash that a mirror lists before it has a name where publishing looks."""
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {B: dmap_bytes(B)})
    damage(loaded, "bas", B)
    code, job = ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B)}
    assert code == Exit.ACCOUNTED and job.counts == {"done": 1} and accounted_once(loaded)
    assert tries(loaded) == [("bas", "kept"), ("nssc", "done")]
    assert book(loaded)[B].tries == {"bas": 1}


def test_a_file_that_our_own_records_know_otherwise_is_refused(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B, salt=1)})
    staged(loaded, B, "c" * 64)
    code, _ = ask(loaded)
    assert code == Exit.LEFT_OVER and waiting(loaded) == {} and states(loaded) == {B: OPEN}
    assert "our own records" in reasons(loaded)[B] and book(loaded)[B].tries == {"bas": 1}
    assert not list((loaded.mirror()[1].folder("work") / "backfill").iterdir())


@pytest.mark.parametrize("content", [b"no bzip2", dmap_bytes(C), dmap_bytes(B)[:-20]], ids=["junk", "other time", "cut off"])
def test_where_no_hash_is_known_only_a_good_file_of_that_name_comes(tmp_path, content):
    loaded = made(tmp_path, f"mirror.backfill.sources=[{SHELF}]")
    neighbour(loaded, "shelf").mkdir()
    (neighbour(loaded, "shelf") / B).write_bytes(content)
    staged(loaded, B, None)
    code, _ = ask(loaded)
    assert code == Exit.LEFT_OVER and waiting(loaded) == {} and book(loaded)[B].tries == {"shelf": 1}


def test_different_hashes_are_alternatives_and_told_once(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B, salt=1)})
    on_mirror(neighbour(loaded, "nssc"), {B: dmap_bytes(B, salt=2)})
    damage(loaded, "bas", B)
    damage(loaded, "nssc", B)
    ask(loaded)
    request = book(loaded)[B]
    assert sorted(request.sha1s.values()) == [("bas",), ("nssc",)]
    (told,) = alerts(loaded)
    assert "different hashes" in told and B in told
    damage(loaded, "nssc", B, dmap_bytes(B, salt=2))
    ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B, salt=2)} and alerts(loaded) == [told]


def test_blocked_and_failed_files_are_not_asked_for(loaded):
    """M13, M20: a blocked name, and the exact pair of hash and name that failed, are no gaps."""
    on_mirror(neighbour(loaded, "bas"), {name: dmap_bytes(name) for name in (B, C, D)})
    top, theirs = mirror_folder(loaded), neighbour(loaded, "bas") / layout.data_folder("", "202610")
    (top / layout.blocklist("") / "b.txt").write_text(f"{B}\r\n")
    (top / layout.failed_list("")).write_text(
        f"{sha1(theirs / C)}  {C} | Failed BZ2 integrity test\n{sha1(theirs / C)}  {D} | x\n"
    )
    ask(loaded)
    assert waiting(loaded).keys() == {D} and states(loaded) == {D: DONE}


def test_what_is_blocked_after_it_was_asked_for_is_cancelled(loaded):
    staged(loaded, B, None)
    ask(loaded)
    (mirror_folder(loaded) / layout.blocklist("") / "b.txt").write_text(f"{B}\n")
    code, job = work_off(loaded)
    assert states(loaded) == {B: CANCELLED} and (code, job.counts) == (Exit.ACCOUNTED, {"skipped": 1})


def test_a_hash_that_failed_after_it_was_asked_for_is_no_alternative_any_more(loaded):
    """M20: a file that was refused is not fetched again by every run."""
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {B: dmap_bytes(B, salt=len(partner))})
    folder = layout.data_folder("", "202610")
    failed = sha1(neighbour(loaded, "bas") / folder / B)
    contents = {partner: (neighbour(loaded, partner) / folder / B).read_bytes() for partner in ("bas", "nssc")}
    for partner in contents:
        damage(loaded, partner, B)
    ask(loaded)
    (mirror_folder(loaded) / layout.failed_list("")).write_text(f"{failed}  {B} | Failed DMAP integrity test\n")
    for partner, content in contents.items():
        damage(loaded, partner, B, content)
    work_off(loaded)
    assert waiting(loaded) == {B: contents["nssc"]}


def test_what_a_line_of_ours_that_cannot_be_read_names_is_kept(loaded):
    """M23: nobody can say whether it is missing, so it is neither fetched nor given up."""
    staged(loaded, B, None)
    ask(loaded)
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    month = mirror_folder(loaded) / layout.month_list("", "202610")
    whole = month.read_text()
    month.write_text(f"{whole}{'1' * 40} {B}\n")
    for verb in (work_off, ask):
        code, _ = verb(loaded)
        assert code == Exit.LEFT_OVER and states(loaded) == {B: OPEN} and "cannot be read" in reasons(loaded)[B]
    month.write_text(whole)
    assert ask(loaded)[0] == Exit.ACCOUNTED and states(loaded) == {B: DONE}


class StopsAfter:
    """What signals have asked for: to stop, from the N-th look at it on."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    @property
    def stop(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("looks", "reason"), [(0, "asked to stop"), (1, "bas: asked to stop")])
def test_asked_to_stop_it_keeps_the_rest_and_uses_up_no_try(loaded, looks, reason):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    code, job = ask(loaded, requests=StopsAfter(looks))
    assert code == Exit.LEFT_OVER and job.counts == {"kept": 1} and reasons(loaded)[B] == reason
    assert book(loaded)[B].tries == {} and work_off(loaded)[0] == Exit.ACCOUNTED


def test_excluded_and_unknown_radars_are_refused(loaded):
    for radar in ("hje", "xyz", "../"):
        code, job = ask(loaded, radar)
        assert code == Exit.CONFIG and job.problems[0].isprintable()


def test_a_span_that_is_none_is_refused(loaded):
    assert ask(loaded, span=(SPAN[1], SPAN[0]))[0] == Exit.CONFIG
    assert ask(loaded, span=(SPAN[0], date(2030, 1, 1)))[0] == Exit.CONFIG
    assert ask(loaded, span=(date(1990, 1, 1), date(1990, 2, 1)))[0] == Exit.ACCOUNTED, "before there were such data"


def test_without_anybody_to_ask_it_is_refused(tmp_path):
    loaded = made(tmp_path, "mirror.backfill.sources=[]")
    assert ask(loaded)[0] == work_off(loaded)[0] == Exit.CONFIG


def test_a_source_that_is_none_is_a_fault_of_the_configuration(tmp_path):
    with pytest.raises(BadConfig, match="source 'nowhere' is nowhere"):
        made(tmp_path, "mirror.backfill.sources=[{name: nowhere}, {name: bas, partner: bas}]")


HOSTILE = [
    "../../../etc/passwd",
    "$(reboot).rawacf.bz2",
    f"{B}\r",
    "-rf",
    f"./{B}",
    f"{B};reboot",
    "20261001.0200.01.sas.a.rawacf.bz2 x",
]


def test_hostile_names_go_nowhere(loaded):
    """M26, M11: a line of a partner's list that is not exactly a name of that month is not asked for, and the rest comes."""
    on_mirror(neighbour(loaded, "bas"), {C: dmap_bytes(C)})
    month = neighbour(loaded, "bas") / layout.month_list("", "202610")
    month.write_text("".join(f"{'1' * 40}  {name}\n" for name in HOSTILE) + month.read_text())
    code, _ = ask(loaded)
    assert code == Exit.ACCOUNTED and waiting(loaded) == {C: dmap_bytes(C)} and states(loaded) == {C: DONE}


def test_a_hostile_request_is_told_and_left_as_it_is(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    file = loaded.mirror()[1].state / "requests.jsonl"
    odd = '{"name": "../../x\x1b[2J", "made": "2026-11-20T12:00:00.000000Z", "changed": "2026-11-20T12:00:00.000000Z"}'
    file.write_text(f"{odd}\n")
    code, job = ask(loaded)
    assert code == Exit.LEFT_OVER and waiting(loaded) == {B: dmap_bytes(B)}
    assert job.problems[0].isprintable() and odd in file.read_text().split("\n")


# -- tries, age, limits


def test_a_request_is_given_up_when_each_source_that_has_it_was_tried_in_vain(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    damage(loaded, "bas", B)
    ask(loaded)
    for day in range(1, 4):
        assert work_off(loaded, clock=at(day))[0] == Exit.LEFT_OVER
    assert states(loaded) == {B: OPEN} and alerts(loaded) == []
    code, job = work_off(loaded, clock=at(4))
    assert book(loaded)[B].tries == {"bas": 5} and states(loaded) == {B: GIVEN_UP}
    assert (code, job.counts) == (Exit.ACCOUNTED, {"skipped": 1})
    (told,) = alerts(loaded)
    assert "given up" in told and f"retry {B}" in told and "its SHA-1 was" in told
    assert work_off(loaded, clock=at(5))[1].counts == {} and ask(loaded, clock=at(5))[1].counts == {}
    assert accounted_once(loaded)


def test_what_nobody_has_is_given_up_by_age(loaded):
    staged(loaded, B, "c" * 64)
    ask(loaded)
    for day in (1, 10, 29.9):
        work_off(loaded, clock=at(day))
        assert states(loaded) == {B: OPEN} and reasons(loaded)[B] == "no source has it"
    staged(loaded, C, "c" * 64)
    ask(loaded, clock=at(29.9))
    work_off(loaded, clock=at(30.1))
    assert states(loaded) == {B: GIVEN_UP, C: OPEN} and "30 days" in alerts(loaded)[0]
    work_off(loaded, clock=at(60.1))
    assert states(loaded) == {B: GIVEN_UP, C: GIVEN_UP} and len(alerts(loaded)) == 2


def test_old_requests_that_are_done_are_forgotten(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    ask(loaded)
    work_off(loaded, clock=at(29))
    assert states(loaded) == {B: DONE}
    work_off(loaded, clock=at(31))
    assert states(loaded) == {}


def test_no_source_is_asked_for_more_than_its_files_in_an_hour(tmp_path):
    loaded = made(tmp_path, "mirror.backfill.sources=[{name: bas, partner: bas, files_per_hour: 2}]")
    on_mirror(neighbour(loaded, "bas"), {name: dmap_bytes(name) for name in (B, C, D, FAR)})
    code, job = ask(loaded)
    assert waiting(loaded).keys() == {FAR, B} and (code, job.counts) == (Exit.LEFT_OVER, {"done": 2, "kept": 2})
    assert reasons(loaded)[C] == "bas: no more than 2 files in an hour"
    work_off(loaded, clock=at(0.5 / 24))
    assert waiting(loaded).keys() == {FAR, B}
    work_off(loaded, clock=at(1.01 / 24))
    assert waiting(loaded).keys() == {FAR, B, C, D} and set(states(loaded).values()) == {DONE}
    assert accounted_once(loaded) and book(loaded)[C].tries == {}


def test_one_source_at_its_limit_leaves_the_rest_to_the_next(tmp_path):
    limited = SOURCES.replace("{name: bas, partner: bas}", "{name: bas, partner: bas, files_per_hour: 1}")
    loaded = made(tmp_path, limited)
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {name: dmap_bytes(name) for name in (B, C)})
    assert ask(loaded)[0] == Exit.ACCOUNTED
    assert [record["source"] for record in records(loaded, "backfill", "file")] == ["bas", "nssc"]


def test_a_clock_that_was_set_back_holds_nobody_up_for_long(tmp_path):
    loaded = made(tmp_path, "mirror.backfill.sources=[{name: bas, partner: bas, files_per_hour: 1}]")
    on_mirror(neighbour(loaded, "bas"), {name: dmap_bytes(name) for name in (B, C)})
    ask(loaded, clock=at(0.9))
    work_off(loaded, clock=at(0))
    assert waiting(loaded).keys() == {B, C}


# -- sources that are down


def unreachable(monkeypatch, *roots: str, at_once: bool = True) -> None:
    """Stores cannot be opened; or, if not at once, not be asked for anything."""
    real = stores.open_store

    def open_store(settings, here, work):
        error = HostDown(f"no route to {settings.root}")
        if settings.root.endswith(roots) and at_once:
            raise error
        store = real(settings, here, work)
        return FaultyStore(store, fails("names", error)) if settings.root.endswith(roots) else store

    monkeypatch.setattr(stores, "open_store", open_store)


def test_one_source_that_is_down_stops_no_other(loaded, monkeypatch):
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {B: dmap_bytes(B)})
    unreachable(monkeypatch, "/bas")
    code, job = ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B)} and job.counts == {"done": 1}
    assert code == Exit.LEFT_OVER, "what only bas lists is not known"
    assert any("British Antarctic Survey" in problem for problem in job.problems)


def test_one_source_down_and_another_without_it_is_not_unreachable(loaded, monkeypatch):
    staged(loaded, B, None)
    unreachable(monkeypatch, "/bas")
    assert ask(loaded)[0] == Exit.LEFT_OVER and reasons(loaded)[B].startswith("bas: no route")


def test_what_is_not_complete_is_told_once_until_it_is(loaded):
    """M30: a run that did not bring everything does not end as if it had, and a person is told."""
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    damage(loaded, "bas", B)
    assert [ask(loaded, clock=at(day))[0] for day in (0, 1)] == [Exit.LEFT_OVER, Exit.LEFT_OVER]
    assert len(alerts(loaded, condition=True)) == 1
    assert any(f"still missing: 1, the first is {B}: bas: fetched twice" in text for text in mirror_world.SAID)
    damage(loaded, "bas", B, dmap_bytes(B))
    assert work_off(loaded, clock=at(2))[0] == Exit.ACCOUNTED
    staged(loaded, C, None)
    ask(loaded, clock=at(3))
    assert len(alerts(loaded, condition=True)) == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_all_sources_down_is_unreachable_and_costs_no_try(loaded, monkeypatch, at_once):
    staged(loaded, B, "c" * 64)
    unreachable(monkeypatch, "/bas", "/nssc", at_once=at_once)
    code, job = ask(loaded)
    assert code == Exit.UNREACHABLE and job.counts == {"kept": 1} and accounted_once(loaded)
    for day in range(1, 8):
        assert work_off(loaded, clock=at(day))[0] == Exit.UNREACHABLE
    (told,) = alerts(loaded, condition=True)
    assert "bas cannot be reached" in told and "nssc cannot be reached" in told
    assert book(loaded)[B].state == OPEN and book(loaded)[B].tries == {}


def test_nothing_is_given_up_before_every_source_could_be_asked(loaded, monkeypatch):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    damage(loaded, "bas", B)
    with monkeypatch.context() as patch:
        unreachable(patch, "/nssc")
        for day in range(6):
            ask(loaded, clock=at(day))
    assert book(loaded)[B].tries == {"bas": 5} and states(loaded) == {B: OPEN}
    on_mirror(neighbour(loaded, "nssc"), {B: dmap_bytes(B)})
    assert work_off(loaded, clock=at(6))[0] == Exit.ACCOUNTED and waiting(loaded) == {B: dmap_bytes(B)}


def test_a_source_that_goes_down_while_it_is_fetched_from(loaded, monkeypatch):
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {name: dmap_bytes(name) for name in (B, C)})
    install(monkeypatch, fails("fetch", HostDown("reset"), ending=C, times=1))
    code, _ = ask(loaded)
    assert code == Exit.ACCOUNTED and waiting(loaded).keys() == {B, C} and accounted_once(loaded)
    assert [record["source"] for record in records(loaded, "backfill", "file")] == ["bas", "nssc"]
    assert book(loaded)[C].tries == {}


def test_our_mirror_that_is_down_says_nothing_is_missing(loaded, monkeypatch):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    unreachable(monkeypatch, "chroot")
    assert ask(loaded)[0] == Exit.UNREACHABLE and states(loaded) == {} and waiting(loaded) == {}


def test_a_list_that_a_source_cannot_give_holds_up_its_month_alone(loaded, monkeypatch):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B), FAR: dmap_bytes(FAR)})
    ask(loaded, span=(date(2026, 1, 1), date(2026, 1, 2)))
    staged(loaded, B, None)
    install(monkeypatch, fails("fetch", TryLater("EIO"), ending="202610.hashes", times=100))
    monkeypatch.setattr(backfill.evidence, "ours", lambda job, months: ({}, backfill.Presence((), (), ())))
    code, _ = ask(loaded)
    assert code == Exit.LEFT_OVER and states(loaded) == {FAR: DONE, B: OPEN}
    assert "EIO" in reasons(loaded)[B] and book(loaded)[B].tries == {}


# -- our own disk


def test_a_disk_without_room_costs_no_try(tmp_path):
    loaded = made(tmp_path)
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    full = world(tmp_path, [SOURCES, f"mirror.roots.holding.reserve_bytes={10**18}"])
    for day in range(7):
        assert ask(full, clock=at(day))[0] == Exit.LEFT_OVER
    assert "free" in reasons(full)[B] and book(full)[B].tries == {} and states(full) == {B: OPEN}
    ask(loaded, clock=at(7))
    assert waiting(loaded) == {B: dmap_bytes(B)}


def test_a_holding_directory_that_cannot_be_written_to_keeps_what_has_come(loaded, monkeypatch):
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(loaded, partner), {B: dmap_bytes(B)})

    def refuse(*_):
        raise TryLater("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(fulfil.copy, "move", refuse)
        code, _ = ask(loaded)
    assert code == Exit.LEFT_OVER and "read-only" in reasons(loaded)[B] and states(loaded) == {B: OPEN}
    assert tries(loaded) == [("bas", "done")]
    assert work_off(loaded)[0] == Exit.ACCOUNTED
    assert waiting(loaded) == {B: dmap_bytes(B)} and states(loaded) == {B: DONE} and accounted_once(loaded)
    assert tries(loaded) == [("bas", "done")], "not fetched again"


def test_what_was_fetched_for_a_request_that_is_no_more_goes(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    ask(loaded)
    fetched = loaded.mirror()[1].folder("work") / "backfill"
    (fetched / B).write_bytes(dmap_bytes(B))
    (fetched / "notes of somebody").write_text("keep")
    work_off(loaded)
    assert [path.name for path in fetched.iterdir()] == ["notes of somebody"]


def test_what_lies_there_from_an_earlier_run_is_verified_again(loaded):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B)})
    fetched = loaded.mirror()[1].folder("work") / "backfill"
    mirror_world.dmap_file(fetched, B, salt=1)
    ask(loaded)
    assert waiting(loaded) == {B: dmap_bytes(B)} and book(loaded)[B].tries == {}


# -- killed


def killed_at(number: int, below: Path, work) -> bool:
    """Run in a process of its own, killed before the N-th change below a folder; False when there were not so many."""
    child = os.fork()
    if child == 0:
        _kill_at(number, str(below))
        os._exit(work())
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _kill_at(number: int, below: str) -> None:
    left = number
    paths = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "open": 0}

    def hook(event, arguments):
        nonlocal left
        if event in paths and str(arguments[paths[event]]).startswith(below):
            if event == "open" and not arguments[2] & (os.O_CREAT | os.O_TRUNC):
                return
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_killed_anywhere_and_run_again_it_ends_the_same(tmp_path):
    """Files come once, verified, from whoever has them; no request is lost."""
    dmap_bytes(B)  # or each child would make the template anew
    for number in range(1, 1000, KILL_STRIDE):
        folder = tmp_path / str(number)
        loaded = made(folder)
        on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B), C: dmap_bytes(C)})
        on_mirror(neighbour(loaded, "nssc"), {C: dmap_bytes(C)})
        damage(loaded, "bas", C)
        if not killed_at(number, folder, lambda loaded=loaded: int(ask(loaded)[0])):
            break
        seen = waiting(loaded)
        assert all(content == dmap_bytes(name) for name, content in seen.items() if not name.startswith(".")), number
        assert ask(loaded)[0] == Exit.ACCOUNTED, number
        assert waiting(loaded) == {B: dmap_bytes(B), C: dmap_bytes(C)}, number
        assert set(states(loaded).values()) <= {DONE} and accounted_once(loaded), number
        assert not list((loaded.mirror()[1].folder("work") / "backfill").iterdir()), number
    assert number > 15 * KILL_STRIDE


# -- over the network


def test_over_sftp_a_partner_is_asked_and_gone_on_without_when_he_is_down(tmp_path):
    on_disk = made(tmp_path)
    for partner in ("bas", "nssc"):
        on_mirror(neighbour(on_disk, partner), {name: dmap_bytes(name) for name in (B, C)})
    damage(on_disk, "bas", C)
    with sftp_server.running(neighbour(on_disk, "bas")) as server:
        given = {word: value for word, value in asdict(server.settings(connect_timeout_s=2.0)).items() if value is not None}
        loaded = made(tmp_path, f"mirror.partners.bas.store={given}")
        assert ask(loaded)[0] == Exit.ACCOUNTED
        assert waiting(loaded) == {name: dmap_bytes(name) for name in (B, C)}
        assert tries(loaded) == [("bas", "kept"), ("bas", "done"), ("nssc", "done")]
    on_mirror(neighbour(on_disk, "nssc"), {D: dmap_bytes(D)})
    assert ask(loaded)[0] == Exit.LEFT_OVER and waiting(loaded).keys() == {B, C, D}


# -- the command line


def asked(loaded, *words, **options):
    arguments = argparse.Namespace(**{"words": list(words), "radar": None, "first": None, "last": None, **options})
    return mirror_world.run(loaded, "backfill", lambda job: backfill.asked(job, arguments), "backfill")


def test_the_command_line(loaded, monkeypatch):
    on_mirror(neighbour(loaded, "bas"), {B: dmap_bytes(B), C: dmap_bytes(C)})
    damage(loaded, "bas", C)
    assert asked(loaded, radar="sas", first=SPAN[0], last=SPAN[1])[0] == Exit.LEFT_OVER
    assert states(loaded) == {B: DONE, C: OPEN}
    before = len(mirror_world.SAID)
    assert asked(loaded, "requests", "list")[0] == Exit.ACCOUNTED
    assert [line.split()[1] for line in mirror_world.SAID[before:]] == [B, C]
    assert asked(loaded, "requests", "cancel", C)[0] == Exit.ACCOUNTED and states(loaded)[C] == CANCELLED
    assert asked(loaded, "requests", "retry", C)[0] == Exit.ACCOUNTED and states(loaded)[C] == OPEN
    damage(loaded, "bas", C, dmap_bytes(C))
    assert asked(loaded)[0] == Exit.ACCOUNTED and states(loaded)[C] == DONE


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["request"], {}), (["requests"], {}), (["requests", "drop", B], {}), (["requests", "list", B], {}),
        ([], {"radar": "sas"}), ([], {"first": SPAN[0], "last": SPAN[1]}), ([], {"radar": "sas", "first": SPAN[0]}),
    ],
)  # fmt: skip
def test_a_command_line_that_is_none(loaded, words, options):
    assert asked(loaded, *words, **options)[0] == Exit.CONFIG and states(loaded) == {}
