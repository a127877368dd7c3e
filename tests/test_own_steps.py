"""A step of one's own: one file, and one line in config.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import running_chain
from running_chain import SHIPPED, Running

from dataflow.lib.errors import Exit

SHELL = """#!/usr/bin/env bash
# Copy new pictures to our own page.
#
# Reads:    plots

. "$DATAFLOW_LIB/step.sh"
page=$DATAFLOW_FOLDER_WORK/page

find_files() {
  mkdir -p "$page"
  find "$DATAFLOW_FOLDER_PLOTS" -maxdepth 1 -type f -print0 | while IFS= read -r -d '' file; do
    [ -e "$page/${file##*/}" ] || printf '%s\\0' "$file"
  done
}

handle_files() {
  while IFS= read -r -d '' file; do
    case $file in
      *antenna_7*) note kept "$file" "antenna 7 is in repair" ;;
      *antenna_8*) ;;
      *) cp -- "$file" "$page/.part" && mv -- "$page/.part" "$page/${file##*/}" && note done "$file" "on our page" ;;
    esac
  done
}

main "$@"
"""

PYTHON = '''"""Weigh the pictures.

Reads:    plots
"""

from dataflow.lib import place
from dataflow.lib.names import Kind
from dataflow.lib.step import done, each

KINDS = frozenset({Kind.PLOT})


def find(ctx):
    """Every picture."""
    return place.scan(ctx.folder("plots"))


def handle(ctx, files):
    """One after the other."""
    yield from each(ctx, files, lambda path: done(path, "weighed", bytes=path.stat().st_size, details={"by": ctx.here.radar}))
'''
PICTURES = [f"20261101.1400.00.sas.0.antennas_iq.antenna_{antenna}_0_70.jpg" for antenna in (6, 7, 8, 9)]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of one's own steps."""
    folder = tmp_path / "our-own"
    folder.mkdir()
    return folder


def one_line_more(tmp_path: Path, program: Path) -> Path:
    text = SHIPPED.read_text()
    line = "      - archive_iq_plots\n"
    assert text.count(line) == 1
    config = tmp_path / "config.yaml"
    config.write_text(text.replace(line, f"{line}      - {program}\n"))
    return config


def put_pictures(chain: Running) -> Path:
    plots = chain.here("campus").folder("plots")
    plots.mkdir(parents=True)
    for number, name in enumerate(PICTURES):
        (plots / name).write_bytes(b"x" * (number + 1))
    (plots / "a page of our own; $(touch pwned).jpg").write_bytes(b"hostile")
    return plots


def outcomes(chain: Running, step: str) -> dict[str, str]:
    return {r["file"]: r["outcome"] for r in chain.records("campus", step=step) if r["event"] == "file"}


KEEP_PLOTS = (*running_chain.QUICK, "plots.archive_after_h=1000000")


def test_a_shell_step(tmp_path: Path, own: Path) -> None:
    program = own / "to_our_page.sh"
    program.write_text(SHELL)
    with running_chain.running(tmp_path / "chain", overrides=KEEP_PLOTS, source=one_line_more(tmp_path, program)) as chain:
        plots = put_pictures(chain)
        assert chain.once("campus") == Exit.LEFT_OVER, chain.said()
        assert outcomes(chain, "to_our_page") == {
            PICTURES[0]: "done",
            PICTURES[1]: "kept",
            PICTURES[2]: "kept",
            PICTURES[3]: "done",
            "a page of our own; $(touch pwned).jpg": "done",
        }
        page = chain.here("campus").folder("work") / "page"
        assert {path.name for path in page.iterdir()} == {path.name for path in plots.iterdir()} - set(PICTURES[1:3])
        reasons = {r["file"]: r["reason"] for r in chain.records("campus", step="to_our_page") if r["event"] == "file"}
        assert reasons[PICTURES[1]] == "antenna 7 is in repair" and "without a note" in reasons[PICTURES[2]]
        assert not list(tmp_path.rglob("pwned"))

        pause = chain.dataflow("pause", "to_our_page", "--reason", "new page", "--host", "campus", "--radar", "sas", "--json")
        assert json.loads(pause.stdout)["step"] == "to_our_page", pause.stderr
        ran = len(outcomes(chain, "to_our_page"))
        (plots / PICTURES[0].replace("_6_", "_5_")).write_bytes(b"x")
        assert chain.once("campus") == Exit.LEFT_OVER
        assert len(outcomes(chain, "to_our_page")) == ran, "a pause is honoured"


def test_a_python_step(tmp_path: Path, own: Path) -> None:
    program = own / "weigh.py"
    program.write_text(PYTHON)
    with running_chain.running(tmp_path / "chain", overrides=KEEP_PLOTS, source=one_line_more(tmp_path, program)) as chain:
        put_pictures(chain)
        assert chain.once("campus") == Exit.ACCOUNTED, chain.said()
        files = [r for r in chain.records("campus", step="weigh") if r["event"] == "file" and r["outcome"] == "done"]
        assert [(r["file"], r["action"], r["bytes"], r["details"]) for r in files] == [
            (name, "weighed", number + 1, {"by": "sas"}) for number, name in enumerate(PICTURES)
        ]
        told = chain.dataflow("summary", "--host", "campus", "--radar", "sas", "--json")
        assert json.loads(told.stdout)["steps"]["weigh"]["files"]["done"] == len(PICTURES), told.stderr
        by_hand = chain.dataflow("run", str(program), "--radar", "sas")
        assert by_hand.returncode == Exit.ACCOUNTED, by_hand.stderr
        explained = chain.dataflow("run", str(program), "--help")
        assert explained.stdout.startswith("Weigh the pictures.")


def test_a_step_that_does_not_exist_is_refused_with_its_name(tmp_path: Path, own: Path) -> None:
    with running_chain.running(tmp_path / "chain", source=one_line_more(tmp_path, own / "forgotten.sh")) as chain:
        assert chain.once("campus") == Exit.CONFIG
        assert "forgotten.sh is not a file on this machine" in chain.daemons[0].said
