"""Custody: which hash a file should have, what is adopted, and when a manifest has done its work."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta

import pytest
import world

from dataflow.lib import checksum, custody, flag, names, place
from dataflow.lib.config import MARKER, Here
from dataflow.lib.custody import MISSING_AFTER_S, open_folder, passed_before
from dataflow.lib.errors import TryLater
from dataflow.lib.flag import Entry

NAME = "20261101.1400.00.sas.0.rawacf.h5"
OTHER = "20261101.1600.00.sas.0.rawacf.h5"
CONTENT = b"a block"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ENTRY = Entry(NAME, len(CONTENT), SHA256)
SETTLE_S = 60.0


@pytest.fixture
def campus(tmp_path):
    return world.make(tmp_path)


@pytest.fixture
def ctx(campus):
    return campus.context("campus", step="convert_on_campus")


def put(here: Here, folder: str, name: str = NAME, content: bytes = CONTENT):
    path = here.folder(folder, names.parse(name).time) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def record(ctx, name: str, outcome: str, **more) -> None:
    ctx.log.write("file", file=name, outcome=outcome, **more)


def age(ctx, seconds: float = MISSING_AFTER_S + 1) -> None:
    ctx.clock.advance(seconds)


# adoption


def test_the_entry_of_a_manifest_wins(ctx):
    ctx.custody.admit([ENTRY], "site-linux")
    path = put(ctx.here, "holding", content=b"whatever lies there now")
    assert ctx.custody.entry_of(path, SETTLE_S) == ENTRY


def test_the_latest_entry_of_a_name_counts(ctx):
    ctx.custody.admit([ENTRY], "site-linux")
    later = Entry(NAME, 3, "f" * 64)
    ctx.clock.advance(1)
    ctx.custody.admit([later], "site-linux")
    assert ctx.custody.known(NAME) == later


def test_another_process_reads_what_was_admitted(campus, ctx):
    made = Entry(NAME, len(CONTENT), SHA256, parent="a" * 64, by="convert", content_sha256="b" * 64, records=7, cpids=(151, 3503))
    ctx.custody.admit([made], "site-linux")
    assert campus.context("campus").custody.known(NAME) == made
    assert campus.context("campus").custody.known(OTHER) is None


def test_a_file_without_an_entry_is_adopted_once_it_is_still(ctx, campus):
    path = put(ctx.here, "holding")
    with pytest.raises(TryLater, match=r"no manifest lists it and it changed [0-9]+ s ago; adopted when still for 60 s"):
        ctx.custody.entry_of(path, SETTLE_S)
    assert ctx.custody.known(NAME) is None
    ctx.clock.advance(SETTLE_S + 1)
    entry = ctx.custody.entry_of(path, SETTLE_S)
    assert entry == Entry(NAME, len(CONTENT), SHA256, by=custody.ADOPTED)
    (adoption,) = campus.records("campus")
    assert (adoption["event"], adoption["action"], adoption["file"], adoption["sha256"]) == ("action", "adopted", NAME, SHA256)
    assert campus.context("campus").custody.entry_of(path, SETTLE_S) == entry, "and stays so for the steps that follow"


def test_an_old_time_of_modification_does_not_make_a_file_still(ctx):
    """`cp -p` and rsync set the time of modification while the file is still growing elsewhere; ctime tells."""
    path = put(ctx.here, "holding")
    os.utime(path, (0, 0))
    with pytest.raises(TryLater):
        ctx.custody.entry_of(path, SETTLE_S)


def test_a_time_of_modification_in_the_future_does_not_hold_a_file_for_ever(ctx):
    path = put(ctx.here, "holding")
    os.utime(path, (4e9, 4e9))
    ctx.clock.advance(SETTLE_S + 1)
    assert ctx.custody.entry_of(path, SETTLE_S).sha256 == SHA256


def test_a_file_that_changes_while_it_is_hashed_is_not_adopted(ctx, monkeypatch):
    path = put(ctx.here, "holding")
    ctx.clock.advance(SETTLE_S + 1)
    sha256_on_disk = checksum.sha256_on_disk

    def slow(path, pace):
        digest = sha256_on_disk(path)
        with path.open("ab") as stream:
            stream.write(b"more")
        return digest

    monkeypatch.setattr(checksum, "sha256_on_disk", slow)
    with pytest.raises(TryLater, match="changed while it was read"):
        ctx.custody.entry_of(path, SETTLE_S)
    assert ctx.custody.known(NAME) is None


# manifests


def manifests(ctx) -> int:
    return len(flag.read_folder(open_folder(ctx.here)))


def test_a_manifest_stays_open_until_each_of_its_files_is_done(ctx):
    ctx.custody.admit([ENTRY, Entry(OTHER, 1, "e" * 64)], "site-linux")
    paths = [put(ctx.here, "holding", name) for name in (NAME, OTHER)]
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 1
    record(ctx, NAME, "done")
    paths[0].unlink()
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 1
    record(ctx, OTHER, "quarantined")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 1, "it still lies in holding"
    paths[1].unlink()
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0
    assert ctx.custody.known(NAME) is None, "what is closed is not known any more"


def test_a_name_that_a_record_had_to_escape_closes_its_manifest_too(ctx):
    odd = 'a "name" and \\.h5'
    ctx.custody.admit([Entry(odd, 1, "e" * 64)], "site-linux")
    record(ctx, f"deeper/{odd}", "done")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_a_manifest_is_closed_over_midnight(ctx):
    ctx.clock.stop_at(world.datetime(2026, 11, 1, 23, 59, tzinfo=world.UTC))
    record(ctx, NAME, "done")
    ctx.clock.advance(3600)
    ctx.custody.admit([ENTRY], "site-linux")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_a_manifest_without_files_is_closed(ctx):
    flag.write(open_folder(ctx.here), "sas", "site-linux", "run", [], ctx.clock)
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


@pytest.mark.parametrize(
    ("outcome", "more"), [("skipped", {}), ("done", {"action": "received"}), ("kept", {})], ids=["skipped", "received", "kept"]
)
def test_what_is_only_begun_closes_nothing(ctx, outcome, more):
    ctx.custody.admit([ENTRY], "site-linux")
    record(ctx, NAME, outcome, **more)
    ctx.custody.close_finished()
    assert manifests(ctx) == 1


def test_the_last_record_of_a_file_counts(ctx, campus):
    """Converted is done for one step; kept by the next, for want of one target, it is not done on this host."""
    ctx.custody.admit([ENTRY], "site-linux")
    record(ctx, NAME, "done", action="converted")
    ctx.clock.advance(1)
    later = campus.context("campus", step="archive_iq_plots")  # a log that is read before that of `convert_on_campus`
    record(later, NAME, "kept")
    age(ctx)
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 1, "it waits in a queue, and a record says so"
    ctx.clock.advance(1)
    record(later, NAME, "done")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_an_arrival_that_came_to_nothing_leaves_no_manifest_open(ctx, campus):
    """A broken link: one try brings half of the file, the next all of it, and an answer that nobody hears comes last."""
    arrival = campus.context("campus", step="receive")
    record(arrival, NAME, "kept", action="damaged")
    ctx.custody.admit([ENTRY], "site-linux")
    record(arrival, NAME, "done", action="received")
    record(ctx, NAME, "done", action="converted")
    ctx.clock.advance(1)
    record(arrival, NAME, "kept", action="missing")
    age(ctx)
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_a_file_that_is_gone_without_a_record_is_reported(ctx):
    ctx.custody.admit([ENTRY, Entry(OTHER, 1, "e" * 64)], "site-linux")
    put(ctx.here, "holding", OTHER)
    assert ctx.custody.close_finished() == [], "over NFS a folder is seen late"
    age(ctx)
    assert ctx.custody.close_finished() == [NAME] and manifests(ctx) == 1


def test_a_missing_file_is_one_alert_and_nothing_stops(campus):
    ctx = campus.context("campus", step="archive_iq_plots")
    ctx.custody.admit([ENTRY], "site-linux")
    campus.clock.advance(MISSING_AFTER_S + 1)
    alerts = []
    for _ in range(2):
        code, records = campus.run("campus", "archive_iq_plots")
        assert code == 0
        alerts += [found["message"] for found in records if found["event"] == "alert"]
    assert len(alerts) == 1 and alerts[0].startswith(f"{NAME} is listed in a manifest, lies in no working folder")


def test_records_of_other_hosts_and_radars_say_nothing(ctx, campus, tmp_path):
    other = world.make(tmp_path, radars=("pgr",)).context("campus", "pgr", step="convert_on_campus")
    ctx.custody.admit([ENTRY], "site-linux")
    record(other, NAME, "done")
    ctx.custody.close_finished()
    assert manifests(ctx) == 1


def test_a_manifest_that_was_open_for_months_costs_no_reading_of_months(ctx, campus):
    ctx.custody.admit([ENTRY], "site-linux")
    record(ctx, NAME, "done")
    ctx.clock.advance(timedelta(days=custody.RECORDS_DAYS + 5).total_seconds())
    assert ctx.custody.close_finished() == [NAME], "a person is asked instead"


# what has passed


def test_where_a_name_has_passed(ctx):
    name = names.parse(NAME)
    assert passed_before(ctx.here, name, SHA256, ctx.here.host.passed) is None
    archived = put(ctx.here, "archive_hdf5")
    assert passed_before(ctx.here, name, SHA256, ctx.here.host.passed) == (archived, SHA256)


def test_the_same_content_is_preferred_to_other_content(ctx):
    name = names.parse(NAME)
    other = put(ctx.here, "holding", content=b"other")
    assert passed_before(ctx.here, name, SHA256, ("holding", "archive_hdf5")) == (other, hashlib.sha256(b"other").hexdigest())
    archived = put(ctx.here, "archive_hdf5")
    assert passed_before(ctx.here, name, SHA256, ("holding", "archive_hdf5")) == (archived, SHA256)


def test_what_a_newcomer_is_let_go_for_is_durable_and_read_from_the_disk(ctx, monkeypatch):
    """A run may have been killed before it synced the folder, and a person's copy may still be on its way to the disk."""
    archived = put(ctx.here, "archive_hdf5")
    synced, read = [], []
    monkeypatch.setattr(checksum, "sync_folder", synced.append)
    on_disk = checksum.sha256_on_disk
    monkeypatch.setattr(checksum, "sha256_on_disk", lambda path: read.append(path) or on_disk(path))
    assert passed_before(ctx.here, names.parse(NAME), SHA256, ("archive_hdf5",)) == (archived, SHA256)
    assert synced == [archived.parent] and read == [archived]


def test_a_newcomer_in_quarantine_has_passed_as_well(ctx):
    folder = ctx.folder("quarantine")
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"other")
    newcomer = folder / f"{NAME}.{SHA256[:12]}"
    newcomer.write_bytes(CONTENT)
    assert passed_before(ctx.here, names.parse(NAME), SHA256, ("quarantine",)) == (newcomer, SHA256)


def test_what_is_no_regular_file_has_not_passed(ctx):
    put(ctx.here, "archive_hdf5").unlink()
    (ctx.folder("archive_hdf5", names.parse(NAME).time) / NAME).symlink_to("nowhere")
    assert passed_before(ctx.here, names.parse(NAME), SHA256, ctx.here.host.passed) is None


def test_the_backlog_is_what_lies_in_the_working_folders(ctx):
    put(ctx.here, "holding")
    place.part_of(ctx.folder("holding") / OTHER).touch()
    put(ctx.here, "archive_hdf5", OTHER)
    assert custody.names_in_backlog(ctx.here) == {NAME}


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=1)], ids=["an hour", "a day"])
def test_a_clock_that_is_set_back_leaves_no_manifest_open(ctx, back):
    ctx.custody.admit([ENTRY], "site-linux")
    record(ctx, NAME, "kept")
    ctx.clock.advance(-back.total_seconds())
    record(ctx, NAME, "done")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_a_sender_whose_clock_is_days_ahead_leaves_no_manifest_open(ctx):
    flag.write(open_folder(ctx.here), "sas", "site-linux", "run", [ENTRY], lambda: ctx.clock() + timedelta(days=9))
    record(ctx, NAME, "done")
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0


def test_a_file_from_before_the_clock_was_set_back_is_adopted(ctx):
    path = put(ctx.here, "holding")
    ctx.clock.advance(-86400)
    assert ctx.custody.entry_of(path, SETTLE_S).name == NAME


def test_an_unmounted_disk_is_no_empty_backlog(ctx):
    """Neither is a manifest closed because its files cannot be seen, nor is any of them called missing."""
    ctx.custody.admit([ENTRY], "site-linux")
    path = put(ctx.here, "holding", NAME)
    record(ctx, NAME, "done", action="converted")
    age(ctx)
    marker = ctx.here.roots["sddata"] / MARKER
    aside = marker.rename(marker.with_name("aside"))
    path.unlink()
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 1
    aside.rename(marker)
    assert ctx.custody.close_finished() == [] and manifests(ctx) == 0
