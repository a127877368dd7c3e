"""``dataflow scrub``: reads again what is kept for good, and holds it against the records.

The truth is the summary log: the last record of a place has the hash of what must lie there, and its time is when that was
last seen to be so. So there is no state to keep: each file that is checked has its record, a run that was killed goes on with
those that have none yet, and the oldest-checked come first. What differs from its hash is *damaged*, what is not there is
*lost*, and what no record knows is adopted. For the first two a copy is looked for that verifies; the damaged file goes to
quarantine, and nothing is ever written over.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from dataflow.lib import alert, checksum, copy, lock, names, place, quarantine, runner, summary
from dataflow.lib.checksum import Pace
from dataflow.lib.config import Here
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, BadFile, Exit, TryLater
from dataflow.lib.names import Name
from dataflow.lib.step import OUTCOMES, trouble
from dataflow.lib.summary import CHECKED, DAMAGED, LOST, REMOVED, Record

STEP = "scrub"
READY_ENDING = ".restored"
BEFORE_ANY_RECORD = date(1990, 1, 1)
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Claim:
    """What the records say last of one place: the hash (None: only that it is lost or removed), when, and in what state."""

    sha256: str | None
    time: str
    state: str = ""


@dataclass(slots=True)
class Found:
    """What a run found. Paths are as a person may see them; ``restored`` ones were damaged or lost before."""

    verified: int = 0
    adopted: int = 0
    bytes: int = 0
    waiting: int = 0
    known_lost: int = 0
    restored: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def scrub(
    ctx: Context, wanted: Sequence[str], source: Path | None, pace: Pace, progress: Progress | None = None
) -> tuple[Exit, Found]:
    """Check what is due, oldest-checked first, until all is checked or the run is asked to stop.

    ``wanted`` are bare names that are checked whether due or not; ``source`` is a folder in which copies may lie.

    Raises:
        BadConfig: nothing is kept for good on this host, a wanted name is nowhere, or ``source`` is no folder.
    """
    if not ctx.here.host.kept:
        raise BadConfig(f"hosts.{ctx.here.host_name}.kept names no folder: {ctx.here.host_name} keeps nothing for good")
    if source is not None and not source.is_dir():
        raise BadConfig(f"{source} is not a folder: --from names one in which copies may lie, such as a mounted backup")
    holder = f"{STEP} of {ctx.here.radar} on {ctx.here.machine.name}"
    with lock.held(ctx.here.state / f"lock.{STEP}", holder, ctx.say, lambda: ctx.requests.stop) as free:
        if not free:
            return Exit.LEFT_OVER, Found(problem="asked to stop while another scrub was running")
        run = _Scrub(ctx, source, pace, progress)
        return run.work(wanted), run.found


def claims(here: Here, origins: Sequence[Here], since: date) -> dict[str, Claim]:
    """What the records from a day on say last of each place that is kept here.

    ``origins``: the hosts whose records count, this one and those that write to the same mounted disk.
    """
    bases = {host.host_name: {f"{_base(host, key)}/": f"{_base(here, key)}/" for key in _shared(here, host)} for host in origins}
    own = summary.records(summary.own_files(here, since))
    others = summary.records(summary.relayed_files(here, since) if len(origins) > 1 else [])
    table: dict[str, Claim] = {}
    for records, hosts in ((own, {here.host_name}), (others, bases.keys() - {here.host_name})):
        for record in records:
            if record["host"] in hosts:
                _enter(table, record, bases[record["host"]])
    return table


def _enter(table: dict[str, Claim], record: Record, bases: dict[str, str]) -> None:
    """Take note of one record, if it is of a place that is kept and newer than what is known of that."""
    file, text, state = record.get("file"), record.get("destination"), record.get("outcome") or "done"
    if record["event"] not in ("file", "action") or not isinstance(file, str):
        return
    if state == "quarantined" or record.get("action") == REMOVED:
        text, state = f"{record.get('source')}/{file}", REMOVED
    if state not in ("done", DAMAGED, LOST, REMOVED) or not isinstance(text, str) or not text.endswith(f"/{file}"):
        return
    base = next((base for base in bases if text.startswith(base)), None)
    if base is None or "/../" in text:
        return
    known = table.setdefault(bases[base] + text.removeprefix(base), Claim(None, "", ""))
    if record["time"] >= known.time:
        known.time, known.state = record["time"], state
        known.sha256 = record.get("sha256") if state == "done" else None if state == REMOVED else known.sha256
    elif known.state in (DAMAGED, LOST) and known.sha256 is None and state == "done":  # a log that sorts behind by its name
        known.sha256 = record.get("sha256")


class _Scrub:
    """One run."""

    def __init__(self, ctx: Context, source: Path | None, pace: Pace, progress: Progress | None) -> None:
        self.ctx, self.found = ctx, Found()
        self._counts: Counter[str] = Counter()
        self._source = source
        self._limit = pace
        self._progress = progress
        self._copies_by_name: dict[str, list[Path]] | None = None
        self._missing: list[Path] = []
        self._claims: dict[str, Claim] = {}

    def work(self, wanted: Sequence[str]) -> Exit:
        """Check the files; start and end are records like those of a step."""
        started = time.monotonic()
        runner.write_start(self.ctx)
        try:
            for root in {self.ctx.here.root_of(key) for key in self.ctx.here.host.kept}:
                place.check_root(self.ctx.here, root)
            self._check_all(self._due(wanted))
            self._settle_missing()
            alert.clear(self.ctx.here, f"{STEP}: environment")
        except (TryLater, OSError) as error:
            self.found.problem = trouble(error)
            self.ctx.say(f"{STEP}: {self.found.problem}")
            alert.tell_once(self.ctx.log, self.ctx.here, f"{STEP}: environment", self.found.problem)
        is_left_over = self._counts["kept"] or self._counts["quarantined"] or self.found.problem
        code = Exit.LEFT_OVER if is_left_over else Exit.ACCOUNTED
        self.ctx.log.write(
            "end", found=self._counts.total(), waiting=self.found.waiting,
            **{word: self._counts[word] for word in OUTCOMES}, bytes=self.found.bytes,
            seconds=round(time.monotonic() - started, 3), exit=int(code), reason=self.found.problem,
        )  # fmt: skip
        self.ctx.log.sync()
        self.ctx.log.close()
        return code

    def _due(self, wanted: Sequence[str]) -> list[Path]:
        """What is to be checked: what no record knows, then what was checked longest ago; damaged and lost ones always."""
        ctx = self.ctx
        self._claims = claims(ctx.here, _origins(ctx), BEFORE_ANY_RECORD)
        horizon = summary.timestamp(ctx.clock() - timedelta(days=ctx.flow.scrub.every_days))
        there = set(_walk(ctx.here, self._cannot_list))
        for leftover in [path for path in there if path.endswith(READY_ENDING)]:  # of a run that was killed
            there.remove(leftover)
            place.release(Path(leftover))
        paths = there | {path for path, claim in self._claims.items() if claim.state != REMOVED}
        if wanted:
            paths = {path for path in paths if path.rpartition("/")[2] in wanted}
            if unknown := set(wanted) - {path.rpartition("/")[2] for path in paths}:
                raise BadConfig(f"no record and no folder of hosts.{ctx.here.host_name}.kept knows {', '.join(sorted(unknown))}")
        order = sorted((self._checked(path), path) for path in paths)
        return [Path(path) for checked, path in order if wanted or checked <= horizon]

    def _checked(self, path: str) -> str:
        """When a place was last seen to be as it should; empty for what is to be looked at first."""
        claim = self._claims.get(path)
        return claim.time if claim is not None and claim.state == "done" else ""

    def _cannot_list(self, error: OSError) -> None:
        self.found.problem = trouble(error)
        self.ctx.say(f"{STEP}: {self.found.problem}")

    def _check_all(self, paths: Sequence[Path]) -> None:
        for number, path in enumerate(paths):
            try:
                self._check(path)
            except _Stopped:
                self.found.waiting = len(paths) - number
                return
            if self._progress is not None:
                self._progress(path.name, number + 1, len(paths))

    def _check(self, path: Path) -> None:
        """Compare one file with what the records say of its place."""
        claim, name = self._claims.get(str(path)), names.parse(path.name)
        try:
            if _is_gone(path):
                self._missing += [path] if claim is not None else []
            elif name is None or not place.is_regular(path):
                self._skip_stranger(path, name)
            else:
                self._compare(path, name, claim)
        except (TryLater, OSError) as error:
            self._tell_not_checked(path, trouble(error))
        except BadFile as error:
            self._tell_not_checked(path, str(error))

    def _skip_stranger(self, path: Path, name: Name | None) -> None:
        shown = names.printable(str(path))
        self._counts["skipped"] += 1
        if name is None:
            message = f"{shown}: unknown name: it matches no grammar; it was left where it is"
            alert.tell_once(self.ctx.log, self.ctx.here, f"skipped: {shown}", message, file=shown)
        else:
            alert.tell_once(self.ctx.log, self.ctx.here, f"skipped: {shown}", f"{shown}: not a regular file", file=shown)

    def _compare(self, path: Path, name: Name, claim: Claim | None) -> None:
        if claim is None and self._age_s(path) < self.ctx.flow.files.settle_s:
            return  # somebody may be copying it, or a step is about to record it: the next run sees
        digest, size_bytes = checksum.sha256_of_still(path, self._pace)
        checksum.sync_file(path)  # what is read once must not push out of the page cache what others read often
        self.found.bytes += size_bytes
        alert.clear(self.ctx.here, self._condition(path))
        if claim is None or claim.sha256 is None:
            self._require_root(path)
            self._record(path, "adopted", sha256=digest, bytes=size_bytes)
            self.found.adopted += 1
            self._counts["done"] += 1
        elif digest == claim.sha256:
            self._record(path, CHECKED, sha256=digest, bytes=size_bytes)
            self.found.verified += 1
            self._counts["done"] += 1
        else:
            again, _ = checksum.sha256_of_still(path, self._pace)
            if again != digest:
                raise TryLater("it reads differently each time: look after memory, cables and the disk before anything else")
            self._require_root(path)
            self._mend_damaged(path, name, claim, digest)

    def _pace(self, count: int) -> None:
        """Called for each piece that was read; a large file does not hold up a stop."""
        self._limit(count)
        if self.ctx.should_stop():
            raise _Stopped

    def _age_s(self, path: Path) -> float:
        return self.ctx.clock().timestamp() - path.lstat().st_ctime

    def _require_root(self, path: Path) -> None:
        """Believe nothing bad, or new, of a disk that is not the one it should be."""
        here = self.ctx.here
        place.check_root(here, next(here.root_of(key) for key in here.host.kept if path.is_relative_to(_base(here, key))))

    def _condition(self, path: Path) -> str:
        return f"{STEP}: {names.printable(str(path))}"

    def _tell_not_checked(self, path: Path, reason: str) -> None:
        shown = names.printable(str(path))
        message = f"{shown} could not be checked or restored: {reason}"
        alert.tell_once(self.ctx.log, self.ctx.here, self._condition(path), message, file=names.printable(path.name))
        self.ctx.say(message)
        self.found.not_checked[shown] = reason
        self._counts["kept"] += 1

    def _mend_damaged(self, path: Path, name: Name, claim: Claim, digest: str) -> None:
        """Put a copy that verifies in the place of a damaged file; without one it stays, and that is told once."""
        expected = str(claim.sha256)
        ready, whence = self._ready_copy(path, name, expected)
        if ready is not None:
            self._replace_damaged(path, ready, whence, digest, expected)
            return
        self.found.damaged.append(str(path))
        self._counts["kept"] += 1
        if claim.state != DAMAGED:
            message = f"{path} is damaged: its hash is {digest}, the records say {expected}; {whence}"
            details = {"sha256": digest, "expected_sha256": expected}
            alert.tell(self.ctx.log, message, file=path.name, details=details)
            self._record(path, DAMAGED, outcome=DAMAGED, sha256=digest, reason=message, details=details)
            self.ctx.say(message)

    def _replace_damaged(self, path: Path, ready: Path, whence: str, digest: str, expected: str) -> None:
        """The damaged file gets a name in quarantine, then loses its own, then the copy gets that."""
        ctx, details = self.ctx, {"sha256": digest, "expected_sha256": expected}
        fault = f"its hash is {digest}, the records say {expected}"
        aside = quarantine.admit(ctx.here, path, "changed since hashed", fault, STEP, ctx.clock(), details)
        message = f"{path} was damaged and is restored from {whence}: {fault}; the damaged file is in quarantine as {aside}"
        alert.tell(ctx.log, message, file=path.name, details=details)
        ctx.log.sync()
        place.release(path)
        self._give_back(path, ready, expected, message)
        self._counts["quarantined"] += 1
        ctx.say(message)

    def _give_back(self, path: Path, ready: Path, sha256: str, reason: str) -> None:
        place.publish(ready, path)
        self._record(path, "restored", sha256=sha256, bytes=path.stat().st_size, reason=reason)
        self.found.restored.append(str(path))

    def _settle_missing(self) -> None:
        """What is not there is lost, unless a record that was written since this run began says that it was removed."""
        if not self._missing:
            return
        since = (self.ctx.clock() - timedelta(days=1)).date()
        now = claims(self.ctx.here, _origins(self.ctx), since)
        news: dict[Path, list[Path]] = {}
        for path in self._missing:
            self._require_root(path)
            is_removed = str(path) in now and now[str(path)].state == REMOVED
            if not is_removed and _is_gone(path) and not self._bring_back(path):
                if self._claims[str(path)].state == LOST:
                    self.found.known_lost += 1
                    self._counts["skipped"] += 1
                else:
                    news.setdefault(path.parent, []).append(path)
        for folder, lost in news.items():
            self._tell_lost(folder, lost)

    def _bring_back(self, path: Path) -> bool:
        """Restore a lost file from a copy that verifies."""
        name, expected = names.parse(path.name), self._claims[str(path)].sha256
        if name is None or expected is None:
            return False
        try:
            ready, whence = self._ready_copy(path, name, expected)
        except _Stopped:
            return False
        if ready is None:
            return False
        message = f"{path} was lost and is restored from {whence}"
        alert.tell(self.ctx.log, message, file=path.name)
        self._give_back(path, ready, expected, f"it was lost; restored from {whence}")
        self._counts["done"] += 1
        self.ctx.say(message)
        return True

    def _tell_lost(self, folder: Path, lost: Sequence[Path]) -> None:
        """One alert for a folder: whoever clears a month by hand is told once, not a thousand times."""
        how = self._how_to_restore(lost[0].name)
        message = f"{len(lost)} files are lost from {folder}, the first is {lost[0].name}: no record says who removed them; {how}"
        alert.tell(self.ctx.log, message, files=len(lost))
        for path in lost:
            self._record(path, LOST, outcome=LOST, reason="it is not there, and no record says who removed it")
            self.found.lost.append(str(path))
            self._counts["kept"] += 1
        self.ctx.say(message)

    def _ready_copy(self, path: Path, name: Name, sha256: str) -> tuple[Path | None, str]:
        """A verified copy under a hidden name beside the place, and whence; or None and what to do."""
        for candidate in self._candidates(path, name, sha256):
            try:
                if not place.is_regular(candidate) or checksum.sha256_on_disk(candidate, self._pace) != sha256:
                    continue
                ready = path.with_name(f".{path.name}{READY_ENDING}")
                copy.make_ready(self.ctx.here, candidate, ready, sha256, link=False)
                return ready, str(candidate)
            except (TryLater, BadFile, OSError) as error:
                self.ctx.say(f"{candidate} cannot be used to restore {path}: {error}")
        return None, self._how_to_restore(path.name)

    def _how_to_restore(self, file: str) -> str:
        here = self.ctx.here
        command = f"dataflow scrub {file} --from DIR --host {here.host_name} --radar {here.radar}"
        return f"no copy on this machine verifies: mount one that may (the site's backup, another archive) as DIR, then {command}"

    def _candidates(self, path: Path, name: Name, sha256: str) -> Iterator[Path]:
        """Where else the file may lie: every folder of this host, the targets', quarantine, and what a person named."""
        here, targets = self.ctx.here, self.ctx.flow.distribute.targets
        folders = [here.folder(key, name.time, name.camera or "") for key in here.folder_texts]
        folders += [here.path(t.folder) for t in targets.values() if t.folder.partition("/")[0] in here.roots]
        folders += [here.folder("to_send") / target for target in targets] if "to_send" in here.folder_texts else []
        for folder in folders:
            if folder / path.name != path:
                yield folder / path.name
        yield here.folder("quarantine") / f"{path.name}.{sha256[:12]}"
        yield from self._copies_below_source().get(path.name, ())

    def _copies_below_source(self) -> dict[str, list[Path]]:
        """The files below the folder that a person named, by their names; read once, when first needed."""
        if self._copies_by_name is None:
            self._copies_by_name = {}
            for folder, _, files in os.walk(self._source) if self._source is not None else ():
                for file in files:
                    self._copies_by_name.setdefault(file, []).append(Path(folder, file))
        return self._copies_by_name

    def _record(self, path: Path, action: str, **fields: Any) -> None:
        self.ctx.log.write("action", file=path.name, source=str(path.parent), action=action, destination=str(path), **fields)


class _Stopped(Exception):
    """The run was asked to stop while it read a file."""


def _origins(ctx: Context) -> list[Here]:
    """This host, and those upstream that write to a disk that is mounted here as well."""
    above = [ctx.config.here(host, ctx.here.radar) for host in ctx.here.upstream]
    return [ctx.here, *(origin for origin in above if any(_shared(ctx.here, origin)))]


def _shared(here: Here, origin: Here) -> list[str]:
    """The kept folders of this host that lie on the same disk for the other: all of its own, those on a shared mount else."""
    return [key for key in here.host.kept if origin is here or (key in origin.folder_texts and _same_mount(here, origin, key))]


def _same_mount(here: Here, origin: Here, key: str) -> bool:
    roots = [{**host.host.roots, **host.machine.roots}[host.root_of(key)] for host in (here, origin)]
    return here.root_of(key) == origin.root_of(key) and all(root.mounted for root in roots)


def _is_gone(path: Path) -> bool:
    """True when nothing lies there; what the system refuses to tell is raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _base(here: Here, key: str) -> Path:
    """The part of a folder's path that does not depend on a file."""
    fixed = here.folder_texts[key].replace("{radar}", here.radar).split("/")
    depth = next((n for n, word in enumerate(fixed) if "{" in word), len(fixed))
    return here.path("/".join(fixed[:depth]))


def _walk(here: Here, onerror: Callable[[OSError], None]) -> Iterator[str]:
    """Everything below the kept folders that is not hidden and not another radar's; links are not followed."""
    for key in here.host.kept:
        if not _base(here, key).is_dir():
            continue
        for folder, folders, files in os.walk(_base(here, key), onerror=onerror):
            folders[:] = [each for each in folders if not each.startswith(".")]
            for file in files:
                name = names.parse(file.removeprefix(".").removesuffix(READY_ENDING) if file.endswith(READY_ENDING) else file)
                is_ours = name is not None and name.radar in (None, here.radar)
                if is_ours or (name is None and not file.startswith(".")):
                    yield f"{folder}/{file}"
