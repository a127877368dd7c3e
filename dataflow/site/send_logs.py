"""Hand this host's summary logs, and those handed to it, to the next host.

Runs on:  borealis, site-linux
Reads:    the summary logs of this host and the relayed logs
Writes:   the next host's incoming/.logs, from where it takes them over
Removes:  nothing
Needs:    rsync on both machines; a key for the next host
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataflow.lib import command, receive, ssh, summary
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, TryLater
from dataflow.lib.step import Outcome, done

ROOTS = ()
DAYS = 7
TIME_LIMIT_S = 300.0


def find(ctx: Context) -> list[Path]:
    """The log files of the last days, this host's own and the relayed ones."""
    since = summary.day_before(ctx.clock(), DAYS)
    return summary.own_files(ctx.here, since) + summary.relayed_files(ctx.here, since)


def handle(ctx: Context, files: Sequence[Path]) -> Iterator[Outcome]:
    """Let rsync bring the next host's mirror of the logs up to date: only what was added travels."""
    if ctx.here.host.next is None:
        raise BadConfig(f"hosts.{ctx.here.host_name}.next is not set, so send_logs has nobody to send to")
    link = ssh.connect(ctx, ctx.here.host.next)
    link.require_place()
    tree = _tree_of_links(ctx, files)
    try:
        argv = [
            "rsync", "--recursive", "--times", "--copy-links", f"--timeout={ctx.flow.transfer.no_progress_s}",
            f"--rsh={link.remote_shell}", f"{tree}/", f"{link.destination}:{receive.LOGS_FOLDER}/",
        ]  # fmt: skip
        finished = command.run(argv, timeout_s=TIME_LIMIT_S, should_stop=lambda: ctx.requests.stop)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    if finished.returncode != 0:
        why = "asked to stop" if finished.interrupted else "it took too long"
        raise TryLater(
            f"the logs did not reach {link.there.machine.name}: {finished.last_lines or why}; they go with the next run"
        )
    link.receive("logs", b"", TIME_LIMIT_S)
    for path in files:
        yield done(path, "sent", bytes=path.stat().st_size, destination=f"{link.there.machine.name}:{receive.LOGS_FOLDER}")


def _tree_of_links(ctx: Context, files: Sequence[Path]) -> Path:
    """A folder ``<step>/<log name with the host>`` of symbolic links: the shape in which the receiver keeps the logs."""
    tree = ctx.here.state / "logs-to-send"
    shutil.rmtree(tree, ignore_errors=True)
    for path in files:
        own = path.is_relative_to(ctx.here.logs) and not path.is_relative_to(ctx.here.relayed_logs)
        step = path.relative_to(ctx.here.logs).parts[0] if own else path.parent.name
        name = f"{path.name.removesuffix('.jsonl')}.{ctx.here.host_name}.jsonl" if own else path.name
        link = tree / step / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    tree.mkdir(parents=True, exist_ok=True)
    return tree
