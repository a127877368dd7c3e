"""A real sshd on loopback that serves SFTP, with throwaway keys, and the settings of a store behind it.

As root it lets in `nobody` as well: a login with no shell that the permissions of files hold for.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dataflow.lib import command
from dataflow.lib.mirror_settings import StoreSettings

SSHD = "/usr/sbin/sshd"
START_LIMIT_S = 10.0
NOBODY = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
"""A user to whom a permission can be refused."""


@dataclass(frozen=True, slots=True)
class Server:
    """``root``: the folder that the store's paths are below. ``secrets``: keys, configuration, log."""

    root: Path
    secrets: Path
    port: int
    user: str

    def settings(self, **others: object) -> StoreSettings:
        """The settings of a store that is `root`; ``others`` replace some of them."""
        given: dict[str, object] = {
            "kind": "sftp", "root": str(self.root), "address": "127.0.0.1", "port": self.port, "user": self.user,
            "key_file": str(self.secrets / "key"), "known_hosts": str(self.secrets / "known_hosts"),
        }  # fmt: skip
        return StoreSettings(**{**given, **others})  # type: ignore[arg-type]

    def log(self) -> str:
        """What sshd said so far."""
        return (self.secrets / "log").read_text(errors="replace")

    def connections(self) -> int:
        """How many connections were let in since it started."""
        return self.log().count("Accepted publickey")

    def sessions(self, kind: str) -> int:
        """How many sessions of a kind it began: `subsystem 'sftp'`, `command`, `forced-command`."""
        return self.log().count(f"Starting session: {kind}")


@dataclass(slots=True)
class Line:
    """A way to a server on which so many bytes come through and no more: to it ``there``, from it ``back``."""

    server: Server
    there: float
    back: float
    goes_silent: bool
    passed: dict[str, int] = field(default_factory=lambda: {"there": 0, "back": 0})
    open: list[socket.socket] = field(default_factory=list)

    def accept(self, listener: socket.socket, port: int) -> None:
        """Serve whoever comes, until the listener is closed."""
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            self.open += [near, far]
            threading.Thread(target=self._carry, args=(near, far, "there", self.there), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, "back", self.back), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, way: str, limit: float) -> None:
        try:
            while piece := source.recv(65536):
                piece = piece[: int(min(limit - self.passed[way], len(piece)))]
                target.sendall(piece)
                self.passed[way] += len(piece)
                if self.passed[way] >= limit:
                    break
        except OSError:
            pass
        if not (self.goes_silent and self.passed[way] >= limit):
            self.cut()

    def cut(self) -> None:
        """End its connections."""
        for each in self.open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


@contextmanager
def line(server: Server, there: float = float("inf"), back: float = float("inf"), goes_silent: bool = False) -> Iterator[Line]:
    """A line to a server that is cut after so many bytes, or goes silent; its `server` is how the server is seen through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (server.secrets / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{port} {(server.secrets / 'host_key.pub').read_text()}")
        made = Line(replace(server, port=port), there, back, goes_silent)
        accepting = threading.Thread(target=made.accept, args=(listener, server.port), daemon=True)
        accepting.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            made.cut()


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that other users can get into too, as those of pytest cannot be; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def running(root: Path, user: str | None = None, **options: object) -> Iterator[Server]:
    """An sshd that lets ``user`` (the one that runs the tests) in with a key; ``options`` are those of sshd_config(5)."""
    user = user or pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory() as folder:
        secrets = Path(folder)
        secrets.chmod(0o755)  # sshd reads authorized_keys as the user
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", secrets / name], check=True)
        shutil.copy(secrets / "key.pub", secrets / "authorized_keys")
        port = _free_port()
        host_key = (secrets / "host_key.pub").read_text().split()
        (secrets / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
        process = _started(secrets, port, options)
        try:
            yield Server(root, secrets, port, user)
        finally:
            command.end_group(process)


def _started(secrets: Path, port: int, options: dict[str, object]) -> subprocess.Popen[bytes]:
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": secrets / "host_key",
        "AuthorizedKeysFile": secrets / "authorized_keys", "PidFile": "none", "UsePAM": "no", "StrictModes": "no",
        "PasswordAuthentication": "no", "PermitRootLogin": "yes", "MaxStartups": "100", "LogLevel": "VERBOSE",
        "PrintMotd": "no", "Subsystem": "sftp internal-sftp", **options,
    }  # fmt: skip
    (secrets / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    argv = [SSHD, "-D", "-f", secrets / "sshd_config", "-E", secrets / "log"]
    process = command.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, inherit=False)
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if (secrets / "log").exists() and f"port {port}." in (secrets / "log").read_text():
            return process
        time.sleep(0.02)
    command.end_group(process)
    raise AssertionError(f"sshd does not listen: {(secrets / 'log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
