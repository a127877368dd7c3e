"""The daemon: when it looks, what it runs, what an exit code means to the chain, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import world
from hung_mount import hung
from running_chain import LIMIT_S, SHIPPED, children_of, copy_in, put_flag, with_steps
from world import World

from dataflow.lib import checksum, context, daemon, flag, lock, place
from dataflow.lib.context import Requests
from dataflow.lib.custody import flags_folder, open_folder, outbox
from dataflow.lib.daemon import Chain
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry
from dataflow.lib.watch import Watch

STEP = '''"""A step for a test: does what its text file says, and leaves a line that tells when it ran."""

import os, signal, time
from pathlib import Path

from dataflow.lib import command, step
from dataflow.lib.errors import BadConfig, BadFile, HostDown, TryLater

HERE = Path(__file__)
PARTS = ("data", "pictures")


def tell(word):
    with open(HERE.parent / "ran", "a") as ran:
        ran.write(f"{HERE.stem} {word}\\n")


def what_to_do():
    return HERE.with_suffix(".does").read_text().strip()


def find(ctx):
    tell(ctx.part or "ran")
    what = what_to_do()
    if what == "1":
        raise TryLater("not now")
    if what == "2":
        raise BadConfig("a setting is wrong")
    if what == "3":
        raise RuntimeError("a bug")
    if what == "75":
        raise HostDown("nobody answers")
    if what == "killed" or (what == "killed with a part" and ctx.part):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "looks":
        os.stat(HERE.parent / "mount" / "anything")
    if what == "asks":
        command.run(["stat", HERE.parent / "mount" / "anything"], timeout_s=None)
    if what == "hangs":
        while not (HERE.parent / "go on").exists():
            time.sleep(0.05)
    if what in ("works", "is stubborn"):
        return [HERE.parent / "work" / str(n) for n in range(100)]
    return []


def batch(ctx, files):
    return 1


def handle(ctx, files):
    for file in files:
        tell(file.name)
        while not (HERE.parent / "go on").exists() and not ctx.requests.stop:
            if ctx.requests.give_way and what_to_do() == "works":
                break
            time.sleep(0.02)
        yield step.done(file, "done")
'''


class Own:
    """A host whose list is made of steps for a test."""

    def __init__(self, tmp_path: Path, host: str = "site-linux") -> None:
        self.folder = tmp_path / "own"
        self.folder.mkdir()
        (self.folder / "work").mkdir()
        for number in range(100):
            (self.folder / "work" / str(number)).touch()
        self.host = host
        self.root = tmp_path / "world"
        self.tmp_path = tmp_path
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.log = tmp_path / "said"

    def step(self, name: str, does: str = "0") -> str:
        """A step of that name; what it does is an exit code, or a word that `STEP` knows; `is stubborn` gives no way."""
        program = self.folder / f"{name}.py"
        program.write_text(STEP)
        program.with_suffix(".does").write_text(does)
        return str(program)

    def does(self, name: str, what: str) -> None:
        (self.folder / f"{name}.does").write_text(what)

    def go_on(self) -> None:
        """Let what hangs or works go on."""
        (self.folder / "go on").touch()

    def world(self, steps: Sequence[str], overrides: Sequence[str] = ()) -> World:
        return world.make(self.root, overrides, source=with_steps(self.tmp_path / "config.yaml", self.host, steps))

    @property
    def ran(self) -> list[str]:
        """What ran, in order: `<step> <part, or file>`."""
        try:
            return (self.folder / "ran").read_text().splitlines()
        except FileNotFoundError:
            return []

    def start(self, made: World, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """The daemon as a process of its own."""
        environment = {**os.environ, **made.config.environment(), "PYTHONPATH": str(SHIPPED.parent), **variables}
        argv = [sys.executable, "-m", "dataflow", "daemon", self.host, "--radar", "sas", *words]
        with self.log.open("ab") as said:
            process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        self.daemons.append(process)
        return process

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not so: {what}\nran: {self.ran}\n{self.log.read_text(errors='replace')}"
            time.sleep(0.02)

    def ran_is(self, expected: Sequence[str]) -> None:
        self.until(lambda: self.ran == list(expected), f"what ran is {expected}")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    made = Own(tmp_path)
    yield made
    for process in made.daemons:
        process.kill()
        process.wait()


@contextlib.contextmanager
def chain_of(made: World, host: str = "site-linux", seed: int = 1) -> Iterator[tuple[Chain, Watch]]:
    """The daemon's own parts in this process."""
    ctx = replace(made.context(host, step="daemon"), randomness=random.Random(seed), requests=Requests())
    with Watch([flags_folder(ctx.here)], None) as watch:
        yield Chain(ctx), watch
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("does", "ran", "code", "stays"),
    [
        ("0 0 0", "abc", Exit.ACCOUNTED, False),
        ("0 1 0", "abc", Exit.LEFT_OVER, False),
        ("0 2 0", "ab", Exit.CONFIG, True),
        ("0 3 0", "ab", Exit.BUG, True),
        ("killed 0 0", "a", Exit.BUG, True),
        ("75 1 0", "abc", Exit.UNREACHABLE, True),
        ("75 3 0", "ab", Exit.BUG, True),
        ("75 2 0", "ab", Exit.CONFIG, True),
    ],
)
def test_what_an_exit_code_means_to_the_chain(own: Own, does: str, ran: str, code: Exit, stays: bool) -> None:
    steps = [own.step(name, what) for name, what in zip("abc", does.split(), strict=True)]
    made = own.world(steps)
    here = made.here("site-linux")
    path = put_flag(here, "borealis", [Entry("20261101.1400.00.sas.0.rawacf.h5", 5, "0" * 64)])
    with chain_of(made) as (chain, watch):
        assert chain.run(watch) is code
    assert own.ran == [f"{name} ran" for name in ran]
    assert path.exists() == stays
    assert [found.files[0].name for _, found in flag.read_folder(open_folder(here))] == ["20261101.1400.00.sas.0.rawacf.h5"]


def test_a_step_that_something_kills_at_every_try_is_told_once_and_until_it_has_run(own: Own) -> None:
    """It records nothing itself, and the chain behind it stands still: out of memory, say, on the same file again and again."""
    made = own.world([own.step("a", "killed")])
    told = lambda: [r["message"] for r in made.records("site-linux") if r["event"] == "alert"]  # noqa: E731
    with chain_of(made) as (chain, watch):
        for _ in range(2):
            assert chain.run(watch) is Exit.BUG
        (message,) = told()
        assert "/a.py was ended by the signal SIGKILL" in message and "memory ran out" in message
        own.does("a", "0")
        assert chain.run(watch) is Exit.ACCOUNTED
        own.does("a", "killed")
        assert chain.run(watch) is Exit.BUG and len(told()) == 2, "it had ended, so it is news"


def test_of_a_step_that_is_twice_in_the_list_each_is_told_once(own: Own) -> None:
    """One of them runs well each time, which is no news of the other."""
    step = own.step("a", "killed with a part")
    made = own.world([step, f"{step} data"])
    with chain_of(made) as (chain, watch):
        for _ in range(2):
            assert chain.run(watch) is Exit.BUG
    assert len([r for r in made.records("site-linux") if r["event"] == "alert"]) == 1


@pytest.mark.parametrize("limit", ["step_limit_s", "below_flag_limit_s"])
def test_a_step_that_the_daemon_kills_is_told_with_the_reason(own: Own, limit: str) -> None:
    """Nobody shall look for a lack of memory."""
    steps = ["send_flag"] if limit == "below_flag_limit_s" else []
    made = own.world([*steps, own.step("a", "hangs")], ["daemon.stop_timeout_s=0.5", f"daemon.{limit}=2"])
    process = own.start(made)
    own.until(lambda: "a ran" in own.ran, "it hangs")
    put_flag(made.here("site-linux"), "borealis", [])
    told = lambda: [r["message"] for r in made.records("site-linux") if r["event"] == "alert"]  # noqa: E731
    own.until(lambda: bool(told()), "it was killed and told")
    (message,) = told()
    assert f"(daemon.{limit}), and when asked it did not end within" in message and "memory" not in message
    own.go_on()
    process.terminate()
    assert process.wait(LIMIT_S) == Exit.ACCOUNTED


def test_a_wrong_configuration_ends_the_daemon(own: Own) -> None:
    made = own.world([own.step("a", "2")])
    assert own.start(made).wait(LIMIT_S) == Exit.CONFIG
    assert "a setting is wrong" in own.log.read_text()


@pytest.mark.parametrize("code", [0, 1, 3, 75])
def test_once_ends_with_the_code_of_its_run(own: Own, code: int) -> None:
    made = own.world([own.step("a", str(code)), own.step("b")])
    assert own.start(made, "--once").wait(LIMIT_S) == code
    assert own.ran == ["a ran"] + (["b ran"] if code != 3 else [])


def test_what_fails_is_tried_again_less_and_less_often(own: Own) -> None:
    made = own.world([own.step("a", "75")])
    times = made.config.flow.daemon
    with chain_of(made) as (chain, watch):
        waits = []
        for failures in range(1, 12):
            if failures <= 3:
                assert chain.run(watch) is Exit.UNREACHABLE
            else:
                chain.failures = failures
            assert chain.failures == failures
            waits.append(chain.seconds_to_next_look(Exit.UNREACHABLE))
        for number, wait_s in enumerate(waits):
            middle_s = times.back_off_first_s * 2**number
            assert min(0.75 * middle_s, 0.75 * times.back_off_last_s) <= wait_s <= min(1.25 * middle_s, times.back_off_last_s)
        assert len(set(waits[:6])) == 6 and waits[0] != times.back_off_first_s, "with jitter"
        own.does("a", "3")
        assert chain.run(watch) is Exit.BUG
        assert chain.failures == 12, "a bug is no less a failure"
        own.does("a", "1")
        assert chain.run(watch) is Exit.LEFT_OVER
        assert chain.failures == 0 and chain.seconds_to_next_look(Exit.LEFT_OVER) == times.look_every_s
    with chain_of(made, seed=1) as (same, _), chain_of(made, seed=2) as (other, _):
        same.failures = other.failures = 1
        assert same.seconds_to_next_look(Exit.BUG) == waits[0] != other.seconds_to_next_look(Exit.BUG)


def test_it_looks_when_it_starts_when_a_flag_comes_and_by_the_clock(own: Own) -> None:
    made = own.world([own.step("a")])
    put_flag(made.here("site-linux"), "borealis")
    own.start(made)
    own.ran_is(["a ran"])
    own.until(lambda: not place.scan(flags_folder(made.here("site-linux"))), "the flag that came before the start is closed")
    put_flag(made.here("site-linux"), "borealis")
    own.ran_is(["a ran"] * 2)
    own.until(lambda: not place.scan(flags_folder(made.here("site-linux"))), "the flag is closed")
    own.daemons[0].send_signal(signal.SIGTERM)
    assert own.daemons[0].wait(LIMIT_S) == Exit.ACCOUNTED
    by_the_clock = world.make(own.root, ["daemon.look_every_s=0.5"], source=made.config.source)
    own.start(by_the_clock)
    own.until(lambda: len(own.ran) >= 2 + 3, "it looks again and again without any event")


def test_a_full_event_queue_means_look_now(own: Own) -> None:
    made = own.world([own.step("a")])
    folder = flags_folder(made.here("site-linux"))
    process = own.start(made)
    own.until(lambda: "a.py: nothing" in own.log.read_text(), "the first look is over")
    own.until(lambda: is_asleep(process.pid) and not children_of(process.pid), "it waits")
    process.send_signal(signal.SIGSTOP)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [os.fspath(folder / name) for name in (".one", ".two")]
    for number in range(limit + 10):
        os.close(os.open(names[number % 2], os.O_WRONLY | os.O_CREAT))
    put_flag(made.here("site-linux"), "borealis")  # its own event finds no room
    process.send_signal(signal.SIGCONT)
    own.ran_is(["a ran"] * 2)
    own.until(lambda: not place.scan(folder), "the flag is closed")


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_flag_below_send_flag_starts_the_list_again_after_the_batch(own: Own) -> None:
    made = own.world([own.step("data"), "send_flag", own.step("pictures", "works")])
    own.start(made)
    own.until(lambda: own.ran == ["data ran", "pictures ran", "pictures 0"], "the first picture is in hand")
    put_flag(made.here("site-linux"), "borealis")
    own.ran_is(["data ran", "pictures ran", "pictures 0", "data ran", "pictures ran", "pictures 0"])
    (end, *_) = [r for r in made.records("site-linux") if r["step"] == "pictures" and r["event"] == "end"]
    assert (end["done"], end["waiting"], end["exit"]) == (1, 99, Exit.ACCOUNTED)


def test_a_flag_does_not_wait_longer_for_a_long_batch(own: Own) -> None:
    made = own.world([own.step("data"), "send_flag", own.step("pictures", "is stubborn")], ["daemon.below_flag_limit_s=0.5"])
    own.start(made)
    own.until(lambda: "pictures 0" in own.ran, "the first picture is in hand")
    put_flag(made.here("site-linux"), "borealis")
    own.ran_is(["data ran", "pictures ran", "pictures 0", "data ran", "pictures ran", "pictures 0"])


def test_a_flag_above_send_flag_lets_the_data_finish_first(own: Own) -> None:
    made = own.world([own.step("data", "hangs"), "send_flag", own.step("pictures")])
    own.start(made)
    own.ran_is(["data ran"])
    put_flag(made.here("site-linux"), "borealis")
    own.go_on()
    own.ran_is(["data ran", "data ran", "pictures ran"])


def test_a_step_that_has_just_started_is_not_killed_by_a_flag(own: Own) -> None:
    """Steps inherit SIGUSR1 blocked, and one that came before they listened is delivered when they do."""
    made = own.world([own.step("a")])
    process = own.start(made)
    own.ran_is(["a ran"])
    blocked = int(re.search(r"SigBlk:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16)
    assert blocked & (1 << (signal.SIGUSR1 - 1))
    code = (
        "import os, signal\n"
        "from dataflow.lib.context import Requests\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "requests = Requests()\n"
        "requests.listen()\n"
        "raise SystemExit(0 if requests.give_way else 9)\n"
    )
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parent)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=LIMIT_S).returncode == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_step_that_is_done_is_not_killed_by_what_it_is_asked(own: Own, sent: signal.Signals) -> None:
    """A flag may come at the very end, when Python has given signals their default meaning back: the C library sends it here.

    It is the last of all, after Python, and gives raise(3) the exit code, so a signal that is not heard is the exit code.
    """
    made = own.world([own.step("a")])
    program = (
        "import ctypes, sys; from dataflow import cli; libc = ctypes.CDLL(None); "
        "libc.on_exit(ctypes.cast(getattr(libc, 'raise'), ctypes.c_void_p), None); "
        "sys.exit(int(sys.argv[1]) if cli.main(sys.argv[2:]) == 0 else 99)"
    )
    words = ["run", str(own.folder / "a.py"), "--host", own.host, "--radar", "sas"]
    environment = {**os.environ, **made.config.environment(), "PYTHONPATH": str(SHIPPED.parent)}
    argv = [sys.executable, "-c", program, str(int(sent)), *words]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == sent, ended.stderr
    assert own.ran == ["a ran"]


def test_when_asked_to_end_the_file_in_hand_is_finished(own: Own) -> None:
    made = own.world([own.step("a", "works"), own.step("b")])
    process = own.start(made)
    own.until(lambda: "a 0" in own.ran, "the first file is in hand")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == Exit.ACCOUNTED
    assert own.ran == ["a ran", "a 0"]
    (end,) = [r for r in made.records("site-linux") if r["event"] == "end"]
    assert (end["done"], end["waiting"], end["exit"]) == (1, 99, Exit.ACCOUNTED)
    assert lock_is_free(made)


def test_a_step_that_does_not_end_in_time_is_killed(own: Own) -> None:
    made = own.world([own.step("a", "hangs"), own.step("b")], ["daemon.stop_timeout_s=0.5"])
    process = own.start(made)
    own.ran_is(["a ran"])
    (step,) = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == Exit.ACCOUNTED
    assert not Path(f"/proc/{step}").exists() and own.ran == ["a ran"]
    assert lock_is_free(made)


def lock_is_free(made: World) -> bool:
    with (made.here("site-linux").state / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_two_daemons_do_not_run_at_once(own: Own) -> None:
    made = own.world([own.step("a", "hangs"), own.step("b")])
    first = own.start(made)
    own.ran_is(["a ran"])
    second = own.start(made, "--once")
    own.until(lambda: "waiting for" in own.log.read_text(), "the second says for whom it waits")
    said = f"waiting for the daemon site-linux of sas on sas-site (process {first.pid})"
    assert said in own.log.read_text()
    assert own.ran == ["a ran"] and second.poll() is None
    own.go_on()
    assert second.wait(LIMIT_S) == Exit.ACCOUNTED
    assert own.ran == ["a ran", "b ran", "a ran", "b ran"], "one whole run after the other"


def test_a_step_by_hand_waits_for_the_daemon(own: Own) -> None:
    made = own.world([own.step("a", "hangs"), own.step("b")])
    own.start(made)
    own.ran_is(["a ran"])
    argv = [sys.executable, "-m", "dataflow", "run", own.step("b"), "--radar", "sas"]
    environment = {**os.environ, **made.config.environment(), "PYTHONPATH": str(SHIPPED.parent)}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as by_hand:
        assert by_hand.stderr is not None
        assert by_hand.stderr.readline().startswith("waiting for the daemon site-linux of sas")
        own.go_on()
        assert by_hand.wait(LIMIT_S) == Exit.ACCOUNTED
    assert own.ran == ["a ran", "b ran", "b ran"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\x00\xff{", "cannot be read"),
        (b'{"v":1,"id":"x"}', "cannot be read"),
        (b'{"v":2,"id":"20261101T140000.000000Z","radar":"sas","from":"borealis","new":1}', "upgrade"),
    ],
)
def test_a_flag_that_cannot_be_read_is_set_aside_and_the_look_is_made(own: Own, content: bytes, said: str) -> None:
    made = own.world([own.step("a")])
    folder = flags_folder(made.here("site-linux"))
    name = "20261101T140000.000000Z.sas.borealis.flag"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    with chain_of(made) as (chain, watch):
        assert chain.run(watch) is Exit.ACCOUNTED
    assert own.ran == ["a ran"]
    assert place.scan(folder) == [] and (folder / "unreadable" / name).read_bytes() == content
    (alert,) = [r for r in made.records("site-linux") if r["event"] == "alert"]
    assert alert["step"] == "daemon" and said in alert["message"] and name in alert["message"]


def test_a_flag_is_not_at_fault_when_its_manifest_cannot_be_kept(own: Own) -> None:
    made = own.world([own.step("a")])
    here = made.here("site-linux")
    path = put_flag(here, "borealis", [Entry("20261101.1400.00.sas.0.rawacf.h5", 5, "0" * 64)])
    part = place.part_of(open_folder(here) / path.name)
    part.mkdir(parents=True)
    with chain_of(made) as (chain, watch):
        assert chain.run(watch) is Exit.ACCOUNTED
        assert path.exists() and not (path.parent / "unreadable").exists()
        assert any("taken with the next run" in text for text in made.said)
        part.rmdir()
        chain.run(watch)
    assert not path.exists() and (open_folder(here) / path.name).exists()


def test_a_manifest_that_a_killed_daemon_kept_is_durable_before_its_flag_goes(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    made = own.world([own.step("a")])
    here = made.here("site-linux")
    path = put_flag(here, "borealis", [Entry("20261101.1400.00.sas.0.rawacf.h5", 5, "0" * 64)])
    open_folder(here).mkdir(parents=True)
    (open_folder(here) / path.name).write_bytes(path.read_bytes())
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(checksum, "sync_folder", lambda folder: synced.append((folder, path.exists())))
    with chain_of(made) as (chain, watch):
        chain.run(watch)
    assert (open_folder(here), True) in synced and not path.exists()


@pytest.mark.parametrize("does", ["looks", "asks"])
def test_a_step_that_hangs_in_the_kernel_is_left_behind(own: Own, does: str) -> None:
    """It hangs itself, or a program hangs that it has started and waits for."""
    made = own.world([own.step("hang", does), own.step("b")], ["daemon.stuck_after_s=0.3"])
    here = made.here("site-linux")
    mount = own.folder / "mount"
    mount.mkdir()
    with chain_of(made) as (chain, watch):
        with hung(mount):
            assert chain.run(watch) is Exit.LEFT_OVER
            assert own.ran == ["hang ran", "b ran"], "the other steps go on"
            assert any(process.is_there() for process in chain.stuck[os.fspath(own.folder / "hang.py")])
            path = put_flag(here, "borealis")
            watch.wait(LIMIT_S, lambda: False)
            assert chain.run(watch) is Exit.LEFT_OVER
            assert own.ran == ["hang ran", "b ran", "b ran"], "it is not started a second time"
            assert not path.exists(), "flags are taken"
            assert not lock_is_free(made), "nobody else may run while it may still write"
            assert "hangs in the kernel" in " ".join(alerts(made)) and len(alerts(made)) == 1
        own.until(lambda: not any(process.is_there() for process in next(iter(chain.stuck.values()))), "it has ended")
        assert chain.run(watch) is Exit.ACCOUNTED or does == "looks", "the file is not there"
        assert own.ran[3:] == ["hang ran", "b ran"] and not chain.stuck
        assert lock_is_free(made)
        with hung(mount):
            assert chain.run(watch) is Exit.LEFT_OVER
            assert len(hangs_told(made)) == 2, "the next time is news"
        chain.held.close()


def test_a_new_daemon_does_not_wait_for_what_hung_under_the_old_one(own: Own) -> None:
    """The old one was killed and what it had started too, but that cannot end, so it holds the lock for ever."""
    made = own.world([own.step("a", "looks"), own.step("b")], ["daemon.stuck_after_s=0.3"])
    mount = own.folder / "mount"
    mount.mkdir()
    with hung(mount) as asked:
        first = own.start(made)
        own.until(lambda: asked, "the step hangs")
        first.kill()
        first.wait()
        assert not lock_is_free(made)
        own.does("a", "0")
        second = own.start(made, "--once")
        assert second.wait(LIMIT_S) == Exit.ACCOUNTED
        assert own.ran == ["a ran", "a ran", "b ran"]
        assert "were killed and hang in the kernel" in own.log.read_text()
    assert lock_is_free(made)


def hangs_told(made: World) -> list[str]:
    return [text for text in alerts(made) if "hangs in the kernel" in text]


def alerts(made: World) -> list[str]:
    return [r["message"] for r in made.records("site-linux") if r["event"] == "alert"]


def test_it_speaks_to_systemd(own: Own, tmp_path: Path) -> None:
    made = own.world([own.step("a", "hangs")])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        process = own.start(made, NOTIFY_SOCKET=os.fspath(tmp_path / "notify"))
        assert "READY=1" in manager.recv(4096).decode().splitlines()
        until_told(manager, f"STATUS=running {own.folder / 'a.py'}")
        until_told(manager, "WATCHDOG=1")
        until_told(manager, "WATCHDOG=1")
        own.go_on()
        told = until_told(manager, "STATUS=last run ended with 0")
        assert "next look in 600 s at the latest" in told
        until_told(manager, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        until_told(manager, "STOPPING=1")
        assert process.wait(LIMIT_S) == Exit.ACCOUNTED


def test_while_it_waits_for_the_lock_it_does_not_seem_to_hang(own: Own, tmp_path: Path) -> None:
    made = own.world([own.step("a")])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        with lock.held(made.here("site-linux").state / "lock", "a test", lambda text: None):
            process = own.start(made, NOTIFY_SOCKET=os.fspath(tmp_path / "notify"))
            until_told(manager, "WATCHDOG=1")
            until_told(manager, "WATCHDOG=1")
            assert "waiting for a test" in own.log.read_text() and own.ran == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == Exit.ACCOUNTED


def until_told(manager: socket.socket, beginning: str) -> str:
    while not (told := manager.recv(4096).decode()).startswith(beginning):
        pass
    return told


def test_an_idle_daemon_costs_nothing(own: Own) -> None:
    made = own.world([own.step("a")])
    process = own.start(made)
    own.until(lambda: "a.py: nothing" in own.log.read_text(), "the first look is over")
    own.until(lambda: is_asleep(process.pid) and not children_of(process.pid), "it waits")
    before = cpu_ticks(process.pid)
    time.sleep(2.0)
    assert cpu_ticks(process.pid) - before <= 1
    resident_kib = int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])
    assert resident_kib < 40 * 1024


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


HEAVY = {
    "importlib.metadata",
    "numpy",
    "h5py",
    "pydarnio",
    "dmap",
    "matplotlib",
    "PIL",
    "pandas",
    "scipy",
    "multiprocessing",
    "asyncio",
    "urllib.request",
}


@pytest.mark.parametrize(
    ("words", "code"),
    [("daemon borealis --once", Exit.UNREACHABLE), ("run rsync_to_nas", Exit.ACCOUNTED), ("run send_flag", Exit.UNREACHABLE)],
)
def test_what_runs_on_the_radar_computer_imports_nothing_heavy(own: Own, words: str, code: Exit) -> None:
    site = "radars.sas.machines.site-linux"
    made = world.make(own.root, [f"{site}.address=127.0.0.1", f"{site}.port=1"])
    here = made.here("borealis")
    rawacf = here.folder("data") / "20211101" / "20211101.1400.00.sas.0.rawacf.h5"
    rawacf.parent.mkdir()
    rawacf.write_bytes(b"not opened on this host")
    os.utime(rawacf, (datetime(2021, 11, 1, 16, tzinfo=UTC).timestamp(),) * 2)
    outbox(here).mkdir()
    flag.write(outbox(here), "sas", "borealis", "test", [], made.clock)
    program = "import sys; from dataflow import cli; code = cli.main(sys.argv[1:]); print(int(code), *sys.modules)"
    environment = {**os.environ, **made.config.environment(), "PYTHONPATH": str(SHIPPED.parent), "DATAFLOW_HOST": "borealis"}
    argv = [sys.executable, "-c", program, *words.split(), "--radar", "sas"]
    told = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    ended, *modules = told.stdout.split()
    assert int(ended) == code and "dataflow.lib.context" in modules, told.stderr
    assert rawacf.exists() == (words == "run send_flag")
    assert not HEAVY & set(modules)


def test_a_host_that_is_down_is_tried_once_in_a_run(own: Own) -> None:
    """Five steps of site-linux need campus; the first that finds nobody there speaks for all, and local work goes on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        campus = "radars.sas.machines.campus"
        made = world.make(own.root, [f"{campus}.address=127.0.0.1", f"{campus}.port={port}", "files.settle_s=0"])
        here = made.here("site-linux")
        for folder, name in (("rawacf_array", "20261101.1400.00.sas.0.rawacf.h5"), ("cameras", "20261101.1400.cam210.jpg")):
            here.folder(folder).mkdir(parents=True, exist_ok=True)
            (here.folder(folder) / name).write_bytes(b"x")
        path = put_flag(here, "borealis")
        place.make_folder(here, here.state / "outbox")
        put_in_outbox = flag.write(here.state / "outbox", "sas", "site-linux", "test", [], made.clock)
        assert own.start(made, "--once").wait(LIMIT_S) == Exit.UNREACHABLE
        assert attempts(made) == 1
        steps = {r["step"]: r["exit"] for r in made.records("site-linux") if r["event"] == "end"}
        assert steps["plot_antennas_iq"] == Exit.ACCOUNTED and steps["send_flag"] == steps["send_logs"] == Exit.UNREACHABLE
        assert path.exists() and (here.state / "outbox" / put_in_outbox.file_name).exists()
        assert own.start(made, "--once").wait(LIMIT_S) == Exit.UNREACHABLE
        assert attempts(made) == 2, "the next run tries again"


def attempts(made: World) -> int:
    (spent,) = (made.here("site-linux").machine_state / "connections").iterdir()
    return spent.read_text().count(",") + 1


def test_the_next_file_of_the_radar_is_waited_for_and_no_longer(own: Own, tmp_path: Path) -> None:
    """Between runs the radar computer sleeps until a file may be finished; one that became so during a run is taken at once."""
    made = own.world([])
    data = made.here("borealis").folder("data") / "20261101"
    data.mkdir()
    times, look_every_s = made.config.flow.files, made.config.flow.daemon.look_every_s
    start = datetime(2026, 11, 1, 14, tzinfo=UTC)
    with chain_of(made, "borealis") as (chain, _):
        made.clock.stop_at(start + timedelta(hours=2))
        assert chain.seconds_to_next_look(Exit.ACCOUNTED) == look_every_s
        file = data / "20261101.1400.00.sas.0.rawacf.h5"
        file.touch()
        os.utime(file, ((start + timedelta(hours=2)).timestamp(),) * 2)
        chain.began = made.clock()
        made.clock.advance(30)
        chain.ctx.flow.daemon  # noqa: B018
        assert chain.seconds_to_next_look(Exit.ACCOUNTED) == min(
            times.complete_after_s - 30, made.config.flow.daemon.look_every_s
        )
        made.clock.advance(times.complete_after_s)
        assert chain.seconds_to_next_look(Exit.ACCOUNTED) == daemon.TICK_S
        chain.began = made.clock()
        assert chain.seconds_to_next_look(Exit.ACCOUNTED) == look_every_s, "no file keeps it awake"


def test_a_file_that_comes_with_an_old_date_during_a_run_is_taken_at_once(tmp_path: Path) -> None:
    """As `cp -p` brings it: by its date it was finished when the run began, so nothing but its event tells that it is new."""
    own = Own(tmp_path, "borealis")
    made = own.world([own.step("a", "hangs")])
    data = made.here("borealis").folder("data")
    own.start(made)
    own.ran_is(["a ran"])
    copy_in(own.folder / "a.py", data / "20261101", datetime(2026, 11, 1, 16, tzinfo=UTC))
    own.go_on()
    own.ran_is(["a ran"] * 2)
    own.until(lambda: not children_of(own.daemons[0].pid), "it waits")
    time.sleep(1.0)
    assert own.ran == ["a ran"] * 2, "and no more often"
    own.daemons[0].terminate()
    assert own.daemons[0].wait(LIMIT_S) == Exit.ACCOUNTED


def test_a_pause_is_honoured_within_one_file(own: Own) -> None:
    made = own.world([own.step("a", "works"), own.step("b")])
    own.start(made)
    own.until(lambda: "a 0" in own.ran, "the first file is in hand")
    place.write_whole(pause_file_of(made, "a"), b"a new disk\n")
    own.go_on()
    own.ran_is(["a ran", "a 0", "b ran"])
    pause_file_of(made, "a").unlink()
    put_flag(made.here("site-linux"), "borealis")
    own.ran_is(["a ran", "a 0", "b ran", "a ran", *(f"a {n}" for n in range(100)), "b ran"])


def pause_file_of(made: World, step: str) -> Path:
    path = context.pause_file(made.here("site-linux"), f"/where/ever/{step}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_wakes_the_daemon(own: Own) -> None:
    """New files and new day folders on the radar computer, flags; nothing that is hidden, and no event twice."""
    made = own.world([])
    here = made.here("borealis")
    data, day = here.folder("data"), here.folder("data") / "20261101"
    with Watch([flags_folder(here)], data) as watch:
        assert not wakes(watch), "nothing happened"
        (data / ".hidden").touch()
        assert not wakes(watch)
        day.mkdir()
        assert wakes(watch)
        (day / "20261101.1400.00.sas.0.rawacf.h5").touch()
        assert wakes(watch), "the new day folder is watched"
        with (day / "20261101.1400.00.sas.0.rawacf.h5").open("ab") as file:
            file.write(b"a record")
        assert not wakes(watch), "every record of the radar is not news"
        assert not watch.flag_came
        (flags_folder(here) / "no flag").touch()
        assert not wakes(watch) and not watch.flag_came
        put_flag(here, "borealis")
        assert wakes(watch) and watch.flag_came
        shutil.rmtree(day)
        wakes(watch)
        day.mkdir()
        assert wakes(watch)
        (day / "20261101.1400.00.sas.0.rawacf.h5").touch()
        assert wakes(watch), "a folder that came again is watched again"
        shutil.rmtree(data)
        wakes(watch)
        day.mkdir(parents=True)
        watch.watch_data()
        (day / "20261101.1600.00.sas.0.rawacf.h5").touch()
        assert wakes(watch), "so is the data folder, before the next wait"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def wakes(watch: Watch) -> bool:
    """Whether waiting ends before its time because of what has happened."""
    return watch.wait(0.2, lambda: False)
