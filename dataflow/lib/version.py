"""Which versions and commits are running, for the summary records.

What pip knows of a package lies on the path of modules in a folder ``NAME-VERSION.dist-info`` (PyPA: recording installed
projects). It is found here without ``importlib.metadata``, whose import alone is a sixth of what a step takes to start.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2] / ".git"
_ENDING = ".dist-info"


def of(package: str) -> str | None:
    """The version of an installed package, or None where it is not installed."""
    known = _known(package)
    return known.name.removesuffix(_ENDING).partition("-")[2] if known else None


def commit(package: str) -> str | None:
    """The commit that a package was installed from, or that its checkout is at; None when nothing tells."""
    if package == "dataflow" and _CHECKOUT.is_dir():
        return _head(_CHECKOUT)
    origin = known / "direct_url.json" if (known := _known(package)) else None
    if origin is None or not origin.is_file():
        return None
    found = json.loads(origin.read_text()).get("vcs_info", {}).get("commit_id")
    return str(found) if found else None


@cache
def _known(package: str) -> Path | None:
    """The folder with what pip knows of a package; None where it is not installed."""
    for folder in sys.path:
        with suppress(OSError):  # one may lie where this user may not look, or on a disk that fails; a version is not worth a run
            for found in Path(folder).glob(f"{package}-*{_ENDING}"):
                return found
    return None


def _head(git: Path) -> str | None:
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        loose = git / head[5:]
        if loose.exists():
            return loose.read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(head[5:])), None)
    except OSError:
        return None
