"""A library that crashes: the file in hand is set aside after three crashes, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import world
from running_chain import with_steps
from world import World

from dataflow.lib import in_hand, quarantine
from dataflow.lib.config import Here
from dataflow.lib.context import Requests, pause_reason
from dataflow.lib.custody import flags_folder
from dataflow.lib.daemon import Chain
from dataflow.lib.errors import Exit
from dataflow.lib.watch import Watch

STEP = '''"""A step whose library crashes on what says so."""

import os, signal

from dataflow.lib import place, step

ROOTS = ("local",)


def find(ctx):
    return place.scan(ctx.folder("daily_plots"))


def handle(ctx, files):
    yield from step.each(ctx, files, read)


def read(path):
    what = path.read_text()
    if what != "good":
        os.kill(os.getpid(), getattr(signal, what))
    return step.done(path, "read", release=(path,))
'''


@pytest.fixture
def made(tmp_path: Path) -> World:
    program = tmp_path / "reads.py"
    program.write_text(STEP)
    return world.make(tmp_path / "world", source=with_steps(tmp_path / "config.yaml", "site-linux", [program]))


@pytest.fixture
def here(made: World) -> Here:
    return made.here("site-linux")


@pytest.fixture
def chain(made: World) -> Iterator[tuple[Chain, Watch]]:
    ctx = replace(made.context("site-linux", step="daemon"), requests=Requests())
    with Watch([flags_folder(ctx.here)], None) as watch:
        yield Chain(ctx), watch


def put(here: Here, name: str, what: str) -> Path:
    path = here.folder("daily_plots") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(what)
    return path


@pytest.mark.parametrize("crash", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL"])
def test_a_file_that_crashes_a_library_stops_the_others_three_times_and_no_more(
    chain: tuple[Chain, Watch], here: Here, crash: str
) -> None:
    bad, good = put(here, "1", crash), put(here, "2", "good")
    daemon, watch = chain
    for _ in range(in_hand.CRASHES_MAX):
        assert daemon.run(watch) is Exit.BUG
        assert bad.exists() and good.exists()
    assert daemon.run(watch) is Exit.LEFT_OVER
    assert not bad.exists() and not good.exists()
    ((path, reason),) = quarantine.reasons(here)
    assert (path.name, path.read_text(), reason.kind) == ("1", crash, "crashes a library")


def test_a_file_that_was_put_back_has_its_three_tries_again(chain: tuple[Chain, Watch], here: Here) -> None:
    bad = put(here, "1", "SIGSEGV")
    daemon, watch = chain
    for _ in range(in_hand.CRASHES_MAX + 1):
        code = daemon.run(watch)
    assert code is Exit.LEFT_OVER
    assert quarantine.retry(here, here.folder("quarantine") / "1") == bad
    assert daemon.run(watch) is Exit.BUG
    bad.write_text("good")
    assert daemon.run(watch) is Exit.ACCOUNTED


def test_to_be_killed_is_no_fault_of_the_file(chain: tuple[Chain, Watch], here: Here) -> None:
    """By a person, or for want of memory."""
    bad = put(here, "1", "SIGKILL")
    daemon, watch = chain
    for _ in range(in_hand.CRASHES_MAX + 1):
        assert daemon.run(watch) is Exit.BUG
    assert bad.exists()
    assert not (here.state / "crashes").exists()


def test_a_library_that_crashes_on_every_file_condemns_none(chain: tuple[Chain, Watch], here: Here) -> None:
    """Three bad files in a row are the fuse."""
    files = [put(here, str(number), "SIGSEGV") for number in range(5)]
    daemon, watch = chain
    for _ in range(3 * in_hand.CRASHES_MAX + 1):
        assert daemon.run(watch) is Exit.BUG
    assert all(path.exists() for path in files)
    assert not quarantine.reasons(here)
    assert "crashes a library" in (pause_reason(here, "reads") or "")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"1": "x"}', b"\xff\x00", b"[" * 100_000])
def test_a_count_that_cannot_be_read_begins_anew(chain: tuple[Chain, Watch], here: Here, content: bytes) -> None:
    bad = put(here, "1", "SIGSEGV")
    counts = here.state / "crashes" / "reads.json"
    counts.parent.mkdir(parents=True)
    counts.write_bytes(content)
    daemon, watch = chain
    assert daemon.run(watch) is Exit.BUG
    assert json.loads(counts.read_text())[str(bad)] == 1
