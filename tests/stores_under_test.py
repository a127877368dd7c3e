"""What the contract suite of stores is run on: each kind of store, with the folder in which its files really lie.

Another kind joins by a module `<kind>_server.py` with a function `under_test`, a context manager that yields an `UnderTest`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import mirror_world
import sftp_server

from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror import stores
from dataflow.mirror.stores import Store
from dataflow.mirror.stores.sftp import SftpStore


@dataclass(frozen=True, slots=True)
class UnderTest:
    """``unprivileged``: gives the store as a user has it to whom permissions can be refused.

    What the contract leaves to the store: ``resumes``, a fetch goes on where an earlier one ended; ``writes_beside``, what is
    stored gets its name when it is whole; ``any_bytes``, names need not be UTF-8.
    """

    store: Store
    root: Path
    unprivileged: Callable[[], AbstractContextManager[Store]]
    resumes: bool = True
    writes_beside: bool = True
    any_bytes: bool = True

    def put(self, path: str, content: bytes = b"content") -> Path:
        """A file that lies there, by another hand."""
        there = self.root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)
        self.give_away()
        return there

    def tree(self) -> dict[str, bytes | None]:
        """All that lies there, hidden or not: contents, None for what is no regular file."""
        found = sorted(self.root.rglob("*"))
        return {str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None for path in found}

    def give_away(self) -> None:
        """Let all that lies there belong to whoever the store works as."""
        if os.geteuid() == 0:
            nobody = pwd.getpwnam(sftp_server.NOBODY)
            for path in (self.root, *self.root.rglob("*")):
                os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)

    def empty(self) -> None:
        """Remove all that lies there."""
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def directory() -> Iterator[UnderTest]:
    """The shipped configuration's mirror."""
    with sftp_server.reachable_folder() as folder:
        settings, here = mirror_world.world(folder).mirror()
        root = here.path(settings.store.root)
        root.mkdir()
        store = stores.open_store(settings.store, here, folder)
        yield UnderTest(store, root, lambda: _as_nobody(store))


@contextmanager
def sftp() -> Iterator[UnderTest]:
    """A login of the user that runs the tests, who may start programs there."""
    with sftp_server.reachable_folder() as folder, sftp_server.running(folder / "root") as server:
        server.root.mkdir()
        with opened(server.settings()) as store:
            yield UnderTest(store, server.root, lambda: opened(server.settings(user=sftp_server.NOBODY)))


@contextmanager
def sftp_alone() -> Iterator[UnderTest]:
    """A login that is for SFTP and nothing else, with one session."""
    options = {"ForceCommand": "internal-sftp", "MaxSessions": 1}
    with (
        sftp_server.reachable_folder() as folder,
        sftp_server.running(folder / "root", sftp_server.NOBODY, **options) as server,
    ):
        server.root.mkdir()
        with opened(server.settings()) as store:
            yield UnderTest(store, server.root, lambda: nullcontext(store))


@contextmanager
def opened(settings: StoreSettings) -> Iterator[SftpStore]:
    """A store that is closed afterwards."""
    store = SftpStore(settings)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _as_nobody(store: Store) -> Iterator[Store]:
    """For the file system this process, all its threads, is somebody without privileges for a while."""
    if os.geteuid() != 0:
        yield store
        return
    os.setegid(pwd.getpwnam(sftp_server.NOBODY).pw_gid)
    os.seteuid(pwd.getpwnam(sftp_server.NOBODY).pw_uid)
    try:
        yield store
    finally:
        os.seteuid(0)
        os.setegid(0)


def kinds() -> dict[str, Callable[[], AbstractContextManager[UnderTest]]]:
    """Every kind of store, by a name for the reports."""
    found = {"directory": directory, "sftp": sftp, "sftp-alone": sftp_alone}
    for kind in ("globus",):
        if importlib.util.find_spec(f"{kind}_server"):
            joining = getattr(importlib.import_module(f"{kind}_server"), "under_test", None)
            found |= {kind: joining} if joining else {}
    return found
