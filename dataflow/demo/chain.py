"""``dataflow demo``: the whole chain on this computer, with real files, rsync, SSH and inotify.

Two radars of the shipped configuration, one of them without NAS, write three blocks each while the daemons of all their
hosts run; one file is damaged on the way. It ends by itself and shows where every file is at each hop.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.demo import machines, simulate_radar
from dataflow.demo.machines import Machines
from dataflow.demo.simulate_radar import SliceSpec
from dataflow.lib import command, custody, place, report, summary
from dataflow.lib.config import Here
from dataflow.lib.errors import BadConfig, Exit

RADARS = ("sas", "inv")
BLOCKS = 3
TIME_LIMIT_S = 150.0
HURRY = (
    "files.unchanged_s=1.0", "files.complete_after_s=1.0", "files.settle_s=1.0", "plots.archive_after_h=0.0",
    "daemon.look_every_s=5.0", "daemon.back_off_first_s=2.0",
)  # fmt: skip
"""The shipped times are for radars; these are for a person who watches. Nothing else differs from the shipped file."""
_OURS = ".dataflow-demo"


def run(folder: Path) -> int:
    """Run the demo in ``folder``, which it empties first if an earlier demo made it."""
    _prepare(folder)
    with machines.running(folder, RADARS, HURRY) as running:
        print(f"Machines of {', '.join(RADARS)} below {folder}, each with its own sshd; daemons start.")
        started = time.monotonic()
        with daemons(running, RADARS):
            names = _feed(running)
            finished = wait_until_quiet(running, RADARS, TIME_LIMIT_S, _watching)
        print(f"\nThe chain is {'quiet' if finished else 'NOT quiet'} after {time.monotonic() - started:.0f} s.\n")
        complete = _show(running, names)
    return Exit.ACCOUNTED if finished and complete else Exit.LEFT_OVER


@contextmanager
def daemons(running: Machines, radars: Sequence[str]) -> Iterator[None]:
    """The daemons of all hosts of some radars; what they say goes to ``<root>/<machine>.<radar>.log``."""
    started = []
    try:
        for radar in radars:
            for host in running.config.flow.hosts:
                log = (running.root / f"{running.config.here(host, radar).machine.name}.{radar}.log").open("ab")
                argv = [sys.executable, "-m", "dataflow", "daemon", host, "--radar", radar]
                started.append(
                    command.start(argv, stdout=log, stderr=log, environment=running.config.environment(), inherit=False)
                )
                log.close()
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            command.end_group(process)


def wait_until_quiet(
    running: Machines, radars: Sequence[str], limit_s: float, show: Callable[[str], None] = lambda text: None
) -> bool:
    """Wait until no file, flag or outbox of any host waits, twice in a row; False when that does not come in time."""
    heres = [running.config.here(host, radar) for radar in radars for host in running.config.flow.hosts]
    deadline, quiet = time.monotonic() + limit_s, 0
    while time.monotonic() < deadline and quiet < 3:
        waiting = {f"{here.machine.name}/{here.radar}": count for here in heres if (count := _waiting(here))}
        quiet = 0 if waiting else quiet + 1
        show(", ".join(f"{machine} {count}" for machine, count in waiting.items()) or "nothing")
        time.sleep(1.0)
    return quiet >= 3


def _waiting(here: Here) -> int:
    """How many files and flags wait on one host, whatever the step."""
    folders = [custody.flags_folder(here), custody.open_folder(here), custody.outbox(here)]
    folders += [here.folder(key) for key in here.host.backlog]
    if "to_send" in here.folder_texts:
        folders += [folder for folder in here.folder("to_send").glob("*") if folder.is_dir()]
    if here.host.waits_on == "data":
        kept_here = ".antennas_iq.h5" if here.machine.nas == "none" else "\0"
        return sum(1 for path in here.folder("data").glob("[0-9]*/*.h5") if not path.name.endswith(kept_here)) + sum(
            len(place.scan(folder)) for folder in folders
        )
    return sum(len(place.scan(folder)) for folder in folders)


def _prepare(folder: Path) -> None:
    """Start from nothing, but never delete a folder that is not ours."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _OURS).exists():
            raise BadConfig(f"{folder} is not empty and was not made by the demo: name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _OURS).touch()


def _feed(running: Machines) -> list[tuple[str, str]]:
    """Let each radar write its blocks, as far back as they are long; returns (radar, file name)."""
    now = datetime.now(UTC)
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2 * BLOCKS + now.hour % 2)
    written: list[tuple[str, str]] = []
    for block in range(BLOCKS):
        for seed, radar in enumerate(RADARS):
            data = running.config.here("borealis", radar).folder("data")
            slices = (
                SliceSpec(slice_id=0, with_antennas_iq=True),
                SliceSpec(slice_id=1, with_antennas_iq=False, with_interferometer=False),
            )
            start = first + timedelta(hours=2 * block)
            paths = simulate_radar.write_block(
                data, radar, start, slices, records=12, seconds_per_record=6.0, seed=10 * block + seed
            )
            written += [(radar, path.name) for path in paths]
            print(f"{radar} wrote {', '.join(path.name for path in paths)}")
    written.append(("sas", _write_damaged(running, first)))
    return written


def _write_damaged(running: Machines, first: datetime) -> str:
    """A rawacf that a dying disk cut off: it must stop nothing and end in quarantine."""
    data = running.config.here("borealis", "sas").folder("data")
    start = first + timedelta(minutes=30)
    (path,) = simulate_radar.write_block(
        data.parent / "damaged", "sas", start, [SliceSpec(slice_id=2, with_antennas_iq=False)], records=3
    )
    stamp = path.stat()
    content = path.read_bytes()
    target = data / path.parent.name / path.name
    part = place.part_of(target)
    part.write_bytes(content[: len(content) * 2 // 3])
    import os

    os.utime(part, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    part.rename(target)
    shutil.rmtree(data.parent / "damaged")
    print(f"sas wrote {target.name}, cut off at two thirds")
    return target.name


def _watching(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[Kwaiting: {text}", end="", flush=True)


def _show(running: Machines, written: Sequence[tuple[str, str]]) -> bool:
    """The table of every file at each hop, and where to look further; True when each file has arrived somewhere for good."""
    now, complete = datetime.now(UTC), True
    for radar, name in sorted(written):
        here = running.config.here("campus", radar)
        hops, _ = report.trace(here, name, now, is_whole=True)
        print(f"{name}")
        for hop in hops:
            where = str(hop["place"]).replace(str(running.root) + "/", "")
            print(
                f"    {hop['time'][11:19]}  {hop['machine']:13} {hop['action']:20} {(hop['sha256'] or '-')[:10]}  {where}/{'' if hop['file'] == name else hop['file']}".rstrip(
                    "/"
                )
            )
        complete = complete and (bool(hops) or _stays(running, radar, name))
        if not hops:
            print(
                f"    stays on {running.config.here('borealis', radar).machine.name}: there is no NAS"
                if _stays(running, radar, name)
                else "    LOST"
            )
    _show_places(running, now)
    return complete


def _stays(running: Machines, radar: str, name: str) -> bool:
    return any(running.config.here("borealis", radar).folder("data").glob(f"*/{name}"))


def _show_places(running: Machines, now: datetime) -> None:
    for radar in RADARS:
        campus = running.config.here("campus", radar)
        print(f"\n{radar}: DMAP     {campus.folder('archive_dmap', now)}")
        print(f"     HDF5     {campus.folder('archive_hdf5', now)}")
        print(f"     plots    {campus.folder('plots_archive', now)}")
        print(f"     staged   {campus.path(running.config.flow.distribute.targets['vt'].folder)}")
        for path, reason in ((p, r) for host in running.config.flow.hosts for p, r in _quarantined(running, host, radar)):
            print(f"     quarantine {path}: {reason}")
    logs = summary.own_files(running.config.here("campus", RADARS[0]), now.date())
    print(f"\nsummary logs: {logs[0].parents[4] if logs else '-'} and {running.config.here('campus', 'sas').relayed_logs}")


def _quarantined(running: Machines, host: str, radar: str) -> list[tuple[Path, str]]:
    from dataflow.lib import quarantine

    return [(path, reason.message) for path, reason in quarantine.reasons(running.config.here(host, radar))]
