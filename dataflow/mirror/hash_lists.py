"""The lists of a mirror: which files it has, which failed a check, which must not come back. Formats only, no places.

    <YYYYMM>.hashes     <sha1>  <name>                             one line for each file of the month, as sha1sum(1) writes it
    master.hashes       <sha1>  ./raw/<YYYY>/<MM>/<YYYYMM>.hashes  one line for each month; also spelt ./raw/<YYYYMM>.hashes
    all_failed.txt      <sha1>  <name> | <reason>
    blocklist/*.txt     <name>

A hash is 40 lower-case hexadecimal digits; after it are two spaces; a line ends with LF. Whoever wrote a list, each of its
lines is checked and what is not exactly of the format is refused, that line alone. Our own list is rewritten now and then: so
that nothing is lost by that, refused lines are kept and written again as they were. An empty line says nothing and is passed
over.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dataflow.lib import names
from dataflow.lib.errors import TryLater
from dataflow.lib.names import Kind
from dataflow.mirror import layout

LINE_BYTES_MAX = 500
"""A line that is longer is none: it is refused unread. What a list of failed files says of one is far shorter."""
REFUSED_MAX = 100_000
"""With more lines to refuse, which would take much memory, it is no list: ten times as many as the months have."""
SHOWN_CHARACTERS = 120

Line = bytes | memoryview
"""A refused line without its LF; one beyond ``LINE_BYTES_MAX`` is a view of the list, never a copy."""

_DIGITS = b"0123456789abcdef"
_TIME_OF_DAY = r"(?:[01]\d|2[0-3])[0-5]\d\.[0-5]\d"
_AFTER_TIME = r"\.[a-z]{3}(?:\.[a-z])?\.rawacf\.bz2"

_MASTER_LINE = re.compile(rb"([0-9a-f]{40})  (\./[a-z]{1,20}/(?:(\d{4})/(\d\d)/(?=\3\4))?\d{4}(?:0[1-9]|1[0-2])\.hashes)")
_FAILED_LINE = re.compile(rb"([0-9a-f]{40})  ([0-9a-z.]{31,33}) \| ([^\r\0]*[^\r\0\s])")
_ANY_NAME = re.compile(rb"(?<![\w.])\d{8}\.\d{4}\.\d\d\.[a-z]{3}(?:\.[a-z])?\.rawacf\.bz2(?![\w.])")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that is not used, by its number from 1. ``text`` is shortened and printable."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class HashList:
    """The list of a month: SHA-1 by name.

    ``unclear``: names of that month in refused lines. They are not in ``hashes``, and yet nobody can say that the mirror
    lacks them.
    """

    hashes: dict[str, str]
    kept: tuple[Line, ...] = ()
    refused: tuple[Refusal, ...] = ()
    unclear: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MasterList:
    """The list of the lists: SHA-1 by path, which is spelt as the list spells it."""

    hashes: dict[str, str]
    kept: tuple[Line, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def months(self) -> frozenset[str]:
        """The months whose lists it names, in whichever spelling."""
        return frozenset(path.rpartition("/")[2].removesuffix(".hashes") for path in self.hashes if path.startswith("./raw/"))

    def with_month(self, month: str, sha1: str) -> MasterList:
        """The same with another hash for a month, in whichever spelling the list has it; else as ``layout`` spells it."""
        spelt = [path for path in layout.master_lines(month) if path in self.hashes]
        changed = dict.fromkeys(spelt or [layout.master_line(month)], sha1)
        return MasterList({**self.hashes, **changed}, self.kept, self.refused)


@dataclass(frozen=True, slots=True)
class FailedList:
    """What failed a check: the reason by (SHA-1, name). Other content of the same name has not failed."""

    reasons: dict[tuple[str, str], str]
    kept: tuple[Line, ...] = ()
    refused: tuple[Refusal, ...] = ()


def parse_month(data: bytes, month: str) -> HashList:
    """Read the list of a month. A name with two hashes is refused with both; the same line twice counts once.

    Raises:
        TryLater: there are more than ``REFUSED_MAX`` lines to refuse, so it is no list at all.
    """
    hashes = _read_at_once(data, month)
    if hashes is not None:
        return HashList(hashes)
    _, pattern, name_pattern = _patterns(month)
    hashes, kept, refused = _read_lines(data, pattern, lambda line: _fault_of_month_line(line, month))
    mentioned = {name.decode() for line in kept if len(line) <= LINE_BYTES_MAX for name in name_pattern.findall(line)}
    return HashList(hashes, kept, refused, frozenset(mentioned - hashes.keys()))


def render_month(hashes: Mapping[str, str], kept: Iterable[Line] = ()) -> bytes:
    """Write the list of a month, sorted by name, as ``sha1sum -c`` reads it; kept lines come last."""
    return _joined((f"{hashes[name]}  {name}".encode("ascii") for name in sorted(hashes)), kept)


def parse_master(data: bytes) -> MasterList:
    """Read the list of the lists, of whatever kinds of data. A path with two hashes is refused with both."""
    return MasterList(*_read_lines(data, _MASTER_LINE, lambda line: _fault_of_hash(line) or "not the path of a month's list"))


def render_master(hashes: Mapping[str, str], kept: Iterable[Line] = ()) -> bytes:
    """Write the list of the lists, sorted by path; kept lines come last."""
    return render_month(hashes, kept)


def parse_failed(data: bytes) -> FailedList:
    """Read the list of what failed. A pair of hash and name counts once; a second reason for it is kept, no more."""
    reasons: dict[tuple[str, str], str] = {}
    kept: list[Line] = []
    refused = []
    for number, start, end in _lines(data):
        found = _FAILED_LINE.fullmatch(data, start, end) if end - start <= LINE_BYTES_MAX else None
        if found is None or not _is_dmap(found[2].decode()):
            kept.append(_line(data, start, end))
            refused.append(_refusal(number, kept[-1], _fault_of_failed_line))
        elif reasons.setdefault((found[1].decode(), found[2].decode()), reason := found[3].decode("utf-8", "replace")) != reason:
            kept.append(_line(data, start, end))
    return FailedList(reasons, tuple(kept), tuple(refused))


def render_failed(reasons: Mapping[tuple[str, str], str], kept: Iterable[Line] = ()) -> bytes:
    """Write the list of what failed, sorted by name and hash; kept lines come last."""
    order = sorted(reasons, key=lambda pair: (pair[1], pair[0]))
    return _joined((f"{sha1}  {name} | {reasons[sha1, name]}".encode() for sha1, name in order), kept)


def parse_blocklist(data: bytes) -> frozenset[str]:
    """The names in a list of what must not come back, whatever else is in their lines: rather too many than one too few."""
    return frozenset(name.decode() for name in _ANY_NAME.findall(data))


def _read_at_once(data: bytes, month: str) -> dict[str, str] | None:
    """The hashes of a list in which every line is good and no name comes twice; None of any other list.

    A list has thousands of lines and nearly always nothing to refuse. In one that matches, a line is 40 characters, two spaces
    and a name of the month, which is no digits. So if every other word, from the first on, is nothing but digits, and all of
    them together are 40 to a line, then each is a whole hash.
    """
    whole, _, _ = _patterns(month)
    if whole.fullmatch(data) is None:
        return None
    words, count = data.decode("latin-1").split(), data.count(b"\n")
    sha1s = words[::2]
    digits = "".join(sha1s).encode()
    if len(digits) != 40 * count or digits.translate(None, _DIGITS):
        return None
    hashes = dict(zip(words[1::2], sha1s, strict=True))
    return hashes if len(hashes) == count else None


@lru_cache(maxsize=16)
def _patterns(month: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    """What matches a list of which every line has the right form, one good line, and a name: of days that the month has."""
    days = calendar.monthrange(int(month[:4]), int(month[4:]))[1]
    day = rf"(?:0[1-9]|[12]\d|3[0-{days - 30}])" if days >= 30 else rf"(?:0[1-9]|1\d|2[0-{days - 20}])"
    name = rf"{month}{day}\.{_TIME_OF_DAY}{_AFTER_TIME}"
    patterns = (rf"(?:.{{40}}  {name}\n)*+", rf"([0-9a-f]{{40}})  ({name})", name)
    whole, line, bare = (re.compile(pattern.encode()) for pattern in patterns)
    return whole, line, bare


def _read_lines(
    data: bytes, pattern: re.Pattern[bytes], fault: Callable[[bytes], str]
) -> tuple[dict[str, str], tuple[Line, ...], tuple[Refusal, ...]]:
    """Hashes by name, kept lines and refusals of a list whose lines match a pattern with hash and name as its first groups."""
    listed: dict[str, dict[str, int]] = {}
    kept: list[Line] = []
    refused: list[Refusal] = []
    for number, start, end in _lines(data):
        if end - start <= LINE_BYTES_MAX and (found := pattern.fullmatch(data, start, end)):
            listed.setdefault(found[2].decode(), {}).setdefault(found[1].decode(), number)
        else:
            kept.append(_line(data, start, end))
            refused.append(_refusal(number, kept[-1], fault))
        if len(refused) > REFUSED_MAX:
            raise TryLater(f"more than {REFUSED_MAX:,} of its lines are none of a list of hashes: it is not used at all")
    hashes = {name: next(iter(numbers)) for name, numbers in listed.items() if len(numbers) == 1}
    for name in listed.keys() - hashes.keys():
        for sha1, number in listed[name].items():
            refused.append(Refusal(number, f"{sha1}  {name}", f"{name} is listed with {len(listed[name])} hashes"))
    refused.sort(key=lambda refusal: refusal.line)
    kept += [f"{sha1}  {name}".encode() for name in sorted(listed.keys() - hashes.keys()) for sha1 in listed[name]]
    return hashes, tuple(kept), tuple(refused)


def _lines(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, start and end (before the LF) of each line that is not empty."""
    start = number = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        if end > start:
            yield number, start, end
        start = end + 1


def _line(data: bytes, start: int, end: int) -> Line:
    return data[start:end] if end - start <= LINE_BYTES_MAX else memoryview(data)[start:end]


def _refusal(number: int, line: Line, fault: Callable[[bytes], str]) -> Refusal:
    text = names.printable(bytes(line[: SHOWN_CHARACTERS + 1]).decode("utf-8", "backslashreplace"))
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    if isinstance(line, memoryview):
        return Refusal(number, shown, f"{len(line)} bytes long, and no line has more than {LINE_BYTES_MAX}")
    return Refusal(number, shown, fault(line))


def _fault_of_month_line(line: bytes, month: str) -> str:
    if fault := _fault_of_hash(line):
        return fault
    text = line[42:].decode("latin-1")
    if len(_ANY_NAME_INSIDE.findall(line)) > 1:
        return "two lines in one: an LF is missing between them"
    if "/" in text:
        return "a path, not a bare name"
    name = names.parse(text)
    if name is None or name.kind is not Kind.DMAP:
        return "not the name of a compressed rawacf"
    return f"of {name.time:%Y%m}, in the list of {month}"


def _fault_of_hash(line: bytes) -> str:
    """What is wrong with a line up to its name; empty when nothing is."""
    if b"\0" in line:
        return "a NUL byte"
    if line.endswith(b"\r"):
        return "ends with CR LF instead of LF"
    if not line.isascii():
        return "a byte that is not ASCII"
    if not re.match(rb"[0-9a-f]{40}(?![0-9a-zA-Z])", line):
        return "does not begin with 40 lower-case hexadecimal digits"
    return "" if re.match(rb".{40}  [^ ]", line) else "not two spaces after the hash"


_ANY_NAME_INSIDE = re.compile(rb"\.rawacf\.bz2")


def _fault_of_failed_line(line: bytes) -> str:
    found = re.fullmatch(rb"[0-9a-f]{40}  (.*?) \| .*\S", line)
    if found is None:
        return "not of the form: hash, two spaces, name, ' | ', reason"
    return "not the name of a compressed rawacf" if not _is_dmap(found[1].decode("latin-1")) else "a CR or NUL byte"


def _is_dmap(text: str) -> bool:
    name = names.parse(text)
    return name is not None and name.kind is Kind.DMAP


def _joined(lines: Iterable[bytes], kept: Iterable[Line]) -> bytes:
    return b"".join(part for line in (*lines, *kept) for part in (line, b"\n"))
