"""The contract of `dataflow.mirror.stores.Store`, sentence by sentence, on every kind of store; nothing here knows which.

Another hand, `made.put` and `made.root`, sees the files where they really lie.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sftp_server
import stores_under_test
from stores_under_test import UnderTest

from dataflow.lib.errors import TryLater
from dataflow.mirror.stores import Absent, Refused, Taken

HOSTILE = ["/etc/passwd", "../outside", "raw/../../outside", "raw//a", "raw/", "./raw", "raw/.", "a\0b", "..", "a\ud800b"]
ODD_NAMES = [
    "with space",
    "-n",
    "it's $(touch x); `id` \"",
    "line\nbreak",
    "tab\tand\rreturn",
    "back\\slash",
    "größe",
    "\udcff\udc80",
    "*",
]
BIG = os.urandom(3_000_017)


@pytest.fixture(scope="module", params=sorted(stores_under_test.kinds()))
def opened(request) -> Iterator[UnderTest]:
    with stores_under_test.kinds()[request.param]() as made:
        yield made


@pytest.fixture
def made(opened) -> Iterator[UnderTest]:
    opened.give_away()
    yield opened
    opened.empty()


@pytest.fixture
def local() -> Iterator[Path]:
    """A folder of this machine in which every user may write."""
    with sftp_server.reachable_folder() as folder:
        (folder / "local").mkdir()
        (folder / "local").chmod(0o777)
        yield folder / "local"


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def kinds_of(found: dict[str, object]) -> dict[str, type]:
    return {path: type(result) for path, result in found.items()}


# -- names


def test_names_are_all_that_lies_in_a_folder_with_sizes(made):
    made.put("raw/2026/11/one", b"12345")
    made.put("raw/2026/11/.hidden.part", b"")
    made.put("raw/2026/11/folder/inside")
    (made.root / "raw/2026/11/link").symlink_to("one")
    assert made.store.names("raw/2026/11") == {"one": 5, ".hidden.part": 0, "folder": None, "link": None}


def test_names_of_the_root_and_of_an_empty_folder(made):
    (made.root / "empty").mkdir()
    made.put("file", b"1")
    assert made.store.names("") == {"empty": None, "file": 1} and made.store.names("empty") == {}


def test_names_of_a_folder_with_more_than_a_server_tells_at_once(made):
    (made.root / "many").mkdir()
    for number in range(1500):
        (made.root / "many" / f"{number:05}").touch()
    assert set(made.store.names("many")) == {f"{number:05}" for number in range(1500)}


@pytest.mark.parametrize("folder", ["none", "raw/none/deep", "file", "file/below"])
def test_names_of_no_folder_is_absent(made, folder):
    made.put("raw/x")
    made.put("file")
    with pytest.raises(Absent):
        made.store.names(folder)
    with pytest.raises(Absent):
        made.store.changed_s(folder)


def test_names_with_odd_characters_and_bytes_come_as_they_are_and_can_be_used(made, local):
    odd = [name for name in ODD_NAMES if made.any_bytes or "\udcff" not in name]
    for number, name in enumerate(odd):
        made.put(f"odd/{name}", b"x" * number)
    assert made.store.names("odd") == {name: number for number, name in enumerate(odd)}
    wanted = {f"odd/{name}": local / str(number) for number, name in enumerate(odd)}
    assert made.store.fetch(wanted) == {} and (local / "3").read_bytes() == b"xxx"
    assert made.store.sha1(wanted) == {f"odd/{name}": sha1(b"x" * number) for number, name in enumerate(odd)}
    for name in odd:
        made.store.rename(f"odd/{name}", f"odd/{name}.new")
        made.store.remove(f"odd/{name}.new")
    assert made.tree() == {"odd": None}


# -- refused is not absent


def test_m5_a_folder_that_may_not_be_read_is_refused_and_never_absent(made, local):
    """M5: a refusal was taken for "there is nothing", and the list of the month was begun anew."""
    made.put("closed/file")
    (made.root / "closed").chmod(0)
    with made.unprivileged() as store:
        for question in (
            lambda: store.names("closed"),
            lambda: store.size("closed/file"),
            lambda: store.size("closed/none"),
            lambda: store.changed_s("closed"),
            lambda: store.rename("closed/file", "new"),
            lambda: store.remove("closed/none"),
            lambda: store.make_folder("closed/new"),
        ):
            with pytest.raises(Refused):
                question()
        assert kinds_of(store.fetch({"closed/file": local / "a", "closed/none": local / "b"})) == {
            "closed/file": Refused, "closed/none": Refused,
        }  # fmt: skip
        assert kinds_of(store.sha1(["closed/none"])) == {"closed/none": Refused}


def test_m5_what_is_not_there_is_told_as_absent_only_below_a_folder_that_can_be_listed(made):
    """M5: a folder can be passed through and not be listed; then nobody can say that something is not there."""
    made.put("passable/file")
    (made.root / "passable").chmod(0o311)
    with made.unprivileged() as store:
        assert store.size("passable/file") == 7
        for path in ("passable/none", "passable/none/deep"):
            with pytest.raises(Refused):
                store.size(path)
        with pytest.raises(Refused):
            store.names("passable/none")
    (made.root / "passable").chmod(0o755)
    with made.unprivileged() as store:
        assert store.size("passable/none") is None and store.size("passable/none/deep") is None


def test_a_folder_that_may_not_be_written_refuses_every_change_and_stays(made, local):
    made.put("fixed/file", b"old")
    (local / "new").write_bytes(b"new")
    (made.root / "fixed").chmod(0o555)
    before = made.tree()
    with made.unprivileged() as store:
        assert kinds_of(store.store({"fixed/other": local / "new"})) == {"fixed/other": Refused}
        for change in (
            lambda: store.rename("fixed/file", "fixed/other"),
            lambda: store.remove("fixed/file"),
            lambda: store.make_folder("fixed/new"),
        ):
            with pytest.raises(Refused):
                change()
    assert made.tree() == before


# -- size, changed_s


def test_size_is_that_of_a_file_and_none_when_there_is_none(made):
    made.put("a/file", b"12345")
    assert made.store.size("a/file") == 5
    assert made.store.size("a/none") is None and made.store.size("none/deeper/none") is None
    with pytest.raises(TryLater) as told:
        made.store.size("a")
    assert not isinstance(told.value, Absent | Refused)


def test_changed_s_is_when_each_file_was_changed(made):
    os.utime(made.put("a/old"), (1_000_000_000, 1_000_000_000))
    os.utime(made.put("a/new"), (1_700_000_000, 1_700_000_000))
    (made.root / "a/folder").mkdir()
    assert made.store.changed_s("a") == {"old": 1_000_000_000, "new": 1_700_000_000}


# -- fetch


def test_fetch_brings_files_whole_small_and_large(made, local):
    contents = {f"raw/{number}": os.urandom(number * 997) for number in range(120)} | {"raw/big": BIG, "raw/even": BIG[: 1 << 20]}
    for path, content in contents.items():
        made.put(path, content)
    wanted = {path: local / path.replace("/", "_") for path in contents}
    assert made.store.fetch(wanted) == {}
    assert {path: there.read_bytes() for path, there in wanted.items()} == contents


@pytest.mark.parametrize("have", [0, 1, 32768, 1_500_000, len(BIG) - 1, len(BIG)])
def test_fetch_goes_on_with_the_beginning_of_an_earlier_try(made, local, have):
    made.put("big", BIG)
    begun = bytes(byte ^ 0xFF for byte in BIG[:1000]) + BIG[1000:]
    (local / "part").write_bytes(begun[:have])
    assert made.store.fetch({"big": local / "part"}) == {}
    whole = begun[:have] + BIG[have:] if made.resumes else BIG
    assert (local / "part").read_bytes() == whole, "what is there is not fetched again"


def test_fetch_begins_anew_where_what_is_there_is_longer_than_the_file(made, local):
    made.put("file", b"short")
    (local / "part").write_bytes(b"something longer")
    assert made.store.fetch({"file": local / "part"}) == {} and (local / "part").read_bytes() == b"short"


def test_fetch_fails_for_one_file_and_goes_on_with_the_others(made, local):
    for number in range(5):
        made.put(f"raw/{number}", BIG[: 100_000 + number])
    os.mkfifo(made.root / "raw/pipe")
    (local / "taken").mkdir()
    wanted = {f"raw/{number}": local / str(number) for number in range(5)}
    others = {"raw/none": local / "none", "raw": local / "folder", "raw/pipe": local / "pipe", "../x": local / "hostile"}
    failures = made.store.fetch({**others, **wanted, "raw/./0": local / "dot"} | {"raw/1": local / "taken"})
    assert kinds_of(failures) == {
        "raw/none": Absent, "raw": TryLater, "raw/pipe": TryLater, "../x": Refused, "raw/./0": Refused, "raw/1": TryLater,
    }  # fmt: skip
    assert all((local / str(number)).read_bytes() == BIG[: 100_000 + number] for number in (0, 2, 3, 4))
    assert "raw/none" in str(failures["raw/none"]) and str(local / "taken") in str(failures["raw/1"])


def test_fetch_of_nothing_is_nothing(made):
    assert made.store.fetch({}) == {} and made.store.store({}) == {} and made.store.sha1([]) == {}


# -- store


def test_store_puts_files_there_and_nothing_else(made, local):
    made.store.make_folder("raw")
    contents = {f"raw/{number}": os.urandom(number * 1009) for number in range(40)} | {"raw/.big.new": BIG, "raw/empty": b""}
    files = {}
    for number, (path, content) in enumerate(contents.items()):
        files[path] = local / str(number)
        files[path].write_bytes(content)
    assert made.store.store(files) == {}
    assert made.tree() == {"raw": None, **contents}


def test_m7_store_replaces_what_is_there_whole(made, local):
    """M7: lists were written straight to their final names, so readers saw parts of them."""
    made.put("list", b"the old one, which is longer")
    reader = (made.root / "list").open("rb")
    (local / "list").write_bytes(b"the new one")
    assert made.store.store({"list": local / "list"}) == {}
    assert made.tree() == {"list": b"the new one"}
    seen = b"the old one, which is longer" if made.writes_beside else b"the new one"
    assert reader.read() == seen, "who reads the old one reads it to its end"


def test_store_replaces_a_link_and_not_what_it_points_to(made, local, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (made.root / "link").symlink_to(outside)
    (local / "new").write_bytes(b"new")
    assert made.store.store({"link": local / "new"}) == {}
    if not made.writes_beside:  # such a store follows the link, and callers store under names of their own
        assert outside.read_bytes() == b"new"
        return
    assert outside.read_bytes() == b"outside" and not (made.root / "link").is_symlink()


def test_store_does_not_write_into_what_lies_under_its_hidden_name(made, local, tmp_path):
    """A part that an earlier try left, or a link that somebody laid there, is removed and never written to."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (made.root / ".a.part").symlink_to(outside)
    made.put(".b.part", b"left by a run that was killed, and longer")
    for name in ("a", "b"):
        (local / name).write_bytes(name.encode())
    assert made.store.store({name: local / name for name in ("a", "b")}) == {}
    left = {} if made.writes_beside else {".a.part": b"outside", ".b.part": b"left by a run that was killed, and longer"}
    assert made.tree() == {"a": b"a", "b": b"b", **left} and outside.read_bytes() == b"outside"


def test_store_fails_for_one_file_and_goes_on_with_the_others(made, local):
    made.put("folder/inside", b"old")
    for name in ("good", "other"):
        (local / name).write_bytes(name.encode())
    files = {"none/a": local / "good", "folder": local / "good", "gone": local / "none", "../x": local / "good"}
    failures = made.store.store({**files, "one": local / "good", "two": local / "other"})
    assert set(failures) == set(files) and all(isinstance(failure, TryLater) for failure in failures.values())
    assert not isinstance(failures["gone"], Absent | Refused), "a file of ours that is gone says nothing about the store"
    assert made.tree() == {"folder": None, "folder/inside": b"old", "one": b"good", "two": b"other"}


# -- sha1


def test_sha1_is_of_the_files_as_they_lie_there(made):
    contents = {f"raw/{number}": os.urandom(number * 997) for number in range(30)} | {"raw/big": BIG, "raw/empty": b""}
    for path, content in contents.items():
        made.put(path, content)
    os.mkfifo(made.root / "raw/pipe")
    found = made.store.sha1([*contents, "raw/none", "raw", "raw/pipe", "../x"])
    assert {path: found.pop(path) for path in contents} == {path: sha1(content) for path, content in contents.items()}
    assert kinds_of(found) == {"raw/none": Absent, "raw": TryLater, "raw/pipe": TryLater, "../x": Refused}


# -- rename


def test_rename_gives_a_file_or_a_folder_another_path(made):
    made.put("a/file", b"1")
    made.put("a/folder/deep", b"2")
    (made.root / "b").mkdir()
    made.give_away()
    made.store.rename("a/file", "b/new")
    made.store.rename("a/folder", "b/folder")
    assert made.tree() == {"a": None, "b": None, "b/new": b"1", "b/folder": None, "b/folder/deep": b"2"}


@pytest.mark.parametrize("new", ["file", "folder", "empty", "link", "dangling", "old"])
@pytest.mark.parametrize("old", ["old", "old folder"])
def test_rename_replaces_nothing_whatever_it_is(made, old, new):
    made.put("old", b"1")
    made.put("old folder/inside", b"2")
    made.put("file", b"3")
    made.put("folder/inside", b"4")
    (made.root / "empty").mkdir()
    (made.root / "link").symlink_to("file")
    (made.root / "dangling").symlink_to("nowhere")
    before = made.tree()
    with pytest.raises(Taken):
        made.store.rename(old, new)
    assert made.tree() == before


def test_rename_of_nothing_is_absent_and_into_no_folder_is_not(made):
    made.put("file")
    for path in ("none", "none/deep"):
        with pytest.raises(Absent):
            made.store.rename(path, "new")
    with pytest.raises(TryLater) as told:
        made.store.rename("file", "none/new")
    assert not isinstance(told.value, Absent | Taken)
    assert made.tree() == {"file": b"content"}


# -- remove, make_folder


def test_remove_removes_one_file_and_is_content_with_none(made):
    made.put("a/file")
    made.put("a/other")
    for _ in range(2):
        made.store.remove("a/file")
    made.store.remove("none/at/all")
    with pytest.raises(TryLater):
        made.store.remove("a")
    assert made.tree() == {"a": None, "a/other": b"content"}


def test_make_folder_makes_its_parents_and_is_content_with_what_is_there(made):
    made.store.make_folder("raw/2026")
    for _ in range(2):
        made.store.make_folder("raw/2026/11")
    made.store.make_folder("")
    assert made.tree() == {"raw": None, "raw/2026": None, "raw/2026/11": None}
    made.put("file")
    for folder in ("file", "file/below"):
        with pytest.raises(TryLater):
            made.store.make_folder(folder)


# -- paths


@pytest.mark.parametrize("path", HOSTILE)
def test_m26_a_path_that_is_none_is_refused_by_everything(made, local, path):
    """M26: names from another mirror's list went into commands and paths as they were."""
    made.put("raw/a")
    (made.root.parent / "outside").unlink(missing_ok=True)
    (local / "new").write_bytes(b"new")
    before, beside = made.tree(), sorted(made.root.parent.iterdir())
    for use in (
        lambda: made.store.names(path),
        lambda: made.store.size(path),
        lambda: made.store.changed_s(path),
        lambda: made.store.rename(path, "new"),
        lambda: made.store.rename("raw/a", path),
        lambda: made.store.remove(path),
        lambda: made.store.make_folder(path),
    ):
        with pytest.raises(Refused):
            use()
    assert kinds_of(made.store.fetch({path: local / "part"})) == {path: Refused}
    assert kinds_of(made.store.store({path: local / "new"})) == {path: Refused}
    assert kinds_of(made.store.sha1([path])) == {path: Refused}
    assert made.tree() == before and sorted(made.root.parent.iterdir()) == beside and not (local / "part").exists()


def test_a_message_names_the_file_and_can_be_printed(made, local):
    failures = made.store.fetch({"raw/\x1b[2Jname\n\udcff": local / "part"})
    text = str(failures["raw/\x1b[2Jname\n\udcff"])
    assert "name" in text and text.isprintable()
