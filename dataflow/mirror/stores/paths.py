"""Paths of a store, and files of this machine as a store uses them; what every kind of store shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Self

from dataflow.lib import names
from dataflow.lib.errors import TryLater
from dataflow.mirror.stores import Refused

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def checked(path: str) -> str:
    """A path of a store, if it is one: relative, every part of it a name. Names may have odd bytes, as `os.fsdecode` gives them.

    Raises:
        Refused: it is none, so nothing is done with it.
    """
    try:
        odd = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        odd = True
    if odd or (path and any(part in ("", ".", "..") for part in path.split("/"))):
        raise Refused(f"{names.printable(path)!r} is no path below the root of a store; nothing was done with it")
    return path


def parent_of(path: str) -> str:
    """The folder that a path lies in; of the root it is the root."""
    return path.rpartition("/")[0]


def part_of(path: str) -> str:
    """The hidden path beside it, under which a file is written before it gets its name."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.part"


@contextmanager
def of_this_machine(local: Path) -> Iterator[None]:
    """What goes wrong with a file of this machine is no fault of the store, whatever the system calls it.

    Raises:
        TryLater: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise TryLater(f"{names.printable(str(local))} on this machine: {error.strerror or error}") from error


class LocalPart:
    """A file of this machine that is being fetched: what is there already is kept, and what comes is added.

    A link is not followed, and a pipe not waited for. It is not synced: whoever reads it back from the disk to compare it does
    that, once. Everything raises ``TryLater`` if this machine cannot do it.
    """

    def __init__(self, local: Path) -> None:
        self._local = local
        with of_this_machine(local):
            descriptor = os.open(local, _APPEND, 0o666)
            self._stream = FileIO(descriptor, "ab")
            self.size_bytes = self._stream.tell()

    def begin_anew(self) -> None:
        """Drop what is there: it is no beginning of what is to come."""
        with of_this_machine(self._local):
            self._stream.truncate(0)
            self.size_bytes = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Add to it."""
        with of_this_machine(self._local):
            view = memoryview(piece)
            self.size_bytes += len(view)
            while view:
                view = view[self._stream.write(view) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with of_this_machine(self._local):
            self._stream.close()
