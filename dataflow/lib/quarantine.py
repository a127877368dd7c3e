"""Quarantine: where a file goes that must go no further, with the reason beside it.

``<name>`` and ``<name>.reason.json``; a second file of that name gets its hash into the name. The reason is durable
before the file has its name there, and across file systems the copy is verified.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, copy, in_hand, names, place
from dataflow.lib.config import Here
from dataflow.lib.errors import BadConfig
from dataflow.lib.summary import timestamp

REASON_ENDING = ".reason.json"
_REASON_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a file is in quarantine and whence it came."""

    file: str
    source: str
    kind: str
    message: str
    step: str
    time: str
    sha256: str
    details: dict[str, Any]


def put(here: Here, source: Path, kind: str, message: str, step: str, now: datetime, details: dict[str, Any]) -> Path:
    """Move a file into quarantine; returns where it lies now.

    Raises:
        OSError, TryLater, BadFile: the quarantine cannot take it; the file stays where it is.
    """
    final = admit(here, source, kind, message, step, now, details)
    place.release(source)
    return final


def admit(here: Here, source: Path, kind: str, message: str, step: str, now: datetime, details: dict[str, Any]) -> Path:
    """Give a file its name in quarantine; returns that. Who calls releases the source once the record of it is durable.

    Raises:
        OSError, TryLater, BadFile: the quarantine cannot take it.
    """
    return admit_to(here, "quarantine", Path(), source, kind, message, step, now, details)


def admit_to(
    here: Here, key: str, below: Path, source: Path, kind: str, message: str, step: str, now: datetime, details: dict[str, Any]
) -> Path:
    """The same for another folder of the configuration, by its key, and a relative path ``below`` it."""
    place.check_root(here, here.root_of(key))
    folder = here.folder(key) / below
    place.make_folder(here, folder)
    digest = checksum.sha256(source)
    final = folder / source.name
    if os.path.lexists(final) and not (place.is_regular(final) and checksum.sha256(final) == digest):
        final = folder / f"{source.name}.{digest[:12]}"
    reason = Reason(source.name, str(source), kind, message, step, timestamp(now), digest, details)
    place.write_whole(final.with_name(final.name + REASON_ENDING), json.dumps(asdict(reason), indent=1).encode() + b"\n")
    copy.add_name(here, source, final, digest)
    checksum.sync_folder(folder)
    place.check_root(here, here.root_of(key))  # unmounted meanwhile, the file lies below the mount point
    return final


def reasons(here: Here) -> list[tuple[Path, Reason]]:
    """What lies in quarantine, by name; a file without a readable reason gets an empty one."""
    found = []
    for path in place.scan(here.folder("quarantine")):
        if not path.name.endswith(REASON_ENDING):
            found.append((path, _reason_of(path)))
    return found


def retry(here: Here, path: Path) -> Path:
    """Put a quarantined file back where it came from, under its own name, to be tried again.

    Raises:
        Conflict: another file lies there now.
        BadConfig: it is no file, or nothing tells where it came from, or that is no place of this host.
    """
    reason = _reason_of(path)
    if not place.is_regular(path):
        raise BadConfig(f"{path} is no regular file, so it cannot be tried again: remove it")
    if not reason.source:
        raise BadConfig(f"nothing beside {path} tells where it came from: move it to its place by hand")
    back = Path(reason.source)
    if back.name != reason.file or ".." in back.parts or not any(back.is_relative_to(root) for root in here.roots.values()):
        shown = names.printable(reason.source)
        raise BadConfig(f"the reason of {path} says that it came from {shown}, which is no place of this host: move it by hand")
    in_hand.forgive(here, reason.step, back)
    copy.move(here, path, back, checksum.sha256(path))
    path.with_name(path.name + REASON_ENDING).unlink(missing_ok=True)
    return back


def drop(path: Path) -> None:
    """Delete a quarantined file and its reason: a person has decided."""
    path.unlink()
    path.with_name(path.name + REASON_ENDING).unlink(missing_ok=True)


def _reason_of(path: Path) -> Reason:
    beside = path.with_name(path.name + REASON_ENDING)
    try:
        if not place.is_regular(beside) or beside.stat().st_size > _REASON_BYTES_MAX:
            raise ValueError("nothing that a step has written")
        found = Reason(**json.loads(beside.read_bytes()))
        if not all(isinstance(getattr(found, key), dict if key == "details" else str) for key in Reason.__slots__):
            raise TypeError("a field is no text")
        return found
    except (OSError, ValueError, TypeError, RecursionError):
        return Reason(path.name, "", "unknown", "no reason lies beside it", "", "", "", {})
