"""Observations on a common scale: a running mean and deviation, part of the state of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.policies.network import Array
from hpc_maml.sampling.trajectory import Trajectories, valid_steps

LARGEST = 10.0  # deviations from the mean; what is farther is clipped
SMALLEST_DEVIATION = 1e-4
UNIT = 2.0**20  # of sums over steps: they must stay within what exact sums can hold
NAMES = ("observation_count", "observation_mean", "observation_variance")  # in the state


class Normaliser(NamedTuple):
    """Mean and deviation of each number of an observation, float32 ``[obs_dim]``."""

    mean: Array
    deviation: Array

    def __call__(self, observations: Array) -> Array:
        """Return observations ``[..., obs_dim]`` on a common scale, clipped."""
        xp = array_namespace(observations)
        mean, deviation = (
            xp.asarray(each, dtype=observations.dtype, device=device(observations)) for each in self
        )
        return xp.clip((observations - mean) / deviation, -LARGEST, LARGEST)


def initial_statistics(observation_size: int) -> dict[str, np.ndarray]:
    """Return the statistics before the first iteration: mean 0 and variance 1, of no steps."""
    return {
        "observation_count": np.zeros(()),
        "observation_mean": np.zeros(observation_size),
        "observation_variance": np.ones(observation_size),
    }


def normaliser(state: Mapping[str, Array]) -> Normaliser:
    """Return what brings observations to the common scale of a state."""
    _, mean, variance = (state[name] for name in NAMES)
    xp = array_namespace(mean)
    deviation = xp.clip(xp.sqrt(variance), min=SMALLEST_DEVIATION)
    return Normaliser(xp.astype(mean, xp.float32), xp.astype(deviation, xp.float32))


def moments(phases: Sequence[Trajectories], mean: Array) -> Array:
    """Return the sums of a task over its steps ``[G, 1 + 2 obs_dim]``, in units of 2^20.

    They are the number of steps, and of each number its difference from ``mean`` and the square of
    that.
    """
    xp = array_namespace(phases[0].rewards)
    total = 0.0
    for phase in phases:
        seen = xp.astype(phase.observations, xp.float64)
        seen = seen.reshape(*phase.rewards.shape, -1)
        valid = valid_steps(phase.lengths, phase.rewards.shape[-2])[..., None]
        change = (seen - xp.asarray(mean, device=device(seen))) * valid
        parts = [xp.astype(valid, xp.float64), change, change * change]
        total = total + xp.concat(parts, axis=-1).sum((-3, -2)) / UNIT
    return total


def updated(state: Mapping[str, np.ndarray], sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the statistics with the ``moments`` of all tasks ``[1 + 2 obs_dim]``.

    Two sets of samples are put together as in Chan et al. 1979, eq. 2.1.
    """
    count, old_mean, old_variance = (state[name] for name in NAMES)
    number = sums[0] * UNIT
    shift, square = np.split(sums[1:] * UNIT / number, 2)
    share = number / (count + number)
    own_variance = np.maximum(square - shift * shift, 0)  # of what never changes, by rounding less
    variance = (1 - share) * old_variance + share * own_variance
    return {
        "observation_count": np.asarray(count + number),
        "observation_mean": old_mean + share * shift,
        "observation_variance": variance + share * (1 - share) * shift * shift,
    }
