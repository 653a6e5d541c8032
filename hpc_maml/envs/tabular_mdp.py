"""A random Markov decision process of ten states (Duan et al. 2016, "RL^2", section 3.2)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from hpc_maml.envs.batched import TaskVectorEnv, check_choices

STATES, ACTIONS = 10, 5
CHOICES = STATES * ACTIONS
STEPS = 10  # of an episode, where nobody says otherwise


def transitions_and_rewards(tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return P ``[n, s, a, s']`` and mean rewards m ``[n, s, a]`` of tasks ``[n, task_dim]``."""
    transitions, rewards = np.split(tasks, [CHOICES * STATES], axis=1)
    return (
        transitions.reshape(-1, STATES, ACTIONS, STATES),
        rewards.reshape(-1, STATES, ACTIONS),
    )


class TabularMdp(TaskVectorEnv):
    """Walk through states by five actions, from state 0; the state is seen one-hot.

    The task is P and m, flat: transitions from a flat Dirichlet distribution, mean rewards from
    N(1, 1). A step pays N(m[s, a], 1).
    """

    task_dim = CHOICES * STATES + CHOICES
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_iterations": 100,
        "meta_batch_size": 40,
        "horizon": STEPS,
        "algorithm": {"fast_lr": 1.0},
    }

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
    ) -> None:
        """Make the batch."""
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon or STEPS,
            num_threads=num_threads,
            single_observation_space=Box(0.0, 1.0, (STATES,), np.float32),
            single_action_space=Discrete(ACTIONS),
        )
        self._episodes = np.arange(self.num_envs)
        self._states = np.zeros(self.num_envs, np.int64)
        self._chances = np.zeros((self.num_envs, self.horizon))  # which way a transition goes
        self._reward_noise = np.zeros((self.num_envs, self.horizon))

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n processes, float64 ``[n, task_dim]``."""
        transitions = rng.dirichlet(np.ones(STATES), (n, CHOICES)).reshape(n, -1)
        return np.concatenate((transitions, rng.normal(1.0, 1.0, (n, CHOICES))), axis=1)

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, task_dim]``; ValueError for any other shape."""
        super().set_tasks(tasks)
        self._transitions, self._mean_rewards = transitions_and_rewards(self._tasks)

    def best_play(self, tasks: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the expected return of the best policy where the process is known."""
        return {"optimal return with the process known": optimal_returns(tasks, self.horizon)}

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        shape = (self.episodes_per_task, self.horizon)
        return np.concatenate((rng.random(shape), rng.standard_normal(shape)), axis=1)

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        self._states[chosen] = 0
        self._chances[chosen], self._reward_noise[chosen] = np.split(starts, 2, axis=1)

    def _observations(self) -> np.ndarray:
        return (self._states[:, None] == np.arange(STATES)).astype(np.float32)

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        check_choices(actions, ACTIONS)
        chosen, now = (self._episodes, self._states, actions), (self._episodes, self._steps_taken())
        rewards = self._mean_rewards[chosen] + self._reward_noise[now]
        cumulative = self._transitions[chosen].cumsum(-1)
        # Rounding may leave the last sum below 1: what passes all others is the last state.
        self._states = (self._chances[now][:, None] >= cumulative[:, :-1]).sum(-1)
        return self._observations(), rewards, np.zeros(self.num_envs, np.bool_), {}


def optimal_returns(tasks: np.ndarray, horizon: int) -> np.ndarray:
    """Return the highest expected returns ``[n]`` from state 0, by value iteration."""
    transitions, rewards = transitions_and_rewards(tasks)
    values = np.zeros(rewards.shape[:2])
    for _ in range(horizon):
        values = (rewards + (transitions @ values[:, None, :, None])[..., 0]).max(-1)
    return values[:, 0]
