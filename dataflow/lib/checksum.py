"""Hashes of files: of the bytes as they lie on the disk, not as the page cache remembers them.

SHA-256 is ours; SHA-1 is what the lists of the mirrors have.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dataflow.lib.errors import TryLater

CHUNK_BYTES = 1 << 20


class Pace:
    """Keeps reading below a number of bytes per second: called with the size of each piece, it waits as long as that takes.

    What was not read while nobody asked is not made up for, beyond one second's worth.
    """

    def __init__(
        self,
        limit_bytes_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit_bytes_s, self._monotonic, self._sleep = limit_bytes_s, monotonic, sleep
        self._next_s = monotonic()

    def __call__(self, count: int) -> None:
        """Wait until ``count`` more bytes may have been read."""
        self._next_s = max(self._next_s, self._monotonic() - 1.0) + count / self._limit_bytes_s
        if (ahead_s := self._next_s - self._monotonic()) > 0:
            self._sleep(ahead_s)


def _at_once(count: int) -> None:
    """No limit."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, lower-case hex, read once in chunks."""
    with path.open("rb", buffering=0) as stream:
        return _of_rest(stream.fileno())


def sha256_on_disk(path: Path, pace: Callable[[int], None] = _at_once) -> str:
    """SHA-256 of what lies on the disk: the file is synced and dropped from the page cache before it is read.

    Over NFS this makes the client ask the server again instead of hashing its own memory of what it wrote. ``pace`` is called
    with the size of each piece in bytes.
    """
    with path.open("rb", buffering=0) as stream:
        _sync(stream.fileno())
        return _of_rest(stream.fileno(), pace)


def hashes_on_disk(path: Path, algorithms: Sequence[str]) -> tuple[str, ...]:
    """Several hashes of what lies on the disk, as ``sha256_on_disk`` and by one read; algorithms as hashlib calls them."""
    digests = [hashlib.new(algorithm) for algorithm in algorithms]
    with path.open("rb", buffering=0) as stream:
        _sync(stream.fileno())
        for chunk in chunks(stream.fileno()):
            for digest in digests:
                digest.update(chunk)
    return tuple(digest.hexdigest() for digest in digests)


def sha256_of_still(path: Path, pace: Callable[[int], None] = _at_once, *, cached: bool = False) -> tuple[str, int]:
    """SHA-256 and size in bytes of what lies on the disk, of a file that nobody writes to meanwhile.

    ``cached``: out of the page cache, if it is there.

    Raises:
        TryLater: it changed while it was read.
    """
    before = stamp(path)
    digest = sha256(path) if cached else sha256_on_disk(path, pace)
    if not is_still(path, before):
        raise TryLater(f"{path.name} changed while it was read; it is tried again when it lies still")
    return digest, before[1]


def stamp(path: Path) -> tuple[int, int, int]:
    """Inode, size and modification time in nanoseconds: while these are the same, so is the content."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def is_still(path: Path, before: tuple[int, int, int]) -> bool:
    """Whether a file is the one that had a stamp; False when it is gone."""
    try:
        return stamp(path) == before
    except FileNotFoundError:
        return False


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable and forget the cached copy of them."""
    with path.open("rb", buffering=0) as stream:
        _sync(stream.fileno())


def forget(path: Path) -> None:
    """Drop a file that will not be read again soon from the page cache."""
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename counts only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def chunks(descriptor: int) -> Iterator[memoryview]:
    """The rest of an open file, in pieces that share one buffer: use each before asking for the next."""
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        yield view[:count]


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _of_rest(descriptor: int, pace: Callable[[int], None] = _at_once) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(descriptor):
        digest.update(chunk)
        pace(len(chunk))
    return digest.hexdigest()
