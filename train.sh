#!/usr/bin/env bash
# Trains one agent: ./train.sh <env_name> <seed> <config> [Section.Key=value ...]
#   ./train.sh Boxing 0 STORM
#   ./train.sh KungFuMaster 1 GITSTORM-tiny JointTrainAgent.SampleMaxSteps=5000
# Results go to outputs/<Game>-<config>-seed_<seed>/ and runs/ of this repository, wherever it is called
# from. Type the same command again to go on with a run that was stopped.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

usage='usage: ./train.sh <env_name> <seed> <config> [Section.Key=value ...], as in ./train.sh Boxing 0 STORM'
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  echo "$usage"
  exit 0
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
