"""`dataflow convert` and `dataflow plot`: files anywhere, nothing overwritten, one refused input stops no other."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dmap as darn_dmap
import pytest
from PIL import Image

from dataflow import cli
from dataflow.demo.simulate_radar import SliceSpec, parse_fault, write_block

START = datetime(2026, 11, 1, 14, tzinfo=UTC)
RAWACF = "20261101.1400.00.sas.0.rawacf.h5"
IQ = "20261101.1400.00.sas.0.antennas_iq.h5"
DMAP = "20261101.1400.00.sas.a.rawacf.bz2"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a block of slice 0 with antennas_iq (antenna 3 dead) and of slice 1 without."""
    folder = tmp_path_factory.mktemp("radar")
    slices = [SliceSpec(slice_id=0, ranges=20), SliceSpec(slice_id=1, ranges=20, with_antennas_iq=False)]
    faults = [parse_fault("antenna=3:dead")]
    paths = write_block(folder, "sas", START, slices, records=3, antennas=5, faults=faults, open_each_record=False)
    return paths[0].parent


@pytest.fixture
def block(written, tmp_path) -> Path:
    """Those files in a folder of the test's own, whose name would trip whoever takes names apart."""
    folder = tmp_path / "20991231.2359.59.xyz in vain; (x)"
    folder.mkdir()
    for path in written.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def results(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)


def test_convert_puts_the_dmap_beside_its_input_and_tells_what_is_in_it(block, capsys):
    assert cli.main(["convert", str(block / RAWACF), "--json"]) == 0
    (result,) = results(capsys)
    assert result["outcome"] == "made" and result["outputs"] == [str(block / DMAP)]
    records = darn_dmap.read_rawacf(str(block / DMAP), mode="strict")
    assert result["details"]["records"] == len(records) == 3
    assert all(RAWACF in record["combf"] and "/" not in record["combf"] for record in records)


def test_convert_into_a_folder_that_is_made_for_it(block, tmp_path):
    out = tmp_path / "some" / "where"
    assert cli.main(["convert", str(block / RAWACF), str(block / RAWACF.replace("sas.0", "sas.1")), "-o", str(out)]) == 0
    assert names_in(out) == {DMAP, DMAP.replace("sas.a", "sas.b")}


def test_files_may_come_before_and_after_options(block, tmp_path, capsys):
    one, other = str(block / RAWACF), str(block / RAWACF.replace("sas.0", "sas.1"))
    assert cli.main(["convert", one, "-o", str(tmp_path / "out"), other]) == 0
    assert names_in(tmp_path / "out") == {DMAP, DMAP.replace("sas.a", "sas.b")}
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", one, "--output-folder", str(tmp_path), other])
    assert ended.value.code == 2 and "--output-folder" in capsys.readouterr().err


def test_convert_names_the_file_for_one_input(block, tmp_path):
    assert cli.main(["convert", str(block / RAWACF), "-o", str(tmp_path / "mine.bz2")]) == 0
    assert len(darn_dmap.read_rawacf((tmp_path / "mine.bz2").read_bytes(), mode="strict")) == 3
    assert names_in(block) == {path.name for path in block.iterdir() if path.suffix == ".h5"}


def test_a_conversion_of_the_same_content_is_as_good_as_made(block, capsys):
    cli.main(["convert", str(block / RAWACF)])
    before = (block / DMAP).stat()
    assert cli.main(["convert", str(block / RAWACF), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])[0]["outcome"] == "present"
    after = (block / DMAP).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("content", [b"somebody's work", b""])
def test_other_content_is_refused_and_left_as_it_is(block, capsys, content):
    (block / DMAP).write_bytes(content)
    assert cli.main(["convert", str(block / RAWACF), "--json"]) == 1
    (result,) = results(capsys)
    assert (result["outcome"], result["kind"]) == ("refused", "name taken") and DMAP in result["reason"]
    assert (block / DMAP).read_bytes() == content
    assert not [path for path in block.iterdir() if path.name.startswith(".")]


def test_the_input_itself_is_never_overwritten(block):
    before = (block / RAWACF).read_bytes()
    assert cli.main(["convert", str(block / RAWACF), "-o", str(block / RAWACF)]) == 1
    assert (block / RAWACF).read_bytes() == before


def test_a_refused_input_stops_no_other(block, capsys):
    (block / "notes.txt").write_text("hello")
    damaged = block / RAWACF.replace("1400", "1600")
    damaged.write_bytes((block / RAWACF).read_bytes()[:5000])
    inputs = [block / "notes.txt", damaged, block / IQ, block / "absent.h5", block / RAWACF]
    assert cli.main(["convert", *map(str, inputs), "--json"]) == 1
    told = results(capsys)
    assert [result["file"] for result in told] == [str(path) for path in inputs]
    assert [result["outcome"] for result in told] == ["refused"] * 4 + ["made"]
    assert all(result["reason"] for result in told[:4])
    assert names_in(block) - {path.name for path in inputs} == {DMAP, RAWACF.replace("sas.0", "sas.1")}


def test_several_inputs_need_a_folder(block, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    both = [str(block / RAWACF), str(block / RAWACF.replace("sas.0", "sas.1"))]
    assert cli.main(["convert", *both, "-o", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert names_in(block) == {path.name for path in block.iterdir() if path.suffix == ".h5"}


@pytest.mark.parametrize("arguments", [["convert"], ["plot"], ["convert", "--processes", "0", "x.h5"]])
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: dataflow" in capsys.readouterr().err


def test_plot_draws_each_antenna_and_tells_of_the_dead_one(block, tmp_path, capsys):
    assert cli.main(["plot", str(block / IQ), "-o", str(tmp_path / "pictures"), "--json"]) == 0
    (result,) = results(capsys)
    stem = IQ.removesuffix(".h5")
    expected = {f"{stem}.antenna_{n}_0_70{ending}" for n in range(5) for ending in (".jpg", ".full.jpg")}
    assert names_in(tmp_path / "pictures") == {*expected, f"{stem}.contact.jpg"} == {Path(p).name for p in result["outputs"]}
    assert result["outputs"][-1].endswith("contact.jpg")
    assert result["details"]["antennas"] == {"3": "dead"}
    with Image.open(tmp_path / "pictures" / f"{stem}.antenna_0_0_70.jpg") as picture:
        assert picture.width == 1000


def test_plot_again_changes_nothing_and_draws_what_is_missing(block, capsys):
    assert cli.main(["plot", str(block / IQ)]) == 0
    made = capsys.readouterr().out
    assert "made" in made and "antenna 3 is dead" in made
    one = next(block.glob("*antenna_2_0_70.jpg"))
    drawn = {path: path.stat().st_ino for path in block.glob("*.jpg") if path != one}
    one.unlink()
    assert cli.main(["plot", str(block / IQ)]) == 0
    assert one.is_file() and {path: path.stat().st_ino for path in drawn} == drawn
    capsys.readouterr()
    assert cli.main(["plot", str(block / IQ)]) == 0
    assert capsys.readouterr().out.startswith("present")


def test_a_picture_of_other_content_is_refused_before_any_other_appears(block, capsys):
    taken = block / f"{IQ.removesuffix('.h5')}.antenna_4_0_70.jpg"
    taken.write_bytes(b"a photograph of my cat")
    before = names_in(block)
    assert cli.main(["plot", str(block / IQ), str(block / RAWACF.replace(".rawacf.", ".bfiq."))]) == 1
    said = capsys.readouterr()
    assert taken.name in said.err and "is not an antennas_iq file" in said.err and not said.out
    assert taken.read_bytes() == b"a photograph of my cat" and names_in(block) == before


def test_plot_gives_a_quick_look_of_a_rawacf(block, tmp_path, capsys):
    assert cli.main(["plot", str(block / RAWACF), "-o", str(tmp_path / "pictures")]) == 0
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == RAWACF.replace(".h5", ".quicklook.png") and picture.name in capsys.readouterr().out
    with Image.open(picture) as drawn:
        darkest, brightest = drawn.convert("L").getextrema()
        assert drawn.format == "PNG" and brightest - darkest > 50, "a picture, not a blank sheet"


def test_quick_looks_are_drawn_side_by_side_and_told_in_order(block, tmp_path, capsys):
    """Damaged ones among them, and antennas_iq between; each result is where its input was."""
    damaged = block / RAWACF.replace("1400", "1600")
    damaged.write_bytes((block / RAWACF).read_bytes()[:5000])
    inputs = [block / RAWACF, damaged, block / RAWACF.replace("sas.0", "sas.1"), block / IQ, damaged, block / "absent.txt"]
    assert cli.main(["plot", *map(str, inputs), "-o", str(tmp_path / "pictures"), "--processes", "3", "--json"]) == 1
    told = results(capsys)
    assert [result["file"] for result in told] == [str(path) for path in inputs]
    assert [result["outcome"] for result in told] == ["made", "refused", "made", "made", "refused", "refused"]
    assert len(list((tmp_path / "pictures").glob("*.quicklook.png"))) == 2
    assert not [path for path in (tmp_path / "pictures").iterdir() if path.name.startswith(".")]


def test_an_output_that_cannot_be_written_is_refused_not_raised(block, capsys):
    (block / "not a folder").write_text("")
    assert cli.main(["convert", str(block / RAWACF), "-o", str(block / "not a folder" / "x.bz2")]) == 1
    assert "refused" in capsys.readouterr().err


def test_plain_lines_for_a_pipe_and_a_bar_for_a_person(block):
    argv = [sys.executable, "-m", "dataflow", "convert", str(block / RAWACF)]
    piped = subprocess.run(argv, capture_output=True, text=True)
    assert piped.returncode == 0 and piped.stderr == "" and "\r" not in piped.stdout
    assert piped.stdout == f"made     {block / DMAP}: 3 records, {(block / DMAP).stat().st_size} bytes\n"
    seen = on_a_terminal(argv)
    assert f"{RAWACF} [" in seen and "3/3" in seen and "present" in seen.split("\r")[-2] + seen.split("\r")[-1]


def on_a_terminal(argv: list[str]) -> str:
    leader, follower = pty.openpty()
    with subprocess.Popen(argv, stdout=follower, stderr=follower, stdin=follower) as process:
        os.close(follower)
        seen = b""
        with contextlib.suppress(OSError):  # EIO is how a terminal says that nobody writes to it any more
            while piece := os.read(leader, 65536):
                seen += piece
    os.close(leader)
    assert process.returncode == 0
    return seen.decode()
