"""SFTP version 3 (draft-ietf-secsh-filexfer-02) over one channel, with many requests on their way at once.

Work on a file is a generator: it yields requests, gets their answers, and goes on. A session runs many of them in turn, so that
the line is never idle while the server opens a small file; a large one has many reads on their way. paramiko's own client asks
for one thing at a time and cannot list names that are not UTF-8.
"""

from __future__ import annotations

import stat
import struct
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from paramiko import Channel, SSHException

from dataflow.lib.errors import HostDown, TryLater
from dataflow.mirror.stores import Absent, Refused

T = TypeVar("T")
Request = tuple[int, bytes]
"""Type and body; the session gives it its number."""
ON_THEIR_WAY = 64
"""Requests to which no answer has come yet, as many as `sftp` allows itself."""
PIECE_BYTES = 32768
"""What every server can read or write at once."""
SENT_BYTES = 1 << 16
"""What is given to the channel at once; a packet of SSH takes about half of it."""
ANSWER_LIMIT_BYTES = 1 << 20
"""No answer is longer; what seems to be is something else, such as the greeting that a login script prints."""

INIT, VERSION, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
OPENDIR, READDIR, REMOVE, MKDIR, STAT, RENAME, LSTAT = 11, 12, 13, 14, 17, 18, 7
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED = 101, 102, 103, 104, 105, 200
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
READ_FLAG, NEW_FILE_FLAGS = 0x01, 0x02 | 0x08 | 0x20
NO_ATTRIBUTES = bytes(4)
POSIX_RENAME, FSYNC = b"posix-rename@openssh.com", b"fsync@openssh.com"


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of a file, as far as the server tells them; ``changed_s`` is Unix time in seconds."""

    size: int | None
    mode: int | None
    changed_s: float | None

    @property
    def is_regular(self) -> bool:
        """Whether it can be read from beginning to end."""
        return self.size is not None and (self.mode is None or stat.S_ISREG(self.mode))

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.mode is not None and stat.S_ISDIR(self.mode)


class Answer:
    """What the server answered to one request. Reading it raises ``TryLater`` when it is something else than it should be."""

    def __init__(self, kind: int, body: bytes) -> None:
        self._kind, self._body, self._at = kind, body, 0

    @property
    def status(self) -> int | None:
        """The code of a status, None when it is none."""
        return int.from_bytes(self._body[:4]) if self._kind == STATUS else None

    def require_ok(self, what: str) -> None:
        """Raise what a status says, unless it is that all is well: `Absent`, `Refused` or ``TryLater``. ``what`` was done."""
        if self._kind != STATUS:
            raise TryLater(f"{what}: the server answered with something else than it was asked for ({self._kind})")
        code, text = self._number(">I"), self._string().decode("utf-8", "replace")
        if code == NO_SUCH_FILE:
            raise Absent(f"{what}: {text}")
        if code == PERMISSION_DENIED:
            raise Refused(f"{what}: {text}")
        if code != OK:
            raise TryLater(f"{what}: the server says {text!r}, which may mean that its disk is full or that this is not allowed")

    def handle(self, what: str) -> bytes:
        """The handle of what was opened."""
        return self._of(HANDLE, what)._string()

    def data(self, what: str) -> bytes:
        """What was read; nothing at the end of the file."""
        return b"" if self.status == EOF else self._of(DATA, what)._string()

    def attributes(self, what: str) -> Attributes:
        """Attributes of one file."""
        return self._of(ATTRS, what)._attributes()

    def entries(self, what: str) -> Iterator[tuple[bytes, Attributes]]:
        """Some entries of a folder."""
        for _ in range(self._of(NAME, what)._number(">I")):
            name = self._string()
            self._string()  # the line that ls -l would print
            yield name, self._attributes()

    def extensions(self) -> frozenset[bytes]:
        """What the server can do beyond version 3, of its answer to the first message."""
        found = set()
        while self._at < len(self._body):
            found.add(self._string())
            self._string()
        return frozenset(found)

    def _of(self, kind: int, what: str) -> Answer:
        if self._kind != kind:
            self.require_ok(what)
            raise TryLater(f"{what}: the server says only that all is well")
        return self

    def _number(self, form: str) -> int:
        try:
            number = int(struct.unpack_from(form, self._body, self._at)[0])
        except struct.error as error:
            raise TryLater("the server's answer is cut short") from error
        self._at += struct.calcsize(form)
        return number

    def _string(self) -> bytes:
        length = self._number(">I")
        self._at += length
        if self._at > len(self._body):
            raise TryLater("the server's answer is cut short")
        return self._body[self._at - length : self._at]

    def _attributes(self) -> Attributes:
        flags = self._number(">I")
        size = self._number(">Q") if flags & 0x1 else None
        if flags & 0x2:
            self._number(">Q")  # owner and group
        mode = self._number(">I") if flags & 0x4 else None
        changed_s = float(self._number(">Q") & 0xFFFFFFFF) if flags & 0x8 else None
        for _ in range(self._number(">I") if flags & 0x80000000 else 0):
            self._string()
            self._string()
        return Attributes(size, mode, changed_s)


Steps = Generator[list[Request], list[Answer], T]
"""Work on one file: yields requests, is sent their answers in the same order."""


def string(content: bytes) -> bytes:
    """As the protocol writes it: its length before it."""
    return struct.pack(">I", len(content)) + content


def opened(path: bytes, flags: int) -> Request:
    """Open a file."""
    return OPEN, string(path) + struct.pack(">II", flags, 0)


def read(handle: bytes, offset: int, length: int) -> Request:
    """Read a piece of an open file."""
    return READ, string(handle) + struct.pack(">QI", offset, length)


def written(handle: bytes, offset: int, content: bytes) -> Request:
    """Write a piece of an open file."""
    return WRITE, string(handle) + struct.pack(">Q", offset) + string(content)


def extended(name: bytes, *arguments: bytes) -> Request:
    """Something that is not in version 3; see ``Session.extensions``."""
    return EXTENDED, b"".join(map(string, (name, *arguments)))


@dataclass(slots=True)
class _Task:
    steps: Steps[None]
    answers: list[Answer | None] = field(default_factory=list)
    missing: int = 0


class Session:
    """One channel on which the server speaks SFTP. ``silence_s``: how long an answer may take until the host counts as down."""

    def __init__(self, channel: Channel, silence_s: float) -> None:
        self._channel, self._silence_s = channel, silence_s
        self._number = 0
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._waiting: dict[int, tuple[_Task, int]] = {}
        self._outgoing += struct.pack(">IBI", 5, INIT, 3)
        kind, version, body = self._receive(time.monotonic() + silence_s)
        if kind != VERSION or version < 3:
            raise HostDown(f"the server speaks another SFTP than version 3 (message {kind}, version {version})")
        self.extensions = Answer(kind, body).extensions()

    def run(self, work: deque[Steps[None]], deadline_s: float) -> HostDown | None:
        """Do what is in the queue, which others may take from too. If the server is lost, what is under way is told so.

        ``deadline_s``: when to give up, on the clock of ``time.monotonic``. Returns why it ended before the queue was empty.
        """
        try:
            while self._has_some(work):
                kind, number, body = self._receive(deadline_s)
                task, place = self._waiting.pop(number, (None, 0))
                if task is None:
                    raise HostDown(f"the server answered to a request that there was not ({number})")
                task.answers[place] = Answer(kind, body)
                task.missing -= 1
                if task.missing == 0:
                    self._go_on(task)
        except HostDown as error:
            self._give_up(error)
            return error
        return None

    def close(self) -> None:
        """End the session; over a line that is dead that cannot be told the other side."""
        with suppress(OSError, EOFError, SSHException):
            self._channel.close()

    def _has_some(self, work: deque[Steps[None]]) -> bool:
        """Start what there is room for; whether an answer is waited for then."""
        while len(self._waiting) < ON_THEIR_WAY:
            try:
                task = _Task(work.popleft())
            except IndexError:
                break
            self._ask(task, next(task.steps, None))
        return bool(self._waiting)

    def _go_on(self, task: _Task) -> None:
        with suppress(StopIteration):
            self._ask(task, task.steps.send([answer for answer in task.answers if answer is not None]))

    def _ask(self, task: _Task, requests: list[Request] | None) -> None:
        if requests is None:
            return
        task.answers, task.missing = [None] * len(requests), len(requests)
        for place, (kind, body) in enumerate(requests):
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._outgoing += struct.pack(">IBI", len(body) + 5, kind, self._number) + body
            self._waiting[self._number] = (task, place)

    def _receive(self, deadline_s: float) -> tuple[int, int, bytes]:
        """Type, number and body of the next answer, once all requests are on their way.

        The limit is looked at with every piece: a server that gives or takes a byte now and then is never silent.
        """
        patience_s = self._patience_s(deadline_s)
        try:
            self._send(deadline_s)
            length = int.from_bytes(self._taken(4, deadline_s))
            if not 5 <= length <= ANSWER_LIMIT_BYTES:
                raise HostDown("the server does not speak SFTP: does a login script print something there?")
            message = self._taken(length, deadline_s)
        except TimeoutError as error:
            raise HostDown(f"no answer for {patience_s:.0f} s") from error
        except (OSError, EOFError, SSHException) as error:
            raise HostDown(f"the connection was lost: {error or 'the other side closed it'}") from error
        return message[0], int.from_bytes(message[1:5]), message[5:]

    def _patience_s(self, deadline_s: float) -> float:
        """How long the other side may say nothing from now on."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise HostDown("the time limit for all of it is over; what came is kept, and gone on with the next time")
        return min(left_s, self._silence_s)

    def _send(self, deadline_s: float) -> None:
        left = memoryview(bytes(self._outgoing))
        self._outgoing.clear()
        while left:
            self._channel.settimeout(self._patience_s(deadline_s))
            if not (count := self._channel.send(bytes(left[:SENT_BYTES]))):
                raise EOFError("the other side closed it")
            left = left[count:]

    def _taken(self, count: int, deadline_s: float) -> bytes:
        while len(self._incoming) < count:
            self._channel.settimeout(self._patience_s(deadline_s))
            if not (piece := self._channel.recv(1 << 18)):
                raise EOFError("the other side closed it")
            self._incoming += piece
        taken = bytes(self._incoming[:count])
        del self._incoming[:count]
        return taken

    def _give_up(self, error: HostDown) -> None:
        self.close()
        for task in {id(task): task for task, _ in self._waiting.values()}.values():
            with suppress(StopIteration):
                task.steps.throw(error)
        self._waiting.clear()
