"""`dataflow mirror verify`: what the lists say is held against what is there; nothing is changed, and only news is alerted."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import faulty_store
import mirror_world
import pytest
from faulty_store import Killed, fails
from mirror_world import NOW, SAID

from dataflow.lib.errors import Exit, HostDown, TryLater
from dataflow.mirror import layout, verify
from dataflow.mirror.stores import Refused
from dataflow.mirror.stores.directory import DirectoryStore

JOB = "mirror_verify"
ONE = "20200804.2200.01.mcm.a.rawacf.bz2"
TWO = "20200805.0000.01.sas.a.rawacf.bz2"
LATER = "20200901.0000.00.sas.a.rawacf.bz2"
CONTENTS = {name: f"what {name} holds".encode() for name in (ONE, TWO, LATER)}
NEW = "20200806.0000.00.sas.rawacf.bz2"


@pytest.fixture
def config(tmp_path):
    made = mirror_world.world(tmp_path / "machines")
    mirror_world.on_mirror(top(made), CONTENTS)
    age(made)
    return made


def top(config) -> Path:
    return mirror_world.mirror_folder(config)


def age(config, days: float = 3) -> None:
    """Make all files on the mirror older than what may still be on its way."""
    for path in top(config).rglob("*"):
        os.utime(path, times=((NOW - timedelta(days=days)).timestamp(),) * 2)


def month(config, text: str = "202008") -> Path:
    return top(config) / layout.data_folder("", text)


def master(config) -> Path:
    return top(config) / layout.master_list("")


def write(config, path: Path, content: bytes = b"what a test has put there", days: float = 3) -> None:
    path.write_bytes(content)
    os.utime(path, times=((NOW - timedelta(days=days)).timestamp(),) * 2)


def run(config, months=None, hashes=False, **fields) -> Exit:
    SAID.clear()
    return mirror_world.run(config, JOB, lambda job: verify.verify(job, months, hashes), **fields)[0]


def found(config) -> dict[str, list[str]]:
    """What the last run found, by kind."""
    return {r["kind"]: r["files"] for r in last_run(config) if r.get("action") == "found"}


def last_run(config) -> list[dict]:
    records = mirror_world.records(config, JOB)
    return records[max(number for number, record in enumerate(records) if record["event"] == "start") :]


def alerts(config) -> list[str]:
    return [record["message"] for record in mirror_world.records(config, JOB, "alert")]


def end(config) -> dict:
    return mirror_world.records(config, JOB, "end")[-1]


def snapshot(config) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in top(config).rglob("*") if path.is_file()}


# -- what it finds


def test_a_mirror_that_is_as_its_lists_say_is_found_so(config):
    before = snapshot(config)
    assert run(config) == Exit.ACCOUNTED and run(config, hashes=True) == Exit.ACCOUNTED
    assert SAID == [] and alerts(config) == [] and found(config) == {}
    assert (end(config)["done"], end(config)["kept"]) == (3, 0)
    assert snapshot(config) == before


def gone(config):
    (month(config) / ONE).unlink()
    return [ONE]


def unlisted(config):
    write(config, month(config) / NEW)
    return [NEW]


def no_list(config):
    write(config, month(config) / NEW)
    (month(config) / "202008.hashes").unlink()
    master(config).write_text("".join(line for line in master(config).read_text().splitlines(True) if "202008" not in line))
    return [ONE, TWO, NEW]


def empty(config):
    write(config, month(config) / ONE, bz2.compress(b""))
    return [ONE]


def stranger(config):
    write(config, month(config) / LATER)
    write(config, month(config) / "20200804.C0.mcm.fitacf.bz2")
    (month(config) / "special").mkdir()
    (month(config) / "\x1b[2J").write_bytes(b"")
    return ["\\x1b[2J", "20200804.C0.mcm.fitacf.bz2", LATER, "special"]


def refused(config):
    path = month(config) / "202008.hashes"
    path.write_text(path.read_text() + f"{'0' * 40} {NEW}\n")
    listed_in_master(config)
    return [f"line 3: not two spaces after the hash: {'0' * 40} {NEW}"]


def listed_in_master(config, text: str = "202008") -> None:
    """The master list learns the hash of a month's list as it is now."""
    sha1 = mirror_world.sha1(month(config, text) / f"{text}.hashes")
    lines = [line for line in master(config).read_text().splitlines(True) if text not in line]
    master(config).write_text("".join([*lines, f"{sha1}  {layout.master_line(text)}\n"]))


def other_master(config):
    path = month(config) / "202008.hashes"
    path.write_text(path.read_text() + f"{hashlib.sha1(b'').hexdigest()}  {NEW}\n")
    (month(config) / NEW).write_bytes(b"longer than nothing")
    was = next(line.split()[0] for line in master(config).read_text().splitlines() if "202008" in line)
    return [f"202008.hashes: {mirror_world.sha1(path)}, there {was}"]


def not_in_master(config):
    master(config).write_text("".join(line for line in master(config).read_text().splitlines(True) if "202008" not in line))
    return ["202008.hashes: it is not in there"]


def only_in_master(config):
    with master(config).open("a") as stream:
        stream.write(f"{'0' * 40}  ./raw/202010.hashes\n")
    return ["202010.hashes: there is no such list"]


def leftover(config):
    for name in (f".{NEW}.part", ".202008.hashes.new"):
        write(config, month(config) / name)
    write(config, top(config) / ".config/.master.hashes.old")
    write(config, top(config) / ".config/blocklist/.deleted.txt.new")
    return [".202008.hashes.new", f".{NEW}.part"]


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (gone, verify.GONE), (unlisted, verify.UNLISTED), (no_list, verify.NO_LIST), (empty, verify.EMPTY),
        (stranger, verify.STRANGER), (refused, verify.REFUSED), (other_master, verify.MASTER), (not_in_master, verify.MASTER),
        (only_in_master, verify.MASTER),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_found_told_and_left_as_it_is(config, spoil, kind):
    """M3, M6: files on the mirror that no list had, and listed ones that were gone, were never noticed."""
    expected = spoil(config)
    before = snapshot(config)
    assert run(config) == Exit.LEFT_OVER
    assert found(config) == {kind: expected}
    assert snapshot(config) == before
    assert end(config)["kept"] == len(expected)
    assert f"{kind}: {verify.MENDED_BY[kind]}" in SAID
    (alert,) = alerts(config)
    assert f"{kind}: {expected[0]}" in alert


def test_leftovers_of_killed_runs_are_found_wherever_they_may_lie(config):
    assert run(config) == Exit.ACCOUNTED
    expected = leftover(config)
    assert run(config) == Exit.LEFT_OVER
    records = [r for r in mirror_world.records(config, JOB, "action") if r["action"] == "found"]
    assert {r["month"]: r["files"] for r in records} == {
        "202008": expected,
        "the lists": ["sddata/.config/.master.hashes.old", "sddata/.config/blocklist/.deleted.txt.new"],
    }


def test_what_was_changed_just_now_may_be_on_its_way(config):
    write(config, month(config) / NEW, days=0.9)
    write(config, month(config) / f".{NEW}.part", days=0.9)
    assert run(config) == Exit.ACCOUNTED
    assert run(config, clock=lambda: NOW + timedelta(hours=4)) == Exit.LEFT_OVER
    assert found(config) == {verify.UNLISTED: [NEW], verify.LEFTOVER: [f".{NEW}.part"]}


def test_other_content_is_found_where_every_file_is_read(config):
    write(config, month(config) / ONE, CONTENTS[ONE][:-1] + b"S")
    before = snapshot(config)
    assert run(config) == Exit.ACCOUNTED, "the same size: only its hash tells"
    assert run(config, hashes=True) == Exit.LEFT_OVER
    (about,) = found(config)[verify.DIFFERENT]
    assert about.startswith(f"{ONE}: ") and hashlib.sha1(CONTENTS[ONE]).hexdigest() in about
    assert snapshot(config) == before
    (alert,) = alerts(config)
    assert alert.startswith("202008: 1 files are not what the list says")
    assert run(config, hashes=True) == Exit.LEFT_OVER
    assert len(alerts(config)) == 1, "told once"


def test_what_is_published_or_deleted_while_files_are_read_is_no_finding(config, monkeypatch):
    """Reading holds no lock: a list is compared with the master list as both are after that, not hours before it."""
    real = DirectoryStore.sha1

    def sha1(store, paths):
        if (month(config) / ONE).exists():
            (month(config) / ONE).unlink()
            mirror_world.on_mirror(
                top(config), {name: CONTENTS[name] for name in (TWO, LATER)} | {NEW: b"what was published meanwhile"}
            )
        return real(store, paths)

    monkeypatch.setattr(DirectoryStore, "sha1", sha1)
    assert run(config, hashes=True) == Exit.ACCOUNTED
    assert found(config) == {} and alerts(config) == []
    write(config, month(config) / NEW, b"what nobody has published")
    assert run(config, hashes=True) == Exit.LEFT_OVER and list(found(config)) == [verify.DIFFERENT]


def test_a_file_that_cannot_be_read_is_told_as_that_and_not_as_damaged(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("sha1", TryLater("an error of the disk"), ONE))
    assert run(config, hashes=True) == Exit.LEFT_OVER
    assert found(config) == {verify.UNREADABLE: [f"{ONE}: an error of the disk"]}


def test_a_mirror_that_goes_away_while_it_is_read_says_nothing_of_its_files(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("sha1", HostDown("no answer")))
    assert run(config, hashes=True) == Exit.UNREACHABLE
    assert found(config) == {} and alerts(config) == []
    assert "202008" not in remembered(config)


def test_a_refusal_is_not_taken_for_an_empty_folder_or_a_missing_list(config, monkeypatch):
    """M5: 403 meant that there was nothing."""
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("names", Refused("403"), "raw/2020/08"))
        assert run(config) == Exit.LEFT_OVER
    assert found(config) == {} and "202008 could not be looked at: 403" in SAID
    assert [r["month"] for r in mirror_world.records(config, JOB, "action")] == ["the lists", "202009"], (
        "the others are looked at"
    )
    assert alerts(config) == ["202008 could not be looked at: 403"]
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("fetch", Refused("403"), "master.hashes"))
        assert run(config) == Exit.LEFT_OVER
    assert found(config) == {}


def test_a_mirror_without_a_master_list_is_told(config):
    master(config).unlink()
    assert run(config) == Exit.LEFT_OVER
    assert SAID[0].startswith("there is no master list")
    assert found(config)[verify.MASTER] == ["202009.hashes: it is not in there"]


def test_the_other_spelling_of_the_master_list_is_as_good(config):
    master(config).write_text(master(config).read_text().replace("./raw/2020/08/", "./raw/").replace("./raw/2020/09/", "./raw/"))
    assert run(config) == Exit.ACCOUNTED


# -- what is told, and how often


def test_only_news_is_alerted(config):
    gone(config)
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert len(alerts(config)) == 1
    unlisted(config)
    run(config)
    assert alerts(config)[1].startswith(f"the mirror is not as its lists say, 1 new: 202008 {verify.UNLISTED}: {NEW}.")
    write(config, month(config) / ONE, CONTENTS[ONE])
    run(config)
    (month(config) / ONE).unlink()
    run(config)
    assert len(alerts(config)) == 3, "it had been mended, and is gone again"


def test_a_look_at_one_month_makes_nobody_forget_what_was_told_of_the_others(config):
    gone(config)
    run(config)
    assert run(config, ["202009"]) == Exit.ACCOUNTED
    assert run(config, ["202008"]) == Exit.LEFT_OVER and found(config) == {verify.GONE: [ONE]}
    run(config)
    assert len(alerts(config)) == 1


def test_of_a_month_that_is_gone_as_a_whole_not_every_name_is_told(config):
    contents = {f"202007{day:02}.0000.00.sas.a.rawacf.bz2": b"whatever was in there" for day in range(1, 32)}
    mirror_world.on_mirror(top(config), contents | CONTENTS)
    for name in contents:
        (month(config, "202007") / name).unlink()
    assert run(config) == Exit.LEFT_OVER
    assert any(said.startswith(f"202007: 31 {verify.GONE}: ") and said.endswith(" and 21 more") for said in SAID)
    assert len(found(config)[verify.GONE]) == 31 == end(config)["kept"]
    assert f"202007 {verify.GONE}: 31." in alerts(config)[0]


# -- the hashes of a whole mirror take days


def remembered(config) -> dict[str, str]:
    path = config.mirror()[1].state / "verified.json"
    return json.loads(path.read_text()) if path.exists() else {}


def looked_at(config) -> list[str]:
    return [r["month"] for r in last_run(config) if r.get("action") == "looked at" and r["hashed"]]


def test_what_was_read_longest_ago_is_read_first(config):
    assert run(config, ["202008"], hashes=True) == Exit.ACCOUNTED
    assert remembered(config) == {"202008": "2026-11-20T12:00:00.000000Z"}
    assert run(config, hashes=True, clock=lambda: NOW + timedelta(days=1)) == Exit.ACCOUNTED
    assert looked_at(config) == ["202009", "202008"]
    assert remembered(config) == dict.fromkeys(("202008", "202009"), "2026-11-21T12:00:00.000000Z")
    assert run(config) == Exit.ACCOUNTED
    assert "2026-11-21" in remembered(config)["202008"], "a look without hashes vouches for none"


def test_killed_it_goes_on_with_the_month_that_it_had_in_hand(config, monkeypatch):
    with monkeypatch.context() as patch:
        faulty_store.install(patch, fails("sha1", Killed(), LATER))
        with pytest.raises(Killed):
            run(config, hashes=True)
    assert list(remembered(config)) == ["202008"]
    assert run(config, hashes=True, clock=lambda: NOW + timedelta(hours=1)) == Exit.ACCOUNTED
    assert looked_at(config) == ["202009", "202008"]


def test_asked_to_stop_it_ends_and_says_what_is_left(config):
    def stopped(job):
        job.progress = lambda *_: setattr(job.requests, "stop", True)
        verify.verify(job, None, True)

    assert mirror_world.run(config, JOB, stopped)[0] == Exit.LEFT_OVER
    assert SAID[-1] == "asked to stop: 1 months were not looked at" and list(remembered(config)) == ["202008"]


def test_a_note_that_cannot_be_read_costs_only_time(config):
    (config.mirror()[1].state).mkdir(parents=True, exist_ok=True)
    for content in ("{", "[]", '{"202008": 5}'):
        (config.mirror()[1].state / "verified.json").write_text(content)
        assert run(config, hashes=True) == Exit.ACCOUNTED
        assert remembered(config).keys() == {"202008", "202009"}


def test_a_mirror_whose_disk_is_not_there_is_not_an_empty_mirror(config):
    _, here = config.mirror()
    shutil.move(here.roots["mirror"], here.roots["mirror"].with_name("unmounted"))
    here.roots["mirror"].mkdir()
    assert run(config) == Exit.LEFT_OVER
    assert "Is the disk mounted?" in SAID[-1] and found(config) == {}
