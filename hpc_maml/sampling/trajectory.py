"""The one buffer in which the episodes of a task travel, and the samples that a loss reads."""

from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.policies.network import Array


def batch_dtype(
    horizon: int,
    episodes: int,
    observation_shape: tuple[int, ...],
    action_shape: tuple[int, ...],
    action_dtype: np.typing.DTypeLike,
    *,
    success: bool = False,
) -> np.dtype:
    """Return the record type of one trajectory batch: one task, one phase, T steps, B episodes.

    ``np.zeros((), dtype)`` is one contiguous buffer; its fields are views into it. Steps after the
    end of an episode are zero. Arrays are time-major, ``[T, B, ...]``. With ``success`` it says
    which episodes succeeded.
    """
    steps = (horizon, episodes)
    succeeded = [("success", np.bool_, (episodes,))] if success else []  # at any step
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
            *succeeded,
        ],
        align=True,
    )


class Trajectories(NamedTuple):
    """The B episodes of a phase, time-major, with any leading task dimensions.

    Attributes:
        observations: ``[..., T, B, *observation_shape]``
        actions: ``[..., T, B, action_dim]``, or integers ``[..., T, B]``
        rewards: ``[..., T, B]``
        log_probs: ``[..., T, B]``, of the actions under the policy that played
        advantages: ``[..., T, B]``, by ``Algorithm.advantages``
        terminated: bool ``[..., T, B]``, true in the last step of an episode that ended
        truncated: bool ``[..., T, B]``, true in the last step of an episode that was cut short
        lengths: ``[..., B]``, in steps; what comes later is zero
        task: ``[...]``, index of the task within the iteration
    """

    observations: Array
    actions: Array
    rewards: Array
    log_probs: Array
    advantages: Array
    terminated: Array
    truncated: Array
    lengths: Array
    task: Array


class Samples(NamedTuple):
    """What a loss reads: the N = T * B steps of a phase, with any leading task dimensions.

    Attributes:
        observations: ``[..., N, obs_dim]``
        actions: ``[..., N, action_dim]``, or integers ``[..., N]``
        log_probs: ``[..., N]``, of the actions under the policy that played
        advantages: ``[..., N]``
        weights: ``[..., N]``, 1 / (number of real steps), and 0 for padding
    """

    observations: Array
    actions: Array
    log_probs: Array
    advantages: Array
    weights: Array


def trajectories(batch: np.ndarray) -> Trajectories:
    """Return the fields of batches ``[...]``, views into them."""
    return Trajectories(*(batch[name] for name in Trajectories._fields))


def valid_steps(lengths: Array, horizon: int) -> Array:
    """Return ``[..., T, B]``, True for the steps that belong to an episode."""
    xp = array_namespace(lengths)
    return xp.arange(horizon, device=device(lengths))[:, None] < lengths[..., None, :]


def samples(episodes: Trajectories) -> Samples:
    """Return the steps of a phase, views where possible; ``weights`` make a sum a mean."""
    xp = array_namespace(episodes.rewards)
    *tasks, horizon, width = episodes.rewards.shape
    valid = valid_steps(episodes.lengths, horizon)
    number = xp.astype(xp.sum(valid, axis=(-2, -1), keepdims=True), xp.float64)
    weights = xp.astype(xp.astype(valid, xp.float64) / number, xp.float32)

    def flat(values: Array) -> Array:
        return values.reshape(*tasks, horizon * width, *values.shape[len(tasks) + 2 :])

    return Samples(
        flat(episodes.observations),
        flat(episodes.actions),
        flat(episodes.log_probs),
        flat(episodes.advantages),
        flat(weights),
    )


def thinned(samples: Samples, fraction: float) -> Samples:
    """Return about ``fraction`` of the samples of G tasks ``[G, N, ...]``.

    Of as many even pieces one sample each, the first and otherwise always the same random ones:
    neighbours in time are alike, but evenly spaced ones could be of few episodes only. The weights
    are scaled to the same sum.
    """
    if fraction == 1:
        return samples
    number = samples.weights.shape[-1]
    pieces = int(np.ceil(number * fraction))
    edges = np.arange(pieces + 1) * number // pieces
    places = np.random.Generator(np.random.Philox(0)).random(pieces)
    places[0] = 0  # a sample that is not padding
    kept = edges[:-1] + (places * np.diff(edges)).astype(np.int64)
    few = Samples(*(field[:, kept] for field in samples))
    return few._replace(
        weights=few.weights * (samples.weights.sum(-1) / few.weights.sum(-1))[:, None]
    )
