"""Kills a subject (a step, a daemon) at every point of its work, lets it finish, and tells which promise was broken.

One undisturbed run is recorded; it gives the points and the state in which everything must end. Then, for each point: back to
the beginning, run, die there, look, run again without faults, compare.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopback import Machines, Run, kind_and_hash
from step_cases import CASES, Case

from dataflow.lib import custody, summary
from dataflow.lib.config import Here
from dataflow.lib.flag import VERSION
from faults import durability, invariants
from faults.cell import Cell
from faults.control import Call, How, Point, points

TRIES = 3
"""How often a killed subject may run again until it has finished: a peer may still be busy with what the killed one asked."""
OLD_S = 8 * 86400.0
"""The age at which `receive` removes what a killed rsync left."""
FAR, OWN = ("receive", "rsync server"), ("run", "daemon", "send_files")
"""Roles by how they begin: those at the other end of a link, and our own at this end."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is killed.

    ``feed`` gives its input and returns it with hashes; ``finished`` fails unless all of it has arrived; ``state`` is what must
    be the same however often it was killed.
    """

    id: str
    host: str
    radar: str
    feed: Callable[[Machines], dict[Path, str]]
    run: Callable[[Machines], Run]
    finished: Callable[[Machines, Mapping[Path, str]], None]
    removes_source: bool = True
    state: Callable[[Machines], dict[str, Any]] = Machines.state


@dataclass(frozen=True, slots=True)
class Prepared:
    """A subject that was run once: where it began, how it must end, and what it did between."""

    subject: Subject
    saved: Path
    fed: dict[Path, str]
    end: dict[str, Any]
    known: frozenset[tuple[str, str]]
    standing: dict[Path, tuple[int, int]]
    calls: list[Call]
    points: list[Point]


@dataclass(frozen=True, slots=True)
class Strike:
    """One kill and what came of it; nothing in ``breaches`` when every promise was kept."""

    subject: str
    point: Point
    how: How
    was_reached: bool
    victims: int
    breaches: list[str] = field(default_factory=list)
    seconds: float = 0.0


def of_case(case: Case) -> Subject:
    """A step, as the contract suite knows it."""

    def feed(machines: Machines) -> dict[Path, str]:
        fed = {path: kind_and_hash(path) for path in (case.feed(machines, number) for number in range(2))}
        if case.far:  # makes its folders
            machines.receive("hello", host=case.far, sender=case.host, radar=case.radar)
        return fed

    def finished(machines: Machines, fed: Mapping[Path, str]) -> None:
        for path, digest in fed.items():
            for place in case.places(machines, path):
                assert place.is_file(), f"{place} is missing"
                if place.name == path.name and place.stat().st_size:
                    assert kind_and_hash(place) == digest, f"{place} is damaged"
            assert path.exists() is not case.removes_source, f"{path} is {'still there' if path.exists() else 'gone'}"

    def run(machines: Machines) -> Run:
        return machines.run(case.step, case.host, case.radar, case.part)

    return Subject(case.id, case.host, case.radar, feed, run, finished, case.removes_source)


STEPS = tuple(of_case(case) for case in CASES)


def prepare(cell: Cell, subject: Subject) -> Prepared:
    """Feed, save, and run once undisturbed.

    Raises:
        AssertionError: already that did not end well.
    """
    machines = cell.renew()
    fed = subject.feed(machines)
    saved, before = machines.save(), machines.files()
    cell.restore(saved)
    stood = durability.standing(machines.root)
    cell.control.record()
    done = subject.run(machines)
    left = cell.control.wait_until_quiet()
    cell.control.off()
    assert done.code == 0 and not left, f"{subject.id} undisturbed: {done.said} {left}"
    subject.finished(machines, fed)
    calls = cell.control.calls()
    known = {(Path(text).name, digest) for text, digest in [*before.items(), *visible(machines.files()).items()]}
    return Prepared(subject, saved, fed, subject.state(machines), frozenset(known), stood, calls, points(calls))


def kills(found: Sequence[Point]) -> Iterator[tuple[Point, How]]:
    """What is tried: at each point the caller; and all processes of its side, where it does not work alone.

    Of one call on one path by what is not our own program, as of the packets of a connection, the whole side is killed only at
    the first. Below a daemon, whose steps are tried one by one elsewhere, each role's first call of a kind in each folder stands
    for the others.
    """
    near = {point.role for point in found if not point.role.startswith(FAR)}
    is_daemon = any(role.startswith("daemon") for role in near)
    tried: set[tuple[str, str, str]] = set()
    for point in found:
        if is_daemon and not point.role.startswith("daemon"):
            alike = (point.role, point.call, str(Path(point.path).parent))
            if alike in tried:
                continue
            tried.add(alike)
        yield point, "caller"
        if is_daemon and not point.role.startswith("daemon"):
            continue
        if point.role.startswith(FAR):
            yield point, "far"
        elif len(near) > 1 and (point.occurrence == 1 or point.role.startswith(OWN)):
            yield point, "near"


def strike(cell: Cell, prepared: Prepared, point: Point, how: How) -> Strike:
    """Kill at one point, look, let it finish, look again."""
    began = time.monotonic()
    cell.restore(prepared.saved)
    stood = durability.standing(cell.machines.root)
    cell.control.kill_at(point, how)
    breaches: list[str] = []
    _guarded(breaches, lambda: prepared.subject.run(cell.machines))
    was_reached, victims = cell.control.was_reached, cell.control.victims
    cell.control.kill_no_more()
    if how != "near":  # with its whole side gone it is started again at once, whoever is still busy on the other
        breaches += _lingering(cell)
        breaches += after_kill(cell.machines, prepared)
    breaches += _finish(cell, prepared)
    cell.control.off()
    breaches += durability.breaches(cell.control.calls(), durability.layout(cell.machines), stood)
    return Strike(prepared.subject.id, point, how, was_reached, victims, breaches, time.monotonic() - began)


def _finish(cell: Cell, prepared: Prepared) -> Iterator[str]:
    """Run again until all is done; then everything must be as if nothing had happened."""
    machines, subject = cell.machines, prepared.subject
    found: list[str] = []
    for _ in range(TRIES):
        again = _guarded(found, lambda: subject.run(machines))
        if again is None or again.code == 0:
            break
    yield from found
    if again is not None and again.code != 0:
        yield f"run again, it ends with {again.code}: {again.said[-600:]}"
    yield from _lingering(cell)
    remove_old_partials(machines, subject)
    _guarded(found := [], lambda: subject.finished(machines, prepared.fed))
    yield from found
    yield from differences(prepared.end, subject.state(machines))
    yield from of_records(machines.here(host, subject.radar) for host in machines.config.flow.hosts)


def after_kill(machines: Machines, prepared: Prepared) -> Iterator[str]:
    """What must hold at any moment: nothing visible that is not whole, no input lost, none gone without a record."""
    subject, found = prepared.subject, machines.files()
    markers = _marker_folders(machines, subject.radar)
    for text, digest in visible(found).items():
        if (Path(text).name, digest) not in prepared.known and machines.root / Path(text).parent not in markers:
            yield f"after the kill {text} is there, but not whole"
    here = machines.here(subject.host, subject.radar)
    waiting = custody.names_in_backlog(here)
    for path, digest in prepared.fed.items():
        if path.exists() and kind_and_hash(path) == digest:
            continue
        if digest not in found.values() and not _has_arrived(machines, prepared, path):
            yield f"after the kill {path.name} is nowhere"
        if subject.removes_source and path.name not in waiting and not is_recorded(here, path.name):
            yield f"after the kill {path.name} is gone without a record"


def _marker_folders(machines: Machines, radar: str) -> set[Path]:
    """Where the files lie that have nothing in them."""
    heres = [machines.here(host, radar) for host in machines.config.flow.hosts]
    return {here.folder("to_plot") for here in heres if "to_plot" in here.folder_texts}


def _has_arrived(machines: Machines, prepared: Prepared, path: Path) -> bool:
    """Whether what is made of an input lies at its end; for inputs that do not arrive as they are."""
    digest = prepared.fed[path]
    there = path.exists()
    try:
        prepared.subject.finished(machines, {path: digest})
    except AssertionError as error:
        return there or "still there" in str(error)
    return True


def is_recorded(here: Here, name: str) -> bool:
    """Whether a summary log of this host says what became of a file."""
    logs = sorted(here.logs.glob("*/summary/*/*/*.jsonl"))
    return any(r["event"] == "file" and r["file"] == name and r["outcome"] == "done" for r in summary.records(logs))


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """How the end differs from that of the undisturbed run, one sentence each."""
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            yield f"in the end {key} is missing"
        elif key not in expected:
            yield f"in the end {key} is there and should not"
        elif expected[key] != found[key]:
            yield f"in the end {key} is other than it should be: {found[key]!r:.300}, not {expected[key]!r:.300}"


def of_records(heres: Iterable[Here]) -> Iterator[str]:
    """Every run has at most one end, which counts the files that its records tell of."""
    for here in heres:
        told = list(summary.records(sorted(here.logs.glob("*/summary/*/*/*.jsonl"))))
        ends = Counter((record["step"], record["run"]) for record in told if record["event"] == "end")
        yield from (
            f"{step} on {here.host_name} has {count} ends of the run {run}" for (step, run), count in ends.items() if count > 1
        )
        yield from (f"on {here.host_name} {count}" for count in invariants.miscounted(told))


def remove_old_partials(machines: Machines, subject: Subject) -> None:
    """Let what a killed rsync left grow old, and the receiver clean up, as it does with the next transfer."""
    for host, sender in (("site-linux", "borealis"), ("campus", "site-linux")):
        incoming = machines.here(host, subject.radar).folder("incoming")
        old = [path for path in incoming.glob(".*.??????") if path.is_file()]
        for path in old:
            os.utime(path, (time.time() - OLD_S, time.time() - OLD_S))
        if old:
            request = json.dumps({"v": VERSION, "files": []}).encode()
            machines.receive("accept", request, host, sender, subject.radar)


def visible(files: Mapping[str, str]) -> dict[str, str]:
    """The files that any reader would see: no part of the path is hidden."""
    return {text: digest for text, digest in files.items() if not any(part.startswith(".") for part in Path(text).parts)}


def _lingering(cell: Cell) -> list[str]:
    return [f"{role} was left running" for role in cell.control.wait_until_quiet()]


def _guarded(breaches: list[str], work: Callable[[], Any]) -> Any:
    """What the work returns; what it complains about is a breach."""
    try:
        return work()
    except (AssertionError, TimeoutError) as error:
        breaches.append(f"{type(error).__name__}: {error}")
        return None
