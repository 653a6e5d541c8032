"""The programs that benchmarks start: MPI jobs, and the yardsticks that CMake built."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc_maml.mpi.launcher import alone

ROOT = Path(__file__).parent.parent
# words: the outer step of the publications (Finn et al. 2017; Schulman et al. 2015)
PUBLISHED = ("gae_lambda=1", "algorithm.max_kl=0.01", "algorithm.cg_iters=10")
PUBLISHED += ("algorithm.cg_memory=0", "algorithm.ls_interpolate=false")
PUBLISHED += ("algorithm.inner_loss=reinforce",)
HOW_TO_BUILD = "not built: cmake -S . -B build && cmake --build build"


def yardstick(name: str, build: Path) -> Path | None:
    """Return the program of a yardstick, None where it has not been built."""
    path = build / "benchmarks" / "yardsticks" / name
    return path if path.exists() else None


def run(
    command: Sequence[str | Path], ranks: int | None = None, cores: int | None = None
) -> list[str]:
    """Run a command, under mpirun for ``ranks``, on that many cores; return what it printed.

    On all cores of this process without a number. What it says beside that, as libraries do of
    models of Gymnasium, is shown if it fails: raises CalledProcessError.
    """
    # A benchmark may itself have been started as an MPI process.
    clean = alone(in_allocation=True)
    # It may also have been started elsewhere, but these modules stand beside it.
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
    if ranks:
        mpirun = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or "mpirun"
        command = [mpirun, "-np", str(ranks), *command]
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:cores])  # children inherit it
    try:
        result = subprocess.run(
            list(map(str, command)), check=False, capture_output=True, text=True, env=clean
        )
    finally:
        os.sched_setaffinity(0, mine)
    if result.returncode:
        sys.stderr.write(result.stderr)
        result.check_returncode()
    return result.stdout.splitlines()
