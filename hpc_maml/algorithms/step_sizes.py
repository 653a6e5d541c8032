"""Sizes of inner steps: fixed, or learned with the policy (Li et al. 2017, "Meta-SGD")."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from hpc_maml.policies.network import Array

Learned = Literal["none", "step", "layer", "parameter"]
STEP_SIZES = "step_sizes"  # in the state, float32 [num_inner_steps, groups]


@dataclass(frozen=True)
class StepSizeGroups:
    """The groups of neighbouring parameters that share a step size."""

    edges: tuple[int, ...]  # of the groups in theta; the last is P

    @classmethod
    def of(cls, learned: Learned, shapes: Mapping[str, tuple[int, ...]]) -> "StepSizeGroups":
        """Return one group, one for each parameter array, or one for each parameter."""
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()]).tolist()
        if learned == "layer":
            return cls((0, *ends))
        return cls((0, ends[-1]) if learned == "step" else tuple(range(ends[-1] + 1)))

    @property
    def number(self) -> int:
        """The number of groups."""
        return len(self.edges) - 1

    @property
    def _each_alone(self) -> bool:
        return self.number == self.edges[-1]

    def expand(self, values: Array) -> Array:
        """Return a value ``[..., P]`` for each parameter of values ``[..., groups]``."""
        if self._each_alone:
            return values
        xp = array_namespace(values)
        parts = [
            xp.broadcast_to(values[..., group : group + 1], (*values.shape[:-1], end - start))
            for group, (start, end) in enumerate(pairwise(self.edges))
        ]
        return xp.concat(parts, axis=-1)

    def contract(self, values: Array) -> Array:
        """Return the sums over each group ``[..., groups]``: the transpose of ``expand``."""
        if self._each_alone:
            return values
        xp = array_namespace(values)
        sums = [values[..., start:end].sum(-1) for start, end in pairwise(self.edges)]
        return xp.stack(sums, axis=-1)
