"""Where a mirror's files go that are not published: ``<set_aside>/<reason>/<YYYYMMDD>/``, with a ``.reason.json`` beside each.

Of two files of one name both are kept: the second has its hash in its name. The reason is durable before the file has its
name there, and the record of it before the file loses its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, names, place, quarantine
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
                if checksum.is_still(file.path, stamp):
                    place.release(file.path)
    return done


def _admit(job: Job, file: Unwanted, reason: str) -> Path:
    """Give a file its name in the folder of its reason."""
    now = job.clock()
    below = Path(reason, f"{now:%Y%m%d}")
    return quarantine.admit_to(job.here, "set_aside", below, file.path, reason, file.message, job.name, now, file.details)


def _told(reason: str, files: Sequence[Unwanted]) -> str:
    first = names.printable(files[0].path.name)
    if len(files) == 1:
        return f"{first} was set aside ({reason}): {files[0].message}"
    return f"{len(files)} files were set aside ({reason}), the first is {first}: {files[0].message}"
