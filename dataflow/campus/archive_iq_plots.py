"""Move pictures from the front page into the archive, by the date of each.

Runs on:  campus, one instance per radar
Reads:    plots
Writes:   plots_archive/YYYY/MM of the time in each name
Removes:  the picture from plots, once its name in the archive is recorded
Needs:    nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from dataflow.lib import copy, names, place
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile
from dataflow.lib.names import PICTURES
from dataflow.lib.step import Outcome, done, each

KINDS = PICTURES
ROOTS = ("sddata",)


def find(ctx: Context) -> list[Path]:
    """The pictures whose time is long enough ago, and whatever has no name that we know."""
    horizon = ctx.clock() - timedelta(hours=ctx.flow.plots.archive_after_h)
    found = [(path, names.parse(path.name)) for path in place.scan(ctx.folder("plots"))]
    return [path for path, name in found if name is None or name.time <= horizon]


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """One picture after the other."""
    yield from each(ctx, files, lambda path: _archive(ctx, path))


def _archive(ctx: Context, path: Path) -> Outcome:
    name = names.parse(path.name)
    if name is None or name.radar != ctx.here.radar:
        raise BadFile("other radar", f"{path.name} is not a picture of {ctx.here.radar}")
    entry = ctx.custody.entry_of(path, ctx.flow.files.settle_s)
    final = ctx.folder("plots_archive", name.time) / name.text
    copy.add_name(ctx.here, path, final, entry.sha256)
    place.sync_folders([final.parent])
    return done(path, "archived", bytes=entry.size, sha256=entry.sha256, parent=entry.parent, destination=final, release=(path,))
