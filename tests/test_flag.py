"""Flags: what is written is read again, and nothing that a broken or hostile neighbour writes does more than be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.lib import flag
from dataflow.lib.errors import BadFile
from dataflow.lib.flag import Entry, Flag

SHA256 = "0123456789abcdef" * 4
NOW = datetime(2026, 11, 1, 14, 0, 0, 5, tzinfo=UTC)
ENTRY = Entry("20261101.1400.00.sas.0.rawacf.h5", 12, SHA256)
FLAG = Flag("20261101T140000.000005Z", "sas", "site-linux", "2026-11-01T14:00:00.000005Z", "run-1", (ENTRY,))

ENTRIES = st.builds(
    Entry,
    name=st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(lambda name: name not in (".", "..")),
    size=st.integers(0, 2**63),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    parent=st.none() | st.text(),
    by=st.none() | st.text(),
    content_sha256=st.none() | st.text(),
    records=st.none() | st.integers(0, 10**6),
    cpids=st.none() | st.lists(st.integers(-32768, 32767)).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def document(**changes):
    """The flag as somebody else's program could have written it, without the checksum."""
    plain = {key: value for key, value in json.loads(FLAG.encode()).items() if key != flag.CRC32}
    return {**plain, **changes}


@given(st.lists(ENTRIES, max_size=4))
def test_what_is_encoded_is_decoded_again(entries):
    made = replace(FLAG, files=tuple(entries))
    assert flag.decode(made.encode()) == made
    assert made.encode().count(b"\n") == 1, "flags travel one a line"


def test_the_form_of_a_flag_is_the_contract():
    assert json.loads(FLAG.encode()) == {
        "v": 1, "id": "20261101T140000.000005Z", "radar": "sas", "from": "site-linux", "sent": "2026-11-01T14:00:00.000005Z",
        "run": "run-1", "files": [{"name": ENTRY.name, "size": 12, "sha256": SHA256}], "crc32": 2053986620,
    }  # fmt: skip
    assert FLAG.file_name == "20261101T140000.000005Z.sas.site-linux.flag"
    assert flag.is_flag_name(FLAG.file_name)


def test_keys_that_are_unknown_are_ignored():
    more = document(priority="high", files=[{**ENTRY.document(), "colour": "red", "parent": None}])
    assert flag.decode(json.dumps(more).encode()) == FLAG


@pytest.mark.parametrize("version", [2, 10**30])
def test_a_newer_version_is_told_from_a_broken_flag(version):
    with pytest.raises(BadFile, match="upgrade it") as caught:
        flag.decode(json.dumps(document(v=version, files="of another shape")).encode())
    assert caught.value.kind == "newer flag"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"flag"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"v":' + b"9" * 10_000 + b"}",
        FLAG.encode()[:-20],
    ],
)
def test_what_is_no_flag_is_refused(content):
    with pytest.raises(BadFile, match="the flag cannot be read"):
        flag.decode(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"v": True}, {"v": "1"}, {"v": None}, {"v": 1.0},
        {"id": "../../etc/passwd"}, {"id": "20261101T140000.000005Z\n"}, {"id": 5}, {"id": "20261101T140000Z"},
        {"radar": "s/s"}, {"radar": "SAS"}, {"radar": None}, {"from": "../x"}, {"from": ""}, {"from": "a" * 60},
        {"sent": "yesterday"}, {"sent": None}, {"sent": "2026-13-01T14:00:00.000005Z"}, {"run": ["x"]},
        {"files": None}, {"files": "abc"}, {"files": [1]}, {"files": ["name"]}, {"files": [None]}, {"files": {"a": 1}},
    ],
)  # fmt: skip
def test_a_flag_with_a_wrong_field_is_refused(changes):
    with pytest.raises(BadFile) as caught:
        flag.decode(json.dumps(document(**changes)).encode())
    assert caught.value.kind == "unreadable flag"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""}, {"name": "."}, {"name": ".."}, {"name": "a/b"}, {"name": "../a"}, {"name": "a\0b"},
        {"name": 1}, {"name": None},
        {"size": -1}, {"size": "12"}, {"size": True}, {"size": 1.5}, {"size": None},
        {"sha256": SHA256.upper()}, {"sha256": SHA256[:-1]}, {"sha256": SHA256 + "\n"}, {"sha256": None}, {"sha256": 5},
        {"parent": 1}, {"by": {}}, {"records": "many"}, {"cpids": "151"}, {"cpids": ["151"]}, {"cpids": [[151]]},
    ],
)  # fmt: skip
def test_a_flag_with_a_wrong_entry_is_refused_whole(changes):
    files = [ENTRY.document(), {**ENTRY.document(), **changes}]
    with pytest.raises(BadFile, match="the flag cannot be read"):
        flag.decode(json.dumps(document(files=files)).encode())
    with pytest.raises(BadFile, match="the manifest cannot be read"):
        flag.entries(json.dumps({"v": 1, "files": files}).encode())


@given(JSON, st.sampled_from(["v", "id", "radar", "from", "sent", "run", "files", None]))
def test_any_json_is_a_flag_or_refused(value, key):
    content = json.dumps(value if key is None else document(**{key: value}))
    try:
        found = flag.decode(content.encode())
    except BadFile:
        return
    assert flag.is_flag_name(found.file_name)
    assert flag.decode(found.encode()) == found


@given(st.binary(max_size=100), st.integers(0, 300))
def test_any_damage_is_a_flag_or_refused(damage, where):
    content = FLAG.encode()
    try:
        flag.decode(content[:where] + damage + content[where + len(damage) :])
    except BadFile:
        pass


def test_one_bit_that_a_disk_turns_is_found():
    """Wherever it is: a flag with another hash, size or name of a file would let good files look damaged."""
    content = FLAG.encode()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert flag.decode(bytes(damaged)) == FLAG, f"bit {bit} makes {damaged}"
        except BadFile as error:
            assert error.kind in ("unreadable flag", "newer flag")


def test_a_flag_without_checksum_is_read():
    assert flag.decode(json.dumps(document()).encode()) == FLAG


def test_a_manifest_is_read_like_a_flag():
    content = json.dumps({"v": 1, "run": "x", "files": [ENTRY.document()]}).encode()
    assert flag.entries(content) == (ENTRY,)
    with pytest.raises(BadFile) as caught:
        flag.entries(json.dumps({"v": 2, "files": []}).encode())
    assert caught.value.kind == "newer manifest"


def test_two_flags_of_one_moment_get_two_names(tmp_path):
    first, second = (flag.write(tmp_path / "outbox", "sas", "borealis", "run", [ENTRY], lambda: NOW) for _ in range(2))
    assert first.id != second.id
    assert [found for _, found in flag.read_folder(tmp_path / "outbox")] == [first, second]


def test_a_folder_is_read_past_what_is_no_flag(tmp_path):
    made = flag.write(tmp_path, "sas", "borealis", "run", [ENTRY], lambda: NOW)
    (tmp_path / "0-broken.flag").write_bytes(b"{")
    (tmp_path / ".hidden.flag.part").write_bytes(made.encode())
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [found for _, found in flag.read_folder(tmp_path)] == [made]
    assert flag.read_folder(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "name",
    [
        "", "x.flag", ".20261101T140000.000005Z.sas.site-linux.flag.part", "20261101T140000.000005Z.sas.site-linux.flag\n",
        "20261101T140000.000005Z.sas.Site.flag", "a/20261101T140000.000005Z.sas.site.flag", "20261101T140000Z.sas.site.flag",
    ],
)  # fmt: skip
def test_what_is_no_flag_name(name):
    assert not flag.is_flag_name(name)
