"""The receiving end of a link: what ``dataflow receive`` does when the sender asks for it over SSH.

    accept   a manifest on stdin: hash what lies in ``incoming``, put it in its place, answer one outcome for each file
    flag     flags on stdin, one a line: put each durably into the flag folder, answer its id
    archived names on stdin, ended by NUL: say which of them lie in the archive
    compare  a manifest on stdin: read again what lies in the archive under its names, say whether it is the same
    logs     take over the summary logs that lie in ``incoming/.logs``
    hello    say who answers, which proves the connection

A file's name decides where it goes (``routes``). A name that has passed before with the same hash is ``done: duplicate``
and goes no further; with another hash the newcomer goes to quarantine.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import dataflow
from dataflow.lib import alert, archived, checksum, copy, custody, flag, names, place, quarantine, transfer
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, Exit, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.step import trouble

LOGS_FOLDER = ".logs"
LOG_BYTES_MAX = 64 << 20
"""A day's log of 10,000 files is 10 MB."""
ACCEPT_AT_ONCE = 500
READ_AT_ONCE = 8
"""Files that are synced and read back side by side: enough that their syncs meet in one commit of the journal."""
_STEP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}", re.ASCII)
_STALE_PARTIAL_S = 7 * 86400
_REQUEST_LIMIT_BYTES = 64 << 20
Answer = dict[str, Any]


def serve(ctx: Context, verb: str, sender: str, stdin: BinaryIO, stdout: BinaryIO) -> Exit:
    """Answer one request; answers are JSON, one a line, each sent only when what it says is durable.

    Raises:
        BadFile: the request is too long, or a manifest that cannot be read; nothing of it was used.
    """
    content = stdin.read(_REQUEST_LIMIT_BYTES + 1)
    if len(content) > _REQUEST_LIMIT_BYTES:
        raise BadFile("too long", f"the request is longer than {_REQUEST_LIMIT_BYTES >> 20} MiB; send fewer files at a time")
    for answers in VERBS[verb](ctx, sender, content):
        for answer in answers:
            stdout.write(json.dumps(answer).encode("ascii") + b"\n")
        stdout.flush()
    return Exit.ACCOUNTED


def _hello(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    answer = {"dataflow": dataflow.__version__, "v": flag.VERSION, "machine": ctx.here.machine.name}
    try:
        place.require_answer(ctx.here, ctx.here.root_of("incoming"))
        place.check_root(ctx.here, ctx.here.root_of("incoming"))
        _make_incoming(ctx)
        place.make_folder(ctx.here, ctx.folder("incoming") / LOGS_FOLDER)
    except (TryLater, OSError) as error:
        answer["trouble"] = trouble(error)
    else:
        answer |= _room(ctx)
    yield [answer]


def _make_incoming(ctx: Context) -> None:
    """Make the folder of what arrives, closed to others: what lies there is nothing yet, with a mode that the sender chose."""
    place.make_folder(ctx.here, ctx.folder("incoming"), ctx.here.dir_mode & ~0o007)


def _room(ctx: Context) -> Answer:
    """What is to be said when there is no room for more files. What has arrived is taken all the same: it has its room."""
    try:
        place.require_room(ctx.here, [ctx.folder("incoming")], 0)
    except TryLater as error:
        return {"full": str(error)}
    return {}


def _accept(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    manifest = flag.entries(content)
    _remove_useless_partials(ctx)
    for start in range(0, len(manifest), ACCEPT_AT_ONCE):
        yield _accept_some(ctx, sender, manifest[start : start + ACCEPT_AT_ONCE])


@dataclass(slots=True)
class _Arrival:
    """One file of a manifest on its way through ``incoming``.

    ``answer`` stays None as long as nothing is known against it; ``known`` is where its name has passed before, and the hash
    of what lies there.
    """

    entry: Entry
    path: Path
    final: Path | None = None
    action: str = "received"
    known: tuple[Path, str] | None = None
    answer: Answer | None = None
    seconds: float = 0.0


def _accept_some(ctx: Context, sender: str, entries: Sequence[Entry]) -> list[Answer]:
    """Take in a group of files. What goes wrong with the machine and not with one file keeps the whole group."""
    arrivals = [_Arrival(entry, ctx.folder("incoming") / entry.name) for entry in entries]
    try:
        _check_roots(ctx)
        _make_incoming(ctx)
        _take_in(ctx, sender, arrivals)
        _check_roots(ctx)
    except (TryLater, OSError) as error:
        for arrival in arrivals:
            arrival.answer = {"outcome": "kept", "reason": trouble(error)}
    answers = [{"name": a.entry.name, **(a.answer or {}), "seconds": round(a.seconds, 3)} for a in arrivals]
    for entry, answer in zip(entries, answers, strict=True):
        _record(ctx, sender, answer, entry)
    ctx.log.sync()
    return answers


def _take_in(ctx: Context, sender: str, arrivals: Sequence[_Arrival]) -> None:
    """Judge a group of files, make the manifest of the good ones durable, then put them in their places.

    The whole group goes through each stage together, because what takes long is to wait for the disk: a folder is synced
    once for all names in it, and files that are synced side by side share one commit of the file system's journal.
    """
    _each(arrivals, lambda arrival: _look(ctx, arrival))
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        list(pool.map(lambda n: _each(arrivals[n::READ_AT_ONCE], _verify), range(READ_AT_ONCE)))
    _each(arrivals, lambda arrival: _refuse_conflict(ctx, arrival))
    ctx.custody.admit([_as_told(arrival.entry) for arrival in arrivals if arrival.answer is None], sender)
    _each(arrivals, lambda arrival: _add_name(ctx, arrival))
    place.sync_folders(arrival.final.parent for arrival in arrivals if arrival.final and arrival.answer is None)
    _each(arrivals, _release)
    place.sync_folders([ctx.folder("incoming")])


def _as_told(entry: Entry) -> Entry:
    """An entry of a sender without what a strict reading found: only this host's own reading counts for that."""
    return replace(entry, records=None, cpids=None)


def _each(arrivals: Sequence[_Arrival], stage: Callable[[_Arrival], Answer | None]) -> None:
    """Do one thing with every file that has no answer yet; what it returns is the file's answer, and so is trouble with it."""
    for arrival in arrivals:
        if arrival.answer is None:
            started = time.monotonic()
            try:
                arrival.answer = stage(arrival)
            except (TryLater, OSError) as error:
                arrival.answer = {"outcome": "kept", "reason": trouble(error)}
            arrival.seconds += time.monotonic() - started


def _check_roots(ctx: Context) -> None:
    for root in {ctx.here.root_of(key) for key in ("incoming", *ctx.here.host.routes.values())}:
        place.check_root(ctx.here, root)


def _look(ctx: Context, arrival: _Arrival) -> Answer | None:
    """Find out where a file belongs and whether it has passed before."""
    entry = arrival.entry
    name = names.parse(entry.name)
    route = ctx.here.host.routes.get(name.kind.value) if name else None
    if name is None or route is None or name.radar not in (None, ctx.here.radar):
        return {"outcome": "refused", "reason": f"this host takes no such file for {ctx.here.radar}"}
    arrival.final = ctx.folder(route, name.time, name.camera or "") / entry.name
    arrival.action = "received" if route in ctx.here.host.backlog else "archived"
    arrival.known = custody.passed_before(ctx.here, name, entry.sha256, ctx.here.host.passed)
    if arrival.known is None or arrival.known[1] != entry.sha256:
        return None
    arrival.path.unlink(missing_ok=True)
    reason = "duplicate: it has arrived before"
    return {"outcome": "done", "action": "duplicate", "reason": reason, "destination": str(arrival.known[0])}


def _verify(arrival: _Arrival) -> Answer | None:
    """Compare what lies on the disk with the manifest."""
    if not place.is_regular(arrival.path):
        return {"outcome": "missing", "reason": "it did not arrive"}
    found = checksum.sha256_on_disk(arrival.path)
    if found == arrival.entry.sha256 and arrival.path.stat().st_size == arrival.entry.size:
        return None
    arrival.path.unlink()
    reason = f"it arrived with hash {found}, not {arrival.entry.sha256}; the arrived copy was removed"
    return {"outcome": "damaged", "reason": reason}


def _refuse_conflict(ctx: Context, arrival: _Arrival) -> Answer | None:
    if arrival.known is None:
        return None
    return _quarantine_newcomer(ctx, arrival.path, copy.Conflict(*arrival.known, arrival.entry.sha256))


def _add_name(ctx: Context, arrival: _Arrival) -> Answer | None:
    assert arrival.final is not None
    try:
        place.own(ctx.here, arrival.path, ctx.here.file_mode)
        copy.add_name(ctx.here, arrival.path, arrival.final, arrival.entry.sha256)
    except BadFile as error:
        return _quarantine_newcomer(ctx, arrival.path, error)
    return None


def _release(arrival: _Arrival) -> Answer:
    place.release(arrival.path)
    return {"outcome": "done", "action": arrival.action, "destination": str(arrival.final)}


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
    place.make_own_folder(folder)
    for line in content.splitlines():
        try:
            found = flag.decode(line)
        except BadFile as error:
            yield [_refused_flag(ctx, sender, None, str(error))]
            continue
        if found.radar != ctx.here.radar or found.sender != sender:
            yield [_refused_flag(ctx, sender, found.id, f"it is of {found.sender} for {found.radar}")]
            continue
        found = replace(found, files=tuple(map(_as_told, found.files)))
        place.write_whole(folder / found.file_name, found.encode())
        yield [{"id": found.id, "outcome": "done"}]


def _refused_flag(ctx: Context, sender: str, number: str | None, reason: str) -> Answer:
    alert.tell(ctx.log, f"a flag that came with the key of {sender} was refused: {reason}")
    return {"id": number, "outcome": "refused", "reason": reason}


def _take_logs(ctx: Context, sender: str, content: bytes) -> Iterator[list[Answer]]:
    """Copy whole each log that rsync keeps up to date in ``incoming/.logs`` to where this host's readers look.

    Raises:
        TryLater: some of them cannot be written there; the others were taken, and a person here is told.
    """
    _remove_useless_partials(ctx)  # where logs alone are sent nobody else does
    taken, failed = 0, ""
    for source in _logs_sent(ctx):
        if source.stat().st_size > LOG_BYTES_MAX:
            message = (
                f"the log {source.name} of {sender} is longer than {LOG_BYTES_MAX >> 20} MiB and is not taken: look what fills it"
            )
            alert.tell_once(ctx.log, ctx.here, f"log: {source.name}", message)
            continue
        try:
            taken += _take_log(source, ctx.here.relayed_logs / ctx.here.radar / source.parent.name / source.name)
        except OSError as error:
            failed = f"logs of {sender} cannot be taken over, the last {source.name}: {trouble(error)}"
    if failed:
        alert.tell_once(ctx.log, ctx.here, f"logs of {sender}", f"{failed}. They are asked for again with the next run")
        raise TryLater(failed)
    alert.clear(ctx.here, f"logs of {sender}")
    yield [{"outcome": "done", "files": taken}]


def _take_log(source: Path, final: Path) -> bool:
    """Bring one log up to date; False when it is."""
    if _same_stamp(source, final):
        return False
    place.make_own_folder(final.parent)
    status = source.stat()
    place.write_whole(final, source.read_bytes())
    os.utime(final, ns=(status.st_atime_ns, status.st_mtime_ns))
    return True


def _logs_sent(ctx: Context) -> list[Path]:
    """The logs in ``incoming/.logs`` with names of logs of this radar and of hosts before this one; no link is followed."""
    hosts = "|".join(map(re.escape, ctx.here.upstream))
    found: list[Path] = []
    for folder in _log_folders(ctx):
        if _STEP_NAME.fullmatch(folder.name):
            grammar = re.compile(rf"\d{{8}}\.{ctx.here.radar}\.{re.escape(folder.name)}\.({hosts})\.jsonl", re.ASCII)
            found += [path for path in place.scan(folder) if grammar.fullmatch(path.name) and place.is_regular(path)]
    return found


def _log_folders(ctx: Context) -> list[Path]:
    mirror = ctx.folder("incoming") / LOGS_FOLDER
    return sorted(filter(_is_folder, mirror.iterdir())) if _is_folder(mirror) else []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _same_stamp(source: Path, final: Path) -> bool:
    try:
        return source.stat().st_mtime_ns == final.stat().st_mtime_ns and source.stat().st_size == final.stat().st_size
    except FileNotFoundError:
        return False


def _remove_useless_partials(ctx: Context) -> None:
    """Remove what broken transfers left in ``incoming``, and in its folders of logs, and nobody will resume.

    A hidden temporary file goes after a week; a resumed transfer would be done by then. So does a partial, and at once when
    its file lies here: the rsync of a lost connection may notice only after the next try is done, and keeps what it had.
    """
    horizon = time.time() - _STALE_PARTIAL_S
    temporary = [path for folder in (ctx.folder("incoming"), *_log_folders(ctx)) for path in folder.glob(".*.??????")]
    for path in temporary:
        with suppress(FileNotFoundError):  # the rsync of the next batch renames its own
            if place.is_regular(path) and path.stat().st_mtime < horizon:
                path.unlink()
    for path in place.scan(ctx.folder("incoming") / transfer.PARTIALS):
        with suppress(FileNotFoundError):
            if place.is_regular(path) and (path.stat().st_ctime < horizon or _lies_here(ctx, path.name)):
                path.unlink()


def _lies_here(ctx: Context, text: str) -> bool:
    name = names.parse(text)
    places = (ctx.folder(key, name.time, name.camera or "") for key in ctx.here.host.passed) if name else ()
    return any((folder / text).exists() for folder in places)


VERBS = {
    "accept": _accept, "flag": _take_flags, "logs": _take_logs, "hello": _hello,
    "archived": archived.answer_names, "compare": archived.answer_hashes,
}  # fmt: skip
"""What may be asked for."""
