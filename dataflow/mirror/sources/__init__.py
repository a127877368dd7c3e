"""Where ``backfill`` may ask for a file. A source is one small module: which of some names it has, and where.

A partner is asked by his lists; everything else (our own mirror, a folder of this machine, another archive) by what lies in its
folders.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dataflow.lib.mirror_settings import Source
from dataflow.lib.names import Name
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Store


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a source has a file: its path in the store, and the SHA-1 that the source lists for it, if it keeps lists."""

    path: str
    sha1: str | None = None


@dataclass(slots=True)
class Answer:
    """What a source says. ``unknown``: why it cannot be told of some names; a name that is in neither is not there."""

    offers: dict[str, Offer] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def ask(job: Job, source: Source, wanted: Collection[Name]) -> tuple[Store, Answer]:
    """Which of some files a source has; with its open store, from which they can be fetched.

    Raises:
        HostDown: it cannot be reached.
    """
    from dataflow.mirror.sources import folder, partner

    if source.partner is not None:
        other = job.settings.partners[source.partner]
        store = job.open(other.store)
        return store, partner.offers(MirrorLists(store, other.tree, job.folder("work")), other.tree, wanted)
    if source.store is not None:
        store = job.open(source.store)
        return store, folder.offers(store, source.tree, wanted)
    store = job.open(job.settings.store)
    return store, folder.offers(store, job.settings.tree, wanted)
