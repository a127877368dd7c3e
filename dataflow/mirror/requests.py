"""What was found missing and is asked for: durable requests, worked off by ``backfill``.

``<state>/requests.jsonl`` holds one request a line and is only ever replaced whole, so a kill leaves it as it was or as it
should be. A line that is no request (edited by hand, or of a later version) is left as it stands and told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from dataflow.lib import names, place, summary
from dataflow.lib.config import Here
from dataflow.lib.errors import BadConfig
from dataflow.mirror import layout
from dataflow.mirror.gaps import Expected
from dataflow.mirror.job import Job

OPEN, DONE, GIVEN_UP, CANCELLED = "open", "done", "given up", "cancelled"
STATES = (OPEN, DONE, GIVEN_UP, CANCELLED)
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Request:
    """One file that is asked for.

    ``sha1s``: the hashes that it may have, each with the mirrors that list it. ``sha256``: what our own records say. ``tries``:
    how often each source was tried in vain. ``error``: why the last try failed. Times as the summary log writes them.
    """

    name: str
    made: str
    changed: str
    state: str = OPEN
    sha1s: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sha256: str | None = None
    tries: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def expected(self) -> Expected:
        """How the file is known."""
        return Expected(self.sha1s, self.sha256)


@dataclass(slots=True)
class Book:
    """All requests by name, oldest first, and the lines that are none."""

    requests: dict[str, Request] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)

    def open(self) -> dict[str, Request]:
        """Those that are to be worked on."""
        return {name: request for name, request in self.requests.items() if request.state == OPEN}


def load(here: Here) -> Book:
    """The requests of this machine."""
    book = Book()
    try:
        lines = _file(here).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return book
    for text in filter(None, lines):
        if (request := _parsed(text)) is not None:
            book.requests[request.name] = request
        else:
            book.odd.append(text)
    return book


def save(here: Here, book: Book) -> None:
    """Replace the requests of this machine, durably."""
    place.make_own_folder(here.state)
    lines = [*(json.dumps(asdict(request)) for request in book.requests.values()), *book.odd]
    place.write_whole(_file(here), "".join(f"{text}\n" for text in lines).encode("utf-8", "surrogateescape"))


def ask(book: Book, missing: Mapping[str, Expected], now: datetime) -> list[str]:
    """Make requests for what is missing, and tell open ones what is known by now; returns the names of those that are new.

    A file that was brought and is missing again is asked for anew. What a person cancelled, or was given up, stays so until
    ``retry``.
    """
    time, new = summary.timestamp(now), []
    for name, what in sorted(missing.items()):
        known = book.requests.get(name)
        if known is None or known.state == DONE:
            book.requests.pop(name, None)  # its place among the oldest is gone too
            book.requests[name] = Request(name, time, time, OPEN, dict(what.sha1s), what.sha256)
            new.append(name)
        elif known.state == OPEN:
            book.requests[name] = replace(known, sha1s=dict(what.sha1s), sha256=what.sha256 or known.sha256)
    return new


def cancel(job: Job, wanted: Sequence[str]) -> None:
    """End open and given up requests; later runs do not ask for these files again.

    Raises:
        BadConfig: no name is given, or there is no such request.
    """
    if not wanted:
        raise BadConfig("which? dataflow backfill requests cancel NAME..., as dataflow backfill requests list shows them")
    book = load(job.here)
    _require(book, wanted)
    _put(job, book, wanted, (OPEN, GIVEN_UP), CANCELLED)


def retry(job: Job, wanted: Sequence[str]) -> None:
    """Open cancelled and given up requests again, with all their tries; without names all that were given up.

    Raises:
        BadConfig: there is no such request.
    """
    book = load(job.here)
    _require(book, wanted)
    chosen = wanted or [name for name, request in book.requests.items() if request.state == GIVEN_UP]
    _put(job, book, chosen, (GIVEN_UP, CANCELLED), OPEN)


def line(request: Request) -> str:
    """A request as a person reads it."""
    known = [f"{sha1[:10]} ({', '.join(who)})" for sha1, who in request.sha1s.items()] or ["no mirror lists it"]
    tried = ", ".join(f"{source} {count}x" for source, count in request.tries.items()) or "no try failed"
    error = f": {request.error}" if request.error else ""
    return f"{request.state:9}  {request.name:33}  {request.made[:10]}  {' or '.join(known)}; {tried}{error}"


def _put(job: Job, book: Book, wanted: Sequence[str], before: Sequence[str], state: str) -> None:
    """Give requests another state; one that is not in a state ``before`` stays as it is, which is told."""
    time = summary.timestamp(job.clock())
    for name in dict.fromkeys(wanted):
        request = book.requests[name]
        if request.state not in before:
            job.file(name, "skipped", state, reason=f"the request is {request.state}")
            job.say(f"{name}: the request is {request.state}, and stays so")
            continue
        made = time if state == OPEN else request.made  # its age counts anew, or it would be given up at once
        book.requests[name] = replace(request, state=state, made=made, changed=time, tries={}, error=None)
        job.file(name, "done", state)
        job.say(f"{name}: {state}")
    job.log.sync()
    save(job.here, book)


def _require(book: Book, wanted: Sequence[str]) -> None:
    if unknown := [names.printable(name) for name in wanted if name not in book.requests]:
        raise BadConfig(f"there is no request for {', '.join(unknown)}: see dataflow backfill requests list")


def _file(here: Here) -> Path:
    return here.state / "requests.jsonl"


def _parsed(text: str) -> Request | None:
    """The request of a line, or None: names that are no grammar's go no further than this."""
    try:
        request = Request(**json.loads(text))
        sha1s = {sha1: tuple(map(str, who)) for sha1, who in request.sha1s.items()}
        request = replace(request, sha1s=sha1s, tries={str(source): int(n) for source, n in request.tries.items()})
        made, changed = summary.moment(request.made), summary.moment(request.changed)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    is_known = request.state in STATES and all(map(_SHA1.fullmatch, request.sha1s)) and made <= changed
    is_typed = isinstance(request.sha256, str | None) and isinstance(request.error, str | None)
    return request if is_known and is_typed and layout.is_published(names.parse(request.name)) else None
