"""The one buffer in which the episodes of a task travel, and the samples that a loss reads."""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # a NumPy array or a torch tensor


def batch_dtype(
    horizon: int,
    episodes: int,
    observation_shape: tuple[int, ...],
    action_shape: tuple[int, ...],
    action_dtype: np.typing.DTypeLike,
) -> np.dtype:
    """Return the record type of one trajectory batch: one task, one phase, T steps, B episodes.

    ``np.zeros((), dtype)`` is one contiguous buffer; its fields are views into it. Steps after the
    end of an episode are zero. Arrays are time-major, ``[T, B, ...]``.
    """
    steps = (horizon, episodes)
    return np.dtype(
        [
            ("iteration", np.int64),
            ("task", np.int64),  # index within the iteration
            ("phase", np.int64),  # number of inner steps taken before this batch
            ("stop_requested", np.int64),  # the observer has received a stop signal
            ("diverged", np.int64),  # episodes that the simulator gave up
            ("observer_seconds", np.float64),  # time the observer spent on this batch
            ("lengths", np.int64, (episodes,)),  # steps of each episode
            ("observations", np.float32, (*steps, *observation_shape)),
            ("actions", action_dtype, (*steps, *action_shape)),
            ("rewards", np.float32, steps),
            ("log_probs", np.float32, steps),  # of the behaviour policy
            ("advantages", np.float32, steps),  # normalised over the batch
            ("terminated", np.bool_, steps),
            ("truncated", np.bool_, steps),
        ],
        align=True,
    )


class Samples(NamedTuple):
    """What a loss reads: the N = T * B steps of a batch, with any leading task dimensions."""

    observations: Array  # [..., N, obs_dim]
    actions: Array  # [..., N, action_dim], or [..., N] integers
    log_probs: Array  # [..., N] under the behaviour policy
    advantages: Array  # [..., N]
    weights: Array  # [..., N]: 1 / (number of real steps), 0 for padding


def valid_steps(batch: np.ndarray) -> np.ndarray:
    """Return ``[T, B]``, True for the steps that belong to an episode."""
    horizon = batch["rewards"].shape[0]
    return np.arange(horizon)[:, None] < batch["lengths"]


def samples(batch: np.ndarray) -> Samples:
    """Return the samples of one batch, views where possible; ``weights`` make a sum a mean."""
    valid = valid_steps(batch)
    steps = valid.size
    flat = {
        name: batch[name].reshape(steps, *batch[name].shape[2:])
        for name in ("observations", "actions", "log_probs", "advantages")
    }
    weights = (valid / valid.sum()).astype(np.float32).reshape(steps)
    return Samples(**flat, weights=weights)


def thinned(samples: Samples, fraction: float) -> Samples:
    """Return about ``fraction`` of the samples of G tasks ``[G, N, ...]``, evenly spaced.

    Their weights are scaled to the same sum. Neighbours in time are alike, so that even few samples
    represent all.
    """
    if fraction == 1:
        return samples
    kept = (np.arange(np.ceil(samples.weights.shape[-1] * fraction)) / fraction).astype(np.int64)
    few = Samples(*(field[:, kept] for field in samples))
    return few._replace(
        weights=few.weights * (samples.weights.sum(-1) / few.weights.sum(-1))[:, None]
    )
