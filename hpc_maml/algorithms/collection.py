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
    chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the batches ``[G]`` of a phase, and the memory that it leaves in a recurrent policy.

    The advantages are not yet there. With ``mean_actions`` the policy does not sample. Keys and
    what follows are those of ``Collection``.
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
        *(policy, env, play, actions, environment, batches, give_way),
        mean_actions=mean_actions,
        chosen=chosen,
    )
    for batch, (_, iteration, index) in zip(batches, keys, strict=True):
        batch["iteration"], batch["task"], batch["phase"] = iteration, index, phase
    return batches, memory


class Collection:
    """All phases of G tasks, one after the other: ``roll_out``, then ``learn``, as often."""

    def __init__(
        self,
        algorithm: Algorithm,
        env: TaskVectorEnv,
        played: State,
        tasks: np.ndarray,
        *,
        keys: Sequence[tuple[int, int, int]],
        evaluation: bool,
        dtype: np.dtype,
        give_way: Callable[[], None] = lambda: None,
        chosen: np.ndarray | None = None,
    ) -> None:
        """Begin; ``tasks`` are ``[G, task_dim]``.

        Each has a key (seed, iteration, index of the task). A task gets the same bits beside any
        others. ``give_way`` is called again and again meanwhile. Of each task only the ``chosen``
        episodes, bool ``[G, B]``, are played.
        """
        env.set_tasks(tasks)
        self.algorithm = algorithm
        self.env = env
        self.played = played
        self.keys = keys
        self.evaluation = evaluation
        self.dtype = dtype
        self.give_way = give_way
        self.chosen = chosen
        self.phases = algorithm.num_phases(evaluation)
        self.phase = 0  # the next one
        self.play = algorithm.begin(played, len(tasks))  # what it is played with

    def roll_out(self) -> np.ndarray:
        """Return the batches ``[G]`` of the next phase, without advantages."""
        began = time.perf_counter()
        last = self.phase + 1 == self.phases
        test_actions = self.algorithm.sampling.last_test_actions
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            batches, memory = collect_phase(
                self.algorithm.policy,
                self.env,
                self.play,
                self.phase,
                keys=self.keys,
                evaluation=self.evaluation,
                dtype=self.dtype,
                mean_actions=self.evaluation and last and test_actions == "mean",
                give_way=self.give_way,
                chosen=self.chosen,
            )
        self.play = self.play._replace(memory=memory)
        batches["observer_seconds"] = (time.perf_counter() - began) / len(batches)
        return batches

    def learn(self, batches: np.ndarray, own: Sequence[int]) -> None:
        """Fill in the advantages of the phase, and adapt to it: of ``own``, some of the G tasks."""
        began = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):
            for task in own:
                batches[task]["advantages"][:] = self.algorithm.advantages(
                    trajectories(batches[task])
                )
                self.give_way()
            if own and self.phase + 1 < self.phases:
                self.play = self._adapted(batches, own)
        self.phase += 1
        batches["observer_seconds"] += (time.perf_counter() - began) / len(batches)

    def _adapted(self, batches: np.ndarray, own: Sequence[int]) -> Play:
        """Return what the next phase is played with; only that of ``own`` tasks is new."""
        play, some = self.play, list(own)
        if len(some) == len(batches):
            return self._adapt(play, batches)
        kept = None if play.memory is None else play.memory[some]
        new = self._adapt(
            play._replace(parameters=play.parameters[some], memory=kept), batches[some]
        )
        parameters, memory = play.parameters.copy(), None
        parameters[some] = new.parameters
        if play.memory is not None:
            memory = play.memory.copy()
            memory[some] = new.memory
        return new._replace(parameters=parameters, memory=memory)

    def _adapt(self, play: Play, batches: np.ndarray) -> Play:
        return self.algorithm.adapt(
            self.played, play, trajectories(batches), self.phase, evaluation=self.evaluation
        )


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

    Arguments are those of ``Collection``.
    """
    collection = Collection(
        algorithm, env, played, tasks, keys=keys, evaluation=evaluation, dtype=dtype
    )
    for _ in range(collection.phases):
        behaviour = collection.play
        batches = collection.roll_out()
        collection.learn(batches, range(len(tasks)))
        yield batches, behaviour
