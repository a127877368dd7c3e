"""What the radars of the demo write: blocks like any radar's, and one file that a dying disk cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.demo import simulate_radar
from dataflow.demo.simulate_radar import BLOCK, SliceSpec
from dataflow.lib import place
from dataflow.lib.config import Config

BLOCKS = 3
RECORDS = 12
SECONDS_PER_RECORD = 6.0
SLICES = (
    SliceSpec(slice_id=0, with_antennas_iq=True),
    SliceSpec(slice_id=1, with_antennas_iq=False, with_interferometer=False),
)
DAMAGED_SLICE = SliceSpec(slice_id=2, with_antennas_iq=False)


def write(config: Config, radars: Sequence[str]) -> Iterator[Path]:
    """Write the blocks of all radars, oldest first and up to the present one, then the damaged file of the first radar."""
    now = datetime.now(UTC)
    first = now.replace(hour=now.hour - now.hour % 2, minute=0, second=0, microsecond=0) - BLOCKS * BLOCK
    for block in range(BLOCKS):
        for number, radar in enumerate(radars):
            yield from simulate_radar.write_block(
                config.here("borealis", radar).folder("data"), radar, first + block * BLOCK, SLICES,
                records=RECORDS, seconds_per_record=SECONDS_PER_RECORD, seed=10 * block + number,
            )  # fmt: skip
    yield _write_damaged(config.here("borealis", radars[0]).folder("data"), radars[0], first + timedelta(minutes=30))


def _write_damaged(data: Path, radar: str, start: datetime) -> Path:
    """A rawacf that ends after two thirds: it must stop nothing and end in quarantine."""
    aside = data.parent / "damaged"
    (whole,) = simulate_radar.write_block(aside, radar, start, [DAMAGED_SLICE], records=3)
    stamp, content = whole.stat(), whole.read_bytes()
    final = data / whole.parent.name / whole.name
    part = place.part_of(final)
    part.write_bytes(content[: len(content) * 2 // 3])
    os.utime(part, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    part.rename(final)
    shutil.rmtree(aside)
    return final
