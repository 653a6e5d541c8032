"""Train many runs in one job, one after the other: python many_runs.py PLAN.

The plan is a JSON list of [ranks, run folder, words]; each run has the first ranks of the job.
"""

import json
import sys
from functools import partial
from pathlib import Path

from mpi4py import MPI

from hpc_maml.config import load_config
from hpc_maml.mpi.runtime import abort
from hpc_maml.mpi.waiting import wait
from hpc_maml.run.training import Training
from hpc_maml.stopping import StopSignal

LIMIT = 120.0  # seconds


def main() -> None:
    world = MPI.COMM_WORLD
    for ranks, folder, words in json.loads(sys.argv[1]):
        part = world.Split(0 if world.rank < ranks else MPI.UNDEFINED)
        if part != MPI.COMM_NULL:
            load = partial(load_config, None, [*words, f"mpi.wait_limit={LIMIT}", "device=cpu"])
            assert Training(part, load, Path(folder), StopSignal()).train() == 0
            part.Free()
        wait(world.Ibarrier(), "the ranks that train", LIMIT)


try:
    main()
except BaseException as error:
    abort(error)
