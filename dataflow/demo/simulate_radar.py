"""A radar that is not there: writes blocks of rawacf and antennas_iq as Borealis v1 does, record by record.

Files lie in ``<folder>/YYYYMMDD/`` under the names that the radar gives them. Every record is appended by opening, writing
and closing the file, all slices in turn, so a file that lies still is not a finished file: the reason that everything
downstream has to wait for the end of a block. This is the one place that writes in place, because the radar does.
The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflow.demo.radar import BEAMS, EXPERIMENTS, SITES, Fault, FaultKind, SliceSpec, check_cpid, parse_fault
from dataflow.lib import names
from dataflow.lib.errors import BadConfig, Exit
from dataflow.lib.names import LAST_CHANNEL_SLICE, Kind

if TYPE_CHECKING:
    from dataflow.demo.borealis_record import Period
    from dataflow.demo.scatter_signal import Scene

__all__ = ["SITES", "Fault", "FaultKind", "SliceSpec", "add_arguments", "pacer", "run", "simulate", "write_block"]

BLOCK = timedelta(hours=2)
SECONDS_PER_RECORD = 3.0
RECORDS_PER_OPENING = 200
"""HDF5 keeps memory for every group of an open file, so a file that is kept open is still closed after so many records."""


def write_block(
    folder: Path,
    radar: str,
    start: datetime,
    slices: Sequence[SliceSpec],
    *,
    records: int,
    seconds_per_record: float = SECONDS_PER_RECORD,
    antennas: int = 20,
    sequences: int = 8,
    samples: int = 295,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    cpid_of_record: Mapping[int, int] | None = None,
    pace: Callable[[float], None] | None = None,
    open_each_record: bool = True,
    set_modification_time: bool = True,
) -> list[Path]:
    """Write one block of every slice into ``<folder>/YYYYMMDD/`` and return its files: rawacf and, where asked, antennas_iq.

    With ``cpid_of_record`` some records carry another CPID than their slice. ``experiment_id`` is metadata of the whole
    file in Borealis v1, and in pyDARNio the metadata win over what a record says; so in such a file it is missing from the
    metadata and every record has its own, which pyDARNio does honour. Otherwise it is hard-linked, as at the radar.

    Args:
        folder: the data directory of the radar.
        radar: station code, one of ``SITES``.
        start: UTC, the stamp of the files and the time of the first record.
        slices: what is written; all slices have the same records.
        records: how many averaging periods.
        seconds_per_record: length of an averaging period.
        antennas: four fifths of them the main array, the rest the interferometer.
        sequences: in a record of antennas_iq.
        samples: of a sequence in antennas_iq.
        seed: same seed, same bytes.
        faults: of antennas, seen in antennas_iq.
        cpid_of_record: number of a record (from 0) to its CPID, for all slices.
        pace: called before each record is written, with the seconds since ``start`` at which the radar would do it.
        open_each_record: ``False`` keeps the files open between records, which is quicker and no longer like the radar.
        set_modification_time: give the files the time at which the block ended, whatever the clock says now.

    Raises:
        BadConfig: the radar, an antenna or a CPID is not possible, or a file of that name is there already.
    """
    block = _Block(radar, start, tuple(slices), antennas, sequences, samples, seed, tuple(faults), cpid_of_record or {})
    streams = _streams(Path(folder), block)
    if standing := [stream.path for stream in streams if stream.path.exists()]:
        raise BadConfig(f"{standing[0]} is there already and was left as it is: give another start or another folder")
    for stream in streams:
        stream.path.parent.mkdir(parents=True, exist_ok=True)
    append = _append_like_the_radar if open_each_record else _append_to_open_files
    append(streams, _periods(start, records, seconds_per_record, pace))
    if set_modification_time:
        ended_s = (start + timedelta(seconds=records * seconds_per_record)).timestamp()
        for stream in streams:
            os.utime(stream.path, (ended_s, ended_s))
    return [stream.path for stream in streams]


def simulate(
    folder: Path,
    radar: str,
    start: datetime,
    slices: Sequence[SliceSpec],
    *,
    blocks: int = 1,
    records: int | None = None,
    seconds_per_record: float = SECONDS_PER_RECORD,
    speed: float = 0.0,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write consecutive blocks and return their files: the first from ``start``, the others from each even hour (UTC) on.

    A block lasts until the next even hour, unless it ends before after ``records`` records; what is then left of the two
    hours is not waited for. ``speed`` is how many times faster than a radar records come, 0 as fast as they can be made.
    ``report`` gets one line for each block.

    Raises:
        BadConfig: as ``write_block``; blocks already written stay.
    """
    written: list[Path] = []
    for begins in block_starts(start, blocks):
        room = int((_next_even_hour(begins) - begins) / timedelta(seconds=seconds_per_record))
        count = room if records is None else min(records, room)
        files = write_block(
            folder,
            radar,
            begins,
            slices,
            records=count,
            seconds_per_record=seconds_per_record,
            seed=seed,
            faults=faults,
            pace=pacer(speed) if speed else None,
        )
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        report(f"{begins:%Y-%m-%d %H:%M} {radar}: {count} records in {len(files)} files, {megabytes:.1f} MB in {files[0].parent}")
        written += files
    return written


def block_starts(start: datetime, blocks: int) -> list[datetime]:
    """When each of consecutive blocks begins: at ``start`` and at the even hours that follow."""
    starts = [start]
    while len(starts) < blocks:
        starts.append(_next_even_hour(starts[-1]))
    return starts


def pacer(
    speed: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Callable[[float], None]:
    """A ``pace`` that keeps records ``speed`` times faster than real time, counted from now; late records are not waited for."""
    begun_s = clock()

    def pace(simulated_s: float) -> None:
        if (early_s := begun_s + simulated_s / speed - clock()) > 0:
            sleep(early_s)

    return pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``dataflow simulate-radar`` understands."""
    parser.description = (
        "Write blocks of data as a radar does: rawacf and antennas_iq in DIR/YYYYMMDD/, one record after the other, a new "
        "set of files at every even hour (UTC). The scatter in them is made up, the files are not: everything that reads "
        "the radar's files reads these. Without options: one full two-hour block of sas (1.2 GB), as fast as this machine can."
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="the data directory; a folder for each day is made in it")
    add("--radar", choices=sorted(SITES), default="sas", help="the station (default: %(default)s)")
    add(
        "--start",
        metavar="ISO",
        type=_utc,
        help="time of the first record, UTC, such as 2026-11-01T14:00; blocks after the first begin at even hours "
        "(default: so that the last block has just ended; with --speed up to 1, now)",
    )
    add("--blocks", metavar="N", type=_count, default=1, help="how many blocks, two hours apart (default: %(default)s)")
    add(
        "--records",
        metavar="N",
        type=_count,
        help=f"end each block after N records of {SECONDS_PER_RECORD:g} s and go on to the next without waiting "
        "(default: until the even hour, which is 2400 records)",
    )
    add("--slices", metavar="N", type=_count, default=1, help="slices 0 to N-1, each in files of its own (default: %(default)s)")
    known = ", ".join(f"{cpid} {name}" for cpid, name in EXPERIMENTS.items())
    add("--cpid", metavar="N", type=int, help=f"the experiment: {known}, or any other (default: 151, wide beam 3800)")
    add("--wide-beam", action="store_true", help="all 16 beams in every record, instead of one after the other")
    add("--no-interferometer", action="store_true", help="no intf_acfs and xcfs in rawacf, so no xcfd in DMAP")
    add(
        "--antennas-iq",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the samples of every antenna too, 4 times the size of rawacf (default: yes)",
    )
    add(
        "--speed",
        metavar="X",
        type=_speed,
        default=0.0,
        help="1 writes a record every 3 s as the radar does, 60 writes 20 a second, 0 does not wait (default: 0)",
    )
    add("--seed", metavar="N", type=_seed, default=0, help="other numbers give other scatter (default: %(default)s)")
    add(
        "--fault",
        metavar="antenna=N:KIND",
        type=_fault,
        action="append",
        default=[],
        help="something wrong with antenna N in antennas_iq: dead (nothing arrives), noisy (ten times the noise) or drifting "
        "(gain and phase wander through each block); may be given again",
    )


def run(arguments: argparse.Namespace, report: Callable[[str], None] | None = None) -> int:
    """Carry out ``dataflow simulate-radar``; ``report`` gets a line for each block, standard output if it is not given.

    Raises:
        BadConfig: what is asked for is not possible, or a file of that name is there already.
    """
    if arguments.slices > LAST_CHANNEL_SLICE + 1:
        raise BadConfig(f"--slices {arguments.slices}: DMAP has channels for {LAST_CHANNEL_SLICE + 1} slices at most")
    simulate(
        arguments.folder,
        arguments.radar,
        arguments.start or _default_start(datetime.now(UTC), arguments.blocks, arguments.speed),
        _slices(arguments),
        blocks=arguments.blocks,
        records=arguments.records,
        speed=arguments.speed,
        seed=arguments.seed,
        faults=arguments.fault,
        report=report or _say,
    )
    return Exit.ACCOUNTED


@dataclass(frozen=True, slots=True)
class _Block:
    """What the records of one block are made from."""

    radar: str
    start: datetime
    slices: tuple[SliceSpec, ...]
    antennas: int
    sequences: int
    samples: int
    seed: int
    faults: tuple[Fault, ...]
    cpid_of_record: Mapping[int, int]

    def __post_init__(self) -> None:
        if self.radar not in SITES:
            raise BadConfig(f"there is no radar {self.radar!r} to simulate: choose one of {', '.join(SITES)}")
        if self.start.utcoffset() != timedelta(0):
            raise BadConfig(f"a block cannot start at {self.start}: give the time in UTC")
        for fault in self.faults:
            if fault.antenna >= self.antennas:
                raise BadConfig(f"antenna {fault.antenna} cannot fail: there are {self.antennas}, numbered from 0")
        for cpid in self.cpid_of_record.values():
            check_cpid(cpid)


@dataclass(frozen=True, slots=True)
class _Stream:
    """One file that is being written, and how its records are made."""

    path: Path
    kind: Kind
    spec: SliceSpec
    block: _Block
    scene: Scene = field(repr=False)
    shared: Mapping[str, Any] = field(repr=False)

    def record(self, period: Period) -> dict[str, Any]:
        """The fields of one averaging period that are not metadata."""
        import numpy as np

        from dataflow.demo import borealis_record

        block = self.block
        rng = np.random.default_rng([block.seed, *block.radar.encode(), self.spec.slice_id, round(period.time_s * 1e3)])
        if self.kind is Kind.RAWACF:
            values = borealis_record.rawacf(period, self.spec, self.scene, block.antennas, rng)
        else:
            values = borealis_record.antennas_iq(
                period,
                self.spec,
                self.scene,
                block.antennas,
                rng,
                sequences=block.sequences,
                samples=block.samples,
                faults=block.faults,
            )
        if block.cpid_of_record:
            values["experiment_id"] = np.int64(block.cpid_of_record.get(period.number, self.spec.cpid))
        return values


def _streams(folder: Path, block: _Block) -> list[_Stream]:
    import numpy as np

    from dataflow.demo import borealis_record, scatter_signal

    scene = scatter_signal.draw_scene(np.random.default_rng([block.seed, *block.radar.encode()]))
    slice_ids = [spec.slice_id for spec in block.slices]
    streams = []
    for spec in block.slices:
        for kind in (Kind.RAWACF, Kind.ANTENNAS_IQ) if spec.with_antennas_iq else (Kind.RAWACF,):
            path = folder / f"{block.start:%Y%m%d}" / names.radar_file(block.start, block.radar, spec.slice_id, kind).text
            shared = borealis_record.metadata(kind, SITES[block.radar], spec, slice_ids, block.antennas, block.samples)
            if block.cpid_of_record:
                del shared["experiment_id"]
            streams.append(_Stream(path, kind, spec, block, scene, shared))
    return streams


def _periods(start: datetime, records: int, seconds_per_record: float, pace: Callable[[float], None] | None) -> Iterator[Period]:
    from dataflow.demo.borealis_record import Period

    for number in range(records):
        if pace:
            pace((number + 1) * seconds_per_record)
        began = start + timedelta(seconds=number * seconds_per_record)
        yield Period(number, began, seconds_per_record, progress=number / max(1, records - 1))


def _append_like_the_radar(streams: Sequence[_Stream], periods: Iterator[Period]) -> None:
    from dataflow.demo import borealis_record

    for period in periods:
        for stream in streams:
            values = stream.record(period)
            with borealis_record.open_to_append(stream.path) as file:
                borealis_record.append(file, stream.kind, period.name, values, stream.shared)


def _append_to_open_files(streams: Sequence[_Stream], periods: Iterator[Period]) -> None:
    from dataflow.demo import borealis_record

    with ExitStack() as opened:
        for period in periods:
            if period.number % RECORDS_PER_OPENING == 0:
                opened.close()
                files = [opened.enter_context(borealis_record.open_to_append(stream.path)) for stream in streams]
            for stream, file in zip(streams, files, strict=True):
                borealis_record.append(file, stream.kind, period.name, stream.record(period), stream.shared)


def _next_even_hour(time: datetime) -> datetime:
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + ((time - midnight) // BLOCK + 1) * BLOCK


def _default_start(now: datetime, blocks: int, speed: float) -> datetime:
    if 0 < speed <= 1:
        return now.replace(microsecond=0)
    return _next_even_hour(now) - (blocks + 1) * BLOCK


def _slices(arguments: argparse.Namespace) -> list[SliceSpec]:
    wide = arguments.wide_beam
    cpid = arguments.cpid if arguments.cpid is not None else 3800 if wide else 151
    return [
        SliceSpec(
            slice_id=slice_id,
            cpid=cpid,
            experiment_name=EXPERIMENTS.get(cpid, f"Experiment{cpid}"),
            beams_per_record=BEAMS if wide else 1,
            with_interferometer=not arguments.no_interferometer,
            with_antennas_iq=arguments.antennas_iq,
            frequency_khz=10_500 + 300 * slice_id,
        )
        for slice_id in range(arguments.slices)
    ]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _utc(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write it as 2026-11-01T14:00") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = -1
    if not 0 <= speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed: give 0 for no waiting, 1 for real time, or more")
    return speed


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except BadConfig as error:
        raise argparse.ArgumentTypeError(str(error)) from error
