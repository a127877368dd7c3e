"""Move rawacf files and pictures from the site to campus: data before pictures, oldest first.

Runs on:  site-linux
Reads:    rawacf_array and rawacf_dmap on the NAS (part `data`); local daily_plots (part `pictures`)
Writes:   campus incoming
Removes:  the source, once campus has accepted it
Needs:    rsync on both machines; a key for campus
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from dataflow.lib import names, place, transfer
from dataflow.lib.context import Context
from dataflow.lib.names import PICTURES, Kind
from dataflow.lib.step import Outcome

PARTS = {"data": ("rawacf_array", "rawacf_dmap"), "pictures": ("daily_plots",)}
KINDS = frozenset({Kind.RAWACF, Kind.DMAP}) | PICTURES - {Kind.PLOT_FULL}
ROOTS = ("store",)


def find(ctx: Context) -> list[Path]:
    """The files of the part that is meant, or of both; in each part the oldest first.

    A second file of one name waits until the first is gone: they would meet in the one folder over there.
    """
    folders = [PARTS[ctx.part]] if ctx.part else PARTS.values()
    first: dict[str, Path] = {}
    for part in folders:
        for path in _oldest_first([p for key in part for p in place.scan(ctx.folder(key))]):
            first.setdefault(path.name, path)
    return list(first.values())


def batch(ctx: Context, files: Sequence[Path]) -> int:
    """Data in large batches; pictures in what the link carries in a minute, because data that comes in waits for one batch."""
    plots = ctx.folder("daily_plots")
    if files[0].parent == plots:
        return transfer.short_batch(ctx, files)
    return transfer.long_batch(ctx, list(takewhile(lambda path: path.parent != plots, files)))


def handle_batches(ctx: Context, batches: Iterator[Sequence[Path]]) -> Iterator[Outcome]:
    """One rsync and one ``receive`` for each batch."""
    return transfer.deliver(ctx, str(ctx.here.host.next), (transfer.batch_of(ctx, files) for files in batches))


def _oldest_first(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (name.text if (name := names.parse(path.name)) else "~", path.name))
