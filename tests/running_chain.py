"""Daemons for tests: those of some radars' hosts, as systemd starts them, on machines with real sshds below one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dataflow.demo import machines
from dataflow.demo.machines import Door
from dataflow.lib import custody, flag, place, report, summary
from dataflow.lib.config import MARKER, Here
from dataflow.lib.flag import Entry
from dataflow.lib.receive import LOGS_FOLDER
from dataflow.lib.summary import Record, SummaryLog

SHIPPED = Path(__file__).resolve().parents[1] / "config.yaml"
LIMIT_S = 300.0
"""How long a condition is waited for before the test fails; nothing is ever that slow."""
QUICK = ("files.unchanged_s=5", "files.complete_after_s=5", "files.settle_s=1", "plots.archive_after_h=0", "plots.processes=1")
"""Times for a test. The timer is left at its ten minutes: what moves, moves because of an event."""


@dataclass(slots=True)
class Daemon:
    """One running daemon and what it says; one that is `temporary` ends by itself."""

    process: subprocess.Popen[bytes]
    log: Path
    temporary: bool = False

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)


@dataclass(slots=True)
class Running:
    """The machines of some radars, and the daemons that a test started on them. ``doors``: of hosts in a network of their own."""

    machines: machines.Machines
    daemons: list[Daemon] = field(default_factory=list)
    doors: Mapping[str, Door] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.machines.root

    def here(self, host: str, radar: str = "sas") -> Here:
        return self.machines.config.here(host, radar)

    def start(self, host: str, radar: str = "sas", *words: str, **variables: str) -> Daemon:
        """A daemon; `words` are further options."""
        log = self.root / f"{host}.{radar}.{len(self.daemons)}.said"
        argv = [*self.within(host), sys.executable, "-m", "dataflow", "daemon", host, "--radar", radar, *words]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=self.environment(**variables), cwd=self.root
            )
        self.daemons.append(Daemon(process, log, "--once" in words))
        return self.daemons[-1]

    def within(self, host: str) -> tuple[str, ...]:
        """The words before a command that is to run on a host."""
        return self.doors[host].within if host in self.doors else ()

    def once(self, host: str, radar: str = "sas") -> int:
        """Let the daemon run what is pending; its exit code."""
        return self.start(host, radar, "--once").process.wait(LIMIT_S)

    def dataflow(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Any other command."""
        argv = [sys.executable, "-m", "dataflow", *words]
        return subprocess.run(argv, env=self.environment(), cwd=self.root, capture_output=True, text=True, timeout=LIMIT_S)

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SHIPPED.parent), **self.machines.config.environment(), **variables}

    def until(self, condition: Callable[[], Any], what: str | Callable[[], str], every_s: float = 0.1) -> Any:
        """Wait for a condition; fails with what the daemons said when it does not come true, or when one of them ended."""
        deadline = time.monotonic() + LIMIT_S
        while not (result := condition()):
            ended = [daemon.log.name for daemon in self.daemons if not daemon.temporary and daemon.process.poll()]
            if time.monotonic() > deadline or ended:
                raise AssertionError(f"not so: {what if isinstance(what, str) else what()}; ended: {ended}\n{self.said()}")
            time.sleep(every_s)
        return result

    def said(self) -> str:
        return "\n".join(f"== {daemon.log.name}\n{daemon.said[-3000:]}" for daemon in self.daemons)

    def records(self, host: str, radar: str = "sas", step: str | None = None) -> list[Record]:
        """What a host recorded, oldest first."""
        files = summary.own_files(self.here(host, radar), datetime(1990, 1, 1, tzinfo=UTC).date(), step)
        return sorted(summary.records(files), key=lambda record: record["time"])

    def admit(self, host: str, entries: Sequence[Entry], radar: str = "sas") -> None:
        """Take files into care, as the step that made them did."""
        here = self.here(host, radar)
        custody.Custody(here, "test", lambda: datetime.now(UTC), SummaryLog(here, "test", "test", now)).admit(entries, host)

    def flags(self, host: str, radar: str = "sas") -> dict[str, list[str]]:
        """The names of the flags that wait, of the open manifests and of what is in the outbox."""
        here = self.here(host, radar)
        folders = {"waiting": custody.flags_folder(here), "open": custody.open_folder(here), "outbox": custody.outbox(here)}
        return {what: [path.name for path in place.scan(folder)] for what, folder in folders.items()}

    def is_at_rest(self, radars: Sequence[str] = ("sas",)) -> bool:
        """True when no flag, manifest or outbox waits anywhere, and no daemon works."""
        hosts = self.machines.config.flow.hosts
        return not any(any(self.flags(host, radar).values()) for radar in radars for host in hosts) and not any(
            children_of(daemon.process.pid) for daemon in self.daemons
        )

    def connections(self, machine: str) -> int:
        """How many connections the sshd of a machine has accepted."""
        return self.machines.sshd_log(machine).read_text(errors="replace").count("Accepted publickey")

    def trace(self, name: str, radar: str = "sas") -> tuple[list[report.Report], list[str]]:
        return report.trace(self.here("campus", radar), name, now(), is_whole=True)

    def files(self) -> set[str]:
        """Every file in every root of every machine, as a path below the folder of all; logs, state and markers left out."""
        apart = {self.root / ".machines"}
        for radar in self.machines.config.flow.radars:
            for host in self.machines.config.flow.hosts:
                here = self.here(host, radar)
                apart |= {here.machine_state, here.logs, here.relayed_logs}
        found = set()
        for folder, names, contents in os.walk(self.root):
            names[:] = [name for name in names if Path(folder, name) not in apart]
            found |= {str(Path(folder, name).relative_to(self.root)) for name in contents if name != MARKER}
        return {path for path in found if not path.endswith(".said") and f"/{LOGS_FOLDER}/" not in path}


def now() -> datetime:
    return datetime.now(UTC)


@contextlib.contextmanager
def running(
    root: Path,
    radars: Sequence[str] = ("sas",),
    overrides: Sequence[str] = QUICK,
    source: Path = SHIPPED,
    doors: Mapping[str, Door] | None = None,
) -> Iterator[Running]:
    """The machines of some radars; daemons that still run at the end are killed."""
    root.mkdir(parents=True, exist_ok=True)
    with machines.running(root, radars, overrides, source, doors) as started:
        chain = Running(started, doors=doors or {})
        try:
            yield chain
        finally:
            for daemon in chain.daemons:
                daemon.process.kill()
                daemon.process.wait()


def with_steps(path: Path, host: str, steps: Sequence[str | Path]) -> Path:
    """The shipped configuration with another list of steps for one host, written to a file."""
    document = yaml.safe_load(SHIPPED.read_text())
    document["hosts"][host]["steps"] = [str(step) for step in steps]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def copy_in(source: Path, folder: Path, modified: datetime | None = None) -> Path:
    """Copy a file under its own name, whole, with a modification time."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{source.name}.copying"
    shutil.copyfile(source, part)
    if modified is not None:
        os.utime(part, (modified.timestamp(), modified.timestamp()))
    return part.rename(folder / source.name)


def put_flag(here: Here, sender: str, entries: Sequence[Entry] = ()) -> Path:
    """A flag in a host's folder, as `receive` puts it there."""
    folder = custody.flags_folder(here)
    return folder / flag.write(folder, here.radar, sender, "test", entries, now).file_name


def sshds_of(chain: Running, machine: str) -> tuple[int, list[int]]:
    """The process that listens for a machine, and those that hold its connections."""
    configured = os.fsencode(chain.root / ".machines" / f"{machine}.sshd_config")
    titles = {int(path.name): title_of(path) for path in Path("/proc").glob("[0-9]*")}
    (listener,) = (pid for pid, title in titles.items() if configured in title and b"[listener]" in title)
    return listener, children_of(listener)


def title_of(process: Path) -> bytes:
    """The command line of a process as it shows it; empty when it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and not yet waited for."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
