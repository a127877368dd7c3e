"""Worker processes that do jobs side by side, for work on many records or pictures of one file.

A job is a function of a module and its arguments. Workers are this module started as a program; jobs and results travel as
pickles through their standard input and output, which nobody else can write to. What a job finds wrong with the file or the
machine comes back as ``BadFile`` or ``TryLater``. A crash of a library takes a worker along and not the step.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from dataflow.lib import command
from dataflow.lib.errors import BadFile, TryLater

Job: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
Crew: TypeAlias = Callable[[Iterable[Job]], Iterator[Any]]
"""Has a crew do jobs; gives the results in the order of the jobs, and ends with the error of the first one that fails."""
_Process: TypeAlias = subprocess.Popen[bytes]

_PACKAGES = Path(__file__).parents[2]


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """Start ``size`` workers, which end with the block; the place of one that dies is filled for the jobs to come.

    Raises:
        BadFile: a job raised it, or a worker crashed on it.
        TryLater: a job raised it or ran out of memory, or a worker was killed or cannot be started.
    """
    workers: list[_Process] = []
    idle: SimpleQueue[_Process] = SimpleQueue()

    def hire() -> _Process:
        workers.append(_start())
        return workers[-1]

    def ask(job: Job) -> Any:
        worker = idle.get()
        try:
            if worker.poll() is not None:
                worker = hire()
            return _exchange(worker, job)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(size) as threads:
        try:
            for _ in range(size):
                idle.put(hire())
            yield lambda jobs: threads.map(ask, jobs)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                _dismiss(worker)


def _start() -> _Process:
    """A worker, with one thread for linear algebra: more would only take memory."""
    search = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    return command.start(
        [sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        environment={"PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"},
    )


def _dismiss(worker: _Process) -> None:
    """End a worker, whatever it is doing; what it was not yet told goes nowhere."""
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _exchange(worker: _Process, job: Job) -> Any:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        pickle.dump(job, worker.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        kind, result = pickle.load(worker.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        raise _ended(worker.wait(), job) from None
    if kind is None:
        return result
    raise TryLater(result) if kind == "" else BadFile(kind, result)


def _ended(returncode: int, job: Job) -> Exception:
    """What it means that a worker ended while it had a job."""
    what = f"{job[0].__name__} of {next((str(each) for each in job[1] if isinstance(each, Path)), 'a job')}"
    if returncode == -signal.SIGKILL:
        return TryLater(f"a worker was killed during {what}, probably because memory is short; the file stays and is tried again")
    if returncode < 0:
        cause = signal.Signals(-returncode).name
        return BadFile("crashes a library", f"a worker died of {cause} during {what}: it holds what makes a library crash")
    return RuntimeError(f"a worker ended with exit code {returncode} during {what}; its traceback is above")


def _work() -> None:
    """Do jobs until standard input ends. Signals to stop go to the step, which decides what is finished first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_attempt(function, arguments), replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


def _attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str | None, Any]:
    """``(None, result)``, or the kind of a ``BadFile`` (empty for ``TryLater``) and the message."""
    try:
        return None, function(*arguments)
    except BadFile as error:
        return error.kind, str(error)
    except TryLater as error:
        return "", str(error)
    except MemoryError:
        return "", "out of memory; nothing was changed, and the file is tried again later"


if __name__ == "__main__":
    _work()
