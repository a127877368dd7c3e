"""The contact sheet: all antennas side by side in the same colours, so that the odd one out is seen at a glance."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dataflow.lib.plots.antenna_health import AntennaHealth, HealthThresholds, State
from dataflow.lib.plots.axes import POWER, draw_pauses, heat_map, level_text, reduction_text, survey_texts, ticks
from dataflow.lib.plots.canvas import GREEN, GREY, INK, RED, Canvas, new_canvas, text_width
from dataflow.lib.plots.samples import COLUMNS, SAMPLES, Floats, Survey

_CELLS = 4
"""In a row: the sixteen antennas of a main array are four rows, the four of an interferometer a fifth."""
_WIDTH, _SAMPLE_HEIGHT = COLUMNS // 6, 2
_LABEL, _HEIGHT, _BELOW = 36, SAMPLES * _SAMPLE_HEIGHT, 28
_ROW = _LABEL + _HEIGHT + _BELOW
_LEFT, _TOP, _GAP, _HEADING, _SIDE, _FOOT = 70, 118, 28, 34, 130, 40
_SHEET_WIDTH = _LEFT + _CELLS * (_WIDTH + _GAP) + _SIDE
_FRAME = 5
_TICKS = 5


def contact_sheet(
    found: Survey, brightest: Floats, health: tuple[AntennaHealth, ...], thresholds: HealthThresholds
) -> Image.Image:
    """All antennas on one sheet, main array first, each with its number and median power; bad ones in a red frame.

    ``brightest`` is (antennas, columns, samples), in the order of ``found.antennas`` and ``health``.
    """
    groups = _groups(found, health)
    rows = sum(-(-len(members) // _CELLS) for _, members in groups)
    canvas = new_canvas((_SHEET_WIDTH, _TOP + len(groups) * _HEADING + rows * _ROW + _FOOT))
    _draw_titles(canvas, found, health, thresholds)
    top = _TOP
    for title, members in groups:
        canvas.text(_LEFT, top, title, size=20, fill=GREY)
        top += _HEADING
        for place, index in enumerate(members):
            row, column = divmod(place, _CELLS)
            _draw_cell(canvas, found, brightest[index], health[index], _LEFT + column * (_WIDTH + _GAP), top + row * _ROW)
        top += -(-len(members) // _CELLS) * _ROW
    left = _SHEET_WIDTH - _SIDE + 4
    bar = (left, _TOP + _HEADING + _LABEL, left + 26, top - _BELOW)
    canvas.colour_bar(bar, POWER, size=18, with_missing=bool(np.isnan(brightest).any()))
    return canvas.image


def _groups(found: Survey, health: tuple[AntennaHealth, ...]) -> list[tuple[str, list[int]]]:
    """Titles of the groups that there are, and the places of their antennas in the arrays, by the antennas' numbers."""
    order = sorted(range(len(health)), key=lambda index: health[index].antenna)
    groups = []
    for name, main in (("main array", True), ("interferometer", False)):
        if members := [index for index in order if found.main[index] is main]:
            groups.append((f"{name}: {len(members)} antenna{'s' * (len(members) > 1)}", members))
    return groups


def _draw_titles(canvas: Canvas, found: Survey, health: tuple[AntennaHealth, ...], thresholds: HealthThresholds) -> None:
    experiment, span = survey_texts(found)
    width = canvas.text(_LEFT, 36, f"{found.station.upper()}  {experiment}", size=30, bold=True, anchor="lm")
    verdict, colour = _verdict(health)
    left = _LEFT + width + 40
    size = 26 * min(1, (_SHEET_WIDTH - left - 20) / text_width(verdict, 26))
    canvas.text(left, 36, verdict, size=size, anchor="lm", fill=colour, bold=True)
    canvas.text(_LEFT, 60, f"{span}.  Samples 0 to {SAMPLES - 1} of each sequence; {reduction_text(found)}", size=18)
    explanation = (
        "Median power, and its distance from the median of the array.  "
        f"dead: {thresholds.dead_below_db:g} dB below;  noisy: {thresholds.noisy_above_db:g} dB above;  "
        f"drifting: the distance changes by {thresholds.drifting_by_db:g} dB"
    )
    canvas.text(_LEFT, 86, explanation, size=18, fill=GREY)


def _verdict(health: tuple[AntennaHealth, ...]) -> tuple[str, str]:
    """What is wrong with which antennas, and the colour to say it in."""
    if all(each.state is State.GOOD for each in health):
        return f"all {len(health)} antennas good", GREEN
    bad = {state: sorted(each.antenna for each in health if each.state is state) for state in State if state is not State.GOOD}
    return ";  ".join(f"{state}: {', '.join(map(str, antennas))}" for state, antennas in bad.items() if antennas), RED


def _draw_cell(canvas: Canvas, found: Survey, brightest: Floats, health: AntennaHealth, left: int, top: int) -> None:
    good = health.state is State.GOOD
    colour = INK if good else RED
    upper, lower, right = top + _LABEL, top + _LABEL + _HEIGHT, left + _WIDTH
    width = canvas.text(left, top, str(health.antenna), size=24, bold=True, fill=colour)
    if not good:
        canvas.text(left + width + 12, top + 2, health.state.upper(), size=22, bold=True, fill=colour)
    canvas.text(right, top + 6, "  ".join(level_text(health)), size=18, anchor="ra", fill=GREY if good else RED)
    canvas.paste(heat_map(brightest, _WIDTH, _SAMPLE_HEIGHT), left, upper)
    draw_pauses(canvas, found, left, _WIDTH, (upper, lower))
    margin = 1 if good else _FRAME
    canvas.box((left - margin, upper - margin, right + margin, lower + margin), outline=colour, width=margin)
    for share, time, _ in ticks(found, _TICKS):
        x = left + share * _WIDTH
        canvas.box((x - 0.5, lower + margin, x + 0.5, lower + margin + 4), fill=INK)
        canvas.text(x, lower + margin + 5, time, size=14, anchor="ma", fill=GREY)
