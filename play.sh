#!/usr/bin/env bash
# Shows an agent and its dream in the browser:
#   ./play.sh demo                                    one that is there already, of STORM
#   ./play.sh demo GITSTORM-catch                     and of GIT-STORM
#   ./play.sh -run_name=Boxing-STORM-seed_0           one of your own
#   ./play.sh --help
# Recordings go to outputs/recordings/ of the folder it is called from.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

[[ $# -gt 0 ]] || set -- demo
set_up requirements-play.txt
# The script becomes the server, so that signals reach it.
exec "$STORM_PYTHON" "$STORM_ROOT/play.py" "$@"
