#!/bin/bash
# Meta-train with agents on GPUs: a heterogeneous job of one GPU node for the principal and one agent
# per GPU, and CPU nodes for the observers.
#
#   sbatch jobs/slurm_gpu.sh
#   sbatch jobs/slurm_gpu.sh --config configs/ant_dir.yaml seed=3
#   sbatch --partition=gpu : --partition=cpu --ntasks=64 jobs/slurm_gpu.sh     # part : part
#
# Agents go to the nodes with GPUs. The first part has one task more than agents, for the principal.
#SBATCH --job-name=gpu
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --nodes=1 --ntasks=3 --cpus-per-task=1 --gres=gpu:2
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G
#SBATCH hetjob
#SBATCH --ntasks=32 --cpus-per-task=1 --time=04:00:00
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=1G

config=configs/ant_vel.yaml
run_dir=runs/gpu-$SLURM_JOB_ID

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" "$@"
