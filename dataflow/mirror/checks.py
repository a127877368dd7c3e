"""The checks of a file before a mirror takes it: whole, one bzip2 stream, every record read strictly, and what its name says.

All of it in this process: there is no program that may be missing and no shell that sees a name. A check that could not be
made is ``TryLater``: only what was read and found bad is a bad file.
"""

from __future__ import annotations

from pathlib import Path

from dataflow.lib import checksum
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Name

BAD_BZIP2 = "Failed BZ2 integrity test"
EMPTY = "File contains no records (empty)"
BAD_DMAP = "Failed DMAP integrity test"

_BZIP2_FAULTS = ("not bzip2", "several bzip2 streams", "trailing bytes", "damaged bzip2")
_NAME_FAULTS = ("wrong station", "wrong time", "wrong channel")


def check(path: Path, name: Name, sha1: str | None = None) -> str:
    """Check a file that is to be called ``name``; its SHA-1, lower-case hex.

    Raises:
        BadFile: with one of the kinds above, or ``wrong station``, ``wrong time``, ``wrong channel``.
        TryLater: it is not what ``sha1`` says, it changed meanwhile, or it could not be checked.
    """
    try:
        before = checksum.stamp(path)
        (found,) = checksum.hashes_on_disk(path, ["sha1"])
        if sha1 is not None and found != sha1:
            raise TryLater(f"{path} reads differently now: its SHA-1 is {found}, not {sha1}")
        fault = _fault(path, name, before[1])
        if not checksum.is_still(path, before):
            raise TryLater(f"{path} changed while it was checked")
    except (OSError, MemoryError, ImportError) as error:
        raise TryLater(f"{path.name} could not be checked: {error or type(error).__name__}") from error
    if fault is not None:
        raise fault
    return found


def _fault(path: Path, name: Name, size_bytes: int) -> BadFile | None:
    """What is wrong with a file, by the words of the list of failed files."""
    from dataflow.lib import dmap

    if size_bytes == 0:
        return BadFile(EMPTY, f"{name.text} has no bytes")
    try:
        dmap.check_name(dmap.inspect(path), name)
    except BadFile as error:
        return BadFile(_kind(path, error), str(error))
    return None


def _kind(path: Path, error: BadFile) -> str:
    from dataflow.lib import dmap

    if error.kind in _NAME_FAULTS:
        return error.kind
    if error.kind == "no records":
        return EMPTY
    if error.kind in _BZIP2_FAULTS:
        return BAD_BZIP2
    try:
        dmap.content_sha256(path)  # what is truncated may be the stream, or a record in a stream that is whole
    except BadFile:
        return BAD_BZIP2
    return BAD_DMAP
