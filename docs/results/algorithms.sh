#!/bin/sh
# The runs that docs/results/algorithms.md shows: ProMP beside MAML-TRPO, and RL^2.
#
#   sh docs/results/algorithms.sh promp
#   sh docs/results/algorithms.sh rl2
#
# Run folders go to runs/algorithms. A run that is there goes on, or is done already.
set -eu
export OMP_NUM_THREADS=1
folder=runs/algorithms
# the outer step of MAML-TRPO was the published one
outer_step() { # name of the algorithm
    [ "$1" != maml_trpo ] || echo gae_lambda=1 algorithm.max_kl=0.01 algorithm.cg_iters=10 \
        algorithm.cg_memory=0 algorithm.ls_interpolate=false algorithm.cg_preconditioner=none \
        algorithm.inner_loss=reinforce
}

learn() { # name of the folder, configuration, seed, words
    name=$1 config=$2 seed=$3
    shift 3
    python -m hpc_maml --config "configs/$config.yaml" --run-dir "$folder/$name-$seed" \
        seed="$seed" archive.rollouts=none metrics.tensorboard=off "$@"
}

case $1 in
promp)
    for seed in 1 2 3; do
        for algorithm in maml_trpo promp; do
            learn "navigation-$algorithm" navigation "$seed" \
                algorithm.name=$algorithm num_iterations=40 meta_batch_size=20 $(outer_step $algorithm)
        done
    done
    for seed in 1 2 3; do
        for algorithm in maml_trpo promp; do
            learn "cheetah-dir-$algorithm" half_cheetah_dir "$seed" \
                algorithm.name=$algorithm num_iterations=60 $(outer_step $algorithm)
        done
    done
    for run in $folder/navigation-*-[123] $folder/cheetah-dir-*-[123]; do
        python -m hpc_maml evaluate "$run" --tasks 100 --updates 1
    done
    for name in navigation cheetah-dir; do
        python -m hpc_maml report $folder/$name-*-[123] -o "$folder/report-$name"
    done
    ;;
rl2)
    for seed in 1 2 3; do
        learn bandit-rl2 bandit_rl2 "$seed"
        python -m hpc_maml evaluate "$folder/bandit-rl2-$seed" --tasks 1000 --episodes 2
    done
    for seed in 1 2 3; do
        learn tabular-mdp-rl2 tabular_mdp_rl2 "$seed"
        python -m hpc_maml evaluate "$folder/tabular-mdp-rl2-$seed" --tasks 1000 --episodes 2
    done
    ;;
esac
