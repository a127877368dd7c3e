"""`dataflow mirror delete`: exact names, one journalled transaction, killed anywhere it completes, and it can be undone."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import faulty_store
import mirror_world
import pytest
from faulty_store import Killed, cut, dies, fails
from mirror_world import SAID

from dataflow.lib.errors import Exit, HostDown, TryLater
from dataflow.mirror import delete, hash_lists, layout
from dataflow.mirror.stores import Refused

JOB = "mirror_delete"
STAMP = "20261120T120000Z"
BAD = "20200804.2200.01.mcm.a.rawacf.bz2"
ALIKE = "20200804.2200.01.mcm.rawacf.bz2"
OTHER = "20200805.0000.01.sas.a.rawacf.bz2"
LATER = "20200901.0000.00.sas.a.rawacf.bz2"
NOWHERE = "20200904.0000.00.sas.a.rawacf.bz2"
CONTENTS = {name: f"what {name} holds".encode() for name in (BAD, ALIKE, OTHER, LATER)}


@pytest.fixture
def config(tmp_path):
    made = mirror_world.world(tmp_path / "machines")
    mirror_world.on_mirror(top(made), CONTENTS)
    return made


def top(config) -> Path:
    return mirror_world.mirror_folder(config)


def chroot(config) -> Path:
    settings, here = config.mirror()
    return here.path(settings.store.root)


def on_mirror(config, name: str) -> Path:
    return top(config) / layout.data_folder("", name[:6]) / name


def aside(config, name: str, stamp: str = STAMP) -> Path:
    return chroot(config) / config.mirror()[0].deleted / stamp / name


def blocklist(config, stamp: str = STAMP) -> Path:
    return top(config) / layout.blocklist("") / f"deleted-{stamp}.txt"


def listed(config, month: str) -> dict[str, str]:
    return hash_lists.parse_month((top(config) / layout.month_list("", month)).read_bytes(), month).hashes


def is_master_right(config) -> bool:
    """Whether the master list has the hash of each month's list as it lies there."""
    master = hash_lists.parse_master((top(config) / layout.master_list("")).read_bytes()).hashes
    return master == {
        layout.master_line(month): mirror_world.sha1(top(config) / layout.month_list("", month)) for month in MONTHS
    }


MONTHS = {"202008": "./raw/202008.hashes", "202009": "./raw/202009.hashes"}
"""The months, and the other spelling of their lists."""


def run(config, *wanted: str, yes: bool = True) -> Exit:
    SAID.clear()
    names_file = chroot(config).parent / "wanted.txt"
    names_file.write_bytes("".join(f"{name}\n" for name in wanted).encode("utf-8", "surrogateescape"))
    return mirror_world.run(config, JOB, lambda job: delete.delete(job, names_file, yes))[0]


def undo(config, stamp: str = STAMP, yes: bool = True) -> Exit:
    SAID.clear()
    return mirror_world.run(config, JOB, lambda job: delete.undo(job, stamp, yes))[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a store by its path, and lists as what they say: written anew they are sorted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found[str(path.relative_to(folder))] = (
                b"".join(sorted(content.splitlines(True))) if ".hashes" in path.name else content
            )
    return found


def stage(config, stamp: str = STAMP) -> str:
    return json.loads((config.mirror()[1].state / "deletions" / f"{stamp}.json").read_text())["stage"]


def actions(config) -> list[tuple[str, str, str]]:
    return [(r["file"], r["outcome"], r["action"]) for r in mirror_world.records(config, JOB, "file")]


# -- what is deleted


def test_a_deletion_goes_through_everything_that_knows_the_file(config):
    """M51: master.hashes and the blocklist were left as they were, so partners' syncs brought the file back."""
    assert run(config, BAD, LATER) == Exit.ACCOUNTED
    assert blocklist(config).read_text() == f"{BAD}\n{LATER}\n"
    for name in (BAD, LATER):
        assert not on_mirror(config, name).exists()
        assert aside(config, name).read_bytes() == CONTENTS[name]
    assert listed(config, "202008").keys() == {ALIKE, OTHER} and listed(config, "202009") == {}
    assert is_master_right(config)
    assert on_mirror(config, OTHER).read_bytes() == CONTENTS[OTHER]
    assert actions(config) == [(BAD, "done", "deleted"), (LATER, "done", "deleted")]
    (record, _) = mirror_world.records(config, JOB, "file")
    assert (record["transaction"], record["sha1"], record["bytes"]) == (STAMP, hashlib.sha1(CONTENTS[BAD]).hexdigest(), 44)
    assert record["source"].endswith(f"raw/2020/08/{BAD}") and record["destination"].endswith(f"{STAMP}/{BAD}")
    assert f"To put them back: dataflow mirror delete --undo {STAMP} --yes" in SAID
    assert not [path for path in chroot(config).rglob(".*.*") if path.is_file() and path.name != ".dataflow-root"]


def test_the_blocklist_comes_first_and_the_lists_after_the_move(config, monkeypatch):
    """M51: the lists were changed before the files were moved."""
    opened: list = []
    faulty_store.install(monkeypatch, opened=opened)
    assert run(config, BAD) == Exit.ACCOUNTED
    renamed = [paths[1].rpartition("/")[2] for call, paths in opened[0].calls if call == "rename"]
    assert [name for name in renamed if name[0] != "."] == [blocklist(config).name, BAD, "202008.hashes", "master.hashes"]


def test_nothing_is_done_without_yes(config):
    """M53: what a list would do could only be seen by doing it."""
    before = snapshot(chroot(config))
    unlisted(config, LATER)
    on_mirror(config, OTHER).unlink()
    between = snapshot(chroot(config))
    assert before != between
    assert run(config, BAD, OTHER, LATER, NOWHERE, yes=False) == Exit.LEFT_OVER, "one is nowhere"
    assert snapshot(chroot(config)) == between
    assert SAID[:4] == [
        f"{BAD}: listed, there, 44 bytes", f"{OTHER}: listed, not there", f"{LATER}: not listed, there, 44 bytes",
        f"{NOWHERE}: not listed, not there",
    ]  # fmt: skip
    assert "3 files would be deleted; nothing was changed. With --yes it is done" in SAID
    assert {action for _, _, action in actions(config)} == {"would be deleted", "not there"}
    assert not (config.mirror()[1].state / "deletions").exists()
    assert run(config, BAD, yes=False) == Exit.ACCOUNTED


@pytest.mark.parametrize(
    "line",
    ["20200804", "mcm", BAD[:-1], f" {BAD}", f"{BAD} ", f"{BAD}\r", f"raw/2020/08/{BAD}", f"../{BAD}", "", "*.bz2", f"{BAD}\0",
     "\udcff", f"{BAD}x"],
)  # fmt: skip
def test_a_line_that_is_no_whole_name_refuses_the_whole_list(config, line):
    """M53: a line was a piece of a name, and a short one deleted other files."""
    before = snapshot(chroot(config))
    assert run(config, OTHER, line, LATER) == Exit.CONFIG
    assert snapshot(chroot(config)) == before
    assert "line 2: " in SAID[-1] and "line 1: " not in SAID[-1] and "nothing was done" in SAID[-1]
    assert SAID[-1].replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "name", ["20200804.2200.01.mcm.a.fitacf.bz2", "20200804.map.bz2", "20200804.grdmap", "20200804.2200.01.mcm.0.rawacf.h5"]
)
def test_other_kinds_of_data_are_refused_before_anything_is_done(config, name):
    """M54: fit, map, grid and summary were offered, and ended in the middle."""
    assert run(config, BAD, name) == Exit.CONFIG
    assert f"line 2: '{name}'" in SAID[-1]
    assert on_mirror(config, BAD).exists() and not blocklist(config).exists()


def test_a_name_that_is_the_beginning_of_none_and_like_another_deletes_only_its_own(config):
    """M53: names were compared as pieces of text."""
    assert run(config, ALIKE, ALIKE) == Exit.ACCOUNTED
    assert listed(config, "202008").keys() == {BAD, OTHER}
    assert on_mirror(config, BAD).exists() and not on_mirror(config, ALIKE).exists()


def test_a_list_that_cannot_be_read_or_is_empty_is_refused(config):
    assert run(config) == Exit.CONFIG
    (chroot(config).parent / "wanted.txt").unlink()
    code, _ = mirror_world.run(config, JOB, lambda job: delete.delete(job, chroot(config).parent / "wanted.txt", True))
    assert code == Exit.CONFIG and "wanted.txt cannot be read" in SAID[-1]


def unlisted(config, name: str) -> None:
    path = top(config) / layout.month_list("", name[:6])
    path.write_text("".join(line for line in path.read_text().splitlines(True) if name not in line))


def test_a_file_that_no_list_has_is_deleted_too_and_its_months_list_is_not_touched(config):
    unlisted(config, LATER)
    path = top(config) / layout.month_list("", "202009")
    before = path.stat().st_ino
    assert run(config, LATER) == Exit.ACCOUNTED
    assert aside(config, LATER).read_bytes() == CONTENTS[LATER] and blocklist(config).exists()
    assert path.stat().st_ino == before and is_master_right(config)
    path.unlink()
    on_mirror(config, LATER).write_bytes(b"again")
    assert run(config, LATER) == Exit.ACCOUNTED, "a month without a list"
    assert not path.exists()


def test_a_name_that_is_listed_and_gone_loses_its_line(config):
    on_mirror(config, BAD).unlink()
    assert run(config, BAD) == Exit.ACCOUNTED
    assert BAD not in listed(config, "202008") and is_master_right(config) and blocklist(config).exists()
    assert undo(config) == Exit.ACCOUNTED
    assert BAD in listed(config, "202008") and not on_mirror(config, BAD).exists(), "as it was"


def test_a_name_that_is_nowhere_is_told_and_the_others_are_deleted(config):
    assert run(config, NOWHERE, BAD) == Exit.LEFT_OVER
    assert actions(config) == [(NOWHERE, "skipped", "not there"), (BAD, "done", "deleted")]
    assert f"{NOWHERE} is neither listed nor on the mirror: is the name right?" in SAID
    assert blocklist(config).read_text() == f"{BAD}\n"
    assert run(config, NOWHERE) == Exit.LEFT_OVER
    assert not blocklist(config, f"{STAMP}-2").exists(), "there was nothing to do"


def test_the_same_list_again_finds_that_all_is_done(config):
    assert run(config, BAD) == Exit.ACCOUNTED
    before = snapshot(chroot(config))
    assert run(config, BAD) == Exit.ACCOUNTED
    assert snapshot(chroot(config)) == before
    assert f"{BAD} was deleted by {STAMP}" in SAID and actions(config)[-1] == (BAD, "skipped", "deleted before")


def test_a_name_with_two_hashes_loses_both_lines_and_gets_both_back(config):
    path = top(config) / layout.month_list("", "202008")
    path.write_text(path.read_text() + f"{'0' * 40}  {BAD}\nno line of any list\n")
    before = snapshot(chroot(config))
    assert run(config, BAD) == Exit.ACCOUNTED
    assert f"{BAD}: listed with several hashes, there, 44 bytes" in SAID
    assert BAD not in path.read_text() and "no line of any list\n" in path.read_text()
    assert undo(config) == Exit.ACCOUNTED
    after = snapshot(chroot(config))
    assert {name: after[name] for name in before if "master" not in name} == {n: before[n] for n in before if "master" not in n}


def test_a_name_in_a_line_that_nobody_can_read_is_left(config):
    """M4 left two lines that are one; to cut that one out would unlist the other name."""
    path = top(config) / layout.month_list("", "202008")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + lines[1], *lines[2:], ""]))
    before = snapshot(chroot(config))
    assert run(config, BAD) == Exit.LEFT_OVER
    assert "mend that first" in SAID[1] and snapshot(chroot(config)) == before


def test_what_is_no_file_is_left(config):
    on_mirror(config, BAD).unlink()
    on_mirror(config, BAD).mkdir()
    assert run(config, BAD) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).is_dir() and BAD in listed(config, "202008") and not blocklist(config).exists()


def test_a_file_that_is_not_what_the_list_says_is_deleted_and_that_is_told(config):
    on_mirror(config, BAD).write_bytes(b"something else")
    assert run(config, BAD) == Exit.ACCOUNTED
    assert aside(config, BAD).read_bytes() == b"something else"
    assert any("the list says" in said and "deleted all the same" in said for said in SAID)
    assert undo(config) == Exit.ACCOUNTED
    assert on_mirror(config, BAD).read_bytes() == b"something else"


# -- what fails


def test_a_move_that_fails_loses_nothing_and_is_done_by_the_next_run(config, monkeypatch):
    """M50: the originals were deleted after a copy that had FAILED."""
    refused = [fails(call, TryLater("FAILED"), BAD) for call in ("rename", "store")] + [fails("fetch", TryLater("FAILED"), BAD)]
    with monkeypatch.context() as patch:
        faulty_store.install(patch, *refused)
        assert run(config, BAD, OTHER) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).read_bytes() == CONTENTS[BAD] and not aside(config, BAD).exists()
    assert aside(config, OTHER).exists()
    assert listed(config, "202008").keys() == {BAD, ALIKE} and is_master_right(config), "what stayed stays listed"
    assert actions(config) == [(BAD, "kept", "left"), (OTHER, "done", "deleted")]
    assert any("FAILED" in said for said in SAID) and stage(config) == "move"
    assert run(config, LATER) == Exit.ACCOUNTED
    assert aside(config, BAD).exists() and aside(config, LATER, f"{STAMP}-2").exists()
    assert listed(config, "202008").keys() == {ALIKE} and is_master_right(config) and stage(config) == "deleted"


def no_rename_across(monkeypatch, *faults) -> None:
    """The store cannot rename into the folder of the deleted, nor out of it; a hidden part it can."""
    across = [fails("rename", TryLater(os.strerror(errno.EXDEV)), f"/{name}") for name in CONTENTS]
    faulty_store.install(monkeypatch, *across, *faults)


def test_what_cannot_be_renamed_is_copied_verified_and_only_then_removed(config, monkeypatch):
    no_rename_across(monkeypatch)
    assert run(config, BAD) == Exit.ACCOUNTED
    assert aside(config, BAD).read_bytes() == CONTENTS[BAD] and not on_mirror(config, BAD).exists()
    assert undo(config) == Exit.ACCOUNTED
    assert on_mirror(config, BAD).read_bytes() == CONTENTS[BAD] and not aside(config, BAD).exists()


@pytest.mark.parametrize("fault", [cut(".part", "store"), cut(BAD)])
def test_a_copy_that_comes_out_wrong_removes_nothing(config, monkeypatch, fault):
    """M50: no copy was ever compared with its original."""
    with monkeypatch.context() as patch:
        no_rename_across(patch, fault)
        assert run(config, BAD) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).read_bytes() == CONTENTS[BAD] and BAD in listed(config, "202008")
    assert not aside(config, BAD).exists()
    assert run(config, BAD) == Exit.ACCOUNTED, "the next run completes it"
    assert aside(config, BAD).read_bytes() == CONTENTS[BAD]


def test_another_file_in_the_place_of_a_deleted_one_is_not_touched(config, monkeypatch):
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("rename", Killed(), BAD, when="after"))
        with pytest.raises(Killed):
            run(config, BAD)
    on_mirror(config, BAD).write_bytes(b"somebody's")
    assert run(config, BAD) == Exit.LEFT_OVER
    assert (on_mirror(config, BAD).read_bytes(), aside(config, BAD).read_bytes()) == (b"somebody's", CONTENTS[BAD])
    assert any("Both stay as they are" in said for said in SAID)


def test_a_rename_that_is_refused_is_not_tried_in_another_way(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("rename", Refused("403"), BAD))
    assert run(config, BAD) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).exists() and not aside(config, BAD).exists()


def test_a_file_whose_place_is_taken_stays(config):
    aside(config, BAD).parent.mkdir(parents=True)
    aside(config, BAD).write_bytes(b"somebody's")
    assert run(config, BAD) == Exit.LEFT_OVER
    assert (on_mirror(config, BAD).read_bytes(), aside(config, BAD).read_bytes()) == (CONTENTS[BAD], b"somebody's")
    assert BAD in listed(config, "202008")


@pytest.mark.parametrize(
    ("call", "ending"), [("names", "raw/2020/08"), ("fetch", "202008.hashes"), ("fetch", "master.hashes"), ("names", "blocklist")]
)
def test_what_may_not_be_read_is_not_taken_for_empty(config, monkeypatch, call, ending):
    """M52: a list that could not be fetched was replaced by an older one; a refusal (403) is no absence."""
    before = snapshot(top(config))
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails(call, Refused("403"), ending))
        assert run(config, BAD) == Exit.LEFT_OVER
    after = snapshot(top(config))
    for name in before:
        if name.endswith(".hashes"):
            lost = set(before[name].splitlines()) - set(after[name].splitlines())
            assert all(BAD.encode() in line for line in lost)
    assert run(config, BAD) == Exit.ACCOUNTED and is_master_right(config)
    assert listed(config, "202008").keys() == {ALIKE, OTHER}


def test_a_list_is_read_from_the_mirror_each_time(config):
    """M52: a hash list of an earlier run was changed and uploaded, and newer lines were lost."""
    assert run(config, BAD) == Exit.ACCOUNTED
    newer = "20200806.0000.00.sas.a.rawacf.bz2"
    path = top(config) / layout.month_list("", "202008")
    path.write_text(path.read_text() + f"{'1' * 40}  {newer}\n")
    assert run(config, OTHER) == Exit.ACCOUNTED
    assert listed(config, "202008").keys() == {ALIKE, newer}


def test_a_file_that_cannot_be_hashed_is_left_and_the_others_go(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("sha1", TryLater("an error of the disk"), BAD))
    assert run(config, BAD, OTHER) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).exists() and BAD in listed(config, "202008")
    assert blocklist(config).read_text() == f"{OTHER}\n" and not on_mirror(config, OTHER).exists()


def test_a_mirror_that_cannot_be_reached_is_tried_again(config, monkeypatch):
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("rename", HostDown("no answer"), BAD))
        assert run(config, BAD) == Exit.UNREACHABLE
    assert run(config, LATER, yes=False) == Exit.ACCOUNTED
    assert f"{STAMP} was not finished" in SAID[0] and on_mirror(config, BAD).exists(), "not without --yes"
    assert run(config, LATER) == Exit.ACCOUNTED
    assert aside(config, BAD).exists() and stage(config) == "deleted"


def test_a_file_that_vanishes_meanwhile_is_an_alert_and_loses_its_line(config, monkeypatch):
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("rename", Killed(), BAD))
        with pytest.raises(Killed):
            run(config, BAD)
    on_mirror(config, BAD).unlink()
    assert run(config, LATER) == Exit.ACCOUNTED
    assert BAD not in listed(config, "202008")
    (alert,) = mirror_world.records(config, JOB, "alert")
    assert "vanished" in alert["message"]
    assert undo(config) == Exit.LEFT_OVER, "it cannot be brought back"
    assert BAD not in listed(config, "202008") and blocklist(config).exists()


def test_a_master_list_that_is_missing_is_made_of_all_months(config):
    path = top(config) / layout.master_list("")
    months = hash_lists.parse_master(path.read_bytes()).months
    path.unlink()
    assert run(config, BAD) == Exit.ACCOUNTED
    assert hash_lists.parse_master(path.read_bytes()).months == months > {BAD[:6]}


def test_asked_to_stop_it_goes_on_with_the_next_run(config):
    def stopped(job):
        told = job.out
        job.out = lambda text: (told(text), setattr(job.requests, "stop", True))
        delete.delete(job, chroot(config).parent / "wanted.txt", True)

    (chroot(config).parent / "wanted.txt").write_text(f"{BAD}\n")
    assert mirror_world.run(config, JOB, stopped)[0] == Exit.LEFT_OVER
    assert on_mirror(config, BAD).exists()
    assert run(config, BAD) == Exit.ACCOUNTED


# -- undone


def test_what_was_deleted_comes_back_as_it_was(config):
    unlisted(config, OTHER)
    path = top(config) / layout.master_list("")
    path.write_text(path.read_text().replace("./raw/2020/09/", "./raw/"))
    before = snapshot(chroot(config))
    assert run(config, BAD, OTHER, LATER) == Exit.ACCOUNTED
    deleted = snapshot(chroot(config))
    assert undo(config, yes=False) == Exit.ACCOUNTED
    assert snapshot(chroot(config)) == deleted and SAID[-1].startswith("3 files would be put back; nothing was changed")
    assert undo(config) == Exit.ACCOUNTED
    after = snapshot(chroot(config))
    assert {n: c for n, c in after.items() if "master" not in n} == {n: c for n, c in before.items() if "master" not in n}
    assert b"./raw/202009.hashes" in after["sddata/.config/master.hashes"], "spelt as that mirror spells it"
    assert undo(config) == Exit.ACCOUNTED
    assert SAID[0] == f"{STAMP} is undone already"
    assert run(config, BAD) == Exit.ACCOUNTED, "and it may be deleted again"


def test_putting_back_unblocks_last(config, monkeypatch):
    assert run(config, BAD) == Exit.ACCOUNTED
    opened: list = []
    faulty_store.install(monkeypatch, opened=opened)
    assert undo(config) == Exit.ACCOUNTED
    changed = [paths[-1].rpartition("/")[2] for call, paths in opened[0].calls if call in ("rename", "remove")]
    names = [name for name in changed if name[0] != "."]
    assert names == [BAD, "202008.hashes", "master.hashes", blocklist(config).name, blocklist(config).name]


@pytest.mark.parametrize("stamp", ["20261120T120000", "../20261120T120000Z", "", "20261120T120000Z/../x", "20261120T120001Z"])
def test_what_is_no_transaction_is_refused_and_the_last_ones_are_named(config, stamp):
    assert run(config, BAD) == Exit.ACCOUNTED
    assert undo(config, stamp) == Exit.CONFIG
    assert f"{STAMP} (deleted, 1 files)" in SAID[-1]


def test_a_file_that_was_damaged_where_it_lay_does_not_come_back(config):
    assert run(config, BAD, OTHER) == Exit.ACCOUNTED
    aside(config, BAD).write_bytes(b"what BAD held, and rot since then, of the same length"[: len(CONTENTS[BAD])])
    assert undo(config) == Exit.LEFT_OVER
    assert not on_mirror(config, BAD).exists() and on_mirror(config, OTHER).exists()
    assert listed(config, "202008").keys() == {ALIKE, OTHER} and is_master_right(config)
    assert blocklist(config).exists(), "nobody brings it back before a person has decided"
    aside(config, BAD).write_bytes(CONTENTS[BAD])
    assert run(config, LATER) == Exit.ACCOUNTED, "which completes the other first"
    assert on_mirror(config, BAD).exists() and not blocklist(config).exists() and stage(config) == "undone"


def test_a_name_that_has_another_hash_by_now_stays_out_of_the_list(config):
    assert run(config, BAD) == Exit.ACCOUNTED
    path = top(config) / layout.month_list("", "202008")
    path.write_text(path.read_text() + f"{'1' * 40}  {BAD}\n")
    assert undo(config) == Exit.LEFT_OVER
    assert listed(config, "202008")[BAD] == "1" * 40 and "with another hash now" in " ".join(SAID)


def test_a_name_that_another_list_blocks_stays_blocked_and_that_is_told(config):
    (top(config) / layout.blocklist("") / "by_hand.txt").write_text(f"{BAD}\r\n")
    assert run(config, BAD) == Exit.ACCOUNTED
    assert undo(config) == Exit.LEFT_OVER
    assert f"still blocked: {BAD}" in SAID[-2] and not blocklist(config).exists() and stage(config) == "undone"


def test_a_deletion_that_was_not_finished_can_be_undone_at_once(config, monkeypatch):
    before = snapshot(chroot(config))
    for fault in (fails("rename", Killed(), BAD), fails("rename", Killed(), "202008.hashes"), fails("remove", Killed(), "")):
        with monkeypatch.context() as patch:
            faulty_store.install(patch, fault)
            with pytest.raises(Killed):
                run(config, BAD, OTHER)
        stamp = sorted(path.stem for path in (config.mirror()[1].state / "deletions").glob("*.json"))[-1]
        assert undo(config, stamp) == Exit.ACCOUNTED
        assert snapshot(chroot(config)) == before


def test_a_journal_that_is_none_is_told_and_nothing_is_done(config):
    folder = config.mirror()[1].state / "deletions"
    folder.mkdir(parents=True)
    (folder / f"{STAMP}.json").write_text("{}")
    assert run(config, BAD) == Exit.LEFT_OVER
    assert f"{STAMP}.json is no journal of a deletion" in SAID[-1] and on_mirror(config, BAD).exists()


# -- killed


@pytest.fixture
def again(config, tmp_path):
    """A function that puts the mirror and the state back as they are now, for one more try."""
    _, here = config.mirror()
    places = {chroot(config): tmp_path / "mirror before", here.state: tmp_path / "state before"}

    def keep():
        for place, kept in places.items():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(place, kept)

    def back():
        for place, kept in places.items():
            shutil.rmtree(place)
            shutil.copytree(kept, place)

    here.state.mkdir(parents=True, exist_ok=True)
    keep()
    back.keep = keep
    return back


def killed_everywhere(config, monkeypatch, again, first, then) -> int:
    """Do `first`, killed before and after each call that changes the mirror, and `then`; every end must be that of an undisturbed
    run. Between two such calls lies at most one change of the journal. How often it died."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a death of the process shows none that is missing
    opened: list = []
    with monkeypatch.context() as patch:
        faulty_store.install(patch, opened=opened)
        assert first() == Exit.ACCOUNTED
    undisturbed = snapshot(chroot(config))
    changing = [n for n, (call, _) in enumerate(opened[0].calls) if call in ("store", "rename", "remove", "make_folder")]
    deaths = 0
    for number, when in itertools.product(changing, ("before", "after")):
        again()
        with monkeypatch.context() as patch:
            faulty_store.install(patch, dies(number, when))
            try:
                first()
            except Killed:
                deaths += 1
        assert_nothing_is_lost(config, f"{when} call {number}")
        with monkeypatch.context() as patch:
            faulty_store.install(patch)
            assert then() == Exit.ACCOUNTED, (when, opened[0].calls[number], SAID)
        assert snapshot(chroot(config)) == undisturbed, (when, opened[0].calls[number])
        assert is_master_right(config)
    return deaths


def assert_nothing_is_lost(config, moment: str) -> None:
    """Every file is somewhere, whole; and what is in its place is listed, or blocked until it is."""
    for name, content in CONTENTS.items():
        places = [path for path in (on_mirror(config, name), aside(config, name)) if path.exists()]
        assert places and all(path.read_bytes() == content for path in places), f"{name} {moment}"


def test_killed_at_any_call_it_completes(config, monkeypatch, again):
    """M50, M51: whatever ended a deletion left lists, master list and files in disagreement."""
    assert killed_everywhere(config, monkeypatch, again, lambda: run(config, BAD, LATER), lambda: run(config, BAD, LATER)) >= 40
    assert stage(config) == "deleted"


def test_killed_at_any_call_it_completes_when_files_have_to_be_copied(config, monkeypatch, again):
    real = faulty_store.install
    across = [fails("rename", TryLater(os.strerror(errno.EXDEV)), f"/{name}") for name in CONTENTS]
    monkeypatch.setattr(faulty_store, "install", lambda patch, *faults, **opened: real(patch, *faults, *across, **opened))
    assert killed_everywhere(config, monkeypatch, again, lambda: run(config, BAD), lambda: run(config, BAD)) >= 30


def test_killed_at_any_call_it_is_put_back(config, monkeypatch, again):
    assert run(config, BAD) == Exit.ACCOUNTED
    again.keep()
    assert killed_everywhere(config, monkeypatch, again, lambda: undo(config), lambda: undo(config)) >= 30
    assert stage(config) == "undone"


def test_a_second_command_completes_what_was_killed_before_it_does_its_own(config, monkeypatch, again):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for ending in (".txt.new", BAD, "202008.hashes", "master.hashes"):
        again()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            faulty_store.install(patch, fails("rename", Killed(), ending))
            run(config, BAD)
        assert run(config, OTHER) == Exit.ACCOUNTED
        assert listed(config, "202008").keys() == {ALIKE} and is_master_right(config)
        assert aside(config, BAD).exists() and aside(config, OTHER, f"{STAMP}-2").exists()
