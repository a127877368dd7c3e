"""`dataflow mirror pull`: what is at the hub goes from there only after it is safe here, and a person is told of conflicts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import broken_links
import killed
import mirror_world
import pytest
import sftp_server
from faulty_store import FaultyStore, fails
from mirror_world import NOW, SAID, mirror_folder, neighbour, on_mirror, outcomes, records

from dataflow.lib import checksum, place
from dataflow.lib.context import Requests
from dataflow.lib.errors import Exit, HostDown, TryLater
from dataflow.mirror import download, layout, pull, stores

JOB = "mirror_pull"
RADAR = "mcm"
NAMES = [f"20261119.{hour:02}00.00.mcm.a.rawacf.bz2" for hour in range(0, 10, 2)]
CONTENTS = {name: f"what {name} holds".encode() * 20 for name in NAMES}
OTHERS = {"20261119.0000.00.sas.a.rawacf.bz2": b"of another radar", "20261119.0000.00.hal.rawacf.bz2": b"of another one"}


@pytest.fixture
def config(tmp_path):
    made = mirror_world.world(tmp_path / "machines")
    on_mirror(mirror_folder(made), {"20261101.0000.00.sas.a.rawacf.bz2": b"something that is published"})
    for name, content in {**CONTENTS, **OTHERS}.items():
        upload(made, name, content)
    return made


def upload(config, name: str, content: bytes, age_s: float = 3600.0) -> Path:
    """A file at the hub that was changed so long ago."""
    path = neighbour(config, "hub") / name
    path.write_bytes(content)
    os.utime(path, (NOW.timestamp() - age_s,) * 2)
    return path


def at_hub(config) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in neighbour(config, "hub").iterdir() if path.is_file()}


def holds(config) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in mirror_world.holding(config, "main").iterdir()}


def run(config, radar: str = RADAR, **fields) -> Exit:
    SAID.clear()
    return mirror_world.run(config, JOB, lambda job: pull.pull(job, radar), f"pull.{radar}", **fields)[0]


def alerts(config) -> list[str]:
    return [record["message"] for record in records(config, JOB, "alert")]


def removed(config) -> list[str]:
    return [record["file"] for record in records(config, JOB, "action") if record["action"] == "removed at the hub"]


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def publish(config, contents: dict[str, bytes]) -> None:
    """Put files on our mirror beside what is there."""
    on_mirror(mirror_folder(config), {"20261101.0000.00.sas.a.rawacf.bz2": b"something that is published", **contents})


def faults_of_hub(monkeypatch, *faults, also_ours: bool = False) -> list[FaultyStore]:
    opened: list[FaultyStore] = []
    real = stores.open_store

    def open_store(settings, here, work):
        store = real(settings, here, work)
        if (settings.root == "neighbours/hub") == also_ours:
            return store
        opened.append(FaultyStore(store, *faults))
        return opened[-1]

    monkeypatch.setattr(stores, "open_store", open_store)
    return opened


# -- what is taken and what is not


def test_a_radars_files_come_into_the_holding_directory_and_go_from_the_hub(config):
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == CONTENTS and at_hub(config) == OTHERS
    assert outcomes(config, JOB) == dict.fromkeys(NAMES, "done") and removed(config) == NAMES
    record = records(config, JOB, "file")[0]
    assert (record["action"], record["source"], record["sha1"]) == ("pulled", f"hub:{NAMES[0]}", sha1(CONTENTS[NAMES[0]]))
    assert record["destination"] == str(mirror_world.holding(config, "main") / NAMES[0]) and alerts(config) == []
    assert run(config) == Exit.ACCOUNTED and run(config, "sas") == Exit.ACCOUNTED
    assert len(at_hub(config)) == 1


def test_what_is_still_being_uploaded_is_left_there(config):
    """M44: a file that was being uploaded was hashed, and if it was the same at two looks it was deleted."""
    upload(config, NAMES[0], CONTENTS[NAMES[0]][:100], age_s=899)
    upload(config, NAMES[1], CONTENTS[NAMES[1]], age_s=-7200)
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(NAMES[2:])
    assert at_hub(config) == {**OTHERS, NAMES[0]: CONTENTS[NAMES[0]][:100], NAMES[1]: CONTENTS[NAMES[1]]}
    assert [outcomes(config, JOB)[name] for name in NAMES[:3]] == ["skipped", "skipped", "done"]
    upload(config, NAMES[0], CONTENTS[NAMES[0]], age_s=900)
    assert run(config) == Exit.ACCOUNTED and holds(config)[NAMES[0]] == CONTENTS[NAMES[0]]


@pytest.mark.parametrize("how", ["grows", "is touched", "is replaced"])
def test_what_changes_at_the_hub_while_it_is_pulled_is_left_there(config, monkeypatch, how):
    """M44: an upload that stood still for long, or a clock that is behind: then the second look shows it."""
    path = neighbour(config, "hub") / NAMES[0]
    real = download.download

    def changing(*arguments, **fields):
        failures = real(*arguments, **fields)
        status = path.stat()
        if how == "grows":
            path.write_bytes(CONTENTS[NAMES[0]] + b"more")
        if how == "is replaced":
            path.write_bytes(CONTENTS[NAMES[0]].upper())
        times = (status.st_atime, status.st_mtime + (1 if how == "is touched" else 0))
        os.utime(path, times)
        return failures

    monkeypatch.setattr(pull, "download", changing)
    assert run(config) == Exit.LEFT_OVER
    assert at_hub(config).keys() == {*OTHERS, NAMES[0]} and removed(config) == NAMES[1:]
    assert len(alerts(config)) == 1 and NAMES[0] in alerts(config)[0]
    monkeypatch.undo()
    code = run(config)
    if how == "is touched":
        assert code == Exit.ACCOUNTED and at_hub(config) == OTHERS
    else:
        assert code == Exit.LEFT_OVER and NAMES[0] in at_hub(config), "now it is a conflict"
    assert holds(config) == CONTENTS


def test_strangers_are_told_once_by_whichever_radar_and_never_touched(config):
    strange = {
        "README": b"1",
        "20261119.0000.00.mcm.a.rawacf": b"2",
        "20261119.0000.00.xyz.a.rawacf.bz2": b"3",
        "mcm\n; rm -rf": b"4",
    }
    strange["20010101.0000.00.mcm.rawacf.bz2"] = b"before there was rawacf"
    hidden = {".20261119.0000.00.mcm.a.rawacf.bz2.part": b"of somebody's rsync"}
    for name, content in {**strange, **hidden}.items():
        upload(config, name, content)
    (neighbour(config, "hub") / "20261119.2000.00.mcm.a.rawacf.bz2").symlink_to("/etc/passwd")
    for radar in (RADAR, RADAR, "sas"):
        assert run(config, radar) == Exit.ACCOUNTED
    assert strange.items() <= at_hub(config).items() and hidden.items() <= at_hub(config).items()
    assert holds(config).keys() == {*NAMES, "20261119.0000.00.sas.a.rawacf.bz2"}
    (message,) = alerts(config)
    assert message.startswith("6 things") and "README" in message and "\n" not in message


def test_a_radar_that_is_not_configured_is_answered_with_the_likely_one(config):
    code, job = mirror_world.run(config, JOB, lambda job: pull.pull(job, "mcn"))
    assert code == Exit.CONFIG and "did you mean 'mcm'" in job.problems[0] and at_hub(config).keys() == {*NAMES, *OTHERS}


# -- removal at the hub


def test_what_is_in_the_holding_directory_already_is_only_removed_at_the_hub(config, monkeypatch):
    (mirror_world.holding(config, "main") / NAMES[0]).write_bytes(CONTENTS[NAMES[0]])
    opened = faults_of_hub(monkeypatch)
    assert run(config) == Exit.ACCOUNTED and at_hub(config) == OTHERS and holds(config) == CONTENTS
    assert not any(NAMES[0] in paths for store in opened for call, paths in store.calls if call == "fetch")
    assert outcomes(config, JOB)[NAMES[0]] == "skipped" and removed(config) == NAMES


def test_a_name_that_a_killed_run_gave_is_made_durable_before_anything_is_removed(config, monkeypatch):
    """M41: to lie there is not enough; killed after the rename, the name may be in the page cache only."""
    for name, content in CONTENTS.items():
        (mirror_world.holding(config, "main") / name).write_bytes(content)
    synced: list = []
    real = checksum.sync_folder
    monkeypatch.setattr(checksum, "sync_folder", lambda folder: (synced.append((folder, len(at_hub(config)))), real(folder)))
    assert run(config) == Exit.ACCOUNTED and at_hub(config) == OTHERS
    assert (mirror_world.holding(config, "main"), len(NAMES) + len(OTHERS)) in synced


def test_what_is_on_our_mirror_already_is_only_removed_at_the_hub(config):
    publish(config, {NAMES[0]: CONTENTS[NAMES[0]]})
    assert run(config) == Exit.ACCOUNTED
    assert at_hub(config) == OTHERS and holds(config).keys() == set(NAMES[1:])
    assert outcomes(config, JOB)[NAMES[0]] == "skipped" and removed(config) == NAMES


def test_what_our_mirror_lists_and_does_not_have_is_pulled(config):
    publish(config, {NAMES[0]: CONTENTS[NAMES[0]]})
    (mirror_folder(config) / "raw/2026/11" / NAMES[0]).unlink()
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS and at_hub(config) == OTHERS


@pytest.mark.parametrize("where", ["holding", "mirror"])
def test_the_same_name_with_other_content_stays_on_both_sides_and_is_told_once(config, where):
    """M43: the mail that was promised was never sent, and a second conflict of a day overwrote the first one's copy."""
    other = b"of another content"
    if where == "holding":
        (mirror_world.holding(config, "main") / NAMES[0]).write_bytes(other)
    else:
        publish(config, {NAMES[0]: other})
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert at_hub(config) == {**OTHERS, NAMES[0]: CONTENTS[NAMES[0]]}
    assert holds(config).get(NAMES[0]) == (other if where == "holding" else None) and holds(config).keys() >= set(NAMES[1:])
    told = [message for message in alerts(config) if "other content" in message]
    assert len(told) == 1 and sha1(other) in told[0] and sha1(CONTENTS[NAMES[0]]) in told[0] and "dataflow" not in told[0]
    upload(config, NAMES[0], b"a third content")
    run(config)
    assert len([message for message in alerts(config) if "other content" in message]) == 2, "another conflict is news"


@pytest.mark.parametrize("when", ["read", "clear"])
def test_without_our_own_list_nothing_of_its_month_is_taken(config, monkeypatch, when):
    if when == "read":
        faults_of_hub(monkeypatch, fails("fetch", stores.Refused("403"), ending="202611.hashes"), also_ours=True)
    else:
        with (mirror_folder(config) / layout.month_list("", "202611")).open("a") as stream:
            stream.writelines(f"{sha1(CONTENTS[name])}  {name}\r\n" for name in NAMES)
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {} and at_hub(config) == {**CONTENTS, **OTHERS} and len(alerts(config)) == 1
    assert set(outcomes(config, JOB).values()) == {"kept"}


def test_what_did_not_come_is_not_removed(config, monkeypatch):
    """M41: the move into the holding directory was not looked at, and the file was deleted at the hub all the same."""
    faults_of_hub(monkeypatch, fails("fetch", TryLater("its disk"), ending=NAMES[0]))
    assert run(config) == Exit.LEFT_OVER
    assert at_hub(config) == {**OTHERS, NAMES[0]: CONTENTS[NAMES[0]]} and holds(config).keys() == set(NAMES[1:])


def test_nothing_is_removed_before_ours_is_durable_and_recorded(config, monkeypatch):
    """M41: as before; what is removed at the hub has its name here, and the record of it, before that."""
    seen = []
    real = FaultyStore.remove

    def remove(store, path):
        recorded = [each["file"] for each in records(config, JOB, "file") if each["outcome"] == "done"]
        seen.append((holds(config)[path] == CONTENTS[path], path in recorded))
        real(store, path)

    faults_of_hub(monkeypatch)
    monkeypatch.setattr(FaultyStore, "remove", remove)
    assert run(config) == Exit.ACCOUNTED and seen == [(True, True)] * len(NAMES)


def test_a_disk_without_room_leaves_everything_at_the_hub(config, monkeypatch):
    """M40: of the percentage of a full disk two characters were kept, so that 100 read as 10."""
    config = mirror_world.world(config.root, ["mirror.roots.staging.reserve_bytes=10000"])
    monkeypatch.setattr(place, "free_bytes", lambda here, root: 10001)
    assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {} and at_hub(config) == {**CONTENTS, **OTHERS} and removed(config) == []


def test_what_cannot_be_removed_at_the_hub_is_a_problem_and_stops_nothing_else(config, monkeypatch):
    faults_of_hub(monkeypatch, fails("remove", stores.Refused("read-only"), ending=NAMES[0]))
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert holds(config) == CONTENTS and at_hub(config) == {**OTHERS, NAMES[0]: CONTENTS[NAMES[0]]} and len(alerts(config)) == 1


@pytest.mark.parametrize("call", ["names", "changed_s", "sha1", "fetch", "remove"])
def test_a_hub_that_is_down_is_told_once_for_all_radars_and_nothing_is_lost(config, monkeypatch, call):
    """M30: nobody was told of a hub that was down."""
    with monkeypatch.context() as context:
        faults_of_hub(context, fails(call, HostDown("no route"), ending="" if call in ("names", "changed_s") else ".bz2"))
        for radar in (RADAR, RADAR, "sas"):
            assert run(config, radar) == Exit.UNREACHABLE
    assert len(alerts(config)) == 1 and "no route" in alerts(config)[0]
    assert {**holds(config), **at_hub(config)} == {**CONTENTS, **OTHERS}
    assert run(config) == Exit.ACCOUNTED and holds(config).items() >= CONTENTS.items()


def test_a_second_one_of_the_same_radar_waits_and_one_of_another_does_not(config):
    """M42: no lock, so that runs that overlapped spoilt each other's lists."""
    _, here = config.mirror()
    here.state.mkdir(parents=True, exist_ok=True)
    requests = Requests()
    with (here.state / f"lock.pull.{RADAR}").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(config, requests=requests, say=lambda _: setattr(requests, "stop", True)) == Exit.LEFT_OVER
        assert holds(config) == {} and run(config, "sas") == Exit.ACCOUNTED and len(holds(config)) == 1


# -- killed, and over a real link


def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(config, tmp_path):
    for name in NAMES[3:]:
        (neighbour(config, "hub") / name).unlink()
    (mirror_world.holding(config, "main") / NAMES[2]).write_bytes(CONTENTS[NAMES[2]])
    wanted = {name: CONTENTS[name] for name in NAMES[:3]}
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "machines", saved, symlinks=True)

    def restore() -> None:
        shutil.rmtree(tmp_path / "machines")
        shutil.copytree(saved, tmp_path / "machines", symlinks=True)

    count = 0
    for number in killed.at_every_change(tmp_path / "machines", lambda: run(config), restore):
        count += 1
        visible = {name: content for name, content in holds(config).items() if not name.startswith(".")}
        assert {**at_hub(config), **visible} == {**OTHERS, **wanted}, number
        assert run(config) == Exit.ACCOUNTED, number
        assert holds(config) == wanted and at_hub(config) == OTHERS, number
        assert alerts(config) == [], number
    assert count > 20


@pytest.fixture
def over_sftp(config):
    """The same, with the hub behind a real sshd."""
    with sftp_server.running(neighbour(config, "hub")) as server:
        given = {
            "kind": "sftp", "root": server.root, "address": "127.0.0.1", "port": server.port, "user": server.user,
            "key_file": server.secrets / "key", "known_hosts": server.secrets / "known_hosts",
            "keep_alive_s": 0.5, "connect_timeout_s": 2.0,
        }  # fmt: skip
        store = "mirror.hub.store={" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"
        yield server, mirror_world.world(config.root, [store])


def test_over_sftp_files_come_and_go_on_one_connection(over_sftp):
    server, config = over_sftp
    upload(config, NAMES[0], CONTENTS[NAMES[0]], age_s=10)
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(NAMES[1:]) and at_hub(config).keys() == {*OTHERS, NAMES[0]} and server.connections() == 1


def test_over_sftp_a_link_that_is_cut_loses_nothing(over_sftp, monkeypatch):
    server, config = over_sftp
    large = {NAMES[0]: bytes(range(256)) * 65536}
    upload(config, NAMES[0], large[NAMES[0]])
    with monkeypatch.context() as context:
        broken_links.at_first_bytes(context, NAMES[0], lambda: broken_links.cut(server))
        assert run(config) == Exit.UNREACHABLE
    assert NAMES[0] not in holds(config) and at_hub(config) == {**CONTENTS, **OTHERS, **large}
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {**CONTENTS, **large} and at_hub(config) == OTHERS


def test_over_sftp_a_hub_that_stops_answering_is_given_up(over_sftp, monkeypatch):
    """M27: a session that was dead, without time limits."""
    server, config = over_sftp
    real, frozen = FaultyStore.sha1, []

    def freezing(store, paths):
        frozen.append(broken_links.standing_still(server))
        frozen[-1].__enter__()
        return real(store, paths)

    real_open = stores.open_store
    monkeypatch.setattr(stores, "open_store", lambda *arguments: FaultyStore(real_open(*arguments)))
    monkeypatch.setattr(FaultyStore, "sha1", freezing)
    try:
        assert run(config) == Exit.UNREACHABLE
    finally:
        frozen[0].__exit__(None, None, None)
    assert at_hub(config) == {**CONTENTS, **OTHERS} and holds(config) == {}
