"""The outer step written plainly, to compare with: one task after another, torch.distributions,
gradients and Fisher-vector products by (double) backward through the adaptation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.nn.functional import linear

from hpc_maml.trajectory import Samples

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
        values, start = observations, 0
        for layer, (rows, columns) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            weight = theta[start : start + rows * columns].view(rows, columns)
            start += rows * columns
            values = linear(values, weight.T, theta[start : start + columns])
            start += columns
            if layer < len(self.sizes) - 2:
                values = getattr(torch, self.activation)(values)
        if self.discrete:
            return Categorical(logits=values)
        std = torch.exp(torch.clamp(theta[start:], min=self.min_log_std))
        return Independent(Normal(values, std), 1)

    def inner_loss(self, theta: torch.Tensor, samples: Samples) -> torch.Tensor:
        log_probs = self.distribution(theta, samples.observations).log_prob(samples.actions)
        return -(samples.weights * log_probs * samples.advantages).sum()

    def adapt(self, theta: torch.Tensor, inner: Sequence[Samples]) -> torch.Tensor:
        for samples, step_size in zip(inner, self.step_sizes, strict=True):
            loss = self.inner_loss(theta, samples)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - step_size * (gradient.detach() if self.first_order else gradient)
        return theta

    def adapted(self, theta: torch.Tensor, task: Task) -> Distribution:
        inner, post = task
        return self.distribution(self.adapt(theta, inner), post.observations)

    def surrogate(self, theta: torch.Tensor, task: Task) -> torch.Tensor:
        post = task[1]
        ratio = torch.exp(self.adapted(theta, task).log_prob(post.actions) - post.log_probs)
        return -(post.weights * ratio * post.advantages).sum()

    def kl(self, old: Distribution, theta: torch.Tensor, task: Task) -> torch.Tensor:
        return (task[1].weights * kl_divergence(old, self.adapted(theta, task))).sum()


def mean_gradient(problem: Problem, theta: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
    """Return the gradient [P] of the mean surrogate loss after adaptation."""
    theta = theta.detach().requires_grad_()
    gradients = [torch.autograd.grad(problem.surrogate(theta, task), theta)[0] for task in tasks]
    return sum(gradients) / len(tasks)


def mean_fisher_vector_product(
    problem: Problem, theta: torch.Tensor, tasks: Sequence[Task], vector: torch.Tensor
) -> torch.Tensor:
    """Return the Hessian of the mean KL after adaptation times ``vector`` [P]."""
    theta = theta.detach().requires_grad_()
    total = torch.zeros_like(vector)
    for task in tasks:
        old = detached(problem.adapted(theta, task))
        (slope,) = torch.autograd.grad(problem.kl(old, theta, task), theta, create_graph=True)
        total += torch.autograd.grad(slope @ vector, theta)[0]
    return total / len(tasks)


def meta_step(
    problem: Problem, theta: torch.Tensor, tasks: Sequence[Task], trpo
) -> tuple[torch.Tensor | None, dict[str, float]]:
    """Return the accepted theta [P], or None, and what was measured on the way."""
    gradient = mean_gradient(problem, theta, tasks)

    def product(vector: torch.Tensor) -> torch.Tensor:
        damping = trpo.cg_damping * vector
        return mean_fisher_vector_product(problem, theta, tasks, vector) + damping

    solution, residual, direction = torch.zeros_like(gradient), gradient, gradient
    for _ in range(trpo.cg_iters):
        image = product(direction)
        length = residual @ residual / (direction @ image)
        solution = solution + length * direction
        new_residual = residual - length * image
        direction = new_residual + (new_residual @ new_residual) / (residual @ residual) * direction
        residual = new_residual
    full_step = solution * torch.sqrt(2 * trpo.max_kl / (solution @ product(solution)))

    theta = theta.detach().requires_grad_()
    olds = [detached(problem.adapted(theta, task)) for task in tasks]
    before = sum(problem.surrogate(theta, task) for task in tasks).item() / len(tasks)
    for step in range(trpo.ls_max_steps):
        candidate = theta.detach() - trpo.ls_backtrack_ratio**step * full_step
        candidate.requires_grad_()
        surrogate = sum(problem.surrogate(candidate, task) for task in tasks).item() / len(tasks)
        kl = sum(
            problem.kl(old, candidate, task).item() for old, task in zip(olds, tasks, strict=True)
        ) / len(tasks)
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
        return Categorical(logits=distribution.logits.detach())
    base = distribution.base_dist
    return Independent(Normal(base.loc.detach(), base.scale.detach()), 1)


def random_samples(
    rng: np.random.Generator, problem: Problem, horizon: int, episodes: int
) -> Samples:
    """Draw float64 samples of ``episodes`` ragged episodes, zero after the end of each."""
    lengths = rng.integers(1, horizon + 1, episodes)
    lengths[0] = horizon
    valid = (np.arange(horizon)[:, None] < lengths).ravel()
    num_steps, num_actions = valid.size, problem.sizes[-1]
    observations = rng.standard_normal((num_steps, problem.sizes[0])) * valid[:, None]
    log_probs = 0.1 * rng.standard_normal(num_steps)
    if problem.discrete:
        actions = rng.integers(num_actions, size=num_steps) * valid
        log_probs -= np.log(num_actions)
    else:
        actions = rng.standard_normal((num_steps, num_actions)) * valid[:, None]
        log_probs -= 0.5 * (actions**2 + np.log(2 * np.pi)).sum(-1)
    return Samples(
        observations=observations,
        actions=actions,
        log_probs=log_probs * valid,
        advantages=rng.standard_normal(num_steps) * valid,
        weights=valid / valid.sum(),
    )


def random_task(
    rng: np.random.Generator, problem: Problem, horizon: int = 7, episodes: int = 4
) -> Task:
    """Draw the batches of one task."""
    *inner, post = (
        tensors(random_samples(rng, problem, horizon, episodes))
        for _ in range(len(problem.step_sizes) + 1)
    )
    return inner, post


def tensors(samples: Samples, dtype: torch.dtype = torch.float64) -> Samples:
    """Return the samples as tensors, those of floating point as ``dtype``."""
    arrays = (torch.as_tensor(array) for array in samples)
    return Samples(*(array.to(dtype) if array.is_floating_point() else array for array in arrays))


def stacked(batches: Sequence[Samples]) -> Samples:
    """Return the samples of several tasks with a leading task dimension."""
    return Samples(*(torch.stack(arrays) for arrays in zip(*batches, strict=True)))
