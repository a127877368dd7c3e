"""What has gone wrong in data flows of this kind, and which tests would see it here.

Each defect has a number: S for those of the sites, their radar computers and links, K for those of campus. Those that no
other test holds are tested below.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import running_chain
import step_cases
from loopback import REPOSITORY, Machines

from dataflow.lib import alert, config, context, summary
from dataflow.lib.errors import Exit

DEFECTS = {
    "S1: the backup is not verified, and the source goes all the same": [
        "test_copy.py::test_a_disk_that_alters_bytes_is_found_out",
        "test_disk_faults.py::test_a_copy_that_the_disk_garbles_is_found_before_the_source_goes",
    ],
    "S2: bytes are appended to what lies under the name already": [
        "test_copy.py::test_other_content_is_a_conflict_and_no_name_is_given",
        "test_step_contract.py::test_same_name_with_other_content_sends_the_newcomer_to_quarantine",
        "test_receive.py::test_file_damaged_on_its_way_is_removed_and_sent_again",
    ],
    "S3: a partial file is seen under its final name and goes on": [
        "test_step_contract.py::test_killed_at_any_change_and_run_again_ends_in_the_same_state",
        "test_network.py::test_a_link_that_breaks",
    ],
    "S4: what comes in during a run, or just after it, is forgotten": [
        "test_daemon.py::test_a_full_event_queue_means_look_now",
        "test_daemon.py::test_a_flag_below_send_flag_starts_the_list_again_after_the_batch",
        "test_daemon.py::test_a_flag_above_send_flag_lets_the_data_finish_first",
    ],
    "S5: a file that the radar still writes is taken": [
        "test_finished.py::test_at_start_up_the_slices_carry_different_stamps",
        "test_finished.py::test_a_later_stamp_is_not_enough_while_the_file_still_changes",
    ],
    "S6: the last file of a radar that stopped stays": [
        "test_finished.py::test_the_last_file_of_a_stopped_radar_is_finished_when_its_window_ended",
        "test_daemon.py::test_the_next_file_of_the_radar_is_waited_for_and_no_longer",
    ],
    "S7: what came in while the daemon was down is not seen": [
        "test_daemon.py::test_it_looks_when_it_starts_when_a_flag_comes_and_by_the_clock",
        "test_chain.py::test_blocks_go_from_the_radar_to_the_archive",
    ],
    "S8: a flag is sent whatever was done, and is lost when the link is down": [
        "test_daemon.py::test_what_an_exit_code_means_to_the_chain",
        "test_runner.py::test_when_a_host_is_down_what_was_done_counts_and_the_rest_is_kept",
        "test_network.py::test_a_link_that_breaks",
        "test_network.py::test_a_link_that_is_down_for_long",
    ],
    "S9: a photo that hangs holds up the data, and photos go unverified": [
        "test_known_defects.py::test_photos_and_logs_come_after_the_data_and_its_flag",
        "test_network.py::test_a_peer_that_accepts_and_hangs",
        "test_step_contract.py::test_killed_at_any_change_and_run_again_ends_in_the_same_state",
    ],
    "S10: logs that cannot be sent hold up the data": [
        "test_known_defects.py::test_photos_and_logs_come_after_the_data_and_its_flag",
        "test_daemon.py::test_a_host_that_is_down_is_tried_once_in_a_run",
    ],
    "S11: each file opens a connection, and the firewall bans the site": [
        "test_ssh.py::test_many_processes_share_one_connection",
        "test_ssh.py::test_failed_attempts_are_counted_and_then_refused",
        "test_network.py::test_ten_thousand_plots_over_a_link_that_flaps_never_reach_the_ban",
    ],
    "S12: each file costs a session for its hash, and that session eats what the caller was to read": [
        "test_known_defects.py::test_a_batch_costs_two_sessions_and_nothing_of_what_the_caller_may_read",
    ],
    "S13: without the folder, or with the NAS unmounted, files land beside it and their sources go": [
        "test_place.py::test_a_file_stands_where_a_folder_should_be",
        "test_step_contract.py::test_destination_without_its_marker_is_not_touched",
        "test_pause_and_unmount.py::test_a_nas_that_is_unmounted_during_the_copy_releases_nothing",
    ],
    "S14: a missing key of the configuration means that there are no files, for ever": [
        "test_config.py::test_a_missing_key_is_told_where_it_should_be",
        "test_daemon.py::test_a_wrong_configuration_ends_the_daemon",
    ],
    "S15: names that nobody knows are carried off and deleted at their source": [
        "test_runner.py::test_unknown_names_are_skipped_and_told_once",
        "test_step_contract.py::test_hostile_and_unknown_names_are_never_touched_and_stop_nothing",
    ],
    "S16: two starts see each other and both end; nothing keeps two commands apart": [
        "test_daemon.py::test_two_daemons_do_not_run_at_once",
        "test_daemon.py::test_a_step_by_hand_waits_for_the_daemon",
        "test_lock.py::test_whoever_finds_it_taken_waits_and_says_for_whom",
    ],
    "S17: a unit that failed at boot stays down": [
        "test_units.py::test_a_unit_comes_back_whatever_happens_but_not_with_a_wrong_configuration",
    ],
    "S18: what is watched is not what is worked on, or a new day folder is missed": [
        "test_daemon.py::test_what_wakes_the_daemon",
        "test_finished.py::test_every_day_folder_is_looked_into_and_nothing_else",
    ],
    "S19: no order, no limit of bandwidth, no word of what fails again and again, and full-size pictures are carried off": [
        "test_known_defects.py::test_data_before_pictures_and_the_oldest_first_within_the_bandwidth",
        "test_runner.py::test_files_that_are_kept_for_too_long_are_told_once_together",
        "test_network.py::test_data_waits_for_one_batch_of_pictures_on_a_thin_link",
    ],
    "S20: what is drawn depends on the hour at which it is drawn, and on antennas that may not be there": [
        "test_plot_steps.py::test_it_is_drawn_wherever_it_lies_by_now",
        "test_iq_plot.py::test_only_the_antennas_that_the_file_has_are_drawn_and_by_their_own_numbers",
        "test_iq_plot.py::test_times_on_the_axis_are_utc_and_stand_at_their_sequences",
    ],
    "K1: every good rawacf is refused, and set aside": [
        "test_convert_step.py::test_records_are_what_pydarnio_makes_of_them_in_every_field_and_type",
        "test_chain.py::test_blocks_go_from_the_radar_to_the_archive",
    ],
    "K2: what a check found is told by what is printed, and its exit code is always the same": [
        "test_dmap.py::test_the_cpid_of_every_record_counts",
        "test_known_defects.py::test_what_a_library_prints_is_no_answer",
    ],
    "K3: the HDF5 of a bad DMAP is not found, and archived as good": [
        "test_distribute.py::test_hdf5_file_of_a_bad_dmap_file_goes_to_quarantine_along",
        "test_distribute.py::test_hdf5_file_goes_along_wherever_a_run_is_killed",
        "test_names.py::test_rawacf_dmap_and_back",
    ],
    "K4: what is no name is made into another, and an error becomes a file name": [
        "test_names.py::test_a_hostile_or_sloppy_name_is_no_name",
        "test_names.py::test_a_slice_beyond_25_has_no_channel",
        "test_names.py::test_one_character_more_is_another_name_or_none",
        "test_names.py::test_what_is_no_rawacf_has_no_dmap_form",
    ],
    "K5: a conversion writes under the final name, and half of it goes on": [
        "test_convert_step.py::test_killed_conversion_leaves_nothing_under_the_final_name_and_a_rerun_makes_one_file",
        "test_conversion.py::test_a_part_that_the_disk_gives_back_otherwise",
    ],
    "K6: a broken library or a full disk condemns good files": [
        "test_known_defects.py::test_a_broken_library_condemns_no_file",
        "test_step_contract.py::test_full_destination_keeps_everything_until_there_is_room",
        "test_runner.py::test_the_fuse",
    ],
    "K7: a partner takes a file that is not whole, or before it is verified": [
        "test_distribute.py::test_partner_that_empties_staging_at_once_never_sees_a_file_twice",
        "test_copy.py::test_a_copy_that_reads_back_wrong_is_not_made_ready",
    ],
    "K8: one target fails, and all others get the file again": [
        "test_distribute.py::test_failed_target_does_not_resend_to_the_others",
        "test_distribute.py::test_full_target_does_not_resend_to_the_others",
    ],
    "K9: the archive is neither verified nor kept from being overwritten": [
        "test_copy.py::test_moving_to_another_disk_copies_verifies_and_releases",
        "test_copy.py::test_moving_onto_other_content_is_a_conflict",
        "test_copy.py::test_moving_to_a_full_disk_keeps_the_source",
        "test_step_contract.py::test_same_name_with_other_content_sends_the_newcomer_to_quarantine",
    ],
    "K10: only some damage is seen, only the first CPID counts, a special experiment has one copy": [
        "test_dmap.py::test_files_that_are_not_one_whole_stream_of_records",
        "test_dmap.py::test_no_turned_bit_passes_unseen",
        "test_distribute.py::test_one_record_of_another_cpid_makes_a_special_experiment",
        "test_distribute.py::test_file_that_rots_before_it_is_distributed_goes_to_quarantine",
    ],
    "K11: work is passed over in silence when another run is on, and the flag is gone": [
        "test_lock.py::test_whoever_finds_it_taken_waits_and_says_for_whom",
        "test_daemon.py::test_a_step_by_hand_waits_for_the_daemon",
        "test_daemon.py::test_what_an_exit_code_means_to_the_chain",
    ],
    "K15: pictures are archived where the working folder is, only of this month, only JPEG": [
        "test_known_defects.py::test_pictures_of_every_month_and_kind_are_archived_wherever_it_is_started",
    ],
    "K16: an alert breaks on an apostrophe, or its text is taken for a format": [
        "test_known_defects.py::test_an_alert_may_hold_any_text",
    ],
    "K17: predictable names in /tmp, and a hash that the page cache answers": [
        "test_ssh.py::test_a_control_folder_that_may_be_a_trap_is_refused",
        "test_copy.py::test_the_page_cache_is_not_asked_for_what_lies_on_the_disk",
    ],
    "K18: the folders of logs go by the local date and their names by another": [
        "test_summary.py::test_times_are_written_and_read_in_utc",
        "test_summary.py::test_a_run_over_midnight_goes_on_in_the_next_day",
    ],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_tests_that_hold_it_are_there(defect: str) -> None:
    assert DEFECTS[defect]
    for test in DEFECTS[defect]:
        module, _, name = test.partition("::")
        assert name in functions_of(module), test


@cache
def functions_of(module: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / module).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_photos_and_logs_come_after_the_data_and_its_flag() -> None:
    """S9, S10: whatever hangs there, and however long, the data is on its way and the next host knows."""
    hosts = config.load(REPOSITORY / "config.yaml").flow.hosts
    steps = [entry.split()[0] for entry in hosts["site-linux"].steps]
    assert steps.index("rsync_to_campus") < steps.index("send_flag") < steps.index("transfer_cam_photos")
    for host in hosts.values():
        names = [entry.split()[0] for entry in host.steps]
        assert "send_logs" not in names or names.index("send_logs") > max(
            n for n, step in enumerate(names) if step == "send_flag"
        )


def test_a_batch_costs_two_sessions_and_nothing_of_what_the_caller_may_read(tmp_path: Path) -> None:
    """S12: one rsync and one request for fifty photos; the standard input of whoever runs the step stays his."""
    with running_chain.running(tmp_path / "chain", overrides=["files.settle_s=0"]) as chain:
        for number in range(50):
            name = f"{step_cases.at(number):%Y%m%d.%H%M}.cam211.jpg"
            step_cases.put(chain.here("site-linux").folder("cameras") / name, b"photo %d" % number, step_cases.at(number))
        chain.dataflow("run", "send_logs", "--host", "site-linux", "--radar", "sas")  # which makes the connection
        before = sessions(chain)
        events, feeder = os.pipe()
        os.write(feeder, b"an event\n")
        os.close(feeder)
        argv = [sys.executable, "-m", "dataflow", "run", "transfer_cam_photos", "--host", "site-linux", "--radar", "sas"]
        limit_s = running_chain.LIMIT_S
        run = subprocess.run(argv, stdin=events, env=chain.environment(), capture_output=True, timeout=limit_s)
        assert run.returncode == Exit.ACCOUNTED, run.stderr
        assert sessions(chain) - before == 2
        assert os.read(events, 100) == b"an event\n"
        os.close(events)


def sessions(chain: running_chain.Running) -> int:
    return chain.machines.sshd_log("campus").read_text(errors="replace").count("Starting session")


def test_data_before_pictures_and_the_oldest_first_within_the_bandwidth(machines: Machines) -> None:
    """S19: and what is only for the site, or was not meant for anybody, stays there."""
    fed = [step_cases.site_picture(machines, 0), *(step_cases.site_data(machines, number) for number in (3, 1, 2, 0))]
    folder = machines.here("site-linux").folder
    stays = [
        step_cases.put(folder("full_size_plots") / step_cases.picture(1), b"large", step_cases.at(1)),
        step_cases.put(folder("daily_plots") / "failed_resize.jpg", b"a stranger", step_cases.at(1)),
    ]
    done = machines.run("rsync_to_campus", "site-linux", overrides=["radars.sas.machines.site-linux.bandwidth_kib_s=50"])
    assert done.code == Exit.ACCOUNTED, done.said
    delivered = [record for record in done.of("file") if record["outcome"] == "done"]
    assert [record["file"] for record in delivered] == [*sorted(path.name for path in fed[1:]), fed[0].name]
    assert done.of("end")[0]["seconds"] > 0.5 * sum(record["bytes"] for record in delivered) / (50 * 1024)
    assert all(path.exists() for path in stays)


BABBLING = """
import sys
print("Everything is wonderful", flush=True)
print("CPID 151", file=sys.stderr, flush=True)
"""


def with_a_module(machines: Machines, folder: Path, name: str, content: str) -> dict[str, str]:
    """The environment of a command in a process of its own that finds a module of ours before any other of its name."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(content)
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return {**os.environ, **machines.environment, "PYTHONPATH": path, "DATAFLOW_SET": json.dumps(machines.config.overrides)}


def run_alone(machines: Machines, environment: dict[str, str], *words: str, cwd: Path | None = None) -> tuple[int, str]:
    """A command that nobody has imported anything for."""
    argv = [sys.executable, "-m", "dataflow", *words, "--host", "campus", "--radar", "sas"]
    limit_s = running_chain.LIMIT_S
    told = subprocess.run(argv, env=environment, cwd=cwd or machines.private, capture_output=True, text=True, timeout=limit_s)
    return told.returncode, told.stderr


def test_what_a_library_prints_is_no_answer(machines: Machines, tmp_path: Path) -> None:
    """K2: a bad file stays bad and a good one good, whatever is printed meanwhile."""
    good = step_cases.to_distribute(machines, 0)
    bad = step_cases.put(good.with_name("20241103.0000.00.sas.a.rawacf.bz2"), good.read_bytes()[:-100], step_cases.at(0))
    environment = with_a_module(machines, tmp_path / "library", "sitecustomize", BABBLING)
    code, said = run_alone(machines, environment, "run", "distribute_borealis_data")
    assert code == Exit.LEFT_OVER and "CPID 151" in said
    records = machines.records("distribute_borealis_data", "campus", "sas")
    outcomes = {record["file"]: record["outcome"] for record in records if record["event"] == "file"}
    assert outcomes == {good.name: "done", bad.name: "quarantined"}


@pytest.mark.parametrize("fault", ["raise ImportError('libdmap.so: cannot open shared object file')", "raise MemoryError"])
def test_a_broken_library_condemns_no_file(machines: Machines, tmp_path: Path, fault: str) -> None:
    """K6: neither is it moved; with the library mended it is converted."""
    fed = step_cases.to_convert(machines, 0)
    environment = with_a_module(machines, tmp_path / "library", "h5py", fault)
    code, said = run_alone(machines, environment, "run", "convert_on_campus")
    assert code in (Exit.LEFT_OVER, Exit.BUG), said
    assert fed.exists() and machines.quarantined("campus") == {}
    done = machines.run("convert_on_campus", "campus")
    assert done.outcomes() == {fed.name: "done"}, done.said


def test_pictures_of_every_month_and_kind_are_archived_wherever_it_is_started(machines: Machines, tmp_path: Path) -> None:
    """K15"""
    here = machines.here("campus")
    names_of = {
        "2024/10": "20241031.2200.00.sas.0.antennas_iq.contact.jpg",
        "2024/11": "20241101.0000.00.sas.0.antennas_iq.contact.jpg",
        "2023/12": "20231231.2200.00.sas.0.rawacf.quicklook.png",
    }
    for name in names_of.values():
        step_cases.put(here.folder("plots") / name, b"picture", step_cases.at(0))
    environment = with_a_module(machines, tmp_path / "nothing", "nothing", "")
    (tmp_path / "elsewhere").mkdir()
    code, said = run_alone(machines, environment, "run", "archive_iq_plots", cwd=tmp_path / "elsewhere")
    assert code == Exit.ACCOUNTED, said
    for month, name in names_of.items():
        assert (here.folder("plots") / "archive" / month / name).is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_alert_may_hold_any_text(machines: Machines) -> None:
    """K16: it is one line of JSON, and reads as it was written."""
    here = machines.here("campus")
    log = summary.SummaryLog(here, "test", "test", context.utc_now)
    texts = ['it\'s 100% "full"', "%s %d %n", "{braces}", "two\nlines\r\x00", "$(id) `id` ; rm -rf /", "\u2028 \U0001f4e1", "\\"]
    for text in texts:
        alert.tell(log, text)
    (file,) = summary.own_files(here, context.utc_now().date().replace(year=1990), "test")
    assert len(file.read_bytes().splitlines()) == len(texts)
    assert [record["message"] for record in summary.records([file])] == texts
