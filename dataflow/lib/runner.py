"""The one runner: lock, log, loop, catch, record, quarantine, count, exit code.

For what a batch yields the runner makes durable, in this order: manifests of new files, the outbox, the records. Only then
does it release the sources. Killed between any two of these, the next run finds the source and does the rest.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import dataflow
from dataflow.lib import alert, flag, lock, names, place, quarantine, version
from dataflow.lib.context import Context, pause_file, pause_reason
from dataflow.lib.custody import outbox
from dataflow.lib.errors import BadConfig, Exit, HostDown, TryLater
from dataflow.lib.step import OUTCOMES, Outcome, kept, load, skipped, trouble

FUSE_FILES = 3
FUSE_MARK = "fuse: "
SETTLE_AFTER_S = 1.0
SETTLE_AFTER_FILES = 500


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
        account = Account(ctx, named)
        code = _guarded(account)
        return _close(account, code, time.monotonic() - started)


def _guarded(account: Account) -> Exit:
    """The outermost handler: every way in which a run can end becomes an exit code and a reason."""
    ctx = account.ctx
    try:
        _write_start(ctx)
        account.work()
    except (TryLater, OSError) as error:
        try:
            account.problem = trouble(error)
        except OSError:
            return _bug(account)
        _tell_problem(account)
        return Exit.LEFT_OVER
    except (HostDown, BadConfig) as error:
        account.problem = str(error)
        ctx.say(f"{ctx.step}: {error}")
        return Exit.UNREACHABLE if isinstance(error, HostDown) else Exit.CONFIG
    except Exception:
        return _bug(account)
    if account.fuse_blown:
        return Exit.BUG
    return Exit.LEFT_OVER if account.counts["kept"] or account.counts["quarantined"] or account.problem else Exit.ACCOUNTED


class Account:
    """The running account of one run: what was found, what became of it, and what is not yet settled."""

    def __init__(self, ctx: Context, named: Sequence[Path]) -> None:
        self.ctx = ctx
        self.named = named
        self.found = self.waiting = self.bytes = 0
        self.counts: Counter[str] = Counter()
        self.problem: str | None = None
        self.fuse_blown = False
        self._module: ModuleType
        self._suspects: list[Outcome] = []
        self._unsettled: list[Outcome] = []
        self._settled_at = time.monotonic()

    def work(self) -> None:
        """Find, take batch after batch, settle, count."""
        self._module = load(self.ctx.step)
        self._require_part()
        if self._paused():
            return
        rest = self._sort_out(list(dict.fromkeys(self.named or self._module.find(self.ctx))))
        rest = self._without_missing_roots(rest)
        while rest and not self._must_end():
            size = self._module.batch(self.ctx, rest) if hasattr(self._module, "batch") else len(rest)
            batch, rest = rest[: max(size, 1)], rest[max(size, 1) :]
            self._take(batch)
        self._condemn_suspects()
        self._settle()
        self.waiting += len(rest)
        if self.found != sum(self.counts.values()):
            raise AssertionError(f"{self.found} files were taken and {sum(self.counts.values())} accounted for")
        self._close_manifests()
        if self.problem is None:
            alert.clear(self.ctx.here, f"{self.ctx.step}: environment")

    def _require_part(self) -> None:
        parts = getattr(self._module, "PARTS", {})
        if self.ctx.part and self.ctx.part not in parts:
            raise BadConfig(f"{self.ctx.step} has no part {self.ctx.part!r}; there are: {', '.join(parts) or 'none'}")

    def _must_end(self) -> bool:
        return self.fuse_blown or self.ctx.requests.give_way or self.ctx.should_stop()

    def _paused(self) -> bool:
        reason = pause_reason(self.ctx.here, self.ctx.step)
        if reason is None or self.named:
            return False
        self.problem = f"paused: {reason}"
        self.fuse_blown = reason.startswith(FUSE_MARK)
        self.ctx.say(f"{self.ctx.step} is paused: {reason}")
        return True

    def _sort_out(self, found: list[Path]) -> list[Path]:
        """Skip what is no regular file, has no name of the grammar, or is of a kind that is not for this step.

        A file that is skipped run after run is recorded and told once, and counted each time.
        """
        kinds = getattr(self._module, "KINDS", None)
        good = []
        for path in found:
            name = names.parse(path.name)
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
        self.found += 1
        shown = names.printable(str(path))
        if alert.tell_once(self.ctx.log, self.ctx.here, f"skipped: {shown}", f"{shown}: {reason}", file=shown):
            self._record(skipped(path, reason))
        else:
            self.counts["skipped"] += 1

    def _without_missing_roots(self, files: list[Path]) -> list[Path]:
        """Keep everything when a root is not what it should be; an unmounted disk is not an empty one."""
        try:
            self._check_roots()
        except TryLater as error:
            self.problem = str(error)
            _tell_problem(self)
            self.found += len(files)
            for path in files:
                self._judge(kept(path, str(error)))
            return []
        return files

    def _check_roots(self) -> None:
        for root in getattr(self._module, "ROOTS", ()):
            place.check_root(self.ctx.here, root)

    def _take(self, batch: list[Path]) -> None:
        """Hand one batch to the step; each of its files gets exactly one outcome."""
        open_files = set(batch)
        self.found += len(batch)
        began = time.monotonic()
        try:
            for yielded in self._module.handle(self.ctx, batch):
                outcome = replace(yielded, seconds=round(time.monotonic() - began, 3))
                began = time.monotonic()
                if outcome.file not in open_files:
                    raise AssertionError(f"{outcome.file} was given a second outcome, or was not asked for")
                open_files.remove(outcome.file)
                self._judge(outcome)
                if self.fuse_blown:
                    break
        except HostDown as error:
            self._keep(batch, open_files, str(error))
            raise
        except (TryLater, OSError) as error:
            self.problem = trouble(error)
            self._keep(batch, open_files, self.problem)
        finally:
            self._settle()
        if open_files and not self._must_end():
            raise AssertionError(f"{len(open_files)} of {len(batch)} files were given no outcome, the first {min(open_files)}")
        self.waiting += len(open_files)
        self.found -= len(open_files)

    def _keep(self, batch: list[Path], open_files: set[Path], reason: str) -> None:
        for path in batch:
            if path in open_files:
                open_files.remove(path)
                self._judge(kept(path, reason))

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
        self._unsettled.append(self._quarantined(outcome) if outcome.outcome == "quarantined" else outcome)
        due = time.monotonic() - self._settled_at > SETTLE_AFTER_S
        if due or len(self._unsettled) >= SETTLE_AFTER_FILES:
            self._settle()

    def _condemn_suspects(self) -> None:
        suspects, self._suspects = self._suspects, []
        self._unsettled.extend(self._quarantined(outcome) for outcome in suspects)

    def _blow_fuse(self) -> None:
        kind, first = self._suspects[0].kind, self._suspects[0].file
        step, where = self.ctx.step, f"--host {self.ctx.here.host_name} --radar {self.ctx.here.radar}"
        message = (
            f"{FUSE_FILES} files in a row are bad for the same reason ({kind}: {self._suspects[0].reason}); nothing was moved "
            f"and the step is stopped. If the fault was ours, mend it and: dataflow resume {step} {where}. "
            f"If the files are bad: dataflow run {step} {where} {first} ..."
        )
        pause = pause_file(self.ctx.here, step)
        pause.parent.mkdir(parents=True, exist_ok=True)
        place.write_whole(pause, (FUSE_MARK + message).encode())
        self._unsettled.extend(kept(o.file, f"fuse: {o.reason}", kind=o.kind) for o in self._suspects)
        self._suspects = []
        self.fuse_blown = True
        self.problem = message
        alert.tell(self.ctx.log, message, kind=kind)
        self.ctx.say(f"{step}: {message}")

    def _quarantined(self, outcome: Outcome) -> Outcome:
        """Move one bad file into quarantine; a quarantine that cannot take it keeps it where it is."""
        if outcome.destination is None:
            ctx = self.ctx
            kind, reason = outcome.kind or "bad", outcome.reason or "no reason given"
            try:
                where = quarantine.put(ctx.here, outcome.file, kind, reason, ctx.step, ctx.clock(), outcome.details)
            except (TryLater, OSError) as error:
                return kept(outcome.file, f"bad ({reason}), but the quarantine cannot take it: {trouble(error)}")
            outcome = replace(outcome, reason=reason, kind=kind, destination=where)
        alert.tell(
            self.ctx.log, f"quarantined {names.printable(outcome.file.name)}: {outcome.reason}",
            file=names.printable(outcome.file.name), kind=outcome.kind, destination=outcome.destination,
        )  # fmt: skip
        return outcome

    def _settle(self) -> None:
        """Make a group of outcomes durable, then let go of the sources."""
        outcomes, self._unsettled = self._unsettled, []
        self._settled_at = time.monotonic()
        if not outcomes:
            return
        ctx = self.ctx
        try:
            self._check_roots()
        except TryLater as error:
            self.problem = str(error)
            outcomes = [kept(o.file, f"nothing was released: {error}") if o.outcome == "done" else o for o in outcomes]
        ctx.custody.admit([entry for o in outcomes for entry in o.admit], ctx.here.host_name)
        if delivered := [entry for o in outcomes for entry in o.deliver]:
            flag.write(outbox(ctx.here), ctx.here.radar, ctx.here.host_name, ctx.run, delivered, ctx.clock)
        for outcome in outcomes:
            self._record(outcome)
        ctx.log.sync()
        for outcome in outcomes:
            for source in outcome.release:
                place.release(source)

    def _record(self, outcome: Outcome) -> None:
        common = {"file": names.printable(outcome.file.name), "source": names.printable(str(outcome.file.parent))}
        for action in outcome.actions:
            self.ctx.log.write("action", **{**common, **action})
        destination = names.printable(str(outcome.destination)) if outcome.destination is not None else None
        self.ctx.log.write(
            "file", **common, outcome=outcome.outcome, action=outcome.action, reason=outcome.reason, kind=outcome.kind,
            bytes=outcome.bytes, seconds=outcome.seconds, sha256=outcome.sha256, parent=outcome.parent, destination=destination,
            details=outcome.details or None,
        )  # fmt: skip
        self.counts[outcome.outcome] += 1
        self.bytes += outcome.bytes or 0 if outcome.outcome == "done" else 0
        if outcome.outcome in ("kept", "quarantined"):
            self.ctx.say(f"{outcome.outcome} {names.printable(outcome.file.name)}: {outcome.reason}")

    def _close_manifests(self) -> None:
        for name in self.ctx.custody.close_finished():
            shown = names.printable(name)
            message = f"{shown} is listed in a manifest, lies in no working folder, and no record says where it went: look for it"
            alert.tell_once(self.ctx.log, self.ctx.here, f"missing: {shown}", message, file=shown)


def _write_start(ctx: Context) -> None:
    ctx.log.write(
        "start", dataflow=dataflow.__version__, commit=version.commit("dataflow"), pydarnio=version.of("pydarnio"),
        pydarnio_commit=version.commit("pydarnio"),
        python=platform.python_version(), config_sha256=ctx.config.sha256, part=ctx.part or None,
    )  # fmt: skip


def _close(account: Account, code: Exit, seconds: float) -> Exit:
    """Write the end of the run and tell the person; a log that cannot be written is said aloud."""
    ctx = account.ctx
    counts = {word: account.counts[word] for word in OUTCOMES}
    try:
        ctx.log.write(
            "end", found=sum(counts.values()), waiting=account.waiting, **counts, bytes=account.bytes,
            seconds=round(seconds, 3), exit=int(code), reason=account.problem,
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
