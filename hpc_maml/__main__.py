"""``python -m hpc_maml``: an exception on any rank ends the job on all of them."""

import os
import sys

# Before NumPy and torch are loaded: their thread pools would take every core of the node on every
# rank, and with more than one thread OpenBLAS gives other bits. More cores are for more ranks.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

try:
    from hpc_maml.cli import main

    exit_code = main(sys.argv[1:])
except SystemExit:
    raise
except BaseException as error:
    from hpc_maml.mpi.runtime import abort

    abort(error)
sys.exit(exit_code)
