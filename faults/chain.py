"""The daemons as subjects: one pass of each over a small block, from the radar computer to the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loopback import Machines, Run, kind_and_hash
from step_cases import ANTENNAS, at, made, on_nas, put

from dataflow.lib import custody, names, place
from dataflow.lib.names import Kind
from faults import invariants
from faults.invariants import Fed
from faults.sweep import Subject

RADAR = "sas"
HOSTS = ("borealis", "site-linux", "campus")
BLOCKS = 2


def block(machines: Machines) -> dict[Path, str]:
    """Two rawacf and an antennas_iq that the radar has finished, and a photo at the site; with their hashes."""
    day = machines.here("borealis").folder("data") / f"{at(0):%Y%m%d}"
    fed = [put(day / names.radar_file(at(n), RADAR, 0, Kind.RAWACF).text, made(n)[0], at(n + 1)) for n in range(BLOCKS)]
    fed.append(put(day / names.radar_file(at(0), RADAR, 0, Kind.ANTENNAS_IQ).text, made(0)[1], at(1)))
    fed.append(put(machines.here("site-linux").folder("cameras") / f"{at(0):%Y%m%d.%H%M}.cam210.jpg", b"a photo", at(0)))
    return {path: kind_and_hash(path) for path in fed}


def daemon(host: str, machines: Machines) -> Run:
    """One pass of a host's daemon."""
    code, said, _ = machines.dataflow(["daemon", host, "--radar", RADAR, "--once"])
    return Run(code, said)


def _fed_up_to(host: str, machines: Machines) -> dict[Path, str]:
    """The block, brought as far as the hosts before this one bring it; what waits for this host, with hashes."""
    fed = block(machines)
    for before in HOSTS[: HOSTS.index(host)]:
        done = daemon(before, machines)
        assert done.code == 0, done.said
    if host == "borealis":
        return {path: digest for path, digest in fed.items() if "cameras" not in path.parts}
    here = machines.here(host)
    keys = [key for key in here.host.backlog if key != "to_plot"]
    return {path: kind_and_hash(path) for key in keys for path in place.scan(here.folder(key))}


def _left_borealis(machines: Machines, fed: Mapping[Path, str]) -> None:
    for path, digest in fed.items():
        _at(digest, *(place for place in on_nas(machines, path) if ".to_plot" not in place.parts))
        assert not path.exists(), f"{path} is still there"
    _flag_at(machines, "site-linux")


def _left_site(machines: Machines, fed: Mapping[Path, str]) -> None:
    campus = machines.here("campus")
    for path, digest in fed.items():
        name = names.parse(path.name)
        assert name is not None
        _at(digest, campus.folder(campus.host.routes[name.kind.value], name.time, name.camera or "") / name.text)
        assert not path.exists(), f"{path} is still there"
    _flag_at(machines, "campus")


def _at_rest(machines: Machines, fed: Mapping[Path, str]) -> None:
    sha256 = {}
    for number in range(BLOCKS):
        rawacf = names.radar_file(at(number), RADAR, 0, Kind.RAWACF).text
        sha256[rawacf] = made(number)[3].source_sha256
    sha256[names.radar_file(at(0), RADAR, 0, Kind.ANTENNAS_IQ).text] = ""
    sha256[f"{at(0):%Y%m%d.%H%M}.cam210.jpg"] = ""
    found = list(invariants.breaches(machines.config, RADAR, Fed(sha256, ANTENNAS, dict.fromkeys(list(sha256)[:BLOCKS], 2))))
    assert not found, "; ".join(found)


def _at(digest: str, *places: Path) -> None:
    for each in places:
        assert each.is_file(), f"{each} is missing"
        assert kind_and_hash(each) == digest, f"{each} is damaged"


def _flag_at(machines: Machines, host: str) -> None:
    assert place.scan(custody.flags_folder(machines.here(host))), f"no flag came to {host}"


def _state(machines: Machines) -> dict[str, Any]:
    """All that must be the same, but for what was told of the runs: of logs that travelled, which steps' there are.

    A daemon has a log of its own only where it had to tell of something, as of a step that was killed.
    """
    found = machines.state()
    return {key: _of_steps(value) if key.startswith("logs at") else value for key, value in found.items()}


def _of_steps(logs: Iterable[str]) -> set[str]:
    return {log for log in logs if not log.startswith(f"{RADAR}/daemon/")}


_FINISHED: dict[str, Callable[[Machines, Mapping[Path, str]], None]] = {
    "borealis": _left_borealis,
    "site-linux": _left_site,
    "campus": _at_rest,
}
DAEMONS = tuple(
    Subject(f"daemon {host}", host, RADAR, partial(_fed_up_to, host), partial(daemon, host), _FINISHED[host], state=_state)
    for host in HOSTS
)
