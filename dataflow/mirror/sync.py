"""``dataflow mirror sync``: what a partner lists and our mirror does not, into his holding directory.

Month by month his list is held against ours, by name and by exact pairs of hash and name. What is left of his after our
blocklist, our list of failed files, the radars that we do not publish and what waits already is fetched, and compared with the
hash that he lists. A file that both have with different hashes is never fetched: a person is told, once. A list that cannot be
read says nothing and its month is left out; it is never taken for an empty one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dataflow.lib import names, place, schema
from dataflow.lib.errors import BadConfig, TryLater
from dataflow.lib.mirror_settings import Mirror, Partner
from dataflow.mirror import layout
from dataflow.mirror.download import download, sha1_there
from dataflow.mirror.hash_lists import HashList
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Store

WORDS = ("wanted", "different", "unclear", "blocked", "failed", "excluded", "unknown")
"""What may become of a name that a partner lists and that is not the same here; see ``compare_month``."""


@dataclass(frozen=True, slots=True)
class Known:
    """What our side says of files in any month. ``failed``: pairs of SHA-1 and name that have failed a check."""

    blocked: frozenset[str]
    failed: Collection[tuple[str, str]]
    radars: Collection[str]
    excluded: Collection[str]


def sync(job: Job, partner: str, months: Sequence[str] | None = None) -> None:
    """Fetch what a partner lists and we lack, of some months or of those that ``months_to_sync`` gives.

    Raises:
        BadConfig: there is no such partner.
        HostDown: his mirror or ours cannot be reached.
        TryLater: our blocklist or our list of failed files cannot be read, so nothing may be fetched.
    """
    one = _Sync(job, _partner(job.settings, partner), partner)
    asked = months_to_sync(job.clock(), job.settings.late_days) if months is None else months
    is_listed = [one.month(month) for month in asked if not job.should_stop()]
    nothing = f"{partner} has no list of {' or '.join(asked[-2:])}: is the disk of its mirror there?"
    job.alert_while(f"{partner} lists nothing", bool(is_listed) and not any(is_listed), nothing)
    one.tell_what_is_left()


def months_to_sync(now: datetime, late_days: int, *, weekly: bool = False) -> list[str]:
    """The present month, and in its first days the one before; ``weekly``: from the same month a year ago. In UTC."""
    today = now.astimezone(UTC)
    months = [today.replace(day=1)]
    while len(months) < (13 if weekly else 2 if today.day <= late_days else 1):
        months.append((months[-1] - timedelta(days=1)).replace(day=1))
    return [f"{month:%Y%m}" for month in reversed(months)]


def compare_month(ours: HashList, theirs: HashList, known: Known) -> dict[str, dict[str, str]]:
    """What becomes of the names that a partner lists and that are not the same here: for each of ``WORDS``, his hashes by name.

    different: we have it with another hash. unclear: a refused line of ours has it, so nobody can say that we lack it. blocked,
    failed (the exact pair of hash and name), excluded: we do not want it. unknown: its radar is none of ours.
    """
    found: dict[str, dict[str, str]] = {word: {} for word in WORDS}
    for name, sha1 in theirs.hashes.items():
        if ours.hashes.get(name) != sha1:
            found[_word(name, sha1, ours, known)][name] = sha1
    return found


def _word(name: str, sha1: str, ours: HashList, known: Known) -> str:
    radar = radar_of(name)
    reasons = (
        ("failed", (sha1, name) in known.failed),
        ("different", name in ours.hashes),
        ("unclear", name in ours.unclear),
        ("blocked", name in known.blocked),
        ("excluded", radar in known.excluded),
        ("unknown", radar not in known.radars),
    )
    return next((word for word, holds in reasons if holds), "wanted")


def radar_of(name: str) -> str:
    """The radar of a name that a list has."""
    parsed = names.parse(name)
    assert parsed is not None and parsed.radar is not None, name
    return parsed.radar


def _partner(settings: Mirror, partner: str) -> Partner:
    if partner not in settings.partners:
        raise BadConfig(f"there is no partner {partner!r}{schema.likely(partner, settings.partners)}")
    return settings.partners[partner]


class _Sync:
    """One run with one partner."""

    def __init__(self, job: Job, settings: Partner, partner: str) -> None:
        work = job.folder("work")
        self._job, self._partner, self._tree = job, partner, settings.tree
        self._holding = job.holding(settings.holding)
        self._ours = MirrorLists(job.open(job.settings.store), job.settings.tree, work)
        self._store: Store = job.open(settings.store)
        self._theirs = MirrorLists(self._store, settings.tree, work)
        self._known = Known(
            self._ours.blocklist(), self._ours.failed().reasons.keys(), job.settings.radars, job.settings.excluded
        )

    def month(self, month: str) -> bool:
        """Sync a month; False when the partner definitely has no list of it."""
        waiting = {path.name for path in place.scan(self._holding)}  # before our list is read: what is published then is on it
        whose = self._partner
        try:
            theirs = self._theirs.month(month)
            whose = "our mirror"
            ours = self._our_month(month)
        except Absent:
            return False
        except TryLater as error:
            self._job.problem(f"{month} is left out, because the list of {whose} cannot be read: {error}")
            return True
        found = compare_month(ours, theirs, self._known)
        self._tell(month, theirs, found)
        self._fetch(self._not_waiting(month, found["wanted"], waiting))
        return True

    def tell_what_is_left(self) -> None:
        """Tell a person that the run did not come to everything; once, until one does."""
        left = list(self._job.problems)
        if kept := self._job.counts["kept"]:
            left.append(f"{kept} files were not fetched; their records say why")
        message = f"the sync with {self._partner} is not complete and will be tried again: {'; '.join(left)}"
        self._job.alert_while(f"{self._partner} incomplete", bool(left), message)

    def _our_month(self, month: str) -> HashList:
        """Our own list; an empty one only where the list of the lists does not name it either.

        Raises:
            TryLater: it cannot be read.
        """
        try:
            return self._ours.month(month)
        except Absent as error:
            if month in self._months_of_master():
                raise TryLater("our master list names a list of it, and there is none: dataflow mirror verify") from error
            return HashList({})

    def _months_of_master(self) -> set[str]:
        try:
            return {path[-len("YYYYMM.hashes") :][:6] for path in self._ours.master().hashes if path.startswith("./raw/")}
        except Absent:
            return set()

    def _tell(self, month: str, theirs: HashList, found: Mapping[str, Mapping[str, str]]) -> None:
        """Record what the comparison came to, and tell a person what is new of what a person has to see."""
        partner = self._partner
        counts = {word: len(found[word]) for word in WORDS}
        counts.update(listed=len(theirs.hashes), refused=len(theirs.refused))
        self._job.log.write("action", action="compared", source=partner, month=month, **counts)
        self._job.alert_changes(
            f"{partner} {month} different", found["different"],
            f"{{count}} files of {month} have other hashes at {partner} than here; neither side was touched. "
            f"See: dataflow mirror compare {partner} --month {month}. They are: {{names}}",
        )  # fmt: skip
        self._job.alert_changes(
            f"{partner} {month} refused", [f"{refusal.text} ({refusal.reason})" for refusal in theirs.refused],
            f"{{count}} lines of the list of {month} at {partner} are not used; tell them there: {{names}}",
        )  # fmt: skip
        for radar in sorted({radar_of(name) for name in found["unknown"]}):
            message = f"{partner} has files of a radar {radar}: add it to mirror.radars or to mirror.excluded; none is fetched"
            self._job.alert_while(f"{partner} {radar}", True, message)

    def _not_waiting(self, month: str, wanted: Mapping[str, str], waiting: Collection[str]) -> dict[str, str]:
        """What does not wait in the holding directory to be published, under that name and with whatever content."""
        there = {name: sha1_there(self._holding / name) for name in wanted if name in waiting}
        other = [name for name, sha1 in there.items() if sha1 not in (None, wanted[name])]
        self._job.alert_changes(
            f"{self._partner} {month} waiting", other,
            f"{{count}} files of {self._partner} have the names of others that wait in {self._holding}; they are not fetched "
            "before those are published or set aside: {names}",
        )  # fmt: skip
        return {name: sha1 for name, sha1 in wanted.items() if name not in there}

    def _fetch(self, wanted: Mapping[str, str]) -> None:
        paths = {}
        for name, sha1 in sorted(wanted.items()):
            parsed = names.parse(name)
            assert parsed is not None, name
            paths[name] = (layout.data_path(self._tree, parsed), sha1)
        if paths:
            download(self._job, self._store, paths, self._holding, action="synced", source=self._partner)
