"""Starts `dataflow` commands quickly, and can kill one before the N-th change that it makes to the disk.

A server imports the package once and forks for every command, so that a test of a step costs no start of an interpreter.
Whoever wants a command connects to the server's socket, hands over the request and the three standard streams, and gets the
exit code; a negative one is the signal that ended the command. The receiving ends of links and the sender of shell steps
come through here as well: their `dataflow` and their `python` are scripts that run this file as a client.

What happens to a command while it works is told by the file in $STARTER_PLAN, if it exists:

    of             which command is meant: run, receive, send_files, or any
    kill_at        SIGKILL before the N-th change. Changes are creations, renames, links and removals below `below`,
                   and starts of programs
    killed         a file that is made just before the kill
    do             a program that is run before that change, instead of the kill
    at             [event, path, program]: a program that is run once, just before a file whose path ends so is opened to be
                   read or written (event `read` or `write`), or, with a word in place of the path, before a program is
                   started (`start`) that has it among its words
    change         a file that changes once: when its first piece has been read, or when the program `when` is started;
                   `how` it changes: `append` (one byte more), `truncate` (half is gone), `replace` (by another of its size),
                   `garble` (one bit, with the size and the time as before)

$STARTER_WITH names a module whose ``begin(argv)`` is called in the process of each command before it works.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

PLAN_VARIABLE = "STARTER_PLAN"
WITH_VARIABLE = "STARTER_WITH"
LOCK_VARIABLE = "DATAFLOW_LOCK_FD"
SEND_FILES = ["-m", "dataflow.lib.send_files"]
TIMEOUT_S = 90.0
CHANGES = {"os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
"""Audit events that change the disk, and which of their arguments is the path."""


@contextlib.contextmanager
def running(address: Path):
    """The server, at a Unix socket; it ends with the block."""
    _write_program(Path(f"{address}.python"), f"python {address}")
    process = subprocess.Popen([sys.executable, __file__, "serve", str(address)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield address
    finally:
        process.kill()
        process.communicate()


def ask(address, argv, environment, folder, streams):
    """Have a command run in `folder` with three streams, and the lock if it inherits one (file descriptors); its exit code."""
    request = {"argv": argv, "environment": environment, "folder": str(folder), "python": f"{address}.python"}
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(TIMEOUT_S)
        line.connect(str(address))
        line.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
        line.sendall(json.dumps(request).encode() + b"\n")
        answer = line.makefile("rb").readline()
    return json.loads(answer)


def write_client(path: Path, address: Path, environment: dict[str, str]) -> None:
    """The `dataflow` of a machine: hands over to the server."""
    Path(f"{path}.json").write_text(json.dumps(environment))
    _write_program(path, f"dataflow {address} {path}.json")


def _write_program(path: Path, words: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {words} "$@"\n')
    path.chmod(0o755)


def _serve(address: str) -> None:
    _warm_up()
    gc.collect()
    gc.freeze()  # else the first collection in each command copies every page of what was imported
    ended, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(16)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([door, ended], [], [])
            if door in ready:
                line, _ = door.accept()
                waiting[_start(line, [door, *waiting.values()])] = line
            if ended in ready:
                os.read(ended, 4096)
                _tell_ends(waiting)


def _warm_up() -> None:
    """Import what commands import, and have done once what they all do first."""
    import email.parser  # noqa: F401
    import statistics  # noqa: F401

    import h5py  # noqa: F401
    import numpy.ma  # noqa: F401
    import pydarnio  # noqa: F401

    from dataflow import cli
    from dataflow.campus import archive_iq_plots, convert_on_campus, distribute_borealis_data, plot_rawacf  # noqa: F401
    from dataflow.lib import config, gate, runner, send_files  # noqa: F401
    from dataflow.lib.plots import contact_sheet, rawacf_quicklook  # noqa: F401
    from dataflow.site import expire_site_storage, plot_antennas_iq, rsync_to_campus, rsync_to_nas, send_flag, send_logs  # noqa: F401

    config.load(Path(__file__).resolve().parents[1] / "config.yaml")
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main(["--help"])


def _start(line: socket.socket, others: list[socket.socket]) -> int:
    """Start the command that is asked for, in a process of its own, which leaves all the server's sockets; its number."""
    _, streams, _, _ = socket.recv_fds(line, 1, 4)
    asked = line.makefile("rb").readline()
    worker = os.fork()
    if worker == 0:
        if not asked:
            os._exit(0)  # who asked was killed
        for each in (line, *others):
            each.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = json.loads(asked)
        lock = request["environment"].get(LOCK_VARIABLE)
        for number, stream in zip([0, 1, 2, int(lock or 0)], streams, strict=False):
            if number != stream:
                os.dup2(stream, number)
                os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.executable = request["python"]
        _work(request["argv"])
    for stream in streams:
        os.close(stream)
    return worker


def _tell_ends(waiting: dict[int, socket.socket]) -> None:
    """Tell those who wait how their commands ended."""
    for worker, line in list(waiting.items()):
        found, status = os.waitpid(worker, os.WNOHANG)
        if found:
            with contextlib.suppress(BrokenPipeError), waiting.pop(worker):
                line.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode() + b"\n")


def _work(argv: list[str]) -> None:
    code = 70
    try:
        if WITH_VARIABLE in os.environ:
            importlib.import_module(os.environ[WITH_VARIABLE]).begin(argv)
        _follow(_plan(argv))
        code = _main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(argv: list[str]) -> int:
    from dataflow import cli
    from dataflow.lib import send_files

    if argv[:2] == SEND_FILES:
        return send_files.main(argv[2])
    sys.argv = ["dataflow", *argv]
    return cli.main(argv)


def _plan(argv: list[str]) -> dict:
    """What is planned for this command."""
    file = Path(os.environ.get(PLAN_VARIABLE, "/nothing"))
    plan = json.loads(file.read_text()) if file.exists() else {}
    what = "send_files" if argv[:2] == SEND_FILES else argv[0]
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    return plan if plan.get("of") in (what, "any") and asked != "hello" and not asked.startswith("rsync ") else {}


def _follow(plan: dict) -> None:
    counted, change = 0, plan.get("change")

    def hook(event: str, arguments: tuple) -> None:
        nonlocal counted
        if event == "subprocess.Popen" and change and change["when"] in map(str, arguments[1]):
            _change(change)
        if "at" in plan and _is_moment(event, arguments, *plan["at"][:2]):
            subprocess.run(plan.pop("at")[2], check=True)
        if "below" in plan and _is_change(event, arguments, plan["below"]):
            counted += 1
            if counted == plan["kill_at"]:
                plan["below"] = "\0"
                open(plan["killed"], "w").close()
                if "do" not in plan:
                    os.kill(os.getpid(), signal.SIGKILL)
                subprocess.run(plan["do"], check=False, stderr=subprocess.DEVNULL)

    if plan:
        sys.addaudithook(hook)
    if change:
        _change_while_read(change)


def _is_change(event: str, arguments: tuple, below: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, (str, bytes)) and bool(flags & (os.O_CREAT | os.O_TRUNC)) and os.fsdecode(path).startswith(below)
    if event == "subprocess.Popen":
        return True
    return event in CHANGES and os.fsdecode(arguments[CHANGES[event]]).startswith(below)


def _is_moment(event: str, arguments: tuple, what: str, where: str) -> bool:
    if what == "start":
        return event == "subprocess.Popen" and where in map(str, arguments[1])
    if event != "open" or not isinstance(arguments[0], (str, bytes)) or not os.fsdecode(arguments[0]).endswith(where):
        return False
    return bool(arguments[2] & os.O_ACCMODE) is (what == "write")


def _change_while_read(change: dict) -> None:
    from dataflow.lib import checksum

    pieces = checksum.chunks

    def chunks(descriptor: int):
        for piece in pieces(descriptor):
            yield piece
            if os.readlink(f"/proc/self/fd/{descriptor}") == change["when"]:
                _change(change)

    checksum.chunks = chunks


def _change(change: dict) -> None:
    if change.get("done"):
        return
    change["done"] = True
    file, how = change["file"], change.get("how", "append")
    if how == "truncate":
        os.truncate(file, os.path.getsize(file) // 2)
    elif how == "replace":
        other, status = f"{file}.other", os.stat(file)
        with open(other, "wb") as stream:
            stream.write(b"!" * status.st_size)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.rename(other, file)
    elif how == "garble":
        status = os.stat(file)
        with open(file, "r+b", buffering=0) as stream:
            (byte,) = os.pread(stream.fileno(), 1, status.st_size // 2)
            os.pwrite(stream.fileno(), bytes([byte ^ 1]), status.st_size // 2)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        with open(file, "ab") as stream:
            stream.write(b"!")


def _ask(what: str, address: str, argv: list[str]) -> int:
    environment = dict(os.environ)
    if what == "python" and argv[:2] != SEND_FILES:
        os.execv(sys.executable, [sys.executable, *argv])
    if what == "dataflow":
        environment |= json.loads(Path(argv.pop(0)).read_text())
    lock = [int(environment[LOCK_VARIABLE])] if LOCK_VARIABLE in environment else []
    return ask(address, argv, environment, os.getcwd(), [0, 1, 2, *lock])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    code = _ask(sys.argv[1], sys.argv[2], sys.argv[3:])
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
