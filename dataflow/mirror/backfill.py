"""``dataflow backfill``: what should be on our mirror and is not is asked for, fetched, verified and handed to publishing.

``backfill`` looks for the gaps of a radar and makes requests of them; ``work_off`` works on every open request, as a timer does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

from dataflow.lib import names
from dataflow.lib.errors import BadConfig
from dataflow.mirror import evidence, fulfil, gaps, layout, requests
from dataflow.mirror.gaps import Gaps, Presence
from dataflow.mirror.job import Job, told_if_incomplete
from dataflow.mirror.requests import Book


def asked(job: Job, arguments: argparse.Namespace) -> None:
    """What the command line asks for: ``words`` after the command, or ``radar``, ``first`` and ``last``, or nothing.

    Raises:
        BadConfig: it asks for nothing that there is.
    """
    words, days = list(arguments.words), (arguments.radar, arguments.first, arguments.last)
    if words == ["requests", "list"]:
        book = requests.load(job.here)
        for request in book.requests.values():
            job.show(requests.line(request), **asdict(request))
        if not book.requests:
            job.say("there are no requests: dataflow backfill --radar R --from DAY --to DAY makes them of what is missing")
    elif words[:2] == ["requests", "cancel"]:
        requests.cancel(job, words[2:])
    elif words[:2] == ["requests", "retry"]:
        requests.retry(job, words[2:])
    elif words:
        raise BadConfig("write dataflow backfill requests list, or cancel NAME..., or retry [NAME...]")
    elif None not in days:
        backfill(job, *days)
    elif any(days):
        raise BadConfig("the gaps of which radar, from which day to which? Give --radar, --from and --to, or none of them")
    else:
        work_off(job)


def backfill(job: Job, radar: str, first: date, last: date) -> None:
    """Ask for what is missing of a radar between two days, both included, and work on all open requests.

    Raises:
        BadConfig: no such radar, no such span of days, or nothing is configured to ask.
        HostDown: our mirror, or every source, cannot be reached.
        TryLater: a list of ours cannot be read.
    """
    with told_if_incomplete(job, "backfill", "backfill's sources"):
        fulfil.settings_of(job)
        _check_span(job, radar, first, last)
        book, presence = _ask(job, radar, first, last)
        fulfil.fulfil(job, book, presence)


def work_off(job: Job) -> None:
    """Work on all open requests.

    Raises:
        BadConfig: nothing is configured to ask.
        HostDown: our mirror, or every source, cannot be reached.
        TryLater: a list of ours cannot be read.
    """
    with told_if_incomplete(job, "backfill", "backfill's sources"):
        fulfil.settings_of(job)
        book = requests.load(job.here)
        presence = evidence.ours(job, _months_asked_for(book))[1] if book.open() else Presence((), (), ())
        fulfil.fulfil(job, book, presence)


def _ask(job: Job, radar: str, first: date, last: date) -> tuple[Book, Presence]:
    """Make requests of the gaps of a radar; all requests, and what is there of the months of the open ones."""
    months, book = _months(first, last), requests.load(job.here)
    hashes, presence = evidence.ours(job, sorted({*months, *_months_asked_for(book)}))
    listed = {
        who: {text: sha1 for text, sha1 in found.items() if _is_of(text, radar, first, last)}
        for who, found in {gaps.OURS: hashes, **evidence.theirs(job, months)}.items()
    }
    expected = gaps.expected(listed, evidence.recorded(job.config, radar, first, last))
    found = gaps.between(expected, presence)
    new = requests.ask(book, found.missing, job.clock())
    requests.save(job.here, book)
    job.show(f"{radar}, {first} to {last}: known files {len(expected)}, missing {len(found.missing)}, newly asked for {len(new)}")
    _tell(job, radar, found, book)
    return book, presence


def _tell(job: Job, radar: str, found: Gaps, book: Book) -> None:
    """What a person has to know of the gaps beside their number."""
    for text, reason in found.refused.items():
        job.say(f"{text} is not there, and not asked for: {reason}")
    if found.unclear:
        job.problem(f"lines of our own lists that name these cannot be read: {', '.join(sorted(found.unclear))}")
    if settled := [text for text in found.missing if book.requests[text].state != requests.OPEN]:
        job.say(f"{len(settled)} of them were given up or cancelled before: dataflow backfill requests retry NAME... asks again")
    differing = [text for text, what in found.missing.items() if len(what.sha1s) > 1]
    message = "{count} missing files are listed with different hashes by different mirrors, any of them is taken: {names}"
    job.alert_changes(f"differing {radar}", differing, message)


def _check_span(job: Job, radar: str, first: date, last: date) -> None:
    if radar not in job.settings.radars or radar in job.settings.excluded:
        raise BadConfig(f"{radar!r} is none of mirror.radars, or one of mirror.excluded: its files are not published")
    if not first <= last <= job.clock().date():
        raise BadConfig(f"from {first} to {last} is no span of days that are over, or today")


def _months(first: date, last: date) -> list[str]:
    """The months of a span of days, since there are data."""
    numbers = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    return [month for n in numbers if (month := f"{n // 12:04}{n % 12 + 1:02}") >= layout.FIRST_MONTH]


def _months_asked_for(book: Book) -> Sequence[str]:
    return sorted({text[:6] for text in book.open()})


def _is_of(text: str, radar: str, first: date, last: date) -> bool:
    name = names.parse(text)
    return name is not None and name.radar == radar and first <= name.time.date() <= last and layout.is_published(name)
