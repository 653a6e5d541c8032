"""The observer: asks for tasks, rolls out and adapts, sends every batch on without waiting."""

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
    env: TaskVectorEnv,
    dtype: np.dtype,
    team: Messenger,
    batches: BatchSender,
    stop: StopSignal,
) -> None:
    """Work for the agent of the team until it says that there is nothing left to do."""
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
        for batch in collect(
            policy,
            env,
            assignment.theta,
            assignment.task,
            key=(config.seed, assignment.iteration, assignment.index),
            evaluation=assignment.evaluation,
            step_sizes=assignment.step_sizes,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            dtype=dtype,
        ):
            batch["stop_requested"] = stop.requested
            batches.send(batch)
    await Until(lambda: batches.poll() and team.poll(), "the agent to receive what was sent")
