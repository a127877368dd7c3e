"""The summary log: writes and reads the records that everything else is a view of.

JSON Lines, one file a day, radar and step: ``<logs>/<step>/summary/YYYY/MM/<YYYYMMDD>.<radar>.<step>.jsonl``, UTC. Every
record is one write(2) of one line, so that two processes never mix their lines and a crash tears at most the last one.
Logs handed on by other hosts lie under ``<relayed_logs>/<radar>/<step>/<YYYYMMDD>.<radar>.<step>.<host>.jsonl``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Container, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, place
from dataflow.lib.config import Here

VERSION = 1
Record = dict[str, Any]

RECORD_BYTES_MAX = 1 << 20
"""A line that is longer is no record: the longest hold a traceback."""
_ALWAYS = ("time", "host", "step", "event")
_TEXTS = ("run", "machine", "radar", "file", "outcome", "action", "reason", "source", "destination", "sha256", "parent", "kind")
_NUMBERS = ("bytes", "seconds")
_FILE_FIELD = re.compile(rb'"file":\s*"([^"]*)')

CHECKED = "scrubbed"
"""The action of a file that was read again in its place and found as it was."""
DAMAGED = "damaged"
LOST = "lost"
"""Outcomes of such a check, of a place and not of a file: other copies of it may be well."""
REMOVED = "removed"
"""The action of a file that was removed from its place (`source`) on purpose."""


def timestamp(moment: datetime) -> str:
    """A moment as the records write it: ISO 8601, UTC, microseconds, ``Z``."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def moment(text: str) -> datetime:
    """The inverse of ``timestamp``.

    Raises:
        ValueError: it is not a text that ``timestamp`` gives.
    """
    found = datetime.fromisoformat(text)  # not strptime(3), which takes ten times longer, and logs have many records
    if found.tzinfo is None or timestamp(found) != text:
        raise ValueError(f"not a time as the records write it: {text[:40]!r}")
    return found


class SummaryLog:
    """Writes the records of one run of one step."""

    def __init__(self, here: Here, step: str, run: str, clock: Callable[[], datetime]) -> None:
        self._here = here
        self._clock = clock
        self.run = run
        self._common = {"run": run, "host": here.host_name, "machine": here.machine.name, "radar": here.radar, "step": step}
        self._step = step
        self._path: Path | None = None
        self._day: date | None = None
        self._descriptor = -1

    def write(self, event: str, **fields: Any) -> None:
        """Append one record. Fields that are None are left out.

        Raises:
            OSError: the log cannot be written; whoever counts on the record must not go on.
        """
        now = self._clock()
        self._open_for(now)
        record = {"v": VERSION, "time": timestamp(now), **self._common, "event": event}
        record.update({key: value for key, value in fields.items() if value is not None})
        line = json.dumps(record, ensure_ascii=True, default=str) + "\n"
        with self._alone():
            written = os.write(self._descriptor, line.encode("ascii"))
        if written != len(line):
            path = self._path
            self.close()  # opened again it mends its last line
            raise OSError(errno.ENOSPC, "the summary log is cut short: is the disk full?", str(path))

    def sync(self) -> None:
        """Make what was written durable."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a later ``write`` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._day, self._descriptor = None, None, -1

    def _open_for(self, now: datetime) -> None:
        if now.date() == self._day:
            return
        self.sync()
        self.close()
        path = log_file(self._here, self._step, now.date())
        place.make_own_folder(path.parent)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o664)
        self._path, self._day = path, now.date()
        with self._alone():
            size = os.fstat(self._descriptor).st_size
            if size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")  # what a crash tore must not take the next record along
        if size == 0:
            checksum.sync_folder(path.parent)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold off other writers: who opens the log must not take a line that is being written for one that a crash tore."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def log_file(here: Here, step: str, day: date) -> Path:
    """Where this host's records of one step and day lie."""
    return here.logs / step / "summary" / f"{day:%Y/%m}" / f"{day:%Y%m%d}.{here.radar}.{step}.jsonl"


def own_files(here: Here, since: date, step: str | None = None) -> list[Path]:
    """This host's log files for its radar from a day on, oldest first."""
    pattern = f"{step or '*'}/summary/*/*/*.{here.radar}.*.jsonl"
    return _logs(here.logs, pattern, since)


def relayed_files(here: Here, since: date) -> list[Path]:
    """The log files that other hosts handed to this one, from a day on, oldest first."""
    pattern = f"{here.radar}/*/*.jsonl"
    return _logs(here.relayed_logs, pattern, since)


def _logs(folder: Path, pattern: str, since: date) -> list[Path]:
    found = (path for path in folder.glob(pattern) if path.name[:8] >= f"{since:%Y%m%d}" and place.is_regular(path))
    return sorted(found, key=lambda path: path.name)


def records(files: list[Path], holding: bytes = b"", about: Container[str] | None = None) -> Iterator[Record]:
    """The records of log files; what is none, such as a torn line, or is of a newer version, is passed over.

    Logs come from other hosts too: of each record that is given the fields have the types that readers count on, and its time
    is one.
    ``holding``: only of lines that hold this text. ``about``: only those of files with these names. Lines that are left out
    are not parsed: a day's log has thousands, and every run looks for a few of them.
    """
    for path in files:
        with path.open("rb") as stream:
            while line := stream.readline(RECORD_BYTES_MAX):
                if holding not in line or (about is not None and not _is_about(line, about)):
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict) and _is_record(record):
                    yield record


def _is_about(line: bytes, names: Container[str]) -> bool:
    """Whether a line may be of a file with one of these names: of one that JSON had to escape that is told only by parsing."""
    found = _FILE_FIELD.search(line)
    return found is not None and (b"\\" in found[1] or found[1].rpartition(b"/")[2].decode("ascii", "replace") in names)


def _is_record(record: Record) -> bool:
    if type(record.get("v")) is not int or record["v"] > VERSION:
        return False
    required = _ALWAYS if record.get("event") != "file" else (*_ALWAYS, "file", "outcome")
    typed = all(isinstance(record.get(key), str) for key in required) and all(
        isinstance(record.get(key), kind | None) for keys, kind in ((_TEXTS, str), (_NUMBERS, int | float)) for key in keys
    )
    return typed and _is_time(record["time"])


def _is_time(text: str) -> bool:
    try:
        moment(text)
    except ValueError:
        return False
    return True


def day_before(now: datetime, days: int) -> date:
    """The UTC date some days before a moment."""
    return (now.astimezone(UTC) - timedelta(days=days)).date()
