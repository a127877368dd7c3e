"""Which versions and commits are running, for the summary records."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2] / ".git"


@cache
def of(distribution: str) -> str | None:
    """The version of an installed package, or None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit(distribution: str) -> str | None:
    """The commit that a package was installed from, or that its checkout is at; None when nothing tells."""
    if distribution == "dataflow" and _CHECKOUT.is_dir():
        return _head(_CHECKOUT)
    try:
        origin = metadata.distribution(distribution).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    found = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return str(found) if found else None


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
