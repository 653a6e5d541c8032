"""What mpirun, srun and their like tell a process that they start, by variables of its environment.

It is known before MPI is loaded.
"""

import os
from collections.abc import Mapping

# (number of processes, index of this one), of each kind of launcher
VARIABLES = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

# Those that make a process a member of a job begin so; but some set how Open MPI works
# (OMPI_MCA_*), and of these a few are its launcher's own.
OF_A_JOB = ("PMI", "PRTE", "OMPI_", "HYDRA", "HYDI", "MPI_LOCAL", "MPIEXEC", "PALS")
SLURM = ("SLURM",)
SETTINGS = ("OMPI_MCA_", "OMPI_ALLOW_RUN_AS_ROOT")
NO_SETTINGS = tuple(f"OMPI_MCA_{name}" for name in ("ess", "orte", "prte", "pmix"))


def launcher_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the index that the launcher gave this process, 0 without a launcher."""
    ranks = (environment[rank] for _, rank in VARIABLES if rank in environment)
    return int(next(ranks, "0"))


def has_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether mpirun or srun started this process."""
    return any(size in environment for size, _ in VARIABLES)


def alone(
    environment: Mapping[str, str] = os.environ, *, in_allocation: bool = False
) -> dict[str, str]:
    """Return the environment without what would make a process a member of this MPI job.

    It stays ``in_allocation`` if it may start an MPI job of its own on what Slurm gave to this one.
    """
    of_a_job = OF_A_JOB if in_allocation else OF_A_JOB + SLURM
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(of_a_job)
        or (name.startswith(SETTINGS) and not name.startswith(NO_SETTINGS))
    }
