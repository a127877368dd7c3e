"""The one connection to each destination: shared by all, proved, replaced when it is dead, and never one too many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import running_chain
from running_chain import LIMIT_S, SHIPPED, Running

from dataflow.lib import config, context, ssh
from dataflow.lib.config import Config
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, Exit, HostDown

CAMPUS = "radars.sas.machines.campus"
CONNECT = """
import sys
from dataflow.lib import config, context, ssh
from dataflow.lib.errors import HostDown
ctx = context.open_context(config.load(), sys.argv[1], sys.argv[2], "test")
try:
    ssh.connect(ctx, ctx.here.host.next).receive("hello", b"", 30)
except HostDown as error:
    print(error)
    sys.exit(75)
"""
"""What a process does that wants something from the next host of `sys.argv[1]` for the radar `sys.argv[2]`."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running_chain.running(tmp_path / "chain") as made:
        yield made


def context_of(loaded: Config, host: str = "site-linux", radar: str = "sas") -> Context:
    return context.open_context(loaded, host, radar, "test")


def with_settings(loaded: Config, *settings: str) -> Config:
    return config.load(loaded.source, loaded.root, [*loaded.overrides, *settings])


def processes(loaded: Config, count: int, host: str = "site-linux", radar: str = "sas") -> list[tuple[int, str]]:
    """Exit codes and texts of several processes that want a connection at the same time."""
    environment = {**os.environ, **loaded.environment(), "PYTHONPATH": str(SHIPPED.parent)}
    argv = [sys.executable, "-c", CONNECT, host, radar]
    started = [subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    said = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    return [(process.returncode, text.strip()) for process, text in zip(started, said, strict=True)]


def socket_of(loaded: Config, host: str = "site-linux", radar: str = "sas") -> Path:
    here = loaded.here(host, radar)
    return ssh.control_socket(loaded, here, loaded.here(str(here.host.next), radar))


def master_of(control: Path) -> int:
    """The process that holds a shared connection."""
    said = subprocess.run(["ssh", "-S", control, "-O", "check", "peer"], capture_output=True, text=True, timeout=LIMIT_S).stderr
    return int(re.search(r"pid=(\d+)", said)[1])


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port at which every connection is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """A port at which a connection is made and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def attempts(loaded: Config, host: str = "site-linux") -> int:
    """How many new connections the budget has counted."""
    folder = loaded.here(host, "sas").machine_state / "connections"
    return sum(len(json.loads(path.read_text())) for path in folder.iterdir())


def test_many_processes_share_one_connection(chain: Running) -> None:
    loaded = chain.machines.config
    assert processes(loaded, 8) == [(0, "")] * 8
    assert chain.connections("campus") == 1 == attempts(loaded)
    link = ssh.connect(context_of(loaded), "campus")
    for _ in range(5):
        assert json.loads(link.receive("hello", b"", LIMIT_S))["machine"] == "campus"
    assert chain.connections("campus") == 1


def test_a_dead_master_is_replaced_with_one_new_connection(chain: Running) -> None:
    loaded = chain.machines.config
    ssh.connect(context_of(loaded), "campus")
    control = socket_of(loaded)
    os.kill(master_of(control), signal.SIGKILL)
    assert control.exists(), "the socket outlives its master"
    assert processes(loaded, 4) == [(0, "")] * 4
    assert chain.connections("campus") == 2 == attempts(loaded)


def test_who_uses_a_dead_connection_makes_none_of_his_own(chain: Running) -> None:
    loaded = chain.machines.config
    link = ssh.connect(context_of(loaded), "campus")
    os.kill(master_of(socket_of(loaded)), signal.SIGKILL)
    with pytest.raises(HostDown):
        link.receive("hello", b"", LIMIT_S)
    argv = ["rsync", "-e", link.remote_shell, SHIPPED, f"{link.destination}:{chain.root}/there"]
    assert subprocess.run(argv, capture_output=True, timeout=LIMIT_S).returncode != 0
    socket_of(loaded).unlink()
    with pytest.raises(HostDown):
        link.receive("hello", b"", LIMIT_S)
    assert chain.connections("campus") == 1


def test_a_peer_that_hangs_is_noticed_though_the_master_lives(chain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = chain.machines.config
    link = ssh.connect(context_of(loaded), "campus")
    monkeypatch.setattr(ssh, "HELLO_TIMEOUT_S", 6.0)
    _, stopped = running_chain.sshds_of(chain, "campus")
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert subprocess.run([*link.argv, "-O", "check", link.destination], capture_output=True).returncode == 0
        os.utime(link.proof, (0, 0))
        again = ssh.connect(context_of(loaded), "campus")
        assert again.receive("hello", b"", LIMIT_S)
        assert chain.connections("campus") == 2 == attempts(loaded)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_machine_that_is_mute_is_given_up(chain: Running) -> None:
    with mute() as port:
        loaded = with_settings(chain.machines.config, f"{CAMPUS}.port={port}", "ssh.connect_timeout_s=1")
        with pytest.raises(HostDown, match=r"cannot connect to campus \(127.0.0.1 port \d+\): .*[Tt]ime"):
            ssh.connect(context_of(loaded), "campus")
        assert attempts(loaded) == 1 and not socket_of(loaded).exists()


def test_failed_attempts_are_counted_and_then_refused(chain: Running) -> None:
    with nobody() as port:
        loaded = with_settings(chain.machines.config, f"{CAMPUS}.port={port}", "ssh.max_new_connections_per_minute=3")
        for _ in range(3):
            with pytest.raises(HostDown, match="Connection refused"):
                ssh.connect(context_of(loaded), "campus")
        with pytest.raises(HostDown, match=r"3 new connections a minute to 127.0.0.1 are used up; the next in \d+ s") as caught:
            ssh.connect(context_of(loaded), "campus")
        assert 50 <= int(re.search(r"in (\d+) s", str(caught.value))[1]) <= 60
        assert attempts(loaded) == 3
        let_time_pass(loaded, 61)
        with pytest.raises(HostDown, match="Connection refused"):
            ssh.connect(context_of(loaded), "campus")


def let_time_pass(loaded: Config, seconds: float) -> None:
    for path in (loaded.here("site-linux", "sas").machine_state / "connections").iterdir():
        path.write_text(json.dumps([moment - seconds for moment in json.loads(path.read_text())]))


def test_all_processes_and_radars_of_a_machine_share_the_budget(tmp_path: Path) -> None:
    one_machine = "radars.inv.machines.site-linux.name=sas-site"
    settings = [*running_chain.QUICK, one_machine, "ssh.max_new_connections_per_minute=4"]
    with running_chain.running(tmp_path / "chain", ("sas", "inv"), settings) as chain, nobody() as port:
        loaded = with_settings(chain.machines.config, f"{CAMPUS}.port={port}", f"radars.inv.machines.campus.port={port}")
        said = [*processes(loaded, 3, radar="sas"), *processes(loaded, 3, radar="inv")]
        assert [code for code, _ in said] == [Exit.UNREACHABLE] * 6
        assert sum("Connection refused" in text for _, text in said) == 4
        assert sum("are used up; the next in" in text for _, text in said) == 2
        assert attempts(loaded) == 4


def test_a_step_without_budget_ends_with_75_and_says_when(tmp_path: Path) -> None:
    with running_chain.running(
        tmp_path / "chain", overrides=[*running_chain.QUICK, "ssh.max_new_connections_per_minute=1"]
    ) as chain:
        first = chain.dataflow("run", "rsync_to_nas", "--radar", "sas")
        assert first.returncode == Exit.ACCOUNTED, first.stderr
        ssh.connect(context_of(chain.machines.config, "borealis"), "site-linux")
        os.kill(master_of(socket_of(chain.machines.config, "borealis")), signal.SIGKILL)
        refused = chain.dataflow("run", "send_logs", "--host", "borealis", "--radar", "sas")
        assert refused.returncode == Exit.UNREACHABLE
        assert re.search(r"1 new connections a minute to 127.0.0.1 are used up; the next in \d+ s", refused.stderr)
        assert chain.connections("sas-site") == 1


def test_what_was_spent_before_a_reboot_does_not_count(chain: Running) -> None:
    """The times are of a clock that begins anew at a boot."""
    loaded = with_settings(chain.machines.config, "ssh.max_new_connections_per_minute=1")
    folder = loaded.here("site-linux", "sas").machine_state / "connections"
    folder.mkdir(parents=True)
    (folder / "127.0.0.1").write_text(json.dumps([time.monotonic() + 1e6]))
    ssh.connect(context_of(loaded), "campus")
    (folder / "127.0.0.1").write_text("torn")
    ssh.close(socket_of(loaded))
    ssh.connect(context_of(loaded), "campus")


def test_the_shared_connection_does_not_hold_the_lock_of_the_run(chain: Running) -> None:
    chain.dataflow("run", "rsync_to_nas", "--radar", "sas")
    sent = chain.dataflow("run", "send_logs", "--host", "borealis", "--radar", "sas")
    assert sent.returncode == Exit.ACCOUNTED and chain.connections("sas-site") == 1, sent.stderr
    master = master_of(socket_of(chain.machines.config, "borealis"))
    lock = chain.here("borealis").state / "lock"
    assert os.fspath(lock) not in {os.readlink(path) for path in Path(f"/proc/{master}/fd").iterdir()}
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.getpgid(master) != os.getpgid(os.getpid()) and parent_of(master) == 1, "it outlives who started it"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_down_mark_of_another_run_means_nothing(chain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = chain.machines.config
    with nobody() as port:
        away = with_settings(loaded, f"{CAMPUS}.port={port}")
        monkeypatch.setenv(ssh.CHAIN_RUN_VARIABLE, "run 1")
        with pytest.raises(HostDown, match="Connection refused"):
            ssh.connect(context_of(away), "campus")
        with pytest.raises(HostDown, match="found unreachable earlier in this run"):
            ssh.connect(context_of(away), "campus")
    monkeypatch.setenv(ssh.CHAIN_RUN_VARIABLE, "run 2")
    ssh.connect(context_of(loaded), "campus")


def test_who_answers_must_be_dataflow(chain: Running) -> None:
    loaded = chain.machines.config
    program = Path(chain.here("campus").machine.command)
    program.write_text("#!/bin/sh\necho 'Welcome to campus'\necho 'No module named dataflow' >&2\nexit 1\n")
    with pytest.raises(HostDown, match="No module named dataflow"):
        ssh.connect(context_of(loaded), "campus")
    program.unlink()
    with pytest.raises(HostDown, match=str(program)):
        ssh.connect(context_of(loaded), "campus")


def trap_with_open_mode(folder: Path) -> None:
    folder.mkdir(mode=0o755)


def trap_behind_a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def trap_that_is_a_file(folder: Path) -> None:
    folder.touch()


def trap_of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)


TRAPS = [trap_with_open_mode, trap_behind_a_link, trap_that_is_a_file, *([trap_of_another_user] if os.getuid() == 0 else [])]


@pytest.mark.parametrize("trap", TRAPS)
def test_a_control_folder_that_may_be_a_trap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    loaded = config.load(SHIPPED, tmp_path / "root")
    assert socket_of(loaded).parent == tmp_path / f"dataflow-{os.getuid()}"
    (tmp_path / f"dataflow-{os.getuid()}").rmdir()
    trap(tmp_path / f"dataflow-{os.getuid()}")
    with pytest.raises(BadConfig, match=r"SSH control sockets|must be a folder of this user"):
        socket_of(loaded)


def test_every_link_has_a_connection_of_its_own(tmp_path: Path) -> None:
    loaded = config.load(SHIPPED, tmp_path)
    links: Sequence[Path] = [
        socket_of(loaded, host, radar) for host in ("borealis", "site-linux") for radar in ("sas", "pgr", "inv")
    ]
    assert len(set(links)) == len(links)
    assert all(len(os.fspath(path)) + len(".0123456789abcdef") < 100 for path in links), "ssh binds a longer name first"
