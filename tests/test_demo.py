"""`dataflow demo` for real: what it prints at its end is what lies on the disk, and every file has come to its last place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from dataflow import cli
from dataflow.lib import names
from dataflow.lib.names import PICTURES, Kind

LABEL = re.compile(r" {2}(?: {2})?(\S+\.\S+|\d+ pictures \+ contact sheet|quick-look)(, made from it)?")
HOP = re.compile(r" {4}([* ]) (?:\d\d:\d\d:\d\d| {8})  (\S+(?: > \S+)?) +(\w+) +([0-9a-f]{10})?  +(\S+)")


def test_what_the_demo_prints_at_its_end_is_what_lies_on_the_disk(tmp_path):
    folder = tmp_path / "run"
    argv = [sys.executable, "-m", "dataflow", "demo", str(folder)]
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    table_is_the_disk(folder, finished.stdout)
    every_file_is_accounted_for(folder, finished.stdout)
    dmap_is_everywhere(folder, finished.stdout)
    pictures_share_a_line(folder, finished.stdout)
    each_rawacf_has_its_quick_look(folder, finished.stdout)
    damage_is_told(folder, finished.stdout)
    where_to_look_exists(folder, finished.stdout)


def hops(text: str) -> list[tuple[str, str, bool, str, str, str]]:
    """(the radar's file, the file of this line, is it there, machine, action, folder) of each line of the table."""
    source = label = ""
    found = []
    for line in text.splitlines():
        if named := LABEL.fullmatch(line):
            label = named[1]
            source = source if named[2] else label
        elif hop := HOP.fullmatch(line):
            head, brace, inner = hop[5].partition("{")
            folders = [head + word for word in inner.rstrip("}").split(",")] if brace else [head]
            found += [(source, label, hop[1] == "*", hop[2], hop[3], folder) for folder in folders]
    return found


def on_disk(folder: Path, kinds: frozenset[Kind]) -> set[tuple[str, str]]:
    found = set()
    for path in folder.rglob("*"):
        name = names.parse(path.name)
        if path.is_file() and name is not None and name.kind in kinds:
            found.add((str(path.parent.relative_to(folder)), path.name))
    return found


def table_is_the_disk(folder: Path, printed: str) -> None:
    told = hops(printed)
    there = {(where, file) for _, file, is_there, _, _, where in told if is_there and names.parse(file)}
    gone = {(where, file) for _, file, is_there, _, action, where in told if not is_there and action != "plotted"}
    data = on_disk(folder, frozenset({Kind.RAWACF, Kind.ANTENNAS_IQ, Kind.DMAP}))
    assert there == data
    assert not gone & data and len(gone) > 30


def every_file_is_accounted_for(folder: Path, printed: str) -> None:
    wrote = re.findall(r"^the radar wrote (\S+)", printed, re.MULTILINE)
    assert len(wrote) == 2 * 3 * 3 + 1
    told = [(source, action, where) for source, file, _, _, action, where in hops(printed) if source == file]
    last = {source: (action, where) for source, action, where in told if action != "plotted" or "antennas_iq" in source}
    assert sorted(last) == sorted(wrote)
    for file, (action, where) in last.items():
        radar = file.split(".")[3]
        if "antennas_iq" in file:
            assert action == ("plotted" if radar == "sas" else "stays"), file
        elif ".sas.2." in file:
            assert (action, where) == ("quarantined", "campus/sddata/conversion_failure/sas")
        else:
            assert action == "archived" and where.startswith(f"campus/data/borealis_site_data/{radar}_rawacf/"), file


def dmap_is_everywhere(folder: Path, printed: str) -> None:
    dmap = on_disk(folder, frozenset({Kind.DMAP}))
    good = [file for file in re.findall(r"^the radar wrote (\S+rawacf\S+)", printed, re.MULTILINE) if ".sas.2." not in file]
    for file in good:
        name = names.dmap_of(names.parse(file)).text
        lies = {where for where, file in dmap if file == name}
        archive = f"campus/data/borealis_site_data/{name.split('.')[3]}_rawacf_dmap/{name[:4]}/{name[4:6]}"
        assert lies == {archive, *(f"campus/data/staging/{target}" for target in ("vt", "bas", "mirror"))}
    assert len(dmap) == 4 * len(good) == 48


def pictures_share_a_line(folder: Path, printed: str) -> None:
    lines = [(where, is_there) for _, label, is_there, _, _, where in hops(printed) if label == "20 pictures + contact sheet"]
    archives = {where for where, is_there in lines if is_there}
    assert len(lines) == 6, "received and archived, of three files"
    pictures = on_disk(folder / "campus", PICTURES - {Kind.QUICKLOOK})
    assert len(pictures) == 3 * 21 and {f"campus/{where}" for where, _ in pictures} == archives


def each_rawacf_has_its_quick_look(folder: Path, printed: str) -> None:
    lines = [(source, where) for source, label, is_there, _, _, where in hops(printed) if label == "quick-look" and is_there]
    pictures = on_disk(folder, frozenset({Kind.QUICKLOOK}))
    assert {(where, names.quicklook_of(names.parse(source)).text) for source, where in lines} == pictures
    assert len(lines) == len(pictures) == 2 * 3 * 2


def damage_is_told(folder: Path, printed: str) -> None:
    (reason_file,) = folder.rglob("*.reason.json")
    reason = json.loads(reason_file.read_text())
    shown = " ".join(printed.split())
    assert f"because {reason['message'].replace(f'{folder}/', '')}" in shown
    assert ".sas.2.rawacf.h5" in reason["file"] and reason_file.parent == folder / "campus/sddata/conversion_failure/sas"


def where_to_look_exists(folder: Path, printed: str) -> None:
    words = "plots|quick-looks|DMAP files|HDF5 files|quarantine|summary logs|daemons"
    places = dict(re.findall(rf"^  ({words}) +(\S+)$", printed, re.MULTILINE))
    assert len(places) == 7
    for what, place in places.items():
        found = list(Path(place).parent.glob("*.log")) if what == "daemons" else list(Path(place).rglob("*"))
        assert place.startswith(str(folder)) and found, what


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert cli.main(["demo", str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
