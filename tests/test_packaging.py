"""What a wheel carries, where installing it puts that, and what the set-up says on a machine where something is missing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from dataflow.lib import shipped
from dataflow.lib.errors import BadConfig

REPOSITORY = Path(__file__).parents[1]
NOBODY = 65534


def tree(*places: str) -> dict[str, bytes]:
    """Every file at and below some places of the repository, by its path from there."""
    found = {}
    for place in places:
        for path in [REPOSITORY / place, *(REPOSITORY / place).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(path.relative_to(REPOSITORY))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built from a copy so that nothing an earlier build left behind gets in."""
    copy = tmp_path_factory.mktemp("tree")
    for name, content in tree("pyproject.toml", "README.md", "config.yaml", "dataflow", "daemons", "services").items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
        (copy / name).chmod((REPOSITORY / name).stat().st_mode)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy)
    return next(out.glob("dataflow-*.whl"))


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def test_the_wheel_carries_exactly_what_the_tree_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        data = f"{wheel.name.split('-py3')[0]}.data/data/share/dataflow/"
        carried = {
            name.removeprefix(data): archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name and name[-1] != "/"
        }
    assert carried == tree("dataflow", "config.yaml", "daemons", "services")


@pytest.fixture(params=["virtual environment", "prefix", "target"])
def installed(request, wheel, tmp_path):
    """The wheel installed away from the repository: a function that runs Python code there and returns what it prints."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, place = tmp_path / "venv/bin/python", tmp_path / "venv"
    found_at = {}
    if request.param == "virtual environment":
        pip("--python", python, "install", "--no-deps", wheel)
    else:
        place = tmp_path / request.param
        # --ignore-installed: or pip would first remove the dataflow that these tests run with
        pip("install", "--ignore-installed", "--no-deps", f"--{request.param}", place, wheel)
        packages = place if request.param == "target" else next(place.glob("lib/python3*/site-packages"))
        found_at = {"PYTHONPATH": str(packages)}

    def run(code: str) -> str:
        environment = {"PATH": os.environ["PATH"], **found_at}
        return subprocess.run(
            [python, "-c", code], env=environment, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run.place = place
    return run


def test_shipped_files_are_found_in_every_kind_of_installation(installed):
    names = list(tree("config.yaml", "daemons", "services"))
    found = installed(f"from dataflow.lib import shipped\nfor name in {names}: print(shipped.path(name))").splitlines()
    assert len(found) == len(names) > 7
    for name, path in zip(names, map(Path, found), strict=True):
        assert path.is_relative_to(installed.place)
        assert path.read_bytes() == (REPOSITORY / name).read_bytes()
        assert os.access(path, os.X_OK) == name.endswith(".daemon")


def test_shipped_files_are_found_in_the_checkout_and_a_missing_one_is_named():
    assert shipped.path("config.yaml") == REPOSITORY / "config.yaml"
    with pytest.raises(BadConfig, match=r"daemons/mars\.daemon did not come with"):
        shipped.path("daemons/mars.daemon")


def test_the_installed_program_uses_the_configuration_that_came_with_it(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip("--python", tmp_path / "venv/bin/python", "install", "--no-deps", wheel)
    packages = next(tmp_path.glob("venv/lib/python3*/site-packages"))
    dependencies = Path(metadata.distribution("pyyaml").locate_file(""))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")  # what pip would have brought from the index
    argv, environment = [tmp_path / "venv/bin/dataflow", "check"], {"PATH": os.environ["PATH"]}
    answer = subprocess.run(argv, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout
    etc = Path("/etc/dataflow/config.yaml")
    assert str(etc if etc.exists() else tmp_path / "venv/share/dataflow/config.yaml") in answer


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["site"], *extras["campus"], *extras["mirror"]]
    declared = {re.match(r"[A-Za-z0-9-]+", each)[0].lower() for each in wanted}
    declared.add("darn-dmap")  # pydarnio's own reader and writer
    distributions = metadata.packages_distributions()
    for path in (REPOSITORY / "dataflow").rglob("*.py"):
        for module in imported(path) - sys.stdlib_module_names - {"dataflow"}:
            names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
            assert names & declared, f"{path} imports {module}, which pyproject.toml does not declare"


def test_every_host_has_the_packages_that_it_is_installed_with():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert 'extra="[${host%%-*}]"' in (REPOSITORY / "tools/install").read_text()
    assert {host.partition("-")[0] for host in ("site-linux", "campus", "mirror")} <= extras.keys()


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules


@pytest.fixture
def open_copy():
    """The set-up's files where an unprivileged user can read them, and a folder of programs that is all it has to work with."""
    folder = Path(tempfile.mkdtemp(prefix="dataflow-packaging-"))
    folder.chmod(0o755)
    for name in ("tools", "services"):
        shutil.copytree(REPOSITORY / name, folder / name)
    (folder / "bin").mkdir()
    for program in ("bash", "sh", "env", "id", "apt-get", "dirname", "mkdir", "python3"):
        (folder / "bin" / program).symlink_to(shutil.which(program, path="/usr/bin:/bin"))
    yield folder
    shutil.rmtree(folder)


def as_nobody(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=folder,
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
        check=False,
        user=NOBODY if os.getuid() == 0 else None,
    )


def test_missing_programs_without_root_end_with_the_command_to_type(open_copy):
    answer = as_nobody(open_copy, "tools/system-packages", "id", "rsync", "shellcheck", "systemd-analyze")
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends rsync shellcheck systemd"
    assert answer.returncode == 2
    assert f'su -c "apt-get update && {install}"\n' in answer.stderr


def test_an_sshd_that_is_installed_for_the_tests_is_kept_from_starting_as_a_service(open_copy):
    script = open_copy / "tools/system-packages"
    script.write_text(script.read_text().replace('PATH="$PATH:/usr/sbin:/sbin"\n', ""))  # where this machine's own sshd is
    answer = as_nobody(open_copy, "tools/system-packages", "sshd")
    assert answer.returncode == 2
    assert 'su -c "mkdir -p /etc/ssh && touch /etc/ssh/sshd_not_to_be_run && apt-get update && ' in answer.stderr


def test_nothing_is_said_or_done_where_nothing_is_missing(open_copy):
    answer = as_nobody(open_copy, "tools/system-packages", "id", "mkdir")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize(("what", "target"), [("program", "install"), ("units", "units")])
def test_installing_without_root_ends_with_the_command_to_type(open_copy, what, target):
    answer = as_nobody(open_copy, "tools/install", what, "campus", "sas")
    assert answer.returncode == 2
    assert f"sudo make {target} HOST=campus RADAR=sas" in answer.stderr


@pytest.mark.parametrize(("what", "target"), [("program", "install"), ("units", "units")])
def test_installing_the_mirror_asks_for_no_radar(open_copy, what, target):
    answer = as_nobody(open_copy, "tools/install", what, "mirror", "")
    assert answer.returncode == 2
    assert f"Type this: sudo make {target} HOST=mirror\n" in answer.stderr


@pytest.mark.parametrize(
    ("host", "radar"),
    [("", ""), ("mars", "sas"), ("campus", ""), ("campus", "SAS"), ("campus", "sas; ls"), ("scrub-campus", "sas"),
     ("mirror-publish", "sas"), ("mirror-", "")],
)  # fmt: skip
def test_installing_for_no_host_or_radar_is_refused(open_copy, host, radar):
    answer = as_nobody(open_copy, "tools/install", "units", host, radar)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "for example: sudo make units HOST=campus RADAR=sas" in answer.stderr


SKIPPING = """
import pytest

def test_that_runs(): pass

@pytest.mark.skip(reason="a good reason")
def test_that_is_skipped(): pass

@pytest.mark.xfail
def test_that_is_known_to_fail(): assert False
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
@pytest.mark.parametrize(("allowed", "code"), [("# no reason\n", 1), ("a good reason\n", 0)])
def test_a_skip_for_a_reason_that_is_not_listed_fails_the_run(tmp_path, workers, allowed, code):
    shutil.copy(REPOSITORY / "tests/conftest.py", tmp_path)
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "allowed").write_text(allowed)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    argv = [sys.executable, "-m", "pytest", *workers, "--allowed-skips=allowed", "-p", "no:cacheprovider"]
    answer = subprocess.run(argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert answer.returncode == code, answer.stdout
    assert ("SKIPPED without leave: test_skipping.py::test_that_is_skipped: a good reason" in answer.stdout) == bool(code)
