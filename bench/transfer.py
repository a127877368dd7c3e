"""Files from the site to campus over real SSH on loopback, against one rsync of them, and against the predecessor's way.

    python bench/transfer.py [--quick] [--pairs 5] [--json FILE]

Ours is ``dataflow run rsync_to_campus``: rsync into ``incoming``, ``receive`` hashes, files and answers, sources released.
The floor is one ``rsync -a --fsync`` of the same files over the same connection and one SHA-256 pass over what arrived (by
Python's OpenSSL, four times as fast as ``sha256sum`` here, out of the page cache). The predecessor's way is one rsync and
one ``ssh md5sum`` for each file. All files have manifest entries, as when their hashes came with the flag.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import measure
import results
from results import Bar, Result

from dataflow.demo import machines
from dataflow.demo.machines import Machines
from dataflow.lib import checksum, context, custody, flag
from dataflow.lib.flag import Entry

PICTURE_BYTES = 100_000
FLOOR_BAR, PREDECESSOR_BAR = 1.3, 10.0
HASH_ALL = """
import sys
from pathlib import Path
from dataflow.lib import checksum
for path in Path(sys.argv[1]).rglob("*.*"):
    checksum.sha256(path)
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent: pictures, bytes of the one data file, and pictures in the comparison with the predecessor."""

    pictures: int
    data_bytes: int
    small: int
    without_master: int
    pairs: int


FULL = Size(pictures=10_000, data_bytes=2_000_000_000, small=1000, without_master=100, pairs=5)
QUICK = Size(pictures=100, data_bytes=5_000_000, small=10, without_master=3, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """The two comparisons."""
    with tempfile.TemporaryDirectory() as scratch:
        pool = Pool(Path(scratch) / "pool", size)
        yield _against_floor(Path(scratch), pool, size)
        yield _against_predecessor(Path(scratch), pool, size)


class Pool:
    """The files that are sent, made once; each run works on links to them."""

    def __init__(self, folder: Path, size: Size) -> None:
        folder.mkdir()
        self.pictures = [
            folder / f"20261101.1400.00.sas.0.antennas_iq.antenna_{n // 100}_0_{n % 100}.jpg" for n in range(size.pictures)
        ]
        self.data = folder / "20261101.1400.00.sas.0.rawacf.h5"
        for picture in self.pictures:
            picture.write_bytes(os.urandom(PICTURE_BYTES))
        with self.data.open("wb") as stream:
            for start in range(0, size.data_bytes, 1 << 24):
                stream.write(os.urandom(min(1 << 24, size.data_bytes - start)))
        os.sync()
        self.entries = {
            path: Entry(path.name, path.stat().st_size, checksum.sha256(path)) for path in (*self.pictures, self.data)
        }


def _against_floor(scratch: Path, pool: Pool, size: Size) -> Result:
    files = [*pool.pictures, pool.data]
    ours, floors, connections = [], [], []
    for _ in range(size.pairs):
        with _machines(scratch / "root") as running:
            ours.append(_ours(running, pool, files))
            connections.append(running.sshd_log("campus").read_text().count("Accepted publickey"))
            floors.append(_floor(running, pool, files))
    mine, (sent, hashed) = median(ours), map(median, zip(*floors, strict=True))
    floor = median([sum(pair) for pair in floors])
    ratio = median([one / sum(other) for one, other in zip(ours, floors, strict=True)])
    return Result(
        "Transfer against one rsync",
        f"{size.pictures:,} files of {PICTURE_BYTES // 1000} kB and one of {size.data_bytes / 1e9:.2g} GB, site to campus over "
        f"loopback SSH, median of {size.pairs} pairs.",
        ("", "wall"),
        (
            ("`dataflow run rsync_to_campus`", f"{mine:.1f} s"),
            ("floor: `rsync -a --fsync` and a SHA-256 pass", f"{floor:.1f} s ({sent:.1f} + {hashed:.1f})"),
            ("ratio", f"{ratio:.2f}"),
        ),
        (
            Bar("wall against the floor", ratio, at_most=FLOOR_BAR),
            Bar("new SSH connections", max(connections), at_most=1, any_size=True),
        ),
    )


def _against_predecessor(scratch: Path, pool: Pool, size: Size) -> Result:
    files = pool.pictures[: size.small]
    few = files[: size.without_master]
    with _machines(scratch / "root") as running:
        mine = _ours(running, pool, files)
        shared = _predecessor(running, files, shared=True)
        single = _predecessor(running, few, shared=False) * len(files) / len(few)
    return Result(
        "Transfer against the predecessor's way",
        f"{size.small:,} files of {PICTURE_BYTES // 1000} kB; one rsync, one `md5sum` here and one over SSH for each.",
        ("", "wall", "ratio"),
        (
            ("`dataflow run rsync_to_campus`", f"{mine:.1f} s", "1"),
            ("predecessor's way, one shared connection", f"{shared:.1f} s", f"{shared / mine:.0f}"),
            (f"predecessor's way, a new connection each time (from {len(few)} files)", f"{single:.0f} s", f"{single / mine:.0f}"),
        ),
        (Bar("times faster than the predecessor over a shared connection", shared / mine, at_least=PREDECESSOR_BAR),),
    )


@contextmanager
def _machines(root: Path) -> Iterator[Machines]:
    """Fresh machines for each run, because a file that has passed once would be a duplicate."""
    try:
        with machines.running(root, ["sas"], ["radars.sas.machines.site-linux.bandwidth_kib_s=null"]) as running:
            yield running
    finally:
        shutil.rmtree(root)


def _ours(running: Machines, pool: Pool, files: Sequence[Path]) -> float:
    """Seconds of one run of the step, from a cold start of everything: process, connection."""
    here = running.config.here("site-linux", "sas")
    for path in files:
        folder = here.folder("rawacf_array" if path == pool.data else "daily_plots")
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
    entries = [pool.entries[path] for path in files]
    flag.write(custody.open_folder(here), "sas", "borealis", "bench", entries, context.utc_now)
    os.sync()
    argv = [sys.executable, "-m", "dataflow", "run", "rsync_to_campus", "--host", "site-linux", "--radar", "sas"]
    cost = measure.run(argv, cwd=results.ROOT, environment=running.config.environment())
    campus = running.config.here("campus", "sas")
    arrived = [campus.folder("holding" if path == pool.data else "plots") / path.name for path in files]
    if missing := [path for path in arrived if not path.is_file()]:
        raise measure.Failed(f"{len(missing)} of {len(files)} files did not arrive")
    return cost.wall_s


def _floor(running: Machines, pool: Pool, files: Sequence[Path]) -> tuple[float, float]:
    """Seconds of one rsync over one connection, and of hashing what arrived."""
    login, shell = _login(running)
    target = running.root / "floor"
    target.mkdir()
    os.sync()
    argv = ["rsync", "-a", "--fsync", f"--rsh={' '.join(shell)}", f"{pool.data.parent}/", f"{login}:{target}/"]
    sent = measure.run(argv)
    hashed = measure.run([sys.executable, "-c", HASH_ALL, target], cwd=results.ROOT)
    if len(list(target.iterdir())) != len(files):
        raise measure.Failed("the floor did not copy every file")
    return sent.wall_s, hashed.wall_s


def _predecessor(running: Machines, files: Sequence[Path], shared: bool) -> float:
    """Seconds of one rsync, one local md5 and one md5 over SSH for each file."""
    login, remote = _login(running)
    if shared:
        remote += ("-oControlMaster=auto", "-oControlPersist=60", f"-oControlPath={running.secrets / 'shared'}")
    target = running.root / f"predecessor-{shared}"
    target.mkdir()
    began = time.monotonic()
    for path in files:
        rsync = [
            "rsync",
            "-a",
            "--append-verify",
            "--timeout=180",
            f"--rsh={' '.join(remote)}",
            path,
            f"{login}:{target}/",
        ]
        subprocess.run(rsync, check=True, stdin=subprocess.DEVNULL)
        far = _output([*remote, login, f"md5sum -b {target / path.name}"])
        if _output(["md5sum", "-b", path]).split()[0] != far.split()[0]:
            raise measure.Failed(f"{path.name} arrived damaged")
    return time.monotonic() - began


def _login(running: Machines) -> tuple[str, tuple[str, ...]]:
    """A login on campus with a key that may do anything there, as the predecessor's may; the chain's keys may only deliver."""
    key, there = running.secrets / "anything", running.config.here("campus", "sas").machine
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with (running.secrets / f"{there.name}.authorized_keys").open("a") as stream:
            stream.write(key.with_suffix(".pub").read_text())
    options = ("-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR")
    return f"{there.user}@{there.address}", ("ssh", "-F", "/dev/null", "-i", str(key), "-p", str(there.port), *options)


def _output(argv: Sequence[str | Path]) -> bytes:
    return subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
