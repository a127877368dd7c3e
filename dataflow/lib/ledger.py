"""What became of the files of one run: made durable, counted, and only then let go of.

For a group of outcomes, in this order: bad files get a name in quarantine with their reason, then come the manifests of
new files, the outbox and the records. Only then are the sources released. Killed between any two of these, the next run
finds the source and does the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from dataflow.lib import alert, checksum, flag, names, place, quarantine
from dataflow.lib.context import Context
from dataflow.lib.custody import outbox
from dataflow.lib.errors import DataflowError
from dataflow.lib.step import Outcome, kept, trouble

SETTLE_AFTER_S = 1.0
SETTLE_AFTER_FILES = 500


class Ledger:
    """The outcomes of one run. ``counts`` are of those that are recorded, ``bytes`` of those that are done."""

    def __init__(self, ctx: Context) -> None:
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self._ctx = ctx
        self._open: list[Outcome] = []
        self._long_kept: list[Outcome] = []
        self._settled_at = time.monotonic()

    def enter(self, outcome: Outcome) -> None:
        """Take an outcome; nothing is done about it before ``settle``."""
        self._open.append(outcome)

    def is_due(self) -> bool:
        """True when so much is open, or for so long, that it should be settled: a group shares its syncs."""
        return len(self._open) >= SETTLE_AFTER_FILES or time.monotonic() - self._settled_at > SETTLE_AFTER_S

    def hold_back(self, reason: str) -> None:
        """Let go of nothing that is open: a disk is not what it should be, so the copies may lie anywhere."""
        self._open = [kept(o.file, f"nothing was released: {reason}") if o.outcome == "done" else o for o in self._open]

    def settle(self) -> None:
        """Make what is open durable, then release the sources.

        Raises:
            OSError: something cannot be written; nothing was released.
        """
        ctx, self._settled_at = self._ctx, time.monotonic()
        if not self._open:
            return
        outcomes = [self._quarantined(_kept_if_changed(outcome)) for outcome in self._open]
        self._open = []
        ctx.custody.admit([entry for o in outcomes for entry in o.admit], ctx.here.host_name)
        if delivered := [entry for o in outcomes for entry in o.deliver]:
            flag.write(outbox(ctx.here), ctx.here.radar, ctx.here.host_name, ctx.run, delivered, ctx.clock)
        for outcome in outcomes:
            self.record(outcome)
        ctx.log.sync()
        for outcome in outcomes:
            if outcome.release and not _is_unchanged(outcome):
                self._tell_changed(outcome.file)
                continue
            for source in outcome.release:
                place.release(source)

    def record(self, outcome: Outcome) -> None:
        """Write and count one outcome; what needs a person's attention is said and told."""
        ctx, name = self._ctx, names.printable(outcome.file.name)
        common = {"file": name, "source": names.printable(str(outcome.file.parent))}
        for action in outcome.actions:
            ctx.log.write("action", **{**common, **action})
        destination = names.printable(str(outcome.destination)) if outcome.destination is not None else None
        ctx.log.write(
            "file", **common, outcome=outcome.outcome, action=outcome.action, reason=outcome.reason, kind=outcome.kind,
            bytes=outcome.bytes, seconds=outcome.seconds, sha256=outcome.sha256, parent=outcome.parent, destination=destination,
            details=outcome.details or None,
        )  # fmt: skip
        self.counts[outcome.outcome] += 1
        if outcome.outcome == "done":
            self.bytes += outcome.bytes or 0
        else:
            ctx.say(f"{outcome.outcome} {name}: {outcome.reason}")
        if outcome.outcome == "kept" and self._lies_still_s(outcome.file) > ctx.flow.files.kept_too_long_s:
            self._long_kept.append(outcome)
        if outcome.outcome == "quarantined" and isinstance(outcome.destination, Path):  # another host tells what it set aside
            message = f"quarantined {name}: {outcome.reason}"
            alert.tell(ctx.log, message, file=name, kind=outcome.kind, destination=destination)

    def _tell_changed(self, file: Path) -> None:
        """Of a source that changed while its records were made durable: what it was is safe, the next run sees the rest."""
        message = f"{names.printable(file.name)} changed after it was recorded, so it stays: has the radar written more of it?"
        self._ctx.say(message)
        alert.tell(self._ctx.log, message, file=names.printable(file.name))

    def tell_long_kept(self) -> None:
        """One alert for all files that runs have had to keep for long: each try for itself looks as if the next may succeed."""
        ctx, condition = self._ctx, f"{self._ctx.step} {self._ctx.part}: kept"
        if not self._long_kept:
            alert.clear(ctx.here, condition)
            return
        first, days = self._long_kept[0], ctx.flow.files.kept_too_long_s / 86400
        message = (
            f"kept for more than {days:g} days, number of files: {len(self._long_kept)}, the first of them: "
            f"{names.printable(str(first.file))}: {first.reason}"
        )
        alert.tell_once(ctx.log, ctx.here, condition, message)

    def _lies_still_s(self, file: Path) -> float:
        """For how long a file has had its present place and content, in seconds."""
        try:
            return self._ctx.clock().timestamp() - file.lstat().st_ctime
        except FileNotFoundError:
            return 0.0

    def _quarantined(self, outcome: Outcome) -> Outcome:
        """A bad file with its name in quarantine; it is kept where it is if the quarantine cannot take it."""
        if outcome.outcome != "quarantined" or outcome.destination is not None:
            return outcome
        ctx, kind, reason = self._ctx, outcome.kind or "bad", outcome.reason or "no reason given"
        try:
            where = quarantine.admit(ctx.here, outcome.file, kind, reason, ctx.step, ctx.clock(), outcome.details)
        except (DataflowError, OSError) as error:
            return kept(outcome.file, f"bad ({reason}), but the quarantine cannot take it: {trouble(error)}", kind=kind)
        return replace(outcome, kind=kind, reason=reason, destination=where, release=(*outcome.release, outcome.file))


def _kept_if_changed(outcome: Outcome) -> Outcome:
    """An outcome that still holds: of a source that has grown since it was read, the rest is nowhere else."""
    if _is_unchanged(outcome):
        return outcome
    return kept(outcome.file, "it changed after it was read: has the radar written more of it?")


def _is_unchanged(outcome: Outcome) -> bool:
    return outcome.stamp is None or checksum.is_still(outcome.file, outcome.stamp)
