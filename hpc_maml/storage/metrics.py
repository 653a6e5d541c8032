"""What is recorded of every iteration, and the files it is kept in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.errors import InputError, reason_of
from hpc_maml.storage.atomic_files import set_aside
from hpc_maml.storage.hdf5_files import (
    append,
    describe,
    in_memory,
    opened,
    verify,
    write_image,
)
from hpc_maml.storage.metrics_parts import (
    FORMAT_VERSION,
    NDIM,
    PARTS,
    Part,
    covering,
    opened_part,
    part_of,
    part_rows,
    parts,
    read_columns,
)

# metrics.h5 is rewritten for every iteration, so it holds as few rows as make its own size (40 kB
# of names and units) unimportant; parts are joined, so that a run has few files.
PART_ROWS, PART_BYTES = 20, 2**17  # of a part, whichever is less
JOINED = 10  # parts that become one
LARGEST_PART = 2**24  # bytes; to join parts takes some three times as much memory


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
    "accepted": Metric("1", "1 if the update was accepted, 0 if it was rejected", dtype=np.int64),
    "rejected_updates": Metric("1", "rejected or non-finite updates so far", dtype=np.int64),
    "diverged_episodes": Metric(
        "1", "episodes that ended because the simulation diverged", dtype=np.int64
    ),
    "environment_steps": Metric("steps", "environment steps of this iteration", dtype=np.int64),
    "environment_steps_total": Metric("steps", "environment steps so far", dtype=np.int64),
    "sampling_seconds": Metric(
        "s", "from the beginning of the iteration to the end of its last task", wall_clock=True
    ),
    "update_seconds": Metric(
        "s", "from the end of the last task to the new state: the outer step", wall_clock=True
    ),
    "iteration_seconds": Metric("s", "the whole iteration, measured by the principal", True),
    "principal_busy": Metric("1", "fraction of the iteration in which the principal works", True),
    "agents_busy": Metric(
        "1", "fraction spent on digests and the outer step, mean over the ranks that take it", True
    ),
    "observers_busy": Metric(
        "1", "fraction spent on roll-outs and adaptation, mean over observers", wall_clock=True
    ),
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
    """The metrics of a run so far; only the last rows are in memory.

    What ``write`` costs does not depend on the number of iterations: see metrics_parts.
    """

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
        self.folder = path.parent / PARTS
        self.versions = dict(versions)
        self.declared = dict(declared)
        self.phase = phase  # what a phase of a task is called: "updates" or "episode"
        self.columns = METRICS | self.declared
        self.per_task = PER_TASK
        self.classes = dict(success_of or {})
        if success_of is not None:
            self.columns |= success_metrics(success_of)
            self.per_task = PER_TASK | SUCCESS_PER_TASK
        self.parts: list[Part] = []  # closed
        self.rows: list[dict[str, Any]] = []  # later ones, of columns and per_task
        self.last_checkpoint = 0  # iteration of the last checkpoint that is known to be written
        self._table: Table | None = None  # metrics.h5, where it begins with the first of ``rows``

    def __len__(self) -> int:
        """Return the number of iterations so far."""
        return self.earlier + len(self.rows)

    @property
    def earlier(self) -> int:
        """The number of rows in closed parts."""
        return self.parts[-1].last if self.parts else 0

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
        """Take over the first ``iterations`` rows of the files, and ``last_checkpoint``.

        The checksums of all parts are compared. Raises DamagedError, or InputError if something is
        not there.
        """
        if not self.path.exists():
            if iterations:
                raise InputError(
                    f"The metrics file {self.path} is missing: the run cannot go on from its "
                    f"checkpoint of iteration {iterations} without it."
                )
            return
        with opened(self.path, FORMAT_VERSION) as file:
            self.last_checkpoint = int(file.attrs.get("last_checkpoint", 0))  # older: not there
            if not iterations:
                return
            earlier = int(file.attrs.get("earlier_iterations", 0))  # likewise
            columns = self._columns_of(file)
        before = [part for part in covering(self.folder, earlier) if part.first <= iterations]
        if earlier >= iterations:  # of the part that goes on after it, the first rows
            with opened_part(before.pop()) as file:
                columns = self._columns_of(file)
        start = before[-1].last if before else 0
        number = min(map(len, columns.values()))
        if start + number < iterations:
            raise InputError(
                f"The metrics file {self.path} holds fewer than the {iterations} iterations "
                "of the checkpoint."
            )
        for part in before:
            verify(part.path)
        self.parts = before
        self._table = None
        self.rows = [
            {name: column[row] for name, column in columns.items()}
            for row in range(iterations - start)
        ]

    def begin(self) -> list[str]:
        """Remove the parts whose rows ``read`` left out, or that another part holds as well.

        Return sentences on those that are not as this program left them; raises InputError.
        """
        notes = []
        for part in self._stale():
            if not part.is_sound():
                try:
                    aside = set_aside(part.path).name
                except OSError as error:
                    raise _not_removed(part, error) from None
                notes.append(f"{part.path} is damaged: it is kept as {aside}.")
        if self._stale():
            self.write(durable=True)  # first, as metrics.h5 may rely on them
            self._table = None  # made again, with what is known of the job by then
        for part in self._stale():
            _remove(part)
        return notes

    def write(self, *, durable: bool) -> None:
        """Write the file with the last rows; when there are many, the older become a part.

        Raises InputError.
        """
        row = self.rows[-1] if self.rows else {}
        row_bytes = sum(np.asarray(value).nbytes for value in row.values())
        each = max(1, min(PART_ROWS, PART_BYTES // max(1, row_bytes)))
        while True:
            closes = len(self.rows) >= 2 * each
            if closes:
                part = part_of(self.folder, self.earlier + 1, self.earlier + each)
                self._write_part(part, self._columns(self.rows[:each]))
                self.parts.append(part)
                self.rows = self.rows[each:]
                self._table = None
            write_image(self.path, self._last_rows(2 * each), durable=durable)
            while closes and self._join_parts():  # now that metrics.h5 relies on them
                pass
            if len(self.rows) < 2 * each:  # more only after a read
                return

    def _last_rows(self, room: int) -> h5py.File:
        """Return the file in memory, with the rows there are.

        It is kept for later rows, as many as there is ``room`` for: names and units take longer
        than values.
        """
        about = {
            "last_checkpoint": self.last_checkpoint,
            "earlier_iterations": self.earlier,
            "committed_iterations": len(self),
        }
        table = self._table
        if table is None:
            columns = self._columns(self.rows)
            table = self._new_table(columns, max(room, len(self.rows)))
            table.file.attrs.update({**self.versions, "phase": self.phase, **about})
            self._table = table if self.rows else None  # the shapes are not known before
            return table.file
        for name, value in about.items():
            table.file.attrs.modify(name, value)
        if new := self.rows[table.columns["accepted"].shape[0] :]:
            for name, values in self._columns(new).items():
                append(table.columns[name], values)
        return table.file

    def read_columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return those columns of the names that there are, of all rows, ``[iterations]``.

        Raises InputError.
        """
        if not len(self):
            return {
                name: np.empty(0, self.columns[name].dtype)
                for name in names
                if name in self.columns
            }
        found = read_columns(self.path, "iterations", names)
        return {name: column[: len(self)] for name, column in found.items()}

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """Return an iterator of the rows that there are now; it reads a part when it gets there."""
        return chain(part_rows(self.folder, self.earlier), tuple(self.rows))

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        return {
            name: np.array([row[name] for row in rows], metric.dtype)
            for name, metric in (self.columns | self.per_task).items()
        }

    def _columns_of(self, file: h5py.File) -> dict[str, np.ndarray]:
        """Return the columns of an open file; raises ValueError for one that is none."""
        columns = {name: file["iterations"][name][...] for name in self.columns}
        columns |= {name: file["tasks"][name][...] for name in self.per_task}
        for name, column in columns.items():
            if not column.ndim or (len(column) and column.ndim != NDIM.get(name, 1)):
                raise ValueError(f"{name} has not the shape of a column")
        return columns

    def _stale(self) -> list[Part]:
        """Return the parts in the folder that are none of this table."""
        return [part for part in parts(self.folder) if part not in self.parts]

    def _write_part(self, part: Part, columns: Mapping[str, np.ndarray]) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made: {reason_of(error)}.") from None
        with self._new_table(columns, part.rows).file as file:
            file.attrs.update({"first_iteration": part.first, "last_iteration": part.last})
            write_image(part.path, file, durable=True)

    def _join_parts(self) -> bool:
        """Join the last parts to one if there are enough of one length; tell whether it was done.

        Raises InputError. Parts that cannot be read, which a reader will say, are left as they are.
        """
        last = self.parts[-JOINED:]
        if len(last) < JOINED or len({part.rows for part in last}) > 1:
            return False
        pieces = []
        try:
            if sum(part.path.stat().st_size for part in last) > LARGEST_PART:
                return False
            for part in last:
                with opened_part(part) as file:
                    pieces.append(self._columns_of(file))
            columns = {name: np.concatenate([each[name] for each in pieces]) for name in pieces[0]}
        except (OSError, ValueError):
            return False
        joined = part_of(self.folder, last[0].first, last[-1].last)
        self._write_part(joined, columns)
        self.parts[-JOINED:] = [joined]
        for part in last:
            _remove(part)
        return True

    def _new_table(self, columns: Mapping[str, np.ndarray], room: int) -> "Table":
        """Return a table that can grow to ``room`` rows, unless it has none."""
        file, made = in_memory(), {}
        file.attrs["format_version"] = FORMAT_VERSION
        for group, metrics in (("iterations", self.columns), ("tasks", self.per_task)):
            folder = file.create_group(group, track_order=True)
            for name, metric in metrics.items():
                column = columns[name]
                grows = len(column) and room > len(column)
                whole = (room, *column.shape[1:]) if grows else None
                dataset = folder.create_dataset(name, data=column, maxshape=whole, chunks=whole)
                about_it: dict[str, str | bool] = {
                    "unit": metric.unit,
                    "description": metric.description,
                    "shape": metric.shape,
                    "wall_clock": metric.wall_clock,
                    "declared": name in self.declared,
                    "console": metric.console,
                    "limit": metric.limit,
                }
                describe(dataset, about_it)
                made[name] = dataset
        return Table(file, made)


class Table(NamedTuple):
    """Columns of rows in a file in memory."""

    file: h5py.File
    columns: Mapping[str, h5py.Dataset]


def _remove(part: Part) -> None:
    try:
        part.path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(part, error) from None


def _not_removed(part: Part, error: OSError) -> InputError:
    return InputError(f"{part.path} cannot be removed: {reason_of(error)}.")
