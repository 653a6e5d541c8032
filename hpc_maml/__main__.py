"""``python -m hpc_maml``: an exception on any rank ends the job on all of them."""

import os
import signal
import sys

# A warning that comes before the job listens (stopping.py) must wait, not kill.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

# Before NumPy and torch are loaded: their thread pools would take every core of the node on every
# rank, and with more than one thread OpenBLAS gives other bits. More cores are for more ranks.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

try:
    import mpi4py

    mpi4py.rc.thread_level = "serialized"  # one thread talks; some MPIs are slower with more
    from mpi4py import MPI  # noqa: F401
except (ImportError, RuntimeError) as error:
    if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0":
        print(
            f"hpc_maml: no MPI library can be loaded ({' '.join(str(error).split())}): load the "
            "site's MPI module, or install one with pip install 'hpc_maml[mpich]'.",
            file=sys.stderr,
        )
    sys.exit(2)

try:
    from hpc_maml.cli import main

    exit_code = main(sys.argv[1:])
except SystemExit:
    raise
except BaseException as error:
    from hpc_maml.mpi.runtime import abort

    abort(error)
sys.exit(exit_code)
