"""``dataflow mirror sort-special``: finds the files of special experiments in a folder, and moves them out of the way.

A file is special as soon as one of its records is of an experiment (CPID) that ``distribute.cpids`` does not name: a radar may
change its experiment within a block, so the first record tells nothing of the others.
"""

from __future__ import annotations

from pathlib import Path

from dataflow.lib import copy, dmap, names, place
from dataflow.lib.dmap import Report
from dataflow.lib.errors import BadConfig, BadFile, TryLater
from dataflow.lib.names import Kind
from dataflow.mirror.job import Job

SPECIAL = "special_experiments"
"""The folder, in the one that is sorted, where the special ones go."""


def sort_special(job: Job, folder: Path, move: bool) -> None:
    """Read every record of every DMAP file in a folder; list the special ones or, with ``move``, move them to ``SPECIAL``.

    What cannot be read is told and left; what is no compressed DMAP file is left and counted.

    Raises:
        BadConfig: it is no folder.
    """
    if not folder.is_dir():
        raise BadConfig(f"{names.printable(str(folder))} is not a folder: name one with DMAP files")
    paths = place.scan(folder)
    for number, path in enumerate(paths, 1):
        if job.should_stop():
            job.problem(f"asked to stop: {len(paths) - number + 1} files of {len(paths)} were not looked at")
            return
        _sort(job, path, move)
        if job.progress is not None:
            job.progress(names.printable(path.name), number, len(paths))
    counts = job.counts
    job.say(f"{len(paths)} files: {counts['done']} read, {counts['kept']} not, {counts['skipped']} are no compressed DMAP files")


def _sort(job: Job, path: Path, move: bool) -> None:
    name = names.parse(path.name)
    if name is None or name.kind is not Kind.DMAP or not place.is_regular(path):
        job.file(names.printable(path.name), "skipped", "left", reason="not a compressed DMAP file")
        return
    try:
        report = dmap.inspect(path)
        special = sorted(set(report.cpids) - set(job.config.flow.distribute.cpids))
        action = _settle(job, path, report, special, move) if special else "not special"
    except (BadFile, TryLater, OSError) as error:
        job.say(f"{path}: {error}; it was left where it is")
        job.file(path.name, "kept", "left", reason=str(error), source=str(path.parent))
        return
    job.file(path.name, "done", action, cpids=list(report.cpids), sha256=report.sha256, source=str(path.parent))


def _settle(job: Job, path: Path, report: Report, special: list[int], move: bool) -> str:
    """Tell of a special file, and move it if that is asked for; what was done."""
    told = f"{path.name}: CPID {', '.join(map(str, special))}"
    if not move:
        job.show(told)
        return "special"
    copy.move(job.here, path, path.parent / SPECIAL / path.name, report.sha256)
    job.say(f"{told}: moved to {SPECIAL}")
    return "moved"
