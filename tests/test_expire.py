"""What the site lets go of, and what it never does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import world
from loopback import Machines
from step_cases import backed_up, in_archive
from test_step_contract import small_disk
from world import World

from dataflow.lib import names, summary
from dataflow.lib.checksum import sha256
from dataflow.lib.errors import Exit
from dataflow.lib.names import Kind, Name
from faults import disks

STEP = "expire_site_storage"
NOW = datetime(2026, 11, 8, 12, tzinfo=UTC)


def world_with(tmp_path: Path, expire: str) -> World:
    made = world.make(tmp_path / "world", [f"expire={expire}"])
    made.clock.stop_at(NOW)
    return made


def iq_files(made: World, ages_days: Sequence[float], radar: str = "sas") -> list[Path]:
    """Antennas_iq files on the NAS, so many days old; drawn, since no marker tells otherwise."""
    folder = made.here("site-linux").folder("antennas_iq")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for age in ages_days:
        time = NOW - timedelta(days=age)
        path = folder / names.radar_file(time, radar, 0, Kind.ANTENNAS_IQ).text
        path.write_bytes(path.name.encode())
        os.utime(path, (time.timestamp(), time.timestamp()))
        paths.append(path)
    return paths


def left(paths: Sequence[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def parsed(path: Path) -> Name:
    name = names.parse(path.name)
    assert name is not None
    return name


def relay_record(made: World, path: Path, digest: str) -> None:
    """What the radar computer recorded of a file when it brought it to the NAS."""
    here = made.here("site-linux")
    day = parsed(path).time + timedelta(hours=3)
    log = here.relayed_logs / "sas" / "rsync_to_nas" / f"{day:%Y%m%d}.sas.rsync_to_nas.borealis.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        record = {
            "v": 1, "time": summary.timestamp(day), "run": "a run", "host": "borealis", "machine": "sas-borealis", "radar": "sas",
            "step": "rsync_to_nas", "event": "file", "file": path.name, "outcome": "done", "sha256": digest,
        }  # fmt: skip
        stream.write(json.dumps(record) + "\n")


def test_nothing_goes_until_a_folder_is_named(tmp_path: Path) -> None:
    made = world.make(tmp_path / "world")
    made.clock.stop_at(NOW)
    paths = iq_files(made, [1, 5000])
    assert made.run("site-linux", STEP)[0] is Exit.ACCOUNTED
    code, records = made.run("site-linux", STEP, named=[paths[1]])
    assert code is Exit.ACCOUNTED and left(paths) == [True, True]
    assert [r["outcome"] for r in records if r["event"] == "file"] == ["skipped"]


def test_iq_goes_by_its_age_and_never_before_it_is_drawn(tmp_path: Path) -> None:
    made = world_with(tmp_path, "{antennas_iq: {keep_days: 60}}")
    newest, young, old, told, to_draw = paths = iq_files(made, [0.1, 59.9, 60.2, 300, 301])
    (other,) = iq_files(made, [302], radar="pgr")
    here = made.here("site-linux")
    here.folder("to_plot").mkdir()
    (here.folder("to_plot") / to_draw.name).touch()
    relay_record(made, told, "7" * 64)
    rawacf = here.folder("antennas_iq") / names.radar_file(NOW - timedelta(days=400), "sas", 0, Kind.RAWACF).text
    rawacf.write_bytes(b"of another kind")
    link = here.folder("antennas_iq") / names.radar_file(NOW - timedelta(days=500), "sas", 0, Kind.ANTENNAS_IQ).text
    link.symlink_to(newest)
    digest = sha256(old)

    code, records = made.run("site-linux", STEP)
    assert code is Exit.ACCOUNTED
    assert left(paths) == [True, True, False, False, True] and left([other, rawacf, link]) == [True] * 3
    removed = {r["file"]: r for r in records if r["event"] == "file"}
    assert list(removed) == [told.name, old.name], "the oldest first"
    assert removed[told.name]["sha256"] == "7" * 64 and removed[old.name]["sha256"] == digest
    assert {(r["action"], r["reason"]) for r in removed.values()} == {("removed", "older than 60 days")}

    code, records = made.run("site-linux", STEP, named=[young, to_draw, other, rawacf])
    assert all(left([young, to_draw, other, rawacf])), "not for a person who names it either"
    reasons = {r["file"]: r["reason"] for r in records if r["event"] == "file"}
    assert "not older than 60 days" in reasons[young.name] and "still to be drawn" in reasons[to_draw.name]


@pytest.mark.parametrize("ahead_days", [100, 365 * 20])
def test_a_clock_that_runs_ahead_lets_nothing_go(tmp_path: Path, ahead_days: float) -> None:
    made = world_with(tmp_path, "{antennas_iq: {keep_days: 60}}")
    paths = iq_files(made, [0.1, 30, 59])
    made.clock.stop_at(NOW + timedelta(days=ahead_days))
    assert made.run("site-linux", STEP)[0] is Exit.ACCOUNTED
    made.clock.stop_at(NOW - timedelta(days=ahead_days))
    assert made.run("site-linux", STEP)[0] is Exit.ACCOUNTED
    assert all(left(paths))


def test_a_file_that_was_written_lately_is_not_old(tmp_path: Path) -> None:
    made = world_with(tmp_path, "{antennas_iq: {keep_days: 60}}")
    paths = iq_files(made, [0.1, 100])
    os.utime(paths[1], (NOW.timestamp(), (NOW - timedelta(days=10)).timestamp()))
    made.run("site-linux", STEP)
    assert all(left(paths))


def test_no_more_goes_than_the_disk_is_short_of(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with disks.mounted(folder):
        with (folder / "half of it").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).total // 2)
        disk = shutil.disk_usage(folder)
        percent = 100 * disk.free / disk.total
        for short_percent, expected in ((-10, [True] * 4), (15, [True, True, False, False])):
            made = world_with(folder, f"{{antennas_iq: {{keep_days: 60, min_free_percent: {percent + short_percent}}}}}")
            paths = iq_files(made, [0.1, 70, 80, 90])
            for path in paths:  # as large as a tenth of the disk, without taking that
                status = path.stat()
                os.truncate(path, disk.total // 10)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                relay_record(made, path, "7" * 64)
            made.run("site-linux", STEP)
            assert left(paths) == expected


def test_full_size_pictures_go_as_well(tmp_path: Path) -> None:
    made = world_with(tmp_path, "{full_size_plots: {keep_days: 365}}")
    folder = made.here("site-linux").folder("full_size_plots")
    folder.mkdir(parents=True)
    paths = []
    for age in (1, 367):
        time = NOW - timedelta(days=age)
        source = parsed(Path(names.radar_file(time, "sas", 0, Kind.ANTENNAS_IQ).text))
        paths.append(folder / names.plot_of(source, 3, 0, 70, full=True).text)
        paths[-1].write_bytes(b"picture")
        os.utime(paths[-1], (time.timestamp(), time.timestamp()))
    made.run("site-linux", STEP)
    assert left(paths) == [True, False]


# The backup, with a campus that answers


def hang_in(machines: Machines) -> Path:
    """An antennas_iq file that may go, and a younger one."""
    folder = machines.here("site-linux").folder("antennas_iq")
    folder.mkdir(parents=True)
    for age in (1, 40):
        time = datetime.now(UTC) - timedelta(days=age)
        path = folder / names.radar_file(time, "sas", 0, Kind.ANTENNAS_IQ).text
        path.write_bytes(b"samples")
        os.utime(path, (time.timestamp(), time.timestamp()))
    return path


def test_a_backup_goes_when_campus_has_read_the_same_from_its_archive(machines: Machines) -> None:
    path = backed_up(machines, 0)
    (archived,), digest = in_archive(machines, path), sha256(path)
    done = machines.run(STEP, "site-linux")
    assert done.code == 0 and not path.exists(), done.said
    (record,) = done.of("file")
    assert (record["action"], record["sha256"], record["destination"]) == ("removed", digest, f"campus:{archived}")
    assert record["reason"] == "older than 30 days"
    (confirmed,) = [r for r in machines.records("receive", "campus", "sas") if r["event"] == "action"]
    assert (confirmed["action"], confirmed["sha256"], confirmed["destination"]) == ("confirmed", digest, str(archived))


def test_what_campus_has_not_archived_stays_and_is_hashed_by_nobody(machines: Machines) -> None:
    path, gone = backed_up(machines, 0), backed_up(machines, 1)
    in_archive(machines, path)[0].unlink()
    for outcomes in ({gone.name: "done"}, {}):
        done = machines.run(STEP, "site-linux")
        assert (done.code, done.outcomes()) == (0, outcomes), done.said
    assert path.exists() and not gone.exists()
    named = machines.run(STEP, "site-linux", files=[path])
    assert (named.code, named.outcomes()) == (1, {path.name: "kept"})
    assert "does not lie in the archive" in named.said and path.exists()


@pytest.mark.parametrize("damaged", ["archive", "backup"])
def test_where_backup_and_archive_differ_both_stay_and_a_person_is_told_once(machines: Machines, damaged: str) -> None:
    path = backed_up(machines, 0)
    there = in_archive(machines, path)[0]
    wrong, content = (there if damaged == "archive" else path), path.read_bytes()
    status = wrong.stat()
    wrong.write_bytes(content[:-1] + b"!")
    os.utime(wrong, ns=(status.st_atime_ns, status.st_mtime_ns))
    first = machines.run(STEP, "site-linux")
    assert (first.code, first.outcomes()) == (1, {path.name: "kept"}), first.said
    (told,) = first.of("alert")
    assert sha256(path) in told["message"] and sha256(there) in told["message"]
    second = machines.run(STEP, "site-linux")
    assert (second.code, second.outcomes(), second.of("alert")) == (0, {}, []), "it is not hashed again and again"
    assert path.exists() and there.exists()
    wrong.write_bytes(content)
    os.utime(wrong, ns=(status.st_atime_ns, status.st_mtime_ns))
    mended = machines.run(STEP, "site-linux", files=[path])
    assert mended.code == 0 and not path.exists(), mended.said


def test_without_campus_the_backup_stays_and_iq_goes(machines: Machines) -> None:
    path, iq = backed_up(machines, 0), hang_in(machines)
    down = machines.run(STEP, "site-linux", overrides=["radars.sas.machines.campus.port=1"])
    assert (down.code, down.outcomes()) == (75, {path.name: "kept", iq.name: "done"}), down.said
    assert path.exists() and not iq.exists()


def test_a_full_disk_gets_room(machines: Machines) -> None:
    store = machines.here("site-linux").roots["store"]
    with small_disk(store) as disk:
        path = backed_up(machines, 0)
        disk.fill()
        done = machines.run(STEP, "site-linux")
        if os.geteuid() == 0:
            assert done.code == 0 and not path.exists(), done.said
        disk.make_room()


def test_of_another_radar_and_of_no_archive_nothing_is_told(machines: Machines) -> None:
    path = backed_up(machines, 0)
    there = in_archive(machines, path)[0]
    other = there.with_name(there.name.replace(".sas.", ".pgr."))
    shutil.copy(there, other)
    hidden = b"../../" + os.fsencode(there.name)
    asked = b"\0".join([os.fsencode(there.name), os.fsencode(other.name), hidden, b"\xff", b""])
    told = machines.receive("archived", asked)
    assert told.stdout.count(b"\n") == 1 and os.fsencode(there.name) in told.stdout, told.said
    none = machines.receive("archived", asked, host="site-linux", sender="borealis")
    assert b"has no archive" in none.stdout
    assert machines.receive("compare", b"{").code == 1
