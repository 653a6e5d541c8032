"""The plain outer step of the benchmarks, and random data to compare with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

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
from hpc_maml.algorithms import Sampling
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.trajectory import Samples, Trajectories

__all__ = [
    "SAMPLING",
    "Problem",
    "Task",
    "add",
    "detached",
    "mean_fisher_vector_product",
    "mean_gradient",
    "meta_step",
    "policy_of",
    "random_samples",
    "random_task",
    "random_trajectories",
    "same_state",
    "side_by_side",
    "single",
    "stacked",
    "tensors",
]

SAMPLING = Sampling(
    episodes=4, gamma=0.99, gae_lambda=0.95, test_updates=3, test_step_sizes="halved"
)


def policy_of(problem: Problem) -> Policy:
    """Return the policy of a problem."""
    observation, *hidden, action = problem.sizes
    settings = MLPSettings(hidden_sizes=hidden, activation=problem.activation)
    policy = make_policy(settings, observation, action, discrete=problem.discrete)
    if problem.discrete:
        return policy
    distribution = replace(policy.distribution, min_log_std=problem.min_log_std)
    return replace(policy, distribution=distribution)


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


def random_trajectories(
    rng: np.random.Generator, problem: Problem, num_tasks: int, horizon: int = 7, episodes: int = 4
) -> Trajectories:
    """Draw the ragged float64 episodes of a phase of some tasks, zero after the end of each."""
    lengths = rng.integers(1, horizon + 1, (num_tasks, episodes))
    steps = np.arange(horizon)[:, None]
    valid = steps < lengths[:, None]
    shape = valid.shape
    ended = steps == lengths[:, None] - 1
    if problem.discrete:
        actions = rng.integers(problem.sizes[-1], size=shape) * valid
        log_probs = np.full(shape, -np.log(problem.sizes[-1]))
    else:
        actions = rng.standard_normal((*shape, problem.sizes[-1])) * valid[..., None]
        log_probs = -0.5 * (actions**2 + np.log(2 * np.pi)).sum(-1)
    return Trajectories(
        observations=rng.standard_normal((*shape, problem.sizes[0])) * valid[..., None],
        actions=actions,
        rewards=rng.standard_normal(shape) * valid,
        log_probs=(log_probs + 0.1 * rng.standard_normal(shape)) * valid,
        advantages=rng.standard_normal(shape) * valid,
        terminated=ended & (rng.random(shape) < 0.5),
        truncated=ended,
        lengths=lengths,
        task=np.arange(num_tasks),
    )


def tensors(samples: Samples, dtype: torch.dtype = torch.float64) -> Samples:
    """Return the samples as tensors, those of floating point as ``dtype``."""
    arrays = (torch.as_tensor(array) for array in samples)
    return Samples(*(array.to(dtype) if array.is_floating_point() else array for array in arrays))


def stacked(batches: Sequence[Samples]) -> Samples:
    """Return the samples of several tasks with a leading task dimension."""
    return Samples(*(torch.stack(arrays) for arrays in zip(*batches, strict=True)))


def side_by_side(
    tasks: Sequence[Task], convert: Callable = torch.as_tensor
) -> tuple[list[Samples], Samples]:
    """Return the inner samples and the last ones of several tasks, as tensors or as arrays."""
    inners, posts = zip(*tasks, strict=True)
    *inner, post = (
        Samples(*map(convert, stacked(batches))) for batches in (*zip(*inners, strict=True), posts)
    )
    return inner, post


def single(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks in single precision, as agents have them."""
    return [
        ([tensors(each, torch.float32) for each in inner], tensors(post, torch.float32))
        for inner, post in tasks
    ]


def add(terms: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return the sum over tasks, as of one agent alone."""
    return np.asarray(terms, np.float64).sum(0)


def same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Tell whether two states are the same to the bit."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )
