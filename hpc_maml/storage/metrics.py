"""What is recorded of every iteration, and the file it is kept in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_maml.errors import InputError
from hpc_maml.storage.files import write_hdf5

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Metric:
    """A number recorded once per iteration."""

    unit: str
    description: str
    wall_clock: bool = False  # depends on time and place, not on configuration and seed
    dtype: type = np.float64
    shape: str = "[iteration]"


def _return_metrics(phase: str) -> dict[str, Metric]:
    words = {
        "mean": "mean over tasks",
        "std": "standard deviation over tasks",
        "min": "worst task",
        "max": "best task",
    }
    return {
        f"{phase}_return_{name}": Metric("reward", f"undiscounted return, {text}")
        for name, text in words.items()
    }


METRICS: dict[str, Metric] = {
    **_return_metrics("pre_update"),
    **_return_metrics("post_update"),
    "pre_update_episode_length": Metric("steps", "mean length of an episode before adaptation"),
    "post_update_episode_length": Metric("steps", "mean length of an episode after adaptation"),
    "inner_loss_before": Metric("1", "inner loss at the meta-policy, on the first inner batch"),
    "inner_loss_after": Metric("1", "inner loss at the adapted policy, on the last inner batch"),
    "surrogate_before": Metric("1", "surrogate loss after adaptation at the old meta-policy"),
    "surrogate_after": Metric("1", "the same at the new meta-policy"),
    "kl_before": Metric("nat", "estimated KL from the behaviour policy, rounding only"),
    "kl_after": Metric("nat", "mean KL after adaptation, old to new meta-policy"),
    "gradient_norm": Metric("1", "Euclidean norm of the meta-gradient"),
    "cg_residual": Metric("1", "Euclidean norm of the conjugate gradient residual"),
    "cg_iterations": Metric("1", "conjugate gradient iterations done", dtype=np.int64),
    "line_search_steps": Metric("1", "line search candidates judged", dtype=np.int64),
    "accepted": Metric("1", "1 if the update was taken, 0 if rejected", dtype=np.int64),
    "rejected_updates": Metric("1", "rejected or non-finite updates so far", dtype=np.int64),
    "diverged_episodes": Metric("1", "episodes the simulator gave up", dtype=np.int64),
    "environment_steps": Metric("steps", "environment steps of this iteration", dtype=np.int64),
    "environment_steps_total": Metric("steps", "environment steps so far", dtype=np.int64),
    "sampling_seconds": Metric("s", "from the order to the last batch", wall_clock=True),
    "update_seconds": Metric("s", "from the last batch to the new meta-policy", wall_clock=True),
    "iteration_seconds": Metric("s", "the whole iteration, as the principal sees it", True),
    "principal_busy": Metric("1", "fraction of the iteration spent working", True),
    "agents_busy": Metric("1", "the same, mean over agents", wall_clock=True),
    "observers_busy": Metric("1", "the same, mean over observers", wall_clock=True),
    "ranks": Metric("1", "MPI ranks of the job", True, np.int64),
    "agents": Metric("1", "ranks that were agents", True, np.int64),
    "observers": Metric("1", "ranks that were observers", True, np.int64),
    "cores": Metric("1", "cores of all ranks together", True, np.int64),
    "gpus": Metric("1", "agents that had a GPU", True, np.int64),
}

# Recorded for every task of an iteration, in the order of the tasks.
PER_TASK: dict[str, Metric] = {
    "task": Metric(
        "see docs/environments.md",
        "what distinguishes the task",
        shape="[iteration, task, task_dim]",
    ),
    "pre_update_return": Metric(
        "reward",
        "undiscounted return before adaptation, mean of episodes",
        shape="[iteration, task]",
    ),
    "post_update_return": Metric(
        "reward",
        "undiscounted return after adaptation, mean of episodes",
        shape="[iteration, task]",
    ),
    "return_after_updates": Metric(
        "reward",
        "undiscounted return after 0, 1, ... inner steps, mean of episodes",
        shape="[iteration, task, updates]",
    ),
}


class Metrics:
    """The metrics of a run so far; ``write`` puts all of them into one file, whole."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self.path = path
        self.versions = dict(versions)
        self.rows: list[dict[str, Any]] = []  # one per iteration, names of METRICS and PER_TASK

    def read(self, iterations: int) -> None:
        """Take over the first ``iterations`` rows of the file.

        Raises InputError if the file is damaged or holds fewer.
        """
        try:
            with h5py.File(self.path, "r") as file:
                columns = {name: file["iterations"][name][:iterations] for name in METRICS}
                columns |= {name: file["tasks"][name][:iterations] for name in PER_TASK}
        except (OSError, KeyError, ValueError) as error:
            if not iterations:
                return
            raise InputError(
                f"The metrics file {self.path} is damaged ({' '.join(str(error).split())})."
            ) from None
        if any(len(column) != iterations for column in columns.values()):
            raise InputError(
                f"The metrics file {self.path} holds fewer than the {iterations} iterations "
                "of the checkpoint."
            )
        self.rows = [
            {name: column[row] for name, column in columns.items()} for row in range(iterations)
        ]

    def write(self, *, durable: bool) -> None:
        """Write the file anew and put it in the place of the old one."""

        def fill(file: h5py.File) -> None:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs.update(self.versions)
            for group, metrics in (("iterations", METRICS), ("tasks", PER_TASK)):
                folder = file.create_group(group)
                for name, metric in metrics.items():
                    column = np.array([row[name] for row in self.rows], metric.dtype)
                    dataset = folder.create_dataset(name, data=column)
                    dataset.attrs["unit"] = metric.unit
                    dataset.attrs["description"] = metric.description
                    dataset.attrs["shape"] = metric.shape
                    dataset.attrs["wall_clock"] = metric.wall_clock
            file.attrs["committed_iterations"] = len(self.rows)

        write_hdf5(self.path, fill, durable=durable)
