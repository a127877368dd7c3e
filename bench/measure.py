"""What a command costs: wall and CPU time, peak memory and bytes read and written, over its whole process tree.

Memory is the highest sum of PSS (proportional set size: pages that several processes share count once) over the tree,
sampled from ``/proc/<pid>/smaps_rollup`` every 20 ms. CPU time is that of the command and of every child it waited for.
Bytes are those of system calls (``rchar``, ``wchar`` of ``/proc/<pid>/io``), page cache or not.

Commands are compared in turn in one run, because the machine is not equally fast all day.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLING_S = 0.02
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_IO = re.compile(rb"^(rchar|wchar): (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run of a command."""

    wall_s: float
    cpu_s: float
    peak_pss_bytes: int
    read_bytes: int
    written_bytes: int


class Failed(Exception):
    """The command did not end with 0, so its cost means nothing."""


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Cost:
    """Run a command to its end and return what it cost.

    Raises:
        Failed: it did not end with 0; its complaint went to our standard error.
    """
    process_ended = threading.Event()
    peak: list[int] = [0]
    began = time.monotonic()
    process = subprocess.Popen([str(word) for word in argv], cwd=cwd, env={**os.environ, **(environment or {})})
    sampler = threading.Thread(target=_sample, args=(process.pid, process_ended, peak))
    sampler.start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall_s = time.monotonic() - began
    process_ended.set()
    sampler.join()
    counted = dict(_IO.findall(Path(f"/proc/{process.pid}/io").read_bytes()))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(f"{argv[0]} ended with {process.returncode}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, peak[0], int(counted[b"rchar"]), int(counted[b"wchar"]))


def compare(ours: Callable[[], Cost], theirs: Callable[[], Cost], pairs: int) -> tuple[Cost, Cost]:
    """Run both in turn, ``pairs`` times each, and return the median of each number."""
    costs = [(ours(), theirs()) for _ in range(pairs)]
    return median([pair[0] for pair in costs]), median([pair[1] for pair in costs])


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each number by itself."""
    return Cost(
        statistics.median(cost.wall_s for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
        int(statistics.median(cost.peak_pss_bytes for cost in costs)),
        int(statistics.median(cost.read_bytes for cost in costs)),
        int(statistics.median(cost.written_bytes for cost in costs)),
    )


def _sample(pid: int, ended: threading.Event, peak: list[int]) -> None:
    while not ended.wait(SAMPLING_S):
        peak[0] = max(peak[0], sum(pss_bytes(each) for each in _tree(pid)))


def _tree(pid: int) -> Iterator[int]:
    """A process and all its descendants, as they are now; a process may end while they are listed."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def pss_bytes(pid: int) -> int:
    """Memory of one process now; 0 when it has ended."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
