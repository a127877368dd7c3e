"""A store behind SFTP: one connection, several channels on it, and on each many requests on their way.

What the server says is believed in one direction only: "no such file" counts when the folder above it can be listed. Files are
compared where they lie, by ``sha1sum`` there if the login may start programs, else by reading them back.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import paramiko

from dataflow.lib import checksum, names
from dataflow.lib.errors import DataflowError, HostDown, TryLater
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores import Absent, Refused, Taken, paths, sftp_session, ssh_login
from dataflow.mirror.stores.sftp_session import Attributes, Request, Session, Steps

T = TypeVar("T")
SHA1SUM = "env LC_ALL=C xargs -0 -r sha1sum -z --"
"""Started on the other side, which reads the names from its standard input; ``-z`` lets it print them as they are."""
_SHA1_LINE = re.compile(rb"([0-9a-f]{40})  (.+)", re.DOTALL)
HASHED_AT_ONCE = 1000
"""Names given to one ``sha1sum``, few enough that they fit on their way while nobody reads the hashes yet."""
PRINTED_MAX_BYTES = 1 << 23
"""What it may print of so many names, each of them as long as a path can be; what is beyond is not read."""
PIECES_AT_ONCE, LISTS_AT_ONCE = 32, 8
MOST_ENTRIES = 200_000
"""With more names no folder of a mirror is to be listed: a server that goes on for ever would take all the memory."""


class SftpStore:
    """Satisfies `Store`. A connection that was lost stays lost: the next run makes a new one, and no run makes many.

    Raises:
        BadConfig: the host key is unknown or another, or our key cannot be used or is not let in.
        HostDown: there is no answer.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._where = f"{settings.user}@{settings.address}"
        self._client = ssh_login.connected(settings)
        self._may_open_more = True
        self._has_sha1sum = True
        self._sessions: list[Session] = []
        try:
            self._sessions.append(self._opened())
        except (OSError, EOFError, paramiko.SSHException, HostDown) as error:
            self.close()
            raise HostDown(f"{self._where} lets us in and then speaks no SFTP: {error}") from error
        self._extensions = self._sessions[0].extensions

    def names(self, folder: str) -> dict[str, int | None]:
        """See `Store.names`."""
        listed = self._one(self._list(folder))
        return {name: attributes.size if attributes.is_regular else None for name, attributes in listed.items()}

    def size(self, path: str) -> int | None:
        """See `Store.size`."""
        try:
            return self._one(self._regular(path))
        except Absent:
            return None

    def fetch(self, wanted: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See `Store.fetch`."""
        return _errors(self._each({path: self._fetch(path, local) for path, local in wanted.items()}))

    def store(self, files: Mapping[str, Path]) -> dict[str, DataflowError]:
        """See `Store.store`."""
        sent = self._each({path: self._send(path, local) for path, local in files.items()})
        failures = _errors(sent)
        lying = self.sha1([paths.part_of(path) for path in sent if path not in failures])
        published = {
            path: self._publish(path, sha1, lying[paths.part_of(path)])
            for path, sha1 in sent.items()
            if isinstance(sha1, str)
        }  # fmt: skip
        return failures | _errors(self._each(published))

    def sha1(self, paths: Collection[str]) -> dict[str, str | DataflowError]:
        """See `Store.sha1`."""
        sizes = self._each({path: self._regular(path) for path in paths})
        regular = [path for path, size in sizes.items() if isinstance(size, int)]
        hashed = self._by_sha1sum(regular)
        read = self._each({path: self._hash(path) for path in regular if path not in hashed})
        return {**_errors(sizes), **hashed, **read}

    def changed_s(self, folder: str) -> dict[str, float]:
        """See `Store.changed_s`."""
        listed = self._one(self._list(folder))
        return {name: at.changed_s for name, at in listed.items() if at.is_regular and at.changed_s is not None}

    def rename(self, old: str, new: str) -> None:
        """See `Store.rename`."""
        self._one(self._rename(old, new))

    def remove(self, path: str) -> None:
        """See `Store.remove`."""
        self._one(self._remove(path))

    def make_folder(self, folder: str) -> None:
        """See `Store.make_folder`; modes are what the server gives new folders."""
        self._one(self._make_folder(folder))

    def close(self) -> None:
        """See `Store.close`."""
        self._sessions.clear()
        self._client.close()

    # -- one connection, several sessions

    def _each(self, work: Mapping[str, Steps[T]]) -> dict[str, T | DataflowError]:
        """Do work on many paths at a time, within the time limit; what each has come to."""
        found: dict[str, T | DataflowError] = {}
        queue = deque(_kept(found, path, steps) for path, steps in work.items())
        deadline_s = time.monotonic() + self._settings.time_limit_s
        lost = HostDown(f"the connection to {self._where} was lost before; the next run makes a new one")
        while queue and (sessions := self._sessions_for(len(queue))):
            with ThreadPoolExecutor(len(sessions)) as pool:
                ended = list(pool.map(lambda session: session.run(queue, deadline_s), sessions))
            for session, error in zip(sessions, ended, strict=True):
                if error is not None:
                    self._sessions.remove(session)
                    lost = error
        return {path: found.get(path, lost) for path in work}

    def _one(self, steps: Steps[T]) -> T:
        result = self._each({"": steps})[""]
        if isinstance(result, DataflowError):
            raise result
        return result

    def _sessions_for(self, count: int) -> list[Session]:
        """As many sessions as the work, the settings and the server allow."""
        while self._may_open_more and 0 < len(self._sessions) < min(count, self._settings.channels):
            try:
                self._sessions.append(self._opened())
            except (OSError, EOFError, paramiko.SSHException, HostDown):
                self._may_open_more = False  # such as MaxSessions of sshd; those that are open do
        return self._sessions[:count]

    def _opened(self) -> Session:
        channel = self._channel()
        channel.invoke_subsystem("sftp")
        return Session(channel, ssh_login.silence_s(self._settings))

    def _channel(self) -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None:
            raise paramiko.SSHException("the connection is closed")
        channel = transport.open_session(timeout=self._settings.connect_timeout_s)
        channel.settimeout(ssh_login.silence_s(self._settings))
        return channel

    # -- what is done with one path: requests to the server and their answers

    def _there(self, path: str) -> bytes:
        """A path as the server is told it."""
        root = self._settings.root
        joined = f"{root.rstrip('/')}/{paths.checked(path)}" if root else paths.checked(path)
        return os.fsencode(joined.rstrip("/") or ("/" if root else "."))

    def _what(self, path: str) -> str:
        return f"{self._where}:{names.printable(os.fsdecode(self._there(path)))}"

    def _asked(self, path: str, kind: int, more: bytes = b"") -> Request:
        return kind, sftp_session.string(self._there(path)) + more

    def _list(self, folder: str) -> Steps[dict[str, Attributes]]:
        what, listed = self._what(folder), {}

        def use(handle: bytes) -> Steps[None]:
            is_all = False
            while not is_all:
                answers = yield [(sftp_session.READDIR, sftp_session.string(handle))] * LISTS_AT_ONCE
                some = list(takewhile(lambda answer: answer.status != sftp_session.EOF, answers))
                is_all = len(some) < len(answers)
                listed.update({os.fsdecode(name): at for answer in some for name, at in answer.entries(what)})
                if len(listed) > MOST_ENTRIES:
                    raise TryLater(f"{what} has more than {MOST_ENTRIES} entries: it is not used at all")

        yield from self._with(folder, self._asked(folder, sftp_session.OPENDIR), use)
        return {name: attributes for name, attributes in listed.items() if name not in (".", "..")}

    def _regular(self, path: str) -> Steps[int]:
        """The size of a regular file, links followed; anything else is not read, and a pipe would not even be opened."""
        attributes = yield from self._stat(path)
        if not attributes.is_regular or attributes.size is None:
            raise TryLater(f"{self._what(path)} is no regular file")
        return attributes.size

    def _stat(self, path: str, kind: int = sftp_session.STAT) -> Steps[Attributes]:
        (answer,) = yield [self._asked(path, kind)]
        if answer.status == sftp_session.NO_SUCH_FILE:
            raise (yield from self._missing(path))
        return answer.attributes(self._what(path))

    def _fetch(self, path: str, local: Path) -> Steps[None]:
        size = yield from self._regular(path)

        def use(handle: bytes) -> Steps[None]:
            with paths.LocalPart(local) as part:
                if part.size_bytes > size:
                    part.begin_anew()
                yield from _read(self._what(path), handle, part.size_bytes, size, part.write)

        yield from self._with(path, sftp_session.opened(self._there(path), sftp_session.READ_FLAG), use)

    def _hash(self, path: str) -> Steps[str]:
        size, digest = (yield from self._regular(path)), hashlib.sha1()

        def use(handle: bytes) -> Steps[None]:
            yield from _read(self._what(path), handle, 0, size, digest.update)

        yield from self._with(path, sftp_session.opened(self._there(path), sftp_session.READ_FLAG), use)
        return digest.hexdigest()

    def _send(self, path: str, local: Path) -> Steps[str]:
        """Write the hidden part of a path; the SHA-1 of what was written."""
        part = paths.part_of(paths.checked(path))
        yield [self._asked(part, sftp_session.REMOVE)]  # what an earlier try left; if it cannot be removed, the next one says so

        def use(handle: bytes) -> Steps[str]:
            sha1 = yield from _write(self._what(part), handle, local)
            if sftp_session.FSYNC in self._extensions:
                (answer,) = yield [sftp_session.extended(sftp_session.FSYNC, handle)]
                answer.require_ok(self._what(part))
            return sha1

        try:
            return (yield from self._with(part, sftp_session.opened(self._there(part), sftp_session.NEW_FILE_FLAGS), use))
        except TryLater:
            yield [self._asked(part, sftp_session.REMOVE)]
            raise

    def _publish(self, path: str, sha1: str, lying: str | DataflowError) -> Steps[None]:
        """Give a part its name, if it lies there as it was sent. Only OpenSSH's own kind of rename replaces."""
        part = paths.part_of(path)
        request = self._asked(part, sftp_session.RENAME, sftp_session.string(self._there(path)))
        if sftp_session.POSIX_RENAME in self._extensions:
            request = sftp_session.extended(sftp_session.POSIX_RENAME, self._there(part), self._there(path))
        try:
            if isinstance(lying, DataflowError):
                raise lying
            if lying != sha1:
                raise TryLater(f"{self._what(path)} reads back as {lying}, not {sha1}; it was removed")
            (answer,) = yield [request]
            answer.require_ok(f"renaming {self._what(part)} to {self._what(path)}")
        except TryLater:
            yield [self._asked(part, sftp_session.REMOVE)]
            raise

    def _rename(self, old: str, new: str) -> Steps[None]:
        """What is at ``new`` is looked at first, since a server may have a rename that replaces; OpenSSH's does not."""
        yield from self._stat(old, sftp_session.LSTAT)
        yield from self._require_free(old, new)
        (answer,) = yield [self._asked(old, sftp_session.RENAME, sftp_session.string(self._there(new)))]
        if answer.status == sftp_session.FAILURE:
            yield from self._require_free(old, new)
        if answer.status == sftp_session.NO_SUCH_FILE:
            raise TryLater(f"{self._what(old)} cannot become {self._what(new)}: there is no such folder")
        answer.require_ok(f"renaming {self._what(old)} to {self._what(new)}")

    def _require_free(self, old: str, new: str) -> Steps[None]:
        (answer,) = yield [self._asked(new, sftp_session.LSTAT)]
        if answer.status is None:
            raise Taken(f"{self._what(new)} is there already; {self._what(old)} stays as it is")

    def _remove(self, path: str) -> Steps[None]:
        (answer,) = yield [self._asked(path, sftp_session.REMOVE)]
        if answer.status == sftp_session.NO_SUCH_FILE:
            yield from self._missing(path)
        else:
            answer.require_ok(self._what(path))

    def _make_folder(self, folder: str) -> Steps[None]:
        """From the top: a server says of one that is there only that it failed, so then it is looked at."""
        parts = paths.checked(folder).split("/") if folder else []
        for count in range(1, len(parts) + 1):
            each = "/".join(parts[:count])
            (made,) = yield [self._asked(each, sftp_session.MKDIR, sftp_session.NO_ATTRIBUTES)]
            if made.status != sftp_session.OK:
                (there,) = yield [self._asked(each, sftp_session.STAT)]
                if there.status is not None or not there.attributes(self._what(each)).is_folder:
                    made.require_ok(f"making {self._what(each)}")

    def _with(self, path: str, request: Request, use: Callable[[bytes], Steps[T]]) -> Steps[T]:
        """Open something, use its handle, and close it."""
        (answer,) = yield [request]
        if answer.status == sftp_session.NO_SUCH_FILE:
            raise (yield from self._missing(path))
        handle = answer.handle(self._what(path))
        closing = [(sftp_session.CLOSE, sftp_session.string(handle))]
        try:
            result = yield from use(handle)
        except TryLater:
            yield closing
            raise
        (closed,) = yield closing
        closed.require_ok(self._what(path))
        return result

    def _missing(self, path: str) -> Steps[Absent]:
        """What "no such file" means: that there is none, if the folder above it, or the last one that is there, can be listed."""
        above = path
        while above:
            above = paths.parent_of(above)
            (answer,) = yield [self._asked(above, sftp_session.OPENDIR)]
            if answer.status == sftp_session.NO_SUCH_FILE:
                continue
            try:
                handle = answer.handle(self._what(above))
            except TryLater as error:
                raise Refused(f"whether there is a {self._what(path)} cannot be told: {error}") from error
            yield [(sftp_session.CLOSE, sftp_session.string(handle))]
            return Absent(f"there is no {self._what(path)}")
        raise TryLater(f"{self._what('')}, the root of the store, is not there: is its disk mounted on {self._settings.address}?")

    # -- sha1sum on the other side

    def _by_sha1sum(self, regular: list[str]) -> dict[str, str]:
        """What ``sha1sum`` says there; nothing of what it does not say, and nothing at all where there is none."""
        found: dict[str, str] = {}
        for first in range(0, len(regular), HASHED_AT_ONCE):
            if not self._has_sha1sum:
                break
            there = {self._there(path): path for path in regular[first : first + HASHED_AT_ONCE]}
            lines = map(_SHA1_LINE.fullmatch, self._output(SHA1SUM, b"\0".join(there)).split(b"\0"))
            found.update({there[line[2]]: line[1].decode() for line in lines if line and line[2] in there})
            self._has_sha1sum = bool(found)
        return found

    def _output(self, command: str, standard_input: bytes) -> bytes:
        """What a command prints there; nothing if it cannot be started, as where a login is for SFTP alone."""
        deadline_s, printed = time.monotonic() + self._settings.time_limit_s, bytearray()
        try:
            with self._channel() as channel:
                channel.exec_command(command)
                channel.sendall(standard_input)
                channel.shutdown_write()
                while (left_s := deadline_s - time.monotonic()) > 0 and len(printed) < PRINTED_MAX_BYTES:
                    channel.settimeout(left_s)
                    if not (piece := channel.recv(1 << 16)):
                        break
                    printed += piece
        except (OSError, EOFError, paramiko.SSHException):
            return b""
        return bytes(printed)


def _kept(found: dict[str, T | DataflowError], path: str, steps: Steps[T]) -> Steps[None]:
    """Work whose result, or what went wrong, is put where it belongs."""
    try:
        found[path] = yield from steps
    except DataflowError as error:
        found[path] = error


def _errors(found: Mapping[str, object]) -> dict[str, DataflowError]:
    return {path: result for path, result in found.items() if isinstance(result, DataflowError)}


def _read(what: str, handle: bytes, start: int, end: int, sink: Callable[[bytes], object]) -> Steps[None]:
    """Read a part of an open file in order, many pieces on their way at a time; a server may give less than it was asked for."""
    while start < end:
        ends = [min(offset + sftp_session.PIECE_BYTES, end) for offset in range(start, end, sftp_session.PIECE_BYTES)]
        ends = ends[:PIECES_AT_ONCE]
        answers = yield [sftp_session.read(handle, at, to - at) for at, to in zip([start, *ends], ends, strict=False)]
        before = start
        for answer, to in zip(answers, ends, strict=True):
            piece = answer.data(what)
            sink(piece)
            start += len(piece)
            if start != to:
                break
        if start == before:
            raise TryLater(f"{what} ends after {start} of {end} bytes: it has become shorter")


def _write(what: str, handle: bytes, local: Path) -> Steps[str]:
    """Write a whole file to an open one; the SHA-1 of what was written."""
    with paths.of_this_machine(local):
        before, stream = checksum.stamp(local), local.open("rb", buffering=0)
    digest, offset = hashlib.sha1(), 0
    with stream:
        while True:
            with paths.of_this_machine(local):
                block = stream.read(PIECES_AT_ONCE * sftp_session.PIECE_BYTES)
            if not block:
                break
            digest.update(block)
            pieces = range(0, len(block), sftp_session.PIECE_BYTES)
            answers = yield [
                sftp_session.written(handle, offset + at, block[at : at + sftp_session.PIECE_BYTES]) for at in pieces
            ]
            for answer in answers:
                answer.require_ok(what)
            offset += len(block)
    with paths.of_this_machine(local):
        if not checksum.is_still(local, before):
            raise TryLater(f"{local} changed while it was sent")
    return digest.hexdigest()
