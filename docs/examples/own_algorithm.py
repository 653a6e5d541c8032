"""An algorithm of one's own: Reptile (Nichol et al. 2018), for policies.

    PYTHONPATH=docs/examples python -m hpc_maml algorithm.name=own_algorithm:Reptile

The meta-policy moves towards the policies that are adapted to the tasks. Observers adapt as in
MAML, which GradientAdaptation does; what is left is what agents do with the episodes.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.algorithms.algorithm import THETA, Metric, Update, mean_of, norm
from hpc_maml.algorithms.inner_steps import GradientAdaptation, InnerStepSettings
from hpc_maml.sampling.trajectory import samples
from hpc_maml.settings import Positive


class ReptileSettings(InnerStepSettings):
    """Its keys: those of inner steps, and one more."""

    outer_lr: Positive = Field(1.0, description="fraction of the way to the adapted policies")


class Reptile(GradientAdaptation):
    """Reptile."""

    Settings = ReptileSettings
    metrics: ClassVar = {
        "way": Metric("1", "length of the mean way to the adapted policies", console="way {:.3f}")
    }

    def digest(self, state, phases):
        """Return the way from theta to the adapted parameters of each task, ``[G, P]``."""
        theta = state[THETA][None]
        # the last phase, played with the adapted policy, gives one more inner step
        for step, phase in enumerate(phases):
            size = self.step_size(state, min(step, self.num_inner_steps - 1), evaluation=False)
            theta = adapt(self.policy, theta, samples(phase), size)
        return theta - state[THETA]

    def update(self, state, digests, num_tasks, reduce, rng):
        """Move theta along the mean way of all tasks (algorithm 2 of the paper)."""
        way = mean_of(reduce, list(digests), state[THETA].size, num_tasks)
        found = {"way": norm(way)}
        if not np.isfinite(way).all():
            return Update(state, "non-finite way", found)
        theta = (state[THETA] + self.settings.outer_lr * way).astype(np.float32)
        return Update(state | {THETA: theta}, "", found)
