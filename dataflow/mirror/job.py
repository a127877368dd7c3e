"""One run of one command of the mirror: lock, log, records, alerts, exit code. Written once for all of them.

A command is a function that takes a ``Job``, works, and accounts for each file with ``Job.file``. Records are those of the
summary log, with ``mirror`` for the host and ``all`` for the radar: ``<logs>/<name>/summary/YYYY/MM/<day>.all.<name>.jsonl``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import dataflow
from dataflow.lib import alert, lock, place, schema, ssh, version
from dataflow.lib.config import Config, Here
from dataflow.lib.context import Requests, utc_now
from dataflow.lib.errors import BadConfig, Exit, HostDown, TryLater
from dataflow.lib.mirror_settings import Mirror, Partner, StoreSettings
from dataflow.lib.step import trouble
from dataflow.lib.summary import SummaryLog
from dataflow.mirror import stores
from dataflow.mirror.stores import Store

OUTCOMES = ("done", "kept", "quarantined", "skipped")


@dataclass(slots=True)
class Job:
    """What a command is given. ``lock_name``: jobs with the same one never run at once.

    ``say`` is for what goes on, ``out`` for what the command was asked to tell (``show``).
    """

    config: Config
    settings: Mirror
    here: Here
    name: str
    lock_name: str
    log: SummaryLog
    say: Callable[[str], None]
    out: Callable[[str], None]
    clock: Callable[[], datetime] = utc_now
    requests: Requests = field(default_factory=Requests)
    progress: Callable[[str, int, int], None] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    opened: dict[StoreSettings, Store] = field(default_factory=dict)

    def file(self, name: str, outcome: str, action: str, **fields: Any) -> None:
        """Account for one file: ``done``, ``kept``, ``quarantined`` or ``skipped``. Fields are those of the summary log."""
        assert outcome in OUTCOMES, outcome
        self.counts[outcome] += 1
        self.log.write("file", file=name, outcome=outcome, action=action, **fields)

    def show(self, text: str, **fields: Any) -> None:
        """Tell what the command was asked for: a line for a person, with its fields for machines."""
        self.shown.append({**fields, "text": text})
        self.out(text)

    def problem(self, text: str) -> None:
        """Something went wrong that concerns no single file: told, in the record of the end, and the run ends with 1 or more."""
        self.problems.append(text)
        self.say(text)

    def alert(self, message: str, **fields: Any) -> None:
        """Tell a person, now; for an event that will not come again by itself."""
        self.say(message)
        alert.tell(self.log, message, **fields)

    def alert_while(self, condition: str, holds: bool, message: str = "") -> None:
        """Tell a person once that a condition holds, and again only after it had ended."""
        if not holds:
            alert.clear(self.here, f"{self.name}: {condition}")
        elif alert.tell_once(self.log, self.here, f"{self.name}: {condition}", message):
            self.say(message)

    def alert_changes(self, topic: str, found: Iterable[str], message: str) -> list[str]:
        """Tell a person what of a list is new since the last time; returns that. ``message`` has ``{count}`` and ``{names}``."""
        now = sorted(set(found))
        kept = self.here.state / "told" / hashlib.sha256(f"{self.name}: {topic}".encode()).hexdigest()[:24]
        before = set(kept.read_text(encoding="utf-8").split("\n")) if kept.exists() else set()
        if news := [item for item in now if item not in before]:
            shown = ", ".join(news[:10]) + (f" and {len(news) - 10} more" if len(news) > 10 else "")
            self.alert(message.format(count=len(news), names=shown), files=news[:1000])
            self.log.sync()
        if set(now) != before:
            place.make_own_folder(kept.parent)
            place.write_whole(kept, "\n".join(now).encode())
        return news

    def folder(self, key: str) -> Path:
        """One of the mirror's folders, made if it is not there.

        Raises:
            TryLater: its disk is not there.
        """
        path = self.here.folder(key)
        place.check_root(self.here, self.here.root_of(key))
        place.make_folder(self.here, path)
        return path

    def holding(self, name: str) -> Path:
        """A holding directory by its name, or by its path.

        Raises:
            BadConfig: there is none of that name.
            TryLater: its disk is not there.
        """
        for key, text in self.settings.holdings.items():
            path = self.here.path(text)
            if name == key or Path(name) == path:
                place.check_root(self.here, text.partition("/")[0])
                place.make_folder(self.here, path)
                return path
        raise BadConfig(f"there is no holding directory {name!r}; there are: {', '.join(self.settings.holdings)}")

    def partner(self, name: str) -> Partner:
        """A partner by its name.

        Raises:
            BadConfig: there is none of that name.
        """
        partners = self.settings.partners
        if name not in partners:
            raise BadConfig(f"there is no partner {name!r}; there are: {', '.join(partners)}{schema.likely(name, partners)}")
        return partners[name]

    def open(self, settings: StoreSettings) -> Store:
        """A store, opened once for each settings and closed at the end of the job.

        What connects is counted, as every new connection of this machine is.
        """
        if settings not in self.opened:
            if settings.kind == "sftp":
                limit = self.config.flow.ssh.max_new_connections_per_minute
                ssh.spend(self.here.machine_state, str(settings.address), limit)
            self.opened[settings] = stores.open_store(settings, self.here, self.folder("work"))
        return self.opened[settings]

    def should_stop(self) -> bool:
        """True after SIGTERM or SIGINT: finish the file in hand and return."""
        return self.requests.stop


def open_job(
    config: Config, name: str, lock_name: str, say: Callable[[str], None], out: Callable[[str], None] | None = None
) -> Job:
    """A job on this machine, with the real clock.

    Raises:
        BadConfig: the configuration has no mirror.
    """
    settings, here = config.mirror()
    run_id = f"{utc_now():%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
    return Job(config, settings, here, name, lock_name, SummaryLog(here, name, run_id, utc_now), say, out or say)


def run(job: Job, work: Callable[[Job], None]) -> Exit:
    """Run a command's work under its lock; every way in which it can end becomes a record and an exit code."""
    place.make_own_folder(job.here.state)
    with lock.held(job.here.state / f"lock.{job.lock_name}", job.name, job.say, job.should_stop) as free:
        if not free:
            return Exit.LEFT_OVER
        started = time.monotonic()
        code = _worked(job, work)
        counts = {word: job.counts[word] for word in OUTCOMES}
        job.log.write(
            "end", found=sum(counts.values()), **counts, seconds=round(time.monotonic() - started, 3), exit=int(code),
            reason=" | ".join(job.problems) or None,
        )  # fmt: skip
        job.log.sync()
        job.log.close()
        return code


@contextmanager
def told_if_incomplete(job: Job, what: str, whose: str) -> Iterator[None]:
    """Tell a person that a run did not come to everything, or that the other side is down: each once, until that has ended.

    ``what`` the run is, and ``whose`` files it brings: of one that many runs ask, it is told once that it is down. Of a run that
    was asked to stop, which the next one goes on with, nothing is told.
    """
    incomplete, told = f"{what} incomplete", f"{what} is not complete, and will be tried again"
    try:
        yield
    except HostDown as error:
        job.alert_while(f"{whose} down", True, f"{what}: {error}")
        raise
    except BadConfig as error:
        job.alert_while(incomplete, True, f"{what} cannot be done: {error}")
        raise
    except (TryLater, OSError) as error:
        if not job.should_stop():
            job.alert_while(incomplete, True, f"{told}: {trouble(error)}")
        raise
    job.alert_while(f"{whose} down", False)
    if job.should_stop():
        return
    kept = job.counts["kept"]
    left = [*job.problems, *([f"{kept} files were kept, their records say why"] if kept else [])]
    job.alert_while(incomplete, bool(left), f"{told}: {'; '.join(left)}")


def _worked(job: Job, work: Callable[[Job], None]) -> Exit:
    try:
        job.log.write(
            "start", dataflow=dataflow.__version__, commit=version.commit("dataflow"), python=platform.python_version(),
            config_sha256=job.config.sha256,
        )  # fmt: skip
        work(job)
    except HostDown as error:
        job.problem(str(error))
        return Exit.UNREACHABLE
    except BadConfig as error:
        job.problem(str(error))
        return Exit.CONFIG
    except (TryLater, OSError) as error:
        job.problem(str(error))
        return Exit.LEFT_OVER
    except Exception:
        job.problem(traceback.format_exc())
        job.alert(f"{job.name} ended with a bug; nothing was let go of. The traceback is in its summary log")
        return Exit.BUG
    finally:
        for store in job.opened.values():
            store.close()
    return Exit.LEFT_OVER if job.problems or job.counts["kept"] or job.counts["quarantined"] else Exit.ACCOUNTED
