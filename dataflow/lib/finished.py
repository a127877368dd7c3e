"""Which files the radar has finished writing.

The radar appends every record by open, write and close, so neither a closed nor an idle file is a finished one. A file is
finished when a later one of its series (radar, slice, type) exists and it is unchanged for ``unchanged_s``; or when its
two-hour window has ended and it is unchanged for ``complete_after_s``. Only names, sizes and times are looked at: opening
a file could cost the radar a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from dataflow.lib import names, place
from dataflow.lib.config import Files
from dataflow.lib.names import Name

_DAY_FOLDER = re.compile(r"\d{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """What lies in the radar's data folder. ``next_s``: seconds until the next unfinished file may be finished, or None.

    ``ahead``: those of the unfinished that are named further into the future than any clock may be wrong.
    """

    finished: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    ahead: tuple[Path, ...]
    strangers: tuple[Path, ...]
    next_s: float | None


def look(folder: Path, files: Files, now: datetime) -> DataFolder:
    """Sort the files below the data folder, oldest name first; hidden files and other folders are not looked at."""
    paths = [path for day in (folder, *day_folders(folder)) for path in place.scan(day)]
    named = [(path, name) for path in paths if (name := names.parse(path.name)) and name.radar and place.is_regular(path)]
    known = {path for path, _ in named}
    horizon = now + timedelta(seconds=files.max_stamp_offset_s)
    latest: dict[tuple[str | None, int | None, str | None, str], datetime] = {}
    for _, name in named:
        if name.time <= horizon:  # else a wrong clock would call every file finished that the radar is writing now
            latest[name.series] = max(name.time, latest.get(name.series, name.time))
    finished: list[tuple[Path, float]] = []
    unfinished: list[tuple[Path, float]] = []
    for path, name in sorted(named, key=lambda pair: (pair[1].time, pair[1].text)):
        wait_s = _wait_s(path, name, latest.get(name.series, name.time) > name.time, files, now)
        (finished if wait_s <= 0 else unfinished).append((path, wait_s))
    return DataFolder(
        finished=tuple(path for path, _ in finished),
        unfinished=tuple(path for path, _ in unfinished),
        ahead=tuple(path for path, name in named if name.time > horizon),
        strangers=tuple(path for path in paths if path not in known),
        next_s=min((wait_s for _, wait_s in unfinished), default=None),
    )


def day_folders(folder: Path) -> list[Path]:
    """The radar's folders of one UTC day each."""
    try:
        return sorted(p for p in folder.iterdir() if _DAY_FOLDER.fullmatch(p.name) and p.is_dir() and not p.is_symlink())
    except FileNotFoundError:
        return []


def _wait_s(path: Path, name: Name, has_later: bool, files: Files, now: datetime) -> float:
    """Seconds until the file counts as finished if nothing touches it; zero or less: it is finished."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0
    # Dated into the future, a file would never be still; its inode tells when it changed. If that is in the future too, the
    # clock has been set back since: a file that is written now is dated now, so the distance counts either way.
    is_in_future = status.st_mtime > now.timestamp()
    still_s = abs(now.timestamp() - (status.st_ctime if is_in_future else status.st_mtime))
    if has_later:
        return files.unchanged_s - still_s
    start = name.time
    window_end = _window_end(start, files.block_s)
    return max(files.complete_after_s - still_s, (window_end - now).total_seconds())


def _window_end(start: datetime, block_s: float) -> datetime:
    """The end of the window that a file begins in: blocks roll over together at multiples of ``block_s`` since midnight."""
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    windows = int((start - midnight).total_seconds() // block_s) + 1
    return midnight + timedelta(seconds=windows * block_s)
