"""What is to become of a file of a holding directory, by its name, its hash and the mirror's lists. Decides, and does nothing.

A file is known by its exact hash and name: other content of the same name is another file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from dataflow.lib import checksum
from dataflow.lib.mirror_settings import Mirror
from dataflow.lib.names import Name
from dataflow.mirror import layout
from dataflow.mirror.hash_lists import FailedList, HashList

_DATA = ".rawacf.bz2"


class Fate(StrEnum):
    """What is to become of a file."""

    STRANGER = "stranger"
    """No name that is published: left where it lies."""
    WAITING = "waiting"
    """Too young."""
    BLOCKED = "blocked"
    EXCLUDED = "excluded"
    FAILED = "failed"
    """The same content failed a check before."""
    BAD = "bad"
    """It fails a check now."""
    NEW = "new"
    """The mirror has nothing of that name."""
    PUBLISHED = "published"
    """Listed with its hash, and there with its size."""
    GONE = "gone"
    """Listed with its hash, and not there."""
    DAMAGED = "damaged"
    """Listed with its hash, and there with another size."""
    UNLISTED = "unlisted"
    """There under its name, and not listed. Whether with the same content has to be seen there."""
    CONFLICT = "conflict"
    """The mirror has other content of that name."""
    UNCLEAR = "unclear"
    """What the mirror has of that name cannot be told."""


@dataclass(frozen=True, slots=True)
class Local:
    """A file of a holding directory as it was when it was hashed; ``stamp`` is that of ``checksum.stamp``."""

    path: Path
    name: Name
    sha1: str
    size_bytes: int
    stamp: tuple[int, int, int]

    @property
    def month(self) -> str:
        """The month of its name."""
        return layout.month_of(self.name)

    @property
    def line(self) -> bytes:
        """Its line in the list of its month."""
        return f"{self.sha1}  {self.name.text}".encode("ascii")

    def is_still_the_same(self) -> bool:
        """Whether the file that lies there now is the one that was hashed."""
        return checksum.is_still(self.path, self.stamp)


def by_name(name: Name | None, settings: Mirror, blocked: frozenset[str], now: datetime) -> Fate | None:
    """What the name alone decides; None if the content has to be looked at."""
    if name is None or not layout.is_published(name) or name.radar not in (*settings.radars, *settings.excluded):
        return Fate.STRANGER
    if now < name.time + timedelta(days=settings.waiting_days):
        return Fate.WAITING
    if name.text in blocked:
        return Fate.BLOCKED
    return Fate.EXCLUDED if name.radar in settings.excluded else None


def by_lists(file: Local, listed: HashList, there: Mapping[str, int | None], failed: FailedList) -> Fate:
    """What the lists decide. ``there``: sizes in bytes of what lies in the folder of its month, as ``Store.names`` tells."""
    text = file.name.text
    if (file.sha1, text) in failed.reasons:
        return Fate.FAILED
    if text in listed.unclear or (text in there and there[text] is None):
        return Fate.UNCLEAR
    if text not in listed.hashes:
        return Fate.UNLISTED if text in there else Fate.NEW
    if listed.hashes[text] != file.sha1:
        return Fate.CONFLICT
    if text not in there:
        return Fate.GONE
    return Fate.PUBLISHED if there[text] == file.size_bytes else Fate.DAMAGED


def strays(month: str, listed: HashList, there: Mapping[str, int | None]) -> tuple[list[str], list[str]]:
    """What contradicts the list of a month: names on the mirror that are not listed, and names listed that are not there."""
    known = listed.hashes.keys() | listed.unclear
    unlisted = [name for name in there if name.startswith(month) and name.endswith(_DATA) and name not in known]
    return sorted(unlisted), sorted(name for name in listed.hashes if name not in there)
