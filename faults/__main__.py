"""Kill every step and every daemon at every call that changes files or the network, and tell what survived.

    python -m faults [--only WORD ...] [--every N] [--processes N]

For each subject one undisturbed run is recorded; it gives the points, and what a loss of power could do in it (`durability`).
Then it is killed at one point after the other (`sweep`). Ends with 1 when a promise was broken. Needs /dev/shm, gcc, sshd.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from faults import cell, chain, durability, sweep
from faults.control import Point
from faults.sweep import Strike, Subject

SUBJECTS: dict[str, Subject] = {subject.id: subject for subject in (*sweep.STEPS, *chain.DAEMONS)}
SHOWN_BREACHES = 5
LEAST_HIT = 0.95
"""Of the kills of a subject: where several processes work side by side, not every point comes again."""


@dataclass(slots=True)
class Result:
    """What is known of one subject: its points, the kills so far, and what a loss of power could do."""

    points: list[Point] = field(default_factory=list)
    calls: int = 0
    strikes: list[Strike] = field(default_factory=list)
    not_durable: list[str] = field(default_factory=list)

    def add(self, more: Result) -> None:
        """Join what two processes found; they recorded the same."""
        self.points, self.calls = more.points, more.calls
        self.strikes += more.strikes
        self.not_durable = sorted({*self.not_durable, *more.not_durable})

    @property
    def hit(self) -> list[Strike]:
        """The kills that were carried out."""
        return [strike for strike in self.strikes if strike.was_reached]

    @property
    def is_too_thin(self) -> bool:
        """Whether so many kills were not carried out that the others prove little: the runs do not repeat the recorded one."""
        return len(self.hit) < LEAST_HIT * len(self.strikes)

    @property
    def broken(self) -> list[Strike]:
        """The kills after which something was not as promised."""
        return [strike for strike in self.strikes if strike.breaches]


def part_of(name: str, part: int, parts: int, every: int) -> Result:
    """One process's share of a subject, in a cell of its own."""
    with cell.made() as own:
        prepared = sweep.prepare(own, SUBJECTS[name])
        where = durability.layout(own.machines)
        result = Result(prepared.points, len(prepared.calls))
        result.not_durable = durability.breaches(prepared.calls, where, prepared.standing)
        for point, how in list(sweep.kills(prepared.points))[:: max(every, 1)][part::parts]:
            result.strikes.append(sweep.strike(own, prepared, point, how))
    return result


def main() -> int:
    """Record, kill, print."""
    parser = argparse.ArgumentParser(
        prog="python -m faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", default=[""], help="subjects whose name has one of these words in it"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th kill only")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="how many cells at once")
    arguments = parser.parse_args()
    wanted = [name for name in SUBJECTS if any(word in name for word in arguments.only)]
    began = time.monotonic()
    results = _all(wanted, arguments.processes, arguments.every)
    print("\n".join(table(results)))
    print(f"\n{time.monotonic() - began:.0f} s, {arguments.processes} processes")
    return 1 if any(result.broken or result.not_durable or result.is_too_thin for result in results.values()) else 0


def _all(wanted: Sequence[str], processes: int, every: int) -> dict[str, Result]:
    results = {name: Result() for name in wanted}
    with ProcessPoolExecutor(processes) as pool:
        shares = {pool.submit(part_of, name, part, processes, every): name for name in wanted for part in range(processes)}
        for done in as_completed(shares):
            name = shares[done]
            results[name].add(done.result())
            print("\n".join(_told(name, done.result())), file=sys.stderr, flush=True)
    return results


def _told(name: str, share: Result) -> Iterator[str]:
    """What a share found, for whoever watches."""
    seconds = sum(strike.seconds for strike in share.strikes)
    yield f"{name}: {len(share.hit)} of {len(share.strikes)} kills, {len(share.broken)} broke something, {seconds:.0f} s"
    yield from (f"  a loss of power: {breach}" for breach in share.not_durable)
    for strike in share.broken:
        yield f"  {strike.point} ({strike.how})"
        yield from (f"    {breach[:1000]}" for breach in strike.breaches[:SHOWN_BREACHES])


def table(results: dict[str, Result]) -> Iterator[str]:
    """The results as Markdown."""
    yield "| killed | calls seen | points seen | kills hit | survived | not reached again | a loss of power could harm |"
    yield "|---|---|---|---|---|---|---|"
    total = Result()
    for name, result in results.items():
        yield _row(name, result)
        total.add(Result([*total.points, *result.points], total.calls + result.calls, result.strikes, result.not_durable))
    yield _row("**in all**", total)


def _row(name: str, result: Result) -> str:
    hit = result.hit
    survived = sum(not strike.breaches for strike in hit)
    numbers = (result.calls, len(result.points), len(hit), survived, len(result.strikes) - len(hit), len(result.not_durable))
    return f"| {name} | " + " | ".join(map(str, numbers)) + " |"


if __name__ == "__main__":
    sys.exit(main())
