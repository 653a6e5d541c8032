"""Distributed hierarchical meta-reinforcement learning as an MPI batch job."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_maml.config import load_config
    from hpc_maml.errors import InputError
    from hpc_maml.scripting import evaluate, train
    from hpc_maml.storage.reader import open_run

__version__ = "0.1.0"
__all__ = ["InputError", "evaluate", "load_config", "open_run", "train"]

# Loaded when they are asked for: who only reads a run needs neither MPI nor the environments.
HOMES = {
    "InputError": "hpc_maml.errors",
    "evaluate": "hpc_maml.scripting",
    "load_config": "hpc_maml.config",
    "open_run": "hpc_maml.storage.reader",
    "train": "hpc_maml.scripting",
}


THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def __getattr__(name: str) -> Any:
    if name in HOMES:
        if name in ("evaluate", "load_config", "train") and "numpy" not in sys.modules:
            # As the command line does, for the same bits; before what loads NumPy is imported.
            os.environ.update(dict.fromkeys(THREADS, "1"))
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
