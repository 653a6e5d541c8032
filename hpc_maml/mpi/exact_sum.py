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
    """Sum of per-task terms over the tasks of all ranks of a communicator, or of all teams.

    The sum of a term that is not finite, or not below 2^26, is NaN, on every rank. The terms may be
    tensors on ``gpu``; with ``direct``, which all ranks must agree on, MPI is then handed its
    memory, and otherwise a copy in the memory of the host.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        limit: float,
        gpu: "Gpu | None" = None,
        *,
        direct: bool = False,
        team: MPI.Comm = MPI.COMM_NULL,
        spin: float = 0.0,
    ) -> None:
        """Sum over ``comm``.

        With ``team`` the ranks of ``comm`` are the first of each team: sums are made in each team,
        among the first ranks, and told to the teams. Waits poll for ``spin`` seconds at first.
        """
        self.comm = comm
        self.team = team
        self.limit = limit
        self.spin = spin
        self.gpu: Any = gpu  # there is one where terms are tensors
        self.direct = direct
        self.waited = 0.0  # seconds, for the other ranks

    def __call__(self, terms: Array) -> np.ndarray:
        """Return the float64 sums ``[n]`` of ``terms`` ``[G, n]`` over G and over ranks.

        Every rank calls it in the same order, also with G = 0. Waits without using the core for
        long; raises TimeoutError.
        """
        total = self._add(to_integers(terms))
        sums = from_integers(total)
        if total[-1]:  # a divergence, which is rare: every rank sees that there is one
            xp = array_namespace(terms)
            bad = xp.astype(unusable_terms(terms), xp.int64)
            sums[self._add(bad.sum(0)) > 0] = np.nan
        return sums

    def _add(self, total: Array) -> np.ndarray:
        """Return the sum of int64 arrays ``[n]`` over ranks."""
        if self.direct:
            total = self._add_on_gpu(total)
        if not isinstance(total, np.ndarray):
            total = self.gpu.to_host(total)
        if self.team != MPI.COMM_NULL:
            self._add_by_teams(total)
        elif not self.direct and self.comm.size > 1:
            self._wait(self.comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM))
        return total

    def _add_by_teams(self, total: np.ndarray) -> None:
        """Replace ``total`` by the sum over all teams: one message a team goes between them."""
        first = self.team.rank == 0
        send, receive = (MPI.IN_PLACE, total) if first else (total, None)
        self._wait(self.team.Ireduce(send, receive, MPI.SUM, 0))
        if first:
            self._wait(self.comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM))
        self._wait(self.team.Ibcast(total, 0))

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
        wait(request, "the other ranks to add their terms", self.limit, self.spin)
        self.waited += time.perf_counter() - began


def to_integers(terms: Array) -> Array:
    """Return ``[2 n + 1]`` int64 sums over the first axis: high parts, low parts.

    The last one counts unusable terms, which stand for 0.
    """
    if isinstance(terms, np.ndarray):
        return _arrays_to_integers(terms)
    xp = array_namespace(terms)
    bad = unusable_terms(terms)
    scaled = xp.where(bad, 0.0, xp.astype(terms, xp.float64) * HIGH_SCALE)
    high = xp.floor(scaled)
    low = (scaled - high) * LOW_SCALE
    high, low, bad = (xp.astype(part, xp.int64) for part in (high, low, bad))
    return xp.concat([high.sum(0), low.sum(0), bad.sum()[None]])


def _arrays_to_integers(terms: np.ndarray) -> np.ndarray:
    number = terms.shape[1]
    total = np.zeros(2 * number + 1, np.int64)
    for place, term in enumerate(terms):  # so that what is computed of each stays in the cache
        scaled = term.astype(np.float64)
        scaled *= HIGH_SCALE
        bound = LARGEST * HIGH_SCALE
        if not (scaled.max(initial=0.0) < bound and scaled.min(initial=0.0) > -bound):
            bad = unusable_terms(term)
            scaled[bad] = 0.0
            total[-1] += bad.sum()
        high = np.floor(scaled)
        scaled -= high
        scaled *= LOW_SCALE
        if place == 0:
            total[:number], total[number:-1] = high, scaled
        else:
            total[:number] += high.astype(np.int64)
            total[number:-1] += scaled.astype(np.int64)
    return total


def unusable_terms(terms: Array) -> Array:
    """Tell which terms have no integers: those that are not finite, or too large."""
    xp = array_namespace(terms)
    return ~(xp.abs(xp.astype(terms, xp.float64)) < LARGEST)


def from_integers(total: np.ndarray) -> np.ndarray:
    """Return the float64 ``[n]`` that summed integers ``[2 n + 1]`` stand for."""
    number = len(total) // 2
    value = total[number:-1] * (1 / LOW_SCALE)  # exact as division by it is, and takes a third
    value += total[:number]
    value *= 1 / HIGH_SCALE
    return value
