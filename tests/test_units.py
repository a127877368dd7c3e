"""The systemd units and the .daemon files: well-formed, in step with config.yaml, and what systemd would see of a daemon."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from dataflow import cli
from dataflow.lib import config, watch

REPOSITORY = Path(__file__).parents[1]
FLOW = config.load(REPOSITORY / "config.yaml").flow
HOSTS = tuple(FLOW.hosts)
KEEPERS = tuple(host for host in HOSTS if FLOW.hosts[host].kept)
MIRROR = {
    "publish@": "main", "sync@": "bas", "sync-weekly@": "bas", "sync-all@": "bas", "compare@": "bas", "pull@": "mcm",
    "backfill": "", "verify": "",
}  # fmt: skip
"""The jobs of the mirror that timers start, each with an instance that there may be."""
RARE = ("sync-weekly@", "sync-all@")
INSTALLED = "/opt/dataflow/share/dataflow"
PROGRAM = "/opt/dataflow/bin/dataflow"


@pytest.fixture
def units(tmp_path):
    """The folder that `make units` fills for a machine that plays every host, with ExecStart pointing into this tree."""
    for host in HOSTS:
        make_units(tmp_path, f"HOST={host}", "RADAR=sas")
    make_units(tmp_path, "HOST=mirror")
    folder = tmp_path / "etc/systemd/system"
    for path in folder.glob("*.service"):
        path.write_text(path.read_text().replace(INSTALLED, str(REPOSITORY)).replace(PROGRAM, "/bin/true"))
    return folder


def make_units(destination: Path, *variables: str) -> set[str]:
    """Run `make units`; the names of what it has put below a folder."""
    subprocess.run(["make", "-s", "units", f"DESTDIR={destination}", *variables], cwd=REPOSITORY, check=True)
    folder = destination / "etc/systemd/system"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def settings(host: str) -> dict[str, str]:
    """What the unit of a host, or of a job of the mirror, says, with what every dataflow unit says."""
    name = f"dataflow-{host}.service" if host.startswith("mirror-") else f"dataflow-{host}@.service"
    texts = [
        (REPOSITORY / "services" / name).read_text(),
        (REPOSITORY / "services/dataflow-.service.d/confinement.conf").read_text(),
    ]
    return dict(re.findall(r"^([A-Z]\w+)=(.*)$", "\n".join(texts), re.MULTILINE))


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False)


def test_every_host_has_a_unit_and_a_daemon():
    timed = {f"dataflow-scrub-{host}@" for host in KEEPERS} | {f"dataflow-mirror-{job}" for job in MIRROR}
    services = {f"dataflow-{host}@.service" for host in HOSTS} | {f"{name}.service" for name in timed}
    assert {path.name for path in REPOSITORY.glob("services/*.service")} == services
    timers = {f"{name}.timer" for name in timed}
    assert {path.name for path in REPOSITORY.glob("services/*.timer")} == timers
    assert {path.name for path in REPOSITORY.glob("daemons/*")} == {f"{host}.daemon" for host in HOSTS}


def test_make_units_installs_what_one_host_needs(tmp_path):
    names = {"dataflow-campus@.service", "dataflow.slice", "dataflow-.service.d/confinement.conf"}
    scrub = {"dataflow-scrub-campus@.service", "dataflow-scrub-campus@.timer"}
    assert make_units(tmp_path, "HOST=campus", "RADAR=sas") == names | scrub


def test_make_units_installs_what_the_mirror_needs_and_asks_for_no_radar(tmp_path):
    jobs = {f"dataflow-mirror-{job}.{ending}" for job in MIRROR for ending in ("service", "timer")}
    assert make_units(tmp_path, "HOST=mirror") == jobs | {"dataflow.slice", "dataflow-.service.d/confinement.conf"}


@pytest.mark.parametrize("job", MIRROR)
def test_a_job_of_the_mirror_is_a_command_that_there_is_run_as_the_user_of_the_mirror(job):
    """M30, M27: a failing job looked healthy, and jobs that cron started piled up behind one that hung."""
    unit = settings(f"mirror-{job}")
    assert unit["User"] == FLOW.mirror.user and unit["Type"] == "oneshot"
    assert f"/var/lib/{unit['StateDirectory']}" == FLOW.mirror.state
    assert f"/var/log/{unit['LogsDirectory']}" == FLOW.mirror.logs
    program, *words = unit["ExecStart"].replace("%i", MIRROR[job]).split()
    assert program == PROGRAM and cli._parsed(words).command is cli.mirror
    assert ("%i" in unit["ExecStart"]) == job.endswith("@")
    assert (unit["SuccessExitStatus"], unit.get("Restart")) == (("1", "on-failure") if job in RARE else ("1 75", None))
    assert int(unit["TimeoutStopSec"]) > FLOW.daemon.stop_timeout_s


@pytest.mark.parametrize("job", MIRROR)
def test_a_timer_of_the_mirror_says_what_it_starts_and_when_in_utc(job):
    text = (REPOSITORY / f"services/dataflow-mirror-{job}.timer").read_text()
    first, timer = text.splitlines()[0], dict(re.findall(r"^([A-Z]\w+)=(.*)$", text, re.MULTILINE))
    assert first.startswith(f"# Starts dataflow-mirror-{job}") and f"systemctl enable --now dataflow-mirror-{job}" in first
    assert "Unit" not in timer, "the service of the same name"
    assert timer["OnCalendar"].endswith(" UTC") and timer["Persistent"] == "true" and timer["RandomizedDelaySec"]
    subprocess.run(["systemd-analyze", "calendar", timer["OnCalendar"]], check=True, capture_output=True)


@pytest.mark.parametrize("host", KEEPERS)
def test_what_is_kept_is_read_again_behind_everything_else(host):
    unit = settings(f"scrub-{host}")
    assert (unit["User"], unit["Type"], unit["IOSchedulingClass"], unit["Nice"]) == (
        FLOW.hosts[host].user, "oneshot", "idle", "19",
    )  # fmt: skip
    assert unit["ExecStart"] == f"{PROGRAM} scrub --host {host} --radar %i"
    assert cli._parsed(unit["ExecStart"].replace("%i", "sas").split()[1:]).command is cli.scrub


@pytest.mark.parametrize("unit", [*HOSTS, *(f"scrub-{host}" for host in KEEPERS), *(f"mirror-{job}" for job in MIRROR)])
def test_before_a_unit_starts_its_machine_is_checked_and_what_it_may_take_is_limited(unit):
    said = settings(unit)
    host = "mirror" if unit.startswith("mirror-") else unit.removeprefix("scrub-")
    checked = f"{PROGRAM} check {host}" + (" --radar %i" if host != "mirror" else "")
    assert said["ExecStartPre"] == f"-{checked}"
    assert cli._parsed(checked.replace("%i", "sas").split()[1:]).command is cli.check
    assert re.fullmatch(r"\d+G", said["MemoryMax"]) and int(said["LimitNOFILE"]) <= 4096


def test_systemd_finds_nothing_wrong(units):
    answer = verify(units)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "name", ["dataflow-borealis@.service", "dataflow-mirror-verify.service", "dataflow-.service.d/confinement.conf"]
)
def test_systemd_would_find_a_wrong_key(units, name):
    path = units / name
    path.write_text(path.read_text().replace("[Service]", "[Service]\nNonsense=yes"))
    assert f"{path}:" in verify(units).stderr
    assert "Nonsense" in verify(units).stderr


@pytest.mark.parametrize(
    "name", [*(f"{host}@" for host in HOSTS), *(f"scrub-{host}@" for host in KEEPERS), *(f"mirror-{job}" for job in MIRROR)]
)
def test_what_a_service_could_do_to_the_system_is_little(units, name):
    argv = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", units / f"dataflow-{name}.service"]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    "path", [path for path in sorted((REPOSITORY / "services").rglob("*")) if path.is_file()], ids=lambda path: path.name
)
def test_every_line_has_its_reason_above_it(path):
    lines = path.read_text().splitlines()
    for above, line in pairwise(lines):
        if line and not line.startswith(("#", "[")):
            assert above and not above.startswith("["), f"{line} has no reason"


@pytest.mark.parametrize("host", HOSTS)
def test_a_unit_comes_back_whatever_happens_but_not_with_a_wrong_configuration(host):
    unit = settings(host)
    assert (unit["Restart"], unit["StartLimitIntervalSec"], unit["RestartPreventExitStatus"]) == ("always", "0", "2")


@pytest.mark.parametrize("host", HOSTS)
def test_a_unit_agrees_with_the_configuration(host):
    unit = settings(host)
    assert unit["User"] == FLOW.hosts[host].user
    assert f"/var/lib/{unit['StateDirectory']}" == FLOW.hosts[host].state
    assert f"/var/log/{unit['LogsDirectory']}" == FLOW.hosts[host].logs
    assert int(unit["TimeoutStopSec"]) > FLOW.daemon.stop_timeout_s
    assert int(unit["WatchdogSec"].removesuffix("min")) * 60 > 4 * watch.WAKE_S


@pytest.mark.parametrize("host", [*HOSTS, *(f"mirror-{job}" for job in MIRROR)])
def test_nothing_is_set_that_would_keep_the_data_from_it(host):
    forbidden = {"RequiresMountsFor", "PrivateTmp", "RestrictSUIDSGID", "ProtectHome", "ReadWritePaths"}
    assert not forbidden & set(settings(host))


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_is_set_that_would_stop_the_chain(host):
    assert settings(host)["OOMPolicy"] == "continue"
    check_that_stops_nothing = f"-{PROGRAM} check {host} --radar %i"
    assert settings(host)["ExecStartPre"] == check_that_stops_nothing


@pytest.mark.parametrize("host", HOSTS)
def test_the_header_of_a_daemon_tells_what_the_configuration_says(host):
    text = (REPOSITORY / f"daemons/{host}.daemon").read_text()
    header = dict(re.findall(r"^# ([A-Z][a-z ]+):\s+(.*)$", text, re.MULTILINE))
    told = FLOW.hosts[host]
    assert header["Waits on"].split(":")[0] == told.waits_on
    assert header["Steps"].split(", ") == list(told.steps)
    assert header["Next flag"].split(",")[0] == (told.next or "none")


def environment_of_a_unit(root: Path) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {"PATH": programs, "DATAFLOW_CONFIG": str(REPOSITORY / "config.yaml"), "DATAFLOW_ROOT": str(root), "LC_ALL": "C"}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("radar", "complaint"), [((), "which radar?"), (("xyz",), "unknown radar 'xyz'")])
def test_a_daemon_without_a_known_radar_ends_with_2(tmp_path, host, radar, complaint):
    argv = [REPOSITORY / f"daemons/{host}.daemon", *radar]
    answer = subprocess.run(argv, env=environment_of_a_unit(tmp_path), capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert complaint in answer.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_systemd_hears_from_the_main_process_that_it_is_ready_and_that_it_stops(tmp_path, host):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(60)
        environment = {**environment_of_a_unit(tmp_path), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        argv = [REPOSITORY / f"daemons/{host}.daemon", "sas"]
        daemon = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            assert message(manager, daemon.pid).startswith("READY=1")
            while "STATUS=last run" not in message(manager, daemon.pid):
                pass
            daemon.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in message(manager, daemon.pid):
                pass
            assert daemon.wait(60) == 0
        finally:
            if daemon.poll() is None:
                os.killpg(daemon.pid, signal.SIGKILL)


def message(manager: socket.socket, main_process: int) -> str:
    """The next message to systemd, which listens to nobody but the main process."""
    text, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
    assert struct.unpack("3i", ancillary[0][2])[0] == main_process
    return text.decode()
