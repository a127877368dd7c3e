"""What contradicts the list of a month that publishing touches: files on the mirror that it does not name, names without a file.

The first are fetched, checked as every file is, and listed. For the second there is nothing here to mend them with, or they
would lie in the holding directory: a person is told.

Which ones failed a check is remembered in ``<state>/strays.json``, each path with its size in bytes, and they are not fetched
again while they have that size: or a hundred bad ones would be fetched by every run, and the others never.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataflow.lib import names, note, place
from dataflow.lib.errors import BadFile, TryLater
from dataflow.mirror import checks, classify, layout, mirror_lists
from dataflow.mirror.classify import Fate
from dataflow.mirror.job import Job
from dataflow.mirror.plan import MonthPlan
from dataflow.mirror.stores import Store

MENDED_AT_ONCE = 100
"""How many files of a month one run fetches and checks; the next goes on."""


def mend(job: Job, store: Store, plan: MonthPlan, blocked: frozenset[str]) -> dict[str, str]:
    """The SHA-1 by name of files that the month lacks in its list, as far as they may be listed and pass the checks.

    Raises:
        HostDown: the mirror cannot be reached.
    """
    bad = note.load(_bad_file(job), int)
    wanted = [
        name
        for name in plan.unlisted
        if _may_be_listed(job, name, blocked) and bad.get(_path(job, plan, name), -1) != plan.there[name]
    ][:MENDED_AT_ONCE]
    lines: dict[str, str] = {}
    try:
        for name, sha1 in _checked(job, store, plan, wanted).items() if wanted else ():
            reason, path = "it was on the mirror and not listed; fetched and checked", _path(job, plan, name)
            job.log.write("action", file=name, action="listed", sha1=sha1, destination=path, reason=reason)
            lines[name] = sha1
    except TryLater as error:
        job.say(f"{len(wanted)} files of {plan.month} that are not listed could not be fetched: {error}")
    return lines


def tell(job: Job, plan: MonthPlan, mended: Mapping[str, str]) -> None:
    """Tell a person of what is left, once."""
    unlisted = [names.printable(name) for name in plan.unlisted if name not in mended]
    job.alert_changes(
        f"not listed: {plan.month}", unlisted,
        f"{{count}} files of {plan.month} are on the mirror and not in its list, and could not be listed: {{names}}",
    )  # fmt: skip
    job.alert_changes(
        f"not there: {plan.month}", plan.gone,
        f"{{count}} files that the list of {plan.month} names are not on the mirror, nor in the holding directory: {{names}}",
    )  # fmt: skip


def _may_be_listed(job: Job, name: str, blocked: frozenset[str]) -> bool:
    return classify.by_name(names.parse(name), job.settings, blocked, job.clock()) in (None, Fate.WAITING)


def _path(job: Job, plan: MonthPlan, name: str) -> str:
    return f"{layout.data_folder(job.settings.tree, plan.month)}/{name}"


def _checked(job: Job, store: Store, plan: MonthPlan, wanted: list[str]) -> dict[str, str]:
    work = job.folder("work")
    place.require_room(job.here, [work], sum(plan.there[name] or 0 for name in wanted))
    good: dict[str, str] = {}
    bad: dict[str, int] = {}
    with mirror_lists.scratch(work) as folder:
        paths = {name: _path(job, plan, name) for name in wanted}
        failures = store.fetch({path: folder / name for name, path in paths.items()})
        for name, path in paths.items():
            parsed = names.parse(name)
            assert parsed is not None
            try:
                if path in failures:
                    raise failures[path]
                good[name] = checks.check(folder / name, parsed)
            except (BadFile, TryLater) as error:
                job.say(f"{path} is not listed, and stays so: {error}")
                if isinstance(error, BadFile) and (size_bytes := plan.there[name]) is not None:
                    bad[path] = size_bytes
    if bad:
        note.save(_bad_file(job), {**note.load(_bad_file(job), int), **bad})
    return good


def _bad_file(job: Job) -> Path:
    return job.here.state / "strays.json"
