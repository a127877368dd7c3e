"""Gives a shell script, or any program of one's own, the shape of a step.

The program is called at least twice: ``PROGRAM find`` prints the files to work on, each ended by NUL; ``PROGRAM handle`` reads a
batch of them the same way on stdin and appends a note for each to the file $DATAFLOW_NOTES: ``done``, ``kept`` or ``bad``,
the file and the reason, each ended by NUL. A file without a note is kept. Scripts source ``lib/step.sh``, which does this.

A line ``Kinds: photo`` in the comment at its head says which kinds of file (``names.Kind``) the step handles; others, and
names that match no grammar, are skipped. Without that line it is given every name that it finds.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dataflow.lib import command
from dataflow.lib.errors import BadConfig, BadFile, HostDown, TryLater
from dataflow.lib.names import Kind

if TYPE_CHECKING:
    from dataflow.lib.context import Context
    from dataflow.lib.step import Outcome

NOTES_VARIABLE = "DATAFLOW_NOTES"


def as_module(program: Path) -> ModuleType:
    """The program as a module with ``find``, ``batch`` and ``handle``; the comment at its head is the docstring.

    Raises:
        BadConfig: its head names a kind of file that there is not.
    """
    module = ModuleType(program.stem, header(program))
    if (kinds := _kinds(program)) is not None:
        module.KINDS = kinds  # type: ignore[attr-defined]

    def find(ctx: Context) -> list[Path]:
        finished = _call(ctx, program, "find", b"", None)
        return [Path(os.fsdecode(name)) for name in finished.stdout.split(b"\0") if name]

    def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
        with tempfile.NamedTemporaryFile(prefix="dataflow-notes-") as notes:
            listing = b"".join(os.fsencode(file) + b"\0" for file in files)
            finished = _call(ctx, program, "handle", listing, Path(notes.name))
            yield from _outcomes(files, notes.read(), finished)
        if finished.returncode == 75:
            raise HostDown(finished.last_lines or f"{program.name} says that the other side is unreachable")

    def batch(ctx: Context, files: Sequence[Path]) -> int:
        from dataflow.lib import transfer

        return transfer.short_batch(ctx, files)

    module.batch = batch  # type: ignore[attr-defined]
    module.find = find  # type: ignore[attr-defined]
    module.handle = handle  # type: ignore[attr-defined]
    return module


def environment(ctx: Context, notes: Path | None) -> dict[str, str]:
    """The ``DATAFLOW_*`` variables of a shell step: its folders as DATAFLOW_FOLDER_<NAME>, and where it runs."""
    here = ctx.here
    folders = {key: str(here.folder(key)) for key in here.folder_texts}
    variables = {f"DATAFLOW_FOLDER_{key.upper()}": path for key, path in folders.items()}
    return {
        **ctx.config.environment(),
        **variables,
        "DATAFLOW_LIB": str(Path(__file__).parent),
        "DATAFLOW_PYTHON": sys.executable,
        "DATAFLOW_HOST": here.host_name,
        "DATAFLOW_RADAR": here.radar,
        "DATAFLOW_MACHINE": here.machine.name,
        "DATAFLOW_STEP": ctx.step,
        "DATAFLOW_NEXT": here.host.next or "",
        "DATAFLOW_RUN": ctx.run,
        "LC_ALL": "C",
        **({NOTES_VARIABLE: str(notes)} if notes else {}),
    }


def header(program: Path) -> str:
    """The comment at the head of a script."""
    try:
        lines = program.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return f"{program.name}: a program of your own."
    comment = []
    for line in lines[1:] if lines[:1] and lines[0].startswith("#!") else lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("#").removeprefix(" "))
    return "\n".join(comment) or f"{program.name}: a program without a header."


def _kinds(program: Path) -> frozenset[Kind] | None:
    line = re.search(r"^Kinds: +(\S.*)$", header(program), re.MULTILINE)
    if line is None:
        return None
    words = line[1].replace(",", " ").split()
    if strange := set(words) - set(Kind):
        raise BadConfig(f"{program}: {', '.join(sorted(strange))} is no kind of file; there are: {', '.join(Kind)}")
    return frozenset(map(Kind, words))


def _call(ctx: Context, program: Path, verb: str, stdin: bytes, notes: Path | None) -> command.Finished:
    argv: list[str | Path] = ["bash", program, verb] if program.suffix == ".sh" else [program, verb]
    finished = command.run(
        argv,
        timeout_s=ctx.flow.daemon.step_limit_s,
        stdin=stdin,
        environment=environment(ctx, notes),
        should_stop=ctx.should_stop,
        grace_s=max(ctx.flow.daemon.stop_timeout_s - command.KILL_GRACE_S, command.TERMINATE_GRACE_S),
    )
    if verb == "find" and finished.returncode != 0:
        raise TryLater(f"{program.name} find ended with {finished.returncode}: {finished.last_lines}")
    return finished


def _outcomes(files: Sequence[Path], notes: bytes, finished: command.Finished) -> Iterator[Outcome]:
    from dataflow.lib import step

    words = [os.fsdecode(word) for word in notes.split(b"\0")]
    noted = {Path(words[n + 1]): (words[n], words[n + 2]) for n in range(0, len(words) - 2, 3)}
    for file in files:
        word, text = noted.get(file, ("", ""))
        if word == "done":
            yield step.done(file, "done", reason=text or None)
        elif word == "sent":
            try:
                yield outcome_of_note(file, text)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                yield step.kept(file, f"the step's note on it cannot be read: {type(error).__name__}: {error}")
        elif word == "bad":
            yield step.bad(file, BadFile(text or "bad", text or "the step calls it bad"))
        elif word == "kept":
            yield step.kept(file, text or "no reason given")
        else:
            how = "was stopped" if finished.interrupted or finished.timed_out else f"ended with {finished.returncode}"
            yield step.kept(file, f"the step {how} without a note on it: {finished.last_lines}".rstrip(": "))


def note_of_outcome(outcome: Outcome) -> str:
    """An outcome of a sending as the text of a ``sent`` note."""
    return json.dumps(
        {
            "outcome": outcome.outcome,
            "action": outcome.action,
            "reason": outcome.reason,
            "kind": outcome.kind,
            "bytes": outcome.bytes,
            "sha256": outcome.sha256,
            "destination": str(outcome.destination) if outcome.destination is not None else None,
            "deliver": [entry.document() for entry in outcome.deliver],
            "release": bool(outcome.release),
        }
    )


def outcome_of_note(file: Path, text: str) -> Outcome:
    """The inverse of ``note_of_outcome`` for one file.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is no such note.
    """
    from dataflow.lib import flag, step

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"expected an object, found {text[:40]!r}")
    deliver = tuple(flag.entry(entry) for entry in fields.pop("deliver"))
    found = step.Outcome(file=file, deliver=deliver, release=(file,) if fields.pop("release") else (), **fields)
    texts = (found.action, found.reason or "", found.kind or "", found.sha256 or "", found.destination or "")
    if found.outcome not in step.OUTCOMES or not all(isinstance(text, str) for text in texts):
        raise ValueError("it names no outcome, or a field of it is no text")
    if not (isinstance(found.bytes, int | None) and not found.actions and not found.admit and not found.details):
        raise ValueError("it has fields that no sending has")
    return found
