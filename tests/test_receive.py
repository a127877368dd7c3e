"""The receiving end of a link: what it takes, what it refuses, and that nothing counts twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from loopback import Machines, Run
from step_cases import at, bytes_of, entry_of, made, put, site_data, to_convert

from dataflow.lib import custody, flag, names, transfer
from dataflow.lib.checksum import sha256
from dataflow.lib.context import utc_now
from dataflow.lib.flag import Entry, Flag
from dataflow.lib.names import Kind

NAME = "20241101.0000.00.sas.0.rawacf.h5"


def arrive(machines: Machines, name: str = NAME, content: bytes = b"a rawacf") -> Path:
    """A file that rsync has brought."""
    return put(machines.here("campus").folder("incoming") / name, content, at(0))


def manifest(*entries: Entry | dict[str, Any], version: int = 1) -> bytes:
    listed = [entry if isinstance(entry, dict) else entry.document() for entry in entries]
    return json.dumps({"v": version, "run": "test", "files": listed}).encode()


def accept(machines: Machines, *entries: Entry, radar: str = "sas") -> dict[str, dict[str, Any]]:
    done = machines.receive("accept", manifest(*entries), radar=radar)
    assert done.code == 0, done.said
    return {answer["name"]: answer for answer in answers(done)}


def answers(done: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def emptied(machines: Machines) -> list[str]:
    """The partners take everything; what it was."""
    taken = []
    for target in machines.config.flow.distribute.targets.values():
        for file in machines.here("campus").path(target.folder).glob("*"):
            taken.append(file.name)
            file.unlink()
    return taken


def test_file_gets_its_place_mode_and_manifest(machines: Machines) -> None:
    entry = entry_of(arrive(machines), parent="0" * 64)
    answer = accept(machines, entry)[NAME]
    final = machines.here("campus").folder("holding") / NAME
    assert (answer["outcome"], answer["action"], answer["destination"]) == ("done", "received", str(final))
    assert sha256(final) == entry.sha256
    assert final.stat().st_mode & 0o7777 == 0o664 and final.parent.stat().st_mode & 0o7777 == 0o2775
    assert entry in machines.admitted("campus")
    assert not list(machines.here("campus").folder("incoming").glob("*"))


def test_what_a_sender_says_of_its_records_is_not_believed(machines: Machines) -> None:
    path = arrive(machines, "20241101.0000.00.sas.a.rawacf.bz2")
    accept(machines, entry_of(path, records=2, cpids=(151,)))
    (known,) = machines.admitted("campus")
    assert known.records is None and known.cpids is None
    document = Flag("20241101T000000.000000Z", "sas", "site-linux", "2024-11-01T00:00:00.000000Z", "run", (
        Entry(NAME, 1, "0" * 64, records=2, cpids=(151,)),
    ))  # fmt: skip
    assert answers(machines.receive("flag", document.encode()))[0]["outcome"] == "done"
    ((_, kept),) = flag.read_folder(custody.flags_folder(machines.here("campus")))
    assert kept.files[0].records is None and kept.files[0].cpids is None


def test_partials_that_nobody_resumes_are_removed(machines: Machines) -> None:
    """The one of a file that lies here is of no use; one that may be resumed stays, however old the radar's file is."""
    accept(machines, entry_of(arrive(machines)))
    partials = machines.here("campus").folder("incoming") / transfer.PARTIALS
    useless = put(partials / NAME, b"a raw", at(0))
    resumed = put(partials / NAME.replace(".sas.0.", ".sas.1."), b"a raw", at(0))
    incoming = partials.parent
    old = [put(incoming / folder / f".{NAME}.Ab12cD", b"a raw", at(0)) for folder in ("", ".logs/send_flag")]
    new = [put(path.with_name(f".{NAME}.Ef34gH"), b"a raw", utc_now()) for path in old]
    accept(machines)
    assert not useless.exists() and resumed.exists()
    assert not any(path.exists() for path in old) and all(path.exists() for path in new)


def test_temporaries_go_also_where_only_logs_are_sent(machines: Machines) -> None:
    incoming = machines.here("campus").folder("incoming")
    old = put(incoming / ".logs/send_flag" / f".{NAME}.Ab12cD", b"a line", at(0))
    assert answers(machines.receive("logs"))[0]["outcome"] == "done"
    assert not old.exists()


def test_unknown_group_keeps_what_arrives_and_says_what_to_do(machines: Machines) -> None:
    entry = entry_of(arrive(machines))
    done = machines.receive("accept", manifest(entry.document()), overrides=["hosts.campus.group=no-such-group"])
    (answer,) = answers(done)
    assert done.code == 0 and answer["outcome"] == "kept" and "getent group no-such-group" in answer["reason"]
    assert accept(machines, entry)[NAME]["outcome"] == "done"


def test_what_arrives_lies_in_a_folder_closed_to_others(machines: Machines) -> None:
    machines.receive("hello")
    assert machines.here("campus").folder("incoming").stat().st_mode & 0o7777 == 0o2770


def test_file_sent_again_is_a_duplicate_wherever_it_has_come_to(machines: Machines) -> None:
    """In holding, in data, in the archive, after the partners emptied staging, and in quarantine."""
    content = made(0)[0]
    entry = entry_of(arrive(machines, content=content))
    here, campus = machines.here("campus"), {"host": "campus"}
    stations = (
        lambda: None,
        lambda: machines.run("convert_on_campus", **campus),
        lambda: machines.run("distribute_borealis_data", **campus),
        lambda: sorted(emptied(machines)),
    )
    accept(machines, entry)
    for move_on in stations:
        move_on()
        arrive(machines, content=content)
        before = machines.stamps()
        answer = accept(machines, entry)[NAME]
        assert (answer["outcome"], answer["action"]) == ("done", "duplicate")
        after = machines.stamps()
        assert set(before) - set(after) == {str((here.folder("incoming") / NAME).relative_to(machines.root))}
        assert {text: after[text] for text in after} == {text: before[text] for text in after}
    for step in ("convert_on_campus", "distribute_borealis_data"):
        assert machines.run(step, **campus).of("end")[0]["found"] == 0
    assert emptied(machines) == []


@pytest.mark.parametrize("kind", ["dmap", "rawacf"])
def test_lost_acknowledgement_is_not_a_second_delivery(machines: Machines, kind: str) -> None:
    """Campus archived and the partners emptied staging; then the site, which never heard of it, sends the file again."""
    name = names.radar_file(at(0), "sas", 0, Kind.RAWACF)
    folder, text, content = ("rawacf_array", name.text, made(0)[0])
    if kind == "dmap":
        folder, text, content = ("rawacf_dmap", names.dmap_of(name).text, made(0)[2])
    taken: list[str] = []
    for turn in range(2):
        source = put(machines.here("site-linux").folder(folder) / text, content, at(0))
        machines.admit("site-linux", "sas", [entry_of(source)], "borealis")
        sent = machines.run("rsync_to_campus", "site-linux", part="data")
        assert sent.code == 0 and [r["action"] for r in sent.of("file")] == [["delivered", "duplicate"][turn]], sent.said
        assert not source.exists()
        for step in ("convert_on_campus", "distribute_borealis_data"):
            assert machines.run(step, "campus").code == 0
        taken += emptied(machines)
    assert sorted(taken) == [names.dmap_of(name).text] * len(machines.config.flow.distribute.targets)


@pytest.mark.parametrize("folder", ["holding", "data", "to_archive", "archive_hdf5", "quarantine"])
def test_same_name_with_other_content_goes_to_quarantine(machines: Machines, folder: str) -> None:
    first = put(machines.here("campus").folder(folder, at(0)) / NAME, b"was here first", at(0))
    was = first.stat()
    newcomer = entry_of(arrive(machines))
    answer = accept(machines, newcomer)[NAME]
    assert answer["outcome"] == "quarantined"
    assert first.read_bytes() == b"was here first" and first.stat().st_mtime_ns == was.st_mtime_ns
    reason = json.loads(Path(answer["destination"] + ".reason.json").read_text())
    assert reason["kind"] == "conflict"
    assert (reason["details"]["sha256"], reason["details"]["existing_sha256"]) == (newcomer.sha256, sha256(first))
    assert sha256(Path(answer["destination"])) == newcomer.sha256
    assert len(machines.records("receive", "campus", "sas")) == 2  # one record, one alert


def test_file_damaged_on_its_way_is_removed_and_sent_again(machines: Machines) -> None:
    """What arrived has the right size and time, so rsync would not send it again by itself."""
    source = site_data(machines, 0)
    digest, content = sha256(source), bytearray(source.read_bytes())
    content[100] ^= 1
    arrived = arrive(machines, source.name, bytes(content))
    os.utime(arrived, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    first = machines.run("rsync_to_campus", "site-linux", part="data")
    assert first.code == 1 and first.outcomes() == {source.name: "kept"}, first.said
    assert source.exists() and not arrived.exists()
    assert not (machines.here("campus").folder("holding") / source.name).exists()
    second = machines.run("rsync_to_campus", "site-linux", part="data")
    assert second.code == 0, second.said
    assert sha256(machines.here("campus").folder("holding") / source.name) == digest


def test_size_that_is_not_as_announced_is_damage(machines: Machines) -> None:
    entry = entry_of(arrive(machines))
    answer = accept(machines, Entry(entry.name, entry.size + 1, entry.sha256))[NAME]
    assert answer["outcome"] == "damaged"
    assert not (machines.here("campus").folder("incoming") / NAME).exists()


def test_file_that_did_not_arrive_is_missing_and_stops_nothing(machines: Machines) -> None:
    other = arrive(machines, "20241101.0200.00.sas.0.rawacf.h5")
    given = accept(machines, Entry(NAME, 8, "0" * 64), entry_of(other))
    assert given[NAME]["outcome"] == "missing"
    assert given[other.name]["outcome"] == "done"


@pytest.mark.parametrize(
    "name",
    [
        "20241101.0000.00.pgr.0.rawacf.h5",
        "20241101.0000.00.sas.0.antennas_iq.h5",
        "20241101.0000.00.sas.a.rawacf",
        "20241101.0000.00.sas.0.antennas_iq.antenna_1_0_70.full.jpg",
        "$(touch PWNED).h5",
        "-rf",
        NAME + "\n",
        ".dataflow-root",
        ".bashrc",
    ],
)
def test_file_that_is_not_for_this_host_is_refused_and_left_where_it_is(machines: Machines, name: str) -> None:
    path = arrive(machines, name)
    before = machines.files()
    answer = accept(machines, entry_of(path))[name]
    assert answer["outcome"] == "refused" and "sas" in answer["reason"]
    assert machines.files() == before and path.exists()
    assert not machines.admitted("campus")


@pytest.mark.parametrize("kind", ["link to a file", "FIFO", "folder"])
def test_what_is_no_file_is_missing_and_not_touched(machines: Machines, kind: str) -> None:
    path = machines.here("campus").folder("incoming") / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = put(machines.private / "outside", b"a rawacf", at(0))
    {"link to a file": lambda: path.symlink_to(outside), "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    assert accept(machines, Entry(NAME, 8, sha256(outside)))[NAME]["outcome"] == "missing"
    assert os.path.lexists(path) and outside.read_bytes() == b"a rawacf"


GOOD = {"name": NAME, "size": 8, "sha256": "0" * 64}
UNREADABLE = {
    "a path": manifest({**GOOD, "name": f"../../etc/{NAME}"}),
    "a parent": manifest({**GOOD, "name": ".."}),
    "a NUL": manifest({**GOOD, "name": "a\0b"}),
    "an absolute path": manifest({**GOOD, "name": "/etc/passwd"}),
    "no name": manifest({**GOOD, "name": ""}),
    "a negative size": manifest({**GOOD, "size": -1}),
    "a size in words": manifest({**GOOD, "size": "8"}),
    "a hash in capitals": manifest({**GOOD, "sha256": "A" * 64}),
    "a hash cut short": manifest({**GOOD, "sha256": "0" * 63}),
    "no hash": manifest({"name": NAME, "size": 8}),
    "an entry that is none": b'{"v": 1, "files": [7]}',
    "files that are no list": b'{"v": 1, "files": {"name": "x"}}',
    "no files": b'{"v": 1}',
    "a list": b"[]",
    "nothing": b"",
    "no JSON": b"\xff\xfe\x00 not JSON",
    "a version in words": b'{"v": "one", "files": []}',
    "a newer version": manifest(GOOD, version=2),
    "brackets without end": b"[" * 200_000,
    "a number without end": b'{"v": 1, "files": [], "x": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_malformed_manifest_is_refused_whole_with_a_reason(machines: Machines, what: str) -> None:
    arrive(machines)
    before = machines.state()
    done = machines.receive("accept", UNREADABLE[what])
    assert done.code == 1 and done.stdout == b""
    assert "manifest" in done.said and "Traceback" not in done.said and len(done.said) < 500, done.said
    assert machines.state() == before


def test_manifest_without_end_is_refused_by_its_size(machines: Machines) -> None:
    arrive(machines)
    before = machines.state()
    done = machines.receive("accept", b" " * ((64 << 20) + 1))
    assert done.code == 1 and "64 MiB" in done.said
    assert machines.state() == before


def test_sender_keeps_its_files_when_the_receiver_cannot_read_the_manifest(machines: Machines) -> None:
    """As between two versions: nothing is lost, and it is said."""
    source = site_data(machines, 0)
    script = machines.private / "older"
    refuse = 'cat >/dev/null; echo "dataflow: newer manifest" >&2; exit 1'
    script.write_text(f'#!/bin/sh\n[ "$SSH_ORIGINAL_COMMAND" = accept ] && {{ {refuse}; }}\nexec {machines.command} "$@"\n')
    script.chmod(0o755)
    machines.let_in(script)
    done = machines.run("rsync_to_campus", "site-linux", part="data")
    assert done.code == 1 and done.outcomes() == {source.name: "kept"}, done.said
    assert source.exists()
    script.write_text(f'#!/bin/sh\nexec {machines.command} "$@"\n')
    assert machines.run("rsync_to_campus", "site-linux", part="data").code == 0


def test_root_without_its_marker_keeps_all(machines: Machines) -> None:
    entry = entry_of(arrive(machines))
    machines.marker("campus", "sas", "sddata").unlink()
    before = machines.stamps()
    answer = accept(machines, entry)[NAME]
    assert answer["outcome"] == "kept" and "marker" in answer["reason"]
    assert machines.stamps() == before


def made_flag(radar: str = "sas", sender: str = "site-linux", number: int = 0) -> Flag:
    return Flag(
        f"20241101T00000{number}.000000Z", radar, sender, "2024-11-01T00:00:00.000000Z", "run", (Entry(NAME, 8, "0" * 64),)
    )


def test_flags_of_another_radar_or_sender_are_refused_and_the_others_taken(machines: Machines) -> None:
    flags = [made_flag(), made_flag(radar="pgr", number=1), made_flag(sender="borealis", number=2), made_flag(number=3)]
    lines = [each.encode() for each in flags]
    lines.insert(1, b'{"v": 1, "id": "../../../etc/cron.d/x", "radar": "sas", "from": "site-linux", "files": []}\n')
    lines.insert(3, b"not JSON\n")
    done = machines.receive("flag", b"".join(lines))
    assert done.code == 0, done.said
    assert [(each["id"], each["outcome"]) for each in answers(done)] == [
        (flags[0].id, "done"), (None, "refused"), (flags[1].id, "refused"), (None, "refused"), (flags[2].id, "refused"),
        (flags[3].id, "done"),
    ]  # fmt: skip
    folder = custody.flags_folder(machines.here("campus"))
    assert {path.name for path in folder.glob("*.flag")} == {flags[0].file_name, flags[3].file_name}
    for each in (flags[0], flags[3]):
        assert (folder / each.file_name).read_bytes() == each.encode()


def test_flag_that_arrives_twice_is_one_flag(machines: Machines) -> None:
    for _ in range(2):
        assert answers(machines.receive("flag", made_flag().encode()))[0]["outcome"] == "done"
    assert len(list(custody.flags_folder(machines.here("campus")).glob("*"))) == 1


def logs_taken(machines: Machines) -> dict[str, bytes]:
    folder = machines.here("campus").relayed_logs
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_logs_that_cannot_be_written_are_told_on_both_sides_and_come_again(machines: Machines) -> None:
    """Custody would end at this host, in silence on both sides."""
    here, day = machines.here("campus"), f"{utc_now():%Y%m%d}"
    mirror = here.folder("incoming") / ".logs" / "rsync_to_nas"
    mirror.mkdir(parents=True)
    (mirror / f"{day}.sas.rsync_to_nas.borealis.jsonl").write_bytes(b"{}\n")
    in_the_way = here.relayed_logs / "sas"
    in_the_way.write_bytes(b"no folder")
    asked = machines.receive("logs", b"")
    assert asked.code == 1 and not answers(asked) and "logs of site-linux cannot be taken over" in asked.said
    sent = machines.run("send_logs", "site-linux")
    assert sent.code == 1 and "campus could not do `logs`" in sent.said, sent.said
    assert {record["outcome"] for record in sent.of("file")} == {"kept"}
    alerts = [r["message"] for r in machines.records("receive", "campus", "sas") if r["event"] == "alert"]
    assert len(alerts) == 1 and "rsync_to_nas" in alerts[0]
    in_the_way.unlink()
    assert machines.run("send_logs", "site-linux").code == 0
    assert any(path.name.endswith(".borealis.jsonl") for path in in_the_way.rglob("*"))


def test_logs_are_taken_over_whole(machines: Machines) -> None:
    mirror, day = machines.here("campus").folder("incoming") / ".logs", f"{utc_now():%Y%m%d}"
    names_sent = (f"{day}.sas.rsync_to_nas.borealis.jsonl", f"{day}.sas.rsync_to_nas.site-linux.jsonl")
    for number, name in enumerate(names_sent):
        put(mirror / "rsync_to_nas" / name, bytes_of(number), at(number))
    strangers = (
        f"{day}.pgr.rsync_to_nas.borealis.jsonl", "notes.txt", "x.sas.jsonl", f".{names_sent[0]}.a1B2c3", f"{day}.sas.txt",
        "2024.sas.rsync_to_nas.borealis.jsonl",
    )  # fmt: skip
    for name in strangers:
        put(mirror / "rsync_to_nas" / name, b"a stranger's", at(0))
    put(mirror / ".hidden" / names_sent[0], b"a stranger's", at(0))
    os.mkfifo(mirror / "rsync_to_nas" / f"{day}.sas.fifo.borealis.jsonl")
    (mirror / "rsync_to_nas" / f"{day}.sas.link.borealis.jsonl").symlink_to("/etc/passwd")

    assert machines.receive("logs", b"").code == 0
    expected = {f"sas/rsync_to_nas/{name}": bytes_of(number) for number, name in enumerate(names_sent)}
    assert logs_taken(machines) == expected

    longer = mirror / "rsync_to_nas" / names_sent[0]
    put(longer, bytes_of(0) + b"one line more", at(1))
    assert answers(machines.receive("logs", b"")) == [{"outcome": "done", "files": 1}]
    assert logs_taken(machines) == {**expected, f"sas/rsync_to_nas/{names_sent[0]}": longer.read_bytes()}
    assert answers(machines.receive("logs", b"")) == [{"outcome": "done", "files": 0}]


def test_every_answer_has_its_record_and_the_records_have_one_for_each_file(machines: Machines) -> None:
    good, bad = arrive(machines), arrive(machines, "20241101.0200.00.sas.0.rawacf.h5")
    entries: Sequence[Entry] = (
        entry_of(good),
        Entry(bad.name, 8, "0" * 64),
        Entry("20241101.0400.00.sas.0.rawacf.h5", 8, "0" * 64),
        Entry("20241101.0000.00.pgr.0.rawacf.h5", 8, "0" * 64),
    )
    done = machines.receive("accept", manifest(*entries))
    assert [answer["outcome"] for answer in answers(done)] == ["done", "damaged", "missing", "refused"]
    assert done.outcomes() == {entries[0].name: "done"} | {entry.name: "kept" for entry in entries[1:]}
    assert {record["sha256"] for record in done.of("file")} == {asdict(entry)["sha256"] for entry in entries}


def test_two_radars_share_the_campus_machine_and_not_their_folders(machines: Machines) -> None:
    ours = to_convert(machines, 0)
    name = names.radar_file(at(0), "inv", 0, Kind.RAWACF).text
    path = put(machines.here("campus", "inv").folder("incoming") / name, b"a rawacf", at(0))
    assert accept(machines, entry_of(path), radar="inv")[name]["outcome"] == "done"
    assert (machines.here("campus", "inv").folder("holding") / name).exists()
    assert [each.name for each in ours.parent.iterdir()] == [ours.name]
