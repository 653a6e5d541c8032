#!/bin/bash
# Meta-test the last checkpoint of a run on unseen tasks.
#
#   sbatch jobs/slurm_evaluate.sh runs/ant-1234
#   sbatch jobs/slurm_evaluate.sh runs/ant-1234 --tasks 100 --updates 5 --json ant.json
#   sbatch --dependency=afterok:1234 jobs/slurm_evaluate.sh runs/ant-1234
#SBATCH --job-name=evaluate
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --output=%x-%j.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch evaluate "$@"
