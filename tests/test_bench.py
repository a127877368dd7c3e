"""Every benchmark still runs: on little work, where ratios mean nothing, but the bars that hold at any size count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
BENCHMARKS = sorted(path.stem for path in BENCH.glob("*.py") if "results.main(" in path.read_text())
DRAWN = "growth"
"""The one that runs as part of the document, for the sake of the plot there."""


def run(*words) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != DRAWN])
def test_benchmark_runs(name: str, tmp_path: Path) -> None:
    said = run(BENCH / f"{name}.py", "--quick", "--json", tmp_path / "results")
    results = json.loads((tmp_path / "results").read_text())
    assert results
    for result in results:
        assert f"## {result['title']}\n" in said
        assert result["bars"]
        assert {len(row) for row in result["rows"]} == {len(result["headings"])}


def test_document_and_plot_are_written(tmp_path: Path) -> None:
    run(BENCH / "performance.py", "--quick", "--only", DRAWN, "--into", tmp_path)
    document = (tmp_path / "performance.md").read_text()
    assert "## Convert: growth\n" in document and "## Plot: growth\n" in document and "cores and" in document
    assert "(performance.svg)" in document
    assert "records in the block" in (tmp_path / "performance.svg").read_text()


def test_no_benchmark_is_forgotten() -> None:
    sys.path.insert(0, str(BENCH))
    try:
        import performance
    finally:
        sys.path.remove(str(BENCH))
    assert sorted(performance.BENCHMARKS) == BENCHMARKS
