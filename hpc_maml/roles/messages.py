"""The control messages between roles; trajectory batches travel by themselves."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

REQUESTS_AHEAD = 2  # of an observer: what it has in hand and the next, so that it never starves


class Tag(IntEnum):
    """Message tags; 1 is that of trajectory batches."""

    ORDER = 2  # principal to agent: Order, or None to end
    OUTCOME = 3  # agent to principal: Outcome
    REQUEST = 4  # observer to agent: ready for a task
    ASSIGNMENT = 5  # agent to observer: Assignment, Pause, or None to end
    HELLO = 6  # every rank to the principal: Hello
    SEGMENT = 7  # observer to principal: archive_schema.Segment, or InputError


@dataclass(frozen=True)
class Order:
    """An agent's share of the tasks of an iteration, or of a meta-test."""

    iteration: int
    first: int  # index of the first task within the iteration
    tasks: np.ndarray  # [G, task_dim]
    num_tasks: int  # of the whole iteration
    state: Mapping[str, np.ndarray]
    evaluation: bool = False  # a meta-test: draws of its own, no outer step
    contestant: int = 0  # index of the algorithm, of those of the job

    @property
    def indices(self) -> range:
        """The tasks' indices within the iteration."""
        return range(self.first, self.first + len(self.tasks))

    def assignment(self, chosen: range, played: Mapping[str, np.ndarray]) -> "Assignment":
        """Return the order to an observer for some of the tasks, numbered within it."""
        return Assignment(
            self.iteration,
            self.first + chosen.start,
            self.tasks[chosen.start : chosen.stop],
            played,
            self.evaluation,
            self.contestant,
        )


@dataclass(frozen=True)
class Assignment:
    """The tasks that an observer takes side by side."""

    iteration: int
    first: int  # index of the first task within the iteration
    tasks: np.ndarray  # [G, task_dim]
    played: Mapping[str, np.ndarray]  # the part of the state that observers need
    evaluation: bool
    contestant: int

    @property
    def indices(self) -> range:
        """The tasks' indices within the iteration."""
        return range(self.first, self.first + len(self.tasks))


@dataclass(frozen=True)
class Pause:
    """All tasks of the iteration are given out: time to write rollouts. Answers no request."""


@dataclass(frozen=True)
class TaskResult:
    """The episodes of a task in numbers, for each of its K phases."""

    returns: np.ndarray  # [K], undiscounted, mean of episodes
    episode_lengths: np.ndarray  # [K], in steps, mean of episodes
    steps: np.ndarray  # [K], of all episodes
    diverged: np.ndarray  # [K], episodes that the simulator gave up
    success: np.ndarray | None = None  # [K], share of the episodes, where the environment says so


@dataclass(frozen=True)
class Step:
    """What an agent reports of an outer step; all but ``state`` is the same from every agent."""

    state: Mapping[str, np.ndarray] | None  # from the first agent; None from all others
    digest: str  # of the state
    reason: str  # why it was rejected; empty: accepted
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What an agent reports of an iteration."""

    tasks: Mapping[int, TaskResult]  # by index of the task
    step: Step | None  # None after a meta-test
    stop_requested: bool  # this rank or an observer of its team has received a stop signal
    sampling_seconds: float  # from the order to the last batch
    update_seconds: float  # from the last batch to the new state
    agent_seconds: float  # spent working
    observer_seconds: float  # spent working, summed over the observers of the team


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself when it is ready to work."""

    device: str
    threads: int
    sums: str = ""  # of an agent with a GPU: the memory through which its sums go


def state_digest(state: Mapping[str, np.ndarray]) -> str:
    """Return a digest of names and bits of a state."""
    found = hashlib.blake2b(digest_size=16)
    for name, values in sorted(state.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
