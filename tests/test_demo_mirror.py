"""`dataflow demo-mirror` for real: what it prints at its end is what lies on the two mirrors, and all is as it should be."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dataflow.demo import mirror
from dataflow.lib.errors import BadConfig

ROW = re.compile(r"^  (\S+\.rawacf\.bz2)  north (-|[0-9a-f]{10} listed) +south (-|[0-9a-f]{10} listed) +(.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Path, str]:
    """The folder, in which an earlier demo had left something, and what was printed."""
    folder = tmp_path_factory.mktemp("demo") / "there"
    earlier = folder / "computer" / "north" / "state" / "mirror.all" / "requests.jsonl"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("not a request\n")
    (folder / ".dataflow-demo").touch()
    argv = [sys.executable, "-m", "dataflow", "demo-mirror", str(folder)]
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=folder.parent)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder, finished.stdout


def rows(printed: str) -> dict[str, tuple[str, str, str]]:
    return {name: (north, south, told.strip()) for name, north, south, told in ROW.findall(printed)}


def top(folder: Path, name: str) -> Path:
    return folder / "computer" / name / "mirror" / "chroot" / "sddata"


def test_the_table_is_what_lies_on_the_two_mirrors(played):
    folder, printed = played
    table = rows(printed)
    assert len(table) == 12
    for column, name in enumerate(("north", "south")):
        lying = {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in top(folder, name).rglob("*.bz2")}
        shown = {file: row[column] for file, row in table.items() if row[column] != "-"}
        assert shown == {file: f"{sha1[:10]} listed" for file, sha1 in lying.items()}


def test_the_lists_are_those_of_sha1sum(played):
    folder, _ = played
    lists = [path for name in ("north", "south") for path in top(folder, name).rglob("*.hashes")]
    assert len(lists) == 2 * (2 + 1)
    for path in lists:
        where = path.parent if path.name != "master.hashes" else path.parents[1]
        checked = subprocess.run(
            ["sha1sum", "--check", "--strict", "--quiet", str(path)], cwd=where, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_file_came_to_what_was_meant_for_it(played):
    _, printed = played
    told = [row[2] for row in rows(printed).values()]
    assert told.count("agreed") == 8
    assert sorted(told)[8:] == [
        "agreed; north had lost it", "blocked by north", "damaged: published by nobody", "other content: a person decides",
    ]  # fmt: skip


def test_each_command_is_shown_with_how_it_ended(played):
    _, printed = played
    commands = re.findall(r"^(?:north|south)\$ dataflow (.+)$", printed, re.MULTILINE)
    assert len(commands) == len(re.findall(r"^  .*, exit [01]$", printed, re.MULTILINE)) == 10
    syncs, compares = {"mirror sync north", "mirror sync south"}, {"mirror compare north", "mirror compare south"}
    publishes = {f"mirror publish {holding}" for holding in ("main", "north", "south")}
    assert {words.split(" --")[0] for words in commands} == syncs | compares | publishes | {"backfill"}


def test_where_to_look_is_there(played):
    folder, printed = played
    places = re.findall(r"^  (?:north|south) +(?:the mirror|set aside|summary logs|report page) +(/.+)$", printed, re.MULTILINE)
    assert len(places) == 8
    south_sets_nothing_aside = str(folder / "computer" / "south" / "holding" / "set_aside")
    assert [place for place in places if not Path(place).exists()] == [south_sets_nothing_aside]
    pages = [Path(place).read_text() for place in places if place.endswith(".html")]
    assert len(pages) == 2 and all("<html" in page for page in pages)


def test_nothing_is_left_waiting(played):
    folder, _ = played
    for holding in folder.glob("computer/*/holding/*"):
        if holding.name in ("main", "north", "south"):
            assert list(holding.iterdir()) == []


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadConfig, match="not made by the demo"):
        mirror.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
