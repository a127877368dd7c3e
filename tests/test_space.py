"""Room on the disks: what stays free, who waits for room, and who is told beforehand."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import world
from loopback import Machines
from running_chain import with_steps
from step_cases import log_on_campus, site_data, summary_log, to_convert, to_distribute, waiting_flag
from test_daemon import chain_of
from world import World

from dataflow.lib import names, place, space, summary
from dataflow.lib.errors import Exit, TryLater
from dataflow.lib.ledger import Ledger
from dataflow.lib.names import Kind

MORE_THAN_ANY_DISK = 10**18
STORE = "hosts.borealis.roots.store"
NOW = datetime(2026, 11, 8, 12, tzinfo=UTC)


def radar_files(made: World) -> dict[Kind, Path]:
    """A rawacf and an antennas_iq of this morning, as the radar left them."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)
    folder = made.here("borealis").folder("data") / f"{start:%Y%m%d}"
    folder.mkdir(parents=True)
    paths = {kind: folder / names.radar_file(start, "sas", 0, kind).text for kind in (Kind.RAWACF, Kind.ANTENNAS_IQ)}
    for path in paths.values():
        path.write_bytes(b"records of " + path.name.encode())
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    return paths


def alerts(made: World, host: str = "borealis") -> list[str]:
    return [record["message"] for record in made.records(host) if record["event"] == "alert"]


def test_a_full_nas_leaves_the_files_on_the_radar_computer_tells_it_and_stops_nothing_else(tmp_path: Path) -> None:
    source = with_steps(tmp_path / "config.yaml", "borealis", ["rsync_to_nas", tmp_path / "after.sh"])
    (tmp_path / "after.sh").write_text('. "$DATAFLOW_LIB/step.sh"\nfind_files() { :; }\nhandle_files() { :; }\nmain "$@"\n')
    full = world.make(tmp_path / "world", [f"{STORE}.reserve_bytes={MORE_THAN_ANY_DISK}"], source=source)
    paths = radar_files(full)
    for _ in range(2):
        with chain_of(full, "borealis") as (chain, watch):
            assert chain.run(watch) is Exit.LEFT_OVER
    assert all(path.exists() for path in paths.values())
    assert not list(full.here("borealis").folder("rawacf_array").glob("*"))
    (told,) = alerts(full)
    assert "less than its reserve_bytes" in told and "steps keep their files" in told
    ended = [record["step"] for record in full.records("borealis") if record["event"] == "end"]
    assert ended.count("rsync_to_nas") == ended.count("after") == 2
    kept = {r["file"]: r["reason"] for r in full.records("borealis") if r["event"] == "file" and r["outcome"] == "kept"}
    assert set(kept) == {path.name for path in paths.values()}
    assert all("tried again when there is room" in reason for reason in kept.values())

    made = world.make(tmp_path / "world", source=source)
    assert made.run("borealis", "rsync_to_nas")[0] is Exit.ACCOUNTED
    assert not any(path.exists() for path in paths.values())
    full.run("borealis", "rsync_to_nas")
    assert len(alerts(full)) == 2, "it had ended, so it is news"


@pytest.mark.parametrize(
    ("moment", "exit_code", "said"),
    [
        ((Ledger, "settle"), Exit.LEFT_OVER, "changed after it was read"),
        ((summary.SummaryLog, "sync"), Exit.ACCOUNTED, "changed after it was recorded, so it stays"),
    ],
    ids=["before it is recorded", "while that is made durable"],
)
def test_a_file_that_grows_after_its_copy_was_verified_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[type, str], exit_code: Exit, said: str
) -> None:
    """Assumed never to happen; but what the radar writes late is nowhere else, so it becomes a conflict and is not removed."""
    made = world.make(tmp_path / "world")
    paths = radar_files(made)
    whole, go_on = {path: path.read_bytes() for path in paths.values()}, getattr(*moment)

    def late(own: object) -> None:
        for path in whole if list(made.here("borealis").folder("rawacf_array").glob("*.h5")) else ():
            if path.exists():
                path.write_bytes(whole[path] + b" and one more")
                os.utime(path, (time.time() - 7000, time.time() - 7000))
        go_on(own)

    monkeypatch.setattr(*moment, late)
    code, records = made.run("borealis", "rsync_to_nas")
    assert code is exit_code and all(path.exists() for path in whole)
    reasons = [record.get("reason", "") for record in records if record["event"] == "file"]
    assert code is Exit.ACCOUNTED or all(said in reason for reason in reasons)
    assert sum(said in words for words in made.said) == len(paths), made.said
    monkeypatch.undo()
    made.run("borealis", "rsync_to_nas")
    kinds = [record["kind"] for record in made.records("borealis") if record["event"] == "alert" and "kind" in record]
    assert kinds == ["conflict"] * len(paths)
    (copied,) = made.here("borealis").folder("rawacf_array").glob("*.h5")
    assert copied.read_bytes() == whole[paths[Kind.RAWACF]]


def test_below_its_own_limit_iq_waits_and_rawacf_goes(tmp_path: Path) -> None:
    made = world.make(tmp_path / "world", [f"{STORE}.min_free_for_iq_bytes={MORE_THAN_ANY_DISK}"])
    paths = radar_files(made)
    code, records = made.run("borealis", "rsync_to_nas")
    outcomes = {record["file"]: record["outcome"] for record in records if record["event"] == "file"}
    assert code is Exit.LEFT_OVER
    assert outcomes == {paths[Kind.RAWACF].name: "done", paths[Kind.ANTENNAS_IQ].name: "kept"}
    assert not paths[Kind.RAWACF].exists() and paths[Kind.ANTENNAS_IQ].exists()
    assert not list(made.here("borealis").folder("to_plot").glob("*")), "nothing tells that it is there to be drawn"
    assert len(alerts(made)) == 1 and "antennas_iq wait on the radar computer" in alerts(made)[0]


def test_a_reserve_is_of_the_disk_and_counts_every_copy(tmp_path: Path) -> None:
    made = world.make(tmp_path / "world")
    here = made.here("borealis")
    free = place.free_bytes(here, "store")
    slack = free // 8  # what other programs may write or remove meanwhile
    limited = world.make(tmp_path / "world", [f"{STORE}.reserve_bytes={free // 2}"]).here("borealis")
    folders = [limited.folder("rawacf_array"), limited.folder("backup")]
    place.require_room(limited, folders[:1], free // 2 - slack)
    with pytest.raises(TryLater, match="tried again when there is room"):
        place.require_room(limited, folders, free // 2 - slack)
    place.require_room(limited, [limited.state], MORE_THAN_ANY_DISK)
    place.require_room(here, folders, MORE_THAN_ANY_DISK)


@pytest.fixture
def full_campus(room, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(room, tmp_path / "machines", [f"hosts.campus.roots.sddata.reserve_bytes={MORE_THAN_ANY_DISK}"])
    yield made
    made.close()


def test_what_has_no_room_on_campus_waits_at_the_site_and_flags_and_logs_go(full_campus: Machines) -> None:
    path, waiting, log = site_data(full_campus, 0), waiting_flag(full_campus, 0), summary_log(full_campus, 0)
    done = full_campus.run("rsync_to_campus", "site-linux", part="data")
    assert (done.code, done.outcomes()) == (1, {path.name: "kept"}), done.said
    assert "has no room for files now" in done.said and path.exists()
    assert not list(full_campus.here("campus").folder("incoming").glob("*.h5"))
    assert full_campus.run("send_flag", "site-linux").code == 0 and not waiting.exists()
    assert full_campus.run("send_logs", "site-linux").code == 0 and log_on_campus(full_campus, log)[0].exists()


def test_on_campus_a_file_that_has_no_room_stays_where_it_is(room, tmp_path: Path) -> None:
    limits = [f"hosts.campus.roots.{root}.reserve_bytes={MORE_THAN_ANY_DISK}" for root in ("sddata", "staging")]
    full = Machines(room, tmp_path / "machines", limits)
    for step, path in (("convert_on_campus", to_convert(full, 0)), ("distribute_borealis_data", to_distribute(full, 2))):
        done = full.run(step, "campus")
        assert (done.code, done.outcomes()[path.name]) == (1, "kept"), done.said
        assert "tried again when there is room" in done.said
    full.close()


def history(*free: int, hours: float = 12) -> list[space.Sample]:
    """So many bytes were free, every 12 hours until now."""
    return [(NOW - timedelta(hours=hours * (len(free) - 1 - n)), bytes_free) for n, bytes_free in enumerate(free)]


@pytest.mark.parametrize(
    ("samples", "reserve", "days"),
    [
        (history(100, 90, 80, 70), 0, 3.5),
        (history(100, 90, 80, 70), 50, 1.0),
        (history(100, 90, 80, 70), 90, 0.0),
        (history(70, 70, 70, 70), 0, float("inf")),
        (history(10, 20, 30, 40), 0, float("inf")),
        (history(100, 10, hours=12), 0, float("inf")),
        (history(100), 0, float("inf")),
        (history(100, 100, 80, 80, 60, 60, 40, 40), 0, 40 / (2 * 200 / 21)),
    ],
)
def test_how_long_a_disk_lasts(samples, reserve, days) -> None:
    assert space.days_left(samples, reserve) == pytest.approx(days)


def test_a_disk_that_fills_is_told_a_week_before_and_once(tmp_path: Path) -> None:
    """What was free before is what earlier records say; what is free now is true."""
    made = world.make(tmp_path / "world")
    free = place.free_bytes(made.here("site-linux"), "store")
    for hours, factor in ((72, 1.9), (48, 1.6), (24, 1.3)):
        record_free(made, hours, int(free * factor))
    for _ in range(2):
        made.run("site-linux", "rsync_to_campus")
    (told,) = alerts(made, "site-linux")
    assert f"{made.here('site-linux').roots['store']} of sas-site is down to its reserve in 3." in told
    ends = [record for record in made.records("site-linux") if record["event"] == "end"]
    assert ends[-1]["free"]["store"] == pytest.approx(free, rel=0.2)

    made.clock.advance(6.5 * 86400)
    made.run("site-linux", "rsync_to_campus")
    made.clock.advance(-6.5 * 86400)
    made.run("site-linux", "rsync_to_campus")
    assert len(alerts(made, "site-linux")) == 2, "the steep days are forgotten, it recovered, and now it is news again"


def test_a_disk_of_state_and_logs_that_fills_is_told_as_well(tmp_path: Path, other_disk: Path) -> None:
    """Full, it keeps every file of every step, and then nobody can be told any more."""
    made = world.make(tmp_path / "world")
    here = made.here("site-linux")
    assert set(space.free(here, ["store"])) == {"store"}, "all on one disk"
    shutil.rmtree(here.logs)
    here.logs.symlink_to(other_disk)
    assert set(space.free(here, ["store"])) == {"store", "logs"} and space.free(here, []) == {}
    free = space.free(here, ["store"])["logs"]
    for hours, factor in ((72, 1.9), (48, 1.6), (24, 1.3)):
        record_free(made, hours, int(free * factor), "logs")
    made.run("site-linux", "rsync_to_campus")
    told = alerts(made, "site-linux")
    assert len(told) == 1 and f"the disk {here.logs} of sas-site is down to its reserve in 3." in told[0]


def record_free(made: World, hours_ago: float, free_bytes: int, disk: str = "store") -> None:
    made.clock.advance(-hours_ago * 3600)
    ctx = made.context("site-linux", step="rsync_to_campus")
    ctx.log.write("end", free={disk: free_bytes})
    ctx.log.close()
    made.clock.advance(hours_ago * 3600)


def test_a_disk_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    made = world.make(tmp_path / "world")
    (made.here("site-linux").roots["store"] / ".dataflow-root").unlink()
    made.run("site-linux", "rsync_to_campus")
    (end,) = [record for record in made.records("site-linux") if record["event"] == "end"]
    assert "free" not in end


def test_a_machine_without_nas_has_no_root_for_it(tmp_path: Path) -> None:
    made = world.make(tmp_path / "world", radars=("inv",))
    assert set(made.here("borealis", "inv").roots) == {"data"}
    assert "backup" not in made.here("borealis", "inv").folder_texts
    assert set(made.here("site-linux", "inv").roots) == {"store", "local"}
