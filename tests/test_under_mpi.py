"""Run the tests of tests/mpi under mpirun, at several rank counts."""

import pytest
from conftest import ROOT, start


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_tests_of_mpi_rooms(ranks):
    arguments = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "mpi"))
    job = start(ranks, python=arguments)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, out + err
    assert out.count(" passed") == ranks
