#!/bin/bash
# Meta-train on ant, under LSF.
#
#   bsub < jobs/lsf_ant.sh
#   WORDS="--config configs/ant_dir.yaml seed=3" bsub < jobs/lsf_ant.sh
#
# The run watches the time itself (--time-limit) and stops with a checkpoint. The same words with
# --run-dir runs/ant-NUMBER go on.
#BSUB -J ant
#BSUB -n 16
#BSUB -W 8:00
#BSUB -R "rusage[mem=1GB]"
#BSUB -o %J.log
#BSUB -r
##BSUB -P account
##BSUB -q queue

config=configs/ant_vel.yaml
run_dir=runs/ant-$LSB_JOBID

. jobs/launch.sh || exit 2 # found from the folder that holds jobs/ only
launch train --config "$config" --run-dir "$run_dir" --time-limit 7.8h ${WORDS:-}
