"""The control messages between roles; trajectory batches travel by themselves."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

# Requests of an observer that has nothing to do: one is answered by what it works on, the other by
# what comes next, so that it never starves. The agent sees by their number who has how much to do.
REQUESTS_AHEAD = 2


class Tag(IntEnum):
    """Message tags; 1 is that of trajectory batches."""

    ORDER = 2  # principal to agent: Order, or None to end
    OUTCOME = 3  # agent to principal: Outcome; before it now and then None, that it goes on
    REQUEST = 4  # observer to agent: ready for a task
    ASSIGNMENT = 5  # agent to observer: Begin, Assignment, Pause, TakeStep, or None to end
    HELLO = 6  # every rank to the principal: Hello
    SEGMENT = 7  # observer to principal: archive_schema.Segment, or InputError
    RESULT = 8  # observer to the agent of its team: Collected
    STEP = 9  # observer to the agent of its team: Step
    REST = 10  # principal to a rank without a role: True, the job goes on, or None to end
    EPISODES = 11  # observer to the one that owns a task they share: Episodes
    ADAPTED = 12  # back to it: Adapted


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

    def begin(self, state: Mapping[str, np.ndarray] | None) -> "Begin":
        """Return what an observer is to know before its first task."""
        return Begin(self.iteration, self.num_tasks, state, self.evaluation, self.contestant)

    def assignment(
        self, chosen: Sequence[int], shares: Sequence["Share"] = (), observer: int | None = None
    ) -> "Assignment":
        """Return the order to an observer for some of the tasks, numbered within it."""
        indices = tuple(self.first + task for task in chosen)
        return Assignment(indices, self.tasks[list(chosen)], tuple(shares), observer)


@dataclass(frozen=True)
class Begin:
    """What an observer is to know of an iteration, or of a meta-test, before its first task."""

    iteration: int
    num_tasks: int  # of the whole iteration
    # The part that is played with, or in a team, which takes the step, all of it; None: as it was
    # after the last step.
    state: Mapping[str, np.ndarray] | None
    evaluation: bool
    contestant: int


class Player(NamedTuple):
    """An observer that plays some episodes of a task."""

    rank: int  # in the team
    start: int  # of its episodes
    stop: int


@dataclass(frozen=True)
class Share:
    """A task that several observers play together; the first of them owns it."""

    place: int  # of the task in an assignment
    players: tuple[Player, ...]  # all of them


@dataclass(frozen=True)
class Assignment:
    """The tasks that an observer takes side by side."""

    indices: tuple[int, ...]  # of the tasks within the iteration
    tasks: np.ndarray  # [G, task_dim]
    shares: tuple[Share, ...] = ()  # those that it plays with others
    observer: int | None = None  # who has to take it; None: any


@dataclass(frozen=True)
class Episodes:
    """Episodes of a task that another observer owns."""

    fields: Mapping[str, np.ndarray]  # of a trajectory batch, those with an entry for each episode
    diverged: int
    memory: np.ndarray | None  # [episodes, M] that they left in a recurrent policy


@dataclass(frozen=True)
class Adapted:
    """What the same episodes of the next phase are played with."""

    parameters: np.ndarray  # [P]
    memory: np.ndarray | None  # [episodes, M] of a recurrent policy


@dataclass(frozen=True)
class Pause:
    """All tasks of the iteration are given out: time to write rollouts. Answers no request."""


@dataclass(frozen=True)
class TakeStep:
    """All tasks of the team are digested: time for the outer step. Answers no request."""


@dataclass(frozen=True)
class TaskResults:
    """The episodes of n tasks in numbers, for each of their K phases.

    Few arrays for many tasks: to unpack some for each would take the principal long.
    """

    indices: np.ndarray  # [n], of the tasks within the iteration
    returns: np.ndarray  # [n, K], undiscounted, mean of episodes
    episode_lengths: np.ndarray  # [n, K], in steps, mean of episodes
    steps: np.ndarray  # [n, K], of all episodes
    diverged: np.ndarray  # [n, K], episodes that the simulator gave up
    success: np.ndarray | None  # [n, K], share of the episodes, where the environment says so


def task_result(index: int, phases: Sequence[np.ndarray]) -> TaskResults:
    """Return the trajectory batches of a task in numbers."""
    return TaskResults(
        indices=np.array([index]),
        returns=np.array([[batch["rewards"].sum(0, np.float64).mean() for batch in phases]]),
        episode_lengths=np.array([[batch["lengths"].mean() for batch in phases]]),
        steps=np.array([[batch["lengths"].sum() for batch in phases]]),
        diverged=np.array([[batch["diverged"] for batch in phases]]),
        success=(
            np.array([[batch["success"].mean() for batch in phases]])
            if "success" in (phases[0].dtype.names or ())
            else None
        ),
    )


def in_order(results: Sequence[TaskResults]) -> TaskResults:
    """Return the results of some tasks, at least one, in the order of the tasks."""
    order = np.argsort(np.concatenate([each.indices for each in results]))

    def joined(name: str) -> Any:
        found = [getattr(each, name) for each in results]
        return None if found[0] is None else np.concatenate(found)[order]

    return TaskResults(*map(joined, TaskResults.__dataclass_fields__))


@dataclass(frozen=True)
class Collected:
    """What an observer reports of an assignment, whose tasks it keeps, but for those of others."""

    tasks: TaskResults | None  # None without any of its own
    stop_requested: bool
    observer_seconds: float  # spent collecting


@dataclass(frozen=True)
class Step:
    """What a rank reports of an outer step; but for ``state`` and times, all report the same."""

    state: Mapping[str, np.ndarray] | None  # from the first rank; None from all others
    digest: str  # of the state
    reason: str  # why it was rejected; empty: accepted
    metrics: Mapping[str, float]
    seconds: float  # spent working
    stop_requested: bool


def agreed(steps: Sequence[Step]) -> Step:
    """Return the first of the steps of several ranks; RuntimeError if they do not agree."""
    if len({step.digest for step in steps}) > 1:
        raise RuntimeError(
            "the ranks do not agree on the new state: the algorithm is not the same on all of "
            "them (see the rules in hpc_maml/algorithms/algorithm.py)"
        )
    return steps[0]


@dataclass(frozen=True)
class Outcome:
    """What an agent reports of an iteration."""

    tasks: TaskResults | None  # None of an agent without tasks
    step: Step | None  # None after a meta-test
    stop_requested: bool  # this rank or an observer of its team has received a stop signal
    sampling_seconds: float  # from the order to the last task
    update_seconds: float  # from the last task to the new state
    agent_seconds: float  # spent digesting and in the step, summed over the ranks that do so
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
