# mypy: disable-error-code="attr-defined,name-defined,no-untyped-call"
# h5py has no types, and its package lists no exports.
"""Reading the radar's HDF5 files, and what their rawacf records become in DMAP.

Since Borealis v1 a file holds one group per averaging period, named by its time, and a group ``metadata`` whose datasets the
records hold too, as hard links. Records are read one after the other in their order and only the fields that are asked for,
through the low-level calls of h5py: a record has fifty fields, the conversion to DMAP needs half of them and never the
largest, ``intf_acfs``. HDF5 keeps about 0.1 MB for every group that was opened, so the file is opened anew every few hundred
records and memory does not grow with their number.

Files from before v1 (``array`` and ``site`` structure) go through pyDARNio's own reader, which holds the whole file.

What a DMAP record means is pyDARNio's: ``BorealisV1Convert.convert_rawacf_record``. Two things are settled here so that they
depend on nothing but the file: ``combf`` carries the bare file name, and ``origin.time`` is written as in the C locale.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias, cast

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5s, h5t

from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Name

DmapRecord: TypeAlias = dict[str, Any]

RECORDS_PER_OPENING = 100
RECORD_BYTES_MAX = 1 << 27
"""Neither a field nor all that are read of a record come near this; a damaged header may claim more than there is memory."""

LATEST_TIME_S = 4_102_444_800
"""2100: a later time of a sequence is damage."""

METADATA = "metadata"
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, ArithmeticError)
"""What h5py raises on a damaged file, depending on where the damage lies."""

_SYSTEM_ERROR = re.compile(r"errno = ([1-9]\d*)")
_PASSING = re.compile(r"memory allocation failed|no space available for allocation|flag values don't match", re.IGNORECASE)
"""What HDF5 says when memory is short, or when this process has the file open in another way: it passes."""

_LEADS_OUT = "it is a link that may lead out of the file: nothing of that is read"
_MESSAGE_CHARACTERS = 300


class Structure(StrEnum):
    """How a file is laid out: by record since v1, before that ``array`` or ``site``."""

    V1 = "v1"
    ARRAY = "array"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file says of itself. ``records`` counts averaging periods; ``first_time`` is that of the first sequence, UTC."""

    structure: Structure
    station: str
    slice_id: int | None
    first_time: datetime
    records: int


@dataclass(frozen=True, slots=True)
class Field:
    """What a field must look like: the allowed kinds of its NumPy type, its dimensions, and whether every record has it."""

    kinds: str
    dimensions: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One averaging period: its name (the time, ``YYYYMMDD-HHMM-SS.ffffff``) and the fields asked for, metadata included."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DmapSource:
    """The DMAP records of a file, a list per averaging period (one per beam), and how many lists there will be."""

    total: int
    lists: Iterator[list[DmapRecord]]


@dataclass(frozen=True, slots=True)
class _Type:
    """The type of a dataset in the file and in memory; looking it up anew costs as much as reading the value."""

    stored: h5t.TypeID
    memory: h5t.TypeID
    numpy: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Opening:
    """What is known while a file is open: the metadata among the fields, where they lie in the file, and the types so far."""

    path: Path
    file: h5py.File
    fields: Mapping[str, Field]
    metadata: dict[str, Any]
    addresses: dict[str, int]
    known: dict[str, _Type]


_TEXT, _NUMBER = Field("SO"), Field("iuf")
RAWACF_FIELDS: Mapping[str, Field] = {
    "agc_status_word": Field("iub"),
    "beam_azms": Field("iuf", 1),
    "beam_nums": Field("iu", 1),
    "borealis_git_hash": _TEXT,
    "data_normalization_factor": _NUMBER,
    "experiment_comment": _TEXT,
    "experiment_id": Field("iu"),
    "experiment_name": _TEXT,
    "first_range": _NUMBER,
    "first_range_rtt": _NUMBER,
    "freq": _NUMBER,
    "int_time": _NUMBER,
    "lag_numbers": Field("iu", 1),
    "lag_pulses": Field("iu", 2),
    "lp_status_word": Field("iub"),
    "main_acfs": Field("c", 3),
    "num_sequences": Field("iu"),
    "pulses": Field("iu", 1),
    "range_sep": _NUMBER,
    "rx_sample_rate": _NUMBER,
    "scan_start_marker": Field("iub"),
    "slice_comment": _TEXT,
    "slice_id": Field("iu"),
    "sqn_timestamps": Field("f", 1),
    "station": _TEXT,
    "tau_spacing": _NUMBER,
    "tx_excitations": Field("c", 1),
    "tx_pulse_len": _NUMBER,
    "xcfs": Field("c", 3, optional=True),
}
"""What ``convert_rawacf_record`` reads. ``main_acfs`` and ``xcfs`` are (beams, ranges, lags), ``tx_excitations`` (antennas,)."""


def group_of(parent: h5g.GroupID, name: str) -> h5g.GroupID:
    """A group that lies in the file itself: HDF5 would follow a link into any other file that we may read.

    Raises:
        ValueError: it is such a link.
        KeyError: there is none of that name.
    """
    _require_inside(parent, name)
    return h5g.open(parent, name.encode())


def dataset_of(parent: h5g.GroupID, name: str) -> h5d.DatasetID:
    """A dataset whose values lie in the file itself: HDF5 would read them from any other file that a dataset names.

    Raises:
        ValueError: they lie elsewhere, or it is a link that leads out of the file.
        KeyError: there is none of that name.
    """
    _require_inside(parent, name)
    return _dataset(parent, name)


def _dataset(parent: h5g.GroupID, name: str) -> h5d.DatasetID:
    """``dataset_of`` where the link was looked at."""
    dataset = h5d.open(parent, name.encode())
    if dataset.get_offset() is None:  # chunked mostly; asking for the layout takes ten times as long
        settings = dataset.get_create_plist()
        if settings.get_layout() == h5d.VIRTUAL or settings.get_external_count():
            raise ValueError("its values lie in another file: nothing of that is read")
    return dataset


def _require_inside(parent: h5g.GroupID, name: str) -> None:
    if parent.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise ValueError(_LEADS_OUT)


def _require_whole_file_inside(group: h5g.GroupID) -> None:
    """The same for all that a file holds, for a reader that is not ours. Each group is looked at once: links may form a ring."""
    waiting, seen = [group], set()
    while waiting:
        parent = waiting.pop()
        if (address := h5g.get_objinfo(parent).objno) in seen:
            continue
        seen.add(address)
        for name in parent:
            text = name.decode("utf-8", "surrogateescape")
            _require_inside(parent, text)
            kind = h5g.get_objinfo(parent, name).type
            if kind == h5g.GROUP:
                waiting.append(group_of(parent, text))
            elif kind == h5g.DATASET:
                dataset_of(parent, text)


def contents(path: Path) -> Contents:
    """Station, slice, time of the first sequence and number of records, from the first record alone.

    Raises:
        BadFile: not HDF5, truncated, not a Borealis file, no records, or its first record cannot be read.
        TryLater: the system would not let it be read.
    """
    with _opened(path) as file:
        structure = _structure(path, file)
        if structure is Structure.V1:
            return _contents_v1(path, file)
        with _reading(path, f"{structure} structure"):
            _require_whole_file_inside(file.id)
            owner = file if structure is Structure.ARRAY else file[min(file)]
            times = np.ravel(file["sqn_timestamps"][0] if structure is Structure.ARRAY else owner["sqn_timestamps"][()])
            return Contents(
                structure,
                _text(owner.attrs["station"]),
                int(np.ravel(owner.attrs["slice_id"])[0]) if "slice_id" in owner.attrs else None,
                datetime.fromtimestamp(float(times[0]), UTC),
                len(file["sqn_timestamps"]) if structure is Structure.ARRAY else len(file),
            )


def record_names(path: Path) -> list[str]:
    """The names of the records of a v1 file, in their order.

    Raises:
        BadFile: as ``contents``; no records.
        TryLater: the system would not let it be read.
    """
    with _opened(path) as file:
        return _record_names(path, file)


def stream(path: Path, fields: Mapping[str, Field]) -> Iterator[Record]:
    """Read the records of a v1 file one by one, with the given fields of record and metadata, as NumPy scalars and arrays.

    A field that the metadata have is theirs, as in pyDARNio. Where a record holds a dataset of its own instead of a link to
    that one, its value must be the same: Borealis refuses to write another, and pyDARNio would not see it.

    Raises:
        BadFile: as ``contents``; or a record, named with its field, is damaged or contradicts the metadata.
        TryLater: the system would not let it be read.
    """
    names = record_names(path)
    for start in range(0, len(names), RECORDS_PER_OPENING):
        with _opened(path) as file:
            opening = _with_metadata(path, file, fields)
            for name in names[start : start + RECORDS_PER_OPENING]:
                yield Record(name, _values(opening, name))


def dmap_source(path: Path, name: Name, found: Contents) -> DmapSource:
    """The DMAP records of a rawacf file, mapped while they are drawn; ``found`` is what ``contents`` said.

    Raises:
        BadFile: here or while drawing: a record cannot be read or has no DMAP form.
        TryLater: the system would not let it be read.
    """
    if found.structure is Structure.V1:
        records = stream(path, RAWACF_FIELDS)
        return DmapSource(found.records, (_mapped(path, record, name.text) for record in records))
    converted = _mapped_before_v1(path, name, found.structure)
    return DmapSource(len(converted), ([record] for record in converted))


def _mapped(path: Path, record: Record, origin: str) -> list[DmapRecord]:
    from pydarnio.borealis.v1_onwards import BorealisV1Convert

    _refuse_mismatch(path, record)
    try:
        mapped: list[DmapRecord] = BorealisV1Convert.convert_rawacf_record(record.values, {}, origin)
    except (*_READ_ERRORS, AttributeError) as error:
        raise BadFile("damaged record", f"{path}: record {record.name} has no DMAP form: {_described(error)}") from error
    for dmap_record in mapped:
        _settle_locale(dmap_record)
    return mapped


def _refuse_mismatch(path: Path, record: Record) -> None:
    """Refuse fields that do not fit one another: the mapping would leave out beams, or fail without a word on the field."""
    values = record.values
    beams, lags, acfs = values["beam_nums"].shape, len(values["lag_numbers"]), values["main_acfs"].shape
    for field, expected in (
        ("beam_nums", (max(1, *beams),)),
        ("beam_azms", beams),
        ("main_acfs", (*beams, max(1, acfs[1]), lags)),
        ("xcfs", acfs),
        ("lag_pulses", (lags, 2)),
        ("sqn_timestamps", (max(1, len(values["sqn_timestamps"])),)),
    ):
        if field in values and values[field].shape != expected:
            text = f"its shape is {values[field].shape}, where the other fields make it {expected}"
            raise BadFile("damaged record", f"{path}: record {record.name}, field {field}: {text}")
    if not np.isfinite(values["sqn_timestamps"]).all() or np.abs(values["sqn_timestamps"]).max() > LATEST_TIME_S:
        raise BadFile("damaged record", f"{path}: record {record.name}, field sqn_timestamps: these are no times (Unix time, s)")


def _mapped_before_v1(path: Path, name: Name, structure: Structure) -> list[DmapRecord]:
    """All records at once. pyDARNio cannot convert without writing, and appends where it writes: it writes to /dev/null."""
    from pydarnio import BorealisConvert, borealis_exceptions

    own_errors = tuple(kind for kind in vars(borealis_exceptions).values() if isinstance(kind, type))
    failures: tuple[type[Exception], ...] = (*own_errors, *_READ_ERRORS, AttributeError)
    slice_id = cast(int, name.slice_id)
    try:
        converted = BorealisConvert(str(path), "rawacf", os.devnull, slice_id, structure.value)
    except failures as error:
        raise _judged(error, path, f"{structure} structure") from error
    records: list[DmapRecord] = converted.dmap_records
    for record in records:
        record["combf"] = record["combf"].replace(str(path), name.text, 1)
        _settle_locale(record)
    return records


def _settle_locale(record: DmapRecord) -> None:
    """pyDARNio writes ``origin.time`` with ``%c``, in the language of the process; ``ctime`` is the C locale's in any."""
    year, month, day, hour, minute, second = (int(record[f"time.{part}"]) for part in ("yr", "mo", "dy", "hr", "mt", "sc"))
    record["origin.time"] = datetime(year, month, day, hour, minute, second, tzinfo=UTC).ctime()


def _contents_v1(path: Path, file: h5py.File) -> Contents:
    names = _record_names(path, file)
    known: dict[str, _Type] = {}
    key = METADATA
    try:
        metadata, first = (group_of(file.id, group) for group in (METADATA, names[0]))
        values = {}
        for key in ("station", "slice_id", "sqn_timestamps"):
            group = metadata if key.encode() in metadata else first
            values[key] = _read(dataset_of(group, key), key, RAWACF_FIELDS[key], known)
        first_time = datetime.fromtimestamp(float(values["sqn_timestamps"][0]), UTC)
        return Contents(Structure.V1, _text(values["station"]), int(values["slice_id"]), first_time, len(names))
    except _READ_ERRORS as error:
        raise _judged(error, path, f"record {names[0]}, field {key}") from error


def _structure(path: Path, file: h5py.File) -> Structure:
    with _reading(path, "its list of records"):
        keys = sorted(file)
        if METADATA in file:
            return Structure.V1
        if "borealis_git_hash" in file.attrs:
            return Structure.ARRAY
        if keys:
            _require_inside(file.id, keys[0])
            if "borealis_git_hash" in file[keys[0]].attrs:
                return Structure.SITE
    if not keys:
        raise BadFile("no records", f"{path} is an HDF5 file without a single record")
    raise BadFile("not a Borealis file", f"{path} is HDF5, but neither of the structures that Borealis has written")


def _record_names(path: Path, file: h5py.File) -> list[str]:
    with _reading(path, "its list of records"):
        names = sorted(file)
    if METADATA not in names:
        raise BadFile("not a Borealis file", f"{path} has no group {METADATA}: it is not a file of Borealis v1")
    names.remove(METADATA)
    if not names:
        raise BadFile("no records", f"{path} has metadata but not a single record")
    return names


def _with_metadata(path: Path, file: h5py.File, fields: Mapping[str, Field]) -> _Opening:
    key = "(none: the group itself)"
    try:
        group = group_of(file.id, METADATA)
        opening = _Opening(path, file, fields, {}, {}, {})
        for key, field in fields.items():
            if key.encode() in group:
                opening.addresses[key] = group.links.get_info(key.encode()).u
                opening.metadata[key] = _read(dataset_of(group, key), key, field, opening.known)
        _check_size(opening.metadata)
    except _READ_ERRORS as error:
        raise _judged(error, path, f"{METADATA}, field {key}") from error
    return opening


def _values(opening: _Opening, name: str) -> dict[str, Any]:
    values = dict(opening.metadata)
    key = "(none: the group itself)"
    try:
        group = group_of(opening.file.id, name)
        links = _links(group)
        for key, field in opening.fields.items():
            if key not in opening.metadata:
                if not field.optional or key in links:
                    values[key] = _read(_linked(group, key, links), key, field, opening.known)
            elif key in links and links[key] != opening.addresses[key]:
                own = _read(_linked(group, key, links), key, field, opening.known)
                _refuse_contradiction(opening.path, name, key, own, opening.metadata[key])
        _check_size(values)
    except _READ_ERRORS as error:
        raise _judged(error, opening.path, f"record {name}, field {key}") from error
    return values


def _links(group: h5g.GroupID) -> dict[str, int | None]:
    """All links of a group in one call, which costs as much as asking for ten: where in the file each leads; None: elsewhere."""
    found: dict[str, int | None] = {}

    def note(name: bytes, link: h5l.LinkInfo) -> None:
        found[name.decode("utf-8", "surrogateescape")] = int(link.u) if link.type == h5l.TYPE_HARD else None

    group.links.iterate(note, info=True)
    return found


def _linked(group: h5g.GroupID, key: str, links: Mapping[str, int | None]) -> h5d.DatasetID:
    if links.get(key, 0) is None:
        raise ValueError(_LEADS_OUT)
    return _dataset(group, key)


def _refuse_contradiction(path: Path, name: str, key: str, own: Any, shared: Any) -> None:
    if not np.array_equal(own, shared):
        raise BadFile(
            "contradicting metadata",
            f"{path}: record {name}, field {key}: the record says {own!r}, the metadata of the file say {shared!r}",
        )


def _read(dataset: h5d.DatasetID, key: str, field: Field, known: dict[str, _Type]) -> Any:
    """One dataset, as ``dataset[()]`` returns it. ``known`` remembers the types, for as long as the file is open."""
    stored = dataset.get_type()
    if key not in known or not known[key].stored.equal(stored):
        known[key] = _type(dataset, stored, field)
    shape = dataset.shape
    _check_shape(shape, known[key].numpy, field)
    array = np.empty(shape, known[key].numpy)
    dataset.read(h5s.ALL, h5s.ALL, array, known[key].memory)
    return array if shape else array[()]


def _type(dataset: h5d.DatasetID, stored: h5t.TypeID, field: Field) -> _Type:
    numpy_type = dataset.dtype
    if numpy_type.kind not in field.kinds:
        raise ValueError(f"its type is {numpy_type}, which is none of the kinds {field.kinds!r}")
    return _Type(stored, h5t.py_create(numpy_type), numpy_type)


def _check_shape(shape: tuple[int, ...] | None, numpy_type: np.dtype[Any], field: Field) -> None:
    if shape is None or len(shape) != field.dimensions:
        raise ValueError(f"its shape is {shape}, where {field.dimensions} dimensions are expected")
    if numpy_type.itemsize * math.prod(shape) > RECORD_BYTES_MAX:
        raise ValueError(f"its shape is {shape}, more than any record of a radar holds")


def _check_size(values: Mapping[str, Any]) -> None:
    if (size_bytes := sum(getattr(value, "nbytes", 0) for value in values.values())) > RECORD_BYTES_MAX:
        raise ValueError(f"its fields are {size_bytes} bytes, more than any record of a radar holds")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading without a lock: a lock would make the radar's own append fail.

    No cache of chunks: every dataset is read once, and setting one up costs as much as reading a small dataset.
    """
    with _reading(path, "opening it"):
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=0, rdcc_nslots=1)
    with file:
        yield file


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    """Turn what h5py raises into ``BadFile`` or ``TryLater`` with the place in the file."""
    try:
        yield
    except _READ_ERRORS as error:
        raise _judged(error, path, where) from error


def _judged(error: Exception, path: Path, where: str) -> BadFile | TryLater:
    """The file's fault or the system's: HDF5 passes on the number of a failed system call, if one failed."""
    described = _described(error)
    if _PASSING.search(str(error)):
        return TryLater(f"{path} cannot be read now; it stays where it is: {where}: {described}")
    number = getattr(error, "errno", None) or int((_SYSTEM_ERROR.search(str(error)) or [0, 0])[1])
    if number:
        return TryLater(f"{path} cannot be read now ({os.strerror(number)}); it stays where it is: {where}: {described}")
    if "truncated file" in described or (path.stat().st_size == 0):
        return BadFile("truncated", f"{path} is shorter than it was when written: {described}")
    if "file signature not found" in described:
        return BadFile("not HDF5", f"{path} is not an HDF5 file: {described}")
    return BadFile("damaged record", f"{path}: {where}: {described}")


def _described(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    return f"{type(error).__name__}: {text[:_MESSAGE_CHARACTERS]}"


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
