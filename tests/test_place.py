"""Files appear whole under names that were free, and a root is used only when its marker says so."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import world

from dataflow.lib import checksum, place
from dataflow.lib.config import MARKER
from dataflow.lib.errors import TryLater


@pytest.fixture
def here(tmp_path):
    return world.make(tmp_path).here("site-linux")


def test_a_root_with_its_marker_is_good(here):
    place.check_root(here, "store")
    place.check_root(here, "local")


def test_a_root_without_marker_is_an_unmounted_disk(here):
    (here.roots["store"] / MARKER).unlink()
    with pytest.raises(TryLater, match=r"Is the disk mounted\?.*--create-markers"):
        place.check_root(here, "store")


def test_a_root_with_the_marker_of_another_is_another_disk(here):
    (here.roots["store"] / MARKER).write_text("local\n")
    with pytest.raises(TryLater, match="another disk is mounted"):
        place.check_root(here, "store")


def test_a_root_whose_marker_is_a_folder_is_no_root(here):
    (here.roots["store"] / MARKER).unlink()
    (here.roots["store"] / MARKER).mkdir()
    with pytest.raises(TryLater, match="cannot be read"):
        place.check_root(here, "store")


def test_a_scan_sees_neither_hidden_names_nor_folders(tmp_path):
    for name in ("b", "a", ".hidden", ".a.part", os.fsdecode(b"\xff"), "new\nline"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-a-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in place.scan(tmp_path)] == sorted(
        ["a", "b", "dangling", "new\nline", "to-a-folder", os.fsdecode(b"\xff")]
    )
    assert place.scan(tmp_path / "missing") == []


def test_only_a_regular_file_is_regular(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert place.is_regular(tmp_path / "file")
    for name in ("link", "dangling", "fifo", "missing", "."):
        assert not place.is_regular(tmp_path / name)


def test_a_part_is_hidden_beside_its_file(tmp_path):
    assert place.part_of(tmp_path / "x.h5") == tmp_path / ".x.h5.part"


def test_folders_get_the_mode_of_the_host(here, tmp_path):
    umask = os.umask(0o077)
    try:
        place.make_folder(here, here.folder("work") / "a/b")
    finally:
        os.umask(umask)
    for folder in (here.folder("work"), here.folder("work") / "a", here.folder("work") / "a/b"):
        assert folder.stat().st_mode & 0o7777 == here.dir_mode == 0o2775
    place.make_folder(here, here.folder("work") / "a/b")


def test_a_file_stands_where_a_folder_should_be(here):
    here.folder("work").touch()
    with pytest.raises(OSError):
        place.make_folder(here, here.folder("work") / "a")
    with pytest.raises(OSError):
        place.make_folder(here, here.folder("work"))
    assert not list(here.folder("work").parent.glob(".*.part"))


def test_a_folder_that_a_killed_run_made_is_made_durable_once_a_process(here, monkeypatch):
    folder = here.folder("work") / "a/b"
    folder.mkdir(parents=True)
    synced = []
    monkeypatch.setattr(checksum, "sync_folder", synced.append)
    place.make_folder(here, folder)
    assert synced[-3:] == [here.folder("work").parent, folder.parent.parent, folder.parent]
    synced.clear()
    place.make_folder(here, folder)
    assert synced == []
    folder.rmdir()
    place.make_folder(here, folder)
    assert synced == [folder.parent], "it was made again"


def test_a_folder_is_there_only_with_its_mode(here, monkeypatch):
    folder = here.folder("work") / "a"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, "own", mock.Mock(side_effect=KeyboardInterrupt))
        place.make_folder(here, folder)
    assert not folder.exists()
    place.make_folder(here, folder)
    assert folder.stat().st_mode & 0o7777 == here.dir_mode


def test_a_folder_half_made_by_a_killed_run_is_taken_over(here):
    folder = here.folder("work") / "a"
    folder.parent.mkdir()
    place.part_of(folder).mkdir(0o700)
    place.make_folder(here, folder, 0o2750)
    assert folder.stat().st_mode & 0o7777 == 0o2750
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("stand", [lambda part: part.touch(), lambda part: part.symlink_to("/")], ids=["file", "link"])
def test_what_is_in_the_way_of_a_new_folder_is_named_and_stays(here, stand):
    folder = here.folder("work")
    stand(place.part_of(folder))
    with pytest.raises(OSError, match=r"in the way of a new folder.*\.work\.part"):
        place.make_folder(here, folder)
    assert os.path.lexists(place.part_of(folder)) and not folder.exists()


def test_the_mode_that_is_asked_for_is_that_of_the_folder_alone(here):
    folder = here.folder("work") / "a"
    place.make_folder(here, folder, 0o2770)
    assert [each.stat().st_mode & 0o7777 for each in (folder.parent, folder)] == [here.dir_mode, 0o2770]


def test_a_group_that_nobody_knows_is_tried_again_later(tmp_path):
    here = world.make(tmp_path, ["hosts.site-linux.group=no-such-group"]).here("site-linux")
    with pytest.raises(TryLater, match=r"no-such-group of site-linux is not known.*getent group no-such-group"):
        place.make_folder(here, here.folder("work"))
    assert not list(here.folder("work").parent.glob("*work*"))


def test_somebody_else_makes_the_folder_first(here, monkeypatch):
    folder = here.folder("work") / "a"
    folder.parent.mkdir()

    def own(here, part, mode):
        folder.mkdir()
        (folder / "theirs").touch()

    monkeypatch.setattr(place, "own", own)
    place.make_folder(here, folder)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_a_group_that_is_not_ours_to_give_leaves_no_part(here, monkeypatch):
    monkeypatch.setattr(place, "own", mock.Mock(side_effect=PermissionError))
    with pytest.raises(PermissionError):
        place.make_folder(here, here.folder("work"))
    assert not [path for path in here.folder("work").parent.iterdir() if path.name.startswith(".work.")]


def test_publishing_overwrites_nothing(tmp_path):
    (tmp_path / ".x.part").write_text("new")
    (tmp_path / "x").write_text("old")
    with pytest.raises(FileExistsError):
        place.publish(tmp_path / ".x.part", tmp_path / "x")
    assert ((tmp_path / "x").read_text(), (tmp_path / ".x.part").read_text()) == ("old", "new")
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        place.publish(tmp_path / ".x.part", tmp_path / "x")
    (tmp_path / "x").unlink()
    place.publish(tmp_path / ".x.part", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_name_is_durable_before_the_part_goes(tmp_path, monkeypatch):
    (tmp_path / ".x.part").write_text("new")
    steps = []
    fsync, unlink = os.fsync, os.unlink
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("sync") or fsync(descriptor))
    monkeypatch.setattr(os, "unlink", lambda *given, **more: steps.append("unlink") or unlink(*given, **more))
    place.publish(tmp_path / ".x.part", tmp_path / "x")
    assert steps == ["sync", "unlink"]


def test_a_small_file_is_replaced_whole(tmp_path):
    file = tmp_path / "state"
    place.write_whole(file, b"long content")
    reader = file.open("rb")
    place.write_whole(file, b"new")
    with reader:
        assert reader.read() == b"long content", "who has the old one open keeps it whole"
    assert file.read_bytes() == b"new"
    place.part_of(file).write_bytes(b"a longer part, left behind by a kill")
    place.write_whole(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_gone_already_is_released(tmp_path):
    (tmp_path / "x").touch()
    place.release(tmp_path / "x")
    place.release(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
