"""What comparisons with a partner have found, kept month by month in a folder of its own:

    report.json, report.txt, index.html        all months
    months/<YYYYMM>.json, months/<YYYYMM>.txt  a month in which there is something to tell, with every name

A run may compare a few months only; of the others the report says what was found last, and when. ``report.json`` and the files
of the months are therefore read again by the next run, and everything else is written from them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from dataflow.lib import place
from dataflow.lib.config import Here
from dataflow.mirror import layout
from dataflow.mirror.differences import MEANINGS, Difference, Kind, action
from dataflow.mirror.hash_lists import Refusal

VERSION = 1
REFUSED_MAX = 1000
"""How many refused lines of a list the files of its month show; more would tell nothing else."""
SHOWN_MAX = 100
"""How many names of one kind, or refused lines of one list, are shown of a month outside of the month's own files."""
_NUMBERS = ("agreed", "excluded", "unclear", "refused_here", "refused_there")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one month. ``time``, ``run``: of the comparison that found it; empty when there was none yet.

    ``counts``: files by kind of difference. ``no_list``: the side that has no list of the month, ``here`` or ``there``; the
    counts then stand for the names of the other. ``problem``: why the last run could not compare, the rest being older.
    """

    time: str = ""
    run: str = ""
    agreed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    excluded: int = 0
    unclear: int = 0
    refused_here: int = 0
    refused_there: int = 0
    no_list: str = ""
    problem: str = ""

    @property
    def differing(self) -> int:
        """Files in which the mirrors differ, those that are on their way not counted."""
        return sum(self.counts.values()) - self.counts.get(Kind.TOO_NEW, 0)

    @property
    def agreement(self) -> float:
        """The part of all files, from 0 to 1, that both mirrors list with one hash."""
        return self.agreed / max(1, self.agreed + self.differing + self.unclear)

    @property
    def is_clear(self) -> bool:
        """Whether there is nothing at all to tell."""
        return not (self.counts or self.unclear or self.refused_here or self.refused_there or self.no_list or self.problem)


@dataclass(frozen=True, slots=True)
class Detail:
    """The names of one month, and the lines that were refused in either list. No names where one side has no list at all."""

    differences: tuple[Difference, ...] = ()
    unclear: tuple[str, ...] = ()
    refused_here: tuple[Refusal, ...] = ()
    refused_there: tuple[Refusal, ...] = ()


@dataclass(slots=True)
class Report:
    """All months of one partner. ``new``: by subject, what was not so in the report before."""

    partner: str
    title: str
    time: str
    run: str
    months: dict[str, Entry] = field(default_factory=dict)
    new: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> Entry:
        """All months together."""
        return together(self.months.values())


def together(entries: Iterable[Entry]) -> Entry:
    """The numbers of several months as those of one."""
    every = list(entries)
    counts = sum((Counter(entry.counts) for entry in every), Counter[str]())
    return Entry(counts=dict(counts), **{key: sum(getattr(entry, key) for entry in every) for key in _NUMBERS})


def load_months(folder: Path) -> dict[str, Entry]:
    """The months of the last report; none when there is no report that can be read."""
    try:
        report = json.loads((folder / "report.json").read_bytes())
        if report["v"] != VERSION:
            return {}
        return {month: Entry(**entry) for month, entry in report["months"].items() if layout.is_month(month)}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def load_details(folder: Path, report: Report) -> dict[str, Detail]:
    """The names of each month in which there is something to tell, ``SHOWN_MAX`` of a kind."""
    return {month: _shortened(_load_detail(folder, month)) for month, entry in report.months.items() if not entry.is_clear}


def _shortened(detail: Detail) -> Detail:
    by_kind = ([each for each in detail.differences if each.kind is kind][:SHOWN_MAX] for kind in Kind)
    refused = detail.refused_here[:SHOWN_MAX], detail.refused_there[:SHOWN_MAX]
    return Detail(tuple(chain.from_iterable(by_kind)), detail.unclear[:SHOWN_MAX], *refused)


def _load_detail(folder: Path, month: str) -> Detail:
    try:
        found = json.loads(_detail_path(folder, month, "json").read_bytes())
        differences = (Difference(**{**each, "kind": Kind(each["kind"])}) for each in found["differences"])
        refused = {key: tuple(Refusal(**each) for each in found[key]) for key in ("refused_here", "refused_there")}
        return Detail(tuple(differences), tuple(found["unclear"]), **refused)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return Detail()


def write_month(here: Here, folder: Path, report: Report, month: str, detail: Detail) -> None:
    """Write the files of a month that was compared, or remove them when there is nothing to tell."""
    entry = report.months[month]
    paths = [_detail_path(folder, month, ending) for ending in ("json", "txt")]
    if entry.is_clear:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    place.make_folder(here, paths[0].parent)
    as_text = "\n".join(_month_lines(report, month, detail))
    for path, text in zip(paths, (_json_of_month(month, entry, detail), as_text), strict=True):
        _write_if_other(path, text.encode() + b"\n")


def write_report(folder: Path, report: Report, page: str) -> None:
    """Write the files of all months. ``page``: the same as HTML."""
    whole: dict[str, Any] = {"v": VERSION, **asdict(report), "total": asdict(report.total)}
    place.write_whole(folder / "index.html", page.encode())
    place.write_whole(folder / "report.txt", "\n".join(_report_lines(report)).encode() + b"\n")
    place.write_whole(folder / "report.json", json.dumps(whole, indent=1).encode() + b"\n")


def digest(report: Report) -> str:
    """All months in one line."""
    total = report.total
    counts = ", ".join(f"{total.counts[kind]:,} {kind}" for kind in Kind if total.counts.get(kind))
    refused = total.refused_here + total.refused_there
    unread = sum(1 for entry in report.months.values() if entry.problem)
    parts = [
        f"{counted(len(report.months), 'month')}, {counted(total.agreed, 'file')} the same",
        counts or "no difference",
        f"{total.excluded:,} of radars that are not taken here" if total.excluded else "",
        f"{counted(refused, 'line')} refused" if refused else "",
        f"{counted(unread, 'month')} could not be compared" if unread else "",
    ]
    return "; ".join(part for part in parts if part)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def refused_lines(report: Report, entry: Entry, detail: Detail) -> Iterator[tuple[str, int, tuple[Refusal, ...]]]:
    """Whose list, how many of its lines were refused, and as many of them as are at hand."""
    if entry.refused_here:
        yield "our list", entry.refused_here, detail.refused_here
    if entry.refused_there:
        yield f"the list of {report.title}", entry.refused_there, detail.refused_there


def _detail_path(folder: Path, month: str, ending: str) -> Path:
    return folder / "months" / f"{month}.{ending}"


def _write_if_other(path: Path, content: bytes) -> None:
    """Most months are today what they were yesterday, and there are hundreds."""
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    place.write_whole(path, content)


def _json_of_month(month: str, entry: Entry, detail: Detail) -> str:
    numbers = {"agreed": entry.agreed, "counts": entry.counts, "excluded": entry.excluded, "no_list": entry.no_list}
    return json.dumps({"v": VERSION, "month": month, **numbers, **asdict(detail)}, indent=1)


def _report_lines(report: Report) -> Iterator[str]:
    yield f"Comparison with {report.title} ({report.partner}), {report.time}, run {report.run}"
    yield digest(report)
    news = ", ".join(f"{len(found):,} {subject}" for subject, found in report.new.items() if found)
    yield f"New since the report before: {news or 'nothing'}"
    total = report.total
    for kind in Kind:
        if total.counts.get(kind):
            yield f"\n{kind}: {counted(total.counts[kind], 'file')}. {MEANINGS[kind][0].upper()}{MEANINGS[kind][1:]}."
            yield f"    {action(kind, report.partner, 'YYYYMM')}"
    columns = ("month", "agree", *Kind, "unclear", "refused")
    rows = [(_row(month, entry), entry) for month, entry in sorted(report.months.items()) if not entry.is_clear]
    widths = [max(10, len(column)) for column in columns]
    if rows:
        yield "\n" + "  ".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
    for row, entry in rows:
        cells = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{cells}  {remark(entry)}".rstrip()


def _row(month: str, entry: Entry) -> Sequence[str]:
    numbers = (
        entry.agreed,
        *(entry.counts.get(kind, 0) for kind in Kind),
        entry.unclear,
        entry.refused_here + entry.refused_there,
    )
    return month, *(f"{number:,}" for number in numbers)


def remark(entry: Entry) -> str:
    """What there is to say of a month besides numbers."""
    if entry.problem:
        return f"not compared: {entry.problem}" + (f"; numbers of {entry.time}" if entry.time else "")
    return f"no list {entry.no_list}" if entry.no_list else ""


def _month_lines(report: Report, month: str, detail: Detail) -> Iterator[str]:
    entry = report.months[month]
    yield f"{month[:4]}-{month[4:]}, compared with {report.title} ({report.partner}): {counted(entry.agreed, 'file')} the same"
    if remark(entry):
        yield remark(entry)
    for kind in Kind:
        if entry.counts.get(kind):
            yield f"\n{kind}: {counted(entry.counts[kind], 'file')}. {MEANINGS[kind][0].upper()}{MEANINGS[kind][1:]}."
            yield f"    {action(kind, report.partner, month)}"
        for each in detail.differences:
            if each.kind is kind:
                yield f"{each.name}    here {each.here or '-'}    there {each.there or '-'}"
    if detail.unclear:
        yield f"\nunclear: {counted(entry.unclear, 'file')}, named in refused lines only, so nobody can say what the list has."
        yield from detail.unclear
    for whose, count, refused in refused_lines(report, entry, detail):
        yield f"\nrefused: {counted(count, 'line')} of {whose}. They are not used; whoever keeps the list should mend it."
        yield from (f"line {each.line}: {each.reason}: {each.text}" for each in refused)
