"""Words for the phases of a task: after 0, 1, ... updates, or episodes 1, 2, ... of a trial.

What kind they are is a matter of the algorithm, see ``Algorithm.phase``.
"""

from collections.abc import Collection

UPDATES, EPISODE = "updates", "episode"
FIRST = {UPDATES: 0, EPISODE: 1}  # number of the first phase
AXIS = {UPDATES: "updates", EPISODE: "episode of a trial"}
EACH = {UPDATES: "after each update", EPISODE: "in each episode of a trial"}
ENDS = {
    UPDATES: ("before adaptation", "after adaptation"),
    EPISODE: ("first episode", "last episode"),
}
GAIN = {UPDATES: "Gain by adaptation", EPISODE: "Gain from the first to the last episode"}
ALONE = {UPDATES: "without adaptation", EPISODE: "only episode"}


def ends_by_index(kind: str, number: int) -> dict[int, str]:
    """Return the names of the first and the last of so many phases of a task, by index."""
    if number == 1:
        return {0: ALONE[kind]}
    first, last = ENDS[kind]
    return {0: first, number - 1: last}


def ends(kinds: Collection[str]) -> tuple[str, str]:
    """Return the names of the first and the last phases of tasks of all these kinds."""
    first, last = zip(*(ENDS[kind] for kind in kinds), strict=True)
    return " or ".join(first), " or ".join(last)


def each(kinds: Collection[str]) -> str:
    """Return the words for each phase of tasks of all these kinds."""
    return ", or ".join(EACH[kind] for kind in kinds)
