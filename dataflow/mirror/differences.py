"""Where two mirrors differ in one month: from their lists alone, each difference with its kind and what is to be done.

Reading two lists takes long and nearly all of their lines agree: ``read_both`` leaves these out, and may run in another process.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from dataflow.lib import names
from dataflow.mirror import hash_lists
from dataflow.mirror.hash_lists import HashList


class Kind(StrEnum):
    """What a difference is; in this order it is reported."""

    DIFFERENT = "different"
    ONLY_HERE = "only here"
    ONLY_THERE = "only there"
    BLOCKED = "blocked"
    FAILED = "failed"
    TOO_NEW = "too new"


MEANINGS = {
    Kind.DIFFERENT: "both mirrors list the file, with different hashes",
    Kind.ONLY_HERE: "only this mirror lists the file",
    Kind.ONLY_THERE: "only the partner lists the file",
    Kind.BLOCKED: "the file is on our blocklist",
    Kind.FAILED: "the partner lists exactly the content that failed a check here",
    Kind.TOO_NEW: "one mirror does not list the file yet, and it is young enough to be on its way",
}

_ACTIONS = {
    Kind.DIFFERENT: "a person decides whose content is right: neither mirror ever replaces a file by the other's",
    Kind.ONLY_HERE: "tell {partner}: their mirror should fetch it from here",
    Kind.ONLY_THERE: "dataflow mirror sync {partner} --month {month}",
    Kind.BLOCKED: "never fetched: tell {partner} that it is blocked here; if our own list has it: dataflow mirror delete",
    Kind.FAILED: "never fetched: tell {partner} that their file is bad",
    Kind.TOO_NEW: "nothing: it is reported when it is older",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One file in which two mirrors differ, with the SHA-1 that each of them lists."""

    name: str
    kind: Kind
    here: str | None
    there: str | None


@dataclass(frozen=True, slots=True)
class Differences:
    """How two lists of a month differ.

    ``excluded``: differences in files of radars that this mirror never takes, which
    are none. ``unclear``: names in refused lines of either list, of which nothing can be said.
    """

    differences: tuple[Difference, ...]
    excluded: int
    unclear: tuple[str, ...]


def read_both(month: str, here: bytes | None, there: bytes | None) -> tuple[int, HashList, HashList]:
    """The number of files in which two lists of a month agree, and both lists without those. None: there is no such list.

    Raises:
        TryLater: one of them is no list.
    """
    ours, theirs = (HashList({}) if data is None else hash_lists.parse_month(data, month) for data in (here, there))
    unlike = {name: sha1 for name, sha1 in ours.hashes.items() if theirs.hashes.get(name) != sha1}
    agreed = len(ours.hashes) - len(unlike)
    others = theirs.hashes.keys() - ours.hashes.keys() | (unlike.keys() & theirs.hashes.keys())
    left = {name: theirs.hashes[name] for name in others}
    return agreed, replace(ours, hashes=unlike, kept=()), replace(theirs, hashes=left, kept=())


def differences_of_month(
    ours: HashList,
    theirs: HashList,
    blocked: Container[str],
    failed: Container[tuple[str, str]],
    now: datetime,
    recent_days: float,
    excluded: Collection[str] = (),
) -> Differences:
    """What is to be said of two lists of one month, or of what ``read_both`` left of them.

    ``failed`` has pairs of SHA-1 and name: other content of a name has not failed.
    """
    here, there = ours.hashes, theirs.hashes
    unlike = [name for name, sha1 in here.items() if there.get(name) != sha1] + [name for name in there if name not in here]
    unclear = ours.unclear | theirs.unclear
    since = now - timedelta(days=recent_days)
    found = []
    ignored = 0
    for name in unlike:
        parsed = names.parse(name)
        assert parsed is not None, name
        if parsed.radar in excluded:
            ignored += 1
        elif name not in unclear:
            kind = _kind(name, here.get(name), there.get(name), blocked, failed, is_recent=parsed.time > since)
            found.append(Difference(name, kind, here.get(name), there.get(name)))
    order = {kind: place for place, kind in enumerate(Kind)}
    found.sort(key=lambda difference: (order[difference.kind], difference.name))
    return Differences(tuple(found), ignored, tuple(sorted(unclear)))


def action(kind: Kind, partner: str, month: str) -> str:
    """What is to be done about files of a kind of difference."""
    return _ACTIONS[kind].format(partner=partner, month=month)


def _kind(
    name: str,
    here: str | None,
    there: str | None,
    blocked: Container[str],
    failed: Container[tuple[str, str]],
    *,
    is_recent: bool,
) -> Kind:
    if name in blocked:
        return Kind.BLOCKED
    if there is not None and (there, name) in failed:
        return Kind.FAILED
    if here is not None and there is not None:
        return Kind.DIFFERENT
    if is_recent:
        return Kind.TOO_NEW
    return Kind.ONLY_HERE if there is None else Kind.ONLY_THERE
