"""The one runner: lock, log, loop, catch, count, exit code. What becomes of each file is written by the ledger."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import ModuleType

import dataflow
from dataflow.lib import alert, lock, names, place, space, version
from dataflow.lib.context import Context, pause_file, pause_reason
from dataflow.lib.errors import BadConfig, Exit, HostDown, TryLater
from dataflow.lib.ledger import Ledger
from dataflow.lib.step import OUTCOMES, Outcome, kept, load, skipped, trouble

FUSE_FILES = 3
FUSE_MARK = "fuse: "
STRANGERS_TOLD = 20
"""An alert is made durable before the work goes on: ten thousand of them would hold it up for minutes."""


def run(ctx: Context, named: Sequence[Path] = ()) -> Exit:
    """Run one step once, under the lock of its host and radar.

    ``named`` are files that a person asks for: they are worked on in place of what the step finds, also when the step is
    paused, and the fuse does not apply to them.
    """
    holder = f"{ctx.step} of {ctx.here.radar} on {ctx.here.machine.name}"
    with lock.held(ctx.here.state / "lock", holder, ctx.say, lambda: ctx.requests.stop) as free:
        if not free:
            return Exit.LEFT_OVER
        started = time.monotonic()
        account = Account(replace(ctx, heeds_pause=not named), named)
        code = _guarded(account)
        return _close(account, code, time.monotonic() - started)


def _guarded(account: Account) -> Exit:
    """The outermost handler: what has no known remedy is a bug."""
    try:
        return _worked(account)
    except Exception:
        return _bug(account)


def _worked(account: Account) -> Exit:
    """Every other way in which a run can end becomes an exit code and a reason."""
    try:
        write_start(account.ctx)
        account.work()
    except (TryLater, OSError) as error:
        account.problem = trouble(error)
        _tell_problem(account)
        return Exit.LEFT_OVER
    except (HostDown, BadConfig) as error:
        account.problem = str(error)
        _tell_problem(account)
        return Exit.UNREACHABLE if isinstance(error, HostDown) else Exit.CONFIG
    if account.fuse_blown:
        return Exit.BUG
    counts = account.ledger.counts
    return Exit.LEFT_OVER if counts["kept"] or counts["quarantined"] or account.problem else Exit.ACCOUNTED


class Account:
    """The running account of one run: which files were found, taken and left waiting, and why it did not end well."""

    def __init__(self, ctx: Context, named: Sequence[Path]) -> None:
        self.ctx = ctx
        self.named = named
        self.ledger = Ledger(ctx)
        self.found = 0
        self.free: dict[str, int] = {}
        self.problem: str | None = None
        self.fuse_blown = False
        self._host_down: HostDown | None = None
        self._module: ModuleType
        self._rest: list[Path] = []
        self._begun: dict[Path, set[Path]] = {}
        self._suspects: list[Outcome] = []
        self._crowded: set[Path] = set()

    def work(self) -> None:
        """Find, take batch after batch, settle, count."""
        self._module = load(self.ctx.step)
        self._require_part()
        if self._paused():
            return
        self._rest = self._sort_out(list(dict.fromkeys(self.named or self._module.find(self.ctx))))
        if missing := self._missing_root():
            self._keep_all(missing)
        while self._rest and not self._must_end():
            self._take()
        self._condemn_suspects()
        self._settle()
        if self.found != (counted := self.ledger.counts.total()):
            raise AssertionError(f"{self.found} files were taken and {counted} accounted for")
        if not self.named:
            self.ledger.tell_long_kept()
        self._close_manifests()
        self._watch_space()
        if self._host_down is not None:
            raise self._host_down
        if self.problem is None:
            alert.clear(self.ctx.here, f"{self.ctx.step}: environment")

    @property
    def waiting(self) -> int:
        """How many files were found and have no outcome: not begun, left out by a stop, or ended before it was recorded."""
        return len(self._rest) + self.found - self.ledger.counts.total()

    def _require_part(self) -> None:
        parts = getattr(self._module, "PARTS", {})
        if self.ctx.part and self.ctx.part not in parts:
            raise BadConfig(f"{self.ctx.step} has no part {self.ctx.part!r}; there are: {', '.join(parts) or 'none'}")

    def _must_end(self) -> bool:
        return self.fuse_blown or self._host_down is not None or self.ctx.requests.give_way or self.ctx.should_stop()

    def _paused(self) -> bool:
        reason = pause_reason(self.ctx.here, self.ctx.step)
        if reason is None or self.named:
            return False
        self.problem = f"paused: {reason}"
        self.fuse_blown = reason.startswith(FUSE_MARK)
        self.ctx.say(f"{self.ctx.step} is paused: {reason}")
        return True

    def _sort_out(self, found: list[Path]) -> list[Path]:
        """Skip what is no regular file, has no name of the grammar, or is of a kind that is not for this step."""
        kinds = getattr(self._module, "KINDS", None)
        good = []
        for path in found:
            name = names.parse(path.name)
            if not self.named and not os.path.lexists(path):
                continue  # somebody took it since the step looked
            if not place.is_regular(path):
                self._skip(path, "not a regular file")
            elif kinds is not None and name is None:
                self._skip(path, "unknown name: it matches no grammar; it was left where it is")
            elif kinds is not None and name is not None and name.kind not in kinds:
                self._skip(path, f"{name.kind} files are not for this step")
            else:
                good.append(path)
        return good

    def _skip(self, path: Path, reason: str) -> None:
        """Count a stranger each time; record and tell it once, unless a person asked for it. Of many the first ones are told."""
        self.found += 1
        if self.ledger.counts["skipped"] >= STRANGERS_TOLD and not self.named:
            self._skip_one_of_many(path.parent)
            return
        shown = names.printable(str(path))
        is_news = alert.tell_once(self.ctx.log, self.ctx.here, f"skipped: {shown}", f"{shown}: {reason}", file=shown)
        if is_news or self.named:
            self.ledger.record(skipped(path, reason))
        else:
            self.ledger.counts["skipped"] += 1

    def _skip_one_of_many(self, folder: Path) -> None:
        self.ledger.counts["skipped"] += 1
        if folder not in self._crowded:
            self._crowded.add(folder)
            shown = names.printable(str(folder))
            message = f"{shown} holds more than {STRANGERS_TOLD} files that are none of ours; they stay: move them out of there"
            alert.tell_once(self.ctx.log, self.ctx.here, f"skipped: many in {shown}", message)

    def _keep_all(self, reason: str) -> None:
        self.found += len(self._rest)
        for path in self._rest:
            self.ledger.enter(kept(path, reason))
        self._rest = []

    def _missing_root(self) -> str | None:
        """Why a root that this step uses is not the disk it should be; an unmounted disk is not an empty one."""
        try:
            for root in self._roots():
                place.check_root(self.ctx.here, root)
        except TryLater as error:
            self.problem = str(error)
            _tell_problem(self)
            return self.problem
        return None

    def _batches(self) -> Iterator[list[Path]]:
        """One batch after the other, for as long as the run may go on; those of its files share the set of what is open of it."""
        while self._rest and not self._must_end():
            size = self._module.batch(self.ctx, self._rest) if hasattr(self._module, "batch") else len(self._rest)
            batch, self._rest = self._rest[: max(size, 1)], self._rest[max(size, 1) :]
            still_open = set(batch)
            self._begun |= dict.fromkeys(batch, still_open)
            self.found += len(batch)
            yield batch

    def _take(self) -> None:
        """Hand batches to the step; each of their files gets exactly one outcome, those that a stop left out are waiting."""
        try:
            for outcome in self._outcomes():
                if outcome.file not in self._begun:
                    raise AssertionError(f"{outcome.file} was given a second outcome, or was not asked for")
                still_open = self._begun.pop(outcome.file)
                still_open.remove(outcome.file)
                self._judge(outcome)
                if self.fuse_blown:
                    break
                if not still_open or self.ledger.is_due():
                    self._settle()
        finally:
            self._settle()
        self._require_answers()
        self.found -= len(self._begun)
        self._rest, self._begun = [*self._begun, *self._rest], {}

    def _require_answers(self) -> None:
        if self._begun and not self._must_end():
            raise AssertionError(f"no outcome was given for {len(self._begun)} of the files, the first {min(self._begun)}")

    def _outcomes(self) -> Iterator[Outcome]:
        """What the step makes of batches; what has begun and is still open when it gives up is kept.

        The first has begun before the step is asked, so that a step that always gives up comes to an end too.
        """
        began, batches = time.monotonic(), self._batches()
        if (first := next(batches, None)) is None:
            return
        try:
            for outcome in self._stream(chain([first], batches)):
                yield replace(outcome, seconds=round(time.monotonic() - began, 3))
                began = time.monotonic()
            return
        except HostDown as error:
            self._host_down, reason = error, str(error)
        except (TryLater, OSError) as error:
            self.problem = reason = trouble(error)
        for path in list(self._begun):
            yield kept(path, reason)

    def _stream(self, batches: Iterable[list[Path]]) -> Iterator[Outcome]:
        """The step's own outcomes, of one batch after the other unless it works on two at once."""
        if hasattr(self._module, "handle_batches"):
            yield from self._module.handle_batches(self.ctx, batches)
            return
        for batch in batches:
            yield from self._module.handle(self.ctx, batch)
            self._require_answers()

    def _judge(self, outcome: Outcome) -> None:
        """Hold back what is called bad until something else is not, or the fuse blows: the fault may be ours."""
        if outcome.outcome == "quarantined" and outcome.destination is None and not self.named:
            if self._suspects and self._suspects[-1].kind != outcome.kind:
                self._condemn_suspects()
            self._suspects.append(outcome)
            if len(self._suspects) == FUSE_FILES:
                self._blow_fuse()
            return
        if outcome.outcome == "done":
            self._condemn_suspects()
        self.ledger.enter(outcome)

    def _condemn_suspects(self) -> None:
        suspects, self._suspects = self._suspects, []
        for outcome in suspects:
            self.ledger.enter(outcome)

    def _blow_fuse(self) -> None:
        suspects, self._suspects = self._suspects, []
        ctx, first = self.ctx, suspects[0]
        where = f"{ctx.step} --host {ctx.here.host_name} --radar {ctx.here.radar}"
        self.fuse_blown = True
        self.problem = (
            f"{FUSE_FILES} files in a row are bad for the same reason ({first.kind}: {first.reason}); nothing was moved and the "
            f"step is stopped. If the fault was ours, mend it and: dataflow resume {where}. If the files are bad: "
            f"dataflow run {where} FILE ...; the first is {names.printable(str(first.file))}"
        )
        for outcome in suspects:
            self.ledger.enter(kept(outcome.file, f"fuse: {outcome.reason}", kind=outcome.kind))
        alert.tell(ctx.log, self.problem, kind=first.kind)
        ctx.log.sync()
        pause = pause_file(ctx.here, ctx.step)
        pause.parent.mkdir(parents=True, exist_ok=True)
        place.write_whole(pause, (FUSE_MARK + self.problem).encode("utf-8", "replace"))
        ctx.say(f"{ctx.step}: {self.problem}")

    def _settle(self) -> None:
        """Settle what is open, if the roots are still what they were before the batch."""
        if missing := self._missing_root():
            self.ledger.hold_back(missing)
        self.ledger.settle()

    def _roots(self) -> list[str]:
        """The roots that this step uses, as far as this machine has them."""
        return [root for root in getattr(self._module, "ROOTS", ()) if root in self.ctx.here.roots]

    def _watch_space(self) -> None:
        """Take note of what is free on the roots; the place of a missing one is on another disk."""
        if not self._missing_root():
            self.free = space.free(self.ctx.here, self._roots())
            space.watch(self.ctx, self.free)

    def _close_manifests(self) -> None:
        if getattr(self._module, "ROOTS", None) == ():
            return
        for name in self.ctx.custody.close_finished():
            shown = names.printable(name)
            message = f"{shown} is listed in a manifest, lies in no working folder, and no record says where it went: look for it"
            alert.tell_once(self.ctx.log, self.ctx.here, f"missing: {shown}", message, file=shown)


def write_start(ctx: Context) -> None:
    """Record that a run begins, and with which program and configuration."""
    ctx.log.write(
        "start", dataflow=dataflow.__version__, commit=version.commit("dataflow"), pydarnio=version.of("pydarnio"),
        pydarnio_commit=version.commit("pydarnio"),
        python=platform.python_version(), config_sha256=ctx.config.sha256, part=ctx.part or None,
    )  # fmt: skip


def _close(account: Account, code: Exit, seconds: float) -> Exit:
    """Write the end of the run and tell the person; a log that cannot be written is said aloud."""
    ctx = account.ctx
    counts = {word: account.ledger.counts[word] for word in OUTCOMES}
    try:
        ctx.log.write(
            "end", found=sum(counts.values()), waiting=account.waiting, **counts, bytes=account.ledger.bytes,
            seconds=round(seconds, 3), exit=int(code), reason=account.problem, free=account.free or None,
        )  # fmt: skip
        ctx.log.sync()
    except OSError as error:
        ctx.say(f"{ctx.step}: the summary log cannot be written ({error.strerror}); make room, then run it again")
        code = code or Exit.LEFT_OVER
    ctx.log.close()
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    ctx.say(f"{ctx.step}: {said or 'nothing to do'}" + (f", {account.waiting} waiting" if account.waiting else ""))
    return code


def _tell_problem(account: Account) -> None:
    ctx = account.ctx
    ctx.say(f"{ctx.step}: {account.problem}")
    try:
        alert.tell_once(ctx.log, ctx.here, f"{ctx.step}: environment", str(account.problem))
    except OSError as error:
        ctx.say(f"{ctx.step}: and the alert cannot be recorded: {error.strerror}")


def _bug(account: Account) -> Exit:
    ctx, text = account.ctx, traceback.format_exc()
    account.problem = text.strip().splitlines()[-1]
    ctx.say(f"{ctx.step}: a bug; the chain stops, the files stay where they are:\n{text}")
    try:
        alert.tell(ctx.log, f"{ctx.step} ended with a bug: {account.problem}", traceback=text)
    except OSError as error:
        ctx.say(f"{ctx.step}: and the alert cannot be recorded: {error.strerror}")
    return Exit.BUG
