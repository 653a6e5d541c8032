#!/bin/bash
# Meta-train on Meta-World, then meta-test by its protocol. From the checkout, with the Python
# environment active (docs/metaworld.md):
#
#   sbatch jobs/slurm_metaworld.sh
#   sbatch --ntasks=64 jobs/slurm_metaworld.sh --config configs/metaworld_ml45.yaml seed=3
#   REQUEUE=yes sbatch --time=01:00:00 jobs/slurm_metaworld.sh     # in pieces of an hour
#
# sbatch options stand before the script, those of python -m hpc_maml after it.
#SBATCH --job-name=metaworld
#SBATCH --ntasks=16
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
##SBATCH --account=account
##SBATCH --partition=partition
##SBATCH --mem-per-cpu=2G

# --signal: a warning 300 s before the end; more than an iteration takes.
# A meta-test takes as long as ten iterations: at the beginning and after every fiftieth, see in
# python -m hpc_maml config --config configs/metaworld_ml10.yaml what evaluation.* is.
config=configs/metaworld_ml10.yaml
run_dir=runs/metaworld-$SLURM_JOB_ID

. jobs/launch.sh || exit 2 # found from the checkout only
launch train --config "$config" --run-dir "$run_dir" evaluation.every=50 "$@"
