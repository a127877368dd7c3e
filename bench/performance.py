"""Run every benchmark and write ``docs/performance.md`` with its plot.

    python bench/performance.py [--quick] [--only NAME ...] [--into FOLDER]

Each benchmark is a process of its own, one after the other. Their results are kept in ``build/bench``: with ``--only`` some
are measured anew, and the document is of all. Ends with 1 if a bar is missed. What ``--quick`` finds is printed, kept
nowhere, and written only where ``--into`` says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import results
from results import ROOT, Result

BENCHMARKS = (
    "convert", "distribute", "plot", "transfer", "rsync_to_nas", "chain", "growth", "compare_mirrors", "publish", "sftp_sync",
)  # fmt: skip
DOCUMENT, PLOT = "performance.md", "performance.svg"
KEPT = ROOT / "build" / "bench"


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little work, in a minute or two")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where the document and its plot go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if arguments.quick else KEPT
        missed = [name for name in arguments.only if not _measure(name, folder, arguments.quick)]
        kept = [file for file in (folder / f"{name}.json" for name in BENCHMARKS) if file.is_file()]
        found = [result for file in kept for result in results.load(file)]
        days = sorted({datetime.fromtimestamp(file.stat().st_mtime, UTC).date() for file in kept})
    print("\n".join(_bars(found)))
    is_whole = not arguments.quick and len(kept) == len(BENCHMARKS)
    if into := arguments.into or (ROOT / "docs" if is_whole else None):
        (into / DOCUMENT).write_text("\n".join(_document(found, " and ".join(f"{day:%d %B %Y}" for day in days))))
        _draw(found, into / PLOT)
    return 1 if missed else 0


def _measure(name: str, folder: Path, quick: bool) -> bool:
    """Run one benchmark and keep what it finds; whether its bars were met."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{name}.json"
    kept.unlink(missing_ok=True)
    argv = [sys.executable, ROOT / "bench" / f"{name}.py", "--json", kept, *(["--quick"] if quick else [])]
    return subprocess.run(argv).returncode == 0


def _document(found: Sequence[Result], days: str) -> Iterator[str]:
    yield "# What it costs\n"
    yield (
        "Written by `make bench`, which measures everything again: ours and theirs in turn in one run, so that a slow day is\n"
        f"slow for both. Measured on {days}, on {_machine()}.\n"
    )
    yield "Memory is the highest sum over all processes of a command, shared pages counted once, sampled every 20 ms.\n"
    yield from _bars(found)
    yield f"\n![How time and memory grow with the length of a block]({PLOT})\n"
    for result in found:
        yield from result.lines()


def _bars(found: Sequence[Result]) -> Iterator[str]:
    """Every bar of every benchmark in one table."""
    yield "| | measured | bar | |"
    yield "| --- | ---: | --- | --- |"
    for result in found:
        for bar in result.bars:
            yield f"| {result.title}: {bar.what} | {bar.value:.2f} | {bar.limit} | {'reached' if bar.is_met else '**missed**'} |"


def _machine() -> str:
    """The machine in words, without a name."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"a machine of {len(os.sched_getaffinity(0))} cores and {memory_gb:.0f} GB of memory, with {_disk()}"


def _disk() -> str:
    """What kind of disk temporary files lie on."""
    device = os.stat(tempfile.gettempdir()).st_dev
    kind = next((line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {_numbers(device)} " in line), "")
    file_system = kind.partition(" - ")[2].split(" ")[0] or "an unknown file system"
    block = Path(f"/sys/dev/block/{_numbers(device)}").resolve()
    settings = [path for path in (block / "queue", block.parent / "queue") if path.is_dir()]
    if not settings:
        return f"no disk of its own but {file_system}"
    turns = (settings[0] / "rotational").read_text().strip() == "1"
    virtual = "virtual " if "virtio" in str(block) else ""
    return f"{file_system} on a {virtual}{'disk' if virtual else 'hard disk' if turns else 'solid-state disk'}"


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _draw(found: Sequence[Result], target: Path) -> None:
    """One panel for each axis of each result that has curves."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dataflow"
    import matplotlib.pyplot as plt

    drawn = [result for result in found if result.curves]
    if not drawn:
        return
    figure, panels = plt.subplots(2, len(drawn), figsize=(5 * len(drawn), 7), squeeze=False, layout="constrained")
    for column, result in zip(panels.T, drawn, strict=True):
        for panel, (axis, lines) in zip(column, (result.curves or {}).items(), strict=True):
            for label, points in lines.items():
                panel.plot(*zip(*points, strict=True), marker="o", label=label)
            panel.set(xlabel="records in the block", ylabel=axis, title=result.title, ylim=(0, None), xlim=(0, None))
            panel.grid(alpha=0.3)
        column[0].legend(fontsize="small")
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
