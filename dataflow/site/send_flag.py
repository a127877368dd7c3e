"""Tell the next host what was delivered: send the flags that wait in the outbox.

Runs on:  borealis, site-linux
Reads:    the outbox
Writes:   the next host's flag folder
Removes:  a flag from the outbox, once the next host has it
Needs:    a key for the next host
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataflow.lib import checksum, flag, place, ssh
from dataflow.lib.context import Context
from dataflow.lib.custody import outbox
from dataflow.lib.errors import BadConfig
from dataflow.lib.flag import is_flag_name
from dataflow.lib.step import Outcome, attempt, done, kept

ROOTS = ()
TIMEOUT_S = 120.0


def find(ctx: Context) -> list[Path]:
    """The flags that wait, oldest first."""
    return [path for path in place.scan(outbox(ctx.here)) if is_flag_name(path.name)]


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """Send all of them in one request; a flag that arrives twice is the same flag."""
    if ctx.here.host.next is None:
        raise BadConfig(f"hosts.{ctx.here.host_name}.next is not set, so send_flag has nobody to send to")
    sound = []
    for path in files:
        found = attempt(ctx, path, flag.read)
        if isinstance(found, Outcome):
            yield found  # damaged on this machine's disk: the next host finds its files by looking, and adopts them
        else:
            sound.append(path)
    if not sound:
        return
    checksum.sync_folder(outbox(ctx.here))  # who put them there may have been killed before he had synced the names
    link = ssh.connect(ctx, ctx.here.host.next)
    answer = link.receive("flag", b"".join(path.read_bytes() for path in sound), TIMEOUT_S)
    answers = ssh.by_key(answer, "id")
    machine = link.there.machine.name
    for path in sound:
        item = answers.get(path.name.split(f".{ctx.here.radar}.")[0], {})
        if item.get("outcome") == "done":
            yield done(path, "sent", bytes=path.stat().st_size, destination=f"{machine}:flags", release=(path,))
        else:
            yield kept(path, f"{machine} did not take it: {item.get('reason', 'no answer')}")
