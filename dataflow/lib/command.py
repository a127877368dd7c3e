"""The only place that starts a process.

Arguments travel as argv, never through a shell. A process that outlives its limit is killed with its whole group, and
dies with the process that started it. The end of what it said is kept for the message to the person.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dataflow.lib.errors import TryLater

KEPT_LINES = 12
TERMINATE_GRACE_S = 5.0
KILL_GRACE_S = 10.0
PIPES_GRACE_S = 2.0
POLL_S = 0.25
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

inherited_descriptors: list[int] = []
"""Descriptors that children keep open: the lock, so that an orphan still holds it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended; a negative ``returncode`` is the signal that killed it."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    interrupted: bool = False

    @property
    def last_lines(self) -> str:
        """The end of what it complained, as one line of text."""
        lines = [line.strip() for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines[-KEPT_LINES:])


def start(
    argv: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    inherit: bool = True,
    hand_over: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own that dies with the calling thread. ``environment`` adds to the own one.

    ``inherit=False`` keeps the lock from a process that is meant to outlive the run (the SSH master). ``hand_over``: further
    descriptors that it gets.

    Raises:
        TryLater: the program is not installed or cannot be started now.
    """
    words = [str(word) for word in argv]
    parent = os.getpid()
    try:
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            pass_fds=(*hand_over, *(inherited_descriptors if inherit else ())),
            preexec_fn=lambda: _die_with(parent),
        )
    except OSError as error:
        raise TryLater(f"cannot start {words[0]}: {error.strerror}; is it installed?") from error


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float | None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    inherit: bool = True,
    grace_s: float = TERMINATE_GRACE_S,
) -> Finished:
    """Run a program to its end and return its output. ``timeout_s=None`` is for programs that watch their own progress.

    ``grace_s``: how long it may take to end when it is asked to.

    Raises:
        TryLater: it cannot be started, or does not die when killed (stuck in the kernel).
    """
    with _to_be_read(stdin) as source:
        process = start(
            argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, environment=environment, inherit=inherit
        )
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    timed_out = interrupted = False
    while True:
        try:
            stdout, stderr = process.communicate(timeout=POLL_S)
            break
        except subprocess.TimeoutExpired:
            has_ended = process.poll() is not None
            timed_out = not has_ended and deadline is not None and time.monotonic() > deadline
            interrupted = not has_ended and should_stop()
            if timed_out or interrupted:
                end_group(process, grace_s)
            if has_ended or timed_out or interrupted:
                stdout, stderr = _rest_of_output(process)
                break
    return Finished(tuple(str(word) for word in argv), process.returncode, stdout, stderr, timed_out, interrupted)


def _to_be_read(content: bytes) -> IO[bytes]:
    """A file in memory; ``communicate()`` does not go on writing to a pipe after its time-out, and the reader would hang."""
    stream = os.fdopen(os.memfd_create("stdin"), "w+b")
    stream.write(content)
    stream.seek(0)
    return stream


def _rest_of_output(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What a program printed that has ended; it may have left somebody behind who keeps its pipes open."""
    try:
        return process.communicate(timeout=PIPES_GRACE_S)
    except subprocess.TimeoutExpired as error:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return error.stdout or b"", error.stderr or b""


def end_group(process: subprocess.Popen[bytes], grace_s: float = TERMINATE_GRACE_S) -> None:
    """Ask a process and its group to end, then kill what is left.

    Raises:
        TryLater: it survives SIGKILL, so it hangs in the kernel (a dead NFS mount); it is left behind.
    """
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
        if number is signal.SIGTERM:
            _kill_rest_of_group(process.pid)
        return
    raise TryLater(f"process {process.pid} ({process.args!r}) does not die: it is stuck in the kernel, probably on a dead mount")


def _kill_rest_of_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(125)
