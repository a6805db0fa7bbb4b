#!/usr/bin/env bash
# Trains one agent: ./train.sh <env_name> <seed> <config> [Section.Key=value ...]
#   ./train.sh Boxing 0 STORM
#   ./train.sh KungFuMaster 1 GITSTORM-tiny JointTrainAgent.SampleMaxSteps=5000
#   ./train.sh --array "Boxing Pong" "0 1" "STORM GITSTORM"    the run of that grid that SLURM_ARRAY_TASK_ID names
# Results go to outputs/<Game>-<config>-seed_<seed>/ and runs/ of this repository, wherever it is called
# from. Type the same command again to go on with a run that was stopped.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

usage='usage: ./train.sh <env_name> <seed> <config> [Section.Key=value ...], as in ./train.sh Boxing 0 STORM'
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  echo "$usage"
  exit 0
fi

# The run of an array job's task: configs vary fastest, then games, then seeds. Names are separated by
# white space or commas; atari100k stands for the 26 games of the benchmark.
if [[ "${1:-}" == --array ]]; then
  [[ $# -ge 4 ]] || fail 'usage: ./train.sh --array "<games>" "<seeds>" "<configs>" [Section.Key=value ...]'
  read -r -d '' -a games <<<"${2//,/ }"
  read -r -d '' -a seeds <<<"${3//,/ }"
  read -r -d '' -a configs <<<"${4//,/ }"
  if [[ "${games[*]}" == atari100k ]]; then
    set_up requirements.txt
    games=($("$STORM_PYTHON" -c \
      'import json, sys; print(*json.load(open(sys.argv[1]))["human"])' "$STORM_ROOT/results/published.json")) ||
      fail "the games of atari100k cannot be read from $STORM_ROOT/results/published.json"
  fi
  runs=$((${#games[@]} * ${#seeds[@]} * ${#configs[@]}))
  ((runs > 0)) || fail "--array '$2' '$3' '$4': must name at least one game, one seed and one config"
  task=${SLURM_ARRAY_TASK_ID:-}
  [[ "$task" =~ ^[0-9]{1,9}$ ]] && ((10#$task < runs)) ||
    fail "SLURM_ARRAY_TASK_ID='$task': must be from 0 to $((runs - 1)), so use sbatch --array=0-$((runs - 1))"
  config=${configs[10#$task % ${#configs[@]}]}
  game=${games[10#$task / ${#configs[@]} % ${#games[@]}]}
  seed=${seeds[10#$task / ${#configs[@]} / ${#games[@]}]}
  say "task $task of $runs: $game, seed $seed, $config"
  set -- "$game" "$seed" "$config" "${@:5}"
fi

[[ $# -ge 3 ]] || fail "$usage"
check_environment_name "$1"
[[ "$2" =~ ^[0-9]{1,10}$ ]] || fail "seed '$2': must be a whole number, 0 or more"
config=$(config_path "$3") || exit
settings=("BasicSettings.env_name=$(environment_id "$1")" "BasicSettings.Seed=$2")
settings+=("BasicSettings.config_path=$config" "BasicSettings.n=null")
shift 3

for setting in "$@"; do
  case "$setting" in # paths are meant from where the command was typed
    BasicSettings.trajectory_path=* | BasicSettings.pretrained_path=* | BasicSettings.config_path=*)
      path=${setting#*=}
      [[ -e "$path" ]] && setting="${setting%%=*}=$(absolute_path "$path")"
      ;;
    *=*) ;;
    *) fail "argument '$setting': settings are given as Section.Key=value; $usage" ;;
  esac
  settings+=("$setting")
done

set_up requirements.txt
cd -- "$STORM_ROOT" || exit
exec "$STORM_PYTHON" train.py "${settings[@]}"
