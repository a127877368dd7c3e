"""The lists of a mirror where they lie: read whole or not at all, and replaced so that there is always one.

No store can be trusted to replace a file at once. A list is therefore replaced in steps: the new one is written as
``.<name>.new`` and read back; the present one becomes ``.<name>.old``; the new one gets the name and is read back; the old one
goes. Killed anywhere between, the next writer finds one of:

    a list, with or without ``.new`` and ``.old`` beside it    the list counts; what is beside it is a leftover
    ``.old`` and no list                                       the old one counts: it gets its name back, all is done anew

Reading changes nothing: readers hold no lock, and what looks like a leftover may be a replacement that is going on. Whoever
writes holds the lock of the mirror's one writer (``command_line.ONE_WRITER``).

A list that cannot be read is never taken for an empty one, and none is replaced by one that lacks anything of it that was not
named as removed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from dataflow.lib import names, place
from dataflow.lib.errors import DataflowError, TryLater
from dataflow.mirror import hash_lists, layout
from dataflow.mirror.hash_lists import FailedList, HashList, Line, MasterList
from dataflow.mirror.stores import Absent, Store

Lost = Callable[[bytes, bytes], list[str]]
"""What of one list another lacks, each as it may be shown."""

_BLOCKLIST_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\.txt", re.ASCII)
_BLOCKLIST_FILE_OR_OLD = re.compile(r"([^.].*\.txt)|\.([^.].*\.txt)\.old", re.DOTALL)
"""Of those that are read; people give them any names."""
LIST_BYTES_MAX = 1 << 28
"""What is larger is no list and is not fetched. A month with a file for every minute of 40 radars has a list of half of that."""
_SCRATCH = "lists."
_STALE_S = 86400.0
_SHOWN = 3


class MirrorLists:
    """The lists of one mirror. ``tree``: where it lies in the store. ``work``: a folder of this machine for files on their way.

    Whatever reads raises ``Absent`` only where a folder could be read and does not have it, and else what the store raises.
    """

    def __init__(self, store: Store, tree: str, work: Path) -> None:
        self._store, self._tree, self._work = store, tree, work
        place.make_own_folder(work)
        _remove_stale(work)

    def months(self) -> list[str]:
        """The months that have a folder, ascending. One of them may still have no list."""
        top = str(PurePosixPath(layout.data_folder(self._tree, layout.FIRST_MONTH)).parents[1])
        years = [year for year in sorted(self.names(top)) if layout.is_month(f"{year}01")]
        folders = [(year, month) for year in years for month in sorted(self.names(f"{top}/{year}"))]
        return [year + month for year, month in folders if layout.is_month(year + month)]

    def month(self, month: str) -> HashList:
        """The list of a month."""
        return hash_lists.parse_month(self.month_bytes(month), month)

    def month_bytes(self, month: str) -> bytes:
        """The list of a month as it lies there."""
        return self._read_one(layout.month_list(self._tree, month))

    def months_bytes(self, months: Collection[str]) -> dict[str, bytes | DataflowError]:
        """The lists of many months, fetched together, or why there is none. Raises nothing."""
        paths = {layout.month_list(self._tree, month): month for month in months}
        return {paths[path]: content for path, content in self._read(paths).items()}

    def master(self) -> MasterList:
        """The list of the lists."""
        return hash_lists.parse_master(self._read_one(layout.master_list(self._tree)))

    def is_in_master(self, month: str) -> bool:
        """Whether the list of the lists names a list of a month; not so where there is no such list either."""
        try:
            return month in self.master().months
        except Absent:
            return False

    def whole_master(self) -> MasterList:
        """The list of the lists, for whoever is about to replace it: made of the lists of all months where there is none."""
        try:
            return self.master()
        except Absent:
            master = MasterList({})
        for month, content in self.months_bytes(self.months()).items():
            if isinstance(content, bytes):
                master = master.with_month(month, hashlib.sha1(content).hexdigest())
            elif not isinstance(content, Absent):
                raise content
        return master

    def failed(self) -> FailedList:
        """What failed a check; nothing where there is no such list yet."""
        try:
            return hash_lists.parse_failed(self._read_one(layout.failed_list(self._tree)))
        except Absent:
            return FailedList({})

    def blocklist(self) -> frozenset[str]:
        """The names that must not come back, of all files of the blocklist."""
        folder = layout.blocklist(self._tree)
        found = filter(None, map(_BLOCKLIST_FILE_OR_OLD.fullmatch, self.names(folder)))
        contents = self._read({f"{folder}/{match[1] or match[2]}" for match in found})
        return frozenset().union(*(hash_lists.parse_blocklist(_raised(content)) for content in contents.values()))

    def replace_month(self, month: str, new: HashList, removed: Collection[str] = ()) -> bytes:
        """Put a new list in the place of a month's, and return it as it was read back.

        ``removed``: the names that the new list may lack.

        Raises:
            TryLater: the new one lacks anything else, or what was read back is not what was written.
        """
        path = layout.month_list(self._tree, month)
        return self._replace(path, hash_lists.render_month(new.hashes, new.kept), _lost_of_month(month, removed))

    def settled_month_bytes(self, month: str) -> bytes:
        """The list of a month, for whoever is about to replace it: of a replacement that was killed an end is made first.

        Raises:
            Absent: there is none.
            TryLater: what is beside the list has lines that it lacks.
        """
        path = layout.month_list(self._tree, month)
        content = self._settle(path, _lost_of_month(month, ()))
        if content is None:
            raise Absent(f"there is no {path}")
        return content

    def replace_master(self, new: MasterList) -> bytes:
        """The same for the list of the lists: a path may get another hash, and none may be missing."""
        return self._replace(layout.master_list(self._tree), hash_lists.render_master(new.hashes, new.kept), _lost_of_master)

    def replace_failed(self, new: FailedList) -> bytes:
        """The same for the list of what failed a check."""
        return self._replace(layout.failed_list(self._tree), hash_lists.render_failed(new.reasons, new.kept), _lost_of_failed)

    def block(self, wanted: Iterable[str], file_name: str) -> None:
        """Add names to one file of the blocklist, which is made if it is not there."""
        self._rewrite_blocklist(file_name, added=sorted(wanted), removed=frozenset())

    def unblock(self, wanted: Iterable[str], file_name: str) -> None:
        """Take names from one file of the blocklist."""
        self._rewrite_blocklist(file_name, added=[], removed=frozenset(wanted))

    def names(self, folder: str) -> dict[str, int | None]:
        """What lies in a folder of the store, as ``Store.names``; nothing if it is definitely not there.

        That is so when the nearest folder above it that is there can be read and does not show it.
        """
        try:
            return self._store.names(folder)
        except Absent as error:
            above, _, name = folder.rpartition("/")
            if not folder:
                raise TryLater(
                    f"the top folder of the store is not there ({error}): is its disk mounted? A new mirror begins with one"
                ) from error
            if name in self.names(above):
                raise TryLater(f"{folder} cannot be opened, though it should be there") from error
            return {}

    def _rewrite_blocklist(self, file_name: str, added: list[str], removed: frozenset[str]) -> None:
        if not _BLOCKLIST_FILE.fullmatch(file_name):
            raise ValueError(f"not the name of a file of the blocklist: {file_name!r}")
        path = f"{layout.blocklist(self._tree)}/{file_name}"
        try:
            lines = _text_lines(self._read_one(path))
        except Absent:
            lines = []
        new = [line for line in lines if line not in removed]
        new += [name for name in added if name not in new]
        content = "".join(f"{line}\n" for line in new).encode("utf-8", "surrogateescape")
        self._replace(path, content, lambda before, after: _missing(_text_lines(before), [*_text_lines(after), *removed]))

    def _replace(self, path: str, content: bytes, lost: Lost) -> bytes:
        current = self._settle(path, lost)
        if current is not None and (missing := lost(current, content)):
            raise TryLater(f"{path} was not replaced: the new list would lack {_shown(missing)}, which the present one has")
        if current != content:
            self._exchange(path, content, current is not None)
        return content

    def _exchange(self, path: str, content: bytes, is_there: bool) -> None:
        new, old = _beside(path, "new"), _beside(path, "old")
        self._store.make_folder(path.rpartition("/")[0])
        self._write(new, content)
        self._require(new, content)
        if is_there:
            self._store.rename(path, old)
        try:
            self._store.rename(new, path)
        except DataflowError:
            if is_there:
                with suppress(DataflowError):  # the next writer does it
                    self._store.rename(old, path)
            raise
        self._require(path, content)
        if is_there:
            self._store.remove(old)

    def _settle(self, path: str, lost: Lost) -> bytes | None:
        """Make an end of a replacement that was killed; the list, or None where there is definitely none."""
        new, old = _beside(path, "new"), _beside(path, "old")
        folder, _, name = path.rpartition("/")
        there = self.names(folder)
        if name not in there and _name(old) in there:
            self._store.rename(old, path)
            there = self.names(folder)
        try:
            content = self._read_one(path)
        except Absent:
            return None
        if _name(old) in there:
            self._require_whole(path, content, old, lost)
            self._store.remove(old)
        if _name(new) in there:
            self._store.remove(new)
        return content

    def _require_whole(self, path: str, content: bytes, old: str, lost: Lost) -> None:
        if missing := lost(self._read_one(old), content):
            raise TryLater(
                f"{path} lacks {_shown(missing)}, which {_name(old)} beside it has: both stay as they are until that is clear. "
                "If a deletion was killed, run it again; if somebody else wrote the list, complete it by hand, remove the other"
            )

    def _write(self, path: str, content: bytes) -> None:
        with scratch(self._work) as folder:
            local = folder / "list"
            place.write_whole(local, content)
            for error in self._store.store({path: local}).values():
                raise error

    def _require(self, path: str, content: bytes) -> None:
        """Read back."""
        if self._read_one(path) != content:
            raise TryLater(f"{path} reads back as something else than was written; nothing that counts on it was done")

    def _read_one(self, path: str) -> bytes:
        return _raised(self._read([path])[path])

    def _read(self, paths: Collection[str]) -> dict[str, bytes | DataflowError]:
        """The contents of lists, fetched together; looked for once more where one was replaced in that moment."""
        found = self._read_once(paths)
        moved = [path for path, content in found.items() if isinstance(content, _Moved)]
        return found | self._read_once(moved) if moved else found

    def _read_once(self, paths: Collection[str]) -> dict[str, bytes | DataflowError]:
        found: dict[str, bytes | DataflowError] = {}
        with scratch(self._work) as folder:
            wanted: dict[str, tuple[str, int, Path]] = {}
            for path in paths:
                try:
                    wanted[path] = (*self._find(path), folder / str(len(wanted)))
                except DataflowError as error:
                    found[path] = error
            failures = self._store.fetch({there: local for there, _, local in wanted.values()}) if wanted else {}
            for path, (there, size, local) in wanted.items():
                found[path] = _fetched(path, local, size, failures.get(there))
        return found

    def _find(self, path: str) -> tuple[str, int]:
        """The path from which a list is to be read, and its size in bytes."""
        there = self.names(path.rpartition("/")[0])
        for candidate in (path, _beside(path, "old")):
            if _name(candidate) in there:
                size = there[_name(candidate)]
                if size is None:
                    raise TryLater(f"{candidate} is no regular file: a person has to see what that is")
                if size > LIST_BYTES_MAX:
                    raise TryLater(f"{candidate} has {size} bytes, and no list has more than {LIST_BYTES_MAX}: it is not fetched")
                return candidate, size
        raise Absent(f"there is no {path}")


class _Moved(TryLater):
    """A list was replaced between two looks at it, or came cut short."""


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A fresh folder below ``work`` that nobody else uses, removed at the end with what is in it."""
    with TemporaryDirectory(prefix=_SCRATCH, dir=work) as folder:
        yield Path(folder)


def _raised(content: bytes | DataflowError) -> bytes:
    if isinstance(content, DataflowError):
        raise content
    return content


def _fetched(path: str, local: Path, size: int, failure: DataflowError | None) -> bytes | DataflowError:
    if isinstance(failure, Absent):
        return _Moved(f"{path} was there a moment ago, and is not now")
    if failure is not None:
        return failure
    if (came := local.stat().st_size) != size:  # looked at before it is in memory
        return _Moved(f"{path} has {size} bytes, and {came} came")
    return local.read_bytes()


def _beside(path: str, ending: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{ending}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _lost_of_month(month: str, removed: Collection[str]) -> Lost:
    """A name without its hash, or a kept line, is lost; but for the names that are removed."""
    gone = frozenset(removed)

    def lost(before: bytes, after: bytes) -> list[str]:
        was, now = hash_lists.parse_month(before, month), hash_lists.parse_month(after, month)
        missing = [name for name, sha1 in was.hashes.items() if now.hashes.get(name) != sha1 and name not in gone]
        lines = _lines(was.kept) - _lines(now.kept)
        return missing + _shown_lines(line for line in lines if not any(name.encode() in line for name in gone))

    return lost


def _lost_of_master(before: bytes, after: bytes) -> list[str]:
    was, now = hash_lists.parse_master(before), hash_lists.parse_master(after)
    return _missing(was.hashes, now.hashes) + _shown_lines(_lines(was.kept) - _lines(now.kept))


def _lost_of_failed(before: bytes, after: bytes) -> list[str]:
    was, now = hash_lists.parse_failed(before), hash_lists.parse_failed(after)
    pairs = [f"{sha1}  {name}" for sha1, name in was.reasons if (sha1, name) not in now.reasons]
    return pairs + _shown_lines(_lines(was.kept) - _lines(now.kept))


def _lines(kept: Iterable[Line]) -> set[bytes]:
    return {bytes(line) for line in kept}


def _shown_lines(lines: Iterable[bytes]) -> list[str]:
    return [names.printable(line[:80].decode("utf-8", "surrogateescape")) for line in sorted(lines)]


def _missing(before: Iterable[str], after: Collection[str]) -> list[str]:
    return [each for each in before if each not in after]


def _text_lines(content: bytes) -> list[str]:
    return [line for line in content.decode("utf-8", "surrogateescape").split("\n") if line]


def _shown(missing: list[str]) -> str:
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return ", ".join(missing[:_SHOWN]) + more


def _remove_stale(work: Path) -> None:
    """Remove what runs that were killed have left; whatever is being fetched now is younger."""
    for folder in work.glob(f"{_SCRATCH}*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
