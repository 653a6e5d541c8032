"""``python -m hpc_maml``: an exception on any rank ends the job on all of them."""

import os
import sys

# Before NumPy and torch are loaded. One thread each: their pools would take every core of the node
# on every rank. With more threads OpenBLAS, and without its reproducible mode MKL, would also give
# bits that depend on where a task is computed.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

try:
    from hpc_maml.cli import main

    exit_code = main(sys.argv[1:])
except SystemExit:
    raise
except BaseException as error:
    from hpc_maml.mpi.runtime import abort

    abort(error)
sys.exit(exit_code)
