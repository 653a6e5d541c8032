#!/bin/bash
# Meta-train on ant. From the folder that holds jobs/ and configs/:
#
#   sbatch jobs/slurm_ant.sh
#   sbatch --nodes=4 --ntasks=40 jobs/slurm_ant.sh --config configs/ant_dir.yaml seed=3
#   REQUEUE=yes sbatch --time=01:00:00 jobs/slurm_ant.sh     # in pieces of an hour
#
# sbatch options stand before the script, those of python -m hpc_maml after it.
#SBATCH --job-name=ant
#SBATCH --ntasks=20
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

# --signal: a warning 120 s before the end; more than an iteration takes.
# --requeue: start again after preemption or the loss of a node. With the run folder named after the
# job, which keeps its number, it goes on after the last checkpoint.
config=configs/ant_vel.yaml
run_dir=runs/ant-$SLURM_JOB_ID

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" "$@"
