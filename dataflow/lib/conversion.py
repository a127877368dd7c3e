"""Converting a rawacf file of the radar to DMAP, and proving that it succeeded.

The records are read, mapped, encoded and compressed at the same time, into a part file that the caller names and afterwards
renames. Before ``convert`` returns, the part has been synced and read back from the disk: every record parsed strictly, the
number of records and the hashes compared with what was written. A part that does not pass is removed.

What is wrong with the file is ``BadFile``; what is wrong with the machine is ``TryLater`` and never condemns the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflow.lib import checksum, names
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Name

if TYPE_CHECKING:
    from dataflow.lib import borealis, dmap


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made of a rawacf: the DMAP file as it lies on the disk, and the hash of the HDF5 file it came from."""

    records: int
    sha256: str
    content_sha256: str
    size_bytes: int
    cpids: tuple[int, ...]
    source_sha256: str


def convert(
    source: Path,
    part: Path,
    name: Name,
    *,
    expected_sha256: str | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert the rawacf HDF5 file ``source``, whose name is ``name``, into the DMAP file ``part``, and read that back.

    Args:
        source: the file; it may lie under another name than its own.
        part: where the DMAP is written, replaced if it exists and removed if anything fails.
        name: what the file is called; its records must not contradict it, and carry it in ``combf``.
        expected_sha256: what the file's SHA-256 has to be, lower-case hex.
        processes: how many cores to compress on; all usable ones unless given.
        progress: called with how many averaging periods are done and how many there are (DMAP records, before v1).

    Raises:
        BadFile: ``slice beyond 25``, ``not a rawacf``, ``hash mismatch``, ``wrong station``, ``wrong time``, ``wrong slice``,
            and whatever ``borealis`` and ``dmap`` find.
        TryLater: disk full, file unreadable, library missing, out of memory, compressor killed, source changed meanwhile.
    """
    names.dmap_of(name)
    with _environment_not_to_blame(name), _removed_on_failure(part):
        before = checksum.stamp(source)
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(checksum.sha256, source)
            try:
                written = _write(source, part, name, processes, progress)
            except BadFile:
                _refuse_change(name, source, before)
                _refuse_hash(name, hashing.result(), expected_sha256)
                raise
        _refuse_change(name, source, before)
        _refuse_hash(name, hashing.result(), expected_sha256)
        report = _read_back(part, written, processes)
    return Conversion(report.records, report.sha256, report.content_sha256, report.size_bytes, report.cpids, hashing.result())


def check_contents(name: Name, found: borealis.Contents) -> None:
    """Refuse an HDF5 file whose station, slice or first time contradicts its name.

    Raises:
        BadFile: ``wrong station``, ``wrong slice``, ``wrong time``.
    """
    from dataflow.lib import dmap

    if found.station != name.radar:
        raise BadFile("wrong station", f"{name.text} holds data of the radar {found.station!r}")
    if found.slice_id is not None and found.slice_id != name.slice_id:
        raise BadFile("wrong slice", f"{name.text} holds data of slice {found.slice_id}")
    dmap.check_time(name, found.first_time)


def _write(
    source: Path, part: Path, name: Name, processes: int | None, progress: Callable[[int, int], None] | None
) -> dmap.Written:
    from dataflow.lib import borealis, dmap

    found = borealis.contents(source)
    check_contents(name, found)
    records = borealis.dmap_source(source, name, found)
    return dmap.write(_counted(records, progress), part, processes=processes)


def _counted(records: borealis.DmapSource, progress: Callable[[int, int], None] | None) -> Iterator[list[dict[str, Any]]]:
    for done, of_one_period in enumerate(records.lists, start=1):
        yield of_one_period
        if progress is not None:
            progress(done, records.total)


def _read_back(part: Path, written: dmap.Written, processes: int | None) -> dmap.Report:
    from dataflow.lib import dmap

    checksum.sync_file(part)
    try:
        report = dmap.inspect(part, processes=processes)
    except BadFile as error:
        if _is_what_was_encoded(part, written):
            raise BadFile("unreadable as DMAP", f"what was made of the file cannot be read back: {error}") from error
        raise TryLater(f"{part} came back from the disk damaged ({error}); it was removed, the disk needs a look") from error
    if (report.records, report.sha256, report.content_sha256) != (written.records, written.sha256, written.content_sha256):
        raise TryLater(f"{part} came back from the disk other than it was written; it was removed, the disk needs a look")
    return report


def _is_what_was_encoded(part: Path, written: dmap.Written) -> bool:
    """Whether compressor and disk gave back each byte, so that an unreadable record is the fault of its data."""
    from dataflow.lib import dmap

    try:
        return dmap.content_sha256(part) == written.content_sha256
    except BadFile:
        return False


def _refuse_change(name: Name, source: Path, before: tuple[int, int, int]) -> None:
    if not checksum.is_still(source, before):
        raise TryLater(f"{name.text} changed while it was read; it stays where it is until it lies still")


def _refuse_hash(name: Name, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise BadFile(
            "hash mismatch", f"{name.text} has SHA-256 {found}, but {expected} was announced: it was damaged on its way"
        )


@contextmanager
def _environment_not_to_blame(name: Name) -> Iterator[None]:
    """Whatever the system refuses is tried again; the errors of a damaged file were told apart where they arose."""
    try:
        yield
    except ImportError as error:
        raise TryLater(f"{name.text} was not converted: {error}; install the campus extra") from error
    except MemoryError as error:
        raise TryLater(f"{name.text} was not converted: there is not enough memory; it stays where it is") from error
    except OSError as error:
        raise TryLater(f"{name.text} was not converted: {error}; it stays where it is") from error


@contextmanager
def _removed_on_failure(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise
