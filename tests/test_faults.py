"""Killed anywhere: a selection of what `make faults` does, and proof that it notices when a promise is broken in the code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from dataflow.lib import summary
from dataflow.lib.step import OUTCOMES
from faults import cell, durability, invariants, sweep
from faults.__main__ import SUBJECTS, Result, table
from faults.cell import Cell
from faults.control import FIELDS, Point, whole_lines
from faults.sweep import Prepared

KILLS_OF_A_STEP, KILLS_OF_A_DAEMON = 4, 2
ONCE_BROKEN = {
    "daemon site-linux": [
        ("run transfer_cam_photos", "fsync", "outbox"),  # send_flag sent a flag whose name nobody had synced
        ("receive hello", "fsync", "sddata/incoming"),  # a folder with the radar's name counted as told of by any record
    ]
}
"""Kills that broke something, by subject: role, call and a part of the path."""


@pytest.fixture(scope="module")
def own() -> Iterator[Cell]:
    with cell.made() as made:
        yield made


def not_durable(own: Cell, prepared: Prepared) -> list[str]:
    return durability.breaches(prepared.calls, durability.layout(own.machines), prepared.standing)


@pytest.mark.parametrize("name", SUBJECTS)
def test_killed_here_and_there_it_ends_as_if_nothing_had_happened(name: str, own: Cell) -> None:
    prepared = sweep.prepare(own, SUBJECTS[name])
    assert not_durable(own, prepared) == []
    kills = list(sweep.kills(prepared.points))
    assert len(prepared.points) > 20 and len(kills) > 20
    wanted = KILLS_OF_A_DAEMON if name.startswith("daemon") else KILLS_OF_A_STEP
    strikes = [sweep.strike(own, prepared, *kill) for kill in kills[len(kills) // (2 * wanted) :: len(kills) // wanted]]
    assert [(str(strike.point), strike.how, strike.breaches) for strike in strikes if strike.breaches] == []
    assert [strike for strike in strikes if strike.was_reached and strike.victims], "one of them at least was a kill"
    assert [breach for kill in ONCE_BROKEN.get(name, []) for breach in struck(own, prepared, *kill)] == []


def test_every_process_is_watched_and_every_call_has_its_own_number(own: Cell) -> None:
    prepared = sweep.prepare(own, SUBJECTS["transfer_cam_photos"])
    roles = {"run transfer_cam_photos", "send_files", "ssh master", "ssh client", "rsync client", "rsync server"}
    assert {point.role for point in prepared.points} == roles | {"receive hello", "receive accept"}
    numbers = [call.number for call in prepared.calls if call.is_point]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - len(numbers) <= 1, "who is ended by another may have taken a number and have had no time to record it"
    assert {call.name for call in prepared.calls} >= {"connect", "fsync", "link", "rename", "unlink", "open to write", "write"}


@dataclass(frozen=True)
class Mutation:
    """A promise broken in the code: the texts to replace in a module, which subject shows it, and what catches it.

    ``calls``: what the checker of the recorded calls says. ``kills``: role, call and a part of the path where it is killed, and
    what is found then.
    """

    id: str
    module: str
    texts: tuple[tuple[str, str], ...]
    subject: str
    calls: str = ""
    kills: tuple[str, str, str, str] | None = None


RELEASE = """        for outcome in outcomes:
            if outcome.release and not _is_unchanged(outcome):
                self._tell_changed(outcome.file)
                continue
            for source in outcome.release:
                place.release(source)
"""
OUTBOX = """        if delivered := [entry for o in outcomes for entry in o.deliver]:
            flag.write(outbox(ctx.here), ctx.here.radar, ctx.here.host_name, ctx.run, delivered, ctx.clock)
"""
RECORDS = """        for outcome in outcomes:
            self.record(outcome)
        ctx.log.sync()
"""
ASK = '    answer = link.receive("flag", b"".join(path.read_bytes() for path in sound), TIMEOUT_S)\n'
MUTATIONS = (
    Mutation(
        id="the bytes are not synced before the file gets its name",
        module="lib/checksum.py",
        texts=(("def _sync(descriptor: int) -> None:\n    os.fsync(descriptor)\n", "def _sync(descriptor: int) -> None:\n"),),
        subject="rsync_to_campus data",
        calls="synced first: receive accept",
    ),
    Mutation(
        id="the folder is not synced after the file got its name",
        module="lib/checksum.py",
        texts=(("    try:\n        os.fsync(descriptor)\n    finally:", "    try:\n        pass\n    finally:"),),
        subject="rsync_to_nas",
        calls="name before word: run rsync_to_nas",
    ),
    Mutation(
        id="the source goes before the copy was read back",
        module="lib/copy.py",
        texts=(("            _read_back(here, part, final, copied)\n", "            place.own(here, part, here.file_mode)\n"),),
        subject="rsync_to_nas",
        calls="was not read back",
    ),
    Mutation(
        id="the source goes before its record",
        module="lib/ledger.py",
        texts=((RECORDS + RELEASE, RELEASE + RECORDS),),
        subject="archive_iq_plots",
        calls="record before removal: run archive_iq_plots",
        kills=("run archive_iq_plots", "write", ".jsonl", "is gone without a record"),
    ),
    Mutation(
        id="the source goes before the flag is in the outbox",
        module="lib/ledger.py",
        texts=((OUTBOX + RECORDS + RELEASE, RECORDS + RELEASE + OUTBOX),),
        subject="rsync_to_nas",
        calls="outbox before removal: run rsync_to_nas",
        kills=("run rsync_to_nas", "open to write", "outbox/", "in the end outbox of borealis sas is other than it should be"),
    ),
    Mutation(
        id="a flag leaves the outbox before the other side has it",
        module="site/send_flag.py",
        texts=(
            (ASK, "    text = b''.join(path.read_bytes() for path in sound)\n    for path in sound:\n        path.unlink()\n"
                  '    answer = link.receive("flag", text, TIMEOUT_S)\n'),
            ("bytes=path.stat().st_size, ", ""),
        ),
        subject="send_flag",
        calls="copy before removal: run send_flag",
        kills=("receive flag", "open to write", "flags/", "is nowhere"),
    ),
    Mutation(
        id="a flag goes before its manifest is kept",
        module="lib/daemon.py",
        texts=(("            place.write_whole(manifest, found.encode())\n", "            pass\n"),),
        subject="daemon site-linux",
        calls="manifest before flag: daemon site-linux",
    ),
    Mutation(
        id="a file is written under its final name",
        module="campus/convert_on_campus.py",
        texts=(
            ("    part = place.part_of(final)\n", "    part = final\n"),
            ("        place.publish(part, final)\n", ""),
            ("        existing = _existing(ctx, dmap_name)\n", "        existing = None\n"),
            ("    finally:\n        part.unlink(missing_ok=True)\n", "    finally:\n        pass\n"),
        ),
        subject="convert_on_campus",
        calls="nothing in place: run convert_on_campus",
        kills=("run convert_on_campus", "write", "sas_data/2", "is there, but not whole"),
    ),
    Mutation(
        id="a file leaves a target's queue before its copy is ready",
        module="campus/distribute_borealis_data.py",
        texts=(
            ("        copy.make_ready(ctx.here, queued, ready, entry.sha256, settings.link)\n",
             "        aside = queued.rename(queued.with_name('.aside'))\n"
             "        copy.make_ready(ctx.here, aside, ready, entry.sha256, settings.link)\n"),
            ("        queued.unlink()\n", "        aside.unlink()\n"),
        ),
        subject="distribute_borealis_data",
        kills=("run distribute_borealis_data", "write", "ready/", "is missing"),
    ),
    Mutation(
        id="a name that a killed run has given is not synced by the next one",
        module="lib/copy.py",
        texts=(("        place.sync_folders(final.parent for final in finals if final not in free)", "        pass"),),
        subject="rsync_to_nas",
        kills=("run rsync_to_nas", "fsync", "sas-store/backup", "has not synced the name sas-store/backup"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.id)
def test_a_broken_promise_is_noticed(mutation: Mutation, own: Cell, tmp_path: Path) -> None:
    with own.running(broken(tmp_path / "code", mutation)):
        prepared = sweep.prepare(own, SUBJECTS[mutation.subject])
        told = not_durable(own, prepared)
        found = list(until(mutation.kills[3], struck(own, prepared, *mutation.kills[:3]))) if mutation.kills else []
    assert any(mutation.calls in breach for breach in told) if mutation.calls else told == [], told
    assert mutation.kills is None or (found and mutation.kills[3] in found[-1]), found


def broken(code: Path, mutation: Mutation) -> Path:
    """A copy of the package with the promise broken."""
    shutil.copytree(cell.REPOSITORY / "dataflow", code / "dataflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(cell.REPOSITORY / "config.yaml", code)
    module = code / "dataflow" / mutation.module
    text = module.read_text()
    for old, new in mutation.texts:
        assert text.count(old) == 1, f"{mutation.module} has changed: mend this mutation"
        text = text.replace(old, new)
    module.write_text(text)
    return code


def struck(own: Cell, prepared: Prepared, role: str, call: str, path: str) -> Iterator[str]:
    """What breaks when it is killed at the points meant, one after the other."""
    meant = [point for point in prepared.points if (point.role, point.call) == (role, call) and path in point.path]
    assert meant, {point.key for point in prepared.points}
    for point in meant:
        yield from sweep.strike(own, prepared, point, "caller").breaches


def until(wanted: str, breaches: Iterator[str]) -> Iterator[str]:
    """The breaches up to the first one that tells what is wanted."""
    for breach in breaches:
        yield breach
        if wanted in breach:
            return


def test_of_lines_over_which_their_writers_were_killed_nothing_is_read() -> None:
    line = "\t".join(map(str, range(FIELDS)))
    lost, torn, headless = "\0" * 40, line[:9] + "\0" * 20, "\0" * 3 + line[3:] + "\n"
    assert list(whole_lines(f"{line}\n{lost}{line}\n{torn}{line}\n{headless}{line}\n{lost}")) == [line] * 4


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"done": 2, "kept": 1, "skipped": 1}, False),
        ({"done": 2, "kept": 1, "skipped": 3}, False),
        ({"done": 1, "kept": 2, "skipped": 1}, True),
        ({"done": 2, "kept": 1, "skipped": 0}, True),
        ({"done": 2, "kept": 1, "skipped": 1, "quarantined": 1}, True),
    ],
)
def test_the_counts_of_a_run_are_compared_with_its_records(counts: dict[str, int], told: bool) -> None:
    run = {"step": "convert", "run": "r"}
    files = [{**run, "event": "file", "outcome": word} for word in ("done", "done", "kept", "skipped")]
    other = [{**run, "step": "receive", "event": "file", "outcome": "done"}]
    end = {**run, "event": "end", **dict.fromkeys(OUTCOMES, 0), **counts, "found": sum(counts.values())}
    assert bool(list(invariants.miscounted([*files, *other, end]))) is told
    assert list(invariants.miscounted([*files, {**end, "found": end["found"] + 1}]))


LEFT_BEHIND = {
    "rsync_to_nas": ("var/log/dataflow", "the folder of its records is there, but not synced"),
    "distribute_borealis_data": ("staging/vt", "the file is handed over, its name is not synced"),
    "plot_antennas_iq": ("daily_plots", "the pictures are in their places, their names are not synced"),
    "plot_rawacf": ("plots", "the picture is in its place, its name is not synced"),
}


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_a_killed_run_left_is_made_durable_by_the_next(name: str, own: Cell) -> None:
    prepared = sweep.prepare(own, SUBJECTS[name])
    path, what = LEFT_BEHIND[name]
    assert list(struck(own, prepared, f"run {name}", "fsync", path)) == [], what


def test_a_file_that_was_handed_over_by_a_killed_run_has_a_record(own: Cell) -> None:
    """It is in no queue any more, so no later run would know of it; what was handed out is looked up in the records."""
    prepared = sweep.prepare(own, SUBJECTS["distribute_borealis_data"])
    assert list(struck(own, prepared, "run distribute_borealis_data", "fsync", "staging/vt")) == []
    logs = summary.own_files(own.machines.here("campus"), date(1990, 1, 1))
    told = {r["file"] for r in summary.records(logs) if r.get("action") == "staged" and r.get("target") == "vt"}
    assert told == {path.name for path in prepared.fed if path.name.endswith(".bz2")}


def test_what_was_not_reached_again_counts_as_no_kill(own: Cell) -> None:
    prepared = sweep.prepare(own, SUBJECTS["archive_iq_plots"])
    strike = sweep.strike(own, prepared, Point("run archive_iq_plots", "write", "nowhere", 1), "caller")
    assert not strike.was_reached and strike.victims == 0 and strike.breaches == []
    lines = list(table({"a": Result(prepared.points, 9, [strike], ["a rule: broken"])}))
    assert lines[-1] == f"| **in all** | 9 | {len(prepared.points)} | 0 | 0 | 1 | 1 |"
