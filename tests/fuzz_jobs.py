"""What workers do with damaged files: a library that crashes takes the worker along and not the tests."""

from __future__ import annotations

import random
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dataflow.lib import conversion, dmap, names
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.plots import antennas_iq

MEMORY_BYTES = 4 << 30
CPU_S = 240
WORDS = (b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f\0\0\0\0", b"\0" * 7 + b"\x80", b"\xff" * 4 + b"\0" * 4)


def damaged(content: bytes, seed: int, heads: int) -> bytes:
    """A file with some bytes other than they were; every second time only among its first ``heads`` bytes."""
    choose, made = random.Random(seed), bytearray(content)
    reach = min(heads, len(made)) if seed % 2 else len(made)
    for _ in range(choose.choice((1, 1, 2, 8, 64))):
        where, other = choose.randrange(reach), choose.randrange(reach)
        how = choose.randrange(4)
        if how == 0:
            made[where] ^= 1 << choose.randrange(8)
        elif how == 1:
            made[where : where + 8] = choose.choice((*WORDS, choose.randbytes(8)))
        elif how == 2:
            made[where : where + 64] = made[other : other + 64]
        elif choose.random() < 0.05:
            del made[where + 1 :]
            reach = min(reach, len(made))
    return bytes(made)


def try_all(folder: Path, content: bytes, what: str, name: str, seeds: range) -> dict[str, int]:
    """What the readers make of damaged copies of a file: how often which kind of ``BadFile``, ``TryLater``, or nothing wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    found: Counter[str] = Counter()
    for seed in seeds:
        path = folder / name
        path.write_bytes(damaged(content, seed, 6000))
        try:
            READERS[what](path)
            found["nothing wrong"] += 1
        except BadFile as error:
            found[error.kind] += 1
        except TryLater:
            found["later"] += 1
    return dict(found)


def _convert(path: Path) -> None:
    name = names.parse(path.name)
    assert name is not None
    try:
        conversion.convert(path, path.with_name(".part"), name, processes=1)
    finally:
        assert not path.with_name(".part").exists() or path.with_name(".part").unlink() is None


def _draw(path: Path) -> None:
    name, folder = names.parse(path.name), path.with_name("pictures")
    assert name is not None
    folder.mkdir(exist_ok=True)
    antennas_iq.plot(path, name, folder, processes=1)


READERS: dict[str, Callable[[Path], object]] = {
    "rawacf": _convert,
    "dmap": lambda path: dmap.inspect(path, processes=1),
    "antennas_iq": _draw,
}
