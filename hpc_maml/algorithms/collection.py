"""The collection of all phases of some tasks, as an observer does it."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.rollout import Play, roll_out
from hpc_maml.sampling.trajectory import trajectories


def collect_phase(
    policy: Policy,
    env: TaskVectorEnv,
    play: Play,
    phase: int,
    *,
    keys: Sequence[tuple[int, int, int]],
    evaluation: bool,
    dtype: np.dtype,
    mean_actions: bool = False,
    give_way: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the batches ``[G]`` of a phase, and the memory that it leaves in a recurrent policy.

    The advantages are not yet there. With ``mean_actions`` the policy does not sample. Keys and
    ``give_way`` are those of ``collect``.
    """
    purposes = (
        (Purpose.EVALUATION_ACTIONS, Purpose.EVALUATION_ENVIRONMENT)
        if evaluation
        else (Purpose.ACTIONS, Purpose.ENVIRONMENT)
    )
    actions, environment = (
        [stream(seed, purpose, iteration, index, phase) for seed, iteration, index in keys]
        for purpose in purposes
    )
    batches = np.zeros(len(keys), dtype)
    memory = roll_out(
        policy, env, play, actions, environment, batches, give_way, mean_actions=mean_actions
    )
    for batch, (_, iteration, index) in zip(batches, keys, strict=True):
        batch["iteration"], batch["task"], batch["phase"] = iteration, index, phase
    return batches, memory


def collect(
    algorithm: Algorithm,
    env: TaskVectorEnv,
    played: State,
    tasks: np.ndarray,
    *,
    keys: Sequence[tuple[int, int, int]],
    evaluation: bool,
    dtype: np.dtype,
    give_way: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, Play]]:
    """Yield batches ``[G]`` for each phase of G tasks, and what they were played with.

    ``tasks`` are ``[G, task_dim]``; each has a key (seed, iteration, index of the task). A task
    gets the same bits beside any others. ``give_way`` is called again and again meanwhile.
    """
    env.set_tasks(tasks)
    play = algorithm.begin(played, len(tasks))
    phases = algorithm.num_phases(evaluation)
    for phase in range(phases):
        started = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            batches, memory = collect_phase(
                algorithm.policy,
                env,
                play,
                phase,
                keys=keys,
                evaluation=evaluation,
                dtype=dtype,
                mean_actions=evaluation
                and phase + 1 == phases
                and algorithm.sampling.last_test_actions == "mean",
                give_way=give_way,
            )
            for batch in batches:
                batch["advantages"][:] = algorithm.advantages(trajectories(batch))
                give_way()
            behaviour, play = play, play._replace(memory=memory)
            if phase + 1 < phases:
                play = algorithm.adapt(
                    played, play, trajectories(batches), phase, evaluation=evaluation
                )
        batches["observer_seconds"] = (time.perf_counter() - started) / len(tasks)
        yield batches, behaviour
