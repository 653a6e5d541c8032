"""Sums over tasks that do not depend on order: exact, in integers, so any rank count agrees."""

import time

import numpy as np
from mpi4py import MPI

from hpc_maml.mpi.waiting import wait

# A term x becomes two integers: floor(x * 2^24) and the next 40 bits. Sums of 2^13 terms below 2^26
# fit 64 bits, and what lies below 2^-64 is cut off, for each term by itself and alike everywhere.
HIGH_SCALE, LOW_SCALE = 2.0**24, 2.0**40
LARGEST = 2.0**26


class ExactSum:
    """Sum of per-task terms over the tasks of all ranks of a communicator.

    The sum of a term that is not finite, or not below 2^26, is NaN, on every rank.
    """

    def __init__(self, comm: MPI.Comm, limit: float) -> None:
        self.comm = comm
        self.limit = limit
        self.waited = 0.0  # seconds, for the other ranks

    def __call__(self, terms: np.ndarray) -> np.ndarray:
        """Return the float64 sums ``[n]`` of ``terms`` ``[G, n]`` over G and over ranks.

        Every rank calls it in the same order, also with G = 0. Waits passively; raises
        TimeoutError.
        """
        total = to_integers(terms)
        request = self.comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM)
        began = time.perf_counter()
        wait(request, "the other agents to add their terms", self.limit)
        self.waited += time.perf_counter() - began
        return from_integers(total)


def to_integers(terms: np.ndarray) -> np.ndarray:
    """Return ``[3, n]`` int64 sums over the first axis: high parts, low parts, unusable terms."""
    scaled = terms.astype(np.float64) * HIGH_SCALE
    unusable = ~(np.abs(scaled) < LARGEST * HIGH_SCALE)
    scaled[unusable] = 0.0
    high = np.floor(scaled)
    low = (scaled - high) * LOW_SCALE
    return np.stack([high.astype(np.int64).sum(0), low.astype(np.int64).sum(0), unusable.sum(0)])


def from_integers(total: np.ndarray) -> np.ndarray:
    """Return the float64 ``[n]`` that summed integers ``[3, n]`` stand for."""
    high, low, unusable = total
    value = (high + low / LOW_SCALE) / HIGH_SCALE
    return np.where(unusable > 0, np.nan, value)
