"""Hostile content: whatever bytes a neighbour writes, they are refused with a reason, or are what they should be.

Names and things that are no files are rows of the contract suite; what a grammar makes of any text is in `test_names`.
"""

from __future__ import annotations

import bz2
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import fuzz_jobs
import h5py
import pytest
import strangers
import world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Machines
from step_cases import at, bytes_of, entry_of, made, put, site_data, to_convert

from dataflow.lib import config, crew, custody, flag, names, place, quarantine, report, shell_step, ssh, summary
from dataflow.lib.context import utc_now
from dataflow.lib.errors import BadConfig, BadFile
from dataflow.lib.names import Kind

SEEDS = int(os.environ.get("DATAFLOW_FUZZ_SEEDS", "80"))
"""How many damaged copies of each kind of file are tried; more by the environment."""
OFTEN = settings(max_examples=int(os.environ.get("DATAFLOW_FUZZ_EXAMPLES", "100")),
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
RAWACF = names.radar_file(at(0), "sas", 0, Kind.RAWACF)
SHA256 = "0" * 64

# -- flags and manifests

GOOD_FLAG = {
    "v": 1, "id": "20241101T000000.000000Z", "radar": "sas", "from": "site-linux", "sent": "2024-11-01T00:00:00.000000Z",
    "run": "run", "files": [{"name": RAWACF.text, "size": 8, "sha256": SHA256}],
}  # fmt: skip


def flag_with(**changes: object) -> bytes:
    return json.dumps({**GOOD_FLAG, **changes}).encode()


def entry_with(**changes: object) -> bytes:
    return flag_with(files=[{"name": RAWACF.text, "size": 8, "sha256": SHA256, **changes}])


def deep(levels: int) -> object:
    value: object = 0
    for _ in range(levels):
        value = [value]
    return value


HOSTILE_FLAGS = {
    "a size beyond 64 bit": entry_with(size=1 << 70),
    "a size beyond any float": entry_with(size=10**400),
    "more digits than Python reads": flag_with().replace(b'"size": 8', b'"size": ' + b"9" * 5000),
    "a size that is not a number": flag_with().replace(b'"size": 8', b'"size": NaN'),
    "a size without end": flag_with().replace(b'"size": 8', b'"size": Infinity'),
    "a version that is not a number": flag_with().replace(b'"v": 1', b'"v": NaN'),
    "a name with a slash": entry_with(name="../../etc/passwd"),
    "a second name with a slash": flag_with().replace(b'"size"', b'"name": "../x", "size"'),
    "a hash from another alphabet": entry_with(sha256="\u0660" * 64),
    "an id that is deep": flag_with(id=deep(900)),
    "files that are deep": flag_with(files=deep(900)),
    "deep without end": b'{"v": 1, "files": ' + b"[" * 1_000_000,
    "a name that is deep": entry_with(name=deep(900)),
    "a sent beyond all time": flag_with(sent="99999-01-01T00:00:00.000000Z"),
    "a sent that is deep": flag_with(sent=deep(900)),
    "not UTF-8": flag_with().replace(b"site-linux", b"\xff\xfe"),
    "UTF-16": flag_with().decode().encode("utf-16")[:-1],
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_FLAGS)
def test_a_hostile_flag_is_refused(what):
    with pytest.raises(BadFile):
        flag.decode(HOSTILE_FLAGS[what])


@OFTEN
@given(st.binary(max_size=2000) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_flag_and_a_manifest_or_refused(content):
    for read in (flag.decode, flag.entries):
        try:
            read(content)
        except BadFile as error:
            assert len(str(error)) < 500


@pytest.mark.parametrize("content", ['{"v": 1, "files": [' + "[]," * 20_000_000 + "[]]}", "[" * 60_000_000], ids=["wide", "deep"])
def test_a_manifest_of_sixty_megabytes_takes_no_more_memory_than_it_is_long(tmp_path, content):
    put(tmp_path / "content", content.encode(), at(0))
    code = (
        "import sys; from pathlib import Path; from dataflow.lib import flag, errors\n"
        "try: flag.entries(Path(sys.argv[1]).read_bytes())\n"
        "except errors.BadFile: print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "content"], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * 1024 < len(content) + 50_000_000


def test_a_flag_folder_full_of_strange_things_holds_up_no_run(machines: Machines):
    """What can be moved is set aside, nothing is followed, and the good flag among them is taken."""
    folder = custody.flags_folder(machines.here("campus"))
    outside = put(machines.private / "outside", b"not ours", at(0))
    good = put(folder / "20241101T000000.000000Z.sas.site-linux.flag", flag_with(files=[]), at(0))
    kinds = strangers.no_files(outside)
    for number, make in enumerate(kinds):
        make(folder / f"20241101T0000{number:02}.000001Z.sas.site-linux.flag")
    for number, content in enumerate(HOSTILE_FLAGS.values()):
        put(folder / f"20241101T0000{number:02}.000002Z.sas.site-linux.flag", content, at(0))
    with (folder / "20241101T000000.000003Z.sas.site-linux.flag").open("wb") as sparse:
        sparse.truncate(1 << 40)
    strange = strangers.make_all(folder, good.name, 500)
    code, said, _ = machines.dataflow(["daemon", "campus", "--radar", "sas", "--once"])
    assert code == 0, said
    assert not good.exists() and [path for path in folder.iterdir() if not path.is_dir() and path.name[0] != "."] == []
    aside = {os.fsencode(path.name) for path in (folder / "unreadable").iterdir()}
    strange = {name for name in strange if not name.startswith(b".")}
    assert strange <= aside and len(aside) == len(strange) + len(kinds) - 1 + len(HOSTILE_FLAGS) + 1, "but for the folder"
    assert outside.read_bytes() == b"not ours" and not (machines.private / "PWNED").exists()
    assert all(ord(character) >= 32 or character == "\n" for character in said)
    code, said, _ = machines.dataflow(["daemon", "campus", "--radar", "sas", "--once"])
    assert code == 0 and "set aside" not in said, said


@pytest.fixture
def here(tmp_path):
    return world.make(tmp_path / "machines").here("campus")


# -- what travels between hosts


@OFTEN
@given(st.lists(st.binary(max_size=100) | ANY_JSON.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_any_answer_of_the_other_host_is_read_without_a_complaint(lines):
    answers = ssh.by_key(b"\n".join([*lines, b'{"name": "x", "outcome": "done", "seconds": 1}']), "name")
    assert answers["x"] == {"name": "x", "outcome": "done"}
    assert all(isinstance(value, str) for answer in answers.values() for value in answer.values())


def test_a_receiver_that_talks_nonsense_keeps_every_file(machines: Machines):
    """A greeting printed by the other machine's shell, an answer of another shape, an answer for another file."""
    source = site_data(machines, 0)
    script = machines.private / "nonsense"
    answers = ["Welcome!", "[1]", "7", '{"name": 5}', '{"name": "x", "outcome": "done"}', json.dumps({"name": source.name})]
    put(machines.private / "answers", "\n".join(answers).encode() + b"\xff\n", at(0))
    script.write_text(
        f'#!/bin/sh\n[ "$SSH_ORIGINAL_COMMAND" = accept ] || exec {machines.command} "$@"\n'
        f"cat >/dev/null\ncat {machines.private}/answers\n"
    )
    script.chmod(0o755)
    machines.let_in(script)
    done = machines.run("rsync_to_campus", "site-linux", part="data")
    assert done.code == 1 and done.outcomes() == {source.name: "kept"}, done.said
    assert source.exists()


RECORD = {"v": 1, "time": "2024-11-01T00:00:00.000000Z", "run": "r", "host": "borealis", "machine": "m", "radar": "sas",
          "step": "rsync_to_nas", "event": "file", "file": RAWACF.text, "outcome": "done", "sha256": SHA256}  # fmt: skip
KEYS = [*RECORD, "action", "source", "destination", "parent", "reason", "bytes", "seconds", "kind"]


@OFTEN
@given(st.lists(st.tuples(st.sampled_from(KEYS), ANY_JSON), max_size=3), st.binary(max_size=50))
def test_any_log_of_another_host_is_read_and_traced(here, changes, torn):
    hostile = {**RECORD, **dict(changes)}
    log = here.relayed_logs / "sas" / "rsync_to_nas" / "20241101.sas.rsync_to_nas.borealis.jsonl"
    put(log, json.dumps(RECORD).encode() + b"\n" + json.dumps(hostile).encode() + b"\n" + torn, at(0))
    for whole in (True, False):
        hops, _ = report.trace(here, RAWACF.text, utc_now(), whole)
        assert any(hop["machine"] == "m" for hop in hops)


def test_a_log_without_lines_takes_no_memory(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(json.dumps(RECORD).encode() + b"\n")
        file.truncate(1 << 27)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"[" * 100_000 + b"\n" + json.dumps(RECORD).encode() + b"\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(summary.records([log])) == [RECORD, RECORD]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_hostile_logs_are_not_taken_and_stop_no_other(machines: Machines):
    here = machines.here("campus")
    mirror, day = here.folder("incoming") / ".logs", f"{utc_now():%Y%m%d}"
    good = put(mirror / "rsync_to_nas" / f"{day}.sas.rsync_to_nas.borealis.jsonl", bytes_of(0), at(0))
    outside = put(machines.private / "outside" / f"{day}.sas.outside.borealis.jsonl", b"not ours", at(0))
    (mirror / "outside").symlink_to(outside.parent)
    (mirror / "linked").mkdir()
    (mirror / "linked" / f"{day}.sas.linked.borealis.jsonl").symlink_to(outside)
    refused = ("x.jsonl", f"{day}.jsonl", f"{day}.sas.jsonl", f"{day}.sas.rsync_to_nas.campus.jsonl",
               f"{day}.sas.other.borealis.jsonl", f"{day}.sas.rsync_to_nas.borealis.site-linux.jsonl")  # fmt: skip
    for name in refused:
        put(mirror / "rsync_to_nas" / name, b"a stranger's", at(0))
    for number, make in enumerate(strangers.no_files(outside), start=10):
        make(mirror / "rsync_to_nas" / f"202411{number}.sas.rsync_to_nas.borealis.jsonl")
    strangers.make_all(mirror / "rsync_to_nas", good.name, 500)
    for step in (b"-rf", b"$(touch PWNED)", b"a\nb", b"\xff", b"..x y", b".hidden"):
        os.mkdir(os.fsencode(mirror) + b"/" + step)
        put(mirror / os.fsdecode(step) / f"{day}.sas.{os.fsdecode(step)}.borealis.jsonl", b"a stranger's", at(0))
    huge = mirror / "huge" / f"{day}.sas.huge.borealis.jsonl"
    put(huge, b"", at(0))
    os.truncate(huge, 1 << 40)
    for _ in range(2):
        done = machines.receive("logs", b"")
        assert done.code == 0, done.said
        taken = [path for path in here.relayed_logs.rglob("*") if path.is_file()]
        assert [(path.relative_to(here.relayed_logs).parts, path.read_bytes()) for path in taken] == [
            (("sas", "rsync_to_nas", good.name), bytes_of(0))
        ]
    alerts = [record for record in machines.records("receive", "campus", "sas") if record["event"] == "alert"]
    assert len(alerts) == 1 and "huge" in alerts[0]["message"]


def test_the_logs_folder_is_no_way_out_either(machines: Machines):
    mirror = machines.here("campus").folder("incoming") / ".logs"
    outside = machines.private / "outside"
    put(outside / "x" / f"{utc_now():%Y%m%d}.sas.x.borealis.jsonl", b"not ours", at(0))
    mirror.parent.mkdir(parents=True, exist_ok=True)
    mirror.symlink_to(outside)
    assert machines.receive("logs", b"").code == 0
    assert not list(machines.here("campus").relayed_logs.rglob("*.jsonl"))


@pytest.mark.parametrize("kind", range(len(strangers.no_files(Path("/nowhere")))))
def test_what_arrives_and_is_no_file_is_missing_and_not_touched(machines: Machines, kind: int):
    incoming = machines.here("campus").folder("incoming")
    incoming.mkdir(parents=True, exist_ok=True)
    outside = put(machines.private / "outside", b"a rawacf", at(0))
    strangers.no_files(outside)[kind](incoming / RAWACF.text)
    strangers.make_all(incoming, RAWACF.text, 200)
    before = strangers.stamps(incoming)
    listed = [{"name": os.fsdecode(name), "size": 0, "sha256": SHA256} for name in before if b"\xff" not in name]
    manifest = json.dumps({"v": 1, "run": "x", "files": listed}).encode()
    done = machines.receive("accept", manifest)
    assert done.code == 0, done.said
    answers = {answer["name"]: answer["outcome"] for answer in map(json.loads, done.stdout.splitlines())}
    assert answers.pop(RAWACF.text) == "missing" and set(answers.values()) == {"refused"}
    after = {name: stamp for name, stamp in strangers.stamps(incoming).items() if name != b".logs"}
    assert after == before and outside.read_bytes() == b"a rawacf"


# -- notes of a shell step, reasons in quarantine

SENT = {
    "outcome": "done", "action": "delivered", "reason": None, "kind": None, "bytes": 1, "sha256": SHA256, "destination": "x",
    "deliver": [{"name": "x", "size": 1, "sha256": SHA256}], "release": True,
}  # fmt: skip
REASON = {
    "file": RAWACF.text, "source": "/x", "kind": "k", "message": "m", "step": "s", "time": "t", "sha256": "0", "details": {},
}  # fmt: skip


def changed(document: dict[str, object], *keys: str) -> st.SearchStrategy[bytes]:
    """The document with any value in one place, or any bytes."""
    anywhere = st.tuples(st.sampled_from([*document, *keys]), ANY_JSON)
    return st.binary(max_size=300) | anywhere.map(lambda change: json.dumps({**document, change[0]: change[1]}).encode())


@OFTEN
@given(changed(SENT, "file", "actions", "details", "admit"))
def test_any_note_of_a_step_is_one_outcome(content):
    file = Path("/somewhere/x")
    notes = b"sent\0" + bytes(file) + b"\0" + content + b"\0"
    finished = shell_step.command.Finished(("x",), 0, b"", b"")
    (outcome,) = shell_step._outcomes([file], notes, finished)
    assert outcome.file == file and outcome.outcome in ("done", "kept", "quarantined", "skipped")
    assert set(outcome.release) <= {file} and all("/" not in entry.name for entry in outcome.deliver)


@OFTEN
@given(changed(REASON))
def test_any_reason_file_is_shown_and_none_leads_out_of_the_roots(here, content):
    path = put(here.folder("quarantine") / RAWACF.text, b"bad", at(0))
    put(path.with_name(path.name + quarantine.REASON_ENDING), content, at(0))
    ((found, reason),) = quarantine.reasons(here)
    assert found == path and all(isinstance(getattr(reason, key), str) for key in ("kind", "message", "source", "time"))
    with pytest.raises(BadConfig):
        quarantine.retry(here, path)
    assert path.read_bytes() == b"bad"


@pytest.mark.parametrize("source", ["/etc/cron.d/{name}", "{root}/../../../../etc/{name}", "{root}/x/other", "relative/{name}"])
def test_a_reason_that_names_a_place_of_somebody_else_moves_nothing(here, source):
    path = put(here.folder("quarantine") / RAWACF.text, b"bad", at(0))
    document = {**REASON, "source": source.format(name=RAWACF.text, root=here.roots["sddata"])}
    put(path.with_name(path.name + quarantine.REASON_ENDING), json.dumps(document).encode(), at(0))
    with pytest.raises(BadConfig, match="no place of this host"):
        quarantine.retry(here, path)


@pytest.mark.parametrize("kind", range(len(strangers.no_files(Path("/nowhere")))))
def test_what_is_no_file_in_quarantine_or_as_a_reason_is_shown_and_left(here, tmp_path, kind):
    folder = here.folder("quarantine")
    outside = put(tmp_path / "outside", b"{}", at(0))
    make = strangers.no_files(outside)[kind]
    put(folder / RAWACF.text, b"bad", at(0))
    make(folder / f"{RAWACF.text}{quarantine.REASON_ENDING}")
    make(folder / "20241101.0200.00.sas.0.rawacf.h5")
    for path, reason in quarantine.reasons(here):
        assert reason.kind == "unknown"
        with pytest.raises(BadConfig):
            quarantine.retry(here, path)
    newcomer = put(here.folder("holding") / "20241101.0200.00.sas.0.rawacf.h5", b"bad as well", at(0))
    try:
        where = quarantine.admit(here, newcomer, "k", "m", "s", utc_now(), {})
    except OSError:
        assert not (folder / newcomer.name).is_file()
    else:
        assert where.read_bytes() == b"bad as well" and where.name != newcomer.name
    assert newcomer.read_bytes() == b"bad as well" and outside.read_bytes() == b"{}"


@pytest.mark.parametrize("kind", range(len(strangers.no_files(Path("/nowhere")))))
def test_what_lies_where_a_marker_or_a_part_belongs_is_not_followed(tmp_path, kind):
    made_world = world.make(tmp_path / "machines")
    here = made_world.here("borealis")
    outside = put(tmp_path / "outside", b"not ours", at(0))
    make = strangers.no_files(outside)[kind]
    folder = here.folder("to_plot")
    folder.mkdir(parents=True)
    make(folder / RAWACF.text)
    before = strangers.stamps(folder)
    place.mark(here, folder / RAWACF.text)
    assert strangers.stamps(folder) == before
    make(folder / ".x.part")
    try:
        place.write_whole(folder / "x", b"content")
    except OSError:
        assert (folder / ".x.part").is_dir()
    else:
        assert (folder / "x").read_bytes() == b"content" and not (folder / "x").is_symlink()
    assert outside.read_bytes() == b"not ours" and not outside.with_name("nothing").exists()
    marker = here.roots["store"] / config.MARKER
    marker.unlink()
    make(marker)
    with pytest.raises(place.TryLater):
        place.check_root(here, "store")


# -- configuration

SHIPPED = world.SHIPPED.read_text()
HOSTILE_CONFIG = (
    "[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, "'" * 99_999, "a: &a [*a]", "a: *b", "<<: [1]", "\0",
    "version: !!int ''", "version: !!bool x", "version: !!float ''", "version: !!timestamp x", "%YAML 9.9\n---",
    "version: !!python/object/apply:os.system [touch PWNED]",
    "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 64))]),
)  # fmt: skip


def load(folder: Path, content: bytes) -> None:
    """Whatever is in it, it is a configuration or refused."""
    file = folder / "config.yaml"
    file.write_bytes(content)
    try:
        config.load(file, folder)
    except BadConfig as error:
        assert str(error)


@pytest.mark.parametrize("content", HOSTILE_CONFIG, ids=range(len(HOSTILE_CONFIG)))
def test_a_hostile_configuration_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    load(tmp_path, content.encode())
    assert not (tmp_path / "PWNED").exists()


@OFTEN
@given(st.binary(max_size=500))
def test_any_bytes_are_no_configuration(tmp_path, content):
    load(tmp_path, content)


SCALARS = st.sampled_from(
    ["!!int ''", "!!bool x", "!!float ''", "!!timestamp x", "!!binary x", "!!null x", "[]", "{}", "*x", "&x y", "-1", "1e308",
     ".nan", ".inf", "9" * 5000, '"\\0"', '"a\\nb"', "..", "/", "''", "~", "0o17", "1:60:60", "2024-13-45", "{radar}", "<<", "|"]
) | st.text(max_size=12)  # fmt: skip


@OFTEN
@given(st.lists(st.tuples(st.integers(0, len(SHIPPED.splitlines()) - 1), SCALARS, st.booleans()), min_size=1, max_size=3))
def test_the_shipped_configuration_with_any_values_is_one_or_refused(tmp_path, changes):
    lines = SHIPPED.splitlines()
    for number, value, is_key in changes:
        key, colon, rest = lines[number].partition(":")
        lines[number] = f"{value}{colon}{rest}" if is_key else f"{key}{colon} {value}"
    load(tmp_path, "\n".join(lines).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "setting", ["plots.archive_after_h=.nan", "distribute.stale_days=-1", "scrub.read_limit_mib_s=0", "scrub.every_days=.inf"]
)
def test_a_number_that_makes_no_sense_is_refused(tmp_path, setting):
    with pytest.raises(BadConfig, match=setting.partition("=")[0].replace(".", r"\.")):
        config.load(world.SHIPPED, tmp_path, [setting])


# -- HDF5 and DMAP


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with crew.crew(1) as work:
        yield work


@pytest.mark.parametrize("what", ["rawacf", "antennas_iq", "dmap"])
def test_damaged_files_of_any_kind_are_told_from_good_ones_and_crash_nothing(worker, tmp_path, what):
    """In a worker with 4 GB and four minutes of processor: a crash, a hang or a blow-up would be ``BadFile`` or ``TryLater``."""
    rawacf, antennas_iq, packed, _ = made(0)
    content, name = {
        "rawacf": (rawacf, RAWACF),
        "antennas_iq": (antennas_iq, names.radar_file(at(0), "sas", 0, Kind.ANTENNAS_IQ)),
        "dmap": (packed, names.dmap_of(RAWACF)),
    }[what]
    seeds = range(SEEDS if what != "antennas_iq" else SEEDS // 8)  # to draw takes ten times as long
    (found,) = worker([(fuzz_jobs.try_all, (tmp_path, content, what, name.text, seeds))])
    assert sum(found.values()) == len(seeds)
    assert len(found) > 1 and found.get("later", 0) <= len(seeds) // 20, found


def test_any_content_of_a_dmap_file_is_told_from_a_good_one(worker, tmp_path):
    """Damage behind the compression: every record has the length that it claims, and the rest is anything."""
    content = bz2.decompress(made(0)[2])
    for seed in range(0, SEEDS, 4):
        damaged = content[:8] + fuzz_jobs.damaged(content[8:], seed, 200)
        (found,) = worker([(fuzz_jobs.try_all, (tmp_path, bz2.compress(damaged), "dmap", names.dmap_of(RAWACF).text, range(0)))])
        assert found == {}
        (tmp_path / "x.rawacf.bz2").write_bytes(bz2.compress(damaged))
        try:
            list(worker([(_inspect, (tmp_path / "x.rawacf.bz2",))]))
        except BadFile as error:
            assert error.kind != "crashes a library", seed


def _inspect(path: Path) -> int:
    from dataflow.lib import dmap

    return dmap.inspect(path, processes=1).records


def _first_record(file: h5py.File) -> h5py.Group:
    return file[min(key for key in file if key != "metadata")]


def _external_storage(file: h5py.File, secret: Path, other: Path) -> None:
    record = _first_record(file)
    shape = record["main_acfs"].shape
    del record["main_acfs"]
    record.create_dataset("main_acfs", shape=shape, dtype="c8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, secret: Path, other: Path) -> None:
    record = _first_record(file)
    name, shape = f"{record.name}/main_acfs", record["main_acfs"].shape
    del record["main_acfs"]
    layout = h5py.VirtualLayout(shape, "c8")
    layout[:] = h5py.VirtualSource(str(other), name, shape=shape)
    record.create_virtual_dataset("main_acfs", layout)


def _linked_dataset(file: h5py.File, secret: Path, other: Path) -> None:
    record = _first_record(file)
    del record["main_acfs"]
    record["main_acfs"] = h5py.ExternalLink(str(other), f"{record.name}/main_acfs")


def _linked_record(file: h5py.File, secret: Path, other: Path) -> None:
    name = _first_record(file).name
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def _linked_metadata(file: h5py.File, secret: Path, other: Path) -> None:
    del file["metadata"]
    file["metadata"] = h5py.ExternalLink(str(other), "/metadata")


def _gigabytes(file: h5py.File, secret: Path, other: Path) -> None:
    record = _first_record(file)
    for name in ("main_acfs", "tx_excitations", "beam_azms"):
        if name in record:
            dimensions = record[name].ndim
            kind = record[name].dtype
            del record[name]
            record.create_dataset(name, shape=(100_000_000 // kind.itemsize,) + (1,) * (dimensions - 1), dtype=kind, chunks=True)


@pytest.mark.parametrize("edit", [_external_storage, _virtual, _linked_dataset, _linked_record, _linked_metadata, _gigabytes])
def test_an_hdf5_file_reads_from_no_other_file_and_claims_no_gigabytes(machines: Machines, edit):
    """HDF5 follows links, and reads values, into any file of the machine: what a radar computer sends must not publish it."""
    path = to_convert(machines, 0)
    content = path.read_bytes()
    secret = put(machines.private / "secret", b"S" * 100_000, at(0))
    other = put(machines.private / "other.h5", content, at(0))
    with h5py.File(path, "r+") as file:
        edit(file, secret, other)
    machines.admit("campus", "sas", [entry_of(path)], "borealis")
    done = machines.run("convert_on_campus", "campus")
    assert done.code == 1 and done.outcomes() == {path.name: "quarantined"}, done.said
    assert "damaged record" in {record.get("kind") for record in done.of("file")}
    assert not list(machines.here("campus").folder("data").glob("*"))


@pytest.mark.parametrize("edit", [_linked_record, _linked_metadata])
def test_the_pictures_show_nothing_of_another_file_either(tmp_path, edit):
    from dataflow.lib.plots import samples

    path = put(tmp_path / names.radar_file(at(0), "sas", 0, Kind.ANTENNAS_IQ).text, made(0)[1], at(0))
    other = put(tmp_path / "other.h5", made(0)[1], at(0))
    samples.survey(path)
    with h5py.File(path, "r+") as file:
        edit(file, other, other)
    with pytest.raises(BadFile, match="out of the file"):
        samples.survey(path)
