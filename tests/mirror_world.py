"""A mirror for a test: the shipped configuration below one folder, its mirror a directory store, and real DMAP files.

`world` gives a `Config` whose mirror can be used at once; `dmap_file` makes small real files of any name quickly.
"""

from __future__ import annotations

import bz2
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import dmap
from pydarnio.borealis.borealis_utilities import code_to_stid

from dataflow.demo import machines
from dataflow.lib import check, config, names, summary
from dataflow.lib.config import Config
from dataflow.lib.errors import Exit
from dataflow.mirror import job, layout
from dataflow.mirror.job import Job

REPOSITORY = Path(__file__).resolve().parents[1]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def world(root: Path, overrides: Sequence[str] = ()) -> Config:
    """The shipped configuration with all machines below `root`, without reserves, its mirror's roots marked, two partners as
    directory stores below `root`: `partner(config, "bas")` is the folder of one."""
    shipped = config.load(REPOSITORY / "config.yaml")
    assert shipped.flow.mirror is not None
    settings = [*machines.without_limits(shipped.flow)]
    for name in shipped.flow.mirror.roots:
        settings.append(f"mirror.roots.{name}.reserve_bytes=0")
    settings.append("mirror.roots.neighbours={path: /data/neighbours}")
    for name in shipped.flow.mirror.partners:
        settings.append(f"mirror.partners.{name}.store={{kind: directory, root: neighbours/{name}}}")
    settings.append("mirror.hub.store={kind: directory, root: neighbours/hub}")
    loaded = config.load(REPOSITORY / "config.yaml", root, [*settings, *overrides])
    _, here = loaded.mirror()
    assert all(finding.is_good for finding in check.look(here, create_markers=True))
    for folder in ("bas", "nssc", "hub"):
        (here.roots["neighbours"] / folder).mkdir(exist_ok=True)
    return loaded


def mirror_folder(loaded: Config) -> Path:
    """The top of our own mirror, `tree` included, where its store is a directory."""
    settings, here = loaded.mirror()
    return here.path(settings.store.root) / settings.tree


def neighbour(loaded: Config, name: str) -> Path:
    """The folder that stands for a partner (`bas`, `nssc`) or for the `hub`."""
    _, here = loaded.mirror()
    return here.roots["neighbours"] / name


def holding(loaded: Config, name: str) -> Path:
    """A holding directory, made."""
    settings, here = loaded.mirror()
    path = here.path(settings.holdings[name])
    path.mkdir(parents=True, exist_ok=True)
    return path


def dmap_bytes(name: str, records: int = 1, salt: int = 0) -> bytes:
    """A real, small, compressed rawacf DMAP file that a name of the grammar may have. `salt` makes other content."""
    parsed = names.parse(name)
    assert parsed is not None and parsed.radar is not None
    record = dict(_template())
    record.update({"stid": code_to_stid[parsed.radar], "cp": 151, "combf": f"{name} {salt}"})
    for key, value in zip(("yr", "mo", "dy", "hr", "mt", "sc"), parsed.time.timetuple()[:6], strict=True):
        record[f"time.{key}"] = value
    if parsed.channel:
        record["channel"] = ord(parsed.channel) - ord("a")
    encoded = dmap.write_rawacf([record] * records, None)
    assert encoded is not None
    return bz2.compress(encoded)


def dmap_file(folder: Path, name: str, records: int = 1, salt: int = 0) -> Path:
    """The same as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(dmap_bytes(name, records, salt))
    return path


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def on_mirror(top: Path, contents: dict[str, bytes], master: bool = True) -> None:
    """Lay a mirror out below `top`: files by name, the lists of their months, and the master list, as `sha1sum` writes them."""
    for name, content in contents.items():
        folder = top / layout.data_folder("", name[:6])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    months = sorted({name[:6] for name in contents})
    for month in months:
        lines = sorted((name, hashlib.sha1(content).hexdigest()) for name, content in contents.items() if name[:6] == month)
        (top / layout.month_list("", month)).write_text("".join(f"{digest}  {name}\n" for name, digest in lines))
    (top / layout.blocklist("")).mkdir(parents=True, exist_ok=True)
    if master:
        lines = [f"{sha1(top / layout.month_list('', month))}  {layout.master_line(month)}\n" for month in months]
        (top / layout.master_list("")).write_text("".join(lines))


def run(loaded: Config, name: str, work: Callable[[Job], None], lock_name: str = "test", **fields: Any) -> tuple[Exit, Job]:
    """Run a command's work as `dataflow mirror` does, with the clock at NOW unless given; its exit code and its job.

    `job.said` is not there: what was said is in `said` below.
    """
    made = job.open_job(loaded, name, lock_name, SAID.append)
    made.clock = fields.pop("clock", lambda: NOW)
    made.log = summary.SummaryLog(made.here, name, f"test-{os.getpid()}-{len(SAID)}", made.clock)
    for key, value in fields.items():
        setattr(made, key, value)
    return job.run(made, work), made


SAID: list[str] = []
"""What the jobs of this process have told a person."""


def records(loaded: Config, name: str, event: str | None = None) -> list[dict[str, Any]]:
    """The records of a job, oldest first."""
    _, here = loaded.mirror()
    found = summary.records(sorted((here.logs / name / "summary").glob("*/*/*.jsonl")))
    return [record for record in found if event in (None, record["event"])]


def outcomes(loaded: Config, name: str) -> dict[str, str]:
    """The last outcome of each file."""
    return {record["file"]: record["outcome"] for record in records(loaded, name, "file")}


@cache
def _template() -> dict[str, Any]:
    """One record that pyDARNio's simulated cousin made: a small real one."""
    import tempfile

    import rawacf_files
    from pydarnio.borealis.v1_onwards import BorealisV1Convert

    from dataflow.lib import borealis

    with tempfile.TemporaryDirectory() as folder:
        source = rawacf_files.simulated(Path(folder), records=1)
        first = next(borealis.stream(source, borealis.RAWACF_FIELDS))
        made: list[dict[str, Any]] = BorealisV1Convert.convert_rawacf_record(first.values, {}, source.name)
    return made[0]
