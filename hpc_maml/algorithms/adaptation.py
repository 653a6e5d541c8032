"""Inner adaptation and the losses on both sides of it, for any leading task dimensions.

An inner step is theta' = theta - alpha grad L(theta), with one step size alpha or one for each
parameter. Its Jacobian is 1 - diag(alpha) H, H the Hessian of L: a tangent is pushed forward by it,
a gradient pulled back by its transpose. The same lines run on NumPy arrays and on torch tensors.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from array_api_compat import array_namespace

from hpc_maml.algorithms.step_sizes import StepSizeGroups
from hpc_maml.policies.distributions import Parameters
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Evaluation, Policy, Score
from hpc_maml.sampling.trajectory import Samples

StepSize = float | Array  # the same for all parameters, or [..., P]


class InnerStep(NamedTuple):
    """An inner step, with what products with its Jacobian need."""

    at: Evaluation  # of the parameters before it, on its samples
    score: Score  # minus the gradient of the inner loss
    step_size: StepSize
    actions: Array | None = None  # where the loss has likelihood ratios, which change with theta

    def hessian_product(self, policy: Policy, vector: Array) -> Array:
        """Multiply ``vector`` ``[..., P]`` by minus the Hessian of the inner loss, symmetric."""
        return policy.score_derivative(self.at, self.score, vector, self.actions)

    def push(self, policy: Policy, tangent: Array) -> Array:
        """Return the tangent ``[..., P]`` after the step."""
        return tangent + self.step_size * self.hessian_product(policy, tangent)

    def pull(self, policy: Policy, gradient: Array) -> Array:
        """Return the gradient ``[..., P]`` by the parameters before the step."""
        if isinstance(self.step_size, float):  # the Jacobian is symmetric
            return gradient + self.step_size * self.hessian_product(policy, gradient)
        return gradient + self.hessian_product(policy, self.step_size * gradient)


class InnerSteps(NamedTuple):
    """The inner steps of an adaptation, as what derivatives go through.

    With ``groups`` the step sizes are learned, and tangents and gradients have those of all steps
    after that of theta: ``[..., P + K groups]``.
    """

    steps: Sequence[InnerStep]
    first_order: bool = False  # second derivatives are dropped: the Jacobian by theta is 1
    groups: StepSizeGroups | None = None

    def push(self, policy: Policy, tangent: Array) -> Array:
        """Return the derivative of the adapted parameters ``[..., P]`` along ``tangent``."""
        tangent, *by_size = self._split(policy.size, tangent)
        for number, step in enumerate(self.steps):
            pushed = tangent if self.first_order else step.push(policy, tangent)
            if self.groups:
                pushed = pushed + self.groups.expand(by_size[number]) * step.score.gradient
            tangent = pushed
        return tangent

    def pull(self, policy: Policy, gradient: Array, more: Sequence[Array] | None = None) -> Array:
        """Return the gradient by theta, and by step sizes, of one by the adapted parameters.

        ``more`` are gradients ``[..., P]`` by the parameters before each step, to be added.
        """
        by_size: list[Array] = []
        for number, step in reversed(list(enumerate(self.steps))):
            if self.groups:
                by_size.insert(0, self.groups.contract(step.score.gradient * gradient))
            gradient = gradient if self.first_order else step.pull(policy, gradient)
            gradient = gradient + more[number] if more else gradient
        if not by_size:
            return gradient
        return array_namespace(gradient).concat([gradient, *by_size], axis=-1)

    def _split(self, size: int, vector: Array) -> list[Array]:
        """Return the parts of a vector: by theta ``[..., P]``, by each step ``[..., groups]``."""
        if not self.groups:
            return [vector]
        edges = [size + step * self.groups.number for step in range(len(self.steps) + 1)]
        parts = [vector[..., start:end] for start, end in pairwise(edges)]
        return [vector[..., :size], *parts]


def inner_step(policy: Policy, theta: Array, samples: Samples, step_size: StepSize) -> InnerStep:
    """Return the inner step from theta ``[..., P]`` (Finn et al. 2017, section 2.2)."""
    at = policy.evaluate(theta, samples.observations)
    score = policy.score(at, samples.actions, samples.weights * samples.advantages)
    return InnerStep(at, score, step_size)


def likelihood_ratio_step(
    policy: Policy, theta: Array, samples: Samples, step_size: StepSize
) -> InnerStep:
    """Return the inner step up J^LR from theta ``[..., P]`` (Rothfuss et al. 2019, section 6).

    At the behaviour policy all ratios are 1, and the step is that of ``inner_step``; its Hessian
    has the sum of A grad log pi grad log pi^T in addition.
    """
    at = policy.evaluate(theta, samples.observations)
    weights = _importance_weights(policy, at.distribution, samples)
    return InnerStep(at, policy.score(at, samples.actions, weights), step_size, samples.actions)


def adapt(policy: Policy, theta: Array, samples: Samples, step_size: StepSize) -> Array:
    """Return theta' = theta - step_size grad inner_loss(theta) ``[..., P]``."""
    return theta + step_size * inner_step(policy, theta, samples, step_size).score.gradient


def inner_loss(policy: Policy, distribution: Parameters, samples: Samples) -> Array:
    """Return the REINFORCE loss ``[...]`` (Finn et al. 2017, eq. 4)."""
    log_prob = policy.distribution.log_prob(distribution, samples.actions)
    return -(samples.weights * log_prob * samples.advantages).sum(-1)


def surrogate_loss(policy: Policy, distribution: Parameters, samples: Samples) -> Array:
    """Return the loss ``[...]`` with the importance ratio (Schulman et al. 2015, eq. 14)."""
    return -_importance_weights(policy, distribution, samples).sum(-1)


def surrogate_gradient(policy: Policy, at: Evaluation, samples: Samples) -> Array:
    """Return the gradient ``[..., P]`` of the surrogate loss by the parameters."""
    # the derivative of a ratio is the ratio times that of its logarithm
    weights = _importance_weights(policy, at.distribution, samples)
    return -policy.score(at, samples.actions, weights).gradient


def log_ratio(policy: Policy, distribution: Parameters, samples: Samples) -> Array:
    """Return log pi(a | s) less that of the behaviour policy ``[..., N]``, 0 in padding."""
    # padding holds no action, so its ratio might overflow, and 0 * inf is NaN
    real = samples.weights > 0
    log_prob = policy.distribution.log_prob(distribution, samples.actions)
    return (log_prob - samples.log_probs) * real


def _importance_weights(policy: Policy, distribution: Parameters, samples: Samples) -> Array:
    change = log_ratio(policy, distribution, samples)
    return samples.weights * array_namespace(change).exp(change) * samples.advantages
