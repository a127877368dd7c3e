"""What a step is made of: outcomes, and the shape of its file.

A step is a module with two functions and a docstring that heads its page:

    find(ctx) -> list[Path]                   the files to work on, in order
    handle(ctx, files) -> Iterator[Outcome]   one batch; one outcome for each file

and, where it needs them, ``KINDS`` (the kinds of file that it handles; other names are skipped), ``ROOTS`` (the roots
whose markers must be there before and after each batch; empty: it works on state and logs alone, and a disk that hangs
must not concern it), ``PARTS`` (the words that may follow its name in the list) and ``batch(ctx, files) -> int`` (how many
files to take next). A step that begins a batch while it still works on the one before has, in place of ``handle``,
``handle_batches(ctx, batches) -> Iterator[Outcome]``: asking for the next batch begins it, and when it gives up all that has
begun is kept.
A shell step has the same shape, see ``shell_step``. The runner does the rest.
"""

from __future__ import annotations

import ast
import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from dataflow.lib import in_hand, names, place, shell_step
from dataflow.lib.config import step_file
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, BadFile, DataflowError, TryLater
from dataflow.lib.flag import Entry

T = TypeVar("T")
_OWN_STEPS = "own_step_"
OUTCOMES = ("done", "kept", "quarantined", "skipped")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    ``destination``: where it lies now (of a quarantined file: when it is not for the runner to move). ``actions``: further
    records of this file, one for each target. ``admit``: manifest entries of files made here. ``deliver``: what the next
    host's flag must list. ``release``: sources to remove once all of that is durable. ``stamp``: of ``file`` before it was
    read (``checksum.stamp``); is it another when the sources would be removed, they stay.
    """

    file: Path
    outcome: Literal["done", "kept", "quarantined", "skipped"]
    action: str
    reason: str | None = None
    kind: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    sha256: str | None = None
    parent: str | None = None
    destination: Path | str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    actions: tuple[dict[str, Any], ...] = ()
    admit: tuple[Entry, ...] = ()
    deliver: tuple[Entry, ...] = ()
    release: tuple[Path, ...] = ()
    stamp: tuple[int, int, int] | None = None


def done(file: Path, action: str, **fields: Any) -> Outcome:
    """All that this step had to do with the file is done and verified."""
    return Outcome(file, "done", action, **fields)


def kept(file: Path, reason: str, **fields: Any) -> Outcome:
    """The file stays and will be tried again."""
    return Outcome(file, "kept", "kept", reason, **fields)


def skipped(file: Path, reason: str, **fields: Any) -> Outcome:
    """The file is not, or not yet, this step's business."""
    return Outcome(file, "skipped", "skipped", reason, **fields)


def bad(file: Path, error: BadFile, **fields: Any) -> Outcome:
    """The file is at fault; the runner moves it into quarantine unless the fuse blows."""
    return Outcome(file, "quarantined", "quarantined", str(error), error.kind, details=getattr(error, "hashes", {}), **fields)


def each(ctx: Context, files: Sequence[Path], work: Callable[[Path], Outcome]) -> Iterator[Outcome]:
    """One outcome for each file from a function that raises, until asked to stop. ``HostDown`` and bugs go through."""
    for file in files:
        if ctx.should_stop():
            return
        yield attempt(ctx, file, work)


def attempt(ctx: Context, file: Path, work: Callable[[Path], T]) -> T | Outcome:
    """What a function makes of one file, or the outcome that its error means."""
    try:
        if ctx.heeds_pause:
            in_hand.refuse_crasher(ctx.here, ctx.step, file)
        with in_hand.noted(file):
            return work(file)
    except BadFile as error:
        return bad(file, error)
    except (TryLater, OSError) as error:
        return kept(file, trouble(error))


def trouble(error: DataflowError | OSError) -> str:
    """What to tell a person about trouble with the machine rather than with the file.

    What the kernel refuses is the machine's, and of what is not permitted it is told whose it is. An OSError without a number
    is a library's own (HDF5) and raised again.
    """
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None:
        raise error
    where = error.filename2 or error.filename
    whose = f" ({place.owners(Path(os.fsdecode(where)))})" if where and error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"{error.strerror}" + (f": {names.printable(str(where))}{whose}" if where else "")


def header(name: str) -> str:
    """What the header of a step's file says, for a person; the step is not loaded for it.

    Raises:
        BadConfig: no such step.
    """
    path = _file_of(name)
    if path.suffix != ".py":
        return shell_step.header(path)
    return ast.get_docstring(ast.parse(path.read_bytes())) or f"{path.name}: a step without a header."


def load(name: str) -> ModuleType:
    """The module of a step; a shell step, or a program of one's own, is given the shape of one.

    Raises:
        BadConfig: no such step, or its file cannot be loaded.
    """
    path = _file_of(name)
    if path.suffix != ".py":
        return shell_step.as_module(path)
    if not name.startswith("/"):
        return importlib.import_module(f"dataflow.{path.parent.name}.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"{_OWN_STEPS}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadConfig(f"the step {name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    if not (hasattr(module, "find") and (hasattr(module, "handle") or hasattr(module, "handle_batches"))):
        raise BadConfig(f"the step {name} has no functions find and handle (or handle_batches)")
    return module


def _file_of(name: str) -> Path:
    path = step_file(name)
    if not path.is_file():
        raise BadConfig(f"the step {name} is not a file on this machine")
    return path
