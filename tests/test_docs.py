"""The documents say what is so: every command, path, key, alert and step that they name is there, and their examples run."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import world
import yaml
from PIL import Image

from dataflow import cli
from dataflow.lib import config, names, step
from dataflow.lib.config import Flow, Host

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
STEPS = (REPOSITORY / "docs" / "steps.md").read_text()
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()
DESIGN = (REPOSITORY / "docs" / "design.md").read_text()
MODULES = sorted((REPOSITORY / "dataflow").rglob("*.py"))
NEVER_QUARANTINED = {"too long", "unknown name", "not antennas_iq"}
"""Kinds of BadFile that no file in a chain can have: requests are refused, and the two others are skipped there."""


def spans(page: Path) -> Iterator[str]:
    """What stands between backquotes outside blocks of code."""
    text = re.sub(r"^(```.*?^```|    .*?$)", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def code_lines(page: Path) -> Iterator[str]:
    """Indented and fenced lines, without the comment that is set off by blanks."""
    fenced = False
    for line in page.read_text().splitlines():
        fenced = fenced ^ line.startswith("```")
        if fenced or line.startswith("    "):
            yield re.split(" {2,}", line.strip())[0]


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the table that has a column of this name."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


# -- the steps


def test_the_table_of_steps_says_what_their_headers_say():
    flow = config.load(REPOSITORY / "config.yaml").flow
    files = [path for folder in ("site", "campus") for path in (REPOSITORY / "dataflow" / folder).glob("[a-z]*.*")]
    told = {re.findall(r"`(\w+)`", row[0])[0]: row for row in rows_of(STEPS, "step")}
    assert set(told) == {path.stem for path in files}
    for name, row in told.items():
        header = dict(re.findall(r"^(Runs on|Reads|Writes|Removes): +(.+?)$", step.header(name), re.MULTILINE))
        assert row[1:5] == [header[key] for key in ("Runs on", "Reads", "Writes", "Removes")], name
        hosts = {host for host, settings in flow.hosts.items() if name in {entry.split()[0] for entry in settings.steps}}
        assert {word for word in re.findall(r"[a-z-]+", row[1]) if word in flow.hosts} == hosts, name
        if name not in ("send_flag", "send_logs"):
            before = next((host for host in flow.hosts if flow.hosts[host].next in hosts), None)
            assert row[5].startswith("a new file in the radar's data" if before is None else f"a flag from {before};"), name


def test_the_picture_names_the_steps_of_the_configuration():
    hosts = config.load(REPOSITORY / "config.yaml").flow.hosts
    picture = ElementTree.parse(REPOSITORY / "docs" / "chain.svg")
    drawn = [element.text for element in picture.iter() if element.get("class") == "step"]
    assert drawn == [entry for host in hosts.values() for entry in host.steps]


def example(name: str) -> str:
    return re.search(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)^```", STEPS, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def own_steps(tmp_path) -> tuple[Path, world.World]:
    """The two steps of the page in a folder, and a world whose configuration has the page's list with their paths."""
    folder = tmp_path / "steps"
    folder.mkdir()
    (entries,) = [yaml.safe_load(block) for block in re.findall(r"<!-- config -->\n```yaml\n(.*?)^```", STEPS, re.M | re.S)]
    listed = [entry.replace("/opt/dataflow-steps", str(folder)) for entry in entries["hosts"]["campus"]["steps"]]
    own = [entry for entry in listed if entry.startswith("/")]
    assert [entry for entry in listed if entry not in own] == list(
        config.load(REPOSITORY / "config.yaml").flow.hosts["campus"].steps
    )
    for entry in own:
        Path(entry).write_text(example(Path(entry).name))
    return folder, world.make(tmp_path / "machines", [f"hosts.campus.steps={json.dumps(own)}"])


def test_a_step_of_ones_own_in_shell_runs(own_steps):
    folder, made = own_steps
    plots = made.here("campus").folder("plots")
    plots.mkdir(parents=True)
    assert made.run("campus", str(folder / "newest_contact_sheet.sh"))[0] == 0, "with nothing to do"
    for hour in ("00", "02"):
        (plots / f"20261101.{hour}00.00.sas.0.antennas_iq.contact.jpg").write_text(hour)
    code, records = made.run("campus", str(folder / "newest_contact_sheet.sh"))
    assert code == 0 and (plots / "newest" / "contact.jpg").read_text() == "02"
    assert [(r["step"], r["file"][9:13], r["outcome"]) for r in records if r["event"] == "file"] == [
        ("newest_contact_sheet", "0200", "done")
    ]
    code, records = made.run("campus", str(folder / "newest_contact_sheet.sh"))
    assert code == 0 and not [r for r in records if r["event"] == "file"], "it is the newest still"


def test_a_step_of_ones_own_in_python_runs_and_a_bad_file_is_quarantined(own_steps):
    folder, made = own_steps
    plots = made.here("campus").folder("plots")
    plots.mkdir(parents=True)
    Image.new("RGB", (1900, 1200)).save(plots / "20261101.0000.00.sas.0.antennas_iq.contact.jpg")
    (plots / "20261101.0200.00.sas.0.antennas_iq.contact.jpg").write_text("no picture")
    code, records = made.run("campus", str(folder / "draw_thumbnails.py"))
    assert code == 1
    assert [(r["file"][9:13], r["outcome"], r.get("kind")) for r in records if r["event"] == "file"] == [
        ("0000", "done", None),
        ("0200", "quarantined", "not a picture"),
    ]
    with Image.open(plots / "thumbnails" / "20261101.0000.00.sas.0.antennas_iq.contact.jpg") as thumbnail:
        assert max(thumbnail.size) == 400


def test_the_daemon_runs_the_steps_of_ones_own_where_the_list_has_them(own_steps):
    folder, made = own_steps
    plots = made.here("campus").folder("plots")
    plots.mkdir(parents=True)
    Image.new("RGB", (1900, 1200)).save(plots / "20261101.0000.00.sas.0.antennas_iq.contact.jpg")
    argv = [sys.executable, "-m", "dataflow", "daemon", "campus", "--radar", "sas", "--once", "--root", str(made.root)]
    argv += [word for setting in made.config.overrides for word in ("--set", setting)]
    finished = subprocess.run(argv, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert {path.parent.name for path in plots.rglob("*.jpg")} == {plots.name, "newest", "thumbnails"}
    for name, said in (("draw_thumbnails.py", "Draw a thumbnail"), ("newest_contact_sheet.sh", "Keep the newest")):
        shown = io.StringIO()
        with redirect_stdout(shown), pytest.raises(SystemExit) as ended:
            cli.main(["run", str(folder / name), "--help"])
        assert ended.value.code == 0 and said in shown.getvalue()


def test_the_shell_example_is_what_shellcheck_likes(tmp_path):
    (tmp_path / "step.sh").write_text(example("newest_contact_sheet.sh"))
    finished = subprocess.run(["shellcheck", "-e", "SC1010,SC1091", tmp_path / "step.sh"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout


# -- commands, paths, keys


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        candidates = [*spans(page), *code_lines(page)]
        for text in candidates:
            if command := re.fullmatch(r"(?:sudo -u dataflow )?(?:\.venv/bin/)?dataflow (.+)", text):
                found.append((page.name, command[1]))
    return found


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_every_command_is_one_that_dataflow_takes(page, command):
    words = shlex.split(re.sub(r"\.\.\.(?!\")|[\[\]]", "", command.replace("STEP", "rsync_to_nas")))
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            cli._parsed(words)
    except SystemExit as ended:
        only_named = "the following arguments are required" in said.getvalue() and len(words) <= 2
        assert ended.code == 0 or only_named, f"{page}: dataflow {command}: {said.getvalue()}"


def test_enough_commands_were_found_to_mean_something():
    assert len(commands()) > 50 and {"README.md", "operations.md", "steps.md"} <= {page for page, _ in commands()}


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        word for page in PAGES for text in (*spans(page), *code_lines(page)) for word in re.findall(r"\bmake ([a-z]+)", text)
    }
    assert {"demo", "test", "install"} <= named <= targets


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_repository_that_is_named_exists(page):
    folders = {path.name for parent in (REPOSITORY, REPOSITORY / "dataflow") for path in parent.iterdir() if path.is_dir()}
    for text in spans(page):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", text) and text.split("/")[0] in folders - {"bench"}:
            candidates = [base / f"{text}{ending}" for base in (REPOSITORY, REPOSITORY / "dataflow") for ending in ("", ".py")]
            assert any(path.exists() for path in candidates), text


def test_absolute_paths_are_those_of_the_configuration_and_the_installation():
    sources = [REPOSITORY / "config.yaml", REPOSITORY / "tools" / "install", *(REPOSITORY / "services").glob("*.service")]
    known = {path for source in sources for path in re.findall(r"(?<![\w.\"])/[a-z]+/[\w.-]+", source.read_text())}
    known |= {root.path for host in config.load(REPOSITORY / "config.yaml").flow.hosts.values() for root in host.roots.values()}
    known |= {"/usr/local", "/home/dataflow", "/tmp/dataflow-", "/opt/dataflow-steps", "/etc/systemd"}
    for page in PAGES:
        for path in re.findall(
            r"(?<![\w.>*}])/(?:etc|var|opt|usr|data|sddata|home|tmp|root|work|mnt|srv)/[\w./<>-]*", page.read_text()
        ):
            assert any(path.startswith(prefix) for prefix in known), f"{page.name}: {path}"


@pytest.mark.parametrize(
    "page", [*PAGES, REPOSITORY / "docs" / "chain.svg", REPOSITORY / "config.yaml"], ids=lambda page: page.name
)
def test_no_page_names_a_place_of_the_machine_where_it_was_written(page):
    text = page.read_text()
    for place in (REPOSITORY, REPOSITORY.parent / "shared", Path(sys.prefix), Path.home()):
        assert len(place.parts) < 2 or f"{place}/" not in text
    assert "../shared" not in text


def test_units_that_are_named_exist():
    named = {unit for page in PAGES for unit in re.findall(r"dataflow-([a-z-]+)@", page.read_text())}
    assert named and all((REPOSITORY / "services" / f"dataflow-{unit}@.service").is_file() for unit in named)


def test_every_configuration_key_that_is_named_is_one():
    sections = {field.name: field for field in dataclasses.fields(Flow)}
    hints = {name: getattr(config, name.capitalize(), None) for name in sections}
    checked = 0
    for page in PAGES:
        for text in spans(page):
            words = text.split(".")
            if words[0] == "hosts" and len(words) == 3:
                assert words[2] in {field.name for field in dataclasses.fields(Host)}, text
                checked += 1
            elif words[0] in sections and len(words) == 2 and dataclasses.is_dataclass(hints[words[0]]):
                assert words[1] in {field.name for field in dataclasses.fields(hints[words[0]])}, text
                checked += 1
    assert checked >= 8


def test_every_number_of_the_configuration_is_used():
    code = "".join(path.read_text() for path in MODULES if path.name != "config.py")
    sections = {
        name: getattr(config, name.capitalize(), None)
        for name in ("files", "daemon", "ssh", "transfer", "plots", "campus", "scrub")
    }
    unused = [
        f"{name}.{field.name}"
        for name, section in sections.items()
        for field in dataclasses.fields(section)
        if not re.search(rf"\.{field.name}\b", code)
    ]
    assert not unused


def test_the_design_names_every_module_of_lib_and_no_other():
    house = DESIGN[DESIGN.index("## 12.") : DESIGN.index("## 13.")]
    named = {
        word
        for line in re.findall(r"^- Of .*?$|^- For .*?$|^  .*?$", house, re.MULTILINE)
        for word in re.findall(r"`([a-z0-9_]+)`", line)
    }
    assert named == {path.stem for path in (REPOSITORY / "dataflow" / "lib").glob("[a-z]*") if path.suffix != ".sh"}


# -- what operations.md says of alerts, kinds and codes


def texts_of(node: ast.AST, module: Path) -> Iterator[str]:
    """A text as the program says it, with `...` for what it fills in; upper-case names are filled in here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else filled(v.value, module) for v in node.values)


def filled(node: ast.AST, module: Path) -> str:
    if isinstance(node, ast.Name) and node.id.isupper():
        name = ".".join(module.relative_to(REPOSITORY).with_suffix("").parts)
        return str(getattr(importlib.import_module(name), node.id))
    return "..."


MESSAGE_POSITION = {"alert.tell": 1, "alert.tell_once": 3, "self._skip": 1, "self._tell_once": 1}


def alerts() -> Iterator[str]:
    """The message of every alert in the program; a stranger's comes through `_skip`, with the file before it."""
    for module in MODULES:
        functions = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            nodes = list(ast.walk(function))
            values = {ast.unparse(t): n.value for n in nodes if isinstance(n, ast.Assign) for t in n.targets}
            for call in (n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) in MESSAGE_POSITION):
                called = ast.unparse(call.func)
                argument = call.args[MESSAGE_POSITION[called]]
                message = values.get(ast.unparse(argument), argument)
                for text in texts_of(message, module):
                    if re.search("[a-z]", text):
                        yield f"...: {text}" if called == "self._skip" else spelled_out(text, values, message, module)


def spelled_out(text: str, values: dict[str, ast.AST], message: ast.AST, module: Path) -> str:
    """An f-string that begins with another variable of its function, with that one's text in its place."""
    first = message.values[0] if isinstance(message, ast.JoinedStr) else None
    if isinstance(first, ast.FormattedValue) and isinstance(first.value, ast.Name) and first.value.id in values:
        return next((inner + text[3:] for inner in texts_of(values[first.value.id], module)), text)
    return text


def test_every_alert_has_its_line_in_the_table_and_every_line_is_an_alert():
    told = [row[0].strip("`") for row in rows_of(OPERATIONS, "alert")]
    raised = list(alerts())
    assert len(raised) >= 11
    for text in raised:
        assert any(text.startswith(line) for line in told), text
    everything = raised + [
        text
        for node in ast.walk(ast.parse((REPOSITORY / "dataflow/lib/place.py").read_text()))
        for text in texts_of(node, REPOSITORY / "dataflow/lib/place.py")
    ]
    for line in told:
        assert any(text.startswith(line) for text in everything), line


def test_every_kind_of_bad_file_is_explained():
    told = [kind for row in rows_of(OPERATIONS, "kind") for kind in re.findall(r"`([^`]+)`", row[0])]
    raised = set()
    for module in MODULES:
        for call in (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call) and node.args):
            if ast.unparse(call.func) in ("BadFile", "super().__init__"):
                raised |= {c.value for c in ast.walk(call.args[0]) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    raised -= {"bad", "newer ", "unreadable "}
    assert len(told) == len(set(told))
    assert set(told) == raised - NEVER_QUARANTINED


def test_every_exit_code_is_explained():
    from dataflow.lib.errors import Exit

    assert {row[0] for row in rows_of(OPERATIONS, "exit")} == {str(int(code)) for code in Exit}


def test_names_in_the_pages_are_names():
    found = {word for page in PAGES for word in re.findall(r"\b\d{8}\.\d{4}\.\d{2}\.\w+\.[\w.]+\w", page.read_text())}
    assert found and all(names.parse(word) for word in found)
