"""A cell: machines of its own below one folder in memory, in which every process is watched and may be killed at any call.

The machines are those of the tests (``tests/loopback.py``), the shipped configuration over real sshd and rsync. What the
receiving end of a link starts is watched too: the forced command of each link's key is one that knows that it is the far side.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import loopback
import starter
from loopback import Machines, Room

from dataflow.demo import machines as demo_machines
from faults import control
from faults.control import Control

REPOSITORY = Path(__file__).resolve().parents[1]
IN_MEMORY = Path("/dev/shm")
WITHOUT_LIMITS = (
    *loopback.QUICK,
    "plots.processes=2",
    "campus.conversion_processes=2",
    "ssh.max_new_connections_per_minute=1000000",
)
"""As the other tests, but with workers where there are any, and with as many connections as there are kills."""


@dataclass(slots=True)
class Cell:
    """``machines`` and the ``control`` of all that runs on them; ``temporary`` is their /tmp."""

    machines: Machines
    control: Control
    temporary: Path

    def renew(self) -> Machines:
        """New machines in place of the old ones, with nothing on them but their markers."""
        return self._begin(self.machines.room, self.machines.environment)

    def restore(self, saved: Path) -> None:
        """Be again as when it was saved, with nobody running and no connection."""
        self._rest()
        self.machines.restore(saved)

    @contextlib.contextmanager
    def running(self, code: Path) -> Iterator[None]:
        """Run the package below ``code`` while the block runs."""
        room, environment = self.machines.room, self.machines.environment
        with _commands(code, environment) as address:
            self._begin(Room(room.overrides, address, room.running), {**environment, "PYTHONPATH": _search_path(code)})
            yield
            self._begin(room, environment)

    def _begin(self, room: Room, environment: dict[str, str]) -> Machines:
        self._rest()
        shutil.rmtree(self.machines.root)
        shutil.rmtree(saved_of(self.machines.root), ignore_errors=True)
        self.machines = _machines(room, self.machines.root, environment)
        return self.machines

    def _rest(self) -> None:
        self.control.off()
        self.control.wait_until_quiet()
        self.control.end_connections()
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()


@contextlib.contextmanager
def made() -> Iterator[Cell]:
    """A cell whose commands run this package."""
    memory = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", dir=memory)))
        temporary = folder / "t"
        temporary.mkdir()
        watch = Control(folder / "control", folder)
        watching = {"LD_PRELOAD": str(control.compiled(folder)), "FAULTS_CONTROL": str(watch.file)}
        running = stack.enter_context(
            demo_machines.running(folder / "m", loopback.RADARS, WITHOUT_LIMITS, REPOSITORY / "config.yaml")
        )
        own = {**watching, "TMPDIR": str(temporary), starter.WITH_VARIABLE: "faults.forks"}
        address = stack.enter_context(_commands(REPOSITORY, own))
        own["PYTHONPATH"] = _search_path(REPOSITORY)
        machines = _machines(Room(running.config.overrides, address, running), folder / "machines", own)
        stack.callback(watch.end_connections)
        stack.callback(watch.wait_until_quiet)
        yield Cell(machines, watch, temporary)


@contextlib.contextmanager
def _commands(code: Path, watching: Mapping[str, str]) -> Iterator[Path]:
    """A server that starts the commands of the package below ``code``; yields its address."""
    variables = {key: watching[key] for key in ("LD_PRELOAD", "FAULTS_CONTROL")}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s", dir=Path(watching["FAULTS_CONTROL"]).parent))
        with _environment({**variables, "FAULTS_SERVER": "1", "PYTHONPATH": _search_path(code)}):
            address = stack.enter_context(starter.running(Path(folder) / "s"))
        yield address


def _search_path(code: Path) -> str:
    return os.pathsep.join(map(str, (code, REPOSITORY)))


def _machines(room: Room, root: Path, environment: dict[str, str]) -> Machines:
    machines = Machines(room, root)
    machines.environment |= environment
    far = machines.command.with_name("far")
    starter.write_client(machines.command, room.starter, machines.environment)
    starter.write_client(far, room.starter, {**machines.environment, "FAULTS_SIDE": "far"})
    machines.let_in(far)
    return machines


def saved_of(root: Path) -> Path:
    """Where ``Machines.save`` puts its copy."""
    return root.with_name(root.name + ".saved")


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
