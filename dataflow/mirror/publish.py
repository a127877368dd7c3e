"""``dataflow mirror publish``: checks what lies in a holding directory and puts it on the mirror, with its lists.

Names decide first, then hashes against the mirror's lists (``classify``); the good ones go to the mirror in batches, each a
transaction (``transaction``), and what may not be published is set aside with the reason beside it (``aside``). One odd name,
one month that cannot be read, one file that cannot be uploaded stops nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from dataflow.lib import checksum, names, place
from dataflow.lib.errors import BadConfig, DataflowError, TryLater
from dataflow.lib.names import Name
from dataflow.lib.step import trouble
from dataflow.mirror import classify, layout
from dataflow.mirror.accounts import Accounts
from dataflow.mirror.aside import Unwanted
from dataflow.mirror.classify import Fate, Local
from dataflow.mirror.job import Job, told_if_incomplete
from dataflow.mirror.journal import Journal
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.plan import MonthPlan, Planner, Stopped
from dataflow.mirror.stores import Absent, Store
from dataflow.mirror.transaction import Transaction

BATCH_FILES = 500
"""How many files are published at a time: so much work is looked at again when a run is killed."""

FUSE_FILES = 3
"""So many files that fail their checks while none passes: a broken library makes every file look bad."""

_WHY = {
    Fate.BLOCKED: "its name is in the blocklist of the mirror",
    Fate.EXCLUDED: "files of this radar are not published (mirror.excluded)",
}
_WOULD = {
    Fate.NEW: "would be published",
    Fate.PUBLISHED: "is published and would be released",
    Fate.GONE: "is listed and not on the mirror: would be uploaded again",
    Fate.DAMAGED: "is listed and damaged on the mirror: would be uploaded again",
    Fate.UNLISTED: "is on the mirror and not listed: would be listed",
    Fate.BAD: "would be refused and listed as failed",
    Fate.FAILED: "would be set aside",
    Fate.CONFLICT: "would be set aside",
    Fate.BLOCKED: "would be set aside",
    Fate.EXCLUDED: "would be set aside",
    Fate.UNCLEAR: "would be kept",
    Fate.WAITING: "waits",
    Fate.STRANGER: "is left",
}


def publish(job: Job, holding: str, month: str | None, radar: str | None, dry_run: bool) -> None:
    """Publish what lies in a holding directory; ``month`` and ``radar``: only their files. ``dry_run``: tell, change nothing.

    Raises:
        BadConfig: there is no such holding directory, month or radar.
        TryLater, HostDown: the mirror, or a list that all depends on, cannot be read; every file is accounted for as kept.
    """
    if month is not None and not layout.is_month(month):
        raise BadConfig(f"{month} is no month: six digits, like 202611")
    if radar is not None and radar not in (*job.settings.radars, *job.settings.excluded):
        raise BadConfig(f"there is no radar {radar!r} in mirror.radars; there are: {', '.join(job.settings.radars)}")
    whose = f"our mirror from {holding}"  # from an empty one nobody asks it, which would say that it is up again
    with nullcontext() if dry_run else told_if_incomplete(job, f"the publishing of {holding}", whose):
        _publish(job, job.holding(holding), month, radar, dry_run)


def _publish(job: Job, folder: Path, month: str | None, radar: str | None, dry_run: bool) -> None:
    accounts = Accounts(job, folder, {path.name: path for path in _found(folder, month, radar)})
    journal = Journal(job.here.state / f"publish.{_key(job, folder)}.journal", job.clock)
    unfinished = [each for each in journal.unfinished() if month in (None, each)]
    if not accounts.left and not unfinished:
        return
    try:
        publication = _opened(job, accounts, journal, dry_run)
        wanted = publication.by_name(tell_strangers=month is None and radar is None and not dry_run)
        publication.work(wanted, unfinished)
    except (DataflowError, OSError) as error:
        accounts.keep_all(list(accounts.left), trouble(error))
        raise
    assert not accounts.left, f"not accounted for: {', '.join(accounts.left)}"


def _key(job: Job, folder: Path) -> str:
    return next(key for key, text in job.settings.holdings.items() if job.here.path(text) == folder)


def _found(folder: Path, month: str | None, radar: str | None) -> Iterator[Path]:
    """What a run is about: everything, or what is of that month and radar."""
    for path in place.scan(folder):
        name = names.parse(path.name)
        if (month is None and radar is None) or (
            name is not None and month in (None, layout.month_of(name)) and radar in (None, name.radar)
        ):
            yield path


@dataclass(slots=True)
class _Publication:
    """One run. ``in_holding``: all names that lay there when it began."""

    job: Job
    store: Store
    lists: MirrorLists
    planner: Planner
    accounts: Accounts
    blocked: frozenset[str]
    in_holding: frozenset[str]
    has_passed: bool = False

    def by_name(self, tell_strangers: bool) -> list[tuple[Path, Name]]:
        """Settle what names alone decide; the files whose content has to be looked at, in the order of their time."""
        fates: dict[Fate, list[str]] = {}
        wanted = []
        for text, path in self.accounts.left.items():
            name = names.parse(text) if place.is_regular(path) else None
            fate = classify.by_name(name, self.job.settings, self.blocked, self.job.clock())
            if fate is None and name is not None:
                wanted.append((path, name))
            else:
                fates.setdefault(fate or Fate.STRANGER, []).append(text)
        self._leave(fates.get(Fate.STRANGER, []), fates.get(Fate.WAITING, []), tell_strangers)
        for fate, why in _WHY.items():
            self._refuse(fate, why, fates.get(fate, []))
        return sorted(wanted, key=lambda found: found[1].text)

    def work(self, wanted: Sequence[tuple[Path, Name]], unfinished: Sequence[str]) -> None:
        """Publish in batches; the months that a killed run left unfinished are looked at with the first."""
        for start in range(0, len(wanted), BATCH_FILES) or [0]:
            files = list(self._hashed(wanted[start : start + BATCH_FILES]))
            if self.job.should_stop():
                raise Stopped("asked to stop")
            plans = self._fused(list(self._planned(files, () if start else unfinished)))
            if self.planner.changes:
                self._transaction(plans).carry_out()
            else:
                self._tell(plans)
            if self.job.progress is not None:
                self.job.progress("publish", min(start + BATCH_FILES, len(wanted)), len(wanted))

    def _fused(self, plans: list[MonthPlan]) -> list[MonthPlan]:
        """Condemn nothing in a run in which several files fail and none passes: the fault may be ours."""
        self.has_passed = self.has_passed or any(plan.of(Fate.NEW, Fate.UNLISTED) for plan in plans)
        bad = [planned for plan in plans for planned in plan.of(Fate.BAD)]
        blown = len(bad) >= FUSE_FILES and not self.has_passed
        why = (
            f"{len(bad)} files failed their checks and none passed, so the fault may be ours and none was set aside. If it is "
            "not, the next run with a good file among them sets them aside; or move them away by hand"
        )
        if self.planner.changes and (blown or bad):
            self.job.alert_while("fuse", blown, f"{why}. The first is {bad[0].file.name.text}: {bad[0].why}")
        return [_spared(plan, why) for plan in plans] if blown else plans

    def _transaction(self, plans: Sequence[MonthPlan]) -> Transaction:
        return Transaction(self.job, self.store, self.lists, self.planner.journal, self.accounts, self.blocked, plans)

    def _leave(self, strangers: Sequence[str], waiting: Sequence[str], tell: bool) -> None:
        shown = [names.printable(text) for text in strangers]
        if tell:
            self.job.alert_changes(
                f"strangers in {self.accounts.holding}", shown,
                f"{{count}} files in {self.accounts.holding} are left there: no regular files, or not named as a rawacf.bz2 of "
                "one of mirror.radars: {names}",
            )  # fmt: skip
        for text in strangers:
            self._pass_over(text, Fate.STRANGER, "left", "not a file that is published: its name, its radar or what it is")
        for text in waiting:
            why = f"published {self.job.settings.waiting_days:g} days after the time in its name"
            self._pass_over(text, Fate.WAITING, "waits", why)

    def _pass_over(self, text: str, fate: Fate, action: str, why: str) -> None:
        if self.planner.changes:
            self.accounts.skip(text, action, why)
        else:
            self._would(text, fate, why)

    def _refuse(self, fate: Fate, why: str, texts: Sequence[str]) -> None:
        if self.planner.changes:
            self.accounts.set_aside(fate, [Unwanted(self.accounts.left[text], why) for text in texts])
        else:
            for text in texts:
                self._would(text, fate, why)

    def _hashed(self, wanted: Sequence[tuple[Path, Name]]) -> Iterator[Local]:
        for path, name in wanted:
            if self.job.should_stop():
                return
            try:
                before = checksum.stamp(path)
                (sha1,) = checksum.hashes_on_disk(path, ["sha1"])
                if not checksum.is_still(path, before):
                    raise TryLater(f"{path.name} changed while it was read; it is tried again when it lies still")
            except (TryLater, OSError) as error:
                self.accounts.keep(name.text, trouble(error))
                continue
            yield Local(path, name, sha1, before[1], before)

    def _planned(self, files: Sequence[Local], unfinished: Sequence[str]) -> Iterator[MonthPlan]:
        """A plan for each month; the files of one that cannot be looked at are kept, and all others go on."""
        by_month = {month: list(group) for month, group in groupby(files, key=lambda file: file.month)}
        for month in sorted(by_month.keys() | set(unfinished)):
            try:
                plan = self.planner.plan(month, by_month.get(month, []), self.in_holding)
            except Stopped:
                raise
            except TryLater as error:
                self.job.problem(f"{month} is left out: {error}")
                self._tell_state_of(month, f"{month} cannot be published: {error}")
                self.accounts.keep_all((file.name.text for file in by_month.get(month, [])), f"{month} is left out: {error}")
            else:
                self._tell_state_of(month, "")
                yield plan

    def _tell_state_of(self, month: str, trouble_told: str) -> None:
        if self.planner.changes:
            self.job.alert_while(f"month {month}", bool(trouble_told), trouble_told)

    def _tell(self, plans: Sequence[MonthPlan]) -> None:
        for plan in plans:
            for planned in plan.files:
                self._would(planned.file.name.text, planned.fate, planned.why)
            for name in plan.unlisted:
                self.job.show(f"{name} is on the mirror and not listed, and not in the holding directory")
            for name in plan.gone:
                self.job.show(f"{name} is listed and not on the mirror, and not in the holding directory")

    def _would(self, text: str, fate: Fate, why: str) -> None:
        shown = names.printable(text)
        self.job.show(f"{shown} {_WOULD[fate]}" + (f": {why}" if why else ""), file=shown, fate=str(fate))
        self.accounts.skip(text, _WOULD[fate], why or None)


def _opened(job: Job, accounts: Accounts, journal: Journal, dry_run: bool) -> _Publication:
    """Read what all depends on.

    Raises:
        TryLater, HostDown: that cannot be read.
    """
    store = job.open(job.settings.store)
    lists = MirrorLists(store, job.settings.tree, job.folder("work"))
    if not dry_run:
        journal.shorten()
    _require_known(lists, journal)
    planner = Planner(job, store, lists, journal, lists.failed(), changes=not dry_run)
    in_holding = frozenset(path.name for path in place.scan(accounts.holding))
    return _Publication(job, store, lists, planner, accounts, lists.blocklist(), in_holding)


def _spared(plan: MonthPlan, why: str) -> MonthPlan:
    """The same with its bad files kept."""
    spared = (
        replace(each, fate=Fate.UNCLEAR, why=f"{each.why}; {why}") if each.fate is Fate.BAD else each for each in plan.files
    )
    return replace(plan, files=tuple(spared))


def _require_known(lists: MirrorLists, journal: Journal) -> None:
    """Make sure that a mirror without a master list is a new one, and not one whose disk is not mounted."""
    try:
        lists.master()
    except Absent as error:
        if missing := sorted(set(journal.months()) - set(lists.months())):
            raise TryLater(
                f"the mirror has no master list and no folder of {missing[0]}, which we have published: is its disk mounted? "
                "Nothing was done"
            ) from error
