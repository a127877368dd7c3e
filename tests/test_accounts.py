"""Whose files are: owner, group and mode of what is put in its place, and what happens where something is not permitted."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import step_cases
import world
from loopback import Machines, Room
from step_cases import at, put, site_picture

from dataflow import cli
from dataflow.lib import place, report  # noqa: F401  (report is loaded before the user changes)
from dataflow.lib.config import MARKER
from dataflow.lib.errors import Exit

GROUP = grp.getgrgid(65534 if os.getuid() == 0 else os.getgroups()[-1])
"""A group that is not the first of who runs the tests, if there is another."""
NOBODY = 65534
NAME = "20241101.0000.00.sas.0.rawacf.h5"


@pytest.fixture
def machines(room: Room, tmp_path: Path) -> Iterator[Machines]:
    settings = [f"hosts.campus.group={GROUP.gr_name}", "hosts.campus.file_mode='0640'", "hosts.campus.dir_mode='2750'"]
    made = Machines(room, tmp_path / "machines", [*settings, "plots.archive_after_h=0"])
    yield made
    made.close()


def test_everything_on_campus_has_the_configured_owner_group_and_modes(machines: Machines) -> None:
    put(machines.here("site-linux").folder("rawacf_array") / NAME, step_cases.made(0)[0], at(0))
    site_picture(machines, 0)
    sent = [("rsync_to_campus", "site-linux"), ("send_flag", "site-linux")]
    for step, host in [*sent, *((step, "campus") for step in machines.config.flow.hosts["campus"].steps)]:
        done = machines.run(step, host)
        assert done.code == Exit.ACCOUNTED and done.outcomes(), done.said
    here = machines.here("campus")
    found = [path for root in here.roots.values() for path in root.rglob("*") if path.name != MARKER]
    assert len(found) > 20 and {NAME, "20241101.0000.00.sas.a.rawacf.bz2"} < {path.name for path in found}
    for path in found:
        status = path.lstat()
        is_arriving = here.folder("incoming") in path.parents
        if is_arriving and path.name.startswith("."):  # rsync's own, behind a folder that is closed
            continue
        assert (status.st_uid, status.st_gid) == (os.getuid(), GROUP.gr_gid), path
        assert stat.S_IMODE(status.st_mode) == (0o2750 if path.is_dir() else 0o640), path


@contextlib.contextmanager
def somebody(root: Path) -> Iterator[str]:
    """Work as a user to whom what lies below a folder belongs, and who may not do what root may; yields the user's name.

    Who is not root already is such a user.
    """
    if os.getuid() != 0:
        yield pwd.getpwuid(os.getuid()).pw_name
        return
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield pwd.getpwuid(NOBODY).pw_name
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def made() -> Iterator[world.World]:
    """A world in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="dataflow-accounts-") as folder:
        Path(folder).chmod(0o755)
        yield world.make(Path(folder) / "machines", ["files.unchanged_s=0", "files.complete_after_s=0"])


@contextlib.contextmanager
def closed(path: Path) -> Iterator[str]:
    """A file or folder that belongs to another, or where there is no other, that nobody may use; yields the owner's name."""
    status = path.stat()
    uid = os.geteuid()
    os.seteuid(os.getuid())
    if os.getuid() == 0:
        os.chown(path, 0, 0)
    path.chmod(0o700 if path.is_dir() and os.getuid() == 0 else 0o600 if os.getuid() == 0 else 0)
    os.seteuid(uid)
    try:
        yield pwd.getpwuid(os.getuid()).pw_name
    finally:
        os.seteuid(os.getuid())
        os.chown(path, status.st_uid, status.st_gid)
        path.chmod(status.st_mode)
        os.seteuid(uid)


@pytest.mark.parametrize("what", ["the file", "its folder", "where it goes"])
def test_what_is_not_permitted_is_tried_later_and_says_whose_it_is(made: world.World, what: str) -> None:
    here = made.here("borealis")
    put(here.folder("data") / "20241101" / "20241101.0000.00.sas.1.rawacf.h5", b"rawacf", at(0))
    assert made.run("borealis", "rsync_to_nas")[0] == Exit.ACCOUNTED, "and all is loaded, wherever Python lies"
    file = put(here.folder("data") / "20241101" / NAME, b"rawacf", at(0))
    subject = {"the file": file, "its folder": file.parent, "where it goes": here.folder("backup")}[what]
    with somebody(made.root) as me:
        with closed(subject) as owner:
            code, records = made.run("borealis", "rsync_to_nas")
            said = "\n".join(made.said)
            assert code == Exit.LEFT_OVER, said
            told = [record["reason"] for record in records if record["event"] == "file"] or [said]
            assert "Permission denied: " in told[0] and f"{owner}:" in told[0] and f"and this is {me}" in told[0], told
            assert str(subject) in told[0], told
            assert not [record for record in records if record.get("outcome") in ("done", "quarantined")]
        assert file.read_bytes() == b"rawacf"
        code, records = made.run("borealis", "rsync_to_nas")
        assert code == Exit.ACCOUNTED, made.said
        assert (here.folder("backup") / NAME).read_bytes() == b"rawacf" and not file.exists()


def test_a_user_without_a_name_is_refused_with_the_command_to_type(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["status", "--host", "campus", "--radar", "sas", "--config", str(world.SHIPPED)]
    if os.fork() == 0:
        with contextlib.suppress(PermissionError):
            os.setuid(54321)
        sys.argv = ["dataflow", *words]
        os._exit(cli.main(words))
    _, status = os.wait()
    me = "54321" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    assert os.waitstatus_to_exitcode(status) == Exit.CONFIG
    said = capfd.readouterr().err
    assert f"belongs to the user dataflow, you are {me}. Type: sudo -u dataflow dataflow status" in said
