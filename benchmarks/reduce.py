"""One reduction of the outer step, against an all-reduce of the same floats in C.

As a program under mpirun it prints the seconds of each reduction, from the slowest rank:
python -m benchmarks.reduce BYTES REPEATS
"""

import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from mpi4py import MPI

from benchmarks.programs import HOW_TO_BUILD, run, yardstick
from benchmarks.table import Row, compare
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.mpi.waiting import SPIN, wait

REPEATS = 50
SIZES = {"23 KB": 23_000, "86 KB": 86_000}  # parameters of the half-cheetah's and the ant's policy


def measure(rounds: int, build: Path) -> list[Row]:
    """Return the rows for as many ranks as cores, and twice as many."""
    program = yardstick("allreduce", build)
    rows = []
    cores = len(os.sched_getaffinity(0))
    for ranks in sorted({max(2, cores), max(2, cores) * 2}):
        for name, size in SIZES.items():
            ours, native = [], []
            for _ in range(rounds):
                ours.append(middle(command(size), ranks))
                if program:
                    native.append(middle([program, size, REPEATS], ranks))
            against = "MPI_Allreduce in C" if native else HOW_TO_BUILD
            rows.append(compare(f"reduction, {name}, {ranks} ranks", "s", ours, native, against))
    return rows


def command(size: int) -> list:
    """Return the command that reduces ``size`` bytes of terms as the agents do."""
    return [sys.executable, "-m", "benchmarks.reduce", size, REPEATS]


def middle(program: list, ranks: int) -> float:
    """Return the median of the numbers that a program prints under mpirun."""
    return median(float(line) for line in run(program, ranks))


def main() -> None:
    """Reduce again and again."""
    comm = MPI.COMM_WORLD
    size, repeats = map(int, sys.argv[1:])
    keep_freed_memory()
    spin = SPIN if comm.size <= len(os.sched_getaffinity(0)) else 0.0  # as ranks of a job do
    reduce = ExactSum(comm, limit=60.0, spin=spin)
    terms = np.ones((1, size // 4), np.float32)
    for _ in range(repeats):
        wait(comm.Ibarrier(), "the other ranks", 60.0, spin)
        began = time.perf_counter()
        reduce(terms)
        slowest = comm.reduce(time.perf_counter() - began, MPI.MAX)
        if comm.rank == 0:
            print(f"{slowest:.9f}")


if __name__ == "__main__":
    main()
