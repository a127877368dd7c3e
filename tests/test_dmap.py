"""DMAP files: one bzip2 stream, strictly parsed, held against their name; with lbzip2 and without."""

from __future__ import annotations

import bz2
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dmap as darn_dmap
import numpy as np
import pydarnio
import pytest
from rawacf_files import FROM_THE_RADAR, reference, simulated

from dataflow.lib import checksum, dmap, names
from dataflow.lib.errors import BadFile, TryLater

EMPTY_STREAM = bz2.compress(b"")
NAME = names.parse("20261101.1400.00.sas.a.rawacf.bz2")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("content")
    return reference(simulated(folder, records=6), folder)


@pytest.fixture(params=["lbzip2", "bz2"])
def compressor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compress and decompress; without lbzip2 the PATH has everything but that."""
    if request.param == "bz2":
        without_lbzip2(tmp_path, monkeypatch)
    else:
        assert shutil.which("lbzip2"), "install lbzip2: half of these tests are about it"
    return str(request.param)


@pytest.fixture(scope="module")
def bzcat() -> str:
    """Found before a test takes programs out of the PATH."""
    found = shutil.which("bzcat")
    assert found, "install bzip2: the readers of other institutions use it"
    return found


def without_lbzip2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    monkeypatch.setenv("PATH", str(folder / "bin"))


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Another program under the name lbzip2."""
    program = folder / "bin" / "lbzip2"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def records_of(content: bytes) -> list[dict[str, Any]]:
    return darn_dmap.read_rawacf(content, mode="strict")


def one_by_one(content: bytes) -> Iterator[list[dict[str, Any]]]:
    return ([record] for record in records_of(content))


def changed(content: bytes, number: int, **fields: Any) -> bytes:
    records = records_of(content)
    records[number] |= {key.replace("__", "."): value for key, value in fields.items()}
    return darn_dmap.write_rawacf(records, None)


def file_of(folder: Path, packed: bytes) -> Path:
    path = folder / "file.rawacf.bz2"
    path.write_bytes(packed)
    return path


def kind_of(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        dmap.inspect(path)
    return caught.value.kind


@pytest.mark.usefixtures("compressor")
def test_what_is_written_is_one_stream_with_all_records(content: bytes, tmp_path: Path) -> None:
    part = tmp_path / ".part"
    written = dmap.write(one_by_one(content), part)
    packed = part.read_bytes()
    decompressor = bz2.BZ2Decompressor()
    assert decompressor.decompress(packed) == content
    assert decompressor.eof
    assert decompressor.unused_data == b""
    final = part.rename(tmp_path / "final.rawacf.bz2")
    assert len(pydarnio.read_rawacf(str(final), mode="strict")) == 6
    assert written == dmap.Written(6, len(packed), hashlib.sha256(packed).hexdigest(), hashlib.sha256(content).hexdigest())


@pytest.mark.usefixtures("compressor")
def test_a_pipe_from_bzcat_gives_every_record(content: bytes, tmp_path: Path, bzcat: str) -> None:
    """What readers of the Radar Software Toolkit do: they take the length of each record from its head."""
    path = tmp_path / "20261101.1400.00.sas.a.rawacf.bz2"
    dmap.write(one_by_one(content), path)
    lengths = []
    with subprocess.Popen([bzcat, path], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        while head := unpacking.stdout.read(8):
            lengths.append(int.from_bytes(head[4:], "little"))
            assert len(unpacking.stdout.read(lengths[-1] - 8)) == lengths[-1] - 8
    assert unpacking.returncode == 0 and len(lengths) == 6 and sum(lengths) == len(content)


@pytest.mark.usefixtures("compressor")
def test_what_is_read_is_what_was_written(content: bytes, tmp_path: Path) -> None:
    part = tmp_path / ".part"
    written = dmap.write(one_by_one(content), part)
    report = dmap.inspect(part)
    assert (report.records, report.sha256, report.content_sha256, report.size_bytes) == (
        written.records,
        written.sha256,
        written.content_sha256,
        written.size_bytes,
    )
    assert (report.cpids, report.station_id, report.channel, report.is_borealis) == ((151,), 5, 0, True)
    assert report.first_time == datetime(2026, 11, 1, 14, tzinfo=UTC)
    assert report.last_time > report.first_time
    assert dmap.content_sha256(part) == written.content_sha256


def test_the_number_of_processes_changes_no_byte(content: bytes, tmp_path: Path) -> None:
    many = content * 60
    one = dmap.write(one_by_one(many), tmp_path / "one", processes=1)
    assert dmap.write(one_by_one(many), tmp_path / "two", processes=3) == one
    assert dmap.inspect(tmp_path / "two", processes=1) == dmap.inspect(tmp_path / "one", processes=3)


def test_an_older_part_is_replaced_and_never_appended_to(content: bytes, tmp_path: Path) -> None:
    part = tmp_path / ".part"
    part.write_bytes(b"left over" * 100_000)
    dmap.write(one_by_one(content), part)
    assert dmap.inspect(part).records == 6


@pytest.mark.usefixtures("compressor")
def test_the_cpid_of_every_record_counts(content: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, bz2.compress(changed(content, 4, cp=-3530)))
    assert dmap.inspect(path).cpids == (-3530, 151)


@pytest.mark.usefixtures("compressor")
@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (lambda content: bz2.compress(content) + bz2.compress(content), "several bzip2 streams"),
        (lambda content: bz2.compress(content) + bz2.compress(content)[:200], "several bzip2 streams"),
        (lambda content: bz2.compress(content[:50_000]) + bz2.compress(content[50_000:]), "several bzip2 streams"),
        (lambda content: bz2.compress(content) + EMPTY_STREAM, "several bzip2 streams"),
        (lambda content: EMPTY_STREAM + bz2.compress(content), "several bzip2 streams"),
        (lambda content: EMPTY_STREAM + EMPTY_STREAM, "several bzip2 streams"),
        (lambda content: bz2.compress(content) + b"\0", "trailing bytes"),
        (lambda content: bz2.compress(content) + b"\0" * 5000, "trailing bytes"),
        (lambda content: bz2.compress(content) + b"BZ", "trailing bytes"),
        (lambda content: bz2.compress(content) + b"BZh9", "trailing bytes"),
        (lambda content: bz2.compress(content) + b"garbage", "trailing bytes"),
        (lambda content: bz2.compress(content) + bz2.compress(content)[-3000:], "trailing bytes"),
        (lambda content: bz2.compress(content) + b"x" + bz2.compress(content), "trailing bytes"),
        (lambda content: bz2.compress(content) + random.Random(1).randbytes(2_000_000), "trailing bytes"),
        (lambda content: EMPTY_STREAM, "no records"),
        (lambda content: b"", "truncated"),
        (lambda content: content, "not bzip2"),
        (lambda content: b"x" + bz2.compress(content), "not bzip2"),
        (lambda content: b"BZh0" + bz2.compress(content)[4:], "not bzip2"),
        (lambda content: bz2.compress(content[:-1]), "truncated"),
        (lambda content: bz2.compress(content + content[:7]), "truncated"),
        (lambda content: bz2.compress(content + content[:-30_000]), "truncated"),
        (lambda content: bz2.compress(content + b"\0" * 8), "damaged record"),
        (lambda content: bz2.compress(b"\xff" * len(content)), "damaged record"),
        (lambda content: bz2.compress(b"\0" * 1_000_000), "damaged record"),
    ],
)
def test_files_that_are_not_one_whole_stream_of_records(
    content: bytes, tmp_path: Path, pack: Callable[[bytes], bytes], kind: str
) -> None:
    assert kind_of(file_of(tmp_path, pack(content))) == kind


@pytest.mark.usefixtures("compressor")
@pytest.mark.parametrize("part", [0.00001, 0.0001, 0.3, 0.7, 0.999, 0.99999])
def test_a_truncated_stream(content: bytes, tmp_path: Path, part: float) -> None:
    packed = bz2.compress(content * 10)
    assert kind_of(file_of(tmp_path, packed[: max(1, int(len(packed) * part))])) == "truncated"
    assert kind_of(file_of(tmp_path, packed[:-1])) == "truncated"


@pytest.mark.parametrize("chunk_bytes", [1, 3, 9, 10, 11, 1000])
def test_a_second_stream_is_seen_wherever_the_pieces_of_the_file_end(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    records = content[: struct.unpack_from("<i", content, 4)[0]]
    one = bz2.compress(records)
    monkeypatch.setattr(checksum, "CHUNK_BYTES", chunk_bytes)
    assert dmap.inspect(file_of(tmp_path, one)).records == 1
    assert kind_of(file_of(tmp_path, one + one)) == "several bzip2 streams"


@pytest.mark.usefixtures("compressor")
def test_no_turned_bit_passes_unseen(content: bytes, tmp_path: Path) -> None:
    packed = bz2.compress(content)
    expected = dmap.inspect(file_of(tmp_path, packed)).content_sha256
    choose = random.Random(2)
    passed = 0
    for _ in range(40):
        position = choose.randrange(4, len(packed) - 1)
        turned = bytearray(packed)
        turned[position] ^= 1 << choose.randrange(8)
        try:
            report = dmap.inspect(file_of(tmp_path, bytes(turned)))
        except BadFile:
            continue
        assert report.content_sha256 == expected
        passed += 1
    assert passed == 0


@pytest.mark.usefixtures("compressor")
def test_a_damaged_record_is_named(content: bytes, tmp_path: Path) -> None:
    size_bytes = struct.unpack_from("<i", content, 4)[0]
    damaged = bytearray(content)
    struct.pack_into("<i", damaged, 2 * size_bytes + 8, 9999)
    with pytest.raises(BadFile, match="record 3:") as caught:
        dmap.inspect(file_of(tmp_path, bz2.compress(bytes(damaged))))
    assert caught.value.kind == "damaged record"


def test_damage_at_which_darn_dmap_panics(content: bytes, tmp_path: Path) -> None:
    """A record that claims 200 arrays; a panic of the Rust code is no ``Exception``."""
    damaged = bytearray(content)
    size_bytes = struct.unpack_from("<i", content, 4)[0]
    struct.pack_into("<i", damaged, len(damaged) - size_bytes + 12, 200)
    assert kind_of(file_of(tmp_path, bz2.compress(bytes(damaged)))) == "damaged record"


def test_no_damage_within_a_record_is_taken_for_a_fault_of_ours(content: bytes, tmp_path: Path) -> None:
    record = content[: struct.unpack_from("<i", content, 4)[0]]
    choose = random.Random(3)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(record)
        position = choose.randrange(8, 2000)
        damaged[position : position + 4] = choose.choice([b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0" * 4, choose.randbytes(4)])
        try:
            dmap._parsed(tmp_path, bytes(damaged), 1, 0)
        except BadFile:
            refused += 1
    assert refused > 1000


def test_records_of_two_stations_were_mixed(content: bytes, tmp_path: Path) -> None:
    assert kind_of(file_of(tmp_path, bz2.compress(changed(content, 3, stid=6)))) == "several stations"


def test_a_time_that_is_none(content: bytes, tmp_path: Path) -> None:
    assert kind_of(file_of(tmp_path, bz2.compress(changed(content, 0, time__mo=13)))) == "damaged record"


@pytest.mark.usefixtures("compressor")
def test_a_record_that_has_no_dmap_form_is_named(content: bytes, tmp_path: Path) -> None:
    records = records_of(content)
    del records[2]["stid"]
    with pytest.raises(BadFile, match=r"2026:11:1:14:0:\d+ has no DMAP form.*stid"):
        dmap.write(iter([records]), tmp_path / ".part")


@pytest.mark.usefixtures("compressor")
def test_a_full_disk_is_told(content: bytes, tmp_path: Path) -> None:
    full = tmp_path / ".part"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        dmap.write(one_by_one(content * 30), full)


@pytest.mark.usefixtures("compressor")
def test_what_interrupts_the_records_is_passed_on(content: bytes, tmp_path: Path) -> None:
    def broken() -> Iterator[list[dict[str, Any]]]:
        yield records_of(content)
        raise BadFile("damaged record", "the second")

    with pytest.raises(BadFile, match="the second"):
        dmap.write(broken(), tmp_path / ".part")


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 1", "head -c 10; exit 3", "cat > /dev/null; kill -9 $$"])
def test_a_killed_compressor_is_not_the_files_fault(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(TryLater, match="lbzip2"):
        dmap.write(one_by_one(content * 30), tmp_path / ".part")


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 1", "head -c 10; exit 3", "cat > /dev/null", "bzip2 -d; exit 1"])
def test_without_a_word_from_lbzip2_the_standard_library_judges(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    path = file_of(tmp_path, bz2.compress(content * 30))
    expected = dmap.inspect(path)
    stand_in(tmp_path, monkeypatch, script)
    assert dmap.inspect(path) == expected
    assert kind_of(file_of(tmp_path, bz2.compress(content) * 2)) == "several bzip2 streams"


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dmap.inspect(tmp_path / "nowhere")


def test_memory_does_not_grow_with_what_a_stream_unpacks_to(tmp_path: Path) -> None:
    """150 MB in one record's worth of bzip2, and no record."""
    path = file_of(tmp_path, bz2.compress(struct.pack("<ii", 65537, dmap.RECORD_BYTES_MAX) + b"\0" * 150_000_000))
    code = (
        "import sys; from pathlib import Path; from dataflow.lib import dmap, errors\n"
        "try: dmap.inspect(Path(sys.argv[1]))\n"
        "except errors.BadFile: print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=60, check=True)
    assert int(done.stdout) < 150_000


class TestName:
    @pytest.fixture
    def report(self, content: bytes, tmp_path: Path) -> dmap.Report:
        return dmap.inspect(file_of(tmp_path, bz2.compress(content)))

    @staticmethod
    def kind(report: dmap.Report, text: str) -> str:
        name = names.parse(text)
        assert name is not None
        try:
            dmap.check_name(report, name)
        except BadFile as error:
            return error.kind
        return "right"

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("20261101.1400.00.sas.a.rawacf.bz2", "right"),
            ("20261101.1400.00.sas.rawacf.bz2", "right"),
            ("20261101.1400.01.sas.a.rawacf.bz2", "right"),
            ("20261101.1351.00.sas.a.rawacf.bz2", "right"),
            ("20261101.1401.00.sas.a.rawacf.bz2", "wrong time"),
            ("20261101.1340.00.sas.a.rawacf.bz2", "wrong time"),
            ("20261102.1400.00.sas.a.rawacf.bz2", "wrong time"),
            ("20251101.1400.00.sas.a.rawacf.bz2", "wrong time"),
            ("20261101.1400.00.pgr.a.rawacf.bz2", "wrong station"),
            ("20261101.1400.00.sas.b.rawacf.bz2", "wrong channel"),
        ],
    )
    def test_station_time_and_channel(self, report: dmap.Report, text: str, kind: str) -> None:
        assert self.kind(report, text) == kind

    def test_a_radar_that_pydarnio_does_not_know_is_not_checked(self, report: dmap.Report) -> None:
        assert self.kind(report, "20261101.1400.00.qqq.a.rawacf.bz2") == "right"

    def test_only_borealis_counts_channels_from_0(self, report: dmap.Report) -> None:
        assert self.kind(replace(report, is_borealis=False, channel=1), "20261101.1400.00.sas.a.rawacf.bz2") == "right"


@pytest.mark.skipif(not FROM_THE_RADAR.is_dir(), reason="the files written by the radar are not on this machine")
def test_a_real_file() -> None:
    report = dmap.inspect(FROM_THE_RADAR / "real.rawacf.bz2")
    assert (report.records, report.cpids, report.station_id, report.channel) == (2, (-3530,), 66, 0)
    name = names.parse("20210607.1801.00.cly.a.rawacf.bz2")
    assert name is not None
    dmap.check_name(report, name)
    assert np.isclose((report.last_time - report.first_time).total_seconds(), 3.531654)
