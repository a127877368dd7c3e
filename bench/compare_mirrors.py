"""Comparing the lists of two mirrors, every line validated, against sort(1) and comm(1) of the same lists.

    python bench/compare_mirrors.py [--quick] [--pairs 3] [--json FILE]

Ours is ``dataflow mirror compare`` with both mirrors as folders: each list is read and each of its lines validated, what differs
is told apart (blocked, failed, too new ...), and the reports are written. What a user would otherwise run is one sort of the
concatenated lists of each mirror, and ``comm -3``: it validates nothing and knows no months. Both must come to the same count.
"""

from __future__ import annotations

import calendar
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import results
from measure import Cost
from results import ROOT, Bar, Result

from dataflow.demo import machines
from dataflow.lib import check, config
from dataflow.lib.config import Config
from dataflow.mirror import layout

FIRST_YEAR = 2001
WITH_CHANNELS_SINCE = 2014
WALL_BAR_S, MEMORY_BAR_MB = 10.0, 300.0
MISSING, DIFFERENT = 0.001, 0.0001
"""Of all lines: those that a mirror lacks, those with another hash."""
RESTARTED = 0.03
"""Of all files: those after which the radar began another before its time."""
THEIR_WAY = """
set -e
export LC_ALL=C
for side in ours theirs; do cat "$1/$side"/raw/*/*/*.hashes | sort > "$2/$side"; done
comm -3 "$2/ours" "$2/theirs" > "$2/differences"
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How long the lists are: years, radars, and files of each radar in a day."""

    years: int
    radars: int
    files_per_day: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: lines of our mirror, and in how many files the two differ."""

    lines: int
    missing: int
    different: int


FULL = Size(years=25, radars=40, files_per_day=12, pairs=3)
QUICK = Size(years=1, radars=2, files_per_day=2, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Both ways on the same lists, in turn."""
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        loaded = _configured(scratch)
        settings, here = loaded.mirror()
        tops = here.path(settings.store.root) / settings.tree, here.roots["neighbours"] / "bas"
        for top, side in zip(tops, ("ours", "theirs"), strict=True):
            (top / layout.blocklist("")).mkdir(parents=True)
            (scratch / side).symlink_to(top)
        made = _make(tops, settings.radars[: size.radars], size)
        os.sync()
        ours, theirs = measure.compare(lambda: _ours(loaded, made), lambda: _theirs(scratch, made), size.pairs)
    headings, rows = results.cost_table(ours, theirs, ("`dataflow mirror compare`", "`sort` and `comm -3`"))
    yield Result(
        "Compare two mirrors",
        f"{size.years * 12} months, {made.lines:,} lines on each side, {made.missing + made.different:,} files that differ. "
        f"Median of {size.pairs} pairs.",
        headings,
        rows,
        (
            Bar("wall in s", ours.wall_s, at_most=WALL_BAR_S),
            Bar("MB at most", ours.peak_pss_bytes / 1e6, at_most=MEMORY_BAR_MB),
        ),
    )


def _configured(scratch: Path) -> Config:
    """The shipped configuration, with a partner whose mirror is a folder."""
    source = ROOT / "config.yaml"
    overrides = [
        *machines.without_limits(config.load(source).flow),
        "mirror.roots.neighbours={path: /data/neighbours}",
        "mirror.partners.bas.store={kind: directory, root: neighbours/bas}",
    ]
    loaded = config.load(source, scratch / "machines", overrides)
    list(check.look(loaded.mirror()[1], create_markers=True))
    return loaded


def _make(tops: Sequence[Path], radars: Sequence[str], size: Size) -> Made:
    """The lists of both mirrors: ours in the order of names, theirs radar by radar, each lacking a few files of the other."""
    chance = random.Random(20261120)
    lines = missing = different = 0
    for month in (f"{FIRST_YEAR + n // 12}{n % 12 + 1:02}" for n in range(size.years * 12)):
        listed: tuple[list[str], list[str]] = ([], [])
        for name in _names(month, radars, size.files_per_day, chance):
            line, lot = f"{chance.randbytes(20).hex()}  {name}\n", chance.random()
            if lot < 2 * MISSING:
                missing += 1
                listed[lot < MISSING].append(line)
            else:
                is_different = lot > 1 - DIFFERENT
                different += is_different
                listed[0].append(line)
                listed[1].append(f"{chance.randbytes(20).hex()}  {name}\n" if is_different else line)
        lines += len(listed[0])
        for top, order, each in zip(tops, (slice(42, None), slice(59, 62)), listed, strict=True):
            path = top / layout.month_list("", month)
            path.parent.mkdir(parents=True)
            path.write_text("".join(sorted(each, key=lambda line, order=order: line[order])))  # type: ignore[misc]
    return Made(lines, missing, different)


def _names(month: str, radars: Sequence[str], files_per_day: int, chance: random.Random) -> Iterator[str]:
    channel = ".a" if int(month[:4]) >= WITH_CHANNELS_SINCE else ""
    for day in range(1, calendar.monthrange(int(month[:4]), int(month[4:]))[1] + 1):
        for radar in radars:
            for number in range(files_per_day):
                hour = 24 * number // files_per_day
                yield f"{month}{day:02}.{hour:02}00.{chance.randrange(60):02}.{radar}{channel}.rawacf.bz2"
                if chance.random() < RESTARTED:
                    yield f"{month}{day:02}.{hour:02}{chance.randrange(1, 60):02}.00.{radar}{channel}.rawacf.bz2"


def _ours(loaded: Config, made: Made) -> Cost:
    _, here = loaded.mirror()
    for folder in (here.folder("reports"), here.state, here.logs):  # each run is a first one: everything is new
        shutil.rmtree(folder, ignore_errors=True)
    argv = [sys.executable, "-m", "dataflow", "mirror", "compare", "bas"]
    cost = measure.run(argv, cwd=ROOT, environment=loaded.environment())
    total = json.loads((here.folder("reports") / "bas" / "report.json").read_text())["total"]
    counts = total["counts"]
    if (counts.get("only here", 0) + counts.get("only there", 0), counts.get("different", 0)) != (made.missing, made.different):
        raise measure.Failed(f"the report does not say what was made: {counts}")
    return cost


def _theirs(scratch: Path, made: Made) -> Cost:
    folder = scratch / "sorted"
    folder.mkdir(exist_ok=True)
    cost = measure.run(["bash", "-c", THEIR_WAY, "their-way", scratch, folder])
    if (folder / "differences").read_bytes().count(b"\n") != made.missing + 2 * made.different:
        raise measure.Failed("comm does not say what was made")
    return cost


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
