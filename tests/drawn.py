"""Environments of one's own that draw images, for the tests of demo."""

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv


class Drawn(gymnasium.Env):
    """Its image is red by 20 for each step."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 40}
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.steps = 0

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.random((n, 1))

    def set_task(self, task: np.ndarray) -> None:
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return self.np_random.random(2, np.float32), float(action[0]), False, False, {}

    def render(self) -> np.ndarray:
        assert self.render_mode == "rgb_array"
        return np.full((30, 40, 3), (20 * self.steps, 0, 128), np.uint8)


class DrawnVector(VectorEnv):
    """The same as a vector environment."""

    def __init__(self, num_envs: int, render_mode: str | None = None) -> None:
        def make_one() -> Drawn:
            return Drawn(render_mode)

        self.inner = SyncVectorEnv([make_one] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        self.metadata = self.inner.metadata
        self.num_envs = num_envs
        for name in ("observation_space", "action_space"):
            for prefix in ("", "single_"):
                setattr(self, prefix + name, getattr(self.inner, prefix + name))

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.random((n, 1))

    def set_task(self, task: np.ndarray) -> None:
        self.task = task

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed, options=options)

    def step(self, actions):
        return self.inner.step(actions)

    def render(self):
        return self.inner.render()


class Blind(Drawn):
    """It knows no render mode."""

    def __init__(self) -> None:
        super().__init__()
