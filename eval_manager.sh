#!/usr/bin/env bash
# Scores the runs of a grid: ./eval_manager.sh [eval.py options]
# The grid below may be changed here, or for one call:
#   GAMES="Boxing Pong" SEEDS="0 1" CONFIG="STORM GITSTORM" ./eval_manager.sh
# Runs whose every checkpoint is already in outputs/eval_result/<run_name>.csv are skipped. A run that
# fails does not stop the others; the failed ones are listed at the end, with exit code 1.
# With Ray (requirements-sweep.txt) as many run at once as fit the machine; without it, one at a time.
games=(Boxing Hero MsPacman Pong Breakout)
seeds=(0 1 2)
configs=(STORM)

set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
[[ -z "${GAMES:-}" ]] || read -r -d '' -a games <<<"$GAMES"
[[ -z "${SEEDS:-}" ]] || read -r -d '' -a seeds <<<"$SEEDS"
[[ -z "${CONFIG:-}" ]] || read -r -d '' -a configs <<<"$CONFIG"
((${#games[@]} * ${#seeds[@]} * ${#configs[@]} > 0)) || fail "GAMES, SEEDS and CONFIG must each name at least one"

# Whether every saved checkpoint of a run has its line in the run's CSV.
is_evaluated() {
  local csv="$STORM_ROOT/outputs/eval_result/$1.csv" checkpoint step
  [[ -f "$csv" ]] || return 1
  for checkpoint in "$STORM_ROOT/outputs/$1"/ckpt/agent_*.pth; do
    step=${checkpoint##*/agent_}
    grep -q -- "^${step%.pth}," "$csv" || return 1
  done
}

# Name that train.sh gives to the run of a game, config and seed.
run_name() {
  local game config
  game=$(environment_id "$1")
  if [[ "$game" =~ ^ALE/(.+)-v[0-9]+$ ]]; then game=${BASH_REMATCH[1]}; fi
  config=$(basename -- "$2" .yaml)
  printf '%s-%s-seed_%s' "${game//[^A-Za-z0-9_.-]/_}" "$config" "$3"
}

for seed in "${seeds[@]}"; do
  [[ "$seed" =~ ^[0-9]{1,10}$ ]] || fail "seed '$seed' in SEEDS: must be a whole number, 0 or more"
done
for config in "${configs[@]}"; do path=$(config_path "$config") || exit; done
for game in "${games[@]}"; do check_environment_name "$game"; done
set_up requirements.txt

join() { local IFS=,; printf '%s' "$*"; }

if [[ -f "$STORM_ROOT/requirements-sweep.txt" ]] && has_packages "$STORM_PYTHON" requirements-sweep.txt; then
  exec "$STORM_PYTHON" "$STORM_ROOT/sweep.py" evaluate "storage=$STORM_ROOT" "games=$(join "${games[@]}")" \
    "seeds=$(join "${seeds[@]}")" "configs=$(join "${configs[@]}")" "$@"
fi

failures=()
trap 'exit 130' INT
for config in "${configs[@]}"; do
  for game in "${games[@]}"; do
    for seed in "${seeds[@]}"; do
      run=$(run_name "$game" "$config" "$seed")
      if is_evaluated "$run"; then
        echo "$run: already evaluated, skipped"
      elif [[ ! -d "$STORM_ROOT/outputs/$run" ]]; then
        echo "$run: no such run in $STORM_ROOT/outputs" >&2
        failures+=("$run (no such run)")
      else
        "$STORM_ROOT/evals.sh" "$game" "$run" "$config" "$@" || failures+=("$run (exit code $?)")
      fi
    done
  done
done
[[ ${#failures[@]} -eq 0 ]] && exit 0
echo "not evaluated:" >&2
printf '  %s\n' "${failures[@]}" >&2
exit 1
