"""Converting and drawing files by hand, away from any chain: `dataflow convert` and `dataflow plot`.

The files may lie anywhere; what they are is told by their bare names. An output that is there already is never overwritten:
with the same content it is as good as made, with other content the input is refused. A refused input stops no other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dataflow.lib import checksum, conversion, names, place
from dataflow.lib.crew import crew
from dataflow.lib.errors import BadConfig, BadFile, TryLater
from dataflow.lib.names import Kind, Name
from dataflow.lib.plots import antennas_iq, rawacf_quicklook
from dataflow.lib.plots.antenna_health import HealthThresholds

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a file's name, how much of it is done and how much there is."""

_Drawn: TypeAlias = tuple[tuple[Path, ...], dict[str, Any]]
_Draw: TypeAlias = Callable[[Path, Name, Path], _Drawn]
"""Draws a file of some name into a folder; gives the pictures, and what is worth telling of them."""

ENVIRONMENT = "environment"
"""The kind of a refusal that is the machine's fault and not the file's."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one input. ``present``: what it would give lies there already.

    ``details``, of a conversion: ``records``, ``bytes``, ``sha256`` and ``cpids`` of the DMAP file; of a drawing:
    ``records``, ``sequences``, and ``antennas`` with the state of those that are not good.
    """

    file: str
    outcome: Literal["made", "present", "refused"]
    outputs: tuple[str, ...] = ()
    kind: str | None = None
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def convert(files: Sequence[Path], output: Path | None, processes: int, progress: Progress | None) -> Iterator[Result]:
    """Convert rawacf HDF5 files to DMAP, one after the other.

    ``output`` is a folder or, for one file, the file to write; None puts each DMAP beside its input.

    Raises:
        BadConfig: several files and an ``output`` that is no folder.
    """
    final = output if output is not None and len(files) == 1 and not output.is_dir() else None
    folder = None if final else _must_be_folder(output)

    def work(file: Path, name: Name) -> Result:
        target = final or (folder or file.parent) / names.dmap_of(name).text
        return _convert(file, name, target, processes, _of_file(progress, name))

    return (_attempt(file, work) for file in files)


def plot(
    files: Sequence[Path], output: Path | None, processes: int, thresholds: HealthThresholds, progress: Progress | None
) -> Iterator[Result]:
    """Draw files: of antennas_iq every antenna at two sizes and a contact sheet, of rawacf a quick-look.

    One antennas_iq after the other, since each keeps all ``processes`` busy; rawacf that follow one another side by side.
    ``output`` is a folder; None puts the pictures beside their input. The contact sheet is the last of the outputs.

    Raises:
        BadConfig: ``output`` is there and no folder.
    """
    folder = _must_be_folder(output)

    def draw(file: Path, name: Name, scratch: Path) -> _Drawn:
        drawn = antennas_iq.plot(
            file, name, scratch, processes=processes, thresholds=thresholds, progress=_of_file(progress, name)
        )
        not_good = {str(health.antenna): health.state.value for health in drawn.health if health.state != "good"}
        return drawn.paths, {"records": drawn.records, "sequences": drawn.sequences, "antennas": not_good}

    def results() -> Iterator[Result]:
        for is_rawacf, group in groupby(files, _is_rawacf):
            if is_rawacf:
                yield from _quicklooks(list(group), folder, processes)
            else:
                yield from (_plot(file, folder, draw) for file in group)

    return results()


def _quicklooks(files: Sequence[Path], folder: Path | None, processes: int) -> Iterator[Result]:
    size = min(processes, len(files))
    with crew(size) as workers, ThreadPoolExecutor(size) as side_by_side:

        def draw(file: Path, name: Name, scratch: Path) -> _Drawn:
            picture = scratch / names.quicklook_of(name).text
            rawacf_quicklook.quicklook(file, name, picture, workers)
            return (picture,), {}

        yield from side_by_side.map(lambda file: _plot(file, folder, draw), files)


def _is_rawacf(file: Path) -> bool:
    name = names.parse(file.name)
    return name is not None and name.kind is Kind.RAWACF


def _must_be_folder(output: Path | None) -> Path | None:
    if output is not None and output.exists() and not output.is_dir():
        raise BadConfig(f"{output} is not a folder: for pictures, and for several files, -o names a folder")
    return output


def _attempt(file: Path, work: Callable[[Path, Name], Result]) -> Result:
    shown = names.printable(str(file))
    try:
        name = names.parse(file.name)
        if name is None:
            raise BadFile("unknown name", "its name matches no SuperDARN grammar, so it does not say what the file is")
        return work(file, name)
    except BadFile as error:
        return Result(shown, "refused", kind=error.kind, reason=str(error))
    except (TryLater, OSError) as error:
        return Result(shown, "refused", kind=ENVIRONMENT, reason=str(error))


def _convert(file: Path, name: Name, final: Path, processes: int, progress: Callable[[int, int], None] | None) -> Result:
    final.parent.mkdir(parents=True, exist_ok=True)
    part = place.part_of(final)
    made = conversion.convert(file, part, name, processes=processes, progress=progress)
    try:
        is_new = not final.exists()
        if is_new:
            place.publish(part, final)
        elif _content_of_dmap(final) != made.content_sha256:
            raise _taken(final)
    finally:
        part.unlink(missing_ok=True)
    details = {"records": made.records, "bytes": final.stat().st_size, "sha256": checksum.sha256(final), "cpids": made.cpids}
    return Result(names.printable(str(file)), "made" if is_new else "present", (str(final),), details=details)


def _plot(file: Path, output: Path | None, draw: _Draw) -> Result:
    """Draw in a hidden folder beside the pictures' places; they get them only when none of these is taken."""
    folder = output or file.parent

    def work(file: Path, name: Name) -> Result:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".plots-", dir=folder))
        try:
            drawn, details = draw(file, name, scratch)
            finals = {path: folder / path.name for path in drawn}
            missing = [path for path, final in finals.items() if not final.exists()]
            for path in finals.keys() - set(missing):
                if checksum.sha256(path) != checksum.sha256(finals[path]):
                    raise _taken(finals[path])
            for path in missing:
                place.publish(path, finals[path])
        finally:
            shutil.rmtree(scratch)
        outputs = tuple(str(final) for final in finals.values())
        return Result(names.printable(str(file)), "made" if missing else "present", outputs, details=details)

    return _attempt(file, work)


def _taken(final: Path) -> BadFile:
    return BadFile("name taken", f"{final} is there already with other content and was left as it is: move it away, or use -o")


def _content_of_dmap(path: Path) -> str | None:
    """The SHA-256 of what a compressed file holds: two bzip2 programs write different bytes for one content."""
    from dataflow.lib import dmap

    try:
        return dmap.content_sha256(path)
    except BadFile:
        return None


def _of_file(progress: Progress | None, name: Name) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name.text, done, total)
