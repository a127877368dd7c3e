"""The files that a run has found, and what became of each: exactly one outcome, recorded before the file loses its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataflow.lib import checksum, names, place
from dataflow.lib.errors import BadFile, TryLater
from dataflow.lib.step import trouble
from dataflow.mirror import aside, layout
from dataflow.mirror.aside import Unwanted
from dataflow.mirror.classify import Local
from dataflow.mirror.job import Job


@dataclass(slots=True)
class Accounts:
    """``left``: the files of one holding directory that have no outcome yet, by name."""

    job: Job
    holding: Path
    left: dict[str, Path] = field(default_factory=dict)

    def skip(self, name: str, action: str, reason: str | None = None) -> None:
        """A file that is left where it is, and that is right."""
        self.left.pop(name)
        self.job.file(names.printable(name), "skipped", action, reason=reason, source=str(self.holding))

    def keep(self, name: str, reason: str) -> None:
        """A file that is left where it is and tried again."""
        self.left.pop(name)
        self.job.say(f"{name} is kept: {reason}")
        self.job.file(names.printable(name), "kept", "kept", reason=reason, source=str(self.holding))

    def keep_all(self, wanted: Iterable[str], reason: str) -> None:
        """The same for many, said once."""
        known = [name for name in wanted if name in self.left]
        for name in known:
            self.left.pop(name)
            self.job.file(names.printable(name), "kept", "kept", reason=reason, source=str(self.holding))
        if known:
            more = f" and {len(known) - 1} more" if len(known) > 1 else ""
            self.job.say(f"{names.printable(known[0])}{more} kept: {reason}")

    def set_aside(self, reason: str, files: Sequence[Unwanted]) -> None:
        """Files that are not published; those that cannot be moved are kept."""
        if not files:
            return
        trouble_told = "it was not moved"
        try:
            aside.set_all_aside(self.job, reason, files)
        except (TryLater, BadFile, OSError) as error:
            trouble_told = trouble(error)
        for file in files:
            if file.path.exists():
                self.keep(file.path.name, f"{file.message}; but it could not be set aside: {trouble_told}")
            else:
                self.left.pop(file.path.name)

    def release(self, files: Mapping[Local, str]) -> None:
        """Let go of files that the mirror has and lists, each with the action that says how that came.

        What was changed since it was hashed is another file now, and stays.
        """
        released = []
        for file, action in files.items():
            if not file.is_still_the_same():
                self.keep(file.name.text, "it was changed or removed after it was hashed; the mirror has it as it was before")
                continue
            self.left.pop(file.name.text)
            released.append(file)
            self.job.file(
                file.name.text, "done", action, sha1=file.sha1, bytes=file.size_bytes, source=str(self.holding),
                destination=layout.data_path(self.job.settings.tree, file.name),
            )  # fmt: skip
        self.job.log.sync()
        for file in released:
            if file.is_still_the_same():  # what got its name while that was written is another file
                place.release(file.path)
        checksum.sync_folder(self.holding)
