"""A point in the plane that looks for a goal it does not see."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from hpc_maml.envs.batched import TaskVectorEnv, defaults_of_lineages, lineage_row

GOAL_RANGE = 0.5
GOAL_TOLERANCE = 0.01  # in each coordinate
LONGEST_STEP = 0.1  # in each coordinate


class Lineage(NamedTuple):
    """What differs between published versions of this environment."""

    horizon: int
    action_limit: float  # actions are clipped to this, either way
    distance_per_action: float
    training: Mapping[str, Any] = {}  # published settings, as keys of a configuration


RAW_STEPS = Lineage(horizon=100, action_limit=0.1, distance_per_action=1.0)
LINEAGES = {
    "gymnasium": RAW_STEPS,
    "pytorch": RAW_STEPS,
    "original": Lineage(
        horizon=100,
        action_limit=1.0,
        distance_per_action=0.1,
        training={
            "policy": {"hidden_sizes": [100, 100], "activation": "relu"},
            "algorithm": {"fast_lr": 0.5},
        },
    ),
}


class Navigation(TaskVectorEnv):
    """Walk from the origin to the goal, a task in [-0.5, 0.5]^2, in steps of at most 0.1."""

    task_dim = 2
    lineage_defaults: ClassVar[Mapping[str, Any]] = defaults_of_lineages(LINEAGES)

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        lineage: str = "gymnasium",
    ) -> None:
        """Make the batch; ValueError for an unknown lineage."""
        self._lineage = lineage_row(LINEAGES, lineage)
        horizon = horizon or self._lineage.horizon
        limit = self._lineage.action_limit
        farthest = limit * self._lineage.distance_per_action * horizon
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon,
            num_threads=num_threads,
            single_observation_space=Box(-farthest, farthest, (2,), np.float32),
            single_action_space=Box(-limit, limit, (2,), np.float32),
        )
        self._positions = np.zeros((self.num_envs, 2))

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n goals, float64 ``[n, 2]``."""
        return rng.uniform(-GOAL_RANGE, GOAL_RANGE, (n, 2))

    def best_play(self, tasks: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return what is paid for the straight way to goals ``[n, 2]`` that are known."""
        return {"optimal return with the goal known": optimal_returns(tasks, self.horizon)}

    def task_words(self, task: np.ndarray) -> str:
        """Return the goal."""
        return f"goal ({task[0]:.2f}, {task[1]:.2f})"

    def picture(
        self, axes: Any, task: np.ndarray, phases: Mapping[str, Sequence[np.ndarray]]
    ) -> None:
        """Draw the paths, from the start, and the goal."""
        for words, episodes in phases.items():
            label, colour = words, None  # the next one of the axes
            for path in episodes:
                (line,) = axes.plot(*path.T, color=colour, linewidth=1, alpha=0.75, label=label)
                label, colour = None, line.get_color()
        axes.plot(0, 0, "o", color="black", markersize=5, label="start")
        axes.plot(*task, "*", color="gold", markersize=15, markeredgecolor="black", label="goal")
        axes.set_aspect("equal")
        axes.set(xlabel="x", ylabel="y")

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        return np.zeros((self.episodes_per_task, 2))

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        self._positions[chosen] = starts

    def _observations(self) -> np.ndarray:
        return self._positions.astype(np.float32)

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if np.isnan(actions).any():
            raise ValueError("actions hold NaN")
        # Resting points move too: cheaper than to leave them out, and nobody sees it.
        limit = self._lineage.action_limit
        self._positions += actions.clip(-limit, limit) * self._lineage.distance_per_action
        offsets = self._positions - self._tasks
        rewards = -((offsets * offsets).sum(-1) ** 0.5)
        terminated = (abs(offsets) < GOAL_TOLERANCE).all(-1)
        return self._observations(), rewards, terminated, {}


def optimal_returns(goals: np.ndarray, horizon: int) -> np.ndarray:
    """Return the highest returns ``[n]`` for known goals ``[n, 2]``.

    Both coordinates can approach at full speed at once, which is best for every step's distance.
    """
    left = abs(goals)
    returns, running = np.zeros(len(goals)), np.ones(len(goals), np.bool_)
    for _ in range(horizon):
        left = np.maximum(left - LONGEST_STEP, 0.0)
        returns -= running * (left * left).sum(-1) ** 0.5
        running = running & (left >= GOAL_TOLERANCE).any(-1)
    return returns
