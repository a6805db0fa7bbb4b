#!/usr/bin/env bash
# Trains one agent: ./train.sh <env_name> <seed> <config> [Section.Key=value ...]
#   ./train.sh Boxing 0 STORM
#   ./train.sh dm_control/cartpole-balance-v0 0 STORM-control
#   ./train.sh KungFuMaster 1 GITSTORM-tiny JointTrainAgent.SampleMaxSteps=5000
#   ./train.sh --array "Boxing Pong" "0 1" "STORM GITSTORM"    the run of that grid that SLURM_ARRAY_TASK_ID names
# Results go to outputs/<Game>-<config>-seed_<seed>/ and runs/ of this repository, wherever it is called
# from. Type the same command again to go on with a run that was stopped.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

usage='usage: ./train.sh <env_name> <seed> <config> [Section.Key=value ...], as in ./train.sh Boxing 0 STORM'
also='   or ./train.sh dm_control/cartpole-balance-v0 0 STORM-control, or ./train.sh CartPole-v1 0 STORM-control'
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  printf '%s\n' "$usage" "$also"
  exit 0
fi

task=only
if [[ "${1:-}" == --array ]]; then
  [[ $# -ge 4 ]] || fail 'usage: ./train.sh --array "<games>" "<seeds>" "<configs>" [Section.Key=value ...]'
  task=${SLURM_ARRAY_TASK_ID:-only}
  set -- "$(with_commas "$2")" "$(with_commas "$3")" "$(with_commas "$4")" "${@:5}"
fi
[[ $# -ge 3 ]] || fail "$usage"

requirements=requirements.txt
[[ "$1" == *dm_control/* ]] && requirements=requirements-control.txt
set_up "$requirements"
# The script becomes the training, so that signals reach it.
exec "$STORM_PYTHON" "$STORM_ROOT/sweep.py" "task=$task" "storage=$STORM_ROOT" \
  "games=$1" "seeds=$2" "configs=$3" "${@:4}"
