"""Draw a quick-look of each rawacf: the power over range and time, one picture beside those of antennas_iq.

What is to be drawn is told by markers, which `convert_on_campus` makes, so a late run still draws what is missing, wherever
the file lies by then. No picture condemns a rawacf or holds it up: one that cannot be drawn is told, and its marker goes.

Runs on:  campus, one instance per radar
Reads:    to_plot (markers); data, to_archive, archive_hdf5 or quarantine
Writes:   plots: the quick-look
Removes:  the marker, once the picture is in its place or was told to be impossible
Needs:    h5py, numpy, Pillow, and the font of matplotlib
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataflow.lib import alert, checksum, copy, names, place
from dataflow.lib.context import Context
from dataflow.lib.crew import Crew, crew
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.step import Outcome, done, each

KINDS = frozenset({Kind.RAWACF})
ROOTS = ("sddata", "archive")
PLACES = ("holding", "data", "to_archive", "archive_hdf5", "quarantine")
CONDITION = "quick-look"


def find(ctx: Context) -> list[Path]:
    """The markers, oldest first."""
    return place.scan(ctx.folder("to_plot"))


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """One picture after the other."""
    with crew(1) as worker:
        yield from each(ctx, files, lambda path: _draw(ctx, path, worker))


def _draw(ctx: Context, path: Path, worker: Crew) -> Outcome:
    name = names.parse(path.name)
    assert name is not None, "the runner skips what has no name"
    marker, folder = ctx.folder("to_plot") / path.name, ctx.folder("plots")
    source = _file_of(ctx, name) if path == marker else path  # else a person named the file itself
    if source is None:
        return _not_drawn(ctx, path, marker, "the file is gone from campus")
    try:
        entry = _picture(ctx, source, name, worker)
    except BadFile as error:
        return _not_drawn(ctx, path, marker, str(error))
    alert.clear(ctx.here, CONDITION)
    made = {"action": "made", "file": entry.name, "sha256": entry.sha256, "parent": entry.parent}
    return done(
        path, "plotted", bytes=source.stat().st_size, sha256=entry.parent, destination=folder, release=(marker,),
        actions=({**made, "destination": str(folder / entry.name)},),
    )  # fmt: skip


def _not_drawn(ctx: Context, path: Path, marker: Path, reason: str) -> Outcome:
    """Told once while it lasts: thousands of old files that have no quick-look are one condition."""
    message = f"no quick-look of {path.name}: {reason}"
    alert.tell_once(ctx.log, ctx.here, CONDITION, message, file=path.name)
    return done(path, "not drawn", reason=message, release=(marker,))


def _picture(ctx: Context, source: Path, name: Name, worker: Crew) -> Entry:
    """Draw in the scratch folder, make the manifest durable, give the picture its place; one that is there already stays."""
    final = ctx.folder("plots") / names.quicklook_of(name).text
    existing = next((each for each in (final, ctx.folder("plots_archive", name.time) / final.name) if each.exists()), None)
    scratch = ctx.folder("work") / final.name
    place.make_folder(ctx.here, scratch.parent)
    before, digest = checksum.stamp(source), checksum.sha256(source)
    try:
        if existing is None:
            _draw_still(source, before, name, scratch, worker)
        picture = existing or scratch
        entry = Entry(final.name, picture.stat().st_size, checksum.sha256(picture), parent=digest, by="plot_rawacf")
        if existing is None:
            ctx.custody.admit([entry], ctx.here.host_name)
            place.own(ctx.here, scratch, ctx.here.file_mode)
            copy.move(ctx.here, scratch, final, entry.sha256)
        else:
            checksum.sync_folder(existing.parent)  # who put it there may have been killed before he had synced its name
        return entry
    finally:
        scratch.unlink(missing_ok=True)


def _draw_still(source: Path, before: tuple[int, int, int], name: Name, target: Path, worker: Crew) -> None:
    """Draw a file that lies still; what was found in one that changes meanwhile counts for nothing."""
    try:
        from dataflow.lib.plots import rawacf_quicklook
    except ImportError as error:
        raise TryLater(f"{name.text} cannot be drawn: {error}. Install dataflow with its extra [campus]") from error
    try:
        rawacf_quicklook.quicklook(source, name, target, worker)
    finally:
        if not checksum.is_still(source, before):
            raise TryLater(f"{name.text} changed while it was drawn; it is tried again when it lies still")


def _file_of(ctx: Context, name: Name) -> Path | None:
    """Where a rawacf lies by now."""
    found = (ctx.folder(key, name.time) / name.text for key in PLACES)
    return next((path for path in found if place.is_regular(path)), None)
