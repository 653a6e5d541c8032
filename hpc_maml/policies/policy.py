"""Policies: a multilayer perceptron with a Gaussian or a categorical distribution of actions.

Like the network, they run on NumPy arrays and on torch tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.policies.mlp import MLP, Layers, Score
from hpc_maml.sampling.trajectory import Array


class Gaussian(NamedTuple):
    """A Gaussian of independent components."""

    mean: Array  # [..., N, action_size]
    log_std: Array  # [..., 1, action_size], the same for all observations


@dataclass(frozen=True)
class GaussianMLP(MLP):
    """Continuous actions ``[..., N, action_size]``: the network gives the mean, sigma is free."""

    min_log_std: float = math.log(1e-6)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each parameter matrix, in the order of theta; sigma is initially 1."""
        return {**super().shapes, "log_std": (1, self.action_size)}

    def distribution(self, layers: Layers, output: Array) -> Gaussian:
        """Return the Gaussian around the network's output."""
        return Gaussian(output, layers["log_std"].clip(min=self.min_log_std))

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw standard normal float32 noise ``[*shape, action_size]`` for ``sample``."""
        return rng.standard_normal((*shape, self.action_size), dtype=np.float32)

    def sample(self, distribution: Gaussian, noise: Array) -> Array:
        """Return actions ``[..., N, action_size]``."""
        xp = array_namespace(noise)
        return distribution.mean + xp.exp(distribution.log_std) * noise

    def stacked(self, distributions: Sequence[Gaussian], axis: int) -> Gaussian:
        """Return distributions of NumPy arrays as one, with a new dimension."""
        return Gaussian(*(np.stack(fields, axis) for fields in zip(*distributions, strict=True)))

    def log_prob(self, distribution: Gaussian, actions: Array) -> Array:
        """Return log pi(a | s) ``[..., N]``."""
        xp = array_namespace(actions)
        standardised = (actions - distribution.mean) * xp.exp(-distribution.log_std)
        log_density = -0.5 * standardised * standardised - distribution.log_std
        return log_density.sum(-1) - 0.5 * math.log(2 * math.pi) * self.action_size

    def kl_divergence(self, p: Gaussian, q: Gaussian) -> Array:
        """Return KL(p || q) ``[..., N]``."""
        xp = array_namespace(p.mean)
        shift = (p.mean - q.mean) * xp.exp(-q.log_std)
        difference = p.log_std - q.log_std
        # expm1: variances that nearly agree must not cancel to noise in float32
        return (0.5 * (xp.expm1(2 * difference) + shift * shift) - difference).sum(-1)

    def log_prob_gradient(self, distribution: Gaussian, actions: Array, weights: Array) -> Gaussian:
        """Return the gradient of the sum over n of weights_n log pi by (mean, log_std)."""
        xp = array_namespace(actions)
        inverse_std = xp.exp(-distribution.log_std)
        standardised = (actions - distribution.mean) * inverse_std
        weighted = weights[..., None] * standardised
        log_std = weighted * standardised - weights[..., None]
        return Gaussian(weighted * inverse_std, log_std.sum(-2)[..., None, :])

    def fisher_metric(self, distribution: Gaussian, tangent: Gaussian, weights: Array) -> Gaussian:
        """Return the Hessian of the weighted KL divergence at equality, times ``tangent``."""
        xp = array_namespace(weights)
        mean = weights[..., None] * xp.exp(-2 * distribution.log_std) * tangent.mean
        return Gaussian(mean, 2 * weights.sum(-1)[..., None, None] * tangent.log_std)

    def log_prob_curvature(
        self, distribution: Gaussian, score: Score, change: Gaussian
    ) -> Gaussian:
        """Return the derivative of ``log_prob_gradient`` along ``change``.

        The Hessian is minus the Fisher information where it is expected, plus what depends on the
        actions: -1/sigma^2, -2 z/sigma and -2 z^2 for z = (a - mean) / sigma.
        """
        expected = self.fisher_metric(distribution, change, score.weights)
        mean, log_std = score.cotangent
        cross = (mean * change.mean).sum(-2)[..., None, :]
        return Gaussian(
            -expected.mean - 2 * mean * change.log_std,
            -expected.log_std - 2 * (cross + log_std * change.log_std),
        )

    def _distribution_change(self, layers: Layers, tangents: Layers, output: Array) -> Gaussian:
        return Gaussian(output, tangents["log_std"] * self._above_floor(layers))

    def _output_and_rest(self, layers: Layers, cotangent: Gaussian) -> tuple[Array, list[Array]]:
        log_std = (cotangent.log_std * self._above_floor(layers))[..., 0, :]
        return cotangent.mean, [log_std]

    def _above_floor(self, layers: Layers) -> Array:
        return layers["log_std"] >= self.min_log_std


@dataclass(frozen=True)
class CategoricalMLP(MLP):
    """Discrete actions ``[..., N]``; a distribution is its log-probabilities ``[..., N, k]``."""

    def distribution(self, layers: Layers, output: Array) -> Array:
        """Return normalised log-probabilities, the log-softmax of the network's output."""
        xp = array_namespace(output)
        shifted = output - xp.max(output, axis=-1, keepdims=True)
        return shifted - xp.log(xp.exp(shifted).sum(-1)[..., None])

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw uniform float32 noise ``shape`` for ``sample``."""
        return rng.random(shape, dtype=np.float32)

    def sample(self, distribution: Array, noise: Array) -> Array:
        """Return actions ``[..., N]``, by the inverse of the cumulative distribution."""
        xp = array_namespace(distribution)
        cumulative = xp.exp(distribution).cumsum(-1)
        # rounding may leave the last sum below 1: what passes all others is the last action
        return (noise[..., None] >= cumulative[..., :-1]).sum(-1)

    def stacked(self, distributions: Sequence[Array], axis: int) -> Array:
        """Return distributions of NumPy arrays as one, with a new dimension."""
        return np.stack(distributions, axis)

    def log_prob(self, distribution: Array, actions: Array) -> Array:
        """Return log pi(a | s) ``[..., N]``."""
        xp = array_namespace(distribution)
        return xp.take_along_axis(distribution, actions[..., None], axis=-1)[..., 0]

    def kl_divergence(self, p: Array, q: Array) -> Array:
        """Return KL(p || q) ``[..., N]``."""
        return (array_namespace(p).exp(p) * (p - q)).sum(-1)

    def log_prob_gradient(self, distribution: Array, actions: Array, weights: Array) -> Array:
        """Return the gradient of the sum over n of weights_n log pi by the network's output."""
        xp = array_namespace(distribution)
        choices = xp.arange(self.action_size, device=device(distribution))
        return weights[..., None] * (-xp.exp(distribution) + (actions[..., None] == choices))

    def fisher_metric(self, distribution: Array, tangent: Array, weights: Array) -> Array:
        """Return weights (diag(p) - p p^T) times ``tangent``, a change of the output."""
        p = array_namespace(distribution).exp(distribution)
        return weights[..., None] * p * (tangent - (p * tangent).sum(-1)[..., None])

    def log_prob_curvature(self, distribution: Array, score: Score, change: Array) -> Array:
        """Return the derivative of ``log_prob_gradient`` along ``change``, a change of the output.

        It does not depend on the actions: minus the Fisher information.
        """
        return -self.fisher_metric(distribution, change, score.weights)

    def _distribution_change(self, layers: Layers, tangents: Layers, output: Array) -> Array:
        return output

    def _output_and_rest(self, layers: Layers, cotangent: Array) -> tuple[Array, list[Array]]:
        return cotangent, []


Policy = GaussianMLP | CategoricalMLP


def make_policy(
    observation_size: int,
    action_size: int,
    discrete: bool,
    hidden_sizes: tuple[int, ...],
    activation: str,
) -> Policy:
    """Return the policy for ``action_size`` actions (discrete) or action components."""
    policy = CategoricalMLP if discrete else GaussianMLP
    return policy(observation_size, action_size, tuple(hidden_sizes), activation)
