#!/usr/bin/env bash
# Scores the checkpoints of one run: ./evals.sh <env_name> <run_name> <config> [eval.py options]
#   ./evals.sh Boxing Boxing-STORM-seed_0 STORM
#   ./evals.sh Boxing Boxing-STORM-seed_0 STORM -checkpoints last -num_episodes 100
# Writes outputs/eval_result/<run_name>.csv of this repository.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

usage='usage: ./evals.sh <env_name> <run_name> <config> [eval.py options], as in ./evals.sh Boxing Boxing-STORM-seed_0 STORM'
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  echo "$usage"
  exit 0
fi
[[ $# -ge 3 ]] || fail "$usage"
config=$3
[[ -f "$config" ]] && config=$(realpath -- "$config") # meant from where the command is typed, as is a folder
options=() previous=
for option in "${@:4}"; do
  [[ "$option" =~ ^--?ckpt_dir=(.*) && -e "${BASH_REMATCH[1]}" ]] && option="-ckpt_dir=$(realpath -- "${BASH_REMATCH[1]}")"
  [[ "$previous" =~ ^--?ckpt_dir$ && -e "$option" ]] && option=$(realpath -- "$option")
  options+=("$option")
  previous=$option
done

set_up requirements.txt
cd -- "$STORM_ROOT" || exit
exec "$STORM_PYTHON" eval.py "-config_path=$config" "-env_name=$1" "-run_name=$2" ${options[@]+"${options[@]}"}
