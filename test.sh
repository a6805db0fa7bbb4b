#!/usr/bin/env bash
# Runs the tests: ./test.sh [--all] [pytest arguments]
#   ./test.sh                    all but those marked slow
#   ./test.sh --all              the slow ones too
#   ./test.sh tests/configuration/test_config.py -k override
# Tests run in two processes; -n 0 runs them in one, as a debugger needs.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
  if [[ "$argument" == --all ]]; then selection=(); else arguments+=("$argument"); fi
done
set_up requirements-dev.txt
check_card >/dev/null || say "the tests that need the card are skipped"
cd -- "$STORM_ROOT" || exit
exec "$STORM_PYTHON" -m pytest -n 2 --dist worksteal ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
