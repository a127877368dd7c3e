"""The flag: a manifest that says "look now" and lists what was delivered.

``<YYYYMMDDTHHMMSS.ffffffZ>.<radar>.<from host>.flag``, JSON:
``{"v":1,"id","radar","from","sent","run","files":[{"name","size","sha256"}]}``. An entry may also tell what was made of
what (``parent``, ``by``, ``content_sha256``) and what a strict reading found (``records``, ``cpids``). Readers ignore keys
that they do not know; a flag of a higher ``v`` is set aside, and so is one that does not match its own ``crc32``: a disk that
turned one bit of a hash in it would let a good file look damaged. Flags without ``crc32`` are read as well.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from dataflow.lib import place
from dataflow.lib.errors import BadFile
from dataflow.lib.summary import moment, timestamp

VERSION = 1
CRC32 = "crc32"
"""The key of the CRC-32 (of ISO 3309, as zlib has it) of the flag's JSON without this key, keys in order, no spaces."""
DOCUMENT_BYTES_MAX = 16 << 20
"""A manifest of a batch of 2,000 files is 1 MB; JSON takes up to thirty times its size in memory."""
SIZE_BYTES_MAX = 1 << 63
_FILE_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.[a-z]{3}\.[a-z][a-z0-9_-]{0,40}\.flag", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OPTIONAL: dict[str, type[Any]] = {"parent": str, "by": str, "content_sha256": str, "records": int, "cpids": list}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One delivered file. ``parent`` is the SHA-256 of what it was made from, ``by`` what made it (step, version)."""

    name: str
    size: int
    sha256: str
    parent: str | None = None
    by: str | None = None
    content_sha256: str | None = None
    records: int | None = None
    cpids: tuple[int, ...] | None = None

    def document(self) -> dict[str, Any]:
        """The entry as JSON has it, without what is unknown."""
        return {key: value for key in self.__slots__ if (value := getattr(self, key)) is not None}


@dataclass(frozen=True, slots=True)
class Flag:
    """A manifest. ``sender`` is the host that delivered (``from`` in the JSON)."""

    id: str
    radar: str
    sender: str
    sent: str
    run: str
    files: tuple[Entry, ...]

    @property
    def file_name(self) -> str:
        """The name under which the flag lies in every folder."""
        return f"{self.id}.{self.radar}.{self.sender}.flag"

    def encode(self) -> bytes:
        """The flag as JSON, one line."""
        document = {"v": VERSION, "id": self.id, "radar": self.radar, "from": self.sender, "sent": self.sent, "run": self.run}
        document |= {"files": [entry.document() for entry in self.files]}
        return json.dumps({**document, CRC32: _crc32(document)}).encode("ascii") + b"\n"


def is_flag_name(name: str) -> bool:
    """True for a well-formed flag file name."""
    return _FILE_NAME.fullmatch(name) is not None


def decode(content: bytes) -> Flag:
    """Read a flag.

    Raises:
        BadFile: it is not a flag of a version that this dataflow reads; nothing in it was used.
    """
    document, files = _read(content, "flag")
    try:
        found = Flag(
            id=_typed(document["id"], str),
            radar=_typed(document["radar"], str),
            sender=_typed(document["from"], str),
            sent=timestamp(moment(document["sent"])),
            run=_typed(document["run"], str),
            files=files,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile("unreadable flag", f"the flag cannot be read: {type(error).__name__}: {error}") from error
    if not is_flag_name(found.file_name):
        raise BadFile("unreadable flag", f"the flag's id, radar or sender is malformed: {found.file_name[:80]!r}")
    return found


def read(path: Path) -> Flag:
    """Read the flag in a file.

    Raises:
        BadFile: as ``decode``, or it is no regular file; to open a FIFO would wait for ever.
    """
    if not place.is_regular(path):
        raise BadFile("unreadable flag", "it is no regular file")
    if path.stat().st_size > DOCUMENT_BYTES_MAX:
        raise BadFile("unreadable flag", f"it is longer than {DOCUMENT_BYTES_MAX >> 20} MiB")
    return decode(path.read_bytes())


def entries(content: bytes) -> tuple[Entry, ...]:
    """The entries of a manifest that is sent with the files themselves: ``{"v":1,"files":[...]}``.

    Raises:
        BadFile: it cannot be read.
    """
    return _read(content, "manifest")[1]


def write(folder: Path, radar: str, sender: str, run: str, entries: Iterable[Entry], clock: Callable[[], datetime]) -> Flag:
    """Write a new flag, durable, into a folder of this host, under a time that no other flag there has."""
    now = clock()
    while True:
        stamp = f"{now:%Y%m%dT%H%M%S.%fZ}"
        made = Flag(stamp, radar, sender, timestamp(now), run, tuple(entries))
        if not (folder / made.file_name).exists():
            break
        now += timedelta(microseconds=1)
    place.make_own_folder(folder)
    place.write_whole(folder / made.file_name, made.encode())
    return made


def read_folder(folder: Path) -> list[tuple[Path, Flag]]:
    """The readable flags of a folder, oldest first."""
    found = []
    for path in place.scan(folder):
        try:
            found.append((path, read(path)))
        except (BadFile, OSError):
            continue
    return found


def _read(content: bytes, what: str) -> tuple[dict[str, Any], tuple[Entry, ...]]:
    """The JSON of a flag or manifest that this dataflow can read, and its entries."""
    try:
        if len(content) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"it is longer than {DOCUMENT_BYTES_MAX >> 20} MiB")
        document = _typed(json.loads(content), dict)
        told = document.pop(CRC32, None)
        version = _typed(document["v"], int)
        if version > VERSION:
            raise BadFile(f"newer {what}", f"the {what} is of version {version}; this dataflow reads up to {VERSION}: upgrade it")
        if told not in (None, _crc32(document)):
            raise ValueError("it does not match its own checksum: damaged on a disk?")
        return document, tuple(entry(item) for item in _typed(document["files"], list))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile(f"unreadable {what}", f"the {what} cannot be read: {type(error).__name__}: {error}") from error


def entry(document: Any) -> Entry:
    """An entry from its JSON; what is optional may be missing, null or of the right type.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    item = _typed(document, dict)
    optional = {key: _typed(item[key], kind) for key, kind in _OPTIONAL.items() if item.get(key) is not None}
    if "cpids" in optional:
        optional["cpids"] = tuple(_typed(cpid, int) for cpid in optional["cpids"])
    name, size, sha256 = _typed(item["name"], str), _typed(item["size"], int), _typed(item["sha256"], str)
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"not a file name: {name!r}")
    if not 0 <= size <= SIZE_BYTES_MAX or not _SHA256.fullmatch(sha256):
        raise ValueError(f"no size and SHA-256 for {name!r}")
    return Entry(name, size, sha256, **optional)


def _crc32(document: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii"))


def _typed(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {str(value)[:80]!r}")
    return value
