"""Where a mirror's files go that are not published: ``<set_aside>/<reason>/<YYYYMMDD>/``, with a ``.reason.json`` beside each.

Of two files of one name both are kept: the second has its hash in its name. The reason is durable before the file has its
name there, and the record of it before the file loses its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, copy, names, place
from dataflow.lib.quarantine import REASON_ENDING, Reason
from dataflow.lib.summary import timestamp
from dataflow.mirror.job import Job


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A file that is not published. ``message`` is for a person; ``details`` go into the reason and the record."""

    path: Path
    message: str
    details: dict[str, Any] = field(default_factory=dict)


def set_aside(job: Job, path: Path, reason: str, message: str, **details: Any) -> Path:
    """Move one file out of the way, record it as ``quarantined`` and tell a person; where it lies now.

    Raises:
        OSError, TryLater, BadFile: the folder cannot take it; the file stays where it is.
    """
    return set_all_aside(job, reason, [Unwanted(path, message, details)])[0]


def set_all_aside(job: Job, reason: str, files: Sequence[Unwanted]) -> list[Path]:
    """The same for many of one reason, of which a person is told once.

    What was changed or replaced since it was read is another file by now, and stays.

    Raises:
        OSError, TryLater, BadFile: the folder cannot take one of them; that one and those after it stay where they are.
    """
    done: list[Path] = []
    stamps = []
    try:
        for file in files:
            stamps.append(checksum.stamp(file.path))
            done.append(_admit(job, file, reason))
            job.file(
                file.path.name, "quarantined", "set aside", source=str(file.path.parent), destination=str(done[-1]), kind=reason,
                reason=file.message, details=file.details or None,
            )  # fmt: skip
    finally:
        if done:
            job.alert(_told(reason, files[: len(done)]), files=[file.path.name for file in files[: len(done)]][:1000])
            job.log.sync()
            for file, stamp in zip(files[: len(done)], stamps, strict=False):
                if _is_still(file.path, stamp):
                    place.release(file.path)
    return done


def _is_still(path: Path, stamp: tuple[int, int, int]) -> bool:
    try:
        return checksum.stamp(path) == stamp
    except FileNotFoundError:
        return False


def _admit(job: Job, file: Unwanted, reason: str) -> Path:
    """Give a file its name in the folder of its reason."""
    here, now = job.here, job.clock()
    place.check_root(here, here.root_of("set_aside"))
    folder = job.folder("set_aside") / reason / f"{now:%Y%m%d}"
    place.make_folder(here, folder)
    digest = checksum.sha256(file.path)
    final = folder / file.path.name
    if os.path.lexists(final) and not (place.is_regular(final) and checksum.sha256(final) == digest):
        final = folder / f"{file.path.name}.{digest[:12]}"
    why = Reason(file.path.name, str(file.path), reason, file.message, job.name, timestamp(now), digest, file.details)
    place.write_whole(final.with_name(final.name + REASON_ENDING), json.dumps(asdict(why), indent=1).encode() + b"\n")
    copy.add_name(here, file.path, final, digest)
    checksum.sync_folder(folder)
    place.check_root(here, here.root_of("set_aside"))  # unmounted meanwhile, the file lies below the mount point
    return final


def _told(reason: str, files: Sequence[Unwanted]) -> str:
    first = names.printable(files[0].path.name)
    if len(files) == 1:
        return f"{first} was set aside ({reason}): {files[0].message}"
    return f"{len(files)} files were set aside ({reason}), the first is {first}: {files[0].message}"
