"""What may lie in a folder that a step looks into and is none of its files: ten thousand names, and things that are no files."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

COMMANDS = (b"$(touch PWNED)", b"`touch PWNED`", b";touch PWNED;", b"|touch PWNED", b"&touch PWNED&", b"\ntouch PWNED\n")
QUOTES = (b"'", b'"', b"\\", b"\\\\'", b"$'\\n'", b"%s%n", b"*", b"?", b"[a-z]", b"{a,b}", b"~", b"!!", b"#", b"<x", b">x")
ODD = (b"\n", b"\r", b"\t", b"\x1b[2J", b"\x7f", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", "\u202e\u0661".encode(), b" ")
BEFORE = (b"-", b"--", b"-rf ", b"--rsh=touch PWNED ", b"--remove-source-files ", b"-e", b"..", b"... ", b"..\\", b"@", b"=")


def names(example: str, count: int) -> Iterator[bytes]:
    """Different names that are none, from those that merely look odd to those that are one character from ``example``."""
    name, choose = os.fsencode(example), random.Random(example)
    fixed = [word + name for word in BEFORE] + [name + word for word in (*COMMANDS, *QUOTES, *ODD)] + [*QUOTES]
    fixed += [name.ljust(255, b"x"), b"x" * 255, b"\xff" * 255, b"-", b"--", b"-rf", b"...", b"~", b"notes.txt"]
    told = {b"", b".", b".."}
    for number in range(count):
        if number < len(fixed):
            made = fixed[number]
        else:
            where, word = choose.randrange(len(name)), choose.choice((*COMMANDS, *QUOTES, *ODD, *BEFORE))
            made = b"%s%s%s%d" % (name[:where], word, name[where:], number)
        if (made := made[:255]) not in told:
            told.add(made)
            yield made


def make_all(folder: Path, example: str, count: int) -> set[bytes]:
    """Names of one empty file in a folder: to make and remove a file for each is dearer than the test."""
    made = set(names(example, count))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    first, *others = made
    os.close(os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=descriptor))
    for name in others:
        os.link(first, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    os.close(descriptor)
    return made


def no_files(outside: Path) -> list[Callable[[Path], object]]:
    """How to make what is no file: each is given the path of one. ``outside`` is a file that nobody may reach through it."""
    kinds: list[Callable[[Path], object]] = [
        lambda path: path.symlink_to(outside),
        lambda path: path.symlink_to(outside.with_name("nothing")),
        lambda path: path.symlink_to(outside.parent),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("/proc/self/fd/0"),
        os.mkfifo,
        Path.mkdir,
        make_socket,
    ]
    if os.geteuid() == 0:  # nobody else may make device nodes
        kinds += [
            lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
            lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 250)),
        ]
    return kinds


def make_socket(path: Path) -> None:
    """A Unix socket; its address has to be short, so it is bound from within its folder."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    os.close(descriptor)


def stamps(folder: Path) -> dict[bytes, tuple[int, int, int]]:
    """Inode, kind and time of all that lies in a folder: unchanged, nobody touched it."""
    found = {}
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            found[entry.name] = (status.st_ino, status.st_mode, status.st_mtime_ns)
    return found
