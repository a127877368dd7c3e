"""The NAS hangs: what needs it waits, and flags, logs and alerts travel as if nothing were the matter."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hung_mount import hung
from running_chain import QUICK, Running, running

from dataflow.lib import custody, flag, place, summary
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry


@pytest.fixture
def chain(tmp_path: Path):
    with running(tmp_path / "chain", overrides=[*QUICK, f"daemon.stuck_after_s={place.ANSWER_S + 0.5}"]) as started:
        yield started


def radar_file(chain: Running) -> Path:
    """A rawacf of this morning as the radar left it."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)
    path = chain.here("borealis").folder("data") / f"{start:%Y%m%d}" / f"{start:%Y%m%d.%H%M.%S}.sas.0.rawacf.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"records")
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    return path


def put_in_outbox(chain: Running, host: str) -> flag.Flag:
    """A flag that tells of what was delivered before."""
    entry = Entry(f"20261101.1400.00.sas.{len(host)}.rawacf.h5", 1, "0" * 64)
    return flag.write(custody.outbox(chain.here(host)), "sas", host, "test", [entry], lambda: datetime.now(UTC))


def alerts_on_campus(chain: Running) -> list[tuple[str, str]]:
    """Host and message of each alert that has travelled to campus."""
    files = summary.relayed_files(chain.here("campus"), datetime(2020, 1, 1, tzinfo=UTC).date())
    return [(r["host"], r["message"]) for r in summary.records(files) if r["event"] == "alert"]


def test_flags_logs_and_alerts_travel_while_the_nas_hangs(chain: Running) -> None:
    path = radar_file(chain)
    told = {host: put_in_outbox(chain, host) for host in ("borealis", "site-linux")}
    with hung(chain.here("borealis").roots["store"]):
        for host in ("borealis", "site-linux"):
            assert chain.once(host) == Exit.LEFT_OVER, chain.said()
            assert not chain.flags(host)["outbox"]
        assert told["borealis"].file_name in chain.flags("site-linux")["open"], "the flag came and was taken"
        assert told["site-linux"].file_name in chain.flags("campus")["waiting"]
        hangs = {(host, text.split()[0]) for host, text in alerts_on_campus(chain) if "hangs in the kernel" in text}
        needing_it = ("rsync_to_campus", "plot_antennas_iq", "expire_site_storage")
        assert hangs == {("borealis", "rsync_to_nas"), *(("site-linux", step) for step in needing_it)}
        ended = {record["step"] for record in chain.records("site-linux") if record["event"] == "end"}
        assert {"transfer_cam_photos", "send_flag", "send_logs"} <= ended, "no step hangs that needs no NAS"
        status = chain.dataflow("status", "--host", "site-linux", "--radar", "sas")
        assert "NO ANSWER from store" in status.stdout and "1 open" in status.stdout, status.stderr
        assert path.exists(), "the radar's file stays where it is"
    assert chain.once("borealis") == Exit.ACCOUNTED, chain.said()
    assert not path.exists() and (chain.here("borealis").folder("rawacf_array") / path.name).exists()
