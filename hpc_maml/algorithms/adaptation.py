"""Inner adaptation and the losses on both sides of it, for any leading task dimensions.

An inner step is theta' = theta - alpha grad L(theta), with one step size alpha or one for each
parameter. Its Jacobian is 1 - diag(alpha) H, H the Hessian of L: a tangent is pushed forward by it,
a gradient pulled back by its transpose. The same lines run on NumPy arrays and on torch tensors.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from array_api_compat import array_namespace

from hpc_maml.algorithms.step_sizes import StepSizeGroups
from hpc_maml.policies.distributions import Parameters
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Evaluation, Policy, Score
from hpc_maml.sampling.trajectory import Samples

StepSize = float | Array  # the same for all parameters, or [..., P]


class EpisodeWeights(NamedTuple):
    """The weights of the scores of ``loaded_dice_step``, and their derivative."""

    terms: Array  # [..., T, B], w_t A_t
    ratios: Array  # [..., T, B], rho_t

    def values(self) -> Array:
        """Return the weights ``[..., N]``."""
        return self._of(self.ratios)

    def change(self, log_probs: Array) -> Array:
        """Return how the weights change where all log pi change by ``log_probs`` ``[..., N]``."""
        # the derivative of a product of ratios is the product times the sum of the changes so far
        return self._of(self.ratios * log_probs.reshape(self.terms.shape).cumsum(-2))

    def _of(self, products: Array) -> Array:
        """Return w_t A_t x_t + sum_{t'>t} w_t' A_t' (x_t' - x_{t'-1}), x the products."""
        xp = array_namespace(products)
        gains = self.terms[..., 1:, :] * (products[..., 1:, :] - products[..., :-1, :])
        later = xp.flip(xp.flip(gains, axis=-2).cumsum(-2), axis=-2)
        later = xp.concat([later, xp.zeros_like(products[..., :1, :])], axis=-2)
        every = self.terms * products + later
        return every.reshape(*every.shape[:-2], -1)


class InnerStep(NamedTuple):
    """An inner step, with what products with its Jacobian need."""

    at: Evaluation  # of the parameters before it, on its samples
    score: Score  # minus the gradient of the inner loss
    step_size: StepSize
    actions: Array | None = None  # where the loss has likelihood ratios, which change with theta
    episodes: EpisodeWeights | None = None  # where it has those of all steps so far

    def hessian_product(self, policy: Policy, vector: Array) -> Array:
        """Multiply ``vector`` ``[..., P]`` by minus the Hessian of the inner loss, symmetric."""
        change = self.episodes.change if self.episodes else None
        return policy.score_derivative(self.at, self.score, vector, self.actions, change)

    def push(self, policy: Policy, tangent: Array) -> Array:
        """Return the tangent ``[..., P]`` after the step."""
        return tangent + self.step_size * self.hessian_product(policy, tangent)

    def pull(self, policy: Policy, gradient: Array) -> Array:
        """Return the gradient ``[..., P]`` by the parameters before the step."""
        if isinstance(self.step_size, float):  # the Jacobian is symmetric
            return gradient + self.step_size * self.hessian_product(policy, gradient)
        return gradient + self.hessian_product(policy, self.step_size * gradient)


TakeStep = Callable[[Policy, Array, Samples, StepSize], InnerStep]


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


def loaded_dice_step(
    policy: Policy, theta: Array, samples: Samples, step_size: StepSize, *, num_episodes: int
) -> InnerStep:
    """Return the inner step up the objective of Loaded DiCE from theta ``[..., P]``.

    The objective is the sum over all steps of w_t A_t (rho_t - rho_{t-1}), where rho_t is the
    product of the ratios pi / pi_behaviour of an episode's steps up to t, and 1 before the first
    (Farquhar et al. 2019, algorithm 1 with lambda = 1). At the behaviour policy rho_t is the
    MagicBox of Foerster et al. (2018). There the step is that of ``inner_step``, as the difference
    credits A_t to step t alone; its Hessian, with s_t and H_t the gradient and the Hessian of
    log pi_t, is the sum of

        w_t A_t (H_t + s_t s_t^T + s_t S_{t-1}^T + S_{t-1} s_t^T),  S_t = s_1 + ... + s_t.

    Summed by steps, the gradient is that of log pi_t with the weights

        e_t = w_t A_t rho_t + sum_{t'>t} w_t' A_t' (rho_t' - rho_{t'-1}),

    so that its derivative takes one push and one pull. ``samples`` are all steps of
    ``num_episodes`` episodes, none left out: N = T * num_episodes.
    """
    at = policy.evaluate(theta, samples.observations)
    change = log_ratio(policy, at.distribution, samples)
    steps = (*change.shape[:-1], -1, num_episodes)
    ratios = array_namespace(change).exp(change.reshape(steps).cumsum(-2))
    episodes = EpisodeWeights((samples.weights * samples.advantages).reshape(steps), ratios)
    score = policy.score(at, samples.actions, episodes.values())
    return InnerStep(at, score, step_size, samples.actions, episodes)


def adapt(
    policy: Policy,
    theta: Array,
    samples: Samples,
    step_size: StepSize,
    take_step: TakeStep = inner_step,
) -> Array:
    """Return theta' = theta - step_size grad inner_loss(theta) ``[..., P]``."""
    return theta + step_size * take_step(policy, theta, samples, step_size).score.gradient


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
