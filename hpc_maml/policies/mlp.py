"""A multilayer perceptron with its derivatives in closed form.

Every product over the leading dimensions of its parameters, which stand for tasks, is a batched
one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from array_api_compat import array_namespace
from pydantic import Field

from hpc_maml.policies.network import (
    Array,
    FeedForward,
    Layers,
    NetworkSettings,
    Sizes,
)
from hpc_maml.policies.preconditioner import (
    Inverse,
    blockwise,
    kronecker_inverse,
    second_moments,
    triangle_size,
)
from hpc_maml.policies.sums import sum_rows
from hpc_maml.settings import Count


class MLPSettings(NetworkSettings):
    """The keys of a multilayer perceptron."""

    hidden_sizes: Annotated[list[Count], Field(max_length=100)] = Field(
        [64, 64], description="units of each hidden layer"
    )
    activation: Literal["tanh", "relu"] = Field(
        "tanh", description="activation function of the hidden layers"
    )


class Linearised(NamedTuple):
    """A perceptron on N observations, with what its derivatives need."""

    layers: Layers
    activations: list[Array]  # [..., N, width], the input of each layer, and the output of the last

    @property
    def outputs(self) -> Array:
        """The output of the last layer ``[..., N, output]``."""
        return self.activations[-1]


class Pushed(NamedTuple):
    """A derivative of the outputs along a tangent of the parameters."""

    changes: list[Array]  # [..., N, width], of the output of each layer
    input_changes: list[Array]  # [..., N, width], of the input of each layer; None of the first

    @property
    def outputs(self) -> Array:
        """The derivative of the outputs ``[..., N, output]``."""
        return self.changes[-1]


class Pulled(NamedTuple):
    """A gradient, with what its derivative needs."""

    gradients: list[Array]  # [..., n], by each parameter matrix
    deltas: list[Array]  # [..., N, width], by the output of each layer


@dataclass(frozen=True)
class MLP(FeedForward):
    """A multilayer perceptron.

    The slopes of its nonlinearities are computed where they are needed: to read them takes as long.
    """

    observation_size: int
    output_size: int
    hidden_sizes: tuple[int, ...]
    activation: str  # tanh or relu

    Settings = MLPSettings

    @classmethod
    def make(cls, settings: MLPSettings, sizes: Sizes) -> Self:
        """Return the network of a configuration."""
        hidden = tuple(settings.hidden_sizes)
        return cls(sizes.observation, sizes.output, hidden, settings.activation)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter matrix, in the order of theta."""
        sizes = (self.observation_size, *self.hidden_sizes, self.output_size)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (rows, columns) in enumerate(pairwise(sizes)):
            shapes[f"weight_{layer}"] = (rows, columns)
            shapes[f"bias_{layer}"] = (1, columns)
        return shapes

    def initialise(self, layers: Layers, rng: np.random.Generator) -> None:
        """Draw weights uniformly (Glorot and Bengio 2010, eq. 16); biases stay 0."""
        for name in self.shapes:
            if name.startswith("weight"):
                limit = math.sqrt(6 / sum(layers[name].shape))
                layers[name][:] = rng.uniform(-limit, limit, layers[name].shape)

    def forward(self, layers: Layers, observations: Array) -> Array:
        """Return the outputs ``[..., N, output]``."""
        return self._activations(layers, observations)[-1]

    def linearise(self, layers: Layers, observations: Array) -> Linearised:
        """Return the outputs, with what derivatives need."""
        return Linearised(layers, self._activations(layers, observations))

    def push(self, at: Linearised, tangents: Layers) -> Pushed:
        """Return the derivatives of each layer's output and of its input along ``tangents``."""
        changes: list[Array] = []
        input_changes: list[Array] = [None]
        for layer in range(self._depth):
            change = at.activations[layer] @ tangents[f"weight_{layer}"]
            change += tangents[f"bias_{layer}"]
            if layer:
                input_changes.append(self._slope(at.activations[layer]) * changes[-1])
                change += input_changes[layer] @ at.layers[f"weight_{layer}"]
            changes.append(change)
        return Pushed(changes, input_changes)

    def pull(self, at: Linearised, cotangent: Array, *, again: bool = False) -> Pulled:
        """Return the gradients by the parameters, by back-propagation."""
        delta = cotangent
        gradients: list[Array] = []
        deltas = [delta]
        for layer in reversed(range(self._depth)):
            weight_gradient = at.activations[layer].mT @ delta
            gradients = [_flat(weight_gradient), sum_rows(delta), *gradients]
            if layer:
                delta = delta @ at.layers[f"weight_{layer}"].mT
                delta *= self._slope(at.activations[layer])
                deltas.append(delta)
        return Pulled(gradients, deltas[::-1])

    def pull_derivative(
        self, at: Linearised, pulled: Pulled, tangents: Layers, pushed: Pushed, cotangent: Array
    ) -> list[Array]:
        """Return the derivative of the gradients along ``tangents``.

        By the chain rule through both passes, line by line (Pearlmutter 1994, section 3).
        """
        delta = cotangent
        gradients: list[Array] = []
        for layer in reversed(range(self._depth)):
            weight_gradient = at.activations[layer].mT @ delta
            if layer:
                weight_gradient += pushed.input_changes[layer].mT @ pulled.deltas[layer]
            gradients = [_flat(weight_gradient), sum_rows(delta), *gradients]
            if layer:
                name = f"weight_{layer}"
                delta = delta @ at.layers[name].mT
                delta += pulled.deltas[layer] @ tangents[name].mT
                activated = at.activations[layer]
                delta *= self._slope(activated)
                if self.activation == "tanh":  # whose slope, a factor of the other delta, changes
                    delta -= 2 * activated * pulled.deltas[layer - 1] * pushed.changes[layer - 1]
        return gradients

    @property
    def num_curvature_terms(self) -> int:
        """The size of ``curvature_terms``."""
        return sum(map(triangle_size, self._factor_sizes))

    @cached_property
    def _factor_sizes(self) -> list[int]:
        """The width of each layer's input with its 1, then of each layer's output."""
        weights = [self.shapes[f"weight_{layer}"] for layer in range(self._depth)]
        return [rows + 1 for rows, _ in weights] + [columns for _, columns in weights]

    def curvature_terms(self, at: Linearised, cotangents: Sequence[Array], weights: Array) -> Array:
        """Return the second moments of each layer's inputs, with a 1 for the bias, and of deltas.

        (Martens and Grosse 2015, section 3: the Kronecker factors of the layer's block.)
        """
        xp = array_namespace(weights)
        one = xp.ones_like(weights)[..., None]
        inputs = [
            second_moments(xp.concat([each, one], axis=-1), weights) for each in at.activations[:-1]
        ]
        outputs: list[Array] = [0.0] * self._depth
        for cotangent in cotangents:
            delta = cotangent
            for layer in reversed(range(self._depth)):
                outputs[layer] = outputs[layer] + second_moments(delta, weights)
                if layer:
                    delta = delta @ at.layers[f"weight_{layer}"].mT
                    delta *= self._slope(at.activations[layer])
        return xp.concat([*inputs, *outputs], axis=-1)

    def preconditioner(self, terms: np.ndarray, damping: float) -> Inverse:
        """Return the inverses of the layers' Kronecker products."""
        sizes, depth = self._factor_sizes, self._depth
        triangles = np.split(terms, np.cumsum([triangle_size(size) for size in sizes])[:-1])
        return blockwise(
            [
                (
                    sizes[layer] * sizes[depth + layer],
                    kronecker_inverse(triangles[layer], triangles[depth + layer], damping),
                )
                for layer in range(depth)
            ]
        )

    def _activations(self, layers: Layers, observations: Array) -> list[Array]:
        nonlinearity = self._nonlinearity(observations)
        activations = [observations]
        for layer in range(self._depth):
            values = activations[-1] @ layers[f"weight_{layer}"]
            values += layers[f"bias_{layer}"]
            activations.append(values if layer == self._depth - 1 else nonlinearity(values))
        return activations

    @cached_property
    def _depth(self) -> int:
        return len(self.hidden_sizes) + 1

    def _nonlinearity(self, array: Array) -> Callable[[Array], Array]:
        if self.activation == "relu":
            return lambda values: values.clip(min=0)
        # NumPy's without a search, which is made between any two steps of the physics
        return np.tanh if isinstance(array, np.ndarray) else array_namespace(array).tanh

    def _slope(self, activated: Array) -> Array:
        """Return the derivative of the nonlinearity, from its value."""
        return 1 - activated * activated if self.activation == "tanh" else activated > 0


def _flat(matrix: Array) -> Array:
    return matrix.reshape(*matrix.shape[:-2], -1)
