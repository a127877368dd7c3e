"""Files of a store into a holding directory: verified, resumed, never over another, and whole whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import broken_links
import faulty_store
import killed
import mirror_world
import pytest
import sftp_server
from faulty_store import cut, fails
from mirror_world import neighbour, outcomes, records

from dataflow.lib import place
from dataflow.lib.config import MARKER
from dataflow.lib.errors import BadFile, Exit, HostDown, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror import download, stores
from dataflow.mirror.job import Job
from dataflow.mirror.stores import paths
from dataflow.mirror.stores.directory import DirectoryStore

JOB = "mirror_test"
NAMES = [f"20201104.{hour:02}00.00.sas.a.rawacf.bz2" for hour in range(0, 24, 2)]
CONTENTS = {name: f"what {name} holds".encode() * 50 for name in NAMES}


@pytest.fixture
def config(tmp_path):
    made = mirror_world.world(tmp_path / "machines")
    for name, content in CONTENTS.items():
        there(made, name).write_bytes(content)
    return made


@pytest.fixture
def server(config):
    with sftp_server.running(neighbour(config, "bas")) as server:
        yield server


def there(config, name: str) -> Path:
    folder = neighbour(config, "bas") / "files"
    folder.mkdir(exist_ok=True)
    return folder / name


def holding(config) -> Path:
    return mirror_world.holding(config, "bas")


def holds(config) -> dict[str, bytes]:
    """What anybody sees of the holding directory, and all that is hidden in it."""
    return {path.name: path.read_bytes() for path in holding(config).iterdir()}


def parts(config) -> list[Path]:
    _, here = config.mirror()
    return sorted((here.folder("work") / "parts" / "test").iterdir())


def set_aside(config) -> list[Path]:
    _, here = config.mirror()
    return sorted(path for path in here.folder("set_aside").rglob("*") if path.is_file())


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def run(config, contents=CONTENTS, settings: StoreSettings | None = None, failures: dict | None = None, **fields) -> Exit:
    """Download files of the partner `bas`, which must have these contents."""

    def work(job: Job) -> None:
        store = job.open(settings or job.settings.partners["bas"].store)
        wanted = {name: (f"files/{name}", sha1(content)) for name, content in contents.items()}
        found = download.download(job, store, wanted, job.holding("bas"), action="fetched", source="bas")
        (failures if failures is not None else {}).update(found)

    return mirror_world.run(config, JOB, work, **fields)[0]


def test_files_come_into_the_holding_directory_whole_with_both_hashes_in_their_records(config):
    failures: dict[str, str] = {}
    assert run(config, failures=failures) == Exit.ACCOUNTED
    assert holds(config) == CONTENTS and failures == {} and parts(config) == []
    record = next(record for record in records(config, JOB, "file") if record["file"] == NAMES[0])
    content = CONTENTS[NAMES[0]]
    assert record["sha1"] == sha1(content) and record["sha256"] == hashlib.sha256(content).hexdigest()
    assert (record["outcome"], record["action"], record["source"]) == ("done", "fetched", f"bas:files/{NAMES[0]}")
    assert (record["destination"], record["bytes"]) == (str(holding(config) / NAMES[0]), len(content))
    _, here = config.mirror()
    assert (holding(config) / NAMES[0]).stat().st_mode & 0o777 == here.file_mode


def test_a_wrong_hash_is_fetched_anew_once_and_then_kept_with_both_hashes(config):
    """M24: nothing compared what was downloaded with the partner's hash, so that what was cut short went on to be published."""
    there(config, NAMES[0]).write_bytes(b"something else")
    failures: dict[str, str] = {}
    assert run(config, failures=failures) == Exit.LEFT_OVER
    assert holds(config) == {name: content for name, content in CONTENTS.items() if name != NAMES[0]}
    assert sha1(b"something else") in failures[NAMES[0]] and sha1(CONTENTS[NAMES[0]]) in failures[NAMES[0]]
    assert outcomes(config, JOB) == {name: "kept" if name == NAMES[0] else "done" for name in NAMES}
    assert parts(config) == [], "it is no beginning of anything"


def test_what_came_cut_short_once_is_fetched_anew(config, monkeypatch):
    opened: list = []
    faulty_store.install(monkeypatch, cut(NAMES[3], times=1), opened=opened)
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS
    assert [paths for call, paths in opened[0].calls if call == "fetch"][1:] == [[f"files/{NAMES[3]}"]]


def test_the_beginning_of_an_earlier_try_is_gone_on_with_and_a_wrong_one_is_not(config):
    part, wrong = (_part(config, name) for name in NAMES[:2])
    part.write_bytes(CONTENTS[NAMES[0]][:100])
    wrong.write_bytes(b"x" * 100)
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == CONTENTS and parts(config) == []


def test_nothing_is_visible_in_the_holding_directory_before_it_is_whole(config, monkeypatch):
    """M25: files were written under their final names where publishing looks, and half of one was recorded as failed."""
    seen = []
    real = download.checksum.hashes_on_disk

    def looking(path, algorithms):
        seen.append(holds(config))
        return real(path, algorithms)

    monkeypatch.setattr(download.checksum, "hashes_on_disk", looking)
    assert run(config) == Exit.ACCOUNTED
    assert len(seen) == len(NAMES) and all(each == {} for each in seen), "all are on the disk by then, and none has its name"


def test_the_same_name_with_the_same_content_is_done(config):
    (holding(config) / NAMES[0]).write_bytes(CONTENTS[NAMES[0]])
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == CONTENTS and parts(config) == []


def test_the_same_name_with_other_content_sets_the_newcomer_aside_and_overwrites_nothing(config):
    (holding(config) / NAMES[0]).write_bytes(b"what was there before")
    failures: dict[str, str] = {}
    assert run(config, failures=failures) == Exit.LEFT_OVER
    assert holds(config) == {**CONTENTS, NAMES[0]: b"what was there before"}
    newcomer, why = set_aside(config)
    assert newcomer.name == NAMES[0] and newcomer.read_bytes() == CONTENTS[NAMES[0]]
    reason = json.loads(why.read_bytes())
    assert reason["details"]["existing_sha256"] == hashlib.sha256(b"what was there before").hexdigest()
    assert reason["details"]["sha256"] == hashlib.sha256(CONTENTS[NAMES[0]]).hexdigest()
    assert reason["details"]["sha1"] == sha1(CONTENTS[NAMES[0]])
    assert outcomes(config, JOB)[NAMES[0]] == "quarantined" and list(failures) == [NAMES[0]]
    assert any(NAMES[0] in record["message"] for record in records(config, JOB, "alert"))


@pytest.mark.parametrize("error", [BadFile("name taken", "a folder lies there"), TryLater("no room"), OSError(28, "full")])
def test_a_newcomer_that_cannot_be_set_aside_is_kept_and_stops_nothing_else(config, monkeypatch, error):
    (holding(config) / NAMES[3]).write_bytes(b"of somebody else")

    def refuse(*arguments, **details):
        raise error

    monkeypatch.setattr(download.aside, "set_aside", refuse)
    assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {**CONTENTS, NAMES[3]: b"of somebody else"}
    assert {name for name, outcome in outcomes(config, JOB).items() if outcome == "kept"} == {NAMES[3]}


def test_what_is_not_there_or_is_no_file_is_kept_and_stops_nothing_else(config):
    there(config, NAMES[0]).unlink()
    there(config, NAMES[1]).unlink()
    there(config, NAMES[1]).symlink_to("/etc/passwd")
    failures: dict[str, str] = {}
    assert run(config, failures=failures) == Exit.LEFT_OVER
    assert sorted(failures) == NAMES[:2] and holds(config).keys() == set(NAMES[2:])


def test_a_folder_that_cannot_be_listed_keeps_its_files_only(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("names", stores.Refused("403"), ending="files"))
    assert run(config) == Exit.LEFT_OVER
    assert set(outcomes(config, JOB).values()) == {"kept"} and holds(config) == {}


def test_a_file_that_the_other_side_refuses_stops_nothing_else(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("fetch", stores.Refused("403"), ending=NAMES[0]))
    assert run(config) == Exit.LEFT_OVER
    assert outcomes(config, JOB) == {name: "kept" if name == NAMES[0] else "done" for name in NAMES}


def test_when_the_host_is_down_the_rest_is_kept_at_once_and_what_came_has_its_name(config, monkeypatch):
    monkeypatch.setattr(download, "BATCH_FILES", 4)
    opened: list = []
    faulty_store.install(monkeypatch, fails("fetch", HostDown("gone"), ending=NAMES[5]), opened=opened)
    assert run(config) == Exit.UNREACHABLE
    come = [name for name in NAMES[:8] if name != NAMES[5]]
    assert holds(config).keys() == set(come)
    assert outcomes(config, JOB) == {name: "done" if name in come else "kept" for name in NAMES}
    assert len([call for call, _ in opened[0].calls if call == "fetch"]) == 2, "nobody is asked in vain for the rest"


def test_asked_to_stop_it_ends_after_the_batch_in_hand(config, monkeypatch):
    monkeypatch.setattr(download, "BATCH_FILES", 4)
    told = []

    def work(job: Job) -> None:
        job.progress = lambda text, done, total: (told.append((text, done, total)), setattr(job.requests, "stop", True))
        wanted = {name: (f"files/{name}", sha1(content)) for name, content in CONTENTS.items()}
        store = job.open(job.settings.partners["bas"].store)
        failures = download.download(job, store, wanted, job.holding("bas"), action="fetched", source="bas")
        assert failures == dict.fromkeys(NAMES[4:], "asked to stop")

    code, job = mirror_world.run(config, JOB, work)
    assert code == Exit.LEFT_OVER and told == [("fetched from bas", 4, 12)]
    assert holds(config).keys() == set(NAMES[:4]) and job.counts == {"done": 4, "kept": 8}


def test_a_disk_without_room_keeps_everything_and_fetches_nothing(config, monkeypatch):
    """M40: 100 % read as 10, so that a full disk was seen as an empty one; what is free is asked of the system, in bytes."""
    config = mirror_world.world(config.root, ["mirror.roots.holding.reserve_bytes=10000"])
    free = 10000 + sum(map(len, CONTENTS.values()))
    monkeypatch.setattr(place, "free_bytes", lambda here, root: free - 1)
    assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {} and "GB free" in records(config, JOB, "file")[0]["reason"]
    monkeypatch.setattr(place, "free_bytes", lambda here, root: free)
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS


def test_a_file_for_which_there_is_no_room_holds_up_no_other(config, monkeypatch):
    """A size is what another machine tells: one that is wrong, or not to be believed, would stop all that comes after it."""
    config = mirror_world.world(config.root, ["mirror.roots.holding.reserve_bytes=1000"])
    real = DirectoryStore.names
    told = {NAMES[2]: 1 << 60}
    monkeypatch.setattr(DirectoryStore, "names", lambda store, folder: {**real(store, folder), **told})
    assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {name: content for name, content in CONTENTS.items() if name != NAMES[2]}
    assert outcomes(config, JOB)[NAMES[2]] == "kept"


def test_a_disk_that_is_not_mounted_gets_nothing(config):
    _, here = config.mirror()
    (here.roots["holding"] / MARKER).unlink()
    assert run(config) == Exit.LEFT_OVER and not (here.roots["holding"] / "BAS").exists()


def test_a_disk_that_is_unmounted_meanwhile_has_nothing_done_on_it(config, monkeypatch):
    _, here = config.mirror()
    real = place.sync_folders
    monkeypatch.setattr(
        place, "sync_folders", lambda folders: (real(folders), (here.roots["holding"] / MARKER).unlink(missing_ok=True))
    )
    assert run(config) == Exit.LEFT_OVER
    assert set(outcomes(config, JOB).values()) == {"kept"}


def test_parts_on_another_file_system_are_copied_and_verified(config, monkeypatch):
    def other_file_system(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    monkeypatch.setattr(place, "publish", lambda part, final: part.rename(final))
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS and parts(config) == []


def test_a_part_that_is_one_file_with_a_published_one_is_never_written_to(config):
    """Killed between giving a name and letting go of the part, both are one file; and then the list has another hash for it."""
    part = _part(config, NAMES[0])
    part.write_bytes(b"an older content")
    os.link(part, holding(config) / NAMES[0])
    assert run(config) == Exit.LEFT_OVER
    assert holds(config)[NAMES[0]] == b"an older content"


def test_what_lies_where_a_part_should_be_and_is_no_file_is_neither_followed_nor_waited_for(config, tmp_path):
    _, here = config.mirror()
    folder = here.folder("work") / "parts" / "test"
    folder.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"of somebody")
    planted = [folder / f".{name}.{sha1(CONTENTS[name])}" for name in NAMES[:3]]
    planted[0].symlink_to(victim)
    planted[1].symlink_to(tmp_path / "nowhere")
    os.mkfifo(planted[2])
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS
    assert victim.read_bytes() == b"of somebody" and not (tmp_path / "nowhere").exists()


def test_parts_that_nobody_asks_for_again_are_removed_in_time(config):
    """M33: what a run needed for itself lay under names that two runs could share, and was never removed."""
    old, young = _part(config, "20201103.0000.00.sas.a.rawacf.bz2"), _part(config, "20201103.0200.00.sas.a.rawacf.bz2")
    for path, days in ((old, 8), (young, 6)):
        path.write_bytes(b"a beginning")
        changed_s = mirror_world.NOW.timestamp() - days * 86400
        os.utime(path, (changed_s, changed_s))
    assert run(config, {}) == Exit.ACCOUNTED
    assert parts(config) == [young]


def test_jobs_of_different_locks_share_no_parts(config):
    """M42, M33: fixed names of work files, which runs that overlapped took from each other."""
    _, here = config.mirror()
    seen = []

    def work(job: Job) -> None:
        job.progress = lambda *_: seen.append(sorted(path.name for path in (here.folder("work") / "parts").iterdir()))
        wanted = {NAMES[0]: (f"files/{NAMES[0]}", sha1(CONTENTS[NAMES[0]]))}
        store = job.open(job.settings.partners["bas"].store)
        download.download(job, store, wanted, job.holding("bas"), action="fetched", source="bas")

    for lock_name in ("sync.bas", "pull.sas"):
        assert mirror_world.run(config, JOB, work, lock_name)[0] == Exit.ACCOUNTED
    assert seen == [["sync.bas"], ["pull.sas", "sync.bas"]]


def test_killed_anywhere_and_run_again_it_ends_the_same(config, tmp_path):
    (holding(config) / NAMES[0]).write_bytes(b"what was there before")
    wanted = {name: CONTENTS[name] for name in NAMES[:3]}
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "machines", saved, symlinks=True)

    def restore() -> None:
        shutil.rmtree(tmp_path / "machines")
        shutil.copytree(saved, tmp_path / "machines", symlinks=True)

    count = 0
    for number in killed.at_every_change(tmp_path / "machines", lambda: run(config, wanted), restore):
        count += 1
        whole = {name: content for name, content in holds(config).items() if not name.startswith(".")}
        assert all(content in (CONTENTS[name], b"what was there before") for name, content in whole.items()), number
        run(config, wanted)
        assert holds(config) == {**wanted, NAMES[0]: b"what was there before"}, number
        assert {path.read_bytes() for path in set_aside(config) if path.name == NAMES[0]} == {CONTENTS[NAMES[0]]}, number
        assert set(set_aside(config)) == {path for path in set_aside(config) if path.name.startswith(NAMES[0])}, number
        assert len(set_aside(config)) == 2, number
    assert count > 15


# -- over a real link


def test_over_sftp_files_come_whole(config, server):
    assert run(config, settings=server.settings()) == Exit.ACCOUNTED
    assert holds(config) == CONTENTS and server.connections() == 1


def test_a_link_that_is_cut_in_the_middle_of_a_file_is_gone_on_with(config, server, monkeypatch):
    large = {NAMES[0]: bytes(range(256)) * 65536}
    there(config, NAMES[0]).write_bytes(large[NAMES[0]])
    with monkeypatch.context() as context:
        broken_links.at_first_bytes(context, NAMES[0], lambda: broken_links.cut(server))
        assert run(config, large, server.settings(keep_alive_s=0.5)) == Exit.UNREACHABLE
    (part,) = parts(config)
    begun = part.stat().st_size
    assert 0 < begun < len(large[NAMES[0]]) and holds(config) == {}
    assert large[NAMES[0]].startswith(part.read_bytes())
    got = []
    real = paths.LocalPart.write
    monkeypatch.setattr(paths.LocalPart, "write", lambda part, piece: (got.append(len(piece)), real(part, piece))[1])
    assert run(config, large, server.settings()) == Exit.ACCOUNTED
    assert holds(config) == large and sum(got) == len(large[NAMES[0]]) - begun, "nothing came twice"


def test_a_server_that_stops_answering_is_given_up(config, server, monkeypatch):
    """M27: without time limits one dead session stopped a partner for ever, while jobs piled up behind it."""
    there(config, NAMES[0]).write_bytes(bytes(1 << 24))
    frozen = []

    def freeze() -> None:
        frozen.append(broken_links.standing_still(server))
        frozen[0].__enter__()

    broken_links.at_first_bytes(monkeypatch, NAMES[0], freeze)
    try:
        code = run(config, {NAMES[0]: bytes(1 << 24)}, server.settings(keep_alive_s=0.25))
    finally:
        frozen[0].__exit__(None, None, None)
    assert code == Exit.UNREACHABLE and outcomes(config, JOB) == {NAMES[0]: "kept"} and holds(config) == {}


def test_the_whole_of_a_transfer_has_a_time_limit(config, server):
    """M27: as before; a link that trickles for ever is given up too, and gone on with by the next run."""
    there(config, NAMES[0]).write_bytes(bytes(1 << 24))
    code = run(config, {NAMES[0]: bytes(1 << 24)}, server.settings(time_limit_s=0.01))
    assert code == Exit.UNREACHABLE and holds(config) == {}
    assert run(config, {NAMES[0]: bytes(1 << 24)}, server.settings()) == Exit.ACCOUNTED


def test_another_host_key_than_the_known_one_is_not_talked_to(config, server):
    known = server.secrets / "known_hosts"
    other = (server.secrets / "key.pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n")
    assert run(config, settings=server.settings()) == Exit.CONFIG
    assert holds(config) == {} and server.connections() == 0


def test_what_cannot_be_fetched_is_told_as_the_store_tells_it(config, monkeypatch):
    faulty_store.install(monkeypatch, fails("fetch", TryLater("its disk is on fire"), ending=NAMES[0]))
    run(config)
    assert [record["reason"] for record in records(config, JOB, "file") if record["outcome"] == "kept"] == ["its disk is on fire"]


def _part(config, name: str) -> Path:
    _, here = config.mirror()
    folder = here.folder("work") / "parts" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{name}.{sha1(CONTENTS.get(name, b''))}"
