"""What publishing had begun with each month when it was killed, and what it knows of the lists that it has written.

``<state>/publish.<holding>.journal``, JSON Lines, each durable before the work goes on. The last line of a month counts:

    {"time", "month", "stage": "begun", "files": {name: SHA-1}, "lines"}     files are on their way
    {"time", "month", "stage": "placed", "lines"}                            they are on the mirror
    {"time", "month", "stage": "listed", "lines", "sha1"}                    the list of the month names them
    {"time", "month", "stage": "done", "lines"}                              and the master list has the hash of that

``lines``: how many the list had when we last wrote it, so that a mirror that is not mounted is not taken for a new one. All else
can be derived from the lists and the folders of the mirror: a journal that is lost costs no file, only a look at those months of
which nothing lies in the holding directory any more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, place
from dataflow.lib.summary import timestamp
from dataflow.mirror import layout

DONE = "done"
Entry = dict[str, Any]


class Journal:
    """The journal of one holding directory."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path, self._clock = path, clock
        self._last: dict[str, Entry] = {entry["month"]: entry for entry in _entries(path)}

    def unfinished(self) -> list[str]:
        """The months with which something was begun and not brought to its end."""
        return sorted(month for month, entry in self._last.items() if entry["stage"] != DONE)

    def months(self) -> list[str]:
        """The months whose lists we have written."""
        return sorted(month for month in self._last if self.lines(month))

    def lines(self, month: str) -> int:
        """How many lines the list of a month had when we last wrote it; 0 if we never did."""
        lines = self._last.get(month, {}).get("lines")
        return lines if isinstance(lines, int) else 0

    def write(self, month: str, stage: str, lines: int | None = None, **fields: Any) -> None:
        """Note a stage, durably."""
        known = self.lines(month) if lines is None else lines
        entry = {"time": timestamp(self._clock()), "month": month, "stage": stage, **fields, "lines": known}
        place.make_own_folder(self._path.parent)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            line = memoryview(_line(entry))
            while line:  # on a full disk it is torn, and then the next run ends that line
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        checksum.sync_folder(self._path.parent)
        self._last[month] = entry

    def shorten(self) -> None:
        """Keep the last line of each month; also ends a line that a crash tore."""
        if self._path.exists():
            place.write_whole(self._path, b"".join(_line(self._last[month]) for month in sorted(self._last)))


def _line(entry: Entry) -> bytes:
    return json.dumps(entry).encode("ascii") + b"\n"


def _entries(path: Path) -> Iterator[Entry]:
    """The lines that are whole; one that a crash tore was not durable, so nothing was done that counts on it."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and layout.is_month(str(entry.get("month"))) and isinstance(entry.get("stage"), str):
            yield entry
