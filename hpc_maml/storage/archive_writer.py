"""The archive of rollouts being written: segments by observers, what joins them by the principal.

An iteration is committed when its file has been renamed into place. The principal does so when all
its segments are on the disk, before it writes the checkpoint of the iteration.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from hpc_maml.config import ArchiveConfig, Config
from hpc_maml.errors import InputError, reason_of
from hpc_maml.storage.archive_cleaning import clean, remove
from hpc_maml.storage.archive_plan import Shapes, estimate, is_archived
from hpc_maml.storage.archive_schema import (
    ADAPTED,
    FIELDS,
    FORMAT_VERSION,
    INDEX,
    OPTIONAL_FIELDS,
    Field,
    Segment,
    archived_iterations,
    iteration_path,
    segment_name,
)
from hpc_maml.storage.hdf5_files import opened, write_hdf5

# Filters that every HDF5 library has, but for lzf, which comes with h5py.
FILTERS = {
    "none": {},
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}


class SegmentWriter:
    """Keeps what one observer collects in an iteration, then writes it as one file."""

    def __init__(self, folder: Path, settings: ArchiveConfig, shapes: Shapes, rank: int) -> None:
        self.folder = folder
        self.settings = settings
        self.shapes = shapes
        self.rank = rank
        self.iteration = 0
        self.kept: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # by task, in phases

    def keep(self, iteration: int, batch: np.ndarray, theta: np.ndarray) -> None:
        """Keep a batch ``[1]``, not copied, and the parameters ``[P]`` it was collected with."""
        if is_archived(self.settings, iteration):
            self.iteration = iteration
            self.kept.setdefault(int(batch["task"][0]), []).append((batch[0], theta))

    def write(self) -> Segment | None:
        """Write what was kept, whole and durable; None if there is nothing.

        Raises InputError.
        """
        if not self.kept:
            return None
        tasks = dict(sorted(self.kept.items()))
        self.kept = {}
        name = segment_name(self.iteration, self.rank)
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise InputError(
                f"{self.folder} is not there on {socket.gethostname()}: the run folder must be "
                "on a file system that all nodes share."
            ) from None
        except OSError as error:
            raise InputError(f"{path.parent} cannot be made: {reason_of(error)}.") from None
        if path.parent.is_symlink():
            raise InputError(f"{path.parent} cannot be made: a symbolic link is in its place.")

        def fill(file: h5py.File) -> None:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["iteration"] = self.iteration
            file.attrs["rank"] = self.rank
            dataset = file.create_dataset("task_index", data=list(tasks))
            dataset.attrs["description"] = "index of the task of each row"
            for field, (dtype, shape) in self.shapes.arrays.items():
                array = np.empty((len(tasks), *shape), dtype)
                for row, phases in enumerate(tasks.values()):
                    for phase in range(shape[0]):
                        array[row, phase] = (
                            phases[phase + 1][1] if field == ADAPTED else phases[phase][0][field]
                        )
                # A chunk is a batch, below the 4 GB of HDF5; the library compares its checksum.
                dataset = file.create_dataset(
                    field,
                    data=array,
                    chunks=(1, 1, *shape[1:]),
                    fletcher32=True,
                    **FILTERS[self.settings.compression],
                )
                _describe(dataset, field)

        write_hdf5(path, fill)
        return Segment(self.iteration, name, tuple(tasks), path.stat().st_size)


class RolloutArchive:
    """The folder of the archive, held by the principal."""

    def __init__(self, folder: Path, config: Config, shapes: Shapes, iteration: int) -> None:
        """Go on after ``iteration``: what came later will be computed again, so it is removed.

        ``notes`` are sentences on what is not as this program left it. Raises InputError.
        """
        self.folder = folder
        self.settings = config.archive
        self.shapes = shapes
        try:
            if self.settings.rollouts != "none":
                folder.mkdir(exist_ok=True)
            self.notes = clean(folder, iteration)
        except OSError as error:
            raise InputError(f"The archive {folder} cannot be used: {reason_of(error)}.") from None
        self.sizes: dict[int, int] = {}  # bytes of the segments of committed iterations
        for done, path in archived_iterations(folder).items():
            try:
                self.sizes[done] = _segment_bytes(path)
            except InputError as error:
                self.notes.append(f"{error} It is left alone.")
        estimate(config, shapes, iteration, len(self.sizes))
        self.indexed: set[int] = set()

    def commit(self, iteration: int, tasks: np.ndarray, segments: Sequence[Segment]) -> None:
        """Join the segments of an iteration with ``tasks`` ``[n, task_dim]``; raises InputError."""
        where = {
            task: (number, row)
            for number, segment in enumerate(segments)
            for row, task in enumerate(segment.tasks)
        }
        places = np.array([where[task] for task in range(len(tasks))])

        def fill(file: h5py.File) -> None:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["iteration"] = iteration
            file["task"] = tasks
            file["task"].attrs["unit"] = "see docs/environments.md"
            file["task"].attrs["shape"] = "[task, task_dim]"
            file["segments"] = [segment.name for segment in segments]
            file["segment_bytes"] = [segment.size for segment in segments]
            file["segment"], file["row"] = places.T
            for field, (dtype, shape) in self.shapes.arrays.items():
                layout = h5py.VirtualLayout((len(tasks), *shape), dtype)
                for segment in segments:  # whose rows are in the order of the tasks
                    layout[list(segment.tasks)] = h5py.VirtualSource(
                        segment.name, field, (len(segment.tasks), *shape), dtype
                    )
                _describe(file.create_virtual_dataset(field, layout), field)

        write_hdf5(iteration_path(self.folder, iteration), fill)
        self.sizes[iteration] = sum(segment.size for segment in segments)
        self._thin()
        # At every tenth of growth: written for every iteration it would cost their square.
        if 10 * len(self.indexed.symmetric_difference(self.sizes)) > len(self.indexed):
            self.write_index()

    def write_index(self) -> None:
        """Write the file with a link to every iteration; raises InputError."""
        if self.indexed == set(self.sizes):
            return

        def fill(file: h5py.File) -> None:
            file.attrs["format_version"] = FORMAT_VERSION
            for iteration in sorted(self.sizes):
                path = iteration_path(self.folder, iteration)
                file[path.stem] = h5py.ExternalLink(path.name, "/")

        write_hdf5(self.folder / INDEX, fill, durable=False)
        self.indexed = set(self.sizes)

    def _thin(self) -> None:
        """Remove the oldest iterations until the rest fits into archive.max_bytes, if it says so.

        Otherwise the program has refused to begin what would not fit (``estimate``).
        """
        limit = self.settings.max_bytes if self.settings.when_full == "thin" else None
        while limit and sum(self.sizes.values()) > limit and len(self.sizes) > 1:
            oldest = min(self.sizes)
            try:
                remove(self.folder, oldest)
            except OSError as error:
                path = iteration_path(self.folder, oldest)
                raise InputError(f"{path} cannot be removed: {reason_of(error)}.") from None
            del self.sizes[oldest]


def _describe(dataset: h5py.Dataset, name: str) -> None:
    field: Field = (FIELDS | OPTIONAL_FIELDS)[name]
    dataset.attrs["unit"] = field.unit
    dataset.attrs["shape"] = field.shape
    dataset.attrs["description"] = field.description


def _segment_bytes(path: Path) -> int:
    """Return the size of the segments of a committed iteration; raises InputError."""
    with opened(path, FORMAT_VERSION, joins=tuple(FIELDS | OPTIONAL_FIELDS)) as file:
        return int(file["segment_bytes"][...].sum())
