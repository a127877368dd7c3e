"""``dataflow mirror pull``: a radar's files from the hub into a holding directory, and then away from the hub.

The hub is a flat folder into which radars upload. A file is taken when it was not changed for ``settle_s``. The hub's copy is
removed only when ours has its name, durable and read back, or lies on our mirror already, and when it still has the size, the
time of change and the SHA-1 that it had before: what is uploaded for longer than it seemed is left there for the next run.
The same name with other content is a conflict: ours stays, the hub's stays, and a person is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dataflow.lib import checksum, names, schema
from dataflow.lib.errors import BadConfig, DataflowError, TryLater
from dataflow.lib.mirror_settings import Hub, Mirror
from dataflow.mirror import layout
from dataflow.mirror.download import download, name_of, sha1_there
from dataflow.mirror.hash_lists import HashList
from dataflow.mirror.job import Job, told_if_incomplete
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, raise_if_down

ACTION = "pulled"
REMOVED = "removed at the hub"
HUB = "hub"


class State(StrEnum):
    """What a file at the hub is to us."""

    WANTED = "wanted"
    HERE = "here already"
    UPLOADING = "still being uploaded"
    CONFLICT = "conflict"
    UNCLEAR = "unclear"


OUTCOMES = {State.HERE: "skipped", State.UPLOADING: "skipped", State.CONFLICT: "kept", State.UNCLEAR: "kept"}
Verdict = tuple[State, str]
"""A state, and why."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a listing of the hub shows of a file: its size, and when it was changed, Unix time by the hub's clock."""

    size_bytes: int
    changed_s: float


def pull(job: Job, radar: str) -> None:
    """Fetch the files of one radar from the hub, and remove there what is safe here.

    Raises:
        BadConfig: there is no hub, or no such radar.
        HostDown: the hub or our mirror cannot be reached; what came is safe, and the next run removes it at the hub.
        TryLater: the hub's folder, or our holding directory, is not there.
    """
    hub = _hub(job.settings, radar)
    with told_if_incomplete(job, f"the pull of {radar}", "the hub"):
        _Pull(job, hub, radar).work()


def _hub(settings: Mirror, radar: str) -> Hub:
    if settings.hub is None:
        raise BadConfig("the section `mirror` of the configuration has no `hub`: there is nothing to pull from")
    if radar not in settings.radars:
        raise BadConfig(f"mirror.radars has no {radar!r}{schema.likely(radar, settings.radars)}")
    return settings.hub


class _Pull:
    """One run for one radar."""

    def __init__(self, job: Job, hub: Hub, radar: str) -> None:
        self._job, self._radar, self._settle_s = job, radar, hub.settle_s
        self._holding = job.holding(hub.holding)
        self._store = job.open(hub.store)
        self._our_store = job.open(job.settings.store)
        self._our_lists = MirrorLists(self._our_store, job.settings.tree, job.folder("work"))
        self._months: dict[str, HashList | TryLater] = {}

    def work(self) -> None:
        """See ``pull``. Nothing is accounted for before the hub and our mirror have said what they have."""
        looks = self._looks(tell_strangers=True)
        before = self._sha1([name for name, look in looks.items() if self._lies_still(look)])
        verdicts = {name: self._verdict(name, looks[name], before.get(name)) for name in sorted(looks)}
        self._account(verdicts)
        wanted = {name: (name, str(before[name])) for name, (state, _) in verdicts.items() if state is State.WANTED}
        failures = download(self._job, self._store, wanted, self._holding, action=ACTION, source=HUB)
        here = [name for name, (state, _) in verdicts.items() if state is State.HERE]
        self._remove([*here, *(wanted.keys() - failures.keys())], looks, before)

    def _looks(self, tell_strangers: bool = False) -> dict[str, Look]:
        """The files of this radar at the hub. What lies there and nobody pulls is told to a person, once."""
        sizes, changed = self._store.names(""), self._store.changed_s("")
        visible = {name: names.parse(name) for name in sizes if not name.startswith(".")}
        ours = {name: parsed for name, parsed in visible.items() if parsed is not None and layout.is_published(parsed)}
        pulled = {name: parsed for name, parsed in ours.items() if parsed.radar in self._job.settings.radars}
        if tell_strangers:
            strangers = [names.printable(name) for name in visible if name not in pulled or sizes[name] is None]
            self._job.alert_changes(
                "strangers", strangers, "{count} things at the hub are no files of radars that we pull; they stay there: {names}"
            )
        mine = [name for name, parsed in pulled.items() if parsed.radar == self._radar and name in changed]
        return {name: Look(size, changed[name]) for name in mine if (size := sizes[name]) is not None}

    def _lies_still(self, look: Look) -> bool:
        return self._job.clock().timestamp() - look.changed_s >= self._settle_s

    def _sha1(self, files: Iterable[str]) -> dict[str, str | DataflowError]:
        hashes = self._store.sha1(sorted(files))
        raise_if_down(hashes.values())
        return hashes

    def _verdict(self, file: str, look: Look, sha1: str | DataflowError | None) -> Verdict:
        if sha1 is None:
            return State.UPLOADING, f"it was changed less than {self._settle_s:.0f} s ago by the hub's clock"
        if isinstance(sha1, DataflowError):
            return State.UNCLEAR, str(sha1)
        there = sha1_there(self._holding / file)
        if there is None:
            return self._verdict_of_mirror(file, look, sha1)
        if there == sha1:
            checksum.sync_folder(self._holding)  # the run that gave it its name may have been killed before this
            return State.HERE, f"it waits in {self._holding}"
        return State.CONFLICT, f"at the hub its SHA-1 is {sha1}, in {self._holding} it is {there or 'not to be read'}; both stay"

    def _verdict_of_mirror(self, file: str, look: Look, sha1: str) -> Verdict:
        """What our mirror knows of a file. One that is listed and gone is fetched: publishing puts it back."""
        name = name_of(file)
        path = layout.data_path(self._job.settings.tree, name)
        listed = self._listed(layout.month_of(name))
        if isinstance(listed, TryLater):
            return State.UNCLEAR, f"our own list of its month cannot be read: {listed}"
        if file in listed.unclear:
            return State.UNCLEAR, "our own list of its month has a line about it that cannot be used: dataflow mirror verify"
        if file not in listed.hashes:
            return State.WANTED, ""
        if listed.hashes[file] != sha1:
            return State.CONFLICT, f"at the hub its SHA-1 is {sha1}, on our mirror it is {listed.hashes[file]}; both stay"
        try:
            is_there = self._our_store.size(path) == look.size_bytes
        except TryLater as error:
            return State.UNCLEAR, f"whether it is on our mirror cannot be told: {error}"
        return (State.HERE, f"it is on our mirror: {path}") if is_there else (State.WANTED, "")

    def _listed(self, month: str) -> HashList | TryLater:
        if month not in self._months:
            try:
                self._months[month] = self._our_lists.month(month)
            except Absent:
                self._months[month] = HashList({})
            except TryLater as error:
                self._months[month] = error
        return self._months[month]

    def _account(self, verdicts: Mapping[str, Verdict]) -> None:
        """Record what is not fetched, and tell a person of conflicts, once."""
        for name, (state, reason) in verdicts.items():
            if state is not State.WANTED:
                self._job.file(name, OUTCOMES[state], ACTION, source=f"{HUB}:{name}", reason=f"{state}: {reason}")
        conflicts = [f"{name} ({reason})" for name, (state, reason) in verdicts.items() if state is State.CONFLICT]
        self._job.alert_changes(
            f"conflicts of {self._radar}", conflicts,
            "{count} files at the hub have the names of others here, and other content; they are left there until a person "
            "removes one: {names}",
        )  # fmt: skip

    def _remove(self, files: Collection[str], before: Mapping[str, Look], hashes: Mapping[str, str | DataflowError]) -> None:
        """Remove files at the hub that are safe here, if they are still what they were."""
        if not files:
            return
        self._job.log.sync()
        now, again = self._looks(), self._sha1(files)
        for name in sorted(files):
            if name not in now:  # somebody else has removed it
                continue
            if now[name] == before[name] and again[name] == hashes[name]:
                self._remove_one(name, before[name], str(hashes[name]))
            else:
                self._job.problem(f"{name} changed at the hub while it was pulled, or cannot be read now: it is left there")

    def _remove_one(self, name: str, look: Look, sha1: str) -> None:
        try:
            self._store.remove(name)
        except TryLater as error:
            self._job.problem(f"{name} is safe here and could not be removed at the hub: {error}")
        else:
            self._job.log.write("action", file=name, action=REMOVED, source=f"{HUB}:{name}", sha1=sha1, bytes=look.size_bytes)
