"""The soak in its short form: blocks at speed through the whole chain, while links are cut, processes killed, disks filled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from soak import plan

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCKS, SEED = 10, 44838
"""A seed that gives one fault of each kind at least."""


def test_soak_of_a_few_blocks(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    argv = [sys.executable, "-m", "soak", "--blocks", BLOCKS, "--seed", SEED, "--folder", tmp_path / "soak", "--json", results]
    done = subprocess.run([str(word) for word in argv], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert found["trouble"] == [] and sum(found["hits"].values()) >= 7
    assert f"{BLOCKS} of {BLOCKS} blocks" in done.stdout


def test_same_seed_gives_the_same_faults() -> None:
    assert plan.draw(1, 500) == plan.draw(1, 500) != plan.draw(2, 500)
    faults = plan.draw(1, 500)
    assert {fault.kind for fault in faults} >= {"cut", "kill master", "kill step", "kill receive", "kill daemon", "full disk"}
    assert {fault.target for fault in faults if fault.kind == "full disk"} == set(plan.DISKS)
    assert sum(map(plan.is_full_size, range(500))) == 10
