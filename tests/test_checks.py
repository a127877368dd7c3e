"""The checks before publishing: what is bad is told by the words of the list of failed files; what was not checked is not bad."""

from __future__ import annotations

import bz2
import shutil

import pytest
from mirror_world import dmap_bytes, sha1

from dataflow.lib import dmap, names
from dataflow.lib.errors import BadFile, TryLater
from dataflow.mirror import checks

NAME = "20200804.2200.01.sas.a.rawacf.bz2"


def file_of(folder, content):
    path = folder / NAME
    path.write_bytes(content)
    return path


def fault(path, name=NAME):
    parsed = names.parse(name)
    assert parsed is not None
    with pytest.raises(BadFile) as raised:
        checks.check(path, parsed)
    return raised.value.kind


def test_a_good_file_passes_and_its_sha1_is_told(tmp_path):
    path = file_of(tmp_path, dmap_bytes(NAME, records=3))
    parsed = names.parse(NAME)
    assert checks.check(path, parsed) == sha1(path) == checks.check(path, parsed, sha1(path))


def truncated_record(content):
    return bz2.compress(bz2.decompress(content)[:-20])


def damaged_record(content):
    plain = bytearray(bz2.decompress(content))
    plain[40:60] = b"\xff" * 20
    return bz2.compress(bytes(plain))


def damaged_stream(content):
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 0xFF for b in content[middle : middle + 50]) + content[middle + 50 :]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda content: b"", checks.EMPTY),
        (lambda content: bz2.compress(b""), checks.EMPTY),
        (lambda content: bz2.compress(b"")[:13], checks.BAD_BZIP2),
        (lambda content: content[: len(content) // 2], checks.BAD_BZIP2),
        (damaged_stream, checks.BAD_BZIP2),
        (lambda content: bz2.decompress(content), checks.BAD_BZIP2),
        (lambda content: content + content, checks.BAD_BZIP2),
        (lambda content: content + b"more", checks.BAD_BZIP2),
        (damaged_record, checks.BAD_DMAP),
        (truncated_record, checks.BAD_DMAP),
        (lambda content: bz2.compress(b"<html>404</html>" * 100), checks.BAD_DMAP),
    ],
)
def test_what_is_damaged_is_told_by_the_words_of_the_list(tmp_path, make, kind):
    """M11, M12: whatever is not read whole and strictly has not passed; empty and damaged are not mixed up."""
    assert fault(file_of(tmp_path, make(dmap_bytes(NAME)))) == kind


@pytest.mark.parametrize(
    ("called", "kind"),
    [
        ("20200804.2200.01.pgr.a.rawacf.bz2", "wrong station"),
        ("20200804.0000.01.sas.a.rawacf.bz2", "wrong time"),
        ("20200804.2200.01.sas.b.rawacf.bz2", "wrong channel"),
    ],
)
def test_records_that_contradict_the_name_are_found(tmp_path, called, kind):
    """M12: radar, time and channel are held against the name."""
    path = tmp_path / called
    path.write_bytes(dmap_bytes(NAME))
    assert fault(path, called) == kind


def test_a_file_that_is_not_the_one_that_was_meant_is_not_bad(tmp_path):
    path = file_of(tmp_path, dmap_bytes(NAME))
    with pytest.raises(TryLater, match="reads differently"):
        checks.check(path, names.parse(NAME), "0" * 40)


def test_without_any_program_to_decompress_a_file_is_still_checked(tmp_path, monkeypatch):
    """M11: no program has to be there, and none that is missing lets a file pass."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert shutil.which("bunzip2") is None
    assert fault(file_of(tmp_path, dmap_bytes(NAME)[:-9])) == checks.BAD_BZIP2


@pytest.mark.parametrize("error", [ImportError("no pydarnio"), MemoryError(), OSError(5, "Input/output error")])
def test_a_broken_environment_is_no_verdict(tmp_path, monkeypatch, error):
    """M11: what could not be checked is neither good nor bad."""

    def broken(*_):
        raise error

    monkeypatch.setattr(dmap, "check_name", broken)
    with pytest.raises(TryLater, match="could not be checked"):
        checks.check(file_of(tmp_path, dmap_bytes(NAME)), names.parse(NAME))


def test_a_file_that_is_gone_is_no_verdict(tmp_path):
    with pytest.raises(TryLater):
        checks.check(tmp_path / NAME, names.parse(NAME))
