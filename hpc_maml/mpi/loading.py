"""The MPI library: loaded and started once, unless another library's launcher started the job."""

import os
from collections.abc import Mapping
from typing import Any

from hpc_maml.errors import InputError

# MPI libraries that a launcher of Open MPI cannot start.
OTHERS = ("MPICH", "MVAPICH", "Intel(R) MPI")


def load_mpi() -> Any:
    """Load and start MPI; return ``mpi4py.MPI``. Raises InputError if that cannot work."""
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"  # one thread talks; some MPIs are slower with more
        mpi4py.rc.initialize = False  # not before it is known that the launcher fits
        mpi4py.rc.finalize = True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"no MPI library can be loaded ({' '.join(str(error).split())}): load the site's MPI "
            "module, or install one with pip install 'hpc_maml[mpich]'."
        ) from None
    if not MPI.Is_initialized():
        check_launcher(MPI.Get_library_version())
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    return MPI


def check_launcher(library: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if Open MPI's launcher started a process that uses another library.

    Such a process may hang or crash when it starts MPI.
    """
    started = "OMPI_COMM_WORLD_SIZE" in environment and "PMI_RANK" not in environment
    if started and any(name in library for name in OTHERS):
        name = " ".join(library.split("\n")[0].strip("\0").split())
        raise InputError(
            "The mpirun of Open MPI started this job, but mpi4py uses another MPI library "
            f"({name}): start with the mpirun of that library."
        )
