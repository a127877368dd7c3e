"""What may happen to a link while files come over it: the other side is killed, or stands still."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sftp_server import Server

from dataflow.mirror.stores import paths


def processes(server: Server) -> list[int]:
    """The processes of a server's connections; not the one that listens."""
    parents = {int(stat.parent.name): _parent(stat) for stat in Path("/proc").glob("[0-9]*/stat")}
    listening = [pid for pid in parents if str(server.secrets / "sshd_config") in _command_line(pid)]
    found: list[int] = []
    above = listening
    while above := [pid for pid, parent in parents.items() if parent in above]:
        found += above
    return found


def cut(server: Server) -> None:
    """End all connections of a server without a word."""
    for pid in processes(server):
        _tell(pid, signal.SIGKILL)


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """Within this, connections stay open when the block begins to use them, and nothing answers; afterwards they are ended."""
    stopped = processes(server)
    for pid in stopped:
        _tell(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            _tell(pid, signal.SIGKILL)


def at_first_bytes(monkeypatch, name: str, do: Callable[[], object]) -> None:
    """Do something, once, when the first bytes of a file of this machine have come whose name has this in it."""
    real, done = paths.LocalPart.write, []

    def write(part: paths.LocalPart, piece: bytes | memoryview) -> None:
        real(part, piece)
        if not done and name in part._local.name:
            done.append(name)
            do()

    monkeypatch.setattr(paths.LocalPart, "write", write)


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command_line(pid: int) -> str:
    """An sshd that listens writes more into it, and all in one word."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _tell(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
