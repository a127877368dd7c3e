"""``dataflow mirror sync``: what a partner lists and our mirror does not, into his holding directory.

Month by month his list is held against ours, by name and by exact pairs of hash and name. What is left of his after our
blocklist, our list of failed files, the radars that we do not publish and what waits already is fetched, and compared with the
hash that he lists. A file that both have with different hashes is never fetched: a person is told, once. A list that cannot be
read says nothing and its month is left out; it is never taken for an empty one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from dataflow.lib import place
from dataflow.lib.errors import TryLater
from dataflow.lib.mirror_settings import Partner
from dataflow.mirror import layout
from dataflow.mirror.differences import Kind, differences_of_month
from dataflow.mirror.download import download, name_of, sha1_there
from dataflow.mirror.hash_lists import HashList, Refusal
from dataflow.mirror.job import Job, told_if_incomplete
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Store, raise_if_down

NOT_HERE = (Kind.ONLY_THERE, Kind.TOO_NEW)
"""Differences of files that may be fetched, if it is we who lack them."""


def sync(job: Job, partner: str, months: Sequence[str] | None = None) -> None:
    """Fetch what a partner lists and we lack, of some months or of those that ``months_to_sync`` gives.

    Raises:
        BadConfig: there is no such partner.
        HostDown: his mirror or ours cannot be reached.
        TryLater: our blocklist or our list of failed files cannot be read, so nothing may be fetched.
    """
    them = job.partner(partner)
    asked = months_to_sync(job.clock(), job.settings.late_days) if months is None else months
    with told_if_incomplete(job, f"the sync with {partner}", partner):
        one = _Sync(job, them, partner)
        is_listed = [one.month(month) for month in asked if not job.should_stop()]
    nothing = f"{partner} has no list of {' or '.join(asked[-2:])}: is the disk of its mirror there?"
    job.alert_while(f"{partner} lists nothing", bool(is_listed) and not any(is_listed), nothing)


def months_to_sync(now: datetime, late_days: int, *, weekly: bool = False) -> list[str]:
    """The present month, and in its first days the one before; ``weekly``: from the same month a year ago. In UTC."""
    today = now.astimezone(UTC)
    months = [today.replace(day=1)]
    while len(months) < (13 if weekly else 2 if today.day <= late_days else 1):
        months.append((months[-1] - timedelta(days=1)).replace(day=1))
    return [f"{month:%Y%m}" for month in reversed(months)]


class _Sync:
    """One run with one partner."""

    def __init__(self, job: Job, settings: Partner, partner: str) -> None:
        work = job.folder("work")
        self._job, self._partner, self._tree = job, partner, settings.tree
        self._holding = job.holding(settings.holding)
        self._our_store: Store = job.open(job.settings.store)
        self._ours = MirrorLists(self._our_store, job.settings.tree, work)
        self._store: Store = job.open(settings.store)
        self._theirs = MirrorLists(self._store, settings.tree, work)
        self._blocked, self._failed = self._ours.blocklist(), self._ours.failed().reasons

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
        self._fetch(self._not_lying(month, self._not_waiting(month, self._wanted(month, ours, theirs), waiting)))
        return True

    def _our_month(self, month: str) -> HashList:
        """Our own list; an empty one only where the list of the lists does not name it either.

        Raises:
            TryLater: it cannot be read.
        """
        try:
            return self._ours.month(month)
        except Absent as error:
            if self._ours.is_in_master(month):
                raise TryLater("our master list names a list of it, and there is none: dataflow mirror verify") from error
            return HashList({})

    def _wanted(self, month: str, ours: HashList, theirs: HashList) -> dict[str, str]:
        """What they list and we lack and may have: SHA-1 by name. The rest is recorded, and told to a person who has to know."""
        job, settings = self._job, self._job.settings
        found = differences_of_month(
            ours, theirs, self._blocked, self._failed, job.clock(), settings.recent_days, settings.excluded
        )  # fmt: skip
        counts = Counter(difference.kind.replace(" ", "_") for difference in found.differences)
        job.log.write(
            "action", action="compared", source=self._partner, month=month, listed=len(theirs.hashes), excluded=found.excluded,
            unclear=len(found.unclear), refused=len(theirs.refused), **counts,
        )  # fmt: skip
        self._tell(month, theirs.refused, [each.name for each in found.differences if each.kind is Kind.DIFFERENT])
        wanted = {
            each.name: each.there
            for each in found.differences
            if each.kind in NOT_HERE and each.here is None and each.there is not None
        }  # fmt: skip
        return self._of_known_radars(wanted)

    def _tell(self, month: str, refused: Sequence[Refusal], different: Sequence[str]) -> None:
        partner = self._partner
        self._job.alert_changes(
            f"{partner} {month} different", different,
            f"{{count}} files of {month} have other hashes at {partner} than here; neither side was touched. "
            f"See: dataflow mirror compare {partner} --month {month}. They are: {{names}}",
        )  # fmt: skip
        self._job.alert_changes(
            f"{partner} {month} refused", [f"{refusal.text} ({refusal.reason})" for refusal in refused],
            f"{{count}} lines of the list of {month} at {partner} are not used; tell them there: {{names}}",
        )  # fmt: skip

    def _of_known_radars(self, wanted: Mapping[str, str]) -> dict[str, str]:
        radars = {name: str(name_of(name).radar) for name in wanted}
        for radar in sorted(set(radars.values()) - set(self._job.settings.radars)):
            message = (
                f"{self._partner} has files of a radar {radar}: add it to mirror.radars or to mirror.excluded; none is fetched"
            )
            self._job.alert_while(f"{self._partner} {radar}", True, message)
        return {name: sha1 for name, sha1 in wanted.items() if radars[name] in self._job.settings.radars}

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

    def _not_lying(self, month: str, wanted: Mapping[str, str]) -> dict[str, str]:
        """What does not lie on our mirror with other content, unlisted: publishing would set it aside, and that every time."""
        if not wanted:
            return {}
        folder = layout.data_folder(self._job.settings.tree, month)
        try:
            lying = {f"{folder}/{name}": name for name in self._ours.names(folder).keys() & wanted.keys()}
        except TryLater as error:
            self._job.problem(f"{month} is left out, because its folder on our mirror cannot be read: {error}")
            return {}
        hashes = self._our_store.sha1(sorted(lying)) if lying else {}
        raise_if_down(hashes.values())
        other = {lying[path] for path, sha1 in hashes.items() if sha1 != wanted[lying[path]]}
        self._job.alert_changes(
            f"{self._partner} {month} lying", other,
            f"{{count}} files of {self._partner} have the names of others that lie on our mirror, are not in its list, and are "
            "something else or cannot be read; they are not fetched before a person has moved one away: {names}",
        )  # fmt: skip
        return {name: sha1 for name, sha1 in wanted.items() if name not in other}

    def _fetch(self, wanted: Mapping[str, str]) -> None:
        paths = {name: (layout.data_path(self._tree, name_of(name)), wanted[name]) for name in sorted(wanted)}
        if paths:
            download(self._job, self._store, paths, self._holding, action="synced", source=self._partner)
