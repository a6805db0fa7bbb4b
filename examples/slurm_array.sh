#!/usr/bin/env bash
# Atari 100k on a SLURM cluster: 26 games × 5 seeds × 2 models = 260 runs, one for each task of an array job.
#
#   ./setup.sh                       once, where there is a network: makes .venv
#   sbatch examples/slurm_array.sh   from the repository's folder, which all nodes must see
#
# Submit it again at any time: finished runs end at once, unfinished ones continue where they were saved.
# When it is through, evaluate the runs and gather them in a report, on a node with cards:
#   ./sweep.sh evaluate games=atari100k seeds=0,1,2,3,4 configs=STORM,GITSTORM
# Change the lines below to suit the cluster.

#SBATCH --job-name=git-storm
#SBATCH --array=0-259%16            # games × seeds × configs − 1; at most 16 at a time
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00             # a run that needs longer is saved, requeued and continued
#SBATCH --requeue                   # also when it is preempted or its node fails
#SBATCH --signal=USR1@300           # five minutes before the time is up; the run then saves and exits with 75
#SBATCH --open-mode=append          # a requeued task goes on in the same log
#SBATCH --output=slurm-%A_%a.log

games="atari100k"                   # or names, as in "Boxing Pong Breakout"
seeds="0 1 2 3 4"
configs="STORM GITSTORM"
settings=()                         # for all runs, as in (JointTrainAgent.SaveEverySeconds=600)

set -uo pipefail
NOT_FINISHED=75

# SLURM runs a copy of this file, so the repository is where sbatch was typed.
cd -- "${SLURM_SUBMIT_DIR:-.}" || exit
# srun passes signals on, and train.sh becomes the training itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # which srun does not inherit since SLURM 22.05
srun ./train.sh --array "$games" "$seeds" "$configs" ${settings[@]+"${settings[@]}"}
code=$?

# The number of the array and of the task: the job's own number may stand for the whole array.
if [[ $code -eq $NOT_FINISHED ]]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
