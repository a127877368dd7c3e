"""Putting files in their places: whole, durable, and only where a root's marker says that the disk is there.

A file appears under its final name whole, by a link after fsync, or not at all; only small files of our own are renamed.
Parts are hidden (leading dot), so that no scan and no reader takes them for files.
"""

from __future__ import annotations

import errno
import grp
import itertools
import os
import pwd
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, command, names
from dataflow.lib.config import MARKER, Here
from dataflow.lib.errors import TryLater

ANSWER_S = 3.0
"""How long a mounted root may take to answer; a network mount whose server is gone never does."""
_durable: set[Path] = set()
"""Folders whose names this process has synced."""


def check_root(here: Here, root: str) -> None:
    """Make sure that a root is the disk it should be.

    Raises:
        TryLater: its marker is missing or names another root: an unmounted NAS is not an empty NAS.
    """
    marker = here.roots[root] / MARKER
    try:
        named = _first_bytes(marker)
    except OSError as error:
        raise TryLater(
            f"{here.roots[root]} is not in use: its marker {MARKER} cannot be read ({error.strerror}). Is the disk mounted? "
            f"If it is the right disk: dataflow check {here.host_name} --radar {here.radar} --create-markers"
        ) from error
    if named != root:
        raise TryLater(f"{marker} names the root {named!r}, not {root!r}: another disk is mounted at {here.roots[root]}")


def _first_bytes(path: Path) -> str:
    """The beginning of a file, whatever is in it; of a pipe nothing, without waiting for somebody who writes to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 100).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)


def require_answer(here: Here, root: str) -> None:
    """Ask a network mount in a process of its own, which may hang in place of this one; a local root needs no asking.

    For whoever must go on without the disk. A step just uses it, and is left behind by the daemon if that hangs.

    Raises:
        TryLater: it gave no answer, so its server is gone.
    """
    path = here.roots[root]
    if not here.root_settings[root].mounted:
        return
    asking = command.start(["stat", "--", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, inherit=False)
    try:
        asking.wait(ANSWER_S)
    except subprocess.TimeoutExpired as error:
        asking.kill()  # and left behind: it ends when the mount answers, or is given up
        raise TryLater(f"{path} gave no answer within {ANSWER_S:.0f} s: a dead network mount?") from error


def free_bytes(here: Here, root: str) -> int:
    """What is free on the disk of a root, for a user without privileges."""
    return shutil.disk_usage(here.roots[root]).free


def require_room(here: Here, folders: Iterable[Path], size_bytes: int, reserve_bytes: int | None = None) -> None:
    """Make sure that so much more in each folder leaves every disk the reserve of its root, or the one that is given.

    Raises:
        TryLater: it does not.
    """
    for root, files in Counter(map(here.root_holding, folders)).items():
        if root is None:
            continue
        least_bytes = here.root_settings[root].reserve_bytes if reserve_bytes is None else reserve_bytes
        if least_bytes and (free := free_bytes(here, root)) - files * size_bytes < least_bytes:
            raise TryLater(
                f"{here.roots[root]} has {free / 1e9:.3f} GB free, of which {least_bytes / 1e9:.3f} GB are to stay free: "
                f"tried again when there is room for {files * size_bytes / 1e9:.3f} GB more"
            )


def scan(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden and not folders, by name; a missing folder is empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and not e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def is_regular(path: Path) -> bool:
    """True for a regular file that is no symbolic link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def part_of(path: Path) -> Path:
    """The hidden name under which a file is written before it gets its final name."""
    return path.with_name(f".{path.name}.part")


def make_folder(here: Here, folder: Path, mode: int | None = None) -> None:
    """Create a folder and its missing parents, durably; each is there only with the host's group and mode, or the one given.

    Raises:
        TryLater: the configured group is not known.
        OSError: it cannot be made.
    """
    for missing in _missing(folder):
        _make_one(here, missing, here.dir_mode if mode is None or missing != folder else mode)
    _sync_names(folder)


def _make_one(here: Here, folder: Path, mode: int) -> None:
    """Create one folder with its mode from the beginning, taking over what a killed run has half made."""
    part = part_of(folder)
    with suppress(FileExistsError):
        part.mkdir(0o700)
    try:
        if not stat.S_ISDIR(part.lstat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is in the way of a new folder, and none: remove it", str(part))
        own(here, part, mode)
        part.rename(folder)
    except (OSError, TryLater):
        with suppress(OSError):
            part.rmdir()
        if not folder.is_dir():  # or else somebody was quicker
            raise


def make_own_folder(folder: Path) -> None:
    """Create a folder of our own, of the state or the logs, and its missing parents, durably.

    What lies in a folder is only as durable as the folder's own name in the one above.
    """
    for missing in _missing(folder):
        missing.mkdir(exist_ok=True)
    _sync_names(folder)


def _missing(folder: Path) -> list[Path]:
    """The folders to make, from the top; none of them counts as durable any more."""
    missing = list(itertools.takewhile(lambda each: not each.is_dir(), (folder, *folder.parents)))
    _durable.difference_update(missing)
    return missing[::-1]


def _sync_names(folder: Path) -> None:
    """Make the names of a folder and of those above it durable, as far up as this user could have made them, once a process.

    Those that were there too: who made them may have been killed before he came to it.
    """
    names_given = list(itertools.takewhile(_may_be_new, (folder, *folder.parents)))
    for each in reversed(names_given):
        checksum.sync_folder(each.parent)
    _durable.update(names_given)


def _may_be_new(folder: Path) -> bool:
    return folder not in _durable and not folder.is_mount() and os.access(folder.parent, os.R_OK | os.W_OK)


def own(here: Here, path: Path, mode: int) -> None:
    """Give a file or folder the configured group and mode.

    Raises:
        TryLater: no such group is known: a directory service that does not answer is no reason to give a file to others.
    """
    if here.host.group is not None:
        try:
            shutil.chown(path, group=here.host.group)
        except LookupError as error:
            raise TryLater(
                f"the group {here.host.group} of {here.host_name} is not known on this machine, so {path.name} cannot be given "
                f"to it: does its directory service answer (getent group {here.host.group})? If so, correct config.yaml"
            ) from error
    path.chmod(mode)


def owners(path: Path) -> str:
    """Whose a file and its folder are, as far as this user may see it: for the person who has to change that."""
    told = []
    for each in (path, *path.parents):
        try:
            status = each.stat()
        except OSError:
            continue
        what = "it is" if each == path else f"the folder {names.printable(str(each))} is"
        group = _name_of(grp.getgrgid, status.st_gid)
        told.append(f"{what} {account(status.st_uid)}:{group} {stat.S_IMODE(status.st_mode):o}")
        if each != path:
            break
    return ", ".join([*told, f"and this is {account(os.geteuid())}"])


def account(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    return _name_of(pwd.getpwuid, uid)


def _name_of(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def publish(part: Path, final: Path) -> None:
    """Give a synced part its final name, which must be free, and make that name durable.

    Linked and then unlinked, because rename(2) overwrites and NFS has no renameat2(2) that does not. Killed in between,
    both names are one file, which the next run finds in its place.

    Raises:
        FileExistsError: the final name is taken; nothing is overwritten.
    """
    os.link(part, final, follow_symlinks=False)
    checksum.sync_folder(final.parent)
    part.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file of our own (state, flag, reason) under its name by rename after fsync, replacing an older one."""
    part = part_of(path)
    part.unlink(missing_ok=True)  # what lies there may be a link or a pipe: a part is always made anew
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(path)
    checksum.sync_folder(path.parent)


def mark(here: Here, marker: Path) -> None:
    """Make a marker durable: an empty file whose name says what is still to be done with the file of that name."""
    make_folder(here, marker.parent)
    try:
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664))
    except FileExistsError:  # as good; and if it is a link, nobody followed it
        pass
    checksum.sync_folder(marker.parent)


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in several folders durable, each once."""
    for folder in dict.fromkeys(folders):
        checksum.sync_folder(folder)


def release(path: Path) -> None:
    """Remove a source whose copies are verified and recorded; gone already is as good."""
    path.unlink(missing_ok=True)
