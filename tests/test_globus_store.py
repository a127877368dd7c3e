"""A mirror on a Globus collection: what the service may answer, what becomes of tasks, and what is left when we are killed.

What every store must do is in ``test_stores``; here is what only this one can suffer. The service is ``globus_server``, or the
canned answers that come with the SDK.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import globus_sdk
import globus_server
import mirror_world
import pytest
import responses
import test_publish
from globus_sdk.testing import get_response_set, load_response
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData
from globus_server import LOCAL, MIRROR, SCOPE, TRANSFER, Fate, GlobusServer

from dataflow.lib import dmap
from dataflow.lib.config import Config
from dataflow.lib.errors import BadConfig, Exit, HostDown, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror import login
from dataflow.mirror.stores import Absent, Refused, Taken, globus, globus_tasks
from dataflow.mirror.stores.globus import GlobusStore
from dataflow.mirror.stores.globus_tasks import Result

KILL_EVERY = int(os.environ.get("GLOBUS_KILL_EVERY", "20"))
API = "https://transfer.api.globus.org/v0.10"
CANNED = get_response_set("transfer.operation_stat").metadata["endpoint_id"]


class Clock:
    """A time in which who sleeps is there at once."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.time_ns = time.time_ns

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


@pytest.fixture
def service(tmp_path, monkeypatch) -> Iterator[GlobusServer]:
    """A service whose collection is ``tmp_path/mirror``; nobody really waits for its tasks."""
    monkeypatch.setattr(globus, "RETRIES", 1)
    monkeypatch.setattr(globus, "LONGEST_RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(globus_tasks, "time", Clock())
    (tmp_path / "mirror").mkdir()
    (tmp_path / "work").mkdir()
    with globus_server.running(tmp_path / "mirror") as state:
        yield state


@pytest.fixture
def store(service, tmp_path) -> Iterator[GlobusStore]:
    with opened(service, tmp_path) as made:
        yield made


@contextlib.contextmanager
def opened(service: GlobusServer, tmp_path: Path, time_limit_s: float = 100_000.0) -> Iterator[GlobusStore]:
    made = GlobusStore(service.settings(tmp_path, time_limit_s=time_limit_s), tmp_path / "work")
    try:
        yield made
    finally:
        made.close()


def put(tmp_path: Path, path: str, content: bytes = b"content") -> Path:
    """A file that lies on the mirror."""
    there = tmp_path / "mirror" / path
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(content)
    return there


def local(tmp_path: Path, name: str, content: bytes = b"content") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "work" / "globus").glob("*/*.json"))


# What is not there, what is refused, and what is only silent


@pytest.mark.parametrize("act", ["403 EndpointPermissionDenied", "403 PermissionDenied"])
@pytest.mark.parametrize("ask", ["names", "size", "changed_s", "fetch", "sha1", "rename", "make_folder"])
def test_a_refusal_is_not_an_absence(ask, act, service, store, tmp_path):
    """M5: 403 from stat meant "does not exist", and the month's list was begun anew."""
    put(tmp_path, "raw/202611.hashes")
    service.fail("ls", act)
    service.fail("stat", act)
    if ask in ("fetch", "sha1"):
        wanted = {"raw/202611.hashes": tmp_path / "out"} if ask == "fetch" else ["raw/202611.hashes"]
        assert isinstance(getattr(store, ask)(wanted)["raw/202611.hashes"], Refused)
        return
    with pytest.raises(Refused, match="403"):
        getattr(store, ask)(*(("raw/202611.hashes", "raw/b") if ask == "rename" else ("raw",)))


@pytest.mark.parametrize("ask", ["names", "size"])
def test_nothing_is_absent_where_the_disk_is_gone(ask, service, store, tmp_path):
    """M5: a 404 of a store that is not mounted for a moment is no word on what lies on it."""
    (tmp_path / "mirror").rmdir()
    with pytest.raises(TryLater, match="is its disk mounted") as caught:
        getattr(store, ask)("raw/2026/11")
    assert not isinstance(caught.value, Absent)


def test_nothing_is_absent_below_a_folder_that_is_refused(service, store, tmp_path):
    """M5: absent is what a folder that can be looked at does not have."""
    put(tmp_path, "raw/a")
    service.fail("ls", "403 EndpointPermissionDenied", path="/raw")
    for ask in (store.size, store.names, store.make_folder):
        with pytest.raises(Refused):
            ask("raw/202611")


@pytest.mark.parametrize("act", ["404 EndpointNotFound", "502 ExternalError.DirListingFailed", "500 Oops"])
def test_another_failure_is_no_absence(act, service, store, tmp_path):
    """M5: a 404 may speak of the collection, and not of the path."""
    service.fail("ls", act, path="/raw")
    service.fail("stat", act, path="/raw")
    for ask in (store.names, store.size):
        with pytest.raises(TryLater) as caught:
            ask("raw")
        assert not isinstance(caught.value, Absent | Refused)


@pytest.fixture
def said() -> Iterator[responses.RequestsMock]:
    """The canned answers of the SDK: a test adds those that are given, in order."""
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def canned(said, tmp_path) -> Iterator[GlobusStore]:
    """A store that talks to them, and to nobody else."""
    token = TokenStorageData(TRANSFER, None, SCOPE, "good", "refresh", int(time.time()) + 172800, "Bearer")
    JSONTokenStorage(tmp_path / "t.json").store_token_data_by_resource_server({TRANSFER: token})
    settings = StoreSettings(
        "globus", "/", collection_id=CANNED, local_collection_id=LOCAL, client_id=CANNED, token_file=str(tmp_path / "t.json")
    )  # fmt: skip
    made = GlobusStore(settings, tmp_path)
    yield made
    made.close()


def test_the_canned_refusal_is_refused(said, canned):
    """M5: what the service really says where a path is not allowed."""
    load_response("transfer.operation_stat", case="permission_denied", requests_mock=said)
    with pytest.raises(Refused, match=r"EndpointPermissionDenied.*Path not allowed"):
        canned.size("foo")


def test_the_canned_absence_is_absent_below_a_folder_that_is_there(said, canned):
    """M5: what the service really says where nothing is."""
    load_response("transfer.operation_stat", case="not_found", requests_mock=said)
    said.get(f"{API}/operation/endpoint/{CANNED}/ls", json={"DATA": [], "DATA_TYPE": "file_list"})
    assert canned.size("foo") is None


def test_the_canned_absence_of_everything_is_no_absence(said, canned):
    """M5: nothing is there, not even the root."""
    load_response("transfer.operation_stat", case="not_found", requests_mock=said)
    said.get(f"{API}/operation/endpoint/{CANNED}/ls", status=404, json={"code": "ClientError.NotFound", "message": "no"})
    with pytest.raises(TryLater, match="is its disk mounted"):
        canned.size("foo")


def test_the_canned_file_has_its_size(said, canned):
    load_response("transfer.operation_stat", requests_mock=said)
    assert canned.size("file1.txt") == 4


def test_the_canned_submission_that_is_not_accepted_leaves_nothing_to_follow(said, canned, tmp_path):
    said.get(f"{API}/operation/endpoint/{CANNED}/stat", json={"type": "dir", "name": "/"})
    load_response("transfer.get_submission_id", requests_mock=said)
    load_response("transfer.submit_transfer", case="failure", requests_mock=said)
    failures = canned.store({"x": local(tmp_path, "x")})
    assert "NoTransferItems" in str(failures["x"]) and not list((tmp_path / "globus").glob("*/*.json"))


# Lists that are not whole


def test_a_listing_that_is_cut_in_half_is_no_list(service, store, tmp_path):
    put(tmp_path, "raw/a")
    put(tmp_path, "raw/b")
    service.fail("ls", "cut")
    with pytest.raises(HostDown):
        store.names("raw")


def test_a_folder_of_more_than_the_service_lists_is_not_believed(service, store, tmp_path, monkeypatch):
    monkeypatch.setattr(globus, "MOST_ENTRIES", 3)
    for name in "ab":
        put(tmp_path, f"raw/{name}")
    assert sorted(store.names("raw")) == ["a", "b"]
    put(tmp_path, "raw/.c")
    with pytest.raises(TryLater, match="not all"):
        store.names("raw")
    assert {str(store.fetch({f"raw/{name}": tmp_path / name for name in "abcd"})[f"raw/{name}"]) for name in "abcd"} == {
        "list raw: Globus gives 3 entries and not all; it must have fewer files"
    }


def test_a_listing_shorter_than_it_says_is_not_believed(service, store, tmp_path, monkeypatch):
    put(tmp_path, "raw/a")
    whole = globus_server._ls
    monkeypatch.setattr(globus_server, "_ls", lambda *given: {**whole(*given), "total": 2})
    with pytest.raises(TryLater, match="not all"):
        store.names("raw")


@pytest.mark.parametrize("way", ["fetch", "store"])
def test_a_file_of_which_half_arrives_is_a_failure(way, service, store, tmp_path):
    """That a task succeeded is not the whole truth."""
    service.fates = [Fate(halves="202611.hashes")]
    there, here = put(tmp_path, "raw/202611.hashes", b"x" * 100), local(tmp_path, "202611.hashes", b"y" * 100)
    files = {"raw/.202611.hashes.new": here} if way == "store" else {"raw/202611.hashes": tmp_path / "out"}
    failures = getattr(store, way)(files)
    assert list(failures) == list(files) and "50" in str(failures.popitem()[1])
    assert there.read_bytes() == b"x" * 100


# What becomes of a task


def test_each_end_of_a_task_has_its_name(service, tmp_path):
    """M15: a wait that says True for a failed task too is no wait."""
    found = {}
    for status in ("SUCCEEDED", "FAILED", "INACTIVE", "ACTIVE"):
        service.fates = [Fate(status, moves=1)]
        with opened(service, tmp_path) as store:
            document = globus_sdk.TransferData(LOCAL, MIRROR, skip_source_errors=True)
            document.add_item(str(local(tmp_path, "x")), "/x")
            with store._tasks.upload(document, status) as ended:
                found[status] = ended.result
    assert found == {
        "SUCCEEDED": Result.SUCCEEDED, "FAILED": Result.FAILED, "INACTIVE": Result.INACTIVE, "ACTIVE": Result.TIMED_OUT,
    }  # fmt: skip
    assert [task.status for task in service.tasks] == ["SUCCEEDED", "FAILED", "FAILED", "FAILED"], "what is given up is cancelled"


@pytest.mark.parametrize("status", ["FAILED", "INACTIVE", "ACTIVE"])
@pytest.mark.parametrize("way", ["fetch", "store"])
def test_a_task_that_does_not_succeed_has_moved_some_files_all_the_same(way, status, service, tmp_path):
    """M15: it is given up within its limit, cancelled, and each file is accounted for."""
    names = [f"f{number}" for number in range(7)]
    with opened(service, tmp_path) as store:
        for name in names:
            put(tmp_path, f"raw/{name}") if way == "fetch" else local(tmp_path, name)
        (tmp_path / "mirror" / "raw").mkdir(exist_ok=True)
        service.fates = [Fate(status, moves=5)]
        failures = getattr(store, way)({f"raw/{name}": tmp_path / name for name in names})
    assert sorted(failures) == ["raw/f5", "raw/f6"]
    words = {"FAILED": "failed", "INACTIVE": "inactive and was cancelled", "ACTIVE": "timed out and was cancelled"}
    assert words[status] in str(failures["raw/f5"]) and "no space" in str(failures["raw/f5"])
    assert service.tasks[0].status == "FAILED" and not notes(tmp_path)


def test_a_task_that_takes_its_time_is_waited_for(service, store, tmp_path):
    """It gets on, and so is given the time; with pauses of 15 s it takes more than STALL_LIMIT_S."""
    service.fates = [Fate(looks=100, speed=1)]
    assert store.store({"x": local(tmp_path, "x")}) == {}
    assert (tmp_path / "mirror" / "x").read_bytes() == b"content"
    assert globus_tasks.time.now_s > globus_tasks.STALL_LIMIT_S


@pytest.mark.parametrize(("speed", "limit_s", "taken_s"), [(0, 100_000, 900), (1, 2_000, 2_000), (0, 60, 60)])
def test_a_task_that_does_not_get_on_or_takes_too_long_is_given_up(speed, limit_s, taken_s, service, tmp_path):
    """M15: waiting was without bound, while all other holding directories waited for the lock."""
    service.fates = [Fate(looks=100_000, speed=speed)]
    with opened(service, tmp_path, time_limit_s=limit_s) as store:
        assert "timed out and was cancelled" in str(store.store({"x": local(tmp_path, "x")})["x"])
    assert taken_s - 16 <= globus_tasks.time.now_s <= taken_s and service.tasks[0].status == "FAILED"


def test_the_deadline_of_a_task_is_in_universal_time(service, tmp_path, monkeypatch):
    """M15: a deadline without a zone was over before the task began, west of Greenwich."""
    monkeypatch.setenv("TZ", "America/Regina")
    time.tzset()
    try:
        with opened(service, tmp_path, time_limit_s=3600) as store:
            assert store.store({"x": local(tmp_path, "x")}) == {}
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    deadline = datetime.fromisoformat(service.tasks[0].document["deadline"])
    assert timedelta(minutes=55) < deadline - datetime.now(UTC) < timedelta(minutes=65)


def test_a_task_that_cannot_be_cancelled_stays_ours(service, tmp_path):
    """M15: nothing is done beside a task that still works, now or in the next run; when it has ended, all goes on."""
    service.fates = [Fate("ACTIVE", moves=0, is_stubborn=True)]
    with opened(service, tmp_path) as store:
        assert "does not end" in str(store.store({"x": local(tmp_path, "x")})["x"])
        assert "does not end" in str(store.store({"y": local(tmp_path, "y")})["y"])
    assert len(notes(tmp_path)) == len(service.tasks) == 1
    service.tasks[0].fate.is_stubborn = False
    with opened(service, tmp_path) as store:
        assert store.store({"y": tmp_path / "y"}) == {}
    assert service.tasks[0].status == "FAILED" and not notes(tmp_path)


def test_skipped_files_are_failures_of_a_task_that_succeeded(service, store, tmp_path):
    service.fates = [Fate(skips="b"), Fate(skips="c", code="IO_ERROR"), Fate()]
    files = {name: local(tmp_path, name) for name in "abcdef"}
    assert {path: type(error) for path, error in store.store(files).items()} == {"b": Refused}
    assert {path: type(error) for path, error in store.store(files).items()} == {"c": TryLater}
    assert store.store(files) == {}


def test_one_file_that_is_gone_does_not_hold_up_the_others(service, store, tmp_path):
    put(tmp_path, "raw/a")
    failures = store.fetch({"raw/a": tmp_path / "a", "raw/gone": tmp_path / "gone", "nowhere/x": tmp_path / "x"})
    assert {path: type(error) for path, error in failures.items()} == {"raw/gone": Absent, "nowhere/x": Absent}
    assert (tmp_path / "a").read_bytes() == b"content" and not (tmp_path / "gone").exists()
    failures = store.store({"a": tmp_path / "a", "b": tmp_path / "no such file"})
    assert list(failures) == ["b"] and (tmp_path / "mirror" / "a").exists()


def test_tasks_are_written_as_this_sdk_has_them(service, store, tmp_path):
    """M19: documents of an older SDK were a TypeError; and whatever the default is, checksums are compared."""
    assert store.store({"x": local(tmp_path, "x")}) == {}
    store.remove("x")
    transfer, delete = (task.document for task in service.tasks)
    assert transfer["verify_checksum"] is True and "sync_level" not in transfer
    assert (transfer["source_endpoint"], transfer["destination_endpoint"], delete["endpoint"]) == (LOCAL, MIRROR, MIRROR)
    assert [item["source_path"] for item in transfer["DATA"]] == [str(tmp_path / "x")]
    assert [item["destination_path"] for item in transfer["DATA"]] == [item["path"] for item in delete["DATA"]] == ["/x"]
    assert transfer["label"].startswith("dataflow store ") and delete["label"].startswith("dataflow delete ")
    assert not transfer["notify_on_failed"] and not delete["notify_on_failed"]


@pytest.mark.parametrize("act", ["502 ExternalError.MkdirFailed", "502 ExternalError.MkdirFailed.PermissionDenied"])
def test_only_one_502_means_that_a_folder_is_there(act, service, store, tmp_path):
    """M19: any 502 was taken for "the folder exists"."""
    service.fail("mkdir", act)
    with pytest.raises(TryLater, match=r"502 ExternalError\.MkdirFailed"):
        store.make_folder("raw/2026/11")
    assert not (tmp_path / "mirror" / "raw").exists()


def test_a_folder_that_somebody_makes_meanwhile_is_as_good(service, store, tmp_path):
    """M19: the one 502 that says so."""
    service.fail("mkdir", "502 ExternalError.MkdirFailed.Exists", path="/raw")
    (tmp_path / "mirror" / "raw").mkdir()
    service.fail("stat", "404 NotFound", path="/raw", times=1)
    store.make_folder("raw/2026")
    assert (tmp_path / "mirror" / "raw" / "2026").is_dir()


# Calls that go wrong


def test_a_rename_that_fails_leaves_both_names(service, store, tmp_path):
    put(tmp_path, "a", b"1")
    service.fail("rename", "502 ExternalError.RenameFailed")
    with pytest.raises(TryLater, match="RenameFailed") as caught:
        store.rename("a", "b")
    assert not isinstance(caught.value, Absent | Taken)
    assert store.names("") == {"a": 1}


def test_a_rename_never_replaces(service, store, tmp_path):
    """The collection would: so it is not asked."""
    put(tmp_path, "a", b"1")
    there = put(tmp_path, "b", b"2")
    with pytest.raises(Taken):
        store.rename("a", "b")
    assert there.read_bytes() == b"2" and "rename" not in [call for call, _ in service.calls]


@pytest.mark.parametrize("act", ["drop before", "drop after"])
def test_a_rename_whose_answer_is_lost_has_happened_once(act, service, store, tmp_path):
    put(tmp_path, "a", b"1")
    service.fail("rename", act, times=1)
    store.rename("a", "b")
    assert store.names("") == {"b": 1}


@pytest.mark.parametrize("act", ["drop before", "drop after"])
@pytest.mark.parametrize("call", ["submission_id", "transfer", "task", "skipped_errors", "stat"])
def test_a_connection_that_drops_once_is_no_failure(call, act, service, store, tmp_path):
    service.fail(call, act, times=1)
    assert store.store({"x": local(tmp_path, "x")}) == {}
    assert len(service.tasks) == 1


@pytest.mark.parametrize("act", ["drop before", "drop after", "503 ServiceUnavailable"])
def test_a_service_that_is_gone_is_a_host_that_is_down(act, service, store, tmp_path):
    for call in ("ls", "stat", "mkdir", "rename", "submission_id", "transfer"):
        service.fail(call, act)
    for ask in (store.names, store.size, store.remove, store.make_folder):
        with pytest.raises(HostDown):
            ask("x")
    failures = {**store.store({"x": local(tmp_path, "x")}), **store.fetch({"y": tmp_path / "y"}), **store.sha1(["z"])}
    assert [type(failures[path]) for path in "xyz"] == [HostDown] * 3


def test_globus_connect_personal_that_does_not_run_is_a_host_that_is_down(service, store):
    service.fail("ls", "502 ExternalError.DirListingFailed.GCDisconnected")
    with pytest.raises(HostDown, match="GCDisconnected"):
        store.names("")


@pytest.mark.parametrize("call", ["transfer", "task"])
def test_a_service_that_is_gone_in_the_middle_finds_its_task_taken_on(call, service, store, tmp_path):
    """The task was started before the network went: it goes on, and is waited for when the network is back."""
    service.fail(call, "drop after", times=2)
    files = {"x": local(tmp_path, "x")}
    assert isinstance(store.store(files)["x"], HostDown)
    assert len(notes(tmp_path)) == 1
    assert store.store(files) == {}
    assert len(service.tasks) == 1 and not notes(tmp_path)


def test_hashes_are_of_what_lies_there(service, store, tmp_path, monkeypatch):
    monkeypatch.setattr(globus, "HASHED_AT_ONCE", 3)
    files = {f"raw/{number}": put(tmp_path, f"raw/{number}", bytes([number])) for number in range(7)}
    answers = store.sha1([*files, "raw/gone"])
    assert isinstance(answers.pop("raw/gone"), Absent)
    assert answers == {path: mirror_world.sha1(file) for path, file in files.items()}
    assert len(service.of("transfer")) == 3
    assert not list((tmp_path / "work").rglob("hashed"))


# Killed, and started again


@pytest.mark.parametrize("dead", ["0-dead", "z-dead"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_killed_at_any_call_is_started_once(moment, dead, service, tmp_path):
    """M14: a restarted run finds its own task, and takes it on, whichever of the two processes has the name that sorts first."""
    files = {f"raw/.{name}": local(tmp_path, name, name.encode() * 9) for name in ("a", "b", "c")}

    def upload() -> None:
        store = GlobusStore(service.settings(tmp_path), tmp_path / "work")
        assert store.store(files) == {}
        store.close()

    number = 1
    while True:
        (tmp_path / "mirror" / "raw").mkdir(exist_ok=True)
        service.tasks, service.fates = [], [Fate(looks=2)]
        was_killed = globus_server.killed(upload, service, number, moment)
        if was_killed:
            for folder in (tmp_path / "work" / "globus").iterdir():
                folder.rename(folder.with_name(dead))
            upload()
        assert len(service.tasks) == 1, f"{moment} call {number}"
        assert store_content(tmp_path) == {".a": b"a" * 9, ".b": b"b" * 9, ".c": b"c" * 9}
        assert not notes(tmp_path) and not list((tmp_path / "work" / "globus").iterdir())
        if not was_killed:
            break
        number += 1
    assert number > 7


def store_content(tmp_path: Path) -> dict[str, bytes]:
    """What lies in ``raw``, which is emptied."""
    found = {path.name: path.read_bytes() for path in (tmp_path / "mirror" / "raw").iterdir()}
    for name in found:
        (tmp_path / "mirror" / "raw" / name).unlink()
    return found


def left_behind(service: GlobusServer, tmp_path: Path, verb: str, number: int, **fate: object) -> globus_server.Task:
    """A task that a process started before it was killed, at its N-th call, and that still works."""
    service.fates = [Fate(looks=100_000, **fate)]

    def work() -> None:
        store = GlobusStore(service.settings(tmp_path), tmp_path / "work")
        if verb == "delete":
            store.remove("x")
        else:
            getattr(store, verb)({"x": tmp_path / "x"})

    assert globus_server.killed(work, service, number, "after")
    assert service.tasks[-1].status == "ACTIVE"
    return service.tasks[-1]


def test_an_upload_of_something_else_is_cancelled_before_anything_is_sent(service, tmp_path):
    """M14: two tasks that write the same name at once, one of them forgotten, would be the end of that file."""
    local(tmp_path, "x", b"old")
    old = left_behind(service, tmp_path, "store", 3)
    local(tmp_path, "x", b"newer")
    with opened(service, tmp_path) as store:
        assert old.status == "ACTIVE", "until somebody sends, it may be taken on"
        assert store.store({"x": tmp_path / "x"}) == {}
    assert old.status == "FAILED" and (tmp_path / "mirror" / "x").read_bytes() == b"newer"


@pytest.mark.parametrize("number", [2, 3])
def test_a_task_that_deletes_is_ended_before_anything_is_done(number, service, tmp_path):
    """M14: it would delete what the next run gives that name. Number 2: killed before the answer to the submission came."""
    put(tmp_path, "x")
    old = left_behind(service, tmp_path, "delete", number)
    with opened(service, tmp_path) as store:
        assert old.status == "FAILED" and store.size("x") == 7


def test_a_download_is_ended_and_begun_anew(service, tmp_path):
    """What it had read may be out of date."""
    there = put(tmp_path, "x", b"old")
    old = left_behind(service, tmp_path, "fetch", 3)
    there.write_bytes(b"newer")
    with opened(service, tmp_path) as store:
        assert old.status == "FAILED"
        assert store.fetch({"x": tmp_path / "x"}) == {}
    assert (tmp_path / "x").read_bytes() == b"newer"


def test_only_tasks_of_our_own_are_looked_for_and_by_their_exact_state(service, tmp_path):
    """M14: INACTIVE contains ACTIVE; a task of anybody blocked every run; one on a later page was never seen."""
    strangers = [
        globus_server.Task({"DATA_TYPE": "transfer", "DATA": [], "label": label}, Fate(looks=1000), status=status)
        for label in (None, "", "dataflow delete", "by hand")
        for status in ("ACTIVE", "INACTIVE")
    ]
    service.tasks += strangers
    put(tmp_path, "x")
    old = left_behind(service, tmp_path, "delete", 2)
    old.status = "INACTIVE"
    with opened(service, tmp_path) as store:
        assert [call for call, _ in service.calls].count("task_list") > 1
        assert old.status == "FAILED"
        assert store.store({"y": local(tmp_path, "y")}) == {}
    assert [task.status for task in strangers] == ["ACTIVE", "INACTIVE"] * 4


def test_a_task_of_another_process_that_lives_is_left_alone(service, store, tmp_path):
    """M14: publishing from one holding directory does not end what another one sends."""
    note = globus_tasks.Note("dataflow delete 1", "1", None, "task")
    (store._tasks.folder / "1.json").write_text(
        json.dumps({"label": note.label, "submission_id": "1", "content": None, "task_id": "t"})
    )
    service.tasks.append(globus_server.Task({"DATA_TYPE": "delete", "DATA": [], "label": note.label}, Fate(looks=9), "t"))
    with opened(service, tmp_path) as other:
        assert other.store({"y": local(tmp_path, "y")}) == {}
    assert service.tasks[0].status == "ACTIVE" and notes(tmp_path)
    (store._tasks.folder / "1.json").unlink()


def test_a_task_that_the_service_has_forgotten_is_no_trouble(service, tmp_path):
    put(tmp_path, "x")
    left_behind(service, tmp_path, "delete", 3)
    service.tasks.clear()
    with opened(service, tmp_path) as store:
        assert store.size("x") == 7 and not notes(tmp_path)


def test_an_earlier_upload_that_left_something_out_is_completed(service, tmp_path):
    files = {name: local(tmp_path, name) for name in "ab"}
    service.fates = [Fate("FAILED", moves=1)]

    def work() -> None:
        GlobusStore(service.settings(tmp_path), tmp_path / "work").store(files)

    assert globus_server.killed(work, service, 3, "after")
    with opened(service, tmp_path) as store:
        assert store.store(files) == {}
    assert [len(task.document["DATA"]) for task in service.of("transfer")] == [2, 1]


# The login


def test_without_a_login_nobody_is_asked(service, tmp_path, monkeypatch):
    """M17: in cron nobody answers: a run without tokens ends and says what to do."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    settings = service.settings(tmp_path)
    Path(str(settings.token_file)).unlink()
    with pytest.raises(BadConfig, match="dataflow mirror login"):
        GlobusStore(settings, tmp_path / "work")
    assert not service.calls


def test_a_token_file_that_others_may_read_is_not_used(service, tmp_path):
    """M17: the token was stored with the permissions that happened to be."""
    settings = service.settings(tmp_path)
    path = Path(str(settings.token_file))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(BadConfig, match=f"chmod 600 {path}"):
        GlobusStore(settings, tmp_path / "work")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": "9"}'])
def test_a_damaged_token_file_says_what_to_do(content, service, tmp_path):
    settings = service.settings(tmp_path)
    Path(str(settings.token_file)).write_text(content)
    with pytest.raises(BadConfig, match="remove it, then: dataflow mirror login"):
        GlobusStore(settings, tmp_path / "work")


def expire(settings: StoreSettings) -> Path:
    path = Path(str(settings.token_file))
    content = json.loads(path.read_text())
    content["data"]["DEFAULT"][TRANSFER]["expires_at_seconds"] = 1
    path.write_text(json.dumps(content))
    return path


def test_an_access_token_is_renewed_and_kept_for_us_alone(service, tmp_path):
    """M17: also what is written again later has mode 0600."""
    service.tokens.clear()
    settings = service.settings(tmp_path)
    path = expire(settings)
    before = os.umask(0)
    try:
        store = GlobusStore(settings, tmp_path / "work")
        assert store.names("") == {}
        store.close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600 and list(path.parent.iterdir()) == [path]
    assert next(iter(service.tokens)) in path.read_text()


def test_a_login_that_has_lapsed_says_so(service, tmp_path):
    service.refresh_tokens.clear()
    settings = service.settings(tmp_path)
    expire(settings)
    store = GlobusStore(settings, tmp_path / "work")
    with pytest.raises(BadConfig, match="dataflow mirror login"):
        store.names("")
    assert isinstance(store.store({"x": local(tmp_path, "x")})["x"], BadConfig)
    store.close()


def test_a_consent_that_is_missing_says_so(service, store):
    service.wanting = {MIRROR}
    with pytest.raises(BadConfig, match="dataflow mirror login"):
        store.names("")


def world_of(service: GlobusServer, tmp_path: Path) -> Config:
    """The shipped configuration with this service as the store of the mirror."""
    settings = service.settings(tmp_path)
    keys = ("kind", "root", "collection_id", "local_collection_id", "client_id", "token_file")
    words = ", ".join(f"{key}: {json.dumps(getattr(settings, key))}" for key in keys)
    return mirror_world.world(tmp_path / "world", [f"mirror.store={{{words}}}"])


def logged_in(service: GlobusServer, tmp_path: Path, monkeypatch, capsys, code: str | None = None) -> tuple[Exit, str]:
    """``dataflow mirror login`` with a person who opens each address that is printed; its exit code, and all that was shown."""
    shown = []

    def person(prompt: str = "") -> str:
        shown.append(capsys.readouterr().out)
        address = next(line.strip() for line in shown[-1].splitlines() if line.strip().startswith("http"))
        return code or globus_server.visit(address)

    monkeypatch.setattr("builtins.input", person)
    world = world_of(service, tmp_path)
    Path(str(service.settings(tmp_path).token_file)).unlink()
    exit_code, job = mirror_world.run(world, "mirror_login", login.login)
    records = json.dumps(mirror_world.records(world, "mirror_login"))
    return exit_code, "".join([*shown, capsys.readouterr().out, *mirror_world.SAID, records, *job.problems])


def test_a_person_logs_in(service, tmp_path, monkeypatch, capsys):
    """M17: the tokens are in a file of mode 0600 and nowhere else; no address but one, no code but one."""
    before = os.umask(0)
    try:
        code, shown = logged_in(service, tmp_path, monkeypatch, capsys)
    finally:
        os.umask(before)
    path = tmp_path / "tokens" / "globus.json"
    assert code == Exit.ACCOUNTED and path.stat().st_mode & 0o777 == 0o600 and list(path.parent.iterdir()) == [path]
    made = service.tokens | service.refresh_tokens - {"good", "refresh"}
    assert len(made) >= 4 and not [token for token in made if token != "good" and token in shown]
    assert shown.count(f"{service.url}v2/oauth2/authorize") == 1
    store = GlobusStore(StoreSettings(
        "globus", "/", collection_id=MIRROR, local_collection_id=LOCAL, client_id=globus_server.CLIENT, token_file=str(path)
    ), tmp_path / "work")  # fmt: skip
    assert store.names("") == {}
    store.close()


def test_a_collection_that_wants_its_own_consent_gets_it(service, tmp_path, monkeypatch, capsys):
    service.wanting = {MIRROR}
    code, shown = logged_in(service, tmp_path, monkeypatch, capsys)
    assert code == Exit.ACCOUNTED and shown.count(f"{service.url}v2/oauth2/authorize") == 2
    assert f"{MIRROR}/data_access" in next(iter(service.consents - {min(service.consents, key=len)}))


def test_a_wrong_code_is_told(service, tmp_path, monkeypatch, capsys):
    code, shown = logged_in(service, tmp_path, monkeypatch, capsys, code="wrong")
    assert code == Exit.CONFIG and "invalid_grant" in shown and not (tmp_path / "tokens" / "globus.json").exists()


def test_without_a_terminal_the_login_says_so(service, tmp_path, monkeypatch, capsys):
    """M17: nobody is there in cron."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        real = input
        monkeypatch.setattr(globus_server, "visit", lambda _: real())
        code, shown = logged_in(service, tmp_path, monkeypatch, capsys)
    assert code == Exit.CONFIG and "at a terminal" in shown


def test_a_store_of_another_kind_has_no_login(tmp_path):
    code, job = mirror_world.run(mirror_world.world(tmp_path), "mirror_login", login.login)
    assert code == Exit.CONFIG and "nothing to log in to" in job.problems[0]


# Publishing


@pytest.mark.parametrize("moment", ["before", "after"])
def test_publishing_killed_at_a_call_loses_nothing(moment, service, tmp_path, monkeypatch):
    """M1, M2, M7, M14: the service, and the process that publishes through it, end at any call; what is left is all there.

    Every KILL_EVERYth call, the two moments apart; with GLOBUS_KILL_EVERY=1 every one.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that was written
    monkeypatch.setattr(dmap, "LBZIP2", "none")
    scene = test_publish.Scene(tmp_path / "world")
    settings, here = scene.loaded.mirror()
    service.collections[MIRROR] = here.path(settings.store.root)
    over_globus = world_of(service, tmp_path)
    numbers = range(1 if moment == "before" else 1 + KILL_EVERY // 2, 10_000, KILL_EVERY)
    for number in numbers:
        scene.set()
        was_killed = globus_server.killed(lambda: test_publish.published(over_globus), service, number, moment)
        assert was_killed or number > 50
        scene.assert_nothing_lost()
        mirror_world.SAID.clear()
        test_publish.published(over_globus)
        assert test_publish.in_holding(scene.loaded) == [], (number, mirror_world.SAID)
        scene.assert_ended()
        assert all(task.status not in globus_tasks.RUNNING for task in service.tasks)
        if not was_killed:
            break
