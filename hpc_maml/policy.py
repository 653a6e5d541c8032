"""Policies: a multilayer perceptron with a Gaussian or a categorical distribution of actions.

The parameters are one vector theta ``[..., P]``; leading dimensions stand for tasks, and every
product over them is a batched one. The same lines run on NumPy arrays (observers, which never
import torch) and on torch tensors (agents, differentiable), hence no in-place change of anything
that autograd needs.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from hpc_maml.trajectory import Array

Layers = dict[str, Array]  # name -> matrix [..., rows, columns], as in MLP.shapes


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron; what its outputs mean is the subclass's."""

    observation_size: int
    action_size: int
    hidden_sizes: tuple[int, ...]
    activation: str  # tanh or relu

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each parameter matrix, in the order of theta."""
        sizes = (self.observation_size, *self.hidden_sizes, self.action_size)
        shapes = {}
        for layer, (rows, columns) in enumerate(pairwise(sizes)):
            shapes[f"weight_{layer}"] = (rows, columns)
            shapes[f"bias_{layer}"] = (1, columns)
        return shapes

    @cached_property
    def size(self) -> int:
        """The number of parameters, P."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def initial_parameters(self, rng: np.random.Generator) -> np.ndarray:
        """Draw float32 theta ``[P]``: weights uniform (Glorot and Bengio 2010, eq. 16), rest 0."""
        theta = np.zeros(self.size, np.float32)
        for name, matrix in self.unflatten(theta).items():
            if name.startswith("weight"):
                limit = math.sqrt(6 / sum(matrix.shape))
                matrix[:] = rng.uniform(-limit, limit, matrix.shape)
        return theta

    def unflatten(self, theta: Array) -> Layers:
        """Return the parameter matrices ``[..., rows, columns]`` as views into theta."""
        matrices, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + shape[0] * shape[1]
            matrices[name] = theta[..., start:end].reshape(*theta.shape[:-1], *shape)
            start = end
        return matrices

    def forward(self, layers: Layers, observations: Array) -> "Array | Gaussian":
        """Return the distribution of actions for observations ``[..., N, observation_size]``."""
        return self.distribution(layers, self.activations(layers, observations)[-1])

    def activations(self, layers: Layers, observations: Array) -> list[Array]:
        """Return the input ``[..., N, width]`` of each layer, and the output of the last."""
        nonlinearity = self._nonlinearity(observations)
        activations = [observations]
        for layer in range(self._depth):
            values = activations[-1] @ layers[f"weight_{layer}"]
            values += layers[f"bias_{layer}"]
            activations.append(values if layer == self._depth - 1 else nonlinearity(values))
        return activations

    def score(self, theta: Array, observations: Array, actions: Array, weights: Array) -> Array:
        """Return the gradient ``[..., P]`` of the sum over n of weights_n log pi(a_n | s_n; theta).

        In closed form, so that it needs no graph, and that autograd can differentiate it again.
        """
        layers = self.unflatten(theta)
        activations = self.activations(layers, observations)
        distribution = self.distribution(layers, activations[-1])
        cotangent = self.log_prob_gradient(distribution, actions, weights)
        return self.pull_back(layers, activations, cotangent)

    def _push_forward(self, layers: Layers, activations: list[Array], tangents: Layers) -> Array:
        """Return the derivative ``[..., N, action_size]`` of the output along ``tangents``."""
        change = activations[0] @ tangents["weight_0"] + tangents["bias_0"]
        for layer in range(1, self._depth):
            inputs = activations[layer]
            change = (change * self._slope(inputs)) @ layers[f"weight_{layer}"]
            change = change + inputs @ tangents[f"weight_{layer}"] + tangents[f"bias_{layer}"]
        return change

    def _pull_back(self, layers: Layers, activations: list[Array], cotangent: Array) -> list[Array]:
        """Return the gradients of (output * cotangent).sum(), flat, in the order of ``shapes``."""
        gradients = []
        for layer in reversed(range(self._depth)):
            inputs = activations[layer]
            weight_gradient = inputs.mT @ cotangent
            gradients.append(cotangent.sum(-2))
            gradients.append(weight_gradient.reshape(*weight_gradient.shape[:-2], -1))
            if layer:
                cotangent = (cotangent @ layers[f"weight_{layer}"].mT) * self._slope(inputs)
        return gradients[::-1]

    @cached_property
    def _depth(self) -> int:
        return len(self.hidden_sizes) + 1

    def _nonlinearity(self, array: Array):
        xp = array_namespace(array)
        return xp.tanh if self.activation == "tanh" else lambda values: values.clip(min=0)

    def _slope(self, activated: Array) -> Array:
        """Return the derivative of the nonlinearity, from its value."""
        return 1 - activated * activated if self.activation == "tanh" else activated > 0


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

    def push_forward(self, layers: Layers, activations: list[Array], tangents: Layers) -> Gaussian:
        """Return the derivative of (mean, log_std) along the parameter direction ``tangents``."""
        log_std = tangents["log_std"] * self._above_floor(layers)
        return Gaussian(self._push_forward(layers, activations, tangents), log_std)

    def pull_back(self, layers: Layers, activations: list[Array], cotangent: Gaussian) -> Array:
        """Return the transpose of ``push_forward`` applied to ``cotangent``, ``[..., P]``."""
        gradients = self._pull_back(layers, activations, cotangent.mean)
        log_std = (cotangent.log_std * self._above_floor(layers))[..., 0, :]
        return array_namespace(log_std).concat([*gradients, log_std], axis=-1)

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

    def push_forward(self, layers: Layers, activations: list[Array], tangents: Layers) -> Array:
        """Return the derivative of the output along the parameter direction ``tangents``."""
        return self._push_forward(layers, activations, tangents)

    def pull_back(self, layers: Layers, activations: list[Array], cotangent: Array) -> Array:
        """Return the transpose of ``push_forward`` applied to ``cotangent``, ``[..., P]``."""
        gradients = self._pull_back(layers, activations, cotangent)
        return array_namespace(cotangent).concat(gradients, axis=-1)


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
