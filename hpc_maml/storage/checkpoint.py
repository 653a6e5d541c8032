"""The state of a run after an iteration, and counters; all else follows from them."""

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from hpc_maml.errors import InputError
from hpc_maml.storage.atomic_files import is_plain
from hpc_maml.storage.hdf5_files import DamagedError, opened, write_hdf5

FORMAT_VERSION = 2  # 1: parameters only
NAME = re.compile(r"iteration_(\d{6,})\.h5")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Everything the rest of a run depends on, besides its configuration."""

    iteration: int  # outer steps done
    parameters: Mapping[str, np.ndarray]  # of the policy by name, float32
    state: Mapping[str, np.ndarray]  # all else that the algorithm keeps, by name
    environment_steps: int  # so far
    rejected_updates: int  # so far


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Return the file of the checkpoint after ``iteration`` outer steps."""
    return folder / f"iteration_{iteration:06d}.h5"


def save(folder: Path, checkpoint: Checkpoint, fingerprint: str, config: str) -> Path:
    """Write a checkpoint whole and return its file; the same state gives the same bytes."""

    def fill(file: h5py.File) -> None:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["iteration"] = checkpoint.iteration
        file.attrs["environment_steps"] = checkpoint.environment_steps
        file.attrs["rejected_updates"] = checkpoint.rejected_updates
        file.attrs["config_fingerprint"] = fingerprint
        file.attrs["config"] = config
        group = file.create_group("parameters", track_order=True)
        for name, value in checkpoint.parameters.items():
            group.create_dataset(name, data=value)
        group = file.create_group("state", track_order=True)
        for name, value in checkpoint.state.items():
            group.create_dataset(name, data=value)

    path = checkpoint_path(folder, checkpoint.iteration)
    write_hdf5(path, fill)
    return path


def load(
    path: Path, fingerprint: str, parameters: Mapping[str, Shape], state: Mapping[str, Shape]
) -> Checkpoint:
    """Read a checkpoint of the configuration with this fingerprint, and arrays of these shapes.

    Raises DamagedError, or InputError if it belongs to another configuration.
    """
    checkpoint, found = read(path)
    if found != fingerprint:
        raise InputError(
            f"The checkpoint {path} belongs to a run with another configuration: put the one that "
            "it was written with back into the run folder, or put the checkpoint elsewhere."
        )
    for kind, expected in (("parameters", parameters), ("state", state)):
        arrays = getattr(checkpoint, kind)
        if {name: value.shape for name, value in arrays.items()} != dict(expected):
            raise InputError(
                f"The checkpoint {path} does not fit: the {kind} have other names or shapes than "
                "the algorithm's."
            )
    return replace(
        checkpoint,
        parameters={name: checkpoint.parameters[name] for name in parameters},
        state={name: checkpoint.state[name] for name in state},
    )


def load_newest(
    folder: Path, fingerprint: str, parameters: Mapping[str, Shape], state: Mapping[str, Shape]
) -> tuple[Checkpoint | None, list[DamagedError]]:
    """Return the last checkpoint that is not damaged, None without any, and the later damages.

    Raises InputError if all are damaged, or as ``load`` does.
    """
    damages: list[DamagedError] = []
    for path in reversed(checkpoints(folder).values()):
        try:
            return load(path, fingerprint, parameters, state), damages
        except DamagedError as error:
            damages.append(error)
    if damages:
        raise InputError(f"{str(damages[0]).rstrip('.')}; there is no earlier one to go on from.")
    return None, []


def read(path: Path) -> tuple[Checkpoint, str]:
    """Return a checkpoint and the fingerprint of its configuration; raises InputError."""
    with opened(path, FORMAT_VERSION) as file:
        if checkpoint_path(path.parent, int(file.attrs["iteration"])) != path:
            raise DamagedError(path, f"it is of iteration {file.attrs['iteration']}")
        checkpoint = Checkpoint(
            iteration=int(file.attrs["iteration"]),
            parameters={name: value[...] for name, value in file["parameters"].items()},
            state={name: value[...] for name, value in file.get("state", {}).items()},
            environment_steps=int(file.attrs["environment_steps"]),
            rejected_updates=int(file.attrs["rejected_updates"]),
        )
        return checkpoint, str(file.attrs["config_fingerprint"])


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by iteration, in order; other files are left alone."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("iteration_*.h5"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def no_checkpoint(folder: Path, iteration: int) -> str:
    """Return the sentence on a checkpoint that is not there."""
    there = ", ".join(map(str, checkpoints(folder))) or "none"
    return (
        f"The run in {folder.parent} has no checkpoint of iteration {iteration}; there is {there}."
    )


def newest(folder: Path) -> Path | None:
    """Return the file of the last checkpoint in a folder, None without one."""
    return next(reversed(checkpoints(folder).values()), None)


def prune(
    folder: Path, kept: Collection[int], fingerprint: str, written: Collection[int] = ()
) -> None:
    """Remove all checkpoints but those ``kept``, by iteration; those of other runs stay.

    The ones ``written`` by this process are known to be of this run.
    """
    for done, path in checkpoints(folder).items():
        with contextlib.suppress(InputError):
            if done in kept or not is_plain(path):
                continue
            if done in written or read(path)[1] == fingerprint:
                path.unlink()
