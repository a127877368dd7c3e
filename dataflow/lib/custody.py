"""What this host knows of the files in its care: the open manifests.

``flags/open/`` holds every manifest with a file that is not yet done here: flags that came in, what ``receive`` accepted,
what was adopted (found without an entry, hashed here) and what steps made. From it a step learns a file's SHA-256, and a
manifest is closed when each of its files is gone from the working folders with a record that says where it went.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

from dataflow.lib import checksum, flag, names, place, summary
from dataflow.lib.config import Here
from dataflow.lib.errors import TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Name
from dataflow.lib.summary import SummaryLog

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
        age_s = self._clock().timestamp() - path.stat().st_ctime
        if age_s < settle_s:
            raise TryLater(
                f"no manifest lists it and it changed {max(age_s, 0):.0f} s ago; adopted when still for {settle_s:.0f} s"
            )
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

        What cannot be told because a network mount gives no answer is told by a later run.
        """
        open_flags = flag.read_folder(open_folder(self._here))
        if not open_flags or not _answers(self._here):
            return []
        waiting = names_in_backlog(self._here)
        oldest = min(summary.moment(manifest.sent) for _, manifest in open_flags)
        horizon = self._clock() - timedelta(days=RECORDS_DAYS)
        is_any_gone = any(entry.name not in waiting for _, manifest in open_flags for entry in manifest.files)
        outcomes = _last_outcomes(self._here, summary.day_before(max(oldest, horizon), 1)) if is_any_gone else {}
        missing: set[str] = set()
        for path, manifest in open_flags:
            names_listed = {entry.name for entry in manifest.files}
            gone = names_listed - waiting
            if gone == names_listed and all(outcomes.get(name) in FINISHED for name in gone):
                path.unlink(missing_ok=True)
                self._entries = None
            elif self._clock().timestamp() - path.stat().st_mtime > MISSING_AFTER_S:
                missing |= gone - outcomes.keys()
        return sorted(missing)

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


def _answers(here: Here) -> bool:
    try:
        for root in {here.root_of(key) for key in here.host.backlog}:
            place.require_answer(here, root)
    except TryLater:
        return False
    return True


def names_in_backlog(here: Here) -> set[str]:
    """The names that lie in this host's working folders, upstream folders read first so that a moving file is not missed."""
    return {path.name for key in here.host.backlog for path in place.scan(here.folder(key))}


def passed_before(here: Here, name: Name, sha256: str, folders: Sequence[str]) -> tuple[Path, str] | None:
    """Where a name already lies in some of this host's folders, with the hash of what lies there; the same hash is preferred."""
    found = None
    for key in folders:
        folder = here.folder(key, name.time, name.camera or "")
        texts = (name.text, f"{name.text}.{sha256[:12]}") if key == "quarantine" else (name.text,)
        for path in (Path(text) for text in (f"{folder}/{text}" for text in texts) if os.path.lexists(text)):
            if place.is_regular(path):
                existing = checksum.sha256(path)
                if existing == sha256:
                    return path, existing
                found = (path, existing)
    return found


def _last_outcomes(here: Here, since: date) -> dict[str, str]:
    """What the records since a day say last of each name; what `receive` puts into a working folder is only begun."""
    last: dict[str, tuple[str, str]] = {}
    for record in summary.records(summary.own_files(here, since)):
        if record["event"] == "file" and record["outcome"] != "skipped" and record.get("action") != "received":
            name, told = Path(str(record["file"])).name, (str(record["time"]), str(record["outcome"]))
            last[name] = max(told, last.get(name, told))
    return {name: outcome for name, (_, outcome) in last.items()}
