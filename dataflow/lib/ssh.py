"""One shared SSH connection to each destination, and a budget of new ones.

OpenSSH's connection sharing: one master process per destination with a control socket of its own; rsync, ``receive``,
flags and logs are sessions on it. A master whose peer is gone still answers ``-O check``, so one that has not been proved
for a while is asked for a round trip. Clients never connect by themselves (their proxy command is ``false``): only the
master makes a connection, and each attempt, failed ones too, is counted for the destination's address over all processes
of this machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataflow.lib import command
from dataflow.lib.config import Config, Here
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, HostDown, TryLater

PROVED_S = 30.0
HELLO_TIMEOUT_S = 20.0
LOGIN_LIMIT_S = 30.0
UNREACHABLE_CODE = 255
CHAIN_RUN_VARIABLE = "DATAFLOW_CHAIN_RUN"
"""Set by the daemon: which run of the list this step belongs to."""


@dataclass(frozen=True, slots=True)
class Link:
    """A proved connection to the machine that plays ``there``."""

    ctx: Context
    there: Here
    argv: tuple[str, ...]
    proof: Path

    @property
    def destination(self) -> str:
        """What ssh calls the link; with its key the other machine knows who asks."""
        return name_of_link(self.ctx.here, self.there)

    @property
    def remote_shell(self) -> str:
        """The text that rsync's ``-e`` takes: it holds paths of this machine only, never a file's name."""
        return shlex.join(self.argv)

    def receive(self, verb: str, stdin: bytes, timeout_s: float) -> bytes:
        """Ask the other machine's ``dataflow receive``, which the link's key starts, for one of its verbs; what it prints.

        Raises:
            HostDown: the connection failed, or the other side gave no answer in time.
            TryLater: the other side could not do it, and answers nothing but why.
        """
        try:
            answer = _ask(self, verb, stdin, timeout_s)
        except HostDown:
            self.mark_down()
            raise
        if answer.returncode and not answer.stdout:
            raise TryLater(f"{self.there.machine.name} could not do `{verb}`: {answer.last_lines or 'it does not say why'}")
        return answer.stdout

    def require_place(self) -> None:
        """Make sure that the other machine had a place for files when it was last asked.

        Raises:
            TryLater: its disk is not mounted, or nothing can be written there.
        """
        if said := self._said("trouble"):
            raise TryLater(f"{self.there.machine.name} has no place for files now: {said}")

    def require_room(self) -> None:
        """Make sure that the other machine had room for more files when it was last asked; logs are always few enough.

        Raises:
            TryLater: its disk is down to its reserve.
        """
        if said := self._said("full"):
            raise TryLater(f"{self.there.machine.name} has no room for files now: {said}")

    def _said(self, key: str) -> str:
        """What the other machine said that is wrong with its place for files; the proof is empty when nothing is."""
        return str(json.loads(self.proof.read_text(encoding="utf-8") or "{}").get(key, ""))

    def mark_down(self) -> None:
        """Let the later steps of this run of the list leave the machine alone: each would wait for its own time limit."""
        if run := os.environ.get(CHAIN_RUN_VARIABLE):
            _down_mark(self.ctx, self.there).write_text(run)


def by_key(answer: bytes, key: str) -> dict[str, dict[str, str]]:
    """The answers of ``receive`` by what each is for (``name``, ``id``), with those of their fields that are texts.

    A line that is no answer, such as a greeting that the other machine's shell prints, is passed over.
    """
    found = {}
    for line in answer.splitlines():
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(item, dict) and isinstance(item.get(key), str):
            found[item[key]] = {name: value for name, value in item.items() if isinstance(value, str)}
    return found


def connect(ctx: Context, host: str) -> Link:
    """A proved connection to the machine that plays ``host`` for this radar: the shared one, or a new one in its place.

    Raises:
        HostDown: it cannot be reached, or the budget of new connections is used up for this minute.
    """
    there = ctx.config.here(host, ctx.here.radar)
    socket = control_socket(ctx.config, ctx.here, there)
    argv = (*_base(ctx, there, socket), "-o", "ControlMaster=no", "-o", "ProxyCommand=false")
    link = Link(ctx, there, argv, socket.with_suffix(".proved"))
    _refuse_if_found_down(ctx, there)
    try:
        with _attempt_lock(socket):
            if not _is_alive(link, socket):
                close(socket)
                spend(ctx.here.machine_state, there.machine.address, ctx.flow.ssh.max_new_connections_per_minute)
                _start_master(ctx, there, socket)
                _prove(link)
    except HostDown:
        link.mark_down()
        raise
    return link


def name_of_link(here: Here, there: Here) -> str:
    """What a link is called in ssh's own files: its pair of keys, and its ``Host`` in ssh_config."""
    return f"dataflow-{here.radar}-{here.host_name}-to-{there.host_name}"


def control_socket(config: Config, here: Here, there: Here) -> Path:
    """The control socket of the link between two machines; the path is short because sockets' paths must be."""
    folder = Path(tempfile.gettempdir()) / f"dataflow-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise BadConfig(f"cannot make {folder} for the SSH control sockets: {error.strerror}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise BadConfig(f"{folder} must be a folder of this user with mode 0700: remove it, it may be somebody's trap")
    machine = there.machine
    text = f"{config.root}|{here.machine.name}|{here.radar}|{machine.user}|{machine.address}|{machine.port}"
    return folder / hashlib.sha256(text.encode()).hexdigest()[:16]


def close(socket: Path) -> None:
    """End the master of a control socket, if there is one, also one whose peer is gone."""
    if socket.exists():
        command.run(["ssh", "-F", "/dev/null", "-S", socket, "-O", "exit", "peer"], timeout_s=10)
    socket.unlink(missing_ok=True)
    socket.with_suffix(".proved").unlink(missing_ok=True)


def _base(ctx: Context, there: Here, socket: Path) -> tuple[str, ...]:
    settings = ctx.flow.ssh
    options = {
        "HostName": there.machine.address,
        "Port": str(there.machine.port),
        "User": there.machine.user or there.host.user,
        "BatchMode": "yes",
        "ControlPath": str(socket),
        "ConnectTimeout": str(settings.connect_timeout_s),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": str(settings.keep_alive_s),
        "ServerAliveCountMax": "3",
        "ForwardAgent": "no",
        "ForwardX11": "no",
    }
    config_file = ["-F", settings.config_file] if settings.config_file else []
    return ("ssh", *config_file, *(f"-o{key}={value}" for key, value in options.items()))


def _start_master(ctx: Context, there: Here, socket: Path) -> None:
    complaint = socket.with_suffix(".log")
    complaint.unlink(missing_ok=True)
    argv: Sequence[str] = [
        *_base(ctx, there, socket), "-oControlMaster=yes", f"-oControlPersist={ctx.flow.ssh.idle_close_s}",
        "-E", str(complaint), "-n", "-N", "-f", name_of_link(ctx.here, there),
    ]  # fmt: skip
    process = command.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, inherit=False)
    try:
        code = process.wait(ctx.flow.ssh.connect_timeout_s + LOGIN_LIMIT_S)
    except subprocess.TimeoutExpired:
        command.end_group(process)
        code = UNREACHABLE_CODE
    if code != 0 or not socket.exists():
        said = complaint.read_text(errors="replace").strip().replace("\n", " | ") if complaint.exists() else "no answer"
        raise HostDown(f"cannot connect to {there.machine.name} ({there.machine.address} port {there.machine.port}): {said}")


def _is_alive(link: Link, socket: Path) -> bool:
    """True when the shared connection exists and its peer answers, or did so a moment ago."""
    if not socket.exists():
        return False
    if _recent(link.proof) and _master_answers(link):
        return True
    try:
        _prove(link)
    except HostDown:
        return False
    return True


def _ask(link: Link, verb: str, stdin: bytes, timeout_s: float) -> command.Finished:
    machine = link.there.machine
    finished = command.run([*link.argv, link.destination, verb], timeout_s=timeout_s, stdin=stdin)
    if finished.timed_out or finished.returncode == UNREACHABLE_CODE:
        why = "it gave no answer in time" if finished.timed_out else finished.last_lines or "the connection broke"
        raise HostDown(f"{machine.name} ({machine.address}): {why}")
    if finished.returncode not in (0, 1):
        raise HostDown(f"receive on {machine.name} ended with {finished.returncode}: {finished.last_lines}")
    return finished


def _prove(link: Link) -> None:
    """Ask for a round trip; what the other machine says is wrong with its place for files is kept for who wants to send some."""
    answer = _ask(link, "hello", b"", HELLO_TIMEOUT_S)
    try:
        wrong = {key: text for key, text in dict(json.loads(answer.stdout)).items() if key in ("trouble", "full")}
    except (ValueError, TypeError) as error:
        said = answer.last_lines or repr(answer.stdout[:80])
        raise HostDown(f"{link.there.machine.name} answers, but not as dataflow: {said}") from error
    link.proof.write_text(json.dumps(wrong) if wrong else "", encoding="utf-8")


def _recent(proof: Path) -> bool:
    """True for a proof of a moment ago, if nothing was wrong then."""
    try:
        status = proof.stat()
        return status.st_size == 0 and 0 <= time.time() - status.st_mtime < PROVED_S
    except FileNotFoundError:
        return False


def _master_answers(link: Link) -> bool:
    return command.run([*link.argv, "-O", "check", link.destination], timeout_s=5).returncode == 0


def spend(machine_state: Path, address: str, limit: int) -> None:
    """Count one new connection to an address, or refuse it. Times are of the monotonic clock that all processes share.

    Raises:
        HostDown: ``limit`` were made within a minute.
    """
    folder = machine_state / "connections"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / address, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        now = time.monotonic()
        spent = [t for t in _times(os.pread(descriptor, 65536, 0)) if 0 <= now - t < 60]
        if len(spent) >= limit:
            wait_s = 60 - now + spent[0]
            raise HostDown(f"{limit} new connections a minute to {address} are used up; the next in {wait_s:.0f} s")
        content = json.dumps([*spent, now]).encode()
        os.pwrite(descriptor, content, 0)  # not emptied before: a full disk must not forget what was spent
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _refuse_if_found_down(ctx: Context, there: Here) -> None:
    """A host found unreachable earlier in this run of the list is not tried again by the list's later steps."""
    run, mark = os.environ.get(CHAIN_RUN_VARIABLE), _down_mark(ctx, there)
    if run and mark.exists() and mark.read_text() == run:
        raise HostDown(f"{there.machine.name} ({there.machine.address}) was found unreachable earlier in this run")


def _down_mark(ctx: Context, there: Here) -> Path:
    folder = ctx.here.state / "down"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / there.machine.name


def _times(content: bytes) -> list[float]:
    try:
        return [float(value) for value in json.loads(content or b"[]")]
    except (ValueError, TypeError):
        return []


class _attempt_lock:
    """Two processes never start a master for one destination at the same time."""

    def __init__(self, socket: Path) -> None:
        self._path = socket.with_suffix(".lock")

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
