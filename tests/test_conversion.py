"""Conversion of rawacf to DMAP: equal to pyDARNio's in every byte, read back, and nothing left behind where it fails."""

from __future__ import annotations

import bz2
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pydarnio
import pytest
from rawacf_files import FROM_THE_RADAR, before_v1, reference, simulated

from dataflow.lib import borealis, conversion, dmap, names
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Name

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / ".part"


def name_of(path: Path) -> Name:
    name = names.parse(path.name)
    assert name is not None
    return name


def kind_of(source: Path, part: Path, name: Name | None = None, expected_sha256: str | None = None) -> str:
    with pytest.raises(BadFile) as caught:
        conversion.convert(source, part, name or name_of(source), expected_sha256=expected_sha256)
    assert not part.exists()
    return caught.value.kind


def assert_equal_to_pydarnio(source: Path, folder: Path) -> conversion.Conversion:
    """Equal bytes are equal records in every field and type; both are read strictly all the same."""
    ours, theirs = folder / "ours.rawacf.bz2", folder / f"reference.{source.name}.bz2"
    done = conversion.convert(source, ours, name_of(source))
    assert bz2.decompress(ours.read_bytes()) == reference(source, folder)
    records = pydarnio.read_rawacf(str(ours), mode="strict")
    assert len(records) == done.records
    for mine, other in zip(records, pydarnio.read_rawacf(str(theirs), mode="strict"), strict=True):
        assert mine.keys() == other.keys()
        for field, value in mine.items():
            assert type(value) is type(other[field])
            assert getattr(value, "dtype", None) == getattr(other[field], "dtype", None)
            assert np.array_equal(value, other[field])
    return done


@pytest.mark.parametrize(
    ("made", "records"),
    [
        ({}, 4),
        ({"records": 1}, 1),
        ({"slice_id": 1, "interferometer": False}, 4),
        ({"slice_id": 25}, 4),
        ({"records": 2, "beams": 16}, 32),
        ({"cpid_of_record": {2: -3530}}, 4),
    ],
)
def test_v1_files_become_what_pydarnio_makes_of_them(tmp_path: Path, made: dict[str, object], records: int) -> None:
    source = simulated(tmp_path, **made)
    done = assert_equal_to_pydarnio(source, tmp_path)
    assert done.records == records
    assert done.cpids == ((-3530, 151) if "cpid_of_record" in made else (151,))
    assert done.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_the_number_of_sequences_may_change(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        for number, record in enumerate(borealis_records(file)):
            times = file[record]["sqn_timestamps"][()]
            del file[record]["sqn_timestamps"], file[record]["num_sequences"]
            file[record]["sqn_timestamps"] = times[: 3 + number]
            file[record]["num_sequences"] = 3 + number
    assert assert_equal_to_pydarnio(source, tmp_path).records == 4


def borealis_records(file: h5py.File) -> list[str]:
    return sorted(key for key in file if key != borealis.METADATA)


@pytest.mark.parametrize("version", ["v0.4", "v0.5", "v0.6", "v0.7"])
@pytest.mark.parametrize("array", [False, True])
def test_files_from_before_v1_become_what_pydarnio_makes_of_them(tmp_path: Path, version: str, array: bool) -> None:
    assert assert_equal_to_pydarnio(before_v1(tmp_path, version, array=array), tmp_path).records == 8


@pytest.mark.skipif(not FROM_THE_RADAR.is_dir(), reason="the files written by the radar are not on this machine")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_radars_own_files_become_what_pydarnio_makes_of_them(tmp_path: Path, number: int) -> None:
    source = Path(shutil.copy(sorted(FROM_THE_RADAR.glob("*.rawacf.h5"))[number], tmp_path))
    assert assert_equal_to_pydarnio(source, tmp_path).records == (24, 12, 64)[number]


def test_the_language_of_the_process_does_not_matter(source: Path, part: Path, tmp_path: Path) -> None:
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], capture_output=True)
    if made.returncode != 0:
        pytest.skip("no German locale can be made on this machine (package locales)")
    code = (
        "import locale, sys, time; from pathlib import Path; from dataflow.lib import conversion, names\n"
        "locale.setlocale(locale.LC_ALL, 'de_DE.UTF-8'); assert time.strftime('%B', (2026, 5, 1) + (0,) * 6) == 'Mai'\n"
        "source, part = map(Path, sys.argv[1:]); conversion.convert(source, part, names.parse(source.name))"
    )
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code, str(source), str(part)], env=environment, check=True, timeout=60)
    assert bz2.decompress(part.read_bytes()) == reference(source, tmp_path)


def test_converting_twice_gives_the_same_file(source: Path, part: Path) -> None:
    first = conversion.convert(source, part, name_of(source), processes=1)
    assert conversion.convert(source, part, name_of(source), processes=2) == first


def test_without_lbzip2_the_content_is_the_same(
    source: Path, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shutil.which("lbzip2"), "install lbzip2: this compares with it"
    with_lbzip2 = conversion.convert(source, part, name_of(source))
    monkeypatch.setenv("PATH", str(tmp_path))
    without = conversion.convert(source, part, name_of(source))
    assert (without.content_sha256, without.records) == (with_lbzip2.content_sha256, with_lbzip2.records)


def test_the_file_may_lie_under_another_name(source: Path, part: Path, tmp_path: Path) -> None:
    name = name_of(source)
    expected = reference(source, tmp_path)
    conversion.convert(source.rename(tmp_path / ".hidden"), part, name)
    assert bz2.decompress(part.read_bytes()) == expected


def test_progress_is_told_by_averaging_period(tmp_path: Path, part: Path) -> None:
    told: list[tuple[int, int]] = []
    source = simulated(tmp_path, records=3, beams=16)
    conversion.convert(source, part, name_of(source), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_names_that_the_records_contradict(source: Path, part: Path) -> None:
    def kind(text: str) -> str:
        name = names.parse(text)
        assert name is not None
        return kind_of(source, part, name)

    assert kind("20261101.1400.00.sas.26.rawacf.h5") == "slice beyond 25"
    assert kind("20261101.1400.00.sas.0.antennas_iq.h5") == "not a rawacf"
    assert kind("20261101.1400.00.pgr.0.rawacf.h5") == "wrong station"
    assert kind("20261101.1400.00.sas.1.rawacf.h5") == "wrong slice"
    assert kind("20261101.1600.00.sas.0.rawacf.h5") == "wrong time"
    assert kind("20261101.1200.00.sas.0.rawacf.h5") == "wrong time"


def test_a_hash_that_was_announced(source: Path, part: Path) -> None:
    right = hashlib.sha256(source.read_bytes()).hexdigest()
    assert conversion.convert(source, part, name_of(source), expected_sha256=right).source_sha256 == right
    assert kind_of(source, part, expected_sha256="0" * 64) == "hash mismatch"


def test_damage_on_the_way_is_called_that_whatever_else_it_breaks(source: Path, part: Path) -> None:
    announced = hashlib.sha256(source.read_bytes()).hexdigest()
    content = source.read_bytes()
    choose = random.Random(4)
    for _ in range(15):
        turned = bytearray(content)
        turned[choose.randrange(len(turned))] ^= 1 << choose.randrange(8)
        source.write_bytes(turned)
        assert kind_of(source, part, expected_sha256=announced) == "hash mismatch"


def test_turned_bits_without_a_hash_are_refused_or_harmless_but_never_a_bug(source: Path, part: Path) -> None:
    content = source.read_bytes()
    choose = random.Random(5)
    kinds = set()
    for _ in range(60):
        turned = bytearray(content)
        start = choose.randrange(len(turned) - 64)
        turned[start : start + 64] = choose.randbytes(64)
        source.write_bytes(turned)
        try:
            conversion.convert(source, part, name_of(source))
        except BadFile as error:
            kinds.add(error.kind)
    assert "damaged record" in kinds


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(source: Path, part: Path, kept: float) -> None:
    os.truncate(source, int(source.stat().st_size * kept))
    assert kind_of(source, part) == "truncated"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("main_acfs", lambda old: np.concatenate([old, old])),
        ("main_acfs", lambda old: old[:, :, :5]),
        ("main_acfs", lambda old: old[:, :0]),
        ("xcfs", lambda old: old[:, :7]),
        ("beam_nums", lambda old: old[:0]),
        ("beam_azms", lambda old: np.zeros(3)),
        ("sqn_timestamps", lambda old: old[:0]),
        ("sqn_timestamps", lambda old: old * np.nan),
        ("sqn_timestamps", lambda old: old * 1e9),
    ],
)
def test_fields_that_do_not_fit_one_another_are_named(
    source: Path, part: Path, field: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Of a record with more beams in its correlations than in its list, pyDARNio makes fewer records, and says nothing."""
    with h5py.File(source, "r+") as file:
        record = borealis_records(file)[2]
        old = file[record][field][()]
        del file[record][field]
        file[record][field] = change(old)
    with pytest.raises(BadFile, match=f"record {record}, field {field}: "):
        conversion.convert(source, part, name_of(source))
    assert not part.exists()


def test_a_record_without_a_field_is_named_and_the_part_removed(source: Path, part: Path) -> None:
    with h5py.File(source, "r+") as file:
        record = borealis_records(file)[3]
        del file[record]["beam_azms"]
    with pytest.raises(BadFile, match=f"record {record}, field beam_azms"):
        conversion.convert(source, part, name_of(source))
    assert not part.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("station", np.bytes_("zzz")), ("borealis_git_hash", np.bytes_("deadbee")), ("data_normalization_factor", 0)],
)
def test_a_value_without_meaning_in_dmap(source: Path, part: Path, field: str, value: object) -> None:
    with h5py.File(source, "r+") as file:
        for group in file.values():
            del group[field]
            group[field] = value
    if field == "data_normalization_factor":
        with pytest.warns(RuntimeWarning, match="divide by zero|invalid value"):
            conversion.convert(source, part, name_of(source))
    else:
        assert kind_of(source, part) in {"damaged record", "wrong station"}


def test_a_text_that_dmap_cannot_hold(source: Path, part: Path) -> None:
    """A zero byte ends a DMAP text, so the record would be read back as another one."""
    with h5py.File(source, "r+") as file:
        for group in file.values():
            del group["experiment_comment"]
            group["experiment_comment"] = np.bytes_(b"before\0behind")
    assert kind_of(source, part) == "unreadable as DMAP"


def test_damage_before_v1(tmp_path: Path, part: Path) -> None:
    site = before_v1(tmp_path, "v0.6", array=False)
    with h5py.File(site, "r+") as file:
        del file[sorted(file)[2]]["pulses"]
    assert kind_of(site, part) == "damaged record"


@pytest.mark.parametrize("array", [False, True])
def test_a_name_that_a_file_from_before_v1_contradicts(tmp_path: Path, part: Path, array: bool) -> None:
    source = before_v1(tmp_path, "v0.6", array=array)
    name = names.parse(source.name.replace("sas", "pgr"))
    assert kind_of(source, part, name) == "wrong station"


class TestEnvironment:
    """What the machine lacks never condemns a file, and never leaves a part."""

    @staticmethod
    def later(source: Path, part: Path, name: Name | None = None) -> str:
        with pytest.raises(TryLater) as caught:
            conversion.convert(source, part, name or name_of(source))
        assert not part.exists()
        assert not part.is_symlink()
        return str(caught.value)

    def test_the_disk_is_full(self, source: Path, part: Path) -> None:
        part.symlink_to("/dev/full")
        assert "No space left" in self.later(source, part)
        assert Path("/dev/full").exists()

    def test_the_source_is_gone(self, source: Path, part: Path) -> None:
        self.later(source.with_name("gone"), part, name_of(source))

    def test_the_source_cannot_be_read(self, source: Path, part: Path) -> None:
        assert "Input/output error" in self.later(Path("/proc/self/mem"), part, name_of(source))

    def test_the_folder_of_the_part_is_gone(self, source: Path, tmp_path: Path) -> None:
        self.later(source, tmp_path / "nowhere" / ".part")

    def test_a_library_is_missing(self, source: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pydarnio.borealis.v1_onwards", None)
        assert "pydarnio" in self.later(source, part)

    @pytest.mark.parametrize("script", ["kill -9 $$", "cat > /dev/null", "cat > /dev/null; echo BZh91AY"])
    def test_the_compressor_fails(
        self, source: Path, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
    ) -> None:
        program = tmp_path / "bin" / "lbzip2"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        self.later(source, part)

    def test_memory_is_short(self, source: Path, part: Path) -> None:
        def out_of_memory(done: int, total: int) -> None:
            raise MemoryError

        with pytest.raises(TryLater, match="memory"):
            conversion.convert(source, part, name_of(source), progress=out_of_memory)
        assert not part.exists()

    def test_the_source_changes_while_it_is_read(self, source: Path, part: Path) -> None:
        def append(done: int, total: int) -> None:
            with source.open("ab") as stream:
                stream.write(b"more")

        with pytest.raises(TryLater, match="changed while it was read"):
            conversion.convert(source, part, name_of(source), progress=append)
        assert not part.exists()


def test_a_part_that_the_disk_gives_back_otherwise(source: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another complete file with the same records but one lies there when it is read back."""
    conversion.convert(source, part, name_of(source))
    records = pydarnio.read_rawacf(bz2.decompress(part.read_bytes()), mode="strict")
    other = bz2.compress(pydarnio.write_rawacf(records[:-1], None))

    def swap(path: Path) -> None:
        path.write_bytes(other)

    monkeypatch.setattr(conversion.checksum, "sync_file", swap)
    with pytest.raises(TryLater, match="other than it was written"):
        conversion.convert(source, part, name_of(source))
    assert not part.exists()


def test_a_conversion_that_is_killed_can_be_done_again(source: Path, part: Path, tmp_path: Path) -> None:
    expected = reference(source, tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from dataflow.lib import conversion, names\n"
        "source, part = map(Path, sys.argv[1:])\n"
        "kill = lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "conversion.convert(source, part, names.parse(source.name), progress=kill)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", code, str(source), str(part)], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".bz2" and "reference" not in path.name] == []
    conversion.convert(source, part, name_of(source))
    assert bz2.decompress(part.read_bytes()) == expected
    assert dmap.inspect(part).records == 4
    assert no_compressor_of(part)


def no_compressor_of(part: Path) -> bool:
    """No process holds the part open, given a moment to die."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        held = [link for link in Path("/proc").glob("[0-9]*/fd/*") if points_to(link, part)]
        if not held:
            return True
        time.sleep(0.05)
    return False


def points_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except OSError:
        return False
