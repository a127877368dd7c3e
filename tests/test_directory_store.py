"""What is particular to a store that is a folder: its disk, links that lead out of it, room, modes, killed at any call."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mirror_world
import pytest

from dataflow.lib import checksum
from dataflow.lib.config import MARKER
from dataflow.lib.errors import TryLater
from dataflow.mirror import stores
from dataflow.mirror.stores import Absent, Refused, Store, Taken

CONTENT = os.urandom(100_000)


def store_of(loaded) -> tuple[Store, Path]:
    settings, here = loaded.mirror()
    made = stores.open_store(settings.store, here, here.path("holding"))
    made.make_folder("")
    return made, here.path(settings.store.root)


@pytest.fixture
def made(tmp_path) -> tuple[Store, Path]:
    return store_of(mirror_world.world(tmp_path / "machines"))


@pytest.fixture
def local(tmp_path) -> Path:
    (tmp_path / "local").write_bytes(CONTENT)
    return tmp_path / "local"


def everything(store: Store, local: Path) -> list[Callable[[], object]]:
    return [
        lambda: store.names("raw"), lambda: store.size("raw/none"), lambda: store.changed_s("raw"),
        lambda: store.rename("raw/file", "raw/new"), lambda: store.remove("raw/none"), lambda: store.make_folder("raw/new"),
        lambda: _only(store.fetch({"raw/none": local.with_name("part")})), lambda: _only(store.store({"raw/new": local})),
        lambda: _only(store.sha1(["raw/none"])),
    ]  # fmt: skip


def _only(found: dict[str, object]) -> None:
    (result,) = found.values()
    if isinstance(result, Exception):
        raise result


# -- the disk


@pytest.mark.parametrize("marker", [None, "staging"])
def test_m5_a_disk_that_is_not_mounted_or_another_is_no_mirror_without_files(made, local, marker):
    """M5: a store that was unmounted for a moment had "no list", and a new one was begun."""
    store, root = made
    (root / "raw").mkdir()
    (root / "raw/file").write_bytes(b"1")
    disk = root.parent
    (disk / MARKER).unlink()
    if marker is None:
        shutil.rmtree(root)
    else:
        (disk / MARKER).write_text(f"{marker}\n")
    before = sorted(disk.rglob("*"))
    for use in everything(store, local):
        with pytest.raises(TryLater, match=r"mounted") as told:
            use()
        assert not isinstance(told.value, Absent)
    assert sorted(disk.rglob("*")) == before


def test_m5_a_disk_that_goes_away_while_it_is_looked_at_is_not_empty(made, local, monkeypatch):
    """M5: the marker was right a moment ago."""
    store, root = made
    (root / "raw").mkdir()
    real = os.path.realpath

    def unmounting(path, **options):
        shutil.rmtree(root.parent)
        root.parent.mkdir()
        return real(path, **options)

    monkeypatch.setattr(os.path, "realpath", unmounting)
    for use in everything(store, local):
        shutil.rmtree(root.parent)
        root.mkdir(parents=True)
        (root.parent / MARKER).write_text("mirror\n")
        with pytest.raises(TryLater, match="mounted") as told:
            use()
        assert not isinstance(told.value, Absent)


def test_room_is_left_for_others_and_no_part_stays_on_a_full_disk(tmp_path, local, made):
    store, root = store_of(mirror_world.world(tmp_path / "small", [f"mirror.roots.mirror.reserve_bytes={10**18}"]))
    assert "to stay free" in str(store.store({"file": local})["file"]) and list(root.iterdir()) == []
    store, root = made
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        failures = store.store({"file": local})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(failures["file"], TryLater) and list(root.iterdir()) == []


def test_files_and_folders_have_the_modes_of_the_mirror(made, local):
    store, root = made
    store.make_folder("raw/2026")
    assert store.store({"raw/2026/file": local}) == {}
    assert stat.S_IMODE((root / "raw/2026/file").stat().st_mode) == 0o664
    assert stat.S_IMODE((root / "raw").stat().st_mode) == 0o2775 == stat.S_IMODE((root / "raw/2026").stat().st_mode)


# -- links


def test_links_are_followed_below_the_folder_and_never_out_of_it(made, local, tmp_path):
    store, root = made
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "raw").mkdir()
    (root / "raw/file").write_bytes(b"12345")
    (root / "inside").symlink_to("raw")
    (root / "inside file").symlink_to("raw/file")
    (root / "out").symlink_to(outside)
    (root / "out file").symlink_to(outside / "secret")
    assert store.names("inside") == {"file": 5} and store.size("inside/file") == 5 == store.size("inside file")
    part = tmp_path / "part"
    for path in ("out/secret", "out file"):
        with pytest.raises(Refused, match="leads out"):
            store.size(path)
        assert isinstance(store.fetch({path: part})[path], Refused) and isinstance(store.sha1([path])[path], Refused)
    for use in (
        lambda: store.names("out"),
        lambda: store.changed_s("out"),
        lambda: store.remove("out/secret"),
        lambda: store.make_folder("out/new"),
        lambda: store.rename("out/secret", "raw/secret"),
        lambda: store.rename("raw/file", "out/file"),
        lambda: _only(store.store({"out/file": local})),
    ):
        with pytest.raises(Refused, match="leads out"):
            use()
    assert [path.name for path in outside.iterdir()] == ["secret"] and not part.exists()
    store.remove("out")
    assert [path.name for path in outside.iterdir()] == ["secret"] and not os.path.lexists(root / "out")


# -- rename


def test_a_rename_that_was_killed_between_its_two_names_is_completed(made):
    store, root = made
    (root / "old").write_bytes(b"1")
    os.link(root / "old", root / "new")
    store.rename("old", "new")
    assert [path.name for path in root.iterdir()] == ["new"]
    os.link(root / "new", root / "linked")
    with pytest.raises(Taken):
        store.rename("new", "new")
    assert sorted(path.name for path in root.iterdir()) == ["linked", "new"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_what_cannot_be_linked_is_renamed_and_replaces_nothing(made, monkeypatch, code):
    store, root = made
    (root / "old").write_bytes(b"1")
    (root / "taken").write_bytes(b"2")

    def unable(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", unable)
    with pytest.raises(Taken):
        store.rename("old", "taken")
    store.rename("old", "new")
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {"new": b"1", "taken": b"2"}


def test_names_are_durable_before_a_call_returns(made, local, monkeypatch):
    store, root = made
    store.make_folder("a")
    store.make_folder("b")
    synced: list[Path] = []
    monkeypatch.setattr(checksum, "sync_folder", synced.append)
    for use, folders in (
        (lambda: store.store({"a/file": local}), [root / "a"]),
        (lambda: store.rename("a/file", "b/file"), [root / "b", root / "a"]),
        (lambda: store.remove("b/file"), [root / "b"]),
        (lambda: store.make_folder("c/d"), [root, root / "c"]),
    ):
        synced.clear()
        use()
        assert list(dict.fromkeys(synced)) == folders


# -- killed


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed at its N-th call of the operating system; False when it ended before."""
    if (pid := os.fork()) == 0:
        left = number

        def count(frame, event, function):
            nonlocal left
            owner = getattr(function, "__self__", None)
            if event == "c_call" and (getattr(owner, "__name__", "") in ("posix", "fcntl") or type(owner).__module__ == "_io"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        threading.setprofile(count)
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return os.WIFSIGNALED(status)


def test_killed_at_any_call_no_part_has_a_final_name_and_done_again_it_is_done(made, tmp_path):
    store, root = made
    old, new = {"list": b"old" * 9000, "moved": b"moved"}, {"list": b"new" * 5000, "third": b"third"}
    files = {name: tmp_path / name for name in new}
    for name, content in new.items():
        files[name].write_bytes(content)

    def work() -> None:
        assert store.store(files) == {}
        if "moved" in store.names(""):
            store.rename("moved", "renamed")

    number, seen = -1, set()
    while number := number + 2:
        for path in root.iterdir():
            path.unlink()
        for name, content in old.items():
            (root / name).write_bytes(content)
        if not killed_at(number, work):
            break
        found = {path.name: path.read_bytes() for path in root.iterdir() if not path.name.startswith(".")}
        assert found["list"] in (old["list"], new["list"]) and found.get("third") in (None, b"third")
        assert b"moved" in (found.get("moved"), found.get("renamed")), "one name at least is its name"
        seen.add(tuple(sorted(found)))
        work()
        assert {path.name: path.read_bytes() for path in root.iterdir()} == {**new, "renamed": b"moved"}
    assert number > 60 and len(seen) >= 3


def test_fetching_killed_at_any_call_is_gone_on_with(made, tmp_path):
    store, root = made
    contents = {"one": CONTENT, "two": b"2" * 10}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    number = 0
    while number := number + 1:
        files = {name: tmp_path / f"{number}.{name}" for name in contents}
        if not killed_at(number, lambda files=files: store.fetch(files)):
            break
        assert all(contents[name].startswith(local.read_bytes()) for name, local in files.items() if local.exists())
        assert store.fetch(files) == {}
        assert {name: local.read_bytes() for name, local in files.items()} == contents
    assert number > 15
