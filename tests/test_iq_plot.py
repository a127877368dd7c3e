"""Pictures of antennas_iq: every antenna the file has, right colours in the right place, published together or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from iq_files import NAME, START, iq_file, simulated
from PIL import Image

from dataflow.demo.simulate_radar import parse_fault
from dataflow.lib import names
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Kind
from dataflow.lib.plots import axes, samples
from dataflow.lib.plots.antenna_health import HealthThresholds, State
from dataflow.lib.plots.antennas_iq import MAX_MEMORY_BYTES, Pictures, plot
from dataflow.lib.plots.canvas import MISSING_COLOUR
from dataflow.lib.plots.picture import FULL, SIZE

LEFT, TOP, WIDTH, SAMPLE_HEIGHT = 66, 126, 800, 5
"""Where the samples lie in a small picture."""


def drawn(path: Path, folder: Path, processes: int = 2, **how) -> Pictures:
    folder.mkdir(exist_ok=True)
    return plot(path, names.parse(NAME), folder, processes=processes, **how)


def pixel(path: Path, share: float, sample: int, scale: int = 1) -> tuple[int, int, int]:
    """The colour of a sample, at a share of the axis of sequences."""
    with Image.open(path) as image:
        x = LEFT + share * WIDTH
        y = TOP + (71 - sample - 0.5) * SAMPLE_HEIGHT
        return image.getpixel((int(x * scale), int(y * scale)))


def small(pictures: Pictures, antenna: int) -> Path:
    return next(p for p in pictures.paths if (n := names.parse(p.name)).antenna == antenna and n.kind is Kind.PLOT)


def full(pictures: Pictures, antenna: int) -> Path:
    return next(p for p in pictures.paths if (n := names.parse(p.name)).antenna == antenna and n.kind is Kind.PLOT_FULL)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def near(colour: tuple[int, int, int], wanted: tuple[int, int, int], within: int = 30) -> bool:
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= within


def test_every_antenna_of_a_block_is_drawn_at_two_sizes_with_a_contact_sheet(tmp_path):
    path = simulated(tmp_path, records=4, sequences=5, antennas=20)
    steps = []
    pictures = drawn(path, tmp_path / "plots", progress=lambda done, total: steps.append((done, total)))
    found = [names.parse(each.name) for each in pictures.paths]
    for kind in (Kind.PLOT, Kind.PLOT_FULL):
        assert sorted(each.antenna for each in found if each.kind is kind) == list(range(20))
    assert found[-1].kind is Kind.CONTACT and len(found) == 41
    assert set(everything_in(tmp_path / "plots")) == {each.name for each in pictures.paths}
    assert (pictures.antennas, pictures.records, pictures.sequences) == (tuple(range(20)), 4, 20)
    assert {each.state for each in pictures.health} == {State.GOOD}
    assert steps[-1] == (24, 24) and steps == sorted(steps)
    for each, name in zip(pictures.paths, found, strict=True):
        with Image.open(each) as image:
            image.load()
            if name.kind in (Kind.PLOT, Kind.PLOT_FULL):
                scale = FULL if name.kind is Kind.PLOT_FULL else 1
                assert image.size == (SIZE[0] * scale, SIZE[1] * scale) and SIZE[0] == 1000


def test_only_the_antennas_that_the_file_has_are_drawn_and_by_their_own_numbers(tmp_path):
    pictures = drawn(iq_file(tmp_path, indices=(17, 0, 3)), tmp_path / "plots")
    assert pictures.antennas == (17, 0, 3)
    assert sorted(name for name in everything_in(tmp_path / "plots") if "full" not in name) == [
        "20261101.1400.00.sas.0.antennas_iq.antenna_0_0_70.jpg",
        "20261101.1400.00.sas.0.antennas_iq.antenna_17_0_70.jpg",
        "20261101.1400.00.sas.0.antennas_iq.antenna_3_0_70.jpg",
        "20261101.1400.00.sas.0.antennas_iq.contact.jpg",
    ]


def test_the_samples_of_an_antenna_are_in_its_own_picture(tmp_path):
    def one_bright_antenna(number, shape):
        values = np.full(shape, 10 ** (35 / 20), complex)
        values[2, :, 30:] = 10 ** (75 / 20)
        return values

    pictures = drawn(iq_file(tmp_path, indices=(17, 0, 3), data=one_bright_antenna), tmp_path / "plots")
    bright, dark = (246, 214, 70), (24, 11, 58)
    for antenna, colour in ((3, bright), (17, dark), (0, dark)):
        for path, scale in ((small(pictures, antenna), 1), (full(pictures, antenna), FULL)):
            assert near(pixel(path, 0.5, 60, scale), colour) and near(pixel(path, 0.5, 10, scale), dark)
    assert {each.antenna: each.state for each in pictures.health}[3] is State.NOISY


def test_one_bright_sequence_of_ten_thousand_is_seen_at_both_sizes(tmp_path):
    def with_line(number, shape):
        values = np.full(shape, 10 ** (35 / 20), complex)
        if number == 3:
            values[1, 130] = 10 ** (78 / 20)
        return values

    pictures = drawn(iq_file(tmp_path, (1000,) * 10, indices=(0, 3), data=with_line), tmp_path / "plots")
    share = 3130.5 / 10_000
    for path, scale in ((small(pictures, 3), 1), (full(pictures, 3), FULL)):
        for sample in (0, 33, 70):
            assert min(pixel(path, share, sample, scale)[:2]) > 170
            assert max(pixel(path, share + 0.01, sample, scale)[:2]) < 60
    assert max(pixel(small(pictures, 0), share, 33)[:2]) < 60


def test_no_sample_is_grey_and_no_power_is_black(tmp_path):
    def halves(number, shape):
        values = np.full(shape, 100 + 0j)
        values[0] = np.nan if number == 0 else 0
        return values

    pictures = drawn(iq_file(tmp_path, (10, 10), indices=(0, 1, 2, 3), data=halves), tmp_path / "plots")
    assert near(pixel(small(pictures, 0), 0.25, 35), MISSING_COLOUR, 8)
    assert near(pixel(small(pictures, 0), 0.75, 35), (0, 0, 4), 8)
    assert {each.antenna: each.state for each in pictures.health if each.state is not State.GOOD} == {0: State.DEAD}


def test_the_number_of_sequences_may_change_from_record_to_record(tmp_path):
    pictures = drawn(iq_file(tmp_path, (10, 0, 31, 9), indices=(0,)), tmp_path / "plots")
    assert (pictures.records, pictures.sequences) == (4, 50)
    with Image.open(small(pictures, 0)) as image:
        heights = []
        for sequence in (5, 25, 45):
            column = [image.getpixel((int(LEFT + WIDTH * sequence / 50), y)) for y in range(63, 111)]
            heights.append(sum(not near(colour, (255, 255, 255), 12) for colour in column))
    assert heights == pytest.approx([50 * 10 / 35, 50 * 31 / 35, 50 * 9 / 35], abs=3)


def test_bad_antennas_are_framed_in_red_on_the_contact_sheet(tmp_path):
    def red_pixels(faults, folder):
        path = simulated(folder, records=3, antennas=5, faults=[parse_fault(fault) for fault in faults])
        sheet = drawn(path, folder / "plots").paths[-1]
        with Image.open(sheet) as image:
            pixels = np.asarray(image).reshape(-1, 3).astype(int)
        return int((np.abs(pixels - (200, 16, 46)).max(axis=1) < 40).sum())

    assert red_pixels([], tmp_path / "good") < 1000
    one = red_pixels(["antenna=1:dead"], tmp_path / "one")
    assert one > 4000
    assert red_pixels(["antenna=1:dead", "antenna=2:noisy"], tmp_path / "two") > one + 4000


def test_thresholds_are_the_callers(tmp_path):
    path = simulated(tmp_path, records=3, antennas=5, faults=[parse_fault("antenna=1:dead")])
    pictures = drawn(path, tmp_path / "plots", thresholds=HealthThresholds(dead_below_db=90, drifting_by_db=90))
    assert {each.state for each in pictures.health} == {State.GOOD}


def test_the_same_file_gives_the_same_bytes_whoever_draws_it(tmp_path):
    path = iq_file(tmp_path, (25,) * 230, indices=(0, 3, 17))
    drawn(path, tmp_path / "one", processes=1)
    drawn(path, tmp_path / "three", processes=3)
    first = everything_in(tmp_path / "one")
    assert first == everything_in(tmp_path / "three") and len(first) == 7
    drawn(path, tmp_path / "one", processes=2, max_memory_bytes=1)
    assert everything_in(tmp_path / "one") == first


def test_workers_are_bounded_by_memory(tmp_path):
    seen = set()
    not_workers = set(children(os.getpid()))  # such as the sshds of other tests of this process

    def watch(done, total):
        seen.add(len(set(children(os.getpid())) - not_workers))

    path = iq_file(tmp_path, indices=(0,))
    drawn(path, tmp_path / "plots", processes=40, progress=watch)
    assert seen == {(MAX_MEMORY_BYTES - 80_000_000) // 80_000_000}
    seen.clear()
    drawn(path, tmp_path / "plots", processes=40, max_memory_bytes=200_000_000, progress=watch)
    assert seen == {1}


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def break_last_record(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        record = file[max(name for name in file if name != "metadata")]
        del record["antennas_iq_data"]


def remove_records(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in [name for name in file if name != "metadata"]:
            del file[name]


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (cut, "truncated", NAME),
        (break_last_record, "damaged record", "record 20261101-1400-03.000000, field antennas_iq_data"),
        (remove_records, "no records", NAME),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_left(tmp_path, damage, kind, said):
    path = iq_file(tmp_path)
    damage(path)
    with pytest.raises(BadFile, match=said) as refused:
        drawn(path, tmp_path / "plots")
    assert refused.value.kind == kind
    assert everything_in(tmp_path / "plots") == {}


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(BadFile) as refused:
        plot(tmp_path / "x", names.parse("20261101.1400.00.sas.0.rawacf.h5"), tmp_path, processes=1)
    assert refused.value.kind == "not antennas_iq"


def test_a_folder_that_is_not_there_condemns_nothing(tmp_path):
    steps = []
    with pytest.raises(TryLater):
        plot(iq_file(tmp_path), names.parse(NAME), tmp_path / "missing", processes=1, progress=lambda *step: steps.append(step))
    assert steps == []


def test_a_disk_that_takes_no_more_condemns_nothing_and_keeps_the_earlier_pictures(tmp_path):
    path = iq_file(tmp_path, (30,) * 30)
    drawn(path, tmp_path / "plots")
    before = everything_in(tmp_path / "plots")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(TryLater, match="cannot be written"):
            drawn(path, tmp_path / "plots")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything_in(tmp_path / "plots") == before


def test_killed_half_way_nothing_has_a_final_name_and_the_next_run_is_whole(tmp_path):
    path = iq_file(tmp_path, indices=(0, 3, 17))
    folder = tmp_path / "plots"
    folder.mkdir()
    stay = (
        "import time\ndef progress(done, total):\n    if done == total - 1:\n        print(flush=True)\n        time.sleep(60)\n"
    )
    call = f"plot(Path({str(path)!r}), names.parse({NAME!r}), Path({str(folder)!r}), processes=2, progress=progress)\n"
    program = (
        f"from pathlib import Path\nfrom dataflow.lib import names\nfrom dataflow.lib.plots.antennas_iq import plot\n{stay}{call}"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    wait_for_end_of(workers)
    left = set(everything_in(folder))
    assert left and all(name.startswith(".") and name.endswith(".part") for name in left)
    (folder / ".20261101.1600.00.sas.0.antennas_iq.antenna_0_0_70.jpg.part").write_bytes(b"of another file")
    (folder / ".20261101.1400.00.sas.0.antennas_iq.antenna_9_0_70.jpg.part").write_bytes(b"of this file, once")
    pictures = drawn(path, folder)
    drawn(path, tmp_path / "undisturbed")
    assert everything_in(folder).pop(".20261101.1600.00.sas.0.antennas_iq.antenna_0_0_70.jpg.part")
    assert {n: c for n, c in everything_in(folder).items() if not n.startswith(".")} == everything_in(tmp_path / "undisturbed")
    assert len(everything_in(folder)) == len(pictures.paths) + 1


def wait_for_end_of(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.01)


def test_times_on_the_axis_are_utc_and_stand_at_their_sequences(tmp_path):
    found = samples.survey(iq_file(tmp_path, (30,) * 100))
    assert [(time, sequence) for _, time, sequence in axes.ticks(found, 9)] == [
        ("14:00", 0), ("14:01", 600), ("14:02", 1200), ("14:03", 1800), ("14:04", 2400)
    ]  # fmt: skip
    assert all(share == pytest.approx(sequence / 3000, abs=1e-3) for share, _, sequence in axes.ticks(found, 9))
    assert axes.pauses(found) == []
    assert axes.span_text(found).startswith(f"{START:%Y-%m-%d %H:%M:%S} to 14:04:59 UTC")


def test_a_pause_is_marked_and_has_no_times(tmp_path):
    path = iq_file(tmp_path, (30,) * 100, pause_before=(60, 3600))
    found = samples.survey(path)
    assert axes.pauses(found) == [1800]
    times = [time for _, time, _ in axes.ticks(found, 50)]
    assert times[0] == "14:00" and times[-1] == "15:04" and not [time for time in times if "14:03" < time < "15:03"]
    pictures = drawn(path, tmp_path / "plots")
    assert near(pixel(full(pictures, 3), 0.6, 35, FULL), (255, 255, 255))


@pytest.mark.parametrize(("counts", "pause_s"), [((30,) * 4, 3e8), ((1,), 0), ((1, 1), 0.3)])
def test_there_is_always_a_time_on_the_axis(tmp_path, counts, pause_s):
    found = samples.survey(iq_file(tmp_path, counts, pause_before=(len(counts) // 2, pause_s)))
    times = axes.ticks(found, 9)
    assert 1 <= len(times) <= 20 and times[0][1] == "14:00:00"
