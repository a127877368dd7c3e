"""Machines for tests: the shipped configuration over real sshd and rsync, one root folder for each test.

`room` starts, once for all tests of a process, an sshd for each machine and the server that starts commands quickly.
`Machines` are the file systems of all of them below one folder, with the markers in place and `dataflow` ready to run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import starter

from dataflow.demo import machines as demo_machines
from dataflow.lib import check, config, context, custody, flag, ssh, summary
from dataflow.lib.config import MARKER, Here
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry
from faults import disks

REPOSITORY = Path(__file__).resolve().parents[1]
RADARS = ("sas", "inv")
EXPIRE = "expire={backup: {keep_days: 30}, antennas_iq: {keep_days: 30}, full_size_plots: {keep_days: 30}}"
QUICK = ("files.settle_s=0.0", "plots.processes=1", "campus.conversion_processes=1", "ssh.idle_close_s=30", EXPIRE)
"""Adopt at once, do not compete with the other tests, and let go of what is old; nothing else differs from the shipped file."""


@dataclass(frozen=True)
class Room:
    """What all tests of one process share."""

    overrides: tuple[str, ...]
    starter: Path
    running: demo_machines.Machines


@contextlib.contextmanager
def room() -> Iterator[Room]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dataflow-test-")))
        running = stack.enter_context(demo_machines.running(folder / "m", RADARS, QUICK, REPOSITORY / "config.yaml"))
        address = stack.enter_context(starter.running(folder / "starter"))
        yield Room(running.config.overrides, address, running)


@dataclass(frozen=True)
class Run:
    """One run of a command: its exit code, what it said, and the records of its step."""

    code: int
    said: str
    records: list[dict[str, Any]] = field(default_factory=list)
    stdout: bytes = b""

    def outcomes(self) -> dict[str, str]:
        """Outcome by file name."""
        return {record["file"]: record["outcome"] for record in self.records if record["event"] == "file"}

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


class Machines:
    """The machines of some radars below one folder."""

    def __init__(self, shared: Room, root: Path, overrides: Sequence[str] = ()) -> None:
        self.room = shared
        self.root = root
        self.private = root / ".machines"
        self.private.mkdir(parents=True)
        self.command = self.private / "dataflow"
        self.config = config.load(REPOSITORY / "config.yaml", root, [*shared.overrides, *overrides])
        self.killed_file = self.private / "killed"
        self.plan_file = self.private / "plan"
        self.environment = {**self.config.environment(), starter.PLAN_VARIABLE: str(self.plan_file)}
        starter.write_client(self.command, shared.starter, self.environment)
        self.let_in(self.command)
        for radar in RADARS:
            for host in self.config.flow.hosts:
                list(check.look(self.here(host, radar), create_markers=True))

    def here(self, host: str, radar: str = "sas") -> Here:
        return self.config.here(host, radar)

    def admit(self, host: str, radar: str, entries: Sequence[Entry], sender: str) -> None:
        """Take files into care as the hop before, or `receive`, did."""
        here = self.here(host, radar)
        log = summary.SummaryLog(here, "fed", "fed", context.utc_now)
        custody.Custody(here, "fed", context.utc_now, log).admit(entries, sender)

    def admitted(self, host: str, radar: str = "sas") -> list[Entry]:
        """All entries of the open manifests of a host."""
        folder = custody.open_folder(self.here(host, radar))
        return [entry for _, manifest in flag.read_folder(folder) for entry in manifest.files]

    def run(
        self,
        step: str,
        host: str,
        radar: str = "sas",
        part: str = "",
        *,
        files: Sequence[Path] = (),
        overrides: Sequence[str] = (),
    ) -> Run:
        """`dataflow run`. Every run that comes to its end is checked for counts that add up."""
        words = ["run", step, "--host", host, "--radar", radar, *(("--part", part) if part else ()), *map(str, files)]
        before = len(self.records(step, host, radar))
        code, said, stdout = self.dataflow(words, overrides=overrides)
        done = Run(code, said, self.records(step, host, radar)[before:], stdout)
        if code >= 0:
            assert_counts_add_up(done)
        return done

    def dataflow(
        self, words: Sequence[str], *, stdin: bytes = b"", overrides: Sequence[str] = (), **variables: str
    ) -> tuple[int, str, bytes]:
        """Any command; its exit code, standard error and output. It runs in `<root>/.machines`, where nothing else lies."""
        settings = {"DATAFLOW_SET": json.dumps([*self.config.overrides, *overrides])}
        environment = {**os.environ, **self.environment, **settings, **variables}
        with tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
            into.write(stdin)
            into.seek(0)
            streams = [into.fileno(), out.fileno(), complaints.fileno()]
            code = starter.ask(self.room.starter, list(words), environment, self.private, streams)
            out.seek(0)
            complaints.seek(0)
            return code, complaints.read().decode("utf-8", "replace"), out.read()

    def receive(
        self,
        verb: str,
        stdin: bytes = b"",
        host: str = "campus",
        sender: str = "site-linux",
        radar: str = "sas",
        *,
        overrides: Sequence[str] = (),
    ) -> Run:
        """`dataflow receive`, as the sender's key starts it; the answers are in `stdout`, one JSON a line."""
        before = len(self.records("receive", host, radar))
        words = ["receive", "--host", host, "--radar", radar, "--from", sender]
        code, said, stdout = self.dataflow(words, stdin=stdin, overrides=overrides, SSH_ORIGINAL_COMMAND=verb)
        return Run(code, said, self.records("receive", host, radar)[before:], stdout)

    def let_in(self, command: Path) -> None:
        """Bind the keys of all links to a program in place of `dataflow`."""
        words = [f"radars.{radar}.machines.{host}.command={command}" for radar in RADARS for host in ("site-linux", "campus")]
        bound = config.load(self.config.source, self.root, [*self.config.overrides, *words])
        demo_machines.let_in(bound, RADARS, self.room.running.secrets)

    def records(self, step: str, host: str, radar: str) -> list[dict[str, Any]]:
        """All records of one step, or of `receive`, oldest first."""
        here = self.here(host, radar)
        folder = here.logs / step.rpartition("/")[2] / "summary"
        return list(summary.records(sorted(folder.glob(f"*/*/*.{radar}.*.jsonl"))))

    def plan(self, of: str, **plan: Any) -> None:
        """What happens to commands from now on; see `starter`."""
        self.plan_file.write_text(json.dumps({"of": of, **plan}))

    def plan_kill(self, of: str, number: int) -> None:
        """Kill a command before its N-th change of a file, once."""
        self.killed_file.unlink(missing_ok=True)
        self.plan(of, below=str(self.root), kill_at=number, killed=str(self.killed_file))

    def was_killed(self) -> bool:
        """Whether that has happened; then it does not happen again."""
        self.plan_file.unlink(missing_ok=True)
        return self.killed_file.exists()

    def marker(self, host: str, radar: str, root: str) -> Path:
        return self.here(host, radar).roots[root] / MARKER

    def files(self) -> dict[str, str]:
        """What lies in the roots of all machines: path below the root folder to the hash of its content.

        Not the images of the disks that a test mounts there: while they are mounted, what they hold lies below their folders.
        """
        apart = self._apart()
        found = {}
        for folder, names, contents in os.walk(self.root):
            names[:] = [name for name in names if Path(folder, name) not in apart]
            for name in contents:
                path = Path(folder, name)
                if path.name != MARKER and not disks.is_image(path):
                    found[str(path.relative_to(self.root))] = kind_and_hash(path)
        return found

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Inode, size and modification time of the same files: unchanged, nothing was written anew."""
        found = {}
        for text in self.files():
            status = (self.root / text).lstat()
            found[text] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found

    def state(self) -> dict[str, Any]:
        """All that must be the same however often a step was killed and run again: files, and what the manifests list."""
        found: dict[str, Any] = dict(self.files())
        for radar in RADARS:
            for host in self.config.flow.hosts:
                here = self.here(host, radar)
                for what, folder in (
                    ("outbox", custody.outbox(here)),
                    ("flags", custody.flags_folder(here)),
                    ("open", custody.open_folder(here)),
                ):
                    found[f"{what} of {host} {radar}"] = {
                        (entry.name, entry.sha256) for _, manifest in flag.read_folder(folder) for entry in manifest.files
                    }
                found[f"logs at {host} {radar}"] = {
                    str(path.relative_to(here.relayed_logs)): kind_and_hash(path)
                    for path in here.relayed_logs.glob(f"{radar}/*/*")
                    if path.parent.name != "send_logs"
                }
        return found

    def outbox(self, host: str, radar: str = "sas") -> list[Entry]:
        return [entry for _, manifest in flag.read_folder(custody.outbox(self.here(host, radar))) for entry in manifest.files]

    def quarantined(self, host: str, radar: str = "sas") -> dict[str, dict[str, Any]]:
        """What lies in quarantine, with the reason of each."""
        folder = self.here(host, radar).folder("quarantine")
        names = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
        return {
            name: json.loads((folder / f"{name}.reason.json").read_text()) for name in names if not name.endswith(".reason.json")
        }

    def save(self) -> Path:
        """A copy of everything, to come back to."""
        saved = self.root.with_name(self.root.name + ".saved")
        subprocess.run(["cp", "-a", self.root, saved], check=True)
        return saved

    def restore(self, saved: Path) -> None:
        """Be again as when it was saved; the connections stay."""
        shutil.rmtree(self.root)
        subprocess.run(["cp", "-a", saved, self.root], check=True)

    def connections(self, machine: str) -> int:
        """How many connections the sshd of a machine has accepted so far, from all tests."""
        return self.room.running.sshd_log(machine).read_text(errors="replace").count("Accepted publickey")

    def close(self) -> None:
        """End the shared connections."""
        for radar in RADARS:
            for host in ("borealis", "site-linux"):
                here = self.here(host, radar)
                socket = ssh.control_socket(self.config, here, self.here(str(here.host.next), radar))
                if socket.exists():
                    subprocess.run(["ssh", "-S", socket, "-O", "exit", "x"], capture_output=True, check=False)
                for ending in ("", ".proved", ".lock", ".log"):
                    socket.with_suffix(ending).unlink(missing_ok=True)

    def _apart(self) -> set[Path]:
        """Folders that are not part of what the steps leave behind: state, logs, and what the tests need."""
        heres = [self.here(host, radar) for radar in RADARS for host in self.config.flow.hosts]
        mirrors = {here.folder("incoming") / ".logs" for here in heres if "incoming" in here.folder_texts}
        return {
            self.private,
            *mirrors,
            *(folder for here in heres for folder in (here.machine_state, here.logs, here.relayed_logs)),
        }


def assert_counts_add_up(run: Run) -> None:
    """The counts of a run are those of its records, and each file found has one outcome."""
    starts, ends = run.of("start"), run.of("end")
    assert len(starts) == len(ends) == 1, run.said
    end = ends[0]
    assert end["exit"] == run.code, run.said
    words = [record["outcome"] for record in run.of("file")]
    for word in ("done", "kept", "quarantined"):
        assert end[word] == words.count(word), (word, end, run.said)
    assert end["skipped"] >= words.count("skipped")
    assert end["found"] == end["done"] + end["kept"] + end["quarantined"] + end["skipped"]
    names = [(record["source"], record["file"]) for record in run.of("file")]
    assert len(names) == len(set(names)), "a file has two outcomes"
    if run.code == Exit.ACCOUNTED:
        assert end["kept"] == end["quarantined"] == 0


def kind_and_hash(path: Path) -> str:
    """The content of a file as a short text; what is no regular file is not opened."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(mode):
        return f"no file: {stat.S_IFMT(mode):o}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
