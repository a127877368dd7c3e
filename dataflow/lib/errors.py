"""The four ways in which work may fail, named by what is to be done about it.

Anything else that is raised is a bug: the runner prints its traceback, the chain stops and the flag stays (exit 3).
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command and step, and what they mean to the chain that runs it."""

    ACCOUNTED = 0
    LEFT_OVER = 1
    CONFIG = 2
    BUG = 3
    UNREACHABLE = 75


class DataflowError(Exception):
    """Base of the errors that have a known remedy; the message is written for the person who reads the log."""


class TryLater(DataflowError):
    """The environment is not ready (disk full, mount missing, permission): keep the file and go on."""


class BadFile(DataflowError):
    """The file itself is at fault: quarantine it and go on.

    ``kind`` is the short, stable name of the fault (``truncated``, ``wrong station`` ...). Three files in a row with
    the same kind blow the fuse, so it must not contain the file's name.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class HostDown(DataflowError):
    """The other machine cannot be reached: skip what needs it and back off."""


class BadConfig(DataflowError):
    """The configuration is wrong: refuse to start."""
