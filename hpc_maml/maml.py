"""Inner adaptation of MAML and the losses on both sides of it, for any leading task dimensions.

The same lines run on NumPy arrays and on torch tensors; on tensors they are differentiable.
"""

from array_api_compat import array_namespace, is_torch_array

from hpc_maml.policy import Policy
from hpc_maml.trajectory import Array, Samples


def inner_loss(policy: Policy, theta: Array, samples: Samples) -> Array:
    """Return the REINFORCE loss ``[...]`` of theta ``[..., P]`` (Finn et al. 2017, eq. 4)."""
    return -(samples.weights * log_prob(policy, theta, samples) * samples.advantages).sum(-1)


def adapt(
    policy: Policy, theta: Array, samples: Samples, step_size: float, first_order: bool = False
) -> Array:
    """Return theta' = theta - step_size grad inner_loss(theta) ``[..., P]``.

    The inner step of MAML (Finn et al. 2017, section 2.2); with ``first_order`` the gradient counts
    as a constant.
    """
    ascent = policy.score(
        theta, samples.observations, samples.actions, samples.weights * samples.advantages
    )
    if first_order and is_torch_array(ascent):
        ascent = ascent.detach()
    return theta + step_size * ascent


def surrogate_loss(policy: Policy, theta: Array, samples: Samples) -> Array:
    """Return the loss ``[...]`` with the importance ratio (Schulman et al. 2015, eq. 14)."""
    change = log_ratio(policy, theta, samples)
    ratio = array_namespace(change).exp(change)
    return -(samples.weights * ratio * samples.advantages).sum(-1)


def log_ratio(policy: Policy, theta: Array, samples: Samples) -> Array:
    """Return log pi(a | s; theta) less that of the behaviour policy ``[..., N]``, 0 in padding."""
    # padding holds no action, so its ratio might overflow, and 0 * inf is NaN
    real = samples.weights > 0
    return (log_prob(policy, theta, samples) - samples.log_probs) * real


def log_prob(policy: Policy, theta: Array, samples: Samples) -> Array:
    """Return log pi(a | s; theta) ``[..., N]`` of the samples."""
    distribution = policy.forward(policy.unflatten(theta), samples.observations)
    return policy.log_prob(distribution, samples.actions)
