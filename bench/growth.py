"""How the cost of converting and of plotting grows: with the length of the block, with its beams, with the processes.

    python bench/growth.py [--quick] [--pairs 3] [--json FILE]

Time grows in proportion to the records; memory must not grow at all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import convert
import measure
import plot
import results
from measure import Cost
from results import Bar, Curves, Result

PROCESSES = (1, 2)
MEMORY_BAR = 1.25
CONVERT = """
import sys
from pathlib import Path
from dataflow.lib import conversion, names
source, part, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
conversion.convert(source, part, names.parse(source.name), processes=processes)
"""
PLOT = """
import sys
from pathlib import Path
from dataflow.lib import names
from dataflow.lib.plots import antennas_iq
source, folder, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
antennas_iq.plot(source, names.parse(source.name), folder, processes=processes)
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Lengths of the blocks in records; of rawacf with one beam, of rawacf with 16 beams, of antennas_iq; antennas of these."""

    records: tuple[int, ...]
    wide_records: tuple[int, ...]
    iq_records: tuple[int, ...]
    antennas: int
    pairs: int


FULL = Size(records=(300, 1200, 2400, 9600), wide_records=(75, 300), iq_records=(75, 300, 1200), antennas=plot.ANTENNAS, pairs=3)
QUICK = Size(records=(4, 8), wide_records=(1,), iq_records=(2,), antennas=3, pairs=1)
Costs = dict[tuple[str, int, int], Cost]


def measured(size: Size) -> Iterator[Result]:
    """Convert and plot, every length with one and with two processes."""
    with tempfile.TemporaryDirectory() as scratch:
        converted: Costs = {}
        for beams, lengths in ((1, size.records), (16, size.wide_records)):
            for records in lengths:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    source = convert.block(Path(folder), records, beams)
                    converted |= _costs(
                        f"{beams} beam{'s' if beams > 1 else ''}", records, source, CONVERT, Path(folder) / ".part", size.pairs
                    )
        yield _result("Convert: growth", "Conversion with its strict read-back", converted, size.pairs)
        drawn: Costs = {}
        for records in size.iq_records:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                source = plot.block(Path(folder), records, size.antennas)
                drawn |= _costs(f"{size.antennas} antennas", records, source, PLOT, Path(folder), size.pairs)
        yield _result("Plot: growth", "Drawing every antenna at two sizes, and the contact sheet", drawn, size.pairs)


def _costs(label: str, records: int, source: Path, code: str, target: Path, repetitions: int) -> Costs:
    found = {}
    for processes in PROCESSES:
        runs = [
            measure.run([sys.executable, "-c", code, source, target, str(processes)], cwd=results.ROOT)
            for _ in range(repetitions)
        ]
        found[(label, records, processes)] = measure.median(runs)
    return found


def _result(title: str, what: str, costs: Costs, repetitions: int) -> Result:
    rows = tuple(
        (f"{records:,}", label, str(processes), f"{cost.wall_s:.2f}", f"{cost.cpu_s:.2f}", f"{cost.peak_pss_bytes / 1e6:.0f}")
        for (label, records, processes), cost in costs.items()
    )
    curves: Curves = {"seconds": {}, "MB at most": {}}
    for (label, records, processes), cost in costs.items():
        line = f"{label}, {processes} process{'es' if processes > 1 else ''}"
        for axis, value in (("seconds", cost.wall_s), ("MB at most", cost.peak_pss_bytes / 1e6)):
            curves[axis].setdefault(line, []).append((records, value))
    longest = [[cost.peak_pss_bytes for cost in _series(costs, label, 2)] for label in {label for label, _, _ in costs}]
    growth = max(memory[-1] / memory[0] for memory in longest)
    bar = Bar("memory of the longest block, times that of the shortest", growth, at_most=MEMORY_BAR)
    headings = ("records", "", "processes", "s", "s CPU", "MB at most")
    return Result(title, f"{what}, median of {repetitions}.", headings, rows, (bar,), curves)


def _series(costs: Costs, label: str, processes: int) -> Sequence[Cost]:
    return [cost for (of, _, with_processes), cost in costs.items() if (of, with_processes) == (label, processes)]


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
