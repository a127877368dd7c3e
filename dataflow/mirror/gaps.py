"""What should be on our mirror and is not. Pure: what the lists, the records and the folders say comes in, gaps come out.

A file should be there when a mirror lists it, ours too, or when our own records say that it was handed out. It is there when
our mirror lists it and holds it, or while it waits in a holding directory. What is blocked, and content that is known to have
failed a check, is no gap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

OURS = "ours"
"""Who says so, where our own mirror lists a file."""


@dataclass(frozen=True, slots=True)
class Expected:
    """How a file that should be there is known: ``sha1s``, each with the mirrors that list it; ``sha256`` of our own records."""

    sha1s: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """What is there, and what must not come: names, and pairs (SHA-1, name) of what failed a check.

    ``unclear``: names that our own list has in lines that cannot be read, so that nobody can say whether it lacks them.
    """

    present: Collection[str]
    blocked: Collection[str]
    failed: Collection[tuple[str, str]]
    unclear: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Gaps:
    """``missing``: without the hashes that are known to be bad. ``refused``: what is no gap though it is not there, and why.

    ``unclear``: what nobody can tell before our own list is mended.
    """

    missing: dict[str, Expected] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)


def expected(listed: Mapping[str, Mapping[str, str]], recorded: Mapping[str, str | None]) -> dict[str, Expected]:
    """What should be there, from the lists (name to SHA-1) of mirrors by who lists, and our own records (name to SHA-256).

    Where our own mirror lists a file, its hash is the only one: to compare mirrors is not the business of gaps.
    """
    found: dict[str, Expected] = {}
    for who, hashes in listed.items():
        for name, sha1 in hashes.items():
            sha1s = found.setdefault(name, Expected(sha256=recorded.get(name))).sha1s
            sha1s[sha1] = (*sha1s.get(sha1, ()), who)
    for name, sha1 in listed.get(OURS, {}).items():
        found[name] = Expected({sha1: found[name].sha1s[sha1]}, recorded.get(name))
    return found | {name: Expected(sha256=sha256) for name, sha256 in recorded.items() if name not in found}


def between(expectations: Mapping[str, Expected], presence: Presence) -> Gaps:
    """The gaps between what should be there and what is."""
    found = Gaps()
    for name, what in expectations.items():
        good = {sha1: who for sha1, who in what.sha1s.items() if (sha1, name) not in presence.failed}
        if name in presence.present:
            continue
        if name in presence.blocked:
            found.refused[name] = "it is blocked"
        elif name in presence.unclear:
            found.unclear.add(name)
        elif what.sha1s and not good and what.sha256 is None:
            found.refused[name] = "the only content that is known of it has failed a check before"
        else:
            found.missing[name] = Expected(good, what.sha256)
    return found
