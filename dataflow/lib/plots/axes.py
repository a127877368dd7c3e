"""What pictures of radar data share: the colours of power, the axis of sequences or records, and the words beside them.

The horizontal axis counts sequences, not seconds: every sequence has the same width however long the radar paused before
it. Pauses are marked, and times in UTC stand where their sequences are.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataflow.lib.plots.antenna_health import AntennaHealth, State
from dataflow.lib.plots.canvas import INK, Canvas, Scale, coloured
from dataflow.lib.plots.samples import COLUMNS, SAMPLES, Floats, Survey, Times

POWER = Scale(30, 80, 10, "power 20 log₁₀|IQ| (dB)", "no sample")

_TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_PAUSE_S = 60.0
"""A longer pause between records is marked, unless the records are always that far apart."""
_NAME_CHARACTERS = 40


class Timed(Protocol):
    """What an axis counts, and when: for each record how many there are, and the Unix times of the first and the last."""

    @property
    def sequences(self) -> NDArray[np.int64]:
        """(records,)."""

    @property
    def began_s(self) -> Times:
        """(records,)."""

    @property
    def ended_s(self) -> Times:
        """(records,)."""

    @property
    def total_sequences(self) -> int:
        """The sum of ``sequences``, which is above zero."""


def heat_map(brightest: Floats, width: int, sample_height: int) -> Image.Image:
    """Power (columns, samples) as colours, sample 0 at the bottom; ``width`` divides ``COLUMNS`` or is equal to it.

    Where there are more pixels than columns, columns are repeated; where fewer, a pixel takes the brightest.
    """
    spread = brightest[np.arange(COLUMNS) * len(brightest) // COLUMNS]
    narrowed = np.fmax.reduce(spread.reshape(width, COLUMNS // width, SAMPLES), axis=1)
    with np.errstate(divide="ignore"):
        power_db = 10 * np.log10(narrowed)
    return coloured(power_db.T[::-1], POWER).resize((width, SAMPLES * sample_height), Image.Resampling.NEAREST)


def ticks(found: Timed, most: int) -> list[tuple[float, str, int]]:
    """Round times on the axis of sequences: where (0 to 1), how they read in UTC, and the sequence that begins then.

    At most about ``most`` of them; none in a pause of the radar, which has no place on the axis. If no round time is left,
    the time of the first sequence stands at its beginning.
    """
    times_s, sequences = _known_times(found)
    begin_s, end_s = float(times_s[0]), float(times_s[-1])
    step_s = next((each for each in _TICK_STEPS_S if (end_s - begin_s) / each < most), _TICK_STEPS_S[-1])
    form = "%H:%M:%S" if step_s < 60 else "%H:%M"
    result: list[tuple[float, str, int]] = []
    for time_s in np.arange(np.ceil(begin_s / step_s) * step_s, end_s + 1e-6, step_s):
        share = float(np.interp(time_s, times_s, sequences)) / found.total_sequences
        apart = not result or share - result[-1][0] > 0.6 / most
        if apart and not _in_pause(float(time_s), times_s, step_s / 2):
            result.append((share, f"{_utc(float(time_s)):{form}}", round(share * found.total_sequences)))
    return result or [(0.0, f"{_utc(begin_s):%H:%M:%S}", 0)]


def draw_pauses(canvas: Canvas, found: Timed, left: float, width: float, between: tuple[float, float]) -> None:
    """A white line with dark edges where the radar paused, over an axis from ``left`` on, from top to bottom."""
    for sequence in pauses(found):
        x = left + width * sequence / found.total_sequences
        canvas.box((x - 1.5, between[0], x + 1.5, between[1]), fill=INK)
        canvas.box((x - 0.5, between[0], x + 0.5, between[1]), fill="white")


def pauses(found: Timed) -> list[int]:
    """The first sequence after each pause."""
    firsts = np.cumsum(found.sequences)[:-1]
    pauses_s = found.began_s[1:] - found.ended_s[:-1]
    long = pauses_s > max(_PAUSE_S, 3 * float(np.median(pauses_s))) if len(pauses_s) else np.zeros(0, bool)
    return [int(each) for each in firsts[long & (firsts > 0)]]


def span_text(found: Timed) -> str:
    """From when to when the file goes, in UTC."""
    times_s, _ = _known_times(found)
    begin, end = _utc(float(times_s[0])), _utc(float(times_s[-1]))
    form = "%H:%M:%S" if end.date() == begin.date() else "%Y-%m-%d %H:%M:%S"
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:{form}} UTC"


def amount_text(count: int, thing: str) -> str:
    """A number of things: ``2,400 records``."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def experiment_text(name: str, cpid: int, slice_id: int) -> str:
    """Experiment, CPID and slice; a long name is cut."""
    shown = name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 2]}…"
    return f"{shown} (CPID {cpid}), slice {slice_id}"


def survey_texts(found: Survey) -> tuple[str, str]:
    """What an antennas_iq file is, and what it holds."""
    holds = f"{amount_text(len(found.records), 'record')},  {amount_text(found.total_sequences, 'sequence')}"
    experiment = experiment_text(found.experiment_name, found.experiment_id, found.slice_id)
    return experiment, f"{span_text(found)},  {holds}"


def reduction_text(found: Survey) -> str:
    """How many sequences share a column, and which of them is seen."""
    each = found.total_sequences / found.columns
    reduction = "every sequence is drawn" if each <= 1 else f"each column is the brightest of {each:.3g} sequences"
    return f"{reduction}; white lines: the radar paused" if pauses(found) else reduction


def level_text(health: AntennaHealth) -> tuple[str, str]:
    """The median power of an antenna, and how far that is from its fellows; of a drifting one, how far it drifted."""
    distance = f"{round(health.distance_db, 1) + 0.0:+.1f} dB".replace("-", "−")
    drift = f"drift {health.drift_db:.1f} dB"
    return f"{health.median_db:.1f} dB".replace("-", "−"), drift if health.state is State.DRIFTING else distance


def _known_times(found: Timed) -> tuple[Times, Times]:
    """Times that never go back, and the sequences that began at them: the first and the last of every record."""
    heard = found.sequences > 0
    counts = found.sequences[heard]
    firsts = np.cumsum(counts) - counts
    times_s = np.ravel(np.stack([found.began_s[heard], found.ended_s[heard]], axis=1))
    return np.maximum.accumulate(times_s), np.ravel(np.stack([firsts, firsts + counts - 1], axis=1)).astype(np.float64)


def _in_pause(time_s: float, times_s: Times, shortest_s: float) -> bool:
    """Whether a time lies between the last sequence of a record and the first of the next, and these far apart."""
    after = int(np.searchsorted(times_s, time_s))
    between_records = 0 < after < len(times_s) and after % 2 == 0 and time_s < times_s[after]
    return between_records and float(times_s[after] - times_s[after - 1]) > shortest_s


def _utc(time_s: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_s)
