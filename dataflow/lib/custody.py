"""What this host knows of the files in its care: the open manifests.

``flags/open/`` holds every manifest with a file that is not yet done here: flags that came in, what ``receive`` accepted,
what was adopted (found without an entry, hashed here) and what steps made. From it a step learns a file's SHA-256, and a
manifest is closed when each of its files is gone from the working folders with a record that says where it went.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, Set
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from dataflow.lib import checksum, flag, names, place, summary
from dataflow.lib.config import Here
from dataflow.lib.errors import TryLater
from dataflow.lib.flag import Entry, Flag
from dataflow.lib.names import Name
from dataflow.lib.summary import Record, SummaryLog

ADOPTED = "adopted"
FINISHED = ("done", "quarantined")
MISSING_AFTER_S = 600.0
"""How old a manifest is before a name that is not to be seen is called missing: over NFS a folder is seen late."""
RECORDS_DAYS = 30
"""How far back the records are searched for what became of a file; a manifest open for longer waits for a person."""


class Custody:
    """The open manifests of one host and radar, read once and kept up to date by what this process adds."""

    def __init__(self, here: Here, run: str, clock: Callable[[], datetime], log: SummaryLog) -> None:
        self._here = here
        self._run = run
        self._clock = clock
        self._log = log
        self._entries: dict[str, Entry] | None = None

    def known(self, name: str) -> Entry | None:
        """The latest entry for a file name, or None when no manifest lists it."""
        return self._table().get(name)

    def admit(self, entries: Sequence[Entry], sender: str) -> None:
        """Take files into care, durably. ``sender`` is the host they came from, or this one."""
        if not entries:
            return
        flag.write(open_folder(self._here), self._here.radar, sender, self._run, entries, self._clock)
        if self._entries is not None:
            self._entries.update({entry.name: entry for entry in entries})

    def entry_of(self, path: Path, settle_s: float) -> Entry:
        """The entry of a file that a step is to work on; a file without one is adopted, which is a record of its own.

        Raises:
            TryLater: it has no entry and is not still for ``settle_s`` yet, or changes: somebody may be copying it.
        """
        found = self.known(path.name)
        if found is not None:
            return found
        still_s = abs(self._clock().timestamp() - path.stat().st_ctime)  # in the future: the clock has been set back since
        if still_s < settle_s:
            raise TryLater(f"no manifest lists it and it changed {still_s:.0f} s ago; adopted when still for {settle_s:.0f} s")
        digest, size_bytes = checksum.sha256_of_still(path)
        adopted = Entry(path.name, size_bytes, digest, by=ADOPTED)
        self._log.write(
            "action", file=names.printable(path.name), source=str(path.parent), action="adopted", bytes=adopted.size,
            sha256=digest, destination=str(path),
        )  # fmt: skip
        self._log.sync()
        self.admit([adopted], self._here.host_name)
        return adopted

    def close_finished(self) -> list[str]:
        """Close the manifests whose files are all done here; returns names that are gone without a record.

        What cannot be told because a disk of the working folders is not there, or gives no answer, is told by a later run.
        """
        open_flags = flag.read_folder(open_folder(self._here))
        if not open_flags or not _is_backlog_there(self._here):
            return []
        waiting = names_in_backlog(self._here)
        if not _is_backlog_there(self._here):
            return []
        all_gone = {entry.name for _, manifest in open_flags for entry in manifest.files} - waiting
        finished = _finished(self._here, self._first_day(open_flags), all_gone) if all_gone else {}
        missing: set[str] = set()
        for path, manifest in open_flags:
            names_listed = {entry.name for entry in manifest.files}
            gone = names_listed - waiting
            if gone == names_listed and all(finished.get(name) for name in gone):
                path.unlink(missing_ok=True)
                self._entries = None
            elif self._clock().timestamp() - path.stat().st_mtime > MISSING_AFTER_S:
                missing |= gone - finished.keys()
        return sorted(missing)

    def _first_day(self, open_flags: Sequence[tuple[Path, Flag]]) -> date:
        """From when on the records are read: a day before the oldest manifest, by the sender's clock, its file's time or now."""
        now = self._clock()
        sent = [summary.moment(manifest.sent) for _, manifest in open_flags]
        came = [datetime.fromtimestamp(path.stat().st_mtime, UTC) for path, _ in open_flags]
        return summary.day_before(max(min(now, *sent, *came), now - timedelta(days=RECORDS_DAYS)), 1)

    def _table(self) -> dict[str, Entry]:
        if self._entries is None:
            manifests = flag.read_folder(open_folder(self._here))
            self._entries = {entry.name: entry for _, manifest in manifests for entry in manifest.files}
        return self._entries


def open_folder(here: Here) -> Path:
    """Where the manifests lie that are not yet finished here."""
    return flags_folder(here) / "open"


def flags_folder(here: Here) -> Path:
    """Where flags arrive."""
    return here.state / "flags"


def outbox(here: Here) -> Path:
    """Where flags wait for the next host."""
    return here.state / "outbox"


def _is_backlog_there(here: Here) -> bool:
    """Whether every disk of the working folders is mounted and answers: names on one that is not are not gone."""
    try:
        for root in {here.root_of(key) for key in here.host.backlog}:
            place.require_answer(here, root)
            place.check_root(here, root)
    except TryLater:
        return False
    return True


def names_in_backlog(here: Here) -> set[str]:
    """The names that lie in this host's working folders, upstream folders read first so that a moving file is not missed."""
    return {path.name for key in here.host.backlog for path in place.scan(here.folder(key))}


def passed_before(here: Here, name: Name, sha256: str, folders: Sequence[str]) -> tuple[Path, str] | None:
    """Where a name already lies in some of this host's folders, with the hash of what lies there; the same hash is preferred.

    Where that hash is the same, the file and its name are durable: on this word the newcomer may be let go of, and what lies
    there may have been put there a moment ago, by a run that was killed before it could sync or by a person.
    """
    found = None
    for key in folders:
        folder = here.folder(key, name.time, name.camera or "")
        texts = (name.text, f"{name.text}.{sha256[:12]}") if key == "quarantine" else (name.text,)
        for path in (Path(text) for text in (f"{folder}/{text}" for text in texts) if os.path.lexists(text)):
            if place.is_regular(path):
                existing = checksum.sha256_on_disk(path)
                if existing == sha256:
                    checksum.sync_folder(path.parent)
                    return path, existing
                found = (path, existing)
    return found


def _finished(here: Here, since: date, texts: Set[str]) -> dict[str, bool]:
    """Of each of these names that was told of since a day: whether each step that told of it has finished it too.

    In whatever order: the clock may have been set back between a step's first try and its last.
    """
    told: dict[str, dict[str, bool]] = {}
    for record in summary.records(summary.own_files(here, since), about=texts):
        if record["event"] == "file" and record["outcome"] != "skipped" and not _is_of_an_arrival(record):
            steps = told.setdefault(Path(str(record["file"])).name, {})
            steps[record["step"]] = steps.get(record["step"], False) or record["outcome"] in FINISHED
    return {name: all(steps.values()) for name, steps in told.items()}


def _is_of_an_arrival(record: Record) -> bool:
    """True when `receive` tells only how a file came: it was put into a folder and is begun, or this try brought it not whole."""
    return record.get("action") == "received" or (record["step"] == "receive" and record["outcome"] == "kept")
