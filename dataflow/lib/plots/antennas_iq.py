"""Pictures of an antennas_iq file: the power that every antenna received, at two sizes, and a contact sheet of all of them.

Above each picture are radar, experiment, antenna and time span; in its upper panel the sequences per record, below the power
20 log₁₀|IQ| of samples 0 to 70, from 30 to 80 dB, over the sequences of the file. The same pass tells which antennas are
dead, noisy or drifting.

The file is read and the pictures are drawn by a crew of worker processes; how many there are is bounded by memory too. The
pictures lie under hidden names until the last one is on the disk, and get their own names together, the contact sheet last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dataflow.lib import checksum, names, place
from dataflow.lib.crew import crew
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.names import Kind, Name
from dataflow.lib.plots.antenna_health import AntennaHealth, HealthThresholds, judge

T = TypeVar("T")

MAX_MEMORY_BYTES = 350_000_000
OWN_BYTES = 80_000_000
WORKER_BYTES = 80_000_000
"""What this process and each worker take at most, imports included, for any number of records."""
RECORDS_PER_JOB = 100


@dataclass(frozen=True, slots=True)
class Pictures:
    """What was drawn. ``paths`` are of every picture, the contact sheet last; ``health`` is in the order of ``antennas``."""

    paths: tuple[Path, ...]
    antennas: tuple[int, ...]
    records: int
    sequences: int
    health: tuple[AntennaHealth, ...]


def plot(
    source: Path,
    name: Name,
    folder: Path,
    *,
    processes: int,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    thresholds: HealthThresholds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Draw every antenna of the antennas_iq file ``source``, whose name is ``name``, into ``folder``.

    Pictures of the same names are replaced. Until the end only hidden parts exist, which the next call for this name removes.

    Args:
        source: the file; it may lie under another name than its own.
        name: what the file is called, and its pictures after it.
        folder: where the pictures go; it exists.
        processes: how many workers there may be.
        max_memory_bytes: what they and this process may take together; there is always one worker.
        thresholds: from when on an antenna is not good.
        progress: called with how much is done and how much there is: one for each record read and each antenna drawn.

    Raises:
        BadFile: not antennas_iq, not HDF5, truncated, damaged (record and field are named), no records.
        TryLater: file unreadable, folder full or not writable, library missing, out of memory.
    """
    if name.kind is not Kind.ANTENNAS_IQ:
        raise BadFile("not antennas_iq", f"{name.text} is not an antennas_iq file: there is nothing to draw")
    try:
        from dataflow.lib.plots import canvas, contact_sheet, picture, samples
    except ImportError as error:
        raise TryLater(f"{name.text} cannot be drawn: {error}. Install dataflow with its extra [site]; the file stays") from error

    thresholds = thresholds or HealthThresholds()
    workers = max(1, min(processes, (max_memory_bytes - OWN_BYTES) // WORKER_BYTES))
    with _machine_to_blame(name), _parts_removed(name, folder), crew(workers) as side_by_side:
        found: samples.Survey = next(side_by_side([(samples.survey, (source,))]))
        counted = _counter(progress, len(found.records) + len(found.antennas))
        spans = samples.spans(found, RECORDS_PER_JOB)
        reading = side_by_side((samples.read, (source, span, len(found.antennas), found.total_sequences)) for span in spans)
        whole = samples.join((counted(part, part.medians.shape[1]) for part in reading), found)
        health = judge(whole.medians, found.sequences, found.antennas, found.main, thresholds)
        pairs = [_pair(name, folder, antenna) for antenna in found.antennas]
        sheet = folder / names.contact_sheet_of(name).text
        drawing = side_by_side(
            (picture.write_antenna, (found, brightest, of_antenna, main, [place.part_of(path) for path in pair]))
            for brightest, of_antenna, main, pair in zip(whole.brightest, health, found.main, pairs, strict=True)
        )
        canvas.write(contact_sheet.contact_sheet(found, whole.brightest, health, thresholds), place.part_of(sheet))
        for drawn in drawing:
            counted(drawn, 1)
        paths = (*(path for pair in pairs for path in pair), sheet)
        _publish(paths, folder)
    return Pictures(paths, found.antennas, len(found.records), found.total_sequences, health)


def _pair(name: Name, folder: Path, antenna: int) -> tuple[Path, Path]:
    """The pictures of one antenna: full size, then small."""
    from dataflow.lib.plots.samples import SAMPLES

    full, small = (folder / names.plot_of(name, antenna, 0, SAMPLES - 1, full=full).text for full in (True, False))
    return full, small


def _publish(paths: Iterable[Path], folder: Path) -> None:
    """Give synced parts their names, in the order given, and make the names durable."""
    for path in paths:
        place.part_of(path).replace(path)
    checksum.sync_folder(folder)


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[T, int], T]:
    """A function that hands on what it is given and reports how much is done by then."""
    done = 0

    def counted(thing: T, amount: int) -> T:
        nonlocal done
        done += amount
        if progress is not None:
            progress(done, total)
        return thing

    return counted


@contextmanager
def _parts_removed(name: Name, folder: Path) -> Iterator[None]:
    """Remove the hidden parts of this file's pictures: those that an earlier, killed call left, and our own on failure."""
    beginning, end = place.part_of(folder / f"{name.stem}.{name.slice_id}.{name.kind.value}.*").name.split("*")

    def remove() -> None:
        for path in list(folder.iterdir()):
            if path.name.startswith(beginning) and path.name.endswith(end):
                path.unlink(missing_ok=True)

    remove()
    try:
        yield
    finally:
        remove()


@contextmanager
def _machine_to_blame(name: Name) -> Iterator[None]:
    """A full disk, a missing right or too little memory: the file is kept."""
    try:
        yield
    except OSError as error:
        raise TryLater(f"{name.text} cannot be drawn now ({error}); the file stays and is tried again") from error
    except MemoryError as error:
        raise TryLater(f"{name.text} cannot be drawn now: out of memory; the file stays and is tried again") from error
