"""The section ``mirror`` of config.yaml as frozen dataclasses: one of the world's mirrors, its partners, its hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dataflow.lib.machine import Machine, Root

MIRROR_FOLDERS = ("work", "set_aside", "reports")
"""Folders that the mirror cannot do without: files on their way; what is not published, by reason; reports of comparisons."""

OWN_SOURCE = "mirror"
"""The source of backfill that is our own mirror."""

STORE_NEEDS = {
    "directory": (),
    "sftp": ("address", "user", "key_file", "known_hosts"),
    "globus": ("collection_id", "local_collection_id", "client_id", "token_file"),
}
"""What each kind of store cannot be opened without."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where files lie that others use too. ``root`` is the top of it: every path of the store is relative to that.

    directory: ``root`` is a folder of this machine, beginning with the name of a root. sftp: a login at ``address``, with the
    ``key_file`` of the user, a host key that ``known_hosts`` knows, and up to ``channels`` files at a time. globus: a path in the
    collection ``collection_id``; files of this machine are seen through ``local_collection_id``; ``token_file`` is what
    ``dataflow mirror login`` writes. ``time_limit_s``: what a batch may take in all.
    """

    kind: Literal["directory", "sftp", "globus"]
    root: str
    address: str | None = None
    port: int = 22
    user: str | None = None
    key_file: str | None = None
    known_hosts: str | None = None
    channels: int = 4
    collection_id: str | None = None
    local_collection_id: str | None = None
    client_id: str | None = None
    token_file: str | None = None
    connect_timeout_s: float = 20.0
    keep_alive_s: float = 15.0
    time_limit_s: float = 21600.0


@dataclass(frozen=True, slots=True)
class Partner:
    """Another mirror. ``tree``: where in its store ``raw`` lies. ``holding``: which holding directory gets its files."""

    name: str
    store: StoreSettings
    holding: str
    tree: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where radars hand over their files: a flat folder. ``settle_s``: a file that was changed since is still being uploaded."""

    store: StoreSettings
    holding: str
    settle_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where backfill may ask for a file: a partner's name, ``mirror`` for our own, or a store with files below ``tree``."""

    name: str
    partner: str | None = None
    store: StoreSettings | None = None
    tree: str = ""
    files_per_hour: int = 1000


@dataclass(frozen=True, slots=True)
class Backfill:
    """How gaps are filled. A request is given up after ``tries`` of every source, or when it is ``give_up_after_days`` old."""

    holding: str
    sources: tuple[Source, ...] = ()
    tries: int = 5
    give_up_after_days: float = 30.0


@dataclass(frozen=True, slots=True)
class Mirror:
    """One of the world's mirrors, fed from holding directories of one machine.

    ``store`` is where it lies, ``tree`` its top there (``raw``, ``.config`` lie below), ``failed`` and ``deleted`` two folders of
    the same store outside the tree. ``radars``: whose files are accepted, ``excluded``: whose are never published.
    ``waiting_days``: a file is published so long after the time in its name; ``recent_days``: from then on a difference between
    two mirrors is no longer news on its way; ``late_days``: in so many first days of a month the month before is synced too.
    """

    machine: Machine
    user: str
    roots: dict[str, Root]
    folders: dict[str, str]
    state: str
    logs: str
    store: StoreSettings
    tree: str
    failed: str
    deleted: str
    holdings: dict[str, str]
    radars: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    partners: dict[str, Partner] = field(default_factory=dict)
    hub: Hub | None = None
    backfill: Backfill | None = None
    waiting_days: float = 0.0
    recent_days: float = 3.0
    late_days: int = 7
    file_mode: str = "0664"
    dir_mode: str = "2775"
    group: str | None = None
