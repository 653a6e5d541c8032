# What the job scripts share: pick a launcher that works, run the program on every task of the job,
# pass warnings on, and queue the job again where asked. Read by them, not started by itself.
#
#   LAUNCHER   command that starts the ranks, such as "srun --mpi=cray_shasta"; found if not given
#   REQUEUE    yes: when Slurm warns of the time limit (--signal), queue the job again to go on

. jobs/environment.sh

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05 srun does not take it over
# Open MPI's mpirun would bind a rank to one core, however many --cpus-per-task it has.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none

# find_launcher COMMAND...: set launcher to the first that makes one world of all tasks. Which one
# does depends on the MPI library and on Slurm, whose srun --mpi=list names even what it cannot load.
find_launcher() {
    local world='import sys; from mpi4py import MPI; sys.exit(MPI.COMM_WORLD.size != int(sys.argv[1]))'
    local said=""
    # What is wrong without any launcher is not the fault of one.
    if ! said=$(python -c 'import hpc_maml, mpi4py' 2>&1); then
        printf '%s\nThe job cannot begin: no python that has hpc_maml and mpi4py; see jobs/environment.sh.\n' \
            "$said" >&2
        exit 2
    fi
    for launcher in "$@"; do
        said=$(timeout 120 $launcher python -c "$world" "$tasks" 2>&1 </dev/null) && return
    done
    printf 'No launcher makes one world of the %s tasks of this job: the wrong one starts %s worlds of
1 rank. Tried: %s
The last one said:
%s
Load the MPI module that mpi4py uses (python -m mpi4py --mpi-lib-version), or name its launcher:
LAUNCHER="srun --mpi=TYPE" sbatch ..., with a TYPE of srun --mpi=list.\n' \
        "$tasks" "$tasks" "$(printf '%s; ' "$@")" \
        "$(printf '%s' "${said:-(nothing: its worlds have another size)}" | tail -n 20)" >&2
    exit 2
}

# launch WORDS...: run python -m hpc_maml WORDS on every task of the job; ends the script.
launch() {
    local part groups="" tasks pid="" warned=no ended=no code=75 job
    job=${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-}}}
    trap 'warned=yes; [ -z "$pid" ] || kill -USR1 "$pid"' USR1 # ends the iteration, with checkpoint
    trap 'ended=yes; [ -z "$pid" ] || kill -TERM "$pid"' TERM
    if [ -n "${SLURM_HET_SIZE:-}" ]; then # one world of all parts of a heterogeneous job
        groups="--het-group=0-$((SLURM_HET_SIZE - 1))" tasks=0
        for ((part = 0; part < SLURM_HET_SIZE; part++)); do
            tasks=$((tasks + $(printenv "SLURM_NTASKS_HET_GROUP_$part")))
        done
    elif [ -n "${PBS_NODEFILE:-}" ]; then # a line for each process
        tasks=$(wc -l <"$PBS_NODEFILE")
    else
        tasks=${SLURM_NTASKS:-${LSB_DJOB_NUMPROC:?this is no job of Slurm, PBS or LSF}}
    fi
    if [ -n "${LAUNCHER:-}" ]; then
        find_launcher "$LAUNCHER"
    elif [ -n "${SLURM_JOB_ID:-}" ]; then
        find_launcher "srun $groups --mpi=pmix" "srun $groups --mpi=pmi2" "mpirun -np $tasks"
    else
        find_launcher "mpirun -np $tasks" "mpiexec -n $tasks"
    fi
    if [ "$warned$ended" = nono ]; then
        echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $launcher"
        $launcher python -m hpc_maml "$@" </dev/null &
        pid=$!
        [ "$warned" = no ] || kill -USR1 "$pid" # it came before there was a pid
        [ "$ended" = no ] || kill -TERM "$pid"
        while wait "$pid"; code=$?; kill -0 "$pid" 2>/dev/null; do :; done # a signal ends a wait
        # A launcher that does not listen yet is ended by the warning; so is a wait.
        [ "$warned $code" != "yes $((128 + $(kill -l USR1)))" ] || code=75
    fi
    if [ "$code" = 75 ] && [ "$warned" = yes ] && [ "${REQUEUE:-no}" = yes ]; then
        [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        scontrol requeue "$job" && sleep 60 # Slurm ends this script; of an array, this task alone
    fi
    exit "$code"
}
