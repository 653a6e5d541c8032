"""The digests of a rank's tasks: kept while there is room, and computed anew beyond it.

What a task keeps for an outer step by MAML-TRPO is some ten times its trajectory batches, so
for many tasks on one rank it is what the memory is spent on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

MEMORY = 2**30  # bytes


class Digests(Iterable[Any]):
    """Digests to go through again and again; the same bits with any ``memory`` (bytes)."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.kept: list[Any] = []
        self.computed_anew: list[Callable[[], Any]] = []

    def add(self, digest: Callable[[], Any]) -> None:
        """Add what ``digest`` returns."""
        if self.memory <= 0:
            self.computed_anew.append(digest)
            return
        self.kept.append(digest())
        self.memory -= _bytes(self.kept[-1])

    def __iter__(self) -> Iterator[Any]:
        yield from self.kept
        for digest in self.computed_anew:
            yield digest()


def _bytes(part: Any) -> int:
    """Return the bytes of all arrays in nested containers."""
    if isinstance(part, str | bytes):
        return len(part)
    if hasattr(part, "nbytes"):
        return part.nbytes
    if is_dataclass(part):
        part = vars(part)
    if isinstance(part, Mapping):
        part = part.values()
    return sum(map(_bytes, part)) if isinstance(part, Iterable) else 0
