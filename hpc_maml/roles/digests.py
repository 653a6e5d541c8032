"""The linearised tasks of an agent: kept while there is room, and computed anew beyond it.

What a task keeps for the outer step is some fifteen times its trajectory batches, so for many tasks
on one agent it is what the memory is spent on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from hpc_maml.algorithms.maml_trpo import TaskGroup

ROOM = 2**30  # bytes


class TaskGroups(Iterable[TaskGroup]):
    """Groups of tasks, for ``meta_step`` to go through; the same bits with any ``room`` (bytes)."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.kept: list[TaskGroup] = []
        self.computed_anew: list[Callable[[], TaskGroup]] = []

    def add(self, linearised: Callable[[], TaskGroup]) -> None:
        """Add what ``linearised`` returns."""
        if self.room <= 0:
            self.computed_anew.append(linearised)
            return
        self.kept.append(linearised())
        self.room -= _bytes(self.kept[-1])

    def __iter__(self) -> Iterator[TaskGroup]:
        yield from self.kept
        for linearised in self.computed_anew:
            yield linearised()


def _bytes(part: Any) -> int:
    """Return the bytes of all arrays in nested containers."""
    if hasattr(part, "nbytes"):
        return part.nbytes
    if is_dataclass(part):
        part = vars(part)
    if isinstance(part, Mapping):
        part = part.values()
    return sum(map(_bytes, part)) if isinstance(part, Iterable) else 0
