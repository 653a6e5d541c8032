"""MAML with a trust-region outer step (Finn et al. 2017; Schulman et al. 2015, appendix C).

Terms of each task are computed here, on NumPy arrays or on torch tensors of any device; their sums
over tasks come from a ``reduce`` handed in, so that one agent alone and many together run the same
lines. What follows from a sum, every decision included, is the same on all agents.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from hpc_maml.algorithms.adaptation import (
    InnerSteps,
    StepSize,
    TakeStep,
    adapt,
    inner_loss,
    inner_step,
    likelihood_ratio_step,
    loaded_dice_step,
    log_ratio,
    surrogate_gradient,
    surrogate_loss,
)
from hpc_maml.algorithms.algorithm import (
    GRADIENT_METRICS,
    NO_SIGNAL,
    NOT_FINITE,
    THETA,
    Metric,
    Reduce,
    Sampling,
    State,
    Update,
    gradient_metrics,
    mean_of,
    norm,
    squared_norms,
)
from hpc_maml.algorithms.inner_steps import (
    FastLearningRate,
    GradientAdaptation,
    InnerStepSettings,
    like,
)
from hpc_maml.algorithms.step_sizes import StepSizeGroups
from hpc_maml.algorithms.trust_region import (
    ConjugateGradient,
    LineSearch,
    conjugate_gradient,
    line_search,
    quasi_newton_inverse,
)
from hpc_maml.errors import InputError
from hpc_maml.policies.distributions import Parameters
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Evaluation, Policy
from hpc_maml.policies.preconditioner import Inverse, blockwise, diagonal_inverse
from hpc_maml.sampling.trajectory import Samples, Trajectories, samples, thinned
from hpc_maml.settings import NonNegative, Positive

PAIRS = "curvature_pairs"  # of the state: directions and their products, [cg_memory, 2, Q]
FACTOR_SAMPLES = 0.25  # fraction of the samples that a preconditioner is made of


class TrustRegionSettings(FastLearningRate):
    """The keys of an outer step by TRPO."""

    max_kl: Positive = Field(
        3.0e-2,
        description="trust region: largest mean KL divergence of the adapted policies, in nats",
    )
    cg_iters: Annotated[int, Field(ge=1, le=10000)] = Field(
        2, description="conjugate gradient iterations"
    )
    cg_preconditioner: Literal["none", "kronecker"] = Field(
        "none",
        description="none, or kronecker: by the Kronecker factors of the layers (torch modules: by "
        "the diagonal)",
    )
    cg_memory: Annotated[int, Field(ge=0, le=1000)] = Field(
        20,
        description="products of earlier outer steps that conjugate gradient is preconditioned by "
        "as well (quasi-Newton)",
    )
    cg_preconditioner_damping: Positive = Field(
        0.3,
        description="added to the diagonal of each factor, as a multiple of the mean of that "
        "diagonal",
    )
    cg_damping: NonNegative = Field(
        1.0e-5, description="added to the diagonal of the Fisher matrix"
    )
    fisher_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="fraction of the samples that the Fisher matrix is computed from; below 1 some "
        "runs stop learning, see docs/results",
    )
    ls_max_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        15, description="line search steps before the update is rejected"
    )
    ls_backtrack_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="ratio of one line search step to the one before"
    )
    ls_interpolate: bool = Field(
        True,
        description="true: shorten a step that leaves the trust region only as much as needed",
    )


class MamlTrpoSettings(TrustRegionSettings, InnerStepSettings):
    """The keys of MAML-TRPO."""

    first_order: bool = Field(False, description="true: leave out the second derivatives (FOMAML)")
    inner_loss: Literal["reinforce", "lvc", "dice"] = Field(
        "lvc",
        description="second derivatives of the inner step: lvc: of likelihood ratios (low variance "
        "curvature); reinforce: as published, with which some runs unlearn (docs/results); dice: "
        "unbiased, with more variance. The step itself is the same",
    )


METRICS = {
    "inner_loss_before": Metric("1", "REINFORCE loss at the meta-policy, on the first inner batch"),
    "inner_loss_after": Metric(
        "1", "REINFORCE loss at the adapted policy, on the last inner batch"
    ),
    "step_size": Metric("1", "size of an inner step, mean over steps and parameters"),
    "surrogate_before": Metric("1", "surrogate loss after adaptation at the old meta-policy"),
    "surrogate_after": Metric("1", "surrogate loss after adaptation at the new meta-policy"),
    "kl_before": Metric(
        "nat", "estimated KL from the policy that acted; not zero only by rounding"
    ),
    "kl_after": Metric(
        "nat",
        "mean KL after adaptation, old to new meta-policy",
        console="kl {:.4f}",
        limit="max_kl",
    ),
    **GRADIENT_METRICS,
    "cg_residual": Metric("1", "Euclidean norm of the conjugate gradient residual"),
    "cg_iterations": Metric("1", "conjugate gradient iterations done", dtype=np.int64),
    "line_search_steps": Metric(
        "1", "candidates of the line search that were judged", dtype=np.int64
    ),
}


class Curvature(NamedTuple):
    """What Fisher-vector products read; the samples may be fewer than those of the losses."""

    inner: InnerSteps
    at: Evaluation  # of the adapted parameters
    weights: Array  # [G, N]


@dataclass(frozen=True)
class LinearisedTasks:
    """G tasks, linearised at theta (and at step sizes that are learned)."""

    inner: Sequence[Samples]  # inner[k] was collected with the parameters after k inner steps
    inner_loss_before: Array  # [G], of theta on inner[0]; 0 without inner steps
    inner_loss_after: Array  # [G], of the adapted parameters on inner[-1]; 0 without inner steps
    post: Samples  # collected with the adapted parameters
    old: Parameters  # of the adapted policy, on ``post``
    surrogate: Array  # [G]
    behaviour_kl: Array  # [G], estimated KL of the adapted from the behaviour policy
    gradient: Array  # [G, Q], of the surrogate loss by theta and learned step sizes
    curvature: Curvature
    factors: Array | None  # [G, n], what a preconditioner is made of
    take_step: TakeStep  # of the inner loss, which candidates of the line search are adapted by


def linearise(
    policy: Policy,
    theta: Array,
    inner: Sequence[Samples],
    post: Samples,
    step_sizes: Sequence[StepSize],
    *,
    first_order: bool = False,
    groups: StepSizeGroups | None = None,
    fisher_fraction: float = 1.0,
    preconditioned: bool = False,
    take_step: TakeStep = inner_step,
) -> LinearisedTasks:
    """Adapt theta ``[P]`` to G tasks, and keep what the outer step needs of them.

    Samples have the leading dimension G. As NumPy arrays, a task gets the same bits for any G.
    With ``groups`` the step sizes are learned. ``fisher_fraction`` is the fraction of the samples
    that Fisher-vector products are computed on; a preconditioner needs few at any rate.
    ``take_step`` defines the inner loss.
    """
    xp = array_namespace(theta)
    adapted = [xp.broadcast_to(theta, (len(post.weights), *theta.shape))]  # after 0, 1, ... steps
    steps = []
    for each, step_size in zip(inner, step_sizes, strict=True):
        steps.append(take_step(policy, adapted[-1], each, step_size))
        adapted.append(adapted[-1] + step_size * steps[-1].score.gradient)

    at = policy.evaluate(adapted[-1], post.observations)
    change = log_ratio(policy, at.distribution, post)
    inner_steps = InnerSteps(steps, first_order, groups)
    gradient = inner_steps.pull(policy, surrogate_gradient(policy, at, post))
    curvature = Curvature(inner_steps, at, post.weights)
    if fisher_fraction < 1:
        *few_inner, few_post = (thinned(each, fisher_fraction) for each in (*inner, post))
        few_steps = [
            take_step(policy, *each) for each in zip(adapted, few_inner, step_sizes, strict=False)
        ]
        few_at = policy.evaluate(adapted[-1], few_post.observations)
        curvature = Curvature(inner_steps._replace(steps=few_steps), few_at, few_post.weights)
    factors = None
    if preconditioned:
        few = thinned(post, FACTOR_SAMPLES)
        few_at = policy.evaluate(adapted[-1], few.observations)
        factors = policy.curvature_terms(few_at, few.weights)
        if groups:
            squares = [groups.contract(step.score.gradient**2) for step in steps]
            factors = xp.concat([factors, *squares], axis=-1)
    surrogate = surrogate_loss(policy, at.distribution, post)
    inner_loss_before = inner_loss_after = xp.zeros_like(surrogate)
    if inner:
        inner_loss_before = inner_loss(policy, steps[0].at.distribution, inner[0])
        after = policy.forward(policy.unflatten(adapted[-1]), inner[-1].observations)
        inner_loss_after = inner_loss(policy, after, inner[-1])
    return LinearisedTasks(
        inner=inner,
        inner_loss_before=inner_loss_before,
        inner_loss_after=inner_loss_after,
        post=post,
        old=at.distribution,
        surrogate=surrogate,
        behaviour_kl=(post.weights * (xp.expm1(change) - change)).sum(-1),
        gradient=gradient,
        curvature=curvature,
        factors=factors,
        take_step=take_step,
    )


def fisher_vector_product(policy: Policy, tasks: LinearisedTasks, vector: Array) -> Array:
    """Return F vector ``[G, Q]``, F the Hessian of each task's mean KL after adaptation.

    The KL has no slope at theta, so its Hessian is exactly J^T M J: J the derivative of the adapted
    policy's outputs, M the Hessian of the KL by these (Gauss-Newton).
    """
    inner, at, weights = tasks.curvature
    tangent = array_namespace(vector).broadcast_to(vector, tasks.gradient.shape)
    change = policy.push_forward(at, inner.push(policy, tangent))
    cotangent = policy.distribution.fisher_metric(at.distribution, change, weights)
    return inner.pull(policy, policy.pull_back(at, cotangent))


def surrogate_and_kl(
    policy: Policy, tasks: LinearisedTasks, theta: Array, step_sizes: Sequence[StepSize]
) -> Array:
    """Return each task's surrogate loss at theta ``[P]`` and KL from the old policy, ``[G, 2]``."""
    xp = array_namespace(theta)
    adapted = xp.broadcast_to(theta, (len(tasks.gradient), *theta.shape))
    for each, step_size in zip(tasks.inner, step_sizes, strict=True):
        adapted = adapt(policy, adapted, each, step_size, tasks.take_step)
    distribution = policy.forward(policy.unflatten(adapted), tasks.post.observations)
    kl = policy.distribution.kl_divergence(tasks.old, distribution)
    surrogate = surrogate_loss(policy, distribution, tasks.post)
    return xp.stack([surrogate, (tasks.post.weights * kl).sum(-1)], axis=-1)


@dataclass(frozen=True)
class AllTasks:
    """The tasks of all agents, of which an outer step reads means."""

    policy: Policy
    digests: Iterable[LinearisedTasks]  # of this agent's share
    number: int
    reduce: Reduce

    def mean(self, per_task: Callable[[LinearisedTasks], Array], width: int) -> np.ndarray:
        """Return the mean, float64 ``[width]``, of what is ``[G, width]`` for G tasks."""
        return mean_of(self.reduce, [per_task(each) for each in self.digests], width, self.number)

    def fisher_vector_product(self, vector: np.ndarray) -> np.ndarray:
        """Return F vector ``[Q]``, F the mean over the tasks."""
        return self.mean(
            lambda each: fisher_vector_product(self.policy, each, like(each.gradient, vector)),
            len(vector),
        )


def _why(search: LineSearch, surrogate_before: float, max_kl: float) -> str:
    """Say why a line search failed, by its last and shortest candidate."""
    if not np.isfinite([search.surrogate, search.kl]).all():
        found = "the adaptation diverges at the last candidate"
    elif search.kl > max_kl:
        found = f"the KL divergence is {search.kl:.2g} at the last candidate, above {max_kl:g}"
    else:
        change = search.surrogate - surrogate_before
        found = f"the surrogate loss does not fall (by {change:+.1e} at the last candidate)"
    return f"line search failed: {found}"


class MamlTrpo(GradientAdaptation):
    """MAML: the outer step is one of TRPO on the losses after adaptation."""

    Settings: ClassVar[type[Any]] = MamlTrpoSettings
    metrics = METRICS

    def __init__(self, settings: Any, policy: Policy, sampling: Sampling) -> None:
        """Keep the settings; raises InputError for those that do not go together."""
        super().__init__(settings, policy, sampling)
        if self.inner_loss == "dice" and settings.fisher_fraction < 1:
            raise InputError(
                "algorithm.inner_loss=dice needs every step of an episode: choose "
                "algorithm.fisher_fraction=1, or algorithm.inner_loss=lvc."
            )

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with: no products are known yet."""
        state = super().initial_state(rng)
        if self.settings.cg_memory:
            shape = (self.settings.cg_memory, 2, self.outer_parameters(state).size)
            state[PAIRS] = np.zeros(shape, np.float32)
        return state

    def digest(self, state: State, phases: Sequence[Trajectories]) -> LinearisedTasks:
        """Return G tasks, linearised at the state."""
        *inner, post = map(samples, phases)
        take_steps: dict[str, TakeStep] = {
            "reinforce": inner_step,
            "lvc": likelihood_ratio_step,
            "dice": partial(loaded_dice_step, num_episodes=phases[0].rewards.shape[-1]),
        }
        return linearise(
            self.policy,
            state[THETA],
            inner,
            post,
            self.training_step_sizes(state),
            first_order=self.first_order,
            groups=self.groups,
            fisher_fraction=self.settings.fisher_fraction,
            preconditioned=self.settings.cg_preconditioner == "kronecker",
            take_step=take_steps[self.inner_loss],
        )

    @property
    def first_order(self) -> bool:
        """Whether second derivatives are dropped."""
        return bool(self.settings.first_order)

    @property
    def inner_loss(self) -> str:
        """Whose second derivatives the outer step takes."""
        return str(self.settings.inner_loss)

    def update(
        self,
        state: State,
        digests: Iterable[LinearisedTasks],
        num_tasks: int,
        reduce: Reduce,
        rng: np.random.Generator,
    ) -> Update:
        """Take one step of TRPO (Schulman et al. 2015, appendix C)."""
        settings = self.settings
        outer = self.outer_parameters(state)
        tasks = AllTasks(self.policy, digests, num_tasks, reduce)

        def evaluate(candidate: np.ndarray) -> tuple[float, float]:
            def terms(each: LinearisedTasks) -> Array:
                there = self.outer_parameters_like(each.gradient, state, candidate)
                return surrogate_and_kl(self.policy, each, *there)

            surrogate, kl = tasks.mean(terms, 2).tolist()
            return surrogate, kl

        # surrogate loss and its gradient
        losses, gradient = np.split(tasks.mean(_losses_and_gradient, 5 + outer.size), [5])
        *before, square = losses.tolist()
        names = ("surrogate_before", "kl_before", "inner_loss_before", "inner_loss_after")
        found = dict(zip(names, before, strict=True))
        found["step_size"] = self.mean_step_size(state)
        found |= gradient_metrics(gradient, square, num_tasks)
        if not np.isfinite(gradient).all():
            return Update(state, NOT_FINITE, found)
        if not gradient.any():
            return Update(state, NO_SIGNAL, found)

        # step direction x = F^-1 g
        direction = self.step_direction(tasks, gradient, state.get(PAIRS))
        found["cg_residual"] = norm(direction.residual)
        found["cg_iterations"] = direction.iterations

        # Lagrange multiplier; x . F x needs no further product, as F x = g - residual
        curvature = (direction.solution * (gradient - direction.residual)).sum()
        if not 0 < curvature < np.inf:
            reason = "no finite step: the curvature along it is not positive and finite"
            return Update(state, reason, found)
        full_step = -direction.solution / np.sqrt(curvature / (2 * settings.max_kl))

        # line search
        rule = (settings.max_kl, settings.ls_max_steps, settings.ls_backtrack_ratio)
        search = line_search(
            evaluate,
            outer,
            full_step,
            *rule,
            found["surrogate_before"],
            interpolate=settings.ls_interpolate,
        )
        found |= {"surrogate_after": search.surrogate, "kl_after": search.kl}
        found["line_search_steps"] = search.steps
        if search.theta is None:
            return Update(state, _why(search, found["surrogate_before"], settings.max_kl), found)
        after = self.with_outer_parameters(state, search.theta)
        if PAIRS in state:
            pairs = np.concatenate([state[PAIRS], direction.pairs.astype(np.float32)])
            after = after | {PAIRS: pairs[len(pairs) - len(state[PAIRS]) :]}
        return Update(after, "", found)

    def step_direction(
        self, tasks: AllTasks, gradient: np.ndarray, pairs: np.ndarray | None = None
    ) -> ConjugateGradient:
        """Return F^-1 gradient ``[Q]``, by as many products and as damped as the settings say.

        ``pairs`` are those of the state, if it has any.
        """
        settings = self.settings

        def damped_product(vector: np.ndarray) -> np.ndarray:
            damping: float = settings.cg_damping
            return tasks.fisher_vector_product(vector) + damping * vector

        precondition = self._preconditioner(tasks, gradient, pairs)
        return conjugate_gradient(
            damped_product, gradient, settings.cg_iters, precondition=precondition
        )

    def _preconditioner(
        self, tasks: AllTasks, gradient: np.ndarray, pairs: np.ndarray | None
    ) -> Inverse | None:
        """Return an approximate inverse of the Fisher matrix by what the outer step changes."""
        inverse = None
        if self.settings.cg_preconditioner == "kronecker":
            inverse = self._kronecker_inverse(tasks, gradient)
        return inverse if pairs is None else quasi_newton_inverse(pairs, inverse)

    def _kronecker_inverse(self, tasks: AllTasks, gradient: np.ndarray) -> Inverse:
        """Return that of the adapted policies by their own parameters: the inner Jacobian is 1."""
        settings, policy = self.settings, self.policy
        sizes, known = len(gradient) - policy.size, policy.num_curvature_terms
        factors, squares = np.split(tasks.mean(lambda each: each.factors, known + sizes), [known])
        damping: float = settings.cg_preconditioner_damping
        inverse = policy.preconditioner(factors, damping)
        if not sizes:
            return inverse
        # a step size moves the adapted parameters along the inner gradient, and on these the
        # Fisher matrix has about the diagonal that the gradient meets
        by_theta = gradient[: policy.size]
        with np.errstate(invalid="ignore"):  # of a zero gradient, which needs no direction
            size = (by_theta * by_theta).sum() / (by_theta * inverse(by_theta)).sum()
        return blockwise(
            [(policy.size, inverse), (sizes, diagonal_inverse(size * squares, damping))]
        )


def _losses_and_gradient(tasks: LinearisedTasks) -> Array:
    losses = [
        tasks.surrogate,
        tasks.behaviour_kl,
        tasks.inner_loss_before,
        tasks.inner_loss_after,
    ]
    xp = array_namespace(tasks.gradient)
    squares = squared_norms(tasks.gradient)
    return xp.concat([xp.stack(losses, axis=-1), squares, tasks.gradient], axis=-1)
