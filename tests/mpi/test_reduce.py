"""Exact sums: the same bits whatever the grouping, the order and the number of ranks."""

import math
from fractions import Fraction

import numpy as np
import pytest

from hpc_maml.mpi.reduce import ExactSum, from_integers, to_integers


def terms(count: int, width: int) -> np.ndarray:
    """Return the same terms on every rank, of very different size, as a meta-gradient's are."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, width)) * 10.0 ** rng.integers(-9, 6, (count, width))


def my_share(comm, everything):
    """Deal the rows to the ranks, unevenly: rank 0 gets most, some may get none."""
    owner = np.minimum(np.arange(len(everything)) // 3, comm.size - 1)[::-1]
    return everything[owner == comm.rank]


def test_every_rank_count_gives_the_serial_bits(comm):
    everything = terms(11, 500)
    serial = from_integers(to_integers(everything))
    assert np.array_equal(ExactSum(comm, 10)(my_share(comm, everything)), serial)
    reversed_terms = my_share(comm, everything)[::-1]
    assert np.array_equal(ExactSum(comm, 10)(reversed_terms), serial)


def test_float32_terms_are_summed_exactly(comm):
    everything = (terms(9, 50) / 100).astype(np.float32)
    total = ExactSum(comm, 10)(my_share(comm, everything))
    for column, found in zip(everything.T, total, strict=True):
        # each term is cut off at 2^-64, the sum rounded to float64 once or twice
        exact = sum(Fraction(float(term)) for term in column)
        assert abs(Fraction(float(found)) - exact) <= 9 * Fraction(1, 2**64) + abs(exact) / 2**51


def test_a_rank_without_tasks_takes_part(comm):
    everything = terms(2, 7)
    mine = everything if comm.rank == comm.size - 1 else everything[:0]
    expected = from_integers(to_integers(everything))
    assert np.array_equal(ExactSum(comm, 10)(mine), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e10])
def test_what_cannot_be_summed_is_nan_on_every_rank(comm, bad):
    mine = np.ones((2, 3))
    if comm.rank == comm.size - 1:
        mine[1, 1] = bad
    total = ExactSum(comm, 10)(mine)
    assert np.isnan(total[1])
    assert np.array_equal(total[[0, 2]], [2 * comm.size] * 2)


def test_negative_and_tiny_terms():
    values = np.array([[-0.75, 2.0**-40, -(2.0**-63)], [0.25, -(2.0**-40), 0.0]])
    assert np.array_equal(from_integers(to_integers(values)), [-0.5, 0.0, -(2.0**-63)])
