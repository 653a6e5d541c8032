"""The observer: asks for tasks, rolls out and adapts, sends every batch on without waiting.

It writes its part of the archive when the agent has no more tasks for it, that is while the agents
compute.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import BatchSender, Messenger
from hpc_maml.mpi.waiting import Until
from hpc_maml.policies.policy import Policy
from hpc_maml.roles.messages import REQUESTS_AHEAD, Pause, Tag
from hpc_maml.sampling.rollout import collect
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.storage.archive_writer import SegmentWriter

AGENT = 0  # rank of the agent in its team
PRINCIPAL = 0  # rank of the principal in the world


async def observe(
    config: Config,
    policy: Policy,
    make_env: Callable[[int], TaskVectorEnv],
    dtype: np.dtype,
    team: Messenger,
    sender: BatchSender,
    archive: "SegmentWriter | None",
    world: Messenger,
    stop: StopSignal,
) -> None:
    """Work for the agent of the team until it says that there is nothing left to do.

    ``make_env`` returns an environment for that number of tasks side by side.
    """
    for _ in range(REQUESTS_AHEAD):
        team.send(None, AGENT, Tag.REQUEST)
    unanswered = REQUESTS_AHEAD
    while unanswered:
        assignment, _ = await team.receive(Tag.ASSIGNMENT, "a task from the agent", AGENT)
        if isinstance(assignment, Pause):
            if archive:
                _write(archive, world)
            continue
        unanswered -= 1
        if assignment is None:
            continue
        team.send(None, AGENT, Tag.REQUEST)
        unanswered += 1
        for batches, thetas in collect(
            policy,
            make_env(len(assignment.tasks)),
            assignment.theta,
            assignment.tasks,
            keys=[(config.seed, assignment.iteration, index) for index in assignment.indices],
            evaluation=assignment.evaluation,
            step_sizes=assignment.step_sizes,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            dtype=dtype,
        ):
            batches["stop_requested"] = stop.requested
            for task, theta in enumerate(thetas):
                batch = batches[task : task + 1]
                sender.send(batch)
                if archive and not assignment.evaluation:
                    archive.keep(assignment.iteration + 1, batch, theta)
    await Until(
        lambda: sender.poll() and team.poll() and world.poll(),
        "the agent and the principal to receive what was sent",
    )


def _write(archive: "SegmentWriter", world: Messenger) -> None:
    """Write what was kept of the iteration, and tell the principal what came of it."""
    try:
        segment = archive.write()
    except InputError as error:
        world.send(error, PRINCIPAL, Tag.SEGMENT)  # which then ends the run with a checkpoint
        return
    if segment:
        world.send(segment, PRINCIPAL, Tag.SEGMENT)
