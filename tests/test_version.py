"""What a record says of versions is what pip says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dataflow.lib import version

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def forgotten():
    """Each test asks anew."""
    version.of.cache_clear()
    version.commit.cache_clear()


@pytest.mark.parametrize("package", ["pydarnio", "numpy", "h5py", "pytest"])
def test_a_version_is_the_one_that_is_installed(package):
    assert version.of(package) == metadata.version(package)


def test_what_is_not_installed_has_neither_version_nor_commit():
    assert version.of("pydarn") is None, "not even where the name of another package begins so"
    assert version.commit("pydarn") is None


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": "https://example.org/pydarnio", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}, "ab12"),
        ({"url": "file:///there", "dir_info": {}}, None),
        (None, None),
    ],
)
def test_a_commit_is_the_one_that_it_was_installed_from(tmp_path, monkeypatch, origin, expected):
    folder = tmp_path / "pydarnio-7.0.dist-info"
    folder.mkdir()
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    assert (version.of("pydarnio"), version.commit("pydarnio")) == ("7.0", expected)


def test_the_commit_of_a_checkout_is_its_head():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert version.commit("dataflow") == head.stdout.strip()


def test_a_step_starts_without_what_only_tells_versions():
    """It would take a sixth of the time in which one starts."""
    argv = [sys.executable, "-c", "import sys; from dataflow.lib import runner; print('importlib.metadata' in sys.modules)"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
