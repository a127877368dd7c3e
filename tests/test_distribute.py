"""Distribution on campus: who gets a file, that nobody gets it twice, and what happens when a partner or a file is at fault."""

from __future__ import annotations

import bz2
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from loopback import Machines
from step_cases import at, distributed, entry_of, made, parsed, put, rot, to_distribute
from test_step_contract import small_disk

from dataflow.demo import simulate_radar
from dataflow.demo.simulate_radar import SliceSpec
from dataflow.lib import conversion, names
from dataflow.lib.checksum import sha256
from dataflow.lib.names import Kind

TARGETS = ("vt", "bas", "mirror")


def run(machines: Machines, **more):
    return machines.run("distribute_borealis_data", "campus", **more)


def staged(machines: Machines, target: str) -> list[Path]:
    folder = machines.here("campus").path(machines.config.flow.distribute.targets[target].folder)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def staging(machines: Machines, target: str) -> Path:
    return machines.here("campus").path(machines.config.flow.distribute.targets[target].folder)


def arrived(machines: Machines, content: bytes, name: str) -> Path:
    """A DMAP file that a radar wrote itself: it has a manifest entry and nobody has read it yet."""
    path = put(machines.here("campus").folder("data") / name, content, at(0))
    machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    return path


def mixed(folder: Path, special_record: int | None) -> tuple[bytes, conversion.Conversion]:
    """A DMAP file of three records of CPID 151, of which one has another."""
    (rawacf,) = simulate_radar.write_block(
        folder, "sas", at(0), [SliceSpec(ranges=10, with_interferometer=False, with_antennas_iq=False)], records=3,
        cpid_of_record={n: 3800 if n == special_record else 151 for n in range(3)},
    )  # fmt: skip
    part = folder / ".part"
    done = conversion.convert(rawacf, part, parsed(rawacf), processes=1)
    return part.read_bytes(), done


@pytest.mark.parametrize("read", ["when converted", "by distribute itself"])
@pytest.mark.parametrize("special_record", [None, 0, 1, 2])
def test_one_record_of_another_cpid_makes_a_special_experiment(
    machines: Machines, tmp_path: Path, special_record: int | None, read: str
) -> None:
    content, done = mixed(tmp_path, special_record)
    name = names.dmap_of(names.radar_file(at(0), "sas", 0, Kind.RAWACF))
    path = arrived(machines, content, name.text)
    if read == "when converted":
        machines.admit("campus", "sas", [entry_of(path, records=done.records, cpids=done.cpids)], "campus")
    digest = sha256(path)
    assert run(machines).code == 0
    here = machines.here("campus")
    special, archived = (here.folder(key, name.time) / name.text for key in ("special", "archive_dmap"))
    assert sha256(archived) == digest
    if special_record is None:
        assert not special.exists()
        assert [[sha256(file) for file in staged(machines, target)] for target in TARGETS] == [[digest]] * 3
    else:
        assert sha256(special) == digest
        assert [staged(machines, target) for target in TARGETS] == [[]] * 3
    assert not list(here.folder("to_send").glob("*/*"))


def test_other_content_under_the_name_of_a_special_experiment_hands_out_nothing(machines: Machines, tmp_path: Path) -> None:
    content, _ = mixed(tmp_path, 1)
    path = arrived(machines, content, "20241101.0000.00.sas.a.rawacf.bz2")
    taken = put(machines.here("campus").folder("special", at(0)) / path.name, b"another experiment", at(0))
    done = run(machines)
    assert done.outcomes() == {path.name: "quarantined"}
    assert taken.read_bytes() == b"another experiment"
    folder = machines.here("campus").folder("quarantine")
    places = {taken, folder / path.name, folder / f"{path.name}.reason.json"}
    assert {machines.root / text for text in machines.files() if path.name in text} == places


def replaced_by_a_file(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.write_bytes(b"not a folder")
    return folder.unlink


def link_to_nothing(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.symlink_to("/nonexistent/partner")
    return folder.unlink


@pytest.mark.parametrize("fail", [replaced_by_a_file, link_to_nothing])
def test_failed_target_does_not_resend_to_the_others(machines: Machines, fail: Callable[[Path], Callable[[], None]]) -> None:
    path = to_distribute(machines, 0)
    folder = staging(machines, "bas")
    folder.mkdir(parents=True)
    mend = fail(folder)
    failed_target(machines, path, mend)


def test_full_target_does_not_resend_to_the_others(machines: Machines) -> None:
    path = to_distribute(machines, 0)
    ready = staging(machines, "bas").with_name(".bas.ready")
    ready.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(small_disk(ready)).fill()
        failed_target(machines, path, stack.close)


def failed_target(machines: Machines, path: Path, mend: Callable[[], None]) -> None:
    """`bas` cannot be served, the others take what they get; then `bas` is mended."""
    digest, archive = sha256(path), distributed(machines, path)[0]
    first = run(machines)
    assert first.code == 1 and first.outcomes() == {path.name: "kept"}
    assert "bas" in first.said and "vt" not in first.said
    assert {action["target"] for action in first.of("action")} == {"vt", "mirror", "archive"}
    assert sha256(archive) == digest
    for target in ("vt", "mirror"):
        (file,) = staged(machines, target)
        assert sha256(file) == digest
        file.unlink()

    again = run(machines)
    assert again.code == 1 and again.outcomes() == {path.name: "kept"}
    assert staged(machines, "vt") == staged(machines, "mirror") == []

    mend()
    mended = run(machines)
    assert mended.code == 0 and mended.outcomes() == {path.name: "done"}, mended.said
    assert [sha256(file) for file in staged(machines, "bas")] == [digest]
    assert staged(machines, "vt") == staged(machines, "mirror") == []
    assert sha256(archive) == digest


def test_partner_that_empties_staging_at_once_never_sees_a_file_twice(machines: Machines) -> None:
    """Killed before every change; between the kill and the next run the partners take what lies there.

    What lies there is whole, and nothing else does: a partner's `rsync -a staging/` takes hidden files too.
    """
    path = to_distribute(machines, 0)
    digest, saved = sha256(path), machines.save()
    for number in range(1, 1000):
        machines.restore(saved)
        machines.plan_kill("run", number)
        run(machines)
        was_killed = machines.was_killed()
        taken: Counter[str] = Counter()
        for _ in range(2):
            for target in TARGETS:
                for file in staged(machines, target):
                    assert (file.name, sha256(file)) == (path.name, digest), f"change {number}"
                    taken[target] += 1
                    file.unlink()
            last = run(machines)
        assert last.code == 0 and last.of("end")[0]["found"] == 0, last.said
        assert taken == dict.fromkeys(TARGETS, 1), f"change {number}"
        assert sha256(distributed(machines, path)[0]) == digest
        assert not [name for name in machines.files() if ".ready" in name or "to_send" in name]
        if not was_killed:
            assert number > 20
            return


def test_file_sent_again_after_partners_emptied_staging_is_a_duplicate(machines: Machines) -> None:
    path = to_distribute(machines, 0)
    content = path.read_bytes()
    assert run(machines).code == 0
    for target in TARGETS:
        for file in staged(machines, target):
            file.unlink()
    put(path, content, at(0))
    again = run(machines)
    assert again.code == 0
    assert [record["action"] for record in again.of("file")] == ["duplicate"]
    assert not path.exists()
    assert [staged(machines, target) for target in TARGETS] == [[]] * 3


def test_partner_who_does_not_empty_staging_is_told_of_once(machines: Machines) -> None:
    stale_at_once = ["distribute.stale_days=0"]
    to_distribute(machines, 0)
    assert not run(machines, overrides=stale_at_once).of("alert")
    first = run(machines, overrides=stale_at_once)
    assert sorted(alert["target"] for alert in first.of("alert")) == sorted(TARGETS)
    assert not run(machines, overrides=stale_at_once).of("alert")

    (file,) = staged(machines, "vt")
    file.rename(machines.private / "taken")
    assert not run(machines, overrides=stale_at_once).of("alert")
    (machines.private / "taken").rename(file)
    assert [alert["target"] for alert in run(machines, overrides=stale_at_once).of("alert")] == ["vt"]

    assert not run(machines).of("alert"), "with the shipped number of days nothing is stale"


def pair(machines: Machines, number: int) -> tuple[Path, Path]:
    """A damaged DMAP file and the HDF5 file that it was not made from any more."""
    rawacf, _, dmap, _ = made(number)
    name = names.radar_file(at(number), "sas", 0, Kind.RAWACF)
    hdf5 = put(machines.here("campus").folder("data") / name.text, rawacf, at(number))
    machines.admit("campus", "sas", [entry_of(hdf5)], "site-linux")
    return arrived(machines, dmap[:-20], names.dmap_of(name).text), hdf5


def test_hdf5_file_of_a_bad_dmap_file_goes_to_quarantine_along(machines: Machines) -> None:
    dmap, hdf5 = pair(machines, 0)
    good = to_distribute(machines, 2)
    done = run(machines)
    assert done.code == 1
    assert done.outcomes() == {dmap.name: "quarantined", hdf5.name: "quarantined", good.name: "done"}
    aside = machines.quarantined("campus")
    assert set(aside) == {dmap.name, hdf5.name}
    assert dmap.name in aside[hdf5.name]["message"]
    assert not [name for name in machines.files() if "borealis_site_data" in name and at(0).strftime("%H%M.%S.sas") in name]


def test_hdf5_file_goes_along_wherever_a_run_is_killed(machines: Machines) -> None:
    dmap, hdf5 = pair(machines, 0)
    saved = machines.save()
    for number in range(1, 1000):
        machines.restore(saved)
        machines.plan_kill("run", number)
        run(machines)
        was_killed = machines.was_killed()
        assert run(machines).code in (0, 1)
        assert set(machines.quarantined("campus")) == {dmap.name, hdf5.name}, f"change {number}"
        if not was_killed:
            return


def test_archive_of_another_block_is_not_held_up_by_an_old_quarantine(machines: Machines) -> None:
    """The bad DMAP file lies in quarantine for days; meanwhile a good one came. Its HDF5 file is not condemned."""
    dmap, hdf5 = pair(machines, 0)
    content = hdf5.read_bytes()
    run(machines)
    (machines.here("campus").folder("quarantine") / hdf5.name).unlink()
    to_distribute(machines, 0)
    put(hdf5, content, at(0))
    done = run(machines)
    assert done.outcomes() == {dmap.name: "done", hdf5.name: "done"}, done.said


@pytest.mark.parametrize("mode", [0o444, 0o664])
def test_hard_link_only_for_a_target_with_link_and_a_file_that_nobody_may_write(machines: Machines, mode: int) -> None:
    path = to_distribute(machines, 0)
    path.chmod(mode)
    assert run(machines, overrides=["distribute.targets.mirror.link=true"]).code == 0
    archived = distributed(machines, path)[0]
    linked = {target: staged(machines, target)[0].samefile(archived) for target in TARGETS}
    assert linked == {"vt": False, "bas": False, "mirror": mode == 0o444}
    assert archived.stat().st_mode & 0o777 == mode
    staged(machines, "vt")[0].write_bytes(b"a partner's mistake")
    assert sha256(archived) == sha256(staged(machines, "bas")[0])


def damaged_in_the_middle(content: bytes) -> bytes:
    plain = bytearray(bz2.decompress(content))
    plain[len(plain) // 2 : len(plain) // 2 + 64] = bytes(64)
    return bz2.compress(bytes(plain))


BAD_DMAP = {
    "cut off in the compressed bytes": lambda content: content[:-20],
    "cut off in a record": lambda content: bz2.compress(bz2.decompress(content)[:-20]),
    "two bzip2 streams": lambda content: bz2.compress(bz2.decompress(content)) * 2,
    "something behind": lambda content: content + b"behind",
    "not bzip2": lambda content: b"x" * len(content),
    "no records": lambda content: bz2.compress(b""),
    "nothing at all": lambda content: b"",
    "zeros in a record": damaged_in_the_middle,
}


@pytest.mark.parametrize("fault", BAD_DMAP)
def test_dmap_file_from_a_radar_is_read_strictly(machines: Machines, fault: str) -> None:
    path = arrived(machines, BAD_DMAP[fault](made(0)[2]), "20241101.0000.00.sas.a.rawacf.bz2")
    done = run(machines)
    assert done.outcomes() == {path.name: "quarantined"}, done.said
    assert set(machines.quarantined("campus")) == {path.name}
    assert [staged(machines, target) for target in TARGETS] == [[]] * 3


@pytest.mark.parametrize(("radar", "hours"), [("pgr", 0), ("sas", 5)], ids=["of another station", "of another time"])
def test_dmap_file_that_contradicts_its_name_goes_to_quarantine(
    machines: Machines, tmp_path: Path, radar: str, hours: int
) -> None:
    start = at(0) + timedelta(hours=hours)
    (rawacf,) = simulate_radar.write_block(tmp_path, radar, start, [SliceSpec(ranges=10, with_antennas_iq=False)], records=2)
    conversion.convert(rawacf, tmp_path / ".part", parsed(rawacf), processes=1)
    path = arrived(machines, (tmp_path / ".part").read_bytes(), "20241101.0000.00.sas.a.rawacf.bz2")
    done = run(machines)
    assert done.outcomes() == {path.name: "quarantined"}, done.said
    assert [staged(machines, target) for target in TARGETS] == [[]] * 3


@pytest.mark.parametrize("name", ["20241101.0000.00.sas.rawacf.bz2", "20241101.0000.00.sas.a.rawacf.bz2"])
def test_good_dmap_file_from_a_radar_is_distributed_and_archived(machines: Machines, name: str) -> None:
    path = arrived(machines, made(0)[2], name)
    digest = sha256(path)
    assert run(machines).code == 0
    assert {sha256(place) for place in distributed(machines, path)} == {digest}


@pytest.mark.parametrize("number", [0, 1], ids=["DMAP", "HDF5"])
def test_file_that_rots_before_it_is_distributed_goes_to_quarantine(machines: Machines, number: int) -> None:
    path = rot(machines, to_distribute(machines, number))
    done = run(machines)
    assert done.outcomes() == {path.name: "quarantined"} and "damaged on disk?" in done.said, done.said
    assert [staged(machines, target) for target in TARGETS] == [[]] * 3


def test_hdf5_file_that_was_just_read_for_its_conversion_is_not_read_again(machines: Machines) -> None:
    """So nobody would see now that it rots: its archive is the same file, and scrub reads that."""
    path = to_distribute(machines, 1)
    machines.admit("campus", "sas", [entry_of(path, records=2)], "campus")
    rot(machines, path)
    assert run(machines).outcomes() == {path.name: "done"}


def test_file_that_somebody_else_owns_is_distributed_like_any_other(machines: Machines) -> None:
    """Copied in by hand by another user: it may not be linked by everybody; whoever we are, it is carried on."""
    path = to_distribute(machines, 0)
    if os.geteuid() == 0:
        shutil.chown(path, 12345)
    digest = sha256(path)
    assert run(machines).code == 0
    assert {sha256(place) for place in distributed(machines, path)} == {digest}
