"""A multilayer perceptron over one parameter vector, with its derivatives in closed form.

The parameters are one vector theta ``[..., P]``; leading dimensions stand for tasks, and every
product over them is a batched one. The same lines run on NumPy arrays (observers, and agents on a
CPU) and on torch tensors (agents on a GPU).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from hpc_maml.sampling.trajectory import Array

Layers = dict[str, Array]  # name -> matrix [..., rows, columns], as in MLP.shapes
Distribution = Any  # of actions; also a tangent of its parameters, or a cotangent


class Evaluation(NamedTuple):
    """A policy on N observations, with what its derivatives need."""

    layers: Layers
    activations: list[Array]  # [..., N, width], the input of each layer, and the output of the last
    slopes: list[Array]  # [..., N, width], of the nonlinearity before each layer but the first
    distribution: Distribution


class Score(NamedTuple):
    """The gradient of a weighted sum of log-probabilities, with what its derivative needs."""

    gradient: Array  # [..., P]
    deltas: list[Array]  # [..., N, width], the gradient by the output of each layer
    curvatures: list[Array]  # [..., N, width], of delta by output before each layer but the first
    weights: Array  # [..., N]
    cotangent: Distribution  # the gradient by the distribution's parameters


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

    def forward(self, layers: Layers, observations: Array) -> Distribution:
        """Return the distribution of actions for observations ``[..., N, observation_size]``."""
        return self.distribution(layers, self._activations(layers, observations)[-1])

    def evaluate(self, theta: Array, observations: Array) -> Evaluation:
        """Return ``forward`` at theta ``[..., P]``, with what derivatives need."""
        layers = self.unflatten(theta)
        activations = self._activations(layers, observations)
        slopes = [self._slope(inputs) for inputs in activations[1:-1]]
        return Evaluation(layers, activations, slopes, self.distribution(layers, activations[-1]))

    def score(self, at: Evaluation, actions: Array, weights: Array) -> Score:
        """Return the gradient by theta of the sum over n of weights_n log pi(a_n | s_n; theta)."""
        cotangent = self.log_prob_gradient(at.distribution, actions, weights)
        gradient, deltas = self._backward(at, cotangent)
        hidden = zip(at.activations[1:-1], deltas[:-1], strict=True)
        curvatures = [self._curvature(activated, delta) for activated, delta in hidden]
        return Score(gradient, deltas, curvatures, weights, cotangent)

    def score_derivative(self, at: Evaluation, score: Score, vector: Array) -> Array:
        """Return the derivative ``[..., P]`` of the score along ``vector`` ``[..., P]``.

        By the chain rule through both passes, line by line (Pearlmutter 1994, section 3).
        """
        tangents = self.unflatten(vector)
        changes, input_changes = self._forward_changes(at, tangents)
        change = self._distribution_change(at.layers, tangents, changes[-1])
        cotangent = self.log_prob_curvature(at.distribution, score, change)
        delta, gradients = self._output_and_rest(at.layers, cotangent)
        for layer in reversed(range(self._depth)):
            weight_gradient = at.activations[layer].mT @ delta
            if layer:
                weight_gradient += input_changes[layer].mT @ score.deltas[layer]
            gradients = [_flat(weight_gradient), delta.sum(-2), *gradients]
            if layer:
                name = f"weight_{layer}"
                delta = delta @ at.layers[name].mT
                delta += score.deltas[layer] @ tangents[name].mT
                delta *= at.slopes[layer - 1]
                delta += score.curvatures[layer - 1] * changes[layer - 1]
        return array_namespace(vector).concat(gradients, axis=-1)

    def push_forward(self, at: Evaluation, vector: Array) -> Distribution:
        """Return the derivative of the distribution's parameters along ``vector`` ``[..., P]``."""
        tangents = self.unflatten(vector)
        changes, _ = self._forward_changes(at, tangents)
        return self._distribution_change(at.layers, tangents, changes[-1])

    def pull_back(self, at: Evaluation, cotangent: Distribution) -> Array:
        """Return the transpose of ``push_forward`` applied to ``cotangent``, ``[..., P]``."""
        return self._backward(at, cotangent)[0]

    def _activations(self, layers: Layers, observations: Array) -> list[Array]:
        nonlinearity = self._nonlinearity(observations)
        activations = [observations]
        for layer in range(self._depth):
            values = activations[-1] @ layers[f"weight_{layer}"]
            values += layers[f"bias_{layer}"]
            activations.append(values if layer == self._depth - 1 else nonlinearity(values))
        return activations

    def _forward_changes(
        self, at: Evaluation, tangents: Layers
    ) -> tuple[list[Array], list[Array | None]]:
        """Return the derivatives of each layer's output and of its input along ``tangents``."""
        changes, input_changes = [], [None]
        for layer in range(self._depth):
            change = at.activations[layer] @ tangents[f"weight_{layer}"]
            change += tangents[f"bias_{layer}"]
            if layer:
                input_changes.append(changes[-1] * at.slopes[layer - 1])
                change += input_changes[layer] @ at.layers[f"weight_{layer}"]
            changes.append(change)
        return changes, input_changes

    def _backward(self, at: Evaluation, cotangent: Distribution) -> tuple[Array, list[Array]]:
        """Return the gradients by theta ``[..., P]``, and by the output of each layer."""
        delta, gradients = self._output_and_rest(at.layers, cotangent)
        deltas = [delta]
        for layer in reversed(range(self._depth)):
            weight_gradient = at.activations[layer].mT @ delta
            gradients = [_flat(weight_gradient), delta.sum(-2), *gradients]
            if layer:
                delta = delta @ at.layers[f"weight_{layer}"].mT
                delta *= at.slopes[layer - 1]
                deltas.append(delta)
        return array_namespace(delta).concat(gradients, axis=-1), deltas[::-1]

    @cached_property
    def _depth(self) -> int:
        return len(self.hidden_sizes) + 1

    def _nonlinearity(self, array: Array):
        xp = array_namespace(array)
        return xp.tanh if self.activation == "tanh" else lambda values: values.clip(min=0)

    def _slope(self, activated: Array) -> Array:
        """Return the derivative of the nonlinearity, from its value."""
        return 1 - activated * activated if self.activation == "tanh" else activated > 0

    def _curvature(self, activated: Array, delta: Array) -> Array | float:
        """Return the derivative of ``delta``, which contains the slope, by the layer's output."""
        return -2 * activated * delta if self.activation == "tanh" else 0.0


def _flat(matrix: Array) -> Array:
    return matrix.reshape(*matrix.shape[:-2], -1)
