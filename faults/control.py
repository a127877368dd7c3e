"""The other side of `preload.c`: compiles it, and gives and reads the orders in the file that all watched processes share.

A point is one call of one process: its role, the call, the path without its volatile parts, and the how manieth time. It is
found again by these and not by a number, since which of two processes comes first differs from run to run.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("preload.c")
PROCESSES = 8192
LOG_BYTES = 192 << 20
LIMIT_S = 40.0
FIELDS = 13
"""Of a recorded line, ended by tabs, of which there are none within."""
How = Literal["caller", "near", "far"]
HOW: tuple[How, ...] = ("caller", "near", "far")
_OFF, _RECORD = range(2)
_HEAD = struct.Struct("<QIIQQiIIIQQ")
_MODE, _OCCURRENCE = 8, 24
_TARGET, _ROOT, _DAY, _TABLE = 64, 2112, 3136, 3152
_PROCESS = struct.Struct("<iiQ48s")
_LOG = _TABLE + PROCESSES * _PROCESS.size


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Where to kill. ``path`` is normalised, two paths are joined by `` > ``; ``occurrence`` counts from 1."""

    role: str
    call: str
    path: str
    occurrence: int

    @property
    def key(self) -> tuple[str, str, str]:
        """The point without its occurrence."""
        return self.role, self.call, self.path

    def __str__(self) -> str:
        return f"{self.role}: {self.call} {self.path} #{self.occurrence}"


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call. ``number`` is the counter when it began, ``ended`` when it had returned ``result``.

    ``shown`` is the path as points have it, ``path`` and ``other`` are as they were given, absolute. ``inode`` and ``size``
    are those of the file before the call, of a file that was opened after it. ``text`` is the beginning of what was written
    into a record or a flag.
    """

    number: int
    ended: int
    process: int
    role: str
    name: str
    is_point: bool
    shown: str
    path: str
    other: str
    inode: int
    size: int
    result: int
    text: str


def compiled(folder: Path) -> Path:
    """The preload library, made in a folder."""
    library = folder / "preload.so"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


class Control:
    """The shared file of one cell."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file = file
        with file.open("wb") as stream:
            stream.truncate(_LOG + LOG_BYTES)
        with file.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), 0)
        self._write_text(_ROOT, 1024, f"{root}/")

    def record(self) -> None:
        """From now on, count and note every call."""
        self._order("caller", 0)

    def kill_at(self, point: Point, how: How) -> None:
        """From now on, count and note every call; kill when the point is reached, once."""
        self._write_text(_TARGET, 2048, "\t".join(point.key))
        self._order(how, point.occurrence)

    def kill_no_more(self) -> None:
        """Kill nobody, also if the point is still to be reached; go on noting."""
        struct.pack_into("<Q", self._map, _OCCURRENCE, 0)

    def off(self) -> None:
        """Neither count nor kill."""
        struct.pack_into("<I", self._map, _MODE, _OFF)

    @property
    def was_reached(self) -> bool:
        """Whether the point of the last order was reached."""
        return int(self._head()[5]) != 0

    @property
    def victims(self) -> int:
        """How many processes were killed there."""
        return int(self._head()[6])

    def calls(self) -> list[Call]:
        """What was recorded since the last order, in the order in which the calls began."""
        used = self._head()[9]
        if used > LOG_BYTES:
            raise RuntimeError(f"{used} bytes were recorded, there is room for {LOG_BYTES}")
        lines = whole_lines(self._map[_LOG : _LOG + used].decode("utf-8", "surrogateescape"))
        return sorted(map(_call, lines), key=lambda call: call.number)

    def alive(self) -> Iterator[tuple[int, str]]:
        """Process id and role of every watched process that runs."""
        for number in range(min(self._head()[7], PROCESSES)):
            pid, _, started, role = _PROCESS.unpack_from(self._map, _TABLE + number * _PROCESS.size)
            if pid and _started_at(pid) == started:
                yield pid, role.rstrip(b"\0").decode()

    def wait_until_quiet(self) -> list[str]:
        """Wait until nobody but a shared connection is left; the roles of those that do not end, which are then killed."""
        deadline = time.monotonic() + LIMIT_S
        while left := [(pid, role) for pid, role in self.alive() if role != "ssh master"]:
            if time.monotonic() > deadline:
                for pid, _ in left:
                    os.kill(pid, signal.SIGKILL)
                return [role for _, role in left]
            time.sleep(0.002)
        return []

    def end_connections(self) -> None:
        """Kill what ``wait_until_quiet`` leaves, and forget all processes that have ended."""
        while masters := list(self.alive()):
            for pid, _ in masters:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        self._map[_TABLE:_LOG] = bytes(_LOG - _TABLE)
        struct.pack_into("<I", self._map, 40, 0)

    def _order(self, how: How, occurrence: int) -> None:
        self._write_text(_DAY, 16, f"{datetime.now(UTC):%Y%m%d}")
        processes, used = self._head()[7], min(self._head()[9], LOG_BYTES)
        self._map[_LOG : _LOG + used] = bytes(used)
        _HEAD.pack_into(self._map, 0, 0, _OFF, HOW.index(how), 0, occurrence, 0, 0, processes, 0, 0, LOG_BYTES)
        struct.pack_into("<I", self._map, _MODE, _RECORD)

    def _head(self) -> tuple[int, ...]:
        return _HEAD.unpack_from(self._map, 0)

    def _write_text(self, at: int, size: int, text: str) -> None:
        content = text.encode("utf-8", "surrogateescape")
        if len(content) >= size:
            raise ValueError(f"longer than {size} bytes: {text!r}")
        self._map[at : at + size] = content.ljust(size, b"\0")


def whole_lines(text: str) -> Iterator[str]:
    """The lines of a recording without those of which the writer was killed over them.

    Room for a line is taken before it is written. What such a line lacks of it are zeros, also at its end, so that the next
    line follows them; a piece of a line has fewer fields.
    """
    lines = (line.rpartition("\0")[2] for line in text.split("\n"))
    return (line for line in lines if line.count("\t") == FIELDS - 1)


def points(calls: Iterable[Call]) -> list[Point]:
    """Every point of a recording, in the order in which they came; a call that failed has changed nothing and is none."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for call in calls:
        if call.is_point:
            key = (call.role, call.name, call.shown)
            seen[key] += 1
            if call.result >= 0 or call.name == "connect":  # one that is under way
                found.append(Point(*key, seen[key]))
    return found


def _call(line: str) -> Call:
    fields = line.split("\t")
    number, ended, process, inode, size, result = (int(fields[n]) for n in (0, 1, 2, 9, 10, 11))
    return Call(
        number,
        ended,
        process,
        fields[3],
        fields[4],
        fields[5] == "1",
        fields[6],
        fields[7],
        fields[8],
        inode,
        size,
        result,
        fields[12],
    )


def _started_at(pid: int) -> int:
    """When a process was started, in clock ticks since boot (proc(5)); 0 when it is none, or has ended and was not waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
