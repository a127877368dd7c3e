"""Check each DMAP file, hand it to every partner and to the mirror, and archive it with its HDF5 file.

The CPIDs of all records decide: one record of a CPID that is not distributed makes a file a special experiment, which goes
to the special folder and the archive and to nobody else.

A file leaves `data` by being linked into `to_send/<target>/` for each target and then moved to `to_send/archive/`.
Each of these queues is emptied on its own, so a target that fails holds up nobody and nobody gets a file twice:
a verified copy is made ready beside the staging folder, the queue's link is removed, and only then is the copy renamed into
staging, where its reader may take it at any time. Whatever instruction a kill hits, what is left says what is still to do.

Runs on:  campus, one instance per radar
Reads:    data
Writes:   the staging folders of all targets; special; archive_dmap, archive_hdf5
Removes:  the file from data and from its queues, once it lies verified where it belongs and that is recorded
Needs:    pyDARNio's DMAP library to check files that were not converted here
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflow.lib import alert, checksum, copy, custody, names, place
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.step import Outcome, attempt, bad, done, kept, trouble

KINDS = frozenset({Kind.DMAP, Kind.RAWACF})
ROOTS = ("sddata", "archive", "staging")
PLACES = {Kind.DMAP: ("to_archive", "archive_dmap"), Kind.RAWACF: ("to_archive", "archive_hdf5")}
SPECIAL, ARCHIVE = "special", "archive"
Action = dict[str, Any]


def find(ctx: Context) -> list[Path]:
    """The files in data, DMAP before HDF5, and those that an earlier run left in a queue."""
    _watch_staging(ctx)
    fresh = sorted(place.scan(ctx.folder("data")), key=lambda path: (not path.name.endswith(".bz2"), path.name))
    names_found = {path.name for path in fresh}
    queued = {path.name: path for folder in _queues(ctx) for path in place.scan(folder)}
    return fresh + [path for name, path in sorted(queued.items()) if name not in names_found]


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """One file after the other; the HDF5 file of a bad DMAP file is as bad."""
    faults: dict[str, str] = {}
    for path in files:
        if ctx.should_stop():
            return
        fault = faults.get(path.name) or _fault_of_pair(ctx, path)
        if fault is not None:
            yield bad(path, BadFile("pair of a bad DMAP", fault))
            continue
        outcome = attempt(ctx, path, lambda file: _distribute(ctx, file))
        name = names.parse(path.name)
        if outcome.outcome == "quarantined" and name is not None:
            faults |= dict.fromkeys(names.hdf5_candidates_of(name), f"its DMAP file {path.name} is bad: {outcome.reason}")
        yield outcome


def _distribute(ctx: Context, path: Path) -> Outcome:
    name = names.parse(path.name)
    if name is None or name.radar != ctx.here.radar:
        raise BadFile("other radar", f"{path.name} is not of {ctx.here.radar}")
    entry = ctx.custody.entry_of(path, ctx.flow.files.settle_s)
    if path.parent == ctx.folder("data"):
        passed = custody.passed_before(ctx.here, name, entry.sha256, PLACES[name.kind])
        if passed and passed[1] != entry.sha256:
            raise copy.Conflict(passed[0], passed[1], entry.sha256)
        if passed and not passed[0].samefile(path):
            return done(path, "duplicate", reason=f"duplicate of {passed[0]}", sha256=entry.sha256, release=(path,))
        if not passed:  # else a run was killed between its last queue and the removal from data
            _enqueue(ctx, path, name, _checked(path, name, entry))
        place.release(path)
    return _empty_queues(ctx, path, name, entry)


def _checked(path: Path, name: Name, entry: Entry) -> Entry:
    """The entry with what a strict reading finds; what was converted here, or converted from, was read strictly then.

    Such an HDF5 file is not read again: the archive gets this very file, or a copy that is read back. Of a DMAP file the
    partners get copies, so what they will be made of is hashed, be it out of the page cache.

    Raises:
        BadFile: its bytes are not what they were, or the DMAP is damaged or of another radar or time than its name says.
        TryLater: it changed while it was read.
    """
    was_read_here = entry.records is not None
    if was_read_here and name.kind is Kind.RAWACF:
        return entry
    found, _ = checksum.sha256_of_still(path, cached=was_read_here)
    if found != entry.sha256:
        raise BadFile("changed since hashed", f"{path.name} has hash {found}, it was {entry.sha256}: damaged on disk?")
    if was_read_here or name.kind is not Kind.DMAP:
        return entry
    from dataflow.lib import dmap

    report = dmap.inspect(path)
    dmap.check_name(report, name)
    return Entry(
        entry.name, entry.size, entry.sha256, entry.parent, entry.by, report.content_sha256, report.records, report.cpids
    )


def _fault_of_pair(ctx: Context, path: Path) -> str | None:
    """What is wrong with an HDF5 file whose DMAP file an earlier run has set aside, and no other has come since."""
    name = names.parse(path.name)
    if name is None or name.kind is not Kind.RAWACF or (name.slice_id or 0) > names.LAST_CHANNEL_SLICE:
        return None
    dmap = names.dmap_of(name).text
    aside = ctx.folder("quarantine") / dmap
    if not aside.exists() or any((ctx.folder(key, name.time) / dmap).exists() for key in ("data", *PLACES[Kind.DMAP])):
        return None
    return f"its DMAP file lies in quarantine: {aside}"


def _enqueue(ctx: Context, path: Path, name: Name, entry: Entry) -> None:
    """Give the file a name in each queue, last in the archive's: from then on the queues say what is to do.

    Raises:
        Conflict: it is a special experiment, and other content lies under its name there.
    """
    targets = [] if name.kind is Kind.RAWACF else _targets_of(ctx, entry)
    special = custody.passed_before(ctx.here, name, entry.sha256, ("special",)) if SPECIAL in targets else None
    if special and special[1] != entry.sha256:
        raise copy.Conflict(special[0], special[1], entry.sha256)
    for queues in ([_queue(ctx, target) for target in targets], [ctx.folder("to_archive")]):
        for queue in queues:
            (queue / path.name).unlink(missing_ok=True)
            copy.add_name(ctx.here, path, queue / path.name, entry.sha256)
        place.sync_folders(queues)


def _targets_of(ctx: Context, entry: Entry) -> list[str]:
    distributed = set(ctx.flow.distribute.cpids)
    return list(ctx.flow.distribute.targets) if set(entry.cpids or ()) <= distributed else [SPECIAL]


def _empty_queues(ctx: Context, path: Path, name: Name, entry: Entry) -> Outcome:
    """Bring the file to each place that it is queued for; one that fails is tried again by the next run."""
    missing: list[str] = []
    archived: Path | None = None
    for target in (*ctx.flow.distribute.targets, SPECIAL, ARCHIVE):
        try:
            archived = _bring(ctx, target, name, entry)
        except (TryLater, OSError) as error:
            missing.append(f"{target}: {trouble(error)}")
    actions = (_action(ARCHIVE, archived, entry),) if archived is not None else ()
    common: dict[str, Any] = {"bytes": entry.size, "sha256": entry.sha256, "parent": entry.parent, "actions": actions}
    if missing:
        return kept(path, "; ".join(missing), **common)
    destination = str(archived) if archived is not None else None
    queued = ctx.folder("to_archive") / name.text
    return done(path, "archived" if name.is_hdf5 else "distributed", destination=destination, release=(queued,), **common)


def _bring(ctx: Context, target: str, name: Name, entry: Entry) -> Path | None:
    """Empty one queue of one file; returns where it lies in the archive, if it was queued for that.

    The archive's queue is emptied by the runner, once the record is durable.
    """
    queued = _queue(ctx, target) / name.text
    if target in ctx.flow.distribute.targets:
        _stage(ctx, target, queued, entry)
        return None
    if not queued.exists():
        return None
    if target == SPECIAL:
        final = ctx.folder("special", name.time) / name.text
        copy.copy_to(ctx.here, queued, [final], expected_sha256=entry.sha256)
        _record(ctx, target, queued, final, entry)
        place.release(queued)
        return None
    final = ctx.folder("archive_hdf5" if name.is_hdf5 else "archive_dmap", name.time) / name.text
    copy.add_name(ctx.here, queued, final, entry.sha256)
    place.sync_folders([final.parent])
    return final


def _stage(ctx: Context, target: str, queued: Path, entry: Entry) -> None:
    """Copy made ready and verified, then out of the queue, then into staging: killed anywhere, no step is done twice."""
    settings = ctx.flow.distribute.targets[target]
    staging = ctx.here.path(settings.folder)
    ready = _ready_folder(staging) / queued.name
    if queued.exists():
        copy.make_ready(ctx.here, queued, ready, entry.sha256, settings.link)
        place.check_root(ctx.here, settings.folder.partition("/")[0])  # unmounted meanwhile, the copy lies below the mount point
        queued.unlink()
        checksum.sync_folder(queued.parent)
    final = staging / queued.name
    if not ready.exists():
        if os.path.lexists(final):  # the run that handed it over may have been killed before it had synced the name
            place.sync_folders([staging])
        return
    place.make_folder(ctx.here, staging)
    if os.path.lexists(final):  # what this campus distributes comes there by this step, so nothing comes before the rename
        raise TryLater(f"{final} is there already: it is staged when the partner has taken that, or a person has removed it")
    _record(ctx, target, queued, final, entry)
    ready.rename(final)
    place.sync_folders([staging, ready.parent])


def _record(ctx: Context, target: str, queued: Path, final: Path, entry: Entry) -> None:
    """Record durably where a file goes before nothing is left to do about it: no later run would know of it.

    Killed right after this, the next run records the same once more.
    """
    ctx.log.write("action", file=entry.name, source=str(queued.parent), **_action(target, final, entry))
    ctx.log.sync()


def _action(target: str, final: Path, entry: Entry) -> Action:
    return {"action": _word(target), "target": target, "destination": str(final), "sha256": entry.sha256}


def _queues(ctx: Context) -> list[Path]:
    """Every folder in which a file may wait: the queues, and the copies that were made ready but not yet handed over."""
    targets = ctx.flow.distribute.targets
    queues = [_queue(ctx, target) for target in (*targets, SPECIAL, ARCHIVE)]
    return queues + [_ready_folder(ctx.here.path(target.folder)) for target in targets.values()]


def _queue(ctx: Context, target: str) -> Path:
    return ctx.folder("to_send") / target


def _ready_folder(staging: Path) -> Path:
    """The hidden sibling of a staging folder, on the same file system: a reader of staging never sees a partial copy."""
    return staging.with_name(f".{staging.name}.ready")


def _word(target: str) -> str:
    return {ARCHIVE: "archived", SPECIAL: "special experiment"}.get(target, "staged")


def _watch_staging(ctx: Context) -> None:
    """Tell once when a partner has not emptied its staging folder for `stale_days`; the time is when the file came there."""
    for target, settings in ctx.flow.distribute.targets.items():
        folder = ctx.here.path(settings.folder)
        try:
            oldest = min((path.lstat().st_ctime for path in place.scan(folder)), default=None)
        except OSError:  # a file was taken just now; or the folder is not what it should be, which whoever stages there says
            continue
        condition = f"staging {target}"
        if oldest is None or ctx.clock().timestamp() - oldest < ctx.flow.distribute.stale_days * 86400:
            alert.clear(ctx.here, condition)
        else:
            days = (ctx.clock().timestamp() - oldest) / 86400
            message = f"{target} has not emptied {folder} for {days:.1f} days: ask the partner whether its download runs"
            alert.tell_once(ctx.log, ctx.here, condition, message, target=target)
