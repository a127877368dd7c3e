"""``dataflow demo``: the whole chain on this computer, with real files, rsync, SSH and inotify.

Two radars of the shipped configuration, one of them without NAS, write three blocks each while the daemons of all their
hosts run; one file is damaged on the way. It ends by itself and shows where every file is at each hop.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dataflow.demo import feed, machines, packages, table
from dataflow.demo.machines import Machines
from dataflow.demo.table import Row
from dataflow.lib import command, custody, names, place, report
from dataflow.lib.config import Here
from dataflow.lib.errors import BadConfig, Exit
from dataflow.lib.names import Kind

RADARS = ("sas", "inv")
TIME_LIMIT_S = 110.0
QUIET_LOOKS = 3
HURRY = (
    "files.unchanged_s=5.0", "files.complete_after_s=5.0", "files.settle_s=1.0", "plots.archive_after_h=0.0",
    "daemon.look_every_s=30.0", "daemon.back_off_first_s=2.0",
)  # fmt: skip
"""The shipped times are for radars; these are for a person who watches. Nothing else differs from the shipped file."""
_OURS = ".dataflow-demo"


def run(folder: Path) -> int:
    """Run the demo in ``folder``, which it empties first if an earlier demo made it; 0 when every file has arrived."""
    prepare(folder)
    packages.provide(folder)
    with machines.running(folder, RADARS, HURRY) as running:
        print(f"The machines of {' and '.join(RADARS)} are below {folder}, each with its own sshd; their daemons start.")
        print(f"The last file of {RADARS[0]} is cut short on purpose: it has to end in quarantine, and to stop nothing else.")
        started = time.monotonic()
        with daemons(running, RADARS) as processes:
            written = list(_told(feed.write(running.config, RADARS)))
            is_quiet = wait_until_quiet(running, RADARS, TIME_LIMIT_S, _watching(started), processes)
            ended = sum(process.poll() is not None for process in processes)
        said = "nothing waits any more" if is_quiet else "SOMETHING STILL WAITS"
        trouble = f"; {ended} of {len(processes)} daemons ended, see {folder}/*.log" if ended else ""
        print(f"\nAfter {time.monotonic() - started:.0f} s {said}{trouble}.\n")
        arrived = _show(running, written, folder)
    return Exit.ACCOUNTED if is_quiet and arrived else Exit.LEFT_OVER


@contextmanager
def daemons(running: Machines, radars: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The daemons of all hosts of some radars; what they say goes to ``<root>/<machine>.<radar>.log``."""
    started = []
    try:
        for radar in radars:
            for host in running.config.flow.hosts:
                argv = [sys.executable, "-m", "dataflow", "daemon", host, "--radar", radar]
                with (running.root / f"{running.config.here(host, radar).machine.name}.{radar}.log").open("ab") as log:
                    started.append(
                        command.start(argv, stdout=log, stderr=log, environment=running.config.environment(), inherit=False)
                    )
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            command.end_group(process)


def wait_until_quiet(
    running: Machines,
    radars: Sequence[str],
    limit_s: float,
    show: Callable[[str], None] = lambda text: None,
    processes: Sequence[subprocess.Popen[bytes]] = (),
) -> bool:
    """Wait until no file, flag or outbox of any host waits, several looks in a row.

    False when that does not come in time, or when one of the daemons (``processes``) has ended.
    """
    heres = [running.config.here(host, radar) for radar in radars for host in running.config.flow.hosts]
    deadline, quiet = time.monotonic() + limit_s, 0
    while time.monotonic() < deadline and quiet < QUIET_LOOKS and all(process.poll() is None for process in processes):
        waiting = {f"{here.machine.name}/{here.radar}": count for here in heres if (count := _waiting(here))}
        quiet = 0 if waiting else quiet + 1
        show(", ".join(f"{machine} {count}" for machine, count in waiting.items()) or "nothing")
        time.sleep(1.0)
    return quiet >= QUIET_LOOKS


def _waiting(here: Here) -> int:
    """How many files and flags wait on one host, whatever the step."""
    folders = [custody.flags_folder(here), custody.open_folder(here), custody.outbox(here)]
    folders += [here.folder(key) for key in here.host.backlog]
    if "to_send" in here.folder_texts:
        folders += [folder for folder in here.folder("to_send").glob("*") if folder.is_dir()]
    waiting = sum(len(place.scan(folder)) for folder in folders)
    if here.host.waits_on == "data":
        waiting += sum(not _stays(here, path.name) for path in here.folder("data").glob("[0-9]*/*.h5"))
    return waiting


def _stays(here: Here, file: str) -> bool:
    """Antennas_iq of a radar without NAS stay where the radar wrote them."""
    name = names.parse(file)
    return here.machine.nas == "none" and name is not None and name.kind is Kind.ANTENNAS_IQ


def prepare(folder: Path) -> None:
    """Start from nothing but the packages of an earlier demo, and never delete a folder that is not ours."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _OURS).exists():
            raise BadConfig(f"{folder} is not empty and was not made by the demo: name another folder")
        for old in folder.iterdir():
            if old.name != packages.FOLDER:
                _remove(old)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _OURS).touch()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _told(written: Iterator[Path]) -> Iterator[Path]:
    for path in written:
        print(f"the radar wrote {path.name}", flush=True)
        yield path


def _watching(started: float) -> Callable[[str], None]:
    """What tells a person how many files and flags wait where: in one line on a terminal, else every ten looks."""
    looks = 0

    def show(text: str) -> None:
        nonlocal looks
        line = f"{time.monotonic() - started:4.0f} s, waiting: {text}"
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        elif looks % 10 == 0:
            print(line, flush=True)
        looks += 1

    return show


def _show(running: Machines, written: Sequence[Path], folder: Path) -> bool:
    """The table, and where to look further; True when each file has come to its last place."""
    rows_of = {path: _rows(running, path) for path in sorted(written)}
    print(f"Every file at each hop; folders are below {folder}, * marks where it lies now.")
    for radar in RADARS:
        print(f"\n{radar}")
        for path, rows in rows_of.items():
            if path.name.split(".")[3] == radar:
                print("\n".join(table.lines(path.name, rows)))
    _show_places(running, [row for rows in rows_of.values() for row in rows], folder)
    lost = [path.name for path, rows in rows_of.items() if not rows[-1].is_there]
    if lost:
        print(f"\nNOT where the last record says: {', '.join(lost)}")
    return not lost


def _rows(running: Machines, path: Path) -> list[Row]:
    radar = path.name.split(".")[3]
    hops, _ = report.trace(running.config.here("campus", radar), path.name, datetime.now(UTC), is_whole=True)
    if hops:
        return table.rows(running.root, hops)
    borealis = running.config.here("borealis", radar)
    stays = path.exists() and _stays(borealis, path.name)
    why = "there is no NAS at this site" if stays else "no summary log names the file"
    return [table.row_without_record(running.root, path, borealis.machine.name, "stays" if stays else "LOST", why)]


def _show_places(running: Machines, rows: Sequence[Row], folder: Path) -> None:
    kinds = {"plots": Kind.CONTACT, "quick-looks": Kind.QUICKLOOK, "DMAP files": Kind.DMAP, "HDF5 files": Kind.RAWACF}
    places = {what: _folders(rows, "archived", kind) for what, kind in kinds.items()}
    places["quarantine"] = _folders(rows, "quarantined", Kind.RAWACF)
    logs = running.config.here("campus", RADARS[0])
    places["summary logs"] = [os.path.relpath(path, running.root) for path in (logs.relayed_logs, logs.logs)]
    print("\nWhere to look:")
    for what, folders in places.items():
        for found in folders:
            print(f"  {what:13} {folder / found}")
    print(f"  {'daemons':13} {folder}/*.log")


def _folders(rows: Sequence[Row], action: str, kind: Kind) -> list[str]:
    matching = (row for row in rows if row.action == action and (name := names.parse(row.file)) and name.kind is kind)
    return list(dict.fromkeys(row.folder for row in matching))
