"""Work on open requests: sources are asked in the order of the configuration, each for what is still missing then.

No source is asked for more than its ``files_per_hour``. A file that comes must have a hash that a mirror lists and the one that
our own records have; where neither is known it must be a good file. Only then it gets its name in the holding directory, from
which ``dataflow mirror publish`` takes it.

What is fetched lies in ``work/backfill`` meanwhile. Killed anywhere: a file that lies there is taken up by the next run, and
a request whose file has come to a holding directory, or onto the mirror, is done, whoever brought it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, copy, names, place, summary
from dataflow.lib.errors import BadConfig, BadFile, DataflowError, HostDown, TryLater
from dataflow.lib.mirror_settings import Backfill, Source
from dataflow.mirror import allowance, checks, gaps, requests, sources
from dataflow.mirror.download import BATCH_BYTES, download, name_of
from dataflow.mirror.gaps import Presence
from dataflow.mirror.job import Job
from dataflow.mirror.requests import Book, Request
from dataflow.mirror.sources import Answer
from dataflow.mirror.stores import Store

Wanted = dict[str, tuple[str, str]]
"""What is to be fetched: path in the store and expected SHA-1, by name."""


@dataclass(slots=True)
class _Tries(Job):
    """A job for downloads: what comes of one try is an action; the outcome of a file is told once, after the last source."""

    def file(self, name: str, outcome: str, action: str, **fields: Any) -> None:
        """Record a try."""
        self.log.write("action", file=name, action=action, outcome=outcome, **fields)


def _tries_of(job: Job) -> Job:
    return _Tries(**{each.name: getattr(job, each.name) for each in fields(job)})


@dataclass(slots=True)
class _Run:
    """One run over the requests.

    ``missing``: open requests whose file has not come yet, oldest first. ``why``: what was found about each. ``postponed``: those
    of which some source could not be asked, so that nobody can say that all tries are used up.
    """

    job: Job
    settings: Backfill
    book: Book
    fetched: Path
    missing: dict[str, Request] = field(default_factory=dict)
    why: dict[str, list[str]] = field(default_factory=dict)
    postponed: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    down: dict[str, str] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)

    def put(self, request: Request, **changes: Any) -> None:
        """Change a request."""
        changed = replace(request, **changes)
        self.book.requests[request.name] = changed
        if changed.state == requests.OPEN:
            self.missing[request.name] = changed
        else:
            self.missing.pop(request.name, None)


def settings_of(job: Job) -> Backfill:
    """What is configured of backfill.

    Raises:
        BadConfig: there is nobody to ask.
    """
    if job.settings.backfill is None or not job.settings.backfill.sources:
        raise BadConfig(f"{job.config.source}: mirror.backfill names no source, so there is nobody to ask")
    return job.settings.backfill


def fulfil(job: Job, book: Book, presence: Presence) -> None:
    """Work on the open requests of ``book``; each has one record in the end, and what became of it is durable.

    Raises:
        HostDown: every source that was to be asked is down.
    """
    fetched = job.folder("work") / "backfill"
    place.make_folder(job.here, fetched)
    run = _Run(job, settings_of(job), book, fetched)
    for line in book.odd:
        job.problem(f"a line of the requests is none, and was left as it is: {names.printable(line[:200])}")
    _settle(run, presence)
    _take_up(run)
    for source in run.settings.sources:
        if run.missing and not job.should_stop():
            _try(run, source)
            requests.save(job.here, book)
    _close(run)
    _tell(run)
    job.log.sync()
    requests.save(job.here, book)
    if run.missing and run.asked and run.asked == run.down.keys():
        raise HostDown("; ".join(run.down.values()))


def _settle(run: _Run, presence: Presence) -> None:
    """End the requests whose file has come, must not come any more, or has been waited for too long; forget old ends."""
    days, wanted = run.settings.give_up_after_days, run.book.open()
    too_old = summary.timestamp(run.job.clock() - timedelta(days=days))
    found = gaps.between({text: request.expected for text, request in wanted.items()}, presence)
    for text, request in list(run.book.requests.items()):
        if request.state == requests.DONE and request.changed < too_old:
            del run.book.requests[text]
    for text, request in wanted.items():
        if text in found.refused:
            _end(run, request, requests.CANCELLED, found.refused[text])
        elif text in found.unclear:
            run.job.file(text, "kept", "asked", reason="a line of our own list that names it cannot be read")
        elif text not in found.missing:
            _end(run, request, requests.DONE, "it is there by now")
        elif request.made < too_old:
            _give_up(run, request, f"nobody has brought it within {days:g} days: {request.error or 'no source has it'}")
        else:
            run.put(request, sha1s=found.missing[text].sha1s)


def _take_up(run: _Run) -> None:
    """Hand over what an earlier run has fetched; what nobody waits for any more goes."""
    for path in place.scan(run.fetched):
        if path.name in run.missing:
            _hand_over(run, path, "an earlier run")  # refused, it is asked for again
        elif names.parse(path.name) is not None:
            place.release(path)


def _try(run: _Run, source: Source) -> None:
    """Ask one source for what is missing, and fetch what it has."""
    job, left = run.job, [text for text, r in run.missing.items() if r.tries.get(source.name, 0) < run.settings.tries]
    wanted = [text for text in left if not (run.fetched / text).exists()]
    if not wanted:
        return
    run.asked.add(source.name)
    try:
        place.require_room(job.here, [run.fetched, job.holding(run.settings.holding)], BATCH_BYTES)
        store, answer = sources.ask(job, source, [name_of(text) for text in wanted])
    except HostDown as error:
        _is_down(run, source.name, wanted, error)
    except (TryLater, BadConfig) as error:  # what is wrong with one source stops no other
        job.problem(f"{source.name} is not asked for anything: {error}")
        for text in wanted:
            _postpone(run, source.name, text, str(error))
    else:
        for text, reason in answer.unknown.items():
            _postpone(run, source.name, text, reason)
        if now := _usable(run, source, store, answer):
            _fetch(run, source, store, now)


def _usable(run: _Run, source: Source, store: Store, answer: Answer) -> Wanted:
    """What is offered and may be what is missing, oldest requests first, as far as the source may be asked at this time.

    A source without lists does not know a hash: it is the one that is expected, or is read there if none or several are.
    """
    usable: Wanted = {}
    left = allowance.left(run.job.here, source.name, source.files_per_hour, run.job.clock())
    for text, request in list(run.missing.items()):
        if (offer := answer.offers.get(text)) is None:
            continue
        if len(usable) == left:
            _postpone(run, source.name, text, f"no more than {source.files_per_hour} files in an hour")
            continue
        known = list(request.sha1s)
        sha1 = offer.sha1 or (known[0] if len(known) == 1 else store.sha1([offer.path])[offer.path])
        if isinstance(sha1, DataflowError):
            _postpone(run, source.name, text, str(sha1))
        elif known and sha1 not in known:
            _count(run, source.name, text, f"its SHA-1 there is {sha1}, which is none of those that are asked for")
        else:
            usable[text] = (offer.path, sha1)
    return usable


def _fetch(run: _Run, source: Source, store: Store, now: Wanted) -> None:
    """Fetch files, and hand over each that is as it should be."""
    job = run.job
    allowance.spend(job.here, source.name, len(now), job.clock())
    try:
        failures = download(_tries_of(job), store, now, run.fetched, action="fetched", source=source.name)
    except (HostDown, BadConfig) as error:
        failures = {}
        _is_down(run, source.name, [text for text in now if not (run.fetched / text).exists()], error)
    for text in now:
        if (run.fetched / text).exists():
            if (fault := _hand_over(run, run.fetched / text, source.name)) is not None:
                _count(run, source.name, text, fault)
        elif text in failures and not job.should_stop():
            _count(run, source.name, text, failures[text])
        else:
            _postpone(run, source.name, text, failures.get(text, "cut off"))


def _hand_over(run: _Run, path: Path, source: str) -> str | None:
    """Give a fetched file its name in the holding directory.

    One that is not what is missing goes, since its source still has it; what is wrong with that is returned.
    """
    job, request = run.job, run.missing[path.name]
    try:
        sha1, sha256 = checksum.hashes_on_disk(path, ("sha1", "sha256"))
        _check(path, request, sha1, sha256)
        final, size_bytes = job.holding(run.settings.holding) / path.name, path.stat().st_size
        copy.move(job.here, path, final, sha256)
    except BadFile as error:
        place.release(path)
        return str(error)
    except (TryLater, OSError) as error:
        _postpone(run, source, path.name, f"it has come, and cannot be handed over: {error}")
    else:
        job.file(
            path.name, "done", "backfilled", source=source, destination=str(final), bytes=size_bytes, sha1=sha1, sha256=sha256
        )
        run.put(request, state=requests.DONE, changed=summary.timestamp(job.clock()), error=None)
    return None


def _check(path: Path, request: Request, sha1: str, sha256: str) -> None:
    """Refuse a file that is not what is missing.

    Raises:
        BadFile: it has another hash; or none is known, and it is not a good file of its name.
    """
    if request.sha1s and sha1 not in request.sha1s:
        raise BadFile("hash mismatch", f"its SHA-1 is {sha1}, which is none of those that are asked for")
    if request.sha256 is not None and sha256 != request.sha256:
        raise BadFile("hash mismatch", f"its SHA-256 is {sha256}, our own records say that {request.sha256} was handed out")
    if not request.sha1s and request.sha256 is None:
        checks.check(path, name_of(path.name), None)


def _count(run: _Run, source: str, text: str, reason: str) -> None:
    """A source had a file and it was no use: one try of it is used up."""
    tries = run.missing[text].tries
    run.why.setdefault(text, []).append(f"{source}: {reason}")
    run.put(run.missing[text], tries={**tries, source: tries.get(source, 0) + 1})


def _postpone(run: _Run, source: str, text: str, reason: str) -> None:
    """Nothing can be said against what a source may have: it is asked again."""
    run.why.setdefault(text, []).append(f"{source}: {reason}")
    run.postponed.add(text)


def _is_down(run: _Run, source: str, texts: Iterable[str], error: DataflowError) -> None:
    run.down[source] = f"{source} cannot be reached: {error}"
    for text in texts:
        _postpone(run, source, text, str(error))


def _close(run: _Run) -> None:
    """Account for what is still missing; what every source that has it was tried for in vain is given up."""
    is_cut_off = run.job.should_stop()
    for text, request in list(run.missing.items()):
        reason = "; ".join(run.why.get(text, ["asked to stop" if is_cut_off else "no source has it"]))
        tries = [request.tries[source.name] for source in run.settings.sources if source.name in request.tries]
        if tries and min(tries) >= run.settings.tries and text not in run.postponed and not is_cut_off:
            _give_up(run, request, f"each source that has it was tried {run.settings.tries} times: {reason}")
        else:
            run.job.file(text, "kept", "asked", reason=reason)
            run.put(request, error=reason)


def _give_up(run: _Run, request: Request, reason: str) -> None:
    _end(run, request, requests.GIVEN_UP, reason)
    run.given_up.append(request.name)


def _tell(run: _Run) -> None:
    """What a person has to know, in a line each: thousands may be given up on one day."""
    if run.given_up:
        first = run.book.requests[run.given_up[0]]
        again = f"dataflow backfill requests retry, or retry {first.name}"
        run.job.alert(
            f"requests that are given up: {len(run.given_up)}, the first is {first.name}: {first.error}. To ask again: {again}",
            files=run.given_up[:1000],
        )
    if run.missing:
        first = next(iter(run.missing.values()))
        run.job.say(
            f"still missing: {len(run.missing)}, the first is {first.name}: {first.error}. All: dataflow backfill requests list"
        )


def _end(run: _Run, request: Request, state: str, reason: str) -> None:
    run.job.file(request.name, "skipped", state, reason=reason)
    run.put(request, state=state, changed=summary.timestamp(run.job.clock()), error=reason)
