"""What a kill cannot show: reads the recorded calls of a run and tells where a loss of power could break a promise.

A killed process loses nothing that it wrote, since the page cache outlives it. So the calls are replayed on a model of the
disk that knows what is durable: bytes after fsync(2) of the file, a name after fsync(2) of its folder and of the folders that
were made for it. A removal counts as durable at once, the worst that can happen. What a killed run left is as durable as that run
had made it, so the run after it must make good what it takes for granted. Each rule has a name, and a breach tells it:

    synced first        a file gets a final name only when its bytes are durable
    nothing in place    no file is written under its final name, and no file's final name is taken by another
    name before word    a record, a flag in the outbox or an answer is written only when all names that its writer gave, and all
                        that it tells of, whoever gave them, are durable
    copy before removal a file goes only when it has another final name that is durable and, if that is a copy, was read back
                        after it was dropped from the page cache
    record before removal   a step's file leaves the last folder where it waits only when the record of it is durable
    outbox before removal   what was delivered goes only when a durable flag in the outbox lists it
    manifest before flag    a flag that came in goes only when its manifest is kept, durably
    name in the end     when all is done every name is durable, whoever gave it
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loopback import RADARS, Machines

from dataflow.lib import custody, names
from dataflow.lib.names import Kind
from faults.control import Call

WRITES = frozenset(
    ("write", "pwrite", "pwrite64", "writev", "pwritev", "pwritev64", "sendfile", "sendfile64", "copy_file_range", "reflink",
     "ftruncate", "ftruncate64", "truncate", "fallocate", "fallocate64", "posix_fallocate", "posix_fallocate64", "fflush",
     "fclose")
)  # fmt: skip
READS = frozenset(("read", "readv", "pread", "pread64"))
SYNCS = frozenset(("fsync", "fdatasync"))
DROPS = frozenset(("posix_fadvise", "posix_fadvise64"))
DELIVERING = frozenset(("run rsync_to_nas", "run rsync_to_campus", "run transfer_cam_photos"))


LINES = re.compile(r"(?<=\}) (?=\{)")
"""Where the next record or answer of a text begins; control characters come as blanks."""


@dataclass(slots=True)
class _File:
    """The bytes of a file, by its inode: ``read_bytes`` since it was dropped from the page cache after the last write."""

    size: int
    is_durable: bool
    is_ours: bool = False
    """Written by what was recorded."""
    was_dropped: bool = False
    read_bytes: int = 0

    @property
    def was_read_back(self) -> bool:
        return not self.is_ours or (self.was_dropped and self.read_bytes >= self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which folders mean what, on all machines of a cell."""

    root: Path
    incoming: frozenset[Path]
    logs: frozenset[Path]
    relayed: frozenset[Path]
    state: frozenset[Path]
    scratch: frozenset[Path]
    """Folders of what is made again from its source, which waits until it has a place."""
    words: frozenset[Path]
    """Folders of flags: the outbox, what came in, what is open."""
    outboxes: frozenset[Path]
    arrivals: Mapping[Path, Path]
    """For each folder in which flags come in, the one in which their manifests are kept."""
    waiting: Mapping[Path, frozenset[Path]]
    """For each root of a host, the folders in which files wait for a step of that host."""

    def kind(self, path: Path) -> str:
        """``data``, ``word`` (a flag, a relayed log), ``log``, ``incoming``, or nothing for what counts for nothing."""
        if not path.is_relative_to(self.root):
            return ""
        if any(part.startswith(".") for part in path.relative_to(self.root).parts):
            return ""
        above = set(path.parents)
        if path.parent in self.words or above & self.relayed:
            return "word"
        if above & self.logs:
            return "log"
        if above & (self.state | self.scratch):
            return ""
        return "incoming" if above & self.incoming else "data"


def layout(machines: Machines) -> Layout:
    """The layout of a cell's machines."""
    heres = [machines.here(host, radar) for radar in RADARS for host in machines.config.flow.hosts]
    flags = [(custody.outbox(h), custody.flags_folder(h), custody.open_folder(h)) for h in heres]
    waiting: dict[Path, set[Path]] = defaultdict(set)
    for here in heres:
        keys = [*here.host.backlog, *(["data"] if here.host.waits_on == "data" else [])]
        for root in here.roots.values():
            waiting[root] |= {here.folder(key) for key in keys}
    return Layout(
        machines.root,
        frozenset(h.folder("incoming") for h in heres if "incoming" in h.folder_texts),
        frozenset(h.logs for h in heres),
        frozenset(h.relayed_logs for h in heres),
        frozenset(h.machine_state for h in heres),
        frozenset(h.folder("work") for h in heres if "work" in h.folder_texts),
        frozenset(folder for folders in flags for folder in folders),
        frozenset(outbox for outbox, _, _ in flags),
        {arrived: kept for _, arrived, kept in flags},
        {root: frozenset(folders) for root, folders in waiting.items()},
    )


def standing(root: Path) -> dict[Path, tuple[int, int]]:
    """Inode and size of every file and folder below a root: what is durable before the run."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[path] = (status.st_ino, status.st_size)
    return found


def breaches(calls: Iterable[Call], where: Layout, before: Mapping[Path, tuple[int, int]]) -> list[str]:
    """Every rule that a recorded run broke, one sentence each; nothing when a loss of power could have done no harm."""
    disk = _Disk(where, before)
    found: list[str] = []
    for call in sorted(calls, key=lambda call: (call.ended, call.number)):
        if call.result >= 0 or call.name == "connect":
            found += disk.replay(call)
    found += disk.unsynced_in_the_end()
    return list(dict.fromkeys(found))


class _Disk:
    """What lies on the disk, and what of it is durable."""

    def __init__(self, where: Layout, before: Mapping[Path, tuple[int, int]]) -> None:
        self.where = where
        self.names = {path: inode for path, (inode, _) in before.items()}
        self.files = {inode: _File(size, True) for inode, size in before.values()}
        self.pending: dict[Path, int] = {}
        """Names that are not durable, and which process gave them."""
        self.recorded: dict[str, set[Path]] = defaultdict(set)
        """File names in records, and the logs that hold them."""
        self.listed: dict[str, set[Path]] = defaultdict(set)
        """File names in flags, by the path of the flag."""
        self.texts: dict[int, str] = {}
        self.kept = {path for path in before if path.parent in where.arrivals.values()}
        """Manifests that have been durable, also those that are closed by now."""

    def replay(self, call: Call) -> Iterator[str]:
        path, other = Path(call.path), Path(call.other)
        if call.name == "open to write":
            self._opened(call, path)
        elif call.name in WRITES:
            yield from self._written(call, path)
        elif call.name in SYNCS:
            self._synced(call, path)
        elif call.name in DROPS and call.inode in self.files:
            file = self.files[call.inode]
            file.was_dropped, file.read_bytes = True, 0
        elif call.name in READS and call.inode in self.files:
            self.files[call.inode].read_bytes += call.result
        elif call.name in ("link", "rename"):
            yield from self._named(call, path, other)
        elif call.name == "mkdir":
            self.pending[path] = call.process
        elif call.name == "rmdir":
            self.names.pop(path, None)
            self.pending.pop(path, None)
        elif call.name == "unlink":
            yield from self._removed(call, path)

    def unsynced_in_the_end(self) -> Iterator[str]:
        """The names that a loss of power could still take back when nobody is at work any more."""
        for name in self.names:
            if self.where.kind(name) in ("data", "word") and not self._is_durable(name):
                yield f"name in the end: nobody has synced the name {self._short(name)}"

    def _opened(self, call: Call, path: Path) -> None:
        if path not in self.names or self.names[path] != call.inode:
            self.names[path] = call.inode
            self.files[call.inode] = _File(0, is_durable=False, is_ours=True)
            self.pending[path] = call.process

    def _written(self, call: Call, path: Path) -> Iterator[str]:
        if path.name == "(network)" or call.path in ("(socket)", "(pipe)"):
            if call.role.startswith("receive") and call.path == "(pipe)":
                yield from self._unsynced(call, "it answers", _done_in(call.text))
            return
        file = self.files.setdefault(call.inode, _File(0, is_durable=False))
        file.is_durable, file.is_ours, file.was_dropped, file.read_bytes = False, True, False, 0
        file.size = max(file.size, call.size + max(call.result, 0) if call.name == "write" else call.size)
        kind = self.where.kind(path)
        if kind in ("data", "word") and path in self.names:
            yield f"nothing in place: {call.role} writes ({call.name}) into {call.shown}, which is a final name"
        self.texts[call.inode] = self.texts.get(call.inode, "") + call.text
        if kind == "log" and '"event": "file"' in call.text:
            done = _done_in(call.text)
            for name in _names_in(done):
                self.recorded[name].add(path)
            yield from self._unsynced(call, "it records a file", done)

    def _synced(self, call: Call, path: Path) -> None:
        if call.inode in self.files:
            self.files[call.inode].is_durable = True
        for name in [name for name in self.pending if name.parent == path]:
            del self.pending[name]
        if path in self.where.arrivals.values():
            self.kept |= {name for name in self.names if name.parent == path and self._is_durable(name)}

    def _named(self, call: Call, path: Path, final: Path) -> Iterator[str]:
        inode = self.names.get(path, call.inode)
        kind = self.where.kind(final)
        if kind in ("data", "word"):
            if not self.files.setdefault(inode, _File(call.size, True)).is_durable:
                yield f"synced first: {call.role} gives {call.shown} its name before its bytes are synced"
            if kind == "data" and self.names.get(final, inode) != inode:
                yield f"nothing in place: {call.role} renames over {call.shown}"
        if final.parent in self.where.outboxes:
            yield from self._unsynced(call, "it writes a flag into the outbox", self.texts.get(inode, ""))
            for name in _names_in(self.texts.get(inode, "")):
                self.listed[name].add(final)
        if call.name == "rename":
            self.names.pop(path, None)
            self.pending.pop(path, None)
        self.names[final] = inode
        self.pending[final] = call.process

    def _removed(self, call: Call, path: Path) -> Iterator[str]:
        inode = self.names.pop(path, 0)
        self.pending.pop(path, None)
        kind = self.where.kind(path)
        kept_in = self.where.arrivals.get(path.parent)
        if kept_in is not None and path.suffix == ".flag" and kept_in / path.name not in self.kept:
            yield f"manifest before flag: {call.role} removes {call.shown} before its manifest is kept"
        is_flag = path.parent in self.where.outboxes
        if kind not in ("data", "incoming") and not is_flag:
            return
        if (not is_flag and names.parse(path.name) is None) or not self.files.get(inode, _File(1, True)).size:
            return
        yield from (f"copy before removal: {call.role} removes {call.shown}, {why}" for why in self._unsafe(path, inode))
        if kind == "data":
            yield from self._unaccounted(call, path)

    def _unsafe(self, path: Path, inode: int) -> Iterator[str]:
        """Why no other final name vouches for a file that goes; nothing when one does."""
        reasons = []
        for name, its_inode in self.names.items():
            if self.where.kind(name) not in ("data", "word") or name.name not in _names_of(path):
                continue
            file = self.files[its_inode]
            if not self._is_durable(name):
                reasons.append(f"and the name {self._short(name)} is not synced")
            elif not file.is_durable:
                reasons.append(f"and the bytes of {self._short(name)} are not synced")
            elif its_inode != inode and self.where.kind(name) == "data" and not file.was_read_back:
                reasons.append(f"and {self._short(name)} was not read back ({file.read_bytes} of {file.size} bytes)")
            else:
                return
        yield from reasons[:1] or ["and it lies nowhere else"]

    def _unaccounted(self, call: Call, path: Path) -> Iterator[str]:
        """The records and the flag that must be durable before a step's file leaves the last folder where it waits."""
        folders = next((folders for root, folders in self.where.waiting.items() if path.is_relative_to(root)), frozenset())
        waits = any(name.name == path.name and _lies_in(name, folders) for name in self.names)
        if waits or not _lies_in(path, folders) or not call.role.startswith("run "):
            return
        if not any(self.files[self.names[log]].is_durable and self._is_durable(log) for log in self.recorded[path.name]):
            yield f"record before removal: {call.role} removes {call.shown} before the record of it is durable"
        listed = [flag for name in _names_of(path) for flag in self.listed[name]]
        if call.role in DELIVERING and not any(self._is_durable(flag) for flag in listed):
            yield f"outbox before removal: {call.role} removes {call.shown} before a flag in the outbox lists it"

    def _unsynced(self, call: Call, what: str, text: str) -> Iterator[str]:
        """The names that are not durable when a process tells of them: those it gave, and those in the text, by whom ever."""
        words = _words(text)
        for name, process in self.pending.items():
            told_as = {name.name, name.name.rsplit(".", 3)[0]} if name.suffix == ".flag" else {name.name}
            is_told = _is_of_file(name.name) and not words.isdisjoint(told_as)
            if (process == call.process or is_told) and self.where.kind(name) in ("data", "word") and name in self.names:
                yield f"name before word: {call.role} has not synced the name {self._short(name)} when {what}"

    def _is_durable(self, name: Path) -> bool:
        return not any(each in self.pending for each in (name, *name.parents))

    def _short(self, name: Path) -> str:
        return str(name.relative_to(self.where.root))


def _lies_in(path: Path, folders: frozenset[Path]) -> bool:
    """Whether a file lies in one of some folders, or in a day folder of one."""
    return path.parent in folders or (path.parent.name.isdigit() and path.parent.parent in folders)


def _names_of(path: Path) -> set[str]:
    """Under which names a file may lie elsewhere: its own, or compressed."""
    name = names.parse(path.name)
    return {path.name, names.dmap_of(name).text} if name is not None and name.kind is Kind.DMAP_PLAIN else {path.name}


def _names_in(text: str) -> set[str]:
    """The names of files that a record or flag mentions."""
    return {word for word in _words(text) if _is_of_file(word)}


def _is_of_file(word: str) -> bool:
    """Whether a word is the name of a file; the radar in every record is none, although a folder has its name."""
    return names.parse(word) is not None or word.endswith((".flag", ".jsonl"))


def _words(text: str) -> set[str]:
    """What stands between the quotes and slashes of records, flags and answers."""
    return set(text.replace("/", '"').split('"'))


def _done_in(text: str) -> str:
    """Those of some records or answers that say that something was done."""
    return " ".join(line for line in LINES.split(text) if '"outcome": "done"' in line)
