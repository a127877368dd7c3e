"""The only parser and builder of SuperDARN file names.

Every name begins with the stem ``YYYYMMDD.HHMM.SS.<radar>``: the UTC time of the first sequence and the radar's
three letters. A text that matches none of the grammars below has no ``Name``; it is never used in a path or a command.
What matches is ASCII, so a character is a byte.

    <stem>.<slice>.{rawacf,antennas_iq,bfiq}.h5     written by Borealis since v1.0
    <stem>.<slice>.{...}.hdf5[.site]                written by Borealis before v1.0 (array, site)
    <stem>.rawrf.h5                                 raw RF samples, no slice
    <stem>[.<channel>].rawacf                       DMAP written by a radar itself, not compressed
    <stem>[.<channel>].rawacf.bz2                   DMAP on campus and on the mirrors
    <stem>.<slice>.antennas_iq.antenna_<n>_<first>_<last>[.full].jpg    power of one antenna
    <stem>.<slice>.antennas_iq.contact.jpg          contact sheet of all antennas
    <stem>.<slice>.rawacf.quicklook.png             range-time power of one rawacf
    <YYYYMMDD>...{cam210,cam211,cam212}...jpg       camera photo, for one radar by its folder

The channel of a DMAP file is the letter of the slice: 0 is ``a``, 25 is ``z``; slices beyond have no channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from dataflow.lib.errors import BadFile

MAX_NAME_BYTES = 220
"""A folder takes 255; the rest is for what is put around a name: leading dot, hash, ``.reason.json``, ``.part``."""
LAST_CHANNEL_SLICE = 25


class Kind(StrEnum):
    """What a file is, as its name tells."""

    RAWACF = "rawacf"
    ANTENNAS_IQ = "antennas_iq"
    BFIQ = "bfiq"
    RAWRF = "rawrf"
    DMAP_PLAIN = "dmap_plain"
    DMAP = "dmap"
    PLOT = "plot"
    PLOT_FULL = "plot_full"
    CONTACT = "contact"
    QUICKLOOK = "quicklook"
    PHOTO = "photo"


PICTURES = frozenset({Kind.PLOT, Kind.PLOT_FULL, Kind.CONTACT, Kind.QUICKLOOK})

_STEM = r"(?P<stem>(?P<date>\d{8})\.(?P<time>\d{4}\.\d{2})\.(?P<radar>[a-z]{3}))"
_SLICE = r"\.(?P<slice>0|[1-9]\d{0,3})"
_GRAMMARS: tuple[tuple[Kind | None, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.ASCII))
    for kind, pattern in (
        (None, rf"{_STEM}{_SLICE}\.(?P<type>rawacf|antennas_iq|bfiq)\.(?P<suffix>h5|hdf5|hdf5\.site)"),
        (Kind.RAWRF, rf"{_STEM}\.rawrf\.(?P<suffix>h5)"),
        (Kind.DMAP_PLAIN, rf"{_STEM}(\.(?P<channel>[a-z]))?\.(?P<suffix>rawacf)"),
        (Kind.DMAP, rf"{_STEM}(\.(?P<channel>[a-z]))?\.(?P<suffix>rawacf\.bz2)"),
        (
            Kind.PLOT,
            rf"{_STEM}{_SLICE}\.antennas_iq\.antenna_(?P<antenna>\d{{1,4}})_(?P<first>\d{{1,6}})_(?P<last>\d{{1,6}})"
            r"\.(?P<suffix>jpg)",
        ),
        (
            Kind.PLOT_FULL,
            rf"{_STEM}{_SLICE}\.antennas_iq\.antenna_(?P<antenna>\d{{1,4}})_(?P<first>\d{{1,6}})_(?P<last>\d{{1,6}})"
            r"\.(?P<suffix>full\.jpg)",
        ),
        (Kind.CONTACT, rf"{_STEM}{_SLICE}\.antennas_iq\.(?P<suffix>contact\.jpg)"),
        (Kind.QUICKLOOK, rf"{_STEM}{_SLICE}\.rawacf\.(?P<suffix>quicklook\.png)"),
        (Kind.PHOTO, r"(?P<date>\d{8})\.(?P<middle>[A-Za-z0-9._-]*?(?P<camera>cam21[012])[A-Za-z0-9._-]*?)\.jpg"),
    )
)


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed file name. ``text`` is the name itself; fields that the grammar lacks are ``None``."""

    text: str
    kind: Kind
    time: datetime
    radar: str | None = None
    stem: str | None = None
    slice_id: int | None = None
    channel: str | None = None
    suffix: str | None = None
    antenna: int | None = None
    camera: str | None = None

    @property
    def is_hdf5(self) -> bool:
        """True for files that the radar writes through h5py."""
        return self.kind in (Kind.RAWACF, Kind.ANTENNAS_IQ, Kind.BFIQ, Kind.RAWRF)

    @property
    def series(self) -> tuple[str | None, int | None, str | None, str]:
        """What consecutive files of one stream share: radar, slice, channel and type."""
        return (self.radar, self.slice_id, self.channel, self.kind.value)


def parse(text: str) -> Name | None:
    """The ``Name`` of a bare file name, or ``None`` when it matches no grammar or names an impossible time."""
    if len(text) > MAX_NAME_BYTES:
        return None
    for kind, grammar in _GRAMMARS:
        if found := grammar.fullmatch(text):
            return _from_match(text, kind, found.groupdict())
    return None


def _from_match(text: str, kind: Kind | None, fields: dict[str, str | None]) -> Name | None:
    date, clock = str(fields["date"]), fields.get("time") or "0000.00"
    try:  # not strptime(3): it takes longer than all the rest, and a batch has thousands of names
        time = datetime(int(date[:4]), int(date[4:6]), int(date[6:]), int(clock[:2]), int(clock[2:4]), int(clock[5:]), tzinfo=UTC)
    except ValueError:
        return None
    slice_text, antenna_text = fields.get("slice"), fields.get("antenna")
    return Name(
        text=text,
        kind=kind or Kind(str(fields["type"])),
        time=time,
        radar=fields.get("radar"),
        stem=fields.get("stem"),
        slice_id=int(slice_text) if slice_text is not None else None,
        channel=fields.get("channel"),
        suffix=fields.get("suffix"),
        antenna=int(antenna_text) if antenna_text is not None else None,
        camera=fields.get("camera"),
    )


def dmap_of(name: Name) -> Name:
    """The DMAP name that a rawacf (HDF5 or uncompressed DMAP) becomes.

    Raises:
        BadFile: the slice has no channel letter.
    """
    if name.kind is Kind.DMAP_PLAIN:
        return _must(f"{name.text}.bz2")
    if name.kind is not Kind.RAWACF or name.slice_id is None:
        raise BadFile("not a rawacf", f"{name.text} is not a rawacf file: it has no DMAP form")
    if name.slice_id > LAST_CHANNEL_SLICE:
        raise BadFile(
            "slice beyond 25", f"{name.text} is slice {name.slice_id}: DMAP channels a to z end at slice {LAST_CHANNEL_SLICE}"
        )
    return _must(f"{name.stem}.{chr(ord('a') + name.slice_id)}.rawacf.bz2")


def hdf5_candidates_of(name: Name) -> tuple[str, ...]:
    """The names that the HDF5 counterpart of a DMAP file may have; none when the name has no channel."""
    if name.channel is None or name.kind is not Kind.DMAP:
        return ()
    slice_id = ord(name.channel) - ord("a")
    return tuple(f"{name.stem}.{slice_id}.rawacf.{suffix}" for suffix in ("h5", "hdf5", "hdf5.site"))


def plot_of(source: Name, antenna: int, first_sample: int, last_sample: int, *, full: bool = False) -> Name:
    """The name of the picture of one antenna; ``antenna`` is the antenna's own number."""
    ending = "full.jpg" if full else "jpg"
    return _must(f"{_picture_stem(source)}.antenna_{antenna}_{first_sample}_{last_sample}.{ending}")


def contact_sheet_of(source: Name) -> Name:
    """The name of the contact sheet of all antennas of one antennas_iq file."""
    return _must(f"{_picture_stem(source)}.contact.jpg")


def quicklook_of(source: Name) -> Name:
    """The name of the quick-look of one rawacf file."""
    return _must(f"{_picture_stem(source)}.quicklook.png")


def radar_file(time: datetime, radar: str, slice_id: int, kind: Kind) -> Name:
    """The name that Borealis v1 gives to the file that begins at ``time`` (UTC)."""
    return _must(f"{time:%Y%m%d.%H%M.%S}.{radar}.{slice_id}.{kind.value}.h5")


def printable(text: str) -> str:
    """A file name as it may be shown and logged: control characters and undecodable bytes escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def _picture_stem(source: Name) -> str:
    return f"{source.stem}.{source.slice_id}.{source.kind.value}"


def _must(text: str) -> Name:
    name = parse(text)
    if name is None:
        raise ValueError(f"not a SuperDARN file name: {text!r}")
    return name
