"""Drawing every antenna of a block of antennas_iq at two sizes, against pyDARNio's reader and a matplotlib figure per antenna.

    python bench/plot.py [--quick] [--pairs 5] [--json FILE]

Ours is ``dataflow.lib.plots.antennas_iq.plot``, which draws a contact sheet and judges the antennas as well. Theirs is
``BorealisV1Read.read_arrays``, one figure per antenna with every sequence drawn, saved as JPEG and resized with Pillow: as
many pixels, in both sizes, as ours. Both run in a process of their own, in turn, on the same file. Beforehand both are run
once and the sizes of all pictures compared.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import measure
import results
from PIL import Image
from results import Bar, Result

from dataflow.demo.simulate_radar import SliceSpec, write_block
from dataflow.lib.plots.picture import FULL as FULL_SCALE
from dataflow.lib.plots.picture import SIZE

SEQUENCES, SIMULATED_RECORDS, RECORD_S, ANTENNAS = 30, 24, 3, 20
WALL_BAR, MEMORY_BAR_MB = 4.0, 400.0

OURS = """
import os, sys
from pathlib import Path
from dataflow.lib import names
from dataflow.lib.plots import antennas_iq
source, folder = map(Path, sys.argv[1:3])
antennas_iq.plot(source, names.parse(source.name), folder, processes=os.cpu_count())
"""

THEIRS = """
import sys
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from pydarnio.borealis.v1_onwards import BorealisV1Read
source, folder, width, height, small_width, small_height = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
arrays = BorealisV1Read.read_arrays(source)
for index, antenna in enumerate(arrays["rx_antennas"]):
    power_db = 20 * np.log10(np.abs(arrays["antennas_iq_data"][index, :, :71]))
    figure, (counts, image) = plt.subplots(2, 1, figsize=(width / 100, height / 100), height_ratios=(1, 5))
    figure.suptitle(f"{arrays['station'].decode()} {arrays['experiment_name'].decode()} antenna {antenna}")
    counts.plot(arrays["num_sequences"])
    drawn = image.imshow(power_db.T, aspect="auto", origin="lower", vmin=30, vmax=80)
    figure.colorbar(drawn, ax=image)
    path = folder / f"antenna_{antenna}_0_70.full.jpg"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    Image.open(path).resize((small_width, small_height)).save(folder / f"antenna_{antenna}_0_70.jpg")
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Records of the block, and of a long one that is drawn once, if any; antennas in both."""

    records: int
    long_records: int | None
    antennas: int
    pairs: int


FULL = Size(records=300, long_records=2400, antennas=ANTENNAS, pairs=5)
QUICK = Size(records=2, long_records=None, antennas=3, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Both sides on a block of each length, in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        for records, pairs in ((size.records, size.pairs), (size.long_records, 1)):
            if records is None:
                continue
            source = block(Path(scratch), records, size.antennas)
            ours, theirs = measure.compare(*sides(source, Path(scratch)), pairs)
            size_mb = source.stat().st_size / 1e6
            what = f"{records:,} records of {SEQUENCES} sequences, {size.antennas} antennas, {size_mb:.0f} MB. "
            headings, rows = results.cost_table(ours, theirs, ("dataflow", "pyDARNio, matplotlib"))
            bars = (
                Bar("times faster", theirs.wall_s / ours.wall_s, at_least=WALL_BAR),
                Bar("memory at most, MB", ours.peak_pss_bytes / 1e6, at_most=MEMORY_BAR_MB),
            )
            yield Result(f"Plot {records:,} records", what + f"Median of {pairs} pairs.", headings, rows, bars)
            source.unlink()


def block(folder: Path, records: int, antennas: int) -> Path:
    """The antennas_iq file of one block, made unless it is there: some simulated records, then copies of them, later in time.

    Simulating takes most of its time in the compression of noise, which copying the stored bytes saves.
    """
    start = datetime(2026, 11, 1, 14, tzinfo=UTC)
    target = folder / f"{records}" / f"{start:%Y%m%d.%H%M.%S}.sas.0.antennas_iq.h5"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        written = write_block(
            Path(scratch),
            "sas",
            start,
            [SliceSpec()],
            records=min(records, SIMULATED_RECORDS),
            seconds_per_record=RECORD_S,
            sequences=SEQUENCES,
            antennas=antennas,
            open_each_record=False,
        )
        lengthened = next(path for path in written if path.name == target.name)
        lengthen(lengthened, start, records)
        target.parent.mkdir()
        lengthened.rename(target)
    return target


def lengthen(path: Path, start: datetime, records: int) -> None:
    """Repeat the records of a file in turn, each under its own time, until there are ``records``; links stay links."""
    with h5py.File(path, "r+") as file:
        shared = file["metadata"]
        simulated = [name for name in file if name != "metadata"]
        for number in range(len(simulated), records):
            began = start + timedelta(seconds=RECORD_S * number)
            original, group = file[simulated[number % len(simulated)]], file.create_group(f"{began:%Y%m%d-%H%M-%S.%f}")
            for field in original:
                if field in shared:
                    group[field] = shared[field]
                else:
                    file.copy(original[field], group, field)
            group["sqn_timestamps"][...] += RECORD_S * (number - number % len(simulated))


def sides(source: Path, scratch: Path):
    """Two functions that run either side once, after one run of both has shown that their pictures are equally large."""
    folders = [Path(tempfile.mkdtemp(dir=scratch)) for _ in range(2)]
    sizes = [str(edge * scale) for scale in (FULL_SCALE, 1) for edge in SIZE]

    def ours() -> measure.Cost:
        return measure.run([sys.executable, "-c", OURS, source, folders[0]], cwd=results.ROOT)

    def theirs() -> measure.Cost:
        return measure.run([sys.executable, "-c", THEIRS, source, folders[1], *sizes])

    ours(), theirs()
    if pictures(folders[0]) != pictures(folders[1]):
        raise SystemExit("the pictures are not the same in number and size: nothing was measured")
    return ours, theirs


def pictures(folder: Path) -> list[tuple[str, tuple[int, int]]]:
    """Antenna and size of every picture, without the contact sheet."""
    found = []
    for path in folder.glob("*antenna_*.jpg"):
        with Image.open(path) as image:
            found.append((path.name[path.name.index("antenna_") :], image.size))
    return sorted(found)


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
