"""Carries out the faults of the plan on a running chain, and tells what each one hit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dataflow.demo.machines import Machines
from dataflow.lib import ssh
from faults.disks import Disk
from soak import gauge
from soak.feed import RADAR
from soak.plan import Fault


@dataclass(frozen=True, slots=True)
class Striker:
    """What faults are aimed at. ``daemons``: process by host; ``disks``: by the names of the plan."""

    running: Machines
    daemons: dict[str, int]
    disks: dict[str, Disk]

    def strike(self, fault: Fault) -> str | None:
        """Carry out a fault; what it hit, or None when there is nothing to hit yet."""
        if fault.kind == "full disk":
            if self.disks[fault.target].is_full:  # of the fault before
                return None
            self.disks[fault.target].fill()
            return f"{self.disks[fault.target].folder} is full"
        hit = list(self._aims()[fault.kind](fault.target))
        groups = fault.kind == "kill step and its children"
        told = [text for pid in hit if (text := _kill(pid, groups))]
        return ", ".join(told) or None

    def _aims(self) -> dict[str, Callable[[str], Iterator[int]]]:
        return {
            "cut": self._sessions,
            "kill master": self._master,
            "kill step": self._steps,
            "kill step and its children": self._steps,
            "kill receive": self._receives,
            "kill daemon": lambda host: iter([self.daemons[host]]),
        }

    def _sessions(self, machine: str) -> Iterator[int]:
        """Both sides of every connection that a machine has accepted: the server's sessions, and what they run."""
        for pid in _pids():
            if str(self.running.secrets / f"{machine}.sshd_config") in _command(pid):
                yield from reversed(list(gauge.descendants(pid)))

    def _master(self, host: str) -> Iterator[int]:
        """The shared connection of one host to the next one; it is named after its socket."""
        here = self.running.config.here(host, RADAR)
        there = self.running.config.here(str(here.host.next), RADAR)
        socket = str(ssh.control_socket(self.running.config, here, there))
        masters = ("[mux]", "ControlMaster=yes")
        yield from (pid for pid in _pids() if socket in _command(pid) and any(word in _command(pid) for word in masters))

    def masters(self) -> Iterator[int]:
        """The shared connections of all hosts, which outlive the steps that made them."""
        yield from (
            pid for host, settings in self.running.config.flow.hosts.items() if settings.next for pid in self._master(host)
        )

    def _steps(self, host: str) -> Iterator[int]:
        yield from gauge.children(self.daemons[host])

    def _receives(self, host: str) -> Iterator[int]:
        words, root = f"dataflow receive --host {host}", str(self.running.root)
        yield from (pid for pid in _pids() if words in _command(pid) and root in _environment(pid))


def _kill(pid: int, with_group: bool) -> str | None:
    """Kill a process, or its whole group; what it was, or None when it was gone."""
    what = _command(pid)
    try:
        if with_group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return f"{pid} ({what[-90:]})"


def _pids() -> Iterator[int]:
    yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _command(pid: int) -> str:
    return _read(pid, "cmdline")


def _environment(pid: int) -> str:
    return _read(pid, "environ")


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
