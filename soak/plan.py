"""What is done to the chain, and when: drawn from a seed, so that the same seed gives the same faults at the same blocks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

FAULTS_PER_BLOCK = 0.4
DAEMONS_DIE_UNTIL = 0.4
"""In this first part of the blocks. Those that are started then have the rest of the run to show that they do not grow."""
BAD_EVERY, FULL_SIZE_EVERY = 11, 50
"""Every how manieth block brings a bad file, and is of full size."""
FULL_SIZE_AT = 30
"""The first of them; a run shorter than that has none."""
HOSTS = ("borealis", "site-linux", "campus")
DISKS = ("store", "sddata", "archive", "staging", "sas-borealis", "sas-site", "campus")
"""Roots by their names; of a machine, what holds its state and its logs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens so many seconds after a block was written, to a host, a machine or a disk, and for how long."""

    block: int
    after_s: float
    kind: str
    target: str
    lasts_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"block {self.block} + {self.after_s:.1f} s: {self.kind} {self.target}{lasts}"


def draw(seed: int, blocks: int) -> list[Fault]:
    """The faults of a run, in the order of their blocks."""
    rng = random.Random(seed)
    return [fault for block in range(blocks) for fault in _of_block(rng, block, blocks)]


def _of_block(rng: random.Random, block: int, blocks: int) -> Iterator[Fault]:
    if rng.random() >= FAULTS_PER_BLOCK:
        return
    kinds = ["cut", "kill master", "kill step", "kill step and its children", "kill receive", "full disk"]
    kind = rng.choice(kinds + ["kill daemon"] * (block < DAEMONS_DIE_UNTIL * blocks))
    after_s, lasts_s = round(rng.uniform(0, 3), 1), round(rng.uniform(1, 5), 1)
    targets = {
        "cut": ("sas-site", "campus"),
        "kill master": ("borealis", "site-linux"),
        "kill receive": ("site-linux", "campus"),
        "full disk": DISKS,
    }
    yield Fault(block, after_s, kind, rng.choice(targets.get(kind, HOSTS)), lasts_s if kind == "full disk" else 0.0)


def is_bad(block: int) -> bool:
    """Whether a block brings a bad file along: rarely enough that no three of a kind come in a row, which would blow a fuse."""
    return block % BAD_EVERY == BAD_EVERY // 2


def is_full_size(block: int) -> bool:
    """Whether a block has as many records as a radar writes in two hours."""
    return block % FULL_SIZE_EVERY == FULL_SIZE_AT
