"""The two steps that draw: what is told of antennas, and quick-looks that come, or cannot come, of rawacf on campus."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import world
from rawacf_files import before_v1
from step_cases import at, bytes_of, entry_of, made, parsed, put

from dataflow.demo.simulate_radar import SliceSpec, parse_fault, write_block
from dataflow.lib import custody, names, report
from dataflow.lib.checksum import sha256
from dataflow.lib.errors import Exit
from dataflow.lib.flag import read_folder
from dataflow.lib.names import Kind


@pytest.fixture
def here(tmp_path) -> world.World:
    return world.make(tmp_path, ["files.settle_s=0.0", "plots.processes=2", "plots.archive_after_h=0.0"])


def of(records: list[dict], event: str) -> list[dict]:
    return [record for record in records if record["event"] == event]


# -- antennas


def draw_block(here: world.World, number: int, *faults: str) -> tuple[list[dict], list[str]]:
    """Draw the antennas_iq of one block of four antennas; the health in its record, and the alerts."""
    site = here.here("site-linux")
    paths = write_block(
        here.root / "radar", "sas", at(number), [SliceSpec(ranges=20)], records=3, antennas=4, sequences=2, samples=80,
        seed=number, faults=[parse_fault(fault) for fault in faults], open_each_record=False,
    )  # fmt: skip
    (source,) = (path for path in paths if parsed(path).kind is Kind.ANTENNAS_IQ)
    put(site.folder("antennas_iq") / source.name, source.read_bytes(), at(number))
    put(site.folder("to_plot") / source.name, b"", at(number))
    code, records = here.run("site-linux", "plot_antennas_iq")
    assert code == 0, here.said
    (record,) = of(records, "file")
    return record["details"]["health"], [alert["message"] for alert in of(records, "alert")]


def test_each_change_of_an_antennas_state_is_told_once(here):
    told = [
        draw_block(here, number, *faults)[1]
        for number, faults in enumerate(
            [("antenna=3:dead",), ("antenna=3:noisy", "antenna=1:dead"), ("antenna=1:dead",), (), ("antenna=3:dead",)]
        )
    ]
    words = [[message.partition(":")[0] for message in messages] for messages in told]
    antenna = "antenna {} of slice 0 of sas is {}".format
    assert words == [
        [antenna(3, "dead")],
        [antenna(1, "dead"), antenna(3, "noisy")],
        [antenna(3, "good again")],
        [antenna(1, "good again")],
        [antenna(3, "dead")],
    ]


def test_the_record_has_the_level_of_every_antenna(here):
    health, _ = draw_block(here, 0, "antenna=3:dead")
    assert [each["antenna"] for each in health] == [0, 1, 2, 3]
    assert [each["state"] for each in health] == ["good"] * 3 + ["dead"]
    assert health[3]["distance_db"] < -10 < health[0]["distance_db"] and {"median_db", "drift_db"} <= health[0].keys()


def test_the_thresholds_are_those_of_the_configuration(tmp_path):
    lax = world.make(tmp_path, ["antenna_health.dead_below_db=200.0", "antenna_health.drifting_by_db=200.0"])
    assert draw_block(lax, 0, "antenna=3:dead")[1] == []


# -- quick-looks


def rawacf(here: world.World, number: int, content: bytes | None = None, folder: str = "archive_hdf5") -> Path:
    """A rawacf that was converted, with its marker."""
    campus, name = here.here("campus"), names.radar_file(at(number), "sas", 0, Kind.RAWACF)
    path = put(campus.folder(folder, name.time) / name.text, made(number)[0] if content is None else content, at(number))
    put(campus.folder("to_plot") / name.text, b"", at(number))
    ctx = here.context("campus", step="fed")
    ctx.custody.admit([entry_of(path)], "site-linux")
    return path


def look_of(here: world.World, path: Path) -> Path:
    return here.here("campus").folder("plots") / names.quicklook_of(parsed(path)).text


def markers(here: world.World) -> list[str]:
    return sorted(path.name for path in here.here("campus").folder("to_plot").iterdir())


def test_from_holding_to_the_archive_the_picture_has_its_own_hash_and_its_parents(here):
    campus = here.here("campus")
    name = names.radar_file(at(0), "sas", 0, Kind.RAWACF)
    put(campus.folder("holding") / name.text, made(0)[0], at(0))
    for step in ("convert_on_campus", "distribute_borealis_data", "plot_rawacf"):
        assert here.run("campus", step)[0] == 0, here.said
    look = look_of(here, Path(name.text))
    digest = sha256(look)
    (entry,) = (e for _, manifest in read_folder(custody.open_folder(campus)) for e in manifest.files if e.name == look.name)
    parent = made(0)[3].source_sha256
    assert (entry.sha256, entry.parent, entry.by) == (digest, parent, "plot_rawacf")
    assert stat.S_IMODE(look.stat().st_mode) == 0o664
    assert here.run("campus", "archive_iq_plots")[0] == 0, here.said
    assert sha256(campus.folder("plots_archive", name.time) / look.name) == digest
    hops, faults = report.trace(campus, name.text, here.clock(), is_whole=False)
    assert not faults
    assert [(hop["action"], hop["parent"], hop["sha256"]) for hop in hops if hop["file"] == look.name] == [
        ("made", parent, digest),
        ("archived", parent, digest),
    ]
    here.clock.advance(1)
    assert not custody.Custody(campus, "later", here.clock, here.context("campus").log).close_finished()
    assert not read_folder(custody.open_folder(campus)), "with the picture archived everything of this block is done"


def test_what_cannot_be_drawn_is_told_once_and_the_rawacf_goes_its_way(here):
    bad = [rawacf(here, number, bytes_of(number)) for number in range(4)]
    code, records = here.run("campus", "plot_rawacf")
    assert code == 0
    assert {record["file"]: (record["outcome"], record["action"]) for record in of(records, "file")} == {
        path.name: ("done", "not drawn") for path in bad
    }
    assert all("is not an HDF5 file" in record["reason"] for record in of(records, "file"))
    (alert,) = of(records, "alert")
    assert alert["message"].startswith(f"no quick-look of {bad[0].name}: ")
    assert markers(here) == [] and all(path.read_bytes() == bytes_of(n) for n, path in enumerate(bad))
    assert not here.here("campus").folder("quarantine").exists()

    rawacf(here, 4)
    rawacf(here, 5, bytes_of(5))
    _, records = here.run("campus", "plot_rawacf")
    assert [record["action"] for record in of(records, "file")] == ["plotted", "not drawn"]
    assert len(of(records, "alert")) == 1, "a picture in between ended the condition"


def test_a_file_from_before_v1_has_none_and_says_why(here, tmp_path):
    source = before_v1(tmp_path, "v0.6", array=True)
    campus = here.here("campus")
    path = put(campus.folder("data") / source.name, source.read_bytes(), at(0))
    put(campus.folder("to_plot") / source.name, b"", at(0))
    code, records = here.run("campus", "plot_rawacf")
    (record,) = of(records, "file")
    assert code == 0 and "not a file of Borealis v1" in record["reason"] and path.exists() and markers(here) == []


@pytest.mark.parametrize("folder", ["holding", "data", "to_archive", "archive_hdf5", "quarantine"])
def test_it_is_drawn_wherever_it_lies_by_now(here, folder):
    path = rawacf(here, 0, folder=folder)
    assert here.run("campus", "plot_rawacf")[0] == 0, here.said
    assert look_of(here, path).exists() and path.exists() and markers(here) == []


def test_a_person_may_name_the_file_itself(here):
    path = rawacf(here, 0)
    code, records = here.run("campus", "plot_rawacf", named=[path])
    assert code == 0 and of(records, "file")[0]["action"] == "plotted" and look_of(here, path).exists() and markers(here) == []


def test_the_marker_of_a_file_that_is_gone_goes_too(here):
    path = rawacf(here, 0)
    path.unlink()
    code, records = here.run("campus", "plot_rawacf")
    assert code == 0 and markers(here) == []
    assert "the file is gone from campus" in of(records, "file")[0]["reason"] and len(of(records, "alert")) == 1


@pytest.mark.parametrize("folder", ["plots", "plots_archive"])
def test_a_picture_that_is_there_stays(here, folder):
    path = rawacf(here, 0)
    there = put(here.here("campus").folder(folder, at(0)) / look_of(here, path).name, b"drawn before", at(0))
    code, _ = here.run("campus", "plot_rawacf")
    assert code == 0 and there.read_bytes() == b"drawn before" and markers(here) == []
    assert list(here.here("campus").folder("plots").glob("*.png")) == ([there] if folder == "plots" else [])


def test_strangers_among_the_markers_are_left_alone(here):
    path = rawacf(here, 0)
    strangers = ["notes.txt", "20261101.1400.00.sas.0.antennas_iq.h5", "x $(touch PWNED).rawacf.h5"]
    for stranger in strangers:
        (here.here("campus").folder("to_plot") / stranger).touch()
    code, records = here.run("campus", "plot_rawacf")
    assert code == 0 and look_of(here, path).exists() and markers(here) == sorted(strangers)
    assert [record["outcome"] for record in of(records, "file")].count("skipped") == 3


def test_a_library_that_is_missing_condemns_nothing(here, tmp_path):
    path = rawacf(here, 0)
    (tmp_path / "PIL.py").write_text("raise ImportError('there is no PIL on this machine')")
    argv = [sys.executable, "-m", "dataflow", "run", "plot_rawacf", "--host", "campus", "--radar", "sas", "--root", here.root]
    ran = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.returncode == Exit.LEFT_OVER and "there is no PIL on this machine" in ran.stderr and "[campus]" in ran.stderr
    assert markers(here) == [path.name]


def test_a_name_in_the_future_is_told_once(here):
    later = at(0) + timedelta(days=36500)
    radar = here.here("borealis")
    path = put(radar.folder("data") / f"{later:%Y%m%d}" / names.radar_file(later, "sas", 0, Kind.RAWACF).text, b"x", at(0))
    for expected in (1, 0):
        code, records = here.run("borealis", "rsync_to_nas")
        assert code == 0 and path.exists()
        messages = [alert["message"] for alert in of(records, "alert")]
        assert len(messages) == expected and all("days into the future" in text and path.name in text for text in messages)
