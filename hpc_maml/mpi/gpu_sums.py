"""May the MPI library be handed memory of a GPU? Asked of the library, then tried.

A library that takes a pointer to such memory for one of its own crashes, hangs or sums garbage, and
what it says of itself has been wrong. So it is tried in a process whose end harms nobody:
``python -m hpc_maml.mpi.gpu_sums DEVICE`` ends with 0 if a sum came out right.
"""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from hpc_maml.errors import InputError, reason_of
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.launcher import alone
from hpc_maml.mpi.topology import Topology, smallest

if TYPE_CHECKING:
    from hpc_maml.mpi.gpu import Gpu

TRIAL = (sys.executable, "-m", "hpc_maml.mpi.gpu_sums")
TRIAL_LIMIT = 120.0  # seconds; most of it is the import of torch
WRONG_SUM = 3  # exit code


def sum_of_agents(
    setting: str, gpu: "Gpu | None", topology: Topology, limit: float, spin: float = 0.0
) -> tuple[ExactSum, str]:
    """Return the sum over agents, and through which memory it goes, in words, for one with a GPU.

    ``setting`` is on, off or auto. All agents take the same way: that of GPU memory if none
    objects. With ``on``, the first whose MPI library says that it cannot raises InputError, for all
    of them.
    """
    agents = topology.agent_comm
    answer = ask_library() if gpu else None
    refuses = setting == "on" and gpu is not None and answer is False
    if smallest(agents, agents.rank if refuses else agents.size, limit) == agents.rank:
        raise InputError(
            "mpi.cuda_aware is on, but the MPI library says that it cannot use memory of a GPU."
        )
    through_host = ExactSum(agents, limit, gpu, spin=spin)
    if agents.size == 1:
        return through_host, "none, as there is one agent" if gpu else ""
    trial_limit = min(TRIAL_LIMIT, limit / 2)  # the others wait for it
    objection = _objection(setting, gpu, answer, topology.local_agent == 0, trial_limit)
    direct = ExactSum(agents, limit, gpu, direct=True, spin=spin)
    if smallest(agents, not objection, limit):
        # what one process proved by itself must hold between them
        terms = np.arange(1000.0)
        right = np.array_equal(direct(terms[None]), agents.size * terms)
        objection = "" if right else "a trial gave a wrong sum"
        if smallest(agents, right, limit):
            return direct, "in memory of the GPUs"
    reason = objection or "another agent needs it"
    return through_host, f"through memory of the host, as {reason}" if gpu else ""


def _objection(
    setting: str, gpu: "Gpu | None", answer: bool | None, tries: bool, trial_limit: float
) -> str:
    """Return what this agent has against handing MPI memory of a GPU, or nothing."""
    if gpu is None:
        return "an agent has no GPU"
    if setting == "off":
        return "mpi.cuda_aware is off"
    if setting == "on":
        return ""
    if answer is None:
        return "the MPI library does not say whether it can use memory of a GPU"
    if not answer:
        return "the MPI library says that it cannot use memory of a GPU"
    if not tries:  # the first agent of the node does, for all
        return ""
    return try_sum(gpu.name, trial_limit)


def ask_library() -> bool | None:
    """Return what the loaded MPI library says of itself, None if it does not."""
    library = ctypes.CDLL(MPI.__file__)  # and what that is linked with
    try:
        return bool(library.MPIX_Query_cuda_support())
    except AttributeError:
        return None


def try_sum(device: str, limit: float, command: Sequence[str] = TRIAL) -> str:
    """Sum memory of ``device`` in a process of its own; return what went wrong, or nothing.

    That is also what a trial without an end after ``limit`` seconds is.
    """
    try:
        child = subprocess.run(
            [*command, device],
            env=alone(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a trial did not end within {limit:g} s"
    except OSError as error:
        return f"a trial did not start: {reason_of(error)}"
    if child.returncode == WRONG_SUM:
        return "a trial gave a wrong sum"
    if child.returncode < 0:
        return f"a trial was ended by {signal.Signals(-child.returncode).name}"
    return f"a trial failed with exit code {child.returncode}" if child.returncode else ""


def _trial(device: str) -> int:
    """Sum memory of ``device`` over this process alone, from one array to another."""
    from hpc_maml.mpi.gpu import Gpu

    gpu = Gpu(device)
    terms = np.arange(1000)
    mine, total = gpu.array(terms), gpu.array(np.zeros_like(terms))
    gpu.synchronize()
    MPI.COMM_WORLD.Allreduce(mine, total, MPI.SUM)
    return 0 if np.array_equal(gpu.to_host(total), terms) else WRONG_SUM


if __name__ == "__main__":
    sys.exit(_trial(sys.argv[1]))
