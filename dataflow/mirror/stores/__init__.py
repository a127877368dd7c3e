"""Where a mirror's files lie: one small protocol, and a module for each kind of place that satisfies it.

A path of a store is relative to its root, has no leading slash and no ``..``; ``""`` is the root itself. Every store passes
the one contract suite, ``tests/test_stores.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from dataflow.lib.config import Here
from dataflow.lib.errors import BadConfig, DataflowError, HostDown, TryLater
from dataflow.lib.mirror_settings import StoreSettings


class Absent(TryLater):
    """There is nothing of that name: said by a folder that could be read. Never concluded from a refusal or a silence."""


class Refused(TryLater):
    """The other side does not let us look or write there. It is not the same as nothing being there."""


class Taken(TryLater):
    """The name is taken: nothing is ever replaced."""


def raise_if_down(answers: Iterable[object]) -> None:
    """Of the answers for many files, one that says that the store cannot be reached says so of the store, and not of a file.

    Raises:
        HostDown: there is one.
    """
    for answer in answers:
        if isinstance(answer, HostDown):
            raise answer


class Store(Protocol):
    """A place of files. Whatever is not said here raises ``Refused``, ``HostDown`` when it cannot be reached, or ``TryLater``."""

    def names(self, folder: str) -> dict[str, int | None]:
        """What lies in a folder, hidden names too: sizes in bytes, None for what is no regular file.

        Raises:
            Absent: there is no such folder.
        """

    def size(self, path: str) -> int | None:
        """The size of a file in bytes; None when there is definitely no such file. A folder raises ``TryLater``."""

    def fetch(self, wanted: Mapping[str, Path]) -> dict[str, DataflowError]:
        """Copy files of the store to files of this machine, many at a time; the failures, by path.

        A local file that is there already is the beginning of an earlier try and is gone on with where the store can. What
        comes is not compared with any hash, and not synced: that is for the caller, who knows what it should be. Raises nothing:
        failures are returned.
        """

    def store(self, files: Mapping[str, Path]) -> dict[str, DataflowError]:
        """Copy files of this machine to paths of the store, many at a time; the failures, by path.

        A file that is not among the failures lies there with the content that it has here: the store has compared it after
        it was written. A path that exists is replaced: callers write to names of their own and ``rename``. Folders must be
        there. Raises nothing: failures are returned.
        """

    def sha1(self, paths: Collection[str]) -> dict[str, str | DataflowError]:
        """SHA-1 of files as they lie there, lower-case hex, or why it cannot be told. Raises nothing."""

    def changed_s(self, folder: str) -> dict[str, float]:
        """When each file of a folder was last changed, Unix time in seconds by the store's own clock.

        Raises:
            Absent: there is no such folder.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a file, or a folder, another path in the same store.

        Raises:
            Absent: there is no ``old``.
            Taken: there is something at ``new``, which stays as it is.
        """

    def remove(self, path: str) -> None:
        """Remove one file; one that is not there is as good."""

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents; those that are there are as good."""

    def close(self) -> None:
        """End its connections."""


def open_store(settings: StoreSettings, here: Here, work: Path) -> Store:
    """The store that the settings mean. ``work``: a folder of this machine for what has to lie somewhere meanwhile.

    Raises:
        BadConfig: the settings do not say enough, or what they need is not installed.
        HostDown: it cannot be reached.
    """
    match settings.kind:
        case "directory":
            from dataflow.mirror.stores.directory import DirectoryStore

            return DirectoryStore(here, settings)
        case "sftp":
            from dataflow.mirror.stores.sftp import SftpStore

            return SftpStore(settings)
        case "globus":
            from dataflow.mirror.stores.globus import GlobusStore

            return GlobusStore(settings, work)
    raise BadConfig(f"there is no kind of store {settings.kind!r}")
