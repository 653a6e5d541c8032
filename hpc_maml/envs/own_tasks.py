"""Batches of environments from elsewhere that have tasks of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from hpc_maml.envs.foreign import (
    IMAGES_PER_SECOND,
    Foreign,
    Maker,
    SingleEnvs,
    layer_with,
    make_one,
    title,
)


class OwnTasks:
    """The tasks are the environment's own: its ``sample_tasks`` and ``set_task``."""

    def _read_tasks(self, env: Any) -> None:
        """Take over the kind of tasks of an environment."""
        self._task_source = env
        self._task_shape: tuple[int, ...] | None = None
        # What one drawn task looks like; no result depends on the draw.
        sample = self._sample(np.random.Generator(np.random.Philox(0)), 1)
        self._task_shape = sample.shape[1:]
        self.task_dim = sample[0].size

    def _sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return self._checked(layer_with(self._task_source, "sample_tasks").sample_tasks(rng, n), n)

    def _checked(self, tasks: Any, n: int) -> np.ndarray:
        """Return n drawn tasks as an array; ValueError if they are no numbers of one shape."""
        try:
            tasks = np.asarray(tasks, np.float64)
        except (TypeError, ValueError):
            tasks = np.zeros(())
        shape = self._task_shape if self._task_shape is not None else tasks.shape[1:]
        if tasks.shape != (n, *shape) or not tasks.size:
            name = type(layer_with(self._task_source, "sample_tasks")).__name__
            raise ValueError(f"sample_tasks(rng, n) of {name} must return n tasks, all numbers")
        return tasks

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks, float64 ``[n, task_dim]``; ValueError if they are no numbers."""
        return self._sample(rng, n).reshape(n, -1)

    def sample_test_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks of a meta-test, by the environment's ``sample_test_tasks`` if it has one."""
        source = layer_with(self._task_source, "sample_test_tasks")
        if not hasattr(source, "sample_test_tasks"):
            return self.sample_tasks(rng, n)
        return self._checked(source.sample_test_tasks(rng, n), n).reshape(n, -1)

    def _original_task(self, task: np.ndarray) -> Any:
        """Return a task ``[task_dim]`` in the shape in which it was drawn."""
        return task.reshape(self._task_shape)[()]


class SingleEnvsWithTasks(OwnTasks, SingleEnvs):
    """Environments that have tasks of their own."""

    def __init__(self, maker: Maker, sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        """Make the batch; ValueError if tasks cannot be drawn and set."""
        count = sizes["num_tasks"] * sizes["episodes_per_task"]
        envs = [make_one(maker, **kwargs) for _ in range(count)]
        require(envs[0], title(maker), ("sample_tasks", "set_task"))
        self._read_tasks(envs[0])
        super().__init__(title(maker), envs, **sizes)

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, task_dim]``; ValueError for any other shape."""
        super().set_tasks(tasks)
        for env, task in zip(self._envs, self._tasks, strict=True):
            layer_with(env, "set_task").set_task(self._original_task(task))


class VectorEnvsWithTasks(OwnTasks, Foreign):
    """Vector environments that have tasks of their own: one for the episodes of each task."""

    episodes_apart = False  # they are reset together, by one seed

    def __init__(self, maker: Maker, sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        """Make the batch; ValueError if tasks cannot be drawn and set."""
        episodes = sizes["episodes_per_task"]
        envs = [make_one(maker, num_envs=episodes, **kwargs) for _ in range(sizes["num_tasks"])]
        first = envs[0]
        require(first, title(maker), ("sample_tasks", "set_task"))
        self._read_tasks(first)
        self._envs = envs
        super().__init__(
            title(maker), first.single_observation_space, first.single_action_space, **sizes
        )
        self.reports_success = bool(getattr(first, "reports_success", False))
        self._resets_itself = first.metadata.get("autoreset_mode") != AutoresetMode.DISABLED

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, task_dim]``; ValueError for any other shape."""
        super().set_tasks(tasks)
        for env, task in zip(self._envs, self._tasks[:: self.episodes_per_task], strict=True):
            env.set_task(self._original_task(task))

    def image(self, row: int) -> np.ndarray:
        """Return an image, uint8 ``[height, width, 3]``, of an episode."""
        task, episode = divmod(row, self.episodes_per_task)
        drawn = self._envs[task].render()
        return self._image(drawn[episode] if isinstance(drawn, Sequence | np.ndarray) else drawn)

    @property
    def seconds_per_step(self) -> float:
        """The time that a step takes in a film, where the environment says so."""
        return 1 / float(self._envs[0].metadata.get("render_fps") or IMAGES_PER_SECOND)

    def _rows(self) -> list[slice]:
        size = self.episodes_per_task
        return [slice(task * size, (task + 1) * size) for task in range(self.num_tasks)]

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        if not chosen.all():
            raise ValueError("the episodes of a vector environment are reset together")
        for env, rows in zip(self._envs, self._rows(), strict=True):
            observations, _ = env.reset(seed=int(starts[rows.start, 0]))
            self._see(env, rows, observations)
        self._cut_short[:] = False

    def _see(self, env: VectorEnv, rows: slice, observations: Any) -> None:
        self._seen[rows] = [
            self._flat(each) for each in iterate(env.observation_space, observations)
        ]

    def _step_all(
        self, actions: np.ndarray, active: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> None:
        for env, rows in zip(self._envs, self._rows(), strict=True):
            if not active[rows].any():
                continue
            taken = actions[rows].astype(env.action_space.dtype)
            observations, rewards[rows], terminated[rows], cut_short, infos = env.step(taken)
            self._cut_short[rows] = cut_short
            if self.reports_success:
                self._succeeded[rows] = success_of(infos, terminated[rows] | cut_short)
            self._see(env, rows, observations)
            ended = terminated[rows] | cut_short
            if ended.any() and not self._resets_itself:
                # An ended episode may not be stepped; what it does from here on, nobody sees.
                env.reset(options={"reset_mask": ended})


def success_of(infos: Mapping[str, Any], ended: np.ndarray) -> np.ndarray:
    """Return which of the episodes of a vector environment succeed now, bool ``[B]``.

    Where it resets itself in the same step, what concerns an episode that ``ended`` stands apart.
    """
    found = np.asarray(infos.get("success", False), np.bool_)
    last = infos.get("final_info", {}).get("success", found)
    return np.where(ended, last, found)


def require(env: Any, name: str, methods: Sequence[str]) -> None:
    """Raise ValueError for methods that an environment lacks."""
    missing = [
        method for method in methods if not callable(getattr(layer_with(env, method), method, None))
    ]
    if missing:
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}, and the configuration no "
            "env.kwargs.task_ranges"
        )
