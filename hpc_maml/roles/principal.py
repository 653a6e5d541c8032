"""The principal: draws tasks, hands out shares, keeps the state, the record and the clock."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms.algorithm import State
from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.mpi.waiting import Until, in_thread
from hpc_maml.roles.messages import Hello, Order, Outcome, Tag, TaskResults, agreed, in_order
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import is_archived
from hpc_maml.storage.archive_schema import Segment

ITERATION, META_TEST = "an iteration", "a meta-test"  # what the time of a job is to last for
HAND_OUT = 2e-3  # seconds that agents have to hand out tasks before the principal goes on


class Resting:
    """The principal's side of the ranks without a role, which wait for the end of the job."""

    def __init__(self, messenger: Messenger, ranks: Sequence[int], limit: float) -> None:
        """Keep the ``ranks`` in the world, which wait ``limit`` seconds for a word at most."""
        self.messenger = messenger
        self.ranks = ranks
        self.limit = limit
        self.told = time.monotonic()

    def reassure(self) -> None:
        """Tell them that the job goes on; rarely, as each word wakes them."""
        if time.monotonic() - self.told > self.limit / 4:
            self._tell(True)

    def dismiss(self) -> None:
        """Tell them that the job ends."""
        self._tell(None)

    def _tell(self, word: bool | None) -> None:
        self.told = time.monotonic()
        for rank in self.ranks:
            self.messenger.send(word, rank, Tag.REST)


async def rest(messenger: Messenger) -> None:
    """Wait for the end of the job, on a rank without a role."""
    while (await messenger.receive(Tag.REST, "a word from the principal", 0))[0]:
        pass


@dataclass(frozen=True)
class Agents:
    """The principal's side of the learners, and of those who rest."""

    messenger: Messenger
    ranks: tuple[int, ...]  # of the agents among the learners
    observers: tuple[int, ...]  # number of observers of each agent
    stepping: tuple[int, ...]  # number of ranks that take the outer step for each agent
    resting: Resting

    def send(
        self,
        iteration: int,
        tasks: np.ndarray,
        state: Mapping[str, np.ndarray],
        *,
        evaluation: bool,
        contestant: int = 0,
    ) -> None:
        """Hand every agent its share of ``tasks`` ``[n, task_dim]``.

        Shares are even for the ranks that take the outer step, which goes in lockstep: all others
        would wait for the rank with most tasks.
        """
        number = len(tasks)
        edges = [number * ranks // sum(self.stepping) for ranks in accumulate((0, *self.stepping))]
        for rank, (start, end) in zip(self.ranks, pairwise(edges), strict=True):
            share = tasks[start:end]
            order = Order(iteration, start, share, number, state, evaluation, contestant)
            self.messenger.send(order, rank, Tag.ORDER)
        self.resting.reassure()

    async def outcomes(self) -> list[Outcome]:
        """Return what every agent reports, in the order of the agents."""
        return [await self._outcome(rank) for rank in self.ranks]

    async def _outcome(self, rank: int) -> Outcome:
        """Return what an agent reports; before it come words that it goes on."""
        found = None
        while found is None:
            found, _ = await self.messenger.receive(Tag.OUTCOME, "the outcome of an agent", rank)
            self.resting.reassure()
        return found

    async def dismiss(self) -> None:
        """Tell every agent that there is nothing left to do."""
        for rank in self.ranks:
            self.messenger.send(None, rank, Tag.ORDER)
        self.resting.dismiss()
        await Until(
            lambda: all([self.messenger.poll(), self.resting.messenger.poll()]), "the agents to end"
        )


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


class Scores(NamedTuple):
    """What a policy gets in each phase of n tasks."""

    returns: np.ndarray  # [n, K]
    success: np.ndarray | None  # [n, K], share of the episodes, where the environment says so


@dataclass(frozen=True)
class IterationResult:
    """What an iteration gave."""

    done: int  # iterations with this one
    state: State
    row: dict[str, Any]  # values of the metrics
    reason: str  # why the update was rejected; empty: accepted


class Record(Protocol):
    """What the principal keeps of a run."""

    def write(self, result: IterationResult, segments: Sequence[Segment]) -> None:
        """Write what an iteration gave, in a thread; its segments are on the disk."""

    def iteration(self, result: IterationResult) -> None:
        """Tell of an iteration that is written."""

    def lacks_test(self, done: int) -> bool:
        """Tell whether there is to be a meta-test after ``done`` iterations, and is none."""

    def test(self, done: int, tasks: np.ndarray, scores: Scores) -> None:
        """Keep a meta-test of tasks ``[n, task_dim]``."""


class Principal:
    """The principal of a training run."""

    def __init__(
        self,
        config: Config,
        env: TaskVectorEnv,
        agents: Agents,
        segments: Segments,
        record: Record,
        stop: StopSignal,
    ) -> None:
        self.config = config
        self.env = env
        self.agents = agents
        self.segments = segments
        self.record = record
        self.stop = stop
        self.unrecorded: IterationResult | None = None

    async def run(self, state: State, done: int) -> int:
        """Run the iterations after ``done``, or until a stop signal; return how many are done then.

        Meta-tests are made before the first iteration and after every n-th, unless they are kept.
        An iteration is recorded while the observers already work on what comes next.
        """
        stopped = False
        while not stopped:
            if self.record.lacks_test(done):
                if self.stop.before(META_TEST):
                    break
                stopped = await self._test(state, done)
            elif done < self.config.num_iterations and not self.stop.before(ITERATION):
                state, stopped = await self._iterate(state, done)
                done += 1
            else:
                break
        await self._catch_up()
        await self.agents.dismiss()
        return done

    async def _iterate(self, state: State, done: int) -> tuple[State, bool]:
        """Run an iteration; return the new state, and whether a rank was asked to stop."""
        started = time.perf_counter()
        rng = stream(self.config.seed, Purpose.TASKS, done)
        tasks = self.env.sample_tasks(rng, self.config.meta_batch_size)
        self.agents.send(done, tasks, state, evaluation=False)
        working = time.perf_counter() - started
        await self._hand_out()
        working += await self._catch_up()
        outcomes = await self.agents.outcomes()
        step = agreed([outcome.step for outcome in outcomes if outcome.step])
        row = summarise(tasks, outcomes) | dict(step.metrics) | {"accepted": not step.reason}
        row |= _clock(outcomes, self.agents, time.perf_counter() - started, working)
        self.stop.expect(ITERATION, row["iteration_seconds"])
        state = dict(step.state or {})
        self.unrecorded = IterationResult(done + 1, state, row, step.reason)
        return state, any(outcome.stop_requested for outcome in outcomes)

    async def _test(self, state: State, done: int) -> bool:
        """Make and keep a meta-test; return whether a rank was asked to stop."""
        started = time.perf_counter()
        tasks = unseen_tasks(self.config, self.env)
        self.agents.send(0, tasks, state, evaluation=True)
        await self._hand_out()
        await self._catch_up()
        outcomes = await self.agents.outcomes()
        self.record.test(done, tasks, scores_of_phases(outcomes))
        self.stop.expect(META_TEST, time.perf_counter() - started)
        return any(outcome.stop_requested for outcome in outcomes)

    async def _hand_out(self) -> None:
        """Let the agents hand out their tasks: that of this rank could not during a record."""
        sent = time.perf_counter()
        await Until(
            lambda: self.agents.messenger.poll() and time.perf_counter() - sent > HAND_OUT,
            "the agents to take their orders",
        )

    async def _catch_up(self) -> float:
        """Record the last iteration; return the seconds of work that took."""
        result = self.unrecorded
        if not result:
            return 0.0
        archived = is_archived(self.config.archive, result.done)
        on_disk = (
            await self.segments.of(result.done, self.config.meta_batch_size) if archived else []
        )

        def write() -> float:
            began = time.perf_counter()
            self.record.write(result, on_disk)
            return time.perf_counter() - began

        # The disk may take as long as an observer of this rank for a task.
        seconds = await in_thread(write, "the disk to take what an iteration gave")
        self.record.iteration(result)
        self.unrecorded = None
        return seconds


def unseen_tasks(config: Config, env: TaskVectorEnv) -> np.ndarray:
    """Draw the tasks of meta-tests ``[n, task_dim]``, which training never sees."""
    rng = stream(config.seed, Purpose.EVALUATION_TASKS)
    return env.sample_test_tasks(rng, config.evaluation.tasks)


async def meta_test(agents: Agents, tasks: np.ndarray, state: State, contestant: int = 0) -> Scores:
    """Return the scores of a meta-test."""
    agents.send(0, tasks, state, evaluation=True, contestant=contestant)
    return scores_of_phases(await agents.outcomes())


def scores_of_phases(outcomes: Sequence[Outcome]) -> Scores:
    """Return the scores in the order of the tasks."""
    results = _ordered(outcomes)
    return Scores(results.returns, results.success)


def summarise(tasks: np.ndarray, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the values that do not depend on time, nor on the algorithm."""
    results = _ordered(outcomes)
    row: dict[str, Any] = {"task": tasks, "return_after_updates": results.returns}
    for name, phase in (("pre_update", 0), ("post_update", -1)):
        values = results.returns[:, phase]
        row[f"{name}_return"] = values
        for statistic in ("mean", "std", "min", "max"):
            row[f"{name}_return_{statistic}"] = getattr(values, statistic)()
        row[f"{name}_episode_length"] = results.episode_lengths[:, phase].mean()
    success = results.success
    if success is not None:
        row["success_after_updates"] = success
        for name, phase in (("pre_update", 0), ("post_update", -1)):
            row[f"{name}_success"] = success[:, phase]
            row[f"{name}_success_mean"] = success[:, phase].mean()
    row["environment_steps"] = int(results.steps.sum())
    row["diverged_episodes"] = int(results.diverged.sum())
    return row


def _ordered(outcomes: Sequence[Outcome]) -> TaskResults:
    """Return the results of all agents in the order of the tasks."""
    return in_order([outcome.tasks for outcome in outcomes if outcome.tasks])


def _clock(
    outcomes: Sequence[Outcome], agents: Agents, seconds: float, working: float
) -> dict[str, float]:
    """Return the wall-clock metrics of an iteration."""
    observers, stepping = sum(agents.observers), sum(agents.stepping)
    return {
        "sampling_seconds": max(outcome.sampling_seconds for outcome in outcomes),
        "update_seconds": min(outcome.update_seconds for outcome in outcomes),
        "iteration_seconds": seconds,
        "principal_busy": working / seconds,
        "agents_busy": sum(each.agent_seconds for each in outcomes) / stepping / seconds,
        "observers_busy": sum(each.observer_seconds for each in outcomes) / observers / seconds,
    }
