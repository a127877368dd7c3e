"""Tasks of Globus: each started once, waited for within a limit, and none left to work behind our back.

A task lives at the service and goes on when we are killed. So a note of it lies in ``work`` before it is submitted, with the
id of the submission (the service carries out one id once, however often it is sent), and goes when the task has ended. The
notes of a process lie in a folder that it holds a lock on; a folder that nobody holds is of a process that is dead. Whoever
comes next looks at those: an upload of just the same files is taken on, everything else is cancelled, so that nothing of an
earlier run is still written or deleted while this one works.

    <work>/globus/<process>/             held by flock(2) while its process lives; also what is fetched only to be hashed
    <work>/globus/<process>/<n>.json     a note
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from globus_sdk import DeleteData, GlobusAPIError, TransferClient, TransferData

from dataflow.lib import names, place
from dataflow.lib.errors import TryLater
from dataflow.mirror.stores.globus_errors import asking, error_of

RUNNING = ("ACTIVE", "INACTIVE")
"""The states in which a task may still do something; an inactive one waits for a person, and then goes on."""
SILENT = {"notify_on_succeeded": False, "notify_on_failed": False, "notify_on_inactive": False}
"""No mails from the service: what a task came to is in our records, and in our alerts."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
CANCEL_LIMIT_S = 60.0
STALL_LIMIT_S = 900.0
"""A task of a collection that is not connected stays active until its deadline, and does nothing."""
PROGRESS = ("bytes_transferred", "bytes_checksummed", "files_transferred", "files_skipped", "subtasks_succeeded")
"""What of a task changes while it gets on."""


class Result(Enum):
    """How a task ended for us."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INACTIVE = "inactive"
    TIMED_OUT = "timed out"


_RESULTS = {"SUCCEEDED": Result.SUCCEEDED, "FAILED": Result.FAILED, "INACTIVE": Result.INACTIVE, "ACTIVE": Result.TIMED_OUT}


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that does nothing any more; what went wrong last, where it did not succeed. ``is_earlier``: not started by us."""

    task_id: str
    result: Result
    code: str = ""
    why: str = ""
    is_earlier: bool = False

    def error(self, text: str) -> TryLater:
        """That something did not happen because this task did not succeed."""
        cancelled = " and was cancelled" if self.result in (Result.INACTIVE, Result.TIMED_OUT) else ""
        return error_of(self.code, f"{text}: task {self.task_id} {self.result.value}{cancelled}: {self.why}")


@dataclass(slots=True)
class Note:
    """What has to be known of a task after its process was killed. ``content``: of an upload, what exactly it brings."""

    label: str
    submission_id: str
    content: str | None
    task_id: str | None = None


class Tasks:
    """The tasks of one process, and those of dead ones. ``time_limit_s``: what one may take in all."""

    def __init__(self, client: TransferClient, work: Path, time_limit_s: float) -> None:
        self._client = client
        self._time_limit_s = time_limit_s
        self._folders = work / "globus"
        self.folder, self._lock = _own_folder(self._folders)
        for note, path in self._notes_of_the_dead():
            if note.content is None:
                self._end(note, path)

    def close(self) -> None:
        """Let go of the folder; notes of tasks that could not be followed to their end stay for the next process."""
        if not list(self.folder.glob("*.json")):
            shutil.rmtree(self.folder)
        os.close(self._lock)

    @contextmanager
    def upload(self, document: TransferData, content: str) -> Iterator[Ended]:
        """Send files, or take on an earlier task that does; ``content`` says which files, and in which state of theirs.

        The task is done with when the block ends; if an error ends it, the next try of the same upload takes the task on.

        Raises:
            TryLater: an earlier task does not let itself be cancelled, or the service does not take this one.
            HostDown: Globus cannot be reached; the task may go on and is taken on by the next try.
        """
        taken_on = None
        for note, path in self._notes_of_the_dead():
            if path == taken_on:  # it lies among our own by now
                continue
            if note.content == content and taken_on is None:
                taken_on = path.rename(self.folder / path.name)
            else:
                self._end(note, path)
        with self._followed(taken_on or self._noted("store", content), document) as ended:
            yield replace(ended, is_earlier=taken_on is not None)

    def download(self, document: TransferData) -> AbstractContextManager[Ended]:
        """Fetch files. An earlier task is never taken on: what it has read may be out of date. Raises as ``upload``."""
        return self._followed(self._noted("fetch"), document)

    def delete(self, document: DeleteData) -> AbstractContextManager[Ended]:
        """Delete files. Raises as ``upload``."""
        return self._followed(self._noted("delete"), document)

    def _noted(self, verb: str, content: str | None = None) -> Path:
        """A note of a task that is about to be submitted."""
        with asking("ask for the id of a submission"):
            submission_id = str(self._client.get_submission_id()["value"])
        path = self.folder / f"{time.time_ns()}.json"
        _write(Note(f"dataflow {verb} {submission_id}", submission_id, content), path)
        return path

    @contextmanager
    def _followed(self, path: Path, document: TransferData | DeleteData) -> Iterator[Ended]:
        """Submit a task of which there is a note, wait until it has ended or must be given up; the note goes after the block."""
        note = _read(path)
        note.task_id = self._submitted(note, path, document)
        _write(note, path)
        task = self._wait(note.task_id, self._time_limit_s)
        result = _RESULTS[task["status"]]
        if result in (Result.INACTIVE, Result.TIMED_OUT):
            self._cancel(note.task_id, note.label)
        yield Ended(note.task_id, result, *(self._why(task) if result is not Result.SUCCEEDED else ()))
        path.unlink()

    def _submitted(self, note: Note, path: Path, document: TransferData | DeleteData) -> str:
        deadline = datetime.now(UTC) + timedelta(seconds=self._time_limit_s)
        document.update(submission_id=note.submission_id, label=note.label, deadline=deadline.isoformat(), **SILENT)
        submit = self._client.submit_delete if isinstance(document, DeleteData) else self._client.submit_transfer
        with asking(f"submit {note.label}"):
            try:
                return str(submit(document)["task_id"])
            except GlobusAPIError as error:
                if error.http_status < 500:  # it was not taken, and never will be
                    path.unlink()
                raise

    def _wait(self, task_id: str, limit_s: float) -> dict[str, Any]:
        """A task as it is when it is no longer active, or when its time is over, or it has not got on for too long."""
        end_s, pause_s, progress, moved_s = time.monotonic() + limit_s, FIRST_PAUSE_S, None, 0.0
        with asking(f"look at task {task_id}"):
            while (task := self._client.get_task(task_id).data)["status"] == "ACTIVE":
                if (now := [task.get(key) for key in PROGRESS]) != progress:
                    progress, moved_s = now, time.monotonic()
                if time.monotonic() + pause_s > min(end_s, moved_s + STALL_LIMIT_S):
                    break
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        return dict(task)

    def _why(self, task: dict[str, Any]) -> tuple[str, str]:
        """What went wrong last, as a code and for a person: the events of a task say it, newest first, or its own state does."""
        with asking(f"look at task {task['task_id']}"):
            events = self._client.task_event_list(task["task_id"], limit=100)
            error = next((event for event in events if event["is_error"]), {})
        said = [error.get("description"), error.get("details")]
        said += [(task.get("fatal_error") or {}).get("description"), task.get("nice_status_short_description")]
        text = " ".join(" ".join(filter(None, said)).split())[:300]
        return error.get("code", ""), names.printable(text) or "no reason is given"

    def _end(self, note: Note, path: Path) -> None:
        """See to it that a task of a dead process does nothing any more; then its note can go."""
        if (task_id := note.task_id or self._running(note.label)) is not None:
            self._cancel(task_id, note.label)
        path.unlink()

    def _running(self, label: str) -> str | None:
        """The task of a label that is ours alone, if it runs: it may have been submitted without our seeing the answer."""
        with asking("list our own tasks"):
            for task in self._client.paginated.task_list(filter={"status": list(RUNNING)}).items():
                if task["label"] == label and task["status"] in RUNNING:
                    return str(task["task_id"])
        return None

    def _cancel(self, task_id: str, label: str) -> None:
        """Cancel a task if it runs, and wait until it really has ended: cancelling is asynchronous.

        Raises:
            TryLater: it does not end.
        """
        with asking(f"cancel task {task_id}"):
            try:
                if self._client.get_task(task_id)["status"] not in RUNNING:
                    return
                self._client.cancel_task(task_id)
            except GlobusAPIError as error:
                if error.http_status == 404:  # so old that the service has forgotten it
                    return
                raise
        if self._wait(task_id, CANCEL_LIMIT_S)["status"] in RUNNING:
            raise TryLater(
                f"task {task_id} ({label}) was cancelled and does not end; nothing is done beside it. Look at it in the Globus "
                "web app, under Activity"
            )

    def _notes_of_the_dead(self) -> Iterator[tuple[Note, Path]]:
        """Notes in folders that no process holds, and of our own tasks that could not be followed; empty folders go."""
        for folder in sorted(path for path in self._folders.iterdir() if not path.name.startswith(".")):
            if folder == self.folder:
                yield from _notes(folder)
                continue
            with _held(folder) as is_dead:
                if is_dead:
                    yield from _notes(folder)
                    if not list(folder.glob("*.json")):
                        shutil.rmtree(folder)


def _own_folder(folders: Path) -> tuple[Path, int]:
    """A new folder and the lock on it: it gets a name that others see when it is locked."""
    place.make_own_folder(folders)
    hidden = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=folders))
    lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return hidden.rename(folders / hidden.name.removeprefix(".")), lock


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the folder of another process; yields False where that lives, or somebody else is looking after what it left."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock_now(lock)
    finally:
        os.close(lock)


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _notes(folder: Path) -> list[tuple[Note, Path]]:
    return [(_read(path), path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> Note:
    return Note(**json.loads(path.read_text(encoding="utf-8")))


def _write(note: Note, path: Path) -> None:
    place.write_whole(path, json.dumps(asdict(note)).encode())
