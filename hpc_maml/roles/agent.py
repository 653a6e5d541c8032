"""The agent: gives its tasks to observers on demand, and takes the outer step with the others."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.config import ArchiveConfig, Config
from hpc_maml.errors import InputError
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.exchange import BatchReceiver, Messenger
from hpc_maml.mpi.topology import Topology, smallest
from hpc_maml.mpi.waiting import Until
from hpc_maml.roles.digests import Digests
from hpc_maml.roles.messages import (
    REQUESTS_AHEAD,
    Assignment,
    Order,
    Outcome,
    Pause,
    Step,
    Tag,
    TaskResult,
    state_digest,
)
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.trajectory import trajectories
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import is_archived

if TYPE_CHECKING:
    from hpc_maml.mpi.gpu import Gpu

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # CUDA, ROCm, WSL
MOST_SIDE_BY_SIDE = 10  # tasks; more gained nothing
PRINCIPAL = 0  # rank of the principal among the learners


def choose_gpu(setting: str, topology: Topology, limit: float) -> "Gpu | None":
    """Return the GPU of this agent, None for the CPU: agents of a node take its GPUs in turn.

    With ``cuda`` every agent needs one: the first without raises InputError, for all of them.
    """
    gpus = 0
    # torch takes seconds to import, and is of no use without a driver
    if setting == "cuda" or (setting == "auto" and any(map(Path.exists, GPU_DRIVERS))):
        from hpc_maml.mpi.gpu import Gpu, count_gpus

        gpus = count_gpus()
    if setting == "cuda":
        agents = topology.agent_comm
        if smallest(agents, agents.size if gpus else agents.rank, limit) == agents.rank:
            raise InputError("device is cuda, but torch finds no GPU here.")
    return Gpu(f"cuda:{topology.local_agent % gpus}") if gpus else None


class Team:
    """The agent's side of its team: who asked for a task, and which batches have arrived."""

    def __init__(
        self, messenger: Messenger, receiver: BatchReceiver, num_observers: int, at_once: int
    ) -> None:
        self.messenger = messenger
        self.receiver = receiver
        self.num_observers = num_observers
        self.at_once = at_once  # observers that have a core each
        self.requests: Counter[int] = Counter()  # observer -> tasks it waits for
        self.at_work: set[int] = set()  # observers given something since the last pause
        self.arrived: deque[np.ndarray] = deque()  # batches [1] nobody has looked at yet

    def has_request(self) -> bool:
        """Take the requests that have arrived; tell whether an observer waits for a task."""
        self.requests.update(self.messenger.take(Tag.REQUEST))
        return bool(self.requests)

    def assign(self, assignment: Assignment | None) -> None:
        """Send an assignment, None for the end, to the observer that has least to do.

        Among equals the first, so that where cores are few the last ones can sleep on.
        """
        observer = max(sorted(self.requests), key=self.requests.__getitem__)
        self.requests -= Counter([observer])
        self.at_work.add(observer)
        self.messenger.send(assignment, observer, Tag.ASSIGNMENT)

    def has_batch(self) -> bool:
        """Take the batches that have arrived; tell whether there is one."""
        self.arrived.extend(self.receiver.take())
        return bool(self.arrived)

    def pause(self) -> None:
        """Tell the observers with tasks of this iteration that there are no more."""
        for rank in self.at_work:
            self.messenger.send(Pause(), rank, Tag.ASSIGNMENT)
        self.at_work.clear()

    async def dismiss(self) -> None:
        """Answer every request that is still to come with the end."""
        for _ in range(REQUESTS_AHEAD * self.num_observers):
            await Until(self.has_request, "the last requests of the observers")
            self.assign(None)
        await Until(self.messenger.poll, "the observers to end")
        self.receiver.close()


@dataclass
class Iteration:
    """An order on its way: what has been given out, what has come back."""

    order: Order
    to_give: deque[Assignment]
    started: float = field(default_factory=time.perf_counter)
    batches: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)  # task -> phase
    results: dict[int, TaskResult] = field(default_factory=dict)  # of the tasks that are complete
    digests: Digests = field(default_factory=Digests)
    stop_requested: bool = False
    working: float = 0.0  # seconds of this agent
    observer_seconds: float = 0.0


class Agent:
    """The agent of a team."""

    def __init__(
        self,
        config: Config,
        algorithms: Sequence[Algorithm],
        gpu: "Gpu | None",
        learner: Messenger,
        team: Team,
        reduce: ExactSum,
        stop: StopSignal,
    ) -> None:
        self.seed = config.seed
        self.archive: ArchiveConfig = config.archive
        self.algorithms = algorithms
        self.gpu = gpu
        self.learner = learner
        self.team = team
        self.reduce = reduce
        self.stop = stop

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
        """Have this agent's tasks collected, digest each as soon as it is complete, then step.

        A GPU has each batch as soon as it arrives, and digests all tasks at once in the end.
        """
        algorithm = self.algorithms[order.contestant]
        phases = algorithm.num_phases(order.evaluation)
        played = algorithm.played(dict(order.state))
        now = Iteration(order, deque(side_by_side(order, played, self.team.at_once)))
        if self.gpu and not order.evaluation:
            self.gpu.expect(self.team.receiver.dtype, len(order.tasks), phases)
        while len(now.results) < len(order.tasks):
            await Until(partial(self._next_batch, now), "trajectory batches from the observers")
            task = self._take_batch(now, phases)
            if task is not None and not (order.evaluation or self.gpu):
                began = time.perf_counter()
                batches = now.batches.pop(task)
                own = [trajectories(batches[phase]) for phase in range(phases)]
                with quiet_divergence():
                    now.digests.add(partial(algorithm.digest, dict(order.state), own))
                now.working += time.perf_counter() - began
        sampled = time.perf_counter()
        step = None if order.evaluation else self._update(now, algorithm)
        return Outcome(
            tasks=now.results,
            step=step,
            stop_requested=now.stop_requested or self.stop.requested,
            sampling_seconds=sampled - now.started,
            update_seconds=time.perf_counter() - sampled,
            agent_seconds=now.working,
            observer_seconds=now.observer_seconds,
        )

    def _next_batch(self, now: Iteration) -> bool:
        """Give out tasks to observers that wait for some; tell whether a batch has arrived."""
        while now.to_give and self.team.has_request():
            self.team.assign(now.to_give.popleft())
            last = not now.to_give and not now.order.evaluation
            if last and is_archived(self.archive, now.order.iteration + 1):
                self.team.pause()
        return self.team.has_batch()

    def _take_batch(self, now: Iteration, phases: int) -> int | None:
        """Take the next batch; return the index of its task if that is complete now."""
        record = self.team.arrived.popleft()
        now.stop_requested |= bool(record[0]["stop_requested"])
        now.observer_seconds += float(record[0]["observer_seconds"])
        task, phase = int(record[0]["task"]), int(record[0]["phase"])
        if self.gpu and not now.order.evaluation:
            self.gpu.upload(record, task - now.order.first, phase)
        batches = now.batches.setdefault(task, {})
        batches[phase] = record
        if len(batches) < phases:
            return None
        now.results[task] = _result([batches[phase][0] for phase in range(phases)])
        return task

    def _update(self, now: Iteration, algorithm: Algorithm) -> Step:
        """Take the outer step with the other agents."""
        began, waited_before = time.perf_counter(), self.reduce.waited
        order, state = now.order, dict(now.order.state)
        if self.gpu and len(order.tasks):
            on_gpu: dict[str, Any] = {
                name: self.gpu.array(values) for name, values in state.items()
            }
            now.digests.add(partial(algorithm.digest, on_gpu, self.gpu.trajectories()))
        rng = stream(self.seed, Purpose.UPDATE, order.iteration)
        with quiet_divergence():
            update = algorithm.update(state, now.digests, order.num_tasks, self.reduce, rng)
        now.working += time.perf_counter() - began - (self.reduce.waited - waited_before)
        return Step(
            state=update.state if order.first == 0 else None,
            digest=state_digest(update.state),
            reason=update.reason,
            metrics=dict(update.metrics),
        )


def quiet_divergence() -> np.errstate:
    """Return a context without NumPy's warnings: a divergence makes the update be rejected."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def side_by_side(order: Order, played: State, observers: int) -> list[Assignment]:
    """Return the tasks of an order in parts, each for an observer to take side by side.

    Many small environments together take little longer than one; but each of the ``observers`` that
    can work at once should have two parts, so that the agent is at one while it collects the other.
    """
    number = len(order.tasks)
    most = max(1, min(MOST_SIDE_BY_SIDE, number // (2 * observers)))
    parts = [range(first, min(first + most, number)) for first in range(0, number, most)]
    return [order.assignment(part, played) for part in parts]


def _result(phases: Sequence[np.ndarray]) -> TaskResult:
    """Return the batches of a task in numbers."""
    return TaskResult(
        returns=np.array([batch["rewards"].sum(0, np.float64).mean() for batch in phases]),
        episode_lengths=np.array([batch["lengths"].mean() for batch in phases]),
        steps=np.array([batch["lengths"].sum() for batch in phases]),
        diverged=np.array([batch["diverged"] for batch in phases]),
        success=(
            np.array([batch["success"].mean() for batch in phases])
            if "success" in (phases[0].dtype.names or ())
            else None
        ),
    )
