"""A policy: a network and a distribution of actions, with the products that algorithms need."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from hpc_maml.policies.distributions import Distribution, Parameters
from hpc_maml.policies.network import Array, Layers, Network
from hpc_maml.policies.preconditioner import Inverse, blockwise


class Evaluation(NamedTuple):
    """A policy on N observations, with what its derivatives need."""

    layers: Layers
    network: Any  # what ``Network.linearise`` returned
    distribution: Parameters


class Score(NamedTuple):
    """The gradient of a weighted sum of log-probabilities, with what its derivative needs."""

    gradient: Array  # [..., P]
    network: Any  # what ``Network.pull`` returned
    weights: Array  # [..., N]
    cotangent: Parameters  # the gradient by the distribution's parameters


@dataclass(frozen=True)
class Policy:
    """A network and a distribution of actions over one parameter vector theta ``[..., P]``."""

    network: Any  # Network
    distribution: Distribution

    @property
    def memory_size(self) -> int:
        """Numbers kept of every episode from step to step; 0 for a feed-forward network."""
        return int(self.network.memory_size)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each parameter array, in the order of theta."""
        return {**self.network.shapes, **self.distribution.shapes}

    @cached_property
    def size(self) -> int:
        """The number of parameters, P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial_parameters(self, rng: np.random.Generator) -> np.ndarray:
        """Draw float32 theta ``[P]``; the distribution's own parameters are 0."""
        theta = np.zeros(self.size, np.float32)
        network: Network = self.network
        network.initialise(self.unflatten(theta), rng)
        return theta

    def unflatten(self, theta: Array) -> Layers:
        """Return the parameters ``[..., *shape]`` by name, as views into theta."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            arrays[name] = theta[..., start:end].reshape(*theta.shape[:-1], *shape)
            start = end
        return arrays

    def flatten(self, layers: Layers) -> np.ndarray:
        """Return parameters by name as one vector ``[P]``."""
        return np.concatenate([np.asarray(layers[name]).ravel() for name in self.shapes])

    def step(self, layers: Layers, memory: Array, observations: Array) -> tuple[Parameters, Array]:
        """Return the distribution for observations ``[G, B, observation]``, and the new memory."""
        if not self.memory_size:
            return self.forward(layers, observations), memory
        outputs, memory = self.network.step(layers, memory, observations)
        return self.distribution.parameters(layers, outputs), memory

    def forward(self, layers: Layers, observations: Array) -> Parameters:
        """Return the distribution of actions for observations ``[..., N, observation]``."""
        return self.distribution.parameters(layers, self.network.forward(layers, observations))

    def evaluate(self, theta: Array, observations: Array) -> Evaluation:
        """Return ``forward`` at theta ``[..., P]``, with what derivatives need."""
        layers = self.unflatten(theta)
        at = self.network.linearise(layers, observations)
        return Evaluation(layers, at, self.distribution.parameters(layers, at.outputs))

    def score(self, at: Evaluation, actions: Array, weights: Array) -> Score:
        """Return the gradient by theta of the sum over n of weights_n log pi(a_n | s_n; theta)."""
        cotangent = self.distribution.log_prob_gradient(at.distribution, actions, weights)
        outputs, own = self.distribution.split(at.layers, cotangent)
        pulled = self.network.pull(at.network, outputs, again=True)
        gradient = array_namespace(outputs).concat([*pulled.gradients, *own], axis=-1)
        return Score(gradient, pulled, weights, cotangent)

    def score_derivative(
        self,
        at: Evaluation,
        score: Score,
        vector: Array,
        actions: Array | None = None,
        weight_change: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Return the derivative ``[..., P]`` of the score along ``vector`` ``[..., P]``.

        The weights are constants; with the ``actions`` they contain pi(a | s), and change with it.
        ``weight_change`` returns how they change ``[..., N]`` where all log pi change by
        ``[..., N]``; None: each contains its own pi(a | s) once.
        """
        distribution = self.distribution
        tangents = self.unflatten(vector)
        pushed = self.network.push(at.network, tangents)
        change = distribution.change(at.layers, tangents, pushed.outputs)
        cotangent = distribution.log_prob_curvature(
            at.distribution, score.cotangent, score.weights, change
        )
        if actions is not None:
            log_probs = distribution.log_prob_tangent(at.distribution, actions, change)
            weights = weight_change(log_probs) if weight_change else score.weights * log_probs
            more = distribution.log_prob_gradient(at.distribution, actions, weights)
            cotangent = distribution.sum(cotangent, more)
        outputs, own = distribution.split(at.layers, cotangent)
        gradients = self.network.pull_derivative(
            at.network, score.network, tangents, pushed, outputs
        )
        return array_namespace(vector).concat([*gradients, *own], axis=-1)

    @property
    def num_curvature_terms(self) -> int:
        """The size of ``curvature_terms``."""
        return int(self.network.num_curvature_terms)

    def curvature_terms(self, at: Evaluation, weights: Array) -> Array:
        """Return what ``preconditioner`` needs of each task, ``[..., n]``, to be averaged."""
        roots = self.distribution.fisher_roots(at.distribution)
        terms: Array = self.network.curvature_terms(at.network, roots, weights)
        return terms

    def preconditioner(self, terms: np.ndarray, damping: float) -> Inverse:
        """Return an approximate inverse of the Fisher matrix by theta, from mean terms ``[n]``."""
        network = self.network.preconditioner(terms, damping)
        own = self.distribution.own_fisher
        size = self.size - len(own)
        return blockwise([(size, network), (len(own), lambda vector: vector / own)])

    def push_forward(self, at: Evaluation, vector: Array) -> Parameters:
        """Return the derivative of the distribution's parameters along ``vector`` ``[..., P]``."""
        tangents = self.unflatten(vector)
        outputs = self.network.push(at.network, tangents).outputs
        return self.distribution.change(at.layers, tangents, outputs)

    def pull_back(self, at: Evaluation, cotangent: Parameters) -> Array:
        """Return the transpose of ``push_forward`` applied to ``cotangent``, ``[..., P]``."""
        outputs, own = self.distribution.split(at.layers, cotangent)
        gradients = self.network.pull(at.network, outputs).gradients
        return array_namespace(outputs).concat([*gradients, *own], axis=-1)
