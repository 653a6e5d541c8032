"""Inner adaptation of MAML and the losses on both sides of it, for any leading task dimensions.

The same lines run on NumPy arrays and on torch tensors.
"""

from collections.abc import Iterable
from typing import NamedTuple

from array_api_compat import array_namespace

from hpc_maml.policies.mlp import Distribution, Evaluation, Score
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.trajectory import Array, Samples


class InnerStep(NamedTuple):
    """An inner step, with what products with its Jacobian need."""

    at: Evaluation  # of the parameters before it, on its samples
    score: Score  # minus the gradient of the inner loss
    step_size: float


def inner_step(policy: Policy, theta: Array, samples: Samples, step_size: float) -> InnerStep:
    """Return the inner step from theta ``[..., P]`` (Finn et al. 2017, section 2.2)."""
    at = policy.evaluate(theta, samples.observations)
    score = policy.score(at, samples.actions, samples.weights * samples.advantages)
    return InnerStep(at, score, step_size)


def adapt(policy: Policy, theta: Array, samples: Samples, step_size: float) -> Array:
    """Return theta' = theta - step_size grad inner_loss(theta) ``[..., P]``."""
    return theta + step_size * inner_step(policy, theta, samples, step_size).score.gradient


def through(policy: Policy, steps: Iterable[InnerStep], vectors: Array) -> Array:
    """Multiply ``vectors`` ``[..., P]`` by the Jacobian of each inner step in turn.

    A Jacobian 1 - step_size H, H the Hessian of the inner loss, is symmetric: the same product
    pushes a tangent forward through the adaptation and, in reversed order, pulls a gradient back.
    """
    for at, score, step_size in steps:
        vectors = vectors + step_size * policy.score_derivative(at, score, vectors)
    return vectors


def inner_loss(policy: Policy, distribution: Distribution, samples: Samples) -> Array:
    """Return the REINFORCE loss ``[...]`` (Finn et al. 2017, eq. 4)."""
    log_prob = policy.log_prob(distribution, samples.actions)
    return -(samples.weights * log_prob * samples.advantages).sum(-1)


def surrogate_loss(policy: Policy, distribution: Distribution, samples: Samples) -> Array:
    """Return the loss ``[...]`` with the importance ratio (Schulman et al. 2015, eq. 14)."""
    return -_importance_weights(policy, distribution, samples).sum(-1)


def surrogate_gradient(policy: Policy, at: Evaluation, samples: Samples) -> Array:
    """Return the gradient ``[..., P]`` of the surrogate loss by the parameters."""
    # the derivative of a ratio is the ratio times that of its logarithm
    weights = _importance_weights(policy, at.distribution, samples)
    return -policy.score(at, samples.actions, weights).gradient


def log_ratio(policy: Policy, distribution: Distribution, samples: Samples) -> Array:
    """Return log pi(a | s) less that of the behaviour policy ``[..., N]``, 0 in padding."""
    # padding holds no action, so its ratio might overflow, and 0 * inf is NaN
    real = samples.weights > 0
    return (policy.log_prob(distribution, samples.actions) - samples.log_probs) * real


def _importance_weights(policy: Policy, distribution: Distribution, samples: Samples) -> Array:
    change = log_ratio(policy, distribution, samples)
    return samples.weights * array_namespace(change).exp(change) * samples.advantages
