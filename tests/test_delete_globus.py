"""`dataflow mirror delete` on a Globus collection: tasks that fail, renames that the service refuses, and deaths at its calls."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import globus_server
import mirror_world
import pytest
import test_delete
import test_globus_store
from globus_server import Fate
from mirror_world import SAID
from test_delete import ALIKE, BAD, CONTENTS, LATER, OTHER, STAMP, aside, blocklist, chroot, listed, on_mirror, snapshot, top

from dataflow.lib.config import Config
from dataflow.lib.errors import Exit
from dataflow.mirror.stores import globus, globus_tasks

KILL_EVERY = int(os.environ.get("GLOBUS_KILL_EVERY", "30"))
KEYS = ("kind", "root", "collection_id", "local_collection_id", "client_id", "token_file")


@pytest.fixture
def config(tmp_path) -> Config:
    """A mirror as a folder, to look at."""
    made = mirror_world.world(tmp_path / "machines")
    mirror_world.on_mirror(top(made), CONTENTS)
    return made


@pytest.fixture
def service(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that was written
    monkeypatch.setattr(globus, "RETRIES", 1)
    monkeypatch.setattr(globus, "LONGEST_RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(globus_tasks, "time", test_globus_store.Clock())
    with globus_server.running(chroot(config)) as state:
        yield state


@pytest.fixture
def over_globus(config, service, tmp_path) -> Config:
    """The same mirror, as a collection."""
    settings = service.settings(tmp_path)
    words = ", ".join(f"{key}: {json.dumps(getattr(settings, key))}" for key in KEYS)
    made = mirror_world.world(tmp_path / "machines", [f"mirror.store={{{words}}}"])
    assert made.mirror()[1].state == config.mirror()[1].state
    return made


def run(config: Config, over_globus: Config, *wanted: str) -> Exit:
    names_file = chroot(config).parent / "wanted.txt"
    names_file.write_text("".join(f"{name}\n" for name in wanted))
    SAID.clear()
    return mirror_world.run(over_globus, "mirror_delete", lambda job: test_delete.delete.delete(job, names_file, True))[0]


def test_a_deletion_on_a_collection_is_as_in_a_folder_and_can_be_undone(config, over_globus):
    before = snapshot(chroot(config))
    assert run(config, over_globus, BAD, LATER) == Exit.ACCOUNTED
    assert aside(config, BAD).read_bytes() == CONTENTS[BAD] and not on_mirror(config, BAD).exists()
    assert blocklist(config).read_text() == f"{BAD}\n{LATER}\n"
    assert listed(config, "202008").keys() == {ALIKE, OTHER} and test_delete.is_master_right(config)
    assert test_delete.undo(over_globus) == Exit.ACCOUNTED
    assert snapshot(chroot(config)) == before


@pytest.mark.parametrize("status", ["FAILED", "INACTIVE"])
def test_a_copy_whose_task_does_not_succeed_is_followed_by_no_removal(status, config, service, over_globus, monkeypatch):
    """M50: only a task that took too long was noticed; after one that had FAILED the originals were deleted."""
    take = service.take

    def failing(document):
        if any(item.get("destination_path", "").endswith(".part") for item in document["DATA"]):
            service.fates.insert(0, Fate(status, moves=0))
        return take(document)

    service.fail("rename", "502 ExternalError.RenameFailed", path=f"/{BAD}")
    with monkeypatch.context() as patch:
        patch.setattr(service, "take", failing)
        assert run(config, over_globus, BAD, OTHER) == Exit.LEFT_OVER
    assert on_mirror(config, BAD).read_bytes() == CONTENTS[BAD] and listed(config, "202008").keys() == {BAD, ALIKE}
    assert aside(config, OTHER).read_bytes() == CONTENTS[OTHER]
    assert run(config, over_globus, BAD) == Exit.ACCOUNTED, "the rename is still refused, and the copy succeeds"
    assert aside(config, BAD).read_bytes() == CONTENTS[BAD] and not on_mirror(config, BAD).exists()
    assert listed(config, "202008").keys() == {ALIKE} and test_delete.is_master_right(config)


def test_a_refused_folder_is_not_an_empty_one(config, service, over_globus):
    """M52, M5: 403 was taken for absence."""
    before = snapshot(chroot(config))
    service.fail("ls", "403 EndpointPermissionDenied", path="/raw/2020/08")
    service.fail("ls", "403 EndpointPermissionDenied", path="/raw/2020/08/")
    assert run(config, over_globus, BAD) == Exit.LEFT_OVER
    assert snapshot(chroot(config)) == before


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_deletion_that_is_killed_at_a_call_completes(moment, config, service, over_globus, tmp_path):
    """M50, M51, M52: every KILL_EVERYth call of the service; with GLOBUS_KILL_EVERY=1 every one."""
    kept = tmp_path / "before"
    shutil.copytree(chroot(config), kept)
    assert run(config, over_globus, BAD) == Exit.ACCOUNTED
    undisturbed = snapshot(chroot(config))
    number = 1 if moment == "before" else 1 + KILL_EVERY // 2
    was_killed = True
    while was_killed:
        put_back(config, kept)
        was_killed = globus_server.killed(lambda: run(config, over_globus, BAD), service, number, moment)
        assert was_killed or number > 60
        for name, content in CONTENTS.items():
            places = [path for path in (on_mirror(config, name), aside(config, name)) if path.exists()]
            assert places and all(path.read_bytes() == content for path in places), (name, number)
        assert run(config, over_globus, BAD) == Exit.ACCOUNTED, (number, SAID)
        assert snapshot(chroot(config)) == undisturbed, number
        assert json.loads((config.mirror()[1].state / f"deletions/{STAMP}.json").read_text())["stage"] == "deleted"
        number += KILL_EVERY


def put_back(config: Config, kept: Path) -> None:
    shutil.rmtree(chroot(config))
    shutil.copytree(kept, chroot(config))
    shutil.rmtree(config.mirror()[1].state / "deletions", ignore_errors=True)
