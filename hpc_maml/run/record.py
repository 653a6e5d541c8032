"""The record of a meta-training run: where it stands, and what is kept of each iteration."""

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.config import Config, fingerprint, to_yaml
from hpc_maml.errors import InputError, reason_of
from hpc_maml.storage.archive_plan import Shapes
from hpc_maml.storage.archive_schema import Segment
from hpc_maml.storage.archive_writer import RolloutArchive
from hpc_maml.storage.atomic_files import set_aside
from hpc_maml.storage.checkpoint import Checkpoint, checkpoints, newest, prune, save
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.meta_tests import MetaTest, best_of, meta_test_files, meta_test_path
from hpc_maml.storage.meta_tests import read as read_meta_test
from hpc_maml.storage.metrics import Metrics
from hpc_maml.storage.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    LOCK,
    METRICS,
    ROLLOUTS,
    begin,
    checkpoints_are_gone,
    has_config,
    open_folder,
)
from hpc_maml.storage.run_log import LOG
from hpc_maml.storage.states import (
    checkpoint_of,
    initial_checkpoint,
    latest_checkpoint,
    state_of,
)


class RunRecord:
    """An open run folder, held by the principal."""

    def __init__(
        self,
        path: Path,
        config: Config,
        algorithm: Algorithm,
        shapes: Shapes,
        success_of: Mapping[str, int] | None = None,
    ) -> None:
        """Open the folder and read where the run stands; raises InputError.

        ``success_of`` is that of Metrics.
        """
        self.config = config
        self.algorithm = algorithm
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.evaluations = path / EVALUATIONS
        self.metrics = Metrics(
            path / METRICS, versions(), algorithm.metrics, algorithm.phase, success_of
        )
        self.fingerprint = fingerprint(config)
        self._config_text = to_yaml(config, neutral=False)
        self._written: set[int] = set()  # iterations of the checkpoints of this process
        self.is_new = not has_config(path)
        self._lock = open_folder(path, config)
        found, damages = latest_checkpoint(path, config, algorithm)
        self.checkpoint = found or initial_checkpoint(config, algorithm)
        done = self.checkpoint.iteration
        self.notes: list[str] = []  # what is not as this program left it
        try:
            self.metrics.read(done)
        except DamagedError as error:
            if done:
                raise
            damages.append(error)  # its rows will be computed again
        self._look_for_lost_checkpoints(found)
        for each in meta_test_files(self.evaluations):
            try:
                read_meta_test(each)
            except DamagedError as error:
                damages.append(error)  # a scheduled one is made again, if the run comes to it
        if self.is_new:  # first, as without it a folder with other files is no run
            begin(path, config)
        self.archive = RolloutArchive(path / ROLLOUTS, config, shapes, done)
        self.notes += self.metrics.begin()
        self.notes += [f"{each} It is kept as {_aside(each.path)}." for each in damages]
        self.notes += self.archive.notes
        if not self.is_new:  # last, so that a refusal leaves the configuration as it was
            begin(path, config)

    def _look_for_lost_checkpoints(self, found: Checkpoint | None) -> None:
        """Compare with the last checkpoint that the metrics tell of; raises InputError."""
        last = self.metrics.last_checkpoint
        if last and found is None:
            raise InputError(checkpoints_are_gone(self.path))
        if last > max(checkpoints(self.checkpoints), default=0):
            self.notes.append(
                f"The checkpoint of iteration {last} is missing: what came after iteration "
                f"{self.checkpoint.iteration} will be computed again."
            )
        self.metrics.last_checkpoint = self.checkpoint.iteration

    def close(self) -> None:
        """Let other jobs use the folder, as the end of the process does."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder if there is nothing in it but what was written before any work.

        Otherwise all of it stays: without its configuration no run could go on in it.
        """
        files = {self.path / name for name in (CONFIG, LOG, LOCK)}
        rollouts = self.archive.folder
        folders = [*rollouts.glob("iteration_*"), rollouts, self.checkpoints]
        with contextlib.suppress(OSError):
            if set(self.path.rglob("*")) - files - set(folders):
                return
            for folder in folders:
                if folder.exists():
                    folder.rmdir()
            for file in files:
                file.unlink(missing_ok=True)
            self.path.rmdir()

    @property
    def state(self) -> State:
        """The state that the rest of the run goes on from."""
        return state_of(self.checkpoint)

    def record(
        self, done: int, state: State, row: dict[str, Any], segments: Sequence[Segment]
    ) -> None:
        """Keep the metrics ``row``, the state and the rollouts after ``done`` iterations.

        Raises InputError.
        """
        if segments:  # first, as the checkpoint relies on it
            self.archive.commit(done, row["task"], segments)
        self.checkpoint = checkpoint_of(
            done,
            state,
            self.algorithm,
            environment_steps=self.checkpoint.environment_steps + row["environment_steps"],
            rejected_updates=self.checkpoint.rejected_updates + (not row["accepted"]),
        )
        self.metrics.add(
            row
            | {
                "environment_steps_total": self.checkpoint.environment_steps,
                "rejected_updates": self.checkpoint.rejected_updates,
            }
        )
        if self._is_due(done):
            self.write_checkpoint()
        else:
            self.metrics.write(durable=False)

    def write_checkpoint(self) -> None:
        """Write the present state, and remove the checkpoints that are not to be kept."""
        self.metrics.write(durable=True)  # first, likewise
        save(self.checkpoints, self.checkpoint, self.fingerprint, self._config_text)
        self._written.add(self.checkpoint.iteration)
        first = not self.metrics.last_checkpoint
        self.metrics.last_checkpoint = self.checkpoint.iteration
        if first:  # from now on the run cannot silently begin anew
            self.metrics.write(durable=False)
        prune(self.checkpoints, self._kept(), self.fingerprint, self._written)

    def _is_due(self, done: int) -> bool:
        """Tell whether there is to be a checkpoint after ``done`` iterations."""
        settings, tested = self.config.checkpoint, self.config.evaluation.every
        every = [settings.every, settings.keep_every, tested if settings.keep_best else None]
        return done == self.config.num_iterations or any(
            each and done % each == 0 for each in every
        )

    def _kept(self) -> set[int]:
        """Return the iterations whose checkpoints stay."""
        settings, there = self.config.checkpoint, list(checkpoints(self.checkpoints))
        kept = {*list(filter(self._is_due, there))[-settings.keep :], *there[-1:]}
        if len(kept) < settings.keep and self.checkpoint.iteration < self.config.num_iterations:
            kept.update(there[-settings.keep :])  # those of stops, until there are others
        if settings.keep_every:
            kept |= {done for done in there if done % settings.keep_every == 0}
        if settings.keep_best:
            # A damaged meta-test tells of no checkpoint: then none is removed.
            try:
                kept.add(best_of(self.evaluations, self.config.evaluation, there) or 0)
            except InputError:
                return set(there)
        return kept

    def lacks_test(self, done: int) -> bool:
        """Tell whether there is to be a meta-test after ``done`` iterations, and is none."""
        settings = self.config.evaluation
        if not settings.every or done % settings.every:
            return False
        return not meta_test_path(self.evaluations, done, settings).exists()

    def scheduled_test(self, done: int) -> MetaTest | None:
        """Return the scheduled meta-test after ``done`` iterations, if there is one, and kept."""
        settings = self.config.evaluation
        path = meta_test_path(self.evaluations, done, settings)
        if not settings.every or done % settings.every or not path.exists():
            return None
        try:
            return read_meta_test(path)
        except InputError:  # a damaged one, which inspect tells of
            return None

    def end_early(self, error: InputError) -> InputError:
        """Write a checkpoint, if that can be done; return the error with where the run stands."""
        with contextlib.suppress(InputError):
            self.write_checkpoint()
        last = newest(self.checkpoints)
        where = f"with the checkpoint {last.name}" if last else "without a checkpoint"
        return InputError(f"{str(error).rstrip('.')}; the run ends {where}.")


def _aside(path: Path) -> str:
    """Set a damaged file aside, and return its new name; raises InputError."""
    try:
        return set_aside(path).name
    except OSError as error:
        raise InputError(f"{path} cannot be renamed: {reason_of(error)}.") from None


def versions() -> dict[str, str]:
    """Return what the numbers of a run came from: versions of the program and its libraries."""
    names = ("hpc_maml", "mujoco", "gymnasium", "torch", "numpy", "mpi4py", "h5py")
    found = {name: importlib.metadata.version(name) for name in names}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["metaworld"] = importlib.metadata.version("metaworld")
    found["python"] = platform.python_version()
    found["mpi"] = MPI.Get_library_version().split("\n")[0].strip(" \0")
    found["git_commit"] = _git_commit()
    return found


def _git_commit() -> str:
    """Return the commit of the checkout that the program runs from, empty if it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip()
