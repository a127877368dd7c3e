"""The one contract that every step of the shipped configuration keeps, over real rsync and SSH where it uses them.

Each row is a test that runs over all cases of `step_cases` but those that are exempt from it, with the reason there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strangers
from loopback import Machines, Run, kind_and_hash
from step_cases import CASES, Case, at

from dataflow.lib import config, custody, runner
from dataflow.lib.checksum import sha256
from dataflow.lib.config import MARKER

ROWS: set[str] = set()
REASON = ".reason.json"


def over_every_step(row: str) -> Callable[[Any], Any]:
    """Run a test over the cases that are not exempt from this row."""
    ROWS.add(row)
    applying = [case for case in CASES if row not in case.exempt]
    return pytest.mark.parametrize("case", applying, ids=[case.id for case in applying])


def run(machines: Machines, case: Case, **more: Any) -> Run:
    return machines.run(case.step, case.host, case.radar, case.part, **more)


def feed(machines: Machines, case: Case, count: int) -> list[Path]:
    return [case.feed(machines, number) for number in range(count)]


def assert_finished(machines: Machines, case: Case, fed: dict[Path, str]) -> None:
    """Each input is where it belongs, with its content where it is passed on as it is, and nowhere else."""
    for path, digest in fed.items():
        for place in case.places(machines, path):
            assert place.is_file(), place
            if place.name == path.name and place.stat().st_size:
                assert sha256(place) == digest, place
        assert path.exists() is (not case.removes_source), path


def hashes(paths: list[Path]) -> dict[Path, str]:
    return {path: sha256(path) for path in paths}


def visible(files: dict[str, str]) -> dict[str, str]:
    """The files that any reader would see: no part of the path is hidden."""
    return {text: digest for text, digest in files.items() if not any(part.startswith(".") for part in Path(text).parts)}


def below(found: dict[str, Any], machines: Machines, folder: Path) -> dict[str, Any]:
    """The part of what was found that lies below one folder."""
    text = str(folder.relative_to(machines.root)) + "/"
    return {path: value for path, value in found.items() if path.startswith(text)}


@over_every_step("empty")
def test_empty_input_is_no_trouble_and_no_work(case: Case, machines: Machines) -> None:
    before, connections = machines.state(), machines.connections("campus")
    done = run(machines, case)
    assert done.code == 0, done.said
    end = done.of("end")[0]
    if case.step != "send_logs":  # which finds its own log
        assert end["found"] == 0
        assert machines.connections("campus") == connections
    assert not done.of("alert")
    assert machines.state() == before


@over_every_step("twice")
def test_second_run_is_free_and_changes_nothing(case: Case, machines: Machines) -> None:
    fed = hashes(feed(machines, case, 3))
    first = run(machines, case)
    assert first.code == 0, first.said
    assert {first.outcomes()[path.name] for path in fed} == {"done"}
    assert_finished(machines, case, fed)

    state, stamps = machines.state(), machines.stamps()
    connections = machines.connections("campus") + machines.connections("inv-site")
    second = run(machines, case)
    assert second.code == 0, second.said
    if case.step != "send_logs":  # which brings its own log up to date
        assert second.of("end")[0]["found"] == 0
    assert machines.state() == state
    assert machines.stamps() == stamps
    assert machines.connections("campus") + machines.connections("inv-site") == connections


def sweep(machines: Machines, case: Case, of: str) -> int:
    """Kill a command at one change after the other; each time nothing may be lost, and running again must end as if undisturbed.

    Returns how many kills there were.
    """
    fed = hashes(feed(machines, case, 2 if case.stride == 1 and not case.far else 1))
    if case.far:
        machines.receive("hello", host=case.far, sender=case.host, radar=case.radar)  # makes its folders
    saved, before = machines.save(), visible(machines.files())
    undisturbed = run(machines, case)
    assert undisturbed.code == 0, undisturbed.said
    end = machines.state()
    known = {(Path(text).name, digest) for text, digest in [*before.items(), *visible(machines.files()).items()]}
    stride = stride_of(case)
    for number in range(1, 1000, stride):
        machines.restore(saved)
        machines.plan_kill(of, number)
        killed = run(machines, case)
        if not machines.was_killed():
            assert killed.code == 0, killed.said
            return (number - 1) // stride
        found = machines.files()
        for text, digest in visible(found).items():
            assert (Path(text).name, digest) in known, f"change {number}: {text} is there, but not whole"
        for path, digest in fed.items():
            assert (path.exists() and sha256(path) == digest) or digest in found.values() or is_delivered(machines, case, path)
            waiting = custody.names_in_backlog(machines.here(case.host, case.radar))
            if case.removes_source and not path.exists() and path.name not in waiting:
                assert recorded(machines, case, path), f"change {number}: {path} is gone without a record"
        for _ in range(3):
            again = run(machines, case)
            if again.code == 0:
                break
        assert again.code == 0, f"change {number}: {again.said}"
        assert machines.state() == end, f"change {number}"
        assert_finished(machines, case, fed)
    raise AssertionError("it was killed a thousand times and still had something to do")


def is_delivered(machines: Machines, case: Case, path: Path) -> bool:
    return all(place.exists() for place in case.places(machines, path))


def recorded(machines: Machines, case: Case, path: Path) -> bool:
    """Whether the summary log says what became of a file."""
    records = machines.records(case.step, case.host, case.radar)
    return any(r["event"] == "file" and r["file"] == path.name and r["outcome"] == "done" for r in records)


EVERY = int(os.environ.get("KILL_EVERY", "7"))
"""At every how manieth change a command is killed; with 1 at each. `make faults` kills at every call, beside changes."""


def stride_of(case: Case) -> int:
    return 1 if EVERY == 1 else max(case.stride, EVERY)


KILLS = [(case, of) for case in CASES for of in case.commands]


@pytest.mark.parametrize(("case", "of"), KILLS, ids=[f"{case.id}, {of}" for case, of in KILLS])
def test_killed_at_any_change_and_run_again_ends_in_the_same_state(case: Case, of: str, machines: Machines) -> None:
    assert sweep(machines, case, of) > 2 // stride_of(case)


@over_every_step("full")
def test_full_destination_keeps_everything_until_there_is_room(case: Case, machines: Machines) -> None:
    assert case.disk is not None
    with small_disk(case.disk(machines)) as disk:
        fed = hashes(feed(machines, case, 2))
        disk.fill()
        before = visible(machines.files())
        full = run(machines, case)
        assert full.code == 1, full.said
        for path, digest in fed.items():
            needs_it = case.step == "send_logs" or any(
                place.is_relative_to(case.disk(machines)) for place in case.places(machines, path)
            )
            assert full.outcomes()[path.name] == ("kept" if needs_it else "done")
            assert (path.exists() and sha256(path) == digest) or digest in machines.files().values()
        if case.id != "distribute_borealis_data":  # of which other disks have room
            assert visible(machines.files()) == before
        disk.make_room()
        again = run(machines, case)
        assert again.code == 0, again.said
        assert_finished(machines, case, fed)


class SmallDisk:
    """A disk that can be filled to the last byte and the last name."""

    def __init__(self, folder: Path) -> None:
        self.filler = folder / ".filler"

    def fill(self) -> None:
        self.filler.mkdir()
        with (self.filler / "bytes").open("wb", buffering=0) as file:
            until_full(lambda number: file.write(bytes(1 << 16)))
            until_full(lambda number: file.write(bytes(1 << 9)))
        until_full(lambda number: (self.filler / str(number)).touch())

    def make_room(self) -> None:
        shutil.rmtree(self.filler)


class ReadOnlyDisk:
    """What somebody who may not mount a small disk uses in its place: folders that nobody may write to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        self._give([path for path in [self.folder, *self.folder.rglob("*")] if path.is_dir()], 0o555)

    def make_room(self) -> None:
        self._give([path for path in [self.folder, *self.folder.rglob("*")] if path.is_dir()], 0o775)

    def _give(self, folders: list[Path], mode: int) -> None:
        for folder in folders:
            folder.chmod(mode)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk | ReadOnlyDisk]:
    if os.geteuid() != 0:
        disk = ReadOnlyDisk(folder)
        yield disk
        disk.make_room()
        return
    standing = folder.with_name(f"{folder.name}.before")
    folder.rename(standing)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=400,mode=755", "tmpfs", folder], check=True)
    try:
        shutil.copytree(standing, folder, dirs_exist_ok=True)
        shutil.rmtree(standing)
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def until_full(write: Callable[[int], object]) -> None:
    for number in range(1_000_000):
        try:
            write(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return
    raise AssertionError("the disk does not fill")


@over_every_step("not mounted")
def test_destination_without_its_marker_is_not_touched(case: Case, machines: Machines) -> None:
    fed = hashes(feed(machines, case, 2))
    for host, root in case.destinations:
        marker = machines.marker(host, case.radar, root)
        aside = marker.rename(machines.private / "marker")
        disk = marker.parent
        before = below(machines.stamps(), machines, disk)
        missing = run(machines, case)
        assert missing.code == 1, (host, root, missing.said)
        assert {missing.outcomes()[path.name] for path in fed} == {"kept"}
        assert str(MARKER) in missing.said or root in missing.said
        assert below(machines.stamps(), machines, disk) == before
        aside.rename(marker)
    again = run(machines, case)
    assert again.code == 0, again.said
    assert_finished(machines, case, fed)


@over_every_step("hostile")
def test_hostile_and_unknown_names_are_never_touched_and_stop_nothing(case: Case, machines: Machines) -> None:
    fed = hashes(feed(machines, case, 2))
    example = case.feed(machines, 9)
    fed |= hashes([example])
    outside = machines.private / "outside"
    outside.write_bytes(b"not ours")
    strangers = [*unknown_names(example), *things_that_are_no_files(machines, case, outside)]
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns, kind_and_hash(path)) for path in strangers}

    done = run(machines, case)
    assert done.code == 0, done.said
    assert_finished(machines, case, fed)
    for path, was in before.items():
        assert (path.lstat().st_ino, path.lstat().st_mtime_ns, kind_and_hash(path)) == was, path
    assert outside.read_bytes() == b"not ours"
    assert not [path for path in (Path.home(), Path.cwd(), machines.private) if (path / "PWNED").exists()]
    arrived = {Path(text).name for text in machines.files()} - {path.name for path in fed}
    assert not [name for name in arrived if "PWNED" in name and name not in {path.name for path in strangers}]
    skipped = [name for name, outcome in done.outcomes().items() if outcome == "skipped"]
    assert all(name.isprintable() and name.isascii() for name in skipped)
    assert all(record["machine"] for record in done.records)

    state = machines.state()
    again = run(machines, case)
    assert again.code == 0, again.said
    assert machines.state() == state


def unknown_names(example: Path) -> list[Path]:
    """Files beside a good one, under names that a shell, a log or a path would trip over."""
    name, stem, ending = os.fsencode(example.name), os.fsencode(example.stem), os.fsencode(example.suffix)
    unknown = (
        name + b"\n", b"-rf " + name, b"--remove-source-files", stem + b"$(touch PWNED)" + ending,
        stem + b"`touch PWNED`" + ending,
        stem + b";touch PWNED;" + ending, b"'" + name, b'"' + name + b'"', stem + b"\xff\xfe" + ending,
        stem + b"\x1b[2J" + ending,
        stem + b" | touch PWNED" + ending, stem.ljust(255 - len(ending), b"x") + ending, b"notes.txt", b"*", b"%s%n", b"\\",
    )  # fmt: skip
    folder = os.fsencode(example.parent)
    paths = [Path(os.fsdecode(folder + b"/" + each)) for each in unknown]
    for path in paths:
        path.write_bytes(b"a stranger's")
    return paths


def things_that_are_no_files(machines: Machines, case: Case, outside: Path) -> list[Path]:
    """Links to a file outside, a folder, nothing, themselves; pipes, sockets, devices, folders: each under a good name."""
    paths = []
    for number, make in enumerate(strangers.no_files(outside), start=20):
        path = case.feed(machines, number)
        path.unlink()
        make(path)
        paths.append(path)
    return paths


@over_every_step("ten thousand")
def test_ten_thousand_strange_names_hold_up_nothing(case: Case, machines: Machines) -> None:
    """Nothing is executed, touched, deleted or stuck, and the log is not flooded either."""
    path = case.feed(machines, 1)
    fed = hashes([path])
    made = strangers.make_all(path.parent, path.name, 10_000)
    before = strangers.stamps(path.parent)
    done = run(machines, case)
    assert done.code == 0, done.said
    assert_finished(machines, case, fed)
    after = strangers.stamps(path.parent)
    assert {name: after.get(name) for name in made} == {name: before[name] for name in made}
    assert not [folder for folder in (Path.home(), Path.cwd(), machines.private, path.parent) if (folder / "PWNED").exists()]
    assert len(done.of("alert")) <= runner.STRANGERS_TOLD + 1 and len(done.said) < 20_000
    again = run(machines, case)
    assert again.code == 0 and not again.of("alert"), again.said


@over_every_step("changing")
def test_source_that_changes_while_it_is_read_is_kept(case: Case, machines: Machines) -> None:
    changing, still = feed(machines, case, 2)
    was = sha256(changing)
    fed = hashes([still])
    there = [place for place in case.places(machines, changing) if place.exists()]
    machines.plan("any", change={"file": str(changing), "when": str(changing) if case.read_by == "itself" else case.read_by})
    done = run(machines, case)
    assert done.code == 1, done.said
    assert done.outcomes()[changing.name] == "kept", done.said
    assert sha256(changing) != was, "it was to change"
    assert_finished(machines, case, fed)
    if case.removes_source:
        places = [place for place in case.places(machines, changing) if place not in (changing, *there)]
        assert not [place for place in places if place.exists() and place.stat().st_size]


@over_every_step("conflict")
def test_same_name_with_other_content_sends_the_newcomer_to_quarantine(case: Case, machines: Machines) -> None:
    assert case.taken is not None
    for number in (0, 6):
        path = case.feed(machines, number)
        for taken in case.taken(machines, path):
            path = case.feed(machines, number)
            newcomer = sha256(path)
            taken.parent.mkdir(parents=True, exist_ok=True)
            taken.write_bytes(b"was here first")
            first = sha256(taken)
            done = run(machines, case)
            assert done.code == 1, done.said
            assert done.outcomes()[path.name] == "quarantined", done.said
            assert taken.read_bytes() == b"was here first"
            ((name, reason),) = machines.quarantined(case.judge or case.host, case.radar).items()
            hashes_told = {reason["sha256"], *reason["details"].values()}
            assert reason["kind"] == "conflict" and {newcomer, first} <= hashes_told | {reason["details"]["existing_sha256"]}
            assert not path.exists()
            others = [place for place in case.places(machines, path) if place != taken and place.exists()]
            assert not others, "the newcomer was passed on as well"
            assert len(alerts(machines, case)) == 1
            clean_up(machines, case, taken, name)


def alerts(machines: Machines, case: Case) -> list[dict[str, Any]]:
    """All alerts of all hosts."""
    hosts = {case.host, *([case.judge] if case.judge else [])}
    found = [machines.records(step, host, case.radar) for host in hosts for step in {case.step, "receive"}]
    return [record for records in found for record in records if record["event"] == "alert"]


def clean_up(machines: Machines, case: Case, taken: Path, name: str) -> None:
    """Be again as before the conflict, for the next one."""
    taken.unlink()
    folder = machines.here(case.judge or case.host, case.radar).folder("quarantine")
    (folder / name).unlink()
    (folder / (name + REASON)).unlink()
    for host in {case.host, case.judge or case.host}:
        here = machines.here(host, case.radar)
        shutil.rmtree(here.logs)
        shutil.rmtree(here.state / "flags", ignore_errors=True)


@over_every_step("fuse")
def test_three_bad_files_in_a_row_blow_the_fuse_and_nothing_moves(case: Case, machines: Machines) -> None:
    assert case.spoil is not None
    spoilt = [case.spoil(machines, path) for path in feed(machines, case, 3)]
    before = machines.files()
    blown = run(machines, case)
    assert blown.code == 3, blown.said
    assert {blown.outcomes().get(path.name) for path in spoilt} == {"kept"}
    assert len(blown.of("alert")) == 1
    assert "dataflow resume" in blown.said
    assert machines.files() == before
    assert not machines.quarantined(case.host, case.radar)

    still = run(machines, case)
    assert still.code == 3 and not still.of("alert"), still.said
    assert machines.files() == before

    by_hand = run(machines, case, files=spoilt)
    assert by_hand.code == 1, by_hand.said
    assert set(by_hand.outcomes().values()) == {"quarantined"}
    assert {path.name for path in spoilt} <= set(machines.quarantined(case.host, case.radar))


@over_every_step("one bad")
def test_one_bad_file_is_set_aside_and_stops_nothing_else(case: Case, machines: Machines) -> None:
    assert case.spoil is not None
    first, bad, last = feed(machines, case, 3)
    bad = case.spoil(machines, bad)
    fed, digest = hashes([first, last]), sha256(bad)
    done = run(machines, case)
    assert done.code == 1, done.said
    assert done.outcomes()[bad.name] == "quarantined"
    assert_finished(machines, case, fed)
    ((name, reason),) = machines.quarantined(case.host, case.radar).items()
    assert (
        name == bad.name and reason["sha256"] == digest and reason["message"] and reason["kind"] and reason["step"] == case.step
    )
    assert sha256(machines.here(case.host, case.radar).folder("quarantine") / name) == digest
    assert not bad.exists()
    assert len(alerts(machines, case)) == 1

    again = run(machines, case)
    assert again.code == 0, again.said
    assert len(alerts(machines, case)) == 1


@over_every_step("counts")
def test_counts_add_up_over_good_bad_and_unknown(case: Case, machines: Machines) -> None:
    """`Machines.run` holds every run of every row to its records; here the numbers are known beforehand."""
    fed = feed(machines, case, 2)
    bad = [case.spoil(machines, case.feed(machines, 3))] if case.spoil else []
    stranger = fed[0].with_name("notes.txt")
    stranger.write_bytes(b"a stranger's")
    done = run(machines, case)
    end = done.of("end")[0]
    own_log = 1 if case.step == "send_logs" else 0
    assert (end["done"] - own_log, end["quarantined"], end["kept"]) == (2, len(bad), 0), done.said
    assert end["skipped"] in (0, 1)
    assert end["found"] == 2 + own_log + len(bad) + end["skipped"]
    assert end["waiting"] == 0
    assert end["exit"] == done.code == (1 if bad else 0)


@over_every_step("host down")
def test_other_host_down_is_75_and_nothing_is_lost(case: Case, machines: Machines) -> None:
    fed = hashes(feed(machines, case, 2))
    before = visible(machines.files())
    down = run(machines, case, overrides=[f"radars.{case.radar}.machines.{case.far}.port=1"])
    assert down.code == 75, down.said
    assert {down.outcomes()[path.name] for path in fed} == {"kept"}
    assert visible(machines.files()) == before
    assert not machines.outbox(case.host, case.radar) or case.step == "send_flag"
    up = run(machines, case)
    assert up.code == 0, up.said
    assert_finished(machines, case, fed)


@over_every_step("time stamp")
def test_time_stamp_more_than_a_day_off_goes_to_quarantine(case: Case, machines: Machines) -> None:
    fine, wrong = feed(machines, case, 2)
    day_s = machines.config.flow.files.max_stamp_offset_s
    for path, number, offset_s in ((fine, 0, -day_s + 1), (wrong, 1, -day_s - 1)):
        moment = at(number).timestamp() + offset_s
        os.utime(path, (moment, moment))
    fed = hashes([fine])
    done = run(machines, case)
    assert done.code == 1, done.said
    assert done.outcomes() == {fine.name: "done", wrong.name: "quarantined"}
    assert_finished(machines, case, fed)
    ((name, reason),) = machines.quarantined(case.host, case.radar).items()
    assert name == wrong.name and reason["kind"] == "time stamp"


def test_the_table_leaves_nothing_out() -> None:
    """Every step of every list, with and without NAS, is a case; every row is run or has a reason; no row is unknown."""
    shipped = config.load(Path(__file__).resolve().parents[1] / "config.yaml")
    listed = {(entry.split()[0], *entry.split()[1:]) for host in shipped.flow.hosts.values() for entry in host.steps}
    assert {(case.step, *([case.part] if case.part else [])) for case in CASES} == listed
    modes = {shipped.flow.radars[case.radar].machines["borealis"].nas for case in CASES if case.host == "borealis"}
    assert modes == {"mounted", "none"}
    for case in CASES:
        assert set(case.exempt) <= ROWS, case.id
        assert all(len(reason.split()) > 4 for reason in case.exempt.values()), case.id
        assert not {"empty", "twice", "hostile", "ten thousand", "counts"} & set(case.exempt), case.id
        assert ("full" in case.exempt) is (case.disk is None), case.id
        assert "run" in case.commands and ("receive" in case.commands) is (case.far is not None), case.id
