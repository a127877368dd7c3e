"""The lock: one run at a time, kept by whatever the run started, free as soon as all of that has ended."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataflow.lib import command, lock

LIMIT_S = 20.0
HOLD = """
import sys, time
from pathlib import Path
from dataflow.lib import command, lock
with lock.held(Path(sys.argv[1]), "rsync_to_nas of sas", print) as free:
    child = command.start(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=1, inherit=sys.argv[2] == "inherit")
    time.sleep(60)
"""
ENTER = """
import sys
from pathlib import Path
from dataflow.lib import lock
with lock.held(Path(sys.argv[1]), "a child", print, lambda: True) as free:
    print(free)
"""


def is_free(path: Path) -> bool:
    with path.open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_for(condition) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state/lock"


@pytest.fixture
def holder(path):
    """Starts another process that holds the lock; yields a function that gives it and its grandchild's process id."""
    started = []

    def start(inherit: str) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), inherit], stdout=subprocess.PIPE, text=True)
        grandchild = int(process.stdout.readline())
        started.append((process, grandchild))
        return process, grandchild

    yield start
    for process, grandchild in started:
        process.kill()
        process.wait()
        process.stdout.close()
        try:
            os.kill(grandchild, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_whoever_finds_it_taken_waits_and_says_for_whom(path, holder):
    process, grandchild = holder("inherit")
    said = []

    def say(text):
        said.append(text)
        process.kill()
        os.kill(grandchild, signal.SIGKILL)

    with lock.held(path, "second", say) as free:
        assert free and not is_free(path)
    assert said == [f"waiting for rsync_to_nas of sas (process {process.pid}), which holds {path}"]
    assert is_free(path)


def test_waiting_ends_when_asked_to_stop(path, holder):
    holder("inherit")
    asked = []
    with lock.held(path, "second", lambda text: None, lambda: asked.append(1) or len(asked) > 2) as free:
        assert not free
    assert len(asked) > 2 and not is_free(path)


def test_an_orphan_keeps_it(path, holder):
    process, grandchild = holder("inherit")
    process.kill()
    process.wait()
    assert not is_free(path), "the orphan still works on the files"
    os.kill(grandchild, signal.SIGKILL)
    assert wait_for(lambda: is_free(path))


def test_what_is_meant_to_outlive_the_run_does_not_keep_it(path, holder):
    process, grandchild = holder("alone")
    process.kill()
    process.wait()
    assert wait_for(lambda: is_free(path))
    os.kill(grandchild, 0)


def test_a_child_goes_straight_on_and_passes_it_on(path):
    with lock.held(path, "parent", print):
        child = command.run([sys.executable, "-c", ENTER, str(path)], timeout_s=LIMIT_S)
        assert child.stdout == b"True\n", child.stderr
        nested = command.run(["sh", "-c", f'"$0" -c "$1" {path}', sys.executable, ENTER], timeout_s=LIMIT_S)
        assert nested.stdout == b"True\n", nested.stderr
        assert not is_free(path), "a child's end does not free it"
    assert is_free(path)


def test_a_child_has_no_claim_on_another_lock(path, holder, tmp_path):
    holder("inherit")
    with lock.held(tmp_path / "other", "parent", print):
        child = command.run([sys.executable, "-c", ENTER, str(path)], timeout_s=LIMIT_S)
    assert child.stdout.splitlines()[-1] == b"False", child.stderr


@pytest.mark.parametrize("text", ["", "x", "-1", "99999", "0"])
def test_a_stale_word_in_the_environment_gives_no_claim(path, holder, monkeypatch, text):
    holder("inherit")
    monkeypatch.setenv(lock.LOCK_VARIABLE, text)
    with lock.held(path, "second", lambda text: None, lambda: True) as free:
        assert not free


def test_the_lock_is_free_again_when_the_block_raises(path):
    with pytest.raises(ZeroDivisionError), lock.held(path, "first", print):
        1 / 0  # noqa: B018
    assert is_free(path)
    assert lock.LOCK_VARIABLE not in os.environ
    assert command.inherited_descriptors == []


def test_no_more_than_the_counted_places_are_given(tmp_path):
    with (
        lock.one_of(tmp_path / "places", "place", 2, lambda: True) as first,
        lock.one_of(tmp_path / "places", "place", 2, lambda: True) as second,
        lock.one_of(tmp_path / "places", "place", 2, lambda: True) as third,
    ):
        assert (first, second, third) == (True, True, False)
    with lock.one_of(tmp_path / "places", "place", 2, lambda: True) as again:
        assert again


def test_a_place_that_becomes_free_is_taken(tmp_path):
    first = lock.one_of(tmp_path, "place", 1, lambda: True)
    assert first.__enter__()
    asked = []

    def should_stop():
        asked.append(1)
        if len(asked) == 2:
            first.__exit__(None, None, None)
        return False

    with lock.one_of(tmp_path, "place", 1, should_stop) as free:
        assert free
    assert len(asked) == 2


def test_a_killed_holder_frees_its_place(tmp_path):
    code = "import sys,time\nfrom pathlib import Path\nfrom dataflow.lib import lock\n" + (
        "with lock.one_of(Path(sys.argv[1]), 'place', 1, lambda: True) as free:\n print(free, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    with lock.one_of(tmp_path, "place", 1, lambda: True) as free:
        assert not free
    process.kill()
    process.wait()
    process.stdout.close()
    with lock.one_of(tmp_path, "place", 1, lambda: True) as free:
        assert free
