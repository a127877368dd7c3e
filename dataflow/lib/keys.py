"""The keys of the links: one pair for each link, which delivers over that link and does nothing else.

The sender holds the private key and a block of its ssh_config; the receiver a line of its authorized_keys that binds the
public key to ``dataflow receive`` as its forced command (sshd(8), AUTHORIZED_KEYS FILE FORMAT). What crosses from one
machine to the other is public: the key of the link one way, the host key of the receiver the other way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataflow.lib import command, ssh
from dataflow.lib.config import Config, Here
from dataflow.lib.errors import BadConfig

HOST_KEY = Path("/etc/ssh/ssh_host_ed25519_key.pub")
_PUBLIC_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+=*)(?: .*)?\n?")
_KEYGEN_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Link:
    """One hop of one radar's files: who logs in to whom."""

    sender: Here
    receiver: Here

    @property
    def name(self) -> str:
        """What ssh calls it; also the name of its private key."""
        return ssh.name_of_link(self.sender, self.receiver)

    @property
    def forced_command(self) -> str:
        """What the receiver's sshd starts for this key, whatever was asked."""
        there = self.receiver
        return f"{there.machine.command} receive --host {there.host_name} --radar {there.radar} --from {self.sender.host_name}"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one of ssh's files on the ``machine`` has to hold. ``names``: words that no other line of that file may have."""

    machine: str
    file: Path
    text: str
    names: tuple[str, ...] = ()


def links(config: Config, here: Here) -> list[Link]:
    """The link that begins at a host of one radar, then the one that ends there."""
    begins = [Link(here, config.here(here.host.next, here.radar))] if here.host.next else []
    return begins + [Link(config.here(host, here.radar), here) for host in here.upstream[-1:]]


def pieces(link: Link, here: Here, folder: Path) -> Iterator[Piece]:
    """What the ends of a link have to hold, as far as it can be told on one of them. ``folder``: its user's ``.ssh``.

    The sender's end makes the key if there is none.

    Raises:
        BadConfig: a key is not there, or is none.
    """
    sender, receiver = link.sender.machine.name, link.receiver.machine.name
    public = folder / f"{link.name}.pub"
    if here is link.sender:
        make_pair(link, folder)
        yield Piece(sender, folder / "config", client_block(link, folder), (link.name,))
    elif not public.exists():
        make = f"dataflow keys {link.sender.host_name} --radar {here.radar}"
        raise BadConfig(f"{public} is missing: `{make}` makes it on {sender}; copy it from there, then call this again")
    key = public_key(public)
    yield Piece(receiver, folder / "authorized_keys", authorized_line(link, key), (link.name, key.split()[1]))
    if here is link.receiver and HOST_KEY.exists():
        yield Piece(sender, folder / "known_hosts", known_line(link, public_key(HOST_KEY)))


def make_pair(link: Link, folder: Path) -> Path:
    """The private key of a link in a folder; the pair is made when there is none, and one that is there is never replaced.

    Raises:
        BadConfig: half a pair is there, or ssh-keygen fails.
    """
    private, public = folder / link.name, folder / f"{link.name}.pub"
    if private.exists() and not public.exists():
        raise BadConfig(f"{public} is missing. Type: ssh-keygen -y -f {private} > {public}")
    if public.exists() and not private.exists():
        raise BadConfig(f"{public} is there, but not the private key of that pair: remove it, and a new pair is made")
    if not private.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        words: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", link.name, "-f", private]
        finished = command.run(words, timeout_s=_KEYGEN_LIMIT_S)
        if finished.returncode != 0:
            raise BadConfig(f"ssh-keygen cannot make {private}: {finished.last_lines}")
    return private


def public_key(path: Path) -> str:
    """The type and the key of a file with one public key; what else may stand there is left out.

    Raises:
        BadConfig: it is not one public key and nothing else: a line of authorized_keys can hold anything.
    """
    try:
        found = _PUBLIC_KEY.fullmatch(path.read_text(encoding="ascii", errors="replace"))
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise BadConfig(f"{path} does not hold one public key and nothing else")
    return found[1]


def authorized_line(link: Link, key: str) -> str:
    """The line of the receiver's authorized_keys: no terminal, no forwarding, and one command."""
    return f'restrict,command="{link.forced_command}" {key} {link.name}'


def known_line(link: Link, host_key: str) -> str:
    """The line of the sender's known_hosts."""
    machine = link.receiver.machine
    where = machine.address if machine.port == 22 else f"[{machine.address}]:{machine.port}"
    return f"{where} {host_key}"


def client_block(link: Link, folder: Path) -> str:
    """The block of the sender's ssh_config; ``folder`` holds its keys and its known_hosts."""
    machine = link.receiver.machine
    settings = {
        "HostName": machine.address,
        "Port": machine.port,
        "User": machine.user or link.receiver.host.user,
        "IdentityFile": f'"{folder / link.name}"',
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{folder / "known_hosts"}"',
    }
    return f"Host {link.name}\n" + "\n".join(f"  {key} {value}" for key, value in settings.items())


def add(piece: Piece) -> bool:
    """Append a piece to its file on this machine, mode 0600, unless it is there; returns whether it was missing.

    Raises:
        BadConfig: another line has one of its names: ssh and sshd take the first that they find, and what a person wrote is
            not replaced.
    """
    file = piece.file
    content = file.read_text(encoding="utf-8") if file.exists() else ""
    if f"\n{piece.text}\n" in f"\n{content}\n":
        return False
    for line in content.splitlines():
        if not line.lstrip().startswith("#") and not set(piece.names).isdisjoint(line.split()):
            raise BadConfig(f"{file} was left as it is, for it has already: {line.strip()}\nRemove that, then call this again")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(("\n" if content and not content.endswith("\n") else "") + f"{piece.text}\n")
    return True
