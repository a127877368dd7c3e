"""One block from the radar computer to the partners, through all three daemons over real SSH, against the work that must be done.

    python bench/chain.py [--quick] [--pairs 3] [--json FILE]

A rawacf and an antennas_iq that count as finished appear in the radar's data folder; the clock stops when the DMAP file is
recorded as distributed. The configuration is the shipped one but for the bandwidth limit of the link. The floor is what no
chain can do without, one after the other on the same bytes: ``cp`` and two ``sha256sum``, one rsync of the rawacf over SSH,
reading the fields that DMAP needs, and ``lbzip2`` of the DMAP. Pictures are drawn meanwhile, on the same cores.
"""

from __future__ import annotations

import bz2
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import convert
import plot
import results
from measure import Failed, pss_bytes
from results import Bar, Result

from dataflow.demo import chain, machines
from dataflow.demo.machines import Machines
from dataflow.lib import context, custody, flag, names, ssh, summary
from dataflow.lib.config import Here
from dataflow.lib.summary import Record

FLOOR_BAR, FLAG_BAR_S, MEMORY_BAR_MB, CPU_BAR = 2.0, 0.3, 40.0, 0.001
HOSTS = ("borealis", "site-linux", "campus")
LIMIT_S = 300.0
READ_FIELDS = """
import sys
from pathlib import Path
from dataflow.lib import borealis
for record in borealis.stream(Path(sys.argv[1]), borealis.RAWACF_FIELDS):
    pass
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Records of the two files, antennas of the second, how often a flag is sent, how long the idle daemons are watched."""

    rawacf_records: int
    iq_records: int
    antennas: int
    flags: int
    idle_s: float
    pairs: int


FULL = Size(rawacf_records=convert.FULL_BLOCK_RECORDS, iq_records=320, antennas=plot.ANTENNAS, flags=7, idle_s=30, pairs=3)
QUICK = Size(rawacf_records=10, iq_records=3, antennas=3, flags=1, idle_s=1, pairs=1)


@dataclass(frozen=True, slots=True)
class Block:
    """The files that the radar wrote, and what the rawacf becomes as DMAP, not compressed."""

    rawacf: Path
    antennas_iq: Path
    dmap: Path


@dataclass(frozen=True, slots=True)
class Idle:
    """What daemons cost that have nothing to do, by host, and how long a flag waits for the first step."""

    memory_mb: dict[str, float]
    cpu_share: dict[str, float]
    flag_s: float


def measured(size: Size) -> Iterator[Result]:
    """The block, and the daemons at rest."""
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        (scratch / "radar").mkdir()
        block = _block(scratch, size)
        runs, floors = [], []
        for _ in range(size.pairs):
            with _chain(scratch / "root") as (running, processes):
                runs.append(_through(running, block))
                if not chain.wait_until_quiet(running, ["sas"], LIMIT_S):
                    raise Failed("the chain does not come to rest")
                floors.append(_floor(running, block))
                idle = _at_rest(running, processes, size)
        yield _against_floor(block, runs, floors)
        yield _idle_daemons(idle, size)


def _against_floor(block: Block, runs: Sequence[dict[str, float]], floors: Sequence[dict[str, float]]) -> Result:
    ratio = statistics.median(run["distributed"] / sum(floor.values()) for run, floor in zip(runs, floors, strict=True))
    rows = [("**chain, trigger to distributed**", f"**{_median(runs, 'distributed'):.2f} s**")]
    rows += [(f"{event} at", f"{_median(runs, event):.2f} s") for event in runs[0] if event != "distributed"]
    rows += [("**floor**", f"**{statistics.median(sum(floor.values()) for floor in floors):.2f} s**")]
    rows += [(part, f"{_median(floors, part):.2f} s") for part in floors[0]]
    sizes = (
        f"{block.rawacf.stat().st_size / 1e6:.0f} MB of rawacf and {block.antennas_iq.stat().st_size / 1e6:.0f} MB of antennas_iq"
    )
    what = f"{sizes} through three daemons and two SSH links. Median of {len(runs)} runs."
    return Result("The chain", what, ("", "wall"), tuple(rows), (Bar("chain against the floor", ratio, at_most=FLOOR_BAR),))


def _idle_daemons(idle: Idle, size: Size) -> Result:
    rows = [(host, f"{idle.memory_mb[host]:.1f} MB", f"{100 * idle.cpu_share[host]:.2f} %") for host in HOSTS]
    bars = [
        Bar("memory of an idle daemon, MB", max(idle.memory_mb.values()), at_most=MEMORY_BAR_MB, any_size=True),
        Bar("CPU time of an idle daemon, share of a core", max(idle.cpu_share.values()), at_most=CPU_BAR),
        Bar("a flag's arrival to the first step's first record, s", idle.flag_s, at_most=FLAG_BAR_S),
    ]
    what = f"Daemons that wait, watched for {size.idle_s:.0f} s; a flag that arrives meanwhile, {size.flags} times."
    return Result("Daemons at rest", what, ("daemon", "memory", "CPU"), tuple(rows), tuple(bars))


def _block(scratch: Path, size: Size) -> Block:
    rawacf = convert.block(scratch / "radar", size.rawacf_records, beams=1)
    antennas_iq = plot.block(scratch / "radar", size.iq_records, size.antennas)
    written = names.parse(rawacf.name)
    assert written is not None
    for path in (rawacf, antennas_iq):
        ended_s = written.time.timestamp() + 7200
        os.utime(path, (ended_s, ended_s))
    part = scratch / ".dmap"
    subprocess.run([sys.executable, "-c", convert.OURS, rawacf, part], check=True)
    dmap = scratch / "dmap"
    with bz2.open(part) as packed, dmap.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return Block(rawacf, antennas_iq, dmap)


@contextmanager
def _chain(root: Path) -> Iterator[tuple[Machines, Sequence[subprocess.Popen[bytes]]]]:
    """Machines and daemons that have had their first look."""
    unlimited = "radars.sas.machines.site-linux.bandwidth_kib_s=null"
    try:
        with machines.running(root, ["sas"], [unlimited]) as running, chain.daemons(running, ["sas"]) as processes:
            heres = [running.config.here(host, "sas") for host in HOSTS]
            _until(lambda: all(_records(here, "end", here.host.steps[-1].split()[0]) for here in heres), "every daemon looks")
            yield running, processes
    finally:
        shutil.rmtree(root)


def _through(running: Machines, block: Block) -> dict[str, float]:
    """Let the block appear; seconds from then to each event on its way."""
    data = running.config.here("borealis", "sas").folder("data")
    day = data.parent / "day"
    day.mkdir()
    for path in (block.rawacf, block.antennas_iq):
        shutil.copy2(path, day / path.name)
    os.sync()
    began = time.time()
    day.rename(data / block.rawacf.name.split(".")[0])
    campus = running.config.here("campus", "sas")
    _until(lambda: _of_file(campus, "distribute_borealis_data", ".bz2"), "the DMAP file is distributed")
    site = running.config.here("site-linux", "sas")
    events = {
        "on the NAS": _of_file(running.config.here("borealis", "sas"), "rsync_to_nas", block.antennas_iq.name),
        "at campus": _of_file(site, "rsync_to_campus", block.rawacf.name),
        "converted": _of_file(campus, "convert_on_campus", block.rawacf.name),
        "distributed": _of_file(campus, "distribute_borealis_data", ".bz2"),
    }
    return {event: summary.moment(record["time"]).timestamp() - began for event, (record, *_) in events.items()}


def _floor(running: Machines, block: Block) -> dict[str, float]:
    """Seconds of each part of the work that must be done."""
    ctx = context.open_context(running.config, "site-linux", "sas", "rsync_to_campus")
    link = ssh.connect(ctx, "campus")
    folder = running.root / "floor"
    folder.mkdir()
    both = [block.rawacf, block.antennas_iq]
    os.sync()
    return {
        "`cp`": _seconds(["cp", *both, folder]),
        "two `sha256sum`": _seconds(["sha256sum", *both, *(folder / path.name for path in both)]),
        "`rsync` over SSH": _seconds(
            ["rsync", "-a", f"--rsh={link.remote_shell}", folder / block.rawacf.name, f"{link.destination}:floor/"]
        ),
        "reading the needed fields": _seconds([sys.executable, "-c", READ_FIELDS, folder / block.rawacf.name]),
        "`lbzip2`": _seconds(["lbzip2", "--keep", "--force", block.dmap]),
    }


def _at_rest(running: Machines, processes: Sequence[subprocess.Popen[bytes]], size: Size) -> Idle:
    before = [_cpu_s(process.pid) for process in processes]
    time.sleep(size.idle_s)
    after = [_cpu_s(process.pid) for process in processes]
    waits = [_flag_to_first_record(running.config.here("campus", "sas")) for _ in range(size.flags)]
    return Idle(
        {host: pss_bytes(process.pid) / 1e6 for host, process in zip(HOSTS, processes, strict=True)},
        {host: (late - early) / size.idle_s for host, early, late in zip(HOSTS, before, after, strict=True)},
        statistics.median(waits),
    )


def _flag_to_first_record(here: Here) -> float:
    """Seconds from the moment that a flag has its name to the first record of the first step."""
    step = here.host.steps[0].split()[0]
    last = here.host.steps[-1].split()[0]
    starts, ends = len(_records(here, "start", step)), len(_records(here, "end", last))
    began = time.time()
    flag.write(custody.flags_folder(here), "sas", "site-linux", "bench", [], context.utc_now)
    _until(lambda: len(_records(here, "end", last)) > ends, "the flag's run ends")
    return summary.moment(_records(here, "start", step)[starts]["time"]).timestamp() - began


def _records(here: Here, event: str, step: str) -> list[Record]:
    logs = summary.own_files(here, summary.day_before(context.utc_now(), 1), step)
    return [record for record in summary.records(logs) if record["event"] == event]


def _of_file(here: Here, step: str, ending: str) -> list[Record]:
    return [record for record in _records(here, "file", step) if record["file"].endswith(ending) and record["outcome"] == "done"]


def _until(is_so, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise Failed(f"not so after {LIMIT_S:.0f} s: {what}")
        time.sleep(0.05)


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of the children that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _seconds(argv: Sequence[str | Path]) -> float:
    began = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=results.ROOT)
    return time.monotonic() - began


def _median(runs: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
