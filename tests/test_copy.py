"""Verified copies: read once, read back, never in the place of something else, and nothing half left behind."""

from __future__ import annotations

import bz2
import errno
import functools
import hashlib
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import world

from dataflow.lib import checksum, copy, place
from dataflow.lib.copy import Conflict
from dataflow.lib.errors import BadFile, TryLater

CONTENT = os.urandom(3 << 20) + b"end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def here(tmp_path):
    return world.make(tmp_path / "world").here("campus")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source/20261101.1400.00.sas.0.rawacf.h5"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    os.utime(path, ns=(10**18, 10**18 + 1))
    return path


@pytest.fixture
def finals(tmp_path, source):
    return [tmp_path / folder / source.name for folder in ("array", "deep/backup")]


@contextmanager
def full_disk(size: int):
    """No file of this process may grow beyond ``size`` while the block runs."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def bytes_read() -> int:
    """What this process has asked read(2) for so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def everything(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def during_the_read(monkeypatch, act):
    """Do something as soon as the first piece of the source was read."""
    chunks = checksum.chunks

    def interrupted(descriptor):
        for number, piece in enumerate(chunks(descriptor)):
            yield piece
            if number == 0:
                act()

    monkeypatch.setattr(copy.checksum, "chunks", interrupted)


def test_every_copy_is_whole_and_the_source_is_left(here, source, finals):
    copied = copy.copy_to(here, source, finals)
    assert copied == copy.Copied(SHA256, len(CONTENT), SHA256, len(CONTENT))
    for final in finals:
        assert final.read_bytes() == CONTENT
        status = final.stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_nlink) == (here.file_mode, 10**18 + 1, 1)
        assert everything(final.parent) == [source.name]
    assert source.read_bytes() == CONTENT


def test_the_source_is_read_once(here, source, finals):
    before = bytes_read()
    copy.copy_to(here, source, [])
    alone = bytes_read() - before
    assert len(CONTENT) <= alone < len(CONTENT) + 4096
    before = bytes_read()
    copy.copy_to(here, source, finals)
    with_two_read_back = bytes_read() - before
    assert 3 * len(CONTENT) <= with_two_read_back < 3 * len(CONTENT) + 4096


def test_compressed_on_the_way(here, source, finals):
    text = b"superdarn " * 200_000
    source.write_bytes(text)
    copied = copy.copy_to(here, source, finals, compress=True)
    assert copied.source_sha256 == hashlib.sha256(text).hexdigest()
    for final in finals:
        content = final.read_bytes()
        assert (copied.sha256, copied.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
        one_stream = bz2.BZ2Decompressor()
        assert one_stream.decompress(content) == text and one_stream.eof and one_stream.unused_data == b""


def test_the_same_content_is_left_alone(here, source, finals):
    copy.copy_to(here, source, finals)
    before = [final.stat() for final in finals]
    copy.copy_to(here, source, finals)
    assert [(s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for s in before] == [
        (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for s in (final.stat() for final in finals)
    ]


@pytest.mark.parametrize("taken", [0, 1])
def test_other_content_is_a_conflict_and_no_name_is_given(here, source, finals, tmp_path, taken):
    finals[taken].parent.mkdir(parents=True)
    finals[taken].write_bytes(b"other")
    with pytest.raises(Conflict) as caught:
        copy.copy_to(here, source, finals)
    assert caught.value.hashes == {"existing": str(finals[taken]), "existing_sha256": OTHER, "sha256": SHA256}
    assert finals[taken].read_bytes() == b"other"
    left = everything(tmp_path / "array") + everything(tmp_path / "deep")
    assert len(left) == 1, "a copy of the newcomer in the free place would travel on as if nothing had happened"
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize("what", ["folder", "dangling link", "link to the source"])
def test_a_name_taken_by_something_else_is_left_alone(here, source, finals, what):
    final = finals[0]
    final.parent.mkdir()
    if what == "folder":
        final.mkdir()
    else:
        final.symlink_to(source if what == "link to the source" else "nowhere")
    with pytest.raises(BadFile, match="is no regular file"):
        copy.copy_to(here, source, [final])
    assert everything(source.parent) == [source.name]


@pytest.mark.parametrize("change", ["grows", "is rewritten", "is replaced", "is removed"])
def test_a_source_that_changes_while_it_is_read_is_not_copied(here, source, finals, tmp_path, monkeypatch, change):
    def act():
        if change == "grows":
            with source.open("ab") as stream:
                stream.write(b"one record more")
        elif change == "is rewritten":
            with source.open("r+b") as stream:
                stream.write(b"x")
        elif change == "is replaced":
            new = source.with_name("new")
            new.write_bytes(CONTENT)
            os.utime(new, ns=(10**18, 10**18 + 1))
            new.rename(source)
        else:
            source.unlink()

    during_the_read(monkeypatch, act)
    with pytest.raises(TryLater, match="removed while it was read" if change == "is removed" else "changed while it was read"):
        copy.copy_to(here, source, finals)
    assert everything(tmp_path / "array") + everything(tmp_path / "deep") == []


def test_a_source_that_is_not_what_it_was_is_not_copied(here, source, finals, tmp_path):
    with pytest.raises(TryLater, match=f"hash {SHA256}, was {OTHER}"):
        copy.copy_to(here, source, finals, expected_sha256=OTHER)
    assert everything(tmp_path / "array") + everything(tmp_path / "deep") == []


def test_a_disk_that_alters_bytes_is_found_out(here, source, finals, tmp_path, monkeypatch):
    write_all = copy._write_all

    def altering(writers, out):
        size = write_all(writers, out)
        os.pwrite(writers[-1].fileno(), b"\0" if CONTENT[5:6] != b"\0" else b"\1", 5)
        return size

    monkeypatch.setattr(copy, "_write_all", altering)
    with pytest.raises(TryLater, match=f"the copy for {finals[1]} reads back as .*it was removed"):
        copy.copy_to(here, source, finals)
    assert everything(tmp_path / "array") + everything(tmp_path / "deep") == []
    monkeypatch.setattr(copy, "_write_all", write_all)
    copy.copy_to(here, source, finals)
    assert [final.read_bytes() == CONTENT for final in finals] == [True, True]


def test_the_page_cache_is_not_asked_for_what_lies_on_the_disk(here, source, finals, monkeypatch):
    calls = []
    fsync, fadvise = os.fsync, os.posix_fadvise
    path_of = "/proc/self/fd/{}".format

    def sync(descriptor):
        calls.append(("sync", os.readlink(path_of(descriptor))))
        fsync(descriptor)

    def advise(descriptor, offset, length, advice):
        if advice == os.POSIX_FADV_DONTNEED:
            calls.append(("drop", os.readlink(path_of(descriptor))))
        fadvise(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    copy.copy_to(here, source, finals[:1])
    part = str(place.part_of(finals[0]))
    assert ("drop", part) in calls and ("drop", str(source)) in calls
    assert calls.index(("sync", part)) < calls.index(("drop", part))


def test_a_full_disk_leaves_nothing_behind(here, source, finals, tmp_path):
    with full_disk(1 << 20), pytest.raises(OSError) as caught:
        copy.copy_to(here, source, finals)
    assert caught.value.errno == errno.EFBIG
    assert everything(tmp_path / "array") + everything(tmp_path / "deep") == []
    assert source.read_bytes() == CONTENT


def test_a_part_that_a_kill_left_is_replaced(here, source, finals):
    for final in finals:
        final.parent.mkdir(parents=True)
        place.part_of(final).write_bytes(b"half")
    copy.copy_to(here, source, finals)
    assert [everything(final.parent) for final in finals] == [[source.name]] * 2


def test_a_part_that_is_a_link_of_the_final_file_is_never_cut_short(here, source, finals):
    """A kill between link and unlink leaves two names of one file."""
    copy.copy_to(here, source, finals)
    for final in finals:
        os.link(final, place.part_of(final))
    source.write_bytes(b"other")
    with pytest.raises(Conflict):
        copy.copy_to(here, source, finals)
    for final in finals:
        assert final.read_bytes() == CONTENT
        assert everything(final.parent) == [source.name]


def test_a_read_limit_holds_the_read_back(here, source, finals, monkeypatch):
    slept = []
    monkeypatch.setattr(checksum, "Pace", functools.partial(checksum.Pace, sleep=slept.append))
    copy.copy_to(here, source, finals, read_limit_mib_s=1)
    assert sum(slept) > 2.0, "3 MiB at 1 MiB/s"


def test_moving_on_one_disk_renames(here, source, finals):
    inode = source.stat().st_ino
    copy.move(here, source, finals[0], SHA256)
    assert finals[0].stat().st_ino == inode
    assert finals[0].stat().st_nlink == 1 and not source.exists()


def test_moving_to_another_disk_copies_verifies_and_releases(here, source, other_disk):
    final = other_disk / "deep" / source.name
    copy.move(here, source, final, SHA256)
    assert final.read_bytes() == CONTENT and not source.exists()
    assert everything(other_disk) == [f"deep/{source.name}"]


def test_moving_to_another_disk_what_is_not_what_it_should_be(here, source, other_disk):
    with pytest.raises(TryLater):
        copy.move(here, source, other_disk / source.name, OTHER)
    assert source.read_bytes() == CONTENT and everything(other_disk) == []


def test_moving_to_a_full_disk_keeps_the_source(here, source, other_disk):
    with full_disk(1 << 20), pytest.raises(OSError):
        copy.move(here, source, other_disk / source.name, SHA256)
    assert source.read_bytes() == CONTENT and everything(other_disk) == []


@pytest.mark.parametrize("disk", ["same", "other"])
def test_moving_onto_the_same_content_releases_the_source(here, source, finals, other_disk, disk):
    final = finals[0] if disk == "same" else other_disk / source.name
    final.parent.mkdir(exist_ok=True)
    final.write_bytes(CONTENT)
    inode = final.stat().st_ino
    copy.move(here, source, final, SHA256)
    assert not source.exists() and final.stat().st_ino == inode


@pytest.mark.parametrize("disk", ["same", "other"])
def test_moving_onto_other_content_is_a_conflict(here, source, finals, other_disk, disk):
    final = finals[0] if disk == "same" else other_disk / source.name
    final.parent.mkdir(exist_ok=True)
    final.write_bytes(b"other")
    with pytest.raises(Conflict):
        copy.move(here, source, final, SHA256)
    assert final.read_bytes() == b"other" and source.read_bytes() == CONTENT
    assert everything(final.parent) == [source.name]


def test_a_move_that_was_killed_between_link_and_unlink_is_finished(here, source, finals):
    finals[0].parent.mkdir()
    os.link(source, finals[0])
    copy.move(here, source, finals[0], SHA256)
    assert finals[0].read_bytes() == CONTENT and not source.exists()


def test_a_name_that_a_killed_run_gave_is_made_durable_before_the_copy_counts(here, source, finals, monkeypatch):
    """Killed between link and the sync of the folder: the next run finds the name, and a loss of power may still take it."""
    for final in finals:
        final.parent.mkdir(parents=True)
        final.write_bytes(CONTENT)
    synced: list[Path] = []
    monkeypatch.setattr(checksum, "sync_folder", synced.append)
    copy.copy_to(here, source, finals)
    assert {final.parent for final in finals} <= set(synced)


def test_a_name_that_was_taken_a_moment_ago_and_is_free_now_lets_go_of_nothing(here, source, finals, monkeypatch):
    def taken(*_, **__):
        raise FileExistsError(errno.EEXIST, "File exists")

    finals[0].parent.mkdir()
    monkeypatch.setattr(os, "link", taken)
    with pytest.raises(TryLater, match="stays"):
        copy.move(here, source, finals[0], SHA256)
    assert source.read_bytes() == CONTENT


def test_somebody_elses_file_is_moved_by_copying(here, source, finals, monkeypatch):
    """The kernel refuses to link what belongs to somebody else (fs.protected_hardlinks), but not to remove it."""
    link = os.link

    def refusing(path, *more, **how):
        if Path(path) == source:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        link(path, *more, **how)

    monkeypatch.setattr(os, "link", refusing)
    copy.move(here, source, finals[0], SHA256)
    assert finals[0].read_bytes() == CONTENT and not source.exists()


def test_a_second_name_leaves_the_source(here, source, finals, other_disk):
    copy.add_name(here, source, finals[0], SHA256)
    copy.add_name(here, source, other_disk / source.name, SHA256)
    copy.add_name(here, source, other_disk / source.name, SHA256)
    assert source.samefile(finals[0])
    assert (other_disk / source.name).read_bytes() == source.read_bytes() == CONTENT


@pytest.mark.parametrize("mode", [0o444, 0o644])
@pytest.mark.parametrize("link", [False, True])
def test_a_copy_is_made_ready(here, source, finals, mode, link):
    source.chmod(mode)
    ready = finals[0]
    copy.make_ready(here, source, ready, SHA256, link)
    copy.make_ready(here, source, ready, SHA256, link)
    assert ready.read_bytes() == CONTENT
    assert everything(ready.parent) == [ready.name]
    linked = link and mode == 0o444
    assert ready.samefile(source) == linked, "only what nobody may write is linked"
    assert ready.stat().st_mode & 0o7777 == (mode if linked else here.file_mode)


def test_a_copy_that_reads_back_wrong_is_not_made_ready(here, source, finals):
    with pytest.raises(TryLater, match="it was removed"):
        copy.make_ready(here, source, finals[0], OTHER, False)
    assert everything(finals[0].parent) == []
