"""The commands: what they say, in words and in JSON, and with which code they end."""

from __future__ import annotations

import argparse
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from loopback import Machines
from rawacf_files import simulated
from running_chain import LIMIT_S, SHIPPED

from dataflow import cli
from dataflow.lib.config import MARKER
from dataflow.lib.errors import Exit

CAMPUS = ("--host", "campus", "--radar", "sas")
STEPS = [
    *("rsync_to_nas", "rsync_to_campus", "plot_antennas_iq", "transfer_cam_photos", "send_flag", "send_logs"),
    *("convert_on_campus", "distribute_borealis_data", "plot_rawacf", "archive_iq_plots"),
]


def commands(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """The commands; of one that has verbs, its verbs."""
    parser = parser or cli._parser()
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    verbs = {name: commands(one) for name, one in found.choices.items() if name == "mirror"}
    named = {f"{name} {verb}": one for name, of in verbs.items() for verb, one in of.items()}
    return {**{name: one for name, one in found.choices.items() if name not in verbs}, **named}


def dataflow(*words: str | Path, root: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with nothing of ours in its environment."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DATAFLOW_")}
    environment = {**clean, "PYTHONPATH": str(SHIPPED.parent), **({"DATAFLOW_ROOT": str(root)} if root else {}), **variables}
    argv = [sys.executable, "-m", "dataflow", *map(str, words)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def test_the_commands_are_those_of_the_contract() -> None:
    assert set(commands()) == {
        *("run", "daemon", "check", "status", "trace", "summary", "quarantine", "pause", "resume", "convert", "plot"),
        *("scrub", "simulate-radar", "demo", "keys", "receive", "backfill", "demo-mirror"),
        *(f"mirror {verb}" for verb in ("publish", "sync", "compare", "pull", "delete", "verify", "sort-special", "login")),
    }


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_help_of_every_command_teaches(name: str) -> None:
    parser = commands()[name]
    text = " ".join(parser.format_help().split())
    assert parser.description and len(parser.description) > 30 and parser.description.endswith(".")
    for action in parser._actions:
        assert action.help, f"{name}: nothing explains {action.option_strings or action.dest}"
    assert {"--config", "--root", "--set"} <= {word for action in parser._actions for word in action.option_strings}
    assert parser.epilog and parser.epilog in text
    beginning, _, example = parser.epilog.partition("Example: dataflow ")
    assert beginning == ""
    parsed = cli._parsed(shlex.split(example))
    assert all(getattr(parsed, key) is value for key, value in parser._defaults.items())
    assert parser._defaults, "it does something"


def test_help_is_printed_and_ends_with_0() -> None:
    told = dataflow("--help")
    assert told.returncode == 0 and "Exit codes: 0" in told.stdout and "simulate-radar" in told.stdout
    assert dataflow("--version").stdout.startswith("dataflow ")
    assert dataflow().returncode == Exit.CONFIG == dataflow("nonsense").returncode


@pytest.mark.parametrize("step", STEPS)
def test_a_step_explains_itself(machines: Machines, step: str) -> None:
    code, said, told = machines.dataflow(["run", step, "--help"])
    assert code == 0, said
    for word in ("Runs on:  ", "Reads:    ", "Writes:   ", "Removes:  ", "Needs:    "):
        assert f"\n{word}".encode() in told
    assert told.decode().splitlines()[0].endswith(".")


def test_a_step_that_does_not_exist_has_no_help() -> None:
    told = dataflow("run", "convert_on_campos", "--help")
    assert told.returncode == Exit.CONFIG and "did you mean 'convert_on_campus'?" in told.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "--set", "files.settle=3"], "settle_s"),
        (["check", "--set", "files.settle_s=soon"], "must be a number"),
        (["check", "--set", "files.settle_s"], "KEY=VALUE"),
        (["check", "--config", "/nonexistent/config.yaml"], "/nonexistent/config.yaml"),
        (["check", "camps", "--radar", "sas"], "did you mean 'campus'?"),
        (["check", "campus", "--radar", "sat"], "did you mean 'sas'?"),
        (["check", "--create-markers"], "Give HOST and --radar"),
        (["status", "--radar", "sas"], "which host?"),
        (["status", "--host", "campus"], "which radar?"),
        (["run", "convert_on_campos", "--radar", "sas"], "did you mean 'convert_on_campus'?"),
        (["run", "send_flag", "--radar", "sas"], "borealis, site-linux"),
        (["run", "rsync_to_campus", "--part", "picture", "--radar", "sas"], "data, pictures"),
        (["run", "archive_iq_plots", "--part", "data", "--radar", "sas"], "has no part 'data'"),
        (["pause", "convert_on_campos", "--reason", "x", *CAMPUS], "is no step of campus"),
        (["pause", "convert_on_campus", *CAMPUS], "--reason"),
        (["quarantine", "show", *CAMPUS], "which file?"),
        (["quarantine", "retry", "nothing.h5", *CAMPUS], "quarantine list"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_and_ends_with_2(machines: Machines, words: list[str], said: str) -> None:
    code, complaint, _ = machines.dataflow(words)
    assert code == Exit.CONFIG
    assert said in complaint and "Traceback" not in complaint


COMMANDS_OF_A_MACHINE = [
    ["status", *CAMPUS],
    ["summary", *CAMPUS],
    ["trace", "20261101.1400.00.sas.0.rawacf.h5", *CAMPUS],
    ["check", "campus", "--radar", "sas", "--create-markers"],
    ["quarantine", "list", *CAMPUS],
    ["pause", "--reason", "a new disk", *CAMPUS],
    ["resume", *CAMPUS],
    ["run", "convert_on_campus", "--radar", "sas"],
    ["daemon", "campus", "--radar", "sas", "--once"],
    ["keys", "campus", "--radar", "sas"],
    ["receive", *CAMPUS, "--from", "site-linux"],
]


@pytest.mark.parametrize("words", COMMANDS_OF_A_MACHINE, ids=lambda words: words[0])
def test_another_user_is_refused_with_the_command_to_type(tmp_path: Path, words: list[str]) -> None:
    """Root too: what it creates, the daemon could not touch."""
    config = tmp_path / "config.yaml"
    config.write_text(SHIPPED.read_text().replace("user: dataflow", "user: somebody-else"))
    told = dataflow(*words, "--config", config)
    assert told.returncode == Exit.CONFIG and told.stdout == ""
    last = told.stderr.splitlines()[-1]
    assert "campus of sas belongs to the user somebody-else, you are " in last
    typed = last.partition("Type: ")[2]
    assert shlex.split(typed) == ["sudo", "-u", "somebody-else", "dataflow", *words, "--config", str(config)]


def test_under_a_root_the_current_user_plays_them_all(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(SHIPPED.read_text().replace("user: dataflow", "user: somebody-else"))
    told = dataflow("status", *CAMPUS, "--config", config, "--root", tmp_path)
    assert told.returncode == Exit.ACCOUNTED, told.stderr


def test_check_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    told = dataflow("check", "campus", "--radar", "sas", root=tmp_path)
    assert told.returncode == Exit.LEFT_OVER
    wrong = [line for line in told.stdout.splitlines() if line.startswith("WRONG")]
    assert [line.split()[2].rstrip(":") for line in wrong] == ["sddata", "archive", "staging"]
    assert told.stdout.count("--create-markers") >= 3
    told = dataflow("check", "campus", "--radar", "sas", "--create-markers", root=tmp_path)
    assert told.returncode == Exit.ACCOUNTED, told.stdout
    marker = tmp_path / "campus" / "sddata" / MARKER
    assert marker.read_text() == "sddata\n"
    marker.write_text("archive\n")
    told = dataflow("check", "campus", "--radar", "sas", "--create-markers", "--json", root=tmp_path)
    assert told.returncode == Exit.LEFT_OVER and marker.read_text() == "archive\n", "what is marked is not marked anew"
    findings = json.loads(told.stdout)
    assert {"subject", "is_good", "message", "mend"} == set().union(*findings)
    (finding,) = (finding for finding in findings if not finding["is_good"])
    assert finding["subject"] == "root sddata" and "another disk is mounted" in finding["message"] and finding["mend"]


def test_check_shows_root_and_overrides(tmp_path: Path) -> None:
    told = dataflow("check", "--set", "files.settle_s=3", root=tmp_path)
    assert told.returncode == Exit.ACCOUNTED
    assert str(tmp_path) in told.stdout and "files.settle_s=3" in told.stdout and str(SHIPPED) in told.stdout


def test_the_configuration_is_found(tmp_path: Path) -> None:
    copy = Path(shutil.copy(SHIPPED, tmp_path / "mine.yaml"))
    assert str(copy) in dataflow("check", "--config", copy).stdout
    assert str(copy) in dataflow("check", DATAFLOW_CONFIG=str(copy)).stdout


def test_status_and_summary_tell_in_words_and_in_json(machines: Machines) -> None:
    here = machines.here("campus")
    plots = here.folder("plots")
    plots.mkdir(parents=True)
    (plots / "20261101.1400.00.sas.0.antennas_iq.contact.jpg").write_bytes(b"picture")
    (plots / "20261101.1400.00.pgr.0.antennas_iq.contact.jpg").write_bytes(b"of another radar")
    machines.run("archive_iq_plots", "campus")
    code, said, told = machines.dataflow(["status", *CAMPUS, "--json"])
    status = json.loads(told)
    assert code == Exit.ACCOUNTED, said
    assert set(status) == {"host", "radar", "machine", "time", "flags", "silent", "backlog", "steps", "quarantine", "paused"}
    assert (status["host"], status["radar"], status["machine"]) == ("campus", "sas", "campus")
    assert set(status["flags"]) == {"waiting", "open", "unreadable", "outbox"}
    last = status["steps"]["archive_iq_plots"]
    assert (last["found"], last["done"], last["quarantined"], last["exit"]) == (2, 1, 1, Exit.LEFT_OVER)
    (item,) = status["quarantine"]
    assert item["file"].startswith("20261101.1400.00.pgr") and item["kind"] == "other radar"
    text = machines.dataflow(["status", *CAMPUS])[2].decode()
    for word in ("campus of sas", "0 waiting", "archive_iq_plots", "exit 1", "1 done", "1 quarantined", "other radar"):
        assert word in text

    code, said, told = machines.dataflow(["summary", *CAMPUS, "--days", "1", "--json"])
    assert code == Exit.ACCOUNTED, said
    steps = json.loads(told)["steps"]["archive_iq_plots"]
    assert (steps["runs"], steps["files"], steps["alerts"]) == (1, {"done": 1, "quarantined": 1}, 1)
    text = machines.dataflow(["summary", *CAMPUS])[2].decode()
    assert "archive_iq_plots: 1 runs, 1 done, 1 quarantined" in text and "20261101.1400.00.pgr" in text


def test_quarantine_lists_shows_retries_and_drops(machines: Machines) -> None:
    name = "20261101.1400.00.pgr.0.antennas_iq.contact.jpg"
    assert b"nothing lies in" in machines.dataflow(["quarantine", "list", *CAMPUS])[2]
    assert json.loads(machines.dataflow(["quarantine", "list", *CAMPUS, "--json"])[2]) == []
    plots = machines.here("campus").folder("plots")
    plots.mkdir(parents=True)
    (plots / name).write_bytes(b"of another radar")
    machines.run("archive_iq_plots", "campus")
    (row,) = json.loads(machines.dataflow(["quarantine", "list", *CAMPUS, "--json"])[2])
    assert row["file"] == name and row["kind"] == "other radar" and row["step"] == "archive_iq_plots"
    assert name.encode() in machines.dataflow(["quarantine", "list", *CAMPUS])[2]
    shown = json.loads(machines.dataflow(["quarantine", "show", name, *CAMPUS])[2])
    assert shown["source"] == str(plots / name) and "other radar" in shown["kind"] and shown["sha256"]

    code, said, told = machines.dataflow(["quarantine", "retry", name, *CAMPUS, "--json"])
    assert code == Exit.ACCOUNTED and json.loads(told) == {"file": name, "place": str(plots / name)}, said
    assert (plots / name).read_bytes() == b"of another radar" and machines.quarantined("campus") == {}
    machines.run("archive_iq_plots", "campus")
    code, said, _ = machines.dataflow(["quarantine", "drop", name, *CAMPUS])
    assert code == Exit.CONFIG and "--yes" in said and name in machines.quarantined("campus")
    code, _, told = machines.dataflow(["quarantine", "drop", name, *CAMPUS, "--yes"])
    assert code == Exit.ACCOUNTED and b"deleted" in told and machines.quarantined("campus") == {}


def test_a_pause_is_honoured_shown_and_ended(machines: Machines) -> None:
    plots = machines.here("campus").folder("plots")
    plots.mkdir(parents=True)
    first, second = (plots / f"20261101.1400.00.sas.{n}.antennas_iq.contact.jpg" for n in (0, 1))
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    code, said, told = machines.dataflow(["pause", "archive_iq_plots", "--reason", "a new disk", *CAMPUS])
    assert code == Exit.ACCOUNTED and b"dataflow resume archive_iq_plots" in told, said
    run = machines.run("archive_iq_plots", "campus")
    assert run.code == Exit.LEFT_OVER and "a new disk" in run.said and first.exists()
    status = json.loads(machines.dataflow(["status", *CAMPUS, "--json"])[2])
    assert status["paused"]["archive_iq_plots"].startswith("a new disk (")
    assert "PAUSED archive_iq_plots: a new disk" in machines.dataflow(["status", *CAMPUS])[2].decode()
    assert machines.run("convert_on_campus", "campus").code == Exit.ACCOUNTED, "the others go on"
    by_hand = machines.run("archive_iq_plots", "campus", files=[second])
    assert by_hand.code == Exit.ACCOUNTED and not second.exists() and first.exists(), "a person may"

    code, _, told = machines.dataflow(["resume", "archive_iq_plots", *CAMPUS, "--json"])
    assert code == Exit.ACCOUNTED and json.loads(told) == {"step": "archive_iq_plots", "was_paused": True}
    code, _, told = machines.dataflow(["pause", "--reason", "the roof leaks", *CAMPUS, "--json"])
    paused = json.loads(told)
    assert paused["step"] is None and paused["paused"].startswith("the roof leaks (")
    for step in ("archive_iq_plots", "convert_on_campus", "distribute_borealis_data"):
        assert "the roof leaks" in machines.run(step, "campus").said
    assert machines.run("archive_iq_plots", "campus", radar="inv").code == Exit.ACCOUNTED, "another radar's instance goes on"
    machines.dataflow(["resume", *CAMPUS])
    assert machines.run("archive_iq_plots", "campus").code == Exit.ACCOUNTED and not first.exists()
    assert b"was not paused" in machines.dataflow(["resume", *CAMPUS])[2]


def test_a_trace_of_nothing_ends_with_1(machines: Machines) -> None:
    code, said, told = machines.dataflow(["trace", "20261101.1400.00.sas.0.rawacf.h5", *CAMPUS, "--json"])
    assert code == Exit.LEFT_OVER and json.loads(told) == [] and "no record names 20261101.1400.00.sas.0.rawacf.h5" in said


def on_a_terminal(words: Iterable[str | Path]) -> str:
    """What a command shows to a person."""
    main, side = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parent), "TERM": "xterm"}
    argv = [sys.executable, "-m", "dataflow", *map(str, words)]
    with subprocess.Popen(argv, stdin=side, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        seen = b""
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        assert process.wait(LIMIT_S) == Exit.ACCOUNTED, seen
    os.close(main)
    return seen.decode()


def test_progress_is_drawn_for_a_person_only(tmp_path: Path) -> None:
    source = simulated(tmp_path)
    watched = on_a_terminal(["convert", source, "-o", tmp_path / "watched.bz2"])
    assert "\r" in watched.replace("\r\n", "\n")
    told = dataflow("convert", source, "-o", tmp_path / "plain.bz2")
    assert told.returncode == Exit.ACCOUNTED
    assert "\r" not in told.stdout + told.stderr and "\033" not in told.stdout + told.stderr and "plain.bz2" in told.stdout
    told = dataflow("convert", source, "-o", tmp_path / "json.bz2", "--json")
    assert told.returncode == Exit.ACCOUNTED and json.loads(told.stdout) and told.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parent), "DATAFLOW_ROOT": str(tmp_path)}
    shell = f"{shlex.quote(sys.executable)} -m dataflow check campus --radar sas | head -n 1"
    told = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert told.stdout.startswith("good") and told.stderr == ""


def test_what_is_done_now_is_no_trouble_any_more(machines: Machines) -> None:
    """A file that had to wait is told of while it waits; afterwards its custody has no wait in it."""
    name = "20261101.1400.00.sas.0.antennas_iq.contact.jpg"
    plots = machines.here("campus").folder("plots")
    plots.mkdir(parents=True)
    (plots / name).write_bytes(b"copied in by hand")
    for _ in range(2):
        assert machines.run("archive_iq_plots", "campus", overrides=["files.settle_s=1000"]).code == Exit.LEFT_OVER
    summary = json.loads(machines.dataflow(["summary", *CAMPUS, "--json"])[2])["steps"]["archive_iq_plots"]
    assert list(summary["trouble"]) == [name] and "adopted when still for 1000 s" in summary["trouble"][name]
    code, said, told = machines.dataflow(["trace", name, *CAMPUS, "--json"])
    assert code == Exit.LEFT_OVER and "kept" in said and [hop["outcome"] for hop in json.loads(told)] == ["kept"]
    assert machines.run("archive_iq_plots", "campus").code == Exit.ACCOUNTED
    summary = json.loads(machines.dataflow(["summary", *CAMPUS, "--json"])[2])["steps"]["archive_iq_plots"]
    assert summary["trouble"] == {} and list(summary["files"]) == ["done", "kept"]
    code, said, told = machines.dataflow(["trace", name, *CAMPUS, "--json"])
    assert code == Exit.ACCOUNTED and [hop["action"] for hop in json.loads(told)] == ["adopted", "archived"], said
