"""Comparing two mirrors: what a difference is, what is told of it and when, and that the report keeps what was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mirror_world
import pytest
import sftp_server
from hypothesis import given
from hypothesis import strategies as st
from mirror_world import NOW

from dataflow.lib import context
from dataflow.lib.config import Config
from dataflow.lib.errors import Exit, HostDown
from dataflow.mirror import agreement, compare, hash_lists, layout
from dataflow.mirror.differences import Difference, Kind, action, differences_of_month, read_both
from dataflow.mirror.hash_lists import HashList
from dataflow.mirror.stores.directory import DirectoryStore

MONTH = "202611"
A, B, C = "a" * 40, "b" * 40, "c" * 40


def name(number: int, radar: str = "sas", month: str = MONTH) -> str:
    return f"{month}01.{number // 60:02}{number % 60:02}.00.{radar}.a.rawacf.bz2"


def kinds(ours, theirs, blocked=(), failed=(), now=NOW, recent_days=3.0, excluded=()) -> dict[str, Kind]:
    ours, theirs = (HashList(each) if isinstance(each, dict) else each for each in (ours, theirs))
    found = differences_of_month(ours, theirs, blocked, failed, now, recent_days, excluded)
    return {each.name: each.kind for each in found.differences}


# -- what a difference is


def test_each_name_has_one_kind():
    ours = {name(0): A, name(1): A, name(2): A}
    theirs = {name(0): A, name(1): B, name(3): B}
    assert differences_of_month(HashList(ours), HashList(theirs), (), (), NOW, 3.0).differences == (
        Difference(name(1), Kind.DIFFERENT, A, B),
        Difference(name(2), Kind.ONLY_HERE, A, None),
        Difference(name(3), Kind.ONLY_THERE, None, B),
    )


def test_what_failed_here_is_neither_different_nor_fetched():
    """M20: a file that had been refused came back as 'different' and 'failed' at once, and was downloaded in every run."""
    assert kinds({name(0): A}, {name(0): B, name(1): B}, failed={(B, name(0)), (B, name(1))}) == {
        name(0): Kind.FAILED, name(1): Kind.FAILED,
    }  # fmt: skip


def test_what_failed_is_exactly_a_hash_and_a_name_of_the_partner():
    """M21, M22: failed files were matched by the adjacency of sorted lines, not by hash and name."""
    failed = {(A, name(0)), (C, name(0)), (B, name(1))}
    assert kinds({}, {name(0): B}, failed=failed) == {name(0): Kind.ONLY_THERE}
    assert kinds({name(0): A}, {name(0): B}, failed=failed) == {name(0): Kind.DIFFERENT}, "it is ours that failed"


def test_a_name_that_is_listed_twice_at_the_partner_is_nothing_but_unclear():
    """M23: it was 'different' and 'missing at the partner' at once."""
    theirs = hash_lists.parse_month(f"{A}  {name(0)}\n{B}  {name(0)}\n{A}  {name(1)}\n{A}  {name(2)}\r\n".encode(), MONTH)
    found = differences_of_month(HashList(dict.fromkeys([name(0), name(1), name(2)], A)), theirs, (), (), NOW, 3.0)
    assert (found.differences, found.unclear) == ((), (name(0), name(2)))


def test_a_refused_line_of_ours_makes_its_name_unclear_too():
    ours = hash_lists.parse_month(f"{A}  {name(0)}\r\n".encode(), MONTH)
    assert kinds(ours, {name(0): A, name(1): A}) == {name(1): Kind.ONLY_THERE}


def test_a_blocked_name_is_blocked_on_whichever_side_it_is():
    """M23: a line of the blocklist that ended with CR blocked nothing."""
    blocked = hash_lists.parse_blocklist("\r\n".join(map(name, range(3))).encode())
    assert set(kinds({name(0): A, name(1): A}, {name(1): B, name(2): B}, blocked=blocked).values()) == {Kind.BLOCKED}


def test_what_is_young_is_on_its_way_in_either_direction_but_never_when_it_differs():
    now = datetime(2026, 11, 4, tzinfo=UTC)
    assert kinds({name(0): A}, {name(1): A}, now=now, recent_days=3.0) == {name(0): Kind.ONLY_HERE, name(1): Kind.TOO_NEW}
    assert kinds({name(1): A}, {}, now=now, recent_days=3.0) == {name(1): Kind.TOO_NEW}
    assert kinds({name(1): A}, {name(1): B}, now=now, recent_days=3.0) == {name(1): Kind.DIFFERENT}


def test_files_of_excluded_radars_are_counted_and_no_difference():
    found = differences_of_month(
        HashList({name(0, "hje"): A}), HashList({name(1, "hje"): A, name(2): A}), (), (), NOW, 3.0, ["hje"]
    )
    assert found.excluded == 2 and [each.name for each in found.differences] == [name(2)]


lists = st.dictionaries(st.integers(0, 12).map(name), st.sampled_from([A, B, C]))


@given(
    lists,
    lists,
    st.sets(st.integers(0, 12).map(name)),
    st.sets(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 12).map(name))),
)
def test_set_algebra_on_hashes_and_names(ours, theirs, blocked, failed):
    """M20-M23: against the same said in sets of (hash, name)."""
    here, there = ({(sha1, each) for each, sha1 in both.items()} for both in (ours, theirs))
    whole = HashList(ours), HashList(theirs)
    agreed, *both = read_both(MONTH, *(hash_lists.render_month(each.hashes) for each in whole))
    assert agreed == len(here & there)
    found = differences_of_month(*both, blocked, failed, NOW, 3.0)
    assert found == differences_of_month(*whole, blocked, failed, NOW, 3.0), "what agrees makes no difference"
    by_kind = {kind: {each.name for each in found.differences if each.kind is kind} for kind in Kind}
    assert by_kind[Kind.BLOCKED] == {each for _, each in here ^ there} & blocked
    assert by_kind[Kind.FAILED] == {each for _, each in (there - here) & failed} - blocked
    rest = {each for _, each in here ^ there} - blocked - by_kind[Kind.FAILED]
    assert by_kind[Kind.DIFFERENT] == rest & ours.keys() & theirs.keys()
    assert by_kind[Kind.ONLY_HERE] == rest - theirs.keys() and by_kind[Kind.ONLY_THERE] == rest - ours.keys()
    assert len({each.name for each in found.differences}) == len(found.differences)


def test_every_kind_says_what_is_to_be_done():
    actions = {action(kind, "bas", MONTH) for kind in Kind}
    assert len(actions) == len(Kind) and f"dataflow mirror sync bas --month {MONTH}" in actions


# -- a run


@pytest.fixture
def loaded(tmp_path) -> Config:
    made = mirror_world.world(tmp_path)
    lay(made, {name(0): b"0", name(1): b"1"}, {name(0): b"0", name(1): b"1"})
    return made


def lay(made: Config, ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    mirror_world.on_mirror(mirror_world.mirror_folder(made), ours)
    mirror_world.on_mirror(mirror_world.neighbour(made, "bas"), theirs)


def run(made: Config, months=None, code: Exit = Exit.ACCOUNTED, **fields):
    found, job = mirror_world.run(made, "mirror_compare", lambda job: compare.compare(job, "bas", months), **fields)
    assert found == code, mirror_world.SAID[-3:]
    return job


def reports(made: Config) -> Path:
    _, here = made.mirror()
    return here.folder("reports") / "bas"


def report(made: Config) -> dict:
    return json.loads((reports(made) / "report.json").read_text())


def alerts(made: Config) -> list[str]:
    return [record["message"] for record in mirror_world.records(made, "mirror_compare", "alert")]


def their_list(made: Config, month: str = MONTH) -> Path:
    return mirror_world.neighbour(made, "bas") / layout.month_list("", month)


def our_list(made: Config, month: str = MONTH) -> Path:
    return mirror_world.mirror_folder(made) / layout.month_list("", month)


def test_mirrors_that_agree_have_a_report_that_says_so_and_tell_nothing(loaded):
    run(loaded)
    assert report(loaded)["months"][MONTH] | {"run": "", "time": ""} == {
        "time": "", "run": "", "agreed": 2, "counts": {}, "excluded": 0, "unclear": 0, "refused_here": 0, "refused_there": 0,
        "no_list": "", "problem": "",
    }  # fmt: skip
    assert "no difference" in (reports(loaded) / "report.txt").read_text()
    assert not list(reports(loaded).glob("months/*")) and not alerts(loaded)
    (record,) = mirror_world.records(loaded, "mirror_compare", "file")
    assert (record["file"], record["outcome"], record["agreed"]) == (f"{MONTH}.hashes", "done", 2)


def test_every_differing_name_stands_in_every_form_of_the_report(loaded):
    lay(loaded, {name(n): b"x" for n in range(3)}, {name(n): b"y" for n in range(2, 5)})
    run(loaded)
    month = json.loads((reports(loaded) / "months" / f"{MONTH}.json").read_text())
    assert {each["name"]: each["kind"] for each in month["differences"]} == {
        name(0): "only here", name(1): "only here", name(2): "different", name(3): "only there", name(4): "only there",
    }  # fmt: skip
    for text in ((reports(loaded) / each).read_text() for each in (f"months/{MONTH}.txt", "index.html")):
        assert all(name(n) in text for n in range(5))
        assert f"dataflow mirror sync bas --month {MONTH}" in text
    assert report(loaded)["total"]["counts"] == {"different": 1, "only here": 2, "only there": 2}


def test_only_what_is_new_is_told_and_the_report_has_the_whole(loaded):
    """M34: the same mails came with every run; files missing at the partner were never told at all."""
    lay(loaded, {name(0): b"0", name(1): b"1"}, {name(0): b"0"})
    run(loaded)
    (first,) = alerts(loaded)
    assert name(1) in first and "only here: 1 more" in first and "tell bas" in first
    run(loaded)
    assert len(alerts(loaded)) == 1 and report(loaded)["new"]["only here"] == []
    assert "1 only here" in (reports(loaded) / "report.txt").read_text()
    lay(loaded, {name(0): b"0", name(1): b"1", name(2): b"2"}, {name(0): b"0"})
    run(loaded)
    assert len(alerts(loaded)) == 2 and name(2) in alerts(loaded)[1] and name(1) not in alerts(loaded)[1]
    assert report(loaded)["new"]["only here"] == [name(2)]
    lay(loaded, {name(0): b"0", name(1): b"1", name(2): b"2"}, {name(0): b"0", name(1): b"1", name(2): b"2"})
    run(loaded)
    assert len(alerts(loaded)) == 2 and not (reports(loaded) / "months" / f"{MONTH}.txt").exists()
    lay(loaded, {name(0): b"0", name(1): b"1"}, {name(0): b"0"})
    run(loaded)
    assert len(alerts(loaded)) == 3, "it had ended, so it is news again"


def test_pending_files_of_excluded_radars_and_young_ones_are_told_to_nobody(loaded):
    """M34: a branch that 'never happens' ran whenever only files of excluded radars were pending."""
    young = f"{NOW - timedelta(days=1):%Y%m%d}.0000.00.sas.a.rawacf.bz2"
    lay(loaded, {name(0): b"0"}, {name(0): b"0", name(1, "hje"): b"1", young: b"2"})
    run(loaded)
    assert not alerts(loaded)
    assert report(loaded)["total"]["excluded"] == 1 and report(loaded)["total"]["counts"] == {"too new": 1}
    run(loaded, clock=lambda: NOW + timedelta(days=3))
    assert young in alerts(loaded)[0]


def test_a_run_over_midnight_is_one_report_of_one_run(loaded):
    """M32: months that were compared after midnight were left out of the report, which went by the day of the start."""
    months = {f"2026{month:02}": {name(0, month=f"2026{month:02}"): b"x"} for month in range(1, 11)}
    lay(loaded, {key: value for each in months.values() for key, value in each.items()}, {name(0): b"0"})
    clock = iter(datetime(2026, 11, 20, 23, 59, tzinfo=UTC) + timedelta(seconds=20 * n) for n in range(1000))
    run(loaded, clock=lambda: next(clock))
    whole = report(loaded)
    assert set(whole["months"]) == {*months, MONTH}
    assert {entry["run"] for entry in whole["months"].values()} == {whole["run"]}
    assert {entry["time"] for entry in whole["months"].values()} == {whole["time"]} and whole["time"].startswith("2026-11-20")
    assert mirror_world.records(loaded, "mirror_compare", "end")[0]["time"].startswith("2026-11-21")


def test_hostile_lines_are_refused_one_by_one_and_shown(loaded):
    """M23, M26: every line of both lists is validated, and a refused one is seen by a person."""
    hostile = [
        b"<script>alert(1)</script>",
        f"{A}  ../{name(5)}".encode(),
        f"{A}  {name(6)}\r".encode(),
        b"\0" * 9,
        b"x" * 10_000,
    ]
    their_list(loaded).write_bytes(their_list(loaded).read_bytes() + b"\n".join(hostile) + f"\n{A}  {name(7)}\n".encode())
    run(loaded)
    entry = report(loaded)["months"][MONTH]
    assert (entry["agreed"], entry["refused_there"], entry["unclear"], entry["counts"]) == (2, 5, 2, {"only there": 1})
    shown = json.loads((reports(loaded) / "months" / f"{MONTH}.json").read_text())["refused_there"]
    assert [each["line"] for each in shown] == [3, 4, 5, 6, 7]
    page = (reports(loaded) / "index.html").read_text()
    assert "a path, not a bare name" in page and "<script" not in page and "&lt;script&gt;" in page
    assert any("refused lines: 5 more" in message for message in alerts(loaded))
    run(loaded)
    assert len(alerts(loaded)) == 2


def test_a_list_of_the_partner_that_cannot_be_read_is_a_problem_of_its_month_alone(loaded):
    old = "202009"
    lay(loaded, {name(0): b"0", name(0, month=old): b"0"}, {name(0): b"0", name(0, month=old): b"1"})
    run(loaded)
    before = report(loaded)["months"][old]
    their_list(loaded, old).unlink()
    their_list(loaded, old).mkdir()
    lay_again = their_list(loaded)
    lay_again.write_text(f"{A}  {name(0)}\n")
    run(loaded, code=Exit.LEFT_OVER, clock=lambda: NOW + timedelta(days=1))
    months = report(loaded)["months"]
    assert months[old]["problem"] and months[old] | {"problem": ""} == before, "what was found last stays"
    assert months[MONTH]["counts"] == {"different": 1} and months[MONTH]["time"] > before["time"]
    assert mirror_world.outcomes(loaded, "mirror_compare") == {f"{old}.hashes": "kept", f"{MONTH}.hashes": "done"}
    assert name(0, month=old) in (reports(loaded) / "index.html").read_text()
    assert "1 month could not be compared" in mirror_world.records(loaded, "mirror_compare", "end")[-1]["reason"]
    assert sum(name(0, month=old) in message for message in alerts(loaded)) == 1, "what is not compared has not ended"
    assert sum("the comparison with bas is not complete" in message for message in alerts(loaded)) == 1


@pytest.mark.parametrize("extra", [0, compare.MONTHS_AT_ONCE], ids=["here", "in readers"])
def test_a_list_that_is_none_is_a_problem_of_its_month_alone(loaded, extra):
    months = [f"{2020 + n // 12}{n % 12 + 1:02}" for n in range(extra + 1)]
    lay(loaded, {name(0, month=month): b"x" for month in months}, {name(0, month=month): b"x" for month in months})
    their_list(loaded, months[0]).write_bytes(b"a\n" * (hash_lists.REFUSED_MAX + 1))
    run(loaded, code=Exit.LEFT_OVER)
    found = report(loaded)["months"]
    assert "none of a list of hashes" in found[months[0]]["problem"]
    assert all(found[month]["agreed"] and not found[month]["problem"] for month in [*months[1:], MONTH])


def test_our_own_blocklist_that_cannot_be_read_is_never_an_empty_one(loaded):
    folder = mirror_world.mirror_folder(loaded) / layout.blocklist("")
    (folder / "names.txt").mkdir()
    for _ in range(2):
        run(loaded, code=Exit.LEFT_OVER)
    assert not (reports(loaded) / "report.json").exists()
    (message,) = alerts(loaded)
    assert "names.txt" in message


def test_our_blocklist_and_our_failed_list_are_used(loaded):
    top = mirror_world.mirror_folder(loaded)
    lay(loaded, {name(0): b"0"}, {name(0): b"0", name(1): b"1", name(2): b"2"})
    (top / layout.blocklist("") / "bad.txt").write_bytes(name(1).encode() + b"\r\n")
    sha1 = hash_lists.parse_month(their_list(loaded).read_bytes(), MONTH).hashes[name(2)]
    (top / layout.failed_list("")).write_text(f"{sha1}  {name(2)} | Failed BZ2 integrity test\n")
    run(loaded)
    assert report(loaded)["months"][MONTH]["counts"] == {"blocked": 1, "failed": 1}


@pytest.mark.parametrize(("side", "kind"), [("there", "only here"), ("here", "only there")])
def test_a_side_without_a_list_is_told_as_one_and_not_name_by_name(loaded, side, kind):
    {"there": their_list, "here": our_list}[side](loaded).unlink()
    run(loaded)
    entry = report(loaded)["months"][MONTH]
    assert (entry["no_list"], entry["counts"]) == (side, {kind: 2})
    (message,) = alerts(loaded)
    assert f"{MONTH}: no list {side}" in message and name(0) not in message


def test_a_list_that_was_there_and_is_gone_from_both_is_a_problem(loaded):
    run(loaded)
    our_list(loaded).unlink()
    their_list(loaded).unlink()
    run(loaded, code=Exit.LEFT_OVER)
    assert "neither mirror has one" in report(loaded)["months"][MONTH]["problem"]


def test_months_without_a_list_anywhere_are_passed_over(loaded):
    run(loaded, ["202601", MONTH])
    assert set(report(loaded)["months"]) == {MONTH}
    assert mirror_world.outcomes(loaded, "mirror_compare") == {"202601.hashes": "skipped", f"{MONTH}.hashes": "done"}


def test_a_run_of_one_month_leaves_the_others_in_the_report_and_tells_nothing_again(loaded):
    old = "202009"
    lay(loaded, {name(0): b"0", name(0, month=old): b"0"}, {name(0): b"0", name(0, month=old): b"1"})
    run(loaded)
    told = alerts(loaded)
    run(loaded, [MONTH], clock=lambda: NOW + timedelta(days=1))
    assert set(report(loaded)["months"]) == {old, MONTH} and alerts(loaded) == told
    assert name(0, month=old) in (reports(loaded) / "index.html").read_text()
    run(loaded)
    assert alerts(loaded) == told


def test_many_files_of_a_kind_are_told_as_one_and_listed_in_the_files_of_their_month(loaded):
    lay(loaded, {name(n): b"x" for n in range(250)}, {name(0): b"x"})
    run(loaded)
    (message,) = alerts(loaded)
    assert f"{MONTH}: more than {agreement.SHOWN_MAX} files" in message
    page = (reports(loaded) / "index.html").read_text()
    assert page.count(".rawacf.bz2") == agreement.SHOWN_MAX and f'149 more: <a href="months/{MONTH}.txt"' in page
    assert (reports(loaded) / "months" / f"{MONTH}.txt").read_text().count(".rawacf.bz2") == 249
    lay(loaded, {name(n): b"x" for n in range(260)}, {name(0): b"x"})
    run(loaded)
    assert len(alerts(loaded)) == 1


def test_a_partner_that_is_lost_half_way_ends_with_75_and_what_was_compared_is_in_the_report(loaded, monkeypatch):
    months = [f"{2024 + n // 12}{n % 12 + 1:02}" for n in range(compare.MONTHS_AT_ONCE)]
    lay(loaded, {name(0, month=month): b"x" for month in [*months, MONTH]}, {name(0): b"0"})
    whole = DirectoryStore.fetch

    def fetch(store, wanted):
        if layout.month_list("", MONTH) in wanted:  # a path of the partner; ours lie below a tree
            return {path: HostDown("the line is dead") for path in wanted}
        return whole(store, wanted)

    monkeypatch.setattr(DirectoryStore, "fetch", fetch)
    run(loaded, code=Exit.UNREACHABLE)
    assert "the line is dead" in alerts(loaded)[-1]
    assert set(report(loaded)["months"]) == set(months)


def test_a_run_that_is_asked_to_stop_reports_what_it_has(loaded):
    months = [f"{2022 + n // 12}{n % 12 + 1:02}" for n in range(2 * compare.MONTHS_AT_ONCE)]
    lay(loaded, {name(0, month=month): b"x" for month in months}, {})
    requests = context.Requests()

    def clock():
        requests.stop = bool(mirror_world.records(loaded, "mirror_compare", "file"))
        return NOW

    run(loaded, code=Exit.LEFT_OVER, requests=requests, clock=clock)
    assert set(report(loaded)["months"]) == set(months), "what is in hand is finished, the rest waits"


def test_an_unknown_partner_is_a_matter_of_the_configuration(loaded):
    code, _ = mirror_world.run(loaded, "mirror_compare", lambda job: compare.compare(job, "bsa", None))
    assert code == Exit.CONFIG and "there are: bas, nssc" in mirror_world.SAID[-1]


def test_a_report_that_cannot_be_read_is_written_anew(loaded):
    run(loaded)
    for content in (
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"v": 1, "months": {"202611": {"odd": 1}}}',
        b'{"v": 2, "months": {}}',
        b'{"v": 1, "months": []}',
    ):
        (reports(loaded) / "report.json").write_bytes(content)
        run(loaded)
        assert report(loaded)["months"][MONTH]["agreed"] == 2


def test_a_partner_over_sftp_is_compared_on_one_connection(tmp_path):
    made = mirror_world.world(tmp_path)
    months = [f"2026{month:02}" for month in range(1, 12)]
    with sftp_server.running(mirror_world.neighbour(made, "bas")) as server:
        given = {key: value for key, value in asdict(server.settings()).items() if value is not None}
        made = mirror_world.world(tmp_path, [f"mirror.partners.bas.store={json.dumps(given)}"])
        lay(made, {name(0, month=month): b"0" for month in months}, {name(0, month=month): b"1" for month in months})
        run(made)
        assert report(made)["total"]["counts"] == {"different": len(months)} and server.connections() == 1
