"""What a step is given: where it runs, the clock, what has been asked of it, its log and the files' manifests."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from dataflow.lib.config import Config, Flow, Here, step_name
from dataflow.lib.custody import Custody
from dataflow.lib.summary import SummaryLog

PAUSE_ALL = "ALL"


def utc_now() -> datetime:
    """The clock of everything but the tests."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Requests:
    """What signals have asked for. ``stop``: finish the file in hand and end. ``give_way``: end after the batch."""

    stop: bool = False
    give_way: bool = False

    def listen(self) -> None:
        """Let SIGTERM and SIGINT mean stop, SIGUSR1 give way; the handlers only set the flags.

        The daemon starts steps with SIGUSR1 blocked, so that one that comes before they listen waits instead of killing them.
        """
        signal.signal(signal.SIGTERM, self._ask_stop)
        signal.signal(signal.SIGINT, self._ask_stop)
        signal.signal(signal.SIGUSR1, self._ask_way)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def hear_no_more(self) -> None:
        """The work is done. An ending Python gives signals that it hears their default meaning back, and one would kill it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _ask_stop(self, *_: object) -> None:
        self.stop = True

    def _ask_way(self, *_: object) -> None:
        self.give_way = True


@dataclass(frozen=True, slots=True)
class Context:
    """One run of one step.

    ``part`` is the word after the step's name in the list (``data``, ``pictures``) or empty. ``heeds_pause`` is False for
    files that a person asked for.
    """

    config: Config
    here: Here
    step: str
    part: str
    run: str
    log: SummaryLog
    custody: Custody
    say: Callable[[str], None]
    clock: Callable[[], datetime] = utc_now
    randomness: random.Random = field(default_factory=random.Random)
    requests: Requests = field(default_factory=Requests)
    heeds_pause: bool = True

    @property
    def flow(self) -> Flow:
        """The configuration document."""
        return self.config.flow

    def folder(self, key: str, time: datetime | None = None, camera: str = "") -> Path:
        """The path of one of this host's folders."""
        return self.here.folder(key, time, camera)

    def should_stop(self) -> bool:
        """True when the step is to end after the file in hand: SIGTERM, or a person paused it."""
        return self.requests.stop or (self.heeds_pause and pause_reason(self.here, self.step) is not None)


def open_context(
    config: Config,
    host: str,
    radar: str,
    step: str,
    part: str = "",
    say: Callable[[str], None] = lambda text: None,
    run: str | None = None,
) -> Context:
    """A context on the machine that this process runs on, with the real clock; ``run`` is that of the step that asks for it.

    Raises:
        BadConfig: no such host or radar.
    """
    here = config.here(host, radar)
    run = run or f"{utc_now():%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
    log = SummaryLog(here, step_name(step), run, utc_now)
    return Context(config, here, step, part, run, log, Custody(here, run, utc_now, log), say)


def pause_file(here: Here, step: str | None) -> Path:
    """The file whose presence pauses a step, or all of them; its text is the reason."""
    return here.state / "paused" / (step_name(step) if step else PAUSE_ALL)


def pause_reason(here: Here, step: str) -> str | None:
    """Why a step is paused, or None."""
    for name in (None, step):
        try:
            return pause_file(here, name).read_text(encoding="utf-8", errors="replace").strip() or "no reason given"
        except FileNotFoundError:
            continue
    return None
