"""The picture of one antenna: above how many sequences each record has, below the power of every sample.

A picture is laid out in units of a pixel of the small size. At full size everything, also the number of columns, is ``FULL``
times as large, so neither is blurred by resizing: the small one takes the brightest of the columns that share its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataflow.lib.plots.antenna_health import AntennaHealth, State
from dataflow.lib.plots.axes import POWER, draw_pauses, heat_map, level_text, reduction_text, survey_texts, ticks
from dataflow.lib.plots.canvas import BLUE, GREY, INK, PALE_BLUE, RED, Canvas, new_canvas, write
from dataflow.lib.plots.samples import COLUMNS, SAMPLES, Floats, Survey

FULL = 3
SIZE = (1000, 552)

_WIDTH = COLUMNS // FULL
_LEFT, _RIGHT = 66, 66 + _WIDTH
_MARGIN = SIZE[0] - 14
_COUNTS_TOP, _COUNTS_BOTTOM = 62, 112
_SAMPLE_HEIGHT = 5
_TOP, _BOTTOM = 126, 126 + SAMPLES * _SAMPLE_HEIGHT
_TICKS = 9


def write_antenna(found: Survey, brightest: Floats, health: AntennaHealth, main: bool, paths: Sequence[Path]) -> None:
    """Write the pictures of one antenna, the full size first, as ``antenna_picture`` draws them.

    Raises:
        TryLater: they cannot be written.
    """
    for path, full in zip(paths, (True, False), strict=True):
        write(antenna_picture(found, brightest, health, main, full=full), path)


def antenna_picture(found: Survey, brightest: Floats, health: AntennaHealth, main: bool, *, full: bool) -> Image.Image:
    """The picture of one antenna, ``SIZE`` pixels or ``FULL`` times that.

    Args:
        found: what the file is.
        brightest: (columns, samples), power of this antenna.
        health: its own.
        main: whether it belongs to the main array.
        full: the larger one of the two sizes.
    """
    canvas = new_canvas(SIZE, FULL if full else 1)
    _draw_titles(canvas, found, health, main)
    _draw_counts(canvas, found)
    canvas.paste(heat_map(brightest, _WIDTH * canvas.scale, _SAMPLE_HEIGHT * canvas.scale), _LEFT, _TOP)
    draw_pauses(canvas, found, _LEFT, _WIDTH, (_COUNTS_TOP, _BOTTOM))
    _draw_axes(canvas, found)
    canvas.colour_bar((_RIGHT + 18, _TOP, _RIGHT + 34, _BOTTOM), POWER, with_missing=bool(np.isnan(brightest).any()))
    return canvas.image


def _draw_titles(canvas: Canvas, found: Survey, health: AntennaHealth, main: bool) -> None:
    group = "main array" if main else "interferometer"
    experiment, span = survey_texts(found)
    levels = "median {}, {}".format(*level_text(health))
    if health.state is State.GOOD:
        verdict, colour = f"{levels} from the array", GREY
    else:
        verdict, colour = f"{health.state.upper()}: {levels}", RED
    canvas.text(_LEFT, 10, f"{found.station.upper()}  antenna {health.antenna}  ({group})", size=17, bold=True)
    canvas.text(_LEFT, 36, span, fill=GREY)
    canvas.text(_MARGIN, 12, experiment, size=14, anchor="ra")
    canvas.text(_MARGIN, 36, verdict, anchor="ra", fill=colour, bold=colour == RED)


def _draw_counts(canvas: Canvas, found: Survey) -> None:
    """The number of sequences in each record, drawn over the sequences that it has."""
    least, most = int(found.sequences.min()), int(found.sequences.max())
    highest = _round_up(most)
    canvas.paste(
        _counts(found, highest, _WIDTH * canvas.scale, (_COUNTS_BOTTOM - _COUNTS_TOP) * canvas.scale), _LEFT, _COUNTS_TOP
    )
    canvas.box((_LEFT - 1, _COUNTS_TOP - 1, _RIGHT + 1, _COUNTS_BOTTOM + 1), outline=INK)
    for count, y in ((0, _COUNTS_BOTTOM), (highest, _COUNTS_TOP)):
        canvas.box((_LEFT - 5, y - 0.5, _LEFT, y + 0.5), fill=INK)
        canvas.text(_LEFT - 8, y, str(count), anchor="rm")
    middle = (_COUNTS_TOP + _COUNTS_BOTTOM) / 2
    canvas.text(_RIGHT + 8, middle - 16, f"{most}" if least == most else f"{least} to {most}", anchor="lm")
    canvas.text(_RIGHT + 8, middle, "sequences", anchor="lm", fill=GREY)
    canvas.text(_RIGHT + 8, middle + 14, "per record", anchor="lm", fill=GREY)


def _counts(found: Survey, highest: int, width: int, height: int) -> Image.Image:
    """A filled curve; where records share a pixel, its edge reaches from the least to the most of their sequences."""
    total = found.total_sequences
    first = np.arange(width) * total // width
    last = np.maximum(first, np.append(first[1:], total) - 1)
    ends = np.cumsum(found.sequences)
    limits = zip(np.searchsorted(ends, first, "right"), np.searchsorted(ends, last, "right") + 1, strict=True)
    shares = [found.sequences[begin:end] for begin, end in limits]
    least, most = (np.rint(height * np.array([pick(each) for each in shares]) / highest) for pick in (np.min, np.max))
    above = np.arange(height, 0, -1)[:, None]
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[above <= most] = list(bytes.fromhex(PALE_BLUE[1:]))
    picture[(above <= most) & (above > least - height // 50)] = list(bytes.fromhex(BLUE[1:]))
    return Image.fromarray(picture)


def _draw_axes(canvas: Canvas, found: Survey) -> None:
    canvas.box((_LEFT - 1, _TOP - 1, _RIGHT + 1, _BOTTOM + 1), outline=INK)
    for sample in range(0, SAMPLES, 10):
        y = _BOTTOM - (sample + 0.5) * _SAMPLE_HEIGHT
        canvas.box((_LEFT - 5, y - 0.5, _LEFT, y + 0.5), fill=INK)
        canvas.text(_LEFT - 8, y, str(sample), anchor="rm")
    canvas.upright(18, (_TOP + _BOTTOM) / 2, f"sample number ({found.sample_us:g} µs each)")
    for share, time, sequence in ticks(found, _TICKS):
        x = _LEFT + share * _WIDTH
        canvas.box((x - 0.5, _BOTTOM, x + 0.5, _BOTTOM + 6), fill=INK)
        canvas.text(x, _BOTTOM + 10, time, anchor="ma", size=13)
        canvas.text(x, _BOTTOM + 28, f"{sequence:,}", anchor="ma", fill=GREY)
    canvas.text(_RIGHT + 30, _BOTTOM + 10, "UTC", size=13)
    canvas.text(_RIGHT + 30, _BOTTOM + 28, "sequence", fill=GREY)
    canvas.text(_LEFT, SIZE[1] - 22, reduction_text(found), size=11, fill=GREY)


def _round_up(count: int) -> int:
    """The next number that ends an axis well."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count <= 10 * step)
    return -(-count // step) * step
