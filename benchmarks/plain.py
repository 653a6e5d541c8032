"""Meta-training the plain way, to compare with: one task after another, torch.distributions,
gradients and Fisher-vector products by (double) backward through the adaptation.

The tests take it as an independent reference, the benchmarks as what one would write otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.autograd import grad
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.nn.functional import linear

from hpc_maml.algorithms.maml_trpo import TrustRegionSettings
from hpc_maml.sampling.trajectory import Samples

Task = tuple[list[Samples], Samples]  # the batch of each inner step, then the last one; tensors


@dataclass(frozen=True)
class Problem:
    """A network, and how it is adapted."""

    sizes: tuple[int, ...]  # observation, hidden ..., action
    activation: str
    discrete: bool
    step_sizes: tuple[float, ...]
    first_order: bool = False
    min_log_std: float = float(np.log(1e-6))

    def distribution(self, theta: torch.Tensor, observations: torch.Tensor) -> Distribution:
        """Return the distribution of actions at theta ``[P]``."""
        values, start = observations, 0
        for layer, (rows, columns) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            weight = theta[start : start + rows * columns].view(rows, columns)
            start += rows * columns
            values = linear(values, weight.T, theta[start : start + columns])
            start += columns
            if layer < len(self.sizes) - 2:
                values = getattr(torch, self.activation)(values)
        if self.discrete:
            return Categorical(logits=values, validate_args=False)
        std = torch.exp(torch.clamp(theta[start:], min=self.min_log_std))
        return Independent(Normal(values, std, validate_args=False), 1, validate_args=False)

    def inner_loss(self, theta: torch.Tensor, samples: Samples) -> torch.Tensor:
        """Return the REINFORCE loss."""
        log_probs = self.distribution(theta, samples.observations).log_prob(samples.actions)
        return -(samples.weights * log_probs * samples.advantages).sum()

    def adapt(self, theta: torch.Tensor, inner: Sequence[Samples]) -> torch.Tensor:
        """Return the adapted parameters ``[P]``, differentiable by theta."""
        for samples, step_size in zip(inner, self.step_sizes, strict=True):
            loss = self.inner_loss(theta, samples)
            (gradient,) = grad(loss, theta, create_graph=not self.first_order)
            theta = theta - step_size * gradient
        return theta

    def adapted(self, theta: torch.Tensor, task: Task) -> Distribution:
        """Return the distribution of actions on the last batch, after adaptation."""
        inner, post = task
        return self.distribution(self.adapt(theta, inner), post.observations)

    def losses(
        self, theta: torch.Tensor, task: Task, old: Distribution | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, Distribution]:
        """Return the surrogate loss, the KL divergence from ``old`` (None: from itself), and the
        distribution after adaptation.
        """
        post, new = task[1], self.adapted(theta, task)
        ratio = torch.exp(new.log_prob(post.actions) - post.log_probs)
        surrogate = -(post.weights * ratio * post.advantages).sum()
        kl = (post.weights * kl_divergence(old or detached(new), new)).sum()
        return surrogate, kl, new

    def surrogate(self, theta: torch.Tensor, task: Task) -> torch.Tensor:
        """Return the surrogate loss."""
        return self.losses(theta, task)[0]

    def kl(self, old: Distribution, theta: torch.Tensor, task: Task) -> torch.Tensor:
        """Return the mean KL divergence from ``old``."""
        return self.losses(theta, task, old)[1]


def mean_gradient(problem: Problem, theta: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
    """Return the gradient ``[P]`` of the mean surrogate loss after adaptation."""
    theta = theta.detach().requires_grad_()
    return sum(grad(problem.surrogate(theta, task), theta)[0] for task in tasks) / len(tasks)


def mean_fisher_vector_product(
    problem: Problem, theta: torch.Tensor, tasks: Sequence[Task]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product of the mean KL's Hessian with a vector ``[P]``; graphs are built once."""
    theta = theta.detach().requires_grad_()
    slopes = [grad(problem.losses(theta, task)[1], theta, create_graph=True)[0] for task in tasks]

    def product(vector: torch.Tensor) -> torch.Tensor:
        terms = (grad(slope @ vector, theta, retain_graph=True)[0] for slope in slopes)
        return sum(terms) / len(tasks)

    return product


def meta_step(
    problem: Problem, theta: torch.Tensor, tasks: Sequence[Task], trpo: TrustRegionSettings
) -> tuple[torch.Tensor | None, dict[str, float]]:
    """Return the accepted theta ``[P]``, or None, and what was measured on the way."""
    gradient = mean_gradient(problem, theta, tasks)
    undamped = mean_fisher_vector_product(problem, theta, tasks)

    def product(vector: torch.Tensor) -> torch.Tensor:
        return undamped(vector) + trpo.cg_damping * vector

    solution, residual, direction = torch.zeros_like(gradient), gradient, gradient
    for _ in range(trpo.cg_iters):
        image = product(direction)
        length = residual @ residual / (direction @ image)
        solution = solution + length * direction
        new_residual = residual - length * image
        direction = new_residual + (new_residual @ new_residual) / (residual @ residual) * direction
        residual = new_residual
    full_step = solution * torch.sqrt(2 * trpo.max_kl / (solution @ product(solution)))

    # only values from here on
    problem = replace(problem, first_order=True)
    theta = theta.detach().requires_grad_()
    losses, _, olds = zip(*(problem.losses(theta, task) for task in tasks), strict=True)
    olds = [detached(old) for old in olds]
    before = sum(losses).item() / len(tasks)
    for step in range(trpo.ls_max_steps):
        candidate = theta.detach() - trpo.ls_backtrack_ratio**step * full_step
        candidate.requires_grad_()  # the adaptation differentiates by it
        found = [
            problem.losses(candidate, task, old)[:2] for task, old in zip(tasks, olds, strict=True)
        ]
        surrogate, kl = (sum(terms).item() / len(tasks) for terms in zip(*found, strict=True))
        measured = {
            "surrogate_before": before,
            "surrogate_after": surrogate,
            "kl_after": kl,
            "line_search_steps": step + 1,
            "gradient_norm": gradient.norm().item(),
            "cg_residual": residual.norm().item(),
        }
        if surrogate < before and kl <= trpo.max_kl:
            return candidate.detach(), measured
    return None, measured


def detached(distribution: Distribution) -> Distribution:
    """Return the same distribution, constant for autograd."""
    if isinstance(distribution, Categorical):
        return Categorical(logits=distribution.logits.detach(), validate_args=False)
    base = distribution.base_dist
    normal = Normal(base.loc.detach(), base.scale.detach(), validate_args=False)
    return Independent(normal, 1, validate_args=False)
