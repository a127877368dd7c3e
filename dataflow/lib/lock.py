"""Kernel locks: one run at a time for each host and radar, and counted places for scarce work.

The lock is a flock on an open file, inherited by the children of whoever holds it: an orphaned rsync still holds the
lock of the run that started it, and a crash releases it. A process that was killed but hangs in the kernel cannot release
what it holds: the lock then gets a new file, since that process will never again do more than end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataflow.lib import command, hanging

LOCK_VARIABLE = "DATAFLOW_LOCK_FD"
POLL_S = 0.2
LOOK_FOR_DEAD_S = 5.0
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@contextmanager
def held(
    path: Path,
    holder: str,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold the lock while the block runs; yields False when asked to stop before it was free.

    Whoever finds it taken waits and says for whom. A child of the holder, which inherited the lock, goes straight on.
    """
    if _inherited(path):
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, say, should_stop)
    if descriptor is None:
        yield False
        return
    try:
        _write_holder(descriptor, f"{holder} (process {os.getpid()})")
        command.inherited_descriptors.append(descriptor)
        os.environ[LOCK_VARIABLE] = str(descriptor)
        yield True
    finally:
        if descriptor in command.inherited_descriptors:
            command.inherited_descriptors.remove(descriptor)
            os.environ.pop(LOCK_VARIABLE, None)
        os.close(descriptor)


@contextmanager
def one_of(folder: Path, name: str, places: int, should_stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold one of a counted number of places on this machine; yields False when asked to stop before one was free."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptors = [os.open(folder / f"{name}.{n}", _OPEN, 0o664) for n in range(places)]
    try:
        while not (free := any(_try(descriptor) for descriptor in descriptors)) and not should_stop():
            time.sleep(POLL_S)
        yield free
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _acquire(path: Path, say: Callable[[str], None], should_stop: Callable[[], bool]) -> int | None:
    """The open, locked file; None when asked to stop before it was free."""
    told, looked_at = False, float("-inf")
    while (descriptor := _locked(path)) is None:
        if should_stop():
            return None
        if not told:
            say(f"waiting for {_holder(path)}, which holds {path}")
            told = True
        if time.monotonic() - looked_at > LOOK_FOR_DEAD_S:
            _take_from_the_dead(path, say)
            looked_at = time.monotonic()
        time.sleep(POLL_S)
    return descriptor


def _locked(path: Path) -> int | None:
    """The file, opened and locked; None when somebody else has it, or has given the lock a new file just now."""
    descriptor = os.open(path, _OPEN, 0o664)
    try:
        if _try(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def _take_from_the_dead(path: Path, say: Callable[[str], None]) -> None:
    """Give the lock a new file if only killed processes hold it; one at a time, or two would each have a lock of their own."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if hanging.only_the_dead_have_open(path):
            holder = _holder(path)
            path.unlink()
            say(f"{path} was held by processes of {holder} that were killed and hang in the kernel; it is a new file now")
    finally:
        os.close(folder)


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace") or "an unknown process"
    except FileNotFoundError:  # it is given a new file just now
        return "a process that has ended"


def _write_holder(descriptor: int, text: str) -> None:
    """Tell who holds the lock; on a full disk it is held all the same, and whoever waits is told of an unknown process."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _inherited(path: Path) -> bool:
    text = os.environ.get(LOCK_VARIABLE, "")
    if not text.isdigit():
        return False
    try:
        mine, lock = os.fstat(int(text)), path.stat()
    except OSError:
        return False
    if (mine.st_dev, mine.st_ino) != (lock.st_dev, lock.st_ino):
        return False
    if int(text) not in command.inherited_descriptors:
        command.inherited_descriptors.append(int(text))
    return True
