from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dmap
import h5py
import numpy as np
import pydarnio
import pytest

from dataflow.demo import borealis_record, radar, scatter_signal, simulate_radar
from dataflow.demo.radar import SITES, Fault, FaultKind, SliceSpec
from dataflow.demo.simulate_radar import simulate, write_block
from dataflow.lib import names
from dataflow.lib.errors import BadConfig

START = datetime(2026, 11, 1, 14, tzinfo=UTC)
RAWACF_ONLY = SliceSpec(with_antennas_iq=False)
SMALL = SliceSpec(with_antennas_iq=False, ranges=12)

STRUCTURE = json.loads(Path(__file__).with_name("borealis_structure.json").read_text())
"""What the files of the radar look like, by file; written by ``structure`` from the files themselves."""
FROM_THE_RADAR = Path(os.environ.get("DATAFLOW_RADAR_FILES", Path(__file__).resolve().parents[2] / "shared" / "data"))
FLAVOURS = {
    "20261101.1400.00.sas.0.rawacf.h5": (RAWACF_ONLY, 3),
    "20261101.1400.00.sas.1.rawacf.h5": (SliceSpec(slice_id=1, with_interferometer=False, with_antennas_iq=False), 3),
    "20261101.1600.00.sas.0.rawacf.h5": (SliceSpec(cpid=3800, beams_per_record=16, with_antennas_iq=False), 2),
    "20261101.1400.00.sas.0.antennas_iq.h5": (SliceSpec(), 2),
}


# --- structure -------------------------------------------------------------------------------------------------------


def structure(path: Path) -> dict[str, str]:
    """Everything about each dataset of a record but its values, one line each; all records must be alike."""
    with h5py.File(path, "r", locking=False) as file:
        assert not file.attrs and not file["metadata"].attrs
        records = [file[name] for name in file if name != "metadata"]
        described = [{name: _describe(record[name], record, file, len(records)) for name in record} for record in records]
        assert all(other == described[0] for other in described)
        assert set(file["metadata"]) == {name for name, text in described[0].items() if "linked to metadata" in text}
        assert all(type(record) is h5py.Group and not record.attrs for record in records)
        return described[0]


def _describe(dataset: h5py.Dataset, record: h5py.Group, file: h5py.File, records: int) -> str:
    kept = file["metadata"].get(dataset.name.rpartition("/")[2])
    is_link = kept is not None and kept == dataset
    links = h5py.h5o.get_info(dataset.id).rc
    assert links == (records + 1 if is_link else 1), f"{dataset.name} has {links} links"
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number)[:3] for number in range(creation.get_nfilters())]
    shape = "" if dataset.shape == () else f"{dataset.shape} chunks {dataset.chunks} filters {filters}"
    attributes = [
        f"{key}: {_type(dataset.attrs.get_id(key).get_type())} = {_plain(dataset.attrs[key])}" for key in sorted(dataset.attrs)
    ]
    where = "linked to metadata" if is_link else "of this record"
    times = (creation.get_alloc_time(), creation.get_fill_time(), creation.get_obj_track_times())
    return f"{_type(dataset.id.get_type(), any_length=True)} {shape} {times} {where}; {'; '.join(attributes)}"


def _type(kind: h5py.h5t.TypeID, *, any_length: bool = False) -> str:
    if not isinstance(kind, h5py.h5t.TypeStringID):
        return str(kind.dtype)
    length = "variable" if kind.is_variable_str() else "fixed" if any_length else f"fixed {kind.get_size()}"
    return f"string {length} {kind.get_strpad()} {kind.get_cset()}"


def _plain(value: object) -> str:
    return str(value.tolist() if isinstance(value, np.ndarray) else value.decode() if isinstance(value, bytes) else value)


@pytest.mark.parametrize("name", FLAVOURS)
def test_the_files_have_the_structure_of_the_radars(name: str, tmp_path: Path) -> None:
    spec, records = FLAVOURS[name]
    start = names.parse(name).time
    files = write_block(tmp_path, "sas", start, [spec], records=records, antennas=20, sequences=8, samples=295)
    written = {path.name: path for path in files}
    assert written[name].parent == tmp_path / "20261101"
    assert structure(written[name]) == STRUCTURE[name]


@pytest.mark.skipif(not FROM_THE_RADAR.is_dir(), reason="the files written by the radar are not on this machine")
def test_the_kept_structure_is_that_of_the_radars_files() -> None:
    found = {path.name: structure(path) for path in FROM_THE_RADAR.glob("*.h5")}
    assert found == STRUCTURE


def test_values_have_the_meaning_that_the_radar_gives_them(tmp_path: Path) -> None:
    path = write_block(tmp_path, "inv", START, [SliceSpec()], records=2)[0]
    with h5py.File(path, "r", locking=False) as file:
        assert list(file) == ["20261101-1400-00.000000", "20261101-1400-03.000000", "metadata"]
        record = file["20261101-1400-03.000000"]
        assert record["lag_numbers"][:].tolist() == [
            *[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 27, 28, 29, 31, 42, 43, 0]
        ]
        assert record["lag_pulses"][:].tolist()[:2] == [[0, 0], [42, 43]] and record["lag_pulses"][-1].tolist() == [43, 43]
        assert record["blanked_samples"][:].tolist() == [0, 70, 110, 120, 135, 155, 210, 215]
        assert record["station"][()] == b"inv" and record["beam_nums"][:].tolist() == [1] and not record["scan_start_marker"][()]
        assert record["sqn_timestamps"][0] == START.timestamp() + 3
        assert record["sqn_timestamps"][-1] < START.timestamp() + 6
        assert np.allclose(abs(record["rx_main_excitations"][:]), 1)


# --- conversion ------------------------------------------------------------------------------------------------------


def converted(path: Path, folder: Path) -> list[dict]:
    output = folder / f"{path.stem}.dmap"
    pydarnio.BorealisConvert(str(path), "rawacf", str(output))
    return dmap.read_rawacf(str(output), mode="strict")


@pytest.mark.parametrize(
    ("spec", "beams", "has_xcf"),
    [
        (RAWACF_ONLY, 1, True),
        (SliceSpec(slice_id=3, cpid=-3530, with_interferometer=False, with_antennas_iq=False), 1, False),
        (SliceSpec(cpid=3800, beams_per_record=16, with_antennas_iq=False), 16, True),
    ],
)
def test_rawacf_converts_to_dmap(spec: SliceSpec, beams: int, has_xcf: bool, tmp_path: Path) -> None:
    (path,) = write_block(tmp_path, "rkn", START, [spec], records=3)
    records = converted(path, tmp_path)
    assert len(records) == 3 * beams
    assert [record["bmnum"] for record in records] == ([0, 1, 2] if beams == 1 else list(range(16)) * 3)
    assert {record["cp"] for record in records} == {spec.cpid}
    assert {record["channel"] for record in records} == {spec.slice_id}
    assert {record["stid"] for record in records} == {65}
    assert all(("xcfd" in record) == has_xcf == bool(record["xcf"]) for record in records)
    for record in records:
        assert (record["nrang"], record["mplgs"], record["nave"], record["tfreq"]) == (75, 29, 29, 10_500)
        assert record["acfd"].shape == (75, 29, 2) and np.isfinite(record["acfd"]).all()
        assert record["combf"].endswith("wide beam" if beams > 1 else "beam scan")
    assert 0.3 < np.sort(records[0]["pwr0"])[:8].mean() < 3, "noise is about 1 in DMAP"
    assert records[0]["pwr0"].max() > 50, "there is something to see"


@pytest.mark.parametrize("station", SITES)
def test_pydarnio_knows_every_station(station: str, tmp_path: Path) -> None:
    from pydarnio.borealis.borealis_utilities import code_to_stid

    (path,) = write_block(tmp_path, station, START, [SMALL], records=1)
    assert converted(path, tmp_path)[0]["stid"] == code_to_stid[station]


def test_one_record_can_carry_another_cpid(tmp_path: Path) -> None:
    (path,) = write_block(tmp_path, "sas", START, [SMALL], records=4, cpid_of_record={2: 3503})
    assert [record["cp"] for record in converted(path, tmp_path)] == [151, 151, 3503, 151]


# --- blocks and records ----------------------------------------------------------------------------------------------


def test_records_come_one_by_one_for_all_slices_in_turn(tmp_path: Path) -> None:
    slices = [SMALL, SliceSpec(slice_id=1, ranges=12)]
    seen = []

    def look(seconds: float) -> None:
        counts = {}
        for path in sorted(tmp_path.glob("*/*.h5")):
            with h5py.File(path, "a") as file:
                counts[path.name] = len(file) - 1
        seen.append((seconds, set(counts.values()), len(counts)))

    files = write_block(tmp_path, "sas", START, slices, records=3, pace=look, samples=60, sequences=2)
    assert [path.name for path in files] == [
        f"20261101.1400.00.sas.{name}.h5" for name in ("0.rawacf", "1.rawacf", "1.antennas_iq")
    ]
    assert seen == [(3.0, set(), 0), (6.0, {1}, 3), (9.0, {2}, 3)]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    def digests(folder: str, seed: int) -> list[str]:
        files = write_block(tmp_path / folder, "sas", START, [SliceSpec()], records=2, seed=seed)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    first = digests("a", 7)
    assert digests("b", 7) == first
    assert not set(digests("c", 8)) & set(first)


def test_files_kept_open_hold_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_radar, "RECORDS_PER_OPENING", 2)
    (each,) = write_block(tmp_path / "each", "sas", START, [SMALL], records=5)
    (kept,) = write_block(tmp_path / "kept", "sas", START, [SMALL], records=5, open_each_record=False)
    assert structure(kept) == structure(each)
    with h5py.File(each, "r", locking=False) as one, h5py.File(kept, "r", locking=False) as other:
        assert list(one) == list(other) and len(one) == 6
        for record in one:
            for name in one[record]:
                assert np.array_equal(one[record][name][()], other[record][name][()]), f"{record}/{name}"


def test_blocks_begin_at_even_hours_and_are_dated_when_they_ended(tmp_path: Path) -> None:
    lines: list[str] = []
    start = datetime(2026, 11, 1, 21, 59, 54, tzinfo=UTC)
    files = simulate(tmp_path, "sas", start, [SMALL], blocks=3, records=4, report=lines.append)
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "20261101/20261101.2159.54.sas.0.rawacf.h5",
        "20261101/20261101.2200.00.sas.0.rawacf.h5",
        "20261102/20261102.0000.00.sas.0.rawacf.h5",
    ]
    ends = [datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in files]
    assert [f"{end:%d %H:%M:%S}" for end in ends] == ["01 22:00:00", "01 22:00:12", "02 00:00:12"]
    assert [line.partition(": ")[2].partition(",")[0] for line in lines] == [
        "2 records in 1 files",
        "4 records in 1 files",
        "4 records in 1 files",
    ]


def test_the_files_can_keep_the_time_at_which_they_were_written(tmp_path: Path) -> None:
    before = time.time()
    (path,) = write_block(tmp_path, "sas", START, [SMALL], records=1, set_modification_time=False)
    assert path.stat().st_mtime >= before - 1


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (path,) = write_block(tmp_path, "sas", START, [SMALL], records=1)
    before = path.read_bytes()
    with pytest.raises(BadConfig, match="is there already"):
        write_block(tmp_path, "sas", START, [SMALL, SliceSpec(slice_id=1)], records=1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radar": "xyz"}, "no radar 'xyz'"),
        ({"start": START.replace(tzinfo=None)}, "UTC"),
        ({"faults": [Fault(20, FaultKind.DEAD)]}, "antenna 20 cannot fail"),
        ({"cpid_of_record": {0: 40_000}}, "CPID 40000"),
    ],
)
def test_the_impossible_is_refused_before_anything_is_written(changes: dict, message: str, tmp_path: Path) -> None:
    arguments = {"radar": "sas", "start": START, "slices": [SMALL], "records": 1, **changes}
    with pytest.raises(BadConfig, match=message):
        write_block(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_slice_that_dmap_cannot_hold_is_refused() -> None:
    with pytest.raises(BadConfig, match="CPID"):
        SliceSpec(cpid=32_768)
    with pytest.raises(BadConfig, match="beams"):
        SliceSpec(beams_per_record=7)


def test_the_pace_waits_for_early_records_only() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = simulate_radar.pacer(6, clock=lambda: now[0], sleep=sleep)
    pace(3)
    now[0] += 2
    pace(6)
    pace(18)
    assert slept == [0.5, pytest.approx(0.5)]


def test_speed_holds_records_back(tmp_path: Path) -> None:
    begun = time.monotonic()
    simulate(tmp_path, "sas", START, [SMALL], records=4, speed=24)
    assert time.monotonic() - begun >= 12 / 24


# --- signal ----------------------------------------------------------------------------------------------------------


def field(path: Path, name: str) -> np.ndarray:
    with h5py.File(path, "r", locking=False) as file:
        return np.stack([file[record][name][()] for record in file if record != "metadata"])


def test_beam_forming_the_antennas_gives_the_power_of_the_rawacf(tmp_path: Path) -> None:
    acf_file, iq_file = write_block(tmp_path, "sas", START, [SliceSpec()], records=4, sequences=40)
    voltages, weights = field(iq_file, "antennas_iq_data")[:, :16], field(iq_file, "rx_main_excitations")[:, 0]
    formed = np.einsum("ra,rast->rst", weights, voltages)
    ranges = np.arange(66)
    from_antennas = (abs(formed[..., ranges + 4]) ** 2).mean(axis=1)
    from_rawacf = abs(field(acf_file, "main_acfs")[:, 0, ranges, 0])
    ratio_db = 10 * np.log10(from_antennas / from_rawacf)
    assert np.abs(ratio_db).mean() < 2 and abs(ratio_db.mean()) < 0.5
    assert np.corrcoef(np.log(from_antennas).ravel(), np.log(from_rawacf).ravel())[0, 1] > 0.95


def test_every_record_has_noise_of_its_own(tmp_path: Path) -> None:
    _, iq_file = write_block(tmp_path, "sas", START, [SliceSpec()], records=2)
    first, second = field(iq_file, "antennas_iq_data")[:, 0, :, 220:]
    alike = abs(np.vdot(first, second)) / np.sqrt(np.vdot(first, first).real * np.vdot(second, second).real)
    assert alike < 0.2


def test_the_lags_turn_with_the_velocity_and_fade_with_the_width() -> None:
    one = np.ones((1, 1))
    found = scatter_signal.Echoes(1e4 * one, 400 * one, 100 * one, 0.3 * one, 0.1 * one, 1.0)
    positions, main = borealis_record.array_positions_m(20)
    made = scatter_signal.correlations(
        found,
        borealis_record.LAG_PULSES,
        positions[:main].astype(float),
        positions[main:].astype(float),
        10_500,
        10**6,
        np.random.default_rng(1),
    )
    wavelength_m = 299_792_458 / 10.5e6
    lag_s = 1.5e-3
    for name, power in (("main_acfs", 16 * 1e4), ("intf_acfs", 1e4), ("xcfs", 4 * 1e4)):
        zero, first = made[name][0, 0, :2]
        assert np.angle(first / zero) == pytest.approx(4 * np.pi * 400 * lag_s / wavelength_m, abs=0.01), name
        assert abs(first / zero) == pytest.approx(np.exp(-2 * np.pi * 100 * lag_s / wavelength_m), rel=0.01), name
        assert abs(zero) == pytest.approx(power, rel=0.01), name
    behind_m = 100 * np.sqrt(1 - np.sin(0.1) ** 2 - np.sin(0.3) ** 2)
    turned = np.exp(2j * np.pi * behind_m / wavelength_m)
    assert np.angle(made["xcfs"][0, 0, 0] / turned) == pytest.approx(0, abs=0.02)


def test_there_is_scatter_of_both_kinds_that_changes_with_beam_and_time() -> None:
    scene = scatter_signal.draw_scene(np.random.default_rng(3))
    azimuths = (np.arange(16) - 7.5) * 3.24
    now, later = (scatter_signal.echoes(scene, t, azimuths, 75, np.random.default_rng(0)) for t in (1.79e9, 1.79e9 + 3600))
    strong = now.snr > 3
    assert 0.1 < strong.mean() < 0.9
    from_ground = strong & (abs(now.velocity_m_s) < 40) & (now.spectral_width_m_s < 40)
    moving = strong & (abs(now.velocity_m_s) > 100) & (now.spectral_width_m_s > 80)
    assert from_ground.sum() > 30 and moving.sum() > 30
    assert np.corrcoef(np.log(now.snr[0]), np.log(now.snr[15]))[0, 1] < 0.999
    assert np.abs(np.log10(now.snr / later.snr))[strong].mean() > 0.1


def test_faulty_antennas_stand_out(tmp_path: Path) -> None:
    faults = [Fault(3, FaultKind.DEAD), Fault(7, FaultKind.NOISY), Fault(11, FaultKind.DRIFTING)]
    _, good_file = write_block(tmp_path / "good", "sas", START, [SliceSpec()], records=3)
    _, bad_file = write_block(tmp_path / "bad", "sas", START, [SliceSpec()], records=3, faults=faults)
    good, bad = field(good_file, "antennas_iq_data"), field(bad_file, "antennas_iq_data")
    changed = {antenna for antenna in range(20) if not np.array_equal(good[:, antenna], bad[:, antenna])}
    assert changed == {3, 7, 11}
    quiet = np.setdiff1d(np.arange(295), field(good_file, "blanked_samples")[0])
    ratio = np.sqrt((abs(bad[..., quiet]) ** 2).mean(axis=(2, 3)) / (abs(good[..., quiet]) ** 2).mean(axis=(2, 3)))
    assert (ratio[:, 3] < 0.05).all()
    assert (ratio[:, 7] > 1.5).all()
    assert ratio[0, 11] == pytest.approx(1) and ratio[2, 11] == pytest.approx(0.05, abs=0.01)
    assert (abs(good[..., radar.PULSES[1] * 5]) > 5e4).all(), "the transmitter saturates every antenna"


# --- command ---------------------------------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate_radar.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--radar cly --start 2026-11-01T16:00+02:00 --blocks 2 --records 1 --slices 2 --wide-beam --no-interferometer"
    assert simulate_radar.run(parse(str(tmp_path), *words.split(), "--no-antennas-iq", "--seed", "4")) == 0
    files = sorted(tmp_path.glob("20261101/*"))
    assert [path.name for path in files] == [
        f"20261101.{hour}00.00.cly.{slice_id}.rawacf.h5" for hour in (14, 16) for slice_id in (0, 1)
    ]
    records = converted(files[1], tmp_path)
    assert len(records) == 16 and {(record["cp"], record["xcf"], record["channel"]) for record in records} == {(3800, 0, 1)}
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("2026-11-01 14:00 cly: 1 records in 2 files")


def test_the_command_passes_faults_and_cpid_on(tmp_path: Path) -> None:
    words = [
        "--start",
        "2026-11-01T14:00",
        "--records",
        "1",
        "--cpid",
        "-77",
        "--fault",
        "antenna=2:dead",
        "--fault",
        "antenna=4:noisy",
    ]
    simulate_radar.run(parse(str(tmp_path), *words), report=lambda line: None)
    (path,) = tmp_path.glob("*/*antennas_iq.h5")
    power = abs(field(path, "antennas_iq_data")[0]).mean(axis=(1, 2))
    assert power[2] < power.min(initial=np.inf, where=np.arange(20) != 2) / 10
    assert field(path, "experiment_id").tolist() == [-77]


def test_blocks_without_a_start_lie_in_the_past_except_in_real_time(tmp_path: Path) -> None:
    arguments = parse(str(tmp_path), "--blocks", "2", "--records", "1", "--no-antennas-iq")
    simulate_radar.run(arguments, report=lambda line: None)
    stamps = sorted(names.parse(path.name).time for path in tmp_path.glob("*/*"))
    assert stamps[1] - stamps[0] == timedelta(hours=2) and stamps[0].hour % 2 == 0 and not stamps[0].minute
    assert timedelta(hours=2) <= datetime.now(UTC) - stamps[1] < timedelta(hours=4, minutes=5)
    assert simulate_radar._default_start(START + timedelta(minutes=7), 5, 1.0) == START + timedelta(minutes=7)


@pytest.mark.parametrize(
    "words",
    [
        ["--radar", "xyz"],
        ["--start", "yesterday"],
        ["--blocks", "0"],
        ["--records", "-1"],
        ["--speed", "nan"],
        ["--speed", "-1"],
        ["--seed", "-1"],
        ["--fault", "antenna=x:dead"],
        ["--fault", "antenna=7:tired"],
        ["--fault", "7:dead"],
    ],
)
def test_wrong_words_are_refused_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("somewhere", *words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_more_slices_than_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="26"):
        simulate_radar.run(parse(str(tmp_path), "--slices", "27"))


def test_the_help_can_be_printed() -> None:
    parser = argparse.ArgumentParser()
    simulate_radar.add_arguments(parser)
    assert "antenna=N:KIND" in parser.format_help()


def test_the_command_line_needs_no_numpy() -> None:
    program = "import sys, dataflow.demo.simulate_radar; sys.exit(bool({'numpy', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
