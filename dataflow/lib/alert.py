"""Alerts: records first, once per change of state.

An alert is a record (``event: alert``) in the step's summary log, which travels to campus like every other. A condition
that lasts is told once; when it has ended it may be told again.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from dataflow.lib import place
from dataflow.lib.config import Here
from dataflow.lib.summary import SummaryLog


def tell(log: SummaryLog, message: str, **fields: object) -> None:
    """Record an alert that is an event of its own (a quarantined file)."""
    log.write("alert", message=message, **fields)


def tell_once(log: SummaryLog, here: Here, condition: str, message: str, **fields: object) -> bool:
    """Record an alert for a condition, unless it was told and not cleared since; returns whether it was new."""
    if is_told(here, condition):
        return False
    tell(log, message, condition=condition, **fields)
    log.sync()
    mark = _mark(here, condition)
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.write_whole(mark, message.encode("utf-8", "replace") + b"\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        mark.touch()  # a name finds room on most full disks, and keeps the alert from being told by every run
    return True


def is_told(here: Here, condition: str) -> bool:
    """Whether a condition was told and has not ended since."""
    return _mark(here, condition).exists()


def clear(here: Here, condition: str) -> None:
    """The condition has ended: the next time it holds is news."""
    _mark(here, condition).unlink(missing_ok=True)


def _mark(here: Here, condition: str) -> Path:
    return here.state / "alerts" / hashlib.sha256(condition.encode("utf-8", "surrogateescape")).hexdigest()[:24]
