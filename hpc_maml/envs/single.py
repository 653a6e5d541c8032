"""A batched environment as a single Gymnasium environment."""

from typing import Any, ClassVar

import gymnasium
import numpy as np

from hpc_maml.envs import make


class SingleTaskEnv(gymnasium.Env):
    """One episode of one task at a time; a task that nobody set is drawn at each reset."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, name: str, **kwargs) -> None:
        """Make the environment of that name; keywords as for ``hpc_maml.envs.make``."""
        self._envs = make(name, num_tasks=1, episodes_per_task=1, **kwargs)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks, float64 ``[n, task_dim]``."""
        return self._envs.sample_tasks(rng, n)

    def set_task(self, task: np.ndarray) -> None:
        """Set the task, ``[task_dim]``, of this and all later episodes."""
        self._envs.set_tasks(np.asarray(task)[None])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, of the task ``options["task"]`` if there is one."""
        super().reset(seed=seed)
        if options and "task" in options:
            self.set_task(options["task"])
        observations, infos = self._envs.reset(options={"generators": [self.np_random]})
        return observations[0], infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step with an action ``[action_dim]``."""
        observations, rewards, terminated, truncated, infos = self._envs.step(
            np.asarray(action)[None]
        )
        return (
            observations[0],
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {name: values[0] for name, values in infos.items()},
        )
