"""What is removed from an archive: only files that this program wrote, known by name and content.

A file is known by its content if it opens and says the iteration of its name, and for a segment the
rank. One that does not is set aside under a name that says so, where a new one is to come. Links,
folders with other names and all other files are left alone.
"""

import contextlib
from pathlib import Path

import h5py

from hpc_maml.errors import InputError
from hpc_maml.storage.archive_schema import (
    FIELDS,
    FORMAT_VERSION,
    INDEX,
    NAME,
    OPTIONAL_FIELDS,
    SEGMENT,
    THINNED,
    archived_iterations,
    iteration_path,
    segment_folders,
    uncommitted,
)
from hpc_maml.storage.atomic_files import is_plain, remove_leftovers, set_aside
from hpc_maml.storage.hdf5_files import damage_of, opened


def clean(folder: Path, iteration: int) -> list[str]:
    """Remove what came after ``iteration``, and what a kill left unfinished.

    Return sentences on what is not there or not as this program wrote it; raises OSError.
    """
    notes = [
        f"{iteration_path(folder, lost)} is missing: its segments are left alone."
        for lost in uncommitted(folder, iteration)
    ]
    for path in folder.glob(f"iteration_*.h5{THINNED}"):
        match = NAME.fullmatch(path.name.removesuffix(THINNED))
        if match and _is_joined(path, int(match[1])):
            notes += _remove_segments(folder, int(match[1]))
            path.unlink()
    for late, path in archived_iterations(folder).items():
        if late <= iteration:
            continue
        if _is_joined(path, late):
            path.unlink()
            if is_plain(folder / INDEX):  # it may list the iteration
                (folder / INDEX).unlink()
        else:
            notes.append(f"{path} is damaged: it is kept as {set_aside(path).name}.")
    for late, segments in segment_folders(folder).items():
        if late > iteration:
            notes += _remove_segments(folder, late)
        remove_leftovers(segments, SEGMENT)
    remove_leftovers(folder, f"{NAME.pattern}|{INDEX}")
    return notes


def remove(folder: Path, iteration: int) -> None:
    """Remove a committed iteration; a kill in between is made up for by ``clean``.

    Raises OSError.
    """
    path = iteration_path(folder, iteration)
    going = path.with_name(path.name + THINNED)
    with contextlib.suppress(FileNotFoundError):  # somebody has removed it
        path.rename(going)  # first, so that what is committed is there
    _remove_segments(folder, iteration)
    going.unlink(missing_ok=True)


def _remove_segments(folder: Path, iteration: int) -> list[str]:
    """Remove the segments of an iteration, and their folder if nothing else is in it."""
    notes = []
    segments = segment_folders(folder).get(iteration)
    for path in sorted(segments.glob("rank_*.h5")) if segments else ():
        match = SEGMENT.fullmatch(path.name)
        if match is None:
            continue
        if _is_segment(path, iteration, int(match[1])):
            path.unlink()
        else:
            notes.append(f"{path} is damaged: it is kept as {set_aside(path).name}.")
    if segments:
        remove_leftovers(segments, SEGMENT)
        with contextlib.suppress(OSError):  # it holds something else
            segments.rmdir()
    return notes


def _is_joined(path: Path, iteration: int) -> bool:
    """Tell whether a file is the one that joins the segments of an iteration."""
    with contextlib.suppress(InputError):
        if is_plain(path):
            with opened(path, FORMAT_VERSION, joins=tuple(FIELDS | OPTIONAL_FIELDS)) as file:
                return int(file.attrs["iteration"]) == iteration and "segments" in file
    return False


def _is_segment(path: Path, iteration: int, rank: int) -> bool:
    """Tell whether a file is the segment that a rank wrote of an iteration."""
    with contextlib.suppress(InputError):
        if is_plain(path):
            with damage_of(path), h5py.File(path, "r") as file:  # a plain file
                found = int(file.attrs["iteration"]), int(file.attrs["rank"])
                return found == (iteration, rank) and "task_index" in file
    return False
