#!/usr/bin/env bash
# What a shell step sources. A step defines two functions and ends with `main "$@"`:
#
#   find_files     prints the files to work on, each ended by NUL (find ... -print0)
#   handle_files   reads such names on stdin and notes what became of each:
#                    note done FILE [REMARK]   note kept FILE REASON   note bad FILE REASON
#
# `send_to HOST` reads names on stdin, delivers them verified, and notes each; delivered sources are removed by the runner
# once that is recorded. Names only ever travel as arguments or NUL-ended on stdin.

set -euo pipefail
export LC_ALL=C

note() {
  printf '%s\0%s\0%s\0' "$1" "$2" "${3:-}" >>"$DATAFLOW_NOTES"
}

send_to() {
  "$DATAFLOW_PYTHON" -m dataflow.lib.send_files "$1"
}

main() {
  case "${1:-}" in
    find) find_files ;;
    handle) handle_files ;;
    *)
      echo "usage: $0 find|handle (the runner calls it: dataflow run $(basename "${0%.*}") --radar RADAR)" >&2
      exit 2
      ;;
  esac
}
