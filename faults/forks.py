"""What makes thousands of runs cheap: commands that are forked from a server, and whose own programs are forked from them.

The server is that of ``tests/starter.py``, which calls ``begin`` in each command's process. A step that the daemon starts, or
a worker that a step starts, is then a real child with a session, streams, lock and death signal of its own, which only does
not begin with the start of an interpreter. Every other program is started as always.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from dataflow.lib import gate

_STREAMS = 6
"""How many of the arguments of ``Popen._execute_child`` behind ``shell`` are ends of pipes."""


def begin(argv: Sequence[str]) -> None:
    """Tell the preload who this process is, and fork the programs that it starts."""
    announce = getattr(ctypes.CDLL(None), "faults_role", None)
    if announce is not None:
        announce(role(argv).encode())
    subprocess.Popen = _Forked  # type: ignore[misc, assignment]


def role(argv: Sequence[str]) -> str:
    """The role of a command of ours, as ``preload.c`` derives it for those that are started."""
    if argv[0] == "receive":
        return f"receive {os.environ.get(gate.ASKED_VARIABLE, '').partition(' ')[0]}"
    return argv[1].rpartition(".")[2] if argv[0] == "-m" else " ".join(argv[:2])


class _Forked(subprocess.Popen[bytes]):
    """A process that goes on with what its parent has imported, where the program is ours."""

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:
        if list(args[:2]) != [sys.executable, "-m"]:
            super()._execute_child(args, *more)  # type: ignore[misc]
            return
        _, preexec, _, descriptors, _, environment, _, _, _, *rest = more
        pipes = rest[:_STREAMS]
        self.pid = os.fork()
        if self.pid == 0:
            _become(args[2:], preexec, descriptors, environment, (pipes[0], pipes[3], pipes[5]))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _become(
    words: Sequence[str], preexec: Callable[[], None], kept: Sequence[int], environment: Mapping[str, str], streams: Sequence[int]
) -> NoReturn:
    """What lies between fork(2) and the first line of a program."""
    code = 70
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            if stream != -1:
                os.dup2(stream, number)
        for low, high in zip([2, *sorted(kept)], [*sorted(kept), 4096], strict=True):
            os.closerange(low + 1, high)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, closefd=False) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        preexec()
        code = _main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(words: Sequence[str]) -> int:
    from dataflow import cli
    from dataflow.lib import crew

    module, *argv = words
    begin(argv if module == "dataflow" else ["-m", *words])
    if module == "dataflow":
        sys.argv = ["dataflow", *argv]
        return cli.main(argv)
    if module == crew.__name__:
        crew._work()
        return 0
    raise ValueError(f"no program of ours: {module}")
