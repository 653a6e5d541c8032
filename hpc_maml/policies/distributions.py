"""Distributions of actions, given what a network puts out, with their derivatives.

Like the network, they run on NumPy arrays and on torch tensors. ``Parameters`` of a distribution
are also what tangents of its parameters and cotangents are made of.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.policies.network import Array, Layers
from hpc_maml.policies.sums import sum_columns, sum_rows

Parameters = Any  # of a distribution: of a Gaussian two arrays, of choices one


class MeanAndDeviation(NamedTuple):
    """The parameters of a Gaussian of independent components."""

    mean: Array  # [..., N, action_size]
    log_std: Array  # [..., 1, action_size], the same for all observations


class Distribution(ABC):
    """A distribution of actions; it may have parameters of its own beside the network's."""

    shapes: dict[str, tuple[int, ...]]  # of its own parameters, after the network's in theta
    output_size: int  # numbers it takes from the network

    @abstractmethod
    def parameters(self, layers: Layers, outputs: Array) -> Parameters:
        """Return the parameters for the outputs ``[..., N, output]`` of a network."""

    @abstractmethod
    def change(self, layers: Layers, tangents: Layers, outputs: Array) -> Parameters:
        """Return the derivative of ``parameters`` along tangents; ``outputs`` is that of these."""

    @abstractmethod
    def split(self, layers: Layers, cotangent: Parameters) -> tuple[Array, list[Array]]:
        """Return a cotangent as that of the network's outputs, and gradients by ``shapes``."""

    @abstractmethod
    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw what ``sample`` needs for actions of this shape, float32."""

    @abstractmethod
    def sample(self, parameters: Parameters, noise: Array) -> Array:
        """Return actions ``[..., N, action_size]``, or ``[..., N]`` choices."""

    @abstractmethod
    def most_probable(self, parameters: Parameters) -> Array:
        """Return the most probable actions, in the shape of ``sample``."""

    @abstractmethod
    def stacked(self, parameters: Sequence[Parameters], axis: int) -> Parameters:
        """Return parameters that are NumPy arrays as one, with a new dimension."""

    @abstractmethod
    def log_prob(self, parameters: Parameters, actions: Array) -> Array:
        """Return log pi(a | s) ``[..., N]``."""

    @abstractmethod
    def kl_divergence(self, p: Parameters, q: Parameters) -> Array:
        """Return KL(p || q) ``[..., N]``."""

    @abstractmethod
    def entropy(self, parameters: Parameters) -> Array:
        """Return the entropy in nats ``[..., N]``, or ``[..., 1]`` if all observations agree."""

    @abstractmethod
    def log_prob_gradient(
        self, parameters: Parameters, actions: Array, weights: Array
    ) -> Parameters:
        """Return the gradient of the sum over n of weights_n log pi by the parameters."""

    @abstractmethod
    def log_prob_tangent(self, parameters: Parameters, actions: Array, change: Parameters) -> Array:
        """Return the derivative of each log pi along ``change``, ``[..., N]``."""

    @abstractmethod
    def log_prob_curvature(
        self, parameters: Parameters, cotangent: Parameters, weights: Array, change: Parameters
    ) -> Parameters:
        """Return the derivative along a change of ``log_prob_gradient``, which is ``cotangent``."""

    @abstractmethod
    def sum(self, one: Parameters, other: Parameters) -> Parameters:
        """Return the sum of two cotangents."""

    @abstractmethod
    def kl_gradient(self, p: Parameters, q: Parameters, weights: Array) -> Parameters:
        """Return the gradient of the sum over n of weights_n KL(p_n || q_n) by q."""

    @abstractmethod
    def entropy_gradient(self, parameters: Parameters, weights: Array) -> Parameters:
        """Return the gradient of the sum over n of weights_n entropy_n by the parameters."""

    @abstractmethod
    def fisher_metric(
        self, parameters: Parameters, tangent: Parameters, weights: Array
    ) -> Parameters:
        """Return the Hessian of the weighted KL divergence at equality, times ``tangent``."""

    @abstractmethod
    def fisher_roots(self, parameters: Parameters) -> list[Array]:
        """Return vectors ``[..., N, output]`` whose products with themselves sum to that Hessian.

        Of each observation, by the network's outputs.
        """

    @property
    @abstractmethod
    def own_fisher(self) -> np.ndarray:
        """The diagonal ``[n]`` of the Fisher matrix by the distribution's own parameters."""


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Continuous actions ``[..., N, action_size]``: the network gives the mean, sigma is free."""

    action_size: int
    min_log_std: float = math.log(1e-6)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        """The logarithm of sigma, which is initially 1."""
        return {"log_std": (1, self.action_size)}

    @property
    def output_size(self) -> int:  # type: ignore[override]
        """A mean for each component."""
        return self.action_size

    def parameters(self, layers: Layers, outputs: Array) -> MeanAndDeviation:
        """Return the Gaussian around the network's output."""
        return MeanAndDeviation(outputs, layers["log_std"].clip(min=self.min_log_std))

    def change(self, layers: Layers, tangents: Layers, outputs: Array) -> MeanAndDeviation:
        """Return the derivatives of mean and log sigma."""
        return MeanAndDeviation(outputs, tangents["log_std"] * self._above_floor(layers))

    def split(self, layers: Layers, cotangent: MeanAndDeviation) -> tuple[Array, list[Array]]:
        """Return the cotangent of the mean, and the gradient by log sigma."""
        log_std = (cotangent.log_std * self._above_floor(layers))[..., 0, :]
        return cotangent.mean, [log_std]

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw standard normal float32 noise ``[*shape, action_size]`` for ``sample``."""
        return rng.standard_normal((*shape, self.action_size), dtype=np.float32)

    def sample(self, parameters: MeanAndDeviation, noise: Array) -> Array:
        """Return actions ``[..., N, action_size]``."""
        return parameters.mean + np.exp(parameters.log_std) * noise

    def most_probable(self, parameters: MeanAndDeviation) -> Array:
        """Return the means ``[..., N, action_size]``."""
        return parameters.mean

    def stacked(self, parameters: Sequence[MeanAndDeviation], axis: int) -> MeanAndDeviation:
        """Return parameters that are NumPy arrays as one, with a new dimension."""
        fields = zip(*parameters, strict=True)
        return MeanAndDeviation(*(np.stack(field, axis) for field in fields))

    def log_prob(self, parameters: MeanAndDeviation, actions: Array) -> Array:
        """Return log pi(a | s) ``[..., N]``."""
        xp = array_namespace(actions)
        standardised = (actions - parameters.mean) * xp.exp(-parameters.log_std)
        log_density = -0.5 * standardised * standardised - parameters.log_std
        return sum_columns(log_density) - 0.5 * math.log(2 * math.pi) * self.action_size

    def kl_divergence(self, p: MeanAndDeviation, q: MeanAndDeviation) -> Array:
        """Return KL(p || q) ``[..., N]``."""
        xp = array_namespace(p.mean)
        shift = (p.mean - q.mean) * xp.exp(-q.log_std)
        difference = p.log_std - q.log_std
        # expm1: variances that nearly agree must not cancel to noise in float32
        return sum_columns(0.5 * (xp.expm1(2 * difference) + shift * shift) - difference)

    def entropy(self, parameters: MeanAndDeviation) -> Array:
        """Return the entropy ``[..., 1]``, the same for all observations."""
        return (parameters.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def log_prob_gradient(
        self, parameters: MeanAndDeviation, actions: Array, weights: Array
    ) -> MeanAndDeviation:
        """Return the gradient of the sum over n of weights_n log pi by (mean, log_std)."""
        xp = array_namespace(actions)
        inverse_std = xp.exp(-parameters.log_std)
        standardised = (actions - parameters.mean) * inverse_std
        weighted = weights[..., None] * standardised
        log_std = weighted * standardised - weights[..., None]
        return MeanAndDeviation(weighted * inverse_std, sum_rows(log_std)[..., None, :])

    def log_prob_tangent(
        self, parameters: MeanAndDeviation, actions: Array, change: MeanAndDeviation
    ) -> Array:
        """Return the derivative of each log pi along a change of (mean, log_std), ``[..., N]``."""
        xp = array_namespace(actions)
        inverse_std = xp.exp(-parameters.log_std)
        standardised = (actions - parameters.mean) * inverse_std
        by_mean = standardised * inverse_std * change.mean
        return sum_columns(by_mean + (standardised * standardised - 1) * change.log_std)

    def log_prob_curvature(
        self,
        parameters: MeanAndDeviation,
        cotangent: MeanAndDeviation,
        weights: Array,
        change: MeanAndDeviation,
    ) -> MeanAndDeviation:
        """Return the derivative of ``log_prob_gradient`` along ``change``.

        The Hessian is minus the Fisher information where it is expected, plus what depends on the
        actions: -1/sigma^2, -2 z/sigma and -2 z^2 for z = (a - mean) / sigma.
        """
        expected = self.fisher_metric(parameters, change, weights)
        mean, log_std = cotangent
        cross = sum_rows(mean * change.mean)[..., None, :]
        return MeanAndDeviation(
            -expected.mean - 2 * mean * change.log_std,
            -expected.log_std - 2 * (cross + log_std * change.log_std),
        )

    def sum(self, one: MeanAndDeviation, other: MeanAndDeviation) -> MeanAndDeviation:
        """Return the sum of two cotangents."""
        return MeanAndDeviation(one.mean + other.mean, one.log_std + other.log_std)

    def kl_gradient(
        self, p: MeanAndDeviation, q: MeanAndDeviation, weights: Array
    ) -> MeanAndDeviation:
        """Return the gradient of the weighted KL divergences by (mean, log_std) of q."""
        xp = array_namespace(p.mean)
        inverse_std = xp.exp(-q.log_std)
        shift = (p.mean - q.mean) * inverse_std
        mean = -weights[..., None] * shift * inverse_std
        log_std = -(xp.expm1(2 * (p.log_std - q.log_std)) + shift * shift)
        return MeanAndDeviation(mean, sum_rows(weights[..., None] * log_std)[..., None, :])

    def entropy_gradient(self, parameters: MeanAndDeviation, weights: Array) -> MeanAndDeviation:
        """Return the gradient of the weighted entropies by (mean, log_std): sigma only."""
        xp = array_namespace(weights)
        return MeanAndDeviation(
            xp.zeros_like(parameters.mean),
            xp.zeros_like(parameters.log_std) + weights.sum(-1)[..., None, None],
        )

    def fisher_metric(
        self, parameters: MeanAndDeviation, tangent: MeanAndDeviation, weights: Array
    ) -> MeanAndDeviation:
        """Return the Hessian of the weighted KL divergence at equality, times ``tangent``."""
        xp = array_namespace(weights)
        mean = weights[..., None] * xp.exp(-2 * parameters.log_std) * tangent.mean
        return MeanAndDeviation(mean, 2 * weights.sum(-1)[..., None, None] * tangent.log_std)

    def fisher_roots(self, parameters: MeanAndDeviation) -> list[Array]:
        """Return 1 / sigma of each component by itself."""
        xp = array_namespace(parameters.mean)
        scale = xp.exp(-parameters.log_std) + xp.zeros_like(parameters.mean)
        components = xp.arange(self.action_size, device=device(scale))
        return [scale * (components == component) for component in range(self.action_size)]

    @property
    def own_fisher(self) -> np.ndarray:
        """By log sigma: 2."""
        return np.full(self.action_size, 2.0)

    def _above_floor(self, layers: Layers) -> Array:
        return layers["log_std"] >= self.min_log_std


@dataclass(frozen=True)
class Categorical(Distribution):
    """Discrete actions ``[..., N]``; its parameters are log-probabilities ``[..., N, k]``."""

    action_size: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        """It has no parameters of its own."""
        return {}

    @property
    def output_size(self) -> int:  # type: ignore[override]
        """A number for each action."""
        return self.action_size

    def parameters(self, layers: Layers, outputs: Array) -> Array:
        """Return normalised log-probabilities, the log-softmax of the network's output."""
        xp = array_namespace(outputs)
        shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
        return shifted - xp.log(sum_columns(xp.exp(shifted))[..., None])

    def change(self, layers: Layers, tangents: Layers, outputs: Array) -> Array:
        """Return the derivative of the outputs, in which all below is expressed."""
        return outputs

    def split(self, layers: Layers, cotangent: Array) -> tuple[Array, list[Array]]:
        """Return the cotangent of the outputs, and nothing else."""
        return cotangent, []

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw uniform float32 noise ``shape`` for ``sample``."""
        return rng.random(shape, dtype=np.float32)

    def sample(self, parameters: Array, noise: Array) -> Array:
        """Return actions ``[..., N]``, by the inverse of the cumulative distribution."""
        xp = array_namespace(parameters)
        cumulative = xp.exp(parameters).cumsum(-1)
        # rounding may leave the last sum below 1: what passes all others is the last action
        return (noise[..., None] >= cumulative[..., :-1]).sum(-1)

    def most_probable(self, parameters: Array) -> Array:
        """Return the choices ``[..., N]``; of equal ones the first."""
        return array_namespace(parameters).argmax(parameters, axis=-1)

    def stacked(self, parameters: Sequence[Array], axis: int) -> Array:
        """Return parameters that are NumPy arrays as one, with a new dimension."""
        return np.stack(parameters, axis)

    def log_prob(self, parameters: Array, actions: Array) -> Array:
        """Return log pi(a | s) ``[..., N]``."""
        xp = array_namespace(parameters)
        return xp.take_along_axis(parameters, actions[..., None], axis=-1)[..., 0]

    def kl_divergence(self, p: Array, q: Array) -> Array:
        """Return KL(p || q) ``[..., N]``."""
        return sum_columns(array_namespace(p).exp(p) * (p - q))

    def entropy(self, parameters: Array) -> Array:
        """Return the entropy ``[..., N]``."""
        return -sum_columns(array_namespace(parameters).exp(parameters) * parameters)

    def log_prob_gradient(self, parameters: Array, actions: Array, weights: Array) -> Array:
        """Return the gradient of the sum over n of weights_n log pi by the network's output."""
        xp = array_namespace(parameters)
        choices = xp.arange(self.action_size, device=device(parameters))
        return weights[..., None] * (-xp.exp(parameters) + (actions[..., None] == choices))

    def log_prob_tangent(self, parameters: Array, actions: Array, change: Array) -> Array:
        """Return the derivative of each log pi along a change of the output, ``[..., N]``."""
        xp = array_namespace(parameters)
        chosen = xp.take_along_axis(change, actions[..., None], axis=-1)[..., 0]
        return chosen - sum_columns(xp.exp(parameters) * change)

    def log_prob_curvature(
        self, parameters: Array, cotangent: Array, weights: Array, change: Array
    ) -> Array:
        """Return the derivative of ``log_prob_gradient`` along ``change``, a change of the output.

        It does not depend on the actions: minus the Fisher information.
        """
        return -self.fisher_metric(parameters, change, weights)

    def sum(self, one: Array, other: Array) -> Array:
        """Return the sum of two cotangents."""
        return one + other

    def kl_gradient(self, p: Array, q: Array, weights: Array) -> Array:
        """Return the gradient of the weighted KL divergences by the output of q."""
        xp = array_namespace(p)
        return weights[..., None] * (xp.exp(q) - xp.exp(p))

    def entropy_gradient(self, parameters: Array, weights: Array) -> Array:
        """Return the gradient of the weighted entropies by the output."""
        xp = array_namespace(parameters)
        excess = parameters + self.entropy(parameters)[..., None]
        return -weights[..., None] * xp.exp(parameters) * excess

    def fisher_metric(self, parameters: Array, tangent: Array, weights: Array) -> Array:
        """Return weights (diag(p) - p p^T) times ``tangent``, a change of the output."""
        p = array_namespace(parameters).exp(parameters)
        return weights[..., None] * p * (tangent - sum_columns(p * tangent)[..., None])

    def fisher_roots(self, parameters: Array) -> list[Array]:
        """Return sqrt(p_k) (e_k - p) for each choice k."""
        xp = array_namespace(parameters)
        p = xp.exp(parameters)
        choices = xp.arange(self.action_size, device=device(p))
        return [
            xp.sqrt(p[..., choice : choice + 1]) * (-p + (choices == choice))
            for choice in range(self.action_size)
        ]

    @property
    def own_fisher(self) -> np.ndarray:
        """It has no parameters of its own."""
        return np.zeros(0)
