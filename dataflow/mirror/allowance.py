"""How many files may be fetched from each source in an hour, counted over runs: what was asked for is durable before it is."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from dataflow.lib import place
from dataflow.lib.config import Here

HOUR_S = 3600.0


def left(here: Here, source: str, files_per_hour: int, now: datetime) -> int:
    """How many more files the source may be asked for at this moment."""
    return max(0, files_per_hour - sum(files for _, files in _spent(here, now).get(source, [])))


def spend(here: Here, source: str, files: int, now: datetime) -> None:
    """Take note, durably, that a source is about to be asked for so many files."""
    spent = _spent(here, now)
    spent.setdefault(source, []).append((now.timestamp(), files))
    place.make_own_folder(here.state)
    place.write_whole(_file(here), json.dumps(spent).encode())


def _spent(here: Here, now: datetime) -> dict[str, list[tuple[float, int]]]:
    """By source, when (Unix time, s) how many files were asked for within an hour of now; the clock may have been set back."""
    try:
        written = json.loads(_file(here).read_bytes())
        told = {str(source): [(float(time), int(files)) for time, files in spent] for source, spent in written.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # only we write it, and only whole; a person may not
        return {}
    return {source: [(t, n) for t, n in spent if abs(now.timestamp() - t) < HOUR_S] for source, spent in told.items()}


def _file(here: Here) -> Path:
    return here.state / "backfill.allowance.json"
