"""What the chain costs while it runs: memory, descriptors and processes of its daemons, and how quickly blocks come through."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIELDS = re.compile(rb"^(Rss|Pss):\s+(\d+) kB", re.MULTILINE)
FIFTHS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process; ``share`` of the blocks that had come through by then, 0 to 1. ``processes``: its descendants."""

    share: float
    host: str
    pss_kib: int
    rss_kib: int
    descriptors: int
    processes: int


def look(share: float, host: str, pid: int) -> Sample | None:
    """A process as it is now; None when it has just ended."""
    try:
        found = dict(_FIELDS.findall(Path(f"/proc/{pid}/smaps_rollup").read_bytes()))
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return None
    if not found:
        return None
    return Sample(share, host, int(found[b"Pss"]), int(found[b"Rss"]), descriptors, len(list(descendants(pid))))


def descendants(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not been waited for."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(text) for task in tasks for text in (task / "children").read_text().split()]
    except OSError:
        return []


def of_fifth(samples: Sequence[Sample], host: str, fifth: int, value: Callable[[Sample], float]) -> float:
    """The mean of a value in one fifth of the run, the first being 1; 0 where nothing was seen."""
    seen = [value(s) for s in samples if s.host == host and fifth - 1 <= min(s.share * FIFTHS, FIFTHS - 1e-9) < fifth]
    return statistics.fmean(seen) if seen else 0.0


def of_each_fifth(values: Sequence[float], what: Callable[[Sequence[float]], float] = statistics.median) -> list[float]:
    """The medians (or whatever is asked for) of the fifths of a series."""
    size = max(len(values) // FIFTHS, 1)
    return [what(values[n * size : (n + 1) * size] or [0.0]) for n in range(FIFTHS)]
