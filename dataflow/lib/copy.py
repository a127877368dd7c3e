"""Verified copies on mounted disks: one read of the source feeds its hash and every copy, and each copy is read back.

A copy is written to a hidden part, synced, dropped from the page cache, read back, compared and only then given its
name. Small work for one file; what goes over SSH is in ``transfer``.
"""

from __future__ import annotations

import bz2
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from dataflow.lib import checksum, place
from dataflow.lib.config import Here
from dataflow.lib.errors import BadFile, TryLater

FICLONE = 0x40049409
"""ioctl_ficlone(2): share the blocks of another file, copy on write."""


@dataclass(frozen=True, slots=True)
class Copied:
    """``source_sha256`` of what was read; ``sha256`` and ``size_bytes`` of what was written (they differ if compressed)."""

    source_sha256: str
    source_bytes: int
    sha256: str
    size_bytes: int


class Conflict(BadFile):
    """The same name with other content is already there: the newcomer is quarantined, nothing is overwritten."""

    def __init__(self, existing: Path, existing_sha256: str, sha256: str) -> None:
        super().__init__("conflict", f"{existing} has the same name and other content ({existing_sha256}, this is {sha256})")
        self.hashes = {"existing": str(existing), "existing_sha256": existing_sha256, "sha256": sha256}


def copy_to(
    here: Here,
    source: Path,
    finals: Sequence[Path],
    *,
    expected_sha256: str | None = None,
    compress: bool = False,
    read_limit_mib_s: int | None = None,
) -> Copied:
    """Copy one file to every final name, reading it once; a name that already holds the same content is left alone.

    No name is given before every copy was read back and every name is known to be free or to hold the same.

    Raises:
        Conflict: a final name holds other content.
        TryLater: the source changed while it was read, is not what ``expected_sha256`` says, a copy read back differs, or a
            disk would be left with less than its reserve.
        OSError: a destination cannot be written (full, read-only).
    """
    for final in finals:
        place.make_folder(here, final.parent)
        place.part_of(final).unlink(missing_ok=True)
    place.require_room(here, [final.parent for final in finals], source.stat().st_size)
    parts = [place.part_of(final) for final in finals]
    try:
        copied = _feed(source, parts, compress, read_limit_mib_s)
        checksum.forget(source)  # a radar computer's memory is for its radar
        if expected_sha256 is not None and copied.source_sha256 != expected_sha256:
            raise TryLater(f"{source} reads differently now than before: hash {copied.source_sha256}, was {expected_sha256}")
        for part, final in zip(parts, finals, strict=True):
            _read_back(here, part, final, copied)
        free = {final: part for part, final in zip(parts, finals, strict=True) if not _holds(final, copied.sha256)}
        for final, part in free.items():
            place.publish(part, final)
        place.sync_folders(final.parent for final in finals if final not in free)  # a killed run may not have got so far
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return copied


def move(here: Here, source: Path, final: Path, sha256: str) -> None:
    """Move a file to a final name. If that holds the same content, the source is only released.

    Raises:
        Conflict: the final name holds other content.
    """
    add_name(here, source, final, sha256)
    checksum.sync_folder(final.parent)
    place.release(source)
    checksum.sync_folder(source.parent)


def add_name(here: Here, source: Path, final: Path, sha256: str) -> None:
    """Give a file a second, final name: a link to it, or a verified copy where it cannot be linked.

    It cannot across file systems, nor where it belongs to somebody else (a file copied in by hand; see
    fs.protected_hardlinks in proc(5)). The name counts only after ``place.sync_folders``: many of one folder share that.

    Raises:
        Conflict: the final name holds other content. If it holds the same, nothing is done.
        TryLater: the final name was taken, and then it was not.
    """
    place.make_folder(here, final.parent)
    try:
        os.link(source, final, follow_symlinks=False)
    except FileExistsError as error:
        if not (place.is_regular(final) and source.samefile(final)) and not _holds(final, sha256):
            raise TryLater(f"{final} was there a moment ago and is gone: who moves files there? {source.name} stays") from error
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM):
            raise
        copy_to(here, source, [final], expected_sha256=sha256)


def make_ready(here: Here, source: Path, ready: Path, sha256: str, link: bool) -> None:
    """Make a verified copy under a name that its reader does not see yet, replacing an older one.

    Reflinked where the file system can, else copied. A hard link only if asked for, and only of a file that is ours and
    that nobody may write: a reader who edits a link edits the archive.

    Raises:
        TryLater: what was read back is not what it should be, or the disk would be left with less than its reserve.
    """
    place.make_folder(here, ready.parent)
    part = place.part_of(ready)
    part.unlink(missing_ok=True)
    status = source.stat()
    if link and status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o444:
        os.link(source, part)
    else:
        if not _reflink(source, part):
            place.require_room(here, [ready.parent], status.st_size)
            _feed(source, [part], False, None)
        place.own(here, part, here.file_mode)
    if (found := checksum.sha256_on_disk(part)) != sha256:
        part.unlink()
        raise TryLater(f"the copy of {source.name} beside {ready.parent} reads back as {found}, not {sha256}; it was removed")
    part.rename(ready)
    part.unlink(missing_ok=True)  # rename(2) does nothing when both are links of one file
    checksum.sync_folder(ready.parent)


def _feed(source: Path, parts: Sequence[Path], compress: bool, read_limit_mib_s: int | None) -> Copied:
    read, written = hashlib.sha256(), hashlib.sha256()
    size = 0
    with ExitStack() as stack:
        reader = stack.enter_context(source.open("rb", buffering=0))
        before = os.fstat(reader.fileno())
        writers = [stack.enter_context(part.open("xb", buffering=0)) for part in parts]
        pieces = _hashed(_limited(checksum.chunks(reader.fileno()), read_limit_mib_s), read)
        for piece in _hashed(_compressed(pieces), written) if compress else pieces:
            size += _write_all(writers, piece)
        for writer in writers:
            os.fsync(writer.fileno())
        after = os.fstat(reader.fileno())
        _require_unchanged(source, before, after)
    for part in parts:
        os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    return Copied(read.hexdigest(), before.st_size, (written if compress else read).hexdigest(), size)


def _hashed(pieces: Iterator[bytes | memoryview], digest: hashlib._Hash) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _compressed(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    compressor = bz2.BZ2Compressor()
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _write_all(writers: Sequence[FileIO], out: bytes | memoryview) -> int:
    for writer in writers:
        view = memoryview(out)
        while view:
            view = view[writer.write(view) or 0 :]
    return len(out)


def _require_unchanged(source: Path, before: os.stat_result, after: os.stat_result) -> None:
    try:
        on_disk = source.lstat()
    except FileNotFoundError as error:
        raise TryLater(f"{source} was removed while it was read") from error
    for now in (after, on_disk):
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise TryLater(f"{source} changed while it was read")


def _read_back(here: Here, part: Path, final: Path, copied: Copied) -> None:
    place.own(here, part, here.file_mode)
    if (found := checksum.sha256_on_disk(part)) != copied.sha256:
        raise TryLater(f"the copy for {final} reads back as {found}, not {copied.sha256}; it was removed")


def _holds(final: Path, sha256: str) -> bool:
    """True when the name holds this content already, False when it is free."""
    if not os.path.lexists(final):
        return False
    if not place.is_regular(final):
        raise BadFile("name taken", f"{final} exists and is no regular file")
    if (existing := checksum.sha256_on_disk(final)) != sha256:
        raise Conflict(final, existing, sha256)
    return True


def _limited(pieces: Iterator[memoryview], limit_mib_s: int | None) -> Iterator[bytes | memoryview]:
    pace = checksum.Pace(limit_mib_s * 2**20) if limit_mib_s else None
    for piece in pieces:
        yield piece
        if pace is not None:
            pace(len(piece))


def _reflink(source: Path, part: Path) -> bool:
    with source.open("rb") as reader, part.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        except OSError:
            part.unlink()
            return False
        return True
