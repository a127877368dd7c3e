"""The quick-look of a rawacf: echoes at their range and time, and files that cannot be drawn."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from dataflow.demo.simulate_radar import SliceSpec, write_block
from dataflow.lib import names
from dataflow.lib.crew import crew
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.plots import rawacf_quicklook
from dataflow.lib.plots.rawacf_quicklook import SIZE

NAME = names.parse("20261101.1400.00.sas.0.rawacf.h5")
LEFT, WIDTH, TOP, HEIGHT = 66, 800, 126, 355

pytestmark = pytest.mark.filterwarnings("error")


def rawacf(folder: Path, beams: int = 1, records: int = 8) -> Path:
    spec = SliceSpec(beams_per_record=beams, with_antennas_iq=False, ranges=50)
    start = datetime(2026, 11, 1, 14, tzinfo=UTC)
    return write_block(folder, "sas", start, [spec], records=records, open_each_record=False)[0]


def quicklook(source: Path, name: names.Name | None, target: Path) -> None:
    assert name is not None
    with crew(1) as worker:
        rawacf_quicklook.quicklook(source, name, target, worker)


def records_of(file: h5py.File) -> list[h5py.Group]:
    return [file[name] for name in sorted(file) if name != "metadata"]


def brightness(path: Path, share: float, gate: int) -> int:
    with Image.open(path) as image:
        return sum(image.getpixel((int(LEFT + share * WIDTH), int(TOP + HEIGHT * (1 - (gate + 0.5) / 50)))))


@pytest.mark.parametrize("beams", [1, 16])
def test_an_echo_is_at_its_range_and_time(tmp_path, beams):
    path = rawacf(tmp_path, beams)
    with h5py.File(path, "r+") as file:
        for number, record in enumerate(records_of(file)):
            values = np.ones(record["main_acfs"].shape, np.complex64)
            if number == 5:
                values[-1, 30, 0] = 1e4
            record["main_acfs"][...] = values
    target = tmp_path / "look.png"
    quicklook(path, NAME, target)
    with Image.open(target) as image:
        assert image.format == "PNG" and image.size == SIZE
    assert brightness(target, 5.5 / 8, 30) > 600
    for share, gate in ((4.5 / 8, 30), (6.5 / 8, 30), (5.5 / 8, 29), (5.5 / 8, 31)):
        assert brightness(target, share, gate) < 30


def test_the_same_file_gives_the_same_bytes_and_nothing_else(tmp_path):
    path = rawacf(tmp_path / "radar")
    folder = tmp_path / "pictures"
    folder.mkdir()
    target = folder / names.quicklook_of(NAME).text
    quicklook(path, NAME, target)
    first = target.read_bytes()
    quicklook(path, NAME, target)
    assert target.read_bytes() == first and list(folder.iterdir()) == [target]


def test_no_value_and_no_power_are_drawn_too(tmp_path):
    path = rawacf(tmp_path)
    with h5py.File(path, "r+") as file:
        records_of(file)[2]["main_acfs"][...] = np.nan
        records_of(file)[3]["main_acfs"][...] = 0
    quicklook(path, NAME, tmp_path / "look.png")
    with Image.open(tmp_path / "look.png") as image:
        assert image.getpixel((int(LEFT + 2.5 / 8 * WIDTH), 300)) == (150, 160, 160)
        assert image.getpixel((int(LEFT + 3.5 / 8 * WIDTH), 300)) == (0, 0, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("main_acfs", None),
        ("main_acfs", np.zeros((1, 0, 30), np.complex64)),
        ("beam_nums", np.array([4_000_000_000], np.uint32)),
        ("sqn_timestamps", np.array([1e300])),
        ("sqn_timestamps", np.array([np.nan])),
        ("sqn_timestamps", np.zeros(0)),
    ],
)
def test_what_cannot_be_drawn_is_told_with_record_and_field(tmp_path, field, value):
    path = rawacf(tmp_path)
    with h5py.File(path, "r+") as file:
        record = records_of(file)[3]
        del record[field]
        if value is not None:
            record[field] = value
        expected = f"record {Path(record.name).name}, field {field}"
    with pytest.raises(BadFile, match=expected) as refused:
        quicklook(path, NAME, tmp_path / "look.png")
    assert refused.value.kind == "damaged record" and not (tmp_path / "look.png").exists()


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(BadFile):
        quicklook(tmp_path / "x", names.parse("20261101.1400.00.sas.0.antennas_iq.h5"), tmp_path / "look.png")


def test_a_folder_that_is_not_there_condemns_nothing(tmp_path):
    with pytest.raises(TryLater):
        quicklook(rawacf(tmp_path), NAME, tmp_path / "missing" / "look.png")
