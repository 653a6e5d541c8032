#!/bin/bash
# Meta-train on half-cheetah; see slurm_ant.sh for what may be given.
#
#   sbatch jobs/slurm_half_cheetah.sh
#   sbatch jobs/slurm_half_cheetah.sh --config configs/half_cheetah_dir.yaml seed=3
#SBATCH --job-name=half_cheetah
#SBATCH --ntasks=20
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

config=configs/half_cheetah_vel.yaml
run_dir=runs/half_cheetah-$SLURM_JOB_ID

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" "$@"
