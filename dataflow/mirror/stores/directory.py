"""A store that is a folder of this machine: the embedded one, and the one that a mirror on a mounted disk needs.

The root's marker is looked at before and after everything, so that a disk that is not mounted is never a mirror without files.
Symbolic links are followed only as far as they stay below the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from dataflow.lib import checksum, copy, names, place
from dataflow.lib.config import Here
from dataflow.lib.errors import DataflowError, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores import Absent, Refused, Taken, paths

CANNOT_LINK = (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
"""A file of somebody else (fs.protected_hardlinks, see proc(5)), too many links, a file system without them."""


class DirectoryStore:
    """Satisfies `Store`. ``settings.root``: a folder written ``<root>/<relative>``, as all folders of the configuration are."""

    def __init__(self, here: Here, settings: StoreSettings) -> None:
        self._here = here
        self._root_name = settings.root.partition("/")[0]
        self._top = Path(os.path.realpath(here.path(settings.root)))

    def names(self, folder: str) -> dict[str, int | None]:
        """See `Store.names`."""
        return {name: status.st_size if stat.S_ISREG(status.st_mode) else None for name, status in self._listed(folder)}

    def size(self, path: str) -> int | None:
        """See `Store.size`."""
        try:
            with self._at(path, follow=True) as there:
                status = there.lstat()
        except Absent:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise TryLater(f"{names.printable(path)} is no regular file")
        return status.st_size

    def fetch(self, wanted: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See `Store.fetch`."""
        return _failures(self._fetch, wanted)

    def store(self, files: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See `Store.store`."""
        return _failures(self._store, files)

    def sha1(self, paths: Collection[str]) -> dict[str, str | DataflowError]:
        """See `Store.sha1`; of the bytes on the disk, not of those that the page cache remembers."""
        found: dict[str, str | DataflowError] = {}
        for path in paths:
            try:
                with self._reading(path) as stream:
                    checksum.sync_file(Path(f"/proc/self/fd/{stream.fileno()}"))
                    found[path] = hashlib.file_digest(stream, "sha1").hexdigest()
            except DataflowError as error:
                found[path] = error
        return found

    def changed_s(self, folder: str) -> dict[str, float]:
        """See `Store.changed_s`."""
        return {name: status.st_mtime for name, status in self._listed(folder) if stat.S_ISREG(status.st_mode)}

    def rename(self, old: str, new: str) -> None:
        """See `Store.rename`. Killed in between, a file has both names; done again, it has the new one."""
        with self._at(old) as source:
            status = source.lstat()
        with self._at(new) as target:
            if not target.parent.is_dir():
                raise TryLater(f"{names.printable(old)} cannot become {names.printable(new)}: there is no such folder")
            if source == target or not _renamed(source, target, status):
                raise Taken(f"{names.printable(new)} is there already; {names.printable(old)} stays as it is")
            place.sync_folders([target.parent, source.parent])

    def remove(self, path: str) -> None:
        """See `Store.remove`."""
        try:
            with self._at(path) as there:
                there.unlink()
                checksum.sync_folder(there.parent)
        except Absent:
            pass

    def make_folder(self, folder: str) -> None:
        """See `Store.make_folder`; with the mirror's mode and group."""
        with self._at(folder, follow=True) as there:
            place.make_folder(self._here, there)

    def close(self) -> None:
        """There is nothing to close."""

    def _listed(self, folder: str) -> list[tuple[str, os.stat_result]]:
        listed = []
        with self._at(folder, follow=True) as there, os.scandir(there) as entries:
            for entry in entries:
                try:
                    listed.append((entry.name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:  # removed while the folder was read
                    continue
        return listed

    def _fetch(self, path: str, local: Path) -> None:
        with self._reading(path) as stream, paths.LocalPart(local) as part:
            if part.size_bytes > os.fstat(stream.fileno()).st_size:
                part.begin_anew()
            stream.seek(part.size_bytes)
            for piece in checksum.chunks(stream.fileno()):
                part.write(piece)

    def _store(self, path: str, local: Path) -> None:
        with paths.of_this_machine(local):
            sha256 = checksum.sha256(local)
        with self._at(path) as there:
            there.parent.stat()
            try:
                copy.make_ready(self._here, local, there, sha256, link=False)
            finally:
                place.part_of(there).unlink(missing_ok=True)

    @contextmanager
    def _reading(self, path: str) -> Iterator[FileIO]:
        """An open regular file; a pipe is not waited for."""
        with self._at(path, follow=True) as there:
            descriptor = os.open(there, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with FileIO(descriptor) as stream:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise TryLater(f"{names.printable(path)} is no regular file")
                yield stream

    @contextmanager
    def _at(self, path: str, follow: bool = False) -> Iterator[Path]:
        """Where a path lies; the system's errors in the block become those of a store. ``follow`` a link at its end, too."""
        place.check_root(self._here, self._root_name)
        there = self._inside(paths.checked(path), follow)
        try:
            yield there
        except FileNotFoundError as error:
            raise self._absent(there) from error
        except NotADirectoryError as error:
            raise Absent(f"there is no {names.printable(path)}: what would have to be a folder is none") from error
        except PermissionError as error:
            raise Refused(f"{there}: {error.strerror}: {place.owners(there)}") from error
        except OSError as error:
            raise TryLater(f"{there}: {error.strerror or error}") from error
        finally:
            place.check_root(self._here, self._root_name)

    def _inside(self, path: str, follow: bool) -> Path:
        """A path with the links on its way resolved.

        Raises:
            Refused: they lead out of the store.
        """
        plain = self._top / path
        there = Path(os.path.realpath(plain)) if follow or not path else Path(os.path.realpath(plain.parent)) / plain.name
        if not there.is_relative_to(self._top):
            raise Refused(f"{names.printable(path)} leads out of the store, to {there}; nothing was done with it")
        return there

    def _absent(self, there: Path) -> TryLater:
        """That there is no such thing, if the last folder on the way to it that is there can be read and does not have it."""
        folder = there.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        try:
            os.scandir(folder).close()
        except OSError as error:
            return Refused(f"whether there is a {there} cannot be told: {folder}: {error.strerror}: {place.owners(folder)}")
        return Absent(f"there is no {names.printable(str(there))}")


def _failures(work: Callable[[str, Path], None], files: Mapping[str, Path]) -> dict[str, DataflowError]:
    failures = {}
    for path, local in files.items():
        try:
            work(path, local)
        except DataflowError as error:
            failures[path] = error
    return failures


def _renamed(source: Path, target: Path, status: os.stat_result) -> bool:
    """Rename without replacing; False when the name is taken.

    A file is linked and then unlinked, because rename(2) replaces. A folder is renamed, which can replace nothing but an empty
    folder, and so is a file that cannot be linked: its new name was free just before.
    """
    if os.path.lexists(target):
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1 or not os.path.samestat(status, target.lstat()):
            return False
        source.unlink()  # both are one file: a rename that was killed
        return True
    if stat.S_ISDIR(status.st_mode):
        source.rename(target)
        return True
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        source.rename(target)
        return True
    checksum.sync_folder(target.parent)
    source.unlink()
    return True
