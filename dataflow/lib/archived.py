"""What lies in a host's archive, as the host before it asks before it lets go of a copy of its own.

Two questions of ``receive``, so that neither side hashes what is not there: ``archived``, which of these names lie in the
archive, and ``compare``, whether they hold the same. To compare, each file is read again where it lies: the record that it
was archived once says nothing of what the disk has done to it since.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, flag, names, place, ssh
from dataflow.lib.context import Context
from dataflow.lib.errors import TryLater
from dataflow.lib.flag import VERSION, Entry
from dataflow.lib.names import Kind
from dataflow.lib.step import trouble

FOLDERS = {Kind.RAWACF: "archive_hdf5", Kind.DMAP: "archive_dmap"}
SAME = "same"
DIFFERENT = "different"
_ANSWER_S = 120.0
_READ_BYTES_PER_S = 20e6
Answer = dict[str, Any]


def ask_names(ctx: Context, host: str, files: Sequence[Path]) -> set[str]:
    """The names of those of these files that lie in the archive of a host.

    Raises:
        HostDown: it cannot be asked.
        TryLater: its archive is not mounted.
    """
    question = b"\0".join(os.fsencode(file.name) for file in files)
    return set(_asked(ctx, host, "archived", question, _ANSWER_S))


def ask_hashes(ctx: Context, host: str, entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """By the name of each entry what a host says of its archived file: ``outcome`` (``same``, ``different`` or another word),
    ``sha256``, ``destination``, ``reason``.

    Raises:
        HostDown: it cannot be asked.
        TryLater: its archive is not mounted.
    """
    question = {"v": VERSION, "run": ctx.run, "files": [entry.document() for entry in entries]}
    limit_s = _ANSWER_S + sum(entry.size for entry in entries) / _READ_BYTES_PER_S
    return _asked(ctx, host, "compare", json.dumps(question).encode(), limit_s)


def answer_names(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    """Which of the names, ended by NUL, lie in this host's archive."""
    asked = (os.fsdecode(text) for text in content.split(b"\0"))
    yield _trouble(ctx) or [{"name": text, "outcome": "archived"} for text in asked if _place_of(ctx, text)]


def answer_hashes(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    """Whether the files of a manifest lie in this host's archive with the same content; what is the same is a record here too."""
    if trouble_told := _trouble(ctx):
        yield trouble_told
        return
    for entry in flag.entries(content):
        answer = _compared(ctx, entry)
        if answer["outcome"] == SAME:
            ctx.log.write(
                "action", file=entry.name, source=f"asked by {sender}", action="confirmed", bytes=entry.size, sha256=entry.sha256,
                destination=answer["destination"],
            )  # fmt: skip
            ctx.log.sync()
        yield [{"name": entry.name, **answer}]


def _compared(ctx: Context, entry: Entry) -> Answer:
    path = _place_of(ctx, entry.name)
    if path is None:
        return {"outcome": "missing", "reason": "it does not lie in the archive"}
    try:
        found = checksum.sha256_on_disk(path)
    except OSError as error:
        return {"outcome": "kept", "reason": trouble(error)}
    return {"outcome": SAME if found == entry.sha256 else DIFFERENT, "sha256": found, "destination": str(path)}


def _trouble(ctx: Context) -> list[Answer]:
    """What is to be answered when the archive cannot be looked at; nothing when it can."""
    try:
        for key in FOLDERS.values():
            if key not in ctx.here.folder_texts:
                raise TryLater(f"{ctx.here.host_name} has no archive: it has no folder `{key}`")
            place.check_root(ctx.here, ctx.here.root_of(key))
    except TryLater as error:
        return [{"name": "", "trouble": str(error)}]
    return []


def _place_of(ctx: Context, text: str) -> Path | None:
    """Where a file of this radar lies in the archive, or None."""
    name = names.parse(text)
    if name is None or name.radar != ctx.here.radar or name.kind not in FOLDERS:
        return None
    path = ctx.folder(FOLDERS[name.kind], name.time) / text
    return path if place.is_regular(path) else None


def _asked(ctx: Context, host: str, verb: str, question: bytes, limit_s: float) -> dict[str, dict[str, str]]:
    link = ssh.connect(ctx, host)
    answers = ssh.by_key(link.receive(verb, question, limit_s), "name")
    if "" in answers:
        raise TryLater(f"{link.there.machine.name} cannot look into its archive: {answers['']['trouble']}")
    return answers
