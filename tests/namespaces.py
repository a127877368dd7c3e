"""Hosts with a network of their own: a network namespace for each, with a real link from one to the next.

    borealis  192.0.2.1 --- 192.0.2.2  site-linux  198.51.100.2 --- 198.51.100.3  campus

A namespace has no name; it lives as long as the process that holds it, which dies with the test. So nothing is left behind
however a test ends, and tests at the same time do not meet. The links are veth pairs, or `satellite` links that are slow.
On a link an interface has the name of the host at its other end. All of it needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dataflow.demo.machines import Door
from dataflow.lib import command

LINKS = (("borealis", "192.0.2.1", "site-linux", "192.0.2.2"), ("site-linux", "198.51.100.2", "campus", "198.51.100.3"))
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
QUEUE_S = 0.5
BAN_AT = 50
"""So many new connections of one address within a minute, and campus's firewall drops all that comes from it."""
GUARD = f"""
table inet guard {{
  counter asked {{ }}
  counter banned {{ }}
  set recent {{ type ipv4_addr; flags dynamic,timeout; timeout 2m; }}
  set shut_out {{ type ipv4_addr; flags dynamic,timeout; timeout 10m; }}
  chain input {{
    type filter hook input priority 0;
    ip saddr @shut_out counter name banned drop
    tcp flags & (syn|ack) == syn counter name asked
    tcp flags & (syn|ack) == syn update @recent {{ ip saddr limit rate over 1/minute burst {BAN_AT - 1} packets }} add @shut_out {{ ip saddr }} counter name banned drop
  }}
}}
"""  # noqa: E501
"""Each packet that asks for a connection counts, repeated ones too. nft measures with a bucket that fills again; this one
fills so slowly that it never forgives more than a window of a minute would."""


@dataclass(frozen=True)
class Network:
    """The namespaces of the hosts: the process that holds each."""

    holders: dict[str, int]

    def within(self, host: str) -> tuple[str, ...]:
        """The words before a command that is to run on a host."""
        return ("nsenter", f"--net=/proc/{self.holders[host]}/ns/net", "--")

    def on(self, host: str, *words: str, stdin: str = "") -> str:
        """Run a command of a host's administrator; its output."""
        argv = [*self.within(host), *words]
        return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout

    def doors(self) -> dict[str, Door]:
        """Where each host listens; borealis is called by nobody."""
        addresses = {"borealis": LINKS[0][1], **{far: address for _, _, far, address in LINKS}}
        return {host: Door(address, self.within(host)) for host, address in addresses.items()}

    def cut(self, near: str, far: str) -> None:
        """Both ends of a link notice at once that it is gone."""
        self.on(near, "ip", "link", "set", far, "down")

    def silence(self, near: str, far: str) -> None:
        """All that is sent over a link is lost, and nobody is told."""
        self._drop(near, "input", "output", interface=far)

    def deafen(self, near: str, far: str) -> None:
        """What is sent arrives, and the answers are lost."""
        self._drop(near, "input", interface=far)

    def restore(self, near: str, far: str) -> None:
        """The link is as it was before any of these."""
        self.on(near, "ip", "link", "set", far, "up")
        self.on(near, "nft", "-f", "-", stdin="table inet fault\ndelete table inet fault\n")

    def _drop(self, host: str, *hooks: str, interface: str) -> None:
        match = {"input": "iifname", "output": "oifname"}
        chains = (f"chain {hook} {{ type filter hook {hook} priority -10; {match[hook]} {interface} drop; }};" for hook in hooks)
        self.on(host, "nft", "-f", "-", stdin=f"table inet fault {{ {' '.join(chains)} }}")

    def guard(self, host: str) -> None:
        """Let a host's firewall ban who asks for too many connections."""
        self.on(host, "nft", "-f", "-", stdin=GUARD)

    def counted(self, host: str) -> dict[str, int]:
        """What the firewall has counted in packets: `asked` for a connection, and dropped because the sender is `banned`."""
        listed = json.loads(self.on(host, "nft", "-j", "list", "counters", "table", "inet", "guard"))["nftables"]
        return {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}


@dataclass
class Satellite:
    """A link by a satellite, in place of the `netem` that not every kernel has: two TUN devices and who carries the packets.

    Each way it carries `bytes_per_s`, takes `delay_s`, and loses what would have to wait for longer than `QUEUE_S`.
    `carried` are the bytes that have left the host of that name over it.
    """

    bytes_per_s: float
    delay_s: float
    carried: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def between(self, network: Network, near: str, far: str) -> Iterator[None]:
        """A link between two hosts, for the time of the block."""
        ends = {near: _tun(network, near, far), far: _tun(network, far, near)}
        over = threading.Event()
        carrier = threading.Thread(target=self._carry, args=(ends, over))
        carrier.start()
        try:
            yield
        finally:
            over.set()
            carrier.join()
            for end in ends.values():
                os.close(end)

    def _carry(self, ends: dict[str, int], over: threading.Event) -> None:
        other = dict(zip(ends, reversed(ends.values()), strict=True))
        hosts = {end: host for host, end in ends.items()}
        free_at = dict.fromkeys(ends, 0.0)
        under_way: list[tuple[float, int, bytes]] = []
        while not over.is_set():
            wait_s = min(0.05, under_way[0][0] - time.monotonic()) if under_way else 0.05
            for end in select.select(list(hosts), [], [], max(wait_s, 0))[0]:
                packet, host, now = os.read(end, 65536), hosts[end], time.monotonic()
                if free_at[host] - now < QUEUE_S:
                    free_at[host] = max(now, free_at[host]) + len(packet) / self.bytes_per_s
                    heapq.heappush(under_way, (free_at[host] + self.delay_s, other[host], packet))
                    self.carried[host] = self.carried.get(host, 0) + len(packet)
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):  # the far end is down
                    os.write(end, packet)


def _tun(network: Network, host: str, name: str) -> int:
    """A TUN device in the network of a host (tun(7) of the kernel's documentation); its descriptor here."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    answer = fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun%d", IFF_TUN | IFF_NO_PI))
    made = answer[:16].rstrip(b"\0").decode()
    move = ["ip", "link", "set", "dev", made, "netns", str(network.holders[host]), "name", name]
    subprocess.run(move, check=True, timeout=30)
    return device


@contextlib.contextmanager
def network(slow: Satellite | None = None) -> Iterator[Network]:
    """The hosts of the chain and their links; with `slow` the one to campus is a satellite's."""
    with contextlib.ExitStack() as stack:
        hosts = dict.fromkeys(host for near, _, far, _ in LINKS for host in (near, far))
        made = Network({host: stack.enter_context(_namespace()) for host in hosts})
        for near, near_address, far, far_address in LINKS:
            if slow is not None and far == "campus":
                stack.enter_context(slow.between(made, near, far))
            else:
                far_end = ("peer", "name", near, "netns", str(made.holders[far]))
                made.on(near, "ip", "link", "add", far, "type", "veth", *far_end)
            for host, address, interface in ((near, near_address, far), (far, far_address, near)):
                made.on(host, "ip", "address", "add", f"{address}/24", "dev", interface)
                made.on(host, "ip", "link", "set", interface, "up")
        yield made


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A network without anything but loopback; the process that holds it."""
    hold = "ip link set lo up && echo ready && exec sleep infinity"
    process = command.start(["unshare", "--net", "sh", "-c", hold], stdout=subprocess.PIPE, inherit=False)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n", "unshare --net needs root"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
