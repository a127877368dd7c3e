# mypy: disable-error-code="attr-defined,no-untyped-call"
# h5py has no types, and its package lists no exports.
"""One record of a Borealis v1 file: which datasets it has, what is in them, and how they lie in the HDF5 file.

    /metadata/<field>                   what stays the same through the file, written with the first record
    /YYYYMMDD-HHMM-SS.ffffff/<field>    one averaging period; metadata appear here too, as hard links to the same datasets

Arrays are chunked and compressed (gzip, level 9), single values are not. Every dataset carries its description, most a unit
and labels of its dimensions, and some are dimension scales that, other than at the radar, are attached to nothing.

The datasets are made through the low-level calls of h5py: a record takes 20 of them, 40 attributes and 33 links, for which
the convenient calls need twice the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from dataflow.demo import radar, scatter_signal
from dataflow.demo.radar import Fault, Site, SliceSpec
from dataflow.lib.names import Kind

Values: TypeAlias = dict[str, Any]

NORMALISATION = 1e7
MAIN_SPACING_M = 15.24
INTERFEROMETER_BEHIND_M = 100.0
SEQUENCE_S = 0.1
OVERHEAD_S = 0.05
"""What an averaging period of the radar spends on other things than sampling."""

LAG_PULSES = np.array(
    [(radar.PULSES[0],) * 2, *sorted(combinations(radar.PULSES, 2), key=lambda pair: pair[1] - pair[0]), (radar.PULSES[-1],) * 2],
    np.uint32,
)
"""(lags, 2): every pair of pulses, between the lag zero of the first pulse and that of the last."""


@dataclass(frozen=True, slots=True)
class Field:
    """How a dataset describes itself; ``scale`` is its name as a dimension scale, which it is in files of kind ``scale_in``."""

    description: str
    units: str = ""
    labels: tuple[str, ...] = ()
    scale: str = ""
    scale_in: tuple[Kind, ...] = (Kind.RAWACF, Kind.ANTENNAS_IQ)


FIELDS = {
    "agc_status_word": Field("32 bits, a 1 in bit position corresponds to an AGC fault on that transmitter"),
    "antenna_locations": Field("Relative antenna locations", "m", ("antenna", "local_coord")),
    "antennas": Field("Labels for each antenna of the radar", labels=("antenna",), scale="antennas"),
    "antennas_iq_data": Field(
        "Filtered and downsampled I&Q complex voltage samples for each antenna", "a.u. ~ V", ("antenna", "sequence", "time")
    ),
    "averaging_method": Field("Averaging method, e.g. mean, median"),
    "beam_azms": Field("Beams azimuths for each beam in degrees CW of boresight", "degrees", ("beam",), "beam direction"),
    "beam_nums": Field("Beam numbers used in this slice", labels=("beam",), scale="beam number"),
    "blanked_samples": Field("Samples blanked during transmission of a pulse", labels=("time",)),
    "borealis_git_hash": Field("Version and commit hash of Borealis at runtime"),
    "data_normalization_factor": Field("Cumulative scale of all of the filters for a total scaling factor to normalize by"),
    "experiment_comment": Field("Comment about the whole experiment"),
    "experiment_id": Field("Number used to identify experiment"),
    "experiment_name": Field("Name of the experiment class"),
    "first_range": Field("Distance to first range in km", "km"),
    "first_range_rtt": Field("Round trip time of flight to first range in microseconds", "μs"),
    "freq": Field("Frequency used for this experiment slice, in kHz", "kHz"),
    "global_coord": Field("Descriptors for global coordinates", labels=("global_coord",), scale="global coord"),
    "gps_locked": Field("True if the GPS was locked during the entire averaging period"),
    "gps_to_system_time_diff": Field("Max time diff in seconds between GPS and system/NTP time during the averaging period", "s"),
    "int_time": Field("Integration time in seconds", "s"),
    "intf_acfs": Field("Interferometer array autocorrelations", "a.u. ~ W", ("beam", "range", "lag")),
    "lag_numbers": Field(
        "Difference in units of tau_spacing of unique pairs of pulse in the pulse array",
        "tau_spacing",
        scale="lag",
        scale_in=(Kind.RAWACF,),
    ),
    "lag_pulse_descriptors": Field("Descriptor of the pulse pairs used in a lag", scale="lag_pulse_descriptors"),
    "lag_pulses": Field("Unique pairs of pulses in pulse array, in units of tau_spacing", "tau_spacing", ("lag", "pulse")),
    "lags": Field("Lag indices", scale="lag"),
    "local_coord": Field("Descriptors for local coordinates", labels=("local_coord",), scale="local coord"),
    "lp_status_word": Field("32 bits, a 1 in bit position corresponds to a low power condition on that transmitter"),
    "main_acfs": Field("Main array autocorrelations", "a.u. ~ W", ("beam", "range", "lag")),
    "num_sequences": Field("Number of sampling periods in the averaging period"),
    "num_slices": Field("Number of slices in the experiment for this averaging period"),
    "pulse_phase_offset": Field("Phase offset in degrees for each pulse in pulses", "degrees", ("sequence", "pulse")),
    "pulses": Field("Pulse sequence in units of tau_spacing", labels=("pulse",), scale="pulse", scale_in=(Kind.ANTENNAS_IQ,)),
    "range_gates": Field(
        "Range gates of interest for the experiment, beginning at ``first_range`` and spaced by ``range_sep``",
        scale="range gate",
        scale_in=(Kind.RAWACF,),
    ),
    "range_sep": Field("Range gate separation (equivalent distance between samples) in km", "km"),
    "rx_antennas": Field("Indices into ``antenna_locations`` of the antennas with recorded data", scale="rx antenna"),
    "rx_intf_antennas": Field(
        "Indices into ``antenna_locations`` of the interferometer array antennas used in this experiment",
        scale="rx_intf_antennas",
    ),
    "rx_intf_excitations": Field(
        "Complex excitations of interferometer array receive antennas for each antenna. "
        "Magnitude between 0 (off) and 1 (full power)",
        labels=("beam", "antenna"),
    ),
    "rx_main_antennas": Field(
        "Indices into ``antenna_locations`` of the main array antennas used in this experiment", scale="rx_main_antennas"
    ),
    "rx_main_excitations": Field(
        "Complex excitations of main array receive antennas for each antenna. Magnitude between 0 (off) and 1 (full power)",
        labels=("beam", "antenna"),
    ),
    "rx_sample_rate": Field("Sampling rate of the samples being written to file in Hz", "Hz"),
    "sample_time": Field("Time of measurement relative to the first pulse in the sequence", "μs", ("time",), "sample_time"),
    "samples_data_type": Field("C data type of the samples"),
    "scan_start_marker": Field("Designates if the record is the first in a scan"),
    "scheduling_mode": Field("Type of scheduling time at the time of this dataset"),
    "slice_comment": Field("Comment that describes the slice"),
    "slice_id": Field("Slice ID of the file and dataset"),
    "slice_interfacing": Field("Interfacing of this slice to other slices"),
    "sqn_timestamps": Field(
        "GPS timestamps of start of first pulse for each sampling period in the averaging period",
        "seconds since 1970-01-01 00:00:00 UTC",
        ("sequence",),
        "timestamp",
        (Kind.ANTENNAS_IQ,),
    ),
    "station": Field("Three letter radar identifier"),
    "station_location": Field("Location of the radar", labels=("global_coord",)),
    "tau_spacing": Field("Unit of spacing between pulses in microseconds", "μs"),
    "tx_antennas": Field(
        "Indices into ``antenna_locations`` of the antennas used for transmitting in this experiment", scale="tx antenna"
    ),
    "tx_excitations": Field(
        "Complex excitations of transmit signal for each antenna. Magnitude between 0 (off) and 1 (full power)",
        "a.u.",
        ("antenna",),
    ),
    "tx_pulse_len": Field("Length of the pulse in microseconds", "μs"),
    "xcfs": Field("Cross-correlations between main and interferometer arrays", "a.u. ~ W", ("beam", "range", "lag")),
}
"""Every dataset that a rawacf or an antennas_iq file of Borealis v1 may hold."""

_TEXT = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
_SINGLE = h5py.h5s.create(h5py.h5s.SCALAR)


def array_positions_m(antennas: int) -> tuple[NDArray[np.float32], int]:
    """Positions (antennas, 3) of the main array followed by the interferometer behind it, and how many of them are main."""
    main = max(1, antennas * 4 // 5)
    sizes = (main, antennas - main)
    along = np.concatenate([(np.arange(size) - (size - 1) / 2) * MAIN_SPACING_M for size in sizes])
    behind = np.repeat((0.0, -INTERFEROMETER_BEHIND_M), sizes)
    return np.stack([along, behind, np.zeros(antennas)], axis=1).astype(np.float32), main


def metadata(kind: Kind, site: Site, spec: SliceSpec, slice_ids: Sequence[int], antennas: int, samples: int) -> Values:
    """The fields that stay the same through a file, each in the type in which Borealis keeps it."""
    positions_m, main = array_positions_m(antennas)
    others = {other: "SEQUENCE" for other in slice_ids if other < spec.slice_id}
    values: Values = {
        "antenna_locations": positions_m,
        "antennas": _numbers(antennas),
        "blanked_samples": scatter_signal.PULSE_SAMPLES.astype(np.uint32),
        "borealis_git_hash": np.bytes_("v1.0.0-0-g0000000"),
        "data_normalization_factor": np.float64(NORMALISATION),
        "experiment_comment": np.bytes_("simulated"),
        "experiment_id": np.int64(spec.cpid),
        "experiment_name": np.bytes_(spec.experiment_name),
        "first_range": np.int64(radar.FIRST_RANGE_KM),
        "first_range_rtt": np.float64(radar.FIRST_RANGE_US),
        "global_coord": np.array(["latitude", "longitude", "altitude"], np.bytes_),
        "lag_numbers": LAG_PULSES[:, 1] - LAG_PULSES[:, 0],
        "lag_pulse_descriptors": np.array(["lag_pulse_1", "lag_pulse_2"], np.bytes_),
        "lag_pulses": LAG_PULSES,
        "lags": _numbers(len(LAG_PULSES)),
        "local_coord": np.array(["x", "y", "z"], np.bytes_),
        "num_slices": np.int64(len(slice_ids)),
        "pulses": np.array(radar.PULSES, np.uint32),
        "range_gates": _numbers(spec.ranges),
        "range_sep": np.int64(radar.RANGE_STEP_KM),
        "rx_intf_antennas": _numbers(antennas)[main:],
        "rx_main_antennas": _numbers(main),
        "rx_sample_rate": np.float64(1e6 / radar.SAMPLE_US),
        "samples_data_type": np.bytes_("complex float"),
        "scheduling_mode": np.bytes_("common"),
        "slice_comment": np.bytes_("wide beam" if spec.beams_per_record > 1 else "beam scan"),
        "slice_id": np.int64(spec.slice_id),
        "slice_interfacing": np.bytes_(str(others)),
        "station": np.bytes_(site.station),
        "station_location": np.array([site.latitude_deg, site.longitude_deg, site.altitude_km]),
        "tau_spacing": np.float64(radar.TAU_US),
        "tx_antennas": _numbers(main),
        "tx_pulse_len": np.float64(radar.PULSE_US),
    }
    if kind is Kind.RAWACF:
        return {**values, "averaging_method": np.bytes_("mean")}
    sample_times_us = np.arange(samples, dtype=np.int32) * np.int32(radar.SAMPLE_US)
    return {**values, "rx_antennas": _numbers(antennas), "sample_time": sample_times_us}


@dataclass(frozen=True, slots=True)
class Period:
    """One averaging period: its number in the block, when it began (UTC), how long it lasts, how much of the block is over."""

    number: int
    began: datetime
    seconds: float
    progress: float

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"{self.began:%Y%m%d-%H%M-%S.%f}"

    @property
    def time_s(self) -> float:
        """When it began, in Unix time."""
        return self.began.timestamp()

    def beams(self, spec: SliceSpec) -> NDArray[np.uint32]:
        """The beams that a slice looks along in this period."""
        every = _numbers(radar.BEAMS)
        return every if spec.beams_per_record > 1 else every[[self.number % radar.BEAMS]]


def rawacf(period: Period, spec: SliceSpec, scene: scatter_signal.Scene, antennas: int, rng: np.random.Generator) -> Values:
    """The fields of one averaging period of a rawacf file."""
    positions_m, main = array_positions_m(antennas)
    sequences = max(1, int((period.seconds - OVERHEAD_S) / SEQUENCE_S))
    found = scatter_signal.echoes(scene, period.time_s, _azimuths_deg(period.beams(spec)), spec.ranges, rng)
    return _common(period, spec, antennas, sequences) | scatter_signal.correlations(
        found,
        LAG_PULSES,
        positions_m[:main],
        positions_m[main:],
        spec.frequency_khz,
        sequences,
        rng,
        with_interferometer=spec.with_interferometer,
    )


def antennas_iq(
    period: Period,
    spec: SliceSpec,
    scene: scatter_signal.Scene,
    antennas: int,
    rng: np.random.Generator,
    *,
    sequences: int,
    samples: int,
    faults: Sequence[Fault],
) -> Values:
    """The fields of one averaging period of an antennas_iq file, with what is wrong with its antennas."""
    positions_m, main = array_positions_m(antennas)
    found = scatter_signal.echoes(scene, period.time_s, _azimuths_deg(period.beams(spec)), spec.ranges, rng)
    data = scatter_signal.voltages(found, positions_m, main, spec.frequency_khz, sequences, samples, rng)
    for fault in faults:
        scatter_signal.spoil(data[fault.antenna], fault.kind, period.progress, rng)
    offsets = np.zeros((sequences, len(radar.PULSES)), np.float32)
    return _common(period, spec, antennas, sequences) | {"antennas_iq_data": data, "pulse_phase_offset": offsets}


def open_to_append(path: Path) -> Any:
    """The HDF5 file, made if it is not there, open with the lock that the radar takes: another reader makes this fail."""
    return h5py.File(path, "a")


def append(file: Any, kind: Kind, name: str, values: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Add one record to an open file, and with the first record the metadata.

    Args:
        file: from ``open_to_append``.
        kind: of the file; it decides which datasets are dimension scales.
        name: of the record, which is its group.
        values: the fields of this record alone.
        shared: the metadata; a record links to the datasets that the first one wrote.
    """
    if "metadata" not in file:
        for field, value in shared.items():
            _write(file.require_group("metadata").id, kind, field, value)
    kept, group = file["metadata"].id, file.create_group(name).id
    for field in shared:
        group.links.create_hard(field.encode(), kept, field.encode())
    for field, value in values.items():
        _write(group, kind, field, value)


def _common(period: Period, spec: SliceSpec, antennas: int, sequences: int) -> Values:
    positions_m, main = array_positions_m(antennas)
    beams = period.beams(spec)
    azimuths_deg = _azimuths_deg(beams)
    phases = scatter_signal.steering(positions_m, np.deg2rad(azimuths_deg), 0.0, spec.frequency_khz)
    excitations = np.conj(phases).T
    return {
        "agc_status_word": np.int64(0),
        "beam_azms": azimuths_deg,
        "beam_nums": beams,
        "freq": np.int64(spec.frequency_khz),
        "gps_locked": np.bool_(True),
        "gps_to_system_time_diff": np.float64(1e-4),
        "int_time": np.float64(period.seconds - OVERHEAD_S),
        "lp_status_word": np.int64(0),
        "num_sequences": np.int64(sequences),
        "rx_intf_excitations": excitations[:, main:],
        "rx_main_excitations": excitations[:, :main],
        "scan_start_marker": np.bool_(beams[0] == 0),
        "sqn_timestamps": period.time_s + SEQUENCE_S * np.arange(sequences),
        "tx_excitations": excitations[0, :main],
    }


def _azimuths_deg(beams: NDArray[np.uint32]) -> NDArray[np.float64]:
    return (beams.astype(np.float64) - (radar.BEAMS - 1) / 2) * radar.BEAM_STEP_DEG


def _numbers(count: int) -> NDArray[np.uint32]:
    return np.arange(count, dtype=np.uint32)


def _write(group: Any, kind: Kind, name: str, value: Any) -> None:
    field, data = FIELDS[name], np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
    dataset = h5py.h5d.create(group, name.encode(), *_layout(data.dtype, data.shape))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
    if field.scale and kind in field.scale_in:
        h5py.h5ds.set_scale(dataset, field.scale.encode())
    for dimension, label in enumerate(field.labels):
        h5py.h5ds.set_label(dataset, dimension, label.encode())
    for key, text in (("description", field.description), ("units", field.units)):
        if text:
            h5py.h5a.create(dataset, key.encode(), _TEXT, _SINGLE).write(np.array(text, dtype=h5py.string_dtype()))


@cache
def _layout(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Type, space and creation properties of a dataset, with the chunks that h5py itself chooses for Borealis."""
    compression = {"compression": "gzip", "compression_opts": 9} if shape else {}
    with h5py.File("scratch", "w", driver="core", backing_store=False) as scratch:
        dataset = scratch.create_dataset("sample", shape, dtype, **compression).id
        return h5py.h5t.py_create(dtype, logical=True), dataset.get_space(), dataset.get_create_plist()
