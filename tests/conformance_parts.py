"""An algorithm and an environment of a user's own, which tests name as ``module:Class``."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from hpc_maml.algorithms.algorithm import (
    THETA,
    Algorithm,
    AlgorithmSettings,
    Metric,
    Update,
    mean_of,
    norm,
)
from hpc_maml.envs.navigation import Navigation
from hpc_maml.sampling.trajectory import samples
from hpc_maml.settings import Positive


class ReinforceSettings(AlgorithmSettings):
    outer_lr: Positive = Field(0.01, description="learning rate of gradient descent")
    momentum: float = Field(0.9, ge=0, lt=1, description="of gradient descent")


class Reinforce(Algorithm):
    """REINFORCE (Williams 1992) on all tasks alike, by gradient descent with momentum."""

    Settings = ReinforceSettings
    metrics: ClassVar = {"slope": Metric("1", "norm of the gradient", console="slope {:.3f}")}
    adapts_parameters = False

    def num_phases(self, evaluation):
        return 1

    def initial_state(self, rng):
        return super().initial_state(rng) | {"velocity": np.zeros(self.policy.size)}

    def digest(self, state, phases):
        seen = samples(phases[0])
        theta = np.broadcast_to(state[THETA], (len(seen.weights), self.policy.size))
        at = self.policy.evaluate(theta, seen.observations)
        return -self.policy.score(at, seen.actions, seen.weights * seen.advantages).gradient

    def update(self, state, digests, num_tasks, reduce, rng):
        gradient = mean_of(reduce, list(digests), self.policy.size, num_tasks)
        found = {"slope": norm(gradient)}
        if not np.isfinite(gradient).all():
            return Update(state, "non-finite gradient", found)
        velocity = self.settings.momentum * state["velocity"] + gradient
        theta = (state[THETA] - self.settings.outer_lr * velocity).astype(np.float32)
        return Update({THETA: theta, "velocity": velocity}, "", found)


class Unfinished(Reinforce):
    """An algorithm that nobody has finished."""

    update = Algorithm.update


class Spoilable(Navigation):
    """Navigation, in which goals on the right pay NaN once somebody has spoiled it."""

    spoiled = False

    def _advance(self, actions, active):
        observations, rewards, terminated, infos = super()._advance(actions, active)
        if self.spoiled:
            rewards[self._tasks[:, 0] > 0] = np.nan
        return observations, rewards, terminated, infos


class Constant(Navigation):
    """Whatever is done, every step gives the same."""

    def step(self, actions):
        """Step, and reward by a number that is not exact in binary."""
        found = super().step(actions)
        return (found[0], np.full_like(found[1], 0.1), *found[2:])
