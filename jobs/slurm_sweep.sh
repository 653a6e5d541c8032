#!/bin/bash
# Meta-train for every seed and every value of one key: a job array, each its own run folder
# runs/sweep-<job>/<key>=<value>-seed=<seed>. Words after the script go to all of them.
#
#   sbatch jobs/slurm_sweep.sh
#   KEY=algorithm.max_kl VALUES="0.01 0.02" SEEDS="1 2 3 4" sbatch --array=0-7 jobs/slurm_sweep.sh
#SBATCH --job-name=sweep
#SBATCH --array=0-8
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

config=configs/half_cheetah_vel.yaml
key=${KEY:-algorithm.fast_lr}
read -ra values <<<"${VALUES:-0.05 0.1 0.2}"
read -ra seeds <<<"${SEEDS:-1 2 3}"

runs=$((${#values[@]} * ${#seeds[@]}))
if [ "$SLURM_ARRAY_TASK_MAX" != $((runs - 1)) ]; then
    echo "${#values[@]} values and ${#seeds[@]} seeds are $runs runs: sbatch --array=0-$((runs - 1))" >&2
    exit 2
fi
value=${values[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}
seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
run_dir=runs/sweep-$SLURM_ARRAY_JOB_ID/$key=$value-seed=$seed

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" "$@" "$key=$value" "seed=$seed"
