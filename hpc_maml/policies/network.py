"""What a policy asks of its network: outputs, and products with their derivatives.

Parameters are matrices by name, views into one vector theta ``[..., P]``; leading dimensions stand
for tasks. The same lines run on NumPy arrays (observers, and agents on a CPU) and on torch tensors
(agents on a GPU).
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from hpc_maml.policies.preconditioner import Inverse, diagonal_inverse
from hpc_maml.settings import Section

Array = Any  # a NumPy array or a torch tensor
Layers = dict[str, Array]  # name -> parameters [..., *shape], as in ``shapes``

PROBES = 8  # products that the diagonal of a Gauss-Newton matrix is estimated from

NAME = "mlp, gru, or module:Class: a torch.nn.Module"  # what policy.name is


class NetworkSettings(Section):
    """The keys of every network."""

    name: str = Field("mlp", description=NAME)


@dataclass(frozen=True)
class Sizes:
    """What an environment asks of a network."""

    observation: int  # numbers
    action: int  # components of an action; discrete: number of actions
    discrete: bool
    output: int  # numbers that the distribution of actions takes from the network


class Network(ABC):
    """A map from observations ``[..., N, observation]`` to outputs ``[..., N, output]``."""

    Settings: ClassVar[type[NetworkSettings]] = NetworkSettings
    memory_size: int = 0  # of a recurrent network: numbers kept from step to step

    @classmethod
    @abstractmethod
    def make(cls, settings: Any, sizes: Sizes) -> Self:
        """Return the network of a configuration; raises InputError if it cannot be made."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each parameter array, in the order of theta."""

    @abstractmethod
    def initialise(self, layers: Layers, rng: np.random.Generator) -> None:
        """Fill the parameters of a new network, views into a vector of zeros."""


class FeedForward(Network):
    """A network without memory, with the products that gradient-based adaptation needs."""

    @abstractmethod
    def forward(self, layers: Layers, observations: Array) -> Array:
        """Return the outputs ``[..., N, output]``."""

    @abstractmethod
    def linearise(self, layers: Layers, observations: Array) -> Any:
        """Return the outputs as ``.outputs``, with what the products below need."""

    @abstractmethod
    def push(self, at: Any, tangents: Layers) -> Any:
        """Return the derivative of the outputs along ``tangents`` as ``.outputs``.

        With it comes what ``pull_derivative`` needs.
        """

    @abstractmethod
    def pull(self, at: Any, cotangent: Array, *, again: bool = False) -> Any:
        """Return the gradient of the sum of outputs times ``cotangent`` as ``.gradients``.

        These are flat, ``[..., n]``, one for each of ``shapes``. If they are to be differentiated
        ``again``, what ``pull_derivative`` needs comes with them.
        """

    @abstractmethod
    def pull_derivative(
        self, at: Any, pulled: Any, tangents: Layers, pushed: Any, cotangent: Array
    ) -> list[Array]:
        """Return the derivative of ``pulled.gradients`` along ``tangents``.

        ``pushed`` is ``push`` along them, ``cotangent`` the change of the cotangent.
        """

    @property
    def num_curvature_terms(self) -> int:
        """The size n of ``curvature_terms``."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def curvature_terms(self, at: Any, cotangents: Sequence[Array], weights: Array) -> Array:
        """Return what ``preconditioner`` needs of each task, ``[..., n]``, to be averaged.

        The Gauss-Newton matrix is the sum, over samples with ``weights`` ``[..., N]`` and over
        ``cotangents`` ``[..., N, output]``, of the products of their gradients with themselves.
        Here: its diagonal ``[..., P]``, estimated from products with random signs (Bekas et al.
        2007), always the same ones.
        """
        xp = array_namespace(weights)
        rng, total = np.random.default_rng(0), 0.0
        for _ in range(PROBES):
            shape = (len(cotangents), weights.shape[-1], 1)
            signs = rng.choice(np.asarray([-1, 1], np.float32), shape)
            signs = xp.asarray(signs, dtype=weights.dtype, device=device(weights))
            roots = sum(map(operator.mul, cotangents, signs)) * xp.sqrt(weights)[..., None]
            gradient = xp.concat(self.pull(at, roots).gradients, axis=-1)
            total = total + gradient * gradient / PROBES
        return total

    def preconditioner(self, terms: np.ndarray, damping: float) -> Inverse:
        """Return an approximate inverse of that matrix, from mean terms ``[n]``."""
        return diagonal_inverse(terms, damping)
