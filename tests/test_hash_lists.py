"""The lists of a mirror: what is a line and what is not, that nothing of our own list is lost, and what sha1sum(1) says of it."""

from __future__ import annotations

import calendar
import hashlib
import subprocess
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataflow.lib import names
from dataflow.lib.errors import TryLater
from dataflow.lib.names import Kind
from dataflow.mirror import hash_lists, layout
from dataflow.mirror.hash_lists import FailedList, HashList, MasterList, Refusal

MONTH = "202008"
NAME = "20200804.2200.01.mcm.a.rawacf.bz2"
OTHER = "20200804.2200.01.mcm.rawacf.bz2"
SHA1 = "1f0c4a6be55d06fb4a2f03a2fdb2b1f2a36e4dc5"
SECOND = "5e2a8d0b3c51f3cc5a0d6a5b1f4be1b0c4d5e6f7"
GOOD = f"{SHA1}  {NAME}".encode()

sha1s = st.binary(min_size=20, max_size=20).map(bytes.hex)


def names_of(months):
    return st.builds(
        "{}{:02}.{:02}{:02}.{:02}.{}{}.rawacf.bz2".format,
        months, st.integers(1, 28), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59),
        st.text("abcmst", min_size=3, max_size=3), st.sampled_from(["", ".a", ".z"]),
    )  # fmt: skip


month_lists = st.dictionaries(names_of(st.just(MONTH)), sha1s, max_size=20)
near_misses = st.builds(
    lambda place, piece, size: GOOD[:place] + piece + GOOD[place + size :],
    st.integers(0, len(GOOD)), st.binary(max_size=2) | st.sampled_from([b" ", b"0", b"a"]), st.integers(0, 2),
)  # fmt: skip
anything = st.lists(
    st.one_of(
        st.binary(max_size=90),
        near_misses.filter(lambda line: b"\n" not in line),
        st.sampled_from([GOOD, GOOD + b"\r", f"{SECOND}  {NAME}".encode(), f"{SHA1}  {OTHER}".encode(), b"", GOOD + GOOD]),
    ),
    max_size=12,
).map(b"\n".join)


def reasons_of(data: bytes, month: str = MONTH) -> list[str]:
    return [refusal.reason for refusal in hash_lists.parse_month(data, month).refused]


# -- the list of a month


@given(month_lists)
def test_a_month_is_read_as_it_was_written(hashes):
    written = hash_lists.render_month(hashes)
    assert hash_lists.parse_month(written, MONTH) == HashList(hashes)
    assert written == b"".join(sorted(written.splitlines(keepends=True), key=lambda line: line[42:]))


@given(anything)
@example(b"\n".join([GOOD] * 3))
@example(b"x" + GOOD + b"\n" + GOOD)
def test_whatever_a_list_holds_it_is_used_or_refused_and_nothing_is_lost_when_it_is_written_again(data):
    found = hash_lists.parse_month(data, MONTH)
    lines = {line for line in data.split(b"\n") if line}
    used = {f"{sha1}  {name}".encode() for name, sha1 in found.hashes.items()}
    assert used | set(found.kept) == lines and not used & set(found.kept)
    assert {refusal.line for refusal in found.refused} <= set(range(1, data.count(b"\n") + 2))
    again = hash_lists.parse_month(hash_lists.render_month(found.hashes, found.kept), MONTH)
    assert again.hashes == found.hashes and sorted(again.kept) == sorted(found.kept) and again.unclear == found.unclear


@given(anything, month_lists)
def test_reading_at_once_and_line_by_line_come_to_the_same(data, hashes):
    for each in (data, data + b"\n", hash_lists.render_month(hashes), hash_lists.render_month(hashes) + data):
        at_once = hash_lists._read_at_once(each, MONTH)
        found, kept, refused = hash_lists._read_lines(each, hash_lists._patterns(MONTH)[1], lambda line: "")
        assert at_once in (None, found)
        assert at_once is None or not kept + refused


@pytest.mark.parametrize("month", ["202002", "202102", "202004", "202012", "200506"])
def test_a_name_is_of_a_month_exactly_when_the_grammar_says_so(month):
    days = calendar.monthrange(int(month[:4]), int(month[4:]))[1]
    candidates = [f"{month}{day:02}.{clock}.sas.a.rawacf.bz2" for day in range(35) for clock in ("0000.00", "2359.59")]
    candidates += [f"{month}01.{clock}.sas.rawacf.bz2" for clock in ("2400.00", "0060.00", "0000.60", "1959.01", "2000.00")]
    candidates += [
        f"{month}01.0000.00.{rest}" for rest in ("SAS.a.rawacf.bz2", "sas.ab.rawacf.bz2", "sas.0.rawacf.bz2", "sas.a.rawacf")
    ]
    listed = hash_lists.parse_month("".join(f"{SHA1}  {name}\n" for name in candidates).encode(), month).hashes
    parsed = {text for text in candidates if (name := names.parse(text)) and name.kind is Kind.DMAP}
    assert set(listed) == parsed and len(parsed) == 2 * days + 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD + b"\r", "ends with CR LF instead of LF"),
        (GOOD.replace(b"  ", b"  ../"), "a path, not a bare name"),
        (GOOD.replace(b"  ", b"  /etc/"), "a path, not a bare name"),
        (GOOD.replace(b"202008", b"202009"), "of 202009, in the list of 202008"),
        (GOOD.replace(b"mcm", b"m\0m"), "a NUL byte"),
        (b"\0" * 80, "a NUL byte"),
        (GOOD.replace(b"mcm", b"m\xffm"), "a byte that is not ASCII"),
        (GOOD.replace(b"mcm", "mäm".encode()), "a byte that is not ASCII"),
        (GOOD.replace(b"mcm", "m٣m".encode()), "a byte that is not ASCII"),
        (SHA1.upper().encode() + GOOD[40:], "does not begin with 40 lower-case hexadecimal digits"),
        (GOOD[1:], "does not begin with 40 lower-case hexadecimal digits"),
        (b"a" + GOOD, "does not begin with 40 lower-case hexadecimal digits"),
        (b" " + GOOD, "does not begin with 40 lower-case hexadecimal digits"),
        (b" " + GOOD[1:], "does not begin with 40 lower-case hexadecimal digits"),
        (GOOD[:39] + b" " + GOOD[40:], "does not begin with 40 lower-case hexadecimal digits"),
        (GOOD[:20] + b"\x85" + GOOD[21:], "a byte that is not ASCII"),
        (GOOD[:20] + b"\r" + GOOD[21:], "does not begin with 40 lower-case hexadecimal digits"),
        (GOOD[:20] + b"g" + GOOD[21:], "does not begin with 40 lower-case hexadecimal digits"),
        (GOOD.replace(b"  ", b" "), "not two spaces after the hash"),
        (GOOD.replace(b"  ", b" *"), "not two spaces after the hash"),
        (GOOD.replace(b"  ", b"   "), "not two spaces after the hash"),
        (GOOD.replace(b"  ", b"\t"), "not two spaces after the hash"),
        (GOOD[:40], "not two spaces after the hash"),
        (GOOD + b" ", "not the name of a compressed rawacf"),
        (GOOD.replace(b"0804", b"0832"), "not the name of a compressed rawacf"),
        (GOOD.replace(b"rawacf.bz2", b"fitacf.bz2"), "not the name of a compressed rawacf"),
        (GOOD.replace(NAME.encode(), b"$(reboot).rawacf.bz2"), "not the name of a compressed rawacf"),
        (b"<script>alert(1)</script>", "does not begin with 40 lower-case hexadecimal digits"),
    ],
)  # fmt: skip
def test_a_line_that_is_not_of_the_format_is_refused_alone_and_kept(line, reason):
    """M26: what a partner's list says was not validated, and went into a batch of commands as it stood."""
    data = b"\n".join([f"{SECOND}  {OTHER}".encode(), line, b""])
    found = hash_lists.parse_month(data, MONTH)
    assert found.hashes == {OTHER: SECOND} and found.kept == (line,)
    (refusal,) = found.refused
    assert (refusal.line, refusal.reason) == (2, reason)
    assert refusal.text.isprintable() and len(refusal.text) <= 4 * hash_lists.SHOWN_CHARACTERS


def test_a_list_without_its_last_line_end_loses_nothing_and_fuses_nothing():
    """M4: lines were added to a list that did not end with LF, so that two became one and the next run died of it."""
    cut = GOOD + b"\n" + f"{SECOND}  {OTHER}".encode()
    found = hash_lists.parse_month(cut, MONTH)
    assert found == HashList({NAME: SHA1, OTHER: SECOND})
    assert hash_lists.render_month(found.hashes).endswith(b"\n")
    fused = f"{SHA1}  {NAME}{SECOND}  {OTHER}\n".encode()
    found = hash_lists.parse_month(fused, MONTH)
    assert reasons_of(fused) == ["two lines in one: an LF is missing between them"]
    assert found.hashes == {} and found.unclear == {NAME, OTHER}
    assert hash_lists.render_month(found.hashes, found.kept) == fused


def test_a_name_with_two_hashes_is_refused_with_both_and_nothing_is_said_of_it():
    """M23: a name that the partner listed twice was 'different' and 'missing at the partner', and never downloaded."""
    data = b"\n".join([f"{SECOND}  {NAME}".encode(), f"{SHA1}  {OTHER}".encode(), GOOD, GOOD, b""])
    found = hash_lists.parse_month(data, MONTH)
    assert found.hashes == {OTHER: SHA1} and found.unclear == {NAME}
    assert [(refusal.line, refusal.text[:40]) for refusal in found.refused] == [(1, SECOND), (3, SHA1)]
    assert set(reasons_of(data)) == {f"{NAME} is listed with 2 hashes"}
    assert set(found.kept) == {GOOD, f"{SECOND}  {NAME}".encode()}


def test_the_same_line_twice_counts_once():
    assert hash_lists.parse_month(GOOD + b"\n\n" + GOOD + b"\n", MONTH) == HashList({NAME: SHA1})


def test_a_good_line_counts_whatever_a_bad_one_says_of_its_name():
    found = hash_lists.parse_month(GOOD + b"\n" + GOOD + b"\r\n", MONTH)
    assert found.hashes == {NAME: SHA1} and not found.unclear and len(found.refused) == 1


def test_a_line_of_100_mb_is_refused_unread_and_not_copied():
    data = GOOD + b"\n" + b"a" * 100_000_000 + b"\n" + f"{SECOND}  {OTHER}\n".encode()
    tracemalloc.start()
    found = hash_lists.parse_month(data, MONTH)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert found.hashes == {NAME: SHA1, OTHER: SECOND}
    assert found.refused[0].reason == "100000000 bytes long, and no line has more than 500"
    assert len(found.refused[0].text) < 200
    assert hash_lists.render_month({}, found.kept) == b"a" * 100_000_000 + b"\n"


def test_what_has_hardly_a_line_of_a_list_is_none():
    bad = b"a\n" * hash_lists.REFUSED_MAX
    assert len(hash_lists.parse_month(bad + GOOD, MONTH).refused) == hash_lists.REFUSED_MAX
    with pytest.raises(TryLater, match="not used at all"):
        hash_lists.parse_month(bad + b"a\n" + GOOD, MONTH)


def test_sha1sum_reads_what_we_write_and_we_read_what_sha1sum_writes(tmp_path):
    contents = {
        f"2020080{day}.0000.00.{radar}.a.rawacf.bz2": f"{day} {radar}".encode() for day in range(1, 8) for radar in ("sas", "mcm")
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    hashes = {name: hashlib.sha1(content).hexdigest() for name, content in contents.items()}
    written = hash_lists.render_month(hashes)
    (tmp_path / "202008.hashes").write_bytes(written)
    checked = sha1sum(tmp_path, "--check", "--strict", "--warn", "202008.hashes")
    assert checked.stdout.splitlines() == [f"{name}: OK".encode() for name in sorted(contents)] and not checked.stderr
    assert sha1sum(tmp_path, *sorted(contents)).stdout == written
    shuffled = b"".join(sorted(written.splitlines(keepends=True)))
    assert hash_lists.parse_month(shuffled, MONTH) == HashList(hashes)
    (tmp_path / "202008.hashes").write_bytes(hash_lists.render_month(hashes, [b"a line that is kept"]))
    assert sha1sum(tmp_path, "--check", "202008.hashes").stdout == checked.stdout, "a kept line is none to sha1sum either"


def sha1sum(folder, *words) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sha1sum", *words], cwd=folder, capture_output=True, check=True, timeout=30)


# -- the list of the lists


def test_the_master_list_has_both_spellings_and_is_written_as_it_was_read():
    data = (f"{SHA1}  ./dat/1993/09/199309.hashes\n{SHA1}  ./raw/2020/07/202007.hashes\n{SECOND}  ./raw/202008.hashes\n").encode()
    found = hash_lists.parse_master(data)
    assert not found.refused and hash_lists.render_master(found.hashes, found.kept) == data
    changed = found.with_month("202008", SHA1).with_month("202009", SECOND)
    assert changed.hashes["./raw/202008.hashes"] == SHA1 and layout.master_line("202008") not in changed.hashes
    assert changed.hashes[layout.master_line("202009")] == SECOND
    assert found.with_month("202007", SECOND).hashes == {**found.hashes, layout.master_line("202007"): SECOND}


@pytest.mark.parametrize(
    "path",
    ["./raw/2020/07/202008.hashes", "raw/202008.hashes", "./raw/202013.hashes", "./raw/../202008.hashes", "./raw/202008.hashes "],
)
def test_an_odd_line_of_the_master_list_is_refused_and_kept(path):
    line = f"{SHA1}  {path}".encode()
    found = hash_lists.parse_master(line + f"\n{SECOND}  ./raw/202007.hashes\n".encode())
    assert found == MasterList(
        {"./raw/202007.hashes": SECOND}, (line,), (Refusal(1, line.decode(), "not the path of a month's list"),)
    )


# -- what failed a check


@given(
    st.dictionaries(
        st.tuples(sha1s, names_of(st.sampled_from(["200506", MONTH]))), st.sampled_from(["Failed BZ2 integrity test", "é | x"])
    )
)
def test_what_failed_is_read_as_it_was_written(reasons):
    assert hash_lists.parse_failed(hash_lists.render_failed(reasons)) == FailedList(reasons)


def test_what_failed_is_keyed_by_hash_and_name():
    """M21, M22: two reasons for one pair counted as a match at the partner, and another failed hash of a name hid a match."""
    lines = [
        f"{SHA1}  {NAME} | Failed BZ2 integrity test",
        f"{SECOND}  {NAME} | empty",
        f"{SHA1}  {NAME} | Failed DMAP integrity test",
    ]
    data = "\n".join(lines).encode()
    found = hash_lists.parse_failed(data)
    assert found.reasons == {(SHA1, NAME): "Failed BZ2 integrity test", (SECOND, NAME): "empty"}
    assert not found.refused and found.kept == (lines[2].encode(),)
    assert sorted(hash_lists.render_failed(found.reasons, found.kept).decode().splitlines()) == sorted(lines)


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        GOOD + b" | ",
        GOOD + b" |x",
        GOOD + b" | x\r",
        GOOD + b" | x\0",
        GOOD.replace(b"0804", b"0844") + b" | x",
        b"x" * 1000,
    ],
)
def test_an_odd_line_of_what_failed_is_refused_and_kept(line):
    found = hash_lists.parse_failed(line + b"\n" + GOOD + b" | empty\n")
    assert found.reasons == {(SHA1, NAME): "empty"} and found.kept == (line,)
    assert [(refusal.line, bool(refusal.reason)) for refusal in found.refused] == [(1, True)]


# -- what must not come back


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"", b"  # bad antenna\n", b"\t\n", b" \r\n"])
def test_a_blocked_name_is_known_by_whatever_stands_around_it(ending):
    """M23: a line of the blocklist with CR or other text was not recognised by the sync, although publishing did."""
    assert hash_lists.parse_blocklist(b"\xef\xbb\xbf" + NAME.encode() + ending) == {NAME}
    assert hash_lists.parse_blocklist(b"\n".join([NAME.encode() + ending.strip(b"\n"), OTHER.encode()])) == {NAME, OTHER}


def test_a_part_of_a_name_blocks_nothing():
    """M53: a short line matched names that it was a part of."""
    assert hash_lists.parse_blocklist(b"20200804\nmcm\n.rawacf.bz2\n" + NAME.encode() + b".old\nx" + NAME.encode()) == set()
