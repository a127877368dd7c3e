"""DMAP files: written as one bzip2 stream, read back strictly, and held against their name.

A file is a sequence of records, each beginning with a code and its own length (two little-endian 32-bit integers, see the
Radar Software Toolkit, rfc 0008 for rawacf). darn-dmap makes and parses the bytes; it never gets a path, because it appends
to a file that exists, and because its reader stops without a word after the first of several bzip2 streams.

A bzip2 file of several streams is what concatenation and ``pbzip2`` leave. Most decompressors accept it, so here every file
must be exactly one stream with nothing behind it. Python's ``bz2`` decides that, since it says where a stream ends.
``lbzip2``, where installed, is quicker on several cores but hides the end of a stream and even ignores what follows it;
so it decompresses the file with a stream of known content behind it. That content comes out at the end only if the file
ended where a stream ended, and the beginning of another stream inside the file is looked for in the compressed bytes.
What lbzip2 does not confirm, ``bz2`` judges.
"""

from __future__ import annotations

import bz2
import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import dmap as darn_dmap

from dataflow.lib import checksum, command
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Name

if TYPE_CHECKING:
    from hashlib import _Hash

RECORDS_PER_ENCODING = 64
RECORD_BYTES_MAX = 1 << 24
"""A record of 1,000 ranges and 60 lags is 1 MB; a length beyond this is damage."""

EARLY = timedelta(seconds=2)
LATE = timedelta(minutes=10)
"""How far the first record may lie before and after the time in the name. Borealis names a file by its first sequence, whole
seconds; but at a two-hour boundary it names the files of all slices, and a slice that takes turns with others may come later."""

BLOCK_100_KB = 5
"""Blocks of 500 kB fit the caches of a core, those of 900 kB (bzip2's default) do not: an eighth less time to compress and to
decompress, here and for every reader after us, for files that are 0.4 % larger."""

BOREALIS_ORIGIN = 100
LBZIP2 = "lbzip2"

_HEADER = struct.Struct("<ii")
_PIPE_BYTES = 1 << 20
_DECODED_BYTES = 1 << 21
_MARKER_BYTES = 32
_LATER_STREAM = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")
"""A stream header followed by its first block or, when empty, by its end; streams begin at whole bytes."""

_LATER_STREAM_BYTES = 10
_STREAM_HEADER = re.compile(rb"B(?:Z(?:h[1-9]?)?)?")
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Written:
    """A DMAP file as it was handed to the disk; ``content_sha256`` is of the decompressed bytes."""

    records: int
    size_bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    """A DMAP file as it was read from the disk.

    ``cpids`` are those of all records, distinct and sorted. ``channel`` and ``is_borealis`` are those of the first record,
    ``first_time`` and ``last_time`` (UTC) of the first and last in the file.
    """

    records: int
    cpids: tuple[int, ...]
    station_id: int
    channel: int
    is_borealis: bool
    first_time: datetime
    last_time: datetime
    sha256: str
    content_sha256: str
    size_bytes: int


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def write(lists: Iterator[list[dict[str, Any]]], part: Path, *, processes: int | None = None) -> Written:
    """Write records to ``part`` as one bzip2 stream and sync it.

    An older part is replaced; one that failed is the caller's to remove. Records are drawn and encoded while those before
    them are compressed: by lbzip2 in ``processes`` threads (all usable cores unless given) or, where it is not installed, by
    the standard library in one.

    Raises:
        BadFile: a record has no DMAP form.
        TryLater: the compressor was killed.
        OSError: the system would not let it be written.
    """
    content = hashlib.sha256()
    records = 0
    with part.open("wb", buffering=0) as sink:
        with _compressor(sink, processes or usable_cores()) as (feed, packed):
            for batch in _batches(lists, RECORDS_PER_ENCODING):
                encoded = _encoded(batch)
                content.update(encoded)
                feed.write(encoded)
                records += len(batch)
        size_bytes, sha256 = packed.result()
        os.fsync(sink.fileno())
    return Written(records, size_bytes, sha256, content.hexdigest())


def inspect(path: Path, *, processes: int | None = None) -> Report:
    """Read a compressed rawacf DMAP file once: hash it, decompress it and parse every record strictly, in little memory.

    The caller syncs and drops the file from the page cache first if the bytes on the disk are meant (``checksum.sync_file``).

    Raises:
        BadFile: ``not bzip2``, ``truncated``, ``several bzip2 streams``, ``trailing bytes``, ``damaged bzip2``,
            ``damaged record``, ``several stations``, ``no records``.
        OSError: the system would not let it be read.
    """
    if program := shutil.which(LBZIP2):
        digest = hashlib.sha256()
        try:
            return _report(path, _decoded_by(program, path, digest, processes or usable_cores()), digest)
        except (_Unconfirmed, BadFile):
            pass
    digest = hashlib.sha256()
    return _report(path, _decoded(path, digest), digest)


def content_sha256(path: Path) -> str:
    """SHA-256 of the decompressed bytes, whatever they mean.

    Raises:
        BadFile: they are not one bzip2 stream, as ``inspect``.
    """
    content = hashlib.sha256()
    for piece in _decoded(path, hashlib.sha256()):
        content.update(piece)
    return content.hexdigest()


def check_name(report: Report, name: Name) -> None:
    """Refuse a file whose records contradict its name: the radar, the time of the first record, the channel.

    A radar whose station number pyDARNio does not know is not checked. The letter of a channel is checked where Borealis
    made the records: it counts slices from 0; others number their channels in ways of their own.

    Raises:
        BadFile: ``wrong station``, ``wrong time``, ``wrong channel``.
    """
    from pydarnio.borealis.borealis_utilities import code_to_stid

    expected = code_to_stid.get(name.radar or "")
    if expected is not None and report.station_id != expected:
        raise BadFile(
            "wrong station", f"{name.text} holds records of station {report.station_id}, but {name.radar} is station {expected}"
        )
    check_time(name, report.first_time)
    if name.channel is not None and report.is_borealis and report.channel != ord(name.channel) - ord("a"):
        raise BadFile(
            "wrong channel", f"{name.text} holds records of channel {report.channel}, which is not channel {name.channel}"
        )


def check_time(name: Name, first_time: datetime) -> None:
    """Refuse a file whose first record lies more than ``EARLY`` before or ``LATE`` after the time in its name.

    Raises:
        BadFile: ``wrong time``.
    """
    if not -EARLY <= first_time - name.time <= LATE:
        raise BadFile("wrong time", f"{name.text} begins with a record of {first_time:%Y-%m-%d %H:%M:%S} UTC")


def _batches(lists: Iterator[list[dict[str, Any]]], at_least: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for records in lists:
        batch += records
        if len(batch) >= at_least:
            yield batch
            batch = []
    if batch:
        yield batch


def _encoded(batch: list[dict[str, Any]]) -> bytes:
    try:
        encoded = darn_dmap.write_rawacf(batch, None)
    except (ValueError, TypeError, OverflowError) as error:
        if len(batch) > 1:
            return b"".join(_encoded([record]) for record in batch)
        when = ":".join(str(batch[0].get(f"time.{part}")) for part in ("yr", "mo", "dy", "hr", "mt", "sc"))
        raise BadFile("damaged record", f"the record of {when} has no DMAP form: {str(error)[:_MESSAGE_CHARACTERS]}") from error
    assert encoded is not None
    return encoded


@contextmanager
def _compressor(sink: IO[bytes], processes: int) -> Iterator[tuple[IO[bytes], Future[tuple[int, str]]]]:
    """Where to write the bytes to compress, and the size and SHA-256 of what arrives in ``sink``, ready at the end."""
    process, packer, feed, drain = _start_compressor(processes)
    interrupted = False
    with ThreadPoolExecutor(1) as pool:
        packed = pool.submit(_pack, drain, packer, sink)
        try:
            with feed:
                yield feed, packed
        except BrokenPipeError:
            interrupted = True
        finally:
            complaint = _finish(process) if process is not None else ""
    packed.result()
    if complaint or interrupted:
        raise TryLater(f"compressing failed ({complaint or 'the pipe broke'}); nothing was kept, it will be done anew")


def _start_compressor(
    processes: int,
) -> tuple[subprocess.Popen[bytes] | None, bz2.BZ2Compressor | None, IO[bytes], IO[bytes]]:
    """lbzip2, or else a pipe at whose other end ``_pack`` compresses: the process, the compressor, where to write and read."""
    program = shutil.which(LBZIP2)
    if program is None:
        drain, feed = os.pipe()
        return None, bz2.BZ2Compressor(BLOCK_100_KB), os.fdopen(feed, "wb"), os.fdopen(drain, "rb")
    process = _start([program, f"-{BLOCK_100_KB}", "-n", str(processes)])
    assert process.stdin is not None and process.stdout is not None
    return process, None, process.stdin, process.stdout


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    process = command.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for pipe in (process.stdin, process.stdout):
        _widen(pipe)
    return process


def _widen(pipe: IO[bytes] | None) -> None:
    """Fewer and larger pieces; an unprivileged user may be refused when he has many pipes, and small pieces do as well."""
    assert pipe is not None
    try:
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except PermissionError:
        pass


def _pack(drain: IO[bytes], packer: bz2.BZ2Compressor | None, sink: IO[bytes]) -> tuple[int, str]:
    """Carry the compressed bytes to the sink. Closing ``drain`` when the sink fails is what stops those who write to it."""
    digest = hashlib.sha256()
    size_bytes = 0
    with drain:
        pieces = (packer.compress(chunk) if packer else chunk for chunk in checksum.chunks(drain.fileno()))
        for piece in pieces:
            digest.update(piece)
            size_bytes += _write_all(sink, piece)
    if packer:
        piece = packer.flush()
        digest.update(piece)
        size_bytes += _write_all(sink, piece)
    return size_bytes, digest.hexdigest()


def _write_all(sink: IO[bytes], piece: bytes | memoryview) -> int:
    view = memoryview(piece)
    written = 0
    while written < len(view):
        written += sink.write(view[written:])
    return written


def _finish(process: subprocess.Popen[bytes]) -> str:
    """Wait for a compressor whose input is closed; what went wrong with it, or nothing."""
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read().decode("utf-8", "replace").strip()
    code = process.wait()
    return f"{LBZIP2} ended with {code}: {said[:_MESSAGE_CHARACTERS]}" if code else ""


def _report(path: Path, decoded: Generator[bytes, None, None], digest: _Hash) -> Report:
    """Parse what is decoded from ``path``; ``digest`` is that of the compressed bytes, complete when all are decoded."""
    content = hashlib.sha256()
    cpids: set[int] = set()
    stations: set[int] = set()
    ends: list[dict[str, Any]] = []
    count = 0
    with closing(decoded), closing(_whole_records(path, decoded)) as batches:
        for batch, expected in batches:
            content.update(batch)
            records = _parsed(path, batch, expected, count)
            cpids.update(record["cp"] for record in records)
            stations.update(record["stid"] for record in records)
            ends = [(ends or records)[0], records[-1]]
            count += expected
    if not ends:
        raise BadFile("no records", f"{path} decompresses to nothing: it holds no records")
    if len(stations) > 1:
        raise BadFile("several stations", f"{path} holds records of the stations {sorted(stations)}: files were mixed")
    first_time, last_time = (_time(path, record) for record in ends)
    return Report(
        records=count,
        cpids=tuple(sorted(cpids)),
        station_id=stations.pop(),
        channel=ends[0]["channel"],
        is_borealis=ends[0]["origin.code"] == BOREALIS_ORIGIN,
        first_time=first_time,
        last_time=last_time,
        sha256=digest.hexdigest(),
        content_sha256=content.hexdigest(),
        size_bytes=path.stat().st_size,
    )


def _whole_records(path: Path, decoded: Iterator[bytes]) -> Generator[tuple[bytes, int], None, None]:
    """Cut the decoded bytes between records: as many whole records as are there, and how many those are."""
    pending = bytearray()
    done = 0
    for chunk in decoded:
        pending += chunk
        end, count = _whole(path, pending, done)
        if count:
            yield bytes(memoryview(pending)[:end]), count
            del pending[:end]
            done += count
    if pending:
        raise BadFile("truncated", f"{path} ends within record {done + 1}: {len(pending)} bytes of it are there")


def _whole(path: Path, pending: bytearray, done: int) -> tuple[int, int]:
    """Where the last whole record ends, and how many there are, by the length that each record begins with."""
    end = count = 0
    while len(pending) - end >= _HEADER.size:
        size_bytes = _HEADER.unpack_from(pending, end)[1]
        if not _HEADER.size < size_bytes <= RECORD_BYTES_MAX:
            raise BadFile("damaged record", f"{path}: record {done + count + 1} claims to be {size_bytes} bytes long")
        if len(pending) - end < size_bytes:
            break
        end += size_bytes
        count += 1
    return end, count


def _parsed(path: Path, batch: bytes, expected: int, done: int) -> list[dict[str, Any]]:
    records = _strictly(batch)
    if isinstance(records, list) and len(records) == expected:
        return records
    start = 0
    for number in range(done + 1, done + expected + 1):
        size_bytes = _HEADER.unpack_from(batch, start)[1]
        alone = _strictly(batch[start : start + size_bytes])
        if isinstance(alone, str):
            raise BadFile("damaged record", f"{path}: record {number}: {alone}")
        start += size_bytes
    raise BadFile("damaged record", f"{path}: records {done + 1} to {done + expected} are not what their lengths say: {records}")


def _strictly(encoded: bytes) -> list[dict[str, Any]] | str:
    """The records in the bytes, or what darn-dmap has against them: it raises, or panics, which is no ``Exception``."""
    try:
        records = darn_dmap.read_rawacf(encoded, mode="strict")
    except BaseException as error:
        if not isinstance(error, ValueError | OSError) and type(error).__name__ != "PanicException":
            raise
        return " ".join(str(error).split())[:_MESSAGE_CHARACTERS]
    assert isinstance(records, list)
    return records


def _time(path: Path, record: dict[str, Any]) -> datetime:
    year, month, day, hour, minute, second, us = (record[f"time.{part}"] for part in ("yr", "mo", "dy", "hr", "mt", "sc", "us"))
    try:
        return datetime(year, month, day, hour, minute, second, us, tzinfo=UTC)
    except ValueError as error:
        raise BadFile(
            "damaged record", f"{path}: a record is of {year}-{month}-{day} {hour}:{minute}:{second}, which is no time"
        ) from error


class _Unconfirmed(Exception):
    """lbzip2 did not confirm that a file is one whole stream; ``bz2`` has to say why."""


def _decoded_by(program: str, path: Path, digest: _Hash, processes: int) -> Generator[bytes, None, None]:
    """The bytes that lbzip2 makes of a file with a marker behind it, less the marker."""
    marker = os.urandom(_MARKER_BYTES)
    process = _start([program, "-d", "-n", str(processes)])
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with ThreadPoolExecutor(1) as pool, process.stdout as drain, process.stderr:
        feeding = pool.submit(_feed, path, digest, process.stdin, bz2.compress(marker))
        try:
            tail = b""
            for chunk in checksum.chunks(drain.fileno()):
                tail += chunk
                yield tail[:-_MARKER_BYTES]
                tail = tail[-_MARKER_BYTES:]
            one_stream = feeding.result()
            if process.wait() or not one_stream or tail != marker:
                raise _Unconfirmed
        finally:
            if process.poll() is None:
                command.end_group(process)


def _feed(path: Path, digest: _Hash, sink: IO[bytes], marker: bytes) -> bool:
    """Give a file and the marker to lbzip2; false if another stream may begin within the file or lbzip2 stopped reading."""
    one_stream = True
    before = b""
    try:
        with sink, path.open("rb", buffering=0) as stream:
            for chunk in checksum.chunks(stream.fileno()):
                digest.update(chunk)
                sink.write(chunk)
                window = before + chunk
                one_stream = one_stream and _LATER_STREAM.search(window, 0 if before else 1) is None
                before = window[1 - _LATER_STREAM_BYTES :]
            sink.write(marker)
    except BrokenPipeError:
        return False
    return one_stream


def _decoded(path: Path, digest: _Hash) -> Generator[bytes, None, None]:
    """The verdict that counts: one bzip2 stream from the first byte to the last, or ``BadFile`` with what is wrong."""
    decompressor = bz2.BZ2Decompressor()
    empty = True
    with path.open("rb", buffering=0) as stream:
        for chunk in checksum.chunks(stream.fileno()):
            digest.update(chunk)
            if empty and not _STREAM_HEADER.fullmatch(chunk[:4]):
                raise BadFile("not bzip2", f"{path} does not begin as a bzip2 file does")
            empty = False
            yield from _inflated(path, decompressor, chunk)
            if decompressor.eof:
                _refuse_more(path, decompressor.unused_data[:_LATER_STREAM_BYTES] + (stream.read(_LATER_STREAM_BYTES) or b""))
                return
    raise BadFile("truncated", f"{path} is empty" if empty else f"{path} ends within its bzip2 stream")


def _inflated(path: Path, decompressor: bz2.BZ2Decompressor, packed: bytes | memoryview) -> Iterator[bytes]:
    """What comes out of a piece, in bounded pieces: a few bytes of bzip2 may hold gigabytes."""
    try:
        yield decompressor.decompress(packed, _DECODED_BYTES)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", _DECODED_BYTES)
    except OSError as error:
        raise BadFile("damaged bzip2", f"{path}: its bzip2 stream is damaged: {error}") from error


def _refuse_more(path: Path, behind: bytes) -> None:
    if _LATER_STREAM.match(behind):
        raise BadFile(
            "several bzip2 streams",
            f"{path} consists of several bzip2 streams, and DMAP readers see only the first: it has to be compressed anew",
        )
    if behind:
        raise BadFile("trailing bytes", f"{path} goes on behind the end of its bzip2 stream")
