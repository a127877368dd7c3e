"""What a record says of versions is what pip says of them."""

from __future__ import annotations

import errno
import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from dataflow.lib import version


@pytest.fixture(autouse=True)
def forgotten():
    """Each test asks anew."""
    version._known.cache_clear()


@pytest.mark.parametrize("package", ["pydarnio", "numpy", "h5py", "pytest"])
def test_a_version_is_the_one_that_is_installed(package):
    assert version.of(package) == metadata.version(package)


def test_what_is_not_installed_has_neither_version_nor_commit():
    assert version.of("pydarni") is None, "not even where the name of another package begins so"
    assert version.commit("pydarni") is None


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


HEADS = {
    "loose": {"HEAD": "ref: refs/heads/main\n", "refs/heads/main": "cd34\n"},
    "packed": {"HEAD": "ref: refs/heads/main\n", "packed-refs": "# pack-refs\nab12 refs/heads/other\ncd34 refs/heads/main\n"},
    "detached": {"HEAD": "cd34\n"},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_commit_of_a_checkout_is_its_head(tmp_path, monkeypatch, head):
    for name, content in HEADS[head].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    assert version.commit("dataflow") == "cd34"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_looked_into_is_passed_over(tmp_path, monkeypatch, number):
    def refused(self, pattern):
        if self == tmp_path:
            raise OSError(number, os.strerror(number), str(tmp_path))
        return glob(self, pattern)

    glob = Path.glob
    monkeypatch.setattr(Path, "glob", refused)
    monkeypatch.syspath_prepend(tmp_path)
    assert version.of("pydarnio") == metadata.version("pydarnio")
