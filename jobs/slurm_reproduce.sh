#!/bin/bash
# Train and test the runs of an experiment, each as a task of a job array. Submitted by
#
#   python -m hpc_maml reproduce navigation --slurm [options of sbatch]
#
# which gives the numbers of the runs. When they have ended, the same command without --slurm writes
# the page.
#SBATCH --job-name=reproduce
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
REQUEUE=${REQUEUE:-yes}
launch reproduce "$@" --run "$SLURM_ARRAY_TASK_ID"
