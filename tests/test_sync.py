"""`dataflow mirror sync`: exact set algebra on lists that are not trusted, and nothing fetched that they do not both allow."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import broken_links
import faulty_store
import killed
import mirror_world
import pytest
import sftp_server
from faulty_store import cut, fails
from mirror_world import SAID, dmap_bytes, mirror_folder, neighbour, on_mirror, outcomes, records

from dataflow.lib.context import Requests
from dataflow.lib.errors import Exit, HostDown
from dataflow.mirror import layout, stores, sync
from dataflow.mirror.sync import months_to_sync

JOB = "mirror_sync"
MONTH = "202611"
HERE = [f"202611{day:02}.0000.00.sas.a.rawacf.bz2" for day in range(1, 4)]
THERE = [f"202611{day:02}.0000.00.hal.a.rawacf.bz2" for day in range(1, 6)]
CONTENTS = {name: f"what {name} holds".encode() for name in (*HERE, *THERE)}


@pytest.fixture
def config(tmp_path):
    """Our mirror has some files; `bas` has these and others."""
    made = mirror_world.world(tmp_path / "machines")
    on_mirror(mirror_folder(made), {name: CONTENTS[name] for name in HERE})
    on_mirror(neighbour(made, "bas"), CONTENTS)
    return made


def holds(config) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in mirror_world.holding(config, "bas").iterdir()}


def run(config, months=(MONTH,), **fields) -> Exit:
    SAID.clear()
    return mirror_world.run(config, JOB, lambda job: sync.sync(job, "bas", months), "sync.bas", **fields)[0]


def alerts(config) -> list[str]:
    return [record["message"] for record in records(config, JOB, "alert")]


def compared(config) -> dict:
    """The last record of a comparison."""
    return [record for record in records(config, JOB) if record.get("action") == "compared"][-1]


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def their_list(config, month: str = MONTH) -> Path:
    return neighbour(config, "bas") / layout.month_list("", month)


def our_list(config, month: str = MONTH) -> Path:
    return mirror_folder(config) / layout.month_list("", month)


def add(path: Path, *lines: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.writelines(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines)


def add_to_failed(config, *lines: str) -> None:
    add(mirror_folder(config) / layout.failed_list(""), *lines)


# -- what is fetched


def test_what_only_the_partner_lists_is_fetched_and_the_rest_is_not(config):
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {name: CONTENTS[name] for name in THERE}
    record = records(config, JOB, "file")[0]
    assert (record["action"], record["outcome"], record["sha1"]) == ("synced", "done", sha1(CONTENTS[record["file"]]))
    assert record["source"] == f"bas:raw/2026/11/{record['file']}"
    assert (compared(config)["listed"], compared(config)["month"], compared(config)["source"]) == (8, MONTH, "bas")
    assert alerts(config) == [], "nothing happened that a person has to know"


def test_what_waits_to_be_published_is_not_fetched_twice(config, monkeypatch):
    assert run(config) == Exit.ACCOUNTED
    opened: list = []
    faulty_store.install(monkeypatch, opened=opened)
    assert run(config) == Exit.ACCOUNTED
    fetched = [path for store in opened for call, paths in store.calls if call == "fetch" for path in paths]
    assert all(path.endswith(".hashes") for path in fetched) and alerts(config) == []


def test_a_name_that_waits_with_other_content_is_told_once_and_not_fetched(config):
    waiting = mirror_world.holding(config, "bas") / THERE[0]
    waiting.write_bytes(b"of another content")
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
        assert holds(config) == {**{name: CONTENTS[name] for name in THERE}, THERE[0]: b"of another content"}
        assert len(alerts(config)) == 1 and THERE[0] in alerts(config)[0]


def test_what_is_published_while_it_runs_is_not_fetched_again(config, monkeypatch):
    """M25: a file leaves the holding directory for the mirror after the lists were read: it is on one of both, at any moment."""
    assert run(config) == Exit.ACCOUNTED
    real = sync.differences_of_month

    def publishing(*arguments):
        (mirror_world.holding(config, "bas") / THERE[0]).unlink()
        return real(*arguments)

    monkeypatch.setattr(sync, "differences_of_month", publishing)
    assert run(config) == Exit.ACCOUNTED
    assert THERE[0] not in holds(config)


def test_a_failed_pair_is_not_fetched_again_whether_new_or_different(config):
    """M20: "failed" was taken from new and different names by a symmetric difference, so both were downloaded in every run."""
    changed = b"theirs is of another content"
    on_mirror(neighbour(config, "bas"), {**CONTENTS, HERE[0]: changed})
    add_to_failed(config, *(f"{sha1(content)}  {name} | Failed BZ2 integrity test" for name, content in (
        (THERE[0], CONTENTS[THERE[0]]), (HERE[0], changed)
    )))  # fmt: skip
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:])
    assert compared(config)["failed"] == 2 and "different" not in compared(config)


def test_a_pair_that_failed_twice_asks_for_nothing_that_the_partner_does_not_have(config):
    """M21: a pair on the failed list with two reasons counted as a match of both, and files were asked for that are nowhere."""
    gone = "20261110.0000.00.hal.a.rawacf.bz2"
    for reason in ("Failed BZ2 integrity test", "File contains no records (empty)"):
        add_to_failed(config, f"{sha1(b'gone')}  {gone} | {reason}", f"{sha1(CONTENTS[THERE[0]])}  {THERE[0]} | {reason}")
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:]) == outcomes(config, JOB).keys()


def test_another_failed_hash_of_the_same_name_hides_no_match(config):
    """M22: duplicates were found side by side after sorting; another failed hash of the name in between hid them."""
    digest, empty = sha1(CONTENTS[THERE[0]]), "File contains no records (empty)"
    for other in ("0" * 40, "f" * 40):
        add_to_failed(config, f"{other}  {THERE[0]} | {empty}")
    add_to_failed(config, f"{digest}  {THERE[0]} | {empty}", f"{'e' * 40}  {THERE[1]} | {empty}")
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:]), "other content of THERE[1] has failed, and this has not"


def test_a_name_with_two_hashes_at_the_partner_is_refused_and_told(config):
    """M23: it became "different" and "missing at the partner" at once: wrong mails, and never an end of them."""
    add(their_list(config), f"{'a' * 40}  {THERE[0]}", f"{'a' * 40}  {HERE[0]}")
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:]) and "different" not in compared(config)
    assert len(alerts(config)) == 1
    assert f"{THERE[0]} is listed with 2 hashes" in alerts(config)[0]


def test_a_blocked_name_is_not_fetched_whatever_ends_its_line(config):
    """M23: a line of the blocklist with a CR or more text was not recognised here, though publishing did."""
    add(
        mirror_folder(config) / layout.blocklist("") / "one.txt",
        f"{THERE[0]}\r\n".encode(),
        f"{THERE[1]}  see mail of May\n".encode(),
    )
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[2:]) and compared(config)["blocked"] == 2


def test_a_different_file_is_never_fetched_and_told_once(config):
    """M34: the same mails in every run."""
    on_mirror(neighbour(config, "bas"), {**CONTENTS, HERE[0]: b"other"})
    for _ in range(3):
        assert run(config) == Exit.ACCOUNTED
    assert HERE[0] not in holds(config)
    (message,) = alerts(config)
    assert HERE[0] in message and message.startswith("1 files") and "dataflow mirror compare bas" in message
    on_mirror(neighbour(config, "bas"), {**CONTENTS, HERE[0]: b"other", HERE[1]: b"other"})
    run(config)
    assert len(alerts(config)) == 2 and HERE[1] in alerts(config)[1] and HERE[0] not in alerts(config)[1]


def test_months_are_told_each_by_itself(config):
    """M34: a weekly run sees more than an hourly one, and neither may make the other tell what was told."""
    name = "20260105.0000.00.sas.a.rawacf.bz2"
    on_mirror(neighbour(config, "bas"), {**CONTENTS, name: b"other", HERE[0]: b"other"})
    on_mirror(mirror_folder(config), {**{each: CONTENTS[each] for each in HERE}, name: b"ours"})
    for months in ([MONTH], ["202601", MONTH], [MONTH], ["202601", MONTH]):
        run(config, months)
    assert len(alerts(config)) == 2


def test_excluded_radars_are_not_fetched_and_unknown_ones_are_told_once(config):
    """M34: a branch that "never happens" was reached whenever only excluded radars were missing."""
    excluded, unknown = "20261105.0000.00.hje.a.rawacf.bz2", "20261105.0000.00.xyz.a.rawacf.bz2"
    on_mirror(neighbour(config, "bas"), {**{name: CONTENTS[name] for name in HERE}, excluded: b"1", unknown: b"2"})
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {} and compared(config)["excluded"] == 1
    assert len(alerts(config)) == 1 and "xyz" in alerts(config)[0]


def test_a_name_that_lies_on_our_mirror_unlisted_with_other_content_is_told_once_and_not_fetched(config):
    """It would be fetched and set aside again by every run, each time with an alert."""
    lying = mirror_folder(config) / layout.data_folder("", MONTH)
    (lying / THERE[0]).write_bytes(b"something else")
    (lying / THERE[1]).write_bytes(CONTENTS[THERE[1]])
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:]), "what is the same content is compared and listed when it is published"
    assert len(alerts(config)) == 1 and THERE[0] in alerts(config)[0] and THERE[1] not in alerts(config)[0]


def test_a_folder_of_our_mirror_that_cannot_be_listed_leaves_its_month_out(config, monkeypatch):
    names = stores.directory.DirectoryStore.names
    seen = []

    def second_time(store, folder):
        seen.extend([folder] if folder == "sddata/raw/2026/11" else [])
        if seen.count("sddata/raw/2026/11") == 2:
            raise stores.Refused("403")
        return names(store, folder)

    monkeypatch.setattr(stores.directory.DirectoryStore, "names", second_time)
    assert run(config) == Exit.LEFT_OVER and holds(config) == {}
    assert "its folder on our mirror cannot be read: 403" in records(config, JOB, "end")[-1]["reason"]


# -- lists that are hostile, broken or cannot be read


HOSTILE = {
    "path": b"a" * 40 + b"  ../../../../etc/cron.d/20261101.0000.00.sas.a.rawacf.bz2\n",
    "absolute": b"a" * 40 + b"  /etc/passwd\n",
    "command": b"a" * 40 + b"  $(reboot).rawacf.bz2\n",
    "carriage return": b"a" * 40 + b"  20261109.0000.00.hal.a.rawacf.bz2\r\n",
    "other month": b"a" * 40 + b"  20261001.0000.00.hal.a.rawacf.bz2\n",
    "no day": b"a" * 40 + b"  20261131.0000.00.hal.a.rawacf.bz2\n",
    "two in one": b"a" * 40 + b"  20261108.0000.00.hal.a.rawacf.bz2" + b"b" * 40 + b"  20261107.0000.00.hal.a.rawacf.bz2\n",
    "hidden": b"a" * 40 + b"  .20261101.0000.00.hal.a.rawacf.bz2\n",
    "no text": bytes(range(256)) * 4 + b"\n",
    "very long": b"a" * 40 + b"  " + b"x" * 100_000_000 + b"\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_line_of_a_partner_is_refused_alone_and_told_once(config, kind):
    """M26: what a partner's list said went unseen into a batch of sftp."""
    first, others = their_list(config).read_bytes().split(b"\n", 1)
    their_list(config).write_bytes(first + b"\n" + HOSTILE[kind] + others)
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {name: CONTENTS[name] for name in THERE}
    assert len(alerts(config)) == 1 and "are not used" in alerts(config)[0] and len(alerts(config)[0]) < 2000
    assert compared(config)["refused"] >= 1


def test_a_name_in_a_refused_line_of_our_own_list_is_not_fetched(config):
    add(our_list(config), f"{sha1(CONTENTS[THERE[0]])}  {THERE[0]}\r\n".encode())
    assert run(config) == Exit.ACCOUNTED
    assert holds(config).keys() == set(THERE[1:]) and compared(config)["unclear"] == 1


@pytest.mark.parametrize("whose", ["sddata", ""])
def test_a_list_that_cannot_be_read_is_never_taken_for_an_empty_one(config, monkeypatch, whose):
    """M30: with our own list refused, all that the partner has seemed to be missing here; the run looked healthy all the same."""
    other = "20261001.0000.00.hal.a.rawacf.bz2"
    on_mirror(neighbour(config, "bas"), {**CONTENTS, other: b"of another month"})
    ending = "/".join(part for part in (whose, "raw/2026/11/202611.hashes") if part)
    with monkeypatch.context() as context:
        install_for(context, whose, fails("fetch", stores.Refused("403"), ending=ending))
        for _ in range(2):
            assert run(config, ["202610", MONTH]) == Exit.LEFT_OVER
    assert holds(config) == {other: b"of another month"}, "the month that can be read is synced"
    assert len(alerts(config)) == 1 and MONTH in alerts(config)[0] and "403" in alerts(config)[0]
    assert MONTH in records(config, JOB, "end")[-1]["reason"]
    assert run(config, ["202610", MONTH]) == Exit.ACCOUNTED and holds(config).keys() == {other, *THERE}


@pytest.mark.parametrize("path", [layout.blocklist(""), layout.failed_list("")])
def test_without_our_blocklist_or_failed_list_nothing_is_fetched(config, monkeypatch, path):
    """M30: a failed fetch of a list ended the run with status 0 and no mail."""
    add_to_failed(config, f"{'0' * 40}  {THERE[0]} | Failed BZ2 integrity test")
    call = "names" if path == layout.blocklist("") else "fetch"
    install_for(monkeypatch, "sddata", fails(call, stores.Refused("403"), ending=path))
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {} and len(alerts(config)) == 1


def install_for(monkeypatch, whose: str, *faults) -> None:
    """Faults of our own store (`sddata`, which is our tree), or of the partner's."""
    faulty_store.install(monkeypatch, *faults)
    faulty = stores.open_store

    def open_store(settings, here, work):
        is_ours = settings.root == "mirror/chroot"
        opened = faulty(settings, here, work)
        return opened if is_ours == bool(whose) else opened.store_

    monkeypatch.setattr(stores, "open_store", open_store)


def test_a_list_cut_short_on_its_way_is_not_used(config, monkeypatch):
    install_for(monkeypatch, "sddata", cut("202611.hashes"))
    assert run(config) == Exit.LEFT_OVER and holds(config) == {}


def test_a_list_that_our_master_names_and_that_is_not_there_is_not_an_empty_one(config):
    our_list(config).unlink()
    assert run(config) == Exit.LEFT_OVER
    assert holds(config) == {} and "dataflow mirror verify" in alerts(config)[0]


def test_a_month_that_we_have_nothing_of_is_fetched_whole(config):
    shutil.rmtree(mirror_folder(config) / "raw")
    (mirror_folder(config) / layout.master_list("")).unlink()
    assert run(config) == Exit.ACCOUNTED and holds(config) == CONTENTS


def test_a_partner_without_a_list_of_the_month_has_nothing_for_us(config):
    assert run(config, ["202001", MONTH]) == Exit.ACCOUNTED and alerts(config) == []


def test_a_partner_without_any_list_is_told_once_until_it_has_one(config):
    away = neighbour(config, "bas").with_name("away")
    neighbour(config, "bas").rename(away)
    neighbour(config, "bas").mkdir()
    for _ in range(2):
        assert run(config) == Exit.ACCOUNTED
    assert len(alerts(config)) == 1 and "is the disk of its mirror there?" in alerts(config)[0]
    neighbour(config, "bas").rmdir()
    away.rename(neighbour(config, "bas"))
    assert run(config) == Exit.ACCOUNTED and holds(config).keys() == set(THERE)


def test_a_file_that_the_partner_lists_and_does_not_have_is_kept_and_told_once(config):
    """M24: a missing file was no failure."""
    (neighbour(config, "bas") / "raw/2026/11" / THERE[0]).unlink()
    for _ in range(2):
        assert run(config) == Exit.LEFT_OVER
    assert holds(config).keys() == set(THERE[1:]) and outcomes(config, JOB)[THERE[0]] == "kept"
    assert len(alerts(config)) == 1


def test_a_partner_that_is_down_is_told_once_and_ends_with_75(config, monkeypatch):
    """M30: error stops returned status 0, so that a sync that failed for weeks looked healthy."""
    with monkeypatch.context() as context:
        install_for(context, "", fails("names", HostDown("no route")))
        for _ in range(2):
            assert run(config) == Exit.UNREACHABLE
    assert len(alerts(config)) == 1 and "no route" in alerts(config)[0]
    assert run(config) == Exit.ACCOUNTED
    install_for(monkeypatch, "", fails("names", HostDown("no route")))
    assert run(config) == Exit.UNREACHABLE and len(alerts(config)) == 2


def test_an_unknown_partner_is_answered_with_the_likely_one(config):
    code, made = mirror_world.run(config, JOB, lambda job: sync.sync(job, "baz", [MONTH]))
    assert code == Exit.CONFIG and "did you mean 'bas'" in made.problems[0]


def test_asked_to_stop_it_ends_after_the_month_in_hand(config):
    def stopping(job) -> None:
        job.progress = lambda *_: setattr(job.requests, "stop", True)
        sync.sync(job, "bas", [MONTH, "202601"])

    assert mirror_world.run(config, JOB, stopping)[0] == Exit.ACCOUNTED
    assert [record["month"] for record in records(config, JOB) if record.get("action") == "compared"] == [MONTH]


def test_a_second_one_of_the_same_partner_waits_and_one_of_another_does_not(config):
    """M27, M42: blocking locks without an end, or none; whoever waits says for whom and can be asked to stop."""
    _, here = config.mirror()
    here.state.mkdir(parents=True, exist_ok=True)
    requests, said = Requests(), []
    with (here.state / "lock.sync.bas").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code = run(config, requests=requests, say=lambda text: (said.append(text), setattr(requests, "stop", True)))
        assert code == Exit.LEFT_OVER and holds(config) == {} and "waiting for" in said[0]
        assert mirror_world.run(config, JOB, lambda job: sync.sync(job, "nssc", [MONTH]), "sync.nssc")[0] == Exit.ACCOUNTED


# -- which months


@pytest.mark.parametrize(
    ("now", "late_days", "months"),
    [
        ((2026, 11, 20), 7, ["202611"]),
        ((2026, 11, 7, 23, 59), 7, ["202610", "202611"]),
        ((2026, 11, 8), 7, ["202611"]),
        ((2026, 1, 1), 7, ["202512", "202601"]),
        ((2026, 1, 1), 0, ["202601"]),
        ((2024, 3, 31), 31, ["202402", "202403"]),
    ],
)
def test_early_in_a_month_the_one_before_is_synced_too(now, late_days, months):
    """M31: only one month, so that what came late waited for the weekly run."""
    assert months_to_sync(datetime(*now, tzinfo=UTC), late_days) == months


def test_months_are_those_of_utc():
    """M31: the month of the host's local time."""
    west = timezone(timedelta(hours=-6))
    assert months_to_sync(datetime(2026, 10, 31, 20, tzinfo=west), 0) == ["202611"]


def test_the_last_year_begins_with_the_same_month(config):
    months = months_to_sync(datetime(2026, 3, 31, tzinfo=UTC), 7, weekly=True)
    assert (months[0], months[-1], len(months)) == ("202503", "202603", 13) and months == sorted(set(months))


def test_without_months_those_of_the_clock_are_synced(config):
    late = "20261031.2200.00.hal.a.rawacf.bz2"
    on_mirror(neighbour(config, "bas"), {**CONTENTS, late: b"late"})
    assert run(config, None) == Exit.ACCOUNTED and late not in holds(config)
    assert run(config, None, clock=lambda: datetime(2026, 11, 3, tzinfo=UTC)) == Exit.ACCOUNTED
    assert holds(config)[late] == b"late"


# -- killed, and over a real link


def test_killed_anywhere_and_run_again_it_ends_the_same(config, tmp_path):
    on_mirror(neighbour(config, "bas"), {**{name: CONTENTS[name] for name in THERE[:2]}, HERE[0]: b"other"})
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "machines", saved, symlinks=True)

    def restore() -> None:
        shutil.rmtree(tmp_path / "machines")
        shutil.copytree(saved, tmp_path / "machines", symlinks=True)

    before = files_below(neighbour(config, "bas")) | files_below(mirror_folder(config))
    count = 0
    for number in killed.at_every_change(tmp_path / "machines", lambda: run(config), restore):
        count += 1
        assert run(config) == Exit.ACCOUNTED, number
        assert holds(config) == {name: CONTENTS[name] for name in THERE[:2]}, number
        assert any(HERE[0] in message for message in alerts(config)), f"told before it is remembered that it was: {number}"
    assert count > 15
    assert files_below(neighbour(config, "bas")) | files_below(mirror_folder(config)) == before, "neither mirror is changed"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def over_sftp(config):
    """The same, with `bas` behind a real sshd."""
    with sftp_server.running(neighbour(config, "bas")) as server:
        yield server, mirror_world.world(config.root, [settings_of(server)])


def settings_of(server, **others: object) -> str:
    given = {
        "kind": "sftp", "root": server.root, "address": "127.0.0.1", "port": server.port, "user": server.user,
        "key_file": server.secrets / "key", "known_hosts": server.secrets / "known_hosts",
        "keep_alive_s": 0.5, "connect_timeout_s": 2.0, **others,
    }  # fmt: skip
    return "mirror.partners.bas.store={" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"


def test_over_sftp_a_real_file_comes_on_one_connection_and_agrees(over_sftp):
    server, config = over_sftp
    real = {THERE[0]: dmap_bytes(THERE[0])}
    on_mirror(neighbour(config, "bas"), {**CONTENTS, **real})
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {**{name: CONTENTS[name] for name in THERE}, **real} and server.connections() == 1


def test_over_sftp_a_link_that_is_cut_is_gone_on_with_by_the_next_run(over_sftp, monkeypatch):
    server, config = over_sftp
    large = {THERE[0]: bytes(range(256)) * 65536}
    on_mirror(neighbour(config, "bas"), {**CONTENTS, **large})
    with monkeypatch.context() as context:
        broken_links.at_first_bytes(context, THERE[0], lambda: broken_links.cut(server))
        assert run(config) == Exit.UNREACHABLE
    assert THERE[0] not in holds(config) and len(alerts(config)) == 1
    assert set(outcomes(config, JOB)) == set(THERE)
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {**{name: CONTENTS[name] for name in THERE}, **large}


def test_over_sftp_hostile_lists_are_refused(over_sftp):
    """M26: as above, over the link that they come over."""
    _, config = over_sftp
    add(their_list(config), *(line for kind, line in HOSTILE.items() if kind != "very long"))
    assert run(config) == Exit.ACCOUNTED
    assert holds(config) == {name: CONTENTS[name] for name in THERE}


def test_over_sftp_another_host_key_is_refused_before_anything_is_asked(over_sftp):
    server, config = over_sftp
    key = (server.secrets / "key.pub").read_text().split()[:2]
    (server.secrets / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {' '.join(key)}\n")
    for _ in range(2):
        assert run(config) == Exit.CONFIG and holds(config) == {} and server.connections() == 0
    assert len(alerts(config)) == 1 and "host key" in alerts(config)[0]
