"""Publishing: nothing lost, nothing unlisted, no list ever shorter, whatever fails and at whatever instant it is killed."""

from __future__ import annotations

import bz2
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from faulty_store import FaultyStore, Killed, cut, dies, fails, install
from mirror_world import SAID, dmap_bytes, dmap_file, holding, mirror_folder, on_mirror, outcomes, records, run, sha1, world

from dataflow.lib import dmap, place, summary
from dataflow.lib.errors import Exit, HostDown
from dataflow.mirror import bring, checks, hash_lists, journal, layout, publish, strays, transaction
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.stores import Refused, Taken

A, B, C, D = (f"202008{day:02}.2200.01.sas.a.rawacf.bz2" for day in (1, 2, 3, 4))
OTHER_MONTH = "20200901.0000.00.pgr.rawacf.bz2"
MONTH = "202008"
NAME = "mirror_publish"


@pytest.fixture
def loaded(tmp_path):
    return made(tmp_path)


def made(root, overrides=()):
    """A configuration with a new mirror: nothing but its top folder."""
    loaded = world(root, overrides)
    mirror_folder(loaded).mkdir(parents=True)
    return loaded


def published(loaded, month=None, radar=None, dry_run=False, name="main", **fields):
    code, _ = run(loaded, NAME, lambda job: publish.publish(job, name, month, radar, dry_run), "mirror", **fields)
    return code


def put(loaded, *names, salt=0, name="main"):
    return [dmap_file(holding(loaded, name), each, salt=salt) for each in names]


def in_holding(loaded, name="main"):
    return sorted(path.name for path in holding(loaded, name).iterdir())


def listed(loaded, month=MONTH):
    return hash_lists.parse_month((mirror_folder(loaded) / layout.month_list("", month)).read_bytes(), month).hashes


def master(loaded):
    return hash_lists.parse_master((mirror_folder(loaded) / layout.master_list("")).read_bytes()).hashes


def aside(loaded):
    """What is set aside: reason by name."""
    _, here = loaded.mirror()
    folder = here.folder("set_aside")
    return {path.name: path.parts[-3] for path in folder.glob("*/*/*") if not path.name.endswith(".reason.json")}


def alerts(loaded):
    return [record["message"] for record in records(loaded, NAME, "alert")]


def end(loaded):
    return records(loaded, NAME, "end")[-1]


def assert_whole(loaded, *months):
    """The mirror's lists name what is there with its hash, nothing else; the master list has them; nothing hidden is left."""
    top = mirror_folder(loaded)
    found = master(loaded)
    for month in months:
        folder = top / layout.data_folder("", month)
        there = {path.name: sha1(path) for path in folder.iterdir() if path.suffix == ".bz2"}
        assert listed(loaded, month) == there
        assert found[layout.master_line(month)] == sha1(top / layout.month_list("", month))
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# -- what is published


def test_good_files_are_published_listed_and_let_go(loaded):
    paths = put(loaded, A, B, OTHER_MONTH)
    expected = {path.name: sha1(path) for path in paths}
    assert published(loaded) is Exit.ACCOUNTED
    assert listed(loaded) | listed(loaded, "202009") == expected
    assert_whole(loaded, "202008", "202009")
    assert in_holding(loaded) == []
    done = records(loaded, NAME, "file")
    assert {(each["file"], each["outcome"], each["action"], each["sha1"]) for each in done} == {
        (name, "done", "published", digest) for name, digest in expected.items()
    }
    assert end(loaded)["found"] == end(loaded)["done"] == 3 and alerts(loaded) == []


def test_lists_are_what_sha1sum_checks(loaded):
    put(loaded, A, B)
    published(loaded)
    folder = mirror_folder(loaded) / layout.data_folder("", MONTH)
    for top, path in ((folder, f"{MONTH}.hashes"), (mirror_folder(loaded), ".config/master.hashes")):
        subprocess.run(["sha1sum", "--strict", "-c", path], cwd=top, check=True, capture_output=True)


def test_new_lines_are_merged_into_the_list_that_is_there(loaded):
    """M4: a list without an LF at its end does not fuse two entries."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    path = mirror_folder(loaded) / layout.month_list("", MONTH)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    put(loaded, C)
    assert published(loaded) is Exit.ACCOUNTED
    assert sorted(listed(loaded)) == [A, B, C]
    assert_whole(loaded, MONTH)


def test_only_a_month_or_a_radar(loaded):
    put(loaded, A, OTHER_MONTH)
    put(loaded, "20200801.2200.01.pgr.a.rawacf.bz2")
    published(loaded, month="202009")
    assert len(in_holding(loaded)) == 2 and set(outcomes(loaded, NAME)) == {OTHER_MONTH}
    published(loaded, radar="pgr")
    assert in_holding(loaded) == [A]
    for wrong in ({"month": "202013"}, {"radar": "xyz"}, {"name": "nowhere"}):
        assert published(loaded, **wrong) is Exit.CONFIG


def test_dry_run_tells_what_would_become_of_each_and_changes_nothing(loaded):
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    put(loaded, A, C)
    put(loaded, B, salt=1)
    (holding(loaded, "main") / D).write_bytes(b"")
    (holding(loaded, "main") / "notes.txt").write_text("")
    before = snapshot(loaded)
    SAID.clear()
    assert published(loaded, dry_run=True) is Exit.ACCOUNTED
    assert snapshot(loaded) == before and aside(loaded) == {}
    said = "\n".join(SAID)
    assert f"{A} is published and would be released" in said and f"{C} would be published" in said
    assert f"{B} would be set aside" in said and f"{D} would be refused" in said
    assert set(outcomes(loaded, NAME).values()) == {"skipped"} and end(loaded)["found"] == 5


def snapshot(loaded):
    return {
        path: (path.read_bytes(), path.stat().st_ino)
        for top in (mirror_folder(loaded), holding(loaded, "main"))
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def test_a_file_that_is_published_already_is_let_go(loaded):
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    put(loaded, A)
    assert published(loaded) is Exit.ACCOUNTED
    assert in_holding(loaded) == [] and records(loaded, NAME, "file")[-1]["action"] == "released"


def test_the_last_copy_of_a_file_that_the_mirror_lost_is_not_let_go(loaded):
    """M6: listed with the same hash is not enough, it has to be there; it is uploaded again."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    (mirror_folder(loaded) / layout.data_folder("", MONTH) / A).unlink()
    put(loaded, A)
    assert published(loaded) is Exit.ACCOUNTED
    assert records(loaded, NAME, "file")[-1]["action"] == "restored" and in_holding(loaded) == []
    assert_whole(loaded, MONTH)


def test_a_file_that_lies_there_with_another_size_is_mended(loaded):
    """M6: what is damaged there is moved among the failed files, and ours takes its place."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    there = mirror_folder(loaded) / layout.data_folder("", MONTH) / A
    there.write_bytes(there.read_bytes()[:100])
    put(loaded, A)
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH)
    settings, here = loaded.mirror()
    (damaged,) = (here.path(settings.store.root) / settings.failed / "sas").iterdir()
    assert damaged.stat().st_size == 100 and "is damaged" in alerts(loaded)[0]


# -- what is not


def test_names_of_no_grammar_stop_nothing_and_are_told_once(loaded):
    """M9: odd names, other kinds, unknown radars, what is no regular file: left, told once; everything else is published."""
    put(loaded, A)
    folder = holding(loaded, "main")
    odd = ["a;rm -rf $HOME.rawacf.bz2", "20209999.2200.01.sas.a.rawacf.bz2", "20200801.2200.01.sas.0.rawacf.h5", "x\n.rawacf.bz2"]
    odd += ["20200801.2200.01.zzz.a.rawacf.bz2", "20040801.2200.01.sas.a.rawacf.bz2"]
    for name in odd:
        (folder / name).write_bytes(b"x")
    (folder / os.fsdecode(b"\xff.rawacf.bz2")).write_bytes(b"x")
    (folder / B).symlink_to(folder / odd[1])
    (folder / C).mkdir()
    os.mkfifo(folder / D)
    for _ in range(2):
        assert published(loaded) is Exit.ACCOUNTED
    assert listed(loaded).keys() == {A} and len(in_holding(loaded)) == len(odd) + 4
    assert len(alerts(loaded)) == 1 and "9 files" in alerts(loaded)[0]
    assert end(loaded)["skipped"] == 9


def test_blocked_and_excluded_files_are_set_aside(loaded):
    on_mirror(mirror_folder(loaded), {})
    (mirror_folder(loaded) / layout.blocklist("") / "one.txt").write_bytes(f"{A}\r\n".encode())
    excluded = "20200801.2200.01.hje.a.rawacf.bz2"
    put(loaded, A, B)
    (holding(loaded, "main") / excluded).write_bytes(b"whatever")
    assert published(loaded) is Exit.LEFT_OVER
    assert aside(loaded) == {A: "blocked", excluded: "excluded"} and listed(loaded).keys() == {B}
    assert in_holding(loaded) == [] and len(alerts(loaded)) == 2
    assert outcomes(loaded, NAME) == {A: "quarantined", B: "done", excluded: "quarantined"}


def test_two_files_of_one_name_are_both_kept_aside(loaded):
    """M43: the second of a day does not overwrite the first."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    for salt in (1, 2):
        put(loaded, A, salt=salt)
        published(loaded)
    _, here = loaded.mirror()
    found = [path for path in here.folder("set_aside").glob("conflict/20261120/*") if not path.name.endswith(".json")]
    assert len(found) == 2 and len({sha1(path) for path in found}) == 2
    for path in found:
        reason = json.loads(path.with_name(f"{path.name}.reason.json").read_bytes())
        assert reason["details"]["there_sha1"] == listed(loaded)[A] and reason["details"]["sha1"] == sha1(path)
    assert_whole(loaded, MONTH)


def test_young_files_wait(tmp_path):
    loaded = made(tmp_path, ["mirror.waiting_days=2"])
    young, old = "20261118.1201.00.sas.a.rawacf.bz2", "20261118.1200.00.sas.a.rawacf.bz2"
    put(loaded, young, old)
    assert published(loaded, clock=lambda: datetime(2026, 11, 20, 12, tzinfo=UTC)) is Exit.ACCOUNTED
    assert in_holding(loaded) == [young] and outcomes(loaded, NAME)[young] == "skipped"


def test_a_file_of_the_future_is_not_published(loaded):
    put(loaded, "20261120.1300.00.sas.a.rawacf.bz2")
    assert published(loaded) is Exit.ACCOUNTED
    assert len(in_holding(loaded)) == 1


def test_bad_files_are_stored_listed_and_set_aside(loaded):
    """M10, M11, M12: a bad file lies on the mirror's side and on the list of failed ones before it loses its place."""
    bad = {
        A: (b"", checks.EMPTY),
        B: (dmap_bytes(B)[:-30], checks.BAD_BZIP2),
        C: (bz2.compress(b"no records" * 50), checks.BAD_DMAP),
        D: (dmap_bytes("20200804.0000.00.sas.a.rawacf.bz2"), "wrong time"),
    }
    for name, (content, _) in bad.items():
        (holding(loaded, "main") / name).write_bytes(content)
    put(loaded, OTHER_MONTH)
    hashes = {name: sha1(holding(loaded, "main") / name) for name in bad}
    assert published(loaded) is Exit.LEFT_OVER
    settings, here = loaded.mirror()
    stored = here.path(settings.store.root) / settings.failed / "sas"
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == {name: content for name, (content, _) in bad.items()}
    failed = (mirror_folder(loaded) / layout.failed_list("")).read_text()
    assert failed == "".join(f"{hashes[name]}  {name} | {kind}\n" for name, (_, kind) in sorted(bad.items()))
    assert aside(loaded) == dict.fromkeys(bad, "failed") and in_holding(loaded) == []
    assert outcomes(loaded, NAME)[OTHER_MONTH] == "done"


def test_where_no_file_passes_its_checks_the_fault_may_be_ours(loaded):
    """P7: three bad files and no good one are kept and told once; with a good one beside them they are condemned."""
    bad = [f"20261101.{hour}00.00.sas.a.rawacf.bz2" for hour in ("00", "02", "04")]
    for name in bad:
        (holding(loaded, "main") / name).write_bytes(b"BZh9 and what a broken library makes of it")
    for _ in range(2):
        assert published(loaded) == Exit.LEFT_OVER
        assert in_holding(loaded) == bad and aside(loaded) == {}
    assert sum("3 files failed their checks and none passed" in told for told in alerts(loaded)) == 1
    put(loaded, "20261101.0600.00.sas.a.rawacf.bz2")
    assert published(loaded) == Exit.LEFT_OVER
    assert in_holding(loaded) == [] and list(listed(loaded, "202611")) == ["20261101.0600.00.sas.a.rawacf.bz2"]


def test_another_bad_file_of_the_same_name_is_stored_beside_the_first(loaded):
    for content in (b"one", b"two"):
        (holding(loaded, "main") / A).write_bytes(content)
        published(loaded)
    settings, here = loaded.mirror()
    stored = here.path(settings.store.root) / settings.failed / "sas"
    assert sorted(path.read_bytes() for path in stored.iterdir()) == [b"one", b"two"]
    assert len((mirror_folder(loaded) / layout.failed_list("")).read_text().splitlines()) == 2 and len(aside(loaded)) == 2


@pytest.mark.parametrize(("call", "ending"), [("store", ".part"), ("make_folder", "failed/sas"), ("store", "all_failed.txt.new")])
def test_a_bad_file_stays_until_its_record_is_confirmed(loaded, monkeypatch, call, ending):
    """M10: stored and listed first; if either fails it stays, and is no other file's trouble."""
    (holding(loaded, "main") / A).write_bytes(b"bad")
    install(monkeypatch, fails(call, Refused("403"), ending=ending))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A] and aside(loaded) == {} and outcomes(loaded, NAME) == {A: "kept"}


def test_content_that_failed_before_is_refused_without_a_new_check(loaded, monkeypatch):
    """M13: the exact pair of hash and name is refused; the same name with other content is a file like any other."""
    content = dmap_bytes(A)
    put(loaded, A)
    put(loaded, B)
    digest = sha1(holding(loaded, "main") / A)
    on_mirror(mirror_folder(loaded), {})
    failed = mirror_folder(loaded) / layout.failed_list("")
    failed.write_text(f"{digest}  {A} | an old reason\n{digest}  {B} | another file's hash\n")
    before = failed.read_bytes()
    assert published(loaded) is Exit.LEFT_OVER
    assert aside(loaded) == {A: "failed"} and listed(loaded).keys() == {B} and failed.read_bytes() == before
    (holding(loaded, "main") / A).write_bytes(dmap_bytes(A, salt=1))
    assert published(loaded) is Exit.ACCOUNTED
    assert listed(loaded)[A] != digest and content != dmap_bytes(A, salt=1)


# -- what the mirror says


def test_on_the_mirror_with_the_same_content_and_not_listed(loaded):
    """M3: it is compared where it lies, listed, and only then the local copy goes."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    there = mirror_folder(loaded) / layout.data_folder("", MONTH)
    (there / B).write_bytes(dmap_bytes(B))
    (there / C).write_bytes(dmap_bytes(C))
    put(loaded, B)
    put(loaded, C, salt=1)
    assert published(loaded) is Exit.LEFT_OVER
    assert records(loaded, NAME, "file")[-1]["action"] == "listed" and aside(loaded) == {C: "conflict"}
    assert listed(loaded).keys() == {A, B}, "whose content is right a person has to see"
    assert in_holding(loaded) == []


def test_what_a_touched_month_has_without_listing_it_is_checked_and_listed(loaded):
    """M3: a file on the mirror that no list names is mended, if it is good and may be there."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    there = mirror_folder(loaded) / layout.data_folder("", MONTH)
    (there / B).write_bytes(dmap_bytes(B))
    (there / C).write_bytes(b"junk")
    (there / D).write_bytes(dmap_bytes(D))
    (mirror_folder(loaded) / layout.blocklist("") / "one.txt").write_text(f"{D}\n")
    new = "20200805.2200.01.sas.a.rawacf.bz2"
    for _ in range(2):
        put(loaded, new)
        assert published(loaded) is Exit.ACCOUNTED
    assert listed(loaded).keys() == {A, B, new}
    assert [message for message in alerts(loaded) if "could not be listed" in message] == [
        f"2 files of {MONTH} are on the mirror and not in its list, and could not be listed: {C}, {D}"
    ]


def test_what_lies_on_the_mirror_unlisted_is_checked_too_before_it_is_listed(loaded):
    """M3, M12: the same content twice, there and here, is no check: who put it there may have checked nothing."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    for folder in (mirror_folder(loaded) / layout.data_folder("", MONTH), holding(loaded, "main")):
        (folder / B).write_bytes(b"junk")
    assert published(loaded) is Exit.LEFT_OVER
    assert listed(loaded).keys() == {A} and aside(loaded) == {B: "failed"} and in_holding(loaded) == []
    assert B in (mirror_folder(loaded) / layout.failed_list("")).read_text()


def test_unlisted_files_that_are_bad_keep_no_good_one_from_its_list(loaded, monkeypatch):
    """M3: of a hundred that are looked at, a hundred bad ones would be fetched by every run, and those behind them by none."""
    monkeypatch.setattr(strays, "MENDED_AT_ONCE", 1)
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    there = mirror_folder(loaded) / layout.data_folder("", MONTH)
    (there / B).write_bytes(b"junk")
    (there / C).write_bytes(dmap_bytes(C))
    opened: list[FaultyStore] = []
    for day in range(5, 9):
        put(loaded, f"202008{day:02}.2200.01.sas.a.rawacf.bz2")
        install(monkeypatch, opened=opened)
        assert published(loaded) is Exit.ACCOUNTED
        monkeypatch.undo()
        monkeypatch.setattr(strays, "MENDED_AT_ONCE", 1)
    assert C in listed(loaded) and B not in listed(loaded)
    fetched = [path for store in opened for call, paths in store.calls if call == "fetch" for path in paths]
    assert sum(path.endswith(B) for path in fetched) == 1
    (there / B).write_bytes(dmap_bytes(B))
    put(loaded, D)
    assert published(loaded) is Exit.ACCOUNTED and B in listed(loaded), "another content is looked at"


def test_an_odd_name_on_the_mirror_stops_nothing_and_is_told_once(loaded):
    """M9: bytes that are no text, or a new line, in a name that nobody lists."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    there = os.fsencode(mirror_folder(loaded) / layout.data_folder("", MONTH))
    for odd in (b"202008\xff.rawacf.bz2", b"202008\n.rawacf.bz2"):
        Path(os.fsdecode(there + b"/" + odd)).write_bytes(b"x")
    for name in (B, C):
        put(loaded, name)
        assert published(loaded) is Exit.ACCOUNTED
    assert listed(loaded).keys() == {A, B, C} and in_holding(loaded) == []
    assert len(alerts(loaded)) == 1 and r"\n" in alerts(loaded)[0] and r"\udcff" in alerts(loaded)[0]


def test_what_is_listed_and_gone_is_told_once(loaded):
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    (mirror_folder(loaded) / layout.data_folder("", MONTH) / A).unlink()
    for name in (C, D):
        put(loaded, name)
        published(loaded)
    assert len(alerts(loaded)) == 1 and A in alerts(loaded)[0]
    assert A in listed(loaded), "no line is ever dropped for that"


def test_a_name_in_a_line_that_is_refused_is_kept(loaded):
    """M23: a name that our own list has with two hashes is nobody's to decide here."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    path = mirror_folder(loaded) / layout.month_list("", MONTH)
    path.write_bytes(path.read_bytes() + b"0" * 40 + f"  {A}\n".encode())
    put(loaded, A, C)
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A] and b"0" * 40 in path.read_bytes() and listed(loaded).keys() == {B, C}


def test_a_month_without_a_list_stops_no_other(loaded):
    """M8: any month may begin; nothing asks for the host's own time or for the present month."""
    on_mirror(mirror_folder(loaded), {OTHER_MONTH: dmap_bytes(OTHER_MONTH)})
    put(loaded, A, "20261101.0000.00.sas.a.rawacf.bz2")
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, "202008", "202009", "202611")


@pytest.mark.parametrize("error", [Refused("403"), Taken("odd")])
def test_a_month_that_cannot_be_read_is_left_out_and_all_others_go_on(loaded, monkeypatch, error):
    """M5, M8: 403 is not 404: nothing is begun anew, and the other months do not wait for it."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    before = (mirror_folder(loaded) / layout.month_list("", MONTH)).read_bytes()
    put(loaded, B, OTHER_MONTH)
    install(monkeypatch, fails("names", error, ending="2020/08"))
    for _ in range(2):
        assert published(loaded) is Exit.LEFT_OVER
    assert (mirror_folder(loaded) / layout.month_list("", MONTH)).read_bytes() == before
    assert in_holding(loaded) == [B] and outcomes(loaded, NAME) == {B: "kept", OTHER_MONTH: "done"}
    assert len(alerts(loaded)) == 2 and "202008 cannot be published" in alerts(loaded)[0]
    assert "the publishing of main is not complete" in alerts(loaded)[1]
    monkeypatch.undo()
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH, "202009")


@pytest.mark.parametrize("ending", [".config", "blocklist", "2020/08"])
def test_a_list_that_may_not_be_read_is_not_an_empty_one(loaded, monkeypatch, ending):
    """M5, M15: blocklist, failed list, master list, month list: without them nothing is decided and nothing let go."""
    put(loaded, A)
    install(monkeypatch, fails("names", Refused("403"), ending=ending))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A] and outcomes(loaded, NAME) == {A: "kept"}
    assert not (mirror_folder(loaded) / "raw/2020/08").exists()


def test_a_list_that_came_cut_in_half_is_not_used(loaded, monkeypatch):
    """M7, M15: half a list is no list."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), B: dmap_bytes(B)})
    put(loaded, C)
    install(monkeypatch, cut(".hashes"))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [C] and listed(loaded).keys() == {A, B}


def test_a_mirror_whose_disk_is_gone_is_not_a_new_mirror(loaded):
    """M5: what we have published before and is not there any more was not lost for us to begin anew."""
    put(loaded, A)
    published(loaded)
    mirror_folder(loaded).rename(mirror_folder(loaded).with_name("elsewhere"))
    put(loaded, B)
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [B] and "is its disk mounted" in end(loaded)["reason"]
    mirror_folder(loaded).with_name("elsewhere").rename(mirror_folder(loaded))
    (mirror_folder(loaded) / layout.month_list("", MONTH)).unlink()
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [B] and "in which we wrote 1 lines" in end(loaded)["reason"]


@pytest.mark.parametrize("spelling", ["./raw/2020/08/202008.hashes", "./raw/202008.hashes"])
def test_a_list_that_the_master_list_names_and_that_is_gone_is_not_begun_anew(loaded, spelling):
    """M5: this holding directory has no journal of it, so who wrote it was another one, another machine, or all before us."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), OTHER_MONTH: dmap_bytes(OTHER_MONTH)})
    path = mirror_folder(loaded) / layout.master_list("")
    path.write_text(path.read_text().replace("./raw/2020/08/202008.hashes", spelling))
    (mirror_folder(loaded) / layout.month_list("", MONTH)).unlink()
    before = master(loaded)
    put(loaded, B)
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [B] and "the master list names" in end(loaded)["reason"] and master(loaded) == before
    assert not (mirror_folder(loaded) / layout.month_list("", MONTH)).exists()


def test_a_master_list_that_is_missing_is_made_of_all_months(loaded):
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A), OTHER_MONTH: dmap_bytes(OTHER_MONTH)}, master=False)
    put(loaded, B)
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, "202008", "202009")


# -- what fails on the way


def test_a_file_that_cannot_be_uploaded_is_no_other_files_trouble(loaded, monkeypatch):
    """M3: one that fails is kept, and what came is recorded all the same."""
    put(loaded, A, B, C)
    install(monkeypatch, fails("store", Refused("quota"), ending=f".{B}.part"))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [B] and listed(loaded).keys() == {A, C}
    monkeypatch.undo()
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH)


@pytest.mark.parametrize("ending", [".part", ".hashes.new", "master.hashes.new"])
def test_an_upload_that_is_not_what_was_sent_lets_go_of_nothing(loaded, monkeypatch, ending):
    """M2: what was written is looked at, of files and of lists; else the local copy stays."""
    put(loaded, A)
    install(monkeypatch, cut(ending, call="store"))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A]
    monkeypatch.undo()
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH)


@pytest.mark.parametrize("ending", [f"/{MONTH}.hashes", "master.hashes", f"{MONTH}.hashes.new"])
def test_a_rename_that_is_refused_lets_go_of_nothing(loaded, monkeypatch, ending):
    """M1, M2: the local copy goes only when the list that was read back names it and the master list has that."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    put(loaded, B)
    install(monkeypatch, fails("rename", Refused("403"), ending=ending))
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [B] and A in effective(loaded)
    monkeypatch.undo()
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH)


@pytest.mark.parametrize("call", ["names", "fetch", "store", "rename", "make_folder", "sha1"])
def test_a_mirror_that_cannot_be_reached_is_75_and_everything_stays(loaded, monkeypatch, call):
    """M30: what failed is no success; M15: nothing waits without end."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    (mirror_folder(loaded) / layout.data_folder("", MONTH) / D).write_bytes(dmap_bytes(D))
    put(loaded, B, C, D)
    opened: list[FaultyStore] = []
    install(monkeypatch, fails(call, HostDown("no answer")), opened=opened)
    assert published(loaded) is Exit.UNREACHABLE
    assert [each for each, _ in opened[0].calls].count(call) == 1, "whoever gives no answer is not asked again for each file"
    assert in_holding(loaded) == [B, C, D] and set(outcomes(loaded, NAME).values()) == {"kept"}
    assert end(loaded)["found"] == 3


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (fails("names", HostDown("gone")), "the publishing of main: gone"),
        (fails("names", Refused("403"), ending=".config"), "is not complete, and will be tried again: 403"),
        (fails("rename", Refused("403"), ending=".part"), "is not complete, and will be tried again: 1 files were kept"),
    ],
)
def test_a_mirror_that_takes_nothing_is_told_once_until_it_does(loaded, monkeypatch, fault, told):
    """M30: with exit codes that a timer takes for success, nobody would ever see that nothing is published any more."""
    put(loaded, A)
    with monkeypatch.context() as patch:
        install(patch, fault)
        published(loaded, dry_run=True)
        assert alerts(loaded) == []
        for _ in range(2):
            published(loaded)
            published(loaded, name="bas")
    assert len(alerts(loaded)) == 1 and told in alerts(loaded)[0]
    assert published(loaded) is Exit.ACCOUNTED
    put(loaded, B)
    install(monkeypatch, fault)
    published(loaded)
    assert len(alerts(loaded)) == 2


def test_a_file_that_changes_while_it_is_uploaded_is_not_published(loaded, monkeypatch):
    (path,) = put(loaded, A)
    real = bring.bring

    def changes(store, files):
        path.write_bytes(b"x" * path.stat().st_size)
        return real(store, files)

    monkeypatch.setattr(transaction.bring, "bring", changes)
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A] and not (mirror_folder(loaded) / layout.data_folder("", MONTH) / A).exists()


def test_a_file_that_is_replaced_before_it_is_let_go_stays(loaded, monkeypatch):
    (path,) = put(loaded, A)
    real = MirrorLists.replace_master

    def replaces(lists, new):
        path.unlink()
        path.write_bytes(dmap_bytes(A, salt=1))
        return real(lists, new)

    monkeypatch.setattr(MirrorLists, "replace_master", replaces)
    assert published(loaded) is Exit.LEFT_OVER
    assert in_holding(loaded) == [A] and listed(loaded).keys() == {A}
    assert published(loaded) is Exit.LEFT_OVER
    assert aside(loaded) == {A: "conflict"}


@pytest.mark.parametrize("holding_name", ["main", "bas"])
@pytest.mark.parametrize("name", [A, B])
def test_a_file_that_takes_the_name_of_one_that_is_set_aside_or_let_go_stays(loaded, monkeypatch, name, holding_name):
    """M1, M10: between the last look at many files and their removal all records are made durable, and that takes its time."""
    (mirror_folder(loaded) / layout.blocklist("")).mkdir(parents=True)
    (mirror_folder(loaded) / layout.blocklist("") / "one.txt").write_text(f"{A}\n")
    put(loaded, name, name=holding_name)
    newcomers = [dmap_file(holding(loaded, holding_name).parent / "new", name, salt=1)]
    real = summary.SummaryLog.sync

    def sync(log):
        if newcomers and records(loaded, NAME, "file"):
            newcomers.pop().rename(holding(loaded, holding_name) / name)
        real(log)

    monkeypatch.setattr(summary.SummaryLog, "sync", sync)
    published(loaded, name=holding_name)
    assert (holding(loaded, holding_name) / name).read_bytes() == dmap_bytes(name, salt=1)
    assert name in (listed(loaded) if name == B else aside(loaded)), "and the first one is where it belongs"


def test_asked_to_stop_it_changes_nothing_more(loaded):
    put(loaded, A, B)

    def work(job):
        job.requests.stop = True
        publish.publish(job, "main", None, None, False)

    code, _ = run(loaded, NAME, work)
    assert code is Exit.LEFT_OVER and in_holding(loaded) == [A, B] and end(loaded)["kept"] == 2


def test_asked_to_stop_between_two_files_it_changes_nothing_more(loaded, monkeypatch):
    put(loaded, A, B)
    asked = []

    def work(job):
        def check(path, name, digest):
            asked.append(name.text)
            job.requests.stop = True
            return digest

        monkeypatch.setattr(checks, "check", check)
        publish.publish(job, "main", None, None, False)

    code, _ = run(loaded, NAME, work)
    assert code is Exit.LEFT_OVER and asked == [A] and in_holding(loaded) == [A, B]
    assert end(loaded)["kept"] == 2 and end(loaded)["reason"] == "asked to stop" and alerts(loaded) == []


def test_the_record_of_a_file_is_durable_before_it_is_let_go(loaded, monkeypatch):
    """M1: killed by the end of the power, too: what is not recorded is still there."""
    put(loaded, A)
    (holding(loaded, "main") / B).write_bytes(b"bad")
    order = []
    sync, release = summary.SummaryLog.sync, place.release
    monkeypatch.setattr(summary.SummaryLog, "sync", lambda log: (order.append("sync"), sync(log)))
    monkeypatch.setattr(place, "release", lambda path: (order.append(path.name), release(path)))
    published(loaded)
    assert order[order.index(A) - 1] == "sync" and order[order.index(B) - 1] == "sync"


def test_an_alert_that_cannot_be_sent_stops_nothing(loaded):
    """M18: an alert is a record; nothing is sent from here, and nothing waits for that."""
    (holding(loaded, "main") / A).write_bytes(b"")
    put(loaded, B)
    published(loaded)
    assert [record["event"] for record in records(loaded, NAME)].count("alert") == 1 and listed(loaded).keys() == {B}


def test_nothing_is_lost_of_a_folder_that_is_shared_with_other_work(loaded):
    """M16: the work folder is not emptied; each run has a folder of its own in it, which it removes."""
    _, here = loaded.mirror()
    work = here.folder("work")
    work.mkdir(parents=True)
    (work / "somebody's file").write_text("x")
    put(loaded, A)
    published(loaded)
    assert [path.name for path in work.iterdir()] == ["somebody's file"]


# -- killed


class Scene:
    """A mirror with lists, and a holding with a file of each fate: new, bad, conflict, unlisted, gone, released, another month.

    It can be set again and again: a run that is killed is run anew, and compared with what there was before.
    """

    def __init__(self, root):
        self.loaded = made(root)
        self.top = Path(self.loaded.mirror()[1].roots["mirror"]).parent
        gone, conflict, released = (f"2020080{day}.0000.00.pgr.a.rawacf.bz2" for day in (5, 6, 7))
        on_mirror(mirror_folder(self.loaded), {name: dmap_bytes(name) for name in (A, gone, conflict, released)})
        there = mirror_folder(self.loaded) / layout.data_folder("", MONTH)
        (there / gone).unlink()
        (there / D).write_bytes(dmap_bytes(D))
        put(self.loaded, B, D, gone, released, OTHER_MONTH)
        put(self.loaded, conflict, salt=1)
        (holding(self.loaded, "main") / C).write_bytes(b"bad")
        self.everything, self.before = self._in_holding_and_aside()[0], effective(self.loaded)
        self.saved = root / "saved"
        shutil.copytree(self.top, self.saved)

    def set(self):
        shutil.rmtree(self.top)
        shutil.copytree(self.saved, self.top, copy_function=shutil.copy)
        shutil.rmtree(self.loaded.mirror()[1].state, ignore_errors=True)

    def _in_holding_and_aside(self):
        """The hashes of what lies in the holding directory with the names, and of what is set aside."""
        _, here = self.loaded.mirror()
        kept = {sha1(path): path.name for path in holding(self.loaded, "main").iterdir() if not path.name.startswith(".")}
        return kept, {sha1(path) for path in here.folder("set_aside").glob("*/*/*") if not path.name.endswith(".json")}

    def assert_nothing_lost(self):
        """Each file lies in the holding directory, or is aside, or on the mirror, listed, in a list that the master list has."""
        kept, put_aside = self._in_holding_and_aside()
        assert self.before.items() <= effective(self.loaded).items(), "a list became shorter"
        for digest, name in self.everything.items():
            if digest in kept or digest in put_aside:
                continue
            month, top = name[:6], mirror_folder(self.loaded)
            assert listed(self.loaded, month)[name] == digest == sha1(top / layout.data_folder("", month) / name)
            assert master(self.loaded)[layout.master_line(month)] == sha1(top / layout.month_list("", month))

    def assert_ended(self):
        """The state in which all ends."""
        assert in_holding(self.loaded) == []
        assert sorted(aside(self.loaded).values()) == ["conflict", "failed"]
        assert len(listed(self.loaded)) == 6 and len(listed(self.loaded, "202009")) == 1
        assert_whole(self.loaded, "202008", "202009")
        assert len((mirror_folder(self.loaded) / layout.failed_list("")).read_text().splitlines()) == 1
        self.assert_nothing_lost()


def effective(loaded):
    """The hashes that a reader finds for the month."""
    path = mirror_folder(loaded) / layout.month_list("", MONTH)
    path = path if path.exists() else path.with_name(f".{path.name}.old")
    return hash_lists.parse_month(path.read_bytes(), MONTH).hashes


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A kill loses nothing that was written, so nothing has to be synced here; and tiny files need no program to unpack them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(dmap, "LBZIP2", "none")
    return Scene(tmp_path)


@pytest.mark.parametrize("part", range(2))
def test_killed_after_every_call_of_the_store(scene, monkeypatch, part):
    """M1, M2, M7: wherever it dies, no file is lost or unlisted, no list is shorter; the next run ends it."""
    for number in range(part, 1000, 2):
        scene.set()
        with monkeypatch.context() as patch:
            opened: list[FaultyStore] = []
            install(patch, dies(number, "after"), opened=opened)
            try:
                published(scene.loaded)
            except Killed:
                pass
        scene.assert_nothing_lost()
        published(scene.loaded)
        scene.assert_ended()
        if not opened[0].fired:
            break
    assert 40 < number < 999


@pytest.mark.parametrize("part", range(4))
def test_killed_before_every_local_change(scene, part):
    """M1, M7: the process is gone before a change of a file system, and runs no more line."""
    for number in range(part, 1000, 4):
        scene.set()
        code = in_a_child(partial(published, scene.loaded), number)
        scene.assert_nothing_lost()
        published(scene.loaded)
        scene.assert_ended()
        if code != KILLED:
            break
    assert 100 < number < 999 and code == Exit.LEFT_OVER


KILLED = 99
CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir")


def in_a_child(work, number: int) -> int:
    """Run in a process of its own that ends before its n-th change of a file system; its exit code.

    What it does in a scratch folder nobody will ever look at.
    """
    child = os.fork()
    if child == 0:
        left = [number]

        def hook(event, arguments):
            is_write = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (event in CHANGES or is_write) and not any(skipped in str(arguments[0]) for skipped in ("/dev/null", "/lists.")):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(KILLED)

        sys.addaudithook(hook)
        try:
            os._exit(int(work()))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(98)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("journal_is_lost", [False, True])
def test_what_is_published_and_not_listed_is_found_without_its_local_copy(loaded, monkeypatch, journal_is_lost):
    """M1: killed when the file has its name and the list does not; then somebody takes the local copy away."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    put(loaded, B)
    install(monkeypatch, fails("store", Killed(), ending=".hashes.new"))
    with pytest.raises(Killed):
        published(loaded)
    monkeypatch.undo()
    (holding(loaded, "main") / B).unlink()
    if journal_is_lost:
        (loaded.mirror()[1].state / "publish.main.journal").unlink()
        put(loaded, C)
    assert published(loaded) is Exit.ACCOUNTED
    assert {A, B} <= listed(loaded).keys()
    assert_whole(loaded, MONTH)


def test_a_list_that_the_master_list_does_not_know_is_mended_without_a_local_copy(loaded, monkeypatch):
    """M2: the master list gets the hash of what the mirror holds, also when the run that wrote it is gone."""
    put(loaded, A)
    install(monkeypatch, fails("store", Killed(), ending="master.hashes.new"))
    with pytest.raises(Killed):
        published(loaded)
    monkeypatch.undo()
    (holding(loaded, "main") / A).unlink()
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, MONTH)
    assert published(loaded) is Exit.ACCOUNTED and records(loaded, NAME, "end")[-1]["found"] == 0


def test_a_journal_of_which_only_a_torn_line_is_left_takes_the_next_one(loaded, tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b'{"time": "2026')
    first = journal.Journal(path, lambda: datetime(2026, 11, 20, tzinfo=UTC))
    first.shorten()
    first.write(MONTH, "begun", lines=5)
    assert journal.Journal(path, lambda: datetime(2026, 11, 20, tzinfo=UTC)).lines(MONTH) == 5


def test_a_journal_on_a_disk_that_takes_a_line_in_pieces_has_it_whole(loaded, tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, bytes(content)[:7]))
    written = journal.Journal(tmp_path / "journal", lambda: datetime(2026, 11, 20, tzinfo=UTC))
    written.write(MONTH, "begun", lines=5)
    assert journal.Journal(tmp_path / "journal", lambda: datetime(2026, 11, 20, tzinfo=UTC)).lines(MONTH) == 5


def test_a_journal_with_a_torn_line_is_read(loaded):
    put(loaded, A)
    published(loaded)
    path = loaded.mirror()[1].state / "publish.main.journal"
    path.write_bytes(path.read_bytes() + b'{"month": "2020')
    put(loaded, B)
    assert published(loaded) is Exit.ACCOUNTED
    assert [json.loads(line)["stage"] for line in path.read_bytes().splitlines()] == ["done", "begun", "placed", "listed", "done"]
    assert json.loads(path.read_bytes().splitlines()[-1])["lines"] == 2


def test_more_files_than_a_batch(loaded, monkeypatch):
    monkeypatch.setattr(publish, "BATCH_FILES", 2)
    put(loaded, A, B, C, D, OTHER_MONTH)
    assert published(loaded) is Exit.ACCOUNTED
    assert_whole(loaded, "202008", "202009")
    assert len(listed(loaded)) == 4 and end(loaded)["done"] == 5


def test_two_holdings_publish_into_one_month(loaded):
    put(loaded, A)
    put(loaded, B, name="bas")
    assert published(loaded) is Exit.ACCOUNTED and published(loaded, name="bas") is Exit.ACCOUNTED
    assert listed(loaded).keys() == {A, B}
    assert_whole(loaded, MONTH)
