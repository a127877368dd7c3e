"""Make room at the site: remove what the configuration lets go after some time, the oldest first.

Off until `expire` names a folder. A file goes when it is older than its folder's `keep_days`, and where `min_free_percent` is
set only as long as less than that is free on the disk. Its age is told by the time in its name, by when it was last written
and by the newest file beside it, so that a clock that runs ahead lets nothing go.

A file of `backup` goes when campus has read the same hash from its archive just now. What is nowhere else (antennas_iq, the
full-size pictures) goes by its age alone, antennas_iq never before they are drawn.

Runs on:  site-linux
Reads:    the folders that `expire` names: backup, antennas_iq, full_size_plots
Writes:   nothing
Removes:  from them what is older than `keep_days`: of backup what campus has in its archive, of antennas_iq what is drawn
Needs:    a key for campus
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from dataflow.lib import alert, archived, checksum, names, place, summary, transfer
from dataflow.lib.context import Context
from dataflow.lib.errors import HostDown, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind
from dataflow.lib.step import Outcome, attempt, done, kept, skipped

KINDS_OF = {
    "backup": frozenset({Kind.RAWACF, Kind.DMAP}),
    "antennas_iq": frozenset({Kind.ANTENNAS_IQ}),
    "full_size_plots": frozenset({Kind.PLOT_FULL}),
}
KINDS = frozenset().union(*KINDS_OF.values())
ROOTS = ("store", "local")
BACKUP = "backup"
BATCH_FILES = 200
BATCH_BYTES = 2_000_000_000
"""What is read here and on campus before a flag that comes in is attended to: half a minute."""
RECORD_DAYS = 7
"""A file's hash is looked for in the records of so many days from the time in its name on."""


@dataclass(frozen=True, slots=True)
class _Folder:
    """One folder that expires: what is older than ``horizon`` may go, unless it is still to be drawn."""

    key: str
    path: Path
    keep_days: float
    horizon: datetime
    to_draw: frozenset[str]


def find(ctx: Context) -> list[Path]:
    """What may go, the oldest first in each folder, and no more than its disk is short of where that is what counts."""
    found: list[Path] = []
    chosen_bytes: Counter[str] = Counter()
    for key in ctx.flow.expire:
        root = ctx.here.root_of(key)
        short_bytes = _short_bytes(ctx, key) - chosen_bytes[root]
        if short_bytes > 0:
            chosen = _enough(_candidates(ctx, key), short_bytes)
            found += chosen
            chosen_bytes[root] += sum(chosen.values())
    return found


def batch(ctx: Context, files: Sequence[Path]) -> int:
    """As much as is read in half a minute."""
    return transfer.take_while(files, BATCH_FILES, BATCH_BYTES)


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """Look at each file once more, also at one that a person has named; campus is asked once for all of the backup."""
    folders = {folder.path: folder for folder in (_folder(ctx, key) for key in ctx.flow.expire)}
    of_backup = []
    for path in files:
        folder = folders.get(path.parent)
        reason = _refusal(ctx, folder, path) if folder else "the configuration lets nothing go from its folder"
        if folder is None or reason is not None:
            yield skipped(path, str(reason))
        elif folder.key == BACKUP:
            of_backup.append(path)
        else:
            yield attempt(ctx, path, partial(_remove, ctx, folder))
    if of_backup:
        yield from _remove_archived(ctx, folders[of_backup[0].parent], of_backup)


def _short_bytes(ctx: Context, key: str) -> float:
    """How much less is free on the disk of a folder than should be; infinite where only the age counts."""
    percent = ctx.flow.expire[key].min_free_percent
    disk = shutil.disk_usage(ctx.here.roots[ctx.here.root_of(key)])
    return math.inf if percent is None else disk.total * percent / 100 - disk.free


def _candidates(ctx: Context, key: str) -> list[Path]:
    """The files of a folder that may go, the oldest first; of the backup those that campus has, and not known to be others."""
    folder = _folder(ctx, key)
    named = [(name.time, name.text) for path in place.scan(folder.path) if (name := names.parse(path.name))]
    old = [folder.path / text for _, text in sorted(named) if _refusal(ctx, folder, folder.path / text) is None]
    if key != BACKUP:
        return old
    old = [path for path in old if not alert.is_told(ctx.here, _differs(path))]
    try:
        there = archived.ask_names(ctx, str(ctx.here.host.next), old) if old else set()
    except (HostDown, TryLater):
        return old[:BATCH_FILES]  # for which campus is asked once more, and which are kept if it is no better
    return [path for path in old if path.name in there]


def _enough(paths: Sequence[Path], short_bytes: float) -> dict[Path, int]:
    """The first of the files that together have so many bytes, each with its size."""
    sizes: dict[Path, int] = {}
    for path in paths:
        if short_bytes <= 0:
            break
        sizes[path] = path.lstat().st_size
        short_bytes -= sizes[path]
    return sizes


def _folder(ctx: Context, key: str) -> _Folder:
    """A folder with what holds for all its files. The newest one tells how late it is at least, the clock how late at most."""
    path, keep_days = ctx.folder(key), ctx.flow.expire[key].keep_days
    now = ctx.clock()
    times = (name.time for entry in place.scan(path) if (name := names.parse(entry.name)) and name.time <= now)
    marked = place.scan(ctx.folder("to_plot")) if key == "antennas_iq" else []
    horizon = max(times, default=now) - timedelta(days=keep_days)
    return _Folder(key, path, keep_days, horizon, frozenset(marker.name for marker in marked))


def _refusal(ctx: Context, folder: _Folder, path: Path) -> str | None:
    """Why a file must not go, or None."""
    name = names.parse(path.name)
    if name is None or name.kind not in KINDS_OF[folder.key] or name.radar != ctx.here.radar:
        return f"it is none of the files of {folder.key} that may go"
    if not place.is_regular(path):
        return "not a regular file"
    if name.time >= folder.horizon or path.lstat().st_mtime >= folder.horizon.timestamp():
        return f"it is not older than {folder.keep_days:g} days"
    return "it is still to be drawn" if name.text in folder.to_draw else None


def _remove(ctx: Context, folder: _Folder, path: Path) -> Outcome:
    """Let go of a file that is nowhere else; the record has the hash that earlier ones have, so that its custody has an end."""
    return _removed(ctx, folder, path, sha256=_recorded_sha256(ctx, path.name) or checksum.sha256_of_still(path)[0])


def _recorded_sha256(ctx: Context, text: str) -> str | None:
    """What the summary logs tell of a file's hash since it was made; None when they do not go back so far."""
    name = names.parse(text)
    if name is None:
        return None
    last_day = f"{name.time + timedelta(days=RECORD_DAYS):%Y%m%d}"
    logs = summary.own_files(ctx.here, name.time.date()) + summary.relayed_files(ctx.here, name.time.date())
    of_file = summary.records([log for log in logs if log.name[:8] <= last_day], holding=text.encode())
    digests = [str(record["sha256"]) for record in of_file if record.get("file") == text and record.get("sha256")]
    return digests[-1] if digests else None


def _remove_archived(ctx: Context, folder: _Folder, paths: Sequence[Path]) -> Iterator[Outcome]:
    """Let go of files of the backup that campus has read from its archive with the hash that they have here."""
    host = str(ctx.here.host.next)
    entries: dict[Path, Entry] = {}
    stamps = {}
    for path in paths:
        read = attempt(ctx, path, _read)
        if isinstance(read, Outcome):
            yield read
        else:
            entries[path], stamps[path] = read
    answers = archived.ask_hashes(ctx, host, list(entries.values())) if entries else {}
    machine = ctx.config.here(host, ctx.here.radar).machine.name
    for path, entry in entries.items():
        answer = answers.get(path.name, {"outcome": "", "reason": "no answer"})
        there = f"{machine}:{answer.get('destination')}"
        if answer["outcome"] == archived.DIFFERENT:
            yield kept(path, _tell_difference(ctx, entry, there, answer["sha256"]), sha256=entry.sha256)
        elif answer["outcome"] != archived.SAME or answer["sha256"] != entry.sha256:
            yield kept(path, f"{machine} does not confirm it: {answer.get('reason', answer['outcome'])}")
        elif not checksum.is_still(path, stamps[path]):
            yield kept(path, "it changed while campus was asked; it is tried again when it lies still")
        else:
            alert.clear(ctx.here, _differs(path))
            yield _removed(ctx, folder, path, sha256=entry.sha256, destination=there)


def _differs(path: Path) -> str:
    return f"differs from the archive: {path.name}"


def _tell_difference(ctx: Context, entry: Entry, there: str, sha256_there: str) -> str:
    """Tell once that a copy and the archive differ; until a person has looked which one is damaged, both stay as they are."""
    recorded = _recorded_sha256(ctx, entry.name) or "nothing"
    message = (
        f"{entry.name} of the backup has hash {entry.sha256}, and {there} has {sha256_there}; the records say {recorded}. "
        "Both stay; which one is damaged, and what to do: docs/operations.md"
    )
    alert.tell_once(ctx.log, ctx.here, _differs(Path(entry.name)), message, file=entry.name)
    return message


def _read(path: Path) -> tuple[Entry, tuple[int, int, int]]:
    stamp = checksum.stamp(path)
    digest, size_bytes = checksum.sha256_of_still(path)
    return Entry(path.name, size_bytes, digest), stamp


def _removed(ctx: Context, folder: _Folder, path: Path, **evidence: Any) -> Outcome:
    """The outcome of a file that goes: the rule that lets it go, and what was known of it."""
    percent = ctx.flow.expire[folder.key].min_free_percent
    short = "" if percent is None else f", and less than {percent:g} % of the disk were free"
    reason = f"older than {folder.keep_days:g} days{short}"
    return done(path, "removed", reason=reason, bytes=path.lstat().st_size, release=(path,), **evidence)
