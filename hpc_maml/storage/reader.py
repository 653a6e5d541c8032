"""What a run has left in its folder, for analysis: needs neither MPI nor torch.

Everything is read when it is asked for, so a run may be open while it is being written; what is
asked for again is read again.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from hpc_maml.algorithms.algorithm import THETA, Metric
from hpc_maml.errors import InputError
from hpc_maml.storage.archive_schema import (
    FIELDS,
    FORMAT_VERSION,
    INDEX,
    OPTIONAL_FIELDS,
    archived_iterations,
    is_segment_name,
    iteration_path,
    uncommitted,
)
from hpc_maml.storage.checkpoint import Checkpoint, checkpoints, no_checkpoint, read
from hpc_maml.storage.hdf5_files import (
    DamagedError,
    damage_of,
    look_over,
    open_regular,
    opened,
    verify,
)
from hpc_maml.storage.meta_tests import PHASES, MetaTest, meta_test_files
from hpc_maml.storage.meta_tests import read as read_evaluation
from hpc_maml.storage.metrics import METRICS as OF_EVERY_RUN
from hpc_maml.storage.metrics_parts import FORMAT_VERSION as METRICS_VERSION
from hpc_maml.storage.metrics_parts import read_columns
from hpc_maml.storage.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    METRICS,
    ROLLOUTS,
    has_config,
)
from hpc_maml.yaml_text import read_yaml

if TYPE_CHECKING:
    import pandas as pd

    from hpc_maml.storage.states import Which
    from hpc_maml.trained_policy import TrainedPolicy


JOINED = (*FIELDS, *OPTIONAL_FIELDS)  # what the file of an iteration presents of its segments
# Keys that are in the configuration of any run, also in those of 0.1, and what they hold.
SHOWN_KEYS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("seed", "num_iterations"), int),
    **dict.fromkeys(("meta_batch_size", "fast_batch_size", "horizon"), int),
    **dict.fromkeys(("env", "policy"), dict),
    "algorithm": (dict, str),
}


class Run:
    """An open run folder; iterations are counted from 1, as in the names of checkpoints."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError if there is no run in this folder."""
        self.path = Path(path)
        if not has_config(self.path):
            raise InputError(f"{self.path} is not a run folder: it has no {CONFIG}.")

    def __repr__(self) -> str:
        return f"open_run({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, sections as dictionaries; raises InputError."""
        config = read_yaml(self.path / CONFIG)
        for key, kind in SHOWN_KEYS.items():
            if not isinstance(config, dict) or not isinstance(config.get(key), kind):
                raise InputError(
                    f"{self.path / CONFIG} is not the configuration of a run: it has no {key}."
                )
        if not _is_plain(config):
            raise InputError(f"{self.path / CONFIG} holds other things than texts and numbers.")
        if not isinstance(config["env"].get("name"), str) or not isinstance(
            config["env"].get("kwargs"), dict
        ):
            raise InputError(f"{self.path / CONFIG} is not the configuration of a run: env.name.")
        return config

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row for each iteration that is done, one column for each metric."""
        try:
            import pandas as pd
        except ImportError:
            raise InputError("run.metrics needs pandas: pip install 'hpc_maml[report]'.") from None
        columns = self.columns
        rows = len(next(iter(columns.values()), ()))
        index = pd.RangeIndex(1, rows + 1, name="iteration")
        return pd.DataFrame(columns, index)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of ``metrics``, ``[iterations]``, for those without pandas."""
        return self._columns("iterations")

    @property
    def per_task(self) -> dict[str, np.ndarray]:
        """Values of every task by name, ``[iterations, n, ...]``; row 0 is iteration 1.

        ``task`` is what ``tasks`` returns; ``pre_update_return`` and ``post_update_return`` are
        ``[iterations, n]``; ``return_after_updates`` is ``[iterations, n, phases]``. Where the
        environment tells of success, there is the same of it, such as ``post_update_success``.
        """
        return self._columns("tasks")

    @property
    def tasks(self) -> np.ndarray:
        """The tasks of every iteration, float64 ``[iterations, n, task_dim]``."""
        return self.per_task.get("task", np.empty((0, 0, 0)))

    @property
    def units(self) -> dict[str, str]:
        """The unit of every metric and per-task value, by name."""
        return {name: metric.unit for name, metric in self._described().items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """What every metric and per-task value is, by name."""
        return {name: metric.description for name, metric in self._described().items()}

    @property
    def declared(self) -> dict[str, Metric]:
        """The metrics that the algorithm of the run declares, by name."""
        return self._described(declared=True)

    @property
    def phase(self) -> str:
        """What a phase of a task is called: "updates" before it, or "episode" of a trial."""
        with self._metrics_file() as file:
            phase = str(file.attrs.get("phase", "updates"))  # files of format 1 do not say
            if phase not in PHASES:
                raise DamagedError(self.path / METRICS, f"it has no phases called {phase}")
            return phase

    @property
    def versions(self) -> dict[str, str]:
        """What wrote the run: hpc_maml, git_commit, libraries, python, mpi, hosts, layout."""
        with self._metrics_file() as file:
            texts = {name: value for name, value in file.attrs.items() if isinstance(value, str)}
        return {name: value for name, value in texts.items() if name != "phase"}

    @property
    def committed_iterations(self) -> int:
        """The last iteration whose metrics are written, 0 before the first."""
        if not (self.path / METRICS).exists():
            return 0
        with self._metrics_file() as file:
            return int(file.attrs["committed_iterations"])

    @property
    def rollouts(self) -> "Rollouts":
        """The archived rollouts."""
        return Rollouts(self.path / ROLLOUTS)

    @property
    def evaluations(self) -> list[MetaTest]:
        """The meta-tests, by iteration; raises InputError if one is damaged."""
        return [read_evaluation(path) for path in meta_test_files(self.path / EVALUATIONS)]

    @property
    def checkpoints(self) -> list[int]:
        """The iterations after which there is a checkpoint."""
        return list(checkpoints(self.path / CHECKPOINTS))

    def checkpoint(self, iteration: int) -> Checkpoint:
        """Return the state of the algorithm and counters after an iteration; raises InputError.

        ``parameters`` are those of the policy by name, ``state`` all else that the algorithm keeps.
        """
        found = checkpoints(self.path / CHECKPOINTS)
        if iteration not in found:
            raise InputError(no_checkpoint(self.path / CHECKPOINTS, iteration))
        return read(found[iteration])[0]

    def policy(self, iteration: "Which | None" = None, *, trust: bool = False) -> "TrainedPolicy":
        """Return the policy of a checkpoint, to act and to adapt with.

        The last, that after an ``iteration``, or "best": that of the best meta-test with the
        settings of the run. Classes ``module:Class`` that the run folder names are imported only
        with ``trust``. Raises InputError.
        """
        from hpc_maml.parts import make_algorithm, make_env
        from hpc_maml.storage.run_folder import read_config
        from hpc_maml.storage.states import chosen_checkpoint, state_of
        from hpc_maml.trained_policy import TrainedPolicy

        config = read_config(self.path, None if trust else ())
        env = make_env(config, episodes=1)
        algorithm = make_algorithm(config, env)
        found = chosen_checkpoint(
            self.path, config, algorithm, "last" if iteration is None else iteration
        )
        state = state_of(found)
        return TrainedPolicy(
            config,
            algorithm,
            env.single_observation_space,
            env.policy_action_space,
            state,
            found.iteration,
            state[THETA],
        )

    def _metrics_file(self) -> AbstractContextManager[h5py.File]:
        return opened(self.path / METRICS, METRICS_VERSION)

    def _described(self, *, declared: bool = False) -> dict[str, Metric]:
        """Return what is known of the columns, by name, or of those that are declared."""
        with self._metrics_file() as file:
            return {
                name: _metric(dataset)
                for group in ("iterations", *(() if declared else ("tasks",)))
                for name, dataset in file[group].items()
                # files of format 1 do not say what is declared
                if not declared or dataset.attrs.get("declared", name not in OF_EVERY_RUN)
            }

    def _columns(self, group: str) -> dict[str, np.ndarray]:
        if not (self.path / METRICS).exists():
            return {}
        return read_columns(self.path / METRICS, group)


@dataclass(frozen=True)
class Rollout:
    """The rollouts of one task of one iteration; a field is read when it is asked for.

    ``rollout.observations`` is ``[K, T, B, ...]``: the phase, that is the number of updates before
    these episodes, or of the episode in its trial; the step; and the episode, or the trial. The
    fields are those of archive_schema.FIELDS; if they were asked for in the configuration,
    ``adapted_parameters`` are there too, and where the environment tells of it, ``success``.
    """

    iteration: int
    index: int  # of the task within the iteration
    task: np.ndarray  # [task_dim]
    segment: Path
    row: int

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in FIELDS and name not in OPTIONAL_FIELDS:
            raise AttributeError(f"a rollout has no field {name!r}; it has {', '.join(FIELDS)}")
        # Of the whole segment only what is asked for is read, with the checksum of its chunk.
        with opened_segment(self.segment) as file:
            if name in file or name in FIELDS:
                return file[name][self.row]
        raise AttributeError(f"{name} were not archived")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *FIELDS, *OPTIONAL_FIELDS]


class Rollouts(Mapping[tuple[int, int], Rollout]):
    """Archived rollouts by (iteration, task), in that order, whichever ranks wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def iterations(self) -> list[int]:
        """The iterations that are archived and complete."""
        return list(archived_iterations(self.folder))

    def __getitem__(self, key: tuple[int, int]) -> Rollout:
        """Return the rollouts of a task; KeyError if not archived, InputError if damaged."""
        iteration, task = key
        path = iteration_path(self.folder, iteration)
        if not path.exists():
            raise KeyError(f"iteration {iteration} is not archived")
        table = _read_table(path)
        if not 0 <= task < len(table.segment):
            raise KeyError(f"iteration {iteration} has tasks 0 to {len(table.segment) - 1}")
        segment = table.paths[table.segment[task]]
        if damage := table.damage(segment):
            raise damage
        return Rollout(iteration, task, table.tasks[task], segment, int(table.row[task]))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Go through what is readable; warns of every file that is not."""
        for iteration in self.iterations:
            table, damages = self._open(iteration)
            for damage in damages.values():
                warnings.warn(f"{damage} It is skipped.", stacklevel=2)
            if table:
                for task, number in enumerate(table.segment):
                    if table.paths[number] not in damages:
                        yield iteration, task

    def __len__(self) -> int:
        with warnings.catch_warnings(action="ignore"):
            return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index] # a KeyError for what is no key
        except (KeyError, InputError):
            return False
        return True

    def damages(self, *, verify: bool = False, done: int = 0) -> list[InputError]:
        """Return what is wrong with committed files; ``verify`` reads all of every one.

        Up to ``done`` iterations all are committed.
        """
        found: list[InputError] = []
        for iteration in self.iterations:
            found += self._open(iteration, verify)[1].values()
        try:
            listed = self._listed()
        except InputError as error:
            found.append(error)
            listed = []
        there = self.iterations
        # A run that thins its archive removes the oldest, and writes the index later.
        lost = {each for each in listed if each not in there and each > min(there, default=each)}
        lost.update(uncommitted(self.folder, max([done, *there])))
        return found + [
            InputError(f"{iteration_path(self.folder, each)} is missing.") for each in sorted(lost)
        ]

    def _listed(self) -> list[int]:
        """Return the iterations that the index has; raises InputError."""
        path = self.folder / INDEX
        if not path.exists():
            return []
        with opened(path, FORMAT_VERSION, joins=JOINED) as file:
            return [int(name.rpartition("_")[2]) for name in file]

    def _open(
        self, iteration: int, whole: bool = False
    ) -> tuple["_Table | None", dict[Path, InputError]]:
        """Return where the tasks of an iteration are, and which of its files are damaged."""
        path = iteration_path(self.folder, iteration)
        table = None
        damages: dict[Path, InputError] = {}
        try:
            if whole:
                verify(path)
            table = _read_table(path)
            for segment in table.paths:
                if damage := table.damage(segment, whole):
                    damages[segment] = damage
        except InputError as error:
            damages[path] = error
        if damages and not path.exists():  # the run has thinned its archive at this moment
            return None, {}
        return table, damages


def open_run(path: str | Path) -> Run:
    """Open a run folder for analysis, also while it is being written; raises InputError."""
    return Run(path)


def _is_plain(value: object) -> bool:
    """Tell whether YAML is what a configuration can be made of: no dates, sets or bytes."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _metric(dataset: h5py.Dataset) -> Metric:
    """Return what the attributes of a dataset say; raises KeyError."""
    about = dataset.attrs
    return Metric(
        unit=str(about["unit"]),
        description=str(about["description"]),
        wall_clock=bool(about.get("wall_clock", False)),
        dtype=dataset.dtype.type,
        shape=str(about.get("shape", "")),
        console=str(about.get("console", "")),
        limit=str(about.get("limit", "")),
    )


@contextmanager
def opened_segment(path: Path) -> Iterator[h5py.File]:
    """Open a segment, of which only what is asked for is read; raises DamagedError."""
    with damage_of(path):
        open_regular(path).close()
        with h5py.File(path, "r") as file:
            look_over(file, may_be_compressed=True)
            yield file


class _Table(NamedTuple):
    """Where the tasks of an iteration are."""

    iteration: int
    tasks: np.ndarray  # [n, task_dim]
    segment: np.ndarray  # [n], number of the segment
    row: np.ndarray  # [n], row in it
    paths: list[Path]  # of the segments
    sizes: list[int]  # bytes

    def damage(self, segment: Path, whole: bool = False) -> InputError | None:
        """Return what is wrong with a segment; with ``whole``, also what is in its arrays."""
        size = self.sizes[self.paths.index(segment)]
        try:
            with damage_of(segment):
                if (found := segment.stat().st_size) != size:
                    return DamagedError(segment, f"it has {found} bytes, not {size}")
                unread = whole and not verify(segment)
                with opened_segment(segment) as file:
                    return self._damage_inside(segment, file, unread)
        except InputError as error:
            return error

    def _damage_inside(self, segment: Path, file: h5py.File, unread: bool) -> DamagedError | None:
        """Return what is wrong in an open segment; ``unread``: its arrays have to be read."""
        if file.attrs["iteration"] != self.iteration:
            return DamagedError(segment, f"it is of iteration {file.attrs['iteration']}")
        if missing := [name for name in FIELDS if name not in file]:
            return DamagedError(segment, f"it has no {', '.join(missing)}")
        for dataset in file.values() if unread else ():
            for row in dataset:  # the library compares the checksums
                del row
        return None


def _read_table(path: Path) -> _Table:
    """Return where the tasks of an iteration are; raises InputError."""
    status = path.stat() if path.exists() else None
    return _read_table_once(path, status and (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=1)  # a loop over the tasks of an iteration asks for one table many times
def _read_table_once(path: Path, identity: object) -> _Table:
    with opened(path, FORMAT_VERSION, joins=JOINED) as file:
        iteration = int(file.attrs["iteration"])
        if iteration_path(path.parent, iteration) != path:
            raise DamagedError(path, f"it is of iteration {iteration}")
        names = [str(name) for name in file["segments"].asstr()[...]]
        found = _Table(
            iteration,
            file["task"][...],
            file["segment"][...],
            file["row"][...],
            [path.parent / name for name in names],
            [int(size) for size in file["segment_bytes"][...]],
        )
        if any(not is_segment_name(name, iteration) for name in names):
            raise DamagedError(path, "its segments are not those of the iteration")
        if not found.tasks.ndim == 2 or not (
            len(found.tasks) == len(found.segment) == len(found.row)
            and len(names) == len(found.sizes)
            and all(0 <= number < len(names) for number in found.segment)
        ):
            raise DamagedError(path, "its tables do not fit together")
        return found
