"""Which file a step has in hand, so that a library that crashes is held against the file that it crashes on.

The daemon gives each step that it starts a file in memory (memfd_create(2)), and the step writes there what it works on. When the
step dies of a crash, the daemon counts it against that file; a file with ``CRASHES_MAX`` of them is refused, and the others get
their turn. If the library crashes on every file, three of them are bad for the same reason in a row, which blows the fuse.

A step that is killed, by a person or for want of memory, did not crash: that is no fault of the file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataflow.lib import note
from dataflow.lib.config import Here, step_name
from dataflow.lib.errors import BadFile

VARIABLE = "DATAFLOW_IN_HAND_FD"
CRASHES_MAX = 3
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)}
_PATH_BYTES_MAX = 8192


@contextmanager
def offered() -> Iterator[int]:
    """The daemon's side: a descriptor to hand over to the step, whose number goes into ``VARIABLE``."""
    descriptor = os.memfd_create("in-hand")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def noted(file: Path) -> Iterator[None]:
    """The step's side: while the block runs, this file is the one in hand; nothing where no daemon asked for it."""
    text = os.environ.get(VARIABLE, "")
    if not text.isdigit():
        yield
        return
    os.pwrite(int(text), os.fsencode(file), 0)
    try:
        yield
    finally:
        os.ftruncate(int(text), 0)


def count_crash(here: Here, step: str, descriptor: int, returncode: int | None) -> Path | None:
    """Count the crash of a step, if it was one, against the file that it had in hand; that file."""
    told = os.pread(descriptor, _PATH_BYTES_MAX, 0)
    if returncode not in _CRASHES or not told:
        return None
    file = Path(os.fsdecode(told))
    crashes = note.load(_file(here, step), int)
    note.save(_file(here, step), {**crashes, str(file): crashes.get(str(file), 0) + 1})
    return file


def refuse_crasher(here: Here, step: str, file: Path) -> None:
    """Refuse a file on which the step has crashed too often.

    Raises:
        BadFile: ``crashes a library``.
    """
    if (count := note.load(_file(here, step), int).get(str(file), 0)) >= CRASHES_MAX:
        raise BadFile("crashes a library", f"{step} crashed {count} times on {file.name}: it holds what makes a library crash")


def forgive(here: Here, step: str, file: Path) -> None:
    """Forget the crashes on a file that a person has put back to be tried again."""
    crashes = note.load(_file(here, step), int)
    if crashes.pop(str(file), None) is not None:
        note.save(_file(here, step), crashes)


def _file(here: Here, step: str) -> Path:
    return here.state / "crashes" / f"{step_name(step)}.json"
