"""A small world for a test: the shipped configuration, its machines below one folder, and a clock that the test moves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.demo import machines
from dataflow.lib import check, config, context, runner, summary
from dataflow.lib.config import Config, Here
from dataflow.lib.context import Context, Requests
from dataflow.lib.custody import Custody
from dataflow.lib.errors import Exit
from dataflow.lib.summary import Record, SummaryLog

SHIPPED = Path(__file__).parents[1] / "config.yaml"
_WITHOUT_LIMITS = tuple(machines.without_limits(config.load(SHIPPED).flow))
_RUNS = itertools.count()


@dataclass(slots=True)
class Clock:
    """The real time, ahead by what the test asks for; ``stop_at`` makes it stand still."""

    ahead: timedelta = timedelta(0)
    stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return (self.stopped_at or datetime.now(UTC)) + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)

    def stop_at(self, moment: datetime) -> None:
        self.stopped_at, self.ahead = moment, timedelta(0)


@dataclass(slots=True)
class World:
    """The machines of some radars below ``root``. ``said``: what runs have told the person."""

    root: Path
    config: Config
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)

    def here(self, host: str, radar: str = "sas") -> Here:
        return self.config.here(host, radar)

    def context(self, host: str, radar: str = "sas", step: str = "rsync_to_nas", part: str = "") -> Context:
        """What ``open_context`` makes, with this world's clock and ears."""
        made = context.open_context(self.config, host, radar, step, part)
        run = f"{self.clock():%Y%m%dT%H%M%S.%fZ}-{os.getpid()}-{next(_RUNS)}"
        log = SummaryLog(made.here, config.step_name(made.step), run, self.clock)
        custody = Custody(made.here, run, self.clock, log)
        return replace(made, run=run, log=log, custody=custody, say=self.said.append, clock=self.clock, requests=Requests())

    def run(
        self, host: str, step: str, radar: str = "sas", part: str = "", named: Sequence[Path] = ()
    ) -> tuple[Exit, list[Record]]:
        """Run one step once; its exit code and the records that it wrote."""
        ctx = self.context(host, radar, step, part)
        code = runner.run(ctx, named)
        return code, self.records(host, radar, ctx.run)

    def records(self, host: str, radar: str = "sas", run: str | None = None) -> list[Record]:
        """The records of one host and radar, of all runs or of one, in the order in which they were written."""
        files = summary.own_files(self.here(host, radar), datetime(1990, 1, 1, tzinfo=UTC).date())
        return [record for record in summary.records(files) if run in (None, record["run"])]


def make(root: Path, overrides: Sequence[str] = (), radars: Sequence[str] = ("sas",), source: Path = SHIPPED) -> World:
    """The shipped configuration with every root of some radars' machines marked as the right disk."""
    loaded = config.load(source, root, [*_WITHOUT_LIMITS, *overrides])
    for radar in radars:
        for host in loaded.flow.radars[radar].machines:
            list(check.look(loaded.here(host, radar), create_markers=True))
    return World(root, loaded)
