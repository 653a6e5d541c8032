"""The plain outer step of the benchmarks, and random data to compare with it."""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.plain import (
    Problem,
    Task,
    detached,
    mean_fisher_vector_product,
    mean_gradient,
    meta_step,
)
from hpc_maml.sampling.trajectory import Samples

__all__ = [
    "Problem",
    "Task",
    "detached",
    "mean_fisher_vector_product",
    "mean_gradient",
    "meta_step",
    "random_samples",
    "random_task",
    "stacked",
    "tensors",
]


def random_samples(
    rng: np.random.Generator, problem: Problem, horizon: int, episodes: int
) -> Samples:
    """Draw float64 samples of ``episodes`` ragged episodes, zero after the end of each."""
    lengths = rng.integers(1, horizon + 1, episodes)
    lengths[0] = horizon
    valid = (np.arange(horizon)[:, None] < lengths).ravel()
    num_steps, num_actions = valid.size, problem.sizes[-1]
    observations = rng.standard_normal((num_steps, problem.sizes[0])) * valid[:, None]
    log_probs = 0.1 * rng.standard_normal(num_steps)
    if problem.discrete:
        actions = rng.integers(num_actions, size=num_steps) * valid
        log_probs -= np.log(num_actions)
    else:
        actions = rng.standard_normal((num_steps, num_actions)) * valid[:, None]
        log_probs -= 0.5 * (actions**2 + np.log(2 * np.pi)).sum(-1)
    return Samples(
        observations=observations,
        actions=actions,
        log_probs=log_probs * valid,
        advantages=rng.standard_normal(num_steps) * valid,
        weights=valid / valid.sum(),
    )


def random_task(
    rng: np.random.Generator, problem: Problem, horizon: int = 7, episodes: int = 4
) -> Task:
    """Draw the batches of one task."""
    *inner, post = (
        tensors(random_samples(rng, problem, horizon, episodes))
        for _ in range(len(problem.step_sizes) + 1)
    )
    return inner, post


def tensors(samples: Samples, dtype: torch.dtype = torch.float64) -> Samples:
    """Return the samples as tensors, those of floating point as ``dtype``."""
    arrays = (torch.as_tensor(array) for array in samples)
    return Samples(*(array.to(dtype) if array.is_floating_point() else array for array in arrays))


def stacked(batches: Sequence[Samples]) -> Samples:
    """Return the samples of several tasks with a leading task dimension."""
    return Samples(*(torch.stack(arrays) for arrays in zip(*batches, strict=True)))
