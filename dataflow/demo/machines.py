"""Machines that are not there: an unprivileged sshd on loopback for each, with throwaway keys, below one folder.

The shipped configuration is used as it is; what differs (addresses, ports, keys) is a list of overrides.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataflow.lib import check, command, config, keys, ssh
from dataflow.lib.config import Config, Flow
from dataflow.lib.errors import BadConfig

START_LIMIT_S = 10.0
_SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True, slots=True)
class Door:
    """Where the sshd of a host listens. ``within``: words before a command that put it into a network of the host's own."""

    address: str = "127.0.0.1"
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machines:
    """The loopback machines of some radars. ``config`` is the shipped configuration with what makes it run here."""

    root: Path
    config: Config

    @property
    def secrets(self) -> Path:
        """The folder of the keys, and of what the sshds need and say."""
        return self.root / ".machines"

    def sshd_log(self, machine: str) -> Path:
        """What the sshd of a machine logged: one line ``Accepted publickey`` for each new connection."""
        return self.secrets / f"{machine}.sshd.log"


@contextmanager
def running(
    root: Path,
    radars: Sequence[str],
    overrides: Sequence[str] = (),
    source: Path | None = None,
    doors: Mapping[str, Door] | None = None,
) -> Iterator[Machines]:
    """Start the machines of some radars below ``root``, mark their roots as the right disks, and end them afterwards.

    ``doors``: where the hosts listen that are not to be reached on loopback.

    Raises:
        BadConfig: sshd or rsync is not installed, or an sshd does not start.
    """
    for program in (_SSHD, "ssh", "ssh-keygen", "rsync", "rrsync"):
        if not shutil.which(program):
            raise BadConfig(f"{program} is not installed: apt install openssh-server openssh-client rsync")
    secrets = root.absolute() / ".machines"
    secrets.mkdir(parents=True, exist_ok=True)
    secrets.chmod(0o700)
    overrides = [*without_limits(config.load(source).flow), *overrides]
    loaded = config.load(source, root.absolute(), overrides)
    with ExitStack() as stack:
        listening: dict[str, tuple[str, int]] = {}
        for radar in radars:
            for host, machine in loaded.flow.radars[radar].machines.items():
                if host != "borealis" and machine.name not in listening:
                    door = (doors or {}).get(host, Door())
                    listening[machine.name] = (door.address, stack.enter_context(_sshd(secrets, machine.name, door)))
        more = [*overrides, f"ssh.config_file={secrets / 'ssh_config'}", *_addresses(loaded, radars, listening, secrets)]
        final = config.load(source, root.absolute(), more)
        write_wrapper(secrets / "dataflow", final)
        let_in(final, radars, secrets)
        for radar in radars:
            for host in loaded.flow.hosts:
                for finding in check.look(final.here(host, radar), create_markers=True):
                    if not finding.is_good:
                        raise BadConfig(f"{host} of {radar}: {finding.subject}: {finding.message}. {finding.mend}")
        try:
            yield Machines(root.absolute(), final)
        finally:
            _disconnect(final, radars)


def without_limits(flow: Flow) -> Iterator[str]:
    """The overrides that lift the limits of all roots: those are of real disks, and here all machines share this computer's."""
    of_hosts = ((f"hosts.{name}", host.roots) for name, host in flow.hosts.items())
    of_machines = (
        (f"radars.{radar}.machines.{name}", machine.roots)
        for radar, entry in flow.radars.items()
        for name, machine in entry.machines.items()
    )
    for key, roots in (*of_hosts, *of_machines):
        yield from (f"{key}.roots.{root}.{limit}=0" for root in roots for limit in ("reserve_bytes", "min_free_for_iq_bytes"))


def _disconnect(final: Config, radars: Sequence[str]) -> None:
    """End the shared connections, which would outlive the sshds that accepted them, and what lies beside their sockets."""
    for radar in radars:
        for name, host in final.flow.hosts.items():
            if host.next is not None:
                control = ssh.control_socket(final, final.here(name, radar), final.here(host.next, radar))
                ssh.close(control)
                for path in control.parent.glob(f"{control.name}.*"):
                    path.unlink(missing_ok=True)


def _addresses(loaded: Config, radars: Sequence[str], listening: Mapping[str, tuple[str, int]], secrets: Path) -> Iterator[str]:
    user = pwd.getpwuid(os.getuid()).pw_name
    for radar in radars:
        for host, machine in loaded.flow.radars[radar].machines.items():
            if machine.name in listening:
                key, (address, port) = f"radars.{radar}.machines.{host}", listening[machine.name]
                yield from (f"{key}.address={address}", f"{key}.port={port}", f"{key}.user={user}")
                yield f"{key}.command={secrets / 'dataflow'}"


@contextmanager
def _sshd(secrets: Path, machine: str, door: Door) -> Iterator[int]:
    """One sshd; yields its port."""
    host_key = secrets / f"{machine}.host_key"
    _make_key(host_key)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = _free_port()
    settings = {
        "Port": port, "ListenAddress": door.address, "HostKey": host_key,
        "AuthorizedKeysFile": secrets / f"{machine}.authorized_keys",
        "PidFile": "none", "UsePAM": "no", "StrictModes": "no", "PasswordAuthentication": "no", "PermitRootLogin": "yes",
        "MaxStartups": "100", "LogLevel": "VERBOSE", "PrintMotd": "no",
        # what Debian's sshd allows; a link may do only what its key does
        "X11Forwarding": "yes", "AcceptEnv": "LANG LC_*", "Subsystem": "sftp internal-sftp",
        "SetEnv": f"HOME={secrets}",  # what a person's own .bashrc does and prints has no business in a transfer
    }  # fmt: skip
    file = secrets / f"{machine}.sshd_config"
    file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    log = secrets / f"{machine}.sshd.log"
    log.unlink(missing_ok=True)
    argv: list[str | Path] = [*door.within, _SSHD, "-D", "-f", file, "-E", log]
    process = command.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, inherit=False)
    try:
        _wait_until_it_listens(process, port, log)
        yield port
    finally:
        command.end_group(process)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline, said = time.monotonic() + START_LIMIT_S, ""
    while time.monotonic() < deadline and process.poll() is None:
        said = log.read_text(errors="replace") if log.exists() else ""
        if f"port {port}." in said:  # "Server listening on ADDRESS port PORT."
            return
        time.sleep(0.05)
    raise BadConfig(f"sshd does not listen on port {port}: {said.strip()[-500:]}")


def let_in(final: Config, radars: Sequence[str], secrets: Path) -> None:
    """Write what ssh and the sshds have to know of the links, each of which has a key that is good for nothing else."""
    files: dict[Path, str] = {}
    for radar in radars:
        for here in (final.here(host, radar) for host in final.flow.hosts):
            for link in (link for link in keys.links(final, here) if link.sender is here):
                for piece in keys.pieces(link, here, secrets):
                    keyring = secrets / f"{piece.machine}.authorized_keys"
                    file = keyring if piece.file.name == "authorized_keys" else secrets / "ssh_config"
                    files[file] = files.get(file, "") + piece.text + "\n"
                host_key = keys.public_key(secrets / f"{link.receiver.machine.name}.host_key.pub")
                known = secrets / "known_hosts"
                files[known] = files.get(known, "") + keys.known_line(link, host_key) + "\n"
    for file, content in files.items():
        file.write_text(content)


def write_wrapper(path: Path, final: Config) -> None:
    """A program that is ``dataflow`` with this Python and this configuration: what an SSH session on these machines calls."""
    variables = {**final.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items() if value)
    path.write_text(f'#!/bin/sh\n{exports}exec {shlex.quote(sys.executable)} -m dataflow "$@"\n')
    path.chmod(0o755)


def _make_key(path: Path) -> None:
    if not path.exists():
        finished = command.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], timeout_s=30)
        if finished.returncode != 0:
            raise BadConfig(f"ssh-keygen cannot write {path}: {finished.last_lines}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
