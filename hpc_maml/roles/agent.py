"""The agent: gives its tasks to observers on demand, and takes the outer step with the others."""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpc_maml.config import Config
from hpc_maml.errors import InputError
from hpc_maml.meta_step import TaskGroup, linearise, meta_step
from hpc_maml.mpi.exchange import BatchReceiver, Messenger
from hpc_maml.mpi.reduce import ExactSum
from hpc_maml.mpi.topology import Topology, smallest
from hpc_maml.mpi.waiting import Until
from hpc_maml.policy import Policy
from hpc_maml.roles.messages import REQUESTS_AHEAD, Order, Outcome, Pause, Tag
from hpc_maml.stopping import StopSignal
from hpc_maml.trajectory import Array, Samples, samples

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # CUDA, ROCm, WSL
PRINCIPAL = 0  # rank of the principal among the learners


def keep_freed_memory() -> None:
    """Have glibc keep freed arrays for the next ones instead of returning them to the system.

    It does so once a block of this size has been freed. Fetching memory again, page by page, took
    as long as the arithmetic of the outer step.
    """
    np.empty(31 * 2**20, np.uint8)


def choose_device(setting: str, topology: Topology, limit: float) -> str:
    """Return the device of this agent, cpu or cuda:N: agents of a node take its GPUs in turn.

    With ``cuda`` every agent needs one: the first without raises InputError, for all of them.
    """
    gpus = 0
    # torch takes seconds to import, and is of no use without a driver
    if setting == "cuda" or (setting == "auto" and any(map(Path.exists, GPU_DRIVERS))):
        import torch

        gpus = torch.cuda.device_count()
    if setting == "cuda":
        agents = topology.agent_comm
        if smallest(agents, agents.size if gpus else agents.rank, limit) == agents.rank:
            raise InputError("device is cuda, but torch finds no GPU here.")
    return f"cuda:{topology.local_agent % gpus}" if gpus else "cpu"


class Team:
    """The agent's side of its team: who asked for a task, and which batches have arrived."""

    def __init__(self, messenger: Messenger, receiver: BatchReceiver, num_observers: int) -> None:
        self.messenger = messenger
        self.receiver = receiver
        self.num_observers = num_observers
        self.requests: deque[int] = deque()  # observers, in the order they asked
        self.arrived: deque[np.ndarray] = deque()  # batches [1] nobody has looked at yet

    def has_request(self) -> bool:
        """Take the requests that have arrived; tell whether an observer waits for a task."""
        self.requests.extend(self.messenger.take(Tag.REQUEST))
        return bool(self.requests)

    def has_batch(self) -> bool:
        """Take the batches that have arrived; tell whether there is one."""
        self.arrived.extend(self.receiver.take())
        return bool(self.arrived)

    def pause(self) -> None:
        """Tell every observer that there are no more tasks in this iteration."""
        size = self.messenger.comm.size
        for rank in range(size - self.num_observers, size):
            self.messenger.send(Pause(), rank, Tag.ASSIGNMENT)

    async def dismiss(self) -> None:
        """Answer every request that is still to come with the end."""
        for _ in range(REQUESTS_AHEAD * self.num_observers):
            await Until(self.has_request, "the last requests of the observers")
            self.messenger.send(None, self.requests.popleft(), Tag.ASSIGNMENT)
        await Until(self.messenger.poll, "the observers to end")
        self.receiver.close()


async def act(
    config: Config,
    policy: Policy,
    device: str,
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
        outcome = await carry_out(order, config, policy, device, team, reduce, stop)
        learner.send(outcome, PRINCIPAL, Tag.OUTCOME)
    await team.dismiss()
    await Until(learner.poll, "the principal to receive the last outcome")


async def carry_out(
    order: Order,
    config: Config,
    policy: Policy,
    device: str,
    team: Team,
    reduce: ExactSum,
    stop: StopSignal,
) -> Outcome:
    """Have this agent's tasks collected, work on each as soon as it is complete, then step."""
    started = time.perf_counter()
    working = observer_seconds = 0.0
    stop_requested = False
    theta = _on_device(order.theta, device)
    to_give = deque(order.assignments)
    phases: dict[int, dict[int, np.ndarray]] = {each.index: {} for each in order.assignments}
    per_task: dict[int, dict[str, float]] = {}
    groups: list[TaskGroup] = []

    def next_batch() -> bool:
        while to_give and team.has_request():
            team.messenger.send(to_give.popleft(), team.requests.popleft(), Tag.ASSIGNMENT)
            if not to_give:
                team.pause()
        return team.has_batch()

    while len(per_task) < len(order.assignments):
        await Until(next_batch, "trajectory batches from the observers")
        batch = team.arrived.popleft()[0]
        stop_requested |= bool(batch["stop_requested"])
        observer_seconds += float(batch["observer_seconds"])
        index = int(batch["task"])
        phases[index][int(batch["phase"])] = batch
        if len(phases[index]) <= len(order.step_sizes):
            continue
        batches = phases.pop(index)
        ordered = [batches[phase] for phase in range(len(batches))]
        per_task[index] = _returns(ordered)
        if not order.evaluation:
            began = time.perf_counter()
            *inner, post = (
                Samples(*(_on_device(field[None], device) for field in samples(each)))
                for each in ordered
            )
            groups.append(
                linearise(policy, theta, inner, post, order.step_sizes, config.first_order)
            )
            working += time.perf_counter() - began

    sampled = time.perf_counter()
    step = None
    if not order.evaluation:
        waited_before = reduce.waited
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


def _returns(phases: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean return, episode length and steps of each phase of a task, by name."""
    values: dict[str, float] = {}
    for number, batch in enumerate(phases):
        values[f"return_{number}"] = float(batch["rewards"].sum(0, np.float64).mean())
        values[f"episode_length_{number}"] = float(batch["lengths"].mean())
        values[f"steps_{number}"] = int(batch["lengths"].sum())
        values[f"diverged_{number}"] = int(batch["diverged"])
    return values


def _on_device(array: np.ndarray, device: str) -> Array:
    """Return the array itself for the CPU, a torch tensor for any other device."""
    if device == "cpu":
        return array
    import torch

    return torch.from_numpy(array).to(device)
