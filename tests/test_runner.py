"""The runner: every file ends as one outcome, sources go last, and every way in which a run can end has its exit code.

The steps are real: modules of a test's own, loaded by their absolute path.
"""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import world

from dataflow.lib import checksum, context, flag, ledger, place, quarantine, runner
from dataflow.lib.config import MARKER
from dataflow.lib.context import pause_file
from dataflow.lib.custody import Custody, open_folder, outbox
from dataflow.lib.errors import Exit
from dataflow.lib.summary import SummaryLog

HEAD = '''
"""A step of a test."""
from __future__ import annotations
import os
from pathlib import Path
from dataflow.lib import copy, place
from dataflow.lib.context import pause_file
from dataflow.lib.errors import BadConfig, BadFile, HostDown, TryLater
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind
from dataflow.lib.step import Outcome, bad, done, each, kept, skipped

IN, OUT = Path({source!r}), Path({target!r})

def find(ctx):
    return place.scan(IN)

def copied(ctx, path):
    found = copy.copy_to(ctx.here, path, [OUT / path.name])
    entry = Entry(path.name, found.size_bytes, found.sha256)
    listed = dict(bytes=entry.size, sha256=entry.sha256, deliver=(entry,), admit=(entry,))
    return done(path, "copied", destination=OUT, release=(path,), **listed)

def work(ctx, path):
    """A name says what is to become of the file: `ok...`, `later...`, `skip...`, `bad-KIND...`."""
    if path.name.startswith("bad"):
        raise BadFile(path.name.split("-")[1], f"{{path.name}} is nonsense")
    if path.name.startswith("later"):
        raise TryLater("not now")
    if path.name.startswith("skip"):
        return skipped(path, "not finished")
    return copied(ctx, path)

def handle(ctx, files):
    yield from each(ctx, files, lambda path: work(ctx, path))
'''


class Bench:
    """One host with one step of its own; files are put in `source` and copied to `target`."""

    def __init__(self, folder: Path) -> None:
        self.world = world.make(folder / "world")
        self.here = self.world.here("borealis")
        self.source, self.target, self.program = folder / "in", folder / "out", folder / "own_step.py"
        self.source.mkdir()
        self.target.mkdir()
        self.step("")

    def step(self, text: str) -> None:
        self.program.write_text(HEAD.format(source=str(self.source), target=str(self.target)) + text)

    def put(self, *names: str) -> list[Path]:
        for name in names:
            (self.source / name).write_bytes(os.fsencode(f"content of {name}"))
        return [self.source / name for name in names]

    def run(self, *named: Path):
        """The exit code, and the records of the run by event."""
        self.world.said.clear()
        code, records = self.world.run("borealis", str(self.program), named=named)
        return code, {event: [r for r in records if r["event"] == event] for event in ("start", "file", "action", "alert", "end")}

    def delivered(self) -> list[str]:
        return [entry.name for _, found in flag.read_folder(outbox(self.here)) for entry in found.files]

    def sources(self) -> list[str]:
        return sorted(path.name for path in self.source.iterdir())

    def targets(self) -> list[str]:
        return sorted(path.name for path in self.target.iterdir())

    def quarantined(self) -> list[str]:
        return [path.name for path, _ in quarantine.reasons(self.here)]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def outcomes(records) -> dict[str, str]:
    return {record["file"]: record["outcome"] for record in records["file"]}


def adds_up(records) -> bool:
    (end,) = records["end"]
    return end["found"] == sum(end[word] for word in ("done", "kept", "quarantined", "skipped"))


# how a run ends


def test_nothing_to_do_is_a_good_run(bench):
    code, records = bench.run()
    assert code == 0 and records["end"][0]["exit"] == 0 and records["file"] == []
    start = records["start"][0]
    assert start["dataflow"] and start["commit"] and start["config_sha256"] == bench.world.config.sha256
    assert (start["step"], start["host"], start["machine"], start["radar"]) == ("own_step", "borealis", "sas-borealis", "sas")


def test_a_run_accounts_for_every_file(bench):
    bench.put("bad-x", "later", "ok1", "ok2", "skip")
    code, records = bench.run()
    assert code == 1
    assert outcomes(records) == {"bad-x": "quarantined", "later": "kept", "ok1": "done", "ok2": "done", "skip": "skipped"}
    end = records["end"][0]
    assert {key: end[key] for key in ("found", "done", "kept", "quarantined", "skipped", "waiting", "exit")} == {
        "found": 5, "done": 2, "kept": 1, "quarantined": 1, "skipped": 1, "waiting": 0, "exit": 1,
    }  # fmt: skip
    assert end["bytes"] == len("content of ok1") * 2
    assert bench.sources() == ["later", "skip"]
    assert bench.targets() == bench.delivered() == ["ok1", "ok2"]
    assert bench.quarantined() == ["bad-x"]
    assert [alert["file"] for alert in records["alert"]] == ["bad-x"]
    assert flag.read_folder(open_folder(bench.here)) == [], "all that was admitted is done"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("def find(ctx): return []", Exit.ACCOUNTED, "nothing to do"),
        ("def handle(ctx, files):\n for path in files: yield copied(ctx, path)", Exit.ACCOUNTED, "1 done"),
        ("def handle(ctx, files):\n for path in files: yield skipped(path, 'no')", Exit.ACCOUNTED, "1 skipped"),
        ("def handle(ctx, files):\n for path in files: yield kept(path, 'why')", Exit.LEFT_OVER, "kept ok: why"),
        ("def handle(ctx, files): raise TryLater('the disk is asleep')\n", Exit.LEFT_OVER, "kept ok: the disk is asleep"),
        ("def handle(ctx, files): open('/nowhere/x')\n", Exit.LEFT_OVER, "kept ok: No such file or directory: /nowhere/x"),
        ("def find(ctx): raise TryLater('no disk')", Exit.LEFT_OVER, "own_step.py: no disk"),
        ("def find(ctx): open('/nowhere/x')", Exit.LEFT_OVER, "No such file or directory: /nowhere/x"),
        ("def find(ctx): raise BadConfig('no target')", Exit.CONFIG, "no target"),
        ("def handle(ctx, files): raise BadConfig('no target')", Exit.CONFIG, "no target"),
        ("def handle(ctx, files): raise HostDown('campus is gone')", Exit.UNREACHABLE, "kept ok: campus is gone"),
        ("def find(ctx): raise HostDown('campus is gone')", Exit.UNREACHABLE, "campus is gone"),
        ("def find(ctx): return 1 / 0", Exit.BUG, "ZeroDivisionError"),
        ("def handle(ctx, files): return 1 / 0", Exit.BUG, "ZeroDivisionError"),
        ("def handle(ctx, files): raise OSError('the library is confused')", Exit.BUG, "the library is confused"),
        ("def work(ctx, path): raise OSError('the library is confused')", Exit.BUG, "the library is confused"),
        ("def", Exit.BUG, "SyntaxError"),
        ("del handle", Exit.CONFIG, "has no functions find and handle"),
    ],
)
def test_every_way_to_end_has_its_exit_code(bench, text, code, said):
    bench.put("ok")
    bench.step(text)
    found, records = bench.run()
    assert found == code
    assert said in "\n".join(bench.world.said)
    assert records["end"][0]["exit"] == code
    assert bench.sources() == ([] if "1 done" in said else ["ok"])
    is_told = code not in (Exit.ACCOUNTED, Exit.LEFT_OVER) or (code is Exit.LEFT_OVER and "find" in text)
    assert len(records["alert"]) == is_told


def test_a_step_that_is_not_there_is_a_matter_of_configuration(bench):
    bench.program.unlink()
    code, _ = bench.run()
    assert code == Exit.CONFIG and "is not a file on this machine" in bench.world.said[0]


def test_own_steps_may_have_dataclasses(bench):
    bench.put("ok")
    bench.step("from dataclasses import dataclass\n@dataclass\nclass Page:\n    number: int = 0\n")
    assert bench.run()[0] == 0


def test_trouble_with_the_machine_is_told_once_until_it_is_over(bench):
    bench.step("def find(ctx): raise TryLater('no disk')")
    assert [len(bench.run()[1]["alert"]) for _ in range(3)] == [1, 0, 0]
    bench.step("")
    assert bench.run()[0] == 0
    bench.step("def find(ctx): raise TryLater('no disk')")
    assert len(bench.run()[1]["alert"]) == 1


def test_files_that_are_kept_for_too_long_are_told_once_together(bench):
    bench.put("later-1", "later-2")
    assert bench.run()[1]["alert"] == []
    bench.world.clock.advance(bench.world.config.flow.files.kept_too_long_s + 60)
    (told,) = bench.run()[1]["alert"]
    assert "number of files: 2, the first of them: " in told["message"]
    assert "later-1: not now" in told["message"]
    assert bench.run()[1]["alert"] == []

    for path in bench.source.iterdir():
        path.unlink()
    bench.run()
    bench.put("later-3")
    bench.world.clock.advance(bench.world.config.flow.files.kept_too_long_s + 60)
    assert len(bench.run()[1]["alert"]) == 1


def test_when_a_host_is_down_what_was_done_counts_and_the_rest_is_kept(bench):
    bench.put("a-ok", "bad-x", "later", "ok")
    bench.step("""
def handle(ctx, files):
    yield copied(ctx, files[0])
    yield bad(files[1], BadFile("x", "nonsense"))
    raise HostDown("campus is gone")

def batch(ctx, files):
    return 3
""")
    code, records = bench.run()
    assert code == Exit.UNREACHABLE
    assert outcomes(records) == {"a-ok": "done", "bad-x": "quarantined", "later": "kept"}
    assert adds_up(records) and records["end"][0]["waiting"] == 1
    assert bench.sources() == ["later", "ok"] and bench.delivered() == ["a-ok"] and bench.quarantined() == ["bad-x"]


# counts


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def handle(ctx, files):\n yield copied(ctx, files[0])", "no outcome was given for 1 of the files"),
        ("def handle(ctx, files):\n yield copied(ctx, files[0]); yield kept(files[0], 'x')", "was given a second outcome"),
        ("def handle(ctx, files):\n yield copied(ctx, files[0]); yield kept(IN / 'other', 'x')", "was not asked for"),
    ],
)
def test_a_step_that_miscounts_is_a_bug(bench, text, complaint):
    bench.put("a", "b")
    bench.step(text)
    code, records = bench.run()
    assert code == Exit.BUG and complaint in records["end"][0]["reason"]
    assert outcomes(records) == {"a": "done"}, "what was done before is recorded all the same"
    assert bench.sources() == ["b"] and bench.delivered() == ["a"]


def test_a_bug_in_the_middle_leaves_what_was_done_done(bench):
    bench.put("a", "b", "c")
    bench.step("""
def handle(ctx, files):
    yield copied(ctx, files[0])
    copied(ctx, files[1])
    1 / 0
""")
    code, records = bench.run()
    assert code == Exit.BUG and "ZeroDivisionError" in records["alert"][0]["traceback"]
    assert bench.sources() == ["b", "c"] and bench.delivered() == ["a"] and outcomes(records) == {"a": "done"}
    bench.step("")
    assert bench.run()[0] == 0
    assert bench.sources() == [] and bench.targets() == ["a", "b", "c"] and bench.quarantined() == []


def test_a_file_found_twice_is_worked_on_once(bench):
    bench.put("a", "b")
    bench.step("def find(ctx): return place.scan(IN) * 2")
    code, records = bench.run()
    assert code == 0 and records["end"][0]["found"] == 2


def test_what_is_no_regular_file_is_skipped(bench):
    bench.put("a")
    (bench.source / "link").symlink_to(bench.source / "a")
    os.mkfifo(bench.source / "pipe")
    code, records = bench.run()
    assert code == 0 and outcomes(records) == {"a": "done", "link": "skipped", "pipe": "skipped"}
    assert bench.sources() == ["link", "pipe"]


def test_unknown_names_are_skipped_and_told_once(bench):
    strange = os.fsdecode(b"new\nline \xff \x1b[31m")
    bench.put("20261101.1400.00.sas.0.rawacf.h5", "20261101.1400.00.sas.0.bfiq.h5", strange)
    bench.step("KINDS = {Kind.RAWACF}")
    code, records = bench.run()
    assert code == 0
    assert sorted(outcomes(records).values()) == ["done", "skipped", "skipped"]
    assert len(records["alert"]) == 2 and all(text.isprintable() for text in bench.world.said)
    code, records = bench.run()
    assert code == 0 and records["alert"] == [] and records["end"][0]["skipped"] == 2 and adds_up(records)
    assert len(bench.sources()) == 2


# the order in which things become durable


POINTS = {
    "before the manifest": (Custody, "admit", False),
    "after the manifest": (Custody, "admit", True),
    "after the outbox": (ledger.flag, "write", True),
    "after a record": (ledger.Ledger, "record", True),
    "before the records are durable": (SummaryLog, "sync", False),
    "after the records are durable": (SummaryLog, "sync", True),
    "before the first release": (place, "release", False),
    "after the first release": (place, "release", True),
    "before the reason of a bad file": (place, "write_whole", False),
    "after a name was given": (checksum, "sync_folder", True),
    "before manifests are closed": (Custody, "close_finished", False),
}


def run_and_die(bench, where, attribute, after):
    """Run in a child that ends on the spot at its first call of a function; returns whether it came there."""
    child = os.fork()
    if child == 0:
        function = getattr(where, attribute)

        def deadly(*arguments, **more):
            if after:
                function(*arguments, **more)
            os._exit(77)

        setattr(where, attribute, deadly)
        try:
            bench.run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_and_run_again_ends_in_the_same_state(bench, point):
    bench.put("bad-x", "ok1", "ok2")
    assert run_and_die(bench, *POINTS[point])
    assert sorted(set(bench.sources() + bench.targets() + bench.quarantined())) == ["bad-x", "ok1", "ok2"]
    code, _ = bench.run()
    assert code in (0, 1)
    assert bench.sources() == [] and bench.targets() == ["ok1", "ok2"]
    assert set(bench.delivered()) == {"ok1", "ok2"}
    assert bench.quarantined() == ["bad-x"]
    assert flag.read_folder(open_folder(bench.here)) == []
    last = {record["file"]: record["outcome"] for record in bench.world.records("borealis") if record["event"] == "file"}
    assert last == {"bad-x": "quarantined", "ok1": "done", "ok2": "done"}
    assert not any(
        record["event"] == "alert" and "missing" in record.get("condition", "") for record in bench.world.records("borealis")
    )


def test_sources_go_last(bench, monkeypatch):
    bench.put("bad-x", "ok1", "ok2")
    order = []

    def watch(where, attribute, name):
        function = getattr(where, attribute)

        def watched(*arguments, **more):
            order.append(name)
            return function(*arguments, **more)

        monkeypatch.setattr(where, attribute, watched)

    watch(ledger.quarantine, "admit", "quarantine")
    watch(Custody, "admit", "manifest")
    watch(ledger.flag, "write", "flag")
    watch(ledger.Ledger, "record", "record")
    watch(SummaryLog, "sync", "sync")
    watch(ledger.place, "release", "release")
    bench.run()
    begun = order.index("quarantine")
    wanted = ["quarantine", "manifest", "flag", "flag", "record", "record", "record", "sync", "release", "release", "release"]
    assert order[begun : begun + len(wanted)] == wanted, "the first flag is the manifest, the second is for the outbox"


@contextmanager
def restored_limit():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


LOG_FULL = """
import resource
def handle(ctx, files):
    for path in files[:-1]:
        yield copied(ctx, path)
    last = copied(ctx, files[-1])
    size = sum(file.stat().st_size for file in ctx.here.logs.rglob("*.jsonl"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + {more}, hard))
    yield last
"""


@pytest.mark.parametrize("more", [0, 20, 700])
def test_when_the_log_cannot_be_written_nothing_is_released(bench, more):
    bench.put("a", "b", "c")
    bench.step(LOG_FULL.format(more=more))
    with restored_limit():
        code, _ = bench.run()
    assert code == Exit.LEFT_OVER
    assert bench.sources() == ["a", "b", "c"]
    assert "the summary log cannot be written" in "\n".join(bench.world.said) or "File too large" in "\n".join(bench.world.said)
    bench.step("")
    assert bench.run()[0] == 0
    assert bench.sources() == [] and bench.targets() == ["a", "b", "c"]


def test_when_the_log_cannot_be_opened_no_file_is_touched(bench):
    bench.put("a")
    bench.here.logs.mkdir(parents=True, exist_ok=True)
    (bench.here.logs / "own_step").write_text("a file where the folder should be")
    code, _ = bench.run()
    assert code == Exit.LEFT_OVER and bench.sources() == ["a"] and bench.targets() == []
    assert "the summary log cannot be written" in "\n".join(bench.world.said)


def test_when_the_outbox_cannot_be_written_nothing_is_released(bench):
    bench.put("a")
    outbox(bench.here).parent.mkdir(parents=True, exist_ok=True)
    outbox(bench.here).write_text("a file where the folder should be")
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and bench.sources() == ["a"] and records["file"] == []
    assert (records["end"][0]["found"], records["end"][0]["waiting"]) == (0, 1), "taken, but without an outcome on record"


# quarantine


def test_a_quarantine_that_cannot_be_written_keeps_the_file(bench):
    bench.put("bad-x", "ok")
    bench.here.folder("quarantine").write_text("a file where the folder should be")
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and outcomes(records) == {"bad-x": "kept", "ok": "done"}
    assert "the quarantine cannot take it" in next(r["reason"] for r in records["file"] if r["file"] == "bad-x")
    assert bench.sources() == ["bad-x"]


def test_an_unmounted_quarantine_keeps_the_file(bench):
    bench.put("bad-x")
    (bench.here.roots["store"] / MARKER).unlink()
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and outcomes(records) == {"bad-x": "kept"} and bench.sources() == ["bad-x"]


def test_a_second_bad_file_of_one_name_lies_beside_the_first(bench):
    bench.put("bad-x")
    bench.run()
    (bench.source / "bad-x").write_text("other content")
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and bench.sources() == []
    assert len(bench.quarantined()) == 2 and all(name.startswith("bad-x") for name in bench.quarantined())
    assert records["file"][0]["destination"].endswith(bench.quarantined()[1])


# the fuse


def test_the_fuse(bench):
    paths = bench.put("a-ok", "bad-x-1", "bad-x-2", "bad-x-3", "bad-x-4", "ok")
    code, records = bench.run()
    assert code == Exit.BUG
    assert outcomes(records) == {"a-ok": "done", "bad-x-1": "kept", "bad-x-2": "kept", "bad-x-3": "kept"}
    assert adds_up(records) and records["end"][0]["waiting"] == 2
    assert bench.sources() == ["bad-x-1", "bad-x-2", "bad-x-3", "bad-x-4", "ok"] and bench.quarantined() == []
    (alert,) = records["alert"]
    assert alert["kind"] == "x" and "dataflow resume" in alert["message"] and "3 files in a row" in alert["message"]

    for _ in range(2):
        code, records = bench.run()
        assert code == Exit.BUG and records["file"] == [] and records["alert"] == [], "blown it stays, told once"
        assert "paused: fuse" in records["end"][0]["reason"]

    code, records = bench.run(*paths[1:4])
    assert code == Exit.LEFT_OVER and bench.quarantined() == ["bad-x-1", "bad-x-2", "bad-x-3"], "a person has decided"

    pause_file(bench.here, str(bench.program)).unlink()
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and outcomes(records) == {"bad-x-4": "quarantined", "ok": "done"}


def test_blown_again_it_is_told_again(bench):
    bench.put("bad-x-1", "bad-x-2", "bad-x-3")
    for _ in range(2):
        code, records = bench.run()
        assert code == Exit.BUG and len(records["alert"]) == 1
        pause_file(bench.here, str(bench.program)).unlink()


@pytest.mark.parametrize(
    ("names", "blows", "taken"),
    [
        (["bad-x-1", "bad-x-2"], False, 2),
        (["bad-x-1", "bad-x-2", "c-ok", "d", "e"], False, 2),
        (["bad-x-1", "bad-x-2", "bad-x-3", "ok"], True, 0),
        (["bad-x-1", "bad-y-2", "bad-z-3", "bad-zz-4"], False, 4),
        (["bad-x-1", "bad-y-2", "bad-y-3", "bad-y-4"], True, 1),
        (["bad-x-1", "bad-x-2", "later", "skip"], False, 2),
    ],
)
def test_only_three_in_a_row_blow_it(bench, names, blows, taken):
    bench.put(*names)
    code, _ = bench.run()
    assert (code == Exit.BUG) is blows
    assert len(bench.quarantined()) == taken


def test_kept_and_skipped_files_in_between_say_nothing_about_the_bad_ones(bench):
    bench.put("bad-x-1", "bad-x-2", "bad-x-3", "later", "skip")
    bench.step("def find(ctx): return [IN / name for name in ('bad-x-1', 'later', 'bad-x-2', 'skip', 'bad-x-3')]")
    code, records = bench.run()
    assert code == Exit.BUG and bench.quarantined() == [] and adds_up(records)


def test_a_good_file_in_between_shows_that_the_step_works(bench):
    bench.put("bad-x-1", "bad-x-2", "bad-x-3", "ok")
    bench.step("def find(ctx): return [IN / name for name in ('bad-x-1', 'bad-x-2', 'ok', 'bad-x-3')]")
    code, _ = bench.run()
    assert code == Exit.LEFT_OVER and len(bench.quarantined()) == 3


# pauses, stops and batches


def test_a_paused_step_does_nothing_and_says_why(bench):
    bench.put("a")
    for step in (str(bench.program), None):
        pause = pause_file(bench.here, step)
        pause.parent.mkdir(parents=True, exist_ok=True)
        pause.write_text("the NAS is being moved\n")
        code, records = bench.run()
        assert code == Exit.LEFT_OVER and records["end"][0]["reason"] == "paused: the NAS is being moved"
        assert bench.sources() == ["a"] and "the NAS is being moved" in "\n".join(bench.world.said)
        pause.unlink()
    assert bench.run()[0] == 0


def test_a_pause_is_heeded_within_one_file(bench):
    bench.put("a", "b", "c")
    bench.step("""
def work(ctx, path):
    pause = pause_file(ctx.here, ctx.step)
    pause.parent.mkdir(parents=True, exist_ok=True)
    pause.write_text("now")
    return copied(ctx, path)
""")
    _, records = bench.run()
    assert outcomes(records) == {"a": "done"} and records["end"][0]["waiting"] == 2 and adds_up(records)
    assert bench.sources() == ["b", "c"]


def test_files_that_a_person_names_are_worked_on_also_when_paused(bench):
    paths = bench.put("a", "b", "c")
    bench.step("def batch(ctx, files): return 1")
    pause = pause_file(bench.here, str(bench.program))
    pause.parent.mkdir(parents=True, exist_ok=True)
    pause.write_text("now")
    code, records = bench.run(*paths[:2])
    assert code == 0 and outcomes(records) == {"a": "done", "b": "done"} and bench.sources() == ["c"]


def test_a_file_that_a_person_names_and_that_is_not_there_is_told_each_time(bench):
    for _ in range(2):
        code, records = bench.run(bench.source / "nothing")
        assert code == 0 and outcomes(records) == {"nothing": "skipped"}
        assert "skipped nothing: not a regular file" in bench.world.said


def test_a_step_that_is_asked_to_stop_ends_after_the_file_in_hand(bench):
    bench.put("a", "b")
    bench.step("def work(ctx, path):\n    ctx.requests.stop = True\n    return copied(ctx, path)")
    code, records = bench.run()
    assert code == 0 and outcomes(records) == {"a": "done"} and records["end"][0]["waiting"] == 1


def test_a_step_that_is_to_give_way_ends_after_the_batch(bench):
    bench.put("a", "b", "c")
    bench.step("""
def batch(ctx, files):
    return 2
def work(ctx, path):
    ctx.requests.give_way = True
    return copied(ctx, path)
""")
    code, records = bench.run()
    assert code == 0 and outcomes(records) == {"a": "done", "b": "done"} and records["end"][0]["waiting"] == 1


def test_a_batch_that_says_none_takes_one(bench):
    bench.put("a", "b")
    bench.step("def batch(ctx, files): return 0")
    assert bench.run()[0] == 0 and bench.sources() == []


ONE_AHEAD = """
def batch(ctx, files):
    return 1

def handle_batches(ctx, batches):
    before = []
    for files in batches:
        if "trouble" in [path.name for path in files]:
            yield from (copied(ctx, path) for path in before)
            raise {error}
        yield from (copied(ctx, path) for path in before)
        before = files
    yield from (copied(ctx, path) for path in before)
"""


def test_a_step_may_begin_a_batch_before_it_is_done_with_the_one_before(bench):
    bench.put("a", "b", "c")
    bench.step(ONE_AHEAD)
    code, records = bench.run()
    assert code == 0 and adds_up(records) and bench.sources() == [] and bench.delivered() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("error", "code", "kept", "left"),
    [
        ("HostDown('campus is gone')", Exit.UNREACHABLE, ["trouble"], ["trouble", "z"]),
        ("TryLater('not now')", Exit.LEFT_OVER, ["trouble"], ["trouble"]),
        ("OSError(28, 'No space left on device')", Exit.LEFT_OVER, ["trouble"], ["trouble"]),
    ],
)
def test_a_step_that_begins_ahead_gives_up_what_it_has_begun_and_no_more(bench, error, code, kept, left):
    bench.put("a", "b", "trouble", "z")
    bench.step(ONE_AHEAD.replace("{error}", error))
    found, records = bench.run()
    assert found == code and adds_up(records)
    assert [name for name, outcome in outcomes(records).items() if outcome == "kept"] == kept
    assert bench.sources() == left and records["end"][0]["waiting"] == len(left) - len(kept)


def test_a_step_that_gives_up_before_it_has_begun_anything_comes_to_an_end(bench):
    bench.put("a", "b")
    bench.step("def handle_batches(ctx, batches):\n    raise TryLater('not now')\n    yield\n")
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and outcomes(records) == {"a": "kept", "b": "kept"} and adds_up(records)


def test_a_batch_is_settled_when_it_is_done_and_not_when_the_next_one_is(bench, monkeypatch):
    """What travels meanwhile may take hours."""
    bench.put("a", "b", "c")
    bench.step(ONE_AHEAD.replace("before = files", "before = files\n        (OUT / 'seen').open('a').write(str(len(find(ctx))))"))
    monkeypatch.setattr(ledger.Ledger, "is_due", lambda self: False)
    code, _ = bench.run()
    assert code == 0 and (bench.target / "seen").read_text() == "321"


def test_a_batch_that_cannot_be_settled_ends_the_run(bench, monkeypatch):
    bench.put("a", "b", "c", "d")
    bench.step(ONE_AHEAD)
    monkeypatch.setattr(ledger.Ledger, "is_due", lambda self: False)
    sync, full = SummaryLog.sync, [True]

    def full_once(self) -> None:
        if full and bench.targets():
            full.pop()
            raise OSError(28, "No space left on device")
        sync(self)

    monkeypatch.setattr(SummaryLog, "sync", full_once)
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and bench.sources() == ["a", "b", "c", "d"] and "kept" not in outcomes(records).values()
    assert bench.targets() == ["a"] and not (bench.target / "c").exists(), "c was not begun"
    assert (records["end"][0]["found"], records["end"][0]["waiting"]) == (1, 3), "a was recorded, if not synced"


def test_a_batch_that_is_not_answered_is_found_before_the_next_one(bench):
    bench.put("a", "b", "c")
    bench.step("""
def batch(ctx, files):
    return 1

def handle(ctx, files):
    if files[0].name != "b":
        yield copied(ctx, files[0])
""")
    code, records = bench.run()
    assert code == Exit.BUG and bench.targets() == ["a"]
    assert "no outcome was given for 1 of the files" in records["end"][0]["reason"]


def test_outcomes_are_settled_while_the_batch_goes_on(bench, monkeypatch):
    """A long batch does not hold a verified file for its whole length."""
    bench.put("a", "b", "c")
    monkeypatch.setattr(ledger, "SETTLE_AFTER_FILES", 1)
    bench.step("""
def handle(ctx, files):
    for number, path in enumerate(files):
        assert len(list(IN.iterdir())) == len(files) - number
        yield copied(ctx, path)
""")
    assert bench.run()[0] == 0


def test_asked_to_stop_while_it_waits_for_the_lock_it_has_not_run(bench):
    bench.put("a")
    ctx = bench.world.context("borealis", step=str(bench.program))
    ctx.requests.stop = True
    lock = bench.here.state / "lock"
    child_can_go, parent_goes = os.pipe()
    ready, is_ready = os.pipe()
    child = os.fork()
    if child == 0:
        import fcntl

        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            os.write(is_ready, b"x")
            os.read(child_can_go, 1)
            os._exit(0)
    os.read(ready, 1)
    assert runner.run(ctx) == Exit.LEFT_OVER and bench.sources() == ["a"]
    os.write(parent_goes, b"x")
    os.waitpid(child, 0)
    assert runner.run(replace(ctx, requests=context.Requests())) == 0


# roots


def test_a_root_that_is_not_there_keeps_everything(bench):
    bench.put("a", "b")
    bench.step("ROOTS = ('store',)\ndef handle(ctx, files): 1 / 0")
    (bench.here.roots["store"] / MARKER).unlink()
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and outcomes(records) == {"a": "kept", "b": "kept"} and adds_up(records)
    assert bench.sources() == ["a", "b"] and len(records["alert"]) == 1
    assert len(bench.run()[1]["alert"]) == 0, "told once"


def test_a_root_that_is_not_there_is_told_also_when_there_is_nothing_to_do(bench):
    bench.step("ROOTS = ('store',)")
    (bench.here.roots["store"] / MARKER).unlink()
    code, records = bench.run()
    assert code == Exit.LEFT_OVER and "Is the disk mounted?" in records["end"][0]["reason"]


def test_a_root_that_goes_while_the_batch_runs_releases_nothing(bench):
    bench.put("a", "b", "bad-x", "skip")
    bench.step("""
ROOTS = ("store",)
def work(ctx, path):
    (ctx.here.roots["store"] / ".dataflow-root").unlink(missing_ok=True)
    if path.name.startswith("bad"):
        raise BadFile("x", "nonsense")
    return skipped(path, "no") if path.name == "skip" else copied(ctx, path)
""")
    code, records = bench.run()
    assert code == Exit.LEFT_OVER
    assert outcomes(records) == {"a": "kept", "b": "kept", "bad-x": "kept", "skip": "skipped"} and adds_up(records)
    assert bench.sources() == ["a", "b", "bad-x", "skip"] and bench.delivered() == []
    (bench.here.roots["store"] / MARKER).write_text("store\n")
    bench.step("")
    assert bench.run()[0] == Exit.LEFT_OVER
    assert bench.delivered() == ["a", "b"] and bench.sources() == ["skip"]
