"""Converting one block of rawacf, with a strict read-back of the finished file, against pyDARNio doing the same.

    python bench/convert.py [--quick] [--pairs 5] [--json FILE]

Ours is ``dataflow.lib.conversion.convert``; theirs is ``pydarnio.BorealisConvert`` followed by ``read_rawacf`` in strict mode.
Both run in a process of their own, in turn, on the same simulated file. Beforehand both results are compared: the
decompressed bytes must be the same.
"""

from __future__ import annotations

import bz2
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import measure
import results
from results import Bar, Result

from dataflow.demo.simulate_radar import SliceSpec, write_block

FULL_BLOCK_RECORDS = 2400
WALL_BAR, CPU_BAR, MEMORY_BAR = 3.5, 2.0, 6.0

OURS = """
import sys
from pathlib import Path
from dataflow.lib import conversion, names
source, part = map(Path, sys.argv[1:3])
conversion.convert(source, part, names.parse(source.name))
"""

THEIRS = """
import os, sys
import pydarnio
source, target = sys.argv[1:3]
if os.path.exists(target):
    os.unlink(target)
pydarnio.BorealisConvert(source, "rawacf", target, borealis_slice_id=0)
pydarnio.read_rawacf(target, mode="strict")
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Records of the block."""

    records: int
    pairs: int


FULL = Size(records=FULL_BLOCK_RECORDS, pairs=5)
QUICK = Size(records=20, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Both sides on one block, in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        source = block(Path(scratch), size.records, beams=1)
        ours, theirs = measure.compare(*sides(source, Path(scratch)), size.pairs)
        what = (
            f"{size.records:,} records of 75 ranges and 30 lags, main, interferometer and cross correlations, "
            f"{source.stat().st_size / 1e6:.0f} MB. Median of {size.pairs} pairs."
        )
    headings, rows = results.cost_table(ours, theirs, ("dataflow", "pyDARNio"))
    bars = (
        Bar("times faster", theirs.wall_s / ours.wall_s, at_least=WALL_BAR),
        Bar("times less CPU time", theirs.cpu_s / ours.cpu_s, at_least=CPU_BAR),
        Bar("times less memory", theirs.peak_pss_bytes / ours.peak_pss_bytes, at_least=MEMORY_BAR),
    )
    yield Result("Convert", what, headings, rows, bars)


def block(folder: Path, records: int, beams: int) -> Path:
    """The rawacf file of one simulated block, made unless it is there."""
    start = datetime(2026, 11, 1, 14, tzinfo=UTC)
    name = f"{start:%Y%m%d.%H%M.%S}.sas.0.rawacf.h5"
    for found in folder.rglob(name):
        return found
    spec = SliceSpec(beams_per_record=beams, with_antennas_iq=False)
    return write_block(folder, "sas", start, [spec], records=records, seconds_per_record=2.9, open_each_record=False)[0]


def sides(source: Path, scratch: Path):
    """Two functions that run either side once, after one run of both has shown that they make the same bytes."""
    part, target = scratch / ".part", scratch / "theirs.rawacf.bz2"

    def ours() -> measure.Cost:
        return measure.run([sys.executable, "-c", OURS, source, part], cwd=results.ROOT)

    def theirs() -> measure.Cost:
        return measure.run([sys.executable, "-c", THEIRS, source.name, target], cwd=source.parent, environment={"LC_ALL": "C"})

    ours(), theirs()
    if content(part) != content(target):
        raise SystemExit("the two files do not hold the same records: nothing was measured")
    return ours, theirs


def content(path: Path) -> str:
    """SHA-256 of the decompressed bytes."""
    digest = hashlib.sha256()
    with bz2.open(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
