"""How long the disks last: what is free on each of them, as the records of the last days tell it, and who is told.

Each run of a step that uses roots ends with a record of what was free there. A line through those of the last week tells how
much less it is every day; where it runs steadily down, a person is told a week before steps will have to keep their files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from dataflow.lib import alert, place, summary
from dataflow.lib.config import Here, step_name
from dataflow.lib.context import Context

WARN_DAYS = 7.0
RECOVERED_DAYS = 10.0
"""Later than told before it is news again: two steps that use one disk must not tell it by turns."""
HISTORY_DAYS = 7
LEAST_HISTORY = timedelta(days=1)
"""What is shorter says more of the time of day than of the disk."""
Sample = tuple[datetime, int]
"""When, and how many bytes were free."""


def free(here: Here, roots: Sequence[str]) -> dict[str, int]:
    """What is free, in bytes: on roots, and on the disks of the state and the logs where those are others.

    Without room for flags and records every step keeps its files, and who is told of that only then cannot be told.
    """
    found = {root: place.free_bytes(here, root) for root in roots}
    devices = {here.roots[root].stat().st_dev for root in roots}
    for name, folder in _own_folders(here).items():
        if roots and folder.is_dir() and (device := folder.stat().st_dev) not in devices:
            found[name] = shutil.disk_usage(folder).free
            devices.add(device)
    return found


def watch(ctx: Context, free: Mapping[str, int]) -> None:
    """Tell, once each, of disks that are down to a limit or will be within a week. ``free``: as the function of that name."""
    now = ctx.clock()
    earlier = list(samples(ctx.here, ctx.step, now))
    for root, free_bytes in free.items():
        reserve_bytes = 0
        if root in ctx.here.roots:
            _tell_limit(ctx, root, free_bytes, "reserve_bytes", "steps keep their files until there is room")
            _tell_limit(ctx, root, free_bytes, "min_free_for_iq_bytes", "antennas_iq wait on the radar computer, rawacf go on")
            reserve_bytes = ctx.here.root_settings[root].reserve_bytes
        history = [(moment, then[root]) for moment, then in earlier if isinstance(then.get(root), int)]
        _tell_days(ctx, root, free_bytes, days_left([*history, (now, free_bytes)], reserve_bytes))


def days_left(history: Sequence[Sample], reserve_bytes: int) -> float:
    """Days until only ``reserve_bytes`` are free, if it goes on as on average in the history (the latest sample last).

    Infinite when there is no less with time, or the history is shorter than a day. The slope is that of least squares.
    """
    from statistics import linear_regression

    now, free_bytes = history[-1]
    if now - min(moment for moment, _ in history) < LEAST_HISTORY:
        return float("inf")
    days = [(moment - now).total_seconds() / 86400 for moment, _ in history]
    slope = linear_regression(days, [free for _, free in history]).slope
    return max(free_bytes - reserve_bytes, 0) / -slope if slope < 0 else float("inf")


def samples(here: Here, step: str, now: datetime) -> Iterator[tuple[datetime, Mapping[str, int]]]:
    """When, and the free bytes by root, as a step's own records of the last days tell; those of others would tell the same."""
    files = summary.own_files(here, summary.day_before(now, HISTORY_DAYS), step_name(step))
    for record in summary.records(files, holding=b'"free"'):
        free, moment = record.get("free"), summary.moment(str(record["time"]))
        if isinstance(free, dict) and now - timedelta(days=HISTORY_DAYS) < moment < now:
            yield moment, free


def _tell_limit(ctx: Context, root: str, free_bytes: int, limit: str, consequence: str) -> None:
    """Tell that a root is down to one of its limits; it is over when a tenth more than that is free."""
    limit_bytes, condition = getattr(ctx.here.root_settings[root], limit), f"disk {root}: {limit}"
    if free_bytes < limit_bytes:
        least = f"{limit} of {limit_bytes / 1e9:.3f} GB"
        message = f"the disk {_disk(ctx, root)} has {free_bytes / 1e9:.3f} GB free, less than its {least}: {consequence}"
        alert.tell_once(ctx.log, ctx.here, condition, message, root=root, free=free_bytes)
    elif free_bytes > 1.1 * limit_bytes:
        alert.clear(ctx.here, condition)


def _tell_days(ctx: Context, root: str, free_bytes: int, days: float) -> None:
    condition = f"disk {root}: fills"
    if days < WARN_DAYS:
        free = f"{free_bytes / 1e9:.3f} GB free, less every day"
        message = f"the disk {_disk(ctx, root)} is down to its reserve in {days:.1f} days: {free}; make room"
        alert.tell_once(ctx.log, ctx.here, condition, message, root=root, free=free_bytes)
    elif days > RECOVERED_DAYS:
        alert.clear(ctx.here, condition)


def _disk(ctx: Context, root: str) -> str:
    return f"{ctx.here.roots.get(root) or _own_folders(ctx.here)[root]} of {ctx.here.machine.name}"


def _own_folders(here: Here) -> dict[str, Path]:
    return {"state": here.state, "logs": here.logs}
