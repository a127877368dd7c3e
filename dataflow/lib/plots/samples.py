# mypy: disable-error-code="attr-defined,no-untyped-call"
# h5py has no types, and its package lists no exports.
"""What a picture needs of an antennas_iq file, read in small parts and reduced while it is read.

A record of Borealis v1 holds ``antennas_iq_data``, complex (antennas, sequences, samples), of which only the first
``SAMPLES`` samples are drawn. The dataset is compressed in chunks, so asking HDF5 for just these samples leaves the other
chunks, three quarters of the file, unread.

**The reduction.** The sequences of the whole file are shared out evenly among at most ``COLUMNS`` columns, in their order.
Each column keeps, for each antenna and sample, the power of the *brightest* of its sequences: interference that lasts one
sequence out of a hundred thousand is seen in the picture, where the nearest sequence or the mean would lose it. The price is
that noise looks a few decibels stronger in a picture of many sequences; ``medians`` come from every sample and are not
changed by it. The result has the same size for any number of records, and so has the memory that is needed.

HDF5 keeps about 0.1 MB for every record that was opened: a file is opened anew for each ``Span`` of records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5s, h5t
from numpy.typing import NDArray

from dataflow.lib.borealis import dataset_of, group_of
from dataflow.lib.errors import BadFile, TryLater

File: TypeAlias = Any
"""An open ``h5py.File``."""
Floats: TypeAlias = NDArray[np.float32]
Times: TypeAlias = NDArray[np.float64]

SAMPLES = 71
"""Samples 0 to 70 of each sequence are drawn: the echo of the first pulse, up to the second one."""
COLUMNS = 2400
RECORDS_PER_OPENING = 200
RECORD_BYTES_MAX = 32_000_000
"""Twenty antennas and 2,800 sequences; a damaged header may claim more than there is memory."""
ANTENNA_MAX = 9999

_METADATA = "metadata"
_DATA = "antennas_iq_data"
_TIMES = "sqn_timestamps"
_SHARED = (
    "antennas",
    "experiment_id",
    "experiment_name",
    "rx_antennas",
    "rx_main_antennas",
    "rx_sample_rate",
    "slice_id",
    "station",
)
PLAUSIBLE_TIMES_S = (315_532_800.0, 4_102_444_800.0)
"""1980, before any radar of the network, to 2100."""
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, ArithmeticError)
"""What h5py raises on a damaged file, depending on where the damage lies."""
_SYSTEM_ERROR = re.compile(r"errno = ([1-9]\d*)")
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file says of itself, before any sample is read.

    ``antennas`` are the antennas' own numbers in the order in which the samples hold them, ``main`` whether each belongs to
    the main array (else to the interferometer). ``sequences``, ``began_s`` and ``ended_s`` have one value for each of
    ``records``: how many sequences it has, and the times of the first and the last one (Unix time; of a record without
    sequences, the time of the one before it).
    """

    station: str
    experiment_name: str
    experiment_id: int
    slice_id: int
    sample_us: float
    antennas: tuple[int, ...]
    main: tuple[bool, ...]
    records: tuple[str, ...]
    sequences: NDArray[np.int64]
    began_s: Times
    ended_s: Times

    @property
    def total_sequences(self) -> int:
        """How many sequences the file holds."""
        return int(self.sequences.sum())

    @property
    def columns(self) -> int:
        """Into how many columns they are reduced."""
        return min(self.total_sequences, COLUMNS)


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive records, with the number of the first one and that of its first sequence in the file."""

    first_record: int
    first_sequence: int
    records: tuple[str, ...]
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduced:
    """Powers (|IQ|², linear) of a part of a file, or of the whole.

    ``brightest``, (antennas, columns, ``SAMPLES``), begins at ``first_column`` and is NaN where there is no valid sample;
    ``medians``, (antennas, records), begins at ``first_record`` and is the middle power of the record's drawn samples.
    """

    first_column: int
    brightest: Floats
    first_record: int
    medians: Floats


def survey(path: Path) -> Survey:
    """Read the metadata and the time of every sequence, and no sample.

    Raises:
        BadFile: not HDF5, truncated, not a file of Borealis v1, no records, a field that is damaged or missing.
        TryLater: the system would not let it be read.
    """
    with _opened(path) as file:
        names = _record_names(path, file)
        with _reading(path, f"{_METADATA} and record {names[0]}", "") as at:
            values: dict[str, NDArray[Any]] = {}
            for at.field in _SHARED:
                # What changes within a file is not among its metadata; then the first record's is shown.
                metadata, first = (group_of(file.id, group) for group in (_METADATA, names[0]))
                values[at.field] = _value(metadata if at.field.encode() in metadata else first, at.field)
            at.field = "rx_antennas"
            antennas, main = _antennas(values["antennas"], values["rx_antennas"], values["rx_main_antennas"])
            at.field = "rx_sample_rate"
            sample_us = 1e6 / float(values["rx_sample_rate"])
            at.field = "experiment_id or slice_id"
            experiment_id, slice_id = int(values["experiment_id"]), int(values["slice_id"])
    sequences, began_s, ended_s = _times(path, names)
    if not sequences.any():
        raise BadFile("no records", f"{path} has {len(names)} records but not a single sequence: there is nothing to draw")
    return Survey(
        station=_text(values["station"]),
        experiment_name=_text(values["experiment_name"]),
        experiment_id=experiment_id,
        slice_id=slice_id,
        sample_us=sample_us,
        antennas=antennas,
        main=main,
        records=tuple(names),
        sequences=sequences,
        began_s=began_s,
        ended_s=ended_s,
    )


def spans(found: Survey, records_each: int) -> list[Span]:
    """The records of a file in groups of ``records_each``, in their order."""
    before = np.concatenate([[0], np.cumsum(found.sequences)])
    return [
        Span(
            first,
            int(before[first]),
            found.records[first : first + records_each],
            tuple(int(count) for count in found.sequences[first : first + records_each]),
        )
        for first in range(0, len(found.records), records_each)
    ]


def read(path: Path, span: Span, antennas: int, total_sequences: int) -> Reduced:
    """Read the drawn samples of some records and reduce them; memory is that of one record and of the result.

    Args:
        path: the file.
        span: the records.
        antennas: how many antennas each record must have.
        total_sequences: of the whole file, among which the columns are shared out.

    Raises:
        BadFile: a record, which is named, cannot be read or is not shaped like its fellows.
        TryLater: the system would not let it be read.
    """
    columns = min(total_sequences, COLUMNS)
    count = sum(span.sequences)
    numbers = column_of(np.arange(span.first_sequence, span.first_sequence + count), columns, total_sequences)
    first_column = int(numbers[0]) if count else 0
    width = int(numbers[-1]) + 1 - first_column if count else 0
    brightest = np.full((antennas, width, SAMPLES), np.nan, np.float32)
    medians = np.full((antennas, len(span.records)), np.nan, np.float32)
    done = 0
    with _opened(path) as file:
        for index, (record, sequences) in enumerate(zip(span.records, span.sequences, strict=True)):
            if sequences == 0:
                continue
            with _reading(path, f"record {record}", _DATA):
                power = _power(file, record, (antennas, sequences))
            own = numbers[done : done + sequences] - first_column
            _keep_brightest(brightest, power, own)
            medians[:, index] = _median(power)
            done += sequences
    return Reduced(first_column, brightest, span.first_record, medians)


def join(parts: Iterator[Reduced], found: Survey) -> Reduced:
    """Put the parts of a file together, in any order; a column that two parts share keeps the brighter of them."""
    antennas = len(found.antennas)
    whole = Reduced(
        0,
        np.full((antennas, found.columns, SAMPLES), np.nan, np.float32),
        0,
        np.full((antennas, len(found.records)), np.nan, np.float32),
    )
    for part in parts:
        there = whole.brightest[:, part.first_column : part.first_column + part.brightest.shape[1]]
        np.fmax(there, part.brightest, out=there)
        whole.medians[:, part.first_record : part.first_record + part.medians.shape[1]] = part.medians
    return whole


def column_of(sequence: NDArray[np.int64], columns: int, total_sequences: int) -> NDArray[np.int64]:
    """The column that a sequence falls in: column ``c`` begins at sequence ``c * total_sequences // columns``."""
    return ((sequence + 1) * columns - 1) // total_sequences


def _keep_brightest(brightest: Floats, power: Floats, columns: NDArray[np.int64]) -> None:
    """Raise (antennas, columns, samples) to the power (antennas, sequences, samples) that falls into each column."""
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    there = columns[starts]
    highest = np.fmax.reduceat(power, starts, axis=1)
    brightest[:, there] = np.fmax(brightest[:, there], highest)


def _median(power: Floats) -> Floats:
    """The middle one of all valid values of each antenna (the lower of two), NaN if there is none; (antennas,)."""
    ordered = np.sort(power.reshape(len(power), -1), axis=1)
    valid = ordered.shape[1] - np.isnan(ordered).sum(axis=1)
    middle = np.maximum(valid - 1, 0) // 2
    chosen: Floats = np.take_along_axis(ordered, middle[:, None], axis=1)[:, 0]
    return chosen


def _power(file: File, record: str, shape: tuple[int, int]) -> Floats:
    """|IQ|² of the drawn samples of one record, (antennas, sequences, ``SAMPLES``); NaN for samples that it has not."""
    dataset = dataset_of(group_of(file.id, record), _DATA)
    stored = dataset.shape
    if stored is None or len(stored) != 3 or stored[:2] != shape:
        raise ValueError(f"its shape is {stored}, where {shape} antennas and sequences are expected")
    if dataset.get_type().get_class() != h5t.COMPOUND:
        raise TypeError(f"its type is {dataset.dtype}, where complex numbers are expected")
    kept = min(SAMPLES, stored[2])
    if np.prod(shape, dtype=float) * kept * 8 > RECORD_BYTES_MAX:
        raise ValueError(f"its shape is {stored}, more than any record of a radar holds")
    voltage = np.empty((*shape, kept), np.complex64)
    within = dataset.get_space()
    within.select_hyperslab((0, 0, 0), voltage.shape)
    dataset.read(h5s.create_simple(voltage.shape), within, voltage)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(voltage.view(np.float32))
        power: Floats = squares[..., 0::2] + squares[..., 1::2]
    if kept < SAMPLES:
        power = np.pad(power, ((0, 0), (0, 0), (0, SAMPLES - kept)), constant_values=np.nan)
    return power


def _times(path: Path, names: list[str]) -> tuple[NDArray[np.int64], Times, Times]:
    """Number of sequences and times of the first and last one of every record."""
    sequences = np.zeros(len(names), np.int64)
    began_s, ended_s = np.zeros(len(names)), np.zeros(len(names))
    latest_s = PLAUSIBLE_TIMES_S[0]
    for start in range(0, len(names), RECORDS_PER_OPENING):
        with _opened(path) as file:
            for index, record in enumerate(names[start : start + RECORDS_PER_OPENING], start):
                with _reading(path, f"record {record}", _TIMES):
                    times_s = _record_times(file, record)
                if len(times_s):
                    latest_s = times_s[-1]
                sequences[index] = len(times_s)
                began_s[index] = times_s[0] if len(times_s) else latest_s
                ended_s[index] = latest_s
    return sequences, began_s, ended_s


def _record_times(file: File, record: str) -> Times:
    dataset = dataset_of(group_of(file.id, record), _TIMES)
    shape = dataset.shape
    if shape is None or len(shape) != 1 or shape[0] * 8 > RECORD_BYTES_MAX:
        raise ValueError(f"its shape is {shape}, where a time for each sequence is expected")
    times_s = np.empty(shape)
    if shape[0]:
        dataset.read(h5s.ALL, h5s.ALL, times_s)
        earliest_s, latest_s = PLAUSIBLE_TIMES_S
        if not ((times_s > earliest_s) & (times_s < latest_s)).all():
            raise ValueError(f"{times_s.min()} to {times_s.max()} are not the times (Unix time, seconds) of a radar")
    return times_s


def _value(group: Any, field: str) -> NDArray[Any]:
    dataset = h5py.Dataset(dataset_of(group, field))
    if dataset.size is None or dataset.size * dataset.dtype.itemsize > RECORD_BYTES_MAX:
        raise ValueError(f"its shape is {dataset.shape}, more than any record of a radar holds")
    return np.asarray(dataset[()])


def _antennas(labels: NDArray[Any], recorded: NDArray[Any], main: NDArray[Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The numbers of the recorded antennas and whether each is of the main array; the file holds indices into the labels."""
    if recorded.ndim != 1 or not len(recorded):
        raise ValueError("no antenna was recorded")
    numbers = tuple(int(number) for number in labels[recorded])
    if len(set(numbers)) < len(numbers) or not all(0 <= number <= ANTENNA_MAX for number in numbers):
        raise ValueError(f"{numbers} are not numbers of antennas, each once")
    return numbers, tuple(bool(each) for each in np.isin(recorded, main))


def _record_names(path: Path, file: File) -> list[str]:
    with _reading(path, "its list of records", ""):
        names = sorted(file)
    if _METADATA not in names:
        what = "is not a file of Borealis v1, which alone can be drawn" if names else "is an HDF5 file without a single record"
        raise BadFile("not a Borealis file" if names else "no records", f"{path} {what}")
    names.remove(_METADATA)
    if not names:
        raise BadFile("no records", f"{path} has metadata but not a single record")
    return names


@dataclass(slots=True)
class _At:
    """Where in the file a reader is."""

    where: str
    field: str


@contextmanager
def _opened(path: Path) -> Iterator[File]:
    """The file, open for reading without a lock: a lock would make the radar's own append fail."""
    with _reading(path, "opening it", ""):
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


@contextmanager
def _reading(path: Path, where: str, field: str) -> Iterator[_At]:
    """Turn what h5py raises into ``BadFile`` or ``TryLater`` with the place in the file."""
    at = _At(where, field)
    try:
        yield at
    except _READ_ERRORS as error:
        raise _judged(error, path, f"{at.where}, field {at.field}" if at.field else at.where) from error


def _judged(error: Exception, path: Path, where: str) -> BadFile | TryLater:
    """The file's fault or the system's: HDF5 passes on the number of a failed system call, if one failed."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    described = f"{type(error).__name__}: {text[:_MESSAGE_CHARACTERS]}"
    number = getattr(error, "errno", None) or int((_SYSTEM_ERROR.search(str(error)) or [0, 0])[1])
    if number:
        return TryLater(f"{path} cannot be read now ({os.strerror(number)}); it stays where it is: {where}: {described}")
    if "truncated file" in text or path.stat().st_size == 0:
        return BadFile("truncated", f"{path} is shorter than it was when written: {described}")
    if "file signature not found" in text:
        return BadFile("not HDF5", f"{path} is not an HDF5 file: {described}")
    return BadFile("damaged record", f"{path}: {where}: {described}")


def _text(value: NDArray[Any]) -> str:
    content = value.item()
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
