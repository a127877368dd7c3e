"""A store that is a Globus collection: files go by transfer tasks, everything else is asked of the collection itself.

A task moves a batch between the collection and the local one, which must see our files under their own paths, and compares
checksums of what it wrote. Globus tells no hash, writes a file in place, and does not say what ``rename`` does to a name that
is taken: so every name is looked at first. That something is not there is believed only when the folder that it would lie in
can be listed, or is not there either, up to the root: a store whose disk is not mounted has nothing at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from globus_sdk import DeleteData, TransferAPIError, TransferClient, TransferData
from globus_sdk.transport import RetryConfig

from dataflow.lib import names
from dataflow.lib.errors import DataflowError, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores import Absent, Refused, Taken, paths
from dataflow.mirror.stores.globus_errors import FOLDER_EXISTS, asking, error_of
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
Going = Mapping[str, tuple[str, str]]
"""What a task is to move: by path in the store, whence and whither in the two collections."""


class GlobusStore:
    """Satisfies ``Store``. ``work``: a folder that the local collection sees, for notes of tasks and for what is hashed.

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
        """See ``Store.names``."""
        return {entry["name"]: entry["size"] if _is_file(entry) else None for entry in self._listed(folder)}

    def size(self, path: str) -> int | None:
        """See ``Store.size``."""
        found = self._stat(path)
        if found is None:
            self._require_absent(path)
            return None
        if found["type"] != "file":
            raise TryLater(f"{_shown(path)} is a {found['type']} and no file")
        return int(found["size"])

    def changed_s(self, folder: str) -> dict[str, float]:
        """See ``Store.changed_s``."""
        return {entry["name"]: _time_s(entry["last_modified"]) for entry in self._listed(folder) if _is_file(entry)}

    def fetch(self, wanted: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See ``Store.fetch``. Globus cannot go on with the beginning of a file: each is fetched from there."""
        there = self._sizes(wanted)
        failures = {path: size for path, size in there.items() if isinstance(size, DataflowError)}
        failures |= {path: Absent(f"there is no {_shown(path)}") for path, size in there.items() if size is None}
        failures |= {path: TryLater(f"{local} is a folder on this machine") for path, local in wanted.items() if local.is_dir()}
        going = {path: (self._path(path), str(wanted[path].absolute())) for path in wanted if path not in failures}
        if going:
            try:
                with self._tasks.download(_document(self._collection, self._local, going)) as ended:
                    missed = self._missed(ended, going)
            except DataflowError as error:
                return failures | dict.fromkeys(going, error)
            here = {path: _local_size(wanted[path]) for path in going if path not in missed}
            failures |= missed | _unequal(here, there)
        return failures

    def store(self, files: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See ``Store.store``. An upload of the same files by a process that was killed is taken on."""
        failures = self._without_a_place(files)
        here = {path: _local_size(file) for path, file in files.items() if path not in failures}
        failures |= {path: size for path, size in here.items() if isinstance(size, DataflowError)}
        going = {path: (str(files[path].absolute()), self._path(path)) for path in files if path not in failures}
        if going:
            try:
                with self._tasks.upload(_document(self._local, self._collection, going), _content(going)) as ended:
                    missed = self._missed(ended, going)
                    missed |= _unequal(here, self._sizes([path for path in going if path not in missed]))
            except DataflowError as error:
                return failures | dict.fromkeys(going, error)
            failures |= self.store({path: files[path] for path in missed}) if ended.is_earlier and missed else missed
        return failures

    def sha1(self, wanted: Collection[str]) -> dict[str, str | DataflowError]:
        """See ``Store.sha1``: they are fetched some at a time, hashed here, and removed."""
        answers: dict[str, str | DataflowError] = {}
        folder, left = self._tasks.folder / "hashed", iter(wanted)
        while batch := list(islice(left, HASHED_AT_ONCE)):
            folder.mkdir(exist_ok=True)
            copies = {path: folder / str(number) for number, path in enumerate(batch)}
            failures = self.fetch(copies)
            answers |= failures | {path: _sha1(copies[path]) for path in batch if path not in failures}
            shutil.rmtree(folder)
        return answers

    def rename(self, old: str, new: str) -> None:
        """See ``Store.rename``. One whose answer was lost is recognised by what lies where."""
        if self._stat(new) is not None:
            raise Taken(f"{_shown(new)} is there already: {_shown(old)} keeps its name")
        try:
            with asking(f"rename {_shown(old)} to {_shown(new)}"):
                self._client.operation_rename(self._collection, self._path(old), self._path(new))
        except TryLater as error:
            if self._stat(old) is not None:
                if isinstance(error, Absent):
                    raise TryLater(f"{error}; is there no folder for {_shown(new)}?") from error
                raise
            if self._stat(new) is None:
                self._require_absent(old)
                raise Absent(f"there is no {_shown(old)}") from error

    def remove(self, path: str) -> None:
        """See ``Store.remove``."""
        document = DeleteData(self._collection, ignore_missing=True)
        document.add_item(self._path(path))
        with self._tasks.delete(document) as ended:
            has_failed = ended.result is not Result.SUCCEEDED
        if has_failed:
            raise ended.error(f"{_shown(path)} was not removed")

    def make_folder(self, folder: str) -> None:
        """See ``Store.make_folder``."""
        found = self._stat(folder)
        if found is None:
            self._require_absent(folder)
            self.make_folder(paths.parent_of(folder))
            with asking(f"make the folder {_shown(folder)}"):
                try:
                    self._client.operation_mkdir(self._collection, self._path(folder))
                except TransferAPIError as error:
                    if error.code != FOLDER_EXISTS:
                        raise
        elif found["type"] != "dir":
            raise TryLater(f"{_shown(folder)} is a {found['type']} and no folder")

    def close(self) -> None:
        """See ``Store.close``."""
        self._tasks.close()
        self._client.close()
        self._app.close()

    def _path(self, path: str) -> str:
        """A path of the store as the collection has it."""
        try:
            paths.checked(path).encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{_shown(path)} has bytes that are no UTF-8; Globus cannot name such a file") from error
        return f"{self._root}/{path}".rstrip("/") or "/"

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        """The entries of a folder, all of them or none."""
        try:
            answer = self._ls(folder, MOST_ENTRIES)
        except Absent:
            self._require_absent(folder)
            raise
        if not isinstance(answer, dict) or not isinstance(entries := answer.get("DATA"), list):
            raise TryLater(f"list {_shown(folder)}: the answer is no list")
        if len(entries) >= MOST_ENTRIES or len(entries) < answer.get("total", 0):
            raise TryLater(f"list {_shown(folder)}: Globus gives {len(entries)} entries and not all; it must have fewer files")
        return entries

    def _ls(self, folder: str, limit: int) -> object:
        with asking(f"list {_shown(folder)}"):
            return self._client.operation_ls(self._collection, self._path(folder), show_hidden=True, limit=limit).data

    def _stat(self, path: str) -> dict[str, Any] | None:
        """What a path is; None when the collection says that it is nothing, which is not yet to be believed."""
        try:
            with asking(f"look at {_shown(path)}"):
                return dict(self._client.operation_stat(self._collection, self._path(path)).data)
        except Absent:
            return None

    def _require_absent(self, path: str) -> None:
        """Believe that a path is nothing only if the folder above it can be listed, or is nothing either.

        Raises:
            Refused: that folder may not be listed.
            TryLater: not even the root is there.
        """
        if not path:
            raise TryLater(f"{self._path('')}, the root of the store, is not there: is its disk mounted?")
        try:
            self._ls(paths.parent_of(path), 1)
        except Absent:
            self._require_absent(paths.parent_of(path))

    def _sizes(self, wanted: Collection[str]) -> Sizes:
        """The size of each file, None where it is definitely not there, or why that cannot be told."""
        sizes: Sizes = {}
        for folder, inside in _by_folder(wanted).items():
            listed: Mapping[str, int | None] = {}
            if len(inside) >= LISTED_AT_ONCE:
                try:
                    listed = self.names(folder)
                except Absent:
                    pass
                except DataflowError as error:
                    sizes |= dict.fromkeys(inside, error)
                    continue
            for path in inside:
                size = listed.get(path.rpartition("/")[2])
                sizes[path] = size if size is not None else self._size_or_error(path)
        return sizes

    def _size_or_error(self, path: str) -> int | DataflowError | None:
        try:
            return self.size(path)
        except DataflowError as error:
            return error

    def _without_a_place(self, wanted: Collection[str]) -> dict[str, DataflowError]:
        """The paths to which nothing can be stored: one bad destination makes a task fail for all files."""
        failures = _failures(self._path, wanted)
        for folder, inside in _by_folder(wanted).items():
            for error in _failures(self._require_folder, [folder]).values():
                failures = dict.fromkeys(inside, error) | failures
        return failures

    def _require_folder(self, folder: str) -> None:
        found = self._stat(folder)
        if found is None or found["type"] != "dir":
            raise TryLater(f"there is no folder {_shown(folder)}")

    def _missed(self, ended: Ended, going: Going) -> dict[str, DataflowError]:
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
                missed[path] = error_of(skipped[whence], f"{names.printable(whence)} was skipped: {skipped[whence]}")
            elif whither not in moved:
                missed[path] = ended.error(f"{names.printable(whence)} was not moved")
        return missed


def _document(source: str, destination: str, going: Going) -> TransferData:
    """A task. Without ``skip_source_errors`` a file that cannot be read is tried until the deadline, and all wait for it."""
    document = TransferData(source, destination, verify_checksum=True, skip_source_errors=True, fail_on_quota_errors=True)
    for whence, whither in going.values():
        document.add_item(whence, whither)
    return document


def _content(going: Going) -> str:
    """Of an upload, which files go where, and what they are: while this is the same, so is what arrives."""
    digest = hashlib.sha256()
    for whence, whither in sorted(going.values()):
        status = Path(whence).stat()
        digest.update(repr((whence, whither, status.st_ino, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _unequal(here: Sizes, there: Sizes) -> dict[str, DataflowError]:
    """The files whose sizes differ between here and there, of those that both know of."""
    failures: dict[str, DataflowError] = {}
    for path in (path for path in here if path in there):
        wrong = next((size for size in (here[path], there[path]) if isinstance(size, DataflowError)), None)
        if wrong is not None:
            failures[path] = wrong
        elif here[path] != there[path]:
            failures[path] = TryLater(f"{_shown(path)} has {here[path]} bytes here and {there[path]} there, after it was moved")
    return failures


def _failures(ask: Callable[[str], object], wanted: Iterable[str]) -> dict[str, DataflowError]:
    failures = {}
    for path in wanted:
        try:
            ask(path)
        except DataflowError as error:
            failures[path] = error
    return failures


def _by_folder(wanted: Iterable[str]) -> dict[str, list[str]]:
    folders = defaultdict(list)
    for path in wanted:
        folders[paths.parent_of(path)].append(path)
    return folders


def _is_file(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a folder is a regular file; of a link, which Globus shows as what it leads to, it tells the target."""
    return entry["type"] == "file" and entry.get("link_target") is None


def _local_size(path: Path) -> int | DataflowError | None:
    try:
        with paths.of_this_machine(path):
            return path.stat().st_size
    except TryLater as error:
        return error


def _sha1(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()


def _time_s(text: str) -> float:
    """A time as the service writes it, ``2026-11-20 12:00:00+00:00``, as Unix time."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _shown(path: str) -> str:
    return names.printable(path) or "the root"
