"""antennas_iq files for tests: a few simulated records in the radar's own structure, with samples of the test's choice."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np

from dataflow.demo.simulate_radar import SliceSpec, write_block

START = datetime(2026, 11, 1, 14, tzinfo=UTC)
NAME = "20261101.1400.00.sas.0.antennas_iq.h5"
RECORD_S = 3.0


def simulated(folder: Path, **how) -> Path:
    """A block as the simulated radar writes it."""
    paths = write_block(folder, "sas", START, [SliceSpec(ranges=20)], open_each_record=False, **{"records": 3, **how})
    return next(path for path in paths if path.name == NAME)


@cache
def _template() -> bytes:
    with TemporaryDirectory() as folder:
        return simulated(Path(folder), records=1, sequences=1).read_bytes()


def iq_file(
    folder: Path,
    counts: Sequence[int] = (8, 8),
    *,
    indices: Sequence[int] = (0, 3, 17),
    samples: int = 80,
    data: Callable[[int, tuple[int, int, int]], np.ndarray] | None = None,
    pause_before: tuple[int, float] = (0, 0.0),
    compression: int | None = None,
) -> Path:
    """A file whose records have ``counts`` sequences of the antennas with the given indices into the array of twenty.

    ``data`` gives the samples of a record, by its number and the shape; noise of unit power unless given.
    ``pause_before`` is the number of a record and for how many seconds the radar paused before it.
    """
    path = folder / NAME
    noise = np.random.default_rng(5)
    with h5py.File(io.BytesIO(_template())) as original, h5py.File(path, "w") as file:
        original.copy("metadata", file)
        del file["metadata/rx_antennas"]
        file["metadata/rx_antennas"] = np.array(indices, np.uint32)
        for number, count in enumerate(counts):
            began = START + timedelta(seconds=RECORD_S * number + (pause_before[1] if number >= pause_before[0] else 0))
            shape = (len(indices), count, samples)
            values = data(number, shape) if data else noise.standard_normal(shape) + 1j * noise.standard_normal(shape)
            group = file.create_group(f"{began:%Y%m%d-%H%M-%S.%f}")
            group.create_dataset("antennas_iq_data", data=values.astype(np.complex64), compression=compression)
            group["sqn_timestamps"] = began.timestamp() + 0.09 * np.arange(count)
            group["num_sequences"] = np.int64(count)
    return path
