"""What the key of a link may do: ``dataflow receive`` as the forced command of the key.

sshd starts it in place of whatever the other machine asks for, and says in SSH_ORIGINAL_COMMAND what that was. One of the
verbs of ``receive`` is answered; the server's side of rsync goes to the stock ``rrsync``, which lets it write below
``incoming`` and nowhere else. All else is refused, and told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import BinaryIO

from dataflow.lib import alert, command, names, place, receive
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, BadFile

ASKED_VARIABLE = "SSH_ORIGINAL_COMMAND"
PEER_VARIABLE = "SSH_CONNECTION"
RRSYNC = ("rrsync", "-wo", "-munge", "-no-del", "-no-lock")
"""Write only; links that arrive lead nowhere; nothing is deleted. Without its lock, because the rsync of a connection that
broke may live on for minutes, and must not keep the next one out."""
_SYNTAX_CODE = 1
"""How rrsync ends when it refuses, and rsync when it does not understand."""
_SHOWN_CHARACTERS = 500


def serve(ctx: Context, sender: str, stdin: BinaryIO, stdout: BinaryIO) -> int:
    """Answer what ``sender`` asks over its link; the exit code.

    Raises:
        BadConfig: it asked for something else, or rrsync is not installed.
        TryLater: the disk for what arrives is not there.
        BadFile: a request that cannot be read.
    """
    asked = os.environ.get(ASKED_VARIABLE, "")
    if asked.startswith("rsync --server "):
        return _hand_to_rrsync(ctx, sender, asked)
    if asked not in receive.VERBS:
        raise _refusal(ctx, sender, asked, "only deliveries are taken here")
    try:
        return receive.serve(ctx, asked, sender, stdin, stdout)
    except BadFile as error:
        told = f"what came as {asked} with the key of {sender} was refused: {names.printable(str(error))}"
        alert.tell(ctx.log, told, peer=_peer())
        raise


def _hand_to_rrsync(ctx: Context, sender: str, asked: str) -> int:
    place.check_root(ctx.here, ctx.here.root_of("incoming"))
    if not shutil.which(RRSYNC[0]):
        raise BadConfig(
            f"{RRSYNC[0]} is not installed on {ctx.here.machine.name}: it comes with rsync 3.2.7 or later (apt install rsync); "
            f"where it lies among rsync's documents (/usr/share/doc/rsync), copy it to /usr/local/bin and make it executable"
        )
    process = command.start([*RRSYNC, ctx.folder("incoming")], stdin=None, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = bytearray()
    passing_on = threading.Thread(target=_pass_on, args=(process.stderr.fileno(), said))
    passing_on.start()
    code = process.wait()
    command.end_group(process)  # of the two processes of an rsync the other one may wait for ever, and the sender for it
    passing_on.join()
    if code == _SYNTAX_CODE:
        raise _refusal(ctx, sender, asked, said.decode("utf-8", "replace").strip())
    return code if code >= 0 else 128 - code


def _pass_on(complaints: int, said: bytearray) -> None:
    """Let the sender read what rsync complains, and keep the end of it."""
    while piece := os.read(complaints, 65536):
        os.write(2, piece)
        said[:] = (said + piece)[-_SHOWN_CHARACTERS:]


def _refusal(ctx: Context, sender: str, asked: str, why: str) -> BadConfig:
    """What is told to who asked; the people of this machine are told more."""
    what = names.printable(asked[:_SHOWN_CHARACTERS]) or "a shell"
    told = f"the key of {sender} is not for what was asked: {what}: {names.printable(why)}"
    alert.tell(ctx.log, told, peer=_peer(), asked=what)
    return BadConfig(f"refused, and recorded: this key delivers {ctx.here.radar} to {ctx.here.host_name}, and does nothing else")


def _peer() -> str:
    """The address of who asks, as sshd says it (sshd(8): client address and port, server address and port)."""
    return names.printable(os.environ.get(PEER_VARIABLE, "").split(" ")[0])
