"""The record of a meta-training run: where it stands, and what is kept of each iteration."""

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms.algorithm import THETA, Algorithm, State
from hpc_maml.config import Config, fingerprint, to_yaml
from hpc_maml.errors import InputError
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.storage.archive_plan import Shapes
from hpc_maml.storage.archive_schema import Segment
from hpc_maml.storage.archive_writer import RolloutArchive
from hpc_maml.storage.atomic_files import set_aside
from hpc_maml.storage.checkpoint import (
    Checkpoint,
    checkpoints,
    load_newest,
    newest,
    prune,
    save,
)
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.metrics import Metrics
from hpc_maml.storage.run_folder import (
    CHECKPOINTS,
    EVALUATIONS,
    METRICS,
    ROLLOUTS,
    begin,
    checkpoints_are_gone,
    open_folder,
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
        begin(path, config)
        self.notes += [f"{each} It is kept as {_aside(each.path)}." for each in damages]
        self.archive = RolloutArchive(path / ROLLOUTS, config, shapes, done)
        self.notes += self.archive.notes

    def _look_for_lost_checkpoints(self, found: Checkpoint | None) -> None:
        """Compare with the last checkpoint that the metrics tell of; raises InputError."""
        last = self.metrics.last_checkpoint
        if last and found is None:
            raise InputError(checkpoints_are_gone(self.path))
        if last > max(checkpoints(self.checkpoints), default=0):
            self.notes.append(
                f"The checkpoint of iteration {last} is gone: what came after iteration "
                f"{self.checkpoint.iteration} will be computed again."
            )
        self.metrics.last_checkpoint = self.checkpoint.iteration

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
        if done % self.config.checkpoint.every == 0 or done == self.config.num_iterations:
            self.write_checkpoint()
        else:
            self.metrics.write(durable=False)

    def write_checkpoint(self) -> None:
        """Write the present state, and remove what is older than the last ``checkpoint.keep``."""
        self.metrics.write(durable=True)  # first, likewise
        text = to_yaml(self.config, neutral=False)
        save(self.checkpoints, self.checkpoint, self.fingerprint, text)
        first = not self.metrics.last_checkpoint
        self.metrics.last_checkpoint = self.checkpoint.iteration
        if first:  # from now on the run cannot begin anew without a word
            self.metrics.write(durable=False)
        prune(self.checkpoints, self.config.checkpoint.keep, self.fingerprint)

    def end_early(self, error: InputError) -> InputError:
        """Write a checkpoint, if that can be done; return the error with where the run stands."""
        with contextlib.suppress(InputError):
            self.write_checkpoint()
        last = newest(self.checkpoints)
        where = f"with the checkpoint {last.name}" if last else "without a checkpoint"
        return InputError(f"{str(error).rstrip('.')}; the run ends {where}.")


def latest_checkpoint(
    path: Path, config: Config, algorithm: Algorithm
) -> tuple[Checkpoint | None, list[DamagedError]]:
    """Return the last sound checkpoint of the run in a folder, and what is wrong with later ones.

    Without any checkpoint it is None. Raises InputError.
    """
    like = initial_checkpoint(config, algorithm)
    shapes = (
        {name: values.shape for name, values in arrays.items()}
        for arrays in (like.parameters, like.state)
    )
    return load_newest(path / CHECKPOINTS, fingerprint(config), *shapes)


def last_checkpoint(path: Path, config: Config, algorithm: Algorithm) -> Checkpoint:
    """Return the last sound checkpoint of the run in a folder, and say which later are damaged.

    Raises InputError if there is none.
    """
    found, damages = latest_checkpoint(path, config, algorithm)
    if found is None:
        raise InputError(f"The run in {path} has no checkpoint yet.")
    for damage in damages:
        print(f"hpc_maml: {damage} That of iteration {found.iteration} is taken.", file=sys.stderr)
    return found


def _aside(path: Path) -> str:
    """Set a damaged file aside, and return its new name; raises InputError."""
    try:
        return set_aside(path).name
    except OSError as error:
        raise InputError(f"{path} cannot be renamed: {error.strerror}.") from None


def initial_checkpoint(config: Config, algorithm: Algorithm) -> Checkpoint:
    """Return what a run begins with."""
    state = algorithm.initial_state(stream(config.seed, Purpose.PARAMETERS))
    return checkpoint_of(0, state, algorithm, environment_steps=0, rejected_updates=0)


def checkpoint_of(
    done: int, state: State, algorithm: Algorithm, *, environment_steps: int, rejected_updates: int
) -> Checkpoint:
    """Return the checkpoint of a state: theta by the names of its parameters, the rest as it is."""
    rest = {name: values for name, values in state.items() if name != THETA}
    parameters = algorithm.policy.unflatten(state[THETA])
    return Checkpoint(done, parameters, rest, environment_steps, rejected_updates)


def state_of(checkpoint: Checkpoint) -> State:
    """Return the state of a checkpoint."""
    theta = np.concatenate([values.ravel() for values in checkpoint.parameters.values()])
    return {THETA: theta, **checkpoint.state}


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
