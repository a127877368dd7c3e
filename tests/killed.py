"""Kills work before the N-th change that it makes to the disk: in a process of its own that is forked, without any unwinding."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

PATHS = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.chmod": 0}
"""Audit events that change the disk, and which of their arguments is the path."""


def at_every_change(below: Path, work: Callable[[], object], restore: Callable[[], object], stride: int = 1) -> Iterator[int]:
    """Do the work again and again from what `restore` makes, killed before the first, the second ... change below a folder.

    Yields the number of each change that it was killed before; ends when the work came to its end.
    """
    for number in range(1, 10_000, stride):
        restore()
        if not _was_killed(below, work, number):
            return
        yield number


def _was_killed(below: Path, work: Callable[[], object], number: int) -> bool:
    worker = os.fork()
    if worker == 0:
        code = 70
        try:
            sys.addaudithook(_killer(f"{below}/", number))
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the work ended with {code}"
    return code == -signal.SIGKILL


def _killer(below: str, number: int) -> Callable[[str, tuple], None]:
    counted = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal counted
        if _is_change(event, arguments, below):
            counted += 1
            if counted == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _is_change(event: str, arguments: tuple, below: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        is_written = bool(flags & (os.O_CREAT | os.O_TRUNC | os.O_WRONLY))
        return is_written and isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(below)
    return (
        event in PATHS and not isinstance(arguments[PATHS[event]], int) and os.fsdecode(arguments[PATHS[event]]).startswith(below)
    )
