"""config.yaml: every fault is found when it is read, with file, line and what was probably meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import world

from dataflow.lib import config
from dataflow.lib.errors import BadConfig

SHIPPED = world.SHIPPED.read_text()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for variable in (config.CONFIG_VARIABLE, config.ROOT_VARIABLE, config.SET_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def write(tmp_path):
    """Writes the shipped configuration with one text replaced; returns the file and the line of the change."""

    def changed(old: str, new: str) -> tuple[Path, int]:
        assert SHIPPED.count(old) >= 1, old
        before, _, after = SHIPPED.partition(old)
        file = tmp_path / "config.yaml"
        file.write_text(before + new + after)
        return file, before.count("\n") + 1

    return changed


def findings_of(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(BadConfig) as caught:
        config.load(file, overrides=overrides)
    return str(caught.value).splitlines()


def test_the_shipped_file_is_good():
    loaded = config.load(world.SHIPPED)
    assert set(loaded.flow.radars) == {"sas", "pgr", "inv", "cly", "rkn"}
    assert set(loaded.flow.hosts) == {"borealis", "site-linux", "campus"}


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("  settle_s: 60", "  setle_s: 60", "unknown key 'files.setle_s': did you mean 'settle_s'?"),
        ("    waits_on: data", "    waits_on: date", "hosts.borealis.waits_on is 'date'; it must be one of data, flags"),
        ("  settle_s: 60", "  settle_s: soon", "files.settle_s must be a number, not 'soon'"),
        ("  settle_s: 60", "  settle_s: yes", "files.settle_s must be a number, not 'yes'"),
        ("  settle_s: 60", "  settle_s: [60]", "files.settle_s must be a number, not a list or mapping"),
        ("  settle_s: 60", "  settle_s: !!python/name:os.system", "files.settle_s must be a number, not ''"),
        ("  settle_s: 60", "  settle_s: !!int soon", "files.settle_s must be a number, not 'soon'"),
        ("  max_conversions: 2", "  max_conversions: 2.5", "campus.max_conversions must be a whole number, not '2.5'"),
        ('    file_mode: "0664"', "    file_mode: 0664", "hosts.campus.file_mode must be a text, not '0664'"),
        ("  cpids: [151, 157", "  cpids: [151, 15x", "distribute.cpids[1] must be a whole number, not '15x'"),
        ("  cpids: [151, 157, 191, 3503]", "  cpids: 151", "distribute.cpids must be a list"),
        ("  settle_s: 60", "  settle_s: 60\n  ? [a, b]\n  : 1", "a key of files is a list or mapping; it must be a word"),
        ("version: 1", "version: 1\nversion: 1", "version is given twice"),
    ],
)  # fmt: skip
def test_a_fault_of_form_is_told_with_its_line(write, old, new, finding):
    file, line = write(old, new)
    line += 1 if "\n" in new else 0
    assert findings_of(file)[0] == f"{file}:{line}: {finding}"


def test_a_missing_key_is_told_where_it_should_be(write):
    file, _ = write("  settle_s: 60", "  #")
    (finding,) = findings_of(file)
    assert finding.endswith("files.settle_s is missing")
    line = int(finding.removeprefix(f"{file}:").split(":")[0])
    assert "unchanged_s" in file.read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    ("old", "new", "key", "finding"),
    [
        ("version: 1", "version: 2", "version", "is 2; this dataflow reads version 1"),
        ("    next: site-linux ", "    next: site-linus ", "hosts.borealis.next",
         "there is no host 'site-linus': did you mean 'site-linux'?"),
        ("      - rsync_to_nas ", "      - rsync_to_nass ", "hosts.borealis.steps[0]",
         "there is no step 'rsync_to_nass': did you mean 'rsync_to_nas'?"),
        ("      - plot_antennas_iq", "      - xyz", "hosts.site-linux.steps[2]", "there is no step 'xyz'"),
        ("      - plot_antennas_iq", '      - ""', "hosts.site-linux.steps[2]", "there is no step ''"),
        ("      rawacf: rawacf_array", "      rawacf: rawacf_arrray", "hosts.site-linux.routes.rawacf",
         "there is no folder 'rawacf_arrray': did you mean 'rawacf_array'?"),
        ("      rawacf: rawacf_array", "      rawacfs: rawacf_array", "hosts.site-linux.routes.rawacfs", "is not a kind of file"),
        ("    passed: [rawacf_array, rawacf_dmap, quarantine]", "    passed: [rawacf_array, rawacf_damp, quarantine]",
         "hosts.site-linux.passed[1]", "did you mean 'rawacf_dmap'?"),
        ("    backlog: [incoming, holding", "    backlog: [incoming, houlding", "hosts.campus.backlog[1]", "mean 'holding'?"),
        ("      work: local/work", "      work: locale/work", "hosts.site-linux.folders.work", "did you mean 'local'?"),
        ("      work: local/work", "      work: local/../work", "hosts.site-linux.folders.work", "must not contain '..'"),
        ("      holding: sddata/{radar}_holding_dir", "      holding: sddata/{rader}_holding_dir", "hosts.campus.folders.holding",
         "there is no {rader}: did you mean 'radar'?"),
        ("      sddata: {path: /sddata,", "      sddata: {path: sddata,", "hosts.campus.roots.sddata.path", "must be absolute"),
        ('    file_mode: "0664"', '    file_mode: "0898"', "hosts.campus.file_mode", "must be an octal mode"),
        ("min_free_for_iq_bytes: 1", "min_free_for_iq_bytes: -1", "hosts.borealis.roots.store.min_free_for_iq_bytes",
         "must be zero or more"),
        ("    vt: {folder: staging/vt}", "    vt: {folder: stageing/vt}", "distribute.targets.vt.folder", "mean 'staging'?"),
        ("    vt: {folder: staging/vt}", "    archive: {folder: staging/vt}", "distribute.targets.archive", "queues of"),
        ("    vt: {folder: staging/vt}", "    ../vt: {folder: staging/vt}", "distribute.targets.../vt", "names no target"),
        ("  sas:\n", "  SAS:\n", "radars.SAS", "three lower-case letters"),
        ("name: sas-borealis, address: borealis.sas.example", 'name: sas-borealis, address: "-oProxyCommand=reboot"',
         "radars.sas.machines.borealis.address", "cannot be one"),
        ("name: sas-borealis,", 'name: sas-borealis, command: "dataflow; reboot",', "radars.sas.machines.borealis.command",
         "must be the plain path"),
        ("name: sas-site,", "name: sas-site, port: 0,", "radars.sas.machines.site-linux.port", "must be at least 1, not 0"),
        ("bandwidth_kib_s: 1000", "bandwidth_kib_s: 0", "radars.sas.machines.site-linux.bandwidth_kib_s", "must be at least 1"),
        ("  look_every_s: 600", "  look_every_s: 0", "daemon.look_every_s", "must be more than zero, not 0.0"),
        ("  look_every_s: 600", "  look_every_s: .nan", "daemon.look_every_s", "must be more than zero, not nan"),
        ("  settle_s: 60", "  settle_s: -1", "files.settle_s", "must be zero or more, not -1.0"),
        ("  block_s: 7200", "  block_s: 0", "files.block_s", "must be more than zero"),
        ("  max_conversions: 2", "  max_conversions: 0", "campus.max_conversions", "must be more than zero, not 0"),
    ],
)  # fmt: skip
def test_a_fault_of_meaning_is_told_with_its_line(write, old, new, key, finding):
    file, line = write(old, new)
    (found,) = findings_of(file)
    assert found.startswith(f"{file}:{line}: {key}: ")
    assert finding in found


def test_every_finding_is_told_at_once(write):
    file, line = write("  unchanged_s: 60 ", "  unchanged_s: sixty ")
    file.write_text(file.read_text().replace("  block_s: 7200", "  block: 7200"))
    assert [finding.split(": ")[0] for finding in findings_of(file)][:2] == [f"{file}:{line}", f"{file}:{line + 2}"]


def test_a_chain_that_ends_before_its_end_is_refused(write):
    file, _ = write("      campus: &campus {name: campus, address: campus.example}\n", "")
    file.write_text(file.read_text().replace("*campus", "{name: campus, address: campus.example}"))
    (finding,) = findings_of(file)
    assert finding.endswith("radars.sas.machines: no machine plays campus, to which site-linux sends")


def test_a_host_that_is_not_there_is_told_once_for_each_radar(write):
    file, line = write("      borealis: {name: pgr-borealis", "      borealys: {name: pgr-borealis")
    assert findings_of(file) == [
        f"{file}:{line}: radars.pgr.machines.borealys: there is no host 'borealys': did you mean 'borealis'?"
    ]


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("", "it is empty"),
        ("# nothing\n", "it is empty"),
        ("a: b: c\n", "not YAML"),
        ("- a\n", ":1: the file must be a mapping of keys to values"),
        ("&a [*a]\n", ""),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, finding):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert finding in "\n".join(findings_of(file))
    assert str(file) in "\n".join(findings_of(file))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: Cath\xe9drale\n")
    for file in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        assert f"cannot read the configuration {file}" in findings_of(file)[0]


def test_set_overrides_one_key():
    settings = ["files.settle_s=5", "hosts.campus.steps=[convert_on_campus]", "ssh.config_file=/x"]
    loaded = config.load(world.SHIPPED, overrides=settings)
    assert loaded.flow.files.settle_s == 5.0
    assert loaded.flow.hosts["campus"].steps == ("convert_on_campus",)
    assert loaded.flow.ssh.config_file == "/x"
    assert loaded.sha256 != config.load(world.SHIPPED).sha256


def test_set_through_an_alias_changes_only_what_it_names():
    before = config.load(world.SHIPPED)
    after = config.load(world.SHIPPED, overrides=["radars.sas.machines.campus.port=2222", "radars.pgr.machines.campus.user=bob"])
    for radar in before.flow.radars:
        campus = after.flow.radars[radar].machines["campus"]
        assert campus.port == (2222 if radar == "sas" else 22)
        assert campus.user == ("bob" if radar == "pgr" else None)
        assert campus.name == before.flow.radars[radar].machines["campus"].name


def test_the_last_set_of_a_key_wins():
    assert config.load(world.SHIPPED, overrides=["files.settle_s=5", "files.settle_s=6"]).flow.files.settle_s == 6.0


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ("files.settle_s", "--set files.settle_s: write KEY=VALUE"),
        ("files.settle_s=", "--set files.settle_s: it is empty"),
        ("files.settle_s=soon", "--set files.settle_s: files.settle_s must be a number, not 'soon'"),
        ("files.settle_s=-1", "--set files.settle_s: files.settle_s: must be zero or more, not -1.0"),
        ("files.setle_s=5", "--set files.setle_s: unknown key 'files.setle_s': did you mean 'settle_s'?"),
        ("file.settle_s=5", "--set file.settle_s: there is no 'file' in the configuration: did you mean 'files'?"),
        ("version.x=5", "--set version.x: 'x' lies in something that has no keys"),
        ("version.x.y=5", "--set version.x.y: there is no 'x' in the configuration"),
        ("hosts.campus.steps=[convert_on_campos]", "--set hosts.campus.steps: hosts.campus.steps[0]: there is no step"),
        ("files.settle_s={", "--set files.settle_s: not YAML"),
    ],
)
def test_a_fault_of_set_names_the_setting(setting, finding):
    assert finding in findings_of(world.SHIPPED, setting)[0]


def test_children_see_the_same_configuration(tmp_path, monkeypatch):
    parent = config.load(world.SHIPPED, tmp_path, ["files.settle_s=5"])
    for variable, value in parent.environment().items():
        monkeypatch.setenv(variable, value)
    child = config.load()
    assert child == parent
    assert config.load(overrides=["files.settle_s=7"]).flow.files.settle_s == 7.0


def test_root_puts_every_machine_below_its_own_folder(tmp_path):
    loaded = config.load(world.SHIPPED, tmp_path)
    borealis, site, campus = (loaded.here(host, "sas") for host in ("borealis", "site-linux", "campus"))
    assert borealis.folder("data") == tmp_path / "sas-borealis/data/borealis_data"
    assert borealis.folder("rawacf_array") == site.folder("rawacf_array"), "the NAS is one disk, mounted on both"
    assert site.state.is_relative_to(tmp_path / "sas-site")
    assert loaded.here("campus", "pgr").machine_state == campus.machine_state
    assert loaded.here("campus", "pgr").state != campus.state
    without_nas = loaded.here("site-linux", "inv")
    assert without_nas.folder("rawacf_array") == tmp_path / "inv-site/data/borealis_data/rawacf_array"


def test_without_root_the_paths_are_those_of_the_file():
    loaded = config.load(world.SHIPPED)
    here = loaded.here("campus", "sas")
    moment = world.datetime(2026, 3, 1, tzinfo=world.UTC)
    assert here.folder("archive_dmap", moment) == Path("/data/borealis_site_data/sas_rawacf_dmap/2026/03")
    assert here.folder("photos", moment, "cam211") == Path("/sddata/camera_photos/sascam/sascam211/2026/03")
    assert (here.file_mode, here.dir_mode) == (0o664, 0o2775)


@pytest.mark.parametrize(
    ("host", "radar", "hint"), [("campos", "sas", "campus"), ("campus", "sass", "sas"), ("campus", "xyz", "there are")]
)
def test_an_unknown_host_or_radar_is_answered_with_the_likely_one(host, radar, hint):
    with pytest.raises(BadConfig, match=hint):
        config.load(world.SHIPPED).here(host, radar)


def test_the_environment_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(config.CONFIG_VARIABLE, os.fspath(tmp_path / "mine.yaml"))
    with pytest.raises(BadConfig, match=r"mine\.yaml"):
        config.load()
