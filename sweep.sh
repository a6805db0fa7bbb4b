#!/usr/bin/env bash
# Trains a grid of runs on this machine or a Ray cluster, evaluates them and writes the report:
#   ./sweep.sh games=Boxing,Pong seeds=0,1 configs=STORM,GITSTORM [option=value ...] [Section.Key=value ...]
#   ./sweep.sh      a small grid to see how it goes, some tens of minutes on two cores: Boxing, 2 seeds,
#                   STORM-tiny and GITSTORM-tiny, 3,000 steps
#   ./sweep.sh --help
# Results go to outputs/ and runs/ of this repository, the report to outputs/report/index.html. Type the
# same command again to go on with what was stopped or failed; what is finished is skipped.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

small=(
  games=Boxing seeds=0,1 configs=STORM-tiny,GITSTORM-tiny BasicSettings.NumThreads=1
  JointTrainAgent.SampleMaxSteps=3000 JointTrainAgent.SaveEverySteps=1500 Evaluation.NumEpisodes=4
)
[[ $# -gt 0 ]] || set -- "${small[@]}"
set_up requirements.txt
exec "$STORM_PYTHON" "$STORM_ROOT/sweep.py" "storage=$STORM_ROOT" "$@"
