#!/usr/bin/env bash
# Runs the tests: ./test.sh [--quick | --all] [pytest arguments]
#   ./test.sh --quick            does everything work on this machine? Some minutes
#   ./test.sh                    all but those marked slow
#   ./test.sh --all              the slow ones too
#   ./test.sh --gpu              those that need an NVIDIA card, which the others do not see
#   ./test.sh tests/configuration/test_config.py -k override
# Tests run in two processes; -n 0 runs them in one, as a debugger needs.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

selection=(-m "not slow")
case "${1:-}" in
  --all) selection=() && shift ;;
  --gpu) selection=(-m gpu) ;;
  --quick)
    selection=(-m "not slow and not first" tests/commands/test_end_to_end.py tests/sub_models tests/test_agents.py)
    shift
    ;;
esac
set_up requirements-dev.txt
if [[ "${1:-}" == --gpu ]]; then
  shift
  check_card || exit 2
  "$STORM_PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || fail "there is no NVIDIA card here"
else
  export CUDA_VISIBLE_DEVICES="" # results and times of the others do not depend on the machine's card
fi
cd -- "$STORM_ROOT" || exit
exec "$STORM_PYTHON" -m pytest -n 2 --dist worksteal ${selection[@]+"${selection[@]}"} "$@"
