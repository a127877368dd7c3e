"""Files of this machine to their final names on a store: never a partial under such a name, and nothing replaced."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from dataflow.lib.errors import BadFile, DataflowError, HostDown, TryLater
from dataflow.mirror.classify import Local
from dataflow.mirror.stores import Store, Taken
from dataflow.mirror.stores.paths import parent_of, part_of

CONFLICT = "conflict"


def bring(store: Store, files: Mapping[str, Local]) -> dict[str, DataflowError]:
    """Put files under their final paths in a store; the failures, by path.

    Each is written to a hidden part, compared there by the store, and renamed. A name that is taken by the same content is as
    good; by other content it is a ``BadFile`` of the kind ``conflict``. What is not among the failures lies there with the
    content that was hashed. Raises nothing.
    """
    failures: dict[str, DataflowError] = {}
    for folder, paths in groupby(sorted(files), key=parent_of):
        here = {path: files[path] for path in paths}
        try:
            store.make_folder(folder)
        except DataflowError as error:
            failures |= dict.fromkeys(here, error)
    for stage in (_written, _named, _of_other_size):
        failures |= stage(store, {path: file for path, file in files.items() if path not in failures})
    return failures


def _written(store: Store, files: Mapping[str, Local]) -> dict[str, DataflowError]:
    """Upload to the parts. What a store has compared is what lies here: which must be what was hashed."""
    parts = {part_of(path): path for path in files}
    failed = store.store({part: files[path].path for part, path in parts.items()}) if files else {}
    failed |= _of_other_size(store, {part: files[path] for part, path in parts.items() if part not in failed})
    for part, path in parts.items():
        if part not in failed and not files[path].is_still_the_same():
            failed[part] = TryLater(f"{files[path].path} changed while it was uploaded; it is looked at anew by the next run")
    return {parts[part]: error for part, error in failed.items()}


def _named(store: Store, files: Mapping[str, Local]) -> dict[str, DataflowError]:
    failures: dict[str, DataflowError] = {}
    down: HostDown | None = None
    for path, file in files.items():
        if down is not None:  # asked for each of a thousand files, it would be waited for a thousand times
            failures[path] = down
            continue
        try:
            _name(store, path, file)
        except DataflowError as error:
            failures[path] = error
            down = error if isinstance(error, HostDown) else None
    return failures


def _name(store: Store, path: str, file: Local) -> None:
    try:
        store.rename(part_of(path), path)
    except Taken:
        found = store.sha1([path])[path]
        if isinstance(found, DataflowError):
            raise found from None
        store.remove(part_of(path))
        if found != file.sha1:
            raise other_content(path, found, file) from None


def other_content(path: str, found: str, file: Local) -> BadFile:
    """The error of a name that is taken by other content."""
    return BadFile(CONFLICT, f"{path} is there with other content: its SHA-1 is {found}, that of this file {file.sha1}")


def _of_other_size(store: Store, files: Mapping[str, Local]) -> dict[str, DataflowError]:
    failures: dict[str, DataflowError] = {}
    for folder, paths in groupby(sorted(files), key=parent_of):
        here = list(paths)
        try:
            there = store.names(folder)
        except DataflowError as error:
            failures |= dict.fromkeys(here, error)
            continue
        for path in here:
            if (size := there.get(path.rpartition("/")[2])) != files[path].size_bytes:
                told = "is not there after it was written" if size is None else f"has {size} bytes there"
                failures[path] = TryLater(f"{path} {told}, and {files[path].size_bytes} here: it is not counted as published")
    return failures
