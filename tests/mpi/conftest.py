"""Tests that run on every rank of a job: mpirun -np N python -m pytest -n0 -x tests/mpi.

They also run from the ordinary suite, see tests/test_under_mpi.py, and from ctest.
"""

from collections.abc import Iterator

import pytest
from mpi4py import MPI


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    """Return a communicator of its own for each test."""
    duplicate = MPI.COMM_WORLD.Dup()
    yield duplicate
    duplicate.Free()
