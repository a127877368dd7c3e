"""`dataflow mirror sort-special`: every record is read, a file that cannot be read stops no other, nothing is overwritten."""

from __future__ import annotations

import bz2
import os
from pathlib import Path

import dmap
import mirror_world
import pytest

from dataflow.lib.errors import Exit
from dataflow.mirror import sort_special

NORMAL = "20261101.0000.00.sas.a.rawacf.bz2"
SPECIAL = "20261101.0200.00.sas.a.rawacf.bz2"
LATER = "20261101.0400.00.sas.a.rawacf.bz2"
BROKEN = "20261101.0600.00.sas.a.rawacf.bz2"


@pytest.fixture
def config(tmp_path):
    return mirror_world.world(tmp_path / "machines")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "of a partner"


def with_cpids(folder: Path, name: str, *cpids: int) -> Path:
    """A real DMAP file with one record of each experiment."""
    (record,) = dmap.read_rawacf(bz2.decompress(mirror_world.dmap_bytes(name)), mode="strict")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(bz2.compress(dmap.write_rawacf([{**record, "cp": cpid} for cpid in cpids], None)))
    return path


def run(config, folder: Path, move: bool = True) -> Exit:
    mirror_world.SAID.clear()
    return mirror_world.run(config, "mirror_sort_special", lambda job: sort_special.sort_special(job, folder, move))[0]


def actions(config) -> dict[str, str]:
    return {record["file"]: record["action"] for record in mirror_world.records(config, "mirror_sort_special", "file")}


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_special_files_are_only_listed_until_they_are_to_be_moved(config, folder):
    """M55: the command line only listed, and said that it moved; moved into a folder that nobody had made."""
    with_cpids(folder, NORMAL, 151)
    with_cpids(folder, SPECIAL, 1200)
    assert run(config, folder, move=False) == Exit.ACCOUNTED
    assert tree(folder) == [NORMAL, SPECIAL]
    assert actions(config) == {NORMAL: "not special", SPECIAL: "special"}
    assert f"{SPECIAL}: CPID 1200" in mirror_world.SAID and not any("moved" in said for said in mirror_world.SAID)
    assert run(config, folder) == Exit.ACCOUNTED
    assert tree(folder) == [NORMAL, f"special_experiments/{SPECIAL}"]
    assert actions(config)[SPECIAL] == "moved"
    assert run(config, folder) == Exit.ACCOUNTED, "what was moved is not looked at again"


def test_every_record_counts_and_not_only_the_first(config, folder):
    """M55: only the first record's experiment was looked at."""
    with_cpids(folder, LATER, 151, 151, 1200)
    with_cpids(folder, NORMAL, 151, 3503, 191)
    assert run(config, folder) == Exit.ACCOUNTED
    assert tree(folder) == [NORMAL, f"special_experiments/{LATER}"]


def test_a_file_that_cannot_be_read_stops_no_other(config, folder):
    """M55: any file that is no rawacf ended the scan."""
    path = with_cpids(folder, BROKEN, 1200)
    path.write_bytes(path.read_bytes()[:-20])
    with_cpids(folder, SPECIAL, 1200)
    (folder / "notes.txt").write_text("of the experiments")
    (folder / "20261101.0000.00.sas.fitacf.bz2").write_bytes(b"not ours")
    os.mkfifo(folder / LATER)
    assert run(config, folder) == Exit.LEFT_OVER
    assert f"special_experiments/{SPECIAL}" in tree(folder) and BROKEN in tree(folder)
    assert mirror_world.outcomes(config, "mirror_sort_special") == {
        BROKEN: "kept", SPECIAL: "done", LATER: "skipped", "notes.txt": "skipped", "20261101.0000.00.sas.fitacf.bz2": "skipped",
    }  # fmt: skip
    assert any(BROKEN in said and "left where it is" in said for said in mirror_world.SAID)
    assert mirror_world.SAID[-1] == "5 files: 1 read, 1 not, 3 are no compressed DMAP files"


def test_nothing_is_overwritten(config, folder):
    path = with_cpids(folder, SPECIAL, 1200)
    there = with_cpids(folder / "special_experiments", SPECIAL, 1200, 1200)
    before = path.read_bytes(), there.read_bytes()
    assert run(config, folder) == Exit.LEFT_OVER
    assert (path.read_bytes(), there.read_bytes()) == before
    assert any("same name and other content" in said for said in mirror_world.SAID)


def test_killed_between_the_two_names_of_a_move_it_ends_the_same(config, folder):
    path = with_cpids(folder, SPECIAL, 1200)
    (folder / "special_experiments").mkdir()
    os.link(path, folder / "special_experiments" / SPECIAL)
    assert run(config, folder) == Exit.ACCOUNTED
    assert tree(folder) == [f"special_experiments/{SPECIAL}"]


def test_a_name_that_no_terminal_should_see_is_shown_escaped(config, folder):
    folder.mkdir()
    (folder / "\x1b[2J.rawacf.bz2").write_bytes(b"")
    assert run(config, folder) == Exit.ACCOUNTED
    assert list(actions(config)) == ["\\x1b[2J.rawacf.bz2"]


def test_asked_to_stop_it_ends_after_the_file_in_hand_and_says_what_is_left(config, folder):
    with_cpids(folder, NORMAL, 151)
    with_cpids(folder, SPECIAL, 1200)

    def stopped(job):
        job.progress = lambda *_: setattr(job.requests, "stop", True)
        sort_special.sort_special(job, folder, True)

    assert mirror_world.run(config, "mirror_sort_special", stopped)[0] == Exit.LEFT_OVER
    assert tree(folder) == [NORMAL, SPECIAL]


def test_what_is_no_folder_is_refused(config, folder):
    assert run(config, folder) == Exit.CONFIG
    assert "is not a folder" in mirror_world.SAID[-1]
