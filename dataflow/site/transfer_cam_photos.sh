#!/usr/bin/env bash
# Send the photos of the site cameras to campus.
#
# Runs on:  site-linux
# Reads:    the folder `cameras`
# Kinds:    photo
# Writes:   campus incoming; receive sorts them by radar, camera and month
# Removes:  a photo, once campus has accepted it
# Needs:    rsync on both machines; a key for campus

# shellcheck source=dataflow/lib/step.sh
. "$DATAFLOW_LIB/step.sh"

find_files() {
  [ -d "$DATAFLOW_FOLDER_CAMERAS" ] || return 0
  find "$DATAFLOW_FOLDER_CAMERAS" -maxdepth 1 -type f -name '[0-9]*cam21[012]*.jpg' -print0 | sort -z
}

handle_files() {
  send_to "$DATAFLOW_NEXT"
}

main "$@"
