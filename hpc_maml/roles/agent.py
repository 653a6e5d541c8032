"""The agent: gives its tasks to observers on demand, and has the outer step taken.

In a team the observers keep and digest the tasks that they collected, and all of them take the
step. In the split layout, as with GPUs, the agent receives their trajectory batches, and takes the
step for them.
"""

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm
from hpc_maml.config import ArchiveConfig
from hpc_maml.mpi.exchange import BatchReceiver, Messenger
from hpc_maml.mpi.topology import Topology
from hpc_maml.mpi.waiting import Until
from hpc_maml.roles.messages import (
    REQUESTS_AHEAD,
    Assignment,
    Begin,
    Collected,
    Order,
    Outcome,
    Pause,
    Player,
    Share,
    Step,
    Tag,
    TakeStep,
    TaskResults,
    agreed,
    in_order,
    state_digest,
    task_result,
)
from hpc_maml.roles.outer_step import OuterStep
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import is_archived

if TYPE_CHECKING:
    from hpc_maml.mpi.gpu import Gpu

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # CUDA, ROCm, WSL
MOST_SIDE_BY_SIDE = 10  # tasks; more gained nothing
FEW = 4  # tasks for each observer: of more, to share those that are left over gains little
ALIKE = 1.1  # steps of the longest task, relative to their mean
PRINCIPAL = 0  # rank of the principal among the learners


def choose_gpu(setting: str, topology: Topology) -> "Gpu | None":
    """Return the GPU of this agent, None for the CPU: agents of a node take its GPUs in turn.

    With ``cuda`` every agent has one: ``doctor.warnings_of`` refuses other jobs.
    """
    gpus = 0
    # torch takes seconds to import, and is of no use without a driver
    if setting == "cuda" or (setting == "auto" and any(map(Path.exists, GPU_DRIVERS))):
        from hpc_maml.mpi.gpu import Gpu, count_gpus

        gpus = count_gpus()
    return Gpu(f"cuda:{topology.local_agent % gpus}") if gpus else None


class Team:
    """The agent's side of its team: who asked for a task."""

    def __init__(
        self, messenger: Messenger, observers: Sequence[int], at_once: int, kept_back: int
    ) -> None:
        """Keep the ranks of the ``observers``, of which ``at_once`` have a core each.

        The last ``kept_back`` parts of an order go to observers that have nothing else to do, as
        others would take them later.
        """
        self.messenger = messenger
        self.observers = observers
        self.at_once = at_once
        self.kept_back = kept_back
        self.requests: Counter[int] = Counter()  # observer -> parts it waits for

    def has_request(self, left: int = 0, observer: int | None = None) -> bool:
        """Take the requests that have arrived; tell whether one is to have the next part.

        ``left`` is the number of parts that have not been given out. The next one may be for a
        certain ``observer``.
        """
        self.requests.update(source for _, source in self.messenger.arrived(Tag.REQUEST))
        if observer is not None:
            return self.requests[observer] > 0
        if 0 < left <= self.kept_back:
            return max(self.requests.values(), default=0) == REQUESTS_AHEAD
        return bool(self.requests)

    def assign(self, assignment: Assignment | None) -> None:
        """Send an assignment, None for the end, to its observer, or to the one with least to do.

        Among equals the first, so that where cores are few the last ones can sleep on.
        """
        observer = assignment.observer if assignment else None
        if observer is None:
            observer = max(sorted(self.requests), key=self.requests.__getitem__)
        self.requests -= Counter([observer])
        self.messenger.send(assignment, observer, Tag.ASSIGNMENT)

    def tell(self, message: Begin | Pause | TakeStep) -> None:
        """Send a message to all observers."""
        for observer in self.observers:
            self.messenger.send(message, observer, Tag.ASSIGNMENT)

    async def dismiss(self) -> None:
        """Answer every request that is still to come with the end."""
        for _ in range(REQUESTS_AHEAD * len(self.observers)):
            await Until(self.has_request, "the last requests of the observers")
            self.assign(None)
        await Until(self.messenger.poll, "the observers to end")


@dataclass
class Iteration:
    """An order on its way: what has been given out, what has come back."""

    order: Order
    to_give: deque[Assignment]
    awaited: int  # parts, or in the split layout tasks, whose results have not come
    started: float
    results: list[TaskResults] = field(default_factory=list)  # of the tasks that are complete
    stop_requested: bool = False
    working: float = 0.0  # seconds of the ranks that digest
    observer_seconds: float = 0.0


class Agent(ABC):
    """An agent, whatever it has its observers do."""

    def __init__(
        self,
        algorithms: Sequence[Algorithm],
        learner: Messenger,
        team: Team,
        stop: StopSignal,
        limit: float,
    ) -> None:
        """Keep what it works with; the principal waits ``limit`` seconds for a word at most."""
        self.algorithms = algorithms
        self.learner = learner
        self.team = team
        self.stop = stop
        self.limit = limit

    async def run(self) -> None:
        """Carry out the principal's orders until it says that there are no more."""
        while True:
            order, _ = await self.learner.receive(Tag.ORDER, "the next iteration", PRINCIPAL)
            if order is None:
                break
            outcome = await self.carry_out(order)
            self.learner.send(outcome, PRINCIPAL, Tag.OUTCOME)
        await self.team.dismiss()
        await Until(self.learner.poll, "the principal to receive the last outcome")

    async def carry_out(self, order: Order) -> Outcome:
        """Have this agent's tasks collected and digested, then the step taken."""
        now = self._begin(order)
        told = now.started
        while now.awaited:
            await Until(partial(self._goes_on, now), "tasks from the observers")
            self._take(now)
            if time.perf_counter() - told > self.limit / 4:
                told = time.perf_counter()
                self.learner.send(None, PRINCIPAL, Tag.OUTCOME)
        sampled = time.perf_counter()
        step = None if order.evaluation else await self._step(now)
        if step and order.first:  # the state is sent by one agent
            step = replace(step, state=None)
        return Outcome(
            tasks=in_order(now.results) if now.results else None,
            step=step,
            stop_requested=now.stop_requested or self.stop.requested,
            sampling_seconds=sampled - now.started,
            update_seconds=time.perf_counter() - sampled,
            agent_seconds=now.working,
            observer_seconds=now.observer_seconds,
        )

    def _goes_on(self, now: Iteration) -> bool:
        """Give out tasks to observers that wait for some; tell whether something has arrived."""
        to_give = now.to_give
        while to_give and self.team.has_request(len(to_give), to_give[0].observer):
            self.team.assign(to_give.popleft())
        return self._has_arrived()

    @abstractmethod
    def _begin(self, order: Order) -> Iteration:
        """Tell the team what begins."""

    @abstractmethod
    def _has_arrived(self) -> bool:
        """Tell whether there is something to take."""

    @abstractmethod
    def _take(self, now: Iteration) -> None:
        """Take what has arrived."""

    @abstractmethod
    async def _step(self, now: Iteration) -> Step:
        """Have the outer step taken, with the other agents."""


class TeamAgent(Agent):
    """An agent whose observers keep the tasks that they collect, and take the step."""

    def __init__(
        self,
        algorithms: Sequence[Algorithm],
        learner: Messenger,
        team: Team,
        stop: StopSignal,
        limit: float,
        episodes: int,
    ) -> None:
        """Keep the number of ``episodes`` of a phase that ranks can share, 0 if they cannot."""
        super().__init__(algorithms, learner, team, stop, limit)
        self.episodes = episodes
        self.held = ""  # digest of the state that the observers hold
        self.alike = True  # tasks took about as many steps as each other, when last seen
        self.arrived: deque[Collected] = deque()

    def _begin(self, order: Order) -> Iteration:
        known, self.held = self.held, state_digest(order.state)
        self.team.tell(order.begin(None if known == self.held else order.state))
        number, observers = len(order.tasks), self.team.observers
        # Tasks of unequal length are better handed out on demand.
        together = number < len(observers) or (self.alike and number < FEW * len(observers))
        if together and number % len(observers) and self.episodes:
            found = shared_parts(order, observers, self.episodes)
        else:
            found = parts(order, self.team.at_once)
        return Iteration(order, deque(found), len(found), time.perf_counter())

    def _has_arrived(self) -> bool:
        messages = self.team.messenger.arrived(Tag.RESULT)
        self.arrived.extend(collected for collected, _ in messages)
        return bool(self.arrived)

    def _take(self, now: Iteration) -> None:
        collected = self.arrived.popleft()
        now.awaited -= 1
        if collected.tasks:
            now.results.append(collected.tasks)
        now.stop_requested |= collected.stop_requested
        now.observer_seconds += collected.observer_seconds

    async def _step(self, now: Iteration) -> Step:
        if now.results:
            steps_of_tasks = np.concatenate([each.steps for each in now.results]).sum(1)
            self.alike = steps_of_tasks.max() <= ALIKE * steps_of_tasks.mean()
        self.team.tell(TakeStep())
        steps: list[Step] = [
            (await self.team.messenger.receive(Tag.STEP, "the observers to take the step", rank))[0]
            for rank in self.team.observers
        ]
        step = agreed(steps)
        self.held = step.digest
        now.working = sum(each.seconds for each in steps)
        now.stop_requested |= any(each.stop_requested for each in steps)
        return step


class SplitAgent(Agent):
    """An agent that receives the trajectory batches of its observers, and takes the step itself.

    A GPU has each batch as soon as it arrives, and digests all tasks at once in the end. A CPU
    digests each task as soon as it is complete.
    """

    def __init__(
        self,
        algorithms: Sequence[Algorithm],
        learner: Messenger,
        team: Team,
        stop: StopSignal,
        limit: float,
        receiver: BatchReceiver,
        outer_step: OuterStep,
        gpu: "Gpu | None",
        archive: ArchiveConfig,
    ) -> None:
        super().__init__(algorithms, learner, team, stop, limit)
        self.receiver = receiver
        self.outer_step = outer_step
        self.gpu = gpu
        self.archive = archive
        self.arrived: deque[np.ndarray] = deque()  # batches [1] nobody has looked at yet
        self.batches: dict[int, dict[int, np.ndarray]] = {}  # of tasks not complete: by phase

    async def run(self) -> None:
        """Carry out the principal's orders until it says that there are no more."""
        await super().run()
        self.receiver.close()

    def _begin(self, order: Order) -> Iteration:
        algorithm = self.algorithms[order.contestant]
        self.team.tell(order.begin(algorithm.played(dict(order.state))))
        self.outer_step.begin(order.state)
        self.batches = {}
        if self.gpu and not order.evaluation:
            phases = algorithm.num_phases(order.evaluation)
            self.gpu.expect(self.receiver.dtype, len(order.tasks), phases)
        to_give = deque(parts(order, self.team.at_once))
        return Iteration(order, to_give, len(order.tasks), time.perf_counter())

    def _goes_on(self, now: Iteration) -> bool:
        giving = bool(now.to_give)
        found = super()._goes_on(now)
        archived = not now.order.evaluation and is_archived(self.archive, now.order.iteration + 1)
        if archived and giving and not now.to_give:
            self.team.tell(Pause())
        return found

    def _has_arrived(self) -> bool:
        self.arrived.extend(self.receiver.take())
        return bool(self.arrived)

    def _take(self, now: Iteration) -> None:
        order, algorithm = now.order, self.algorithms[now.order.contestant]
        record = self.arrived.popleft()
        now.stop_requested |= bool(record[0]["stop_requested"])
        now.observer_seconds += float(record[0]["observer_seconds"])
        task, phase = int(record[0]["task"]), int(record[0]["phase"])
        if self.gpu and not order.evaluation:
            self.gpu.upload(record, task - order.first, phase)
        batches = self.batches.setdefault(task, {})
        batches[phase] = record
        if len(batches) < algorithm.num_phases(order.evaluation):
            return
        now.awaited -= 1
        phases = [batch for _, batch in sorted(self.batches.pop(task).items())]
        now.results.append(task_result(task, [batch[0] for batch in phases]))
        if not (order.evaluation or self.gpu):
            self.outer_step.digest(algorithm, phases)

    async def _step(self, now: Iteration) -> Step:
        order, algorithm = now.order, self.algorithms[now.order.contestant]
        if self.gpu and len(order.tasks):
            self.outer_step.digest_on_gpu(algorithm, self.gpu, self.gpu.trajectories())
        step = self.outer_step.take(
            algorithm, order.iteration, order.num_tasks, stop_requested=self.stop.requested
        )
        now.working = step.seconds
        return step


def parts(order: Order, observers: int) -> list[Assignment]:
    """Return the tasks of an order in parts, each for an observer to take side by side.

    Many small environments together take little longer than one, so parts should be large. But
    tasks differ in length, so the last ones should be small: of what is left, each of the
    ``observers`` that can work at once has half of an even share (factoring, Hummel et al. 1992),
    but no less than a quarter of its whole one. Where all are equally fast, their shares are even.
    """
    number = len(order.tasks)
    smallest = max(1, number // observers // 4)
    found: list[Assignment] = []
    start = 0
    while start < number:
        even, half = (-(-(number - start) // (share * observers)) for share in (1, 2))
        size = min(MOST_SIDE_BY_SIDE, even, max(smallest, half))
        for first in range(start, min(start + size * observers, number), size):
            start = min(first + size, number)
            found.append(order.assignment(range(first, start)))
    return found


def shared_parts(order: Order, observers: Sequence[int], episodes: int) -> list[Assignment]:
    """Return a part for each observer with an even share of the episodes.

    Each has as many whole tasks. The episodes of those that are left over are cut into as many even
    slices as there are observers; the one with the first ``episodes`` of a task owns it.
    """
    whole, left = divmod(len(order.tasks), len(observers))
    edges = [left * episodes * place // len(observers) for place in range(len(observers) + 1)]
    players: dict[int, list[Player]] = {}  # by task
    for rank, (start, end) in zip(observers, pairwise(edges), strict=True):
        while start < end:
            task, first = divmod(start, episodes)
            stop = min(episodes, first + end - start)
            players.setdefault(task, []).append(Player(rank, first, stop))
            start += stop - first
    found = []
    for place, rank in enumerate(observers):
        tasks = [*range(place * whole, (place + 1) * whole)]
        shares = []
        for task, its_players in players.items():
            if any(player.rank == rank for player in its_players):
                shares.append(Share(len(tasks), tuple(its_players)))
                tasks.append(len(observers) * whole + task)
        if tasks:
            found.append(order.assignment(tasks, shares, rank))
    return found
