"""The trial of an MPI library with memory of a GPU: whatever becomes of it is an outcome."""

import ctypes
import ctypes.util
import sys

import pytest
from conftest import start
from mpi4py import MPI

from hpc_maml.mpi.gpu_sums import ask_library, try_sum
from hpc_maml.mpi.launcher import alone


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", ""),
        ("import os; os.kill(os.getpid(), 11)", "a trial was ended by SIGSEGV"),
        ("import os; os.abort()", "a trial was ended by SIGABRT"),
        ("raise SystemExit(3)", "a trial gave a wrong sum"),
        ("raise RuntimeError", "a trial failed with exit code 1"),
        ("import time; time.sleep(60)", "a trial did not end within 1 s"),
        ("import sys; sys.exit(sys.argv[1:] != ['cuda:7'])", ""),
        ("import os, sys; sys.exit('PMI_RANK' in os.environ)", ""),
    ],
)
def test_outcomes(code, expected, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "3")
    limit = 1 if "sleep" in code else 60
    assert try_sum("cuda:7", limit, [sys.executable, "-c", code]) == expected


def test_a_trial_that_cannot_start():
    assert try_sum("cuda:0", 60, ["/no/such/program"]) == (
        "a trial did not start: No such file or directory"
    )


def test_a_wrong_sum_is_noticed():
    broken = (
        "import runpy, sys; from mpi4py import MPI; from hpc_maml.mpi.gpu import Gpu;"
        "original = Gpu.to_host; Gpu.to_host = lambda gpu, values: original(gpu, values) + 1;"
        "runpy.run_module('hpc_maml.mpi.gpu_sums', run_name='__main__', alter_sys=True)"
    )
    assert try_sum("cpu", 150, [sys.executable, "-c", broken]) == "a trial gave a wrong sum"


def test_a_trial_is_no_member_of_the_job_that_starts_it():
    """The real one: a process of a job must be able to start it, and a sum is right there."""
    code = (
        "from mpi4py import MPI; from hpc_maml.mpi.gpu_sums import try_sum;"
        "assert MPI.COMM_WORLD.size == 2; print(repr(try_sum('cpu', 150)))"
    )
    job = start(2, python=("-c", code))
    out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert out.split() == ["''", "''"], err


def test_settings_of_an_mpi_stay_and_its_job_does_not():
    of_the_job = {
        "PMI_RANK": "1",
        "PMIX_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_MCA_ess": "env",
        "OMPI_MCA_orte_hnp_uri": "x",
        "SLURM_PROCID": "1",
    }
    settings = {"OMPI_MCA_opal_cuda_support": "1", "UCX_TLS": "cuda", "PATH": "/bin"}
    assert alone(of_the_job | settings) == settings
    slurm = {"SLURM_PROCID": "1"}
    assert alone(of_the_job | settings, in_allocation=True) == settings | slurm


def test_the_library_is_asked(monkeypatch):
    """That of this process, whatever else is installed; the answer of another is another."""
    library = ctypes.CDLL(MPI.__file__)
    answers = hasattr(library, "MPIX_Query_cuda_support")
    assert ask_library() == (bool(library.MPIX_Query_cuda_support()) if answers else None)
    monkeypatch.setattr(MPI, "__file__", ctypes.util.find_library("c"))
    assert ask_library() is None
