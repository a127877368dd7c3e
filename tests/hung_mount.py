"""A network mount whose server is gone: a FUSE file system that is mounted over a folder and answers nothing.

Whoever asks it for anything sleeps in the kernel as on a hard NFS mount: in state D, and SIGKILL does not wake him. What lay in
the folder is there again when the block ends; who waited until then is told that the mount is gone, as by `umount -f -l`.

The kernel's side of this is described in Documentation/filesystems/fuse.rst, the messages in include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

LOOKUP, INIT, INTERRUPT = 1, 26, 36
REQUEST = struct.Struct("=IIQQIIII")
"""``fuse_in_header``: length, what is asked, its number, inode, user, group, process, padding."""
ANSWER = struct.Struct("=IiQ")
"""``fuse_out_header``: length, error, the number of the request."""
INIT_ANSWER = struct.pack("=IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 0, 0, 0, 0, *[0] * 7)
MESSAGE_BYTES = 1 << 17
ASK_ONCE = "import os, signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); os.path.exists(sys.argv[1])"


@contextlib.contextmanager
def hung(folder: Path) -> Iterator[list[int]]:
    """Let a folder be a mount that hangs while the block runs; yields the processes that have asked it for something so far."""
    descriptor = _mount(folder)
    asked: list[int] = []
    reader, writer = os.pipe()
    server = threading.Thread(target=_keep_silent, args=(descriptor, reader, asked), daemon=True)
    try:
        _refuse_interrupts(descriptor, folder)
        server.start()
        yield asked
    finally:
        os.close(writer)
        if server.is_alive():
            server.join()
        os.close(descriptor)
        os.close(reader)
        subprocess.run(["fusermount3", "-u", "-z", folder], check=True)


def _mount(folder: Path) -> int:
    """Have the kernel ask us for everything below a folder; the descriptor on which it does."""
    ours, its = socket.socketpair(socket.AF_UNIX)
    with ours, its:
        environment = {**os.environ, "_FUSE_COMMFD": str(its.fileno())}
        argv = ["fusermount3", "-o", "fsname=hung", "--", folder]
        subprocess.run(argv, env=environment, pass_fds=[its.fileno()], check=True)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    _, number, _ = _next(descriptor)
    os.write(descriptor, ANSWER.pack(ANSWER.size + len(INIT_ANSWER), 0, number) + INIT_ANSWER)
    return descriptor


def _refuse_interrupts(descriptor: int, folder: Path) -> None:
    """Make the kernel learn that this server knows no interrupts: from then on nobody who waits for it can be woken.

    It learns that from the answer to the first one, so somebody has to be interrupted once.
    """
    asking = subprocess.Popen([sys.executable, "-I", "-S", "-c", ASK_ONCE, folder / "anything"])
    kind, asked, process = _next(descriptor)
    while kind != INTERRUPT:
        if kind == LOOKUP:
            first = asked
            os.kill(process, signal.SIGUSR1)
        kind, asked, process = _next(descriptor)
    for number, error in ((asked, errno.ENOSYS), (first, errno.ENOENT)):
        os.write(descriptor, ANSWER.pack(ANSWER.size, -error, number))
    assert asking.wait() == 0


def _next(descriptor: int) -> tuple[int, int, int]:
    """What is asked, the number of the request, and the process that asks."""
    _, kind, number, _, _, _, process, _ = REQUEST.unpack_from(os.read(descriptor, MESSAGE_BYTES))
    return kind, number, process


def _keep_silent(descriptor: int, end: int, asked: list[int]) -> None:
    """Take every request, so that it counts as begun, and answer none."""
    while end not in select.select([descriptor, end], [], [])[0]:
        asked.append(_next(descriptor)[2])
