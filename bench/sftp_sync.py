"""Two thousand small files from a partner over SFTP, verified and durable under their names, against one ``sftp -b`` of them.

    python bench/sftp_sync.py [--quick] [--pairs 5] [--json FILE]

Ours is ``dataflow mirror sync``, a process from its start to its end: the lists of both mirrors, every file fetched to a part,
synced, read back from the disk, compared with the partner's SHA-1, linked under its name and recorded. The other is the
predecessor's transfer: the stock client with a batch of ``get``, which verifies nothing and syncs nothing. The server is a real
sshd on loopback, that allows as many sessions on one connection as sshd does when nobody says otherwise, or two, or one.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import measure
import results
from results import Bar, Result

from dataflow.lib import check, config, names
from dataflow.lib.config import Config
from dataflow.mirror import hash_lists, layout

sys.path.append(str(results.ROOT / "tests"))
import sftp_server

MONTH = "202610"
LEAST_BYTES, MOST_BYTES = 10_000, 40_000
WALL_BAR = 4.0
SESSIONS = (10, 2, 1)
"""How many sessions the server allows on one connection; the first is the default of sshd."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many files are fetched."""

    files: int
    pairs: int


FULL = Size(files=2000, pairs=5)
QUICK = Size(files=40, pairs=1)


def measured(size: Size) -> Iterator[Result]:
    """Both ways in turn, for each number of sessions."""
    with sftp_server.reachable_folder() as scratch:
        contents = _partner(scratch / "partner", size.files)
        rows, bars = [], []
        for allowed in SESSIONS:
            with sftp_server.running(scratch / "partner", MaxSessions=allowed) as server:
                pairs = [(_ours(scratch, server, contents), _theirs(scratch, server, contents)) for _ in range(size.pairs)]
                used = server.sessions("subsystem 'sftp'") // size.pairs - 1
                bars.append(Bar(f"connections, {_may(allowed)}", server.connections() / size.pairs - 1, at_most=1, any_size=True))
            ours, theirs = (median(side) for side in zip(*pairs, strict=True))
            ratio = median([one / other for one, other in pairs])
            bars.append(Bar(f"wall against `sftp -b`, {_may(allowed)}", ratio, at_most=WALL_BAR))
            rows.append((_may(allowed), f"{used}", f"{ours:.2f} s", f"{theirs:.2f} s", f"{ratio:.2f}"))
    yield Result(
        "Sync with a partner over SFTP",
        f"{size.files:,} files of {LEAST_BYTES // 1000} to {MOST_BYTES // 1000} kB over loopback SSH: `dataflow mirror sync`, "
        f"each verified and durable, against one `sftp -b`, which does neither. Median of {size.pairs} pairs.",
        ("the server", "sessions used", "`dataflow mirror sync`", "`sftp -b`", "ratio"),
        tuple(rows),
        tuple(bars),
    )


def _may(allowed: int) -> str:
    return f"{allowed} sessions allowed" if allowed > 1 else "one session allowed"


def _partner(root: Path, count: int) -> dict[str, bytes]:
    """A partner's mirror with one month; what its files hold, by name."""
    chance = random.Random(1)
    first, folder = datetime(2026, 10, 1, tzinfo=UTC), root / layout.data_folder("", MONTH)
    folder.mkdir(parents=True)
    contents = {}
    for number in range(count):
        stamp = first + timedelta(minutes=20 * number)
        contents[f"{stamp:%Y%m%d.%H%M.%S}.sas.a.rawacf.bz2"] = chance.randbytes(chance.randint(LEAST_BYTES, MOST_BYTES))
    for name, content in contents.items():
        assert layout.is_published(names.parse(name)), name
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha1(content).hexdigest() for name, content in contents.items()}
    (root / layout.month_list("", MONTH)).write_bytes(hash_lists.render_month(hashes))
    return contents


def _mirror(root: Path, server: sftp_server.Server) -> Config:
    """Our own mirror, without files, with the server for its partner."""
    login = server.settings()
    there = ", ".join(
        f"{key}: {getattr(login, key)}" for key in ("kind", "root", "address", "port", "user", "key_file", "known_hosts")
    )
    source = results.ROOT / "config.yaml"
    shipped = config.load(source).flow.mirror
    assert shipped is not None
    without_reserve = [f"mirror.roots.{name}.reserve_bytes=0" for name in shipped.roots]
    loaded = config.load(source, root, [f"mirror.partners.bas.store={{{there}}}", *without_reserve])
    settings, here = loaded.mirror()
    list(check.look(here, create_markers=True))
    (here.path(settings.store.root) / layout.blocklist(settings.tree)).mkdir(parents=True)
    return loaded


def _ours(scratch: Path, server: sftp_server.Server, contents: dict[str, bytes]) -> float:
    """Seconds of one sync, from a cold start of everything: process, lists, connection."""
    loaded = _mirror(scratch / "ours", server)
    settings, here = loaded.mirror()
    try:
        os.sync()
        argv = [sys.executable, "-m", "dataflow", "mirror", "sync", "bas", "--month", MONTH]
        cost = measure.run(argv, cwd=results.ROOT, environment=loaded.environment())
        _require_all(here.path(settings.holdings["bas"]), contents)
        return cost.wall_s
    finally:
        shutil.rmtree(scratch / "ours")


def _theirs(scratch: Path, server: sftp_server.Server, contents: dict[str, bytes]) -> float:
    """Seconds of one batch of the stock client."""
    with tempfile.TemporaryDirectory(dir=scratch) as text:
        folder = Path(text)
        batch = folder / ".batch"
        there = server.root / layout.data_folder("", MONTH)
        batch.write_text("".join(f"get {there}/{name} {folder}/{name}\n" for name in contents))
        os.sync()
        options = ("-oBatchMode=yes", f"-oUserKnownHostsFile={server.secrets / 'known_hosts'}", "-oLogLevel=ERROR")
        login = f"{server.user}@127.0.0.1"
        argv = [
            "sftp",
            "-q",
            "-F",
            "/dev/null",
            "-i",
            server.secrets / "key",
            "-P",
            str(server.port),
            *options,
            "-b",
            batch,
            login,
        ]
        cost = measure.run(["sh", "-c", 'exec "$@" > /dev/null', "sh", *argv])
        _require_all(folder, contents)
        return cost.wall_s


def _require_all(folder: Path, contents: dict[str, bytes]) -> None:
    if {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")} != contents:
        raise measure.Failed(f"{folder} does not hold what the partner has")


if __name__ == "__main__":
    sys.exit(results.main(__doc__, measured, FULL, QUICK))
