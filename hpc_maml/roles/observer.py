"""The observer: asks for tasks, rolls out and adapts, sends every batch on without waiting.

It writes its part of the archive when the agent has no more tasks for it, that is while the agents
compute.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm
from hpc_maml.algorithms.collection import collect
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import BatchSender, Messenger
from hpc_maml.mpi.waiting import Until
from hpc_maml.roles.messages import REQUESTS_AHEAD, Assignment, Pause, Tag
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.storage.archive_writer import SegmentWriter

AGENT = 0  # rank of the agent in its team
PRINCIPAL = 0  # rank of the principal in the world


class Observer:
    """An observer of a team."""

    def __init__(
        self,
        seed: int,
        algorithms: Sequence[Algorithm],
        make_env: Callable[[int], TaskVectorEnv],
        dtype: np.dtype,
        team: Messenger,
        sender: BatchSender,
        archive: "SegmentWriter | None",
        world: Messenger,
        stop: StopSignal,
    ) -> None:
        """Keep what it needs; ``make_env`` returns an environment for that number of tasks."""
        self.seed = seed
        self.algorithms = algorithms
        self.make_env = make_env
        self.dtype = dtype
        self.team = team
        self.sender = sender
        self.archive = archive
        self.world = world
        self.stop = stop

    async def run(self) -> None:
        """Work for the agent of the team until it says that there is nothing left to do."""
        for _ in range(REQUESTS_AHEAD):
            self.team.send(None, AGENT, Tag.REQUEST)
        unanswered = REQUESTS_AHEAD
        while unanswered:
            assignment, _ = await self.team.receive(Tag.ASSIGNMENT, "a task from the agent", AGENT)
            if isinstance(assignment, Pause):
                self._write_rollouts()
                continue
            unanswered -= 1
            if assignment is None:
                continue
            self.team.send(None, AGENT, Tag.REQUEST)
            unanswered += 1
            self._collect(assignment)
        await Until(
            lambda: self.sender.poll() and self.team.poll() and self.world.poll(),
            "the agent and the principal to receive what was sent",
        )

    def _collect(self, assignment: Assignment) -> None:
        """Roll out all phases of some tasks, and send each batch as soon as it is ready."""
        for batches, play in collect(
            self.algorithms[assignment.contestant],
            self.make_env(len(assignment.tasks)),
            dict(assignment.played),
            assignment.tasks,
            keys=[(self.seed, assignment.iteration, index) for index in assignment.indices],
            evaluation=assignment.evaluation,
            dtype=self.dtype,
        ):
            batches["stop_requested"] = self.stop.requested
            for task, theta in enumerate(play.parameters):
                batch = batches[task : task + 1]
                self.sender.send(batch)
                if self.archive and not assignment.evaluation:
                    self.archive.keep(assignment.iteration + 1, batch, theta)

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
