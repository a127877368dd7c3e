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
from dataflow.site import rsync_to_campus

NAMES = tuple(f"20261101.{hour:02}00.00.sas.0.rawacf.h5" for hour in (0, 2, 4))
NO_SPACE = OSError(28, "No space left on device")


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running_chain.running(tmp_path / "chain") as made:
        yield made


@pytest.fixture
def ctx(chain: Running) -> Context:
    return context.open_context(chain.machines.config, "site-linux", "sas", "rsync_to_campus")


def batches_of_one(ctx: Context) -> Iterator[Batch]:
    for name in NAMES:
        yield Batch(dict([new_file(ctx, name)]))


def new_file(ctx: Context, name: str) -> tuple[Path, Entry]:
    path = ctx.folder("rawacf_array") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(10_000))
    return path, Entry(name, 10_000, checksum.sha256(path))


def on_campus(chain: Running) -> list[str]:
    return sorted(path.name for path in chain.here("campus").folder("holding").iterdir())


def on_a_road_without_end(monkeypatch, name: str) -> None:
    """The rsync of one file waits for a receiver that never says a word."""
    rsync = transfer._rsync

    def send(ctx, link, files, given_up):
        if files[0].name == name:
            link = ssh.Link(ctx, link.there, ("sh", "-c", "exec sleep 600"), link.proof)
        return rsync(ctx, link, files, given_up)

    monkeypatch.setattr(transfer, "_rsync", send)


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


def test_the_outcomes_of_a_batch_do_not_wait_for_the_next_one(ctx, chain, monkeypatch):
    """On a thin link the next one may travel for hours. Who takes no more outcomes, though, ends what travels."""
    on_a_road_without_end(monkeypatch, NAMES[1])
    outcomes = transfer.deliver(ctx, "campus", batches_of_one(ctx))
    assert next(outcomes).file.name == NAMES[0]
    threads = threading.active_count()
    outcomes.close()
    assert threading.active_count() == threads - 1 and on_campus(chain) == [NAMES[0]]


@pytest.mark.parametrize("error", [HostDown("the link is gone"), TryLater("asked to stop"), NO_SPACE], ids=type)
@pytest.mark.parametrize("where", ["made", "connected", "sent"])
def test_when_a_batch_cannot_travel_the_one_before_counts(ctx, chain, monkeypatch, error, where):
    rsync, connect, made = transfer._rsync, ssh.connect, []

    def batches():
        for batch in batches_of_one(ctx):
            made.append(batch)
            if where == "made" and len(made) == 3:
                raise error
            yield batch

    def connected(ctx, host):
        if where == "connected" and len(made) == 3:
            raise error
        return connect(ctx, host)

    def sent(ctx, link, files, given_up):
        if where == "sent" and len(made) == 3 and files[0].name == NAMES[2]:
            raise error
        return rsync(ctx, link, files, given_up)

    monkeypatch.setattr(ssh, "connect", connected)
    monkeypatch.setattr(transfer, "_rsync", sent)
    outcomes = transfer.deliver(ctx, "campus", batches())
    assert [next(outcomes).file.name for _ in range(2)] == list(NAMES[:2])
    with pytest.raises(type(error)):
        next(outcomes)
    assert on_campus(chain) == list(NAMES[:2])


def test_a_receiver_that_gives_no_answer_ends_what_travels(ctx, monkeypatch):
    on_a_road_without_end(monkeypatch, NAMES[1])
    ssh.connect(ctx, "campus")

    def broken(link, *arguments):
        raise HostDown("the connection broke")

    monkeypatch.setattr(ssh.Link, "receive", broken)
    with pytest.raises(HostDown, match="the connection broke"):
        list(transfer.deliver(ctx, "campus", batches_of_one(ctx)))


def test_a_file_that_changes_while_it_is_sent_stays(ctx, monkeypatch):
    path, entry = new_file(ctx, NAMES[0])
    rsync = transfer._rsync

    def written_to(*arguments):
        complaint = rsync(*arguments)
        path.write_bytes(b"more of it")
        return complaint

    monkeypatch.setattr(transfer, "_rsync", written_to)
    (outcome,) = transfer.deliver(ctx, "campus", [Batch({path: entry})])
    assert outcome.outcome == "kept" and "changed while it was sent" in outcome.reason and not outcome.release


def test_a_duplicate_is_let_go_of_only_if_it_is_one(ctx, chain):
    """Campus has the file that the manifest means; what lies here under its name is another by now."""
    path, entry = new_file(ctx, NAMES[0])
    assert [outcome.action for outcome in transfer.deliver(ctx, "campus", [Batch({path: entry})])] == ["delivered"]
    assert [outcome.action for outcome in transfer.deliver(ctx, "campus", [Batch({path: entry})])] == ["duplicate"]
    new_file(ctx, NAMES[0])
    (outcome,) = transfer.deliver(ctx, "campus", [Batch({path: entry})])
    assert (outcome.outcome, outcome.kind) == ("quarantined", "changed since hashed") and not outcome.release
    assert checksum.sha256(chain.here("campus").folder("holding") / NAMES[0]) == entry.sha256


def test_a_duplicate_that_is_gone_before_it_is_sent_keeps_no_other(ctx):
    (gone, entry), (other, of_other) = new_file(ctx, NAMES[0]), new_file(ctx, NAMES[1])
    assert [outcome.action for outcome in transfer.deliver(ctx, "campus", [Batch({gone: entry})])] == ["delivered"]
    gone.unlink()
    outcomes = transfer.deliver(ctx, "campus", [Batch({gone: entry, other: of_other})])
    assert [(outcome.file, outcome.action) for outcome in outcomes] == [(gone, "kept"), (other, "delivered")]


def test_a_file_that_cannot_be_read_keeps_no_other(ctx, monkeypatch):
    (unreadable, _), (other, entry) = new_file(ctx, NAMES[0]), new_file(ctx, NAMES[1])

    def entry_of(self, file, settle_s):
        if file == unreadable:
            raise PermissionError(13, "Permission denied", str(file))
        return entry

    monkeypatch.setattr(type(ctx.custody), "entry_of", entry_of)
    batch = transfer.batch_of(ctx, [unreadable, other])
    assert batch.entries == {other: entry}
    assert [(outcome.file, outcome.outcome) for outcome in batch.not_ready] == [(unreadable, "kept")]


def test_of_two_files_with_one_name_the_second_waits(ctx):
    (first, _), second = new_file(ctx, NAMES[0]), ctx.folder("rawacf_dmap") / NAMES[0]
    second.parent.mkdir(parents=True, exist_ok=True)
    second.write_bytes(b"another")
    assert rsync_to_campus.find(ctx) == [first]
    first.unlink()
    assert rsync_to_campus.find(ctx) == [second]
