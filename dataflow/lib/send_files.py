"""What ``send_to HOST`` of a shell step runs: deliver files named on stdin (NUL-ended) and note each outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dataflow.lib import config, context, shell_step, transfer
from dataflow.lib.errors import Exit, HostDown, TryLater
from dataflow.lib.step import Outcome


def main(host: str) -> int:
    """Deliver; the exit code is 75 when the other host is unreachable."""
    environment = os.environ
    ctx = context.open_context(
        config.load(),
        environment["DATAFLOW_HOST"],
        environment["DATAFLOW_RADAR"],
        environment["DATAFLOW_STEP"],
        run=environment["DATAFLOW_RUN"],
    )
    ctx = replace(ctx, heeds_pause=False)  # the runner heeds it, and ends this program
    ctx.requests.listen()
    files = [Path(os.fsdecode(name)) for name in sys.stdin.buffer.read().split(b"\0") if name]
    try:
        _note(transfer.deliver(ctx, host, [transfer.batch_of(ctx, files)]))
    except (HostDown, TryLater) as error:
        print(error, file=sys.stderr)  # noqa: T201  (the runner reads it)
        return Exit.UNREACHABLE if isinstance(error, HostDown) else Exit.LEFT_OVER
    return Exit.ACCOUNTED


def _note(outcomes: Iterable[Outcome]) -> None:
    with open(os.environ[shell_step.NOTES_VARIABLE], "ab") as notes:
        for outcome in outcomes:
            fields = (b"sent", os.fsencode(outcome.file), shell_step.note_of_outcome(outcome).encode())
            notes.write(b"".join(field + b"\0" for field in fields))
            notes.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
