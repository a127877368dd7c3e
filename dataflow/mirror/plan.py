"""What publishing is about to do with the files of one month. It looks at the mirror and reads the files; it changes nothing.

``dataflow mirror publish --dry-run`` ends with such plans, and without it they are carried out (``transaction``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dataflow.lib import names
from dataflow.lib.errors import BadFile, DataflowError, TryLater
from dataflow.mirror import bring, checks, classify, hash_lists, layout
from dataflow.mirror.classify import Fate, Local
from dataflow.mirror.hash_lists import FailedList, HashList
from dataflow.mirror.job import Job
from dataflow.mirror.journal import Journal
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Store, raise_if_down


class Stopped(TryLater):
    """The run was asked to stop before it changed anything with these files."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A file and what is to become of it. ``why`` is for a person.

    ``kind``: what is wrong with a bad one. ``there_sha1``: what the mirror has of that name, in a conflict.
    """

    file: Local
    fate: Fate
    why: str = ""
    kind: str = ""
    there_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class MonthPlan:
    """A month of the mirror as it was found, and its files. ``list_sha1`` is None where it has no list yet.

    ``unlisted``: names on the mirror that are not listed; ``gone``: names that are listed and not there. The holding directory
    has neither.
    """

    month: str
    listed: HashList
    list_sha1: str | None
    there: Mapping[str, int | None]
    files: tuple[Planned, ...]
    unlisted: tuple[str, ...]
    gone: tuple[str, ...]

    def of(self, *fates: Fate) -> list[Planned]:
        """The files of some fates."""
        return [planned for planned in self.files if planned.fate in fates]


@dataclass(frozen=True, slots=True)
class Planner:
    """What every plan of a run needs. ``changes``: whether it will be carried out, so that a killed replacement may be ended."""

    job: Job
    store: Store
    lists: MirrorLists
    journal: Journal
    failed: FailedList
    changes: bool

    def plan(self, month: str, files: Sequence[Local], in_holding: Collection[str]) -> MonthPlan:
        """Look at a month and decide. ``in_holding``: all names that lie in the holding directory.

        Raises:
            TryLater: the month cannot be read, or is not as we left it; nothing is to be done with it.
            HostDown: the mirror cannot be reached.
        """
        listed, list_sha1 = self._list(month)
        there = self.lists.names(layout.data_folder(self.job.settings.tree, month))
        unlisted, gone = classify.strays(month, listed, there)
        return MonthPlan(
            month=month,
            listed=listed,
            list_sha1=list_sha1,
            there=there,
            files=tuple(self._decided(files, listed, there)),
            unlisted=tuple(name for name in unlisted if name not in in_holding),
            gone=tuple(name for name in gone if name not in in_holding),
        )

    def _list(self, month: str) -> tuple[HashList, str | None]:
        try:
            content = self.lists.settled_month_bytes(month) if self.changes else self.lists.month_bytes(month)
        except Absent as error:
            if lines := self.journal.lines(month):
                raise TryLater(
                    f"the list of {month}, in which we wrote {lines} lines, is not there: is the mirror whole? Put the list back"
                ) from error
            if self.lists.is_in_master(month):
                raise TryLater(
                    f"the master list names a list of {month}, and there is none: is the mirror whole? Put the list back; "
                    "only if there never was one, take its line from the master list"
                ) from error
            return HashList({}), None
        return hash_lists.parse_month(content, month), hashlib.sha1(content).hexdigest()

    def _decided(self, files: Sequence[Local], listed: HashList, there: Mapping[str, int | None]) -> Iterator[Planned]:
        fates = {file: classify.by_lists(file, listed, there, self.failed) for file in files}
        paths = {file: layout.data_path(self.job.settings.tree, file.name) for file in files}
        unlisted = [paths[file] for file, fate in fates.items() if fate is Fate.UNLISTED]
        hashes = self.store.sha1(unlisted) if unlisted else {}
        raise_if_down(hashes.values())
        for file, fate in fates.items():
            match fate:
                case Fate.UNLISTED:
                    compared = _compared(file, paths[file], hashes[paths[file]])
                    yield self._checked(file, Fate.UNLISTED) if compared.fate is Fate.UNLISTED else compared
                case Fate.NEW:
                    yield self._checked(file, Fate.NEW)
                case Fate.CONFLICT:
                    there_sha1 = listed.hashes[file.name.text]
                    yield Planned(file, fate, str(bring.other_content(paths[file], there_sha1, file)), there_sha1=there_sha1)
                case Fate.FAILED:
                    yield Planned(file, fate, f"the same content failed a check before: {self._reason(file)}")
                case Fate.UNCLEAR:
                    yield Planned(file, fate, "what the mirror or its list has of that name is odd: a person has to mend it")
                case _:
                    yield Planned(file, fate)

    def _reason(self, file: Local) -> str:
        return names.printable(self.failed.reasons[file.sha1, file.name.text])

    def _checked(self, file: Local, fate: Fate) -> Planned:
        """A file that no list names yet, wherever it lies: it has its fate only if it passes the checks."""
        if self.job.should_stop():
            raise Stopped("asked to stop")
        try:
            checks.check(file.path, file.name, file.sha1)
        except BadFile as error:
            return Planned(file, Fate.BAD, str(error), error.kind)
        except TryLater as error:
            return Planned(file, Fate.UNCLEAR, str(error))
        return Planned(file, fate)


def _compared(file: Local, path: str, found: str | DataflowError) -> Planned:
    """A file whose name the mirror has and does not list."""
    if isinstance(found, DataflowError):
        return Planned(file, Fate.UNCLEAR, str(found))
    if found != file.sha1:
        why = f"{bring.other_content(path, found, file)}; and it is not listed there"
        return Planned(file, Fate.CONFLICT, why, there_sha1=found)
    return Planned(file, Fate.UNLISTED)
