"""What there is to tell from what is on this machine: status, summary of the logs, and the custody of one file."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from dataflow.lib import flag, names, place, quarantine, summary
from dataflow.lib.config import Here
from dataflow.lib.custody import flags_folder, open_folder, outbox
from dataflow.lib.summary import Record

Report = dict[str, Any]


def status(here: Here, now: datetime) -> Report:
    """Flags waiting and open, outbox, backlog, last run of each step, quarantine and pauses of one host and radar."""
    since = summary.day_before(now, 7)
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
        "backlog": {key: _folder_size(here.folder(key)) for key in here.host.backlog},
        "steps": _last_runs(list(summary.records(summary.own_files(here, since)))),
        "quarantine": [{"file": path.name, "kind": r.kind, "reason": r.message} for path, r in quarantine.reasons(here)],
        "paused": {path.name: path.read_text().strip() for path in place.scan(here.state / "paused")},
    }


def statistics(here: Here, now: datetime, days: int) -> Report:
    """Counts of the last days for each step: runs, outcomes, bytes, seconds, alerts, and the latest reasons for trouble."""
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
            if record["outcome"] in ("kept", "quarantined"):
                entry["trouble"][record["file"]] = f"{record['outcome']}: {record.get('reason', '')}"
    for entry in steps.values():
        entry["files"] = dict(entry["files"])
        entry["trouble"] = dict(list(entry["trouble"].items())[-10:])
    return {"host": here.host_name, "radar": here.radar, "machine": here.machine.name, "days": days, "steps": steps}


def _folder_size(folder: Path) -> Report:
    files = [path for path in place.scan(folder) if place.is_regular(path)]
    return {"files": len(files), "bytes": sum(path.lstat().st_size for path in files)}


def _last_runs(records: list[Record]) -> Report:
    runs: Report = {}
    for record in records:
        if record["event"] == "end":
            keys = ("time", "exit", "found", "waiting", "done", "kept", "quarantined", "skipped", "seconds", "reason")
            runs[record["step"]] = {key: record[key] for key in keys if key in record}
    return runs


def trace(here: Here, name: str, now: datetime, is_whole: bool) -> tuple[list[Report], list[str]]:
    """The custody of one file, oldest first, with that of what was made from it, and what is wrong with it.

    Each hop is ``{time, host, machine, step, action, place, file, sha256, parent, outcome}``. ``is_whole``: this host has
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
    hops = [_hop(record) for record in records if record.get("file") in {name, *descendants}]
    return hops, _faults(hops, name, is_whole, here)


def _hop(record: Record) -> Report:
    keys = ("time", "host", "machine", "step", "action", "file", "sha256", "parent", "outcome", "reason")
    return {**{key: record.get(key) for key in keys}, "place": record.get("destination") or record.get("source")}


def _faults(hops: list[Report], name: str, is_whole: bool, here: Here) -> list[str]:
    if not hops:
        return [f"no record names {name} on {here.machine.name}"]
    faults = []
    hashes = {hop["sha256"] for hop in hops if hop["file"] == name and hop["sha256"] and hop["outcome"] in ("done", None)}
    if len(hashes) > 1:
        faults.append(f"hashes disagree: {', '.join(sorted(hashes))}")
    if (
        is_whole
        and not any(hop["host"] != here.host_name for hop in hops)
        and not any(hop["action"] == "adopted" for hop in hops)
    ):
        faults.append("no record of an earlier host: was it handed in on campus, or are the logs still on their way?")
    if hops[-1]["outcome"] in ("kept", "quarantined"):
        faults.append(f"its last record says {hops[-1]['outcome']}: {hops[-1]['reason']}")
    return faults
