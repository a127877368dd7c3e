"""``dataflow mirror compare PARTNER``: our lists against a partner's, month by month.

    Reads:    the lists of both mirrors, our blocklist and our list of what failed a check
    Writes:   reports/<partner>/, see ``agreement``
    Tells:    what is new since the report before; the whole stands in the report

Nothing is changed on either mirror. A list that cannot be read is a problem of its month alone, of which the report goes on to
say what was found last; and a line of a list that is not of the format is refused alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dataflow.lib import place, summary
from dataflow.lib.crew import Crew, crew
from dataflow.lib.errors import DataflowError, HostDown, TryLater
from dataflow.lib.mirror_settings import Partner
from dataflow.mirror import agreement, report_page
from dataflow.mirror.agreement import REFUSED_MAX, SHOWN_MAX, Detail, Entry, Report
from dataflow.mirror.differences import Kind, action, differences_of_month, read_both
from dataflow.mirror.hash_lists import HashList
from dataflow.mirror.job import Job, told_if_incomplete
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent

MONTHS_AT_ONCE = 24
"""How many lists are fetched together: enough for a long line, few enough to hold."""

READERS = 2
"""Processes that read lists, which takes longer than to fetch them."""

Content = bytes | DataflowError
"""A list as it was fetched, or why it was not."""
_Missing = tuple[DataflowError | None, DataflowError | None]
"""Why there is not our list and not theirs."""


def compare(job: Job, partner: str, months: Sequence[str] | None) -> None:
    """Compare some months, or all that either mirror has, and write the report of all.

    Raises:
        BadConfig: there is no such partner.
        HostDown: a mirror cannot be reached; what was compared before is in the report.
        TryLater: our blocklist or our list of what failed cannot be read: neither is ever taken for empty.
    """
    settings = job.partner(partner)
    with told_if_incomplete(job, f"the comparison with {partner}", partner):
        _compare(job, partner, settings, months)


def _compare(job: Job, partner: str, settings: Partner, months: Sequence[str] | None) -> None:
    place.check_root(job.here, job.here.root_of("reports"))
    folder = job.folder("reports") / partner
    place.make_folder(job.here, folder)
    ours = MirrorLists(job.open(job.settings.store), job.settings.tree, job.folder("work"))
    theirs = MirrorLists(job.open(settings.store), settings.tree, job.folder("work"))
    run = _Comparison(job, partner, folder, ours.blocklist(), ours.failed().reasons)
    wanted = {*ours.months(), *theirs.months(), *run.report.months} if months is None else set(months)
    try:
        run.work(ours, theirs, sorted(wanted))
    except HostDown:
        run.finish()
        raise
    run.finish()


@dataclass(frozen=True, slots=True)
class _Reading:
    """Lists that were fetched and are being read: by month what was missing, and the results of those that can be compared."""

    missing: dict[str, _Missing]
    results: Iterator[tuple[int, HashList, HashList] | TryLater]


class _Comparison:
    """One run. Its time and run identifier are those of its beginning, also for what is compared after midnight."""

    def __init__(self, job: Job, partner: str, folder: Path, blocked: Container[str], failed: Container[tuple[str, str]]) -> None:
        self._job, self._folder, self._blocked, self._failed = job, folder, blocked, failed
        self._now = job.clock()
        title = job.settings.partners[partner].name
        self.report = Report(partner, title, summary.timestamp(self._now), job.log.run, agreement.load_months(folder))

    def work(self, ours: MirrorLists, theirs: MirrorLists, months: Sequence[str]) -> None:
        """Compare the months, a few at a time, until all are done or the run is asked to stop.

        While lists are fetched, those that were fetched before are read.
        """
        with _readers(len(months)) as readers:
            reading = _Reading({}, iter(()))
            for first in range(0, len(months), MONTHS_AT_ONCE):
                if self._job.should_stop():
                    self._job.problem(f"asked to stop: from {months[first]} on the report says what was found last")
                    break
                batch = months[first : first + MONTHS_AT_ONCE]
                begun = _begin(readers, ours.months_bytes(batch), theirs.months_bytes(batch))
                self._enter_all(reading)
                reading = begun
                if self._job.progress is not None:
                    self._job.progress("months", first + len(batch), len(months))
            self._enter_all(reading)

    def finish(self) -> None:
        """Tell what is new, and write the report of all months."""
        details = agreement.load_details(self._folder, self.report)
        page = self._folder / "index.html"
        for subject, items, advice in _subjects(self.report, details):
            told = f"{{count}} more: {{names}}. To do: {advice}. The report: {_without_fields(page)}"
            text = f"{self.report.partner}, {subject}: {told}"
            self.report.new[subject] = self._job.alert_changes(f"{self.report.partner}: {subject}", items, text)
        agreement.write_report(self._folder, self.report, report_page.page(self.report, details))
        total = self.report.total
        self._job.show(
            f"{agreement.digest(self.report)}; the report: {page}",
            agreed=total.agreed, **{str(kind): count for kind, count in total.counts.items()}, report=str(page),
        )  # fmt: skip
        if unread := {month: entry.problem for month, entry in sorted(self.report.months.items()) if entry.problem}:
            month, problem = next(iter(unread.items()))
            self._job.problem(f"{agreement.counted(len(unread), 'month')} could not be compared; the first is {month}: {problem}")

    def _enter_all(self, reading: _Reading) -> None:
        for month, missing in reading.missing.items():
            match _hindrance(missing) or next(reading.results):
                case HostDown() as down:
                    raise down
                case Absent():
                    self._enter_neither(month)
                case DataflowError() as problem:
                    self._enter_problem(month, str(problem))
                case agreed, ours, theirs:
                    self._enter(month, missing, agreed, ours, theirs)

    def _enter_neither(self, month: str) -> None:
        """A list that was there once and is on no mirror now is worth a look; a folder without a list is none."""
        if month in self.report.months:
            self._enter_problem(month, f"there was a list of {month}, and now neither mirror has one")
        else:
            self._job.file(f"{month}.hashes", "skipped", "compared", reason="neither mirror has a list of it")

    def _enter_problem(self, month: str, problem: str) -> None:
        """What was found last stays in the report, with the reason why there is nothing newer."""
        self.report.months[month] = replace(self.report.months.get(month, Entry()), problem=problem)
        self._job.file(f"{month}.hashes", "kept", "compared", reason=problem)

    def _enter(self, month: str, missing: _Missing, agreed: int, ours: HashList, theirs: HashList) -> None:
        """Enter what two lists come to. Where a side has no list at all, the names say no more than the month does."""
        no_list = "here" if missing[0] else "there" if missing[1] else ""
        settings = self._job.settings
        found = differences_of_month(
            ours, theirs, self._blocked, self._failed, self._now, settings.recent_days, settings.excluded
        )
        counts = {kind.value: count for kind in Kind if (count := sum(each.kind is kind for each in found.differences))}
        entry = Entry(
            self.report.time, self.report.run, agreed, counts, found.excluded, len(found.unclear),
            len(ours.refused), len(theirs.refused), no_list,
        )  # fmt: skip
        self.report.months[month] = entry
        refused = ours.refused[:REFUSED_MAX], theirs.refused[:REFUSED_MAX]
        detail = Detail(() if no_list else found.differences, found.unclear, *refused)
        agreement.write_month(self._job.here, self._folder, self.report, month, detail)
        numbers = {kind.replace(" ", "_"): count for kind, count in counts.items()}
        self._job.file(
            f"{month}.hashes", "done", "compared", agreed=entry.agreed, **numbers, excluded=entry.excluded, unclear=entry.unclear,
            refused=entry.refused_here + entry.refused_there, reason=agreement.remark(entry) or None,
        )  # fmt: skip


@contextmanager
def _readers(months: int) -> Iterator[Crew]:
    """Who reads lists: processes of their own if there are many lists, because starting one takes as long as reading a few."""
    if months > MONTHS_AT_ONCE:
        with crew(READERS) as readers:
            yield readers
    else:
        yield lambda jobs: (function(*arguments) for function, arguments in jobs)


def _begin(readers: Crew, here: Mapping[str, Content], there: Mapping[str, Content]) -> _Reading:
    """Have lists of the same months read."""
    jobs = []
    missing: dict[str, _Missing] = {}
    for month in sorted(here):
        lists = [each if isinstance(each, bytes) else None for each in (here[month], there[month])]
        errors = [each if isinstance(each, DataflowError) else None for each in (here[month], there[month])]
        missing[month] = (errors[0], errors[1])
        if _hindrance(missing[month]) is None:
            jobs.append((_read, (month, *lists)))
    return _Reading(missing, readers(jobs))


def _read(month: str, here: bytes | None, there: bytes | None) -> tuple[int, HashList, HashList] | TryLater:
    """As `read_both`; an error is returned, because one that is raised would end the work of all readers."""
    try:
        return read_both(month, here, there)
    except TryLater as error:
        return error


def _hindrance(missing: _Missing) -> DataflowError | None:
    """Why two lists cannot be compared: one could not be read, or there are none. One alone can be compared with nothing."""
    errors = [error for error in missing if error is not None]
    unread = [error for error in errors if not isinstance(error, Absent)]
    return unread[0] if unread else errors[0] if len(errors) == 2 else None


def _subjects(report: Report, details: dict[str, Detail]) -> Iterator[tuple[str, list[str], str]]:
    """What a person is told of when it is new: each subject, all of its items, and what is to be done."""
    months = sorted(report.months.items())
    for kind in Kind:
        if kind is not Kind.TOO_NEW:
            items = [item for month, entry in months for item in _items(kind, month, entry, details)]
            yield kind.value, items, action(kind, report.partner, "YYYYMM")
    refused = [
        f"{month}: {each.text}" for month, detail in details.items() for each in (*detail.refused_here, *detail.refused_there)
    ]
    yield "refused lines", refused, "They are not used: whoever keeps the list should mend it"
    absent = [f"{month}: no list {entry.no_list}" for month, entry in months if entry.no_list]
    advice = f"Here: dataflow mirror sync {report.partner} --month YYYYMM; there: tell {report.partner}"
    yield "months without a list", absent, advice


def _items(kind: Kind, month: str, entry: Entry, details: dict[str, Detail]) -> Iterator[str]:
    if entry.counts.get(kind, 0) > SHOWN_MAX and not entry.no_list:
        yield f"{month}: more than {SHOWN_MAX} files"
    elif month in details:
        yield from (each.name for each in details[month].differences if each.kind is kind)


def _without_fields(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")
