"""A store that is a Globus collection: files go by transfer tasks, everything else is asked of the collection itself.

A task moves a batch between the collection and the local one, which must see our files under their own paths, and compares
checksums of what it wrote. Globus tells no hash, replaces a file that a task writes to, and does not say what ``rename`` does
to a name that is taken: so every name is looked at first. That something is not there is believed only when the folder that it
would lie in is, up to the root: a store whose disk is not mounted has nothing either.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from globus_sdk import DeleteData, TransferAPIError, TransferClient, TransferData
from globus_sdk.transport import RetryConfig

from dataflow.lib.errors import DataflowError, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores import Absent, Refused, Taken
from dataflow.mirror.stores.globus_errors import FOLDER_EXISTS, asking
from dataflow.mirror.stores.globus_tasks import Ended, Result, Tasks
from dataflow.mirror.stores.globus_user import user_app

MOST_ENTRIES = 100_000
"""What the service lists of a folder at most; what is beyond, it leaves out in silence."""
LISTED_AT_ONCE = 4
"""From so many files of one folder on it is one question for the folder instead of one for each."""
HASHED_AT_ONCE = 50
"""How many files are fetched at a time only to be hashed; with 20 MB each they need 1 GB in ``work``."""
RETRIES, LONGEST_RETRY_PAUSE_S = 3, 10.0

Sizes = dict[str, int | DataflowError | None]


class GlobusStore:
    """Satisfies ``Store``; see there.

    Raises:
        BadConfig: nobody has logged in, or the token file cannot be used.
        HostDown, TryLater: a task that a dead process left behind cannot be ended.
    """

    def __init__(self, settings: StoreSettings, work: Path) -> None:
        self._root = settings.root.rstrip("/")
        self._collection, self._local = str(settings.collection_id), str(settings.local_collection_id)
        self._app = user_app(settings)
        retries = RetryConfig(max_retries=RETRIES, max_sleep=LONGEST_RETRY_PAUSE_S)
        self._client = TransferClient(app=self._app, retry_config=retries)
        with asking(f"use the login in {settings.token_file}"):
            self._app.get_authorizer(self._client.resource_server)
        self._tasks = Tasks(self._client, work, settings.time_limit_s)

    def names(self, folder: str) -> dict[str, int | None]:
        """What lies in a folder."""
        return {entry["name"]: entry["size"] if entry["type"] == "file" else None for entry in self._listed(folder)}

    def size(self, path: str) -> int | None:
        """The size of a file."""
        found = self._stat(path)
        if found is not None and found["type"] != "file":
            raise TryLater(f"{self._path(path)} is a {found['type']} and no file")
        return int(found["size"]) if found is not None else None

    def changed_s(self, folder: str) -> dict[str, float]:
        """When each file of a folder was last changed."""
        return {entry["name"]: _time_s(entry["last_modified"]) for entry in self._listed(folder) if entry["type"] == "file"}

    def fetch(self, wanted: Mapping[str, Path]) -> dict[str, DataflowError]:
        """Copy files here. Each starts anew, whatever lies there of an earlier try."""
        there = self._sizes(wanted)
        failures = {path: size for path, size in there.items() if isinstance(size, DataflowError)}
        failures |= {path: Absent(f"there is no {self._path(path)}") for path, size in there.items() if size is None}
        going = {path: (self._path(path), str(wanted[path].absolute())) for path in wanted if path not in failures}
        if going:
            try:
                with self._tasks.download(self._document(self._collection, self._local, going)) as ended:
                    missed = self._missed(ended, going)
            except DataflowError as error:
                return failures | dict.fromkeys(going, error)
            here = {path: _local_size(wanted[path]) for path in going if path not in missed}
            failures |= missed | _unequal(here, there)
        return failures

    def store(self, files: Mapping[str, Path]) -> dict[str, DataflowError]:
        """Copy files there. An upload of the same files by a process that was killed is taken on."""
        here = {path: _local_size(file) for path, file in files.items()}
        failures = {path: size for path, size in here.items() if isinstance(size, DataflowError)}
        going = {path: (str(files[path].absolute()), self._path(path)) for path in files if path not in failures}
        if going:
            try:
                with self._tasks.upload(self._document(self._local, self._collection, going), _content(going)) as ended:
                    missed = self._missed(ended, going)
                    missed |= _unequal(here, self._sizes([path for path in going if path not in missed]))
            except DataflowError as error:
                return failures | dict.fromkeys(going, error)
            failures |= self.store({path: files[path] for path in missed}) if ended.is_earlier and missed else missed
        return failures

    def sha1(self, paths: Collection[str]) -> dict[str, str | DataflowError]:
        """SHA-1 of files: fetched some at a time, hashed here, and removed."""
        answers: dict[str, str | DataflowError] = {}
        folder, left = self._tasks.folder / "hashed", iter(paths)
        while batch := list(islice(left, HASHED_AT_ONCE)):
            folder.mkdir(exist_ok=True)
            copies = {path: folder / str(number) for number, path in enumerate(batch)}
            failures = self.fetch(copies)
            answers |= failures | {path: _sha1(copies[path]) for path in batch if path not in failures}
            shutil.rmtree(folder)
        return answers

    def rename(self, old: str, new: str) -> None:
        """Give a file or folder another path, which must be free; a rename whose answer was lost is seen by what lies where."""
        if self._stat(new) is not None:
            raise Taken(f"{self._path(new)} is there already: {self._path(old)} keeps its name")
        try:
            with asking(f"rename {self._path(old)} to {self._path(new)}"):
                self._client.operation_rename(self._collection, self._path(old), self._path(new))
        except TryLater as error:
            if self._stat(old) is not None:
                raise TryLater(str(error)) from error
            if self._stat(new) is None:
                raise Absent(f"there is no {self._path(old)}") from error

    def remove(self, path: str) -> None:
        """Remove one file."""
        document = DeleteData(self._collection, ignore_missing=True)
        document.add_item(self._path(path))
        with self._tasks.delete(document) as ended:
            pass
        if ended.result is not Result.SUCCEEDED:
            raise TryLater(f"{self._path(path)} was not removed: {_told(ended)}")

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents."""
        found = self._stat(folder)
        if found is None:
            self.make_folder(_parent(folder))
            with asking(f"make the folder {self._path(folder)}"):
                try:
                    self._client.operation_mkdir(self._collection, self._path(folder))
                except TransferAPIError as error:
                    if error.code != FOLDER_EXISTS:
                        raise
        elif found["type"] != "dir":
            raise TryLater(f"{self._path(folder)} is a {found['type']} and no folder")

    def close(self) -> None:
        """End its connections."""
        self._tasks.close()
        self._client.close()
        self._app.close()

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/") or "/"

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        """The entries of a folder, all of them or none."""
        where = self._path(folder)
        try:
            with asking(f"list {where}"):
                answer = self._client.operation_ls(self._collection, where, show_hidden=True, limit=MOST_ENTRIES).data
        except Absent as error:
            if self._stat(folder) is not None:
                raise TryLater(f"{where} is there and is not there: {error}") from error
            raise
        if not isinstance(answer, dict) or not isinstance(entries := answer.get("DATA"), list):
            raise TryLater(f"list {where}: the answer is no list")
        if len(entries) >= MOST_ENTRIES or len(entries) < answer.get("total", 0):
            raise TryLater(f"list {where}: Globus gives {len(entries)} entries and not all; the folder must have fewer files")
        return entries

    def _stat(self, path: str) -> dict[str, Any] | None:
        """What a path is; None when it is definitely nothing."""
        try:
            with asking(f"look at {self._path(path)}"):
                return dict(self._client.operation_stat(self._collection, self._path(path)).data)
        except Absent as error:
            if not path:
                raise TryLater(f"the root of the store, {self._path('')}, is not there: is its disk mounted?") from error
            self._stat(_parent(path))
            return None

    def _sizes(self, paths: Collection[str]) -> Sizes:
        """The size of each file, None where it is definitely not there, or why that cannot be told."""
        by_folder = defaultdict(list)
        for path in paths:
            by_folder[_parent(path)].append(path)
        sizes: Sizes = {}
        for folder, inside in by_folder.items():
            try:
                listed = self.names(folder) if len(inside) >= LISTED_AT_ONCE else None
            except Absent:
                listed = {}
            except DataflowError as error:
                sizes |= dict.fromkeys(inside, error)
                continue
            sizes |= {path: listed.get(path.rpartition("/")[2]) for path in inside} if listed is not None else self._each(inside)
        return sizes

    def _each(self, paths: Collection[str]) -> Sizes:
        sizes: Sizes = {}
        for path in paths:
            try:
                sizes[path] = self.size(path)
            except DataflowError as error:
                sizes[path] = error
        return sizes

    def _document(self, source: str, destination: str, going: Mapping[str, tuple[str, str]]) -> TransferData:
        """A task. Without ``skip_source_errors`` one file that cannot be read is tried until the deadline, and with it all."""
        document = TransferData(
            source, destination, verify_checksum=True, skip_source_errors=True, fail_on_quota_errors=True
        )  # fmt: skip
        for whence, whither in going.values():
            document.add_item(whence, whither)
        return document

    def _missed(self, ended: Ended, going: Mapping[str, tuple[str, str]]) -> dict[str, DataflowError]:
        """The files that a task did not move.

        One that failed, or was cancelled, has moved some all the same; one that succeeded may have skipped some.
        """
        listed = self._client.paginated
        with asking(f"look at task {ended.task_id}"):
            skipped = {item["source_path"]: item["error_code"] for item in listed.task_skipped_errors(ended.task_id).items()}
            moved = {whither for _, whither in going.values()}
            if ended.result is not Result.SUCCEEDED:
                moved &= {item["destination_path"] for item in listed.task_successful_transfers(ended.task_id).items()}
        missed: dict[str, DataflowError] = {}
        for path, (whence, whither) in going.items():
            if whence in skipped:
                kind = Refused if skipped[whence] == "PERMISSION_DENIED" else TryLater
                missed[path] = kind(f"{whence} was skipped: {skipped[whence]}")
            elif whither not in moved:
                missed[path] = TryLater(f"{whence} was not moved: {_told(ended)}")
        return missed


def _told(ended: Ended) -> str:
    cancelled = " and was cancelled" if ended.result in (Result.INACTIVE, Result.TIMED_OUT) else ""
    return f"task {ended.task_id} {ended.result.value}{cancelled}: {ended.why}"


def _unequal(here: Sizes, there: Sizes) -> dict[str, DataflowError]:
    """The files whose sizes differ between here and there, of those that both know of."""
    failures: dict[str, DataflowError] = {}
    for path in here.keys() & there.keys():
        wrong = next((size for size in (here[path], there[path]) if isinstance(size, DataflowError)), None)
        if wrong is not None:
            failures[path] = wrong
        elif here[path] != there[path]:
            failures[path] = TryLater(f"{path} has {here[path]} bytes here and {there[path]} there, after it was moved")
    return failures


def _content(going: Mapping[str, tuple[str, str]]) -> str:
    """Of an upload, which files go where, and what they are: while this is the same, so is what arrives."""
    digest = hashlib.sha256()
    for whence, whither in sorted(going.values()):
        status = Path(whence).stat()
        digest.update(repr((whence, whither, status.st_ino, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _local_size(path: Path) -> int | DataflowError | None:
    try:
        return path.stat().st_size
    except OSError as error:
        return TryLater(f"{path}: {error.strerror}")


def _sha1(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()


def _time_s(text: str) -> float:
    """A time as the service writes it, ``2026-11-20 12:00:00+00:00``, as Unix time."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
