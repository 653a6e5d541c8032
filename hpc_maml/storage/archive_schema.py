"""What stands in the archive of rollouts, and under which names; docs/archive.md explains it."""

import re
from dataclasses import dataclass
from pathlib import Path

FORMAT_VERSION = 1
INDEX = "index.h5"
NAME = re.compile(r"iteration_(\d{6,})\.h5")
SEGMENT = re.compile(r"rank_(\d{4,})\.h5")
THINNED = ".thinned"  # ends the name of an iteration that is being removed


@dataclass(frozen=True)
class Field:
    """An array that is kept of every task of an archived iteration."""

    unit: str
    shape: str  # K: updates before, T: steps, B: episodes
    description: str


FIELDS: dict[str, Field] = {
    "observations": Field("see docs/environments.md", "[task, K, T, B, ...]", "before each step"),
    "actions": Field("see docs/environments.md", "[task, K, T, B, ...]", "of the policy"),
    "rewards": Field("reward", "[task, K, T, B]", "of each step"),
    "log_probs": Field("nat", "[task, K, T, B]", "of the actions, under the policy that took them"),
    "advantages": Field("1", "[task, K, T, B]", "normalised over the batch of a task"),
    "terminated": Field("1", "[task, K, T, B]", "the environment ended the episode at this step"),
    "truncated": Field("1", "[task, K, T, B]", "the horizon ended the episode at this step"),
    "lengths": Field("steps", "[task, K, B]", "steps of each episode; later ones are zero"),
    "diverged": Field("1", "[task, K]", "episodes that ended because the simulation diverged"),
}
ADAPTED, SUCCESS = "adapted_parameters", "success"
OPTIONAL_FIELDS: dict[str, Field] = {
    SUCCESS: Field("1", "[task, K, B]", "the episode succeeded at any of its steps"),
    ADAPTED: Field("1", "[task, K - 1, P]", "of the policy after each update, in one vector"),
}


@dataclass(frozen=True)
class Segment:
    """What an observer says of a segment that is on the disk."""

    iteration: int  # counted from 1
    name: str  # of the file, below the folder of the archive
    tasks: tuple[int, ...]  # indices within the iteration, one for each row
    size: int  # bytes


def iteration_path(folder: Path, iteration: int) -> Path:
    """Return the file that presents the segments of an iteration as one."""
    return folder / f"iteration_{iteration:06d}.h5"


def segment_name(iteration: int, rank: int) -> str:
    """Return the name of the segment that a rank writes of an iteration."""
    return f"iteration_{iteration:06d}/rank_{rank:04d}.h5"


def is_segment_name(name: str, iteration: int) -> bool:
    """Tell whether a name is that of a segment of an iteration, below the folder of the archive."""
    folder, _, file = name.partition("/")
    return folder == f"iteration_{iteration:06d}" and SEGMENT.fullmatch(file) is not None


def archived_iterations(folder: Path) -> dict[int, Path]:
    """Return the files of the committed iterations, in order; other files are left alone."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("iteration_*.h5"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def segment_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of segments, in order; links to folders are left alone."""
    found = {}
    for path in folder.glob("iteration_*"):
        match = NAME.fullmatch(f"{path.name}.h5")
        if match and path.is_dir() and not path.is_symlink():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def uncommitted(folder: Path, done: int) -> list[int]:
    """Return iterations up to ``done`` whose segments are there, but not the file that joins them.

    Their file was lost: a run removes the file and the segments of an iteration, or neither.
    """
    return [
        iteration
        for iteration, segments in segment_folders(folder).items()
        if iteration <= done
        # in this order, as the run may be removing the iteration at this moment
        and not iteration_path(folder, iteration).exists()
        and not iteration_path(folder, iteration).with_suffix(f".h5{THINNED}").exists()
        and any(SEGMENT.fullmatch(path.name) for path in segments.glob("rank_*.h5"))
    ]
