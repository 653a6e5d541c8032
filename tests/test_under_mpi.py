"""Run the tests of tests/mpi under mpirun, at several rank counts."""

import pytest
from conftest import ROOT, start

FOLDER = ROOT / "tests" / "mpi"
ROOMS = ["test_exchange.py", "test_gpu_aware.py", "test_reduce.py", "test_topology.py"]


@pytest.mark.parametrize(
    ("ranks", "files"),
    [
        (3, ROOMS),
        *(pytest.param(ranks, ROOMS, marks=pytest.mark.slow) for ranks in (1, 2, 5)),
        pytest.param(16, ["test_invariance.py"], marks=pytest.mark.slow),
    ],
)
def test_under_mpi(ranks, files):
    paths = [str(FOLDER / file) for file in files]
    job = start(
        ranks,
        python=("-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", *paths),
        OPENBLAS_NUM_THREADS="1",
        OMP_NUM_THREADS="1",
    )
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, out + err
    assert out.count(" passed") == ranks
