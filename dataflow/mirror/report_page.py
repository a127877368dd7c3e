"""The report of a comparison as one HTML page: what is to be done, a calendar of agreement, and the names of each month.

One file that needs nothing else: no script, nothing fetched, light or dark as the reader's system is. Every number that colour
stands for is written there as well. What a partner's list says is text and nothing but text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape

from dataflow.mirror.agreement import Detail, Entry, Report, counted, refused_lines, remark, together
from dataflow.mirror.differences import MEANINGS, Difference, Kind, action

_LEVELS = (
    (1.0, "all", "all files agree"),
    (0.999, "most", "99.9 % or more"),
    (0.99, "many", "99 % or more"),
    (0.9, "some", "90 % or more"),
)
_LOWEST = (0.0, "few", "less than 90 %")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b2430; --faint: #5b6675; --line: #d5dbe3; --panel: #f4f6f9;
  --link: #0b57a4; --all: #d5ede2; --all-text: #0d5138; --most: #fdf3c4; --many: #fbd38a; --some: #ef8f5c; --few: #a92a2a;
  --most-text: #4b3c00; --many-text: #4a2d00; --some-text: #2c0f00; --few-text: #fff; --stripe: #c3cbd6; }
@media (prefers-color-scheme: dark) { :root { --back: #12171e; --text: #e2e7ee; --faint: #9aa6b5; --line: #303a47;
  --panel: #1a212b; --link: #82b8f2; --all: #17402f; --all-text: #b5e6cf; --most: #47400f; --many: #6b4a0e; --some: #93451f;
  --few: #d9534f; --most-text: #fbefb4; --many-text: #ffe6b8; --some-text: #ffe9dd; --few-text: #1c0303; --stripe: #3a4656; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
h4 { font-size: .95rem; margin: 1.2rem 0 .1rem; }
p { margin: .2rem 0 .6rem; max-width: 60rem; }
a { color: var(--link); }
code, .hash, .name { font-family: ui-monospace, monospace; font-size: .85em; }
.faint { color: var(--faint); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; }
.tiles { line-height: 1.3; list-style: none; margin: 1.4rem 0 0; padding: 0; }
.tiles li { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; }
.tiles strong { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .5rem; }
th { text-align: left; font-weight: 600; }
.plain th { font-family: inherit; }
.plain th, .plain td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.plain .number { text-align: right; white-space: nowrap; }
.calendar { border-collapse: separate; border-spacing: 3px; width: 100%; min-width: 52rem; table-layout: fixed; }
.calendar th { font-size: .85rem; text-align: center; color: var(--faint); }
.calendar th:first-child { width: 3.5rem; text-align: left; }
.calendar th[scope=row] { color: var(--text); }
.calendar td { height: 2rem; padding: 0; text-align: center; font-size: .85rem; border-radius: .3rem; }
.calendar td > * { display: flex; height: 2rem; align-items: center; justify-content: center; color: inherit; }
.calendar a { text-decoration: none; }
.calendar a:hover, .calendar a:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; text-decoration: underline; }
.calendar .year { width: 5rem; color: var(--faint); text-align: right; }
.all { background: var(--all); color: var(--all-text); }
.most { background: var(--most); color: var(--most-text); }
.many { background: var(--many); color: var(--many-text); }
.some { background: var(--some); color: var(--some-text); }
.few { background: var(--few); color: var(--few-text); }
.absent { background: repeating-linear-gradient(135deg, var(--panel) 0 6px, var(--stripe) 6px 8px); }
.calendar .absent { font-size: .68rem; }
.absent > * { text-shadow: 0 0 3px var(--back), 0 0 3px var(--back), 0 0 3px var(--back); }
.unread { outline: 2px dashed; outline-offset: -2px; }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0 0; font-size: .85rem; }
.legend span { display: inline-block; min-width: 2.2rem; padding: 0 .3rem; text-align: center; border-radius: .3rem; }
.legend span { margin-right: .4rem; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .35rem 0; background: var(--panel); }
summary { cursor: pointer; padding: .35rem .8rem; }
summary strong { margin-right: .8rem; font-variant-numeric: tabular-nums; }
.inside { padding: 0 1rem 1rem; scroll-margin-top: 4rem; }
.new { color: var(--link); font-weight: 600; font-size: .85em; }
.odd { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(report: Report, details: dict[str, Detail]) -> str:
    """The page. ``details``: the names to show, of each month in which there is something to tell."""
    return "\n".join(_page(report, details))


def _page(report: Report, details: dict[str, Detail]) -> Iterator[str]:
    title = f"Comparison with {escape(report.title)}"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>"
    yield f'<h1>{title}</h1>\n<p class="faint">{_minute(report.time)} · run {escape(report.run)}</p>'
    yield from _tiles(report)
    yield from _what_to_do(report)
    yield from _calendar(report)
    yield from _months(report, details)
    yield "</main>\n</body>\n</html>\n"


def _tiles(report: Report) -> Iterator[str]:
    total = report.total
    refused = total.refused_here + total.refused_there
    tiles = [
        (_percent(total), "of files agree"),
        (f"{total.agreed:,}", "files the same"),
        (f"{total.differing:,}", "files differ"),
        (f"{total.counts.get(Kind.TOO_NEW, 0):,}", "files too new to tell"),
        (f"{len(report.months):,}", "months compared"),
    ]
    tiles += [(f"{refused:,}", "refused lines")] if refused else []
    tiles += [(f"{total.excluded:,}", "files of radars not taken here")] if total.excluded else []
    yield '<ul class="tiles">'
    yield from (f"<li><strong>{number}</strong> {text}</li>" for number, text in tiles)
    yield "</ul>"


def _what_to_do(report: Report) -> Iterator[str]:
    counts = report.total.counts
    yield "<h2>What there is to do</h2>"
    if not counts:
        yield "<p>Nothing: the mirrors list the same files.</p>"
        return
    columns = (("Difference", ""), ("Files", "number"), ("New", "number"), ("Meaning", ""), ("What to do", ""))
    kinds = [kind for kind in Kind if kind in counts]
    numbers = [(f"{counts[kind]:,}", f"{len(report.new.get(kind, ())):,}") for kind in kinds]
    texts = [(MEANINGS[kind], action(kind, report.partner, "YYYYMM")) for kind in kinds]
    yield from _table(columns, ((kind, *row, *text) for kind, row, text in zip(kinds, numbers, texts, strict=True)))


def _calendar(report: Report) -> Iterator[str]:
    yield "<h2>Agreement by month</h2>"
    if not report.months:
        yield "<p>No month has been compared yet.</p>"
        return
    yield '<div class="wide"><table class="calendar">'
    yield "<caption>A number is how many files differ; it leads to their names.</caption>"
    heads = "".join(f'<th scope="col">{month}</th>' for month in _MONTHS)
    yield f'<thead><tr><th scope="col">Year</th>{heads}<th scope="col" class="year">Agree</th></tr></thead>\n<tbody>'
    for year in sorted({month[:4] for month in report.months}, reverse=True):
        whole = together(entry for month, entry in report.months.items() if month[:4] == year)
        cells = "".join(_cell(f"{year}{month:02}", report.months.get(f"{year}{month:02}")) for month in range(1, 13))
        yield f'<tr><th scope="row">{year}</th>{cells}<td class="year">{_percent(whole)}</td></tr>'
    yield "</tbody></table></div>"
    levels = [(name, "✓" if least == 1 else "n", text) for least, name, text in (*_LEVELS, _LOWEST)]
    others = [
        ("absent", "none", "one mirror has no list"),
        ("unread", "?", "could not be compared"),
        ("", "!", "lines were refused"),
    ]
    items = "".join(f'<li><span class="{name}">{sign}</span>{text}</li>' for name, sign, text in (*levels, *others))
    yield f'<ul class="legend" aria-label="Legend">{items}</ul>'


def _cell(month: str, entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    _, level, _ = next((each for each in _LEVELS if entry.agreement >= each[0]), _LOWEST)
    unsure = entry.differing + entry.unclear
    text = f"{unsure:,}" if unsure else "✓"
    if entry.no_list:
        level, text = "absent", f"none {entry.no_list}"
    if entry.problem:
        level, text = ("unread", "?") if not entry.time else (f"{level} unread", f"{text} ?")
    if entry.refused_here or entry.refused_there:
        text += " !"
    said = escape(f"{_month(month)}: {_sentence(entry)}", quote=True)
    if entry.is_clear:
        return f'<td class="{level}"><span title="{said}">{text}</span></td>'
    return f'<td class="{level}"><a href="#m{month}" title="{said}" aria-label="{said}">{text}</a></td>'


def _percent(entry: Entry) -> str:
    """Rounded down: what is not all is not 100 %."""
    return f"{int(10000 * entry.agreement) / 100:.2f} %"


def _months(report: Report, details: dict[str, Detail]) -> Iterator[str]:
    told = [month for month in sorted(report.months, reverse=True) if not report.months[month].is_clear]
    if told:
        yield "<h2>Month by month</h2>\n<p>Months in which all files agree are left out.</p>"
    for month in told:
        entry = report.months[month]
        yield f"<details><summary><strong>{_month(month)}</strong>{escape(_sentence(entry))}</summary>"
        yield f'<div class="inside" id="m{month}">'
        yield from _inside(report, month, entry, details.get(month, Detail()))
        yield "</div></details>"


def _inside(report: Report, month: str, entry: Entry, detail: Detail) -> Iterator[str]:
    if entry.time:
        yield f'<p class="faint">Compared {_minute(entry.time)}, run {escape(entry.run)}</p>'
    for kind in Kind:
        shown = [each for each in detail.differences if each.kind is kind]
        if count := entry.counts.get(kind):
            yield f"<h4>{kind}: {counted(count, 'file')}</h4>"
            yield f"<p>{MEANINGS[kind].capitalize()}. To do: {escape(action(kind, report.partner, month))}.</p>"
            yield from _names(shown, frozenset(report.new.get(kind, ())))
            yield from _more(month, count - len(shown)) if not entry.no_list else ()
    if detail.unclear:
        yield f"<h4>unclear: {counted(entry.unclear, 'file')}</h4><p>They are named in refused lines only.</p>"
        yield f'<p class="name odd">{escape(" ".join(detail.unclear))}</p>'
        yield from _more(month, entry.unclear - len(detail.unclear))
    for whose, count, lines in refused_lines(report, entry, detail):
        yield f"<h4>refused: {counted(count, 'line')} of {escape(whose)}</h4>"
        yield "<p>They are not used; whoever keeps the list should mend it.</p>"
        columns = (("Line", "number"), ("Reason", ""), ("Text", "name odd"))
        yield from _table(columns, ((f"{each.line:,}", each.reason, each.text) for each in lines))
        yield from _more(month, count - len(lines))


def _names(shown: list[Difference], new: Collection[str]) -> Iterator[str]:
    if shown:
        columns = (("File", "name"), ("", "new"), ("SHA-1 here", "hash"), ("SHA-1 there", "hash"))
        rows = ((each.name, "new" if each.name in new else "", each.here or "–", each.there or "–") for each in shown)
        yield from _table(columns, rows)


def _table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of texts; each column has a title and a class."""
    heads = "".join(f'<th scope="col" class="{name}">{title}</th>' for title, name in columns)
    yield f'<div class="wide"><table class="plain">\n<thead><tr>{heads}</tr></thead>\n<tbody>'
    for row in rows:
        cells = "".join(f'<td class="{name}">{escape(text)}</td>' for (_, name), text in zip(columns, row, strict=True))
        yield f"<tr>{cells}</tr>"
    yield "</tbody>\n</table></div>"


def _more(month: str, count: int) -> Iterator[str]:
    if count > 0:
        yield f'<p>{count:,} more: <a href="months/{month}.txt">months/{month}.txt</a></p>'


def _sentence(entry: Entry) -> str:
    """A month in one line."""
    counts = [f"{entry.counts[kind]:,} {kind}" for kind in Kind if entry.counts.get(kind)]
    refused = entry.refused_here + entry.refused_there
    parts = [
        remark(entry),
        f"{entry.agreed:,} the same" if entry.time else "",
        *counts,
        f"{entry.unclear:,} unclear" if entry.unclear else "",
        f"{counted(refused, 'line')} refused" if refused else "",
    ]
    return ", ".join(part for part in parts if part)


def _month(month: str) -> str:
    return f"{month[:4]}-{month[4:]}"


def _minute(time: str) -> str:
    return escape(f"{time[:10]} {time[11:16]} UTC")
