"""Convert rawacf files to DMAP, read the result back strictly, and pass both on.

Runs on:  campus, one instance per radar; all instances share `campus.max_conversions`
Reads:    holding
Writes:   data: the DMAP file, and then the HDF5 file, with a marker in to_plot
Removes:  the HDF5 file from holding, once its name in data is recorded
Needs:    pyDARNio; lbzip2 makes it faster
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import dataflow
from dataflow.lib import checksum, conversion, copy, custody, dmap, lock, names, place
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.step import Outcome, done, each

KINDS = frozenset({Kind.RAWACF, Kind.DMAP})
ROOTS = ("sddata",)
HDF5_PLACES = ("data", "to_archive", "archive_hdf5")
DMAP_PLACES = ("data", "to_archive", "archive_dmap")


def find(ctx: Context) -> list[Path]:
    """What lies in holding, oldest first."""
    return place.scan(ctx.folder("holding"))


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """One file after the other, each in one of the counted places for conversions."""
    yield from each(ctx, files, lambda path: _pass_on(ctx, path))


def _pass_on(ctx: Context, path: Path) -> Outcome:
    name = names.parse(path.name)
    if name is None or name.radar != ctx.here.radar:
        raise BadFile("other radar", f"{path.name} is not of {ctx.here.radar}")
    entry = ctx.custody.entry_of(path, ctx.flow.files.settle_s)
    passed = custody.passed_before(ctx.here, name, entry.sha256, HDF5_PLACES if name.is_hdf5 else DMAP_PLACES)
    if passed and passed[1] != entry.sha256:
        raise copy.Conflict(passed[0], passed[1], entry.sha256)
    if passed and not passed[0].samefile(path):  # the same file: a run was killed before it could record what it had done
        return done(path, "duplicate", reason=f"duplicate of {passed[0]}", sha256=entry.sha256, release=(path,))
    final = ctx.folder("data") / name.text
    if name.kind is Kind.DMAP:
        _add_name(ctx, path, final, entry)
        return done(path, "passed on", bytes=entry.size, sha256=entry.sha256, destination=final, release=(path,))
    with lock.one_of(ctx.here.machine_state / "conversions", "place", ctx.flow.campus.max_conversions, ctx.should_stop) as free:
        if not free:
            raise TryLater("asked to stop while waiting for a place to convert")
        child = _convert(ctx, path, name, entry)
    place.mark(ctx.here, ctx.folder("to_plot") / name.text)
    _add_name(ctx, path, final, entry)
    made = {"action": "made", "file": child.name, "sha256": child.sha256, "parent": entry.sha256}
    return done(
        path, "converted", bytes=entry.size, sha256=entry.sha256, destination=final, release=(path,),
        actions=({**made, "destination": str(ctx.folder("data") / child.name), "records": child.records},),
    )  # fmt: skip


def _add_name(ctx: Context, path: Path, final: Path, entry: Entry) -> None:
    copy.add_name(ctx.here, path, final, entry.sha256)
    place.sync_folders([final.parent])


def _convert(ctx: Context, path: Path, name: Name, entry: Entry) -> Entry:
    """Make the DMAP file of one rawacf and put it into data, its manifest entry first; returns the entry.

    The entry of the HDF5 file says from now on that all of it was read here, so that no later step has to.
    """
    dmap_name = names.dmap_of(name)
    final = ctx.folder("data") / dmap_name.text
    place.make_folder(ctx.here, final.parent)
    part = place.part_of(final)
    part.unlink(missing_ok=True)
    place.require_room(ctx.here, [final.parent], entry.size)
    try:
        made = conversion.convert(path, part, name, expected_sha256=entry.sha256, processes=ctx.flow.campus.conversion_processes)
        existing = _existing(ctx, dmap_name)
        if existing is not None:
            return _same_content(existing, made, entry)
        child = _child(dmap_name, made, entry)
        ctx.custody.admit([child, replace(entry, records=made.records)], ctx.here.host_name)
        place.own(ctx.here, part, ctx.here.file_mode)
        place.publish(part, final)
        return child
    finally:
        part.unlink(missing_ok=True)


def _child(name: Name, made: conversion.Conversion, parent: Entry) -> Entry:
    return Entry(
        name.text, made.size_bytes, made.sha256, parent=parent.sha256, by=f"convert_on_campus {dataflow.__version__}",
        content_sha256=made.content_sha256, records=made.records, cpids=made.cpids,
    )  # fmt: skip


def _existing(ctx: Context, name: Name) -> Path | None:
    """A DMAP file of this name that an earlier, killed run made, or that came another way."""
    candidates = (ctx.folder(key, name.time) / name.text for key in DMAP_PLACES)
    return next((path for path in candidates if place.is_regular(path)), None)


def _same_content(existing: Path, made: conversion.Conversion, parent: Entry) -> Entry:
    """The entry of a DMAP file that is already there; two bzip2 programs write different bytes for one content.

    Raises:
        Conflict: it holds other records than this HDF5 file gives.
    """
    try:
        found = dmap.inspect(existing)
    except BadFile as error:
        raise copy.Conflict(existing, checksum.sha256(existing), made.sha256) from error
    if found.content_sha256 != made.content_sha256:
        raise copy.Conflict(existing, found.sha256, made.sha256)
    return Entry(
        existing.name, found.size_bytes, checksum.sha256(existing), parent=parent.sha256, by="an earlier run",
        content_sha256=found.content_sha256, records=found.records, cpids=found.cpids,
    )  # fmt: skip
