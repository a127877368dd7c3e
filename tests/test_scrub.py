"""Reading again what is kept for good: damage, loss and strangers, what is restored and from where, and how it goes on."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest
import world
from loopback import Machines
from step_cases import at, bytes_of, put, rot

from dataflow.lib import names, quarantine, report, scrub
from dataflow.lib.checksum import Pace, sha256
from dataflow.lib.config import MARKER
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig
from dataflow.lib.names import Kind
from dataflow.lib.scrub import Found
from dataflow.lib.summary import SummaryLog

AT_ONCE = Pace(1e15)
KILL_STRIDE = 4
"""Every how manieth change is tried when killing: there are fifty, and a kill costs a second."""


@pytest.fixture
def made(tmp_path) -> world.World:
    return world.make(tmp_path / "machines", ["scrub.every_days=90", "files.settle_s=0"])


def archived(made: world.World, number: int, host: str = "campus", key: str = "archive_hdf5", name: str = "") -> Path:
    """A file in one of a host's folders, with the record of the step that put it there."""
    here = made.here(host)
    text = name or names.radar_file(at(number), "sas", 0, Kind.RAWACF).text
    path = put(here.folder(key, at(number)) / text, bytes_of(number), at(number))
    record(made, host, path, action="archived", sha256=sha256(path), destination=str(path))
    return path


def record(made: world.World, host: str, path: Path, event: str = "action", step: str = "fed", **fields: object) -> None:
    log = SummaryLog(made.here(host), step, "fed", made.clock)
    log.write(event, file=path.name, source=str(path.parent), **fields)
    log.close()


def run(
    made: world.World, host: str = "campus", *wanted: str, source: Path | None = None, pace: Pace = AT_ONCE
) -> tuple[int, Found]:
    ctx = made.context(host, step="scrub")
    code, found = scrub.scrub(ctx, wanted, source, pace)
    return int(code), found


def told(made: world.World, host: str = "campus", event: str = "alert") -> list[str]:
    return [r.get("message", r.get("action")) for r in made.records(host) if r["event"] == event and r["step"] == "scrub"]


def later(made: world.World, days: float = 91) -> None:
    made.clock.advance(days * 86400)


# -- what it tells apart


def test_what_is_as_recorded_is_verified_and_not_due_again_for_a_while(made):
    paths = [archived(made, number) for number in range(3)]
    assert run(made) == (0, Found()), "archived just now, which is as good as checked"
    later(made)
    code, found = run(made)
    assert (code, found.verified, found.bytes) == (0, 3, sum(path.stat().st_size for path in paths))
    assert told(made, event="action") == ["scrubbed"] * 3 and not told(made)
    (end,) = [r for r in made.records("campus") if r["event"] == "end" and r["done"]]
    assert (end["found"], end["done"], end["exit"]) == (3, 3, 0)
    assert run(made) == (0, Found())
    assert run(made, "campus", paths[0].name)[1].verified == 1, "a file that is asked for is checked, due or not"


def test_a_flipped_bit_is_damage_told_once_and_the_file_stays_while_no_copy_verifies(made):
    path = archived(made, 0)
    archived(made, 1)
    later(made)
    expected = sha256(path)
    rot(None, path)
    for turn in range(2):
        code, found = run(made)
        assert (code, found.damaged, found.verified, found.lost) == (1, [str(path)], 1 - turn, [])
    assert path.exists() and not list(made.here("campus").folder("quarantine").glob("*"))
    (message,) = told(made)
    assert expected in message and sha256(path) in message and "--from DIR" in message
    hops, faults = report.trace(made.here("campus"), path.name, made.clock(), is_whole=False)
    assert len(faults) == 1 and "damaged" in faults[0]
    assert [hop["outcome"] for hop in hops] == ["done", "damaged"]


def test_a_file_that_is_gone_is_lost_and_told_once_for_its_folder(made):
    paths = [archived(made, number) for number in range(3)]
    later(made)
    for path in paths[:2]:
        path.unlink()
    code, found = run(made)
    assert (code, found.lost, found.verified, found.damaged) == (1, [str(path) for path in paths[:2]], 1, [])
    (message,) = told(made)
    assert message.startswith(f"2 files are lost from {paths[0].parent}") and paths[0].name in message
    assert run(made) == (0, Found(known_lost=2))
    assert len(told(made)) == 1
    assert "lost" in report.trace(made.here("campus"), paths[0].name, made.clock(), is_whole=False)[1][0]
    put(paths[0], bytes_of(0), at(0))
    assert run(made)[1].verified == 1, "somebody brought it back"


def test_what_no_record_knows_is_adopted_when_it_lies_still_and_vouched_for_from_then_on(made):
    made = world.World(made.root, world.config.load(world.SHIPPED, made.root))
    path = put(made.here("campus").folder("archive_dmap", at(0)) / "20241101.0000.00.sas.a.rawacf.bz2", b"from before", at(0))
    assert run(made) == (0, Found()), "somebody may be copying it"
    made.clock.advance(61)
    assert run(made)[1].adopted == 1
    (adopted,) = [r for r in made.records("campus") if r.get("action") == "adopted"]
    assert (adopted["sha256"], adopted["destination"], adopted["bytes"]) == (sha256(path), str(path), path.stat().st_size)
    assert run(made) == (0, Found())
    later(made)
    rot(None, path)
    assert run(made)[1].damaged == [str(path)]


def test_what_was_set_aside_or_removed_with_a_record_is_not_lost(made):
    set_aside, removed = archived(made, 0), archived(made, 1)
    later(made)
    record(made, "campus", set_aside, event="file", outcome="quarantined", action="quarantined", destination="/quarantine/x")
    record(made, "campus", removed, action="removed", sha256=sha256(removed))
    set_aside.unlink()
    removed.unlink()
    assert run(made) == (0, Found())
    put(removed, b"another one, made later", at(1))
    assert run(made)[1].adopted == 1


def test_a_removal_that_is_recorded_while_it_runs_is_no_loss(made):
    first, removed = archived(made, 0), archived(made, 1)
    later(made)

    def removing(count: int) -> None:
        if removed.exists():
            record(made, "campus", removed, action="removed", sha256=sha256(removed))
            removed.unlink()

    assert run(made, pace=removing) == (0, Found(verified=1, bytes=first.stat().st_size))


def test_every_kept_folder_of_the_shipped_configuration_is_read(made):
    campus = {
        "archive_dmap": "20241101.0000.00.sas.a.rawacf.bz2",
        "archive_hdf5": "20241101.0000.00.sas.0.rawacf.h5",
        "special": "20241101.0000.00.sas.b.rawacf.bz2",
        "plots_archive": "20241101.0000.00.sas.0.antennas_iq.contact.jpg",
    }
    for key, name in campus.items():
        rot(None, archived(made, 0, key=key, name=name))
    photo = put(made.here("campus").folder("photos", at(0), "cam210") / "20241101.0000.cam210.jpg", b"a photo", at(0))
    record(made, "campus", photo, sha256="0" * 64, destination=str(photo))
    later(made)
    assert {Path(path).name for path in run(made)[1].damaged} == {*campus.values(), photo.name}
    with pytest.raises(BadConfig, match=r"hosts\.borealis\.kept"):
        run(made, "borealis")


def test_the_site_holds_what_the_radar_computer_wrote_to_the_nas_against_its_records(made):
    """The records are those of another host, and name its folders; the disk is the same."""
    borealis, here = made.here("borealis"), made.here("site-linux")
    name = names.radar_file(at(0), "sas", 0, Kind.RAWACF).text
    path = put(borealis.folder("backup") / name, bytes_of(0), at(0))
    record(made, "borealis", path, step="rsync_to_nas", action="copied", sha256=sha256(path), destination=str(path))
    (log,) = borealis.logs.rglob("*.jsonl")
    relayed = here.relayed_logs / "sas" / "rsync_to_nas" / f"{log.name.removesuffix('.jsonl')}.borealis.jsonl"
    put(relayed, log.read_bytes(), at(0))
    later(made)
    assert run(made, "site-linux")[1].verified == 1
    later(made)
    good = put(here.folder("rawacf_array") / name, bytes_of(0), at(0))
    rot(None, path)
    code, found = run(made, "site-linux")
    assert (code, found.restored, sha256(path)) == (1, [str(path)], sha256(good))


def test_another_radars_files_in_a_shared_folder_are_left_to_it(made):
    special = made.here("campus").folder("special", at(0))
    put(special / "20241101.0000.00.inv.a.rawacf.bz2", b"another radar's", at(0))
    assert run(made) == (0, Found())


# -- what it restores


def test_a_damaged_file_goes_to_quarantine_with_both_hashes_and_a_verified_copy_takes_its_place(made):
    here = made.here("campus")
    path = archived(made, 0)
    expected = sha256(path)
    staged = put(here.path("staging/vt") / path.name, path.read_bytes(), at(0))
    later(made)
    rot(None, path)
    found_hash, staged_inode = sha256(path), staged.stat().st_ino
    code, found = run(made)
    assert (code, found.restored, found.damaged) == (1, [str(path)], [])
    assert sha256(path) == expected and path.stat().st_ino != staged_inode and staged.exists()
    ((aside, reason),) = quarantine.reasons(here)
    assert sha256(aside) == found_hash == reason.sha256
    assert reason.details == {"sha256": found_hash, "expected_sha256": expected} and reason.source == str(path)
    (message,) = told(made)
    assert "restored from" in message and str(staged) in message
    assert not [each for each in path.parent.iterdir() if each != path], "no part is left behind"
    assert run(made) == (0, Found())
    assert not report.trace(here, path.name, made.clock(), is_whole=False)[1]


def test_a_copy_that_does_not_verify_restores_nothing(made):
    path = archived(made, 0)
    for folder in (made.here("campus").path("staging/vt"), made.here("campus").folder("data")):
        put(folder / path.name, b"another content", at(0))
    (made.here("campus").folder("holding")).mkdir(parents=True)
    (made.here("campus").folder("holding") / path.name).symlink_to("/etc/passwd")
    os.link(path, made.here("campus").folder("plots").parent.parent / path.name)
    later(made)
    rot(None, path)
    damaged = path.read_bytes()
    assert run(made)[1].damaged == [str(path)]
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("where", ["", "2024/11"])
def test_a_lost_or_damaged_file_is_restored_from_a_mounted_backup(made, tmp_path, where):
    lost, damaged = archived(made, 0), archived(made, 1)
    for path in (lost, damaged):
        put(tmp_path / "backup" / where / path.name, path.read_bytes(), at(0))
    hashes = [sha256(lost), sha256(damaged)]
    later(made)
    lost.unlink()
    rot(None, damaged)
    assert run(made)[0] == 1
    code, found = run(made, "campus", lost.name, source=tmp_path / "backup")
    assert (code, found.restored) == (0, [str(lost)])
    code, found = run(made, source=tmp_path / "backup")
    assert (code, found.restored) == (1, [str(damaged)]), "the damaged one is in quarantine now"
    assert [sha256(lost), sha256(damaged)] == hashes
    assert run(made) == (0, Found())
    assert lost.stat().st_mode & 0o7777 == 0o664


def test_no_quarantine_no_change(made):
    """Where the damaged file cannot be set aside it is not replaced, and the run says so."""
    path = archived(made, 0)
    put(made.here("campus").path("staging/vt") / path.name, path.read_bytes(), at(0))
    later(made)
    rot(None, path)
    damaged = path.read_bytes()
    put(made.here("campus").folder("quarantine"), b"a file where the folder should be", at(0))
    code, found = run(made)
    assert code == 1 and path.read_bytes() == damaged and list(found.not_checked) == [str(path)]
    made.here("campus").folder("quarantine").unlink()
    assert run(made)[1].restored == [str(path)]
    assert len(list(path.parent.iterdir())) == 1


# -- what must not be believed


def test_a_disk_that_is_not_mounted_is_no_loss(made):
    path = archived(made, 0)
    later(made)
    root = made.here("campus").roots["archive"]
    root.rename(root.with_name("elsewhere"))
    root.mkdir()
    code, found = run(made)
    assert code == 1 and MARKER in str(found.problem) and not found.lost
    root.rmdir()
    root.with_name("elsewhere").rename(root)
    assert run(made)[1].verified == 1 and path.exists()


def test_a_disk_that_goes_away_while_it_runs_is_no_loss(made):
    paths = [archived(made, number) for number in range(3)]
    later(made)
    root = made.here("campus").roots["archive"]

    def unmounting(count: int) -> None:
        if (root / MARKER).exists():
            root.rename(root.with_name("elsewhere"))
            root.mkdir()

    code, found = run(made, pace=unmounting)
    assert code == 1 and MARKER in str(found.problem) and not found.lost
    root.rmdir()
    root.with_name("elsewhere").rename(root)
    assert run(made)[1].verified + found.verified == len(paths)


def test_a_disk_that_reads_differently_each_time_condemns_nothing(made):
    path = archived(made, 0)
    put(made.here("campus").path("staging/vt") / path.name, path.read_bytes(), at(0))
    later(made)
    good = path.read_bytes()
    rot(None, path)
    reads = []

    def healing(count: int) -> None:
        reads.append(count)
        if len(reads) == 1:  # what is read next is good: the fault lay between the disk and us
            with path.open("r+b") as file:
                file.write(good)
            os.utime(path, (at(0).timestamp(), at(0).timestamp()))

    code, found = run(made, pace=healing)
    assert code == 1 and "differently" in found.not_checked[str(path)] and not found.damaged and not found.restored
    assert run(made)[1].verified == 1


def test_strangers_are_told_once_and_left_alone(made, tmp_path):
    folder = made.here("campus").folder("archive_hdf5", at(0))
    folder.mkdir(parents=True)
    outside = put(tmp_path / "outside", b"not ours", at(0))
    (folder / names.radar_file(at(0), "sas", 0, Kind.RAWACF).text).symlink_to(outside)
    os.mkfifo(folder / names.radar_file(at(1), "sas", 0, Kind.RAWACF).text)
    put(folder / "notes.txt", b"a stranger's", at(0))
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "round").symlink_to(folder)
    for _ in range(2):
        assert run(made) == (0, Found())
    assert len(told(made)) == 3
    assert outside.read_bytes() == b"not ours" and (folder / "notes.txt").exists()


# -- how it goes on


def test_the_oldest_checked_come_first_and_a_stop_loses_nothing(made):
    paths = [archived(made, number) for number in range(4)]
    later(made)
    assert run(made, "campus", paths[0].name)[1].verified == 1
    later(made, 1)
    assert run(made, "campus", paths[2].name)[1].verified == 1
    later(made)
    order = []

    def stopping_after(count: int) -> scrub.Progress:
        def progress(name: str, done: int, total: int) -> None:
            order.append(name)
            ctx.requests.stop = done == count

        return progress

    for count in (1, 2, 4):
        ctx: Context = made.context("campus", step="scrub")
        code, found = scrub.scrub(ctx, (), None, AT_ONCE, stopping_after(count))
        assert code == 0
    assert order == [paths[n].name for n in (1, 3, 0, 2)], "each once, and those first that were not looked at for longest"
    assert found.waiting == 0


def test_of_many_checks_trace_tells_the_last(made):
    path = archived(made, 0)
    for _ in range(3):
        later(made)
        assert run(made)[1].verified == 1
    hops, faults = report.trace(made.here("campus"), path.name, made.clock(), is_whole=False)
    assert [hop["action"] for hop in hops] == ["archived", "scrubbed"] and not faults
    assert hops[-1]["time"][:10] == f"{made.clock():%Y-%m-%d}"


def test_damage_of_one_copy_is_told_although_another_is_well(made):
    special, path = archived(made, 0, key="special"), archived(made, 0)
    later(made)
    rot(None, path)
    special.unlink()
    assert run(made)[1].damaged == [str(path)]
    record(made, "campus", special, action="scrubbed", sha256="0" * 64, destination=str(special), step="scrub")
    faults = report.trace(made.here("campus"), path.name, made.clock(), is_whole=False)[1]
    assert any(f"{path} is damaged since" in fault for fault in faults)


def test_a_large_file_does_not_hold_up_a_stop(made):
    path = archived(made, 0)
    path.write_bytes(bytes(5 << 20))
    later(made)
    ctx = made.context("campus", step="scrub")
    read = []

    def stop(count: int) -> None:
        read.append(count)
        ctx.requests.stop = True

    code, found = scrub.scrub(ctx, (), None, stop)
    assert (code, found.waiting, len(read)) == (0, 1, 1)


def test_killed_at_any_change_it_goes_on_where_it_was(machines: Machines):
    """Two files: one damaged, with a good copy in staging, and one lost. In the end both are as they were recorded."""
    here = machines.here("campus")
    paths = []
    for number in range(3):
        name = names.radar_file(at(number), "sas", 0, Kind.RAWACF)
        path = put(here.folder("archive_hdf5", name.time) / name.text, bytes_of(number), at(number))
        put(here.path("staging/vt") / name.text, bytes_of(number), at(number))
        long_ago = datetime.now(UTC) - timedelta(days=100)
        log = SummaryLog(here, "fed", "fed", lambda moment=long_ago: moment)
        log.write("action", file=path.name, action="archived", sha256=sha256(path), destination=str(path))
        log.close()
        paths.append(path)
    expected = {path: sha256(path) for path in paths}
    rot(machines, paths[0])
    paths[1].unlink()
    words = ["scrub", "--host", "campus", "--radar", "sas"]
    saved = machines.save()
    for number in range(1, 1000, KILL_STRIDE):
        machines.restore(saved)
        machines.plan("scrub", below=str(machines.root), kill_at=number, killed=str(machines.killed_file))
        machines.killed_file.unlink(missing_ok=True)
        code, said, _ = machines.dataflow(words)
        if not machines.was_killed():
            assert code == 1, said
            break
        good = {sha256(path) for path in paths if path.exists()} | {sha256(path) for path in here.path("staging/vt").iterdir()}
        assert set(expected.values()) <= good, f"change {number}"
        code, said, _ = machines.dataflow([*words, "--set", "scrub.every_days=0"])
        assert code in (0, 1), said
        assert {path: sha256(path) for path in paths} == expected, f"change {number}: {said}"
        assert [each.name for each in paths[0].parent.iterdir() if each not in paths] == [], f"change {number}"
        assert len(quarantine.reasons(here)) == 1, f"change {number}"
    assert number > 5 * KILL_STRIDE


# -- how fast it reads


class FakeTime:
    """Time that passes only by sleeping, and by reading at a speed of the disk."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.read: list[tuple[float, int]] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def pace(self, limit_bytes_s: float, disk_bytes_s: float):
        inner = Pace(limit_bytes_s, lambda: self.now_s, self.sleep)

        def spend(count: int) -> None:
            self.now_s += count / disk_bytes_s
            self.read.append((self.now_s, count))
            inner(count)

        return spend


@pytest.mark.parametrize("disk_bytes_s", [1e5, 1e9], ids=["a slow disk", "a fast disk"])
def test_the_limit_holds_over_any_stretch_of_time(made, disk_bytes_s):
    limit = 1e6
    for number in range(20):
        path = archived(made, number)
        path.write_bytes(bytes(300_000))
        record(made, "campus", path, action="archived", sha256=sha256(path), destination=str(path))
    later(made)
    fake = FakeTime()
    assert run(made, pace=fake.pace(limit, disk_bytes_s))[1].verified == 20
    assert sum(count for _, count in fake.read) == 20 * 300_000
    for first, last in combinations(range(len(fake.read)), 2):
        stretch_s = fake.read[last][0] - fake.read[first][0]
        assert sum(count for _, count in fake.read[first + 1 : last + 1]) <= limit * (stretch_s + 1.0) + 300_000
    least_s = 20 * 300_000 / min(limit, disk_bytes_s)
    assert fake.now_s == pytest.approx(least_s, rel=0.2), "and no slower than it has to be"


# -- the command


def test_the_command_tells_in_words_and_in_json(machines: Machines):
    here = machines.here("campus")
    path = put(here.folder("archive_hdf5", at(0)) / names.radar_file(at(0), "sas", 0, Kind.RAWACF).text, bytes_of(0), at(0))
    words = ["scrub", "--host", "campus", "--radar", "sas"]
    code, said, out = machines.dataflow([*words, "--json"])
    assert code == 0, said
    assert json.loads(out) | {"bytes": 0} == {
        "verified": 0, "adopted": 1, "bytes": 0, "waiting": 0, "known_lost": 0, "restored": [], "damaged": [], "lost": [],
        "not_checked": {}, "problem": None,
    }  # fmt: skip
    rot(machines, path)
    code, said, out = machines.dataflow([*words, "--set", "scrub.every_days=0"])
    assert code == 1 and out.startswith(b"1 damaged, ") and str(path) in said
    assert machines.dataflow([*words, "nowhere.h5"])[0] == 2
    assert machines.dataflow([*words, "--from", str(path)])[0] == 2
    code, said, out = machines.dataflow(["status", "--host", "campus", "--radar", "sas"])
    assert "scrub:" in out.decode()


def test_two_at_a_time_wait_for_each_other(made):
    archived(made, 0)
    later(made)
    first, second = made.context("campus", step="scrub"), made.context("campus", step="scrub")
    codes = []

    def meanwhile(count: int) -> None:
        if not codes:
            os.environ.pop("DATAFLOW_LOCK_FD", None)  # another process has inherited nothing
            second.requests.stop = True
            codes.append(scrub.scrub(second, (), None, AT_ONCE)[0])

    assert scrub.scrub(first, (), None, meanwhile)[1].verified == 1
    assert codes == [1]


def test_a_pause_of_everything_pauses_it_within_one_file(made):
    archived(made, 0)
    later(made)
    pause = made.here("campus").state / "paused" / "ALL"
    put(pause, b"a person is looking", at(0))
    assert run(made)[1].waiting == 1
