"""Disks that fill up, go read-only, go away and garble what they hold, under every step, at any moment of its work.

The disks are real: small file systems of their own in place of a root, of the state or of the logs. After each fault nothing may
be lost or doubled; when it is over, the next run finishes everything, and a person was told once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import running_chain
from loopback import REPOSITORY, Machines
from step_cases import CASES, Case, parsed
from test_step_contract import alerts, assert_finished, feed, hashes, run

from dataflow.demo import simulate_radar
from dataflow.demo.simulate_radar import SliceSpec
from dataflow.lib import names
from dataflow.lib.checksum import sha256
from faults import disks

EVERY = int(os.environ.get("DISK_FAULTS_EVERY", "16"))
"""Before every how manieth change of a step its disk goes away; with 1 before each, which takes half an hour."""
APART = {"rsync_to_nas", "rsync_to_campus data", "convert_on_campus", "distribute_borealis_data"}
"""The cases in which state and logs lie on disks of their own, each of which fills up; in the others both are on one."""


def disks_of(case: Case) -> list[str]:
    """The disks beside its destination that may be full under a step."""
    own = ["own state", "own logs", "source"] if case.id in APART else ["own var"]
    return own + (["far state", "far logs"] if case.far and case.id in APART else ["far var"] if case.far else [])


def folder_of(machines: Machines, case: Case, wanted: str) -> Path:
    """Where such a disk is mounted; `source` is the root from which the step takes its files."""
    here = machines.here(str(case.far) if wanted.startswith("far") else case.host, case.radar)
    source = {"borealis": "data", "site-linux": "store", "campus": "sddata"}[case.host]
    folders = {
        "state": here.machine_state,
        "logs": here.logs,
        "var": here.logs.parents[1],
        "source": here.roots.get(source, here.logs),
    }
    return folders[wanted.split()[-1]]


FULL = [pytest.param(case, wanted, id=f"{case.id}, {wanted}") for case in CASES for wanted in disks_of(case)]


@pytest.mark.parametrize(("case", "wanted"), FULL)
def test_a_full_disk_loses_nothing_and_the_next_run_finishes(case: Case, wanted: str, machines: Machines) -> None:
    folder = folder_of(machines, case, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with disks.mounted(folder) as disk:
        fed = hashes(feed(machines, case, 3))
        (machines.here(case.host, case.radar).state / "alerts").mkdir(parents=True, exist_ok=True)  # it has told things before
        disk.fill()
        for _ in range(2):
            assert_no_bug(*troubled(machines, case))
            assert_nothing_lost(machines, case, fed)
        disk.make_room()
        told = alerts(machines, case)
        assert len(told) == len({record["message"] for record in told}), told
        again = run(machines, case)
        assert again.code == 0, again.said
        assert_finished(machines, case, fed)
        assert_nothing_lost(machines, case, fed)


def troubled(machines: Machines, case: Case) -> tuple[int, str]:
    """A run on a machine in trouble, whose records may be missing; its exit code and what it said."""
    part = ("--part", case.part) if case.part else ()
    code, said, _ = machines.dataflow(["run", case.step, "--host", case.host, "--radar", case.radar, *part])
    return code, said


def assert_no_bug(code: int, said: str) -> None:
    """It ended as a run does whose environment is at fault, or which did not need what is broken, and says so."""
    assert code in (0, 1, 75) and "Traceback" not in said, said
    assert code == 0 or said.strip()


def assert_nothing_lost(machines: Machines, case: Case, fed: dict[Path, str]) -> None:
    """Each input is still whole somewhere, or in all of its places."""
    for path, digest in fed.items():
        assert (
            (path.exists() and sha256(path) == digest)
            or all(place.exists() for place in case.places(machines, path))
            or digest in machines.files().values()
        ), path


# What goes away, or takes no more changes, in the middle of a step


ROOM_BYTES = 1 << 30
TORN = [(case, host, root) for case in CASES for host, root in case.destinations]


@pytest.mark.parametrize(("case", "host", "root"), TORN, ids=[f"{case.id}, {host} {root}" for case, host, root in TORN])
def test_a_disk_that_goes_away_or_read_only_in_mid_run(case: Case, host: str, root: str, machines: Machines) -> None:
    """Before one change after the other, those of the step and those of who receives for it; each time on new files."""
    if case.far:
        machines.dataflow(["receive", "hello", "--host", case.far, "--radar", case.radar, "--from", case.host])
    folder = machines.here(host, case.radar).roots[root]
    of = "run" if host == case.host else "receive"
    number = 0
    with disks.mounted(folder, ROOM_BYTES) as disk:
        faults = itertools.cycle(((["umount", "--lazy"], disk.mount), (["mount", "-o", "remount,ro"], disk.writable)))
        for change in range(min(EVERY, 3), 2000, EVERY if EVERY == 1 else EVERY * case.stride):
            for fault, mend in itertools.islice(faults, 2 if EVERY == 1 else 1):
                fed = hashes([case.feed(machines, number + more) for more in range(1 if case.stride > 4 else 2)])
                number += 2
                machines.plan(
                    of, below=str(machines.root), kill_at=change, killed=str(machines.killed_file), do=[*fault, str(folder)]
                )
                assert_no_bug(*troubled(machines, case))
                was_hit = machines.was_killed()
                machines.killed_file.unlink(missing_ok=True)
                if was_hit:
                    clear_mount_point(folder)
                    mend()
                assert_nothing_lost(machines, case, fed)
                until_done(machines, case)
                assert_finished(machines, case, fed)
            if not was_hit:
                return
    raise AssertionError("it never came to its end")


def until_done(machines: Machines, case: Case) -> None:
    for _ in range(3):
        again = run(machines, case)
        if again.code == 0:
            return
    raise AssertionError(again.said)


def clear_mount_point(folder: Path) -> None:
    """Remove what was written below the mount point between two looks at the marker: nobody may count on it."""
    for path in [] if os.path.ismount(folder) else folder.iterdir():
        shutil.rmtree(path)


# What garbles


def flip(file: Path, folder: Path) -> list[str]:
    """The program that turns a bit of a file on the disk that is mounted at a folder."""
    return [sys.executable, str(REPOSITORY / "faults" / "disks.py"), "flip", str(folder), str(file)]


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.id == name)


COPIES = [
    ("rsync_to_nas", "borealis", "store", "run", lambda folder, path: folder("rawacf_array") / f".{path.name}.part"),
    ("rsync_to_nas", "borealis", "store", "run", lambda folder, path: folder("backup") / f".{path.name}.part"),
    ("rsync_to_nas, nas: none", "site-linux", "store", "receive", lambda folder, path: folder("incoming") / path.name),
    ("rsync_to_campus data", "campus", "sddata", "receive", lambda folder, path: folder("incoming") / path.name),
    ("rsync_to_campus pictures", "campus", "sddata", "receive", lambda folder, path: folder("incoming") / path.name),
    ("convert_on_campus", "campus", "sddata", "run", lambda folder, path: folder("data") / f".{dmap_of(path)}.part"),
    ("distribute_borealis_data", "campus", "archive", "run", lambda folder, path: archive(folder, path) / f".{path.name}.part"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "host", "root", "of", "copy"), COPIES, ids=[f"{row[0]}, {row[2]} {n}" for n, row in enumerate(COPIES)]
)
def test_a_copy_that_the_disk_garbles_is_found_before_the_source_goes(name, host, root, of, copy, machines: Machines) -> None:
    """Just before the copy is read back its bit is turned on the device; the page cache would still give the right bytes."""
    case = case_of(name)
    here = machines.here(host, case.radar)
    if case.far:
        machines.dataflow(["receive", "hello", "--host", case.far, "--radar", case.radar, "--from", case.host])
    with disks.mounted(here.roots[root]) as disk:
        path, other = feed(machines, case, 2)
        fed = hashes([path, other])
        garbled = copy(here.folder, path)
        machines.plan(of, at=["read", str(garbled), flip(garbled, disk.folder)])
        done = run(machines, case)
        assert done.code == 1 and done.outcomes() == {path.name: "kept", other.name: "done"}, done.said
        assert fed[path] in machines.files().values() and not garbled.exists()
        machines.plan_file.unlink()
        again = run(machines, case)
        assert again.code == 0, again.said
        assert_finished(machines, case, fed)


def test_a_copy_for_a_partner_that_the_disk_garbles_is_made_again(machines: Machines) -> None:
    case = case_of("distribute_borealis_data")
    staging = machines.here("campus").roots["staging"]
    with disks.mounted(staging) as disk:
        (path,) = feed(machines, case, 1)
        fed, ready = hashes([path]), staging / ".bas.ready" / f".{path.name}.part"
        machines.plan("run", at=["read", str(ready), flip(ready, disk.folder)])
        done = run(machines, case)
        assert done.code == 1 and done.outcomes() == {path.name: "kept"} and "reads back as" in done.said
        assert [(staging / target / path.name).exists() for target in ("vt", "bas", "mirror")] == [True, False, True]
        machines.plan_file.unlink()
        assert run(machines, case).code == 0
        assert_finished(machines, case, fed)


def dmap_of(path: Path) -> str:
    return names.dmap_of(parsed(path)).text


def archive(folder: Any, path: Path) -> Path:
    return folder("archive_dmap", parsed(path).time)


HASHED_BEFORE = ["rsync_to_nas, nas: none", "rsync_to_campus data", "rsync_to_campus pictures", "transfer_cam_photos"]


@pytest.mark.parametrize("name", HASHED_BEFORE)
def test_a_source_that_the_disk_garbles_after_it_was_hashed_goes_no_further(name: str, machines: Machines) -> None:
    """The size and the time are as before, so only its hash tells; it ends in the sender's quarantine and is told once."""
    case = case_of(name)
    path, other = feed(machines, case, 2)
    fed = hashes([other])
    machines.plan("any", change={"file": str(path), "when": "rsync", "how": "garble"})
    done = run(machines, case)
    assert done.code == 1 and done.outcomes()[path.name] == "quarantined", done.said
    assert_finished(machines, case, fed)
    assert not path.exists() and not any(place.exists() for place in case.places(machines, path) if place != path)
    ((aside, reason),) = machines.quarantined(case.host, case.radar).items()
    assert aside == path.name and reason["kind"] == "changed since hashed" and len(alerts(machines, case)) == 1
    machines.plan_file.unlink()
    again = run(machines, case)
    assert again.code == 0 and len(alerts(machines, case)) == 1, again.said


# What is another file all of a sudden


READ = [case for case in CASES if "changing" not in case.exempt and case.removes_source]


@pytest.mark.parametrize("how", ["truncate", "replace"])
@pytest.mark.parametrize("case", READ, ids=[case.id for case in READ])
def test_a_source_that_is_cut_off_or_replaced_while_it_is_read_is_kept(case: Case, how: str, machines: Machines) -> None:
    """What it is now is another file, and the next run's: nothing of the old one was passed on half."""
    path, other = feed(machines, case, 2)
    fed = hashes([other])
    before = [place for place in case.places(machines, path) if place.exists()]
    when = str(path) if case.read_by == "itself" else case.read_by
    machines.plan("any", change={"file": str(path), "when": when, "how": how})
    done = run(machines, case)
    assert done.code == 1 and done.outcomes()[path.name] == "kept", done.said
    assert_finished(machines, case, fed)
    assert path.exists()
    assert not [p for p in case.places(machines, path) if p not in before and p.exists() and p.stat().st_size]


# What the quarantine cannot take


SPOILT = [case for case in CASES if case.spoil and case.removes_source]


@pytest.mark.parametrize("case", SPOILT, ids=[case.id for case in SPOILT])
def test_a_bad_file_stays_where_it_is_until_the_quarantine_has_room(case: Case, machines: Machines) -> None:
    here = machines.here(case.host, case.radar)
    with disks.mounted(here.roots[here.root_of("quarantine")]) as disk:
        (path,) = feed(machines, case, 1)
        bad = case.spoil(machines, path)
        digest = sha256(bad)
        for trouble, mend in ((disk.fill, disk.make_room), (disk.read_only, disk.writable)):
            trouble()
            full = run(machines, case)
            assert full.code == 1 and full.outcomes().get(bad.name, "kept") == "kept", full.said
            assert sha256(bad) == digest and not machines.quarantined(case.host, case.radar)
            mend()
        done = run(machines, case)
        assert done.code == 1 and done.outcomes()[bad.name] == "quarantined", done.said
        assert list(machines.quarantined(case.host, case.radar)) == [bad.name] and not bad.exists()
        assert len([record for record in alerts(machines, case) if record["message"].startswith("quarantined")]) == 1
        assert run(machines, case).code == 0


# A clock that is set back, and forward again


AT_ANOTHER_TIME = """
import datetime, os, time
real = time.time
def ahead_s():
    with open(os.environ["CLOCK"]) as file:
        return float(file.read() or 0)
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(real() + ahead_s(), tz)
datetime.datetime, time.time = Shifted, lambda: real() + ahead_s()
"""
"""What a Python process runs before anything else to live at another time: so many seconds ahead, as a file says now."""


def test_daemons_whose_clock_is_set_back_and_forward_again(tmp_path: Path) -> None:
    """The times that the kernel gives to files stay as they are, and so does the clock of who receives: both are then ahead."""
    clock, site = tmp_path / "clock", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(AT_ANOTHER_TIME)
    clock.write_text("0")
    faked = {"CLOCK": str(clock), "PYTHONPATH": f"{site}:{REPOSITORY}"}
    with running_chain.running(tmp_path / "chain", overrides=(*running_chain.QUICK, "daemon.look_every_s=20")) as chain:
        for host in ("borealis", "site-linux", "campus"):
            chain.start(host, **faked)
        for number, hours in enumerate((-1, -24, 0)):
            start = at_even_hour(running_chain.now() + timedelta(hours=hours - 8 - 2 * number))
            (made,) = simulate_radar.write_block(tmp_path / f"aside{number}", "sas", start, [RAWACF], records=3, seed=number)
            (path,) = [running_chain.copy_in(made, chain.here("borealis").folder("data") / made.parent.name, start + HOUR)]
            clock.with_suffix(".new").write_text(f"{3600 * hours}")
            clock.with_suffix(".new").rename(clock)
            archived = chain.here("campus").folder("archive_hdf5", start) / path.name
            is_done = lambda archived=archived: archived.exists() and chain.is_at_rest()  # noqa: E731
            chain.until(is_done, lambda path=path: f"{path.name} is archived and nothing waits")
            assert sha256(archived) == sha256(made)
        told = [r["message"] for host in chain.machines.config.flow.hosts for r in chain.records(host) if r["event"] == "alert"]
        assert told == []


HOUR = timedelta(hours=1)
RAWACF = SliceSpec(slice_id=0, with_antennas_iq=False, ranges=20)


def at_even_hour(moment: datetime) -> datetime:
    return moment.replace(hour=moment.hour // 2 * 2, minute=0, second=0, microsecond=0)
