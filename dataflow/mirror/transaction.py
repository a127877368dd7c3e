"""Publishing some files, as one transaction that may be killed at any instruction and is done again by the next run.

The order is what keeps it safe: files to hidden parts, compared; their final names, and sizes looked at; the list of each month
replaced and read back; then the master list; and only then is the copy in the holding directory let go of. Whatever a killed run
has done of it is seen by the next one on the mirror: a file under its name that is not listed is compared and listed, one that
is listed is only let go of. The journal tells of months of which nothing is left in the holding directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dataflow.lib import names
from dataflow.lib.errors import BadFile, DataflowError, TryLater
from dataflow.mirror import bring, layout, strays
from dataflow.mirror.accounts import Accounts
from dataflow.mirror.aside import Unwanted
from dataflow.mirror.classify import Fate, Local
from dataflow.mirror.hash_lists import FailedList, HashList
from dataflow.mirror.job import Job
from dataflow.mirror.journal import DONE, Journal
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.plan import MonthPlan, Planned
from dataflow.mirror.stores import Store, raise_if_down
from dataflow.mirror.stores.paths import parent_of

_ACTIONS = {
    Fate.NEW: "published",
    Fate.GONE: "restored",
    Fate.DAMAGED: "restored",
    Fate.UNLISTED: "listed",
    Fate.PUBLISHED: "released",
}
_BROUGHT = (Fate.NEW, Fate.GONE, Fate.DAMAGED)


@dataclass(frozen=True, slots=True)
class Listed:
    """The list of a month as it should be: its SHA-1 (None: there is none, and none is needed) and its lines."""

    sha1: str | None
    lines: int


@dataclass(slots=True)
class Transaction:
    """One batch. ``listed``: the months whose lists are as they should be."""

    job: Job
    store: Store
    lists: MirrorLists
    journal: Journal
    accounts: Accounts
    blocked: frozenset[str]
    plans: Sequence[MonthPlan]
    listed: dict[str, Listed] = field(default_factory=dict)

    def carry_out(self) -> None:
        """Do what the plans say; every file of theirs is accounted for.

        Raises:
            HostDown: the mirror cannot be reached any more.
            TryLater: the master list cannot be replaced; what is published already is found by the next run.
        """
        for plan in self.plans:
            self._clear_parts(plan)
        self._refuse()
        self._condemn([planned for plan in self.plans for planned in plan.of(Fate.BAD)])
        on_mirror = self._place()
        for plan in self.plans:
            self._list(plan, on_mirror)
        self._update_master()
        self._release(on_mirror)

    def _path(self, file: Local) -> str:
        return layout.data_path(self.job.settings.tree, file.name)

    def _clear_parts(self, plan: MonthPlan) -> None:
        """Remove what a killed upload left; nobody else writes there meanwhile, and one that stays does no harm."""
        folder = layout.data_folder(self.job.settings.tree, plan.month)
        for name in plan.there:
            if name.startswith(".") and name.endswith(".part") and names.parse(name[1:].removesuffix(".part")) is not None:
                with suppress(TryLater):
                    self.store.remove(f"{folder}/{name}")

    def _refuse(self) -> None:
        """What is not published, for what the mirror has or knows of it."""
        for planned in (each for plan in self.plans for each in plan.of(Fate.UNCLEAR)):
            self.accounts.keep(planned.file.name.text, planned.why)
        for fate in (Fate.CONFLICT, Fate.FAILED):
            self.accounts.set_aside(fate, [_unwanted(planned) for plan in self.plans for planned in plan.of(fate)])

    def _condemn(self, bad: Sequence[Planned]) -> None:
        """Bad files go to the mirror's store of failed files, then on the list of those, and only then aside."""
        if not bad:
            return
        failures = self._bring_all({self._failed_path(each.file): each.file for each in bad})
        taken = [file for file, error in failures.items() if isinstance(error, BadFile)]  # by another bad file of that name
        failures = {file: error for file, error in failures.items() if file not in taken}
        failures |= self._bring_all({f"{self._failed_path(file)}.{file.sha1}": file for file in taken})
        for file, error in failures.items():
            self.accounts.keep(file.name.text, f"it failed a check, and could not be stored among the failed files: {error}")
        stored = [each for each in bad if each.file not in failures]
        try:
            known = self.lists.failed()
            reasons = {(each.file.sha1, each.file.name.text): each.kind for each in stored}
            self.lists.replace_failed(FailedList({**reasons, **known.reasons}, known.kept))
        except TryLater as error:
            reason = f"the list of failed files was not written: {error}"
            self.job.problem(reason)
            self.accounts.keep_all((each.file.name.text for each in stored), f"it failed a check, and {reason}")
        else:
            self.accounts.set_aside(Fate.FAILED, [_unwanted(each) for each in stored])

    def _failed_path(self, file: Local) -> str:
        return f"{self.job.settings.failed}/{file.name.radar}/{file.name.text}"

    def _place(self) -> dict[Local, str]:
        """Bring files to the mirror; all that lie there under their names now, each with the action of its record."""
        for plan in self.plans:
            if begun := {each.file.name.text: each.file.sha1 for each in plan.of(*_BROUGHT, Fate.UNLISTED)}:
                self.journal.write(plan.month, "begun", files=begun)
        wanted = {each.file: each for plan in self.plans for each in plan.of(*_BROUGHT)}
        failures = self._move_damaged(file for file, each in wanted.items() if each.fate is Fate.DAMAGED)
        failures |= self._bring_all({self._path(file): file for file in wanted if file not in failures})
        self._account_for_failures(failures)
        for month in sorted({file.month for file in wanted if file not in failures}):
            self.journal.write(month, "placed")
        there = [each for plan in self.plans for each in plan.of(*_ACTIONS) if each.file not in failures]
        return {each.file: _ACTIONS[each.fate] for each in there}

    def _account_for_failures(self, failures: Mapping[Local, DataflowError]) -> None:
        conflicts = {file: error for file, error in failures.items() if isinstance(error, BadFile)}
        self.accounts.set_aside(
            Fate.CONFLICT, [Unwanted(file.path, str(error), {"sha1": file.sha1}) for file, error in conflicts.items()]
        )
        for file, error in failures.items():
            if file not in conflicts:
                self.accounts.keep(file.name.text, str(error))

    def _bring_all(self, files: dict[str, Local]) -> dict[Local, DataflowError]:
        """``bring``, with the failures by file.

        Raises:
            HostDown: the mirror cannot be reached any more.
        """
        failures = bring.bring(self.store, files)
        raise_if_down(failures.values())
        return {files[path]: error for path, error in failures.items()}

    def _move_damaged(self, files: Iterable[Local]) -> dict[Local, DataflowError]:
        """A file of another size than the listed one has makes room for that, and goes among the failed files."""
        failures: dict[Local, DataflowError] = {}
        for file in files:
            path, target = self._path(file), f"{self._failed_path(file)}.damaged-{self.job.clock():%Y%m%dT%H%M%SZ}"
            try:
                self.store.make_folder(parent_of(target))
                self.store.rename(path, target)
                self.job.alert(f"{path} on the mirror is damaged: its size is not that of the listed file; it is {target} now")
            except TryLater as error:
                failures[file] = error
        return failures

    def _list(self, plan: MonthPlan, on_mirror: Mapping[Local, str]) -> None:
        """Name what is there in the list of its month; if that fails its files stay, and the month is left out of the rest."""
        files = [each.file for each in plan.files if each.file in on_mirror]
        new = {file.name.text: file.sha1 for file in files if file.name.text not in plan.listed.hashes}
        mended = strays.mend(self.job, self.store, plan, self.blocked)
        merged = HashList({**plan.listed.hashes, **mended, **new}, plan.listed.kept)
        if len(merged.hashes) == len(plan.listed.hashes):
            self.listed[plan.month] = Listed(plan.list_sha1, len(merged.hashes))
        else:
            try:
                content = self.lists.replace_month(plan.month, merged)
                _require_lines(plan.month, content, files)
            except TryLater as error:
                reason = f"the list of {plan.month} was not written: {error}"
                self.job.problem(reason)
                self.accounts.keep_all((file.name.text for file in files), reason)
                return
            self.listed[plan.month] = Listed(hashlib.sha1(content).hexdigest(), len(merged.hashes))
            self.journal.write(plan.month, "listed", lines=len(merged.hashes), sha1=self.listed[plan.month].sha1)
        strays.tell(self.job, plan, mended)

    def _update_master(self) -> None:
        """Give the master list the hash of the list of each month."""
        listed = {month: listed.sha1 for month, listed in self.listed.items() if listed.sha1 is not None}
        if listed:
            master = self.lists.whole_master()
            for month, sha1 in listed.items():
                master = master.with_month(month, sha1)
            self.lists.replace_master(master)
        for month, of_month in self.listed.items():
            self.journal.write(month, DONE, lines=of_month.lines)

    def _release(self, on_mirror: Mapping[Local, str]) -> None:
        self.accounts.release({file: action for file, action in on_mirror.items() if file.month in self.listed})


def _unwanted(planned: Planned) -> Unwanted:
    file = planned.file
    details = {"sha1": file.sha1, "there_sha1": planned.there_sha1, "kind": planned.kind or None}
    return Unwanted(file.path, planned.why, {key: value for key, value in details.items() if value is not None})


def _require_lines(month: str, content: bytes, files: Iterable[Local]) -> None:
    """Confirm that a list, as it was read back, names every file that is about to be let go of."""
    lines = set(content.split(b"\n"))
    if missing := [file.name.text for file in files if file.line not in lines]:
        raise TryLater(f"the list of {month} does not name {missing[0]} after it was written")
