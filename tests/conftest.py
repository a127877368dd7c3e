"""Where tests work, on which machines, and which skips are allowed.

A skipped test is a promise that nobody checked: with ``--allowed-skips FILE`` only the reasons in that file are accepted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("a slow machine is no failure", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("a slow machine is no failure")

MEMORY, DISK = Path("/dev/shm"), Path("/var/tmp")
LEAST_MEMORY_BYTES = 4 << 30


def pytest_addoption(parser):
    parser.addoption("--allowed-skips", type=Path, metavar="FILE", help="fail if a test is skipped for a reason not in FILE")


def pytest_configure():
    """Have temporary folders in memory where it has room: that fsync(2) is called is looked at, not what a disk makes of it."""
    memory = os.statvfs(MEMORY)
    if memory.f_bavail * memory.f_frsize >= LEAST_MEMORY_BYTES and not memory.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_sessionfinish(session):
    allowed_file = session.config.getoption("--allowed-skips")
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if allowed_file is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    allowed = {line.strip() for line in allowed_file.read_text().splitlines() if line.strip() and not line.startswith("#")}
    refused = [(report.nodeid, _reason(report)) for report in reporter.stats.get("skipped", []) if _reason(report) not in allowed]
    if refused:
        reporter.ensure_newline()
    for test, reason in refused:
        reporter.write_line(f"SKIPPED without leave: {test}: {reason} (allowed reasons: {allowed_file})", red=True)
    if refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reason(report):
    """What was given to ``skip``; pytest keeps it as (file, line, ``Skipped: reason``)."""
    return str(report.longrepr[2]).removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def room():
    """An sshd for each machine, and a server that starts commands quickly; see `loopback`."""
    import loopback

    with loopback.room() as shared:
        yield shared


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than the other folders of the test."""
    device = tmp_path.stat().st_dev
    folder = Path(tempfile.mkdtemp(dir=next(disk for disk in (MEMORY, DISK) if disk.stat().st_dev != device)))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def machines(room, tmp_path):
    """The machines of sas and inv below a folder of this test, with the shipped configuration."""
    import loopback

    made = loopback.Machines(room, tmp_path / "machines")
    yield made
    made.close()
