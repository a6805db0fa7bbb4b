#!/usr/bin/env bash
# Scores the runs of a grid: ./eval_manager.sh [eval.py options]
# The grid below may be changed here, or for one call:
#   GAMES="Boxing Pong" SEEDS="0 1" CONFIG="STORM GITSTORM" ./eval_manager.sh
# Runs whose every checkpoint is already in outputs/eval_result/<run_name>.csv are skipped. A run that
# fails does not stop the others; the failed ones are listed at the end, with exit code 1.
games="Boxing Hero MsPacman Pong Breakout"
seeds="0 1 2"
configs="STORM"

set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up requirements.txt
exec "$STORM_PYTHON" "$STORM_ROOT/sweep.py" evaluate "storage=$STORM_ROOT" report=false \
  "games=$(with_commas "${GAMES:-$games}")" "seeds=$(with_commas "${SEEDS:-$seeds}")" \
  "configs=$(with_commas "${CONFIG:-$configs}")" "$@"
