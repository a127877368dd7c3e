"""Processes: argv and never a shell, a limit that ends the whole group, and nobody left behind who should not be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dataflow.lib import command
from dataflow.lib.errors import TryLater

LIMIT_S = 30.0


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def run(*argv, **more) -> command.Finished:
    return command.run(argv, **{"timeout_s": LIMIT_S, **more})


def test_a_program_runs_to_its_end():
    finished = run("sh", "-c", "cat; echo two >&2; exit 3", stdin=b"one\n")
    assert (finished.returncode, finished.stdout, finished.stderr) == (3, b"one\n", b"two\n")
    assert not finished.timed_out and not finished.interrupted


def test_arguments_are_not_text_for_a_shell(tmp_path):
    hostile = ["; reboot", "$(id)", "`id`", "new\nline", os.fsdecode(b"\xff"), "*", "", "-n"]
    finished = run(
        sys.executable, "-c", "import os,sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))", *hostile
    )
    assert finished.stdout == b"\0".join(map(os.fsencode, hostile))
    path = tmp_path / "a b;c"
    path.write_bytes(b"content")
    assert run("cat", path).stdout == b"content"


def test_more_than_a_pipe_holds_goes_in_and_out():
    content = os.urandom(3 << 20)
    finished = run("tee", "/dev/stderr", stdin=content)
    assert finished.stdout == content and finished.stderr == content


def test_a_program_that_reads_nothing_does_not_hang():
    assert run("true", stdin=b"x" * (1 << 20)).returncode == 0


def test_a_program_that_is_slow_to_read_gets_all_of_its_input():
    late = f"sleep {2 * command.POLL_S}; exec wc -c"
    finished = run("sh", "-c", late, stdin=b"x" * (1 << 20))
    assert (finished.timed_out, finished.stdout.strip()) == (False, b"1048576")


def test_the_environment_is_added_to(monkeypatch):
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    finished = run("sh", "-c", "echo $FROM_OUTSIDE $FROM_HERE", environment={"FROM_HERE": "2"})
    assert finished.stdout == b"1 2\n"


def test_a_program_that_is_not_there_is_trouble_with_the_machine():
    with pytest.raises(TryLater, match="cannot start no-such-program: No such file or directory; is it installed"):
        run("no-such-program")


def test_the_last_lines_are_kept_as_one_line():
    finished = run("sh", "-c", "for n in $(seq 100); do echo \"  line $n  \" >&2; echo >&2; done; printf '\\377 end' >&2")
    assert finished.last_lines == " | ".join([*(f"line {n}" for n in range(90, 101)), "\ufffd end"])
    assert len(finished.last_lines.split(" | ")) == command.KEPT_LINES


def told(path: Path, lines: int) -> Callable[[], bool]:
    """True once a program has written so many lines into a file."""
    return lambda: path.exists() and path.read_text().count("\n") >= lines


def test_a_limit_ends_a_program():
    finished = run("sleep", "60", timeout_s=0.3)
    assert finished.timed_out and not finished.interrupted and finished.returncode == -signal.SIGTERM


def test_the_whole_group_is_ended(tmp_path):
    pids = tmp_path / "pids"
    text = f"sleep 60 & echo $! >{pids}; sh -c 'sleep 60; true' & echo $! >>{pids}; wait"
    assert run("sh", "-c", text, should_stop=told(pids, 2)).interrupted
    assert all(is_gone_soon(int(pid)) for pid in pids.read_text().split())


def test_who_does_not_listen_is_killed_with_its_group(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "TERMINATE_GRACE_S", 0.2)
    pids = tmp_path / "pids"
    deaf = f"trap '' TERM; echo $$ >>{pids}; sh -c 'echo $$ >>{pids}; while :; do sleep 1; done'; true"
    finished = run("sh", "-c", deaf, should_stop=told(pids, 2))
    assert finished.interrupted and finished.returncode == -signal.SIGKILL
    assert all(is_gone_soon(int(pid)) for pid in pids.read_text().split())


def test_who_leaves_children_that_do_not_listen_takes_them_along(tmp_path):
    """The program ends at the first word, its child does not."""
    pids = tmp_path / "pids"
    deaf = f"trap '' TERM; echo $$ >>{pids}; while :; do sleep 1; done"
    finished = run("sh", "-c", 'sh -c "$0" & wait', deaf, should_stop=told(pids, 1))
    assert finished.returncode == -signal.SIGTERM
    assert is_gone_soon(int(pids.read_text()))


def test_being_asked_to_stop_interrupts():
    asked = []
    finished = run("sleep", "60", timeout_s=None, should_stop=lambda: bool(asked) or bool(asked.append(1)))
    assert finished.interrupted and not finished.timed_out and finished.returncode == -signal.SIGTERM


def test_what_was_said_before_the_end_is_kept(tmp_path):
    text = f"echo out; echo complaint >&2; echo x >{tmp_path / 'told'}; sleep 60"
    finished = run("sh", "-c", text, should_stop=told(tmp_path / "told", 1))
    assert (finished.stdout, finished.last_lines) == (b"out\n", "complaint")


@pytest.mark.parametrize("ends", ["by itself", "when asked"])
def test_somebody_left_behind_with_the_pipes_does_not_hold_up_the_run(tmp_path, monkeypatch, ends):
    monkeypatch.setattr(command, "PIPES_GRACE_S", 0.3)
    pid = tmp_path / "pid"
    text = f"setsid sh -c 'echo ready; echo $$ >{pid}; exec sleep 60' & while [ ! -s {pid} ]; do sleep 0.05; done; "
    by_itself = ends == "by itself"
    finished = run(
        "sh", "-c", text + ("exit 4" if by_itself else "sleep 60"), should_stop=(lambda: False) if by_itself else told(pid, 1)
    )
    try:
        assert finished.returncode == (4 if by_itself else -signal.SIGTERM)
        assert finished.stdout == b"ready\n"
        assert is_alive(int(pid.read_text())), "it left the group, so it is nobody's to end"
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


PARENT = """
import os, sys
from dataflow.lib import command
process = command.start([sys.executable, "-c", "import os,time; print(os.getpid(), flush=True); time.sleep(60)"], stdout=1)
process.wait()
"""


def test_children_die_with_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert is_gone_soon(child)


def test_only_what_is_to_be_inherited_is_inherited(tmp_path):
    lock, other = ((tmp_path / name).open("w") for name in ("lock", "other"))
    os.set_inheritable(other.fileno(), True)
    command.inherited_descriptors.append(lock.fileno())
    show = ["sh", "-c", "ls -l /proc/self/fd"]
    try:
        assert str(tmp_path / "lock") in run(*show).stdout.decode()
        assert str(tmp_path / "other") not in run(*show).stdout.decode()
        assert str(tmp_path / "lock") not in run(*show, inherit=False).stdout.decode()
    finally:
        command.inherited_descriptors.remove(lock.fileno())
        lock.close()
        other.close()


def test_a_program_has_a_group_of_its_own():
    """So that ctrl-C at a terminal reaches the step, which then decides what is finished first."""
    process = command.start(["sleep", "60"])
    try:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    finally:
        command.end_group(process)
    command.end_group(process)
