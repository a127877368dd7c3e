"""The table at the end of the demo: every file, and where it was and is at each hop, as the summary logs tell it."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow.lib import names
from dataflow.lib.names import PICTURES, Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One file at one hop; ``time`` is HH:MM:SS (UTC), ``folder`` below the demo's own. ``is_there``: the file lies there now."""

    time: str
    machine: str
    action: str
    file: str
    sha256: str
    folder: str
    is_there: bool
    reason: str | None


def rows(root: Path, hops: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The custody of one file as rows, each told by the machine on which the file lay, with the one that sent it there."""
    senders = {(hop["file"], hop["place"]): hop["machine"] for hop in hops if not hop["place"].startswith("/")}
    return [_row(root, hop, senders) for hop in hops if (hop["file"], hop["place"]) not in senders]


def _row(root: Path, hop: Mapping[str, Any], senders: Mapping[tuple[str, str], str]) -> Row:
    file, machine, place = hop["file"], hop["machine"], Path(hop["place"])
    sender = senders.get((file, f"{machine}:{place}")) if hop["step"] == "receive" else None
    folder = place.parent if place.name == file else place
    return Row(
        time=hop["time"][11:19], machine=f"{sender} > {machine}" if sender else machine, action=hop["action"], file=file,
        sha256=(hop["sha256"] or "")[:10], folder=os.path.relpath(folder, root), is_there=(folder / file).is_file(),
        reason=None if hop["outcome"] == "done" else str(hop["reason"]).replace(f"{root}/", ""),
    )  # fmt: skip


def row_without_record(root: Path, path: Path, machine: str, action: str, reason: str) -> Row:
    """The row of a file that no summary log names."""
    return Row("", machine, action, path.name, "", os.path.relpath(path.parent, root), path.is_file(), reason)


def lines(file: str, of_file: Sequence[Row]) -> Iterator[str]:
    """The rows of a file and of what was made from it, a line for each hop; pictures, and like places, share a line."""
    yield f"  {file}"
    for label, of_label in _grouped(of_file, lambda row: "pictures" if _is_picture(row.file) else row.file).items():
        if label == "pictures":
            yield f"    {_count(of_label)}, made from it"
        elif label != file:
            yield f"    {label}, made from it"
        for group in _grouped(of_label, lambda row: (row.machine, row.action, row.is_there, Path(row.folder).parent)).values():
            row = group[0]
            digest = row.sha256 if len({row.file for row in group}) == 1 else ""
            folder = _braced(list(dict.fromkeys(row.folder for row in group)))
            yield f"    {'*' if row.is_there else ' '} {row.time:8}  {row.machine:23} {row.action:11} {digest:10}  {folder}"
            if row.reason:
                yield from textwrap.wrap(f"because {row.reason}", 140, initial_indent=" " * 16, subsequent_indent=" " * 16)


def _grouped(of_file: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in of_file:
        groups.setdefault(key(row), []).append(row)
    return groups


def _count(pictures: Iterable[Row]) -> str:
    kinds = Counter(name.kind for file in {row.file for row in pictures} if (name := names.parse(file)))
    words = {Kind.PLOT: f"{kinds[Kind.PLOT]} pictures", Kind.CONTACT: "contact sheet", Kind.QUICKLOOK: "quick-look"}
    return " + ".join(text for kind, text in words.items() if kinds[kind])


def _is_picture(file: str) -> bool:
    name = names.parse(file)
    return name is not None and name.kind in PICTURES


def _braced(folders: Sequence[str]) -> str:
    """Several folders of one parent as a shell would write them: ``staging/{vt,bas}``."""
    if len(folders) == 1:
        return folders[0]
    return f"{Path(folders[0]).parent}/{{{','.join(Path(folder).name for folder in folders)}}}"
