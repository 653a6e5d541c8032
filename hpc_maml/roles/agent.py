"""The agent: gives its tasks to observers on demand, and takes the outer step with the others."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.storage.archive_plan import is_archived
from hpc_maml.config import Config
from hpc_maml.errors import InputError
from hpc_maml.algorithms.maml_trpo import TaskGroup, linearise, meta_step
from hpc_maml.mpi.exchange import BatchReceiver, Messenger
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.topology import Topology, smallest
from hpc_maml.mpi.waiting import Until
from hpc_maml.policies.policy import Policy
from hpc_maml.roles.messages import REQUESTS_AHEAD, Order, Outcome, Pause, Tag
from hpc_maml.stopping import StopSignal
from hpc_maml.roles.digests import TaskGroups
from hpc_maml.sampling.trajectory import Array, Samples, samples

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

    def assign(self, order: Order | None) -> None:
        """Send an order, None for the end, to the observer that has least to do.

        Among equals the first, so that where cores are few the last ones can sleep on.
        """
        observer = max(sorted(self.requests), key=self.requests.__getitem__)
        self.requests -= Counter([observer])
        self.at_work.add(observer)
        self.messenger.send(order, observer, Tag.ASSIGNMENT)

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


async def act(
    config: Config,
    policy: Policy,
    gpu: "Gpu | None",
    learner: Messenger,
    team: Team,
    reduce: ExactSum,
    stop: StopSignal,
) -> None:
    """Carry out the principal's orders until it says that there are no more."""
    while True:
        order, _ = await learner.receive(Tag.ORDER, "the next iteration", PRINCIPAL)
        if order is None:
            break
        outcome = await carry_out(order, config, policy, gpu, team, reduce, stop)
        learner.send(outcome, PRINCIPAL, Tag.OUTCOME)
    await team.dismiss()
    await Until(learner.poll, "the principal to receive the last outcome")


async def carry_out(
    order: Order,
    config: Config,
    policy: Policy,
    gpu: "Gpu | None",
    team: Team,
    reduce: ExactSum,
    stop: StopSignal,
) -> Outcome:
    """Have this agent's tasks collected, work on each as soon as it is complete, then step.

    A GPU has each batch as soon as it arrives, and works on all tasks at once in the end.
    """
    started = time.perf_counter()
    working = observer_seconds = 0.0
    stop_requested = False
    to_give = deque(side_by_side(order, team.at_once))
    phases: dict[int, dict[int, np.ndarray]] = {index: {} for index in order.indices}
    per_task: dict[int, dict[str, float]] = {}
    groups = TaskGroups()
    learning = not order.evaluation
    if gpu and learning:
        gpu.expect(team.receiver.dtype, len(order.tasks), len(order.step_sizes) + 1)

    def linearised(theta: Array, inner: Sequence[Samples], post: Samples) -> TaskGroup:
        return linearise(
            policy,
            theta,
            inner,
            post,
            order.step_sizes,
            config.first_order,
            config.trpo.fisher_fraction,
        )

    def next_batch() -> bool:
        while to_give and team.has_request():
            team.assign(to_give.popleft())
            if learning and not to_give and is_archived(config.archive, order.iteration + 1):
                team.pause()
        return team.has_batch()

    while len(per_task) < len(order.tasks):
        await Until(next_batch, "trajectory batches from the observers")
        record = team.arrived.popleft()
        batch = record[0]
        stop_requested |= bool(batch["stop_requested"])
        observer_seconds += float(batch["observer_seconds"])
        index, phase = int(batch["task"]), int(batch["phase"])
        phases[index][phase] = batch
        if gpu and learning:
            gpu.upload(record, index - order.first, phase)
        if len(phases[index]) <= len(order.step_sizes):
            continue
        batches = phases.pop(index)
        ordered = [batches[phase] for phase in range(len(batches))]
        per_task[index] = _returns(ordered)
        if learning and not gpu:
            began = time.perf_counter()
            *inner, post = (Samples(*(field[None] for field in samples(each))) for each in ordered)
            groups.add(partial(linearised, order.theta, inner, post))
            working += time.perf_counter() - began

    sampled = time.perf_counter()
    step = None
    if learning:
        waited_before = reduce.waited
        if gpu and len(order.tasks):
            *inner, post = gpu.samples()
            groups.add(partial(linearised, gpu.array(order.theta), inner, post))
        step = meta_step(policy, order.theta, groups, order.num_tasks, reduce, config.trpo)
        working += time.perf_counter() - sampled - (reduce.waited - waited_before)
    ended = time.perf_counter()
    return Outcome(
        per_task=per_task,
        step=step,
        stop_requested=stop_requested or stop.requested,
        sampling_seconds=sampled - started,
        update_seconds=ended - sampled,
        agent_seconds=working,
        observer_seconds=observer_seconds,
    )


def side_by_side(order: Order, observers: int) -> list[Order]:
    """Return the tasks of an order as parts, each for an observer to take side by side.

    Many small environments together take little longer than one; but each of the ``observers`` that
    can work at once should have two parts, so that the agent is at one while it collects the other.
    """
    number = len(order.tasks)
    most = max(1, min(MOST_SIDE_BY_SIDE, number // (2 * observers)))
    return [order.part(range(first, min(first + most, number))) for first in range(0, number, most)]


def _returns(phases: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean return, episode length and steps of each phase of a task, by name."""
    values: dict[str, float] = {}
    for number, batch in enumerate(phases):
        values[f"return_{number}"] = float(batch["rewards"].sum(0, np.float64).mean())
        values[f"episode_length_{number}"] = float(batch["lengths"].mean())
        values[f"steps_{number}"] = int(batch["lengths"].sum())
        values[f"diverged_{number}"] = int(batch["diverged"])
    return values
