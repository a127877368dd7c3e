"""Many blocks at speed through the whole chain while it is cut, killed and filled up; in the end everything is where it belongs.

    python -m soak [--blocks 500] [--seed N] [--folder DIR] [--json FILE]

The three daemons of a radar with a NAS run on machines with real sshds below one folder. Each root, and what holds each
machine's state and logs, is a small disk of its own. The faults are drawn from the seed; the same seed gives the same ones.
It ends with 1 when a file is not whole in each of its places exactly once, when something is stuck, or when memory,
descriptors, processes or the time for a block have grown. Needs root, for the disks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from dataflow.demo import chain, machines
from dataflow.demo.machines import Machines
from dataflow.lib import command, config, names, place
from dataflow.lib.context import utc_now
from dataflow.lib.names import Kind
from faults import disks, invariants
from faults.disks import Disk
from soak import feed, gauge, plan, verdict
from soak.feed import RADAR, Radar
from soak.plan import Fault
from soak.strike import Striker

IN_FLIGHT = 6
"""Blocks that are written and not yet archived: more are not written, so that the chain and not the radar sets the speed."""
DISK_BYTES = 16 << 30
"""Of each disk; it is a sparse file, so it takes what is written to it."""
REST_LIMIT_S = 120.0
STALL_S = 240.0
"""So long without one more block archived, and the chain is stuck."""
NOTHING_TO_HIT_S = 20.0
TICK_S = 0.1
LOOK_EVERY_S = 1.0
PARTNER = "vt"
"""The target whose partner takes each file at once; the others leave it in staging."""
OVERRIDES = (
    "files.unchanged_s=1.0", "files.complete_after_s=1.0", "files.settle_s=1.0", "plots.archive_after_h=0.0",
    "daemon.look_every_s=15.0", "daemon.back_off_first_s=1.0", "daemon.back_off_last_s=5.0",
    "radars.sas.machines.site-linux.bandwidth_kib_s=100000",
)  # fmt: skip
"""The shipped times are for radars that write a block in two hours, and the shipped limit for a satellite link."""


@dataclass(slots=True)
class Soak:
    """A run of the soak: what is under way, and what was seen so far."""

    running: Machines
    radar: Radar
    blocks: int
    partner: Path
    faults: list[Fault]
    striker: Striker
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    samples: list[gauge.Sample] = field(default_factory=list)
    written_at: dict[int, float] = field(default_factory=dict)
    archived_at: dict[int, float] = field(default_factory=dict)
    due: list[tuple[float, Fault]] = field(default_factory=list)
    full: list[tuple[float, Disk]] = field(default_factory=list)
    paths: dict[int, list[Path]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    looked_at: float = 0.0

    def run(self) -> None:
        """Write block after block and strike meanwhile, until all are archived.

        Raises:
            TimeoutError: nothing moves any more.
        """
        with ThreadPoolExecutor(1) as pool:
            writing: Future[list[Path]] | None = None
            moved_at = time.monotonic()
            while len(self.archived_at) < self.blocks or self.due or self.full:
                if writing and writing.done():
                    self._wrote(writing.result())
                    writing, moved_at = None, time.monotonic()
                waits = len(self.written_at) - len(self.archived_at)
                if writing is None and len(self.written_at) < self.blocks and waits < IN_FLIGHT:
                    writing = pool.submit(self.radar.write, len(self.written_at))
                if self._tick():
                    moved_at = time.monotonic()
                if writing is None and time.monotonic() - moved_at > STALL_S:
                    raise TimeoutError(f"for {STALL_S:.0f} s no block was archived")
                time.sleep(TICK_S)

    def start(self, host: str) -> None:
        """Start a daemon as its unit would."""
        argv = [sys.executable, "-m", "dataflow", "daemon", host, "--radar", RADAR]
        with (self.running.root / f"{host}.log").open("ab") as log:
            process = command.start(argv, stdout=log, stderr=log, environment=self.running.config.environment(), inherit=False)
        self.processes[host] = process
        self.striker.daemons[host] = process.pid

    def finish(self, limit_s: float) -> bool:
        """Wait until nothing waits any more, then end the daemons; True when it came to rest and all ended well."""
        deadline = time.monotonic() + limit_s
        is_quiet = False
        while not is_quiet and time.monotonic() < deadline:
            is_quiet = chain.wait_until_quiet(self.running, [RADAR], 10.0)
            self._take_from_staging()
        self.wrong += self._left_over()
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in self.processes.values()]
        return is_quiet and codes == [0] * len(codes)

    def end(self) -> None:
        """End the daemons, however the run went."""
        for process in self.processes.values():
            command.end_group(process)

    def times_s(self) -> tuple[list[float], list[float]]:
        """Of each block: seconds from written to archived, and seconds since the one before it was archived."""
        passed = [self.archived_at[block] - self.written_at[block] for block in sorted(self.archived_at)]
        moments = sorted(self.archived_at.values())
        return passed, [later - earlier for earlier, later in pairwise(moments)]

    def _left_over(self) -> Iterator[str]:
        """At rest no daemon has a child, but for the steps of a look by the timer; and each link has one shared connection."""
        for host, process in self.processes.items():
            children, deadline = set(gauge.children(process.pid)), time.monotonic() + STALL_S
            while children and time.monotonic() < deadline:
                time.sleep(TICK_S)
                children &= set(gauge.children(process.pid))
            if children:
                yield f"the daemon of {host} still has children after {STALL_S:.0f} s: {sorted(children)}"
        links = [host for host, settings in self.running.config.flow.hosts.items() if settings.next]
        if len(masters := list(self.striker.masters())) > len(links):
            yield f"there are {len(masters)} shared connections for {len(links)} links"

    def _wrote(self, paths: list[Path]) -> None:
        block, now = len(self.written_at), time.monotonic()
        self.written_at[block], self.paths[block] = now, paths
        self.due += [(now + fault.after_s, fault) for fault in self.faults if fault.block == block]

    def _tick(self) -> bool:
        """Everything that is due now; True when one more block has come through."""
        now = time.monotonic()
        self._free(now)
        self._strike(now)
        self._restart()
        self._take_from_staging()
        if now - self.looked_at > LOOK_EVERY_S:
            self.looked_at = now
            self._look()
            return self._note_archived(now)
        return False

    def _strike(self, now: float) -> None:
        for item in [item for item in self.due if item[0] <= now]:
            due_at, fault = item
            hit = self.striker.strike(fault)
            if hit is None and now - due_at < NOTHING_TO_HIT_S:
                continue
            self.due.remove(item)
            self.hits[fault.kind] = self.hits.get(fault.kind, 0) + (hit is not None)
            print(f"{utc_now():%H:%M:%S} {fault}: {hit or 'there was nothing to hit'}", flush=True)
            if fault.lasts_s:
                self.full.append((now + fault.lasts_s, self.striker.disks[fault.target]))

    def _free(self, now: float) -> None:
        for item in [item for item in self.full if item[0] <= now]:
            self.full.remove(item)
            item[1].make_room()

    def _restart(self) -> None:
        for host, process in list(self.processes.items()):
            if process.poll() is not None:
                print(
                    f"{utc_now():%H:%M:%S} the daemon of {host} has ended with {process.returncode} and is started again",
                    flush=True,
                )
                if process.returncode != -signal.SIGKILL:
                    self.wrong.append(f"the daemon of {host} ended with {process.returncode}")
                self.start(host)

    def _take_from_staging(self) -> None:
        """The partner takes whatever lies in his staging folder, and notices what he gets a second time."""
        here = self.running.config.here("campus", RADAR)
        for path in place.scan(here.path(self.running.config.flow.distribute.targets[PARTNER].folder)):
            if (self.partner / path.name).exists():
                self.wrong.append(f"{path.name} was handed to {PARTNER} a second time")
            shutil.move(path, self.partner / path.name)

    def _look(self) -> None:
        share = len(self.archived_at) / self.blocks
        looks = [gauge.look(share, host, process.pid) for host, process in self.processes.items()]
        self.samples += [sample for sample in looks if sample]
        everything = len(list(gauge.descendants(os.getpid()))) + len(list(self.striker.masters()))
        self.samples.append(gauge.Sample(share, "all", 0, 0, 0, everything))

    def _note_archived(self, now: float) -> bool:
        """Note the blocks of which everything that goes to campus is in the archive or with the partner."""
        here = self.running.config.here("campus", RADAR)
        before = len(self.archived_at)
        for block in [block for block in self.written_at if block not in self.archived_at]:
            parsed = [name for path in self.paths[block] if (name := names.parse(path.name))]
            hdf5 = [name for name in parsed if name.kind is Kind.RAWACF]
            sheets = [names.contact_sheet_of(name) for name in parsed if name.kind is Kind.ANTENNAS_IQ]
            if all((here.folder("archive_hdf5", name.time) / name.text).exists() for name in hdf5) and all(
                (here.folder("plots_archive", name.time) / name.text).exists() for name in sheets
            ):
                self.archived_at[block] = now
        return len(self.archived_at) > before


def main() -> int:
    """Run the soak and print its verdict."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--blocks", type=int, default=500, help="how many blocks the radar writes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and of what the radar writes (default: any)")
    parser.add_argument("--folder", type=Path, default=None, help="where to run, a new folder (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers to a file")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("ended before its time"))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}: python -m soak --blocks {arguments.blocks} --seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dataflow-soak-")))
        return _soak(folder, arguments.blocks, seed, arguments.json)


def _soak(folder: Path, blocks: int, seed: int, results: Path | None) -> int:
    with contextlib.ExitStack() as stack:
        mounted = {
            name: stack.enter_context(disks.mounted(path, DISK_BYTES)) for name, path in _places_of_disks(folder / "m").items()
        }
        running = stack.enter_context(machines.running(folder / "m", [RADAR], OVERRIDES))
        radar = Radar(running.config.here("borealis", RADAR).folder("data"), feed.first_of(blocks))
        (partner := folder / "partner").mkdir()
        soak = Soak(running, radar, blocks, partner, plan.draw(seed, blocks), Striker(running, {}, mounted))
        stack.callback(soak.end)
        for host in running.config.flow.hosts:
            soak.start(host)
        trouble = list(_carried_out(soak))
        lines = list(verdict.lines(running.config, RADAR, soak.samples, *soak.times_s()))
        trouble += [str(line).strip() for line in lines if not line.is_good]
        trouble += invariants.breaches(running.config, RADAR, radar.fed({PARTNER: partner}))
        _tell(soak, lines, trouble)
        if results:
            results.write_text(
                json.dumps({"seed": seed, "hits": soak.hits, "lines": [asdict(line) for line in lines], "trouble": trouble})
            )
        return 1 if trouble else 0


def _places_of_disks(root: Path) -> dict[str, Path]:
    """Where the disks of the plan are mounted; the folders are made."""
    loaded = config.load(None, root.absolute(), OVERRIDES)
    heres = [loaded.here(host, RADAR) for host in loaded.flow.hosts]
    places = {name: path for here in heres for name, path in here.roots.items() if name in plan.DISKS}
    places |= {here.machine.name: root.absolute() / here.machine.name / "var" for here in heres}
    for path in places.values():
        path.mkdir(parents=True)
    return places


def _carried_out(soak: Soak) -> Iterator[str]:
    """Let it run to its end; what went wrong on the way."""
    try:
        soak.run()
    except TimeoutError as error:
        yield str(error)
    if not soak.finish(REST_LIMIT_S):
        yield f"it did not come to rest within {REST_LIMIT_S:.0f} s, or a daemon ended badly"
    feed.clean(soak.radar)
    yield from soak.wrong


def _tell(soak: Soak, lines: Sequence[verdict.Line], trouble: Sequence[str]) -> None:
    hits = ", ".join(f"{count} x {kind}" for kind, count in sorted(soak.hits.items()))
    print(f"\n{len(soak.archived_at)} of {soak.blocks} blocks, {len(soak.radar.sha256)} files; hit: {hits}")
    print(f"what it cost, in the fifths {verdict.EARLY} (times: {verdict.TIME_EARLY}) and {verdict.LATE} of the run:")
    print("\n".join(map(str, lines)))
    print(
        "\n".join(["", f"WRONG, {len(trouble)}:", *trouble[:50]])
        if trouble
        else "\nall is where it belongs, and nothing has grown"
    )


if __name__ == "__main__":
    sys.exit(main())
