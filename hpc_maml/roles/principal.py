"""The principal: draws tasks, hands out shares, keeps the meta-policy, the record and the clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

from hpc_maml.storage.archive_plan import is_archived
from hpc_maml.storage.archive_schema import Segment
from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.mpi.waiting import Until
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.roles.messages import Hello, Order, Outcome, Tag
from hpc_maml.stopping import StopSignal


@dataclass(frozen=True)
class Agents:
    """The principal's side of the learners."""

    messenger: Messenger
    ranks: tuple[int, ...]  # of the agents among the learners
    observers: tuple[int, ...]  # number of observers of each agent

    def send(
        self,
        iteration: int,
        tasks: np.ndarray,
        theta: np.ndarray,
        step_sizes: Sequence[float],
        *,
        evaluation: bool,
    ) -> None:
        """Hand every agent its share of ``tasks`` ``[n, task_dim]``.

        Shares are even also where teams differ in size: the outer step goes in lockstep, and the
        agent with most tasks would hold up all.
        """
        order = Order(
            iteration, 0, tasks, len(tasks), theta, tuple(step_sizes), evaluation=evaluation
        )
        edges = [len(tasks) * agent // len(self.ranks) for agent in range(len(self.ranks) + 1)]
        for rank, share in zip(self.ranks, pairwise(edges), strict=True):
            self.messenger.send(order.part(range(*share)), rank, Tag.ORDER)

    async def outcomes(self) -> list[Outcome]:
        """Return what every agent reports, in the order of the agents."""
        return [
            (await self.messenger.receive(Tag.OUTCOME, "the outcome of an agent", rank))[0]
            for rank in self.ranks
        ]

    async def dismiss(self) -> None:
        """Tell every agent that there is nothing left to do."""
        for rank in self.ranks:
            self.messenger.send(None, rank, Tag.ORDER)
        await Until(self.messenger.poll, "the agents to end")


class Segments:
    """The principal's side of the archive: which segments the observers have written."""

    def __init__(self, messenger: Messenger) -> None:
        self.messenger = messenger
        self.arrived: dict[int, list[Segment]] = {}  # by iteration

    async def of(self, iteration: int, num_tasks: int) -> list[Segment]:
        """Return the segments of an iteration once all its tasks are on the disk.

        Raises the InputError of an observer that cannot write.
        """
        segments = self.arrived.setdefault(iteration, [])
        what = f"the observers to write the rollouts of iteration {iteration}"
        while sum(len(segment.tasks) for segment in segments) < num_tasks:
            message, _ = await self.messenger.receive(Tag.SEGMENT, what)
            if isinstance(message, InputError):
                raise message
            self.arrived.setdefault(message.iteration, []).append(message)
        return self.arrived.pop(iteration)


def gather_tasks(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    """Return the per-task values of all agents by name, ``[n]`` in the order of the tasks."""
    per_task = dict(pair for outcome in outcomes for pair in outcome.per_task.items())
    ordered = [per_task[index] for index in sorted(per_task)]
    return {name: np.array([each[name] for each in ordered]) for name in ordered[0]}


async def greet(world: MPI.Comm) -> list[Hello]:
    """Wait until every rank is ready; return what they say of themselves, by rank."""
    messenger = Messenger(world)
    return [
        (await messenger.receive(Tag.HELLO, f"rank {rank} to start", rank))[0]
        for rank in range(world.size)
    ]


def sums_of_agents(hellos: Sequence[Hello]) -> str:
    """Return through which memory the sums of agents with GPUs go, empty if there are none."""
    return "; ".join(sorted({hello.sums for hello in hellos} - {""}))


class Record(Protocol):
    """What the principal keeps of a run."""

    def iteration(
        self, done: int, theta: np.ndarray, row: dict[str, Any], segments: Sequence[Segment]
    ) -> None:
        """Keep what an iteration gave, the ``done``-th; its segments are on the disk."""

    def has_test(self, done: int) -> bool:
        """Tell whether the meta-test after ``done`` iterations is kept."""

    def test(self, done: int, tasks: np.ndarray, returns: np.ndarray) -> None:
        """Keep a meta-test: tasks ``[n, task_dim]``, returns ``[n, K + 1]``."""


async def lead(
    config: Config,
    env: TaskVectorEnv,
    agents: Agents,
    theta: np.ndarray,
    first_iteration: int,
    segments: Segments,
    record: Record,
    stop: StopSignal,
) -> int:
    """Run the iterations that are left, or until a stop signal; return how many are done then.

    Meta-tests are made before the first iteration and after every n-th, unless they are kept. An
    iteration is recorded while the observers already work on what comes next.
    """
    unrecorded = None

    async def catch_up() -> float:
        """Record the last iteration; return the seconds of work that took."""
        nonlocal unrecorded
        if not unrecorded:
            return 0.0
        archived = is_archived(config.archive, done)
        on_disk = await segments.of(done, config.meta_batch_size) if archived else []
        began = time.perf_counter()
        record.iteration(*unrecorded, on_disk)
        unrecorded = None
        return time.perf_counter() - began

    every = config.evaluation.every
    done, stopped = first_iteration, False
    while not (stopped or stop.requested):
        if every and done % every == 0 and not record.has_test(done):
            tasks = unseen_tasks(config, env)
            agents.send(0, tasks, theta, config.test_step_sizes, evaluation=True)
            await Until(agents.messenger.poll, "the agents to take their orders")
            await catch_up()
            outcomes = await agents.outcomes()
            record.test(done, tasks, returns_after_updates(outcomes))
            stopped = any(outcome.stop_requested for outcome in outcomes)
            continue
        if done >= config.num_iterations:
            break
        started = time.perf_counter()
        tasks = env.sample_tasks(stream(config.seed, Purpose.TASKS, done), config.meta_batch_size)
        agents.send(done, tasks, theta, config.inner_step_sizes, evaluation=False)
        working = time.perf_counter() - started
        await Until(agents.messenger.poll, "the agents to take their orders")
        working += await catch_up()
        outcomes = await agents.outcomes()
        done += 1
        theta = outcomes[0].step.theta
        row = summarise(tasks, outcomes)
        row |= _clock(outcomes, agents, time.perf_counter() - started, working)
        unrecorded = (done, theta, row)
        stopped = any(outcome.stop_requested for outcome in outcomes)
    await catch_up()
    await agents.dismiss()
    return done


def unseen_tasks(config: Config, env: TaskVectorEnv) -> np.ndarray:
    """Draw the tasks of meta-tests ``[n, task_dim]``, which training never sees."""
    return env.sample_tasks(stream(config.seed, Purpose.EVALUATION_TASKS), config.evaluation.tasks)


async def meta_test(
    agents: Agents, tasks: np.ndarray, theta: np.ndarray, step_sizes: Sequence[float]
) -> np.ndarray:
    """Return the returns ``[n, K + 1]`` of a policy after 0 to K inner steps."""
    agents.send(0, tasks, theta, step_sizes, evaluation=True)
    return returns_after_updates(await agents.outcomes())


def returns_after_updates(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Return the returns ``[n, phases]`` in the order of the tasks."""
    values = gather_tasks(outcomes)
    names = [name for name in values if name.startswith("return_")]
    return np.stack([values[f"return_{phase}"] for phase in range(len(names))], axis=1)


def summarise(tasks: np.ndarray, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the values of metrics.METRICS and metrics.PER_TASK that do not depend on time."""
    values = gather_tasks(outcomes)
    step = outcomes[0].step
    returns = returns_after_updates(outcomes)
    phases = range(returns.shape[1])
    row: dict[str, Any] = {"task": tasks, "return_after_updates": returns}
    for name, phase in (("pre_update", 0), ("post_update", phases[-1])):
        returns = values[f"return_{phase}"]
        row[f"{name}_return"] = returns
        for statistic in ("mean", "std", "min", "max"):
            row[f"{name}_return_{statistic}"] = getattr(returns, statistic)()
        row[f"{name}_episode_length"] = values[f"episode_length_{phase}"].mean()
    for name in (
        "inner_loss_before",
        "inner_loss_after",
        "surrogate_before",
        "surrogate_after",
        "kl_before",
        "kl_after",
        "gradient_norm",
        "cg_residual",
        "cg_iterations",
        "line_search_steps",
        "accepted",
        "reason",
    ):
        row[name] = getattr(step, name)
    row["environment_steps"] = sum(int(values[f"steps_{phase}"].sum()) for phase in phases)
    row["diverged_episodes"] = sum(int(values[f"diverged_{phase}"].sum()) for phase in phases)
    return row


def _clock(
    outcomes: Sequence[Outcome], agents: Agents, seconds: float, working: float
) -> dict[str, float]:
    """Return the wall-clock metrics of an iteration."""
    observers = sum(agents.observers)
    return {
        "sampling_seconds": max(outcome.sampling_seconds for outcome in outcomes),
        "update_seconds": min(outcome.update_seconds for outcome in outcomes),
        "iteration_seconds": seconds,
        "principal_busy": working / seconds,
        "agents_busy": sum(each.agent_seconds for each in outcomes) / len(outcomes) / seconds,
        "observers_busy": sum(each.observer_seconds for each in outcomes) / observers / seconds,
    }
