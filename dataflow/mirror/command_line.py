"""``dataflow mirror ...`` and ``dataflow backfill``: the arguments of each verb, and the job that it means.

A verb's module is imported when the verb is asked for: paramiko and the Globus SDK take longer to import than most verbs to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflow.lib.context import utc_now
from dataflow.mirror import layout

if TYPE_CHECKING:
    from dataflow.mirror.job import Job

ONE_WRITER = "mirror"
"""The lock of the jobs that change the mirror: one at a time."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a command line asks for: the name under which it is recorded, its lock, and the work."""

    name: str
    lock_name: str
    work: Callable[[Job], None]


def add_verbs(parser: argparse.ArgumentParser, common: Callable[[argparse.ArgumentParser], None]) -> None:
    """The verbs of ``dataflow mirror``. ``common`` adds the arguments that every command takes."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, task: Callable[[argparse.Namespace], Task], text: str, example: str) -> argparse.ArgumentParser:
        description, epilog = f"{text[0].upper()}{text[1:]}.", f"Example: dataflow mirror {example}"
        one: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=description, epilog=epilog)
        one.set_defaults(task=task)
        common(one)
        return one

    text = "check what lies in a holding directory and put it on the mirror, with its lists"
    one = verb("publish", _publish, text, "publish main --dry-run")
    one.description = (
        f"{one.description} A file is let go of only after the mirror holds it and its month's list, read back, names it. What "
        "is not published is set aside with the reason beside it. Killed at any moment and run again, it goes on."
    )
    one.add_argument("holding", metavar="HOLDING", help="a holding directory, by its name in mirror.holdings or by its path")
    one.add_argument("--month", type=_month, metavar="YYYYMM", help="only files of this month")
    one.add_argument("--radar", help="only files of this radar, three letters")
    one.add_argument("--dry-run", action="store_true", help="say what would become of each file, and change nothing")

    text = "fetch what a partner lists and we do not into his holding directory, verified"
    one = verb("sync", _sync, text, "sync bas --since 202601")
    one.description = (
        f"{one.description} What comes is published by `dataflow mirror publish` of that directory. A file that both list with "
        "different hashes is told and not fetched; neither mirror is changed."
    )
    one.add_argument("partner", metavar="PARTNER", help="a partner, by its name in mirror.partners, like bas")
    which = one.add_mutually_exclusive_group()
    which.add_argument(
        "--month", type=_month, metavar="YYYYMM", help="only this month (default: the present one; early in it the last one too)"
    )
    which.add_argument("--since", type=_month, metavar="YYYYMM", help="every month from this one on")
    which.add_argument("--weekly", action="store_true", help="the last year")
    which.add_argument("--all", action="store_true", help=f"every month since {layout.FIRST_MONTH}")

    text = "compare our lists with a partner's: reports as text, JSON and a page with a calendar"
    one = verb("compare", _compare, text, "compare bas --since 202601")
    one.description = (
        f"{one.description} Only lists are read, no files, and neither mirror is changed. The last line names the page; for each "
        "kind of difference it says what to do."
    )
    one.add_argument("partner", metavar="PARTNER", help="a partner, by its name in mirror.partners, like bas")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--month", type=_month, metavar="YYYYMM", help="this month only (default: every month that either lists)")
    which.add_argument("--since", type=_month, metavar="YYYYMM", help="every month from this one on")

    text = "fetch a radar's files from the hub, verify them, and remove them there"
    one = verb("pull", _pull, text, "pull mcm")
    one.description = (
        f"{one.description} They come into the holding directory of mirror.hub. A file that is still being uploaded is left for "
        "the next run; one whose name is taken here by other content stays in both places and is told."
    )
    one.add_argument("radar", metavar="RADAR", help="three letters, like mcm")

    text = "take files from the mirror and its lists, so that they do not come back; or undo that"
    one = verb("delete", _delete, text, "delete bad_files.txt --yes")
    one.description = (
        f"{one.description} One journalled transaction: blocklist, the files, the lists of their months, the master list. "
        "Without --yes it only says what it would do. Nothing is destroyed: the files are moved to mirror.deleted of the store. "
        "Run again after a crash, it completes."
    )
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("names", nargs="?", type=Path, metavar="LIST", help="a file with one exact file name in each line")
    what.add_argument("--undo", metavar="TRANSACTION", help="put back what a transaction took; it was named when that was done")
    one.add_argument("--yes", action="store_true", help="really do it")

    text = "hold the lists against what is there: listed but gone, there but not listed, lists against the master list"
    one = verb("verify", _verify, text, "verify --month 202611 --hashes")
    one.description = (
        f"{one.description} Changes nothing, and says what mends each kind of finding. Of the counts, done are the files that "
        "are as they should be, and kept are findings."
    )
    one.add_argument("--month", type=_month, metavar="YYYYMM", help="this month only (default: every month)")
    one.add_argument("--hashes", action="store_true", help="read every file again, the months that wait for it longest first")

    text = "find the special experiments among DMAP files in a folder: a record whose CPID is not distributed"
    one = verb("sort-special", _sort_special, text, "sort-special /data/old --move")
    one.description = f"{one.description} Those that are distributed are `distribute.cpids` of the configuration."
    one.add_argument("folder", type=Path, metavar="DIR", help="a folder with DMAP files")
    one.add_argument("--move", action="store_true", help="move them into DIR/special_experiments")

    text = "let this machine use the Globus collection of the mirror; asks in a browser, once"
    one = verb("login", _login, text, "login")
    one.description = (
        f"{one.description} Only for a mirror.store of kind globus; its token_file is written. Directories need no login, and "
        "SFTP has keys (`dataflow check mirror`)."
    )


def add_backfill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``dataflow backfill``."""
    parser.description = (
        f"{parser.description} What should be there is what the mirrors' lists and our own records say. Without --radar, work on "
        "the requests that are open. `requests list`, `requests cancel NAME...` and `requests retry NAME...` look after them."
    )
    words = "requests list; requests cancel NAME...; requests retry [NAME...], without names all that were given up"
    parser.add_argument("words", nargs="*", metavar="requests VERB NAME", help=words)
    parser.add_argument("--radar", help="three letters, like sas: look for its gaps and ask for them")
    parser.add_argument("--from", dest="first", type=_day, metavar="DAY", help="the first day, YYYY-MM-DD, UTC")
    parser.add_argument("--to", dest="last", type=_day, metavar="DAY", help="the last day, included")
    parser.set_defaults(task=_backfill)


def summary_of(job: Job, code: int) -> dict[str, Any]:
    """What a job came to, for machines."""
    counts = dict(sorted(job.counts.items()))
    return {"job": job.name, "exit": code, "counts": counts, "problems": job.problems, "shown": job.shown}


def _publish(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import publish

    options = (arguments.holding, arguments.month, arguments.radar, arguments.dry_run)
    return Task("mirror_publish", ONE_WRITER, lambda job: publish.publish(job, *options))


def _sync(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import sync

    def work(job: Job) -> None:
        first = layout.FIRST_MONTH if arguments.all else arguments.since
        if arguments.month:
            months = [arguments.month]
        elif first:
            months = months_since(first, job.clock())
        else:
            months = sync.months_to_sync(job.clock(), job.settings.late_days, weekly=arguments.weekly)
        sync.sync(job, arguments.partner, months)

    return Task("mirror_sync", f"sync.{arguments.partner}", work)


def _compare(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import compare

    def work(job: Job) -> None:
        months = [arguments.month] if arguments.month else months_since(arguments.since, job.clock()) if arguments.since else None
        compare.compare(job, arguments.partner, months)

    return Task("mirror_compare", f"compare.{arguments.partner}", work)


def _pull(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import pull

    return Task("mirror_pull", f"pull.{arguments.radar}", lambda job: pull.pull(job, arguments.radar))


def _delete(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import delete

    if arguments.undo:
        return Task("mirror_delete", ONE_WRITER, lambda job: delete.undo(job, arguments.undo, arguments.yes))
    return Task("mirror_delete", ONE_WRITER, lambda job: delete.delete(job, arguments.names, arguments.yes))


def _verify(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import verify

    months = [arguments.month] if arguments.month else None
    lock_name = "verify" if arguments.hashes else ONE_WRITER  # to read every file takes days, and publishing goes on meanwhile
    return Task("mirror_verify", lock_name, lambda job: verify.verify(job, months, arguments.hashes))


def _sort_special(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import sort_special

    folder = arguments.folder.absolute()
    return Task("mirror_sort_special", "sort_special", lambda job: sort_special.sort_special(job, folder, arguments.move))


def _login(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import login

    return Task("mirror_login", "login", lambda job: login.login(job))


def _backfill(arguments: argparse.Namespace) -> Task:
    from dataflow.mirror import backfill

    lock_name = "reading" if arguments.words == ["requests", "list"] else "backfill"
    return Task("backfill", lock_name, lambda job: backfill.asked(job, arguments))


def months_since(first: str, now: datetime) -> list[str]:
    """Every month from one on up to the present one, both included."""
    year, month = int(first[:4]), int(first[4:])
    count = (now.astimezone(UTC).year - year) * 12 + now.astimezone(UTC).month - month + 1
    return [f"{year + (month - 1 + n) // 12:04}{(month - 1 + n) % 12 + 1:02}" for n in range(count)]


def _month(text: str) -> str:
    if not layout.is_month(text) or text > f"{utc_now():%Y%m}":
        raise argparse.ArgumentTypeError(f"{text} is no month up to now, like 202611")
    return text


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no day, like 2026-11-01") from error
