"""How many bytes are read and written to bring a file to a mounted NAS, against the predecessor's way.

    python bench/rsync_to_nas.py [--quick] [--json FILE]

Ours is ``dataflow run rsync_to_nas``: one read of the source feeds its hash and every copy, and each copy is read back. The
predecessor's way is ``rsync --append-verify`` and an ``md5sum`` of both ends, for the backup and again for the working copy.
Bytes are those of system calls, counted by the kernel for the whole process tree; what a run costs that finds nothing to
do, and what rsync's two processes tell each other (every byte of the file), is taken off.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import measure
import results
from measure import Cost
from results import Bar, Result

from dataflow.lib import check, names
from dataflow.lib.config import Config
from dataflow.lib.names import Kind

ALLOWANCE = 0.05
THEIR_WAY = """
set -e
for folder in "${@:2}"; do
    rsync -a --append-verify --timeout=180 "$1" "$folder/"
    ours=$(md5sum -b < "$1")
    test "$ours" = "$(md5sum -b < "$folder/${1##*/}")"
done
rm "$1"
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of each file."""

    rawacf_bytes: int
    antennas_iq_bytes: int
    pairs: int


FULL = Size(rawacf_bytes=224_000_000, antennas_iq_bytes=400_000_000, pairs=1)
QUICK = Size(rawacf_bytes=5_000_000, antennas_iq_bytes=5_000_000, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """A file with a backup, and one without."""
    rows, bars = [], []
    with tempfile.TemporaryDirectory() as scratch:
        loaded = _site(Path(scratch))
        idle = _ours(loaded)
        for kind, size_bytes, copies in ((Kind.RAWACF, size.rawacf_bytes, 2), (Kind.ANTENNAS_IQ, size.antennas_iq_bytes, 1)):
            _radar_file(loaded, kind, 2, size_bytes)
            ours = _ours(loaded)
            theirs = _theirs(loaded, _radar_file(loaded, kind, 4, size_bytes), copies)
            read, written = (
                now - before for now, before in zip(_per_byte(ours, size_bytes), _per_byte(idle, size_bytes), strict=True)
            )
            their_read, their_written = (number - copies for number in _per_byte(theirs, size_bytes))
            rows.append((f"{kind}, dataflow", f"{read:.2f}", f"{written:.2f}", f"{ours.wall_s:.2f} s"))
            rows.append((f"{kind}, predecessor's way", f"{their_read:.2f}", f"{their_written:.2f}", f"{theirs.wall_s:.2f} s"))
            bars.append(
                Bar(f"{kind}: read, once the source and once each copy", read, at_most=1 + copies + ALLOWANCE, any_size=True)
            )
            bars.append(Bar(f"{kind}: written, once for each copy", written, at_most=copies + ALLOWANCE, any_size=True))
    what = (
        f"A rawacf of {size.rawacf_bytes / 1e6:.0f} MB goes to the backup and the working folder, an antennas_iq of "
        f"{size.antennas_iq_bytes / 1e6:.0f} MB to one folder. Bytes read and written for each byte of the file. The copies of "
        "the predecessor are not synced; ours are, and are read back from the disk."
    )
    yield Result("To the NAS", what, ("", "read", "written", "wall"), tuple(rows), tuple(bars))


def _per_byte(cost: Cost, size_bytes: int) -> tuple[float, float]:
    return cost.read_bytes / size_bytes, cost.written_bytes / size_bytes


def _site(root: Path) -> Config:
    loaded = results.shipped(root)
    list(check.look(loaded.here("borealis", "sas"), create_markers=True))
    return loaded


def _radar_file(loaded: Config, kind: Kind, age_h: int, size_bytes: int) -> Path:
    """A finished file of random bytes: the step hashes and copies it and never looks inside."""
    began = datetime.now(UTC) - timedelta(hours=age_h)
    name = names.radar_file(began.replace(microsecond=0), "sas", 0, kind)
    path = loaded.here("borealis", "sas").folder("data") / f"{name.time:%Y%m%d}" / name.text
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for _ in range(0, size_bytes, 1_000_000):
            stream.write(os.urandom(1_000_000))
    os.utime(path, (began.timestamp(), began.timestamp()))
    os.sync()
    return path


def _ours(loaded: Config) -> Cost:
    argv = [sys.executable, "-m", "dataflow", "run", "rsync_to_nas", "--host", "borealis", "--radar", "sas"]
    return measure.run(argv, cwd=results.ROOT, environment=loaded.environment())


def _theirs(loaded: Config, path: Path, copies: int) -> Cost:
    assert loaded.root is not None
    folders: Sequence[Path] = [loaded.root / "predecessor" / str(number) for number in range(copies)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return measure.run(["bash", "-c", THEIR_WAY, "their-way", path, *folders])


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
