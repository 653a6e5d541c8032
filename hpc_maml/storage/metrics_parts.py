"""The rows of the metrics that stand beside ``metrics.h5``, in parts that are closed for ever.

``metrics.h5`` holds the last rows and says how many there were before (``earlier_iterations``). The
part of iterations a to b is ``metrics/iterations_a_b.h5``. Ten parts of one length are joined to
one, so that there are few of them; until the ten are removed their rows are there twice.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

from hpc_maml.errors import InputError
from hpc_maml.storage.atomic_files import is_plain
from hpc_maml.storage.hdf5_files import DamagedError, opened

FORMAT_VERSION = 3  # 1: without what an algorithm declares; 2: all rows in metrics.h5
GROUPS = ("iterations", "tasks")
PARTS = "metrics"  # the folder, beside metrics.h5
NAME = re.compile(r"iterations_(\d{6,})_(\d{6,})\.h5")
NDIM = {  # of the columns that are no numbers of an iteration
    "task": 3,
    "pre_update_return": 2,
    "post_update_return": 2,
    "return_after_updates": 3,
    "pre_update_success": 2,
    "post_update_success": 2,
    "success_after_updates": 3,
}
READERS_PATIENCE = 20  # times that a part is gone, as the run has joined it with others

T = TypeVar("T")


class Part(NamedTuple):
    """A file of rows: those of the iterations ``first`` to ``last``."""

    first: int
    last: int
    path: Path

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.last - self.first + 1

    def is_sound(self) -> bool:
        """Tell whether it is a file, no link to one, that holds the rows of its name."""
        try:
            with opened_part(self):
                return is_plain(self.path)
        except InputError:
            return False


def part_of(folder: Path, first: int, last: int) -> Part:
    """Return the part of some iterations."""
    return Part(first, last, folder / f"iterations_{first:06d}_{last:06d}.h5")


def parts(folder: Path) -> list[Part]:
    """Return all parts in a folder, in order; other files are left alone."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("iterations_*.h5"))
    return sorted(Part(int(match[1]), int(match[2]), path) for match, path in matches if match)


def covering(folder: Path, iterations: int) -> list[Part]:
    """Return the parts that together hold the rows up to ``iterations``, each row once.

    Raises InputError if one is missing.
    """
    found: list[Part] = []
    done = 0
    # of those that begin alike the longest, which holds the others
    for part in sorted(parts(folder), key=lambda part: (part.first, -part.last)):
        if part.first == done + 1 and part.last <= iterations:
            found.append(part)
            done = part.last
    if done < iterations:
        raise _gone(folder, done + 1, iterations)
    return found


@contextmanager
def opened_part(part: Part) -> Iterator[h5py.File]:
    """Open a part; raises DamagedError, also if it does not hold the rows of its name."""
    with opened(part.path, FORMAT_VERSION) as file:
        span = int(file.attrs["first_iteration"]), int(file.attrs["last_iteration"])
        if span != (part.first, part.last):
            raise DamagedError(part.path, f"it has the iterations {span[0]} to {span[1]}")
        for group in GROUPS:
            if short := [name for name, each in file[group].items() if len(each) != part.rows]:
                raise DamagedError(
                    part.path, f"{short[0]} does not have a value for each iteration"
                )
        yield file


def read_columns(
    path: Path, group: str, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return columns of all rows of a run, ``[iterations, ...]``, by name.

    ``path`` is its ``metrics.h5``; without ``names`` it is all of the group, otherwise those that
    there are. Raises InputError.
    """

    def read() -> dict[str, np.ndarray]:
        with opened(path, FORMAT_VERSION) as file:
            earlier = int(file.attrs.get("earlier_iterations", 0))  # older files have all rows
            found = [each for each in file[group] if names is None or each in names]
            last = {name: file[group][name][...] for name in found}
            rows = int(file.attrs["committed_iterations"]) - earlier
            for name, column in last.items():
                if len(column) != rows or (rows and column.ndim != NDIM.get(name, 1)):
                    raise DamagedError(path, f"{name} does not have the shape of a column")
        pieces = []
        for part in covering(path.parent / PARTS, earlier):
            with opened_part(part) as file:
                pieces.append({name: file[group][name][...] for name in found})
        try:
            return {name: np.concatenate([each[name] for each in (*pieces, last)]) for name in last}
        except ValueError:
            raise DamagedError(
                path, f"its rows do not have the shape of those in {PARTS}"
            ) from None

    return _again_while_parts_are_joined(read)


def damages(path: Path) -> list[InputError]:
    """Return what is wrong with the metrics of a run, ``path`` being its ``metrics.h5``."""

    def read() -> list[InputError]:
        found: list[InputError] = []
        try:
            with opened(path, FORMAT_VERSION) as file:
                earlier = int(file.attrs.get("earlier_iterations", 0))
                rows = int(file.attrs["committed_iterations"]) - earlier
                if any(len(each) != rows for group in GROUPS for each in file[group].values()):
                    raise DamagedError(path, "it has the wrong number of rows")
        except DamagedError as error:
            return [error]
        for part in covering(path.parent / PARTS, earlier):
            try:
                with opened_part(part):
                    pass
            except DamagedError as error:
                found.append(error)
        return found

    try:
        return _again_while_parts_are_joined(read)
    except InputError as error:
        return [error]


def part_rows(folder: Path, iterations: int) -> Iterator[dict[str, Any]]:
    """Yield the rows up to ``iterations`` that parts hold, with one part in memory at a time.

    Raises InputError.
    """
    done = 0

    def read() -> tuple[int, dict[str, np.ndarray]]:
        # The one that was found before may be joined with later rows by now.
        found = [part for part in parts(folder) if part.first <= done + 1 <= part.last]
        if not found:
            raise _gone(folder, done + 1, iterations)
        part = max(found, key=lambda part: part.rows)
        last = min(part.last, iterations)
        wanted = slice(done + 1 - part.first, last + 1 - part.first)
        with opened_part(part) as file:
            return last, {
                name: each[wanted] for group in GROUPS for name, each in file[group].items()
            }

    while done < iterations:
        last, columns = _again_while_parts_are_joined(read)
        for row in range(last - done):
            yield {name: column[row] for name, column in columns.items()}
        done = last


def _gone(folder: Path, first: int, last: int) -> InputError:
    return InputError(
        f"The metrics of iterations {first} to {last} are missing: there is no file for them in "
        f"{folder}."
    )


def _again_while_parts_are_joined(read: Callable[[], T]) -> T:
    """Return what ``read`` does, although the run joins parts now and then; raises InputError."""
    for _ in range(READERS_PATIENCE):
        try:
            return read()
        except DamagedError:
            raise
        except InputError as error:  # a file is not there
            missing = error
    raise missing
