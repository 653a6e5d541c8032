#!/usr/bin/env bash
# The runs behind docs/results/README.md: three seeds of each, all on one machine, into runs/.
# Started again, it goes on where it was stopped. Needs hpc_maml[report] and an MPI runtime.
set -euo pipefail
export OMP_NUM_THREADS=1
ranks=${RANKS:-2} # the results do not depend on it
# the outer step was the published one
outer_step=(gae_lambda=1 algorithm.max_kl=0.01 algorithm.cg_iters=10 algorithm.cg_memory=0)
outer_step+=(algorithm.ls_interpolate=false algorithm.cg_preconditioner=none)

learn() { # name, configuration, seed, settings
    local name=$1 config=$2 seed=$3
    shift 3
    mkdir -p runs
    [[ $* == *pretrain* ]] || set -- algorithm.inner_loss=reinforce "$@"
    mpirun -np "$ranks" python -m hpc_maml --config "configs/$config.yaml" --run-dir "runs/$name-$seed" \
        archive.rollouts=none "seed=$seed" "${outer_step[@]}" "$@" >>"runs/$name-$seed.log"
}

for seed in 1 2 3; do
    learn bandit-n10 bandit "$seed"
    learn bandit-n100 bandit "$seed" horizon=100 num_iterations=50
    learn navigation navigation_original "$seed" evaluation.every=20
    learn navigation-pretrained navigation_original "$seed" algorithm.name=pretrain
    learn navigation-quarter navigation_original "$seed" algorithm.fisher_fraction=0.25
    learn cheetah-dir half_cheetah_dir_original "$seed" num_iterations=100
    learn cheetah-dir-quarter half_cheetah_dir_original "$seed" num_iterations=100 \
        algorithm.fisher_fraction=0.25
    learn cheetah-vel half_cheetah_vel_original "$seed" num_iterations=30 algorithm.fisher_fraction=0.25
    learn cheetah-vel-exact half_cheetah_vel_original "$seed" num_iterations=30
    learn cheetah-vel-small half_cheetah_vel "$seed" num_iterations=30
    learn cheetah-vel-small-quarter half_cheetah_vel "$seed" num_iterations=30 \
        algorithm.fisher_fraction=0.25
done

for seed in 1 2 3; do
    python -m hpc_maml evaluate "runs/navigation-$seed" --episodes 40 \
        --baseline "runs/navigation-pretrained-$seed"
    for name in cheetah-dir cheetah-dir-quarter cheetah-vel cheetah-vel-exact \
        cheetah-vel-small cheetah-vel-small-quarter bandit-n10 bandit-n100; do
        python -m hpc_maml evaluate "runs/$name-$seed"
    done
done
python -m hpc_maml.reproduce.published_navigation runs/navigation-[123] runs/navigation-quarter-[123]
python -m hpc_maml.reproduce.published_navigation runs/navigation-[123] --step-sizes 0.5 0.125 0.125
for name in navigation cheetah-dir cheetah-vel bandit-n10 bandit-n100; do
    runs=("runs/$name-"[123])
    [[ $name == cheetah-dir ]] && runs+=(runs/cheetah-dir-quarter-[123])
    python -m hpc_maml report "${runs[@]}" -o "report/$name"
    cp "report/$name/learning_curves.svg" "docs/results/$name.svg"
done
