"""What changes while a step works: a person pauses it, or its disk goes away."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import world

from dataflow.lib import checksum, copy, ssh, transfer
from dataflow.lib.config import MARKER
from dataflow.lib.context import pause_file
from dataflow.lib.errors import Exit, TryLater


@pytest.fixture
def made(tmp_path):
    return world.make(tmp_path / "world")


def block(made) -> Path:
    """A rawacf of this morning as the radar left it."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=6)
    path = made.here("borealis").folder("data") / f"{start:%Y%m%d}" / f"{start:%Y%m%d.%H%M.%S}.sas.0.rawacf.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"records")
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    return path


def test_a_pause_interrupts_a_transfer_of_many_files(made, tmp_path):
    """rsync is real, the link is one on which nothing ever comes."""
    ctx = made.context("site-linux", step="rsync_to_campus")
    link = ssh.Link(ctx, made.here("campus"), ("sh", "-c", "exec sleep 600"), tmp_path / "proof")
    pause = pause_file(ctx.here, ctx.step)
    pause.parent.mkdir(parents=True)
    pause.write_text("the link is needed for something else")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(TryLater, match="interrupted and resumes"):
        transfer._rsync(ctx, link, [tmp_path / "file"], threading.Event())


def test_a_nas_that_is_unmounted_during_the_copy_releases_nothing(made, monkeypatch):
    source = block(made)
    chunks, marker = checksum.chunks, made.here("borealis").roots["store"] / MARKER

    def unmounting(descriptor):
        yield from chunks(descriptor)
        marker.unlink(missing_ok=True)

    monkeypatch.setattr(copy.checksum, "chunks", unmounting)
    code, records = made.run("borealis", "rsync_to_nas")
    (record,) = (found for found in records if found["event"] == "file")
    assert code == Exit.LEFT_OVER and record["outcome"] == "kept" and "Is the disk mounted?" in record["reason"]
    assert source.exists()
    monkeypatch.undo()
    marker.write_text("store\n")
    assert made.run("borealis", "rsync_to_nas")[0] == Exit.ACCOUNTED and not source.exists()
