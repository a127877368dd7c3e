"""Processes that hang in the kernel, mostly on a network mount whose server is gone.

No signal reaches such a process, SIGKILL neither: it is over only when the mount answers or is given up (``umount -f``). What
is known of it is what proc(5) tells, which never asks the mount itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SIGKILL_IS_PENDING = 1 << 8


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told by its start from a later one of the same number."""

    pid: int
    started: str

    def is_there(self) -> bool:
        """True until it has ended."""
        return _stat(self.pid)[:1] not in ([], ["Z"]) and process(self.pid) == self


def process(pid: int) -> Process:
    """The process that has a number now."""
    return Process(pid, "".join(_stat(pid)[19:20]))


def family(pid: int) -> list[int]:
    """A process, what it has started and what those have started, as far as that still belongs to it."""
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return found


class Sleep:
    """How long processes of one family have slept without being woken once.

    Who waits for a slow disk sleeps as deep, but is woken for every piece that comes.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._since: dict[int, tuple[str, float]] = {}

    def longest_s(self, now: float) -> float:
        """For how long the one that sleeps longest has done so, as far as the looks until ``now`` can tell."""
        seen = {pid: (slept, now) for pid in family(self._pid) if (slept := _sleep_of(pid))}
        self._since = {pid: self._since[pid] if self._since.get(pid, ("",))[0] == it[0] else it for pid, it in seen.items()}
        return max((now - since for _, since in self._since.values()), default=0.0)


def only_the_dead_have_open(path: Path) -> bool:
    """True when somebody has a file open, and whoever has was killed and merely cannot end."""
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    others = [pid for pid in processes if pid != os.getpid() and _has_open(pid, path.resolve())]
    return bool(others) and all(_is_killed_asleep(pid) for pid in others)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state; none when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status(pid: int, keys: Sequence[str]) -> list[str]:
    """The values of some keys of /proc/PID/status; none when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return []
    return [found[1] for key in keys if (found := re.search(rf"^{key}:\s*(\S+)", text, re.MULTILINE))]


def _sleep_of(pid: int) -> str | None:
    """What tells one uninterruptible sleep of a process from the next: how often it was put to sleep. None when it is awake."""
    state, *switches = _status(pid, ("State", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")) or [""]
    return " ".join(switches) if state == "D" else None


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(descriptor.readlink() == path for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # another user's, or it has ended meanwhile
        return False


def _is_killed_asleep(pid: int) -> bool:
    state, *pending = _status(pid, ("State", "SigPnd", "ShdPnd")) or [""]
    return state == "D" and any(int(signals, 16) & _SIGKILL_IS_PENDING for signals in pending)
