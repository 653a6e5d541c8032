"""The observer: asks for tasks, rolls out and adapts, sends every batch on without waiting."""

from collections.abc import Callable

import numpy as np

from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.mpi.exchange import BatchSender, Messenger
from hpc_maml.mpi.waiting import Until
from hpc_maml.policy import Policy
from hpc_maml.roles.messages import REQUESTS_AHEAD, Tag
from hpc_maml.rollout import collect
from hpc_maml.stopping import StopSignal

AGENT = 0  # rank of the agent in its team


async def observe(
    config: Config,
    policy: Policy,
    make_env: Callable[[int], TaskVectorEnv],
    dtype: np.dtype,
    team: Messenger,
    sender: BatchSender,
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
        unanswered -= 1
        if assignment is None:
            continue
        team.send(None, AGENT, Tag.REQUEST)
        unanswered += 1
        for batches in collect(
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
            for task in range(len(batches)):
                sender.send(batches[task : task + 1])
    await Until(lambda: sender.poll() and team.poll(), "the agent to receive what was sent")
