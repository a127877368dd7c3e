"""The daemon of one host and radar: look, run the ordered list under the lock, wait for an event or the timer.

It never touches a network mount and never works on a file itself: every step is a process of its own, so that a crash in
HDF5, the out-of-memory killer or a dead mount ends one step and not the chain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dataflow.lib import alert, command, finished, flag, hanging, in_hand, lock, names, place, sdnotify
from dataflow.lib.context import Context
from dataflow.lib.custody import flags_folder, open_folder
from dataflow.lib.errors import BadFile, Exit
from dataflow.lib.ssh import CHAIN_RUN_VARIABLE
from dataflow.lib.watch import Watch

TICK_S = 0.5
SEND_FLAG = "send_flag"
MEMORY = "a SIGKILL that nobody sent means that memory ran out (journalctl -k --grep oom): give its unit a higher MemoryMax"
FAILED = (Exit.BUG, Exit.UNREACHABLE)
"""After these the next run waits, ever longer."""
SEVEREST_FIRST = (Exit.CONFIG, Exit.BUG, Exit.UNREACHABLE, Exit.LEFT_OVER, Exit.ACCOUNTED)


def serve(ctx: Context, once: bool) -> Exit:
    """The loop. ``once``: run what is pending and end with the code of that run."""
    chain = Chain(ctx)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # what steps inherit, until they listen to it
    with Watch([flags_folder(ctx.here)], ctx.folder("data") if ctx.here.host.waits_on == "data" else None) as watch:
        sdnotify.notify("READY=1", "STATUS=looking")
        while not ctx.requests.stop:
            code = chain.run(watch)
            if once or code is Exit.CONFIG:
                return code
            wait_s = chain.seconds_to_next_look(code)
            sdnotify.notify(f"STATUS=last run ended with {int(code)}; waiting, next look in {wait_s:.0f} s at the latest")
            watch.watch_data()
            watch.wait(wait_s, lambda: ctx.requests.stop)
    sdnotify.notify("STOPPING=1")
    return Exit.ACCOUNTED


@dataclass(frozen=True, slots=True)
class Attended:
    """How a step ended: its exit code, and why the daemon killed it, if it did."""

    code: Exit
    why_killed: str = ""


@dataclass(slots=True)
class Chain:
    """What the daemon remembers from run to run: failures for the back-off, and steps that hang in the kernel."""

    ctx: Context
    failures: int = 0
    stuck: dict[str, list[hanging.Process]] = field(default_factory=dict)
    runs: int = 0
    began: datetime | None = None
    held: ExitStack = field(default_factory=ExitStack)

    def run(self, watch: Watch) -> Exit:
        """One run of the list under the lock; begins again from the top when a flag came in meanwhile, or data."""
        ctx = self.ctx
        holder = f"the daemon {ctx.here.host_name} of {ctx.here.radar} on {ctx.here.machine.name}"
        code = Exit.LEFT_OVER
        if not self.stuck:
            self.held.enter_context(lock.held(ctx.here.state / "lock", holder, ctx.say, self._asked_to_stop))
        again = True
        while again and not ctx.requests.stop:
            flags = self._open_flags()
            code = self._run_list(watch)
            if code in (Exit.ACCOUNTED, Exit.LEFT_OVER):
                _close(flags)
            again = code is not Exit.CONFIG and (watch.flag_came or (watch.data_came and code not in FAILED))
        self.failures = self.failures + 1 if code in FAILED else 0
        self._let_go_of_lock()
        return code

    def seconds_to_next_look(self, code: Exit) -> float:
        """The timer's interval, the back-off after a failure, or until the radar's next file may be finished."""
        times = self.ctx.flow.daemon
        if code in FAILED:
            back_off_s = min(times.back_off_first_s * 2.0 ** min(self.failures - 1, 20), times.back_off_last_s)
            return min(back_off_s * self.ctx.randomness.uniform(0.75, 1.25), times.back_off_last_s)
        next_s = self._seconds_to_next_file()
        return times.look_every_s if next_s is None else min(times.look_every_s, max(next_s, TICK_S))

    def _seconds_to_next_file(self) -> float | None:
        """Until a file that the last run had to leave may be finished; it may have become so while that run worked."""
        if self.ctx.here.host.waits_on != "data" or self.began is None:
            return None
        next_s = finished.look(self.ctx.folder("data"), self.ctx.flow.files, self.began).next_s
        return None if next_s is None else next_s - (self.ctx.clock() - self.began).total_seconds()

    def _asked_to_stop(self) -> bool:
        """What is asked again and again while another process holds the lock; whoever waits is not hanging."""
        sdnotify.notify("WATCHDOG=1")
        return self.ctx.requests.stop

    def _let_go_of_lock(self) -> None:
        """Release the lock, unless a step that hangs in the kernel still holds its copy: then nobody could take it again."""
        for step in list(self.stuck):
            self._still_hangs(step)
        if not self.stuck:
            self.held.close()

    def _still_hangs(self, step: str) -> bool:
        """True for a step that was left behind while it, or something that it had started, has not ended since."""
        if step not in self.stuck or any(process.is_there() for process in self.stuck[step]):
            return step in self.stuck
        del self.stuck[step]
        return False

    def _open_flags(self) -> list[Path]:
        """Keep the manifest of each flag that came in; returns those that may be closed after the run."""
        place.make_own_folder(open_folder(self.ctx.here))
        taken = []
        for path in place.scan(open_folder(self.ctx.here)) + place.scan(flags_folder(self.ctx.here)):
            try:
                if self._keep_manifest(path):
                    taken.append(path)
            except OSError as error:
                self.ctx.say(f"the flag {path.name} stays where it is and is taken with the next run: {error}")
        return [path for path in taken if path.parent == flags_folder(self.ctx.here)]

    def _keep_manifest(self, path: Path) -> bool:
        """Keep the manifest of one flag; False when it cannot be read, also not any more, and was set aside."""
        try:
            found = flag.read(path)
        except BadFile as error:
            self._set_aside(path, error)
            return False
        manifest = open_folder(self.ctx.here) / found.file_name
        if not manifest.exists():
            place.write_whole(manifest, found.encode())
        elif path != manifest:
            place.sync_folders([manifest.parent])  # who kept it may have been killed before this
        return True

    def _set_aside(self, path: Path, error: BadFile) -> None:
        aside = flags_folder(self.ctx.here) / "unreadable" / path.name
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
        message = (
            f"the flag {path.name} cannot be read ({error}); it was set aside as {aside}, the look that it asks for was made"
        )
        alert.tell(self.ctx.log, message)
        self.ctx.log.sync()
        self.ctx.say(message)

    def _run_list(self, watch: Watch) -> Exit:
        watch.flag_came = watch.data_came = False
        self.runs += 1
        self.began = self.ctx.clock()
        codes: list[Exit] = []
        below_flag = False
        for number, entry in enumerate(self.ctx.here.host.steps, 1):
            if self.ctx.requests.stop or (below_flag and watch.flag_came):
                break
            code = self._run_step(number, entry, watch if below_flag else None, watch)
            codes.append(code)
            if code in (Exit.CONFIG, Exit.BUG):
                break
            below_flag = below_flag or entry.split()[0] == SEND_FLAG
        return next((code for code in SEVEREST_FIRST if code in codes), Exit.ACCOUNTED)

    def _run_step(self, number: int, entry: str, interrupting: Watch | None, watch: Watch) -> Exit:
        step, *part = entry.split()
        if self._still_hangs(step):
            self.ctx.say(f"{step} still hangs in the kernel (process {self.stuck[step][0].pid}); it is not started a second time")
            return Exit.LEFT_OVER
        sdnotify.notify(f"STATUS=running {entry}")
        here = self.ctx.here
        argv = [sys.executable, "-m", "dataflow", "run", step, "--host", here.host_name, "--radar", here.radar]
        environment = {**self.ctx.config.environment(), CHAIN_RUN_VARIABLE: f"{self.ctx.run}.{self.runs}"}
        with in_hand.offered() as note:
            environment[in_hand.VARIABLE] = str(note)
            words = [*argv, *(("--part", part[0]) if part else ())]
            process = command.start(words, environment=environment, hand_over=[note])
            attended = self._attend(step, process, interrupting, watch)
            self._count_crash(step, note, process.returncode)
        if process.returncode is not None:
            self._tell_death(f"entry {number} of the list, {entry}: killed", step, process.returncode, attended.why_killed)
        return attended.code

    def _tell_death(self, condition: str, step: str, returncode: int, why_killed: str) -> None:
        """Tell of a step that a signal has ended: it could record nothing itself, and may end so at every try."""
        if returncode >= 0:
            alert.clear(self.ctx.here, condition)
        elif not self.ctx.requests.stop:
            why = why_killed or MEMORY
            name = signal_name(-returncode)
            self._tell_once(condition, f"{step} was ended by the signal {name}; its files stay and it is tried again: {why}")

    def _tell_once(self, condition: str, message: str) -> None:
        self.ctx.say(message)
        try:
            alert.tell_once(self.ctx.log, self.ctx.here, condition, message)
        except OSError as error:
            self.ctx.say(f"and the alert cannot be recorded: {error.strerror}")

    def _count_crash(self, step: str, note: int, returncode: int | None) -> None:
        try:
            file = in_hand.count_crash(self.ctx.here, step, note, returncode)
        except OSError as error:
            self.ctx.say(f"the crash of {step} cannot be counted: {error.strerror}")
            return
        if file is not None:
            shown = names.printable(str(file))
            self.ctx.say(f"{step} crashed on {shown}; the file stays, and after {in_hand.CRASHES_MAX} crashes it is set aside")

    def _attend(self, step: str, process: subprocess.Popen[bytes], interrupting: Watch | None, watch: Watch) -> Attended:
        """Wait for a step, pass on what is asked of the daemon, end it at its limit, give up on it when it hangs."""
        times = self.ctx.flow.daemon
        started, asked_way, asked_stop, sleep = time.monotonic(), None, None, hanging.Sleep(process.pid)
        too_long = why_killed = ""
        while process.poll() is None:
            watch.wait(TICK_S, lambda: process.poll() is not None)
            sdnotify.notify("WATCHDOG=1")
            now = time.monotonic()
            if interrupting is not None and interrupting.flag_came and asked_way is None:
                process.send_signal(signal.SIGUSR1)
                asked_way = now
            if now - started > times.step_limit_s:
                too_long = f"it had worked for {times.step_limit_s:.0f} s (daemon.step_limit_s)"
            elif asked_way is not None and now - asked_way > times.below_flag_limit_s:
                too_long = f"it had not given way to a flag for {times.below_flag_limit_s:.0f} s (daemon.below_flag_limit_s)"
            if (self.ctx.requests.stop or too_long) and asked_stop is None:
                process.terminate()
                asked_stop = now
            if asked_stop is not None and now - asked_stop > times.stop_timeout_s:
                why_killed = f"{too_long}, and when asked it did not end within {times.stop_timeout_s:.0f} s"
                _kill_group(process)
            if sleep.longest_s(now) > times.stuck_after_s:
                return Attended(self._give_up(step, process))
        alert.clear(self.ctx.here, f"{step}: stuck")
        return Attended(_code(process.returncode), why_killed)

    def _give_up(self, step: str, process: subprocess.Popen[bytes]) -> Exit:
        """Leave behind a step that no signal reaches; it keeps its copy of the lock, and so does the daemon.

        What hangs may as well be a program that the step has started: killed, the step ends, and that program does not.
        """
        family = hanging.family(process.pid)
        self.stuck[step] = [hanging.process(pid) for pid in family]
        for pid in family:
            _kill(pid)
        self._tell_once(
            f"{step}: stuck",
            f"{step} hangs in the kernel (process {process.pid}), probably on a dead mount. It was left behind, the other steps "
            "go on. Bring that server back, or as root: umount -f -l MOUNT; nothing has to be restarted",
        )
        return Exit.LEFT_OVER


def _close(flags: list[Path]) -> None:
    for path in flags:
        path.unlink(missing_ok=True)


def signal_name(number: int) -> str:
    """What a signal is called; those without a name by their number."""
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _code(returncode: int) -> Exit:
    return Exit(returncode) if returncode in set(Exit) else Exit.BUG


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
