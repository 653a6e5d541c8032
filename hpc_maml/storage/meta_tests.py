"""Meta-tests: the returns on unseen tasks after 0, 1, ... updates, and the files that hold them."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from hpc_maml.errors import InputError, reason_of
from hpc_maml.storage.hdf5_files import DamagedError, opened, write_hdf5

if TYPE_CHECKING:  # what reads a run imports no environment
    from hpc_maml.config import EvaluationConfig

FORMAT_VERSION = 2  # 1: without what a phase is
PHASES = ("updates", "episode")
RUN, RANDOM = "run", "random"  # the policy of the run itself, and what it began with
NAME = re.compile(
    r"iteration_(\d{6,})_tasks_(\d+)_updates_(\d+)(_episodes_\d+)?"
    r"(_constant|_steps(_[0-9.e-]+)+|_steps-[0-9a-f]{16})?(_mean)?\.h5"
)
LONGEST_SIZES = 100  # characters of step sizes in the name of a file

# Student's t at 97.5 %, for 1 to 30 degrees of freedom
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class MetaTest:
    """A meta-test of the policy of a run, and of others on the same tasks.

    A phase is what is played after 0, 1, ... ``updates``, or an ``episode`` of a trial.

    Attributes:
        iteration: outer steps done before
        phase: ``"updates"`` or ``"episode"``
        tasks: ``[n, task_dim]``
        returns: by policy, ``"run"`` first: mean returns of each phase, ``[n, K]``
        optima: by strategy: optimal returns ``[n]``
        how: how the run's policy adapts, in words
        phases: what a phase is of policies that differ from the run's
        success: by policy: share of the episodes of each phase that succeeded, ``[n, K]``, where
            the environment says so
        classes: of the tasks, which begin with an index into them
        settings: with which it was made, as its file is called; known where it was read
    """

    iteration: int
    phase: str
    tasks: np.ndarray
    returns: Mapping[str, np.ndarray]
    optima: Mapping[str, np.ndarray]
    how: str = ""
    phases: Mapping[str, str] = field(default_factory=dict)
    success: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    settings: str = ""

    @property
    def first(self) -> int:
        """The number of the first phase: 0 updates, or episode 1."""
        return 0 if self.phase == "updates" else 1

    def by_class(self) -> dict[str, np.ndarray]:
        """Return which tasks are of each class, bool ``[n]`` by name, if there are several."""
        indices = np.unique(self.tasks[:, 0]) if self.classes else ()
        if len(indices) < 2:
            return {}
        return {self.classes[int(index)]: self.tasks[:, 0] == index for index in indices}

    def phase_of(self, policy: str) -> str:
        """Return what a phase of a policy is."""
        return self.phases.get(policy, self.phase)

    @property
    def score(self) -> float:
        """The mean return of the run's policy after the last update, or of a whole trial."""
        returns = self.returns[RUN]
        last = returns[:, -1] if self.phase == "updates" else returns.sum(1)
        return float(last.mean())

    @property
    def rank(self) -> tuple[float, float]:
        """What the best test has the highest of: success in the last phase, then the score."""
        success = self.success.get(RUN)
        return (0.0 if success is None else float(success[:, -1].mean()), self.score)


def meta_test_path(
    folder: Path, iteration: int, settings: "EvaluationConfig", episodes: int | None = None
) -> Path:
    """Return the file of the meta-test after an iteration; ``episodes`` if not as in training."""
    name = f"iteration_{iteration:06d}_tasks_{settings.tasks}_updates_{settings.updates}"
    name += f"_episodes_{episodes}" if episodes else ""
    if not isinstance(settings.step_sizes, str):
        sizes = "_".join(map(str, settings.step_sizes))
        digest = hashlib.sha256(sizes.encode()).hexdigest()[:16]
        name += f"_steps_{sizes}" if len(sizes) <= LONGEST_SIZES else f"_steps-{digest}"
    elif settings.step_sizes == "constant":
        name += "_constant"
    return folder / f"{name}{'' if settings.last_actions == 'sampled' else '_mean'}.h5"


def meta_test_files(folder: Path) -> list[Path]:
    """Return the files of all meta-tests, by iteration; other files are left alone."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("iteration_*.h5"))
    found = [(int(match[1]), path) for match, path in matches if match]
    return [path for _, path in sorted(found)]


def save(path: Path, test: MetaTest) -> None:
    """Write a meta-test whole; the same one gives the same bytes. Raises InputError."""

    def fill(file: h5py.File) -> None:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["iteration"] = test.iteration
        file.attrs["phase"] = test.phase
        file.attrs["how"] = test.how
        task = file.create_dataset("task", data=test.tasks)
        task.attrs["unit"], task.attrs["shape"] = "see docs/environments.md", "[task, task_dim]"
        if test.classes:
            file.attrs["classes"] = list(test.classes)
        for group, unit, shape in (
            ("returns", "reward", "[task, phase]"),
            ("optima", "reward", "[task]"),
            *((("success", "1", "[task, phase]"),) if test.success else ()),
        ):
            folder = file.create_group(group, track_order=True)
            for name, values in getattr(test, group).items():
                dataset = folder.create_dataset(name, data=values)
                dataset.attrs["unit"], dataset.attrs["shape"] = unit, shape
                if group == "returns":
                    dataset.attrs["phase"] = test.phase_of(name)

    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {reason_of(error)}.") from None
    if path.parent.is_symlink():
        raise InputError(f"{path.parent} is a symbolic link: a run keeps its files in its folder.")
    write_hdf5(path, fill)


def read(path: Path) -> MetaTest:
    """Read a meta-test; raises InputError."""
    with opened(path, FORMAT_VERSION) as file:
        found = MetaTest(
            iteration=int(file.attrs["iteration"]),
            phase=str(file.attrs.get("phase", "updates")),
            tasks=file["task"][...],
            returns={name: values[...] for name, values in file["returns"].items()},
            optima={name: values[...] for name, values in file["optima"].items()},
            how=str(file.attrs.get("how", "")),
            phases={
                name: str(values.attrs["phase"])
                for name, values in file["returns"].items()
                if "phase" in values.attrs
            },
            success={name: values[...] for name, values in file.get("success", {}).items()},
            classes=tuple(map(str, file.attrs.get("classes", ()))),
            settings=path.stem.partition("_tasks_")[2],
        )
        number = len(found.tasks)
        sizes = {name: (values, 2) for name, values in found.returns.items()}
        sizes |= {name: (values, 1) for name, values in found.optima.items()}
        sizes |= {f"success of {name}": (values, 2) for name, values in found.success.items()}
        for name, (values, ndim) in sizes.items():
            if values.ndim != ndim or len(values) != number or not values.size:
                raise DamagedError(path, f"{name} does not have a value for each task")
        if found.tasks.ndim != 2 or RUN not in found.returns:
            raise DamagedError(path, f"it has no tasks, or no returns of {RUN}")
        if found.success and RUN not in found.success:
            raise DamagedError(path, f"it has no success of {RUN}")
        if found.classes and not set(found.tasks[:, 0]) <= set(range(len(found.classes))):
            raise DamagedError(path, "its tasks are of other classes")
        for phase in (found.phase, *found.phases.values()):
            if phase not in PHASES:
                raise DamagedError(path, f"phases are {' or '.join(PHASES)}, not {phase!r}")
        return found


def best_of(folder: Path, settings: "EvaluationConfig", iterations: Iterable[int]) -> int | None:
    """Return the iteration whose meta-test with these settings has the highest rank.

    None if none of the ``iterations`` was tested so. Raises InputError for a damaged file.
    """
    paths = {done: meta_test_path(folder, done, settings) for done in iterations}
    ranks = {done: read(path).rank for done, path in paths.items() if path.exists()}
    finite = {done: rank for done, rank in ranks.items() if not np.isnan(rank).any()}
    return max(finite, key=finite.__getitem__, default=None)


def half_width(values: np.ndarray) -> np.ndarray:
    """Return half the 95 % confidence interval of the mean over the first axis; NaN for one.

    That of Student's t distribution.
    """
    number = len(values)
    if number < 2:
        return np.full(values.shape[1:], np.nan)
    freedom = number - 1
    # beyond the table its expansion for large samples, which is right to the third decimal
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else 1.95996 + 2.45 / freedom
    return quantile * values.std(0, ddof=1) / np.sqrt(number)
