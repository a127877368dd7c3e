"""Workers: results in order, errors as what they are, and no worker left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataflow.lib import checksum
from dataflow.lib.crew import crew
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.plots import samples


def one(function, *arguments):
    with crew(1) as side_by_side:
        return next(side_by_side([(function, arguments)]))


def test_results_come_in_the_order_of_the_jobs():
    with crew(3) as side_by_side:
        slow_first = [(time.sleep, (0.2,)), *((pow, (number, 2)) for number in range(20))]
        assert list(side_by_side(slow_first)) == [None, *(number**2 for number in range(20))]


def test_work_is_shared_and_the_workers_end_with_the_block():
    with crew(2) as side_by_side:
        jobs = [(time.sleep, (0.05,)), (os.getpid, ())] * 10
        workers = {each for each in side_by_side(jobs) if each is not None}
        assert len(workers) == 2 and os.getpid() not in workers
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_what_a_job_prints_is_not_taken_for_its_result():
    assert one(os.system, "echo said by a child; echo said") == 0
    assert one(print, "said") is None


def test_errors_of_a_job_are_raised_as_what_they_are(tmp_path):
    path = tmp_path / "no.h5"
    path.write_bytes(b"nothing like it")
    with pytest.raises(BadFile, match=str(path)) as refused:
        one(samples.survey, path)
    assert refused.value.kind == "not HDF5"
    with pytest.raises(TryLater, match="No such file"):
        one(samples.survey, tmp_path / "missing.h5")


def test_no_memory_keeps_the_file():
    with pytest.raises(TryLater, match="memory"):
        one(bytearray, 1 << 60)


def test_a_killed_worker_keeps_the_file():
    with pytest.raises(TryLater, match="memory"):
        one(signal.raise_signal, signal.SIGKILL)


def test_a_crash_of_a_library_is_the_fault_of_the_file():
    with pytest.raises(BadFile, match="SIGABRT during abort") as refused:
        one(os.abort)
    assert refused.value.kind == "crashes a library"


def test_the_place_of_a_worker_that_died_is_filled():
    with crew(1) as side_by_side:
        for crash in (os.abort, os.abort):
            with pytest.raises(BadFile):
                next(side_by_side([(crash, ())]))
        assert next(side_by_side([(pow, (3, 2))])) == 9


def test_what_was_asked_but_not_begun_is_not_done_after_the_block(tmp_path):
    with crew(1) as side_by_side:
        asked = side_by_side([(time.sleep, (60,)), (os.mkdir, (str(tmp_path / "made"),))])
    assert not (tmp_path / "made").exists()
    del asked


def test_a_bug_is_neither_the_files_fault_nor_the_machines(capfd):
    with pytest.raises(RuntimeError, match="exit code 1 during sha256 of /no/such/file"):
        one(checksum.sha256, Path("/no/such/file"))
    assert "FileNotFoundError" in capfd.readouterr().err


def test_signals_to_stop_do_not_reach_the_jobs():
    assert one(signal.raise_signal, signal.SIGTERM) is None


def test_an_error_ends_the_other_workers_too():
    began = time.monotonic()
    with pytest.raises(TryLater), crew(2) as side_by_side:
        list(side_by_side([(signal.raise_signal, (signal.SIGKILL,)), (time.sleep, (60,))]))
    assert time.monotonic() - began < 30


def test_workers_die_with_the_process_that_started_them():
    program = (
        "import os, time\nfrom dataflow.lib.crew import crew\n"
        "with crew(1) as side_by_side:\n    print(next(side_by_side([(os.getpid, ())])), flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{worker}/exe").exists()
