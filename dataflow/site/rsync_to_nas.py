"""Move finished files from the radar computer to the site's store, verified, and release the radar's disk.

A mounted NAS gets one read of each file that feeds its hash, the backup and the working copy, each read back; no rsync is
needed there, the name stays. A radar with `nas: none` sends rawacf over SSH to site-linux's own disk; its antennas_iq stay
where they are, as bfiq and rawrf do everywhere. DMAP that a radar writes itself (`.rawacf`) is compressed on the way.

Runs on:  borealis
Reads:    finished files below the radar's data folder
Writes:   backup, rawacf_array, rawacf_dmap, antennas_iq on the NAS, with a marker in to_plot; or site-linux incoming
Removes:  the radar's file, once every required copy was read back and hashed equal
Needs:    the NAS mounted; with `nas: none` rsync and a key for site-linux
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataflow.lib import alert, checksum, copy, finished, names, place, transfer
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.step import Outcome, attempt, done, each

KINDS = frozenset({Kind.RAWACF, Kind.ANTENNAS_IQ, Kind.DMAP, Kind.DMAP_PLAIN})
ROOTS = ("data", "store")
FOLDERS = {
    Kind.RAWACF: ("rawacf_array", "backup"),
    Kind.DMAP: ("rawacf_dmap", "backup"),
    Kind.DMAP_PLAIN: ("rawacf_dmap", "backup"),
    Kind.ANTENNAS_IQ: ("antennas_iq",),
}


def find(ctx: Context) -> list[Path]:
    """The finished files, rawacf before antennas_iq, oldest first, and what has no name that we know."""
    found = finished.look(ctx.folder("data"), ctx.flow.files, ctx.clock())
    _tell_of_names_ahead(ctx, found.ahead)
    kinds = KINDS if ctx.here.machine.nas == "mounted" else KINDS - {Kind.ANTENNAS_IQ}
    ours = (path for path in found.finished if _parsed(path).kind in kinds)
    return [*found.strangers, *sorted(ours, key=_data_first)]


def batch(ctx: Context, files: Sequence[Path]) -> int:
    """Over a link so much that none of it waits long until the first is through; on a NAS each file is done by itself."""
    return len(files) if ctx.here.machine.nas == "mounted" else transfer.long_batch(ctx, files)


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """Copy to the mounted NAS, or send to site-linux where there is none."""
    if ctx.here.machine.nas == "mounted":
        yield from each(ctx, files, lambda path: _to_mounted_nas(ctx, path))
    else:
        yield from _to_site_linux(ctx, files)


def _tell_of_names_ahead(ctx: Context, files: Sequence[Path]) -> None:
    """Tell once of a file that would wait in silence until the time in its name has come."""
    for path in files:
        days = (_parsed(path).time - ctx.clock()).total_seconds() / 86400
        message = f"{path} is named {days:.1f} days into the future and waits until then: was a clock wrong? Rename it"
        alert.tell_once(ctx.log, ctx.here, f"named ahead: {path}", message, file=path.name)


def _to_mounted_nas(ctx: Context, path: Path) -> Outcome:
    name, stamp = _checked(ctx, path), checksum.stamp(path)
    place.check_root(ctx.here, "store")
    delivered = names.dmap_of(name) if name.kind is Kind.DMAP_PLAIN else name
    finals = [ctx.folder(key) / delivered.text for key in FOLDERS[name.kind]]
    if name.kind is Kind.ANTENNAS_IQ:
        limit_bytes = ctx.here.root_settings["store"].min_free_for_iq_bytes  # what is left below that is for rawacf
        place.require_room(ctx.here, [finals[0].parent], path.stat().st_size, limit_bytes)
        # It still has to be drawn: site-linux finds it by this marker, however late. Made before the file is there.
        place.mark(ctx.here, ctx.folder("to_plot") / name.text)
    copied = copy.copy_to(
        ctx.here, path, finals, compress=name.kind is Kind.DMAP_PLAIN, read_limit_mib_s=ctx.here.machine.read_limit_mib_s
    )
    place.check_root(ctx.here, "store")  # unmounted meanwhile, the copies lie below the mount point
    entry = _entry(ctx, name, delivered, copied)
    return done(
        path, "copied", bytes=copied.source_bytes, sha256=copied.source_sha256, destination=finals[0],
        actions=tuple(_action(entry, final) for final in finals), deliver=(entry,), release=(path,),
        stamp=stamp,
    )  # fmt: skip


def _to_site_linux(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    sendings: dict[Path, _Sending] = {}
    for path in files:
        if ctx.should_stop():
            break
        prepared = attempt(ctx, path, lambda file: _prepare(ctx, file))
        if isinstance(prepared, Outcome):
            yield prepared
        else:
            sendings[prepared.sent] = prepared
    batch = transfer.Batch({sent: sending.entry for sent, sending in sendings.items()})
    for outcome in transfer.deliver(ctx, str(ctx.here.host.next), [batch]):
        sending = sendings[outcome.file]
        if sending.sent != sending.original:
            actions = (_action(sending.entry, outcome.destination),) if outcome.release else ()
            outcome = replace(outcome, sha256=sending.entry.parent, parent=None, actions=actions)
        release = (sending.sent, sending.original) if outcome.release else ()  # killed in between, nothing is left behind
        stamp = sending.stamp if outcome.release else None
        yield replace(outcome, file=sending.original, release=tuple(dict.fromkeys(release)), stamp=stamp)


@dataclass(frozen=True, slots=True)
class _Sending:
    """What goes over the link for one of the radar's files: the file itself, or a compressed copy in the scratch folder."""

    original: Path
    sent: Path
    entry: Entry
    stamp: tuple[int, int, int]


def _prepare(ctx: Context, path: Path) -> _Sending:
    name, stamp = _checked(ctx, path), checksum.stamp(path)
    if name.kind is not Kind.DMAP_PLAIN:
        read = copy.copy_to(ctx.here, path, [], read_limit_mib_s=ctx.here.machine.read_limit_mib_s)
        return _Sending(path, path, _entry(ctx, name, name, read), stamp)
    delivered = names.dmap_of(name)
    scratch = ctx.folder("work") / delivered.text
    scratch.unlink(missing_ok=True)
    copied = copy.copy_to(ctx.here, path, [scratch], compress=True)
    return _Sending(path, scratch, _entry(ctx, name, delivered, copied), stamp)


def _checked(ctx: Context, path: Path) -> Name:
    """The name of a file whose radar and time stamp are right.

    Raises:
        BadFile: the file is of another radar, or was last written a day or more from the time in its name.
    """
    name = _parsed(path)
    if name.radar != ctx.here.radar:
        raise BadFile("other radar", f"{path.name} is of {name.radar}, this is {ctx.here.radar}")
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    offset_s = abs((modified - name.time).total_seconds())
    if offset_s > ctx.flow.files.max_stamp_offset_s:
        raise BadFile(
            "time stamp",
            f"last written {modified:%Y-%m-%d %H:%M:%S}, {offset_s / 3600:.1f} h from the time in its name: was a clock wrong?",
        )
    return name


def _entry(ctx: Context, name: Name, delivered: Name, copied: copy.Copied) -> Entry:
    if delivered == name:
        return Entry(name.text, copied.size_bytes, copied.sha256)
    return Entry(
        delivered.text, copied.size_bytes, copied.sha256, parent=copied.source_sha256, by=f"rsync_to_nas {ctx.here.machine.name}",
        content_sha256=copied.source_sha256,
    )  # fmt: skip


def _action(entry: Entry, destination: Path | str | None) -> dict[str, Any]:
    """The record of one copy: of the file under its own name, or of the compressed one that was made of it."""
    made = {"action": "compressed", "file": entry.name, "parent": entry.parent} if entry.parent else {"action": "copied"}
    return {**made, "destination": str(destination), "sha256": entry.sha256}


def _parsed(path: Path) -> Name:
    name = names.parse(path.name)
    if name is None:
        raise BadFile("unknown name", f"{names.printable(path.name)} matches no grammar")
    return name


def _data_first(path: Path) -> tuple[bool, str]:
    return _parsed(path).kind is Kind.ANTENNAS_IQ, path.name
