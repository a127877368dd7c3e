"""The flag: a manifest that says "look now" and lists what was delivered.

``<YYYYMMDDTHHMMSS.ffffffZ>.<radar>.<from host>.flag``, JSON:
``{"v":1,"id","radar","from","sent","run","files":[{"name","size","sha256"}]}``. An entry may also tell what was made of
what (``parent``, ``by``, ``content_sha256``) and what a strict reading found (``records``, ``cpids``). Readers ignore keys
that they do not know; a flag of a higher ``v`` is set aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dataflow.lib import place
from dataflow.lib.errors import BadFile
from dataflow.lib.summary import timestamp

VERSION = 1
_FILE_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.[a-z]{3}\.[a-z][a-z0-9_-]{0,40}\.flag", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


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
        return {key: value for key, value in asdict(self).items() if value is not None}


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
        return json.dumps({**document, "files": [entry.document() for entry in self.files]}).encode("ascii") + b"\n"


def is_flag_name(name: str) -> bool:
    """True for a well-formed flag file name."""
    return _FILE_NAME.fullmatch(name) is not None


def decode(content: bytes) -> Flag:
    """Read a flag.

    Raises:
        BadFile: it is not a flag of a version that this dataflow reads; nothing in it was used.
    """
    try:
        document = json.loads(content)
        version = document["v"]
        if not isinstance(version, int) or version > VERSION:
            raise BadFile("newer flag", f"the flag is of version {version!r}; this dataflow reads up to {VERSION}: upgrade it")
        found = Flag(
            id=_text(document["id"]),
            radar=_text(document["radar"]),
            sender=_text(document["from"]),
            sent=_text(document["sent"]),
            run=_text(document["run"]),
            files=tuple(_entry(item) for item in document["files"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile("unreadable flag", f"the flag cannot be read: {type(error).__name__}: {error}") from error
    if not is_flag_name(found.file_name):
        raise BadFile("unreadable flag", f"the flag's id, radar or sender is malformed: {found.file_name[:80]!r}")
    return found


def entries(content: bytes) -> tuple[Entry, ...]:
    """The entries of a manifest that is sent with the files themselves: ``{"v":1,"files":[...]}``.

    Raises:
        BadFile: it cannot be read.
    """
    try:
        document = json.loads(content)
        if document["v"] > VERSION:
            raise BadFile(
                "newer manifest", f"the manifest is of version {document['v']}; this dataflow reads up to {VERSION}: upgrade it"
            )
        return tuple(_entry(item) for item in document["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile("unreadable manifest", f"the manifest cannot be read: {type(error).__name__}: {error}") from error


def write(folder: Path, radar: str, sender: str, run: str, entries: Iterable[Entry], clock: Callable[[], datetime]) -> Flag:
    """Write a new flag, durable, into a folder of this host, under a time that no other flag there has."""
    now = clock()
    while True:
        stamp = f"{now:%Y%m%dT%H%M%S.%fZ}"
        made = Flag(stamp, radar, sender, timestamp(now), run, tuple(entries))
        if not (folder / made.file_name).exists():
            break
        now += timedelta(microseconds=1)
    folder.mkdir(parents=True, exist_ok=True)
    place.write_whole(folder / made.file_name, made.encode())
    return made


def read_folder(folder: Path) -> list[tuple[Path, Flag]]:
    """The readable flags of a folder, oldest first."""
    found = []
    for path in place.scan(folder):
        try:
            found.append((path, decode(path.read_bytes())))
        except (BadFile, OSError):
            continue
    return found


def _entry(item: dict[str, Any]) -> Entry:
    known = {f.name for f in fields(Entry)}
    values = {key: value for key, value in item.items() if key in known}
    entry = Entry(**values) if "cpids" not in values else Entry(**{**values, "cpids": tuple(values["cpids"])})
    if not isinstance(entry.name, str) or "/" in entry.name or "\0" in entry.name or entry.name in ("", ".", ".."):
        raise ValueError(f"not a file name: {entry.name!r}")
    if not isinstance(entry.size, int) or entry.size < 0 or not _SHA256.fullmatch(_text(entry.sha256)):
        raise ValueError(f"no size and SHA-256 for {entry.name!r}")
    return entry


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r}")
    return value
