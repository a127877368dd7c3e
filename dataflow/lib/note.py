"""What is remembered between runs in a small file of its own: for each of some texts a number, or a text.

Such a note saves work or tries and nothing else depends on it, so one that cannot be read begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from dataflow.lib import place

T = TypeVar("T", int, str)


def load(path: Path, kind: type[T]) -> dict[str, T]:
    """What was saved, as far as it is of the expected kind."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return {text: value for text, value in found.items() if type(value) is kind} if isinstance(found, dict) else {}


def save(path: Path, content: Mapping[str, int | str]) -> None:
    """Replace the note, durably."""
    place.make_own_folder(path.parent)
    place.write_whole(path, json.dumps(content, indent=0, sort_keys=True).encode() + b"\n")
