"""The control messages between roles; trajectory batches travel by themselves."""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

REQUESTS_AHEAD = 2  # of an observer: what it has in hand and the next, so that it never starves


class Tag(IntEnum):
    """Message tags; 1 is that of trajectory batches."""

    ORDER = 2  # principal to agent: Order, or None to end
    OUTCOME = 3  # agent to principal: Outcome
    REQUEST = 4  # observer to agent: ready for a task
    ASSIGNMENT = 5  # agent to observer: Order of some of its tasks, Pause, or None to end
    HELLO = 6  # every rank to the principal: Hello
    SEGMENT = 7  # observer to principal: archive.schema.Segment, or InputError


@dataclass(frozen=True)
class Order:
    """Tasks of an iteration: an agent's share, or those that an observer takes side by side."""

    iteration: int
    first: int  # index of the first task within the iteration
    tasks: np.ndarray  # [G, task_dim]
    num_tasks: int  # of the whole iteration
    theta: np.ndarray  # [P]
    step_sizes: tuple[float, ...]  # one for each inner step
    evaluation: bool  # a meta-test: draws of its own, no outer step

    def part(self, chosen: range) -> "Order":
        """Return an order of these of its tasks, numbered within it."""
        return replace(
            self,
            first=self.first + chosen.start,
            tasks=self.tasks[chosen.start : chosen.stop],
        )

    @property
    def indices(self) -> range:
        """The tasks' indices within the iteration."""
        return range(self.first, self.first + len(self.tasks))


@dataclass(frozen=True)
class Pause:
    """All tasks of the iteration are given out: time to write rollouts. Answers no request."""


@dataclass(frozen=True)
class Outcome:
    """What an agent reports of an iteration."""

    per_task: dict[int, dict[str, float]]  # index of the task -> name -> value
    step: Any  # meta_step.MetaStep, the same from every agent; None after a meta-test
    stop_requested: bool  # this rank or an observer of its team has received a stop signal
    sampling_seconds: float  # from the order to the last batch
    update_seconds: float  # from the last batch to the new parameters
    agent_seconds: float  # spent working
    observer_seconds: float  # spent working, summed over the observers of the team


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself when it is ready to work."""

    device: str
    threads: int
    sums: str = ""  # of an agent with a GPU: the memory through which its sums go
