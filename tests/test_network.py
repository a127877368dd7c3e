"""The network between three hosts, each in a namespace of its own, broken in every way that a link breaks.

Each test ends the same way: the link is restored, what waits is done, and then every file is where it belongs once, with its
content, nothing waits or is left over anywhere, and each host has told of it. Files are random bytes under rawacf names, so
campus archives them without converting them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import namespaces
import pytest
import running_chain
from namespaces import BAN_AT, Network, Satellite
from running_chain import Running

from dataflow.lib import names, place, summary
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind

SAS, INV = "sas", "inv"
START = datetime(2026, 3, 1, tzinfo=UTC)
SITE_TO_CAMPUS = ("site-linux", "campus")
QUICK = (
    "files.unchanged_s=0", "files.complete_after_s=0", "files.settle_s=0", "plots.archive_after_h=0",
    "ssh.connect_timeout_s=2", "ssh.keep_alive_s=1", "daemon.back_off_first_s=1", "daemon.back_off_last_s=4",
    "hosts.campus.routes.rawacf=data",
    "hosts.site-linux.steps=[rsync_to_campus data, send_flag, rsync_to_campus pictures, send_flag, send_logs]",
    "hosts.campus.steps=[distribute_borealis_data, archive_iq_plots]",
)  # fmt: skip
"""Shorter times, so that a link is given up in seconds, and only the steps that have to do with a link or the archive.

The budget of new connections is the shipped one.
"""
MIB = 1 << 20
NO_FLAGS = {"waiting": [], "open": [], "outbox": []}


@dataclass
class Hosts:
    """The chain of one radar without NAS, and the network below it; what has been fed, by name."""

    network: Network
    chain: Running
    fed: dict[str, str]

    def once(self, host: str, expected: Exit = Exit.ACCOUNTED) -> None:
        """One run of a host's list, which has to end as expected."""
        assert self.chain.once(host, INV) == expected, self.chain.said()

    def at_site(self, number: int, size_bytes: int) -> Path:
        """A block that the radar computer has delivered to the site."""
        path = self._write(self.chain.here("site-linux", INV).folder("rawacf_array"), number, size_bytes)
        self.chain.admit("site-linux", [Entry(path.name, size_bytes, self.fed[path.name])], INV)
        return path

    def at_radar(self, number: int, size_bytes: int) -> Path:
        """A block that the radar has written."""
        return self._write(self.chain.here("borealis", INV).folder("data") / f"{at(number):%Y%m%d}", number, size_bytes)

    def pictures(self, count: int, size_bytes: int) -> None:
        """Pictures that wait at the site, all of one block."""
        folder, entries = self.chain.here("site-linux", INV).folder("daily_plots"), []
        folder.mkdir(parents=True, exist_ok=True)
        source = names.radar_file(START, INV, 0, Kind.ANTENNAS_IQ)
        for number in range(count):
            content = (b"%d " % number).ljust(size_bytes, b".")
            path = folder / names.plot_of(source, number, 0, 70).text
            path.write_bytes(content)
            self.fed[path.name] = hashlib.sha256(content).hexdigest()
            entries.append(Entry(path.name, len(content), self.fed[path.name], by="plot_antennas_iq"))
        self.chain.admit("site-linux", entries, INV)

    def _write(self, folder: Path, number: int, size_bytes: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / names.radar_file(at(number), INV, 0, Kind.RAWACF).text
        content = random.Random(number).randbytes(size_bytes)
        path.write_bytes(content)
        written = (at(number) + timedelta(hours=2)).timestamp()
        os.utime(path, (written, written))
        self.fed[path.name] = hashlib.sha256(content).hexdigest()
        return path

    def arrived(self, name: str = "") -> list[dict[str, Any]]:
        """What campus recorded of arrivals that it accepted, of one file or of all."""
        taken = [record for record in self.chain.records("campus", INV, "receive") if record["event"] == "file"]
        return [record for record in taken if record["outcome"] == "done" and name in ("", record["file"])]

    def assert_all_is_delivered(self) -> None:
        """Everything that was fed lies in the archive once, whole; nothing else lies anywhere, and nothing waits."""
        expected = {self._archived(name): digest for name, digest in self.fed.items()}
        assert {path: hashlib.sha256((self.chain.root / path).read_bytes()).hexdigest() for path in expected} == expected
        assert self.chain.files() == set(expected)
        assert self.chain.is_at_rest([INV]), [self.chain.flags(host, INV) for host in self.network.holders]
        received = [record["file"] for record in self.arrived() if record["action"] != "duplicate"]
        assert sorted(received) == sorted(self.fed), "each file was accepted once, however often it came"
        assert sorted(archived(self)) == sorted(self.fed)

    def _archived(self, name: str) -> str:
        parsed = names.parse(name)
        folder = "archive_hdf5" if parsed.kind is Kind.RAWACF else "plots_archive"
        return str((self.chain.here("campus", INV).folder(folder, parsed.time) / name).relative_to(self.chain.root))


def at(number: int) -> datetime:
    return START + timedelta(hours=2 * number)


@contextlib.contextmanager
def hosts_of(root: Path, *settings: str, slow: Satellite | None = None) -> Iterator[Hosts]:
    with (
        namespaces.network(slow) as network,
        running_chain.running(root, (INV,), [*QUICK, *settings], doors=network.doors()) as chain,
    ):
        yield Hosts(network, chain, {})


FAULTS: dict[str, Callable[[Network, str, str], None]] = {
    "cut": Network.cut,
    "silence": Network.silence,
    "deaf": Network.deafen,
}


# moments


def in_mid_transfer(hosts: Hosts, fault: Callable[[], None]) -> None:
    """A third of a large file has arrived."""
    path = hosts.at_site(0, 24 * MIB)
    site = hosts.chain.start("site-linux", INV, "--once")
    incoming = hosts.chain.here("campus", INV).folder("incoming")
    hosts.chain.until(lambda: sum(part.stat().st_size for part in incoming.glob(f".{path.name}.*")) > 8 * MIB, "it arrives")
    fault()
    assert site.process.wait(running_chain.LIMIT_S) == Exit.UNREACHABLE, hosts.chain.said()
    assert path.exists() and not hosts.arrived()


def in_mid_verification(hosts: Hosts, fault: Callable[[], None]) -> None:
    """Campus is reading what arrived; the next try comes while it still does."""
    path = hosts.at_site(0, 96 * MIB)
    verifying = process_of_next(hosts, "accept")
    site = hosts.chain.start("site-linux", INV, "--once")
    arrived = os.fspath(hosts.chain.here("campus", INV).folder("incoming") / path.name)
    pid = hosts.chain.until(verifying, "campus was asked to accept it")
    hosts.chain.until(lambda: arrived in open_files(pid), "campus reads it", every_s=0.001)
    os.kill(pid, signal.SIGSTOP)
    assert arrived in open_files(pid)
    fault()
    assert site.process.wait(running_chain.LIMIT_S) == Exit.UNREACHABLE, hosts.chain.said()
    assert path.exists() and not hosts.arrived()
    hosts.network.restore(*SITE_TO_CAMPUS)
    hosts.once("site-linux")
    assert not path.exists()
    os.kill(pid, signal.SIGCONT)
    hosts.chain.until(lambda: not Path(f"/proc/{pid}/fd").exists(), "the first one has ended as well")


def before_the_flag_is_acknowledged(hosts: Hosts, fault: Callable[[], None]) -> None:
    """The flag lies on campus, and the site does not hear of it."""
    hosts.at_site(0, 1000)
    answer = hold_next_answer(hosts, "flag")
    site = hosts.chain.start("site-linux", INV, "--once")
    hosts.chain.until(answer.exists, "campus has the flag")
    fault()
    assert site.process.wait(running_chain.LIMIT_S) == Exit.UNREACHABLE, hosts.chain.said()
    answer.unlink()
    (sent,) = hosts.chain.flags("campus", INV)["waiting"]
    assert hosts.chain.flags("site-linux", INV)["outbox"] == [sent]


MOMENTS = {in_mid_transfer: 8_000, in_mid_verification: 200_000, before_the_flag_is_acknowledged: 200_000}
"""Each with the site's bandwidth in KiB/s: what is to be broken half-way has to take its time."""


@pytest.mark.parametrize("fault", ["cut", "silence"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_link_that_breaks(tmp_path: Path, moment, fault: str) -> None:
    with hosts_of(tmp_path / "chain", f"radars.inv.machines.site-linux.bandwidth_kib_s={MOMENTS[moment]}") as hosts:
        moment(hosts, lambda: FAULTS[fault](hosts.network, *SITE_TO_CAMPUS))
        hosts.network.restore(*SITE_TO_CAMPUS)
        hosts.once("site-linux")
        let_go_of_lost_sessions(hosts, "campus")
        hosts.at_site(1, 1000)
        hosts.once("site-linux")
        hosts.once("campus")
        hosts.assert_all_is_delivered()
        assert hosts.chain.connections("campus") <= 3


def let_go_of_lost_sessions(hosts: Hosts, host: str) -> None:
    """Wait until the rsyncs whose sender is gone have noticed; what they leave behind goes when the next files come."""
    incoming = hosts.chain.here(host, INV).folder("incoming")
    hosts.chain.until(lambda: not list(incoming.glob(".*.inv.*")), "they hold nothing any more")


def process_of_next(hosts: Hosts, verb: str) -> Callable[[], int]:
    """Gives the process that serves the next such request on campus, as soon as there is one."""
    noted = hosts.chain.root / ".machines" / f"{verb}.pid"
    wrap(hosts, f'[ "$SSH_ORIGINAL_COMMAND" = {verb} ] && [ ! -e {noted} ] && echo $$ > {noted}.part && mv {noted}.part {noted}')
    return lambda: int(noted.read_text()) if noted.exists() else 0


def hold_next_answer(hosts: Hosts, verb: str) -> Path:
    """Campus does what it is asked, and its answer waits until the file that is returned, which tells so, is removed."""
    mark, said = (hosts.chain.root / ".machines" / f"{verb}.{what}" for what in ("hold", "done"))
    mark.touch()
    whole = wrapped(hosts)
    hold = f'{whole} "$@" > {said}.part; mv {said}.part {said}; while [ -e {said} ]; do sleep 0.1; done; exit 0'
    wrap(hosts, f'[ "$SSH_ORIGINAL_COMMAND" = {verb} ] && rm {mark} 2>/dev/null && {{ {hold}; }}')
    return said


def wrap(hosts: Hosts, first: str) -> None:
    """Let campus's `dataflow` do something first."""
    program = Path(hosts.chain.here("campus", INV).machine.command)
    program.rename(wrapped(hosts))
    program.write_text(f'#!/bin/sh\n{first}\nexec {wrapped(hosts)} "$@"\n')
    program.chmod(0o755)


def wrapped(hosts: Hosts) -> Path:
    return Path(f"{hosts.chain.here('campus', INV).machine.command}.whole")


def open_files(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(path))
    return found


def test_a_radar_whose_link_to_the_site_breaks(tmp_path: Path) -> None:
    """A radar without NAS sends to site-linux what others copy to their NAS."""
    near, far = "borealis", "site-linux"
    limits = ("radars.inv.machines.borealis.bandwidth_kib_s=8000", "radars.inv.machines.site-linux.bandwidth_kib_s=200000")
    with hosts_of(tmp_path / "chain", *limits) as hosts:
        path = hosts.at_radar(0, 24 * MIB)
        radar = hosts.chain.start("borealis", INV, "--once")
        incoming = hosts.chain.here("site-linux", INV).folder("incoming")
        hosts.chain.until(lambda: [p for p in incoming.glob(f".{path.name}.*") if p.stat().st_size > 4 * MIB], "it arrives")
        hosts.network.silence(near, far)
        assert radar.process.wait(running_chain.LIMIT_S) == Exit.UNREACHABLE, hosts.chain.said()
        assert path.exists()
        hosts.network.restore(near, far)
        hosts.once("borealis")
        let_go_of_lost_sessions(hosts, "site-linux")
        hosts.at_radar(1, 1000)
        for host in hosts.network.holders:
            hosts.once(host)
        hosts.assert_all_is_delivered()


def test_a_link_that_is_down_for_long(tmp_path: Path) -> None:
    """The daemon tries once in each run of its list, waits longer each time, and burns nothing; then everything goes."""
    with hosts_of(tmp_path / "chain") as hosts:
        for host in ("site-linux", "campus"):
            hosts.chain.start(host, INV)
        hosts.chain.until(lambda: ended(hosts, "send_logs"), "the link was up")
        hosts.network.cut(*SITE_TO_CAMPUS)
        before = attempts(hosts)
        for number in range(3):
            hosts.at_site(number, 100_000)
        running_chain.put_flag(hosts.chain.here("site-linux", INV), "borealis")
        site = hosts.chain.daemons[0].process.pid
        burned_s = cpu_s(site)
        hosts.chain.until(lambda: len(unreachable(hosts)) >= 5, "it tried again and again")
        assert cpu_s(site) - burned_s < 2.0, "the daemon itself has only waited"
        assert attempts(hosts) - before <= len(unreachable(hosts)) + 1, "one new connection for a run"
        hosts.network.restore(*SITE_TO_CAMPUS)
        done = lambda: len(hosts.arrived()) == 3 and hosts.chain.is_at_rest([INV])  # noqa: E731
        hosts.chain.until(done, "all is on campus")
        hosts.assert_all_is_delivered()
        assert [daemon.stop() for daemon in hosts.chain.daemons] == [Exit.ACCOUNTED] * 2, hosts.chain.said()


def ended(hosts: Hosts, step: str) -> list[dict[str, Any]]:
    return [record for record in hosts.chain.records("site-linux", INV, step) if record["event"] == "end"]


def unreachable(hosts: Hosts) -> list[dict[str, Any]]:
    return [record for record in ended(hosts, "rsync_to_campus") if record["exit"] == Exit.UNREACHABLE and record["kept"]]


def attempts(hosts: Hosts) -> int:
    """How many new connections the budget has counted in the last minutes."""
    folder = hosts.chain.here("site-linux", INV).machine_state / "connections"
    return sum(len(json.loads(path.read_text())) for path in folder.iterdir())


def cpu_s(pid: int) -> float:
    """The processor time of a process, without that of its children (proc(5))."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_a_peer_that_accepts_and_hangs(tmp_path: Path) -> None:
    """Its sshd stops in the middle of a transfer: the session hangs, and so does every new connection, which the kernel takes."""
    with hosts_of(tmp_path / "chain", "radars.inv.machines.site-linux.bandwidth_kib_s=8000") as hosts:
        path = hosts.at_site(0, 16 * MIB)
        incoming = hosts.chain.here("campus", INV).folder("incoming")
        for host in ("site-linux", "campus"):
            hosts.chain.start(host, INV)
        hosts.chain.until(lambda: [p for p in incoming.glob(f".{path.name}.*") if p.stat().st_size > 2 * MIB], "it arrives")
        listener, sessions = running_chain.sshds_of(hosts.chain, "campus")
        assert sessions
        for pid in (listener, *sessions):
            os.kill(pid, signal.SIGSTOP)
        hosts.chain.until(lambda: len(unreachable(hosts)) >= 3, "it was tried again")
        said = hosts.chain.daemons[0].said
        assert "cannot connect to campus (198.51.100.3" in said and "imed out" in said, said
        for pid in (listener, *sessions):
            os.kill(pid, signal.SIGCONT)
        hosts.chain.until(lambda: hosts.arrived() and hosts.chain.is_at_rest([INV]), "it is on campus")
        let_go_of_lost_sessions(hosts, "campus")
        hosts.at_site(1, 1000)
        running_chain.put_flag(hosts.chain.here("site-linux", INV), "borealis")
        hosts.chain.until(lambda: len(hosts.arrived()) == 2 and hosts.chain.is_at_rest([INV]), "the next one as well")
        hosts.assert_all_is_delivered()


def test_the_firewall_bans_who_asks_too_often() -> None:
    """The measure of the next test: it counts, and its ban would be noticed."""
    knock = (
        "import socket\nfor _ in range(%d):\n with socket.socket() as s:\n  s.settimeout(0.2)\n  print(s.connect_ex(('%s', 1)))"
    )
    with namespaces.network() as network:
        network.guard("campus")
        knocks = network.on("site-linux", sys.executable, "-c", knock % (BAN_AT + 3, network.doors()["campus"].address))
        assert len(set(knocks.split()[: BAN_AT - 1])) == 1, "refused, by campus itself"
        assert network.counted("campus")["asked"] == BAN_AT and network.counted("campus")["banned"] >= 3


def test_ten_thousand_plots_over_a_link_that_flaps_never_reach_the_ban(tmp_path: Path) -> None:
    """Every few seconds the link breaks, each time in another way. The count of new connections is that of the firewall."""
    with hosts_of(tmp_path / "chain", "transfer.batch_files=500") as hosts:
        hosts.network.guard("campus")
        plots = hosts.chain.here("campus", INV).folder("plots")
        hosts.pictures(10_000, 100)
        hosts.chain.start("site-linux", INV)
        for number in range(10):
            time.sleep(3)
            list(FAULTS.values())[number % len(FAULTS)](hosts.network, *SITE_TO_CAMPUS)
            time.sleep(2)
            hosts.network.restore(*SITE_TO_CAMPUS)
        for number in range(1000, 10_001, 1000):
            hosts.chain.until(lambda: len(place.scan(plots)) >= number, lambda: f"{number} plots are on campus")  # noqa: B023
        hosts.chain.until(lambda: hosts.chain.flags("site-linux", INV) == NO_FLAGS, "all was told")
        counted = hosts.network.counted("campus")
        print(f"\n{counted} packets, {hosts.chain.connections('campus')} connections")
        assert counted["banned"] == 0 and counted["asked"] < BAN_AT
        hosts.once("campus")
        hosts.assert_all_is_delivered()


def test_data_waits_for_one_batch_of_pictures_on_a_thin_link(tmp_path: Path) -> None:
    """By satellite, 200 KiB/s and 600 ms for an answer: what a block that comes in waits for is counted in bytes on the link."""
    bandwidth_kib_s, batch_s, block_bytes = 200, 3, 50_000
    satellite = Satellite(bytes_per_s=1.25 * 1024 * bandwidth_kib_s, delay_s=0.3)
    settings = (f"radars.inv.machines.site-linux.bandwidth_kib_s={bandwidth_kib_s}", f"transfer.picture_batch_s={batch_s}")
    with hosts_of(tmp_path / "chain", *settings, "ssh.keep_alive_s=15", "ssh.connect_timeout_s=20", slow=satellite) as hosts:
        chain = hosts.chain
        hosts.pictures(120, 20_000)
        chain.start("site-linux", INV)
        chain.until(hosts.arrived, "the first batch of pictures is on campus")
        block, before = hosts.at_site(0, block_bytes), satellite.carried["site-linux"]
        running_chain.put_flag(chain.here("site-linux", INV), "borealis")
        chain.until(lambda: hosts.arrived(block.name), "the block is on campus")
        crossed = satellite.carried["site-linux"] - before
        pictures_left = [name for name in hosts.fed if (chain.here("site-linux", INV).folder("daily_plots") / name).exists()]
        assert pictures_left, "they were not all gone when the block came"
        assert crossed < 1.2 * (1024 * bandwidth_kib_s * batch_s + block_bytes), "one batch and the block"
        chain.until(lambda: chain.flags("site-linux", INV) == NO_FLAGS, "all was told")
        assert chain.connections("campus") == 1
        hosts.once("campus")
        hosts.assert_all_is_delivered()


@pytest.mark.parametrize("off", ["+1h", "-1h"])
def test_a_campus_whose_clock_is_an_hour_off(tmp_path: Path, off: str) -> None:
    """Files, flags and manifests go through as ever. Its programs see another time; its disks, like a file server's, the real."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock = {"LD_PRELOAD": str(library), "FAKETIME": off, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    with hosts_of(tmp_path / "chain") as hosts:
        chain = hosts.chain
        wrap(hosts, "export " + " ".join(f"{name}={value}" for name, value in clock.items()))
        chain.start("site-linux", INV)
        chain.start("campus", INV, **clock)
        hosts.pictures(3, 100)
        hosts.at_radar(0, 1000)
        hosts.once("borealis")
        chain.until(lambda: len(archived(hosts)) == 4 and chain.is_at_rest([INV]), "all is in the archive")
        (sent,) = (r for r in chain.records("site-linux", INV, "rsync_to_campus") if r.get("file") == next(reversed(hosts.fed)))
        assert abs(abs(seconds_between(sent, hosts.arrived(sent["file"])[0])) - 3600) < 600, "the clocks are apart"
        hosts.at_radar(1, 1000)
        hosts.once("borealis")
        chain.until(lambda: len(archived(hosts)) == 5 and chain.is_at_rest([INV]), "the next block as well")
        hosts.assert_all_is_delivered()
        hops, faults = chain.trace(sent["file"], INV)
        assert faults == [] and {hop["host"] for hop in hops} == set(hosts.network.holders)


def seconds_between(first: dict[str, Any], second: dict[str, Any]) -> float:
    return (summary.moment(second["time"]) - summary.moment(first["time"])).total_seconds()


def archived(hosts: Hosts) -> list[str]:
    """What campus has archived."""
    return [r["file"] for r in hosts.chain.records("campus", INV) if r["event"] == "file" and r["action"] == "archived"]
