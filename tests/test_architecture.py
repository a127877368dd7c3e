"""The shape of the house: imports point down, the radar computer stays light, and one module starts processes."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.lib import config, step

PACKAGE = Path(step.__file__).parents[1]
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
STEPS = sorted(path for folder in ("site", "campus") for path in (PACKAGE / folder).glob("[a-z]*.*") if path.is_file())
MAY_IMPORT = {
    "lib": {"lib"},
    "site": {"site", "lib"},
    "campus": {"campus", "lib"},
    "mirror": {"mirror", "lib"},
    "demo": {"demo", "mirror", "lib"},  # two mirrors in one process, where a chain is many
}
HEAVY = {"numpy", "h5py", "matplotlib", "pydarnio", "dmap", "PIL", "scipy", "paramiko", "globus_sdk"}
LIGHT = [
    "cli", "site.rsync_to_nas", "site.rsync_to_campus", "site.send_flag", "site.send_logs", "campus.archive_iq_plots",
    "campus.distribute_borealis_data", "lib.daemon", "lib.runner", "lib.receive", "lib.send_files", "lib.report", "lib.check",
    "mirror.command_line",
]  # fmt: skip
"""What is imported on the radar computer, or for as long as a daemon lives."""
PROCESS_CONSTANTS = {"PIPE", "DEVNULL", "STDOUT", "TimeoutExpired", "Popen"}
STARTERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


def part_of(module: str) -> str:
    """`lib`, `site` ... or the module's own name at the top."""
    return module.split(".")[1] if module.count(".") > 1 else ""


def imports_of(module: str) -> Iterator[str]:
    """The modules of ours that a module imports, anywhere in it, with the names that it takes from packages."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dataflow")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            for alias in node.names if (node.module or "").split(".")[0] == "dataflow" else ():
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES or f"{whole}.__init__" in MODULES else str(node.module)


def dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def test_there_is_something_to_look_at():
    assert len(MODULES) > 40 and len(STEPS) == 11
    assert {part_of(module) for module in MODULES} == {"", *MAY_IMPORT}
    assert "dataflow.lib.step" in set(imports_of("dataflow.lib.runner"))
    assert "dataflow.demo.simulate_radar" in set(imports_of("dataflow.cli"))


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module)])
def test_imports_point_down(module):
    allowed = MAY_IMPORT[part_of(module)]
    wrong = [name for name in imports_of(module) if name != "dataflow" and part_of(name) not in allowed]
    assert wrong == [], f"{part_of(module)} may import {allowed}, and `dataflow` for the version"


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) == "lib"])
def test_lib_knows_no_step(module):
    """But for `send_flag`: the daemon has to know where in the list the flag goes out."""
    known = {path.stem for path in STEPS} - ({"send_flag"} if module == "dataflow.lib.daemon" else set())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [node.value for node in texts if id(node) not in docstrings and any(name in node.value for name in known)] == []


def test_what_runs_beside_the_radar_imports_nothing_heavy():
    code = "import importlib, json, sys\n" + "\n".join(
        f"importlib.import_module('dataflow.{name}')\nprint(json.dumps(['{name}', sorted(set(sys.modules) & {HEAVY!r})]))"
        for name in LIGHT
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    found = dict(json.loads(line) for line in ran.stdout.splitlines())
    assert found == {name: [] for name in LIGHT}


def test_the_heavy_ones_would_be_seen():
    code = "import sys, dataflow.lib.borealis; print(sorted(set(sys.modules) & {'numpy', 'h5py'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "['h5py', 'numpy']\n"


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.name)
def test_every_step_has_the_head_of_its_page(path):
    lines = step.header(path.stem).splitlines()
    assert lines[0].endswith("."), "one sentence that says what it is for"
    heads = ["Runs on:", "Reads:", "Writes:", "Removes:", "Needs:"]
    assert [word for line in lines for word in heads if line.startswith(word)] == heads
    assert all(len(line) > 10 for line in lines if line.startswith(tuple(heads)))


@pytest.mark.parametrize("path", [path for path in STEPS if path.suffix == ".py"], ids=lambda path: path.name)
def test_every_step_has_the_shape_of_a_step(path):
    module = step.load(path.stem)
    functions = inspect.getmembers(module, inspect.isfunction)
    own = {name for name, function in functions if function.__module__ == module.__name__ and not name.startswith("_")}
    assert own - {"batch"} in ({"find", "handle"}, {"find", "handle_batches"}), "the rest of a step is its own business"


def test_every_step_of_the_configuration_is_a_step_and_the_other_way_round():
    hosts = config.load(PACKAGE.parent / "config.yaml").flow.hosts.values()
    assert {entry.split()[0] for host in hosts for entry in host.steps} == {path.stem for path in STEPS}


@pytest.mark.parametrize("module", MODULES)
def test_one_module_starts_processes(module):
    used, called = set(), set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and dotted(node.value) in ("subprocess", "os", "multiprocessing", "pty"):
            used.add(dotted(node))
        if isinstance(node, ast.Call):
            called.add(dotted(node.func))
            assert not any(keyword.arg == "shell" for keyword in node.keywords), f"{module}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "multiprocessing", "os"):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
    processes = {name for name in used if name.startswith(("subprocess.", "multiprocessing.", "pty."))}
    starters = {name for name in used if name.startswith("os.spawn") or name.removeprefix("os.") in STARTERS}
    if module == "dataflow.lib.command":
        assert "subprocess.Popen" in called
    else:
        assert processes <= {f"subprocess.{name}" for name in PROCESS_CONSTANTS} and not starters
        assert not any(name.startswith("subprocess.") for name in called)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_caught_broadly_is_raised_again(module):
    """But in the runner and in that of the mirror's jobs, whose business it is that a bug stops the chain and not the machine."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or dotted(node.type) in ("Exception", "BaseException")):
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert raises or module in ("dataflow.lib.runner", "dataflow.mirror.job"), f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in ("site", "campus")])
def test_steps_ask_the_context_for_the_time(module):
    """So that tests need no sleeping, and everything is UTC."""
    called = {dotted(node.func) for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)}
    assert not called & {"time.time", "datetime.now", "datetime.utcnow", "date.today", "datetime.today", "random.random"}


def test_shell_is_for_the_steps_that_make_no_decision():
    scripts = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.sh"))
    assert scripts == ["lib/step.sh", "site/transfer_cam_photos.sh"]
