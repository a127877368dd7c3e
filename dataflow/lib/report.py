"""What there is to tell from what is on this machine: status, summary of the logs, and the custody of one file."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dataflow.lib import flag, names, place, quarantine, summary
from dataflow.lib.config import Here
from dataflow.lib.custody import flags_folder, open_folder, outbox
from dataflow.lib.errors import TryLater
from dataflow.lib.step import OUTCOMES
from dataflow.lib.summary import CHECKED, DAMAGED, LOST, Record

Report = dict[str, Any]


def status(here: Here, now: datetime) -> Report:
    """Flags waiting and open, outbox, backlog, last run of each step, quarantine and pauses of one host and radar.

    Of a root that gives no answer it tells only that; what lies there is left out.
    """
    since = summary.day_before(now, 7)
    silent = _silent_roots(here)
    quarantined = quarantine.reasons(here) if here.root_of("quarantine") not in silent else []
    return {
        "host": here.host_name,
        "radar": here.radar,
        "machine": here.machine.name,
        "time": summary.timestamp(now),
        "flags": {
            "waiting": len([p for p in place.scan(flags_folder(here)) if flag.is_flag_name(p.name)]),
            "open": len(place.scan(open_folder(here))),
            "unreadable": len(place.scan(flags_folder(here) / "unreadable")),
            "outbox": len(place.scan(outbox(here))),
        },
        "silent": silent,
        "backlog": {key: _folder_size(here.folder(key)) for key in here.host.backlog if here.root_of(key) not in silent},
        "steps": _last_runs(list(summary.records(summary.own_files(here, since)))),
        "quarantine": [{"file": path.name, "kind": r.kind, "reason": r.message} for path, r in quarantined],
        "paused": {path.name: path.read_text().strip() for path in place.scan(here.state / "paused")},
    }


def statistics(here: Here, now: datetime, days: int) -> Report:
    """Counts of the last days for each step: runs, outcomes, bytes, seconds, alerts, and why files are in trouble now."""
    since = summary.day_before(now, days - 1)
    steps: dict[str, Report] = {}
    for record in summary.records(summary.own_files(here, since)):
        entry = steps.setdefault(
            record["step"], {"runs": 0, "bytes": 0, "seconds": 0.0, "alerts": 0, "files": Counter(), "trouble": {}}
        )
        if record["event"] == "end":
            entry["runs"] += 1
            entry["seconds"] = round(entry["seconds"] + float(record.get("seconds", 0)), 3)
            entry["bytes"] += int(record.get("bytes", 0))
        elif record["event"] == "alert":
            entry["alerts"] += 1
        elif record["event"] == "file":
            entry["files"][record["outcome"]] += 1
            entry["trouble"].pop(record["file"], None)
            if record["outcome"] in ("kept", "quarantined"):
                entry["trouble"][record["file"]] = f"{record['outcome']}: {record.get('reason', '')}"
    for entry in steps.values():
        entry["files"] = {word: entry["files"][word] for word in OUTCOMES if entry["files"][word]}
        entry["trouble"] = dict(list(entry["trouble"].items())[-10:])
    return {"host": here.host_name, "radar": here.radar, "machine": here.machine.name, "days": days, "steps": steps}


def _silent_roots(here: Here) -> dict[str, str]:
    """The roots that give no answer, and what is to be said of them."""
    silent = {}
    for root in here.roots:
        try:
            place.require_answer(here, root)
        except TryLater as error:
            silent[root] = str(error)
    return silent


def _folder_size(folder: Path) -> Report:
    sizes = []
    for path in place.scan(folder):
        with suppress(FileNotFoundError):  # a step takes it just now
            if stat.S_ISREG((status := path.lstat()).st_mode):
                sizes.append(status.st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}


def _last_runs(records: list[Record]) -> Report:
    runs: Report = {}
    for record in records:
        if record["event"] == "end":
            keys = ("time", "exit", "found", "waiting", "done", "kept", "quarantined", "skipped", "seconds", "reason")
            runs[record["step"]] = {key: record[key] for key in keys if key in record}
    return runs


def trace(here: Here, name: str, now: datetime, is_whole: bool) -> tuple[list[Report], list[str]]:
    """The custody of one file, oldest first, with that of what was made from it, and what is wrong with it.

    Each hop is ``{time, host, machine, step, action, place, file, sha256, parent, outcome, reason}``. ``is_whole``: this host has
    the logs of every host, so a missing hop is an error.
    """
    parsed = names.parse(name)
    since = min(parsed.time.date(), summary.day_before(now, 7)) if parsed else summary.day_before(now, 30)
    records = [
        record
        for record in summary.records(summary.own_files(here, since) + summary.relayed_files(here, since))
        if record["event"] in ("file", "action") and record.get("outcome") != "skipped"
    ]
    records.sort(key=lambda record: str(record["time"]))
    hashes = {r["sha256"] for r in records if r.get("file") == name and r.get("sha256")}
    descendants = {r["file"] for r in records if r.get("parent") in hashes} if hashes else set()
    hops = _hops([record for record in records if record.get("file") in {name, *descendants}])
    return hops, list(_faults(hops, name, is_whole, here))


def _hops(records: list[Record]) -> list[Report]:
    """Each place that a file came to, once: what its own record says again, a wait that is over, and all checks but the last
    that found it as it was, are left out."""
    told = {_visit(record) for record in records if record["event"] == "action"}
    settled = {(r["host"], r["step"], r["file"]): r["time"] for r in records if r.get("outcome") in ("done", "quarantined")}
    waits = {(r["host"], r["step"], r["file"]): r["time"] for r in records if r.get("outcome") == "kept"}
    checks = {(r["host"], r.get("destination")): r["time"] for r in records if r.get("action") == CHECKED}
    hops = []
    for record in records:
        key = record["host"], record["step"], record["file"]
        if record.get("action") == CHECKED and record["time"] != checks[record["host"], record.get("destination")]:
            continue
        is_past_wait = record.get("outcome") == "kept" and (key in settled or record["time"] != waits[key])
        if not is_past_wait and not (record["event"] == "file" and _visit(record) in told):
            hops.append(_hop(record))
    return hops


def _visit(record: Record) -> tuple[object, ...]:
    return tuple(record.get(key) for key in ("run", "step", "file", "destination"))


def _hop(record: Record) -> Report:
    keys = ("time", "host", "machine", "step", "action", "file", "sha256", "parent", "outcome", "reason")
    place = record.get("destination") or record.get("source")
    return {"outcome": "done", **{key: record.get(key) for key in keys if key != "outcome" or key in record}, "place": place}


def _faults(hops: list[Report], name: str, is_whole: bool, here: Here) -> Iterator[str]:
    if not hops:
        yield f"no record names {name} on {here.machine.name}"
    for file in dict.fromkeys(hop["file"] for hop in hops):
        of_file = [hop for hop in hops if hop["file"] == file]
        hashes = {hop["sha256"] for hop in of_file if hop["sha256"] and hop["outcome"] == "done"}
        if len(hashes) > 1:
            yield f"the hashes of {file} disagree: {', '.join(sorted(hashes))}"
        last_of_place = {(hop["host"], hop["place"]): hop for hop in of_file}
        for hop in last_of_place.values():
            if hop["outcome"] in (DAMAGED, LOST):
                yield f"{hop['place']} is {hop['outcome']} since {hop['time'][:19]}Z: {hop['reason']}"
        if of_file[-1]["outcome"] not in ("done", DAMAGED, LOST):
            yield f"the last record of {file} says {of_file[-1]['outcome']}: {of_file[-1]['reason']}"
        for host in _silent_hosts(of_file, here) if is_whole else ():
            yield f"no record of {host} names {file}: was it handed in behind it, or are the logs of {host} still on their way?"


def _silent_hosts(hops: list[Report], here: Here) -> list[str]:
    """The hosts that must have had a file, from where its custody begins to where it was last, and that tell nothing of it.

    Custody begins at the first host of the chain, or where the file was adopted or made from another.
    """
    chain = [*here.upstream, here.host_name]
    told = [host for host in chain if any(hop["host"] == host and hop["outcome"] == "done" for hop in hops)]
    begins = {hop["host"] for hop in hops if hop["action"] == "adopted" or hop["parent"]}
    first = next((host for host in chain if host in begins), chain[0])
    last = told[-1] if told else first
    return [host for host in chain[chain.index(first) : chain.index(last)] if host not in told]
