"""Exact sums: the same bits whatever the grouping, the order and the number of ranks."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from mpi4py import MPI

from hpc_maml.mpi.exact_sum import ExactSum, from_integers, to_integers
from hpc_maml.mpi.gpu import Gpu

GPU = Gpu("cpu")


def terms(count: int, width: int) -> np.ndarray:
    """Return the same terms on every rank, of very different size, as a meta-gradient's are."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, width)) * 10.0 ** rng.integers(-9, 6, (count, width))


WAYS = ["arrays", "teams of two", "one team", "tensors through the host", "tensors handed to MPI"]


@pytest.fixture(params=WAYS)
def add(request, comm):
    """Return the sum over ranks of arrays [G, n] as they are, in teams or not, or as tensors."""
    if "team" in request.param:
        size = 2 if "two" in request.param else comm.size
        team = comm.Split(comm.rank // size)
        firsts = comm.Split(0 if team.rank == 0 else MPI.UNDEFINED)
        yield ExactSum(firsts, 10, team=team, spin=1e-3)
        team.Free()
        if firsts != MPI.COMM_NULL:
            firsts.Free()
    elif request.param == "arrays":
        yield ExactSum(comm, 10)
    else:
        exact_sum = ExactSum(comm, 10, GPU, direct=request.param.endswith("MPI"))
        yield lambda terms: exact_sum(GPU.array(terms))


def my_share(comm, everything):
    """Deal the rows to the ranks, unevenly: rank 0 gets most, some may get none."""
    owner = np.minimum(np.arange(len(everything)) // 3, comm.size - 1)[::-1]
    return everything[owner == comm.rank]


def test_every_rank_count_gives_the_serial_bits(comm, add):
    everything = terms(11, 500)
    serial = from_integers(to_integers(everything))
    assert np.array_equal(add(my_share(comm, everything)), serial)
    reversed_terms = my_share(comm, everything)[::-1].copy()
    assert np.array_equal(add(reversed_terms), serial)


def test_float32_terms_are_summed_exactly(comm, add):
    everything = (terms(9, 50) / 100).astype(np.float32)
    total = add(my_share(comm, everything))
    for column, found in zip(everything.T, total, strict=True):
        # each term is cut off at 2^-64, the sum rounded to float64 once or twice
        exact = sum(Fraction(float(term)) for term in column)
        assert abs(Fraction(float(found)) - exact) <= 9 * Fraction(1, 2**64) + abs(exact) / 2**51


def test_a_rank_without_tasks_takes_part(comm):
    everything = terms(2, 7)
    mine = everything if comm.rank == comm.size - 1 else everything[:0]
    expected = from_integers(to_integers(everything))
    assert np.array_equal(ExactSum(comm, 10)(mine), expected)
    for direct in (False, True):  # no tensor either: there is no group to take it from
        tensors = GPU.array(mine) if len(mine) else mine
        assert np.array_equal(ExactSum(comm, 10, GPU, direct=direct)(tensors), expected)


class Watched:
    """A communicator that notes what it is asked to sum."""

    def __init__(self, comm):
        self.comm = comm
        self.calls = []

    @property
    def size(self):
        return self.comm.size

    def Ibarrier(self):  # noqa: N802
        self.barrier = self.comm.Ibarrier()
        return self.barrier

    def Iallreduce(self, _, buffer, op):  # noqa: N802
        self.calls.append(("Iallreduce", type(buffer)))
        return self.comm.Iallreduce(MPI.IN_PLACE, buffer, op)

    def Allreduce(self, _, buffer, op):  # noqa: N802
        self.calls.append(("Allreduce", type(buffer)))
        self.comm.Allreduce(MPI.IN_PLACE, buffer, op)


def test_only_a_blocking_reduction_is_handed_memory_of_a_gpu(comm):
    tensors = GPU.array(terms(2, 5))
    for direct in (False, True):
        watched = Watched(comm)
        ExactSum(watched, 10, GPU, direct=direct)(tensors)
        through_host = [("Iallreduce", np.ndarray)] if comm.size > 1 else []
        assert watched.calls == ([("Allreduce", type(tensors))] if direct else through_host)


def test_a_rank_that_never_comes_to_a_sum_on_the_gpu_is_a_timeout(comm):
    if comm.rank == 0 < comm.size - 1:
        watched = Watched(comm)
        with pytest.raises(TimeoutError, match="the other ranks to add their terms"):
            ExactSum(watched, 0.3, GPU, direct=True)(GPU.array(terms(2, 5)))
        watched.barrier.Wait()  # this one goes on, so that it must not leave a request open
    else:
        time.sleep(0.6)
        comm.Ibarrier().Wait()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e10])
def test_what_cannot_be_summed_is_nan_on_every_rank(comm, add, bad):
    mine = np.ones((2, 3))
    if comm.rank == comm.size - 1:
        mine[1, 1] = bad
    total = add(mine)
    assert np.isnan(total[1])
    assert np.array_equal(total[[0, 2]], [2 * comm.size] * 2)


def test_one_message_a_team_goes_between_teams(comm):
    team = comm.Split(comm.rank // 2)
    firsts = comm.Split(0 if team.rank == 0 else MPI.UNDEFINED)
    watched = Watched(firsts)
    ExactSum(watched, 10, team=team)(terms(2, 5))
    assert watched.calls == ([("Iallreduce", np.ndarray)] if team.rank == 0 else [])


def test_negative_and_tiny_terms():
    values = np.array([[-0.75, 2.0**-40, -(2.0**-63)], [0.25, -(2.0**-40), 0.0]])
    assert np.array_equal(from_integers(to_integers(values)), [-0.5, 0.0, -(2.0**-63)])
