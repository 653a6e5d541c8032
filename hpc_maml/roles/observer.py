"""The observer: asks for tasks, rolls out and adapts.

In a team it keeps and digests the tasks that it collected, and takes the outer step with the other
observers. In the split layout it sends every batch on without waiting.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.algorithms.collection import Collection
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import BatchSender, Messenger
from hpc_maml.mpi.waiting import Until
from hpc_maml.roles.messages import (
    REQUESTS_AHEAD,
    Assignment,
    Begin,
    Collected,
    Pause,
    Tag,
    TakeStep,
    in_order,
    task_result,
)
from hpc_maml.roles.outer_step import OuterStep
from hpc_maml.roles.sharing import Sharing
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.storage.archive_writer import SegmentWriter

AGENT = 0  # rank of the agent in its team
PRINCIPAL = 0  # rank of the principal in the world


class Observer(ABC):
    """An observer of a team, whatever it does with what it collects."""

    now: Begin  # what the next tasks belong to

    def __init__(
        self,
        seed: int,
        algorithms: Sequence[Algorithm],
        make_env: Callable[[int], TaskVectorEnv],
        dtype: np.dtype,
        team: Messenger,
        archive: "SegmentWriter | None",
        world: Messenger,
        stop: StopSignal,
        give_way: Callable[[], None],
    ) -> None:
        """Keep what it needs.

        ``make_env`` returns an environment for that number of tasks; ``give_way`` lets the other
        roles of this rank go on.
        """
        self.seed = seed
        self.algorithms = algorithms
        self.make_env = make_env
        self.dtype = dtype
        self.team = team
        self.archive = archive
        self.world = world
        self.stop = stop
        self.give_way = give_way

    async def run(self) -> None:
        """Work for the agent of the team until it says that there is nothing left to do."""
        for _ in range(REQUESTS_AHEAD):
            self.team.send(None, AGENT, Tag.REQUEST)
        unanswered = REQUESTS_AHEAD
        while unanswered:
            message, _ = await self.team.receive(Tag.ASSIGNMENT, "a task from the agent", AGENT)
            if message is None:
                unanswered -= 1
            elif isinstance(message, Begin):
                self._begin(message)
            elif isinstance(message, Assignment):
                await self._carry_out(message)
                self.team.send(None, AGENT, Tag.REQUEST)
            else:
                self._follow(message)
        await Until(self._all_is_sent, "the agent and the principal to receive what was sent")

    def _begin(self, begin: Begin) -> None:
        """Note what the next tasks belong to."""
        self.now = begin

    @abstractmethod
    async def _carry_out(self, assignment: Assignment) -> None:
        """Collect the tasks of an assignment."""

    @abstractmethod
    def _follow(self, message: Pause | TakeStep) -> None:
        """Do what is to be done when all tasks have been given out, or collected."""

    def _all_is_sent(self) -> bool:
        """Tell whether everything has been received."""
        return all([self.team.poll(), self.world.poll()])

    async def _collect(
        self, now: Begin, played: State, assignment: Assignment, sharing: Sharing
    ) -> AsyncIterator[np.ndarray]:
        """Yield the batches ``[G]`` of each phase; own tasks are kept for the archive."""
        collection = Collection(
            self.algorithms[now.contestant],
            self.make_env(len(assignment.tasks)),
            played,
            assignment.tasks,
            keys=[(self.seed, now.iteration, index) for index in assignment.indices],
            evaluation=now.evaluation,
            dtype=self.dtype,
            give_way=self.give_way,
            chosen=sharing.chosen,
        )
        for phase in range(collection.phases):
            thetas = collection.play.parameters
            batches = collection.roll_out()
            await sharing.complete(batches, collection.play)
            collection.learn(batches, sharing.own)
            if phase + 1 < collection.phases:
                await sharing.hand_back(collection.play)
            batches["stop_requested"] = self.stop.requested
            if self.archive and not now.evaluation:
                for task in sharing.own:
                    own = batches[task : task + 1]
                    self.archive.keep(now.iteration + 1, own, thetas[task])
            yield batches

    def _write_rollouts(self) -> None:
        """Write what was kept of the iteration, and send the principal the segment or the error."""
        if not self.archive:
            return
        try:
            segment = self.archive.write()
        except InputError as error:
            # which then ends the run with a checkpoint
            self.world.send(error, PRINCIPAL, Tag.SEGMENT)
            return
        if segment:
            self.world.send(segment, PRINCIPAL, Tag.SEGMENT)


class TeamObserver(Observer):
    """An observer that keeps and digests its tasks, and takes the step."""

    def __init__(self, *args: Any, outer_step: OuterStep) -> None:
        super().__init__(*args)
        self.outer_step = outer_step

    def _begin(self, begin: Begin) -> None:
        super()._begin(begin)
        self.outer_step.begin(self.outer_step.state if begin.state is None else begin.state)

    async def _carry_out(self, assignment: Assignment) -> None:
        now, algorithm = self.now, self.algorithms[self.now.contestant]
        sharing = Sharing(self.team, assignment, *self.dtype["lengths"].shape)
        began = time.perf_counter()
        played = algorithm.played(self.outer_step.state)
        phases = [each async for each in self._collect(now, played, assignment, sharing)]
        seconds = time.perf_counter() - began - sharing.waited
        results = []
        for row in sharing.own:
            index = assignment.indices[row]
            results.append(task_result(index, [batches[row] for batches in phases]))
            if not now.evaluation:
                self.outer_step.digest(algorithm, [batches[row : row + 1] for batches in phases])
                self.give_way()
        collected = in_order(results) if results else None
        self.team.send(Collected(collected, self.stop.requested, seconds), AGENT, Tag.RESULT)

    def _follow(self, message: Pause | TakeStep) -> None:
        """Take the step, and only then write rollouts, as all others wait for the step."""
        now = self.now
        step = self.outer_step.take(
            self.algorithms[now.contestant],
            now.iteration,
            now.num_tasks,
            stop_requested=self.stop.requested,
        )
        if self.team.comm.rank != AGENT:
            step = replace(step, state=None)
        self.team.send(step, AGENT, Tag.STEP)
        self._write_rollouts()


class SplitObserver(Observer):
    """An observer that sends its batches to the agent, as soon as each is ready."""

    def __init__(self, *args: Any, sender: BatchSender) -> None:
        super().__init__(*args)
        self.sender = sender

    async def _carry_out(self, assignment: Assignment) -> None:
        sharing = Sharing(self.team, assignment, *self.dtype["lengths"].shape)
        played = dict(self.now.state or {})
        async for batches in self._collect(self.now, played, assignment, sharing):
            for task in range(len(batches)):
                self.sender.send(batches[task : task + 1])

    def _follow(self, message: Pause | TakeStep) -> None:
        """Write rollouts, while the agents compute."""
        self._write_rollouts()

    def _all_is_sent(self) -> bool:
        return all([super()._all_is_sent(), self.sender.poll()])
