"""The page of a comparison, in a real browser: it opens by itself, says what was found, and runs nothing of what a list says."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dataflow.mirror import report_page
from dataflow.mirror.agreement import Detail, Entry, Report
from dataflow.mirror.differences import Difference, Kind
from dataflow.mirror.hash_lists import Refusal

TIME, RUN = "2026-11-20T12:00:00.000000Z", "20261120T120000.000000Z-1"
SHA1, OTHER = "1f0c4a6be55d06fb4a2f03a2fdb2b1f2a36e4dc5", "5e2a8d0b3c51f3cc5a0d6a5b1f4be1b0c4d5e6f7"
NAMES = [f"20261101.{hour:02}00.00.sas.a.rawacf.bz2" for hour in range(24)]
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</td></table></main><h1>owned</h1>",
    "\" onmouseover=\"document.title = 'owned'",
    "&lt;b&gt;&#60;script&#62;document.title = 'owned'&#60;/script&#62;",
]


def entry(agreed: int = 1000, **fields) -> Entry:
    return Entry(TIME, RUN, agreed, **fields)


def made() -> tuple[Report, dict[str, Detail]]:
    """A report with everything in it that there can be."""
    months = {
        "202511": entry(),
        "202512": entry(counts={"too new": 1}),
        "202601": entry(999, counts={"different": 1}),
        "202602": entry(995, counts={"only here": 5}),
        "202603": entry(950, counts={"only there": 50}),
        "202604": entry(10, counts={"only there": 3000}),
        "202605": entry(0, counts={"only there": 1234}, no_list="here"),
        "202606": Entry(problem='raw/2026/06 cannot be opened: <b>permission</b> denied" onmouseover="alert(1)'),
        "202607": entry(counts={"different": 2}, problem="the line is dead"),
        "202608": entry(excluded=7),
        "202611": entry(
            800, counts={"different": 1, "only here": 2, "blocked": 1, "failed": 1}, refused_there=len(HOSTILE), unclear=1
        ),
    }
    detail = Detail(
        (
            Difference(NAMES[0], Kind.DIFFERENT, SHA1, OTHER),
            Difference(NAMES[1], Kind.ONLY_HERE, SHA1, None),
            Difference(NAMES[2], Kind.ONLY_HERE, SHA1, None),
            Difference(NAMES[3], Kind.BLOCKED, None, OTHER),
            Difference(NAMES[4], Kind.FAILED, None, OTHER),
        ),
        (NAMES[5],),
        (),
        tuple(Refusal(number, text, f"odd: {text}") for number, text in enumerate(HOSTILE, 10)),
    )
    report = Report("bas", "British <Antarctic> Survey & friends", TIME, RUN, months, {"only here": [NAMES[1]]})
    return report, {"202611": detail}


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "index.html"
    path.write_text(report_page.page(*made()))
    return path


class Elements(HTMLParser):
    """The elements of a page: that each is closed in order, and the text of all."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.found if each == tag]


def in_browser(*words: object) -> str:
    """What a real browser says of a page."""
    program = shutil.which("chromium")
    assert program, "there is no chromium: tools/system-packages chromium"
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    argv = [program, "--headless", "--no-sandbox", *quiet, "--disable-sync", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


# -- the text


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page):
    text = page.read_text()
    elements = Elements(text)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in elements.found}
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert not any(key.startswith("on") or key == "src" for _, attributes in elements.found for key in attributes)
    links = {str(each["href"]) for each in elements.all("a")}
    assert all(re.fullmatch(r"#m\d{6}|months/\d{6}\.txt", link) for link in links)
    targets = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(targets) == len(set(targets)) and {link[1:] for link in links if link[0] == "#"} <= set(targets)


def test_what_a_list_says_is_text(page):
    text = Elements(page.read_text()).text
    assert all(each in text for each in HOSTILE)
    assert "British <Antarctic> Survey & friends" in text and "<b>permission</b> denied" in text


def test_every_month_is_a_cell_that_says_in_words_what_its_colour_means(page):
    elements = Elements(page.read_text())
    titles = {str(each["title"])[:7]: each["title"] for tag, each in elements.found if "title" in each}
    assert titles["2025-11"] == "2025-11: 1,000 the same"
    assert titles["2026-01"] == "2026-01: 999 the same, 1 different"
    assert titles["2026-05"] == "2026-05: no list here, 0 the same, 1,234 only there"
    assert titles["2026-07"] == f"2026-07: not compared: the line is dead; numbers of {TIME}, 1,000 the same, 2 different"
    assert set(titles) == {f"{month[:4]}-{month[4:]}" for month in made()[0].months}
    cells = [each["class"] for each in elements.all("td") if each.get("class")]
    for level in ("all", "most", "many", "some", "few", "absent", "unread"):
        assert any(level in str(each).split() for each in cells), level


def test_every_number_and_name_is_there_and_what_is_new_is_marked(page):
    text = page.read_text()
    assert all(name in text for name in NAMES[:6])
    assert re.findall(r'([^>]+)</td><td class="new">new<', text) == [NAMES[1]]
    assert '<p>5 more: <a href="months/202602.txt">' in text and "months/202611.txt" not in text
    assert "dataflow mirror sync bas --month 202603" in text
    total = made()[0].total
    assert all(f"<strong>{number:,}</strong>" in text for number in (total.agreed, total.differing, total.refused_there))


def test_what_is_not_all_is_not_called_100_percent():
    report = Report("bas", "BAS", TIME, RUN, {"202601": entry(10_000_000, counts={"different": 1})})
    assert "100.00" not in report_page.page(report, {})


def test_a_report_of_nothing_is_a_page_too():
    text = report_page.page(Report("bas", "BAS", TIME, RUN), {})
    assert "No month has been compared yet" in Elements(text).text


# -- in a browser


def test_a_browser_shows_it_and_runs_nothing(page, tmp_path):
    seen = in_browser(f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"{page.as_uri()}#m202611")
    elements = Elements(seen.removeprefix("<!DOCTYPE html>"))
    assert "<title>Comparison with British &lt;Antarctic&gt; Survey &amp; friends</title>" in seen, "a script changed it"
    assert not elements.all("script") and not elements.all("img") and len(elements.all("h1")) == 1
    assert all(each in elements.text for each in HOSTILE)
    opened = [each for each in elements.all("details") if "open" in each]
    assert len(opened) == 1, "a link of the calendar opens its month"


@pytest.mark.parametrize(("scheme", "back"), [(1, (255, 255, 255)), (0, (18, 23, 30))], ids=["light", "dark"])
def test_it_is_drawn_light_and_dark(page, tmp_path, scheme, back):
    picture = tmp_path / "page.png"
    words = ["--window-size=1400,1600", "--hide-scrollbars", f"--blink-settings=preferredColorScheme={scheme}"]
    in_browser(f"--user-data-dir={tmp_path}/profile", *words, f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as image:
        drawn = image.convert("RGB")
        assert drawn.size == (1400, 1600) and drawn.getpixel((3, 3)) == back
        assert len(drawn.getcolors(1 << 20)) > 100, "nothing was drawn"
        assert {drawn.getpixel((1397, y)) for y in range(0, 1600, 7)} == {back}, "something sticks out on the right"
