"""A training run of any number of ranks, simulated in virtual time with the code that runs it.

The roles, their balance and messages, the layout, the pattern of sums and how ranks wait are those
of the package. What takes the place of numerical work are the seconds that it was measured to
take; what takes the place of MPI and of clocks is in ``virtual_time``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

from benchmarks.virtual_time import Comm, Group, Line, MessageCosts, World, virtual_time
from hpc_maml.algorithms.algorithm import THETA, Algorithm, State, Update
from hpc_maml.config import load_config
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.mpi.topology import Seat, Topology, count_cores, plan_roles
from hpc_maml.mpi.waiting import Until
from hpc_maml.roles import observer
from hpc_maml.roles import principal as principals
from hpc_maml.roles.principal import Agents, IterationResult, Principal, Segments, greet
from hpc_maml.run import job as jobs
from hpc_maml.run.memory import Needs
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import batch_dtype
from hpc_maml.stopping import StopSignal

PHASES = 2  # before and after one inner step


@dataclass(frozen=True)
class Sum:
    """A sum over tasks, and the work of a rank from the one before to its result."""

    width: int  # numbers
    work: Line  # seconds, by tasks of the rank


@dataclass(frozen=True)
class Costs:
    """Seconds that the pieces of an iteration take on one core."""

    steps: int  # of an episode
    phase: Line  # of a phase, by tasks side by side
    spread: float  # standard deviation of a task's steps from their mean, relative
    digest: float  # of a task
    sums: tuple[Sum, ...]  # of an outer step
    after: Line  # of the outer step after the last sum, by tasks of the rank
    summary: Line  # of the principal's work between two iterations, by tasks
    record: Line  # of the principal's record of an iteration on its core, by tasks
    disk: float  # until that is on the disk
    parameters: int  # of the policy
    batch_bytes: int  # of a task and phase
    messages: MessageCosts


@dataclass(frozen=True)
class Machine:
    """Nodes that are alike, but for those that are slow."""

    ranks: int
    cores: int = 64  # of a node, one for each of its ranks; ranks beyond rest or share
    ranks_per_node: int = 64
    gpus: int = 0  # of a node
    gpu_speed: float = 50.0  # of an agent with a GPU, relative to a core
    slowness: Mapping[int, float] = field(default_factory=dict)  # by node: what work takes

    @property
    def nodes(self) -> list[int]:
        """The node of each rank."""
        return [rank // self.ranks_per_node for rank in range(self.ranks)]

    def seats(self) -> list[Seat]:
        """Where the ranks run."""
        return [Seat(node, 0, self.cores, self.gpus) for node in self.nodes]


@dataclass(frozen=True)
class Simulated:
    """What a simulated run gave."""

    seconds: float  # of an iteration, the median without the first
    rows: Sequence[Mapping[str, Any]]  # metrics of each iteration
    tasks: Sequence[tuple[int, int]]  # iteration and index of those collected, in this order
    layout: str
    working: int  # ranks with a role
    messages: Mapping[str, int]  # by kind


class Tasks:
    """Stands in for an environment: a task is how long it takes, relative to the mean."""

    def __init__(self, world: World, costs: Costs) -> None:
        self.world = world
        self.costs = costs

    def sample_tasks(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Draw tasks ``[n, 1]``; charges what the principal does between two iterations."""
        self.world.work(self.costs.summary(number))
        return np.maximum(0.1, 1 + self.costs.spread * rng.standard_normal((number, 1)))


class Replayed(Algorithm):
    """Stands in for an algorithm: takes its time, and sums as many numbers as often."""

    def __init__(self, world: World, costs: Costs, speed: float) -> None:
        super().__init__(None, None, None)
        self.world = world
        self.costs = costs
        self.speed = speed  # of what digests and updates, relative to a core

    def num_phases(self, evaluation: bool) -> int:
        """Return the number of phases."""
        return PHASES

    def digest(self, state: State, phases: Sequence[Any]) -> int:
        """Return the number of tasks."""
        number = len(phases[0].task)
        self.world.work(number * self.costs.digest / self.speed)
        return number

    def update(
        self,
        state: State,
        digests: Iterable[int],
        num_tasks: int,
        reduce: Callable[[np.ndarray], np.ndarray],
        rng: np.random.Generator,
    ) -> Update:
        """Take an outer step that leaves the state."""
        mine = sum(digests)
        for each in self.costs.sums:
            self.world.work(each.work.fixed + each.work.each * mine / self.speed)
            reduce(np.zeros((0, each.width), np.float32))
        self.world.work(self.costs.after.fixed + self.costs.after.each * mine / self.speed)
        return Update(state)


class Gpu:
    """Stands in for the GPU of an agent."""

    name = "simulated"

    def __init__(self) -> None:
        self.number = 0  # tasks

    def empty_batch(self, dtype: np.dtype) -> np.ndarray:
        """Return memory for a batch ``[1]``."""
        return np.empty(1, dtype)

    def expect(self, dtype: np.dtype, num_tasks: int, num_phases: int) -> None:
        """Note the number of tasks."""
        self.number = num_tasks

    def upload(self, batch: np.ndarray, task: int, phase: int) -> None:
        """Copy a batch beside all other work."""

    def trajectories(self) -> list[Any]:
        """Return phases of the tasks that are there."""
        return [np.rec.array(np.zeros(self.number, [("task", np.int64)]))] * PHASES

    def array(self, values: np.ndarray) -> np.ndarray:
        """Return the values."""
        return values


@dataclass
class Record:
    """Stands in for the files of a run."""

    world: World
    costs: Costs
    results: list[IterationResult] = field(default_factory=list)

    def write(self, result: IterationResult, segments: Sequence[Any]) -> None:
        """Take the time that files take on the core."""
        self.world.work(self.costs.record(len(result.row["task"])))

    def iteration(self, result: IterationResult) -> None:
        """Keep an iteration."""
        self.results.append(result)

    def lacks_test(self, done: int) -> bool:
        """Tell whether a meta-test is missing."""
        return False

    def test(self, done: int, tasks: np.ndarray, scores: Any) -> None:
        """Keep a meta-test, of which there are none."""


def simulate(
    costs: Costs,
    machine: Machine,
    num_tasks: int,
    *,
    layout: str = "auto",
    agents: int | str = "auto",
    iterations: int = 3,
) -> Simulated:
    """Run some iterations on a machine."""
    config = load_config(
        None,
        [
            "env.name=navigation",  # of which nothing is used
            f"meta_batch_size={num_tasks}",
            f"num_iterations={iterations}",
            "archive.rollouts=none",
            f"topology.layout={layout}",
            f"topology.agents={agents}",
            "mpi.cuda_aware=off",
        ],
    )
    world = World(machine.nodes, costs.messages, lambda node: machine.slowness.get(node, 1.0))
    topologies = build(world, machine, layout, agents)
    tasks: list[tuple[int, int]] = []

    class Collection:
        """Stands in for the collection of tasks: takes its time."""

        phases = PHASES

        def __init__(
            self,
            algorithm: Replayed,
            env: None,
            played: State,
            given: np.ndarray,
            *,
            keys: Sequence[tuple[int, int, int]],
            evaluation: bool,
            dtype: np.dtype,
            give_way: Callable[[], None],
            chosen: np.ndarray | None,
        ) -> None:
            self.keys = [key[1:] for key in keys]  # iteration and index of each
            share = 1.0 if chosen is None else chosen.mean(1)
            self.step = costs.phase((given[:, 0] * share).sum()) / costs.steps
            self.give_way = give_way
            self.phase = 0
            self.play = Play(np.zeros((len(keys), costs.parameters), np.float32))

        def roll_out(self) -> np.ndarray:
            """Return the batches of a phase."""
            began = world.current.now
            for _ in range(costs.steps):
                world.work(self.step)
                self.give_way()
            batches = np.zeros(len(self.keys), dtype)
            batches["task"], batches["phase"] = [index for _, index in self.keys], self.phase
            batches["observer_seconds"] = (world.current.now - began) / len(self.keys)
            return batches

        def learn(self, batches: np.ndarray, own: Sequence[int]) -> None:
            """Note who owns what; the time was taken before."""
            if not self.phase:
                tasks.extend(self.keys[place] for place in own)
            self.phase += 1

    async def in_thread(work: Callable[[], Any], what: str) -> Any:
        found = work()
        rank = world.current
        done = rank.now + costs.disk
        world.arrive(rank, done)
        await Until(lambda: world.look() >= done, what)
        return found

    has_gpus = topologies[0].plan.layout == "split" and machine.gpus > 0
    algorithm = Replayed(world, costs, machine.gpu_speed if has_gpus else 1.0)
    episodes = config.fast_batch_size
    dtype = batch_dtype(1, episodes, (costs.batch_bytes // 4 // episodes,), (1,), np.float32)
    job = jobs.Job(config, (algorithm,), dtype)
    env, record = Tasks(world, costs), Record(world, costs)

    async def principal(agents: Agents, topology: Topology) -> None:
        await greet(topology.world)
        segments = Segments(Messenger(topology.world))
        leader = Principal(config, env, agents, segments, record, StopSignal())
        state = {THETA: np.zeros(costs.parameters, np.float32)}
        await leader.run(state, 0)

    with ExitStack() as stack:
        stack.enter_context(virtual_time(world))
        for module, name, stand_in in (
            (jobs, "build_topology", lambda comm, *_: topologies[comm.rank]),
            (jobs, "make_env", lambda *_: None),
            (jobs, "keep_freed_memory", lambda *_: None),
            (jobs, "choose_gpu", lambda *_: Gpu() if has_gpus else None),
            (observer, "Collection", Collection),
            (principals, "in_thread", in_thread),
        ):
            stack.enter_context(patch.object(module, name, stand_in))
        world.run(
            lambda rank: jobs.run_job(
                topologies[rank].world, job, Needs(0, 0, 0, 0), principal, StopSignal()
            )
        )
    seconds = [result.row["iteration_seconds"] for result in record.results]
    return Simulated(
        seconds=float(np.median(seconds[1:])),
        rows=[result.row for result in record.results],
        tasks=tasks,
        layout=topologies[0].plan.layout,
        working=sum(bool(place.roles) for place in topologies[0].places),
        messages=dict(world.messages),
    )


def build(world: World, machine: Machine, layout: str, agents: int | str) -> list[Topology]:
    """Return the topology as each rank would have it."""
    seats = machine.seats()
    plan = plan_roles(seats, agents, layout, "auto" if machine.gpus else "cpu")
    places = plan.places
    ranks = range(len(places))
    agent_ranks = [rank for rank in ranks if places[rank].agent]
    members = [[rank] for rank in agent_ranks]  # of each team, the agent first
    working: Counter[int] = Counter()
    for rank, (seat, place) in enumerate(zip(seats, places, strict=True)):
        working[seat.node] += bool(place.agent or place.observer)
        if place.team is not None and not place.agent:
            members[place.team].append(rank)
    everyone = comms(world, ranks)
    leaders = comms(world, agent_ranks)
    learners = comms(world, [r for r in ranks if places[r].agent or places[r].principal])
    teams = {rank: comm for team in members for rank, comm in comms(world, team).items()}
    cores = count_cores(seats)
    return [
        Topology(
            world=everyone[rank],
            plan=plan,
            hosts=(),
            cores=cores,
            threads=max(1, machine.cores // max(1, working[seat.node])),
            owns_core=bool(places[rank].roles) and working[seat.node] <= machine.cores,
            local_agent=0,
            agent_comm=leaders.get(rank, MPI.COMM_NULL),
            learner_comm=learners.get(rank, MPI.COMM_NULL),
            team_comm=teams.get(rank, MPI.COMM_NULL),
        )
        for rank, seat in enumerate(seats)
    ]


def comms(world: World, ranks: Sequence[int]) -> dict[int, Comm]:
    """Return a communicator of some ranks, as each of them has it."""
    group = Group(world, ranks)
    return {rank: Comm(group, place) for place, rank in enumerate(ranks)}
