"""Conversion on campus: what goes to quarantine, what a kill leaves, who may convert at once, and what comes out."""

from __future__ import annotations

import bz2
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pydarnio
import pytest
from loopback import Machines, Run
from rawacf_files import START, before_v1, reference, simulated
from step_cases import bytes_of, converted, entry_of, made, put, to_convert

from dataflow.demo.simulate_radar import SliceSpec, write_block
from dataflow.lib import borealis, names
from dataflow.lib.checksum import sha256
from dataflow.lib.names import Kind

WAIT_S = 60.0


def run(machines: Machines, **more) -> Run:
    return machines.run("convert_on_campus", "campus", **more)


def received(machines: Machines, source: Path, name: str = "") -> Path:
    """A file of this content in holding, as `receive` put it there."""
    path = put(machines.here("campus").folder("holding") / (name or source.name), source.read_bytes(), START)
    machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    return path


def in_data(machines: Machines) -> dict[str, bytes]:
    folder = machines.here("campus").folder("data")
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def record_names(file: h5py.File) -> list[str]:
    return sorted(key for key in file if key != borealis.METADATA)


def of_other_station(folder: Path) -> tuple[Path, str]:
    (path,) = write_block(folder, "pgr", START, [SliceSpec(ranges=10, with_antennas_iq=False)], records=2)
    return path, path.name.replace(".pgr.", ".sas.")


def of_other_time(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=2)
    return path, names.radar_file(START + timedelta(hours=2), "sas", 0, Kind.RAWACF).text


def of_other_slice(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=2)
    return path, path.name.replace(".sas.0.", ".sas.3.")


def of_slice_26(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=2)
    return path, path.name.replace(".sas.0.", ".sas.26.")


def without_records(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=2)
    with h5py.File(path, "r+") as file:
        for key in record_names(file):
            del file[key]
    return path, path.name


def empty(folder: Path) -> tuple[Path, str]:
    return put(folder / "20261101.1400.00.sas.0.rawacf.h5", b"", START), ""


def truncated(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=6)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path, path.name


def no_hdf5(folder: Path) -> tuple[Path, str]:
    return put(folder / "20261101.1400.00.sas.0.rawacf.h5", bytes_of(1), START), ""


def with_a_field_missing(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=3)
    with h5py.File(path, "r+") as file:
        del file[record_names(file)[1]]["main_acfs"]
    return path, path.name


def zeroed_in_the_middle(folder: Path) -> tuple[Path, str]:
    path = simulated(folder, records=6)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)
    return path, path.name


FAULTS: dict[Callable[[Path], tuple[Path, str]], str] = {
    of_other_station: "wrong station",
    of_other_time: "wrong time",
    of_other_slice: "wrong slice",
    of_slice_26: "slice beyond 25",
    without_records: "",
    empty: "",
    truncated: "",
    no_hdf5: "",
    with_a_field_missing: "",
    zeroed_in_the_middle: "",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_bad_file_goes_to_quarantine_with_its_reason_and_stops_nothing(
    machines: Machines, tmp_path: Path, spoil: Callable[[Path], tuple[Path, str]]
) -> None:
    bad = received(machines, *spoil(tmp_path))
    good, digest = to_convert(machines, 0), sha256(bad)
    done = run(machines)
    assert done.code == 1
    assert done.outcomes() == {bad.name: "quarantined", good.name: "done"}, done.said
    ((name, reason),) = machines.quarantined("campus").items()
    assert name == bad.name and reason["sha256"] == digest
    assert reason["kind"] == FAULTS[spoil] or (not FAULTS[spoil] and reason["kind"])
    assert bad.name in reason["message"]
    assert not bad.exists()
    assert set(in_data(machines)) == {path.name for path in converted(machines, good)}


def test_file_whose_bytes_are_not_what_was_announced_is_not_converted(machines: Machines, tmp_path: Path) -> None:
    path = received(machines, simulated(tmp_path, records=2))
    entry = entry_of(path)
    with h5py.File(path, "r+") as file:
        file[record_names(file)[0]]["main_acfs"][...] = 0
    assert entry_of(path).sha256 != entry.sha256
    done = run(machines)
    assert done.outcomes() == {path.name: "quarantined"}
    assert machines.quarantined("campus")[path.name]["kind"] == "hash mismatch"
    assert in_data(machines) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: simulated(folder, records=5),
        lambda folder: simulated(folder, slice_id=25, interferometer=False),
        lambda folder: simulated(folder, records=2, beams=16),
        lambda folder: before_v1(folder, "v0.6", array=True),
        lambda folder: before_v1(folder, "v0.7", array=False),
    ],
    ids=["v1", "slice 25", "wide beam", "v0.6 array", "v0.7 site"],
)
def test_records_are_what_pydarnio_makes_of_them_in_every_field_and_type(
    machines: Machines, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    path = received(machines, source)
    assert run(machines).code == 0
    hdf5, dmap = converted(machines, path)
    assert hdf5.read_bytes() == source.read_bytes()
    assert bz2.decompress(dmap.read_bytes()) == reference(source, tmp_path)
    ours = pydarnio.read_rawacf(str(dmap), mode="strict")
    theirs = pydarnio.read_rawacf(str(tmp_path / f"reference.{source.name}.bz2"), mode="strict")
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for field, value in mine.items():
            assert type(value) is type(other[field]) and getattr(value, "dtype", None) == getattr(other[field], "dtype", None)
            assert np.array_equal(value, other[field]), field
    (record,) = machines.records("convert_on_campus", "campus", "sas")[1:-1][-1:]
    assert (record["file"], record["action"]) == (path.name, "converted")


def test_dmap_file_carries_its_parent_content_and_findings(machines: Machines) -> None:
    path = to_convert(machines, 0)
    digest = sha256(path)
    assert run(machines).code == 0
    dmap = converted(machines, path)[1]
    (entry,) = [entry for entry in machines.admitted("campus") if entry.name == dmap.name]
    assert (entry.sha256, entry.size, entry.parent) == (sha256(dmap), dmap.stat().st_size, digest)
    assert (entry.records, entry.cpids) == (2, (151,)) and (entry.by or "").startswith("convert_on_campus ")
    assert entry.content_sha256 == made(0)[3].content_sha256
    hdf5 = [entry for entry in machines.admitted("campus") if entry.name == path.name][-1]
    assert (hdf5.sha256, hdf5.records) == (digest, 2)


def test_dmap_file_of_the_same_records_and_other_bytes_is_left_alone(machines: Machines) -> None:
    """Two bzip2 programs write different bytes for one content: an earlier run, or the radar, used the other one."""
    path = to_convert(machines, 0)
    other = bz2.compress(bz2.decompress(made(0)[2]), 1)
    assert other != made(0)[2]
    dmap = put(converted(machines, path)[1], other, START)
    done = run(machines)
    assert done.code == 0 and done.outcomes() == {path.name: "done"}, done.said
    assert dmap.read_bytes() == other
    assert set(in_data(machines)) == {path.name, dmap.name}


def test_dmap_file_in_holding_is_passed_on_as_it_is(machines: Machines) -> None:
    source = machines.here("campus").folder("holding") / "20241101.0000.00.sas.a.rawacf.bz2"
    put(source, made(0)[2], START)
    assert run(machines).code == 0
    assert in_data(machines) == {source.name: made(0)[2]}


@contextmanager
def started(machines: Machines, radar: str = "sas", *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real `dataflow run`, which is killed at the end if it still runs."""
    words = ["run", "convert_on_campus", "--host", "campus", "--radar", radar]
    settings = [word for override in overrides for word in ("--set", override)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dataflow", *words, *settings],
        env={**os.environ, **machines.config.environment()}, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def part_in_data(machines: Machines, radar: str = "sas") -> list[Path]:
    return list(machines.here("campus", radar).folder("data").glob(".*.part"))


def test_killed_conversion_leaves_nothing_under_the_final_name_and_a_rerun_makes_one_file(
    machines: Machines, tmp_path: Path
) -> None:
    """A real process, killed while it writes; the converter of the DMAP library would append to what it finds."""
    source = simulated(tmp_path, records=30, beams=16)
    path = received(machines, source)
    with started(machines) as process:
        wait_for(lambda: part_in_data(machines) or process.poll() is not None)
        assert process.poll() is None, "it was to be killed at work"
        process.kill()
        process.wait()
    assert [name for name in in_data(machines) if not name.startswith(".")] == []
    assert path.exists()
    assert run(machines).code == 0
    dmap = converted(machines, path)[1]
    assert set(in_data(machines)) == {path.name, dmap.name}
    assert bz2.decompress(dmap.read_bytes()) == reference(source, tmp_path)


def test_stopped_conversion_finishes_the_file_in_hand_and_leaves_the_next(machines: Machines, tmp_path: Path) -> None:
    first = received(machines, simulated(tmp_path, records=30, beams=16))
    second = to_convert(machines, 0)
    second = second.rename(second.with_name("20261101.1600.00.sas.0.rawacf.h5"))
    with started(machines) as process:
        wait_for(lambda: part_in_data(machines) or process.poll() is not None)
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert converted(machines, first)[1].exists() and second.exists()
    end = machines.records("convert_on_campus", "campus", "sas")[-1]
    assert (end["done"], end["waiting"]) == (1, 1)


def test_instances_of_all_radars_share_the_conversions_of_the_machine(machines: Machines, tmp_path: Path) -> None:
    """sas is held at work, so inv, which may not convert at the same time, is still waiting when it is asked to stop."""
    one = "campus.max_conversions=1"
    sas = received(machines, simulated(tmp_path, records=30, beams=16))
    (source,) = write_block(tmp_path, "inv", START, [SliceSpec(ranges=10, with_antennas_iq=False)], records=2)
    inv = put(machines.here("campus", "inv").folder("holding") / source.name, source.read_bytes(), START)
    machines.admit("campus", "inv", [entry_of(inv)], "site-linux")
    with started(machines, "sas", one) as working:
        wait_for(lambda: part_in_data(machines) or working.poll() is not None)
        working.send_signal(signal.SIGSTOP)
        with started(machines, "inv", one) as waiting:
            wait_for(lambda: is_waiting(machines, waiting.pid))
            waiting.terminate()
            assert waiting.wait(WAIT_S) == 1
        assert inv.exists() and not part_in_data(machines, "inv")
        working.send_signal(signal.SIGCONT)
        assert working.wait(WAIT_S) == 0
    assert converted(machines, sas)[1].exists()
    kept = [record for record in machines.records("convert_on_campus", "campus", "inv") if record["event"] == "file"]
    assert [(record["outcome"], "waiting for a place" in record["reason"]) for record in kept] == [("kept", True)]
    with all_places_but_one(machines, 2):
        done = machines.run("convert_on_campus", "campus", "inv")
    assert done.code == 0 and done.outcomes() == {inv.name: "done"}


def is_waiting(machines: Machines, pid: int) -> bool:
    """Whether a process has opened the places for conversions."""
    places = str(machines.here("campus").machine_state / "conversions")
    links = Path(f"/proc/{pid}/fd").glob("*")
    return any(os.path.lexists(link) and os.readlink(link).startswith(places) for link in links)


@contextmanager
def all_places_but_one(machines: Machines, places: int) -> Iterator[None]:
    """As other instances at work would hold them; one place is free, and one is enough."""
    folder = machines.here("campus").machine_state / "conversions"
    files = [(folder / f"place.{number}").open("a") for number in range(places - 1)]
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    yield
    for file in files:
        file.close()
