"""Reading the radar's HDF5: what is read, what is refused, and that a refusal names the record and the field."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from pydarnio import BorealisV1Read
from rawacf_files import START, before_v1, simulated

from dataflow.lib import borealis
from dataflow.lib.borealis import RAWACF_FIELDS, Structure
from dataflow.lib.errors import BadFile, TryLater


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def block(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


def names_of(path: Path) -> list[str]:
    return borealis.record_names(path)


def change(path: Path, what: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        what(file)


def replace(group: h5py.Group, field: str, value: object) -> None:
    del group[field]
    group[field] = value


def damage_data(path: Path, record: str, field: str) -> None:
    """Turn bits over in the compressed data of one dataset."""
    with h5py.File(path, "r") as file:
        chunk = file[record][field].id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset + chunk.size // 2)
        found = stream.read(4)
        stream.seek(-4, 1)
        stream.write(bytes(byte ^ 0xFF for byte in found))


def drain(path: Path) -> list[borealis.Record]:
    return list(borealis.stream(path, RAWACF_FIELDS))


def refusal(path: Path) -> BadFile:
    with pytest.raises(BadFile) as caught:
        borealis.contents(path)
        drain(path)
    return caught.value


def test_contents_are_those_of_the_first_record(tmp_path: Path) -> None:
    found = borealis.contents(simulated(tmp_path, records=3, slice_id=7))
    assert found == borealis.Contents(Structure.V1, "sas", 7, START, 3)


@pytest.mark.parametrize(("version", "slice_id"), [("v0.4", None), ("v0.6", 0), ("v0.7", 0)])
@pytest.mark.parametrize("array", [False, True])
def test_contents_of_files_from_before_v1(tmp_path: Path, version: str, slice_id: int | None, array: bool) -> None:
    found = borealis.contents(before_v1(tmp_path, version, array=array))
    assert found == borealis.Contents(Structure.ARRAY if array else Structure.SITE, "sas", slice_id, START, 4)


def test_values_and_types_are_those_that_pydarnio_reads(block: Path) -> None:
    records, metadata = BorealisV1Read.read_records(str(block))
    streamed = drain(block)
    assert [record.name for record in streamed] == names_of(block)
    for ours, theirs in zip(streamed, records, strict=True):
        for field, value in ours.values.items():
            expected = {**theirs, **metadata}[field]
            assert type(value) is type(expected), field
            assert getattr(value, "dtype", None) == getattr(expected, "dtype", None), field
            assert np.array_equal(value, expected), field
    assert set(streamed[0].values) == set(RAWACF_FIELDS)


def test_records_come_in_order_over_many_openings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borealis, "RECORDS_PER_OPENING", 3)
    path = simulated(tmp_path, records=8)
    times = [record.values["sqn_timestamps"][0] for record in drain(path)]
    assert len(times) == 8
    assert times == sorted(set(times))


def test_the_interferometers_own_correlations_are_never_read(block: Path) -> None:
    damage_data(block, names_of(block)[1], "intf_acfs")
    assert len(drain(block)) == 4


def test_a_file_without_interferometer_has_no_cross_correlations(tmp_path: Path) -> None:
    assert all("xcfs" not in record.values for record in drain(simulated(tmp_path, interferometer=False)))


def test_reading_does_not_disturb_an_append_by_the_radar(block: Path) -> None:
    records = borealis.stream(block, RAWACF_FIELDS)
    next(records)
    append = f"import h5py; h5py.File({str(block)!r}, 'a').create_group('20261101-1500-00.000000')"
    assert subprocess.run([sys.executable, "-c", append], timeout=60).returncode == 0


@pytest.mark.parametrize("field", ["xcfs", "main_acfs", "sqn_timestamps"])
def test_damaged_data_are_named_by_record_and_field(block: Path, field: str) -> None:
    record = names_of(block)[2]
    damage_data(block, record, field)
    error = refusal(block)
    assert error.kind == "damaged record"
    assert f"record {record}, field {field}" in str(error)


def test_a_missing_field_is_named(block: Path) -> None:
    record = names_of(block)[3]
    change(block, lambda file: file[record].pop("int_time"))
    assert f"record {record}, field int_time" in str(refusal(block))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("freq", np.bytes_("ten")),
        ("freq", np.arange(3)),
        ("main_acfs", np.zeros(5, np.complex64)),
        ("tx_excitations", np.ones(16)),
    ],
)
def test_a_field_of_another_type_or_shape_is_named(block: Path, field: str, value: object) -> None:
    record = names_of(block)[1]
    change(block, lambda file: replace(file[record], field, value))
    assert f"record {record}, field {field}" in str(refusal(block))


def test_the_type_of_a_field_may_change_between_records(block: Path) -> None:
    record = names_of(block)[1]
    change(block, lambda file: replace(file[record], "freq", np.float64(10500.7)))
    assert [type(record.values["freq"]) for record in drain(block)] == [np.int64, np.float64, np.int64, np.int64]
    assert drain(block)[1].values["freq"] == 10500.7


def test_an_implausible_size_is_damage_and_not_lack_of_memory(block: Path) -> None:
    record = names_of(block)[0]

    def inflate(file: h5py.File) -> None:
        del file[record]["main_acfs"]
        file[record].create_dataset("main_acfs", (1 << 20, 1 << 20, 1 << 10), np.complex64, chunks=(1, 1, 64))

    change(block, inflate)
    assert f"record {record}, field main_acfs" in str(refusal(block))


def test_an_equal_copy_of_metadata_is_accepted_and_another_value_is_refused(block: Path) -> None:
    record = names_of(block)[1]
    change(block, lambda file: replace(file[record], "experiment_id", 151))
    assert len(drain(block)) == 4
    change(block, lambda file: replace(file[record], "experiment_id", 3503))
    error = refusal(block)
    assert error.kind == "contradicting metadata"
    assert record in str(error)
    assert "3503" in str(error)
    assert "151" in str(error)


def test_each_record_may_have_its_own_cpid_where_the_metadata_have_none(tmp_path: Path) -> None:
    path = simulated(tmp_path, cpid_of_record={2: 3503})
    assert [int(record.values["experiment_id"]) for record in drain(path)] == [151, 151, 3503, 151]


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 5000, -1])
def test_a_truncated_file(block: Path, kept: int) -> None:
    with block.open("r+b") as stream:
        stream.truncate(kept if kept >= 0 else block.stat().st_size + kept)
    assert refusal(block).kind in {"truncated", "not HDF5"}
    if kept in {0, 5000, -1}:
        assert refusal(block).kind == "truncated"


def test_files_that_are_not_of_borealis(tmp_path: Path) -> None:
    text, foreign, empty = (tmp_path / name for name in ("text", "foreign", "empty"))
    text.write_bytes(b"not HDF5 at all" * 1000)
    with h5py.File(foreign, "w") as file:
        file["something"] = 1
    with h5py.File(empty, "w"):
        pass
    assert refusal(text).kind == "not HDF5"
    assert refusal(foreign).kind == "not a Borealis file"
    assert refusal(empty).kind == "no records"


def test_metadata_without_records(block: Path) -> None:
    names = names_of(block)
    change(block, lambda file: [file.pop(name) for name in names])
    assert refusal(block).kind == "no records"


def test_a_time_that_is_none_is_damage(block: Path) -> None:
    record = names_of(block)[0]
    change(block, lambda file: replace(file[record], "sqn_timestamps", np.full(5, np.nan)))
    assert f"record {record}, field sqn_timestamps" in str(refusal(block))
    change(block, lambda file: replace(file[record], "sqn_timestamps", np.zeros(0)))
    assert f"record {record}, field sqn_timestamps" in str(refusal(block))


@pytest.mark.parametrize("path", ["/nowhere/file.h5", "/proc", "/proc/self/mem"])
def test_what_the_system_refuses_is_not_the_files_fault(path: str) -> None:
    with pytest.raises(TryLater):
        borealis.contents(Path(path))


def test_first_time_of_a_file_that_begins_later(tmp_path: Path) -> None:
    path = simulated(tmp_path)
    first = names_of(path)[0]
    change(path, lambda file: file.pop(first))
    assert borealis.contents(path).first_time - START == timedelta(seconds=3)
