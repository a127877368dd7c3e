"""What the commands of the mirror stand on: their runner, their settings, their command line."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import mirror_world
import pytest
from mirror_world import NOW, dmap_bytes, dmap_file, holding, mirror_folder, neighbour, on_mirror, outcomes, records, run, world

from dataflow import cli
from dataflow.lib import config, ssh
from dataflow.lib.config import MARKER, Config
from dataflow.lib.errors import BadConfig, BadFile, Exit, HostDown, TryLater
from dataflow.mirror import command_line
from dataflow.mirror.job import Job

FIRST, SECOND = "20261101.1400.00.sas.a.rawacf.bz2", "20261101.1600.00.sas.a.rawacf.bz2"


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """A command tells its children the configuration through the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def loaded(tmp_path: Path) -> Config:
    return world(tmp_path / "world")


# -- the runner


def raises(error: Exception) -> Callable[[Job], None]:
    def work(job: Job) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda job: None, Exit.ACCOUNTED),
        (lambda job: job.file(FIRST, "done", "published"), Exit.ACCOUNTED),
        (lambda job: job.file(FIRST, "skipped", "left"), Exit.ACCOUNTED),
        (lambda job: job.file(FIRST, "kept", "kept"), Exit.LEFT_OVER),
        (lambda job: job.file(FIRST, "quarantined", "set aside"), Exit.LEFT_OVER),
        (lambda job: job.problem("a month cannot be read"), Exit.LEFT_OVER),
        (raises(TryLater("not now")), Exit.LEFT_OVER),
        (raises(PermissionError(13, "Permission denied")), Exit.LEFT_OVER),
        (raises(HostDown("nobody answers")), Exit.UNREACHABLE),
        (raises(BadConfig("a setting is wrong")), Exit.CONFIG),
        (raises(BadFile("bad", "a check that nobody caught")), Exit.BUG),
        (raises(ZeroDivisionError()), Exit.BUG),
    ],
)
def test_how_a_job_can_end(loaded: Config, work: Callable[[Job], None], code: Exit) -> None:
    assert run(loaded, "mirror_test", work)[0] is code
    start, *_, end = records(loaded, "mirror_test")
    assert (start["event"], start["host"], start["radar"]) == ("start", "mirror", "all")
    assert (end["event"], end["exit"]) == ("end", int(code))
    assert end["found"] == sum(end[word] for word in ("done", "kept", "quarantined", "skipped"))
    accounts = sum(end[word] for word in ("done", "kept", "quarantined", "skipped"))
    assert ("reason" in end) == (code is not Exit.ACCOUNTED and not accounts), "what no file explains has a reason"


def test_a_bug_is_told_with_its_traceback(loaded: Config) -> None:
    run(loaded, "mirror_test", raises(ZeroDivisionError("division by zero")))
    assert "ZeroDivisionError" in records(loaded, "mirror_test", "end")[0]["reason"]
    assert len(records(loaded, "mirror_test", "alert")) == 1


def test_a_job_waits_for_another_one_with_its_lock_and_says_for_whom(loaded: Config) -> None:
    _, here = loaded.mirror()
    here.state.mkdir(parents=True, exist_ok=True)
    said_before, worked = len(mirror_world.SAID), threading.Event()
    with (here.state / "lock.one").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("mirror_publish (process 1)")
        other.flush()
        waiting = threading.Thread(target=run, args=(loaded, "mirror_test", lambda job: worked.set(), "one"))
        waiting.start()
        while not any("waiting for mirror_publish (process 1)" in text for text in mirror_world.SAID[said_before:]):
            assert waiting.is_alive()
        assert not worked.is_set()
    waiting.join(30)
    assert worked.is_set()


def test_a_list_is_told_by_its_changes(loaded: Config) -> None:
    def told(found: list[str]) -> list[str]:
        news: list[str] = []
        run(loaded, "mirror_test", lambda job: news.extend(job.alert_changes("differences", found, "{count} files: {names}")))
        return news

    assert told(["b", "a", "a"]) == ["a", "b"]
    assert told(["a", "b"]) == []
    assert told(["b", "c"]) == ["c"]
    assert told([]) == []
    assert told(["b"]) == ["b"]
    assert [record["message"] for record in records(loaded, "mirror_test", "alert")] == [
        "2 files: a, b",
        "1 files: c",
        "1 files: b",
    ]


def test_a_condition_is_told_once_until_it_has_ended(loaded: Config) -> None:
    for holds in (True, True, False, True):
        run(loaded, "mirror_test", lambda job, holds=holds: job.alert_while("full", holds, "the disk is full"))
    assert len(records(loaded, "mirror_test", "alert")) == 2


def test_no_folder_is_made_where_a_disk_is_not_mounted(loaded: Config) -> None:
    _, here = loaded.mirror()
    (here.roots["holding"] / MARKER).unlink()
    assert run(loaded, "mirror_test", lambda job: job.folder("work").touch())[0] is Exit.LEFT_OVER
    assert not here.folder("work").exists()


def test_a_holding_directory_is_known_by_name_and_by_path(loaded: Config) -> None:
    found: list[Path] = []
    path = holding(loaded, "bas")
    run(loaded, "mirror_test", lambda job: found.extend([job.holding("bas"), job.holding(str(path))]))
    assert found == [path, path]
    assert run(loaded, "mirror_test", lambda job: job.holding("nowhere"))[0] is Exit.CONFIG
    _, here = loaded.mirror()
    (here.roots["holding"] / MARKER).unlink()
    assert run(loaded, "mirror_test", lambda job: job.holding("bas"))[0] is Exit.LEFT_OVER


def test_new_connections_of_the_mirror_are_counted_with_all_others(tmp_path: Path) -> None:
    """P6: also those that fail; used up means 75, and no more is tried."""
    store = "{kind: sftp, root: /x, address: 127.0.0.1, port: 9, user: x, key_file: /nowhere/key, known_hosts: /nowhere/known}"
    loaded = world(tmp_path / "world", [f"mirror.partners.bas.store={store}", "ssh.max_new_connections_per_minute=2"])
    settings, here = loaded.mirror()
    codes = [run(loaded, "mirror_test", lambda job: job.open(settings.partners["bas"].store) and None)[0] for _ in range(3)]
    assert codes == [Exit.CONFIG, Exit.CONFIG, Exit.UNREACHABLE]
    assert "2 new connections a minute to 127.0.0.1 are used up" in records(loaded, "mirror_test", "end")[-1]["reason"]
    with pytest.raises(HostDown):
        ssh.spend(here.machine_state, "127.0.0.1", 2)


# -- the settings


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("mirror.roots={}", "does not begin with the name of a root"),
        ("mirror.folders={}", "there must be a folder `work`"),
        ("mirror.holdings.bas=nowhere/BAS", "does not begin with the name of a root"),
        ("mirror.waiting_days=-1", "must be zero or more"),
        ("mirror.partners.bas.holding=bass", "did you mean 'bas'?"),
        ("mirror.partners={MIRROR: {name: x, holding: bas, store: {kind: directory, root: mirror}}}", "a partner is a word"),
        ("mirror.hub.holding=nowhere", "there is no folder 'nowhere'"),
        ("mirror.backfill.sources=[{name: x, partner: bass}]", "did you mean 'bas'?"),
        ("mirror.backfill.sources=[{name: bas, partner: bas, files_per_hour: 0}]", "must be at least 1"),
        ("mirror.store={kind: directory, root: /data/mirror}", "does not begin with the name of a root"),
        ("mirror.store={kind: sftp, root: /data}", "a store of kind sftp needs `address`"),
        ("mirror.store={kind: globus, root: data, collection_id: x}", "must be absolute"),
        ("mirror.store={kind: ftp, root: /data}", "must be one of"),
        ("mirror.partners.bas.store.address=../../etc", "cannot be one"),
        ("mirror.partners.bas.store.channels=0", "must be more than zero"),
        ("mirror.nothing=1", "unknown key"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_wrong(setting: str, complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint.replace("?", r"\?")):
        config.load(mirror_world.REPOSITORY / "config.yaml", overrides=[setting])


def test_a_flow_without_a_mirror_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mirror", "publish", "main", "--root", str(tmp_path), "--set", "mirror=null"]) == Exit.CONFIG
    assert "has no section `mirror`" in capsys.readouterr().err


# -- the command line


def words_of(loaded: Config) -> list[str]:
    more = [word for setting in loaded.overrides for word in ("--set", setting)]
    return ["--root", str(loaded.root), "--config", str(loaded.source), *more]


@pytest.fixture
def call(loaded: Config) -> Callable[..., int]:
    def called(*words: str) -> int:
        os.environ.pop(config.SET_VARIABLE, None)
        return cli.main([*words, *words_of(loaded)])

    return called


def test_every_verb_does_its_work(
    loaded: Config, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a holding directory onto the mirror, to the partner's differences and back off the mirror again."""
    on_mirror(mirror_folder(loaded), {})
    on_mirror(neighbour(loaded, "bas"), {SECOND: dmap_bytes(SECOND)})
    dmap_file(holding(loaded, "main"), FIRST)
    assert call("mirror", "publish", "main", "--dry-run") == 0 and (holding(loaded, "main") / FIRST).exists()
    assert call("mirror", "publish", "main") == 0 and not (holding(loaded, "main") / FIRST).exists()
    assert call("mirror", "sync", "bas", "--month", "202611") == 0
    assert call("mirror", "publish", "bas") == 0
    assert sorted(path.name for path in mirror_folder(loaded).glob("raw/2026/11/2*.bz2")) == [FIRST, SECOND]
    assert call("mirror", "compare", "bas", "--since", "202610") == 0
    assert call("mirror", "verify") == 0
    names_file = tmp_path / "list"
    names_file.write_text(f"{FIRST}\n")
    assert call("mirror", "delete", str(names_file)) == 0 and (mirror_folder(loaded) / "raw/2026/11" / FIRST).exists()
    capsys.readouterr()
    assert call("mirror", "delete", str(names_file), "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 1}
    assert not (mirror_folder(loaded) / "raw/2026/11" / FIRST).exists()
    assert call("backfill", "requests", "list") == 0
    assert outcomes(loaded, "mirror_publish") == {FIRST: "done", SECOND: "done"}


def test_pull_and_sort_special(loaded: Config, call: Callable[..., int], tmp_path: Path) -> None:
    on_mirror(mirror_folder(loaded), {})
    old = dmap_file(neighbour(loaded, "hub"), FIRST)
    os.utime(old, (NOW.timestamp() - 86400 * 30, NOW.timestamp() - 86400 * 30))
    assert call("mirror", "pull", "sas") == 0
    assert (holding(loaded, "main") / FIRST).exists() and not old.exists()
    assert call("mirror", "sort-special", str(holding(loaded, "main"))) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("mirror",), ("mirror", "nothing"), ("mirror", "publish"), ("mirror", "sync", "bas", "--month", "2026-11"),
        ("mirror", "sync", "bas", "--weekly", "--all"), ("mirror", "delete"), ("mirror", "sync", "bas", "--month", "209901"),
        ("backfill", "--from", "yesterday"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == Exit.CONFIG


@pytest.mark.parametrize(
    "words",
    [("mirror", "publish", "nowhere"), ("mirror", "sync", "nobody"), ("mirror", "compare", "nobody"), ("mirror", "pull", "xyz")],
)
def test_what_is_not_configured_ends_with_2(call: Callable[..., int], words: tuple[str, ...]) -> None:
    assert call(*words) == Exit.CONFIG


def test_months_are_counted_up_to_now_over_the_turn_of_a_year() -> None:
    assert command_line.months_since("202511", NOW)[:3] == ["202511", "202512", "202601"]
    assert command_line.months_since("202511", NOW)[-1] == "202611"
    assert command_line.months_since("202611", NOW) == ["202611"]
