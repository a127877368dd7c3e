"""``dataflow mirror verify``: holds the lists of the mirror against what is there. Changes nothing; says what mends each finding.

Each month is looked at by itself: its folder, its list, the line of that list in the master list and, with ``hashes``, the
content of every listed file. The hashes of a whole mirror take days, so the months that were last read longest ago come first,
and when each was is remembered in ``<state>/verified.json``: a run that was stopped or killed goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from dataflow.lib import names, note
from dataflow.lib.errors import DataflowError, TryLater
from dataflow.lib.summary import timestamp
from dataflow.mirror import hash_lists, layout
from dataflow.mirror.hash_lists import HashList, MasterList
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Store, raise_if_down

GONE = "listed but gone"
UNLISTED = "there but not listed"
NO_LIST = "in a month without a list"
EMPTY = "empty"
DIFFERENT = "other content than listed"
UNREADABLE = "not readable"
STRANGER = "no name of its folder"
REFUSED = "refused line"
MASTER = "not as the master list says"
LEFTOVER = "leftover"

MENDED_BY = {
    GONE: "`dataflow backfill --radar R --from DAY --to DAY` brings it again; if it is to stay away, `dataflow mirror delete`",
    UNLISTED: "`dataflow mirror publish` checks and lists it with the next file of that month; or `dataflow mirror delete`",
    NO_LIST: "`dataflow mirror publish` checks and lists them with the next file of that month; or `dataflow mirror delete`",
    EMPTY: "listed: `dataflow backfill --radar R --from DAY --to DAY` brings a whole one; else `dataflow mirror delete`",
    DIFFERENT: "`dataflow mirror delete` takes it away; for another one take its name from the blocklist, then backfill",
    UNREADABLE: "look after the rights and the disk of the mirror, then `dataflow mirror verify --month YYYYMM --hashes`",
    STRANGER: "a person has to see what it is, and move it away: nothing here will touch it",
    REFUSED: "nobody uses the line; it is kept until a person corrects or removes it",
    MASTER: "`dataflow mirror publish` mends it with the next file of that month",
    LEFTOVER: "of a run that was killed: the next one of that kind removes it, and so may a person when nothing else runs",
}
"""What there may be to find, and what a person does about it."""

OF_A_FILE = (UNLISTED, NO_LIST, EMPTY, DIFFERENT, UNREADABLE)
"""The kinds that are about a file which is there."""

LEFTOVER_ENDINGS = (".part", ".new", ".old")
ON_ITS_WAY_S = 86400.0
"""What was changed since may still be in somebody's hands: an upload goes on, or its line is about to be written."""

HASHED_AT_ONCE = 100
SHOWN = 10
RECORDED = 1000
"""How many names of one kind and month are told, and recorded; all are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: a key of ``MENDED_BY``, and what it is about."""

    kind: str
    about: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A month as it lies there.

    ``there``: sizes in bytes by name, None for what is no regular file; ``data``: those that are files of the month.
    ``content``: of its list, None when there is definitely none; ``listed``: what it says. ``young``: names that were changed
    just now. ``sha1``: of the listed files, or why it cannot be told, if asked for.
    """

    month: str
    there: Mapping[str, int | None]
    data: frozenset[str]
    content: bytes | None
    listed: HashList
    young: Collection[str] = ()
    sha1: Mapping[str, str | DataflowError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mirror:
    job: Job
    store: Store
    lists: MirrorLists
    master: MasterList


def verify(job: Job, months: Sequence[str] | None, hashes: bool) -> None:
    """Look at some months, or at all that have a folder or a line in the master list, and tell what is not as it should be.

    ``hashes``: read every listed file again, where it lies.

    Raises:
        TryLater: the mirror or its master list cannot be read.
    """
    store = job.open(job.settings.store)
    lists = MirrorLists(store, job.settings.tree, job.folder("work"))
    mirror = _Mirror(job, store, lists, _master(job, lists))
    found = {} if months is not None else {"the lists": _leftovers_of_lists(mirror)}
    due, verified = list(_all_months(mirror) if months is None else months), note.load(_verified_file(job), str)
    unread = []
    due.sort(key=lambda month: (verified.get(month, "") if hashes else "", month))
    for number, month in enumerate(due):
        if job.should_stop():
            job.problem(f"asked to stop: {len(due) - number} months were not looked at")
            break
        try:
            found[month] = _look_at(mirror, month, hashes)
        except TryLater as error:
            unread.append(f"{month} could not be looked at: {error}")
            job.problem(unread[-1])
        if job.progress is not None:
            job.progress(month, number + 1, len(due))
    job.alert_while("months that cannot be looked at", bool(unread), "\n".join(unread[:SHOWN]))
    _tell(job, found, is_all=months is None and len(found) == len(due) + 1)


def findings(seen: Seen, master: MasterList) -> Iterator[Finding]:
    """What is not as it should be in a month."""
    data, listed = seen.data, seen.listed
    unlisted = sorted(data - listed.hashes.keys() - listed.unclear - frozenset(seen.young))
    yield from (Finding(GONE, name) for name in sorted(listed.hashes.keys() - data))
    yield from (Finding(UNLISTED if seen.content is not None else NO_LIST, name) for name in unlisted)
    yield from (Finding(EMPTY, name) for name in sorted(data) if (seen.there[name] or 0) <= layout.EMPTY_BYTES)
    yield from (Finding(REFUSED, f"line {refusal.line}: {refusal.reason}: {refusal.text}") for refusal in listed.refused)
    yield from _of_names(seen)
    yield from _of_hashes(seen)
    yield from _of_master(seen, master)


def _of_names(seen: Seen) -> Iterator[Finding]:
    """Hidden names are ours; of those only what a killed run left is worth telling."""
    for name in sorted(seen.there.keys() - seen.data - {f"{seen.month}.hashes"}):
        if not name.startswith("."):
            yield Finding(STRANGER, names.printable(name))
        elif name.endswith(LEFTOVER_ENDINGS) and name not in seen.young:
            yield Finding(LEFTOVER, names.printable(name))


def _of_hashes(seen: Seen) -> Iterator[Finding]:
    for name, sha1 in sorted(seen.sha1.items()):
        if isinstance(sha1, DataflowError):
            yield Finding(UNREADABLE, f"{name}: {sha1}")
        elif sha1 != seen.listed.hashes[name]:
            yield Finding(DIFFERENT, f"{name}: {sha1}, listed {seen.listed.hashes[name]}")


def _of_master(seen: Seen, master: MasterList) -> Iterator[Finding]:
    lines = {master.hashes[line] for line in layout.master_lines(seen.month) if line in master.hashes}
    if seen.content is None:
        yield from [Finding(MASTER, f"{seen.month}.hashes: there is no such list")] if lines else []
    elif not lines:
        yield Finding(MASTER, f"{seen.month}.hashes: it is not in there")
    elif lines != {(sha1 := hashlib.sha1(seen.content).hexdigest())}:
        yield Finding(MASTER, f"{seen.month}.hashes: {sha1}, there {', '.join(sorted(lines))}")


def _master(job: Job, lists: MirrorLists) -> MasterList:
    try:
        return lists.master()
    except Absent:
        job.problem("there is no master list; `dataflow mirror publish` writes one with the next file")
        return MasterList({})


def _all_months(mirror: _Mirror) -> set[str]:
    return {*mirror.lists.months(), *mirror.master.months}


def _is_data(text: str, month: str) -> bool:
    name = names.parse(text)
    return name is not None and layout.is_published(name) and layout.month_of(name) == month


def _look_at(mirror: _Mirror, month: str, hashes: bool) -> list[Finding]:
    """One month: what was found is told, recorded, counted; when its hashes were read is remembered."""
    seen = _seen(mirror, month, hashes)
    found = list(findings(seen, mirror.master))
    if hashes and found:
        seen = _seen_again(mirror, seen)
        found = list(findings(seen, _known_master(mirror.lists)))
    _record(mirror.job, month, found, files=len(seen.data), hashed=len(seen.sha1))
    if hashes:
        damaged = [finding.about for finding in found if finding.kind in (DIFFERENT, UNREADABLE)]
        message = f"{month}: {{count}} files are not what the list says: {{names}}"
        mirror.job.alert_changes(f"hashes of {month}", damaged, message)
        _remember(mirror.job, month)
    return found


def _seen(mirror: _Mirror, month: str, hashes: bool) -> Seen:
    folder = layout.data_folder(mirror.job.settings.tree, month)
    try:
        content = mirror.lists.month_bytes(month)
    except Absent:
        content = None
    there = mirror.lists.names(folder)
    data = frozenset(name for name, size_bytes in there.items() if size_bytes is not None and _is_data(name, month))
    seen = Seen(month, there, data, content, hash_lists.parse_month(content or b"", month))
    if there.keys() - seen.listed.hashes.keys() - {f"{month}.hashes"}:
        seen = replace(seen, young=_young(mirror, folder))
    return replace(seen, sha1=_sha1(mirror, folder, sorted(data & seen.listed.hashes.keys()))) if hashes else seen


def _seen_again(mirror: _Mirror, before: Seen) -> Seen:
    """A month as it is when its files were read, which may have taken hours: what was published or deleted meanwhile is right."""
    now = _seen(mirror, before.month, hashes=False)
    listed = {name for name in before.sha1 if now.listed.hashes.get(name) == before.listed.hashes[name]}
    return replace(now, sha1={name: sha1 for name, sha1 in before.sha1.items() if name in listed & now.data})


def _known_master(lists: MirrorLists) -> MasterList:
    try:
        return lists.master()
    except Absent:  # which was told
        return MasterList({})


def _young(mirror: _Mirror, folder: str) -> set[str]:
    """The names in a folder that were changed so lately that they may be in somebody's hands."""
    since_s = mirror.job.clock().timestamp() - ON_ITS_WAY_S
    return {name for name, changed_s in mirror.store.changed_s(folder).items() if changed_s > since_s}


def _sha1(mirror: _Mirror, folder: str, wanted: Sequence[str]) -> dict[str, str | DataflowError]:
    """The hashes of files of a folder.

    Raises:
        TryLater: asked to stop; what was read of this month is read again the next time.
        HostDown: the mirror cannot be reached any more, which says nothing of its files.
    """
    found: dict[str, str | DataflowError] = {}
    for start in range(0, len(wanted), HASHED_AT_ONCE):
        if mirror.job.should_stop():
            raise TryLater("asked to stop while its files were read; the next run begins with it")
        paths = {f"{folder}/{name}": name for name in wanted[start : start + HASHED_AT_ONCE]}
        hashes = mirror.store.sha1(list(paths))
        raise_if_down(hashes.values())
        found |= {paths[path]: sha1 for path, sha1 in hashes.items()}
    return found


def _leftovers_of_lists(mirror: _Mirror) -> list[Finding]:
    """What killed runs have left beside the lists that belong to no month."""
    tree, found = mirror.job.settings.tree, []
    for folder in (layout.master_list(tree).rpartition("/")[0], layout.blocklist(tree)):
        there = [name for name in mirror.lists.names(folder) if name.startswith(".") and name.endswith(LEFTOVER_ENDINGS)]
        young = _young(mirror, folder) if there else set()
        found += [Finding(LEFTOVER, f"{folder}/{names.printable(name)}") for name in sorted(there) if name not in young]
    _record(mirror.job, "the lists", found, files=0, hashed=0)
    return found


def _record(job: Job, place_of: str, found: Sequence[Finding], files: int, hashed: int) -> None:
    """Tell and record what was found in a month, and count it with what is as it should be."""
    job.counts["kept"] += len(found)
    job.counts["done"] += max(files - sum(finding.kind in OF_A_FILE for finding in found), 0)
    job.log.write("action", action="looked at", month=place_of, files=files, hashed=hashed, findings=len(found))
    for kind, group in groupby(sorted(found, key=lambda finding: finding.kind), key=lambda finding: finding.kind):
        about = [finding.about for finding in group]
        job.log.write("action", action="found", month=place_of, kind=kind, count=len(about), files=about[:RECORDED])
        more = f" and {len(about) - SHOWN} more" if len(about) > SHOWN else ""
        job.show(
            f"{place_of}: {len(about)} {kind}: {', '.join(about[:SHOWN])}{more}", month=place_of, kind=kind, files=list(about)
        )


def _tell(job: Job, found: Mapping[str, Sequence[Finding]], is_all: bool) -> None:
    """Say what mends what was found; alert of what is new, if everything was looked at: else nobody knows what has ended."""
    for kind in sorted({finding.kind for each in found.values() for finding in each}):
        job.show(f"{kind}: {MENDED_BY[kind]}")
    if is_all:
        items = [item for month, each in found.items() for item in _items(month, each)]
        job.alert_changes(
            "lists", items, "the mirror is not as its lists say, {count} new: {names}. `dataflow mirror verify` tells all"
        )


def _items(month: str, found: Sequence[Finding]) -> list[str]:
    """What an alert calls the findings of a month; hashes have an alert of their own. Too many of a kind are one item."""
    items = []
    for kind in sorted({finding.kind for finding in found} - {DIFFERENT, UNREADABLE}):
        about = [finding.about for finding in found if finding.kind == kind]
        items += [f"{month} {kind}: {each}" for each in about] if len(about) <= SHOWN else [f"{month} {kind}: {len(about)}"]
    return items


def _verified_file(job: Job) -> Path:
    return job.here.state / "verified.json"


def _remember(job: Job, month: str) -> None:
    times = note.load(_verified_file(job), str)
    note.save(_verified_file(job), {**times, month: timestamp(job.clock())})
