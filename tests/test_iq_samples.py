"""Reading antennas_iq: the brightest sequence of every column, whatever the records look like, and no more than is drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from iq_files import iq_file, simulated

from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.plots import samples

pytestmark = pytest.mark.filterwarnings("error")


def read_whole(path: Path, records_each: int = 100) -> tuple[samples.Survey, samples.Reduced]:
    found = samples.survey(path)
    spans = samples.spans(found, records_each)
    parts = (samples.read(path, span, len(found.antennas), found.total_sequences) for span in spans)
    return found, samples.join(parts, found)


def every_sequence(path: Path) -> np.ndarray:
    """Power of the drawn samples, (antennas, sequences, samples), read the plain way."""
    with h5py.File(path) as file:
        records = [file[name]["antennas_iq_data"][:, :, :71] for name in sorted(file) if name != "metadata"]
    return np.abs(np.concatenate(records, axis=1)).astype(np.float32) ** 2


def test_a_survey_says_what_the_file_says(tmp_path):
    path = iq_file(tmp_path, (4, 6, 5), pause_before=(2, 600))
    found = samples.survey(path)
    assert (found.station, found.experiment_name, found.experiment_id, found.slice_id) == ("sas", "NormalScan", 151, 0)
    assert found.antennas == (0, 3, 17) and found.main == (True, True, False)
    assert found.sequences.tolist() == [4, 6, 5] and found.total_sequences == 15
    assert found.sample_us == pytest.approx(300)
    assert found.began_s - found.began_s[0] == pytest.approx([0, 3, 606])
    assert found.ended_s - found.began_s == pytest.approx([0.27, 0.45, 0.36])


def test_antennas_go_by_their_labels_not_by_their_places(tmp_path):
    path = iq_file(tmp_path, indices=(0, 2, 16))
    with h5py.File(path, "r+") as file:
        file["metadata/antennas"][...] = np.arange(100, 120)
    found = samples.survey(path)
    assert found.antennas == (100, 102, 116) and found.main == (True, True, False)


@pytest.mark.parametrize("counts", [(8, 8), (1,), (30, 0, 12, 33, 1), (700, 800, 900), (2400,), (2401,), (5, 4800, 7)])
@pytest.mark.parametrize("records_each", [1, 2, 100])
def test_each_column_is_the_brightest_of_its_sequences(tmp_path, counts, records_each):
    path = iq_file(tmp_path, counts)
    found, whole = read_whole(path, records_each)
    power = every_sequence(path)
    total = power.shape[1]
    columns = min(total, samples.COLUMNS)
    edges = [column * total // columns for column in range(columns + 1)]
    expected = np.stack([power[:, begin:end].max(axis=1) for begin, end in pairwise(edges)], axis=1)
    assert whole.brightest.shape == (3, columns, 71)
    np.testing.assert_allclose(whole.brightest, expected, rtol=1e-5)
    assert found.columns == columns


def test_one_bright_sample_of_ten_thousand_sequences_is_kept(tmp_path):
    def with_line(number, shape):
        values = np.ones(shape, complex)
        if number == 7:
            values[1, 333, 40] = 5000
        return values

    _, whole = read_whole(iq_file(tmp_path, (1000,) * 10, data=with_line), 3)
    assert np.argwhere(whole.brightest > 2).tolist() == [[1, 1760, 40]]  # that column begins at 1760 * 10000 // 2400
    assert whole.brightest.max() == 5000**2


def test_what_is_kept_does_not_grow_with_the_file(tmp_path):
    for records in (6, 60):
        folder = tmp_path / str(records)
        folder.mkdir()
        found, whole = read_whole(iq_file(folder, (500,) * records))
        assert whole.brightest.shape == (3, samples.COLUMNS, samples.SAMPLES)
        span = samples.spans(found, 2)[1]
        part = samples.read(folder / "20261101.1400.00.sas.0.antennas_iq.h5", span, 3, found.total_sequences)
        assert part.brightest.shape[1] <= 1000 * samples.COLUMNS // found.total_sequences + 2


def test_only_the_chunks_that_are_drawn_are_read(tmp_path):
    path = simulated(tmp_path, records=8, sequences=30)
    before = _bytes_read()
    read_whole(path)
    assert _bytes_read() - before < 0.45 * path.stat().st_size


def test_missing_samples_are_nan_and_count_for_nothing(tmp_path):
    def with_holes(number, shape):
        values = np.full(shape, 3 + 4j)
        values[0, 0] = np.nan
        values[1] = np.nan
        values[2] = 0
        return values

    _, whole = read_whole(iq_file(tmp_path, (2, 2), data=with_holes))
    assert np.isnan(whole.brightest[0, ::2]).all() and (whole.brightest[0, 1::2] == 25).all()
    assert whole.medians[0].tolist() == [25, 25]
    assert np.isnan(whole.brightest[1]).all() and np.isnan(whole.medians[1]).all()
    assert (whole.brightest[2] == 0).all() and whole.medians[2].tolist() == [0, 0]


def test_the_median_is_that_of_all_drawn_samples(tmp_path):
    path = iq_file(tmp_path, (9, 4))
    _, whole = read_whole(path)
    power = every_sequence(path)
    for record, sequences in enumerate((slice(0, 9), slice(9, 13))):
        values = power[:, sequences].reshape(3, -1)
        expected = np.quantile(values, 0.5, axis=1, method="lower")
        np.testing.assert_allclose(whole.medians[:, record], expected, rtol=1e-5)


def test_short_sequences_leave_the_rest_empty(tmp_path):
    _, whole = read_whole(iq_file(tmp_path, samples=50))
    assert not np.isnan(whole.brightest[:, :, :50]).any() and np.isnan(whole.brightest[:, :, 50:]).all()


def test_a_cpid_that_changes_within_the_file_is_that_of_the_first_record(tmp_path):
    path = simulated(tmp_path, cpid_of_record={1: 157})
    assert samples.survey(path).experiment_id == 151


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(b"\x89PNG" * 5000)


def without_records(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in [name for name in file if name != "metadata"]:
            del file[name]


def without_anything(path: Path) -> None:
    h5py.File(path, "w").close()


def before_v1(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["metadata"]


def without_sequences(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in [name for name in file if name != "metadata"]:
            del file[name]["sqn_timestamps"]
            file[name]["sqn_timestamps"] = np.zeros(0)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (cut, "truncated"),
        (empty, "truncated"),
        (other, "not HDF5"),
        (without_records, "no records"),
        (without_anything, "no records"),
        (without_sequences, "no records"),
        (before_v1, "not a Borealis file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, damage, kind):
    path = iq_file(tmp_path)
    damage(path)
    with pytest.raises(BadFile, match=str(path)) as refused:
        samples.survey(path)
    assert refused.value.kind == kind


def replaced(field: str, value) -> object:
    def damage(file, record):
        holder = file["metadata"] if field in file["metadata"] else file[record]
        del holder[field]
        if value is not None:
            holder[field] = value

    return damage


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        ("sqn_timestamps", replaced("sqn_timestamps", None)),
        ("sqn_timestamps", replaced("sqn_timestamps", np.array([np.nan] * 8))),
        ("sqn_timestamps", replaced("sqn_timestamps", np.full(8, 1e300))),
        ("sqn_timestamps", replaced("sqn_timestamps", np.array([b"x"] * 8))),
        ("sqn_timestamps", replaced("sqn_timestamps", 7.0)),
        ("antennas_iq_data", replaced("antennas_iq_data", None)),
        ("antennas_iq_data", replaced("antennas_iq_data", np.zeros((3, 7, 80), np.complex64))),
        ("antennas_iq_data", replaced("antennas_iq_data", np.zeros((2, 8, 80), np.complex64))),
        ("antennas_iq_data", replaced("antennas_iq_data", np.zeros((3, 8), np.complex64))),
        ("antennas_iq_data", replaced("antennas_iq_data", np.zeros((3, 8, 80), np.float32))),
        ("antennas_iq_data", replaced("antennas_iq_data", b"text")),
    ],
)
def test_what_is_wrong_with_a_record_is_told_with_its_name_and_the_field(tmp_path, field, damage):
    path = iq_file(tmp_path)
    record = "20261101-1400-03.000000"
    with h5py.File(path, "r+") as file:
        damage(file, record)
    with pytest.raises(BadFile, match=f"record {record}, field {field}") as refused:
        read_whole(path)
    assert refused.value.kind == "damaged record"


def test_a_damaged_chunk_is_told_with_record_and_field(tmp_path):
    path = iq_file(tmp_path, compression=9)
    record = "20261101-1400-03.000000"
    with h5py.File(path) as file:
        chunk = file[record]["antennas_iq_data"].id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * 40)
    with pytest.raises(BadFile, match=f"record {record}, field antennas_iq_data") as refused:
        read_whole(path)
    assert refused.value.kind == "damaged record"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rx_antennas", None),
        ("rx_antennas", np.array([0, 3, 20], np.uint32)),
        ("rx_antennas", np.array([0, 3, 3], np.uint32)),
        ("rx_antennas", np.zeros(0, np.uint32)),
        ("rx_sample_rate", 0.0),
        ("station", None),
        ("experiment_id", b"many"),
    ],
)
def test_what_is_wrong_with_the_metadata_is_told_with_the_field(tmp_path, field, value):
    path = iq_file(tmp_path)
    with h5py.File(path, "r+") as file:
        replaced(field, value)(file, "")
    with pytest.raises(BadFile, match=f"metadata.*field {field}") as refused:
        samples.survey(path)
    assert refused.value.kind == "damaged record"


def test_a_record_larger_than_any_radar_makes_takes_no_memory(tmp_path):
    path = iq_file(tmp_path)
    with h5py.File(path, "r+") as file:
        record = file["20261101-1400-00.000000"]
        for field, shape, kind in (("antennas_iq_data", (3, 10**6, 80), "c8"), ("sqn_timestamps", (10**9,), "f8")):
            del record[field]
            record.create_dataset(field, shape, kind, chunks=True, compression=9)
    with pytest.raises(BadFile, match="field sqn_timestamps"):
        samples.survey(path)
    span = samples.Span(0, 0, ("20261101-1400-00.000000",), (10**6,))
    with pytest.raises(BadFile, match="more than any record"):
        samples.read(path, span, 3, 10**6)


def test_a_file_that_is_not_there_condemns_nothing(tmp_path):
    with pytest.raises(TryLater):
        samples.survey(tmp_path / "20261101.1400.00.sas.0.antennas_iq.h5")


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
