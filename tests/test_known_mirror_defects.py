"""What has gone wrong in mirrors of this kind, and which tests would see it here. Each defect has a number.

M1 to M19: publishing. M20 to M34: partners. M40 to M44: the hub. M50 to M55: what people do by hand.
"""

from __future__ import annotations

import pytest
from test_known_defects import functions_of

NUMBERS = [*range(1, 20), *range(20, 28), *range(30, 35), *range(40, 45), *range(50, 56)]

DEFECTS = {
    "M1: local copies go before their lines are on the mirror": [
        "test_publish.py::test_killed_after_every_call_of_the_store",
        "test_publish.py::test_killed_before_every_local_change",
        "test_publish.py::test_what_is_published_and_not_listed_is_found_without_its_local_copy",
        "test_publish.py::test_a_rename_that_is_refused_lets_go_of_nothing",
        "test_globus_store.py::test_publishing_killed_at_a_call_loses_nothing",
        "test_backfill.py::test_a_file_that_our_mirror_holds_and_never_listed_is_brought_back_to_publishing",
    ],
    "M2: the upload of a list that failed ends as if it had succeeded": [
        "test_publish.py::test_an_upload_that_is_not_what_was_sent_lets_go_of_nothing",
        "test_publish.py::test_a_list_that_the_master_list_does_not_know_is_mended_without_a_local_copy",
        "test_mirror_lists.py::test_an_upload_that_is_cut_in_half_replaces_nothing",
    ],
    "M3: what is on the mirror and not listed never is, and one bad file loses the record of all": [
        "test_publish.py::test_on_the_mirror_with_the_same_content_and_not_listed",
        "test_publish.py::test_what_a_touched_month_has_without_listing_it_is_checked_and_listed",
        "test_publish.py::test_a_file_that_cannot_be_uploaded_is_no_other_files_trouble",
        "test_verify.py::test_what_is_not_as_it_should_be_is_found_told_and_left_as_it_is",
    ],
    "M4: two lines of a list fuse into one": [
        "test_publish.py::test_new_lines_are_merged_into_the_list_that_is_there",
        "test_hash_lists.py::test_a_list_without_its_last_line_end_loses_nothing_and_fuses_nothing",
        "test_delete.py::test_a_name_in_a_line_that_nobody_can_read_is_left",
    ],
    "M5: a refusal means that nothing is there, and the month's list is begun anew": [
        "test_stores.py::test_m5_a_folder_that_may_not_be_read_is_refused_and_never_absent",
        "test_stores.py::test_m5_what_is_not_there_is_told_as_absent_only_below_a_folder_that_can_be_listed",
        "test_directory_store.py::test_m5_a_disk_that_is_not_mounted_or_another_is_no_mirror_without_files",
        "test_globus_store.py::test_a_refusal_is_not_an_absence",
        "test_globus_store.py::test_nothing_is_absent_where_the_disk_is_gone",
        "test_mirror_lists.py::test_what_may_not_be_read_is_not_absent",
        "test_mirror_lists.py::test_a_list_is_never_replaced_by_a_shorter_one",
        "test_publish.py::test_a_list_that_may_not_be_read_is_not_an_empty_one",
        "test_publish.py::test_a_mirror_whose_disk_is_gone_is_not_a_new_mirror",
        "test_gaps.py::test_a_list_of_ours_that_cannot_be_read_is_not_taken_for_empty",
    ],
    "M6: it is listed, the mirror has lost it, and the last copy is deleted": [
        "test_publish.py::test_the_last_copy_of_a_file_that_the_mirror_lost_is_not_let_go",
        "test_publish.py::test_a_file_that_lies_there_with_another_size_is_mended",
    ],
    "M7: files and lists are written under their final names, by several writers": [
        "test_mirror_lists.py::test_killed_at_every_call_and_done_again",
        "test_mirror_lists.py::test_a_list_cut_in_half_on_its_way_is_not_used",
        "test_stores.py::test_m7_store_replaces_what_is_there_whole",
        "test_mirror_job.py::test_a_job_waits_for_another_one_with_its_lock_and_says_for_whom",
    ],
    "M8: one month without a list stops everything": [
        "test_publish.py::test_a_month_without_a_list_stops_no_other",
        "test_publish.py::test_a_month_that_cannot_be_read_is_left_out_and_all_others_go_on",
    ],
    "M9: one odd name stops everything": ["test_publish.py::test_names_of_no_grammar_stop_nothing_and_are_told_once"],
    "M10: bad files are moved away without their copy or their record": [
        "test_publish.py::test_a_bad_file_stays_until_its_record_is_confirmed",
        "test_publish.py::test_bad_files_are_stored_listed_and_set_aside",
    ],
    "M11: without a program to check them all files pass, and names are read by a shell": [
        "test_checks.py::test_without_any_program_to_decompress_a_file_is_still_checked",
        "test_checks.py::test_a_broken_environment_is_no_verdict",
        "test_backfill.py::test_hostile_names_go_nowhere",
    ],
    "M12: what is in the file is not looked at": [
        "test_checks.py::test_records_that_contradict_the_name_are_found",
        "test_checks.py::test_what_is_damaged_is_told_by_the_words_of_the_list",
    ],
    "M13: content that is known to be bad is taken again": [
        "test_publish.py::test_content_that_failed_before_is_refused_without_a_new_check",
        "test_backfill.py::test_blocked_and_failed_files_are_not_asked_for",
    ],
    "M14: somebody's stuck task blocks every run, and one's own is forgotten": [
        "test_globus_store.py::test_an_upload_killed_at_any_call_is_started_once",
        "test_globus_store.py::test_only_tasks_of_our_own_are_looked_for_and_by_their_exact_state",
        "test_globus_store.py::test_an_upload_of_something_else_is_cancelled_before_anything_is_sent",
    ],
    "M15: a task that failed counts as one that is done, and waits have no end": [
        "test_globus_store.py::test_each_end_of_a_task_has_its_name",
        "test_globus_store.py::test_a_task_that_does_not_succeed_has_moved_some_files_all_the_same",
        "test_globus_store.py::test_a_task_that_does_not_get_on_or_takes_too_long_is_given_up",
        "test_globus_store.py::test_the_deadline_of_a_task_is_in_universal_time",
        "test_publish.py::test_a_list_that_came_cut_in_half_is_not_used",
    ],
    "M16: a folder of somebody else is emptied": [
        "test_publish.py::test_nothing_is_lost_of_a_folder_that_is_shared_with_other_work",
    ],
    "M17: tokens lie open, and a login is asked for where nobody is": [
        "test_globus_store.py::test_a_token_file_that_others_may_read_is_not_used",
        "test_globus_store.py::test_without_a_login_nobody_is_asked",
        "test_globus_store.py::test_a_person_logs_in",
    ],
    "M18: an alert that cannot be sent stops publishing half-way": [
        "test_publish.py::test_an_alert_that_cannot_be_sent_stops_nothing",
    ],
    "M19: another version of the SDK stops everything, and any failure means that a folder is there": [
        "test_globus_store.py::test_tasks_are_written_as_this_sdk_has_them",
        "test_globus_store.py::test_only_one_502_means_that_a_folder_is_there",
    ],
    "M20: what was refused is fetched again every run": [
        "test_sync.py::test_a_failed_pair_is_not_fetched_again_whether_new_or_different",
        "test_compare.py::test_what_failed_here_is_neither_different_nor_fetched",
        "test_gaps.py::test_exact_pairs_have_failed_and_not_names",
    ],
    "M21: two reasons for one failed file ask for what nobody has": [
        "test_sync.py::test_a_pair_that_failed_twice_asks_for_nothing_that_the_partner_does_not_have",
        "test_hash_lists.py::test_what_failed_is_keyed_by_hash_and_name",
    ],
    "M22: another failed hash of the same name hides a match": [
        "test_sync.py::test_another_failed_hash_of_the_same_name_hides_no_match",
        "test_compare.py::test_what_failed_is_exactly_a_hash_and_a_name_of_the_partner",
    ],
    "M23: a name with two hashes is missing and different, and a blocked name ends with CR": [
        "test_hash_lists.py::test_a_name_with_two_hashes_is_refused_with_both_and_nothing_is_said_of_it",
        "test_hash_lists.py::test_a_blocked_name_is_known_by_whatever_stands_around_it",
        "test_sync.py::test_a_name_with_two_hashes_at_the_partner_is_refused_and_told",
        "test_sync.py::test_a_blocked_name_is_not_fetched_whatever_ends_its_line",
        "test_publish.py::test_a_name_in_a_line_that_is_refused_is_kept",
    ],
    "M24: nobody compares what was fetched": [
        "test_download.py::test_a_wrong_hash_is_fetched_anew_once_and_then_kept_with_both_hashes",
        "test_backfill.py::test_a_wrong_hash_at_the_first_source_and_a_right_one_at_the_second",
    ],
    "M25: half a file has its name where publishing looks": [
        "test_download.py::test_nothing_is_visible_in_the_holding_directory_before_it_is_whole",
        "test_sync.py::test_what_is_published_while_it_runs_is_not_fetched_again",
    ],
    "M26: names of a partner's list are used unseen": [
        "test_stores.py::test_m26_a_path_that_is_none_is_refused_by_everything",
        "test_hash_lists.py::test_a_line_that_is_not_of_the_format_is_refused_alone_and_kept",
        "test_sync.py::test_a_hostile_line_of_a_partner_is_refused_alone_and_told_once",
        "test_compare.py::test_hostile_lines_are_refused_one_by_one_and_shown",
    ],
    "M27: a dead connection holds up a partner for ever": [
        "test_sftp_store.py::test_m27_nothing_that_listens_and_something_that_never_answers_is_a_host_that_is_down",
        "test_sftp_store.py::test_m27_a_batch_has_a_time_limit_in_all",
        "test_download.py::test_a_server_that_stops_answering_is_given_up",
        "test_sync.py::test_a_second_one_of_the_same_partner_waits_and_one_of_another_does_not",
    ],
    "M30: what failed looks healthy": [
        "test_mirror_job.py::test_how_a_job_can_end",
        "test_sync.py::test_a_list_that_cannot_be_read_is_never_taken_for_an_empty_one",
        "test_sync.py::test_a_partner_that_is_down_is_told_once_and_ends_with_75",
        "test_publish.py::test_a_mirror_that_cannot_be_reached_is_75_and_everything_stays",
    ],
    "M31: the last files of a month wait, and months are those of the local clock": [
        "test_sync.py::test_early_in_a_month_the_one_before_is_synced_too",
        "test_sync.py::test_months_are_those_of_utc",
    ],
    "M32: what is compared after midnight is in no report": [
        "test_compare.py::test_a_run_over_midnight_is_one_report_of_one_run",
    ],
    "M33: two runs share their scratch files, and those stay": [
        "test_download.py::test_parts_that_nobody_asks_for_again_are_removed_in_time",
        "test_download.py::test_jobs_of_different_locks_share_no_parts",
    ],
    "M34: the same is told every day": [
        "test_mirror_job.py::test_a_list_is_told_by_its_changes",
        "test_sync.py::test_a_different_file_is_never_fetched_and_told_once",
        "test_compare.py::test_only_what_is_new_is_told_and_the_report_has_the_whole",
    ],
    "M40: a full disk counts as an empty one": [
        "test_download.py::test_a_disk_without_room_keeps_everything_and_fetches_nothing",
        "test_pull.py::test_a_disk_without_room_leaves_everything_at_the_hub",
    ],
    "M41: the hub's copy goes before ours is safe": [
        "test_pull.py::test_what_did_not_come_is_not_removed",
        "test_pull.py::test_nothing_is_removed_before_ours_is_durable_and_recorded",
        "test_pull.py::test_a_name_that_a_killed_run_gave_is_made_durable_before_anything_is_removed",
    ],
    "M42: two runs spoil each other's work": [
        "test_pull.py::test_a_second_one_of_the_same_radar_waits_and_one_of_another_does_not",
    ],
    "M43: a conflict is not told, and the second one overwrites the first": [
        "test_pull.py::test_the_same_name_with_other_content_stays_on_both_sides_and_is_told_once",
        "test_publish.py::test_two_files_of_one_name_are_both_kept_aside",
    ],
    "M44: a file is taken, and removed, while it is uploaded": [
        "test_pull.py::test_what_is_still_being_uploaded_is_left_there",
        "test_pull.py::test_what_changes_at_the_hub_while_it_is_pulled_is_left_there",
    ],
    "M50: originals go after a copy that failed": [
        "test_delete.py::test_a_move_that_fails_loses_nothing_and_is_done_by_the_next_run",
        "test_delete.py::test_a_copy_that_comes_out_wrong_removes_nothing",
        "test_delete_globus.py::test_a_copy_whose_task_does_not_succeed_is_followed_by_no_removal",
    ],
    "M51: a deleted file is still listed, not blocked, and comes back": [
        "test_delete.py::test_a_deletion_goes_through_everything_that_knows_the_file",
        "test_delete.py::test_the_blocklist_comes_first_and_the_lists_after_the_move",
        "test_delete.py::test_killed_at_any_call_it_completes",
    ],
    "M52: an older list is changed and put in the place of the present one": [
        "test_delete.py::test_what_may_not_be_read_is_not_taken_for_empty",
        "test_delete.py::test_a_list_is_read_from_the_mirror_each_time",
    ],
    "M53: a piece of a name deletes another file": [
        "test_delete.py::test_nothing_is_done_without_yes",
        "test_delete.py::test_a_line_that_is_no_whole_name_refuses_the_whole_list",
        "test_delete.py::test_a_name_that_is_the_beginning_of_none_and_like_another_deletes_only_its_own",
    ],
    "M54: other kinds of data are offered, and then it breaks off": [
        "test_delete.py::test_other_kinds_of_data_are_refused_before_anything_is_done",
    ],
    "M55: only the first record counts, one bad file ends all, and nothing is moved": [
        "test_sort_special.py::test_every_record_counts_and_not_only_the_first",
        "test_sort_special.py::test_a_file_that_cannot_be_read_stops_no_other",
        "test_sort_special.py::test_special_files_are_only_listed_until_they_are_to_be_moved",
    ],
}  # fmt: skip


def test_every_defect_is_here() -> None:
    assert [int(defect.partition(":")[0].removeprefix("M")) for defect in DEFECTS] == NUMBERS


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_tests_that_hold_it_are_there(defect: str) -> None:
    assert DEFECTS[defect]
    for test in DEFECTS[defect]:
        module, _, name = test.partition("::")
        assert name in functions_of(module), test
