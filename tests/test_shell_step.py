"""Shell steps and programs of one's own: one file, one line of configuration, and names of any bytes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import world

from dataflow.lib import quarantine, shell_step, step
from dataflow.lib.context import pause_file
from dataflow.lib.errors import Exit

HOSTILE = [
    "plain",
    "a b",
    "new\nline",
    "tab\t",
    "quote'\"",
    "$(touch OOPS)",
    "`touch OOPS`",
    "; touch OOPS",
    "-rf",
    "*",
    os.fsdecode(b"\xff\xfe"),
]
HEAD = """#!/usr/bin/env bash
# Note what a file's name says.
#
# Runs on:  campus

. "$DATAFLOW_LIB/step.sh"
find_files() { find "$DATAFLOW_FOLDER_PLOTS" -maxdepth 1 -type f -print0 | sort -z; }
"""
NOTE_ALL = """
handle_files() {
  while IFS= read -r -d '' file; do
    mv -- "$file" "$DATAFLOW_FOLDER_WORK/"
    note done "$file" "moved away"
  done
}
main "$@"
"""


class Bench:
    """A step of campus in a file of its own, by its absolute path, and files in the folder `plots`."""

    def __init__(self, folder: Path) -> None:
        self.world = world.make(folder / "world")
        self.here = self.world.here("campus")
        self.plots, self.work = self.here.folder("plots"), self.here.folder("work")
        for path in (self.plots, self.work):
            path.mkdir(parents=True)
        self.program = folder / "own steps" / "note_names.sh"
        self.program.parent.mkdir()

    def put(self, *names: str) -> list[Path]:
        for name in names:
            (self.plots / name).touch()
        return [self.plots / name for name in names]

    def script(self, text: str) -> None:
        self.program.write_text(HEAD + text)

    def run(self, *named: Path):
        """The exit code and the outcomes by name, with their reasons."""
        self.world.said.clear()
        code, records = self.world.run("campus", str(self.program), named=named)
        return code, {r["file"]: (r["outcome"], r.get("reason")) for r in records if r["event"] == "file"}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_names_of_any_bytes_travel_whole(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench.script(NOTE_ALL)
    bench.put(*HOSTILE)
    code, outcomes = bench.run()
    assert code == 0 and len(outcomes) == len(HOSTILE)
    assert set(outcomes.values()) == {("done", "moved away")}
    assert sorted(path.name for path in bench.work.iterdir()) == sorted(HOSTILE) and list(bench.plots.iterdir()) == []
    assert not list(tmp_path.rglob("OOPS"))


def test_each_word_is_an_outcome(bench):
    bench.put("a", "b", "c")
    bench.script("""
handle_files() {
  note done "$DATAFLOW_FOLDER_PLOTS/a"
  note kept "$DATAFLOW_FOLDER_PLOTS/b" "the camera is off"
  note bad "$DATAFLOW_FOLDER_PLOTS/c" "no picture"
}
main "$@"
""")
    code, outcomes = bench.run()
    assert code == Exit.LEFT_OVER
    assert outcomes == {"a": ("done", None), "b": ("kept", "the camera is off"), "c": ("quarantined", "no picture")}
    assert [path.name for path, _ in quarantine.reasons(bench.here)] == ["c"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat >/dev/null", "the step ended with 0 without a note on it"),
        ("echo oh dear >&2; exit 4", "the step ended with 4 without a note on it: oh dear"),
        ("false; note done $DATAFLOW_FOLDER_PLOTS/a", "the step ended with 1 without a note on it"),
        ('echo "$NOT_SET"', "the step ended with 1 without a note on it: "),
        ("note done elsewhere/a", "the step ended with 0 without a note on it"),
        ("note perfect $DATAFLOW_FOLDER_PLOTS/a", "the step ended with 0 without a note on it"),
        ("printf 'done\\0' >>$DATAFLOW_NOTES", "the step ended with 0 without a note on it"),
        ("kill -9 $$", "the step ended with -9 without a note on it"),
    ],
)
def test_a_file_without_a_note_is_kept(bench, text, reason):
    bench.put("a")
    bench.script(f'handle_files() {{ {text}; }}\nmain "$@"\n')
    code, outcomes = bench.run()
    assert code == Exit.LEFT_OVER and outcomes["a"][0] == "kept"
    assert outcomes["a"][1].startswith(reason)
    assert (bench.plots / "a").exists()


def test_what_was_noted_before_it_failed_counts(bench):
    bench.put("a", "b")
    bench.script('handle_files() { note done $DATAFLOW_FOLDER_PLOTS/a; exit 9; }\nmain "$@"\n')
    code, outcomes = bench.run()
    assert code == Exit.LEFT_OVER and {name: word for name, (word, _) in outcomes.items()} == {"a": "done", "b": "kept"}


def test_exit_75_is_a_host_that_is_down(bench):
    bench.put("a", "b")
    bench.script('handle_files() { note done $DATAFLOW_FOLDER_PLOTS/a; echo campus is gone >&2; exit 75; }\nmain "$@"\n')
    code, outcomes = bench.run()
    assert code == Exit.UNREACHABLE and {name: word for name, (word, _) in outcomes.items()} == {"a": "done", "b": "kept"}
    assert any("campus is gone" in text for text in bench.world.said)


def test_a_find_that_fails_finds_nothing_and_says_so(bench):
    bench.put("a")
    bench.script("find_files() { printf 'a\\0'; echo no disk >&2; exit 1; }\nmain \"$@\"\n")
    code, outcomes = bench.run()
    assert code == Exit.LEFT_OVER and outcomes == {}
    assert any("note_names.sh find ended with 1: no disk" in text for text in bench.world.said)


def test_a_pause_ends_it(bench):
    bench.put("a")
    pause = pause_file(bench.here, str(bench.program))
    pause.parent.mkdir(parents=True, exist_ok=True)
    bench.script(f"handle_files() {{ echo now >'{pause}'; sleep 60; }}\nmain \"$@\"\n")
    code, outcomes = bench.run()
    assert code == Exit.LEFT_OVER and outcomes["a"] == ("kept", "the step was stopped without a note on it")


def test_a_backlog_is_handled_in_batches_of_what_a_link_carries(bench):
    """Else a flag that comes in would wait for all of it, and a manifest may grow too long to be read."""
    bench.put("a")
    bench.script(NOTE_ALL)
    limits, context = bench.world.config.flow.transfer, bench.world.context("campus")
    batch = shell_step.as_module(bench.program).batch
    assert batch(context, [bench.plots / "a"] * 10_000) == limits.batch_files
    os.truncate(bench.plots / "a", 10 << 30)
    assert batch(context, [bench.plots / "a"] * 10_000) == 1


def test_three_bad_ones_blow_the_fuse(bench):
    bench.put("a", "b", "c")
    bench.script('handle_files() { while IFS= read -r -d "" f; do note bad "$f" "no picture"; done; }\nmain "$@"\n')
    code, _ = bench.run()
    assert code == Exit.BUG and len(list(bench.plots.iterdir())) == 3


def test_it_sees_where_it_runs(bench):
    bench.put("a")
    bench.script('handle_files() { env >"$DATAFLOW_FOLDER_WORK/env"; note done "$DATAFLOW_FOLDER_PLOTS/a"; }\nmain "$@"\n')
    assert bench.run()[0] == 0
    seen = dict(line.split("=", 1) for line in (bench.work / "env").read_text().splitlines() if "=" in line)
    assert {key: seen[f"DATAFLOW_{key}"] for key in ("HOST", "RADAR", "MACHINE", "NEXT")} == {
        "HOST": "campus", "RADAR": "sas", "MACHINE": "campus", "NEXT": "",
    }  # fmt: skip
    assert seen["DATAFLOW_FOLDER_TO_SEND"] == str(bench.here.folder("to_send")) and seen["LC_ALL"] == "C"
    assert seen["DATAFLOW_ROOT"] == str(bench.world.root)


def test_any_executable_will_do(bench):
    bench.program = bench.program.with_name("in_any_language")
    bench.program.write_text(f"""#!{sys.executable}
import os, sys
if sys.argv[1] == "find":
    sys.stdout.buffer.write(b"".join(os.fsencode(e.path) + b"\\0" for e in os.scandir(os.environ["DATAFLOW_FOLDER_PLOTS"])))
else:
    with open(os.environ["DATAFLOW_NOTES"], "ab") as notes:
        for name in sys.stdin.buffer.read().split(b"\\0")[:-1]:
            notes.write(b"done\\0" + name + b"\\0\\0")
""")
    bench.put(*HOSTILE)
    code, _ = bench.run()
    assert code == Exit.LEFT_OVER and "Permission denied" in "\n".join(bench.world.said), "it is not executable yet"
    bench.program.chmod(0o755)
    code, outcomes = bench.run()
    assert code == 0 and {word for word, _ in outcomes.values()} == {"done"}


def test_called_by_hand_a_script_says_how_it_is_called(bench):
    bench.script(NOTE_ALL)
    called = subprocess.run(
        ["bash", bench.program],
        env={**os.environ, "DATAFLOW_LIB": str(Path(shell_step.__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert called.returncode == 2 and "dataflow run note_names --radar RADAR" in called.stderr


def test_of_the_kinds_that_its_head_names_it_gets_only_those_and_a_stranger_is_told_once(bench):
    photo, sheet = "20261101.1200.cam211.jpg", "20261101.1400.00.sas.0.antennas_iq.contact.jpg"
    bench.put(photo, sheet, "2026 holiday.cam211.jpg")
    bench.script("# not in the head, so not heeded:\n# Kinds: dmap\n" + NOTE_ALL)
    bench.program.write_text(
        bench.program.read_text().replace("# Runs on:  campus\n", "# Runs on:  campus\n# Kinds:    photo, plot\n")
    )
    code, outcomes = bench.run()
    assert code == 0 and outcomes[photo] == ("done", "moved away")
    assert {name: word for name, (word, _) in outcomes.items()} == {
        photo: "done",
        sheet: "skipped",
        "2026 holiday.cam211.jpg": "skipped",
    }
    code, outcomes = bench.run()
    assert code == 0 and outcomes == {}, "it was told"


def test_a_kind_that_there_is_not_is_a_wrong_configuration(bench):
    bench.put("a")
    bench.script(NOTE_ALL)
    bench.program.write_text(bench.program.read_text().replace("# Runs on:  campus\n", "# Runs on:  campus\n# Kinds:    foto\n"))
    code, outcomes = bench.run()
    assert code == Exit.CONFIG and outcomes == {} and "foto is no kind of file" in "".join(bench.world.said)


def test_its_head_is_its_page(bench):
    bench.script(NOTE_ALL)
    assert step.header(str(bench.program)) == "Note what a file's name says.\n\nRuns on:  campus"
    bench.program.write_bytes(b"\x7fELF\xff\xfe")
    assert "a program of your own" in step.header(str(bench.program))


PYTHON_STEP = '''"""Move every plot away.

Runs on:  campus
"""
from dataflow.lib import copy, checksum, place
from dataflow.lib.step import done, each

def find(ctx):
    return place.scan(ctx.folder("plots"))

def handle(ctx, files):
    yield from each(ctx, files, lambda path: work(ctx, path))

def work(ctx, path):
    copy.move(ctx.here, path, ctx.folder("work") / path.name, checksum.sha256(path))
    return done(path, "moved away")
'''


@pytest.mark.parametrize(("name", "text"), [("own_shell.sh", HEAD + NOTE_ALL), ("own_python.py", PYTHON_STEP)])
def test_one_file_and_one_line(bench, tmp_path, name, text):
    """The line is an entry of the list; the daemon runs it like any other."""
    program = tmp_path / name
    program.write_text(text)
    source = tmp_path / "config.yaml"
    line = "      - archive_iq_plots\n"
    shipped = world.SHIPPED.read_text()
    assert shipped.count(line) == 1
    source.write_text(shipped.replace(line, f"      - {program}\n"))
    bench.put(*HOSTILE)
    command = [sys.executable, "-m", "dataflow", "daemon", "campus", "--radar", "sas", "--once"]
    where = ["--config", str(source), "--root", str(bench.world.root)]
    ran = subprocess.run([*command, *where], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in bench.work.iterdir() if path.is_file()) == sorted(HOSTILE)
    records = [record for record in bench.world.records("campus") if record["step"] == program.stem]
    assert sum(record["event"] == "file" and record["outcome"] == "done" for record in records) == len(HOSTILE)
    assert records[0]["event"] == "start" and records[-1]["event"] == "end"
    assert stat.S_ISREG(program.stat().st_mode) and program.read_text() == text, "nothing of ours is written over it"
