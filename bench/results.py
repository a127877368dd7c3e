"""What a benchmark found: a table and the bars it had to reach, to be printed or collected for ``docs/performance.md``.

Every ``bench/<subject>.py`` that measures something ends in ``results.main``, so all of them take the same arguments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from measure import Cost

from dataflow.demo import machines
from dataflow.lib import config
from dataflow.lib.config import Config

ROOT = Path(__file__).resolve().parent.parent


COSTS: tuple[tuple[str, str, float], ...] = (
    ("wall_s", "s", 1), ("cpu_s", "s CPU", 1), ("peak_pss_bytes", "MB at most", 1e-6), ("read_bytes", "MB read", 1e-6),
    ("written_bytes", "MB written", 1e-6),
)  # fmt: skip


def shipped(root: Path) -> Config:
    """The shipped configuration with all machines below a folder, and without the limits that are meant for real disks."""
    source = ROOT / "config.yaml"
    return config.load(source, root, tuple(machines.without_limits(config.load(source).flow)))


Curves = dict[str, dict[str, list[tuple[float, float]]]]


class Sized(Protocol):
    """How much a benchmark works on; each benchmark adds its own numbers."""

    @property
    def pairs(self) -> int:
        """How many times both sides run in turn."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One number that must not be above, or below, a limit. ``any_size``: also when little work is measured."""

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None
    any_size: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the number is within its limit."""
        return (self.at_most is None or self.value <= self.at_most) and (self.at_least is None or self.value >= self.at_least)

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.2f}, {self.limit}: {'reached' if self.is_met else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Result:
    """One table with its bars. ``curve``: points of a line of the plot, by the line's name."""

    title: str
    what: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bars: tuple[Bar, ...] = ()
    curves: Curves | None = None

    def lines(self) -> Iterator[str]:
        """The table as Markdown, which is also how it is printed."""
        yield f"## {self.title}\n\n{self.what}\n"
        widths = [max(len(row[n]) for row in (self.headings, *self.rows)) for n in range(len(self.headings))]
        for row in (self.headings, tuple("-" * width for width in widths), *self.rows):
            yield "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
        yield from ("", *(f"- {bar}" for bar in self.bars), "")


def cost_table(ours: Cost, theirs: Cost, labels: tuple[str, str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and rows of a table of two costs and the ratio of each number, larger is better for us."""
    headings = ("", *(unit for _, unit, _ in COSTS))
    numbers = [[getattr(cost, key) for key, _, _ in COSTS] for cost in (ours, theirs)]
    rows = [
        (label, *(f"{value * scale:.3g}" for value, (_, _, scale) in zip(values, COSTS, strict=True)))
        for label, values in zip(labels, numbers, strict=True)
    ]
    ratios = ("ratio", *(f"{theirs_value / ours_value:.2f}" for ours_value, theirs_value in zip(*numbers, strict=True)))
    return headings, (*rows, ratios)


def main(doc: str | None, measured: Callable[[Any], Iterator[Result]], full: Sized, quick: Sized) -> int:
    """Run one benchmark from the command line: print each table, collect them if asked, end with 1 if a bar is missed.

    ``--quick`` shows only that the benchmark works: with little to do the ratios mean nothing and no bar counts, but those
    that hold at any size.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little work, in seconds")
    parser.add_argument("--pairs", type=int, help="how many times both sides run in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the tables go as JSON")
    arguments = parser.parse_args()
    size = quick if arguments.quick else full
    found = []
    for result in measured(replace(size, pairs=arguments.pairs or size.pairs)):  # type: ignore[type-var]
        print("\n".join(result.lines()), flush=True)
        found.append(result)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in found]))
    counting = [bar for result in found for bar in result.bars if bar.any_size or not arguments.quick]
    return 0 if all(bar.is_met for bar in counting) else 1


def load(path: Path) -> list[Result]:
    """The tables that ``--json`` wrote."""
    return [_result(item) for item in json.loads(path.read_text())]


def _result(item: dict[str, Any]) -> Result:
    rows = tuple(tuple(row) for row in item["rows"])
    return Result(
        item["title"], item["what"], tuple(item["headings"]), rows, tuple(Bar(**b) for b in item["bars"]), item["curves"]
    )
