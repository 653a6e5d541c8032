"""Sums over tasks that do not depend on order: exact, in integers, so any rank count agrees."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace
from mpi4py import MPI

from hpc_maml.mpi.waiting import wait
from hpc_maml.policies.network import Array

if TYPE_CHECKING:
    from hpc_maml.mpi.gpu import Gpu

# A term x becomes two integers: floor(x * 2^24) and the next 40 bits. Sums of 2^13 terms below 2^26
# fit 64 bits, and what lies below 2^-64 is cut off, for each term by itself and alike everywhere.
HIGH_SCALE, LOW_SCALE = 2.0**24, 2.0**40
LARGEST = 2.0**26


class ExactSum:
    """Sum of per-task terms over the tasks of all ranks of a communicator.

    The sum of a term that is not finite, or not below 2^26, is NaN, on every rank. The terms may be
    tensors on ``gpu``; with ``direct``, which all ranks must agree on, MPI is then handed its
    memory, and otherwise a copy in the memory of the host.
    """

    def __init__(
        self, comm: MPI.Comm, limit: float, gpu: "Gpu | None" = None, direct: bool = False
    ) -> None:
        self.comm = comm
        self.limit = limit
        self.gpu: Any = gpu  # there is one where terms are tensors
        self.direct = direct
        self.waited = 0.0  # seconds, for the other ranks

    def __call__(self, terms: Array) -> np.ndarray:
        """Return the float64 sums ``[n]`` of ``terms`` ``[G, n]`` over G and over ranks.

        Every rank calls it in the same order, also with G = 0. Waits passively; raises
        TimeoutError.
        """
        total = to_integers(terms)
        if self.direct:
            total = self._add_on_gpu(total)
        if not isinstance(total, np.ndarray):
            total = self.gpu.to_host(total)
        if not self.direct and self.comm.size > 1:
            self._wait(self.comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM))
        return from_integers(total)

    def _add_on_gpu(self, total: Array) -> Array:
        """Return the sum over ranks, in memory of the GPU."""
        if isinstance(total, np.ndarray):  # of an agent without tasks
            total = self.gpu.array(total)
        self.gpu.synchronize()
        # Nonblocking reductions of such memory are broken in MPI libraries, and a blocking one
        # neither sleeps nor ends: so none begins before all ranks are there.
        self._wait(self.comm.Ibarrier())
        self.comm.Allreduce(MPI.IN_PLACE, total, MPI.SUM)
        return total

    def _wait(self, request: MPI.Request) -> None:
        began = time.perf_counter()
        wait(request, "the other agents to add their terms", self.limit)
        self.waited += time.perf_counter() - began


def to_integers(terms: Array) -> Array:
    """Return ``[3, n]`` int64 sums over the first axis: high parts, low parts, unusable terms."""
    xp = array_namespace(terms)
    scaled = xp.astype(terms, xp.float64) * HIGH_SCALE
    unusable = ~(xp.abs(scaled) < LARGEST * HIGH_SCALE)
    scaled = xp.where(unusable, 0.0, scaled)
    high = xp.floor(scaled)
    low = (scaled - high) * LOW_SCALE
    high, low, unusable = (xp.astype(part, xp.int64) for part in (high, low, unusable))
    return xp.stack([high.sum(0), low.sum(0), unusable.sum(0)])


def from_integers(total: np.ndarray) -> np.ndarray:
    """Return the float64 ``[n]`` that summed integers ``[3, n]`` stand for."""
    high, low, unusable = total
    value = (high + low / LOW_SCALE) / HIGH_SCALE
    return np.where(unusable > 0, np.nan, value)
