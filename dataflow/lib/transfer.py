"""Delivering files to the next host: one rsync and one ``receive`` for a batch, over the one connection.

rsync writes only into ``incoming/<radar>/`` of the receiver; ``receive`` hashes what arrived against the manifest, puts
it in its place and answers one outcome for each file. A transfer that breaks leaves hidden partials there and resumes.
While the receiver reads one batch back from its disk, the next one travels.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow.lib import checksum, command, names, ssh
from dataflow.lib.context import Context
from dataflow.lib.errors import BadFile, HostDown, TryLater
from dataflow.lib.flag import VERSION, Entry
from dataflow.lib.step import Outcome, bad, done, kept, skipped, trouble

PARTIALS = ".partial"
_CONNECTION_CODES = frozenset({5, 10, 12, 30, 35, 255})
"""rsync(1) exit values that mean the link and not the files."""
_RECEIVE_BYTES_PER_S = 20e6
_RECEIVE_BASE_S = 120.0
_BANDWIDTH_WITHOUT_LIMIT_KIB_S = 10_000
"""What a link is taken to carry when its machine has no limit: 100 Mbit/s, less what is lost on the way."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that travel together.

    ``entries`` are their manifest entries: what the receiver must find. ``not_ready`` are outcomes of files that are not sent.
    """

    entries: Mapping[Path, Entry]
    not_ready: Sequence[Outcome] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that lies in the receiver's ``incoming``: its files as they were before, and what rsync complained about."""

    link: ssh.Link
    batch: Batch
    stamps: Mapping[Path, tuple[int, int, int]]
    complaint: str


def deliver(ctx: Context, host: str, batches: Iterable[Batch]) -> Iterator[Outcome]:
    """Send batches of this host's files to another, and yield one outcome for each file.

    Those of accepted files carry ``deliver`` and ``release``. They come as soon as the receiver has answered for their batch,
    while the next one travels; who takes no more of them ends that.

    Raises:
        HostDown: the other machine cannot be reached; what arrived so far is kept there and counts at the next try.
        TryLater: asked to stop, and the transfer resumes; or the other machine has no place for files now.
        OSError: a batch cannot be made ready, or not be looked at. Of the one before all outcomes were given.
    """
    waiting, given_up = iter(batches), threading.Event()
    with ThreadPoolExecutor(1) as road:
        try:
            travelling: Future[_Sent] | None = None
            while True:
                sent = travelling.result() if travelling else None
                try:
                    batch = next(waiting, None)
                    travelling = _depart(ctx, host, batch, road, given_up) if batch and batch.entries else None
                finally:
                    yield from _answers(ctx, sent)  # also when the next one cannot go
                if batch is None:
                    return
                yield from batch.not_ready
        finally:
            given_up.set()


def _depart(ctx: Context, host: str, batch: Batch, road: Executor, given_up: threading.Event) -> Future[_Sent]:
    link = ssh.connect(ctx, host)  # here, and not on the road: a probe must not be in the way of a receiver that is busy reading
    link.require_place()
    link.require_room()
    return road.submit(_send, ctx, link, batch, given_up)


def _send(ctx: Context, link: ssh.Link, batch: Batch, given_up: threading.Event) -> _Sent:
    stamps = {}
    for file in batch.entries:
        with suppress(FileNotFoundError):
            stamps[file] = checksum.stamp(file)
    return _Sent(link, batch, stamps, _rsync(ctx, link, list(batch.entries), given_up))


def _answers(ctx: Context, sent: _Sent | None) -> Iterator[Outcome]:
    """Ask the receiver to read back a batch and put it in its place; what it says of each file."""
    if sent is None:
        return
    entries = sent.batch.entries
    total_bytes = sum(entry.size for entry in entries.values())
    manifest = {"v": VERSION, "run": ctx.run, "files": [entry.document() for entry in entries.values()]}
    limit_s = _RECEIVE_BASE_S + total_bytes / _RECEIVE_BYTES_PER_S
    answers = ssh.by_key(sent.link.receive("accept", json.dumps(manifest).encode(), limit_s), "name")
    for file, entry in entries.items():
        yield _outcome(sent, file, entry, answers.get(file.name))


def _rsync(ctx: Context, link: ssh.Link, files: Sequence[Path], given_up: threading.Event) -> str:
    """Copy the files into the receiver's ``incoming``; returns what rsync complained about single files."""
    argv = [
        "rsync",
        "--times",                   # keeps the radar's modification time; size and time tell rsync what has arrived
        "--files-from=-", "--from0", # names travel NUL-ended on stdin, never on a command line
        "--no-relative",             # all into the one folder, whatever folder they come from
        "--no-implied-dirs",
        f"--partial-dir={PARTIALS}", # a broken transfer resumes from a hidden partial
        f"--timeout={ctx.flow.transfer.no_progress_s}",
        f"--bwlimit={ctx.here.machine.bandwidth_kib_s or 0}",
        f"--rsh={link.remote_shell}",
        "/",
        f"{link.destination}:./",     # the receiver's rrsync calls `incoming` so
    ]  # fmt: skip
    listing = b"".join(os.fsencode(file).lstrip(b"/") + b"\0" for file in files)
    finished = command.run(
        argv,
        timeout_s=None,
        stdin=listing,
        should_stop=lambda: given_up.is_set() or ctx.should_stop(),
        environment={"LC_ALL": "C"},
    )
    if finished.interrupted:
        raise TryLater("the transfer was interrupted and resumes with the next run")
    if finished.returncode in _CONNECTION_CODES:
        link.mark_down()
        raise HostDown(f"the transfer to {link.there.machine.name} broke: {finished.last_lines}")
    return finished.last_lines


def _outcome(sent: _Sent, file: Path, entry: Entry, answer: Mapping[str, str] | None) -> Outcome:
    machine, complaint = sent.link.there.machine.name, sent.complaint
    if answer is None:
        return kept(file, f"{machine} gave no answer for it: {complaint or 'receive ended early'}")
    word, reason = answer.get("outcome", ""), answer.get("reason", "")
    if file not in sent.stamps or not checksum.is_still(file, sent.stamps[file]):
        return kept(file, f"it changed while it was sent to {machine}; it is tried again when it lies still")
    is_duplicate = answer.get("action") == "duplicate"
    if (word == "damaged" or is_duplicate) and (found := checksum.sha256_on_disk(file)) != entry.sha256:
        fault = BadFile(
            "changed since hashed", f"its hash was {entry.sha256} and is {found} now: damaged on this machine's disk?"
        )
        return bad(file, fault, sha256=entry.sha256)
    place = f"{machine}:{answer.get('destination', '')}"
    common: dict[str, Any] = {"bytes": entry.size, "sha256": entry.sha256, "parent": entry.parent, "destination": place}
    if word == "done":
        action = "duplicate" if is_duplicate else "delivered"
        return done(file, action, reason=reason or None, release=(file,), deliver=(entry,), **common)
    if word == "quarantined":
        return Outcome(file, "quarantined", "quarantined", reason, "conflict", release=(file,), **common)
    return kept(file, f"{machine}: {reason}" + (f" ({complaint})" if complaint else ""))


def batch_of(ctx: Context, files: Sequence[Path]) -> Batch:
    """A batch of these files: with their manifest entries, adopting where there is none, and outcomes of those not sent now."""
    entries, not_ready = {}, []
    for file in files:
        if names.parse(file.name) is None:
            not_ready.append(skipped(file, "unknown name: it matches no grammar; it was left where it is"))
            continue
        try:
            entries[file] = ctx.custody.entry_of(file, ctx.flow.files.settle_s)
        except TryLater as error:
            not_ready.append(kept(file, str(error)))
        except FileNotFoundError:
            not_ready.append(kept(file, "it was removed while this step looked"))
        except OSError as error:
            not_ready.append(kept(file, trouble(error)))
    return Batch(entries, not_ready)


def long_batch(ctx: Context, files: Sequence[Path]) -> int:
    """How many of the files make a batch of what everything else waits for."""
    return take_while(files, ctx.flow.transfer.batch_files, ctx.flow.transfer.data_batch_bytes)


def short_batch(ctx: Context, files: Sequence[Path]) -> int:
    """How many of the files the link carries in about a minute: data that comes in waits until a batch is through."""
    limits, bandwidth_kib_s = ctx.flow.transfer, ctx.here.machine.bandwidth_kib_s or _BANDWIDTH_WITHOUT_LIMIT_KIB_S
    return take_while(files, limits.batch_files, int(limits.picture_batch_s * bandwidth_kib_s * 1024))


def take_while(files: Sequence[Path], limit_files: int, limit_bytes: int) -> int:
    """How many of the files make one batch: at least one, within a number and a total size in bytes."""
    total = 0
    for count, file in enumerate(files[:limit_files]):
        with suppress(FileNotFoundError):  # removed meanwhile, which is the batch's own trouble
            total += file.lstat().st_size
        if total > limit_bytes:
            return max(count, 1)
    return min(len(files), limit_files)
