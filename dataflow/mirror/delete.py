"""``dataflow mirror delete``: takes files from the mirror so that they do not come back, and puts them back again.

A list of names is one transaction, whose journal (``deletions``) is durable before each stage:

    block      the names get a blocklist file of their own, so that nobody brings them back meanwhile
    move       the files are renamed into a folder of the transaction, below ``deleted`` of the same store
    unlist     the lists of their months lose their lines
    master     the master list learns the hashes of those lists

and it is undone by ``restore``, ``relist``, ``remaster`` and ``unblock``. Each stage looks at what is there and does only what
is missing. So a transaction that was killed is completed by the next run, which begins with its last stage again. Nothing is
removed from the store, but for a file that had to be copied, when both hashes were read where they lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from dataflow.lib import names
from dataflow.lib.errors import BadConfig, DataflowError, TryLater
from dataflow.lib.names import Name
from dataflow.mirror import deletions, layout
from dataflow.mirror.deletions import Doomed, Transaction
from dataflow.mirror.hash_lists import HashList, Line
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Refused, Store, Taken
from dataflow.mirror.stores.paths import part_of

GOES_ON = "the next `dataflow mirror delete ... --yes` goes on with it"


@dataclass(frozen=True, slots=True)
class _Mirror:
    job: Job
    store: Store
    lists: MirrorLists

    def path_of(self, file: Doomed) -> str:
        return layout.data_path(self.job.settings.tree, file.parsed)

    def path_aside(self, transaction: Transaction, file: Doomed) -> str:
        return f"{self.job.settings.deleted}/{transaction.stamp}/{file.name}"


def delete(job: Job, names_file: Path, yes: bool) -> None:
    """Take the files that a list names from the mirror; without ``yes`` only tell what would be done.

    ``names_file`` has one exact bare name in each line. A transaction that was not finished is finished first.

    Raises:
        BadConfig: a line is no name of a file that a mirror may have; nothing was done.
        TryLater: the mirror, or one of its lists, cannot be read; nothing was done.
    """
    wanted = _names_in(names_file)
    mirror = _open(job)
    _finish_others(mirror, yes)
    in_hand = {file.name for transaction in _unfinished(job) for file in transaction.files}
    files = list(_looked_up(mirror, [name for name in wanted if name.text not in in_hand]))
    if not yes:
        for file in files:
            job.file(file.name, "skipped", "would be deleted", source=mirror.path_of(file))
        job.show(f"{len(files)} files would be deleted; nothing was changed. With --yes it is done")
    elif files := list(_hashed(mirror, files)):
        _carry_out(mirror, Transaction(deletions.new_stamp(job), "block", tuple(files)))


def undo(job: Job, transaction: str, yes: bool) -> None:
    """Put back what a transaction took, as it was; without ``yes`` only tell what would be done.

    Raises:
        BadConfig: there is no such transaction.
        TryLater: the mirror, or one of its lists, cannot be read.
    """
    found = deletions.known(job, transaction)
    mirror = _open(job)
    _finish_others(mirror, yes, but_for=transaction)
    if found.stage == "undone":
        job.say(f"{transaction} is undone already")
    elif not yes:
        for file in found.files:
            job.file(file.name, "skipped", "would be restored", source=mirror.path_aside(found, file))
        job.show(f"{len(found.files)} files would be put back; nothing was changed. With --yes it is done")
    else:
        is_begun = found.stage in UNDOING
        _carry_out(mirror, found if is_begun else replace(found, stage=UNDOING[0]))


def _names_in(names_file: Path) -> list[Name]:
    """The names in a list, each once; every line has to be one, or none is used."""
    try:
        lines = names_file.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    except OSError as error:
        raise BadConfig(f"{names_file} cannot be read: {error.strerror}") from error
    found = [names.parse(line) for line in lines]
    wrong = [number for number, name in enumerate(found, 1) if not layout.is_published(name)]
    if wrong:
        told = [f"line {number}: {lines[number - 1][:100]!r}" for number in wrong]
        rule = f"each line of {names_file} has to be the whole name of one rawacf.bz2 and nothing else"
        raise BadConfig("\n".join([f"nothing was done: {rule}", *told]))
    return list({name.text: name for name in found if name is not None}.values())


def _open(job: Job) -> _Mirror:
    store = job.open(job.settings.store)
    return _Mirror(job, store, MirrorLists(store, job.settings.tree, job.folder("work")))


# -- what there is to do


def _looked_up(mirror: _Mirror, wanted: Iterable[Name]) -> Iterator[Doomed]:
    """Tell of each name what the mirror and its lists have of it; yields what can be deleted, and accounts for the others."""
    for month, group in groupby(sorted(wanted, key=lambda name: name.text), key=layout.month_of):
        there = mirror.lists.names(layout.data_folder(mirror.job.settings.tree, month))
        listed = _listed(mirror.lists, month)
        for name in group:
            odd_lines = tuple(_text(line) for line in listed.kept if _is_line_of(line, name.text))
            file = Doomed(name.text, listed.hashes.get(name.text), odd_lines, there.get(name.text))
            mirror.job.show(_state_of(file), file=file.name)
            if file.name in there and file.size_bytes is None:
                _leave(mirror.job, file.name, "what lies under its name is no regular file")
            elif file.name in listed.unclear and not odd_lines:
                _leave(mirror.job, file.name, f"a line of the list of {month} names it and is not of the format: mend that first")
            elif file.is_listed or file.size_bytes is not None:
                yield file
            else:
                _settle_unknown(mirror.job, file.name)


def _state_of(file: Doomed) -> str:
    listed = "listed with several hashes" if file.odd_lines else "listed" if file.listed else "not listed"
    there = "not there" if file.size_bytes is None else f"there, {file.size_bytes} bytes"
    return f"{file.name}: {listed}, {there}"


def _settle_unknown(job: Job, name: str) -> None:
    """A name that the mirror does not know: deleted before, or mistyped."""
    for transaction in deletions.every(job):
        if transaction.stage == "deleted" and any(file.name == name for file in transaction.files):
            job.say(f"{name} was deleted by {transaction.stamp}")
            job.file(name, "skipped", "deleted before", transaction=transaction.stamp)
            return
    job.file(name, "skipped", "not there", reason="neither listed nor on the mirror")
    job.problem(f"{name} is neither listed nor on the mirror: is the name right?")


def _leave(job: Job, name: str, reason: str, **fields: str) -> None:
    job.say(f"{name}: {reason}")
    job.file(name, "kept", "left", reason=reason, **fields)


def _hashed(mirror: _Mirror, files: Sequence[Doomed]) -> Iterator[Doomed]:
    """The files with the hashes of what lies there; one that cannot be read is left where it is."""
    found = mirror.store.sha1([mirror.path_of(file) for file in files if file.size_bytes is not None])
    for file in files:
        sha1 = found.get(mirror.path_of(file))
        if isinstance(sha1, Exception):
            _leave(mirror.job, file.name, str(sha1))
            continue
        if sha1 is not None and file.listed not in (None, sha1):
            mirror.job.say(f"{file.name}: its SHA-1 is {sha1}, and the list says {file.listed}; it is deleted all the same")
        yield replace(file, sha1=sha1)


# -- the transaction


def _carry_out(mirror: _Mirror, transaction: Transaction) -> None:
    """Do the stages from the one that was begun last.

    A file for which one fails is left out of those that follow, and the transaction stays open at that one.
    """
    left: dict[str, str] = {}
    while transaction.stage in _STAGES:
        _require_time(mirror.job)
        work, following = _STAGES[transaction.stage]
        if not left:
            deletions.write(mirror.job, transaction)
        left |= work(mirror, transaction, [file for file in transaction.files if file.name not in left])
        transaction = replace(transaction, stage=following)
    for file in transaction.files:
        _account(mirror, transaction, file, left.get(file.name))
    mirror.job.log.sync()
    if left:
        mirror.job.problem(f"{transaction.stamp} is not finished: {len(left)} files are left; {GOES_ON}")
        return
    deletions.write(mirror.job, transaction)
    is_undone = transaction.stage == "undone"
    mirror.job.show(f"{transaction.stamp}: {len(transaction.files)} files {'put back' if is_undone else 'deleted'}")
    if not is_undone:
        mirror.job.show(f"To put them back: dataflow mirror delete --undo {transaction.stamp} --yes")


def _require_time(job: Job) -> None:
    if job.should_stop():
        raise TryLater(f"asked to stop; {GOES_ON}")


def _account(mirror: _Mirror, transaction: Transaction, file: Doomed, failure: str | None) -> None:
    if failure is not None:
        _leave(mirror.job, file.name, failure, transaction=transaction.stamp)
        return
    ends = mirror.path_of(file), mirror.path_aside(transaction, file)
    action, (source, destination) = ("deleted", ends) if transaction.stage == "deleted" else ("restored", reversed(ends))
    mirror.job.file(
        file.name, "done", action, transaction=transaction.stamp, sha1=file.sha1, bytes=file.size_bytes,
        source=source, destination=destination,
    )  # fmt: skip


def _unfinished(job: Job) -> list[Transaction]:
    return [transaction for transaction in deletions.every(job) if transaction.stage in _STAGES]


def _finish_others(mirror: _Mirror, yes: bool, but_for: str = "") -> None:
    """Complete what an earlier run could not, in the direction that it had."""
    for transaction in _unfinished(mirror.job):
        if transaction.stamp != but_for:
            mirror.job.say(f"{transaction.stamp} was not finished; {'it is gone on with first' if yes else GOES_ON}")
            if yes:
                _carry_out(mirror, transaction)


def _block(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    mirror.lists.block([file.name for file in files], _blocklist_name(transaction))
    return {}


def _unblock(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    """Last of all, and only when every file is back."""
    if len(files) == len(transaction.files):
        mirror.lists.unblock([file.name for file in files], _blocklist_name(transaction))
        mirror.store.remove(f"{layout.blocklist(mirror.job.settings.tree)}/{_blocklist_name(transaction)}")
        if still := mirror.lists.blocklist() & {file.name for file in files}:
            mirror.job.problem(f"in another file of the blocklist, and so still blocked: {', '.join(sorted(still))}")
    return {}


def _blocklist_name(transaction: Transaction) -> str:
    return f"deleted-{transaction.stamp}.txt"


def _move_away(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    mirror.store.make_folder(f"{mirror.job.settings.deleted}/{transaction.stamp}")

    def move(file: Doomed) -> None:
        try:
            _move(mirror, file, mirror.path_of(file), mirror.path_aside(transaction, file))
        except _Gone as error:
            mirror.job.alert(f"{error}: it vanished while it was to be deleted; its line in the list goes all the same")

    return _each_file(mirror.job, files, move)


def _restore(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    def move(file: Doomed) -> None:
        aside = mirror.path_aside(transaction, file)
        if mirror.store.size(aside) is not None:
            _require_hash(mirror.store, aside, file)
        mirror.store.make_folder(layout.data_folder(mirror.job.settings.tree, file.month))
        _move(mirror, file, aside, mirror.path_of(file))

    return _each_file(mirror.job, files, move)


def _each_file(job: Job, files: Sequence[Doomed], work: Callable[[Doomed], None]) -> dict[str, str]:
    """Do some work for each file that was there; the reasons of those for which it failed, by name."""
    left = {}
    for file in files:
        if file.size_bytes is None:
            continue
        _require_time(job)
        try:
            work(file)
        except TryLater as error:
            left[file.name] = str(error)
    return left


class _Gone(TryLater):
    """A file is at neither end of its way."""


def _move(mirror: _Mirror, file: Doomed, old: str, new: str) -> None:
    """Give a file its other path, if it does not have it yet; if it has both, one of them is a copy and the old one goes.

    Raises:
        _Gone, TryLater: it has not got it; nothing is lost.
    """
    store = mirror.store
    if store.size(old) is not None and store.size(new) is None:
        try:
            store.rename(old, new)
        except (Absent, Taken, Refused):
            raise
        except TryLater as error:
            mirror.job.say(f"{old} could not be renamed ({error}); it is copied, and the copy verified")
            _copy(mirror, file, old, new)
    if store.size(old) is not None:
        _require_hash(store, new, file)
        _require_hash(store, old, file)
        store.remove(old)
    size_bytes = store.size(new)
    if size_bytes is None:
        raise _Gone(f"{file.name} is neither {old} nor {new}")
    if size_bytes != file.size_bytes:
        raise TryLater(f"{new} has {size_bytes} bytes, and {file.name} had {file.size_bytes}")


def _copy(mirror: _Mirror, file: Doomed, old: str, new: str) -> None:
    """Copy a file within the store, by way of this machine, to a hidden name and from there to its own."""
    part = part_of(new)
    local = mirror.job.folder("work") / f".{file.name}.deletion"
    try:
        _raise_any(mirror.store.fetch({old: local}))
        _raise_any(mirror.store.store({part: local}))
    finally:
        local.unlink(missing_ok=True)
    _require_hash(mirror.store, part, file)
    mirror.store.rename(part, new)


def _raise_any(failures: Mapping[str, DataflowError]) -> None:
    for failure in failures.values():
        raise failure


def _require_hash(store: Store, path: str, file: Doomed) -> None:
    """Make sure that a path holds the content that the file had when it was to be deleted.

    Raises:
        DataflowError: it does not, or cannot be read.
    """
    found = store.sha1([path])[path]
    if isinstance(found, Exception):
        raise found
    if found != file.sha1:
        raise TryLater(f"{path} holds other content than {file.name} had: SHA-1 {found}, not {file.sha1}. Both stay as they are")


# -- the lists


def _listed(lists: MirrorLists, month: str) -> HashList:
    try:
        return lists.month(month)
    except Absent:
        return HashList({})


def _unlist(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    def change(month: str, group: Sequence[Doomed]) -> None:
        is_listed = any(file.is_listed for file in group)
        current = mirror.lists.month(month) if is_listed else _listed(mirror.lists, month)
        gone = {file.name for file in group}
        if not is_listed and not gone & current.hashes.keys():
            return
        hashes = {name: sha1 for name, sha1 in current.hashes.items() if name not in gone}
        odd_lines = {line for file in group for line in file.odd_lines}
        kept = tuple(line for line in current.kept if _text(line) not in odd_lines)
        mirror.lists.replace_month(month, HashList(hashes, kept), removed=gone)

    return _each_month(files, change)


def _relist(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    def change(month: str, group: Sequence[Doomed]) -> None:
        if not any(file.is_listed for file in group):
            return
        current = mirror.lists.month(month)
        hashes = dict(current.hashes)
        for file in group:
            if file.listed is not None and hashes.setdefault(file.name, file.listed) != file.listed:
                raise TryLater(f"the list of {month} has {file.name} with another hash now: {hashes[file.name]}")
        odd_lines = [_line(text) for file in group for text in file.odd_lines]
        kept = (*current.kept, *(line for line in odd_lines if line not in current.kept))
        mirror.lists.replace_month(month, HashList(hashes, kept), removed=[file.name for file in group])

    return _each_month(files, change)


def _each_month(files: Sequence[Doomed], change: Callable[[str, Sequence[Doomed]], None]) -> dict[str, str]:
    left: dict[str, str] = {}
    for month, found in groupby(sorted(files, key=lambda file: file.name), key=lambda file: file.month):
        group = list(found)
        try:
            change(month, group)
        except TryLater as error:
            left |= dict.fromkeys((file.name for file in group), str(error))
    return left


def _master(mirror: _Mirror, transaction: Transaction, files: Sequence[Doomed]) -> dict[str, str]:
    master = mirror.lists.whole_master()
    for month in {file.month for file in files}:
        try:
            master = master.with_month(month, hashlib.sha1(mirror.lists.month_bytes(month)).hexdigest())
        except Absent:  # none of its files was ever listed
            continue
    mirror.lists.replace_master(master)
    return {}


def _is_line_of(line: Line, name: str) -> bool:
    """Whether a line that is not used is one for this name and no other."""
    return re.fullmatch(rb"[0-9a-f]{40}  %s" % re.escape(name.encode()), line) is not None


def _text(line: Line) -> str:
    return bytes(line).decode("utf-8", "surrogateescape")


def _line(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


UNDOING = ("restore", "relist", "remaster", "unblock")
"""The stages of putting back."""

_Work = Callable[[_Mirror, Transaction, Sequence[Doomed]], dict[str, str]]
_STAGES: dict[str, tuple[_Work, str]] = {
    "block": (_block, "move"),
    "move": (_move_away, "unlist"),
    "unlist": (_unlist, "master"),
    "master": (_master, "deleted"),
    "restore": (_restore, "relist"),
    "relist": (_relist, "remaster"),
    "remaster": (_master, "unblock"),
    "unblock": (_unblock, "undone"),
}
"""What is done in each stage, and the one that follows. The work gives the reasons of the files for which it failed."""
