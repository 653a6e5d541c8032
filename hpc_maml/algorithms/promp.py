"""ProMP: proximal meta-policy search (Rothfuss et al. 2019).

The old policies, theta_o and those adapted from it, collected the samples; theta moves away from
them by some steps of Adam. The inner objective is that of likelihood ratios, the outer one is
clipped, and a penalty holds the policies before each inner step near the old ones.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from hpc_maml.algorithms.adam import adam_state, adam_step
from hpc_maml.algorithms.adaptation import (
    InnerStep,
    InnerSteps,
    StepSize,
    likelihood_ratio_step,
    log_ratio,
)
from hpc_maml.algorithms.algorithm import (
    GRADIENT_METRICS,
    NAME,
    NO_SIGNAL,
    NOT_FINITE,
    THETA,
    Metric,
    Reduce,
    State,
    Update,
    gradient_metrics,
    mean_of,
    squared_norms,
)
from hpc_maml.algorithms.inner_steps import GradientAdaptation, InnerStepSettings
from hpc_maml.algorithms.step_sizes import StepSizeGroups
from hpc_maml.policies.distributions import Parameters
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.trajectory import Samples, Trajectories, samples
from hpc_maml.settings import NonNegative, Positive

KL_COEFFICIENTS = "kl_coefficients"  # in the state, float64 [num_inner_steps]
FAR = 1.5  # ratio of the KL divergence to its target, either way, that changes a coefficient


class ProMPSettings(InnerStepSettings):
    """The keys of ProMP."""

    name: str = Field("promp", description=NAME)
    outer_lr: Positive = Field(1.0e-2, description="learning rate of Adam in the outer step")
    adam_steps: Annotated[int, Field(ge=1, le=10000)] = Field(
        5, description="steps of Adam on the samples of one iteration"
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="importance ratios are clipped to 1 - clip and 1 + clip"
    )
    kl_coefficient: NonNegative = Field(
        5.0e-4,
        description="coefficient of the KL penalty before each inner step; with kl_target the "
        "first value",
    )
    kl_target: Positive | None = Field(
        None,
        description="KL divergence that the coefficients are adapted to, in nats; null: they "
        "are fixed",
    )


METRICS = {
    "step_size": Metric("1", "size of an inner step, mean over steps and parameters"),
    "clipped_loss_before": Metric("1", "minus the clipped objective at the old meta-policy"),
    "clipped_loss_after": Metric("1", "minus the clipped objective at the new meta-policy"),
    "kl_before": Metric(
        "nat", "estimated KL from the policy that acted; not zero only by rounding"
    ),
    "kl_after": Metric(
        "nat", "estimated KL after adaptation, old to new meta-policy", console="kl {:.4f}"
    ),
    "inner_kl": Metric(
        "nat",
        "KL before adaptation, old to new meta-policy, mean over inner steps",
        limit="kl_target",
    ),
    "kl_coefficient": Metric("1", "coefficient of the KL penalty, mean over inner steps"),
    "clip_fraction": Metric("1", "fraction of the steps whose ratio is clipped"),
    **GRADIENT_METRICS,
}


class Collected(NamedTuple):
    """The samples of G tasks, with the old distributions on those of each inner step."""

    inner: Sequence[Samples]  # inner[k] was collected with the parameters after k inner steps
    post: Samples  # collected with the adapted parameters
    old: Sequence[Parameters]


def collected(
    policy: Policy,
    theta: Array,
    inner: Sequence[Samples],
    post: Samples,
    step_sizes: Sequence[StepSize],
) -> Collected:
    """Return what the outer step needs of G tasks; ``theta`` ``[P]`` collected them."""
    steps, _ = _adapted(policy, theta, inner, step_sizes, len(post.weights))
    return Collected(inner, post, [step.at.distribution for step in steps])


class Objective(NamedTuple):
    """The terms of the outer objective of G tasks, and its gradient."""

    clipped_loss: Array  # [G], minus J^CLIP
    behaviour_kl: Array  # [G], estimated KL of the adapted from the behaviour policy
    clip_fraction: Array  # [G], of the steps, those whose ratio no longer counts
    inner_kls: Array  # [G, K], of the policy before each inner step from the old one
    square: Array  # [G, 1], the squared norm of the gradient
    gradient: Array  # [G, Q], of minus J^ProMP by theta and learned step sizes

    def columns(self) -> Array:
        """Return all beside each other, ``[G, 4 + K + Q]``."""
        columns = [term if term.ndim > 1 else term[:, None] for term in self]
        return array_namespace(*columns).concat(columns, axis=-1)


def objective(
    policy: Policy,
    theta: Array,
    tasks: Collected,
    step_sizes: Sequence[StepSize],
    clip: float,
    kl_coefficients: Sequence[float],
    groups: StepSizeGroups | None = None,
) -> Objective:
    """Return terms and gradient of minus J^ProMP at theta ``[P]``, for G tasks.

    J^ProMP is J^CLIP of the adapted policy, less the mean over the K inner steps of
    ``kl_coefficients`` times the KL divergences (Rothfuss et al. 2019, section 6; the mean is that
    of their program). With ``groups`` the step sizes are learned.
    """
    inner, post, old = tasks
    xp = array_namespace(post.weights)
    steps, adapted = _adapted(policy, theta, inner, step_sizes, len(post.weights))
    at = policy.evaluate(adapted, post.observations)
    change = log_ratio(policy, at.distribution, post)
    ratio = xp.exp(change)
    # the smaller of the two products is the clipped one where the ratio has gone too far to gain
    gains = post.advantages > 0
    is_clipped = xp.where(gains, ratio > 1 + clip, ratio < 1 - clip)
    bounded = xp.where(is_clipped, xp.clip(ratio, 1 - clip, 1 + clip), ratio)
    counted = post.weights * bounded * post.advantages

    penalties, kls = [], []
    for step, before, each, coefficient in zip(steps, old, inner, kl_coefficients, strict=True):
        now, weights = step.at.distribution, each.weights
        kls.append((weights * policy.distribution.kl_divergence(before, now)).sum(-1))
        slope = policy.distribution.kl_gradient(before, now, weights)
        penalties.append(coefficient / len(steps) * policy.pull_back(step.at, slope))
    weights = xp.where(is_clipped, xp.zeros_like(counted), counted)
    by_adapted = -policy.score(at, post.actions, weights).gradient
    gradient = InnerSteps(steps, groups=groups).pull(policy, by_adapted, penalties)
    return Objective(
        clipped_loss=-counted.sum(-1),
        behaviour_kl=(post.weights * (xp.expm1(change) - change)).sum(-1),
        clip_fraction=(post.weights * is_clipped).sum(-1),
        inner_kls=xp.stack(kls, axis=-1),
        square=squared_norms(gradient),
        gradient=gradient,
    )


def _adapted(
    policy: Policy,
    theta: Array,
    inner: Sequence[Samples],
    step_sizes: Sequence[StepSize],
    num_tasks: int,
) -> tuple[list[InnerStep], Array]:
    """Return the inner steps from theta ``[P]``, and the adapted parameters ``[G, P]``."""
    adapted = array_namespace(theta).broadcast_to(theta, (num_tasks, *theta.shape))
    steps = []
    for each, step_size in zip(inner, step_sizes, strict=True):
        steps.append(likelihood_ratio_step(policy, adapted, each, step_size))
        adapted = adapted + step_size * steps[-1].score.gradient
    return steps, adapted


def adapted_coefficient(coefficient: float, kl: float, target: float) -> float:
    """Return the coefficient of a KL penalty for the next iteration (Schulman et al. 2017, eq. 8).

    Halved where ``kl`` is below ``target`` / 1.5, doubled where it is above 1.5 ``target``.
    """
    if kl < target / FAR:
        return coefficient / 2
    return coefficient * 2 if kl > target * FAR else coefficient


class ProMP(GradientAdaptation):
    """ProMP: several steps of Adam on one collection, up a clipped objective."""

    Settings: ClassVar[type[Any]] = ProMPSettings
    defaults: ClassVar[Any] = {"gae_lambda": 1.0}
    metrics = METRICS

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with: the policy, moments of Adam, coefficients."""
        state = super().initial_state(rng)
        coefficients = np.full(self.num_inner_steps, self.settings.kl_coefficient)
        moments = adam_state(self.outer_parameters(state).size)
        return state | moments | {KL_COEFFICIENTS: coefficients}

    def digest(self, state: State, phases: Sequence[Trajectories]) -> Collected:
        """Return the samples of G tasks, with the old distributions."""
        *inner, post = map(samples, phases)
        sizes = self.training_step_sizes(state)
        return collected(self.policy, state[THETA], inner, post, sizes)

    def update(
        self,
        state: State,
        digests: Iterable[Collected],
        num_tasks: int,
        reduce: Reduce,
        rng: np.random.Generator,
    ) -> Update:
        """Take ``adam_steps`` steps on one collection (algorithm 1, lines 10 to 12)."""
        settings = self.settings
        outer = self.outer_parameters(state)
        coefficients = state[KL_COEFFICIENTS].tolist()
        edges = [1, 2, 3, 3 + len(coefficients), 4 + len(coefficients)]

        def mean(of: Callable[[Collected], Array]) -> list[np.ndarray]:
            width = edges[-1] + outer.size
            found = mean_of(reduce, [of(each) for each in digests], width, num_tasks)
            return np.split(found, edges)

        def at(candidate: np.ndarray) -> Callable[[Collected], Array]:
            def terms(tasks: Collected) -> Array:
                there = self.outer_parameters_like(tasks.post.weights, state, candidate)
                return objective(
                    self.policy,
                    there[0],
                    tasks,
                    there[1],
                    settings.clip,
                    coefficients,
                    self.groups,
                ).columns()

            return terms

        found: dict[str, float] = {
            "step_size": self.mean_step_size(state),
            "kl_coefficient": float(state[KL_COEFFICIENTS].mean()),
        }
        new, candidate = state, outer
        for step in range(settings.adam_steps):
            loss, kl, _, _, square, gradient = mean(at(candidate))
            if not step:
                found |= {"clipped_loss_before": loss.item(), "kl_before": kl.item()}
                found |= gradient_metrics(gradient, square.item(), num_tasks)
            if not np.isfinite(gradient).all():
                return Update(state, NOT_FINITE, found)
            if not gradient.any() and candidate is outer:
                return Update(state, NO_SIGNAL, found)
            candidate, moments = adam_step(candidate, gradient, new, settings.outer_lr)
            new = new | moments
        loss, kl, clip_fraction, inner_kls, *_ = mean(at(candidate))
        found |= {"clipped_loss_after": loss.item(), "kl_after": kl.item()}
        found |= {"clip_fraction": clip_fraction.item(), "inner_kl": float(inner_kls.mean())}
        if not np.isfinite([*loss, *kl, *inner_kls]).all():
            return Update(state, "non-finite loss", found)
        if settings.kl_target is not None:
            pairs = zip(coefficients, inner_kls.tolist(), strict=True)
            adapted = [adapted_coefficient(*pair, settings.kl_target) for pair in pairs]
            new = new | {KL_COEFFICIENTS: np.array(adapted)}
        return Update(self.with_outer_parameters(new, candidate), "", found)
