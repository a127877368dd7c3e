"""Converting one block of rawacf, with a strict read-back of the finished file, against pyDARNio doing the same.

    python bench/convert.py [--records 2400] [--beams 1] [--pairs 5] [--keep FOLDER]

Ours is ``dataflow.lib.conversion.convert``; theirs is ``pydarnio.BorealisConvert`` followed by ``read_rawacf`` in strict mode.
Both run in a process of their own, in turn, on the same simulated file; the medians and their ratios are printed. Beforehand
both results are compared: the decompressed bytes must be the same. Ends with 1 if a bar is missed on a block of full length.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parent.parent
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


def main() -> int:
    """Parse the arguments, make the file, run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=FULL_BLOCK_RECORDS)
    parser.add_argument("--beams", type=int, default=1, choices=(1, 16))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the block in this folder, or use it if it is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        source = block(folder, arguments.records, arguments.beams)
        print(f"{source.name}: {arguments.records} records of {arguments.beams} beams, {source.stat().st_size / 1e6:.0f} MB")
        ours, theirs = sides(source, Path(scratch))
        ours_cost, theirs_cost = measure.compare(ours, theirs, arguments.pairs)
    print("\n".join(measure.table(ours_cost, theirs_cost, ("dataflow", "pyDARNio"))))
    return 0 if arguments.records < FULL_BLOCK_RECORDS or bars_met(ours_cost, theirs_cost) else 1


def block(folder: Path, records: int, beams: int) -> Path:
    """The rawacf file of one simulated block, made unless it is there."""
    from dataflow.demo.simulate_radar import SliceSpec, write_block

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
        return measure.run([sys.executable, "-c", OURS, source, part], cwd=ROOT)

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


def bars_met(ours: measure.Cost, theirs: measure.Cost) -> bool:
    """Say how each bar was met or missed."""
    ratios = (
        ("wall", theirs.wall_s / ours.wall_s, WALL_BAR),
        ("CPU", theirs.cpu_s / ours.cpu_s, CPU_BAR),
        ("peak memory", theirs.peak_pss_bytes / ours.peak_pss_bytes, MEMORY_BAR),
    )
    for title, ratio, bar in ratios:
        print(f"{title}: {ratio:.2f} times less, the bar is {bar}: {'met' if ratio >= bar else 'MISSED'}")
    return all(ratio >= bar for _, ratio, bar in ratios)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
