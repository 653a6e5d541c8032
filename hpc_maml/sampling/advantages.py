"""Returns and advantages of the episodes of one task; arrays are time-major, ``[T, B]``, float64.

The horizon is part of the task and the baseline sees the time, so nothing is worth anything after
the last step, whether an episode terminated or was truncated at the horizon.
"""

import numpy as np

from hpc_maml.sampling import baseline


def discounted_sums(values: np.ndarray, discount: float) -> np.ndarray:
    """Return y_t = values_t + discount y_{t+1}, ``[T, B]``."""
    sums = np.array(values, np.float64)
    for step in reversed(range(len(sums) - 1)):
        sums[step] += discount * sums[step + 1]
    return sums


def generalised_advantages(
    rewards: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Return the advantages ``[T, B]`` (Schulman et al. 2016, eq. 16); both zero in padding."""
    next_values = np.concatenate([values[1:], np.zeros_like(values[:1])])
    residuals = rewards + gamma * next_values - values  # eq. 9
    return discounted_sums(residuals, gamma * gae_lambda)


def normalise(advantages: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the advantages with mean 0 and standard deviation 1 over the ``valid`` steps."""
    real = advantages[valid]
    return np.where(valid, (advantages - real.mean()) / (real.std() + 1e-8), 0)


def task_advantages(
    observations: np.ndarray,
    rewards: np.ndarray,
    lengths: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Return normalised advantages, float32 ``[T, B]``, zero after the end of each episode.

    Fits the baseline to ``observations`` ``[T, B, d]`` and ``rewards`` ``[T, B]``; ``lengths``
    ``[B]`` are in steps.
    """
    if (lengths == lengths[0]).all() and (rewards == rewards[:, :1]).all():
        # Nothing that was done made a difference. What the baseline does not fit would be a
        # difference of the steps, or of rounding, and normalised to size 1.
        return np.zeros(rewards.shape, np.float32)
    valid = np.arange(len(rewards))[:, None] < lengths
    rewards = np.where(valid, rewards, 0).astype(np.float64)
    coefficients = baseline.fit(observations, discounted_sums(rewards, gamma), valid)
    values = np.where(valid, baseline.predict(coefficients, observations), 0)
    advantages = generalised_advantages(rewards, values, gamma, gae_lambda)
    return normalise(advantages, valid).astype(np.float32)
