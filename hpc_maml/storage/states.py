"""Checkpoints as states of an algorithm, and which of a run is meant."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from hpc_maml.algorithms.algorithm import THETA, Algorithm, State
from hpc_maml.config import Config, fingerprint
from hpc_maml.errors import InputError
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.storage.checkpoint import (
    Checkpoint,
    checkpoints,
    load,
    load_newest,
    no_checkpoint,
)
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.meta_tests import best_of
from hpc_maml.storage.run_folder import CHECKPOINTS, EVALUATIONS, lost_checkpoints

Which = int | Literal["last", "best"]
"""The checkpoint after that many iterations, the last, or that of the best meta-test."""


def latest_checkpoint(
    path: Path, config: Config, algorithm: Algorithm
) -> tuple[Checkpoint | None, list[DamagedError]]:
    """Return the last sound checkpoint of the run in a folder, and what is wrong with later ones.

    Without any checkpoint it is None. Raises InputError.
    """
    parameters, state = _shapes(config, algorithm)
    return load_newest(path / CHECKPOINTS, fingerprint(config), parameters, state)


def chosen_checkpoint(
    path: Path, config: Config, algorithm: Algorithm, which: Which = "last"
) -> Checkpoint:
    """Return a checkpoint of the run in a folder; of the last, say which later are damaged.

    Raises InputError if it is not there.
    """
    if which == "last":
        found, damages = latest_checkpoint(path, config, algorithm)
        if found is None:
            raise lost_checkpoints(path) or InputError(f"The run in {path} has no checkpoint yet.")
        for damage in damages:
            said = f"{damage} That of iteration {found.iteration} is used."
            print(f"hpc_maml: {said}", file=sys.stderr)
        return found
    there = checkpoints(path / CHECKPOINTS)
    if which == "best":
        which = _best(path, config, list(there))
    if which not in there:
        raise InputError(no_checkpoint(path / CHECKPOINTS, which))
    return load(there[which], fingerprint(config), *_shapes(config, algorithm))


def _best(path: Path, config: Config, there: Sequence[int]) -> int:
    best = best_of(path / EVALUATIONS, config.evaluation, there)
    if best is None:
        raise InputError(
            f"No checkpoint of the run in {path} has been tested: train with evaluation.every, "
            "call evaluate, or choose an iteration."
        )
    return best


def _shapes(config: Config, algorithm: Algorithm) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of the parameters, and of all else that the algorithm keeps."""
    like = initial_checkpoint(config, algorithm)
    return [
        {name: values.shape for name, values in arrays.items()}
        for arrays in (like.parameters, like.state)
    ]


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
