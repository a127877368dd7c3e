"""When the radar has finished a file: told by names, sizes and times alone, because opening one may cost the radar a record."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
import world

from dataflow.lib import config, finished

FILES = config.load(world.SHIPPED).flow.files
NOW = datetime.now(UTC)


@pytest.fixture
def data(tmp_path):
    """Writes files as a radar does, last touched some seconds ago; returns the data folder."""

    class Data:
        folder = tmp_path / "borealis_data"

        def put(self, text: str, still_s: float, day: str | None = None):
            path = self.folder / (day or text[:8]) / text
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"records")
            stamp = NOW.timestamp() - still_s
            os.utime(path, (stamp, stamp))
            return path

        def look(self, now: datetime = NOW):
            return finished.look(self.folder, FILES, now)

        def finished(self, now: datetime = NOW) -> list[str]:
            return [path.name for path in self.look(now).finished]

    Data.folder.mkdir()
    return Data()


def name(time: datetime, slice_id: int = 0, kind: str = "rawacf", radar: str = "sas") -> str:
    return f"{time:%Y%m%d.%H%M.%S}.{radar}.{slice_id}.{kind}.h5"


def window(number: int) -> datetime:
    """The start of the two-hour window that is `number` windows after the present one."""
    present = NOW.replace(hour=NOW.hour // 2 * 2, minute=0, second=0, microsecond=0)
    return present + timedelta(hours=2 * number)


def test_the_shipped_times_are_those_of_the_contract():
    assert (FILES.unchanged_s, FILES.complete_after_s, FILES.block_s) == (60, 600, 7200)


def test_a_file_is_finished_when_a_later_one_of_its_series_exists_and_it_is_unchanged(data):
    before, present = window(-1), window(0)
    data.put(name(before), 61)
    data.put(name(present), 1)
    assert data.finished() == [name(before)]
    assert [path.name for path in data.look().unfinished] == [name(present)]


def test_a_later_stamp_is_not_enough_while_the_file_still_changes(data):
    data.put(name(window(-1)), 59)
    data.put(name(window(0)), 1)
    assert data.finished() == []
    assert 0 < data.look().next_s <= 1.5
    assert data.finished(NOW + timedelta(seconds=2)) == [name(window(-1))]


@pytest.mark.parametrize(
    "later",
    [
        name(window(0), slice_id=1),
        name(window(0), kind="antennas_iq"),
        name(window(0), kind="bfiq"),
        name(window(0), radar="pgr"),
        name(window(-1)),
    ],
)
def test_a_later_file_of_another_series_says_nothing(data, later):
    data.put(name(window(-1)), 120)
    data.put(later, 1 if later != name(window(-1)) else 120)
    assert name(window(-1)) not in data.finished()


def test_at_start_up_the_slices_carry_different_stamps(data):
    """Each series is finished by its own next file, not by the first of another."""
    start = window(-1) + timedelta(minutes=13)
    stamps = {0: start, 1: start + timedelta(seconds=3), 2: start + timedelta(seconds=62)}
    for slice_id, stamp in stamps.items():
        data.put(name(stamp, slice_id), 90)
    assert data.finished() == [], "their window has ended, but a record may still come"
    data.put(name(window(0), 0), 1)
    assert data.finished() == [name(stamps[0], 0)]
    data.put(name(window(0), 2), 1)
    assert data.finished() == [name(stamps[0], 0), name(stamps[2], 2)]


def test_a_radar_that_restarts_within_a_window_finishes_its_earlier_file(data):
    first, second = window(0) + timedelta(seconds=1), window(0) + timedelta(seconds=31)
    data.put(name(first), 100)
    data.put(name(second), 1)
    assert data.finished() == [name(first)]


def test_the_last_file_of_a_stopped_radar_is_finished_when_its_window_ended(data):
    data.put(name(window(-1)), 599)
    assert data.finished() == []
    assert data.finished(NOW + timedelta(seconds=2)) == [name(window(-1))]


def test_the_last_file_of_a_stopped_radar_waits_for_the_end_of_its_window(data):
    present = window(0)
    data.put(name(present), 5000)
    end = present + timedelta(hours=2)
    assert data.finished(end - timedelta(seconds=1)) == []
    assert data.look(end - timedelta(seconds=30)).next_s == pytest.approx(30)
    assert data.finished(end + timedelta(seconds=1)) == [name(present)]


def test_a_window_ends_at_midnight_too(data):
    late = datetime(2026, 3, 1, 23, 17, 4, tzinfo=UTC)
    data.put(name(late), 5000)
    now = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    os.utime(data.folder / "20260301" / name(late), (now.timestamp() - 2000, now.timestamp() - 2000))
    assert data.finished(now) == []
    assert data.finished(now + timedelta(seconds=1)) == [name(late)]


def test_a_file_dated_into_the_future_is_finished_once_it_is_still(data):
    path = data.put(name(window(-2)), -(30 * 86400))
    changed = datetime.fromtimestamp(path.stat().st_ctime, UTC)
    assert data.finished(changed + timedelta(seconds=599)) == [], "its inode has just changed"
    assert data.finished(changed + timedelta(seconds=601)) == [path.name]


def test_a_clock_that_was_set_back_does_not_hold_a_file_until_then(data):
    """Written while the clock was a month ahead, every time of the file lies in the future."""
    path = data.put(name(window(-2) - timedelta(days=31)), -3600)
    month_ago = NOW - timedelta(days=30)
    assert path.stat().st_ctime > month_ago.timestamp()
    assert data.finished(month_ago) == [path.name]


def test_every_day_folder_is_looked_into_and_nothing_else(data, tmp_path):
    old = window(-40)
    days = {name(old - timedelta(days=n)) for n in range(3)}
    for text in days:
        data.put(text, 86400)
    data.put(name(old, 5), 86400, day="20261101x")
    data.put(name(old, 6), 86400, day="archive")
    data.put(name(old, 7), 86400, day=".dataflow")
    data.put(name(old, 8), 86400, day="20261101/deeper")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name(old, 9)).touch()
    (data.folder / "20200101").symlink_to(elsewhere)
    (data.folder / name(old, 3)).touch()
    os.utime(data.folder / name(old, 3), (1, 1))
    assert set(data.finished()) == days | {name(old, 3)}, "files that lie beside the day folders count as well"
    new_day = f"{NOW + timedelta(days=1):%Y%m%d}"
    (data.folder / new_day).mkdir()
    assert new_day in [folder.name for folder in finished.day_folders(data.folder)]


def test_no_data_folder_is_nothing_to_do(tmp_path):
    nothing = finished.look(tmp_path / "missing", FILES, NOW)
    assert nothing == finished.DataFolder((), (), (), (), None)


def test_a_name_that_no_clock_explains_waits_is_told_apart_and_makes_no_other_file_finished(data):
    tomorrow, next_year = window(11), window(4380)
    far = data.put(name(next_year), 86400)
    data.put(name(tomorrow, slice_id=1), 86400)
    written = data.put(name(window(0)), 61)
    found = data.look()
    assert found.ahead == (far,) and set(found.unfinished) >= {far, written} and not found.finished
    assert not data.look(next_year - timedelta(hours=1)).ahead


def test_strangers_are_told_apart_and_never_finished(data):
    good = data.put(name(window(-2)), 86400)
    day = good.parent
    for stranger in ("readme.txt", name(window(-2)).upper(), os.fsdecode(b"\xff.h5"), "20261101.cam210.jpg"):
        (day / stranger).touch()
        os.utime(day / stranger, (1, 1))
    (day / name(window(-3))).symlink_to(good)
    (day / f".{name(window(-4))}").touch()
    found = data.look()
    assert list(found.finished) == [good]
    assert {path.name for path in found.strangers} == {
        "readme.txt", name(window(-2)).upper(), os.fsdecode(b"\xff.h5"), "20261101.cam210.jpg", name(window(-3)),
    }  # fmt: skip


def test_the_oldest_comes_first_whatever_folder_it_lies_in(data):
    times = [window(-40), window(-20), window(-30)]
    for time in times:
        data.put(name(time), 86400)
        data.put(name(time, kind="antennas_iq"), 86400)
    assert data.finished() == [name(time, kind=kind) for time in sorted(times) for kind in ("antennas_iq", "rawacf")]


def test_nothing_is_opened(data, monkeypatch):
    data.put(name(window(-1)), 61)
    data.put(name(window(0)), 1)
    opened = []
    monkeypatch.setattr("builtins.open", lambda *given, **more: opened.append(given))
    monkeypatch.setattr(os, "open", lambda *given, **more: opened.append(given))
    assert len(data.finished()) == 1 and opened == []
