"""Any store with faults: it dies before or after a call, refuses, cannot be reached, cuts a file in half.

    FaultyStore(store, dies(7, "before"))                     Killed is raised in place of the 8th call
    FaultyStore(store, dies(7, "after"))                      the 8th call is done, and then Killed is raised
    FaultyStore(store, fails("rename", Refused("403"), ending=".new"))
    FaultyStore(store, fails("names", HostDown("gone"), times=1))
    FaultyStore(store, cut("202008.hashes"))                  what is fetched of such a path is half of it

`calls` are all calls as (name, paths), `fired` the faults that came to pass. To use it for a whole job: `install(monkeypatch,
fault, ...)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dataflow.lib.errors import DataflowError
from dataflow.mirror import stores

CALLS = ("names", "size", "fetch", "store", "sha1", "changed_s", "rename", "remove", "make_folder")


class Killed(BaseException):
    """The process is gone, as far as the code under test can know."""


@dataclass
class Fault:
    """What goes wrong, at which call: its number of all, or its name and the ending of one of its paths; how often at most."""

    error: BaseException | None
    when: str = "before"
    number: int | None = None
    call: str | None = None
    ending: str = ""
    times: int = 1 << 30
    cuts: bool = False
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.times

    def takes(self, number: int, call: str, paths: list[str], when: str) -> bool:
        if self.left <= 0 or when != self.when or self.number not in (None, number) or self.call not in (None, call):
            return False
        return not self.ending or any(path.endswith(self.ending) for path in paths)


def dies(number: int, when: str = "before") -> Fault:
    return Fault(Killed(f"{when} call {number}"), when, number)


def fails(call: str, error: BaseException, ending: str = "", when: str = "before", times: int = 1 << 30) -> Fault:
    return Fault(error, when, None, call, ending, times)


def cut(ending: str, call: str = "fetch", times: int = 1 << 30) -> Fault:
    return Fault(None, "after" if call == "fetch" else "before", None, call, ending, times, cuts=True)


class FaultyStore:
    def __init__(self, store, *faults: Fault) -> None:
        self.store_, self.faults = store, faults
        self.calls: list[tuple[str, list[str]]] = []
        self.fired: list[Fault] = []

    def names(self, folder):
        return self._called("names", [folder], lambda: self.store_.names(folder))

    def size(self, path):
        return self._called("size", [path], lambda: self.store_.size(path))

    def fetch(self, wanted):
        return self._each("fetch", wanted, self.store_.fetch)

    def store(self, files):
        return self._each("store", files, self.store_.store)

    def sha1(self, paths):
        return self._each("sha1", dict.fromkeys(paths), self.store_.sha1)

    def changed_s(self, folder):
        return self._called("changed_s", [folder], lambda: self.store_.changed_s(folder))

    def rename(self, old, new):
        return self._called("rename", [old, new], lambda: self.store_.rename(old, new), decisive=[old])

    def remove(self, path):
        return self._called("remove", [path], lambda: self.store_.remove(path))

    def make_folder(self, folder):
        return self._called("make_folder", [folder], lambda: self.store_.make_folder(folder))

    def close(self):
        self.store_.close()

    def _called(self, call, paths, work, decisive=None):
        number = self._count(call, paths)
        self._raise(number, call, decisive or paths, "before")
        try:
            return work()
        finally:
            self._raise(number, call, decisive or paths, "after")

    def _each(self, call, files, work):
        """A call for many files: a fault of the ways of this world fails those that it takes, another one is raised."""
        number = self._count(call, list(files))
        failures, whole = {}, dict(files)
        for path in files:
            for fault in self._taken(number, call, [path], "before"):
                if isinstance(fault.error, DataflowError):
                    failures[path] = fault.error
                    whole.pop(path)
                elif fault.cuts:
                    whole[path] = _half_of(whole[path])
                else:
                    raise fault.error
        result = {**work(whole), **failures}
        for path, local in whole.items():
            if local != files[path]:
                local.unlink()
        for path, local in files.items():
            for fault in self._taken(number, call, [path], "after"):
                if isinstance(fault.error, DataflowError):
                    result[path] = fault.error
                elif fault.cuts:
                    local.write_bytes(local.read_bytes()[: local.stat().st_size // 2])
                else:
                    raise fault.error
        return result

    def _count(self, call, paths):
        self.calls.append((call, list(paths)))
        return len(self.calls) - 1

    def _taken(self, number, call, paths, when):
        for fault in self.faults:
            if fault.takes(number, call, paths, when):
                fault.left -= 1
                self.fired.append(fault)
                yield fault

    def _raise(self, number, call, paths, when):
        for fault in self._taken(number, call, paths, when):
            raise fault.error


def _half_of(local: Path) -> Path:
    half = local.with_name(f".{local.name}.half")
    half.write_bytes(local.read_bytes()[: local.stat().st_size // 2])
    return half


def install(monkeypatch, *faults: Fault, opened: list | None = None) -> None:
    """Every store that a job opens from now on has these faults; they are appended to `opened`."""
    real = stores.open_store

    def open_store(settings, here, work):
        store = FaultyStore(real(settings, here, work), *faults)
        if opened is not None:
            opened.append(store)
        return store

    monkeypatch.setattr(stores, "open_store", open_store)
