"""The outer step: TRPO on the losses after adaptation, in the order of the paper.

Terms of each task are computed here, on NumPy arrays or on torch tensors of any device; their sums
over tasks come from a ``reduce`` handed in, so that one agent alone and many together run the same
lines. What follows from a sum, every decision included, is the same on all agents.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.config import TrpoConfig
from hpc_maml.algorithms.adaptation import (
    InnerStep,
    adapt,
    inner_loss,
    inner_step,
    log_ratio,
    surrogate_gradient,
    surrogate_loss,
    through,
)
from hpc_maml.policies.mlp import Distribution, Evaluation
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.trajectory import Array, Samples, thinned
from hpc_maml.algorithms.trust_region import conjugate_gradient, line_search

Reduce = Callable[[Array], np.ndarray]  # terms [G, n] of this agent's tasks -> float64 [n]


class Curvature(NamedTuple):
    """What Fisher-vector products read; the samples may be fewer than those of the losses."""

    inner_steps: Sequence[InnerStep]  # those that derivatives go through: none for first_order
    at: Evaluation  # of the adapted parameters
    weights: Array  # [G, N]


@dataclass(frozen=True)
class TaskGroup:
    """G tasks, linearised at theta."""

    inner: Sequence[Samples]  # inner[k] was collected with the parameters after k inner steps
    inner_step_sizes: Sequence[float]
    inner_loss_before: Array  # [G], of theta on inner[0]; 0 without inner steps
    inner_loss_after: Array  # [G], of the adapted parameters on inner[-1]; 0 without inner steps
    post: Samples  # collected with the adapted parameters
    old: Distribution  # of the adapted parameters, on ``post``
    surrogate: Array  # [G]
    behaviour_kl: Array  # [G], estimated KL of the adapted from the behaviour policy
    gradient: Array  # [G, P], of the surrogate loss by theta
    curvature: Curvature


@dataclass(frozen=True)
class MetaStep:
    """The outcome of an outer step; a rejected one leaves theta bitwise as it was."""

    theta: np.ndarray  # [P]
    accepted: bool
    reason: str  # why it was rejected, or empty
    gradient_norm: float
    surrogate_before: float
    kl_before: float  # from the behaviour policy: rounding, if observers and agents adapt alike
    inner_loss_before: float
    inner_loss_after: float
    # of the last candidate of the line search
    surrogate_after: float = np.nan
    kl_after: float = np.nan
    cg_residual: float = np.nan  # norm
    cg_iterations: int = 0
    line_search_steps: int = 0


def linearise(
    policy: Policy,
    theta: Array,
    inner: Sequence[Samples],
    post: Samples,
    inner_step_sizes: Sequence[float],
    first_order: bool,
    fisher_fraction: float = 1.0,
) -> TaskGroup:
    """Adapt theta ``[P]`` to G tasks, and keep what the outer step needs of them.

    Samples have the leading dimension G. As NumPy arrays, a task gets the same bits for any G.
    ``fisher_fraction`` is the fraction of the samples that Fisher-vector products are computed on.
    """
    xp = array_namespace(theta)
    adapted = [xp.broadcast_to(theta, (len(post.weights), *theta.shape))]  # after 0, 1, ... steps
    steps = []
    for samples, step_size in zip(inner, inner_step_sizes, strict=True):
        steps.append(inner_step(policy, adapted[-1], samples, step_size))
        adapted.append(adapted[-1] + step_size * steps[-1].score.gradient)

    at = policy.evaluate(adapted[-1], post.observations)
    change = log_ratio(policy, at.distribution, post)
    through_steps = [] if first_order else steps
    gradient = through(policy, reversed(through_steps), surrogate_gradient(policy, at, post))
    curvature = Curvature(through_steps, at, post.weights)
    if fisher_fraction < 1:
        *few_inner, few_post = (thinned(samples, fisher_fraction) for samples in (*inner, post))
        few_steps = map(partial(inner_step, policy), adapted, few_inner, inner_step_sizes)
        few_at = policy.evaluate(adapted[-1], few_post.observations)
        curvature = Curvature([] if first_order else list(few_steps), few_at, few_post.weights)
    surrogate = surrogate_loss(policy, at.distribution, post)
    inner_loss_before = inner_loss_after = xp.zeros_like(surrogate)
    if inner:
        inner_loss_before = inner_loss(policy, steps[0].at.distribution, inner[0])
        after = policy.forward(policy.unflatten(adapted[-1]), inner[-1].observations)
        inner_loss_after = inner_loss(policy, after, inner[-1])
    return TaskGroup(
        inner=inner,
        inner_step_sizes=inner_step_sizes,
        inner_loss_before=inner_loss_before,
        inner_loss_after=inner_loss_after,
        post=post,
        old=at.distribution,
        surrogate=surrogate,
        behaviour_kl=(post.weights * (xp.expm1(change) - change)).sum(-1),
        gradient=gradient,
        curvature=curvature,
    )


def fisher_vector_product(policy: Policy, group: TaskGroup, vector: Array) -> Array:
    """Return F vector ``[G, P]``, F the Hessian at theta of each task's mean KL after adaptation.

    The KL has no slope at theta, so its Hessian is exactly J^T M J: J the derivative of the adapted
    policy's outputs, M the Hessian of the KL by these (Gauss-Newton).
    """
    steps, at, weights = group.curvature
    tangent = array_namespace(vector).broadcast_to(vector, group.gradient.shape)
    change = policy.push_forward(at, through(policy, steps, tangent))
    cotangent = policy.fisher_metric(at.distribution, change, weights)
    return through(policy, reversed(steps), policy.pull_back(at, cotangent))


def surrogate_and_kl(policy: Policy, group: TaskGroup, theta: Array) -> Array:
    """Return each task's surrogate loss at theta ``[P]`` and KL from the old policy, ``[G, 2]``."""
    xp = array_namespace(theta)
    adapted = xp.broadcast_to(theta, group.gradient.shape)
    for samples, step_size in zip(group.inner, group.inner_step_sizes, strict=True):
        adapted = adapt(policy, adapted, samples, step_size)
    distribution = policy.forward(policy.unflatten(adapted), group.post.observations)
    kl = policy.kl_divergence(group.old, distribution)
    surrogate = surrogate_loss(policy, distribution, group.post)
    return xp.stack([surrogate, (group.post.weights * kl).sum(-1)], axis=-1)


def meta_step(
    policy: Policy,
    theta: np.ndarray,
    groups: Iterable[TaskGroup],
    num_tasks: int,
    reduce: Reduce,
    trpo: TrpoConfig,
) -> MetaStep:
    """Return theta ``[P]`` after one step of TRPO (Schulman et al. 2015, appendix C).

    ``groups`` are this agent's share, possibly none, of the ``num_tasks`` tasks, linearised at
    theta. ``reduce`` sums terms ``[G, n]`` over the tasks of all agents, exactly; all agents call
    it equally often.
    """

    def mean(per_task: Callable[[TaskGroup], Array], width: int) -> np.ndarray:
        terms = [per_task(group) for group in groups] or [np.zeros((0, width), theta.dtype)]
        return reduce(array_namespace(*terms).concat(terms)) / num_tasks

    def like(group: TaskGroup, vector: np.ndarray) -> Array:
        xp, gradient = array_namespace(group.gradient), group.gradient
        return xp.asarray(vector, dtype=gradient.dtype, device=device(gradient))

    def damped_product(vector: np.ndarray) -> np.ndarray:
        product = mean(
            lambda group: fisher_vector_product(policy, group, like(group, vector)), theta.size
        )
        return product + trpo.cg_damping * vector

    def evaluate(candidate: np.ndarray) -> tuple[float, float]:
        return tuple(
            mean(lambda group: surrogate_and_kl(policy, group, like(group, candidate)), 2).tolist()
        )

    # surrogate loss and its gradient
    *losses, gradient = np.split(mean(_losses_and_gradient, 4 + theta.size), [1, 2, 3, 4])
    surrogate, behaviour_kl, inner_loss_before, inner_loss_after = (loss.item() for loss in losses)
    found = {
        "gradient_norm": _norm(gradient),
        "surrogate_before": surrogate,
        "kl_before": behaviour_kl,
        "inner_loss_before": inner_loss_before,
        "inner_loss_after": inner_loss_after,
    }
    if not np.isfinite(gradient).all():
        return MetaStep(theta, False, "non-finite gradient", **found)

    # step direction x = F^-1 g
    direction = conjugate_gradient(damped_product, gradient, trpo.cg_iters)
    found |= {"cg_residual": _norm(direction.residual), "cg_iterations": direction.iterations}

    # Lagrange multiplier; x . F x needs no further product, as F x = g - residual
    curvature = (direction.solution * (gradient - direction.residual)).sum()
    if not 0 < curvature < np.inf:
        return MetaStep(theta, False, "no finite step", **found)
    full_step = -direction.solution / np.sqrt(curvature / (2 * trpo.max_kl))

    # line search
    search = line_search(
        evaluate,
        theta,
        full_step,
        trpo.max_kl,
        trpo.ls_max_steps,
        trpo.ls_backtrack_ratio,
        surrogate,
    )
    found |= {
        "surrogate_after": search.surrogate,
        "kl_after": search.kl,
        "line_search_steps": search.steps,
    }
    if search.theta is None:
        return MetaStep(theta, False, "line search failed", **found)
    return MetaStep(search.theta, True, "", **found)


def _losses_and_gradient(group: TaskGroup) -> Array:
    losses = [
        group.surrogate,
        group.behaviour_kl,
        group.inner_loss_before,
        group.inner_loss_after,
    ]
    xp = array_namespace(group.gradient)
    return xp.concat([xp.stack(losses, axis=-1), group.gradient], axis=-1)


def _norm(vector: np.ndarray) -> float:
    # not BLAS: the bits must not depend on the number of threads
    return float(np.sqrt((vector * vector).sum()))
