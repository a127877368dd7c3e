"""The grammar of file names: what is built is parsed again, and nothing else is ever taken for a name."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest
import strangers
from hypothesis import given
from hypothesis import strategies as st

from dataflow.lib import names
from dataflow.lib.errors import BadFile
from dataflow.lib.names import Kind, parse

SECONDS = st.integers(788_918_400, 4_102_444_799).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
RADARS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=3)
SLICES = st.integers(0, 9999)
RADAR_KINDS = st.sampled_from([Kind.RAWACF, Kind.ANTENNAS_IQ, Kind.BFIQ])

GOOD = {
    "20261101.1400.00.sas.0.rawacf.h5": (Kind.RAWACF, 0, None),
    "20261101.1400.00.sas.12.antennas_iq.h5": (Kind.ANTENNAS_IQ, 12, None),
    "20261101.1400.00.sas.9999.bfiq.h5": (Kind.BFIQ, 9999, None),
    "20191101.1400.00.sas.0.rawacf.hdf5": (Kind.RAWACF, 0, None),
    "20191101.1400.00.sas.0.rawacf.hdf5.site": (Kind.RAWACF, 0, None),
    "20261101.1400.00.sas.rawrf.h5": (Kind.RAWRF, None, None),
    "20261101.1400.00.sas.rawacf": (Kind.DMAP_PLAIN, None, None),
    "20261101.1400.00.sas.a.rawacf": (Kind.DMAP_PLAIN, None, "a"),
    "20261101.1400.00.sas.rawacf.bz2": (Kind.DMAP, None, None),
    "20261101.1400.00.sas.z.rawacf.bz2": (Kind.DMAP, None, "z"),
    "20261101.1400.00.sas.0.antennas_iq.antenna_15_0_70.jpg": (Kind.PLOT, 0, None),
    "20261101.1400.00.sas.0.antennas_iq.antenna_15_0_70.full.jpg": (Kind.PLOT_FULL, 0, None),
    "20261101.1400.00.sas.0.antennas_iq.contact.jpg": (Kind.CONTACT, 0, None),
    "20261101.1400.00.sas.0.rawacf.quicklook.png": (Kind.QUICKLOOK, 0, None),
    "20261101.cam210-north.jpg": (Kind.PHOTO, None, None),
    "20261101.sky_cam212.1.jpg": (Kind.PHOTO, None, None),
}


@pytest.mark.parametrize(("text", "kind", "slice_id", "channel"), [(text, *expected) for text, expected in GOOD.items()])
def test_each_grammar_is_read(text, kind, slice_id, channel):
    name = parse(text)
    assert (name.kind, name.slice_id, name.channel, name.text) == (kind, slice_id, channel, text)
    assert name.time.utcoffset().total_seconds() == 0
    assert f"{name.time:%Y%m%d}" == text[:8]


@given(SECONDS, RADARS, SLICES, RADAR_KINDS)
def test_a_radar_file_that_is_built_is_parsed_to_what_it_was_built_from(time, radar, slice_id, kind):
    built = names.radar_file(time, radar, slice_id, kind)
    assert parse(built.text) == built
    assert (built.time, built.radar, built.slice_id, built.kind) == (time, radar, slice_id, kind)
    assert built.is_hdf5


@given(SECONDS, RADARS, st.integers(0, 25))
def test_rawacf_dmap_and_back(time, radar, slice_id):
    rawacf = names.radar_file(time, radar, slice_id, Kind.RAWACF)
    dmap = names.dmap_of(rawacf)
    assert (dmap.kind, dmap.time, dmap.radar, dmap.channel) == (Kind.DMAP, time, radar, chr(ord("a") + slice_id))
    assert rawacf.text in names.hdf5_candidates_of(dmap)
    assert {parse(candidate).stem for candidate in names.hdf5_candidates_of(dmap)} == {rawacf.stem}


@given(SECONDS, RADARS, SLICES, st.integers(0, 9999), st.integers(0, 999_999), st.integers(0, 999_999), st.booleans())
def test_pictures_are_parsed_again(time, radar, slice_id, antenna, first, last, full):
    source = names.radar_file(time, radar, slice_id, Kind.ANTENNAS_IQ)
    plot = names.plot_of(source, antenna, first, last, full=full)
    assert (plot.kind, plot.antenna, plot.slice_id, plot.time) == (
        Kind.PLOT_FULL if full else Kind.PLOT, antenna, slice_id, time,
    )  # fmt: skip
    assert names.contact_sheet_of(source).kind is Kind.CONTACT
    assert names.quicklook_of(names.radar_file(time, radar, slice_id, Kind.RAWACF)).kind is Kind.QUICKLOOK


@pytest.mark.parametrize("slice_id", [26, 99, 9999])
def test_a_slice_beyond_25_has_no_channel(slice_id):
    rawacf = names.radar_file(datetime(2026, 11, 1, tzinfo=UTC), "sas", slice_id, Kind.RAWACF)
    with pytest.raises(BadFile, match=rf"slice {slice_id}") as caught:
        names.dmap_of(rawacf)
    assert caught.value.kind == "slice beyond 25"


def test_what_is_no_rawacf_has_no_dmap_form():
    with pytest.raises(BadFile, match="no DMAP form"):
        names.dmap_of(parse("20261101.1400.00.sas.0.antennas_iq.h5"))


def test_plain_dmap_is_only_compressed():
    assert names.dmap_of(parse("20261101.1400.00.sas.c.rawacf")).text == "20261101.1400.00.sas.c.rawacf.bz2"
    assert names.hdf5_candidates_of(parse("20261101.1400.00.sas.rawacf.bz2")) == ()


@pytest.mark.parametrize(
    "text",
    [
        "20260230.1400.00.sas.0.rawacf.h5",
        "20261301.1400.00.sas.0.rawacf.h5",
        "20261101.2400.00.sas.0.rawacf.h5",
        "20261101.1460.00.sas.0.rawacf.h5",
        "20261101.1400.62.sas.0.rawacf.h5",
        "00000101.1400.00.sas.0.rawacf.h5",
        "20250229.1400.00.sas.rawacf.bz2",
        "20261131.cam210.jpg",
    ],
)
def test_an_impossible_time_is_no_name(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "20261101.1400.00.sas.0.rawacf.h5\n",
        "\n20261101.1400.00.sas.0.rawacf.h5",
        "20261101.1400.00.sas.0.rawacf.h5 ",
        "20261101.1400.00.sas.0.rawacf.h5\0",
        "20261101.1400.00.SAS.0.rawacf.h5",
        "20261101.1400.00.sas.00.rawacf.h5",
        "20261101.1400.00.sas.-1.rawacf.h5",
        "20261101.1400.00.sas.10000.rawacf.h5",
        "20261101.1400.00.sas.0.rawacf.h5.part",
        ".20261101.1400.00.sas.0.rawacf.h5",
        ".20261101.1400.00.sas.0.rawacf.h5.part",
        "20261101.1400.00.sas.0.rawacf.h5.reason.json",
        "x/20261101.1400.00.sas.0.rawacf.h5",
        "../20261101.1400.00.sas.0.rawacf.h5",
        "20261101.1400.00.sas.0.rawacf.h5;reboot",
        "20261101.1400.00.$(reboot).0.rawacf.h5",
        "20261101.1400.00.sas.aa.rawacf.bz2",
        "20261101.1400.00.sas.A.rawacf.bz2",
        "20261101.1400.00.sas.0.rawrf.h5",
        "20261101.1400.00.sas.0.antennas_iq.antenna_0_0.jpg",
        "20261101-cam210.jpg",
        "20261101. cam210.jpg",
        "20261101.'cam210.jpg",
        "20261101./cam210.jpg",
        "20261101.cam213.jpg",
        "cam210.jpg",
        "٢٠٢٦١١٠١.1400.00.sas.0.rawacf.h5",  # digits, but not ours
        "20261101.1400.00.ſas.0.rawacf.h5",  # a letter that folds to s
        "20261101.1400.00.sas.0.rawacf.h5\udcff",
        os.fsdecode(b"20261101.cam210-\xff.jpg"),
        "\ud800",
    ],
)
def test_a_hostile_or_sloppy_name_is_no_name(text):
    assert parse(text) is None


@given(st.binary(max_size=300))
def test_no_bytes_that_a_folder_may_hold_break_the_parser(content):
    assert parse(os.fsdecode(content)) is None or content.isascii()


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_no_text_that_json_may_hold_breaks_the_parser(text):
    """A manifest may hold lone surrogates, which no file name can."""
    found = parse(text)
    assert found is None or found.text == text


@given(st.from_regex(names._GRAMMARS[0][1], fullmatch=True), st.integers(0, 60), st.characters(exclude_categories=()))
def test_one_character_more_is_another_name_or_none(text, where, intruder):
    changed = text[:where] + intruder + text[where:]
    found = parse(changed)
    assert found is None or (changed.isascii() and changed.isprintable() and "/" not in changed)


def test_a_name_leaves_room_for_what_is_put_around_it():
    """Hidden parts, hashes and the endings of reasons are put around names; a folder takes 255 bytes."""
    longest = f"20261101.{'x' * (names.MAX_NAME_BYTES - 19)}cam210.jpg"
    assert len(longest) == names.MAX_NAME_BYTES
    assert parse(longest) is not None
    assert parse(longest.replace(".x", ".xx")) is None
    assert len(f".{longest}.{'0' * 12}.reason.json.part") <= 255


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31mred", os.fsdecode(b"caf\xe9"), "\ud800", "\u202egpj"])
def test_a_name_is_shown_without_control_characters(name):
    shown = names.printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_ten_thousand_hostile_names_are_no_names():
    for example in GOOD:
        for name in strangers.names(example, 10_000 // len(GOOD)):
            text = os.fsdecode(name)
            assert parse(text) is None or (text.isascii() and text.isprintable() and not set(text) & set("/ ;$'\"`|&*?")), text
            assert names.printable(text).isprintable()


def test_printable_leaves_ordinary_names_alone():
    assert names.printable("20261101.1400.00.sas.0.rawacf.h5 caf\u00e9") == "20261101.1400.00.sas.0.rawacf.h5 caf\u00e9"


def test_files_of_one_stream_share_a_series():
    first, later, other = (
        parse(f"20261101.{text}.h5") for text in ("1400.00.sas.0.rawacf", "1600.00.sas.0.rawacf", "1600.00.sas.1.rawacf")
    )
    assert first.series == later.series != other.series
