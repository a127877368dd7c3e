"""What the radar of the soak writes: two slices of rawacf and antennas_iq in each block, and now and then a bad file."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.demo import simulate_radar
from dataflow.demo.simulate_radar import BLOCK, SliceSpec
from dataflow.lib import checksum, names
from dataflow.lib.names import Kind
from faults.invariants import Fed
from soak import plan

RADAR = "sas"
ANTENNAS = 4
SLICES = (SliceSpec(slice_id=0, ranges=20), SliceSpec(slice_id=1, ranges=20, with_interferometer=False))
BAD_SLICE = SliceSpec(slice_id=2, ranges=20, with_antennas_iq=False)
SMALL = {"records": 24, "sequences": 2, "samples": 80}
FULL_SIZE_RECORDS = 2400
FULL_SIZE_SLICES = (SliceSpec(slice_id=0), SliceSpec(slice_id=1, with_interferometer=False))


@dataclass(slots=True)
class Radar:
    """Writes block after block into the data folder, and remembers what it wrote."""

    data: Path
    first: datetime
    sha256: dict[str, str] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)

    def write(self, block: int) -> list[Path]:
        """The files of one block, finished; returns them."""
        start, seed = self.first + block * BLOCK, block
        if plan.is_full_size(block):
            more = {"records": FULL_SIZE_RECORDS, "sequences": 8, "samples": 295}
            paths = self._write(start, FULL_SIZE_SLICES, seed, more)
        else:
            paths = self._write(start, SLICES, seed, SMALL)
        if plan.is_bad(block):
            self._write_bad(start, seed, is_cut_off=block // plan.BAD_EVERY % 2 == 0)
        return paths

    def fed(self, partners: dict[str, Path]) -> Fed:
        """What went in, as the checker wants to know it."""
        return Fed(self.sha256, ANTENNAS, self.records, self.quarantined, partners)

    def _write(self, start: datetime, slices: tuple[SliceSpec, ...], seed: int, size: dict[str, int]) -> list[Path]:
        """Into a folder beside, then renamed: finished files, whose hashes can be taken before the chain takes them."""
        aside = self.data.with_name("aside")
        made = simulate_radar.write_block(
            aside, RADAR, start, slices, antennas=ANTENNAS, seed=seed, open_each_record=False, **size
        )  # fmt: skip
        for path in made:
            self.sha256[path.name] = checksum.sha256(path)
            if (name := names.parse(path.name)) and name.kind is Kind.RAWACF:
                self.records[path.name] = size["records"]
        return [self._publish(path) for path in made]

    def _write_bad(self, start: datetime, seed: int, is_cut_off: bool) -> None:
        """Cut off, which campus finds; or written days after the time in its name, which the radar computer finds."""
        aside = self.data.with_name("aside")
        (path,) = simulate_radar.write_block(aside, RADAR, start, [BAD_SLICE], seed=seed, open_each_record=False, **SMALL)
        stamp = path.stat().st_mtime
        if is_cut_off:
            os.truncate(path, path.stat().st_size * 2 // 3)
            os.utime(path, (stamp, stamp))
        else:
            late = stamp + timedelta(days=3).total_seconds()
            os.utime(path, (late, late))
        self.quarantined[path.name] = "campus" if is_cut_off else "borealis"
        self._publish(path)

    def _publish(self, path: Path) -> Path:
        final = self.data / path.parent.name / path.name
        final.parent.mkdir(parents=True, exist_ok=True)
        return path.rename(final)


def first_of(blocks: int) -> datetime:
    """When the first of so many blocks has begun, if all of them are over by now."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return now.replace(hour=now.hour // 2 * 2) - (blocks + 3) * BLOCK


def clean(radar: Radar) -> None:
    """Remove the folder beside."""
    shutil.rmtree(radar.data.with_name("aside"), ignore_errors=True)
