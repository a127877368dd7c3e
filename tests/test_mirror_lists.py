"""The lists of a mirror where they lie: never shorter, never missing for good, never empty because they could not be read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from faulty_store import FaultyStore, Killed, cut, dies, fails
from mirror_world import mirror_folder, world

from dataflow.lib.errors import HostDown, TryLater
from dataflow.mirror import hash_lists, layout, mirror_lists
from dataflow.mirror.hash_lists import FailedList, HashList, MasterList
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Absent, Refused
from dataflow.mirror.stores.directory import DirectoryStore

MONTH = "202008"
NAMES = [f"202008{day:02}.2200.01.mcm.a.rawacf.bz2" for day in range(1, 20)]
OLD = HashList({name: hashlib.sha1(name.encode()).hexdigest() for name in NAMES[:10]})
NEW = HashList({name: hashlib.sha1(name.encode()).hexdigest() for name in NAMES})
LIST = f"raw/2020/08/{MONTH}.hashes"


@pytest.fixture
def mirror(tmp_path):
    """A store, the top of the mirror in it, and lists on it by way of the faults that a test names."""
    loaded = world(tmp_path)
    settings, here = loaded.mirror()
    mirror_folder(loaded).mkdir(parents=True)
    store = DirectoryStore(here, settings.store)
    return Mirror(store, mirror_folder(loaded), settings.tree, tmp_path / "work")


class Mirror:
    def __init__(self, store, top, tree, work):
        self.store, self.top, self.tree, self.work = store, top, tree, work

    def lists(self, *faults):
        self.faulty = FaultyStore(self.store, *faults)
        return MirrorLists(self.faulty, self.tree, self.work)

    def folder(self):
        return self.top / "raw/2020/08"

    def there(self):
        return sorted(path.name for path in self.folder().iterdir())

    def effective(self):
        """What a reader finds: the list, or where there is none the one that was kept."""
        path = self.folder() / f"{MONTH}.hashes"
        path = path if path.exists() else self.folder() / f".{MONTH}.hashes.old"
        return hash_lists.parse_month(path.read_bytes(), MONTH)


def test_a_month_is_written_and_read_as_sha1sum_writes_it(mirror):
    lists = mirror.lists()
    with pytest.raises(Absent):
        lists.month(MONTH)
    content = lists.replace_month(MONTH, NEW)
    assert (mirror.folder() / f"{MONTH}.hashes").read_bytes() == content == hash_lists.render_month(NEW.hashes)
    assert lists.month(MONTH) == NEW and lists.months() == [MONTH]
    assert mirror.there() == [f"{MONTH}.hashes"]


def test_the_steps_of_a_replacement(mirror):
    mirror.lists().replace_month(MONTH, OLD)
    mirror.lists().replace_month(MONTH, NEW)
    place = f"{mirror.tree}/raw/2020/08/"
    calls = [(call, *(path.removeprefix(place) for path in paths)) for call, paths in mirror.faulty.calls if call != "names"]
    current, new, old = (f"{MONTH}.hashes", f".{MONTH}.hashes.new", f".{MONTH}.hashes.old")
    assert calls == [
        ("fetch", current),
        ("make_folder", place.rstrip("/")),
        ("store", new), ("fetch", new), ("rename", current, old), ("rename", new, current), ("fetch", current), ("remove", old),
    ]  # fmt: skip


def test_a_list_is_never_replaced_by_a_shorter_one(mirror):
    """M5: a list that lacks a line of the present one is refused, unless that line was named as removed."""
    lists = mirror.lists()
    lists.replace_month(MONTH, NEW)
    with pytest.raises(TryLater, match=f"would lack {NAMES[10]}"):
        lists.replace_month(MONTH, OLD)
    other_hash = HashList({**NEW.hashes, NAMES[0]: "0" * 40})
    with pytest.raises(TryLater, match=f"would lack {NAMES[0]}"):
        lists.replace_month(MONTH, other_hash)
    assert mirror.effective() == NEW
    lists.replace_month(MONTH, OLD, removed=NAMES[10:])
    assert mirror.effective() == OLD and mirror.there() == [f"{MONTH}.hashes"]


def test_a_line_that_is_refused_stays_in_the_list(mirror):
    lists = mirror.lists()
    lists.replace_month(MONTH, OLD)
    path = mirror.folder() / f"{MONTH}.hashes"
    path.write_bytes(b"somebody's remark\n" + path.read_bytes())
    with pytest.raises(TryLater, match="somebody's remark"):
        lists.replace_month(MONTH, NEW)
    read = lists.month(MONTH)
    lists.replace_month(MONTH, HashList({**read.hashes, **NEW.hashes}, read.kept))
    assert b"somebody's remark\n" in path.read_bytes() and mirror.effective().hashes == NEW.hashes


@pytest.mark.parametrize("call", ["names", "fetch"])
def test_what_may_not_be_read_is_not_absent(mirror, call):
    """M5: 403 is not 404; a list that could not be read is never taken for an empty one, and never replaced."""
    mirror.lists().replace_month(MONTH, OLD)
    lists = mirror.lists(fails(call, Refused("403")))
    for work in (lambda: lists.month(MONTH), lambda: lists.replace_month(MONTH, NEW)):
        with pytest.raises(Refused):
            work()
    assert mirror.effective() == OLD and mirror.there() == [f"{MONTH}.hashes"]


def test_a_folder_that_its_parent_shows_is_not_absent(mirror):
    """M5: a store that says 404 for a moment does not have fewer files."""
    mirror.lists().replace_month(MONTH, OLD)
    with pytest.raises(TryLater, match="should be there") as raised:
        mirror.lists(fails("names", Absent("404"), ending="/08")).month(MONTH)
    assert not isinstance(raised.value, Absent)
    with pytest.raises(TryLater, match="is its disk mounted") as raised:
        mirror.lists(fails("names", Absent("404"))).month(MONTH)
    assert not isinstance(raised.value, Absent)


def test_a_fetch_that_finds_nothing_is_not_absence(mirror):
    mirror.lists().replace_month(MONTH, OLD)
    with pytest.raises(TryLater) as raised:
        mirror.lists(fails("fetch", Absent("404"))).month(MONTH)
    assert not isinstance(raised.value, Absent)


def test_a_list_cut_in_half_on_its_way_is_not_used(mirror):
    """M7: what comes is as long as the store says that it is, or it is no list."""
    mirror.lists().replace_month(MONTH, OLD)
    with pytest.raises(TryLater, match="came"):
        mirror.lists(cut(f"{MONTH}.hashes")).replace_month(MONTH, NEW)
    assert mirror.effective() == OLD
    mirror.lists(cut(f"{MONTH}.hashes", times=1)).replace_month(MONTH, NEW)
    assert mirror.effective() == NEW


def test_an_upload_that_is_cut_in_half_replaces_nothing(mirror):
    """M2, M7: what was written is read back and compared before anything gets another name."""
    mirror.lists().replace_month(MONTH, OLD)
    with pytest.raises(TryLater):
        mirror.lists(cut(".new", call="store")).replace_month(MONTH, NEW)
    assert mirror.effective() == OLD and f"{MONTH}.hashes" in mirror.there()
    mirror.lists().replace_month(MONTH, NEW)
    assert mirror.effective() == NEW and mirror.there() == [f"{MONTH}.hashes"]


@pytest.mark.parametrize("error", [Refused("403"), HostDown("no answer")])
def test_a_rename_that_fails_leaves_the_old_list_in_its_place(mirror, error):
    mirror.lists().replace_month(MONTH, OLD)
    with pytest.raises(type(error)):
        mirror.lists(fails("rename", error, ending=".new")).replace_month(MONTH, NEW)
    assert mirror.effective() == OLD and f"{MONTH}.hashes" in mirror.there()
    mirror.lists().replace_month(MONTH, NEW)
    assert mirror.effective() == NEW and mirror.there() == [f"{MONTH}.hashes"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_call_and_done_again(mirror, when):
    """M7: whatever instant the writer dies at, readers find the old list or the new one, whole, and the next writer ends it."""
    for number in range(100):
        mirror.lists().replace_month(MONTH, OLD)
        try:
            mirror.lists(dies(number, when)).replace_month(MONTH, NEW)
            break
        except Killed:
            assert mirror.effective() in (OLD, NEW)
            assert mirror.lists().month(MONTH) == mirror.effective(), "reading needs no mending"
            mirror.lists().replace_month(MONTH, NEW)
            assert mirror.effective() == NEW and mirror.there() == [f"{MONTH}.hashes"]
        mirror.lists().replace_month(MONTH, OLD, removed=NAMES[10:])
    assert 10 < number < 20 and mirror.effective() == NEW


def test_settling_restores_the_old_list_or_removes_what_is_left_over(mirror):
    lists = mirror.lists()
    lists.replace_month(MONTH, OLD)
    path, old, new = (mirror.folder() / name for name in (f"{MONTH}.hashes", f".{MONTH}.hashes.old", f".{MONTH}.hashes.new"))
    path.rename(old)
    new.write_bytes(b"half a li")
    lists.settled_month_bytes(MONTH)
    assert mirror.effective() == OLD and mirror.there() == [path.name]
    old.write_bytes(hash_lists.render_month({NAMES[0]: NEW.hashes[NAMES[0]]}))
    lists.settled_month_bytes(MONTH)
    assert mirror.there() == [path.name]


def test_what_is_kept_beside_a_list_that_lacks_some_of_it_is_not_removed(mirror):
    lists = mirror.lists()
    lists.replace_month(MONTH, OLD)
    old = mirror.folder() / f".{MONTH}.hashes.old"
    old.write_bytes(hash_lists.render_month(NEW.hashes))
    for work in (lambda: lists.settled_month_bytes(MONTH), lambda: lists.replace_month(MONTH, OLD)):
        with pytest.raises(TryLater, match="deletion was killed"):
            work()
    assert old.exists() and lists.month(MONTH) == OLD
    lists.replace_month(MONTH, OLD, removed=NAMES[10:])
    assert mirror.there() == [f"{MONTH}.hashes"]


def test_master_takes_other_hashes_and_loses_no_path(mirror):
    lists = mirror.lists()
    with pytest.raises(Absent):
        lists.master()
    first = MasterList({}).with_month("202008", "1" * 40).with_month("202009", "2" * 40)
    lists.replace_master(first)
    lists.replace_master(first.with_month("202009", "3" * 40))
    assert lists.master().hashes == {layout.master_line("202008"): "1" * 40, layout.master_line("202009"): "3" * 40}
    with pytest.raises(TryLater, match="would lack"):
        lists.replace_master(MasterList({}).with_month("202008", "1" * 40))


def test_failed_list_begins_empty_and_only_grows(mirror):
    lists = mirror.lists()
    assert lists.failed() == FailedList({})
    key = ("1" * 40, NAMES[0])
    lists.replace_failed(FailedList({key: "Failed BZ2 integrity test"}))
    assert lists.failed().reasons == {key: "Failed BZ2 integrity test"}
    with pytest.raises(TryLater):
        lists.replace_failed(FailedList({}))


def test_blocklist_is_all_its_files(mirror):
    lists = mirror.lists()
    assert lists.blocklist() == frozenset()
    lists.block([NAMES[1], NAMES[0]], "deleted.txt")
    lists.block([NAMES[1], NAMES[2]], "deleted.txt")
    folder = mirror.top / ".config/blocklist"
    (folder / "partner.txt").write_bytes(f"{NAMES[3]}\r\n# a remark\n".encode())
    (folder / "README").write_text(NAMES[4])
    assert lists.blocklist() == set(NAMES[:4])
    lists.unblock([NAMES[3]], "partner.txt")
    lists.unblock([NAMES[0]], "deleted.txt")
    assert lists.blocklist() == {NAMES[1], NAMES[2], NAMES[3]}, "what is not exactly that line is left to a person"
    (folder / "deleted.txt").rename(folder / ".deleted.txt.old")
    assert NAMES[1] in lists.blocklist()
    with pytest.raises(ValueError):
        lists.block(NAMES, "../x.txt")


@pytest.mark.parametrize("name", ["bad files (2019).txt", "-old.txt", "a" * 150 + ".txt", "\udcff.txt", "ä.txt"])
def test_a_file_of_the_blocklist_may_have_any_name(mirror, name):
    """One that is passed over for its name is a blocklist taken for empty."""
    folder = mirror.top / ".config/blocklist"
    folder.mkdir(parents=True)
    (folder / name).write_text(f"{NAMES[0]}\n")
    (folder / ".hidden.txt").write_text(f"{NAMES[1]}\n")
    assert mirror.lists().blocklist() == {NAMES[0]}
    (folder / name).rename(folder / f".{name}.old")
    assert mirror.lists().blocklist() == {NAMES[0]}


def test_what_is_far_too_large_for_a_list_is_not_fetched(mirror, monkeypatch):
    """It would fill the disk on which the holding directories lie, and then the memory."""
    mirror.lists().replace_month(MONTH, NEW)
    size = (mirror.folder() / f"{MONTH}.hashes").stat().st_size
    monkeypatch.setattr(mirror_lists, "LIST_BYTES_MAX", size)
    assert mirror.lists().month(MONTH).hashes == NEW.hashes
    monkeypatch.setattr(mirror_lists, "LIST_BYTES_MAX", size - 1)
    lists = mirror.lists()
    with pytest.raises(TryLater, match="it is not fetched") as raised:
        lists.month(MONTH)
    assert not isinstance(raised.value, Absent) and "fetch" not in [call for call, _ in mirror.faulty.calls]


def test_a_list_that_is_larger_than_its_folder_shows_is_never_in_memory(mirror, monkeypatch):
    """A server may list a few bytes and then send as many as the disk takes."""
    mirror.lists().replace_month(MONTH, NEW)
    real = mirror.store.names
    monkeypatch.setattr(mirror.store, "names", lambda folder: dict.fromkeys(real(folder), 5))
    read = []
    monkeypatch.setattr(Path, "read_bytes", read.append)
    with pytest.raises(TryLater, match="has 5 bytes, and 1444 came"):
        mirror.lists().month(MONTH)
    assert read == []


def test_many_months_are_fetched_at_once(mirror):
    lists = mirror.lists()
    lists.replace_month(MONTH, OLD)
    lists = mirror.lists()
    found = lists.months_bytes([MONTH, "202009"])
    assert found[MONTH] == hash_lists.render_month(OLD.hashes) and isinstance(found["202009"], Absent)
    assert [call for call, _ in mirror.faulty.calls].count("fetch") == 1
