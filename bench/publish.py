"""What publishing does with each file before it sends anything: the decision by the mirror's lists, and the checks.

    python bench/publish.py [--quick] [--pairs 5] [--json FILE]

Classified are hashed names of every month of the mirror, against the lists as they were fetched: each list is parsed, every line
of it validated, and each name decided by its hash, the list, what lies in the folder, and the list of failed files. The checks
of one file are those of ``dataflow.mirror.checks``, a process and its imports included; what a user would otherwise run is
``sha1sum``, ``bunzip2 -t`` and a strict read of all records by pyDARNio, which hold nothing against the name.
"""

from __future__ import annotations

import calendar
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import convert
import measure
import results
from results import ROOT, Bar, Result

from dataflow.lib import conversion, names
from dataflow.mirror import classify, hash_lists, layout
from dataflow.mirror.classify import Fate, Local
from dataflow.mirror.hash_lists import FailedList

FIRST_YEAR = 2001
CLASSIFY_BAR_S, CHECKS_BAR = 5.0, 1.0
EXPECTED = (Fate.PUBLISHED, Fate.NEW, Fate.CONFLICT, Fate.FAILED)
"""The fates of the names that are made, a quarter each."""
OUR_CHECKS = """
import sys
from pathlib import Path
from dataflow.lib import names
from dataflow.mirror import checks
path = Path(sys.argv[1])
checks.check(path, names.parse(path.name))
"""
THEIR_CHECKS = """
set -e
sha1sum "$2" > /dev/null
bunzip2 -t "$2"
"$1" -c "import sys, pydarnio; pydarnio.read_rawacf(sys.argv[1], mode='strict')" "$2"
"""


@dataclass(frozen=True, slots=True)
class Size:
    """The mirror, how many names are classified, and the records of the file that is checked."""

    years: int
    radars: int
    files_per_day: int
    names: int
    records: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Month:
    """One month as it was fetched, and the names of it that lie in the holding directory."""

    month: str
    content: bytes
    there: dict[str, int | None]
    files: Sequence[Local]
    failed: FailedList


FULL = Size(years=25, radars=40, files_per_day=12, names=10_000, records=convert.FULL_BLOCK_RECORDS, pairs=5)
QUICK = Size(years=1, radars=2, files_per_day=2, names=60, records=20, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Classifying, then the checks."""
    yield _classifying(size)
    with tempfile.TemporaryDirectory() as text:
        yield _checking(Path(text), size)


def _classifying(size: Size) -> Result:
    runs = [_classified(size) for _ in range(size.pairs)]
    lines, parsing_s, deciding_s = (statistics.median(each) for each in zip(*runs, strict=True))
    return Result(
        "Classify before publishing",
        f"{size.names:,} hashed names of {size.years * 12} months with {lines:,.0f} lines in all. Median of {size.pairs} runs.",
        ("", "s"),
        (("the lists, each line validated", f"{parsing_s:.2f}"), ("the decisions", f"{deciding_s:.3f}")),
        (Bar("wall in s", parsing_s + deciding_s, at_most=CLASSIFY_BAR_S),),
    )


def _classified(size: Size) -> tuple[int, float, float]:
    """Lines of the mirror, and the seconds for reading its lists and for deciding."""
    fates: Counter[Fate] = Counter()
    lines, parsing_s, deciding_s = 0, 0.0, 0.0
    for month in _months(size):
        started = time.perf_counter()
        listed = hash_lists.parse_month(month.content, month.month)
        parsed = time.perf_counter()
        fates.update(classify.by_lists(file, listed, month.there, month.failed) for file in month.files)
        parsing_s, deciding_s = parsing_s + parsed - started, deciding_s + time.perf_counter() - parsed
        lines += len(listed.hashes)
    if fates.total() != size.names or set(fates) != set(EXPECTED):
        raise measure.Failed(f"not what was made: {fates}")
    return lines, parsing_s, deciding_s


def _months(size: Size) -> Iterator[Month]:
    """Each month's list, and its share of the names: published, new, of other content and known to have failed in turn."""
    chance = random.Random(20261120)
    radars = results.shipped(ROOT).mirror()[0].radars[: size.radars]
    count = size.years * 12
    for number in range(count):
        month = f"{FIRST_YEAR + number // 12}{number % 12 + 1:02}"
        hashes = {name: chance.randbytes(20).hex() for name in _names(month, radars, size.files_per_day, chance)}
        share = size.names // count + (number < size.names % count)
        fated = list(zip(chance.sample(sorted(hashes), share), cycle(EXPECTED), strict=False))
        files = [_local(name, hashes[name], fate) for name, fate in fated]
        failed = {(file.sha1, name): "bad" for file, (name, fate) in zip(files, fated, strict=True) if fate is Fate.FAILED}
        for name in [name for name, fate in fated if fate is Fate.NEW]:
            del hashes[name]
        yield Month(month, hash_lists.render_month(hashes), dict.fromkeys(hashes, 1), files, FailedList(failed))


def _names(month: str, radars: Sequence[str], files_per_day: int, chance: random.Random) -> Iterator[str]:
    for day in range(1, calendar.monthrange(int(month[:4]), int(month[4:]))[1] + 1):
        for radar in radars:
            for number in range(files_per_day):
                yield f"{month}{day:02}.{24 * number // files_per_day:02}00.{chance.randrange(60):02}.{radar}.a.rawacf.bz2"


def _local(text: str, listed: str, fate: Fate) -> Local:
    name = names.parse(text)
    assert name is not None
    sha1 = listed if fate in (Fate.PUBLISHED, Fate.FAILED) else listed[::-1]
    return Local(Path(layout.data_path("", name)), name, sha1, 1, (0, 1, 0))


def _checking(scratch: Path, size: Size) -> Result:
    source = convert.block(scratch, size.records, beams=1)
    name = names.parse(source.name)
    assert name is not None
    path = scratch / names.dmap_of(name).text
    conversion.convert(source, path, name)
    os.sync()
    ours, theirs = measure.compare(
        lambda: measure.run([sys.executable, "-c", OUR_CHECKS, path], cwd=ROOT),
        lambda: measure.run(["bash", "-c", THEIR_CHECKS, "their-checks", sys.executable, path]),
        size.pairs,
    )
    size_mb = path.stat().st_size / 1e6
    headings, rows = results.cost_table(ours, theirs, ("dataflow", "`sha1sum`, `bunzip2 -t`, pyDARNio"))
    what = (
        f"One file of {size.records:,} records, {size_mb:.1f} MB: {ours.wall_s / size_mb * 1e3:.0f} ms wall and "
        f"{ours.cpu_s / size_mb * 1e3:.0f} ms CPU for each MB. Median of {size.pairs} pairs."
    )
    bar = Bar("times the time of the others", ours.wall_s / theirs.wall_s, at_most=CHECKS_BAR)
    return Result("Check before publishing", what, headings, rows, (bar,))


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
