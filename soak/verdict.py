"""What is told of a run in the end: what it cost, and how quickly blocks came through, early and late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from dataflow.lib import summary
from dataflow.lib.config import Config
from soak import gauge
from soak.gauge import Sample

EARLY, LATE = 3, 5
"""The fifths of a run that are compared: by the third no daemon is killed any more, so what grows has to show in the fifth."""
TIME_EARLY = 2
MEMORY_FACTOR, MEMORY_ADDEND_KIB = 1.10, 1024
MORE_DESCRIPTORS, MORE_PROCESSES = 1.0, 2.0
TIME_FACTOR = 1.5
JUDGED_FROM_BLOCKS = 100
"""In a shorter run times and numbers of processes are told and not judged: they are of what is under way just then."""


@dataclass(frozen=True, slots=True)
class Line:
    """One number early and late in the run, and the highest that it may be late."""

    what: str
    early: float
    late: float
    limit: float | None

    @property
    def is_good(self) -> bool:
        """Whether it has not grown."""
        return self.limit is None or self.late <= self.limit

    def __str__(self) -> str:
        limit = f", at most {self.limit:.2f}" if self.limit is not None else ""
        return f"  {'' if self.is_good else 'GROWN: '}{self.what}: {self.early:.2f} -> {self.late:.2f}{limit}"


def lines(
    config: Config, radar: str, samples: Sequence[Sample], passed_s: Sequence[float], gaps_s: Sequence[float]
) -> Iterator[Line]:
    """Everything that could grow.

    Args:
        config: of the machines, whose summary logs are read.
        radar: which one.
        samples: of the processes.
        passed_s: of each block in order, seconds from written to archived.
        gaps_s: of each block in order, seconds since the one before was archived.
    """
    is_long = len(passed_s) >= JUDGED_FROM_BLOCKS
    for host in config.flow.hosts:
        yield from _of_daemon(host, samples)
    for host in (*config.flow.hosts, "all"):
        more = lambda early: early + MORE_PROCESSES if is_long else None  # noqa: E731
        yield _line(f"{host}: processes", samples, host, lambda s: s.processes, more)
    of_blocks = (("a block from written to archived, s", passed_s, median), ("one block after the other, s", gaps_s, fmean))
    for what, series, of_fifth in of_blocks:
        fifths = gauge.of_each_fifth(series, of_fifth)
        early, late = fifths[TIME_EARLY - 1], fifths[LATE - 1]
        yield Line(what, early, late, early * TIME_FACTOR if is_long else None)
    for step, seconds in sorted(_seconds_of_runs(config, radar).items()):
        fifths = gauge.of_each_fifth(seconds)
        early, late = fifths[TIME_EARLY - 1], fifths[LATE - 1]
        yield Line(f"a run of {step}, s", early, late, early * TIME_FACTOR + 0.1 if is_long else None)


def _of_daemon(host: str, samples: Sequence[Sample]) -> Iterator[Line]:
    more_memory = lambda early: early * MEMORY_FACTOR + MEMORY_ADDEND_KIB / 1024  # noqa: E731
    yield _line(f"{host}: PSS, MiB", samples, host, lambda s: s.pss_kib / 1024, more_memory)
    yield _line(f"{host}: RSS, MiB", samples, host, lambda s: s.rss_kib / 1024, more_memory)
    yield _line(f"{host}: descriptors", samples, host, lambda s: s.descriptors, lambda early: early + MORE_DESCRIPTORS)


def _line(
    what: str, samples: Sequence[Sample], host: str, value: Callable[[Sample], float], limit: Callable[[float], float | None]
) -> Line:
    early, late = (gauge.of_fifth(samples, host, fifth, value) for fifth in (EARLY, LATE))
    return Line(what, early, late, limit(early) if early else None)  # a short run may have been nowhere seen in a fifth


def _seconds_of_runs(config: Config, radar: str) -> dict[str, list[float]]:
    """Of each step of each host, how long the runs took that found something, in their order."""
    found: dict[str, list[float]] = {}
    for host in config.flow.hosts:
        logs: Path = config.here(host, radar).logs
        for record in summary.records(sorted(logs.glob("*/summary/*/*/*.jsonl"))):
            if record["event"] == "end" and record["found"]:
                found.setdefault(f"{record['step']} on {host}", []).append(float(record["seconds"]))
    return found
