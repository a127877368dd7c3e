"""Rawacf files for the tests: of Borealis v1 by the simulated radar, of earlier versions by pyDARNio's own writers."""

from __future__ import annotations

import bz2
import contextlib
import os
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydarnio
from pydarnio.borealis.borealis_site import BorealisSiteWrite

from dataflow.demo.simulate_radar import SliceSpec, write_block

START = datetime(2026, 11, 1, 14, tzinfo=UTC)
FROM_THE_RADAR = Path(os.environ.get("DATAFLOW_RADAR_FILES", Path(__file__).resolve().parents[2] / "shared" / "data"))


def simulated(
    folder: Path, *, records: int = 4, slice_id: int = 0, beams: int = 1, interferometer: bool = True, **more: Any
) -> Path:
    """A v1 rawacf of sas, from 2026-11-01 14:00."""
    spec = SliceSpec(
        slice_id=slice_id, beams_per_record=beams, with_interferometer=interferometer, with_antennas_iq=False, ranges=20
    )
    return write_block(folder, "sas", START, [spec], records=records, open_each_record=False, **more)[0]


def before_v1(folder: Path, version: str, *, array: bool, records: int = 4) -> Path:
    """A rawacf of sas, slice 0, written by Borealis ``version`` (v0.4 to v0.7), in site or array structure."""
    site = folder / f"{START:%Y%m%d.%H%M.%S}.sas.0.rawacf.hdf5.site"
    BorealisSiteWrite(str(site), OrderedDict(_record_before_v1(version, number) for number in range(records)), "rawacf")
    if not array:
        return site
    pydarnio.BorealisRestructure(str(site), str(site.with_suffix("")), "rawacf", "array")
    return site.with_suffix("")


def reference(source: Path, folder: Path) -> bytes:
    """The decompressed DMAP that pyDARNio makes of a file, called in its folder with the bare name."""
    target = folder / f"reference.{source.name}.bz2"
    with contextlib.chdir(source.parent):
        pydarnio.BorealisConvert(source.name, "rawacf", str(target), borealis_slice_id=int(source.name.split(".")[4]))
    return bz2.decompress(target.read_bytes())


def _record_before_v1(version: str, number: int) -> tuple[str, dict[str, Any]]:
    beams, ranges, lags, sequences = 2, 15, 18, 20 + number
    random = np.random.default_rng(number)
    shape = (beams, ranges, lags) if version >= "v0.7" else (beams * ranges * lags,)
    acfs = {
        name: (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(np.complex64)
        for name in ("main_acfs", "intf_acfs", "xcfs")
    }
    flag = np.bool_ if version >= "v0.7" else np.uint8
    began = START.timestamp() + 3.0 * number
    record: dict[str, Any] = {
        **acfs,
        "beam_azms": np.linspace(-5.0, 5.0, beams),
        "beam_nums": np.arange(beams, dtype=np.uint32),
        "blanked_samples": np.arange(7, dtype=np.uint32),
        "borealis_git_hash": f"{version}.0-12-gabcdef0",
        "data_normalization_factor": np.float64(1e7),
        "experiment_comment": "a comment",
        "experiment_id": np.int64(151) if version < "v0.6" else np.int16(151),
        "experiment_name": "NormalScan",
        "first_range": np.float32(180),
        "first_range_rtt": np.float32(1200.8),
        "freq": np.uint32(10500),
        "int_time": np.float32(2.9),
        "intf_antenna_count": np.uint32(4),
        "lags": np.array([[0, lag] for lag in range(lags)], np.uint32),
        "main_antenna_count": np.uint32(16),
        "noise_at_freq": np.zeros(sequences),
        "num_sequences": np.int64(sequences),
        "num_slices": np.int64(1),
        "pulses": np.array([0, 9, 12, 20, 22, 26, 27], np.uint32),
        "range_sep": np.float32(45),
        "rx_sample_rate": np.float64(10000 / 3),
        "samples_data_type": "complex float",
        "scan_start_marker": flag(number == 0),
        "slice_comment": "scan",
        "sqn_timestamps": began + 0.1 * np.arange(sequences),
        "station": "sas",
        "tau_spacing": np.uint32(2400),
        "tx_pulse_len": np.uint32(300),
    }
    if version >= "v0.5":
        record |= {"averaging_method": "mean", "scheduling_mode": "common", "slice_id": np.uint32(0), "slice_interfacing": "{}"}
    if version >= "v0.6":
        record |= {"agc_status_word": np.uint32(0), "lp_status_word": np.uint32(0)}
        record |= {"gps_locked": flag(True), "gps_to_system_time_diff": np.float64(0.0001)}
    dimensions = np.array([beams, ranges, lags], np.uint32)
    if version >= "v0.7":
        record |= {"tx_antenna_phases": np.ones(16, np.complex64), "data_dimensions": dimensions}
        record |= {"data_descriptors": np.array([b"num_beams", b"num_ranges", b"num_lags"])}
    else:
        record |= {"correlation_dimensions": dimensions}
        record |= {"correlation_descriptors": np.array(["num_beams", "num_ranges", "num_lags"])}
    return str(int(began * 1000)), record
