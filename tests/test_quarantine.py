"""Quarantine: a bad file lies there whole with the reason beside it, and a person can put it back or drop it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import world

from dataflow.lib import copy, place, quarantine
from dataflow.lib.config import MARKER
from dataflow.lib.errors import BadConfig, BadFile, TryLater
from dataflow.lib.machine import Root

NOW = datetime(2026, 11, 1, 14, tzinfo=UTC)
CONTENT = b"not what it should be"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "20261101.1400.00.sas.0.rawacf.h5"


@pytest.fixture
def here(tmp_path):
    return world.make(tmp_path / "world").here("campus")


@pytest.fixture
def source(here):
    path = here.roots["sddata"] / "holding" / NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def put(here, source, message="it ends too early"):
    return quarantine.put(here, source, "truncated", message, "convert_on_campus", NOW, {"records": 3})


def everything(here) -> list[str]:
    return sorted(path.name for path in here.folder("quarantine").iterdir())


def test_a_file_lies_there_with_its_reason(here, source):
    path = put(here, source)
    assert path == here.folder("quarantine") / NAME and path.read_bytes() == CONTENT and not source.exists()
    assert json.loads((here.folder("quarantine") / f"{NAME}.reason.json").read_text()) == {
        "file": NAME, "source": str(source), "kind": "truncated", "message": "it ends too early", "step": "convert_on_campus",
        "time": "2026-11-01T14:00:00.000000Z", "sha256": SHA256, "details": {"records": 3},
    }  # fmt: skip
    ((listed, reason),) = quarantine.reasons(here)
    assert listed == path and (reason.kind, reason.sha256) == ("truncated", SHA256)


def test_the_reason_is_durable_before_the_file_has_its_name(here, source, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(quarantine.copy, "add_name", kill)
    with pytest.raises(Killed):
        put(here, source)
    assert everything(here) == [f"{NAME}.reason.json"] and source.exists()
    monkeypatch.undo()
    put(here, source)
    assert everything(here) == [NAME, f"{NAME}.reason.json"] and not source.exists()


def test_admitted_it_lies_in_both_places_until_the_record_is_durable(here, source):
    first = quarantine.admit(here, source, "truncated", "short", "convert_on_campus", NOW, {})
    again = quarantine.admit(here, source, "truncated", "short", "convert_on_campus", NOW, {})
    assert first == again and source.read_bytes() == first.read_bytes() == CONTENT
    assert everything(here) == [NAME, f"{NAME}.reason.json"]


def test_across_file_systems_the_copy_is_verified(here, source, other_disk):
    settings = {**here.root_settings, "far": Root(str(other_disk))}
    here = replace(here, roots={**here.roots, "far": other_disk}, root_settings=settings)
    far = other_disk / NAME
    shutil.copy(source, far)
    path = put(here, far)
    assert path.read_bytes() == CONTENT and not far.exists()
    assert everything(here) == [NAME, f"{NAME}.reason.json"]
    assert quarantine.retry(here, path) == far and far.read_bytes() == CONTENT


def test_a_second_file_of_one_name_gets_its_hash_into_the_name(here, source):
    first = put(here, source)
    source.write_bytes(b"other content")
    digest = hashlib.sha256(b"other content").hexdigest()
    second = put(here, source)
    assert second.name == f"{NAME}.{digest[:12]}"
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b"other content")
    assert everything(here) == sorted([NAME, f"{NAME}.reason.json", second.name, f"{second.name}.reason.json"])
    source.write_bytes(b"other content")
    assert put(here, source) == second, "the same content once more is the same file"
    assert len(everything(here)) == 4
    assert quarantine.retry(here, second) == source and source.read_bytes() == b"other content", "under its own name again"


def test_nothing_in_quarantine_is_overwritten(here, source):
    first = put(here, source)
    source.write_bytes(b"other content")
    second = put(here, source)
    second.write_bytes(b"somebody edited this")
    source.write_bytes(b"other content")
    with pytest.raises(BadFile):
        put(here, source)
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b"somebody edited this")
    assert source.read_bytes() == b"other content"


def test_an_unmounted_quarantine_takes_nothing(here, source):
    (here.roots["sddata"] / MARKER).unlink()
    with pytest.raises(TryLater):
        put(here, source)
    assert source.exists() and not here.folder("quarantine").exists()


def test_a_folder_in_its_place_is_as_good_as_another_file(here, source):
    (here.folder("quarantine") / NAME).mkdir(parents=True)
    assert put(here, source).name == f"{NAME}.{SHA256[:12]}"
    (here.folder("quarantine") / f"{NAME}.reason.json").mkdir()
    (here.folder("quarantine") / NAME).rmdir()
    source.write_bytes(b"other content")
    with pytest.raises(OSError):
        put(here, source)
    assert source.exists()


def test_retry_puts_it_back_where_it_came_from(here, source):
    path = put(here, source)
    shutil.rmtree(source.parent)
    assert quarantine.retry(here, path) == source
    assert source.read_bytes() == CONTENT and everything(here) == []


def test_retry_overwrites_nothing(here, source):
    path = put(here, source)
    source.write_bytes(b"a newer one")
    with pytest.raises(copy.Conflict):
        quarantine.retry(here, path)
    assert path.read_bytes() == CONTENT and source.read_bytes() == b"a newer one"
    assert everything(here) == [NAME, f"{NAME}.reason.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"file": 1}', '{"unknown": "key"}'])
def test_a_file_without_a_readable_reason_is_listed_and_left_to_a_person(here, source, content):
    path = put(here, source)
    reason = path.with_name(f"{NAME}.reason.json")
    reason.unlink() if content is None else reason.write_text(content)
    ((listed, found),) = quarantine.reasons(here)
    assert listed == path and found.message == "no reason lies beside it"
    with pytest.raises(BadConfig, match="move it to its place by hand"):
        quarantine.retry(here, path)
    assert path.read_bytes() == CONTENT


def test_drop_deletes_the_file_and_its_reason(here, source):
    path = put(here, source)
    other = here.folder("quarantine") / "other"
    other.touch()
    quarantine.drop(path)
    assert everything(here) == ["other"]


def test_names_of_any_bytes_come_back_as_they_were(here, source):
    strange = source.with_name(os.fsdecode(b"new\nline \xff'\"$(x)"))
    source.rename(strange)
    path = put(here, strange, message=f"{strange.name} is strange")
    assert path.read_bytes() == CONTENT
    assert [reason.file for _, reason in quarantine.reasons(here)] == [strange.name]
    assert quarantine.retry(here, path) == strange and strange.read_bytes() == CONTENT


def test_parts_are_not_listed(here, source):
    place.part_of(put(here, source)).touch()
    assert [path.name for path, _ in quarantine.reasons(here)] == [NAME]
