"""``python -m hpc_maml``: an exception on any rank ends the job on all of them."""

import os
import sys

# Before NumPy and torch are loaded. One thread each: the pools would take every core of the node on
# every rank (agents give torch its share of the cores later). With more threads OpenBLAS, and
# without its reproducible mode MKL, would give bits that depend on where a task is computed.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
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
