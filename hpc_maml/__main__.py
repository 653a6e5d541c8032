"""``python -m hpc_maml``: an exception on any rank ends the job on all of them."""

import os
import sys

# Before NumPy is loaded: its thread pool would take every core of the node, on every rank.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Idle threads of torch's pool sleep: spinning ones slow a shared machine down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from hpc_maml.cli import main

    exit_code = main(sys.argv[1:])
except SystemExit:
    raise
except BaseException as error:
    from hpc_maml.mpi.runtime import abort

    abort(error)
sys.exit(exit_code)
