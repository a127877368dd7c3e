"""What the lists of the mirrors, our own records and the folders say of some months: what ``gaps`` is about.

Our own lists, blocklist and list of failures must be readable, or nothing is concluded. A partner that cannot be asked is told
and left out: what he alone has is found by a later run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, timedelta

from dataflow.lib import names, place, summary
from dataflow.lib.config import Config
from dataflow.lib.errors import BadConfig, DataflowError, HostDown, TryLater
from dataflow.mirror import hash_lists, layout
from dataflow.mirror.gaps import Presence
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent

DISTRIBUTION = "distribute_borealis_data"
STAGED = "staged"
"""The step and the action by which a file was handed to partners and to the mirror; special experiments never are."""


def ours(job: Job, months: Collection[str]) -> tuple[dict[str, str], Presence]:
    """What our mirror lists for some months, SHA-1 by name; what is there, and what must not come.

    Raises:
        HostDown: our mirror cannot be reached.
        TryLater: one of our lists cannot be read, or a holding directory cannot be looked into.
    """
    present = _waiting(job)  # before the lists: what is published meanwhile is listed before it leaves its holding directory
    tree = job.settings.tree
    lists = MirrorLists(job.open(job.settings.store), tree, job.folder("work"))
    hashes: dict[str, str] = {}
    unclear: set[str] = set()
    for month, content in lists.months_bytes(months).items():
        if isinstance(content, Absent):
            _require_never_listed(lists, month)
        elif isinstance(content, DataflowError):
            raise content
        else:
            known = hash_lists.parse_month(content, month)
            folder = lists.names(layout.data_folder(tree, month))
            lying = {name for name, size in folder.items() if (size or 0) > layout.EMPTY_BYTES}
            hashes |= known.hashes
            unclear |= known.unclear
            present |= known.hashes.keys() & lying
    return hashes, Presence(present, lists.blocklist(), lists.failed().reasons.keys(), unclear)


def theirs(job: Job, months: Collection[str]) -> dict[str, dict[str, str]]:
    """What each partner lists for some months, SHA-1 by name."""
    found: dict[str, dict[str, str]] = {}
    for key, partner in job.settings.partners.items():
        found[key] = {}
        try:
            lists = MirrorLists(job.open(partner.store), partner.tree, job.folder("work"))
            contents: Mapping[str, bytes | DataflowError] = lists.months_bytes(months)
        except (HostDown, TryLater, BadConfig) as error:
            contents = dict.fromkeys(months, error)
        for month, content in contents.items():
            if isinstance(content, bytes):
                found[key] |= hash_lists.parse_month(content, month).hashes
            elif not isinstance(content, Absent):
                job.problem(f"what {partner.name} has of {month} is not known, so gaps may remain unseen: {content}")
    return found


def recorded(config: Config, radar: str, first: date, last: date) -> dict[str, str | None]:
    """What our own records say was handed out of a radar's data between two days (both included): SHA-256 by name.

    Nothing for a radar whose data do not come through this flow.
    """
    found: dict[str, str | None] = {}
    for host_name, host in config.flow.hosts.items():
        if radar not in config.flow.radars or DISTRIBUTION not in {step.split()[0] for step in host.steps}:
            continue
        here = config.here(host_name, radar)
        since = first - timedelta(days=1)  # clocks differ
        files = [*summary.own_files(here, since, DISTRIBUTION), *summary.relayed_files(here, since)]
        for record in summary.records(files, holding=f'"{STAGED}"'.encode()):
            name = names.parse(record.get("file") or "")
            if record["step"] != DISTRIBUTION or record.get("action") != STAGED or name is None:
                continue
            if name.radar == radar and layout.is_published(name) and first <= name.time.date() <= last:
                found[name.text] = record.get("sha256")
    return found


def _waiting(job: Job) -> set[str]:
    return {path.name for key in job.settings.holdings for path in place.scan(job.holding(key)) if place.is_regular(path)}


def _require_never_listed(lists: MirrorLists, month: str) -> None:
    """A list that is not there is lost if the list of the lists names it.

    Raises:
        TryLater: it does.
    """
    if lists.is_in_master(month):
        raise TryLater(f"our master list names a list of {month}, and there is none: dataflow mirror verify --month {month}")
