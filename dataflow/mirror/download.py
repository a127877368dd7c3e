"""Files of a store into a holding directory: fetched many at a time, verified, and only then given their names.

Each is fetched to a hidden part in ``<work>/parts/<lock of the job>/``, which a run that was cut off leaves there and the next
one goes on with. What lies on the disk is compared with the expected SHA-1; a part that is something else is removed, and the
file fetched anew once. A file appears in the holding directory whole and durable, and nothing there is ever replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.lib import checksum, copy, names, place
from dataflow.lib.errors import BadFile, HostDown, TryLater
from dataflow.lib.names import Name
from dataflow.lib.step import trouble
from dataflow.mirror import aside
from dataflow.mirror.job import Job
from dataflow.mirror.stores import Store
from dataflow.mirror.stores.paths import parent_of

BATCH_FILES = 100
BATCH_BYTES = 256 << 20
"""What is fetched before it is asked again whether there is room and whether to stop."""
READ_AT_ONCE = 4
PARTS_KEPT = timedelta(days=7)
"""How long the beginning of a file is kept that nobody has asked for again."""


def download(
    job: Job, store: Store, wanted: Mapping[str, tuple[str, str]], holding: Path, *, action: str, source: str
) -> dict[str, str]:
    """Bring files into a holding directory and account for each; why the others did not come, by name.

    ``wanted``: names of the grammar, each with its path in the store and its SHA-1. What comes with another hash twice is kept
    for the next run; the same name with other content in the holding directory sets the newcomer aside. ``action`` and
    ``source`` are for the records: what is done, and whose the files are.

    Raises:
        HostDown: the store cannot be reached. What came before has its name; the rest is accounted for as kept.
    """
    one = _Download(job, store, holding, action, source, dict(wanted))
    try:
        for batch in _batches(one.files()):
            if job.should_stop():
                break
            one.bring(batch)
            if job.progress is not None:
                job.progress(f"{action} from {source}", len(wanted) - len(one.left), len(wanted))
    except (HostDown, TryLater, OSError) as error:
        one.keep_the_rest(trouble(error))
        if isinstance(error, HostDown):
            raise
    one.keep_the_rest("asked to stop")
    return one.failures


def sha1_there(path: Path) -> str | None:
    """SHA-1 of what has a name in a holding directory: None for nothing, empty for what is no file that can be read."""
    try:
        path.lstat()
        return checksum.hashes_on_disk(path, ("sha1",))[0] if place.is_regular(path) else ""
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def name_of(file: str) -> Name:
    """The name of a file that a strict list, or a scan for names of the grammar, has given."""
    name = names.parse(file)
    assert name is not None, file
    return name


@dataclass(frozen=True, slots=True)
class _File:
    """One file that is fetched. ``path``: where it lies in the store; ``part``: where it lies here until it is verified."""

    name: str
    path: str
    sha1: str
    size_bytes: int
    part: Path


@dataclass(slots=True)
class _Download:
    """One call. ``left``: what is not accounted for yet; ``failures``: what did not come, and why."""

    job: Job
    store: Store
    holding: Path
    action: str
    source: str
    left: dict[str, tuple[str, str]]
    failures: dict[str, str] = field(default_factory=dict)
    down: HostDown | None = None

    def files(self) -> list[_File]:
        """What is there to be fetched, with its sizes; what is not there is kept."""
        parts = self._parts_folder()
        there = {folder: self._listed(folder) for folder in sorted({parent_of(path) for path, _ in self.left.values()})}
        files = []
        for name, (path, sha1) in list(self.left.items()):
            listed = there[parent_of(path)]
            size_bytes = listed.get(path.rpartition("/")[2]) if not isinstance(listed, TryLater) else None
            if size_bytes is None:
                self._keep(name, str(listed) if isinstance(listed, TryLater) else f"there is no file {path} at {self.source}")
            else:
                files.append(_File(name, path, sha1, size_bytes, parts / f".{name}.{sha1}"))
        return files

    def bring(self, batch: Sequence[_File]) -> None:
        """Fetch, verify and publish some files.

        Raises:
            HostDown: the store cannot be reached; what came is published.
            TryLater: a disk of this machine is not there.
        """
        self._check_disks()
        try:
            place.require_room(self.job.here, self._disks().values(), sum(file.size_bytes for file in batch))
        except TryLater as error:  # for these, whose sizes another machine has told; the next ones may be small
            for file in batch:
                self._keep(file.name, str(error))
            return
        verified, wrong = self._fetch(batch)
        if wrong and self.down is None:
            again, wrong = self._fetch(list(wrong))
            verified.update(again)
            for file, sha1 in wrong.items():
                self._keep(file.name, f"fetched twice, its SHA-1 was {sha1}, and {file.sha1} is expected; what came was removed")
        self._publish(verified)
        if self.down is not None:
            raise self.down

    def keep_the_rest(self, reason: str) -> None:
        """Account for everything that was not come to."""
        for name in list(self.left):
            self._keep(name, reason)

    def _fetch(self, files: Sequence[_File]) -> tuple[dict[_File, str], dict[_File, str]]:
        """Fetch files: the SHA-256 of those that are as expected, and the SHA-1 of those that were not and are removed."""
        for file in files:
            _unlink_if_not_a_part(file.part)
        errors = self.store.fetch({file.path: file.part for file in files})
        for file in files:
            error = errors.get(file.path)
            if isinstance(error, HostDown):
                self.down = error
            elif error is not None:
                self._keep(file.name, str(error))
        verified, wrong = {}, {}
        came = [file for file in files if file.path not in errors]
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            for file, hashes in zip(came, pool.map(_hashes, came), strict=True):
                if isinstance(hashes, OSError):
                    self._keep(file.name, trouble(hashes))
                elif hashes[0] == file.sha1:
                    verified[file] = hashes[1]
                else:
                    wrong[file] = hashes[0]
                    place.release(file.part)
        return verified, wrong

    def _publish(self, verified: Mapping[_File, str]) -> None:
        """Give verified files their names, and let go of the parts when that is durable and recorded."""
        named = [file for file, sha256 in verified.items() if self._add_name(file, sha256)]
        place.sync_folders([self.holding])
        self._check_disks()  # unmounted meanwhile, the files lie below the mount point
        for file in named:
            del self.left[file.name]
            self.job.file(
                file.name, "done", self.action, sha1=file.sha1, sha256=verified[file], source=f"{self.source}:{file.path}",
                destination=str(self.holding / file.name), bytes=file.size_bytes,
            )  # fmt: skip
        self.job.log.sync()
        for file in named:
            place.release(file.part)

    def _add_name(self, file: _File, sha256: str) -> bool:
        try:
            place.own(self.job.here, file.part, self.job.here.file_mode)
            copy.add_name(self.job.here, file.part, self.holding / file.name, sha256)
            return True
        except BadFile as error:
            self._set_aside(file, error)
        except (TryLater, OSError) as error:
            self._keep(file.name, trouble(error))
        return False

    def _set_aside(self, file: _File, error: BadFile) -> None:
        """The name is taken by something else: the newcomer goes no further, and both stay."""
        newcomer = file.part.rename(file.part.with_name(file.name))
        hashes = getattr(error, "hashes", {})
        origin = f"{self.source}:{file.path}"
        try:
            aside.set_aside(self.job, newcomer, error.kind, str(error), sha1=file.sha1, origin=origin, **hashes)
        except (BadFile, TryLater, OSError) as why:  # of no concern to the others, which may have their names already
            self._keep(file.name, f"{error}; but it could not be set aside: {trouble(why)}")
            return
        self.failures[file.name] = str(error)
        del self.left[file.name]

    def _keep(self, name: str, reason: str) -> None:
        path, sha1 = self.left.pop(name)
        self.failures[name] = reason
        self.job.file(name, "kept", self.action, sha1=sha1, source=f"{self.source}:{path}", reason=reason)

    def _listed(self, folder: str) -> dict[str, int | None] | TryLater:
        try:
            return self.store.names(folder)
        except TryLater as error:
            return error

    def _disks(self) -> dict[str, Path]:
        """The roots that are written to, each with a folder in it."""
        folders = (self._parts(), self.holding)
        return {root: folder for folder in folders if (root := self.job.here.root_holding(folder)) is not None}

    def _check_disks(self) -> None:
        for root in self._disks():
            place.check_root(self.job.here, root)

    def _parts(self) -> Path:
        return self.job.here.folder("work") / "parts" / self.job.lock_name

    def _parts_folder(self) -> Path:
        """Where parts lie, without those that nobody has asked for again; no other job has the same, as none has the lock."""
        self._check_disks()
        place.make_folder(self.job.here, self._parts())
        for part in self._parts().iterdir():
            if self.job.clock() - datetime.fromtimestamp(part.lstat().st_mtime, UTC) > PARTS_KEPT:
                place.release(part)
        return self._parts()


def _batches(files: Iterable[_File]) -> Iterator[list[_File]]:
    batch: list[_File] = []
    for file in files:
        if batch and (len(batch) == BATCH_FILES or sum(each.size_bytes for each in batch) + file.size_bytes > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _unlink_if_not_a_part(part: Path) -> None:
    """What nobody may write to: a part of a killed run that is one file with a published one; a link or a pipe of somebody."""
    if os.path.lexists(part) and not (place.is_regular(part) and part.lstat().st_nlink == 1):
        place.release(part)


def _hashes(file: _File) -> tuple[str, ...] | OSError:
    try:
        return checksum.hashes_on_disk(file.part, ("sha1", "sha256"))
    except OSError as error:
        return error
