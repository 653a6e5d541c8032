#!/bin/bash
# Meta-train on ant, under PBS (OpenPBS, PBS Pro, Torque with other words for -l).
#
#   qsub jobs/pbs_ant.sh
#   qsub -v WORDS="--config configs/ant_dir.yaml seed=3" jobs/pbs_ant.sh
#
# PBS warns a job of its end only seconds before, if at all, so the run watches the time itself
# (--time-limit) and stops with a checkpoint. The same words with --run-dir runs/ant-NUMBER go on.
#PBS -N ant
#PBS -l select=1:ncpus=16:mpiprocs=16:mem=16gb
#PBS -l walltime=08:00:00
#PBS -j oe
#PBS -r y
#PBS -V
##PBS -A account
##PBS -q queue

cd "${PBS_O_WORKDIR:?}" || exit 2
config=configs/ant_vel.yaml
run_dir=runs/ant-${PBS_JOBID%%.*}

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" --time-limit 7.8h ${WORDS:-}
