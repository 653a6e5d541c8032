"""Distributed hierarchical meta-reinforcement learning as an MPI batch job."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hpc_maml.storage.reader import Run

__version__ = "0.1.0"


def open_run(path: "str | Path") -> "Run":
    """Open a run folder for analysis, also while it is being written; raises InputError."""
    from hpc_maml.storage.reader import Run  # not with the package: training does not need it

    return Run(path)
