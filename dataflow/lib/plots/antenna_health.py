"""Which antennas of an array are dead, noisy or drifting, from the power that each of them receives.

Every antenna of an array hears the same sky and the same echoes, so what they receive differs only by their own gain. Each
is compared with the median of its fellows: their common rise and fall, by day and by scatter, cancels, and a few bad
antennas do not move a median.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.floating]

NOTHING_DB = -120.0
"""Stands for the power of zeros and of missing samples, which have no logarithm."""
SEGMENTS = 12
"""Parts of a file in which drift is looked for: ten minutes each in a two-hour block."""
SEQUENCES_PER_SEGMENT = 8
"""No part has fewer: the median of the 570 samples in them is sure to 0.3 dB, that of one sequence's only to 0.7."""
SEQUENCES_PER_HALF = 3
"""Or, in a short file, neither of two halves: between these there is one difference only that chance may make large."""


class State(StrEnum):
    """What the received power says of an antenna."""

    GOOD = "good"
    DEAD = "dead"
    NOISY = "noisy"
    DRIFTING = "drifting"


@dataclass(frozen=True, slots=True)
class HealthThresholds:
    """From when on an antenna is no longer good: ``antenna_health`` of the configuration.

    The antennas of a healthy array lie within about 3 dB of each other (cables, preamplifiers, place in the array) and keep
    their distance to well below 1 dB over two hours. Hence, as shipped:

    ``dead_below_db``: a tenth of the median's power, which no healthy gain explains; an antenna without its feed or
    preamplifier hears the receiver alone, further below.
    ``noisy_above_db``: four times the median's power, twice the scatter of healthy antennas.
    ``drifting_by_db``: between two parts of the file the gain halves or doubles.
    ``group_spread_db``: main array and interferometer are judged apart if most of a group agree within this.
    """

    dead_below_db: float = 10.0
    noisy_above_db: float = 6.0
    drifting_by_db: float = 3.0
    group_spread_db: float = 3.0


@dataclass(frozen=True, slots=True)
class AntennaHealth:
    """One antenna by its own number: its median power, how far that is from its array's, by how much that distance changed."""

    antenna: int
    median_db: float
    distance_db: float
    drift_db: float
    state: State


def judge(
    medians: Floats,
    sequences: NDArray[np.int64],
    antennas: tuple[int, ...],
    main: tuple[bool, ...],
    thresholds: HealthThresholds,
) -> tuple[AntennaHealth, ...]:
    """The health of every antenna, in the order given.

    Args:
        medians: (antennas, records), the median power (linear) of each antenna in each record; NaN where there is none.
        sequences: (records,), how many sequences each record has.
        antennas: the antennas' own numbers.
        main: which of them belong to the main array.
        thresholds: from when on an antenna is no longer good.
    """
    import numpy as np

    heard = medians[:, ~np.isnan(medians).all(axis=0)]
    with np.errstate(divide="ignore"):
        levels_db = np.nan_to_num(10 * np.log10(heard.astype(np.float64)), nan=NOTHING_DB, neginf=NOTHING_DB)
    levels_db = np.clip(levels_db, NOTHING_DB, -NOTHING_DB)
    overall_db = np.median(levels_db, axis=1) if levels_db.size else np.full(len(antennas), NOTHING_DB)
    fellows = _fellows(overall_db, np.array(main), thresholds)
    distance_db = overall_db - _reference(overall_db, fellows)
    segments = np.array_split(levels_db, _parts(levels_db.shape[1], int(sequences.sum())), axis=1) if levels_db.size else []
    over_time_db = [level - _reference(level, fellows) for level in (np.median(segment, axis=1) for segment in segments)]
    drift_db = np.ptp(over_time_db, axis=0) if over_time_db else np.zeros(len(antennas))
    return tuple(
        AntennaHealth(
            antenna,
            round(float(level), 2),
            round(float(distance), 2),
            round(float(drift), 2),
            _state(float(level), float(distance), float(drift), thresholds),
        )
        for antenna, level, distance, drift in zip(antennas, overall_db, distance_db, drift_db, strict=True)
    )


def _parts(records: int, sequences: int) -> int:
    """Into how many parts a file is cut, so that noise alone is no drift."""
    wanted = max(sequences // SEQUENCES_PER_SEGMENT, min(2, sequences // SEQUENCES_PER_HALF))
    return max(1, min(SEGMENTS, records, wanted))


def _state(level_db: float, distance_db: float, drift_db: float, thresholds: HealthThresholds) -> State:
    if level_db <= NOTHING_DB or distance_db <= -thresholds.dead_below_db:
        return State.DEAD
    if distance_db >= thresholds.noisy_above_db:
        return State.NOISY
    return State.DRIFTING if drift_db >= thresholds.drifting_by_db else State.GOOD


def _fellows(levels_db: Floats, main: NDArray[np.bool_], thresholds: HealthThresholds) -> NDArray[np.bool_]:
    """(antennas, antennas): with whom each antenna is compared: its own group, or the whole array.

    A group may have a level of its own (other cables, other antennas). It counts as such if it has three antennas or more,
    most of which agree, and if the group as a whole does not look dead or noisy: a dead interferometer must not pass as one
    that is consistently quiet.
    """
    import numpy as np

    fellows = np.ones((len(levels_db), len(levels_db)), bool)
    for group in (main, ~main):
        if group.sum() < 3 or group.all():
            continue
        median_db = np.median(levels_db[group])
        agree = (np.abs(levels_db[group] - median_db) <= thresholds.group_spread_db).mean() > 0.5
        offset_db = median_db - np.median(levels_db[main] if main.sum() > (~main).sum() else levels_db)
        if agree and -thresholds.dead_below_db < offset_db < thresholds.noisy_above_db:
            fellows[group] = group
    return fellows


def _reference(levels_db: Floats, fellows: NDArray[np.bool_]) -> Floats:
    import numpy as np

    return np.array([np.median(levels_db[each]) for each in fellows])
