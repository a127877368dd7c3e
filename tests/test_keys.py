"""What the key of a link can do, and what it cannot: every attempt is made over real SSH with the real key.

Who holds the key of site-linux tries to get a shell on campus, to read, to write elsewhere, to reach another radar. Nothing
may be read, written or executed, and of every attempt something must be on record: what `receive` or what sshd told.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback import Machines
from running_chain import LIMIT_S
from step_cases import at, entry_of, put, site_data

from dataflow.lib import checksum, context, custody, flag, gate, keys, ssh, transfer
from dataflow.lib.config import Here
from dataflow.lib.errors import Exit
from dataflow.lib.flag import Entry, Flag

SECRET = "what nobody may read"
SHELL = {
    "a shell": "",
    "a command": "touch {canary}",
    "a command of a shell": "sh -c 'touch {canary}'",
    "reading a file": "cat {secret}",
    "a verb and a command": "accept; touch {canary}",
    "a verb and then a command": "accept && touch {canary}",
    "a verb or a command": "accept || touch {canary}",
    "a verb into a command": "accept | tee {canary}",
    "a verb into a file": "accept > {canary}",
    "a command behind a verb": "accept & touch {canary}",
    "a second line": "hello\ntouch {canary}",
    "a command in its place": "$(touch {canary})",
    "a command in backquotes": "hello `touch {canary}`",
    "a verb in quotes": "'hello'",
    "a verb after a blank": " hello",
    "a verb before a blank": "hello ",
    "a verb in capitals": "HELLO",
    "another verb": "serve",
    "two verbs": "hello accept",
    "another radar": "accept --radar inv",
    "another host": "accept --host site-linux",
    "another sender": "flag --from borealis",
    "another configuration": "--config {canary} hello",
    "the receiver by its own name": "dataflow receive --host campus --radar inv --from site-linux",
    "another command of ours": "dataflow quarantine list --host campus --radar sas",
    "another environment": "SSH_ORIGINAL_COMMAND=hello dataflow receive",
    "what rrsync would answer": "true",
    "scp to here": "scp -t {folder}",
    "scp from here": "scp -f {secret}",
    "an sftp server": "/usr/lib/openssh/sftp-server",
    "a git server": "git-upload-pack {folder}",
    "an interpreter": 'python3 -c \'open("{canary}", "w")\'',
    "control characters": "\x1b[2J\x07\r hello",
    "bytes that are no text": "hello\udcff\udcfe",
    "ten thousand characters": "hello " + "a" * 10_000,
    "an rsync of our own": "rsync {secret} {canary}",
    "an rsync daemon": "rsync --daemon --config={canary}",
    "rsync by its path": "/usr/bin/rsync --server -te.Ls . ./",
    "rsync after two blanks": "rsync  --server -te.Ls . ./",
    "rsync and a tabulator": "rsync\t--server -te.Ls . ./",
    "rsync without a server": "rsync -te.Ls --server . ./",
}
"""What `receive` itself refuses."""
RSYNC = {
    "reading what has arrived": "--sender -logDtpre.iLsfxC . ./",
    "reading a file elsewhere": "--sender -te.Ls . {secret}",
    "reading a folder above": "--sender -te.Ls . ../",
    "reading, said later": "-te.Ls --sender . ./",
    "the folder above": "-te.Ls . ../",
    "the incoming of another radar": "-te.Ls . ../inv/",
    "up and down": "-te.Ls . ./x/../../inv/",
    "up behind a backslash": "-te.Ls . .\\./inv/",
    "the arguments on another way": "-ste.Ls . ./",
    "a partial folder above": "-te.Ls --partial-dir=../inv . ./",
    "a partial folder above, in two words": "-te.Ls --partial-dir ../inv . ./",
    "a folder of temporary files above": "-te.Ls --temp-dir=../.. . ./",
    "a backup folder above": "-bte.Ls --backup-dir=../inv . ./",
    "links to files above": "-te.Ls --link-dest=../../holding . ./",
    "copies of files above": "-te.Ls --copy-dest=../../holding . ./",
    "comparing with files above": "-te.Ls --compare-dest=../../holding . ./",
    "a list of files above": "-te.Ls --files-from=../../secret . ./",
    "a log file above": "-te.Ls --log-file=../log . ./",
    "a daemon": "--daemon . ./",
    "a configuration": "--config={canary} . ./",
    "another remote shell": "-te.Ls --rsh=sh . ./",
    "another rsync": "-te.Ls --rsync-path={canary} . ./",
    "deleting": "-tre.Ls --delete . ./",
    "deleting what is not sent": "-tre.Ls --delete-missing-args . ./",
    "removing sources": "-te.Ls --remove-source-files . ./",
    "links taken for folders": "-Kte.Ls . ./",
    "links followed": "-Lte.Ls . ./",
    "links that lead somewhere": "-lte.Ls --no-munge-links . ./",
    "writing into devices": "-te.Ls --write-devices . ./",
    "reading devices": "-te.Ls --copy-devices . ./",
    "an option that there is not": "-te.Ls --run-this={canary} . ./",
    "no place": "-te.Ls",
}
"""What follows `rsync --server`, and rrsync refuses; newer ones let `--copy-unsafe-links` pass, which is for who sends."""
PLACES = {
    "an absolute path": "{outside}/",
    "an absolute path after a dot": "./{outside}/",
    "a command in a path": "$(touch {canary})/",
    "a command in backquotes": "`touch {canary}`/",
    "a command after a path": "x;touch {canary}/",
    "a command on a line of its own": "x\ntouch {canary}\n/",
    "an option": "--rsh=touch {canary}/",
    "a folder behind a link": "link/",
    "a pattern": "../*/",
}
"""Where a real rsync is told to write, by an rsync that quotes nothing for a shell."""
SSHD = {
    "a port of campus": (["-W", "127.0.0.1:22"], "refused local port forward: .* target 127.0.0.1 port 22"),
    "a port of campus's network": (["-W", "192.0.2.1:80"], "refused local port forward: .* target 192.0.2.1 port 80"),
    "a port for others on campus": (["-N", "-R", "0:127.0.0.1:22"], "Accepted publickey"),
    "a socket for others on campus": (["-N", "-R", "{canary}:127.0.0.1:22"], "Accepted publickey"),
    "a proxy on campus": (["-N", "-R", "0"], "Accepted publickey"),
    "a tunnel of networks": (["-N", "-w", "0:0"], "Accepted publickey"),
    "a tunnel of Ethernets": (["-N", "-oTunnel=ethernet", "-w", "0:0"], "Accepted publickey"),
    "a subsystem that there is not": (["-s", "netconf"], "subsystem request for netconf by user .* failed"),
    "the account of somebody else": (["-l", "nobody", "hello"], "Failed publickey for nobody"),
    "the sftp subsystem": (["-s", "sftp"], "asked: internal-sftp"),
    "a terminal": (["-tt"], "asked: a shell"),
    "a terminal for a command": (["-tt", "top"], "asked: top"),
    "the agent": (["-A", "ssh-add -l"], "asked: ssh-add -l"),
    "a display": (["-X", "xterm"], "asked: xterm"),
    "a trusted display": (["-Y", "xterm"], "asked: xterm"),
    "an environment that says what was asked": (["-oSetEnv=SSH_ORIGINAL_COMMAND=hello", "id"], "asked: id"),
    "an environment of libraries": (["-oSetEnv=LD_PRELOAD={canary} PYTHONPATH={canary} BASH_ENV={canary}", "id"], "asked: id"),
    "an environment of ours": (["-oSetEnv=DATAFLOW_CONFIG={canary} DATAFLOW_ROOT={outside}", "id"], "asked: id"),
    "a language of one's own": (["-oSetEnv=LC_ALL=../../{canary} LANG=$(id>{canary})", "id"], "asked: id"),
}
"""What ssh asks sshd for: its words, and what is on record afterwards, of sshd or of `receive`. That a port or a tunnel was
asked for sshd itself keeps from its log: there is only the connection."""


@dataclass(frozen=True)
class Thief:
    """Who has the key of a link, and a connection that is open already."""

    machines: Machines
    link: ssh.Link
    secret: Path
    canary: Path

    def filled(self, text: str) -> str:
        folder = self.machines.root / "campus"
        return text.format(secret=self.secret, canary=self.canary, folder=folder, outside=self.canary.parent)

    def ask(self, words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Ask for something, as bytes that may be none of a text."""
        argv = [*self.link.argv, self.link.destination, "--", *([os.fsencode(words)] if words else [])]
        typed = stdin if stdin is not None else b"touch %b\n" % bytes(self.canary)
        return subprocess.run(argv, input=typed, capture_output=True, timeout=LIMIT_S)

    def connect(self, *words: str, of: str = "") -> subprocess.CompletedProcess[bytes]:
        """A connection of one's own, with the key of another link if that is wanted."""
        machine, secrets = self.link.there.machine, self.machines.room.running.secrets
        options = {
            "HostName": machine.address, "Port": machine.port, "IdentityFile": secrets / (of or self.link.destination),
            "IdentitiesOnly": "yes", "UserKnownHostsFile": secrets / "known_hosts", "BatchMode": "yes",
            "ExitOnForwardFailure": "yes",
        }  # fmt: skip
        settings = [f"-o{key}={value}" for key, value in options.items()]
        argv = ["ssh", "-F", "/dev/null", *settings, "campus", *words]
        return subprocess.run(argv, input=b"id\n", capture_output=True, timeout=LIMIT_S)

    def push(self, options: str, source: str, target: str, *more: str) -> subprocess.CompletedProcess[bytes]:
        """A real rsync over the connection that is open."""
        argv = ["rsync", options, *more, f"--rsh={self.link.remote_shell}", source, f"{self.link.destination}:{target}"]
        return subprocess.run(argv, capture_output=True, timeout=LIMIT_S)

    def deliver(self, verb: str, stdin: bytes, of: str = "") -> list[dict[str, Any]]:
        """What `receive` answers."""
        argv = [*self.link.argv, self.link.destination, verb]
        if of:
            config = self.machines.room.running.secrets / "ssh_config"
            argv = ["ssh", "-F", str(config), "-oBatchMode=yes", of, verb]
        told = subprocess.run(argv, input=stdin, capture_output=True, timeout=LIMIT_S)
        assert told.returncode == 0, told
        return [json.loads(line) for line in told.stdout.splitlines()]

    def alerts(self) -> list[dict[str, Any]]:
        return [r for r in self.machines.records("receive", "campus", "sas") if r["event"] == "alert"]

    def on_record(self) -> list[str]:
        """What `receive` told, and what the sshd of campus did."""
        log = self.machines.room.running.sshd_log("campus").read_text(errors="replace").splitlines()
        return [alert["message"] for alert in self.alerts()] + log


@pytest.fixture
def thief(machines: Machines, tmp_path: Path) -> Iterator[Thief]:
    (tmp_path / "outside").mkdir()
    for radar in ("sas", "inv"):
        machines.receive("hello", radar=radar)
    secret = put(machines.here("campus").folder("incoming").parents[1] / "secret", SECRET.encode(), at(0))
    link = ssh.connect(context.open_context(machines.config, "site-linux", "sas", "thief"), "campus")
    yield Thief(machines, link, secret, tmp_path / "outside" / "canary")


def all_below(folder: Path) -> dict[str, int]:
    """Everything in a folder, hidden or not, with its size."""
    return {str(path): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def left(thief: Thief) -> tuple[Any, ...]:
    """All that an attempt might have changed."""
    here = thief.machines.here("campus")
    folders = [*here.roots.values(), thief.canary.parent, here.relayed_logs]
    return *(all_below(folder) for folder in folders), thief.machines.files(), custody_of(here)


def custody_of(here: Here) -> dict[str, int]:
    return {**all_below(custody.flags_folder(here)), **all_below(custody.outbox(here))}


def test_what_is_no_delivery_is_refused_and_recorded(thief: Thief) -> None:
    before = left(thief)
    for number, (what, words) in enumerate(SHELL.items(), 1):
        asked = thief.filled(words)
        told = thief.ask(asked)
        assert told.returncode == Exit.CONFIG and told.stdout == b"", (what, told)
        assert told.stderr.endswith(
            b"dataflow: refused, and recorded: this key delivers sas to campus, and does nothing else\n"
        ), what
        assert left(thief) == before, what
        assert len(thief.alerts()) == number, what
        alert = thief.alerts()[-1]
        assert alert["peer"] == "127.0.0.1" and alert["asked"].isprintable() and len(alert["asked"]) <= 600
        assert alert["asked"][:20] == (asked.encode("unicode_escape").decode()[:20] or "a shell"), what
    assert len(SHELL) >= 40


def test_what_rrsync_does_not_take_is_refused_and_recorded(thief: Thief) -> None:
    put(thief.machines.here("campus").folder("incoming") / "arrived", SECRET.encode(), at(0))
    before = left(thief)
    for number, (what, words) in enumerate(RSYNC.items(), 1):
        told = thief.ask(thief.filled(f"rsync --server {words}"))
        assert told.returncode == Exit.CONFIG and told.stdout == b"", (what, told)
        assert b"rrsync" in told.stderr and SECRET.encode() not in told.stderr, (what, told)
        assert left(thief) == before, what
        assert len(thief.alerts()) == number and "rrsync" in thief.alerts()[-1]["message"], what


def test_what_ssh_itself_might_give_is_refused_and_on_record(thief: Thief) -> None:
    before = left(thief)
    for what, (words, recorded) in SSHD.items():
        already = Counter(thief.on_record())
        told = thief.connect(*map(thief.filled, words))
        assert told.returncode != 0 and told.stdout == b"", (what, told)
        until(lambda r=recorded, a=already: re.search(r, "\n".join(Counter(thief.on_record()) - a)), what)
        assert left(thief) == before, what


def test_the_key_of_a_link_opens_no_other_machine(thief: Thief) -> None:
    """And that of another radar only its own door."""
    told = thief.connect("hello", of="dataflow-sas-borealis-to-site-linux")
    assert told.returncode == 255 and b"Permission denied" in told.stderr
    until(lambda: "Failed publickey" in "\n".join(thief.on_record()[-3:]), "sshd tells of it")
    for radar in ("sas", "inv"):
        told = thief.connect("hello", of=f"dataflow-{radar}-site-linux-to-campus")
        assert told.returncode == 0 and json.loads(told.stdout)["machine"] == "campus"
        asked = json.dumps(_manifest(Entry("20241101.0000.00.sas.0.rawacf.h5", 1, "0" * 64))).encode()
        (answer,) = thief.deliver("accept", asked, f"dataflow-{radar}-site-linux-to-campus")
        assert answer["outcome"] == {"sas": "missing", "inv": "refused"}[radar]


NOT_OURS = ["20241101.0000.00.inv.0.rawacf.h5", "20241101.0000.00.sas.0.antennas_iq.h5", "$(id).rawacf.h5", ".logs", "x" * 300]
NO_NAMES = ["../inv/20241101.0000.00.sas.0.rawacf.h5", "/etc/passwd", "../../secret", "..", ".", "", "a\0b"]
"""What a manifest may list that is not for this host and radar, and what is no file name at all."""


def test_a_manifest_of_what_is_not_its_own_moves_nothing_and_is_recorded(thief: Thief) -> None:
    before, digest = left(thief), hashlib.sha256(SECRET.encode()).hexdigest()
    answers = thief.deliver("accept", json.dumps(_manifest(*(Entry(name, len(SECRET), digest) for name in NOT_OURS))).encode())
    assert [(answer["name"], answer["outcome"]) for answer in answers] == [(name, "refused") for name in NOT_OURS]
    files = [record for record in thief.machines.records("receive", "campus", "sas") if record["event"] == "file"]
    assert [record["action"] for record in files] == ["refused"] * len(NOT_OURS)
    for number, name in enumerate(NO_NAMES, 1):
        told = thief.ask("accept", stdin=json.dumps(_manifest(Entry(name, len(SECRET), digest))).encode())
        assert told.returncode == Exit.LEFT_OVER and told.stdout == b"", name
        assert len(thief.alerts()) == number
        assert "what came as accept with the key of site-linux" in thief.alerts()[-1]["message"]
    assert left(thief) == before


def test_a_flag_of_another_radar_or_sender_is_refused_and_recorded(thief: Thief) -> None:
    before = left(thief)
    entry = Entry("20241101.0000.00.sas.0.rawacf.h5", 1, "0" * 64)
    flags = [
        Flag("20241101T000000.000000Z", radar, sender, "2024-11-01T00:00:00.000000Z", "run", (entry,))
        for radar, sender in (("inv", "site-linux"), ("sas", "borealis"), ("sas", "campus"))
    ]
    answers = thief.deliver("flag", b"".join(flag.encode() for flag in flags))
    assert [answer["outcome"] for answer in answers] == ["refused"] * 3
    assert [alert["message"].partition("refused: ")[2] for alert in thief.alerts()] == [
        "it is of site-linux for inv", "it is of borealis for sas", "it is of campus for sas",
    ]  # fmt: skip
    assert left(thief) == before


def test_wherever_rsync_is_told_to_write_it_writes_below_incoming(thief: Thief, tmp_path: Path) -> None:
    incoming = thief.machines.here("campus").folder("incoming")
    (incoming / "link").symlink_to(thief.canary.parent)
    before = below_all_but(tmp_path, incoming)
    arrived = recorded = 0
    for what, place in PLACES.items():
        file = put(thief.canary.parent.with_name("mine") / "forged", b"forged", at(0))
        far = f"{thief.link.destination}:{thief.filled(place)}"
        argv = ["rsync", "--times", "--mkpath", "--old-args", f"--rsh={thief.link.remote_shell}", file, far]
        told = subprocess.run(argv, capture_output=True, timeout=LIMIT_S)
        shutil.rmtree(file.parent)
        assert below_all_but(tmp_path, incoming) == before, what
        found = [path for path in incoming.rglob("*") if path.name not in ("link", ".logs", ".partial")]
        assert found or (told.returncode != 0 and len(thief.alerts()) > recorded), what
        arrived, recorded = arrived + bool(found), len(thief.alerts())
        for path in sorted(found, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert arrived >= 2, "the others were refused"


def below_all_but(folder: Path, incoming: Path) -> set[str]:
    """What lies in a folder, but for what has arrived and what is recorded."""
    return {path for path in all_below(folder) if not Path(path).is_relative_to(incoming) and "/log/" not in path}


def test_a_link_that_is_sent_leads_nowhere(thief: Thief, tmp_path: Path) -> None:
    """Neither for the next rsync, nor for who takes over what has arrived."""
    incoming = thief.machines.here("campus").folder("incoming")
    mine = tmp_path / "mine"
    (mine / ".logs").mkdir(parents=True)
    (mine / ".logs" / "receive").symlink_to(thief.secret.parent)
    (mine / "out").symlink_to(thief.canary.parent)
    (mine / "20241101.0000.00.sas.0.rawacf.h5").symlink_to(thief.secret)
    before = below_all_but(tmp_path, incoming)
    assert thief.push("-rl", f"{mine}/", "./").returncode == 0
    assert all(os.readlink(path).startswith("/rsyncd-munged/") for path in incoming.rglob("*") if path.is_symlink())
    assert len([path for path in incoming.rglob("*") if path.is_symlink()]) == 3

    forged = put(mine / "forged", b"forged", at(0))
    assert thief.push("-r", str(forged), "./out/").returncode != 0
    entry = Entry("20241101.0000.00.sas.0.rawacf.h5", len(SECRET), hashlib.sha256(SECRET.encode()).hexdigest())
    (answer,) = thief.deliver("accept", json.dumps(_manifest(entry)).encode())
    assert answer["outcome"] == "missing"
    assert thief.deliver("logs", b"") == [{"outcome": "done", "files": 0}]
    assert below_all_but(tmp_path, incoming) - {str(forged)} == before


def test_what_arrives_can_be_run_or_read_by_nobody_else(thief: Thief, tmp_path: Path) -> None:
    """A program with the rights of its owner may arrive, since rsync can give any mode; others do not get as far as it."""
    incoming = thief.machines.here("campus").folder("incoming")
    program = put(tmp_path / "mine" / "program", b"#!/bin/sh\n", at(0))
    program.chmod(0o6755)
    assert thief.push("-p", str(program), "./").returncode == 0
    assert (incoming / "program").stat().st_mode & 0o777 == 0o755
    assert incoming.stat().st_mode & 0o007 == 0 and incoming.parent.stat().st_mode & 0o007 == 0o005


def test_with_the_same_key_data_flags_and_logs_are_delivered(machines: Machines) -> None:
    (line,) = machines.room.running.secrets.joinpath("sas-site.authorized_keys").read_text().splitlines()
    assert line.startswith(f'restrict,command="{machines.command} receive --host site-linux --radar sas --from borealis" ssh-')
    file = site_data(machines, 0)
    digest = entry_of(file).sha256
    for step, part in (("rsync_to_campus", "data"), ("send_flag", ""), ("send_logs", "")):
        done = machines.run(step, "site-linux", part=part)
        assert done.code == 0 and done.outcomes(), done.said
    here = machines.here("campus")
    assert checksum.sha256(here.folder("holding") / file.name) == digest
    assert [entry.name for _, found in flag.read_folder(custody.flags_folder(here)) for entry in found.files] == [file.name]
    assert [path.parent.name for path in here.relayed_logs.glob("sas/*/*.site-linux.jsonl")] and not [
        record for record in machines.records("receive", "campus", "sas") if record["event"] == "alert"
    ]


def test_a_transfer_that_broke_goes_on_from_its_partial(thief: Thief, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(2_000_000)
    file = put(tmp_path / "mine" / "20241101.0000.00.sas.0.rawacf.h5", content, at(0))
    partial = thief.machines.here("campus").folder("incoming") / transfer.PARTIALS / file.name
    put(partial, content[:1_500_000], at(0))
    told = thief.push("-t", str(file), "./", "--stats", f"--partial-dir={transfer.PARTIALS}", "--no-whole-file")
    assert told.returncode == 0, told
    assert int(re.search(rb"Matched data: ([\d,]+)", told.stdout)[1].replace(b",", b"")) > 1_400_000
    assert not partial.exists() and (partial.parents[1] / file.name).read_bytes() == content


LINK = "dataflow-sas-site-linux-to-campus"


def asked_for_keys(machines: Machines, host: str, folder: Path, *words: str) -> tuple[int, str, str]:
    code, said, told = machines.dataflow(["keys", host, "--radar", "sas", "--folder", str(folder), *words])
    return code, said, told.decode()


def test_both_ends_of_a_link_are_made(machines: Machines, tmp_path: Path) -> None:
    there, here = tmp_path / "sender", tmp_path / "receiver"
    assert asked_for_keys(machines, "borealis", there)[0] == 0, "which also brings the key of the link that ends at site-linux"
    code, said, told = asked_for_keys(machines, "site-linux", there, "--write")
    assert code == 0, said
    private, public = there / LINK, there / f"{LINK}.pub"
    assert private.stat().st_mode & 0o777 == 0o600 and there.stat().st_mode & 0o777 == 0o700
    assert public.read_text().split()[0] == "ssh-ed25519" and public.read_text().split()[2] == LINK
    block = (there / "config").read_text()
    assert block in told and block.startswith(f"Host {LINK}\n  HostName 127.0.0.1\n")
    assert f'IdentityFile "{private}"' in block and "StrictHostKeyChecking yes" in block and "IdentitiesOnly yes" in block

    here.mkdir(mode=0o700)
    shutil.copy(public, here)
    code, said, told = asked_for_keys(machines, "campus", here, "--write")
    assert code == 0, said
    (line,) = (here / "authorized_keys").read_text().splitlines()
    machine = machines.here("campus").machine
    command = f"{machine.command} receive --host campus --radar sas --from site-linux"
    assert line == f'restrict,command="{command}" {" ".join(public.read_text().split()[:2])} {LINK}' and line in told
    assert (here / "authorized_keys").stat().st_mode & 0o777 == 0o600
    if keys.HOST_KEY.exists():
        assert f"[127.0.0.1]:{machine.port} {' '.join(keys.HOST_KEY.read_text().split()[:2])}\n" in told

    files = {path: path.read_bytes() for folder in (there, here) for path in folder.iterdir()}
    for host, folder in (("site-linux", there), ("campus", here)):
        assert asked_for_keys(machines, host, folder, "--write")[0] == 0
    assert {path: path.read_bytes() for folder in (there, here) for path in folder.iterdir()} == files, "nothing is made twice"


def test_the_receiver_waits_for_the_key_and_takes_nothing_but_a_key(machines: Machines, tmp_path: Path) -> None:
    code, said, _ = asked_for_keys(machines, "campus", tmp_path, "--write")
    assert code == Exit.CONFIG and f"{LINK}.pub is missing: `dataflow keys site-linux --radar sas` makes it on sas-site" in said
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
    for content in ("", "hello", f'command="id" {key}', f"restrict {key}", f"{key}\n{key}\n", f"# x\n{key}"):
        (tmp_path / f"{LINK}.pub").write_text(content)
        code, said, _ = asked_for_keys(machines, "campus", tmp_path, "--write")
        assert code == Exit.CONFIG and "does not hold one public key and nothing else" in said, content
        assert not (tmp_path / "authorized_keys").exists()


@pytest.mark.parametrize("old", ["{key} somebody", 'command="id" {key}', "restrict ssh-ed25519 AAAA " + LINK])
def test_a_line_that_would_count_instead_is_not_passed_over(machines: Machines, tmp_path: Path, old: str) -> None:
    """sshd takes the first line with a key: were the same key there with a shell, a second line would restrict nothing."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
    (tmp_path / f"{LINK}.pub").write_text(f"{key} {LINK}\n")
    before = old.format(key=key)
    (tmp_path / "authorized_keys").write_text(before)
    code, said, _ = asked_for_keys(machines, "campus", tmp_path, "--write")
    assert code == Exit.CONFIG and f"has already: {before}" in said
    assert (tmp_path / "authorized_keys").read_text() == before
    (tmp_path / "authorized_keys").write_text(f"# {before}\nssh-ed25519 BBBB another")
    assert asked_for_keys(machines, "campus", tmp_path, "--write")[0] == 0
    assert [line.split()[-1] for line in (tmp_path / "authorized_keys").read_text().splitlines()][1:] == ["another", LINK]


def test_a_link_is_made_though_the_one_before_has_no_key_yet(machines: Machines, tmp_path: Path) -> None:
    code, said, told = asked_for_keys(machines, "site-linux", tmp_path, "--write")
    assert code == Exit.CONFIG and "dataflow-sas-borealis-to-site-linux.pub is missing" in said
    assert (tmp_path / LINK).exists() and f"Host {LINK}" in told and f"Host {LINK}" in (tmp_path / "config").read_text()


def test_a_pair_is_not_replaced(machines: Machines, tmp_path: Path) -> None:
    link = "dataflow-sas-borealis-to-site-linux"
    assert asked_for_keys(machines, "borealis", tmp_path)[0] == 0
    private = (tmp_path / link).read_bytes()
    assert asked_for_keys(machines, "borealis", tmp_path)[0] == 0 and (tmp_path / link).read_bytes() == private
    public = (tmp_path / f"{link}.pub").rename(tmp_path / "away")
    code, said, _ = asked_for_keys(machines, "borealis", tmp_path)
    assert code == Exit.CONFIG and "Type: ssh-keygen -y -f" in said
    public.rename(tmp_path / f"{link}.pub")
    (tmp_path / link).unlink()
    code, said, _ = asked_for_keys(machines, "borealis", tmp_path)
    assert code == Exit.CONFIG and "is there, but not the private key of that pair" in said
    assert not (tmp_path / link).exists() and list(tmp_path.glob("config")) == []


def test_without_rrsync_it_says_what_to_install(machines: Machines, tmp_path: Path) -> None:
    machines.receive("hello")
    words = ["receive", "--host", "campus", "--radar", "sas", "--from", "site-linux"]
    asked = {gate.ASKED_VARIABLE: "rsync --server -te.Ls . ./", "PATH": str(tmp_path)}
    code, said, _ = machines.dataflow(words, **asked)
    assert code == Exit.CONFIG and "rrsync is not installed on campus: it comes with rsync 3.2.7" in said


def test_a_disk_that_is_not_there_takes_nothing(thief: Thief, tmp_path: Path) -> None:
    thief.machines.marker("campus", "sas", "sddata").unlink()
    before = left(thief)
    told = thief.push("-t", str(put(tmp_path / "mine" / "file", b"x", at(0))), "./")
    assert told.returncode == 12 and b"is not in use: its marker" in told.stderr
    assert left(thief) == before


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what sshd does after its client has gone."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _manifest(*entries: Entry) -> dict[str, Any]:
    return {"v": 1, "run": "thief", "files": [entry.document() for entry in entries]}
