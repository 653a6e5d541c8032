"""Run ``python -m hpc_maml`` with a fault: python fault.py RANK MODULE FUNCTION COUNT ACTION ...

On the rank, the COUNT-th call of the function (dots allowed, for a method) raises an exception, or
kills the process, or hangs it; everything else is the real program.
"""

import importlib
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI


def main() -> None:
    rank, module, function, count, action = sys.argv[1:6]
    sys.argv[1:] = sys.argv[6:]
    if MPI.COMM_WORLD.rank == int(rank):
        *path, name = function.split(".")
        try:
            owner = importlib.import_module(module)
            for part in path:
                owner = getattr(owner, part)
            original = getattr(owner, name)
        except (ImportError, AttributeError) as error:  # a test that is out of date
            print(f"no place for the fault: {error}", file=sys.stderr, flush=True)
            MPI.COMM_WORLD.Abort(2)
        calls = 0

        def faulty(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == int(count):
                Path("fault_at").write_text(repr(time.time()))
                if action == "raise":
                    raise RuntimeError("planted fault")
                if action == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                while True:
                    time.sleep(0.1)
            return original(*args, **kwargs)

        setattr(owner, name, faulty)
    runpy.run_module("hpc_maml", run_name="__main__", alter_sys=True)


main()
