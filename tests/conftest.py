"""Real MPI for the tests: jobs are started with the mpirun beside the running Python."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mpi4py import MPI

ROOT = Path(__file__).parent.parent
MPIRUN = shutil.which(
    "mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
# A job small enough for any rank count on two cores.
SMALL = (
    "meta_batch_size=6",
    "fast_batch_size=3",
    "horizon=12",
    "num_iterations=5",
    "policy.hidden_sizes=[8, 8]",
    "mpi.wait_limit=60",
    "device=cpu",
    "metrics.tensorboard=off",  # half a second of imports in each of many jobs
)


def pytest_report_header() -> str:
    library = MPI.Get_library_version().splitlines()[0].strip(" \0")
    return f"MPI: {library} ({MPIRUN})"


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a job: that of this process, without any launcher's variables."""
    launcher = ("PMI", "OMPI", "PMIX", "SLURM", "MPI_LOCAL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept | allowed | {"COLUMNS": "120"} | changes


def command(ranks: int | None, arguments: Sequence[str], python: Sequence[str] = ()) -> list[str]:
    """Return the command of a job on ``ranks`` ranks, or without mpirun for None."""
    run = [sys.executable, *(python or ("-m", "hpc_maml")), *map(str, arguments)]
    if ranks is None:
        return run
    oversubscribe = ["--oversubscribe"] if "Open MPI" in MPI.Get_library_version() else []
    return [MPIRUN, *oversubscribe, "-np", str(ranks), *run]


def start(ranks: int | None, *arguments: str, python: Sequence[str] = (), **changes: str):
    """Start a job; its output is text, both streams."""
    return subprocess.Popen(
        command(ranks, arguments, python),
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    ranks: int | None, *arguments: str, timeout: float = 120, code: int = 0, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end and check its exit code."""
    job = start(ranks, *arguments, **changes)
    try:
        out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        job.kill()
        out, err = job.communicate(timeout=10)
        pytest.fail(f"no end after {timeout} s\n{out}\n{err}")
    assert job.returncode == code, f"exit code {job.returncode}, not {code}\n{out}\n{err}"
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own, since jobs write ``runs/``."""
    monkeypatch.chdir(tmp_path)
