"""What is recorded of every iteration, and the file it is kept in."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.errors import InputError
from hpc_maml.storage.hdf5_files import opened, write_hdf5

FORMAT_VERSION = 2  # 1: without what an algorithm declares


def _return_metrics(prefix: str, phase: str) -> dict[str, Metric]:
    words = {
        "mean": "mean over tasks",
        "std": "standard deviation over tasks",
        "min": "worst task",
        "max": "best task",
    }
    return {
        f"{prefix}_return_{name}": Metric(
            "reward", f"undiscounted return in the {phase} phase, {text}"
        )
        for name, text in words.items()
    }


# Of every run, whatever the algorithm; it adds columns of its own.
METRICS: dict[str, Metric] = {
    **_return_metrics("pre_update", "first"),
    **_return_metrics("post_update", "last"),
    "pre_update_episode_length": Metric("steps", "mean length of an episode of the first phase"),
    "post_update_episode_length": Metric("steps", "mean length of an episode of the last phase"),
    "accepted": Metric("1", "1 if the update was taken, 0 if rejected", dtype=np.int64),
    "rejected_updates": Metric("1", "rejected or non-finite updates so far", dtype=np.int64),
    "diverged_episodes": Metric("1", "episodes the simulator gave up", dtype=np.int64),
    "environment_steps": Metric("steps", "environment steps of this iteration", dtype=np.int64),
    "environment_steps_total": Metric("steps", "environment steps so far", dtype=np.int64),
    "sampling_seconds": Metric("s", "from the order to the last batch", wall_clock=True),
    "update_seconds": Metric("s", "from the last batch to the new state", wall_clock=True),
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
        "undiscounted return in the first phase, mean of episodes",
        shape="[iteration, task]",
    ),
    "post_update_return": Metric(
        "reward",
        "undiscounted return in the last phase, mean of episodes",
        shape="[iteration, task]",
    ),
    "return_after_updates": Metric(
        "reward",
        "undiscounted return in each phase: after 0, 1, ... inner steps, or in each episode of a "
        "trial; mean of episodes",
        shape="[iteration, task, phase]",
    ),
}


# The same of environments that say which episodes succeeded, at any of their steps.
SUCCESS_PER_TASK: dict[str, Metric] = {
    "pre_update_success": Metric(
        "1", "share of the episodes of the first phase that succeeded", shape="[iteration, task]"
    ),
    "post_update_success": Metric(
        "1", "share of the episodes of the last phase that succeeded", shape="[iteration, task]"
    ),
    "success_after_updates": Metric(
        "1",
        "share of the episodes of each phase that succeeded",
        shape="[iteration, task, phase]",
    ),
}


CLASS_SUCCESS = "post_update_success_of_{}"  # column of a class of tasks


def success_metrics(classes: Iterable[str]) -> dict[str, Metric]:
    """Return the columns of success, one for each class of training tasks among them."""
    found = {
        f"{prefix}_success_mean": Metric(
            "1", f"share of the episodes of the {phase} phase that succeeded, mean over tasks"
        )
        for prefix, phase in (("pre_update", "first"), ("post_update", "last"))
    }
    for name in classes:
        words = f"post_update_success_mean of the tasks {name}"
        found[CLASS_SUCCESS.format(name)] = Metric("1", words)
    return found


class Metrics:
    """The metrics of a run so far; ``write`` puts all of them into one file, whole."""

    def __init__(
        self,
        path: Path,
        versions: Mapping[str, str],
        declared: Mapping[str, Metric],
        phase: str,
        success_of: Mapping[str, int] | None = None,
    ) -> None:
        """Begin without rows; ``declared`` and ``phase`` are the algorithm's.

        ``success_of`` are the classes of training tasks, if there are several, of an environment
        that tells of success: names, and the numbers that their tasks begin with.
        """
        self.path = path
        self.versions = dict(versions)
        self.declared = dict(declared)
        self.phase = phase  # what a phase of a task is called: "updates" or "episode"
        self.columns = METRICS | self.declared
        self.per_task = PER_TASK
        self.classes = dict(success_of or {})
        if success_of is not None:
            self.columns |= success_metrics(success_of)
            self.per_task = PER_TASK | SUCCESS_PER_TASK
        self.rows: list[dict[str, Any]] = []  # one per iteration, of columns and per_task
        self.last_checkpoint = 0  # iteration of the last checkpoint that is known to be written

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the values of an iteration; numbers that are not there become NaN, or 0."""
        missing = {
            name: 0 if np.issubdtype(metric.dtype, np.integer) else np.nan
            for name, metric in self.columns.items()
        }
        of_classes = {
            CLASS_SUCCESS.format(name): row["post_update_success"][own].mean()
            for name, index in self.classes.items()
            if (own := row["task"][:, 0] == index).any()
        }
        self.rows.append(missing | dict(row) | of_classes)

    def read(self, iterations: int) -> None:
        """Take over the first ``iterations`` rows of the file, and its ``last_checkpoint``.

        Raises DamagedError, or InputError if the file is not there or holds fewer.
        """
        if not self.path.exists():
            if iterations:
                raise InputError(
                    f"The metrics file {self.path} is gone: the run cannot go on from its "
                    f"checkpoint of iteration {iterations} without it."
                )
            return
        with opened(self.path, FORMAT_VERSION) as file:
            last = int(file.attrs.get("last_checkpoint", 0))  # older files do not say
            if iterations:
                columns = {name: file["iterations"][name][:iterations] for name in self.columns}
                columns |= {name: file["tasks"][name][:iterations] for name in self.per_task}
            else:
                columns = {}
        if any(len(column) != iterations for column in columns.values()):
            raise InputError(
                f"The metrics file {self.path} holds fewer than the {iterations} iterations "
                "of the checkpoint."
            )
        self.last_checkpoint = last
        self.rows = [
            {name: column[row] for name, column in columns.items()} for row in range(iterations)
        ]

    def write(self, *, durable: bool) -> None:
        """Write the file anew and put it in the place of the old one."""

        def fill(file: h5py.File) -> None:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs.update(self.versions)
            file.attrs["phase"] = self.phase
            file.attrs["last_checkpoint"] = self.last_checkpoint
            for group, metrics in (("iterations", self.columns), ("tasks", self.per_task)):
                folder = file.create_group(group, track_order=True)
                for name, metric in metrics.items():
                    column: np.ndarray = np.array([row[name] for row in self.rows], metric.dtype)
                    dataset = folder.create_dataset(name, data=column)
                    dataset.attrs["unit"] = metric.unit
                    dataset.attrs["description"] = metric.description
                    dataset.attrs["shape"] = metric.shape
                    dataset.attrs["wall_clock"] = metric.wall_clock
                    dataset.attrs["declared"] = name in self.declared
                    dataset.attrs["console"] = metric.console
                    dataset.attrs["limit"] = metric.limit
            file.attrs["committed_iterations"] = len(self.rows)

        write_hdf5(self.path, fill, durable=durable)
