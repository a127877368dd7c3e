"""The receiving end of a link: ``dataflow receive``, started by the sender over SSH.

    accept   a manifest on stdin: hash what lies in ``incoming``, put it in its place, answer one outcome for each file
    flag     flags on stdin, one a line: put each durably into the flag folder, answer its id
    logs     take over the summary logs that lie in ``incoming/.logs``
    hello    say who answers, which proves the connection

A file's name decides where it goes (``routes``). A name that has passed before with the same hash is ``done: duplicate``
and goes no further; with another hash the newcomer goes to quarantine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import dataflow
from dataflow.lib import alert, checksum, copy, custody, flag, names, place, quarantine
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, Exit, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Name
from dataflow.lib.step import trouble

LOGS_FOLDER = ".logs"
ACCEPT_AT_ONCE = 500
_STALE_PARTIAL_S = 7 * 86400
_MANIFEST_LIMIT_BYTES = 64 << 20
Answer = dict[str, Any]


def serve(ctx: Context, verb: str, sender: str, stdin: BinaryIO, stdout: BinaryIO) -> Exit:
    """Answer one request; answers are JSON, one a line, each sent only when what it says is durable."""
    content = stdin.read(_MANIFEST_LIMIT_BYTES)
    handlers = {"accept": _accept, "flag": _take_flags, "logs": _take_logs, "hello": _hello}
    for answers in handlers[verb](ctx, sender, content):
        for answer in answers:
            stdout.write(json.dumps(answer).encode("ascii") + b"\n")
        stdout.flush()
    return Exit.ACCOUNTED


def _hello(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    answer = {"dataflow": dataflow.__version__, "v": flag.VERSION, "machine": ctx.here.machine.name}
    try:
        place.check_root(ctx.here, ctx.here.root_of("incoming"))
        place.make_folder(ctx.here, ctx.folder("incoming") / LOGS_FOLDER)
    except (TryLater, OSError) as error:
        answer["trouble"] = trouble(error)
    yield [answer]


def _accept(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    manifest = flag.entries(content)
    _remove_stale_partials(ctx.folder("incoming"))
    for start in range(0, len(manifest), ACCEPT_AT_ONCE):
        yield _accept_some(ctx, sender, manifest[start : start + ACCEPT_AT_ONCE])


def _accept_some(ctx: Context, sender: str, entries: Sequence[Entry]) -> list[Answer]:
    """Judge a group of files, make the manifest of the good ones durable, then put them in their places."""
    answers: list[Answer] = []
    good: list[tuple[Entry, Name, Path]] = []
    for entry in entries:
        started = time.monotonic()
        try:
            answer = _judge(ctx, entry, good)
        except (TryLater, OSError) as error:
            answer = {"outcome": "kept", "reason": trouble(error)}
        if answer is not None:
            answers.append({"name": entry.name, **answer, "seconds": round(time.monotonic() - started, 3)})
    ctx.custody.admit([entry for entry, _, _ in good], sender)
    placed = [{"name": entry.name, **_put(ctx, entry, name, final)} for entry, name, final in good]
    place.sync_folders([final.parent for _, _, final in good])
    answers.extend(placed)
    for answer in answers:
        _record(ctx, sender, answer, next(entry for entry in entries if entry.name == answer["name"]))
    ctx.log.sync()
    return answers


def _judge(ctx: Context, entry: Entry, good: list[tuple[Entry, Name, Path]]) -> Answer | None:
    """The answer for a file that goes no further; None for one that was added to ``good``."""
    name = names.parse(entry.name)
    folder = ctx.here.host.routes.get(name.kind.value) if name else None
    if name is None or folder is None or name.radar not in (None, ctx.here.radar):
        return {"outcome": "refused", "reason": f"this host takes no such file for {ctx.here.radar}"}
    final = ctx.folder(folder, name.time, name.camera or "")
    for root in {ctx.here.root_of("incoming"), ctx.here.root_of(folder)}:
        place.check_root(ctx.here, root)
    arrived = ctx.folder("incoming") / entry.name
    here_already = custody.passed_before(ctx.here, name, entry.sha256, ctx.here.host.passed)
    if here_already and here_already[1] == entry.sha256:
        arrived.unlink(missing_ok=True)
        return {
            "outcome": "done",
            "action": "duplicate",
            "reason": "duplicate: it has arrived before",
            "destination": str(here_already[0]),
        }
    if not place.is_regular(arrived):
        return {"outcome": "missing", "reason": "it did not arrive"}
    found = checksum.sha256_on_disk(arrived)
    if found != entry.sha256 or arrived.stat().st_size != entry.size:
        arrived.unlink()
        return {"outcome": "damaged", "reason": f"it arrived with hash {found}, not {entry.sha256}; the arrived copy was removed"}
    if here_already:
        return _quarantine_newcomer(ctx, arrived, copy.Conflict(here_already[0], here_already[1], entry.sha256))
    good.append((entry, name, final / entry.name))
    return None


def _put(ctx: Context, entry: Entry, name: Name, final: Path) -> Answer:
    arrived = ctx.folder("incoming") / entry.name
    try:
        place.make_folder(ctx.here, final.parent)
        place.own(ctx.here, arrived, ctx.here.file_mode)
        copy.move(ctx.here, arrived, final, entry.sha256)
    except BadFile as error:
        return _quarantine_newcomer(ctx, arrived, error)
    except (TryLater, OSError) as error:
        return {"outcome": "kept", "reason": trouble(error)}
    has_more_to_do = ctx.here.host.routes[name.kind.value] in ctx.here.host.backlog
    return {"outcome": "done", "action": "received" if has_more_to_do else "archived", "destination": str(final)}


def _quarantine_newcomer(ctx: Context, arrived: Path, error: BadFile) -> Answer:
    details = getattr(error, "hashes", {})
    where = quarantine.put(ctx.here, arrived, error.kind, str(error), ctx.step, ctx.clock(), details)
    alert.tell(ctx.log, f"quarantined {arrived.name}: {error}", file=arrived.name, kind=error.kind, destination=str(where))
    return {"outcome": "quarantined", "reason": str(error), "destination": str(where)}


def _record(ctx: Context, sender: str, answer: Answer, entry: Entry) -> None:
    word = answer["outcome"] if answer["outcome"] in ("done", "quarantined") else "kept"
    ctx.log.write(
        "file", file=names.printable(entry.name), source=f"incoming from {sender}", outcome=word,
        action=answer.get("action", answer["outcome"]), reason=answer.get("reason"), bytes=entry.size, sha256=entry.sha256,
        parent=entry.parent, destination=answer.get("destination"), seconds=answer.get("seconds"),
    )  # fmt: skip


def _take_flags(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    folder = custody.flags_folder(ctx.here)
    folder.mkdir(parents=True, exist_ok=True)
    for line in content.splitlines():
        try:
            found = flag.decode(line)
        except BadFile as error:
            yield [{"id": None, "outcome": "refused", "reason": str(error)}]
            continue
        if found.radar != ctx.here.radar or found.sender != sender:
            yield [{"id": found.id, "outcome": "refused", "reason": f"it is of {found.sender} for {found.radar}"}]
            continue
        place.write_whole(folder / found.file_name, found.encode())
        yield [{"id": found.id, "outcome": "done"}]


def _take_logs(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    """Copy whole each log that rsync keeps up to date in ``incoming/.logs`` to where this host's readers look."""
    mirror = ctx.folder("incoming") / LOGS_FOLDER
    taken = 0
    for source in sorted(mirror.glob("*/*.jsonl")):
        final = ctx.here.relayed_logs / ctx.here.radar / source.parent.name / source.name
        if not place.is_regular(source) or not _is_log_name(ctx, source) or _same_stamp(source, final):
            continue
        final.parent.mkdir(parents=True, exist_ok=True)
        status = source.stat()
        place.write_whole(final, source.read_bytes())
        os.utime(final, ns=(status.st_atime_ns, status.st_mtime_ns))
        taken += 1
    yield [{"outcome": "done", "files": taken}]


def _is_log_name(ctx: Context, path: Path) -> bool:
    day, radar, *_, ending = [*path.name.split("."), ""][:-1]
    return (
        day.isdigit() and len(day) == 8 and radar == ctx.here.radar and ending == "jsonl" and not path.parent.name.startswith(".")
    )


def _same_stamp(source: Path, final: Path) -> bool:
    try:
        return source.stat().st_mtime_ns == final.stat().st_mtime_ns and source.stat().st_size == final.stat().st_size
    except FileNotFoundError:
        return False


def _remove_stale_partials(incoming: Path) -> None:
    """What a killed rsync leaves behind (hidden temporary files) goes after a week; a resumed one would be done by then."""
    horizon = time.time() - _STALE_PARTIAL_S
    for path in incoming.glob(".*.??????"):
        if place.is_regular(path) and path.stat().st_mtime < horizon:
            path.unlink(missing_ok=True)
