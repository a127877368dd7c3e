"""What should be there and is not: from lists, our own records, and what is there."""

from __future__ import annotations

from datetime import date

import mirror_world
import pytest
from faulty_store import fails, install
from mirror_world import dmap_bytes, mirror_folder, neighbour, on_mirror, world

from dataflow.lib.errors import Exit, HostDown
from dataflow.lib.summary import SummaryLog
from dataflow.mirror import evidence, gaps, layout, stores
from dataflow.mirror.gaps import OURS, Expected, Gaps, Presence
from dataflow.mirror.stores import Refused

A, B, C = (f"20261001.{hour:02}00.01.sas.a.rawacf.bz2" for hour in (0, 2, 4))
ONE, TWO = "1" * 40, "2" * 40
OCTOBER = (date(2026, 10, 1), date(2026, 10, 31))


def between(listed, recorded=None, present=(), blocked=(), failed=(), unclear=()) -> Gaps:
    return gaps.between(gaps.expected(listed, recorded or {}), Presence(present, blocked, failed, unclear))


def test_what_a_partner_lists_and_is_not_there_is_a_gap():
    found = between({OURS: {A: ONE}, "bas": {A: ONE, B: ONE}}, present=[A])
    assert found == Gaps({B: Expected({ONE: ("bas",)})})


def test_what_our_records_know_and_nobody_lists_is_a_gap_with_its_hash():
    assert between({OURS: {}, "bas": {}}, {A: "c" * 64, B: None}) == Gaps({A: Expected({}, "c" * 64), B: Expected()})


def test_what_waits_in_a_holding_directory_is_no_gap():
    assert between({"bas": {A: ONE}}, {B: "c" * 64}, present=[A, B]) == Gaps()


def test_two_mirrors_with_different_hashes_are_both_believed():
    found = between({"bas": {A: ONE}, "nssc": {A: TWO}, "hub": {A: ONE}}, {A: "c" * 64})
    assert found.missing == {A: Expected({ONE: ("bas", "hub"), TWO: ("nssc",)}, "c" * 64)}


def test_what_our_own_mirror_lists_and_lost_may_only_have_the_hash_that_it_lists():
    found = between({OURS: {A: ONE}, "bas": {A: TWO}, "nssc": {A: ONE}})
    assert found.missing == {A: Expected({ONE: (OURS, "nssc")})}


def test_what_is_blocked_is_no_gap():
    found = between({"bas": {A: ONE}}, blocked=[A])
    assert found == Gaps(refused={A: "it is blocked"})


def test_exact_pairs_have_failed_and_not_names():
    """M20, M21, M22: a pair of hash and name failed; other content of that name, and another name of that content, did not."""
    failed = {(ONE, A), (ONE, C)}
    assert between({"bas": {A: ONE}}, failed=failed).missing == {}
    assert "failed" in between({"bas": {A: ONE}}, failed=failed).refused[A]
    assert between({"bas": {A: TWO}}, failed=failed).missing == {A: Expected({TWO: ("bas",)})}
    assert between({"bas": {B: ONE}}, failed=failed).missing == {B: Expected({ONE: ("bas",)})}
    assert between({"bas": {A: ONE}, "nssc": {A: TWO}}, failed=failed).missing == {A: Expected({TWO: ("nssc",)})}


def test_what_failed_elsewhere_is_still_missing_where_our_records_have_a_hash():
    assert between({"bas": {A: ONE}}, {A: "c" * 64}, failed={(ONE, A)}).missing == {A: Expected({}, "c" * 64)}


def test_a_name_in_an_unreadable_line_of_our_list_is_neither_there_nor_missing():
    assert between({"bas": {A: ONE}}, unclear=[A]) == Gaps(unclear={A})


# -- what the lists, the records and the folders say


@pytest.fixture
def loaded(tmp_path):
    """A mirror without files."""
    made = world(tmp_path)
    on_mirror(mirror_folder(made), {})
    return made


def look(loaded, months=("202610",)):
    """What our side says of some months, and each partner."""
    found = {}

    def work(job):
        found["ours"], found["presence"] = evidence.ours(job, months)
        found["theirs"] = evidence.theirs(job, months)

    found["exit"], found["job"] = mirror_world.run(loaded, "backfill", work)
    return found


def test_present_is_what_our_mirror_lists_and_holds_or_what_waits(loaded):
    top = mirror_folder(loaded)
    on_mirror(top, {A: dmap_bytes(A), B: dmap_bytes(B)})
    (top / layout.data_folder("", "202610") / B).unlink()
    (top / layout.data_folder("", "202610") / C).write_bytes(b"not listed")
    waits = "20261001.0600.01.sas.a.rawacf.bz2"
    mirror_world.dmap_file(mirror_world.holding(loaded, "bas"), waits)
    found = look(loaded)
    assert found["exit"] == Exit.ACCOUNTED
    assert found["presence"].present == {A, waits}
    assert found["ours"].keys() == {A, B}, "a file that was listed and lost is known by its hash"


def test_blocklist_and_failed_list_are_those_of_our_mirror(loaded):
    """M23: a line of the blocklist that ends with CR counts."""
    top = mirror_folder(loaded)
    (top / layout.blocklist("") / "bad.txt").write_text(f"{A}\r\n{B}\n")
    (top / layout.failed_list("")).write_text(f"{ONE}  {C} | Failed BZ2 integrity test\n{ONE}  {C} | another reason\n")
    presence = look(loaded)["presence"]
    assert (presence.blocked, set(presence.failed)) == ({A, B}, {(ONE, C)})


def test_a_list_of_ours_that_cannot_be_read_is_not_taken_for_empty(loaded, monkeypatch):
    """M5: refused is not absent; of a mirror whose list is refused nothing is concluded."""
    on_mirror(mirror_folder(loaded), {A: dmap_bytes(A)})
    install(monkeypatch, fails("fetch", Refused("403"), ending="202610.hashes"))
    found = look(loaded)
    assert found["exit"] == Exit.LEFT_OVER and "presence" not in found
    assert any("403" in problem for problem in found["job"].problems)


def test_a_list_of_ours_that_the_master_list_names_and_that_is_gone_is_not_taken_for_empty(loaded):
    """M5: as long as a mirror that was mounted late may look like an empty one."""
    top = mirror_folder(loaded)
    on_mirror(top, {A: dmap_bytes(A)})
    (top / layout.month_list("", "202610")).unlink()
    found = look(loaded)
    assert found["exit"] == Exit.LEFT_OVER and "presence" not in found
    assert "dataflow mirror verify" in found["job"].problems[0]
    (top / layout.master_list("")).unlink()
    assert look(loaded)["ours"] == {}


def test_a_partner_that_cannot_be_asked_is_told_and_left_out(loaded, monkeypatch):
    on_mirror(neighbour(loaded, "nssc"), {A: dmap_bytes(A)})
    real = stores.open_store

    def open_store(settings, here, work):
        if settings.root.endswith("bas"):
            raise HostDown("no route")
        return real(settings, here, work)

    monkeypatch.setattr(stores, "open_store", open_store)
    found = look(loaded)
    assert (found["theirs"]["bas"], found["theirs"]["nssc"].keys()) == ({}, {A})
    assert found["exit"] == Exit.LEFT_OVER
    (problem,) = found["job"].problems
    assert "British Antarctic Survey" in problem and "no route" in problem


def test_odd_lines_of_a_partner_make_no_gap(loaded):
    """M26: what is no name of that month is never a name to ask for."""
    folder = neighbour(loaded, "bas") / layout.data_folder("", "202610")
    folder.mkdir(parents=True)
    odd = [f"{ONE}  ../../{A}", f"{ONE}  {A}\r", f"{ONE}  20261101.0000.01.sas.a.rawacf.bz2", "x" * 5000, f"{ONE}  $(reboot)"]
    (folder / "202610.hashes").write_text("\n".join([*odd, f"{ONE}  {B}", ""]))
    assert look(loaded)["theirs"]["bas"] == {B: ONE}


def staged(loaded, name: str, radar: str = "sas", action: str = "staged", **fields) -> None:
    """A record of the step that hands files out."""
    here = loaded.here("campus", radar)
    log = SummaryLog(here, "distribute_borealis_data", "fed", lambda: mirror_world.NOW)
    log.write("action", file=name, source="there", action=action, **fields)
    log.close()


def test_our_own_records_say_that_a_block_was_handed_out(loaded):
    staged(loaded, A, target="mirror", sha256="c" * 64)
    staged(loaded, A, target="vt", sha256="c" * 64)
    assert evidence.recorded(loaded, "sas", *OCTOBER) == {A: "c" * 64}
    assert evidence.recorded(loaded, "sas", date(2026, 10, 2), OCTOBER[1]) == {}
    assert evidence.recorded(loaded, "pgr", *OCTOBER) == {}
    assert evidence.recorded(loaded, "mcm", *OCTOBER) == {}, "its data do not come through this flow"


def test_special_experiments_and_names_of_no_grammar_are_not_expected(loaded):
    staged(loaded, A, action="special experiment", sha256="c" * 64)
    staged(loaded, B, action="archived", target="staged", sha256="c" * 64)
    staged(loaded, "../../etc/passwd", sha256="c" * 64)
    staged(loaded, "20261001.0400.01.sas.0.rawacf.h5", sha256="c" * 64)
    staged(loaded, "20261001.0400.01.pgr.a.rawacf.bz2", sha256="c" * 64)
    assert evidence.recorded(loaded, "sas", *OCTOBER) == {}
