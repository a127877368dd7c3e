"""From a rawacf in holding to three staging folders and the archive, against the same work the predecessor's way.

    python bench/distribute.py [--quick] [--pairs 5] [--json FILE]

Ours are the steps ``convert_on_campus`` and ``distribute_borealis_data``, a process each, with everything synced and read
back from the disk. The predecessor's way is ``pydarnio.BorealisConvert``, ``bzip2 --test``, a strict read of all records,
and for each of three targets a copy and the MD5 of both ends.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import convert
import measure
import results
from measure import Cost
from results import Bar, Result

from dataflow.lib import check, checksum, context, custody, flag
from dataflow.lib.config import Config
from dataflow.lib.flag import Entry

WALL_BAR = 4.0
STEPS = ("convert_on_campus", "distribute_borealis_data")
THEIR_WAY = """
set -e
"$1" -c "import sys, pydarnio; pydarnio.BorealisConvert(sys.argv[1], 'rawacf', sys.argv[2], borealis_slice_id=0)" "$2" "$3"
bzip2 --test "$3"
"$1" -c "import sys, pydarnio; pydarnio.read_rawacf(sys.argv[1], mode='strict')" "$3"
for folder in "${@:4}"; do
    cp "$3" "$folder/"
    ours=$(md5sum -b < "$3")
    test "$ours" = "$(md5sum -b < "$folder/${3##*/}")"
done
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Records of the block."""

    records: int
    pairs: int


FULL = Size(records=convert.FULL_BLOCK_RECORDS, pairs=5)
QUICK = Size(records=20, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Both ways on one block, in turn."""
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        source = convert.block(scratch, size.records, beams=1)
        entry = Entry(source.name, source.stat().st_size, checksum.sha256(source))
        ours, theirs = measure.compare(lambda: _ours(scratch, source, entry), lambda: _theirs(scratch, source), size.pairs)
        staged = next((scratch / "theirs").rglob("*.bz2"))
        sizes = f"{entry.size / 1e6:.0f} MB of HDF5, {staged.stat().st_size / 1e6:.0f} MB of DMAP"
    headings, rows = results.cost_table(ours, theirs, ("dataflow", "predecessor's way"))
    what = f"{size.records:,} records, {sizes}; converted, verified, handed to three targets. Median of {size.pairs} pairs."
    bar = Bar("times faster than the predecessor's way", theirs.wall_s / ours.wall_s, at_least=WALL_BAR)
    yield Result("Convert, verify and distribute", what, headings, rows, (bar,))


def _ours(scratch: Path, source: Path, entry: Entry) -> Cost:
    loaded = results.shipped(scratch / "ours")
    here = loaded.here("campus", "sas")
    try:
        list(check.look(here, create_markers=True))
        here.folder("holding").mkdir(parents=True)
        shutil.copy2(source, here.folder("holding"))
        flag.write(custody.open_folder(here), "sas", "site-linux", "bench", [entry], context.utc_now)
        os.sync()
        cost = total([_run(loaded, step) for step in STEPS])
        staged = [here.path(target.folder) for target in loaded.flow.distribute.targets.values()]
        if any(len(list(folder.glob("*.bz2"))) != 1 for folder in staged):
            raise measure.Failed("a target did not get its file")
        return cost
    finally:
        shutil.rmtree(scratch / "ours")


def _run(loaded: Config, step: str) -> Cost:
    argv = [sys.executable, "-m", "dataflow", "run", step, "--host", "campus", "--radar", "sas"]
    return measure.run(argv, cwd=results.ROOT, environment=loaded.environment())


def _theirs(scratch: Path, source: Path) -> Cost:
    folder = scratch / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    targets = [folder / name for name in ("vt", "bas", "mirror")]
    for target in targets:
        target.mkdir(parents=True)
    copied = shutil.copy2(source, folder)
    os.sync()
    return measure.run(["bash", "-c", THEIR_WAY, "their-way", sys.executable, copied, folder / "sas.a.rawacf.bz2", *targets])


def total(costs: Sequence[Cost]) -> Cost:
    """What several commands cost one after the other."""
    return Cost(
        sum(cost.wall_s for cost in costs),
        sum(cost.cpu_s for cost in costs),
        max(cost.peak_pss_bytes for cost in costs),
        sum(cost.read_bytes for cost in costs),
        sum(cost.written_bytes for cost in costs),
    )


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
