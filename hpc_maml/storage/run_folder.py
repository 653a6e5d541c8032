"""The folder of a run: continued by the same configuration only, and by one job at a time.

What only reads a run needs no configuration, which knows the environments: they are imported where
they are used.
"""

import errno
import fcntl
import os
import re
import sys
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hpc_maml.errors import InputError, printable, reason_of
from hpc_maml.names import UntrustedError
from hpc_maml.storage import checkpoint, meta_tests, metrics_parts
from hpc_maml.storage.archive_schema import archived_iterations
from hpc_maml.storage.atomic_files import is_leftover, remove_leftovers, write_text
from hpc_maml.storage.checkpoint import checkpoints
from hpc_maml.storage.hdf5_files import opened
from hpc_maml.storage.metrics_parts import FORMAT_VERSION as METRICS_VERSION
from hpc_maml.storage.metrics_parts import PARTS

if TYPE_CHECKING:
    from hpc_maml.config import Config

CONFIG, METRICS, CHECKPOINTS, LOCK = "config.yaml", "metrics.h5", "checkpoints", ".lock"
ROLLOUTS, EVALUATIONS = "rollouts", "evaluations"
FOLDERS = (CHECKPOINTS, EVALUATIONS, ROLLOUTS, PARTS)


def default_path(config: "Config") -> Path:
    """Make and return ``runs/<environment>-<date>-<time>``; jobs of one second get their own."""
    environment = re.split("[/:]", config.env.name)[-1]  # of module:Class the class
    name = Path("runs") / f"{environment}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = name.with_name(f"{name.name}-{number}")
        except OSError as error:
            raise InputError(f"The run folder {path} cannot be made: {reason_of(error)}.") from None


def open_folder(path: Path, config: "Config") -> IO[str]:
    """Make the run folder or continue it, and return its lock, held while it is open.

    Continuing needs the same configuration but for the keys that do not affect results. Raises
    InputError, and then nothing has been changed.
    """
    try:
        if has_config(path):
            _check_continues(path, config)
        elif path.exists() and not _is_unused(path):
            raise InputError(f"{path} exists and is not a run folder; give another --run-dir.")
        for folder in (path / name for name in FOLDERS):
            if folder.is_symlink():
                raise InputError(
                    f"{folder} is a symbolic link: a run keeps its files in its own folder; "
                    "move them there, or link the whole run folder."
                )
        (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock = take_lock(path, "run folder")
    except OSError as error:
        raise InputError(f"The run folder {path} cannot be used: {reason_of(error)}.") from None
    return lock


def begin(path: Path, config: "Config") -> None:
    """Note the configuration and remove what a killed job left unfinished; the first changes."""
    from hpc_maml.config import to_yaml

    try:
        remove_leftovers(path, f"{CONFIG}|{METRICS}")
        remove_leftovers(path / PARTS, metrics_parts.NAME)
        remove_leftovers(path / CHECKPOINTS, checkpoint.NAME)
        remove_leftovers(path / EVALUATIONS, meta_tests.NAME)
    except OSError as error:
        raise InputError(f"The run folder {path} cannot be used: {reason_of(error)}.") from None
    write_text(path / CONFIG, to_yaml(config))


def checkpoints_are_gone(path: Path) -> str:
    """Return the sentence on a run that would begin anew because of what it lost."""
    return (
        f"The checkpoints of the run in {path} are missing: put them back into "
        f"{path / CHECKPOINTS}, or start again with another --run-dir."
    )


def lost_checkpoints(path: Path) -> InputError | None:
    """Return what is wrong with a run whose metrics tell of a checkpoint, if it has none."""
    if checkpoints(path / CHECKPOINTS) or not (path / METRICS).exists():
        return None
    try:
        with opened(path / METRICS, METRICS_VERSION) as file:
            last = int(file.attrs.get("last_checkpoint", 0))  # files of format 1 do not say
    except InputError:  # which is said elsewhere
        return None
    return InputError(checkpoints_are_gone(path)) if last else None


def has_config(path: Path) -> bool:
    """Tell whether there is a run in a folder; raises InputError if that cannot be seen."""
    try:
        return (path / CONFIG).is_file()
    except OSError as error:
        raise InputError(f"The run folder {path} cannot be read: {reason_of(error)}.") from None


def read_config(path: Path, trusted: Collection[str] | None = ()) -> "Config":
    """Return the configuration of the run in a folder.

    Of names ``module:Class`` only those in ``trusted`` are imported, with None all: the folder may
    be somebody else's. Raises InputError, also if there is no run.
    """
    if not has_config(path):
        raise InputError(f"{path} is not a run folder: it has no {CONFIG}.")
    return load_run_config(path, [], trusted)


def load_run_config(
    path: Path, words: Sequence[str], trusted: Collection[str] | None = ()
) -> "Config":
    """Return the configuration of the run in a folder, changed by words, as ``read_config``."""
    from hpc_maml.config import load_config

    file = path / CONFIG
    try:
        return load_config(file, words, trusted)
    except InputError as error:
        if printable(str(file)) in str(error):
            raise
        raise InputError(f"{file}: {error}") from None


def _is_unused(path: Path) -> bool:
    """Tell whether a folder is empty, or was begun by a job that was killed at once."""
    if not path.is_dir() or ((path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir())):
        return False
    return all(
        each.name in (CHECKPOINTS, LOCK) or is_leftover(each.name, CONFIG)
        for each in path.iterdir()
    )


def _check_continues(path: Path, config: "Config") -> None:
    from hpc_maml.config import differing_keys, own_names

    try:
        keys = differing_keys(config, read_config(path, own_names(config)))
    except UntrustedError as error:  # it names others, which need not be imported to be compared
        keys = error.keys
    if keys:
        raise InputError(
            f"The run in {path} was started with another configuration ({', '.join(keys)}); "
            "give another --run-dir, or the same settings."
        )
    if not (path / CHECKPOINTS).exists() and (
        (path / METRICS).exists() or archived_iterations(path / ROLLOUTS)
    ):
        raise InputError(checkpoints_are_gone(path))
    done = max(checkpoints(path / CHECKPOINTS), default=0)
    if config.num_iterations < done:
        raise InputError(
            f"The run in {path} has done {done} iterations already, "
            f"more than num_iterations = {config.num_iterations}."
        )


def take_lock(path: Path, what: str) -> IO[str]:
    """Return the lock of a folder, held while it is open; ``what`` the folder is, in words.

    Raises InputError where another job has it, and OSError.
    """
    # without following a link, and without emptying what is there
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.fdopen(os.open(path / LOCK, flags, 0o666), "w")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path / LOCK} is a symbolic link: remove it.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"The {what} {path} is in use by another job.") from None
    except OSError:
        said = f"{path} is on a file system without locks: nothing keeps two jobs out of it."
        print(f"hpc_maml: {said}", file=sys.stderr)
    return lock
