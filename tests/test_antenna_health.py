"""Antenna health: every fault of the simulator is found, healthy arrays raise none, and groups are compared with themselves."""

from __future__ import annotations

import numpy as np
import pytest
from iq_files import simulated

from dataflow.demo.simulate_radar import parse_fault
from dataflow.lib.plots import samples
from dataflow.lib.plots.antenna_health import NOTHING_DB, HealthThresholds, State, judge

MAIN = (True,) * 16 + (False,) * 4
ALL = tuple(range(20))


def healthy(rng: np.random.Generator, records: int = 240) -> np.ndarray:
    """Median powers (antennas, records) of a sound array: common scatter that comes and goes, gains apart, some noise."""
    minutes = np.arange(records) / 2
    common_db = 35 + 12 * np.sin(minutes / 23 + rng.uniform(0, 6)) ** 2 + rng.normal(0, 1.5, records)
    gains_db = np.clip(rng.normal(0, 1.2, (20, 1)), -3, 3)
    wander_db = 0.4 * np.sin(minutes / rng.uniform(20, 90, (20, 1)) + rng.uniform(0, 6, (20, 1)))
    return 10 ** ((common_db + gains_db + wander_db + rng.normal(0, 0.3, (20, records))) / 10)


def states(medians: np.ndarray, main=MAIN, thresholds: HealthThresholds | None = None) -> dict[int, State]:
    """Those antennas that are not good."""
    found = judge(medians, eight(medians), tuple(range(len(medians))), main, thresholds or HealthThresholds())
    return {each.antenna: each.state for each in found if each.state is not State.GOOD}


def eight(medians: np.ndarray) -> np.ndarray:
    """The number of sequences in each record of a radar that averages for three seconds."""
    return np.full(medians.shape[1], 8)


def decibels(values: float | np.ndarray) -> np.ndarray:
    return 10 ** (np.asarray(values) / 10)


def test_two_hundred_healthy_blocks_raise_nothing():
    rng = np.random.default_rng(11)
    for _ in range(200):
        assert states(healthy(rng)) == {}


@pytest.mark.parametrize("antenna", [0, 7, 15, 16, 19])
@pytest.mark.parametrize(
    ("change_db", "state"),
    [
        (-14, State.DEAD),
        (11, State.NOISY),
        (np.linspace(0, -6, 240), State.DRIFTING),
        (np.repeat((0, -40, 0), 80), State.DRIFTING),
        (np.repeat((0, 9), (200, 40)), State.DRIFTING),
    ],
)
def test_a_fault_is_found_in_any_antenna_and_only_there(antenna, change_db, state):
    medians = healthy(np.random.default_rng(antenna))
    medians[antenna] *= decibels(change_db)
    assert states(medians) == {antenna: state}


@pytest.mark.parametrize("kind", ["dead", "noisy", "drifting"])
def test_the_faults_of_the_simulator_are_found_in_its_files(tmp_path, kind):
    path = simulated(tmp_path, records=12, faults=[parse_fault(f"antenna=7:{kind}")])
    found = samples.survey(path)
    whole = samples.read(path, samples.spans(found, 12)[0], 20, found.total_sequences)
    health = judge(whole.medians, found.sequences, found.antennas, found.main, HealthThresholds())
    assert {each.antenna: each.state for each in health if each.state is not State.GOOD} == {7: kind}


@pytest.mark.parametrize(("records", "sequences"), [(1, 1), (5, 1), (6, 1), (2, 3), (12, 1), (12, 2), (40, 1)])
def test_short_files_of_few_sequences_are_no_drift(records, sequences):
    """The median of a few dozen samples of noise scatters by more than a decibel; with many antennas, one always by three."""
    rng = np.random.default_rng(records)
    for _ in range(200):
        power = rng.exponential(1e4, (20, records, sequences * samples.SAMPLES))
        found = judge(np.median(power, axis=2), np.full(records, sequences), ALL, MAIN, HealthThresholds())
        assert all(each.state is State.GOOD for each in found)


def test_a_short_file_shows_what_is_plain():
    medians = healthy(np.random.default_rng(8), records=4)
    medians[2, 2:] *= decibels(-9)
    found = judge(medians, np.full(4, 2), ALL, MAIN, HealthThresholds())
    assert {each.antenna: each.state for each in found if each.state is not State.GOOD} == {2: State.DRIFTING}


def test_a_silent_antenna_is_dead_even_if_all_are():
    assert states(np.zeros((20, 4))) == dict.fromkeys(ALL, State.DEAD)
    medians = healthy(np.random.default_rng(1))
    medians[3], medians[4] = 0, np.nan
    found = judge(medians, eight(medians), ALL, MAIN, HealthThresholds())
    assert [found[3].state, found[4].state] == [State.DEAD] * 2
    assert found[3].median_db == found[4].median_db == NOTHING_DB
    assert all(each.state is State.GOOD for each in found if each.antenna not in (3, 4))


def test_an_interferometer_with_a_level_of_its_own_is_compared_with_itself():
    medians = healthy(np.random.default_rng(2))
    medians[16:] *= decibels(-8)
    assert states(medians) == {}
    medians[18] *= decibels(-15)
    assert states(medians) == {18: State.DEAD}


@pytest.mark.parametrize("dead", [(16, 17), (16, 17, 18), (16, 17, 18, 19), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_several_dead_antennas_do_not_make_the_others_noisy(dead):
    medians = healthy(np.random.default_rng(3))
    medians[list(dead)] *= decibels(-35)
    assert states(medians) == dict.fromkeys(dead, State.DEAD)


def test_few_antennas_are_compared_with_one_another():
    medians = decibels(np.array([[40.0] * 5, [41] * 5, [20] * 5]))
    assert states(medians, (True, True, False)) == {2: State.DEAD}
    assert states(medians[:1], (True,)) == {}


def test_thresholds_can_be_chosen():
    medians = healthy(np.random.default_rng(4))
    medians[5] *= decibels(-7)
    assert states(medians) == {}
    assert states(medians, thresholds=HealthThresholds(dead_below_db=4)) == {5: State.DEAD}


def test_records_without_sequences_say_nothing():
    medians = healthy(np.random.default_rng(6))
    medians[:, ::7] = np.nan
    assert states(medians) == {}


def test_the_numbers_say_how_far():
    medians = np.ones((20, 24)) * decibels(40)
    medians[2] = decibels(43)
    medians[9, :12] = decibels(38)
    found = judge(medians, eight(medians), ALL, MAIN, HealthThresholds())
    assert (found[2].median_db, found[2].distance_db, found[2].drift_db) == (43, 3, 0)
    assert found[9].drift_db == 2
