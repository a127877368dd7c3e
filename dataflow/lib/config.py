"""config.yaml as frozen dataclasses, checked whole, and what it means on one host for one radar.

One file describes the whole flow and is the same on every machine. ``load`` reads and checks it; ``Config.here`` gives
the view of one host and radar, with every folder as a path on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from dataflow.lib import schema
from dataflow.lib.errors import BadConfig
from dataflow.lib.machine import Machine, Root
from dataflow.lib.mirror_settings import Mirror
from dataflow.lib.plots.antenna_health import HealthThresholds

T = TypeVar("T")
VERSION = 1
ROOT_VARIABLE = "DATAFLOW_ROOT"
CONFIG_VARIABLE = "DATAFLOW_CONFIG"
SET_VARIABLE = "DATAFLOW_SET"
MARKER = ".dataflow-root"
INSTALLED_CONFIG = Path("/etc/dataflow/config.yaml")
_PACKAGE = Path(__file__).parents[1]
_STEP_FOLDERS = ("site", "campus")
PLACEHOLDERS = ("radar", "camera", "YYYY", "MM")
RESERVED_TARGETS = ("archive", "special")
MIRROR, ALL_RADARS = "mirror", "all"
"""What records of the mirror have for host and radar."""
EXPIRABLE = ("backup", "antennas_iq", "full_size_plots")
"""The folders of a site that may be let go of; in every other one something still waits for a step or for a person."""


@dataclass(frozen=True, slots=True)
class Host:
    """A role in the chain: what it waits for, its ordered steps and its folders."""

    waits_on: Literal["data", "flags"]
    user: str
    steps: tuple[str, ...]
    roots: dict[str, Root]
    folders: dict[str, str]
    backlog: tuple[str, ...]
    state: str
    logs: str
    relayed_logs: str
    next: str | None = None
    routes: dict[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    file_mode: str = "0664"
    dir_mode: str = "2775"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Radar:
    """A radar and its machines by host."""

    name: str
    machines: dict[str, Machine]


@dataclass(frozen=True, slots=True)
class Files:
    """When a file may be taken."""

    unchanged_s: float
    complete_after_s: float
    block_s: float
    settle_s: float
    max_stamp_offset_s: float
    kept_too_long_s: float


@dataclass(frozen=True, slots=True)
class Daemon:
    """Times of the daemon's loop."""

    look_every_s: float
    stop_timeout_s: float
    below_flag_limit_s: float
    step_limit_s: float
    stuck_after_s: float
    back_off_first_s: float
    back_off_last_s: float


@dataclass(frozen=True, slots=True)
class Ssh:
    """The one connection to each destination."""

    max_new_connections_per_minute: int
    connect_timeout_s: int
    keep_alive_s: int
    idle_close_s: int
    config_file: str | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """Size of the batches that go over a link."""

    no_progress_s: int
    batch_files: int
    data_batch_bytes: int
    picture_batch_s: float


@dataclass(frozen=True, slots=True)
class Plots:
    """How the IQ plots are drawn and how long they stay on the front page."""

    processes: int
    archive_after_h: float


@dataclass(frozen=True, slots=True)
class Campus:
    """Limits of the campus machine, over all radars."""

    max_conversions: int
    conversion_processes: int


@dataclass(frozen=True, slots=True)
class Scrub:
    """How fast and how often what is kept for good is read again."""

    read_limit_mib_s: float
    every_days: float


@dataclass(frozen=True, slots=True)
class Expiry:
    """What may go from a folder of the site: files older than ``keep_days``, and where a percentage is given only as long as
    less than that is free on the disk."""

    keep_days: float
    min_free_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A staging folder. ``link``: hard links instead of copies, for a reader who only reads."""

    folder: str
    link: bool = False


@dataclass(frozen=True, slots=True)
class Distribute:
    """Who gets which data."""

    cpids: tuple[int, ...]
    targets: dict[str, Target]
    stale_days: float


@dataclass(frozen=True, slots=True)
class Flow:
    """The document."""

    version: int
    hosts: dict[str, Host]
    radars: dict[str, Radar]
    files: Files
    daemon: Daemon
    ssh: Ssh
    transfer: Transfer
    plots: Plots
    campus: Campus
    scrub: Scrub
    distribute: Distribute
    antenna_health: HealthThresholds
    expire: dict[str, Expiry] = field(default_factory=dict)
    mirror: Mirror | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Here:
    """One host of one radar: its machine, and its folders as paths on that machine. It equals only itself.

    A machine with ``nas: none`` has neither mounted roots nor the folders in them.
    ``upstream``: the hosts that the radar's files pass before they come here, the first one first.
    """

    host_name: str
    radar: str
    host: Host
    machine: Machine
    roots: Mapping[str, Path]
    root_settings: Mapping[str, Root]
    folder_texts: Mapping[str, str]
    state: Path
    logs: Path
    relayed_logs: Path
    machine_state: Path
    upstream: tuple[str, ...]

    def folder(self, key: str, time: datetime | None = None, camera: str = "") -> Path:
        """The path of a folder; ``time`` (UTC) fills {YYYY} and {MM}, ``camera`` fills {camera}."""
        return self.path(self.folder_texts[key], time, camera)

    def path(self, text: str, time: datetime | None = None, camera: str = "") -> Path:
        """A path that the configuration writes as ``<root>/<relative>``."""
        return _filled(self, text, (time.year, time.month) if time else None, camera)

    def root_holding(self, path: Path) -> str | None:
        """The name of the root that a path lies in: of several the innermost; None for state and logs."""
        holding = [name for name, root in self.roots.items() if path.is_relative_to(root)]
        return max(holding, key=lambda name: len(self.roots[name].parts), default=None)

    def root_of(self, key: str) -> str:
        """The name of the root in which a folder lies."""
        return self.folder_texts[key].partition("/")[0]

    @property
    def file_mode(self) -> int:
        """Mode of the files that this host puts in their places."""
        return int(self.host.file_mode, 8)

    @property
    def dir_mode(self) -> int:
        """Mode of the folders that this host creates."""
        return int(self.host.dir_mode, 8)


@lru_cache(maxsize=256)
def _filled(here: Here, text: str, month: tuple[int, int] | None, camera: str) -> Path:
    """A batch has thousands of files of one month, and to put their paths together takes longer than to look at them."""
    root, _, relative = text.partition("/")
    filled = relative.replace("{radar}", here.radar).replace("{camera}", camera)
    if month is not None:
        filled = filled.replace("{YYYY}", f"{month[0]:04}").replace("{MM}", f"{month[1]:02}")
    return here.roots[root] / filled


@dataclass(frozen=True, slots=True)
class Config:
    """The document with its origin. ``root``: the folder that stands for the file systems of all machines, or None."""

    flow: Flow
    source: Path
    sha256: str
    root: Path | None
    overrides: tuple[str, ...]

    def here(self, host_name: str, radar: str) -> Here:
        """The view of one host and radar.

        Raises:
            BadConfig: no such host, radar, or machine.
        """
        host = _lookup(self.flow.hosts, host_name, "host", self.source)
        machine = _lookup(_lookup(self.flow.radars, radar, "radar", self.source).machines, host_name, "machine", self.source)
        return self._view(host_name, radar, host, machine, self._upstream(host_name, radar))

    def _view(self, host_name: str, radar: str, host: Host, machine: Machine, upstream: tuple[str, ...]) -> Here:
        base = self.root / machine.name if self.root else Path("/")
        state = base / host.state.lstrip("/")
        has_nas = machine.nas == "mounted"
        roots = {name: root for name, root in {**host.roots, **machine.roots}.items() if has_nas or not root.mounted}
        folders = {key: text for key, text in {**host.folders, **machine.folders}.items() if text.partition("/")[0] in roots}
        return Here(
            host_name=host_name,
            radar=radar,
            host=host,
            machine=machine,
            roots={name: self._root_path(name, root, radar, base) for name, root in roots.items()},
            root_settings=roots,
            folder_texts=folders,
            state=state / f"{host_name}.{radar}",
            logs=base / host.logs.lstrip("/"),
            relayed_logs=base / host.relayed_logs.lstrip("/"),
            machine_state=state,
            upstream=upstream,
        )

    def mirror(self) -> tuple[Mirror, Here]:
        """The settings of the mirror, and its view: a host of its own that works for all radars.

        Raises:
            BadConfig: the configuration has no mirror.
        """
        mirror = self.flow.mirror
        if mirror is None:
            raise BadConfig(f"{self.source} has no section `mirror`: this flow feeds none; see the shipped config.yaml")
        host = Host(
            waits_on="flags",
            user=mirror.user,
            steps=(),
            roots=mirror.roots,
            folders=mirror.folders,
            backlog=(),
            state=mirror.state,
            logs=mirror.logs,
            relayed_logs=mirror.logs,
            file_mode=mirror.file_mode,
            dir_mode=mirror.dir_mode,
            group=mirror.group,
        )
        return mirror, self._view(MIRROR, ALL_RADARS, host, mirror.machine, ())

    def _upstream(self, host_name: str, radar: str) -> tuple[str, ...]:
        machines = self.flow.radars[radar].machines
        before = [name for name, host in self.flow.hosts.items() if host.next == host_name and name in machines]
        return (*self._upstream(before[0], radar), before[0]) if before else ()

    def _root_path(self, name: str, root: Root, radar: str, base: Path) -> Path:
        if self.root and root.mounted:
            return self.root / f"{radar}-{name}"
        return base / root.path.lstrip("/")

    def environment(self) -> dict[str, str]:
        """What child processes, and the far side of a loopback link, need to see the same configuration."""
        variables = {CONFIG_VARIABLE: str(self.source), SET_VARIABLE: json.dumps(self.overrides)}
        return {**variables, ROOT_VARIABLE: str(self.root)} if self.root else variables


def load(source: Path | None = None, root: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check the configuration; arguments not given come from the environment.

    Raises:
        BadConfig: with every finding, one a line, each with file and line.
    """
    from dataflow.lib import findings  # which knows the dataclasses above

    path = source or _default_source()
    root_text = os.environ.get(ROOT_VARIABLE)
    root = root or (Path(root_text) if root_text else None)
    settings = (*json.loads(os.environ.get(SET_VARIABLE, "[]")), *overrides)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"cannot read the configuration {path}: {error}") from error
    document = schema.parse(text, str(path))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadConfig(f"--set {setting}: write KEY=VALUE, for example files.settle_s=5")
        schema.override(document, key, value)
    flow = schema.bind(document, Flow)
    if faults := [f"{schema.where(document, key)}: {schema.dotted(key)}: {text}" for key, text in findings.of(flow)]:
        raise BadConfig("\n".join(faults))
    digest = hashlib.sha256(json.dumps([text, settings]).encode()).hexdigest()
    return Config(flow, path.absolute(), digest, root.absolute() if root else None, tuple(settings))


def _default_source() -> Path:
    if text := os.environ.get(CONFIG_VARIABLE):
        return Path(text)
    if INSTALLED_CONFIG.exists():
        return INSTALLED_CONFIG
    from dataflow.lib import shipped

    return shipped.path("config.yaml")


def step_file(name: str) -> Path:
    """The file of a step: ``dataflow/{site,campus}/<name>.{py,sh}``, or the absolute path of a program of one's own.

    Raises:
        BadConfig: there is no such step; names the nearest one.
    """
    if name.startswith("/"):
        return Path(name)
    files = {path.stem: path for folder in _STEP_FOLDERS for path in (_PACKAGE / folder).glob("[a-z]*.*") if path.is_file()}
    if name not in files:
        raise BadConfig(f"there is no step {name!r}{schema.likely(name, files)}")
    return files[name]


def step_name(step: str) -> str:
    """The name of a step in records, pauses and folders: as it is written, or the bare name of a program of one's own."""
    return Path(step).stem


def _lookup(table: Mapping[str, T], key: str, what: str, source: Path) -> T:
    if key not in table:
        hint = schema.likely(key, table) or f": there are {', '.join(sorted(table))}"
        raise BadConfig(f"{source}: unknown {what} {key!r}{hint}")
    return table[key]
