"""How the memory of an agent grows: with its trajectory batches, and with the iterations.

    mpirun -np 2 python -m benchmarks.memory [key=value ...] [--tasks 40 160 ...] [--iterations 200]

First 200 iterations of 2 tasks of half_cheetah_vel (20 episodes x 100 steps), with what is resident
along the way, then one iteration of each number of tasks, with the most that was resident so far.
Rank 0 is an agent and the principal, which keeps the metrics of all iterations. One product of the
conjugate gradient instead of ten: what a task needs does not depend on it. The batches are those of
all agents together.
"""

import argparse
import re
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpc_maml.config import Config, load_config
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.parts import make_env
from hpc_maml.roles.outer_step import OuterStep
from hpc_maml.run.job import prepare
from hpc_maml.run.training import Training
from hpc_maml.stopping import StopSignal

BASE = (
    *("env.name=half_cheetah_vel", "fast_batch_size=20", "horizon=100", "algorithm.cg_iters=1"),
    *("topology.layout=split", "archive.rollouts=none", "metrics.tensorboard=off", "device=cpu"),
)
MB = 1e6


def resident(which: str) -> float:
    """Return the MB of this process that are resident now (VmRSS), or were at most (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) * 1024 / MB


def batches(config: Config) -> float:
    """Return the MB of the trajectory batches of an iteration."""
    job = prepare(config, make_env(config, episodes=1))
    return job.dtype.itemsize * config.meta_batch_size * job.algorithm.num_phases(False) / MB


def measure(options: argparse.Namespace, world: MPI.Intracomm, folder: Path) -> list[str]:
    """Train on all ranks; return what this rank found, a line for each, if it is an agent."""
    after_steps: list[float] = []
    take = OuterStep.take

    def observed(*args: Any, **words: Any) -> Any:
        step = take(*args, **words)
        after_steps.append(resident("VmRSS"))
        return step

    def run(tasks: int, iterations: int) -> float:
        sizes = [f"meta_batch_size={tasks}", f"num_iterations={iterations}"]
        config = load_config(None, [*BASE, *options.settings, *sizes])
        run_dir = folder / f"{tasks}-{iterations}"
        Training(world, lambda: config, run_dir, StopSignal()).train()
        return batches(config)

    OuterStep.take = observed
    of_few = run(2, options.iterations)
    numbers = sorted(set(options.tasks))
    points = [(run(tasks, 1), resident("VmHWM")) for tasks in numbers]
    if not after_steps:  # no agent
        return []
    marks = sorted({max(1, options.iterations // part) for part in (10, 2, 1)})
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
    return [
        f"trajectory batches of 2 tasks: {of_few:.1f} MB",
        *(f"after iteration {done}: {after_steps[done - 1]:.1f} MB" for done in marks),
        *(
            f"{tasks} tasks: batches {size:.0f} MB, at most {most:.0f} MB"
            for tasks, (size, most) in zip(numbers, points, strict=True)
        ),
        f"for each MB of batches more: {', '.join(f'{slope:.2f}' for slope in slopes)} MB",
    ]


def main() -> int:
    """Print what every agent found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[40, 160, 320, 480])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    world = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory() as own:
        try:
            lines = measure(options, world, from_rank_0(world, lambda: Path(own)))
        except InputError as error:  # on every rank
            if world.rank == 0:
                print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
    for rank, found in enumerate(world.gather(lines) or []):
        if found:
            print(f"rank {rank}:", *found, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
