"""Draw every antenna of each antennas_iq file, at two sizes, and a contact sheet of all antennas.

What is to be drawn is told by markers, so a late run still draws what is missing. Pictures are drawn in a scratch folder
and put in their places together; then the marker goes.

Runs on:  site-linux (a radar without NAS keeps its antennas_iq, so there is nothing to draw)
Reads:    to_plot (markers), antennas_iq
Writes:   daily_plots (1000 px wide and the contact sheet, for campus), full_size_plots
Removes:  the marker, once its pictures are in their places
Needs:    h5py, numpy, matplotlib, Pillow
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dataflow.lib import alert, checksum, copy, names, place
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.plots import antennas_iq
from dataflow.lib.plots.antenna_health import State
from dataflow.lib.step import Outcome, attempt, bad, done

KINDS = frozenset({Kind.ANTENNAS_IQ})
ROOTS = ("store", "local")


def find(ctx: Context) -> list[Path]:
    """The files that have a marker, oldest first; a marker whose file is not there yet waits."""
    files = (ctx.folder("antennas_iq") / marker.name for marker in place.scan(ctx.folder("to_plot")))
    return [path for path in files if place.is_regular(path)]


def batch(ctx: Context, files: Sequence[Path]) -> int:
    """One file at a time: data that comes in meanwhile does not wait for the next picture."""
    return 1


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """One file after the other; the marker of a bad file goes with it."""
    for path in files:
        if ctx.should_stop():
            return
        outcome = attempt(ctx, path, lambda file: _draw(ctx, file))
        if outcome.outcome == "quarantined":
            fault = BadFile(outcome.kind or "bad", outcome.reason or "")
            outcome = bad(path, fault, release=(_marker(ctx, path),))
        yield outcome


def _draw(ctx: Context, path: Path) -> Outcome:
    name = names.parse(path.name)
    if name is None or name.radar != ctx.here.radar:
        raise BadFile("other radar", f"{path.name} is not of {ctx.here.radar}")
    scratch = ctx.folder("work") / f"plots.{name.stem}.{name.slice_id}"
    shutil.rmtree(scratch, ignore_errors=True)
    place.make_folder(ctx.here, scratch)
    place.require_room(ctx.here, [scratch], 0)
    try:
        pictures = _pictures(ctx, path, name, scratch)
        entries = _put_in_place(ctx, path, pictures.paths)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _tell_antenna_health(ctx, name, pictures)
    known = ctx.custody.known(path.name)
    return done(
        path, "plotted", bytes=path.stat().st_size, sha256=known.sha256 if known else None, destination=ctx.folder("daily_plots"),
        details={"pictures": len(entries), "health": [asdict(health) for health in pictures.health]},
        release=(_marker(ctx, path),),
    )  # fmt: skip


def _pictures(ctx: Context, path: Path, name: Name, scratch: Path) -> antennas_iq.Pictures:
    """Draw a file that lies still; whatever was found in one that changes meanwhile counts for nothing."""
    before = checksum.stamp(path)
    try:
        return antennas_iq.plot(path, name, scratch, processes=ctx.flow.plots.processes, thresholds=ctx.flow.antenna_health)
    finally:
        if not checksum.is_still(path, before):
            raise TryLater(f"{name.text} changed while it was drawn; it is tried again when it lies still")


def _put_in_place(ctx: Context, source: Path, pictures: Sequence[Path]) -> list[Entry]:
    """Hash the pictures, make their manifest durable and give them their places; one that is there already stays."""
    known = ctx.custody.known(source.name)
    parent = known.sha256 if known else None
    entries = [Entry(p.name, p.stat().st_size, checksum.sha256(p), parent=parent, by="plot_antennas_iq") for p in pictures]
    finals = [ctx.folder("full_size_plots" if _kind(e.name) is Kind.PLOT_FULL else "daily_plots") / e.name for e in entries]
    there = [final for final in finals if final.exists()]
    to_send = [e for e, final in zip(entries, finals, strict=True) if _kind(e.name) is not Kind.PLOT_FULL and final not in there]
    ctx.custody.admit(to_send, ctx.here.host_name)
    for picture, entry, final in zip(pictures, entries, finals, strict=True):
        if final not in there:
            checksum.sync_file(picture)
            copy.move(ctx.here, picture, final, entry.sha256)
    place.sync_folders(final.parent for final in there)  # who put them there may have been killed before he had synced the names
    return entries


def _tell_antenna_health(ctx: Context, name: Name, pictures: antennas_iq.Pictures) -> None:
    """One alert for each change of an antenna's state, also when it is good again."""
    for health in pictures.health:
        antenna = f"antenna {health.antenna} of slice {name.slice_id}"
        conditions = {state: f"{antenna} is {state}" for state in State if state is not State.GOOD}
        told = [state for state, condition in conditions.items() if alert.is_told(ctx.here, condition)]
        state = "good again" if health.state is State.GOOD else health.state
        level = f"median {health.median_db:.1f} dB, {health.distance_db:+.1f} dB from the others"
        message = f"{antenna} of {ctx.here.radar} is {state}: {level}"
        if health.state is not State.GOOD:
            alert.tell_once(ctx.log, ctx.here, conditions[health.state], message, file=name.text, antenna=health.antenna)
        elif told:
            alert.tell(ctx.log, message, file=name.text, antenna=health.antenna)
        for ended in told:
            if ended is not health.state:
                alert.clear(ctx.here, conditions[ended])


def _marker(ctx: Context, path: Path) -> Path:
    return ctx.folder("to_plot") / path.name


def _kind(text: str) -> Kind | None:
    name = names.parse(text)
    return name.kind if name else None
