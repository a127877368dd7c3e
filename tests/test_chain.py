"""The chain end to end: real daemons, real sshd, rsync and inotify, and files as the radar writes them."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pydarnio
import running_chain
from rawacf_files import FROM_THE_RADAR
from running_chain import Running, copy_in, now

from dataflow.demo.simulate_radar import SliceSpec, write_block
from dataflow.lib import checksum, names, place, report
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name
from dataflow.lib.summary import Record

TARGETS = ("vt", "bas", "mirror")
START = now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=10 + now().hour % 2)
"""An even hour, long enough ago that the blocks from there on are over."""
RAWACF = SliceSpec(slice_id=0, with_antennas_iq=False, ranges=20)
SECOND = SliceSpec(slice_id=1, with_antennas_iq=False, with_interferometer=False, ranges=20)
WITH_IQ = SliceSpec(slice_id=0, with_antennas_iq=True, ranges=20)
SMALL = {"records": 3, "sequences": 2, "samples": 80, "open_each_record": False}


def block(folder: Path, number: int, *slices: SliceSpec, radar: str = "sas", **more) -> list[Path]:
    """The radar writes its next block."""
    return write_block(
        folder, radar, START + timedelta(hours=2 * number), slices or (RAWACF,), **{**SMALL, "seed": number, **more}
    )


class Written:
    """What went into the chain, and a copy of it to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.sha256: dict[str, str] = {}

    def remember(self, paths: Iterable[Path]) -> list[Path]:
        paths = list(paths)
        for path in paths:
            self.sha256[path.name] = checksum.sha256(path)
            shutil.copy2(path, self.folder)
        return paths

    def of(self, *kinds: Kind, radar: str = "sas") -> list[Name]:
        parsed = [names.parse(name) for name in self.sha256]
        return [name for name in parsed if name and name.kind in kinds and name.radar == radar]


def test_blocks_go_from_the_radar_to_the_archive(tmp_path: Path) -> None:
    """Blocks come in before, between and after the daemons start; each file ends in exactly the places where it belongs."""
    written = Written(tmp_path / "written")
    with running_chain.running(tmp_path / "chain", ("sas", "inv")) as chain:
        data, data_inv = chain.here("borealis").folder("data"), chain.here("borealis", "inv").folder("data")
        written.remember(block(data, 0, RAWACF, SECOND))
        (data / "notes.txt").write_text("a stranger\n")
        chain.start("borealis")
        chain.until(lambda: chain.flags("site-linux")["waiting"], "a flag waits at the site while its daemon is down")
        by_hand = put_in_by_hand(chain, written, tmp_path)
        chain.start("site-linux")
        chain.until(lambda: chain.flags("campus")["waiting"], "a flag waits on campus while its daemon is down")
        for host, radar in (("campus", "sas"), ("borealis", "inv"), ("site-linux", "inv"), ("campus", "inv")):
            chain.start(host, radar)
        written.remember(block(data_inv, 1, WITH_IQ, radar="inv", antennas=4))
        written.remember(block(data, 1, RAWACF, SECOND, open_each_record=True))
        damaged = cut_off(block(tmp_path / "aside", 2, SliceSpec(slice_id=3, with_antennas_iq=False, ranges=20)), data)
        written_long_after = copy_in(*block(tmp_path / "aside", 3, SECOND), data / f"{START:%Y%m%d}", START + timedelta(days=3))
        if FROM_THE_RADAR.is_dir():
            written.remember(from_the_radar(data))
        written.remember([own_dmap(data, tmp_path)])
        written.remember(one_rawacf_and_forty_pictures(data, tmp_path))
        in_quarantine = (
            f"campus/sddata/conversion_failure/sas/{damaged.name}",
            f"sas-store/conversion_failure/{written_long_after.name}",
        )
        expected = places_of_all(written, by_hand) | {f"sas-store/backup/{damaged.name}"}
        expected |= {f"{place}{ending}" for place in in_quarantine for ending in ("", ".reason.json")}
        is_there = lambda: expected <= chain.files() and chain.is_at_rest(("sas", "inv"))  # noqa: E731
        chain.until(is_there, lambda: f"missing: {sorted(expected - chain.files())}, rest: {chain.is_at_rest(('sas', 'inv'))}")
        assert chain.files() == expected

        assert [chain.connections(machine) for machine in ("sas-site", "inv-site", "campus")] == [1, 1, 2], "of sas and of inv"
        assert_equal_to_pydarnio(chain, written)
        assert_hashes_never_changed(chain, written)
        assert_custody_is_told(chain, written, by_hand)
        assert [daemon.stop() for daemon in chain.daemons] == [Exit.ACCOUNTED] * 6, chain.said()


def one_rawacf_and_forty_pictures(data: Path, tmp_path: Path) -> list[Path]:
    """A block of one rawacf whose antennas_iq, of two slices with twenty antennas, give forty pictures and two sheets."""
    made = block(tmp_path / "forty", 4, WITH_IQ, SliceSpec(slice_id=1))
    return [copy_in(path, data / path.parent.name, START + timedelta(hours=10)) for path in made if ".1.rawacf" not in path.name]


def put_in_by_hand(chain: Running, written: Written, tmp_path: Path) -> Name:
    """A rawacf that a person copies to the NAS, and a photo; returns the name of the first."""
    (rawacf,) = block(tmp_path / "aside", 0, SliceSpec(slice_id=5, with_antennas_iq=False, ranges=20))
    cameras = chain.here("site-linux").folder("cameras")
    cameras.mkdir(parents=True)
    photo = cameras / f"{START:%Y%m%d}.1200.cam211.jpg"
    photo.write_bytes(b"\xff\xd8 a sky")
    written.remember([photo, copy_in(rawacf, chain.here("site-linux").folder("rawacf_array"))])
    name = names.parse(rawacf.name)
    assert name is not None
    return name


def cut_off(paths: list[Path], data: Path) -> Path:
    """The first two thirds of a file."""
    (path,) = paths
    stamp = path.stat().st_mtime
    os.truncate(path, path.stat().st_size * 2 // 3)
    return copy_in(path, data / path.parent.name, datetime.fromtimestamp(stamp, UTC))


def from_the_radar(data: Path) -> list[Path]:
    """The shared files of a real radar's writer, their time stamps set to match their names."""
    copied = []
    for source in sorted(FROM_THE_RADAR.glob("*.h5")):
        name = names.parse(source.name)
        assert name is not None
        copied.append(copy_in(source, data / f"{name.time:%Y%m%d}", name.time + timedelta(hours=2)))
    return copied


def own_dmap(data: Path, tmp_path: Path) -> Path:
    """A radar that writes DMAP itself, not compressed."""
    (source,) = block(tmp_path / "dmap", 3, SliceSpec(slice_id=6, with_antennas_iq=False, ranges=20))
    made = tmp_path / "dmap" / f"{START + timedelta(hours=6):%Y%m%d.%H%M.%S}.sas.g.rawacf"
    made.write_bytes(bz2.decompress(pydarnio_makes([source], tmp_path / "dmap")[source.name]))
    return copy_in(made, data / source.parent.name, START + timedelta(hours=8))


def places_of_all(written: Written, by_hand: Name) -> set[str]:
    """Every file that the chain is to leave behind, below the folder of all machines."""
    places = {"sas-borealis/data/borealis_data/notes.txt"}
    for radar in ("sas", "inv"):
        for name in written.of(Kind.RAWACF, radar=radar):
            places.add(f"campus/data/borealis_site_data/{radar}_rawacf/{name.time:%Y/%m}/{name.text}")
            places |= places_of_dmap(names.dmap_of(name), is_special=name.text == "20261101.1600.00.sas.0.rawacf.h5")
            pictures = f"campus/sddata/antennas_iq_plots/{radar}_iq_plots/archive/{name.time:%Y/%m}"
            places.add(f"{pictures}/{names.quicklook_of(name).text}")
            if radar == "sas" and name != by_hand:
                places.add(f"sas-store/backup/{name.text}")
    for name in written.of(Kind.DMAP_PLAIN):
        places |= places_of_dmap(names.dmap_of(name)) | {f"sas-store/backup/{name.text}.bz2"}
    for name in written.of(Kind.ANTENNAS_IQ):
        sheet, small = names.contact_sheet_of(name).text, [names.plot_of(name, n, 0, 70).text for n in range(20)]
        archive = f"campus/sddata/antennas_iq_plots/sas_iq_plots/archive/{name.time:%Y/%m}"
        places |= {f"{archive}/{picture}" for picture in (sheet, *small)}
        full = (names.plot_of(name, n, 0, 70, full=True).text for n in range(20))
        places |= {f"sas-site/data/dataflow/daily_plots/fullsize/{picture}" for picture in full}
        places.add(f"sas-store/antennas_iq_array/{name.text}")
    for name in written.of(Kind.ANTENNAS_IQ, radar="inv"):
        places.add(f"inv-borealis/data/borealis_data/{name.time:%Y%m%d}/{name.text}")
    for text in written.sha256:
        if (name := names.parse(text)) and name.kind is Kind.PHOTO:
            places.add(f"campus/sddata/camera_photos/sascam/sascam211/{name.time:%Y/%m}/{text}")
    return places


def places_of_dmap(name: Name, is_special: bool = False) -> set[str]:
    archive = f"campus/data/borealis_site_data/{name.radar}_rawacf_dmap/{name.time:%Y/%m}/{name.text}"
    if is_special:
        return {archive, f"campus/sddata/special_experiments/{name.time:%Y/%m}/{name.text}"}
    return {archive, *(f"campus/data/staging/{target}/{name.text}" for target in TARGETS)}


def pydarnio_makes(sources: Iterable[Path], folder: Path) -> dict[str, bytes]:
    """What `pydarnio.BorealisConvert` makes of files, each called in its folder with the bare name under LC_ALL=C."""
    code = (
        "import os, sys, pydarnio\n"
        "for path in sys.argv[2:]:\n"
        "    where, name = os.path.split(path); os.chdir(where)\n"
        "    number = int(name.split('.')[4])\n"
        "    pydarnio.BorealisConvert(name, 'rawacf', f'{sys.argv[1]}/{name}.bz2', borealis_slice_id=number)\n"
    )
    sources = list(sources)
    argv = [sys.executable, "-c", code, folder.absolute(), *(source.absolute() for source in sources)]
    subprocess.run(argv, env={**os.environ, "LC_ALL": "C"}, check=True, timeout=running_chain.LIMIT_S)
    return {source.name: (folder / f"{source.name}.bz2").read_bytes() for source in sources}


def assert_equal_to_pydarnio(chain: Running, written: Written) -> None:
    rawacf = [*written.of(Kind.RAWACF), *written.of(Kind.RAWACF, radar="inv")]
    theirs = pydarnio_makes([written.folder / name.text for name in rawacf], written.folder)
    for name in rawacf:
        dmap = names.dmap_of(name)
        ours = chain.here("campus", str(name.radar)).folder("archive_dmap", name.time) / dmap.text
        assert_same_records(ours, written.folder / f"{name.text}.bz2")
        assert bz2.decompress(ours.read_bytes()) == bz2.decompress(theirs[name.text])
    for name in written.of(Kind.DMAP_PLAIN):
        ours = chain.here("campus").folder("archive_dmap", name.time) / f"{name.text}.bz2"
        assert bz2.decompress(ours.read_bytes()) == (written.folder / name.text).read_bytes()


def assert_same_records(ours: Path, theirs: Path) -> None:
    """Every record with every field, its value and its type."""
    records, others = (pydarnio.read_rawacf(str(path), mode="strict") for path in (ours, theirs))
    assert len(records) == len(others) > 0
    for record, other in zip(records, others, strict=True):
        assert record.keys() == other.keys()
        for field, value in record.items():
            assert type(value) is type(other[field]), field
            assert getattr(value, "dtype", None) == getattr(other[field], "dtype", None), field
            assert np.array_equal(value, other[field]), field


def assert_hashes_never_changed(chain: Running, written: Written) -> None:
    """What each host recorded of a file, and what lies in the archive, is what the radar computer had."""
    for name in (*written.of(Kind.RAWACF), *written.of(Kind.RAWACF, radar="inv")):
        hops, faults = chain.trace(name.text, str(name.radar))
        assert faults == []
        told = [hop["sha256"] for hop in hops if hop["file"] == name.text]
        assert len(told) >= 5 and set(told) == {written.sha256[name.text]}
        archived = chain.here("campus", str(name.radar)).folder("archive_hdf5", name.time) / name.text
        assert checksum.sha256(archived) == written.sha256[name.text]
        staged = {hop["sha256"] for hop in hops if hop["file"] == names.dmap_of(name).text}
        assert len(staged) == 1
        assert {checksum.sha256(place) for place in chain.root.glob(f"campus/data/**/{names.dmap_of(name).text}")} == staged


def assert_custody_is_told(chain: Running, written: Written, by_hand: Name) -> None:
    """`trace` on campus: each hop once, who sent and who received, where custody began, and what was made of the file."""
    (first, *_) = written.of(Kind.RAWACF)
    dmap, quicklook = names.dmap_of(first).text, names.quicklook_of(first).text
    hops, _ = chain.trace(first.text)
    assert [(hop["host"], hop["machine"], hop["step"], hop["action"], hop["file"]) for hop in sorted(hops, key=order_of)] == [
        ("borealis", "sas-borealis", "rsync_to_nas", "copied", first.text),
        ("borealis", "sas-borealis", "rsync_to_nas", "copied", first.text),
        ("site-linux", "sas-site", "rsync_to_campus", "delivered", first.text),
        ("campus", "campus", "receive", "received", first.text),
        ("campus", "campus", "convert_on_campus", "made", dmap),
        ("campus", "campus", "convert_on_campus", "converted", first.text),
        *[("campus", "campus", "distribute_borealis_data", "staged", dmap)] * 3,
        ("campus", "campus", "distribute_borealis_data", "archived", dmap),
        ("campus", "campus", "distribute_borealis_data", "archived", first.text),
        ("campus", "campus", "plot_rawacf", "made", quicklook),
        ("campus", "campus", "plot_rawacf", "plotted", first.text),
        ("campus", "campus", "archive_iq_plots", "archived", quicklook),
    ]
    assert len({(hop["machine"], hop["place"], hop["file"], hop["action"]) for hop in hops}) == len(hops)
    assert {hop["parent"] for hop in hops if hop["action"] == "made"} == {written.sha256[first.text]}

    hops, faults = chain.trace(by_hand.text)
    assert [(hop["host"], hop["action"]) for hop in hops if hop["action"] == "adopted"] == [("site-linux", "adopted")]
    assert hops[0]["action"] == "adopted" and faults == []
    (photo,) = (text for text in written.sha256 if "cam211" in text)
    hops, faults = chain.trace(photo)
    assert sorted((hop["host"], hop["action"]) for hop in hops) == [
        ("campus", "archived"),
        ("site-linux", "adopted"),
        ("site-linux", "delivered"),
    ]
    assert faults == []
    (plain,) = written.of(Kind.DMAP_PLAIN)
    hops, faults = chain.trace(plain.text)
    of_compressed = {hop["action"] for hop in hops if hop["file"] == f"{plain.text}.bz2"}
    assert of_compressed >= {"compressed", "delivered", "staged", "archived"} and faults == []
    as_a_person_asks(chain, first.text, dmap)


def as_a_person_asks(chain: Running, name: str, dmap: str) -> None:
    asked = chain.dataflow("trace", name, "--host", "campus", "--radar", "sas", "--json")
    assert asked.returncode == Exit.ACCOUNTED, asked.stderr
    contract = {"time", "host", "machine", "step", "action", "place", "sha256", "parent", "outcome"}
    hops = json.loads(asked.stdout)
    assert all(set(hop) - {"file", "reason"} == contract for hop in hops)
    assert all(hop[key] for hop in hops for key in contract - {"parent"})
    text = chain.dataflow("trace", name, "--host", "campus", "--radar", "sas").stdout
    assert len(text.splitlines()) == len(hops)
    for hop, line in zip(hops, text.splitlines(), strict=True):
        for word in (hop["time"][:19], hop["host"], hop["machine"], hop["place"], hop["sha256"][:16], hop["file"]):
            assert word in line
    assert dmap in text
    here = chain.dataflow("trace", name, "--host", "site-linux", "--radar", "sas")
    assert here.returncode == Exit.ACCOUNTED and "sas-site knows" in here.stdout

    silent = chain.here("campus").relayed_logs / "sas" / "rsync_to_campus"
    logs = {log: log.read_text() for log in silent.glob("*.site-linux.jsonl")}
    assert 1 <= len(logs) <= 2, "of one day, or of two where midnight has passed"
    for log in logs:
        log.write_text("")
    asked = chain.dataflow("trace", name, "--host", "campus", "--radar", "sas")
    assert asked.returncode == Exit.LEFT_OVER and "no record of site-linux" in asked.stderr
    for log, whole in logs.items():
        log.write_text(re.sub(r'"sha256": "[0-9a-f]{8}', '"sha256": "00000000', whole))
    asked = chain.dataflow("trace", name, "--host", "campus", "--radar", "sas")
    assert asked.returncode == Exit.LEFT_OVER and "disagree" in asked.stderr
    for log, whole in logs.items():
        log.write_text(whole)


def order_of(hop: report.Report) -> tuple[int, bool, str]:
    """The order of the chain: clocks of two machines, and a sender who records when the receiver has answered, may differ."""
    return ["borealis", "site-linux", "campus"].index(hop["host"]), hop["step"] != "receive", hop["time"]


def test_a_block_does_not_wait_for_five_thousand_pictures(tmp_path: Path) -> None:
    """It reaches campus within one batch: counted are the batches of pictures that campus takes after the flag came in.

    Those are the one that campus was reading back then, and the one that was on its way meanwhile; none sets out after the flag.
    These pictures are tiny, and loopback has no bandwidth; batches of 200 are what a site's link would carry in its minute.
    """
    with running_chain.running(tmp_path / "chain", overrides=[*running_chain.QUICK, "transfer.batch_files=200"]) as chain:
        queue_pictures(chain, 5000)
        chain.start("site-linux")
        chain.until(lambda: len(pictures_taken(chain)) >= 200, "the first batch of pictures is on campus")
        (rawacf,) = block(chain.here("borealis").folder("data"), 0)
        assert chain.once("borealis") == Exit.ACCOUNTED, chain.said()
        taken = chain.until(lambda: received(chain, rawacf.name), "the block is on campus")
        (flag_sent,) = [r for r in chain.records("borealis", step="send_flag") if r["event"] == "file"]
        after_the_flag = {r["run"] for r in pictures_taken(chain) if flag_sent["time"] < r["time"] < taken[0]["time"]}
        assert len(after_the_flag) <= 2
        assert len(pictures_taken(chain)) < 5000, "the pictures were not all gone when the block came"
        assert chain.daemons[0].stop() == Exit.ACCOUNTED, chain.said()
        left = place.scan(chain.here("site-linux").folder("daily_plots"))
        names_taken = {r["file"] for r in pictures_taken(chain)}
        assert {path.name for path in left} | names_taken == {picture_name(n) for n in range(5000)}


def queue_pictures(chain: Running, count: int) -> None:
    folder = chain.here("site-linux").folder("daily_plots")
    folder.mkdir(parents=True)
    entries = []
    for number in range(count):
        content = b"\xff\xd8 picture %d" % number
        (folder / picture_name(number)).write_bytes(content)
        entries.append(Entry(picture_name(number), len(content), hashlib.sha256(content).hexdigest(), by="plot_antennas_iq"))
    chain.admit("site-linux", entries)


def picture_name(number: int) -> str:
    return f"{START:%Y%m%d.%H%M.%S}.sas.0.antennas_iq.antenna_{number}_0_70.jpg"


def pictures_taken(chain: Running) -> list[Record]:
    return [r for r in chain.records("campus", step="receive") if r["event"] == "file" and r["file"].endswith(".jpg")]


def received(chain: Running, name: str) -> list[Record]:
    return [r for r in chain.records("campus", step="receive") if r["event"] == "file" and r["file"] == name]


def test_a_lost_answer_does_not_hand_a_file_out_twice(tmp_path: Path) -> None:
    """Campus archives, the partners empty staging, and only then the site, which never heard of it, sends the file again."""
    with running_chain.running(tmp_path / "chain") as chain:
        (rawacf,) = block(chain.here("borealis").folder("data"), 0)
        dmap = names.dmap_of(parsed(rawacf)).text
        assert chain.once("borealis") == Exit.ACCOUNTED, chain.said()
        deaf = lose_one_answer(chain)
        assert chain.once("site-linux") == Exit.UNREACHABLE, chain.said()
        assert not deaf.exists(), "the answer was lost"
        assert (chain.here("site-linux").folder("rawacf_array") / rawacf.name).exists()
        assert chain.once("campus") == Exit.ACCOUNTED, chain.said()
        staging = [chain.here("campus").path(target.folder) for target in chain.machines.config.flow.distribute.targets.values()]
        for folder in staging:
            (folder / dmap).unlink()
        before = chain.files()

        assert chain.once("site-linux") == Exit.ACCOUNTED, chain.said()
        assert chain.once("campus") == Exit.ACCOUNTED, chain.said()
        assert [r["action"] for r in received(chain, rawacf.name)] == ["received", "duplicate"]
        assert chain.files() == before - {f"sas-store/rawacf_array/{rawacf.name}"}
        staged = [r["target"] for r in chain.records("campus") if r["event"] == "action" and r["action"] == "staged"]
        assert sorted(staged) == sorted(TARGETS)
        assert chain.is_at_rest()
        hops, faults = chain.trace(rawacf.name)
        assert faults == [] and [hop["action"] for hop in hops].count("duplicate") == 2, "told by both sides"


def parsed(path: Path) -> Name:
    name = names.parse(path.name)
    assert name is not None
    return name


def lose_one_answer(chain: Running) -> Path:
    """The next time that campus accepts files, the connection breaks before the answer; the mark that says so is then gone."""
    program = Path(chain.here("campus").machine.command)
    whole = program.rename(program.with_name("whole"))
    mark = program.with_name("lose-one-answer")
    mark.touch()
    lose = f'[ "$SSH_ORIGINAL_COMMAND" = accept ] && rm {mark} 2>/dev/null && {{ {whole} "$@" >/dev/null; kill -9 $PPID; }}'
    program.write_text(f'#!/bin/sh\n{lose}\nexec {whole} "$@"\n')
    program.chmod(0o755)
    return mark
