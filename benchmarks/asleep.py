"""Work that sleeps: so a real run may have many more ranks than there are cores.

It is compared with a simulation of the same work, which shows whether balance, messages, waits and
sums on many ranks come out as they do.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.iteration import ITERATIONS, WARM_UP, medians
from benchmarks.simulation import Costs, Machine, Sum, simulate
from benchmarks.virtual_time import Line
from hpc_maml.algorithms.algorithm import Algorithm, AlgorithmSettings, State, Update
from hpc_maml.envs.navigation import Navigation
from hpc_maml.sampling.trajectory import Trajectories

STEPS = 10  # of an episode
STEP = Line(0.02, 0.05)  # seconds, by tasks side by side
DIGEST = 0.1  # seconds of a task
SUMS, WIDTH, WORK = 12, 5708, 0.05  # sums of a step, numbers in each, seconds of a task for each
TASKS = 40
# number of ranks, layout, number of agents
JOBS = ((16, "team", 1), (16, "team", 3), (16, "split", 4), (40, "team", 1))


class Steps(Navigation):
    """Navigation that sleeps in every step."""

    def step(self, actions: np.ndarray) -> Any:
        """Sleep for the episodes that are played, then step."""
        time.sleep(STEP(self.num_tasks * self._active.mean()))
        return super().step(actions)


class Sums(Algorithm):
    """An algorithm that sleeps before it adds up nothing, and learns nothing."""

    Settings = AlgorithmSettings

    def num_phases(self, evaluation: bool) -> int:
        """Return the number of phases."""
        return 2

    def digest(self, state: State, phases: Sequence[Trajectories]) -> int:
        """Return the number of tasks."""
        time.sleep(DIGEST)
        return 1

    def update(
        self,
        state: State,
        digests: Iterable[int],
        num_tasks: int,
        reduce: Callable[[np.ndarray], np.ndarray],
        rng: np.random.Generator,
    ) -> Update:
        """Take an outer step that leaves the state."""
        mine = sum(digests)
        for _ in range(SUMS):
            time.sleep(WORK * mine)
            reduce(np.zeros((0, WIDTH), np.float32))
        return Update(state)


def name(ranks: int, layout: str, agents: int) -> str:
    """Return what a job is called."""
    return f"asleep, np {ranks} {layout} agents={agents}"


def ran(ranks: int, layout: str, agents: int) -> float:
    """Return the seconds of an iteration of a real job."""
    settings = [
        *("env.name=benchmarks.asleep:Steps", "algorithm.name=benchmarks.asleep:Sums"),
        *(f"meta_batch_size={TASKS}", f"horizon={STEPS}", "fast_batch_size=2"),
        *(f"topology.layout={layout}", f"topology.agents={agents}", "archive.rollouts=none"),
    ]
    return medians(ranks, settings)["iteration_seconds"]


def simulated(measured: Costs, cores: int, ranks: int, layout: str, agents: int) -> float:
    """Return the seconds of a simulated one, with what messages and files were measured to take."""
    costs = replace(
        measured,
        steps=STEPS,
        phase=Line(STEPS * STEP.fixed, STEPS * STEP.each),
        spread=0.0,
        digest=DIGEST,
        sums=(Sum(WIDTH, Line(0.0, WORK)),) * SUMS,
        after=Line(0.0, 0.0),
        batch_bytes=1000,
    )
    machine = Machine(ranks, cores, ranks)
    iterations = WARM_UP + ITERATIONS
    return simulate(
        costs, machine, TASKS, layout=layout, agents=agents, iterations=iterations
    ).seconds
