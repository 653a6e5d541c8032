"""Arms to pull: which one pays best is the task (Duan et al. 2016, "RL^2", section 3.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from hpc_maml.envs.bandit_strategies import EPISODES, strategies, strategy_returns
from hpc_maml.envs.batched import TaskVectorEnv, check_choices

PULLS = 10  # of an episode, where nobody says otherwise
MOST_ARMS = 2**16

# What luck is drawn from, and what a pull pays with it, for an arm of mean p in [0, 1].
REWARDS = {
    "bernoulli": (np.random.Generator.random, lambda p, luck: (luck < p).astype(np.float64)),
    "gaussian": (np.random.Generator.standard_normal, lambda p, luck: p + luck),
}


class Bandit(TaskVectorEnv):
    """Pull one of the arms at every step; the task is their mean rewards, each from U[0, 1].

    An episode is as many pulls as the horizon says; there is nothing to see, the observation is 1.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "num_iterations": 100,
        "meta_batch_size": 40,
        "horizon": PULLS,
        "algorithm": {"fast_lr": 1.0},
    }

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        arms: int = 5,
        rewards: str = "bernoulli",
    ) -> None:
        """Make the batch; ValueError for a number of arms or rewards that there are not."""
        if not isinstance(arms, int) or not 2 <= arms <= MOST_ARMS:
            raise ValueError(f"a bandit has 2 to {MOST_ARMS} arms, not {arms!r}")
        if rewards not in list(REWARDS):  # it may be of any type
            raise ValueError(f"rewards are {' or '.join(REWARDS)}, not {rewards!r}")
        self.task_dim = arms
        self.rewards = rewards
        self._draw_luck, self._pay = REWARDS[rewards]
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon or PULLS,
            num_threads=num_threads,
            single_observation_space=Box(0.0, 1.0, (1,), np.float32),
            single_action_space=Discrete(arms),
        )
        self._episodes = np.arange(self.num_envs)
        self._luck = np.zeros((self.num_envs, self.horizon))

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n times the mean rewards of all arms, float64 ``[n, arms]``."""
        return rng.random((n, self.task_dim))

    def best_play(self, tasks: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the mean returns of strategies that know how arms are drawn, of Bernoulli arms."""
        if self.rewards != "bernoulli":
            return {}
        return {
            name: strategy_returns(tasks, self.horizon, EPISODES, index, rng)
            for name, index in strategies(self.horizon).items()
        }

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        return self._draw_luck(rng, (self.episodes_per_task, self.horizon))

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        self._luck[chosen] = starts

    def _observations(self) -> np.ndarray:
        return np.ones((self.num_envs, 1), np.float32)

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        check_choices(actions, self.task_dim)
        luck = self._luck[self._episodes, self._steps_taken()]
        rewards = self._pay(self._tasks[self._episodes, actions], luck)
        return self._observations(), rewards, np.zeros(self.num_envs, np.bool_), {}
