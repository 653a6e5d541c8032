"""What sending trajectories costs the observers: the share of their working time spent in MPI.

    mpirun -np 3 python -m benchmarks.shipping [key=value ...]

Trains half_cheetah_vel (40 tasks x 20 episodes x 100 steps, 6 iterations) without an archive. Every
call of an observer that sends or asks is timed, as is every collection of trajectories; waiting for
orders is neither.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpc_maml.algorithms.collection import Collection
from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.roles.observer import SplitObserver
from hpc_maml.run.training import Training
from hpc_maml.stopping import StopSignal

SIZE = ("env.name=half_cheetah_vel", "meta_batch_size=40", "fast_batch_size=20", "horizon=100")
QUIET = ("num_iterations=6", "archive.rollouts=none", "metrics.tensorboard=off")
QUIET += ("topology.layout=split",)


def timed(function: Callable, seconds: Counter[str], what: str) -> Callable:
    """Return the function, which adds what it takes to ``seconds``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[what] += time.perf_counter() - began
        return result

    return call


def main() -> int:
    """Train, and print a line for each observer on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    seconds: Counter[str] = Counter()

    for work in ("roll_out", "learn"):
        setattr(Collection, work, timed(getattr(Collection, work), seconds, "collecting"))
    run = SplitObserver.run

    def run_timed(self: SplitObserver) -> Any:
        for each in (self.team, self.sender, self.world):
            each.send = timed(each.send, seconds, "sending")
        return run(self)

    SplitObserver.run = run_timed
    with tempfile.TemporaryDirectory() as folder:
        path = from_rank_0(world, lambda: Path(folder))
        settings = [*SIZE, *QUIET, *options.settings]
        try:
            load = functools.partial(load_config, None, settings)
            code = Training(world, load, path / "run", StopSignal()).train()
        except InputError as error:  # on every rank
            if world.rank == 0:
                print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
    for rank, found in enumerate(world.gather(seconds) or []):
        if found:
            share = found["sending"] / (found["sending"] + found["collecting"])
            print(
                f"rank {rank}: collecting {found['collecting']:.2f} s, "
                f"sending {found['sending']:.4f} s, {100 * share:.2f} %"
            )
    return code


if __name__ == "__main__":
    sys.exit(main())
