"""The collection of all phases of some tasks, as an observer does it."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.rollout import Play, roll_out
from hpc_maml.sampling.trajectory import trajectories


def collect(
    algorithm: Algorithm,
    env: TaskVectorEnv,
    played: State,
    tasks: np.ndarray,
    *,
    keys: Sequence[tuple[int, int, int]],
    evaluation: bool,
    dtype: np.dtype,
) -> Iterator[tuple[np.ndarray, Play]]:
    """Yield batches ``[G]`` for each phase of G tasks, and what they were played with.

    ``tasks`` are ``[G, task_dim]``; each has a key (seed, iteration, index of the task). A task
    gets the same bits beside any others.
    """
    purposes = (
        (Purpose.EVALUATION_ACTIONS, Purpose.EVALUATION_ENVIRONMENT)
        if evaluation
        else (Purpose.ACTIONS, Purpose.ENVIRONMENT)
    )
    env.set_tasks(tasks)
    play = algorithm.begin(played, len(tasks))
    phases = algorithm.num_phases(evaluation)
    for phase in range(phases):
        started = time.perf_counter()
        batches = np.zeros(len(tasks), dtype)
        actions, environment = (
            [stream(seed, purpose, iteration, index, phase) for seed, iteration, index in keys]
            for purpose in purposes
        )
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            memory = roll_out(
                algorithm.policy,
                env,
                play,
                actions,
                environment,
                batches,
                mean_actions=evaluation
                and phase + 1 == phases
                and algorithm.sampling.last_test_actions == "mean",
            )
            for batch, (_, iteration, index) in zip(batches, keys, strict=True):
                batch["iteration"], batch["task"], batch["phase"] = iteration, index, phase
                batch["advantages"][:] = algorithm.advantages(trajectories(batch))
            behaviour, play = play, play._replace(memory=memory)
            if phase + 1 < phases:
                play = algorithm.adapt(
                    played, play, trajectories(batches), phase, evaluation=evaluation
                )
        batches["observer_seconds"] = (time.perf_counter() - started) / len(tasks)
        yield batches, behaviour
