"""The journals of deletions: ``<state>/deletions/<transaction>.json``, one for each, kept for good so that it can be undone.

A transaction is named by the moment when it was begun, UTC: ``20261120T120000Z``, and ``-2`` behind it for a second one of that
moment.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from dataflow.lib import names, place
from dataflow.lib.errors import BadConfig, TryLater
from dataflow.lib.names import Name
from dataflow.mirror import layout
from dataflow.mirror.job import Job

_STAMP = re.compile(r"\d{8}T\d{6}Z(-\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Doomed:
    """A file of a transaction as it was found. ``size_bytes`` and ``sha1`` are None where none was there.

    ``listed``: its SHA-1 in the list of its month. ``odd_lines``: instead, the lines of a name that is listed with several.
    """

    name: str
    listed: str | None
    odd_lines: tuple[str, ...]
    size_bytes: int | None
    sha1: str | None = None

    @property
    def parsed(self) -> Name:
        """Its name, which was parsed before it got into a journal."""
        name = names.parse(self.name)
        assert name is not None
        return name

    @property
    def month(self) -> str:
        """The month in whose list it was."""
        return layout.month_of(self.parsed)

    @property
    def is_listed(self) -> bool:
        """Whether a line of that list gave it a hash, be it one of several."""
        return self.listed is not None or bool(self.odd_lines)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A deletion. ``stage``: the one that was begun last, or ``deleted`` or ``undone`` when there is nothing left to do."""

    stamp: str
    stage: str
    files: tuple[Doomed, ...]


def new_stamp(job: Job) -> str:
    """The name of a transaction that begins now."""
    stamp = first = f"{job.clock():%Y%m%dT%H%M%SZ}"
    number = 1
    while _journal(job, stamp).exists():
        number += 1
        stamp = f"{first}-{number}"
    return stamp


def write(job: Job, transaction: Transaction) -> None:
    """Make the state of a transaction durable."""
    path = _journal(job, transaction.stamp)
    place.make_own_folder(path.parent)
    place.write_whole(path, json.dumps(asdict(transaction), indent=1).encode() + b"\n")


def every(job: Job) -> list[Transaction]:
    """The transactions of this machine, oldest first.

    Raises:
        TryLater: a journal is none that this program wrote.
    """
    return [_read(path) for path in sorted((job.here.state / "deletions").glob("*.json")) if _STAMP.fullmatch(path.stem)]


def known(job: Job, stamp: str) -> Transaction:
    """A transaction by its name.

    Raises:
        BadConfig: there is none of that name.
    """
    there = every(job)
    for transaction in there:
        if transaction.stamp == stamp:
            return transaction
    last = ", ".join(f"{each.stamp} ({each.stage}, {len(each.files)} files)" for each in there[-10:])
    raise BadConfig(f"there is no transaction {names.printable(stamp)!r}; the last ones are: {last or 'none'}")


def _journal(job: Job, stamp: str) -> Path:
    return job.here.state / "deletions" / f"{stamp}.json"


def _read(path: Path) -> Transaction:
    try:
        found = json.loads(path.read_bytes())
        files = tuple(Doomed(**{**each, "odd_lines": tuple(each["odd_lines"])}) for each in found["files"])
        if found["stamp"] != path.stem or any(names.parse(file.name) is None for file in files):
            raise ValueError("another name")
        return Transaction(found["stamp"], found["stage"], files)
    except (ValueError, KeyError, TypeError) as error:
        raise TryLater(f"{path} is no journal of a deletion ({error}): what it was about has to be found by a person") from error
