"""Hashes of files: SHA-256 of the bytes as they lie on the disk, not as the page cache remembers them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20


def sha256(path: Path) -> str:
    """SHA-256 of a file, lower-case hex, read once in chunks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        for chunk in chunks(stream.fileno()):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_on_disk(path: Path) -> str:
    """SHA-256 of what lies on the disk: the file is synced and dropped from the page cache before it is read.

    Over NFS this makes the client ask the server again instead of hashing its own memory of what it wrote.
    """
    sync_file(path)
    return sha256(path)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable and forget the cached copy of them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


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
