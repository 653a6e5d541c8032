"""The base of all environments: the episodes of one or several tasks, stepped side by side."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


def lineage_row(lineages: Mapping[str, Any], lineage: str) -> Any:
    """Return the row of a lineage table; ValueError lists the lineages there are."""
    if lineage not in list(lineages):  # which may be of any type
        raise ValueError(f"there is no lineage {lineage!r}; there is {', '.join(lineages)}")
    return lineages[lineage]


def defaults_of_lineages(lineages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ``TaskVectorEnv.lineage_defaults`` of a table whose rows have them."""
    return {name: {"horizon": row.horizon, **row.training} for name, row in lineages.items()}


def check_choices(actions: np.ndarray, count: int) -> None:
    """Raise ValueError for an action that is not one of the integers below ``count``."""
    valid = np.issubdtype(actions.dtype, np.integer) and actions.min() >= 0
    if not valid or actions.max() >= count:
        raise ValueError(f"actions must be integers from 0 to {count - 1}")


# Draw episodes of a task ``[task_dim]`` into axes of matplotlib. A phase has a name, such as "after
# adaptation", and the observations ``[T, obs_dim]`` of some episodes.
Picture = Callable[[Any, np.ndarray, Mapping[str, Sequence[np.ndarray]]], None]

# Yield an image, uint8 ``[height, width, 3]``, of each of the states ``[n, ...]`` that
# ``visible_states`` returned.
Film = Callable[[np.ndarray, int, int], Iterator[np.ndarray]]


class TaskVectorEnv(VectorEnv, ABC):
    """B episodes of each of G tasks; the episodes of task g are rows g*B to (g+1)*B.

    An episode that ended rests until it is reset: its observations and rewards are 0, its flags
    False. Arrays handed out belong to the caller.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.DISABLED}
    task_dim: int
    # How it is trained where nobody says otherwise: keys of a configuration, nested as in a file.
    defaults: ClassVar[Mapping[str, Any]] = {}
    lineage_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by env.kwargs.lineage
    # Whether ``infos["success"]`` of a step says which episodes succeeded, bool ``[num_envs]``.
    reports_success: bool = False
    # Names of the kinds of tasks, where there are several: a task begins with an index into them.
    classes: tuple[str, ...] = ()
    training_classes: tuple[str, ...] = ()  # those of ``sample_tasks``, if they are several
    # How episodes can be shown, methods of those environments where there is something to see.
    picture: Picture | None = None
    film: Film | None = None  # with ``visible_states`` and ``seconds_per_step``
    episodes_apart: bool = True  # some episodes of a task can be played here, others elsewhere
    bytes_per_env: float = 0.0  # memory of each episode's simulation, where it is worth counting

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int,
        num_threads: int,
        single_observation_space: Space,
        single_action_space: Space,
    ) -> None:
        """Set the sizes; physics, where there is any, runs on ``num_threads`` threads."""
        self.num_tasks = num_tasks
        self.episodes_per_task = episodes_per_task
        self.num_envs = num_tasks * episodes_per_task
        self.horizon = horizon
        self.num_threads = num_threads
        self.single_observation_space = single_observation_space
        self.single_action_space = single_action_space
        self.policy_action_space = single_action_space  # as a policy's caller hands actions on
        self.observation_space = batch_space(single_observation_space, self.num_envs)
        self.action_space = batch_space(single_action_space, self.num_envs)
        self._tasks: np.ndarray | None = None  # [num_envs, task_dim]
        self._tasks_were_set = False
        self._was_reset = False
        self._clock = 0  # steps since the environments were made
        self._horizon_at = np.zeros(self.num_envs, np.int64)  # on that clock
        self._active = np.zeros(self.num_envs, np.bool_)
        self._all_active = False

    @property
    def has_tasks(self) -> bool:
        """Whether tasks were set; otherwise every whole reset draws others."""
        return self._tasks is not None and self._tasks_were_set

    @abstractmethod
    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks, float64 ``[n, task_dim]``."""

    def sample_test_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks of a meta-test, float64 ``[n, task_dim]``: here as those of training."""
        return self.sample_tasks(rng, n)

    def check_numbers(self, training: int, test: int) -> None:
        """Raise ValueError for numbers of tasks, of an iteration and of a meta-test, that no draw
        can have.
        """

    def best_play(self, tasks: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the optimal returns ``[n]`` of an episode on tasks, by name, where known."""
        return {}

    def task_words(self, task: np.ndarray) -> str:
        """Return a task ``[task_dim]`` in words, with units, as pictures and films show it."""
        return f"task {', '.join(f'{value:.2f}' for value in task)}"

    @abstractmethod
    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the initial states of one task's episodes, ``[B, state_dim]``."""

    @abstractmethod
    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        """Put the chosen episodes, bool ``[num_envs]``, into their initial states."""

    @abstractmethod
    def _observations(self) -> np.ndarray:
        """Return new observations of all episodes, float32 ``[num_envs, obs_dim]``."""

    @abstractmethod
    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance the active episodes (None: all); return observations, rewards, terminated, infos.

        What is returned for a resting episode is overwritten. Raises ValueError for actions that
        are NaN or no choice.
        """

    def _truncated(self) -> np.ndarray:
        """Return which episodes end now without a terminal state, bool ``[num_envs]``."""
        return self._clock >= self._horizon_at

    def _steps_taken(self) -> np.ndarray:
        """Return the steps that each running episode has taken, int64 ``[num_envs]``."""
        return (self._clock + self.horizon - self._horizon_at).clip(max=self.horizon - 1)

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, task_dim]``; ValueError for any other shape."""
        tasks = np.asarray(tasks, np.float64)
        if tasks.shape != (self.num_tasks, self.task_dim):
            raise ValueError(
                f"tasks must have the shape {(self.num_tasks, self.task_dim)}, not {tasks.shape}"
            )
        self._tasks = np.repeat(tasks, self.episodes_per_task, axis=0)
        self._tasks_were_set = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes; all draws for task g come from ``options["generators"][g]``.

        Without generators they are spawned from the seed. ``options["reset_mask"]``, bool
        [num_envs], resets only some episodes. Tasks that nobody set are drawn anew with every
        whole reset. Raises ValueError for generators or a mask of the wrong shape.
        """
        super().reset(seed=seed)
        options = options or {}
        generators = options.get("generators")
        if generators is None:
            generators = self.np_random.spawn(self.num_tasks)
        if len(generators) != self.num_tasks:
            raise ValueError(
                f"generators must be one for each of {self.num_tasks} tasks, not {len(generators)}"
            )
        chosen = np.ones(self.num_envs, np.bool_)
        if "reset_mask" in options:
            chosen = np.asarray(options["reset_mask"])
            if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_:
                raise ValueError(
                    f"reset_mask must be {self.num_envs} booleans, not {chosen.dtype} "
                    f"of shape {chosen.shape}"
                )
        if self._tasks is None or (chosen.all() and not self._tasks_were_set):
            self.set_tasks(np.concatenate([self.sample_tasks(rng, 1) for rng in generators]))
            self._tasks_were_set = False
        # Every task draws for all its episodes, so that a mask leaves the others' draws alone.
        starts = np.concatenate([self._draw_starts(rng) for rng in generators])
        self._start(chosen, starts[chosen])
        self._was_reset = True
        self._horizon_at[chosen] = self._clock + self.horizon
        self._active = self._active | chosen
        self._all_active = bool(self._active.all())
        observations = self._observations()
        observations[~self._active] = 0
        return observations, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all running episodes with actions ``[num_envs, ...]``.

        Returns observations float32 ``[num_envs, obs_dim]``, rewards float64 and terminated and
        truncated bool ``[num_envs]``, and infos. Raises ValueError for actions of another shape,
        NaN or no choice, ResetNeeded before the first reset.
        """
        if not self._was_reset:
            raise ResetNeeded("reset the environments before the first step")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"actions must have the shape {self.action_space.shape}, not {actions.shape}"
            )
        active = self._active
        observations, rewards, terminated, infos = self._advance(
            actions, None if self._all_active else active
        )
        self._clock += 1
        truncated = self._truncated()
        if not self._all_active:
            observations[~active] = 0
            rewards[~active] = 0
            terminated &= active
            truncated &= active
        ended = terminated | truncated
        if np.count_nonzero(ended):  # half the time of ended.any()
            truncated &= ~terminated
            self._active = active & ~ended
            self._all_active = False
        return observations, rewards, terminated, truncated, infos
