"""Delivering batches: while the receiver reads one back, the next one travels; rsync, sshd and ``receive`` are real."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import running_chain
from running_chain import LIMIT_S, Running

from dataflow.lib import checksum, context, ssh, transfer
from dataflow.lib.context import Context
from dataflow.lib.errors import HostDown, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.transfer import Batch

NAMES = tuple(f"20261101.{hour:02}00.00.sas.0.rawacf.h5" for hour in (0, 2, 4))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running_chain.running(tmp_path / "chain") as made:
        yield made


@pytest.fixture
def ctx(chain: Running) -> Context:
    return context.open_context(chain.machines.config, "site-linux", "sas", "rsync_to_campus")


def batches_of_one(ctx: Context) -> Iterator[Batch]:
    for name in NAMES:
        path = ctx.folder("rawacf_array") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(10_000))
        yield Batch({path: Entry(name, 10_000, checksum.sha256(path))})


def on_campus(chain: Running) -> list[str]:
    return sorted(path.name for path in chain.here("campus").folder("holding").iterdir())


def test_a_batch_travels_while_the_one_before_is_read_back(ctx, chain, monkeypatch):
    """The answer about the first waits until the second has travelled: who asks first and then sends would wait for ever."""
    second_has_travelled, runs, rsync, receive = threading.Event(), [], transfer._rsync, ssh.Link.receive

    def counted(*arguments):
        complaint = rsync(*arguments)
        runs.append(arguments)
        if len(runs) == 2:
            second_has_travelled.set()
        return complaint

    def held(link, *arguments):
        assert second_has_travelled.wait(LIMIT_S), "nothing travels while the receiver is asked"
        return receive(link, *arguments)

    ssh.connect(ctx, "campus")
    monkeypatch.setattr(transfer, "_rsync", counted)
    monkeypatch.setattr(ssh.Link, "receive", held)
    outcomes = list(transfer.deliver(ctx, "campus", batches_of_one(ctx)))
    assert [(outcome.file.name, outcome.outcome) for outcome in outcomes] == [(name, "done") for name in NAMES]
    assert on_campus(chain) == list(NAMES) and chain.connections("campus") == 1


@pytest.mark.parametrize("error", [HostDown("the link is gone"), TryLater("asked to stop")])
def test_when_a_batch_cannot_travel_the_one_before_counts(ctx, chain, monkeypatch, error):
    rsync = transfer._rsync

    def third_fails(ctx, link, files):
        if files[0].name == NAMES[2]:
            raise error
        return rsync(ctx, link, files)

    monkeypatch.setattr(transfer, "_rsync", third_fails)
    outcomes = transfer.deliver(ctx, "campus", batches_of_one(ctx))
    assert [next(outcomes).file.name for _ in range(2)] == list(NAMES[:2])
    with pytest.raises(type(error)):
        next(outcomes)
    assert on_campus(chain) == list(NAMES[:2])


def test_who_takes_no_more_outcomes_leaves_nothing_running(ctx, chain):
    outcomes = transfer.deliver(ctx, "campus", batches_of_one(ctx))
    assert next(outcomes).file.name == NAMES[0]
    outcomes.close()
    assert threading.active_count() == 1 and on_campus(chain) == list(NAMES[:2])
