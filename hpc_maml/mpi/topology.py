"""Which rank holds which roles, and the communicators of the roles."""

import os
import socket
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Literal

import numpy as np
from mpi4py import MPI

from hpc_maml.errors import InputError
from hpc_maml.mpi.waiting import wait

HOST = np.dtype([("name", "S64"), ("cores", np.int64), ("affinity", np.uint64), ("gpus", np.int64)])


Layout = Literal["team", "split"]


@dataclass(frozen=True)
class Place:
    """The roles of one rank, none if it rests; ``team`` is the index of the agent it works with."""

    principal: bool
    agent: bool
    observer: bool
    team: int | None  # None for a rank that is neither agent nor observer

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles this rank holds."""
        return tuple(r for r in ("principal", "agent", "observer") if getattr(self, r))


@dataclass(frozen=True)
class Plan:
    """Which rank holds which roles."""

    layout: Layout
    reason: str  # for the layout, in words
    places: tuple[Place, ...]  # by rank

    @cached_property
    def observers(self) -> Mapping[int | None, int]:
        """The number of observers of each team."""
        return Counter(place.team for place in self.places if place.observer)

    def takes_step(self, place: Place) -> bool:
        """Tell whether a rank of this place keeps the digests of tasks and takes the outer step."""
        return place.agent or (self.layout == "team" and place.observer)


@dataclass(frozen=True)
class Seat:
    """Where a rank runs."""

    node: int  # any number that names it
    cores: Hashable = 0  # any name of the set of cores that the rank is bound to
    num_cores: int = 2**31  # in this set
    gpus: int = 0  # of the node, for agents


def plan_roles(
    seats: Sequence[Seat],
    agents: int | Literal["auto"],
    layout: Literal["auto", "team", "split"],
    device: Literal["auto", "cpu", "cuda"] = "cpu",
) -> Plan:
    """Return the places of all ranks, from where each of them runs.

    ``auto`` is ``split`` where there are GPUs that the ``device`` allows. Without, it is ``team``
    for as many ranks as have a core, and at least one for each agent; the others rest. ``team`` and
    ``split`` have all ranks work.

    Raises InputError for more agents than ranks, and for teams that are to use GPUs.
    """
    if agents != "auto" and agents > len(seats):
        raise InputError(f"topology.agents is {agents}, but there are only {len(seats)} MPI ranks.")
    if layout == "team" and device == "cuda":
        raise InputError(
            "topology.layout=team computes on CPUs: device=cuda needs topology.layout=split."
        )
    has_gpus = device != "cpu" and any(seat.gpus for seat in seats)
    if layout != "auto":
        ranks = [*range(len(seats))]
        chosen, reason = layout, f"topology.layout={layout}"
    elif has_gpus or device == "cuda":
        ranks = [*range(len(seats))]
        chosen, reason = "split", "agents compute on GPUs, observers on CPUs"
    else:
        ranks = _ranks_with_a_core(seats, 1 if agents == "auto" else agents)
        chosen, reason = "team", "without GPUs every rank that observes also computes"
        if resting := len(seats) - len(ranks):
            reason += f"; {resting} of {len(seats)} ranks rest, as they have no core of their own"
    assign = _assign_split if chosen == "split" else _assign_teams
    found = dict(zip(ranks, assign([seats[rank] for rank in ranks], agents), strict=True))
    rest = Place(principal=False, agent=False, observer=False, team=None)
    return Plan(chosen, reason, tuple(found.get(rank, rest) for rank in range(len(seats))))


def _ranks_with_a_core(seats: Sequence[Seat], least: int) -> list[int]:
    """Return the ranks that get a core each, rank 0 among them, and ``least`` at any rate."""
    working: Counter[tuple[int, Hashable]] = Counter()
    ranks: list[int] = []
    others: list[int] = []
    for rank, seat in enumerate(seats):
        place = (seat.node, seat.cores)
        (ranks if working[place] < seat.num_cores else others).append(rank)
        working[place] += 1
    return sorted(ranks + others[: max(0, least - len(ranks))])


def _assign_teams(seats: Sequence[Seat], agents: int | Literal["auto"]) -> list[Place]:
    """Return places where every rank observes, and the first of each team is its agent.

    ``auto`` makes one team of each node. Agents are dealt to nodes in proportion to their ranks,
    and neighbours form a team; the ranks of nodes without an agent go to the smallest teams.
    """
    free = _ranks_of_nodes(seats, range(len(seats)))
    number = len(free) if isinstance(agents, str) else agents
    dealt = _agents_of_nodes(number, free, dict.fromkeys(free, 0))
    groups = []
    for node, ranks in free.items():
        edges = [len(ranks) * index // max(1, dealt[node]) for index in range(dealt[node] + 1)]
        groups += [ranks[start:end] for start, end in pairwise(edges)]
    for node, ranks in free.items():
        for rank in ranks if not dealt[node] else ():
            min(groups, key=len).append(rank)
    # rank 0 is on the first node, but that may have no agent where there are few
    groups = sorted(map(sorted, groups))
    teams = {rank: index for index, group in enumerate(groups) for rank in group}
    first = {group[0] for group in groups}
    return [
        Place(principal=rank == 0, agent=rank in first, observer=True, team=teams[rank])
        for rank in range(len(seats))
    ]


def _assign_split(seats: Sequence[Seat], agents: int | Literal["auto"]) -> list[Place]:
    """Return places where agents and observers have ranks of their own.

    ``auto`` makes one agent for each GPU, at most half of the ranks; without GPUs a quarter of the
    ranks, but not more than there are cores.

    Teams are formed node by node: agents are dealt to nodes in proportion to their GPUs, or without
    any to their free ranks; observers join an agent of their own node, and only those of nodes
    without an agent go to the smallest teams elsewhere. Roles are composed where ranks are few:
    without 1 + 2 agents ranks the principal shares rank 0 with another role, and an agent without
    an observer observes for itself.
    """
    size = len(seats)
    gpus = dict.fromkeys((seat.node for seat in seats), 0)
    for seat in seats:
        gpus[seat.node] = max(gpus[seat.node], seat.gpus)
    found = sum(gpus.values())
    most = min(size // 2, found) if found else min(size // 4, count_cores(seats))
    number = max(1, most) if isinstance(agents, str) else agents

    principal_alone = size >= 1 + 2 * number
    free = _ranks_of_nodes(seats, range(1 if principal_alone else 0, size))
    dealt = _agents_of_nodes(number, free, gpus)
    agent_ranks = [rank for node in free for rank in free[node][: dealt[node]]]

    teams = {rank: index for index, rank in enumerate(sorted(agent_ranks))}
    observers_of: Counter[int] = Counter()
    here_first = sorted(free, key=lambda node: dealt[node] == 0)
    for node in here_first:
        near = [teams[rank] for rank in free[node][: dealt[node]]] or list(teams.values())
        for rank in free[node][dealt[node] :]:
            team = min(near, key=lambda index: (observers_of[index], index))
            teams[rank] = team
            observers_of[team] += 1
    return [
        Place(
            principal=rank == 0,
            agent=rank in agent_ranks,
            observer=rank in teams and (rank not in agent_ranks or not observers_of[teams[rank]]),
            team=teams.get(rank),
        )
        for rank in range(size)
    ]


def _ranks_of_nodes(seats: Sequence[Seat], ranks: Iterable[int]) -> dict[int, list[int]]:
    """Return which of ``ranks`` are on which node, in the order in which nodes appear."""
    found: dict[int, list[int]] = {seat.node: [] for seat in seats}
    for rank in ranks:
        found[seats[rank].node].append(rank)
    return found


def count_cores(seats: Iterable[Seat]) -> int:
    """Return the cores of all ranks together, those that ranks share counted once."""
    return sum(cores for *_, cores in {(seat.node, seat.cores, seat.num_cores) for seat in seats})


def _agents_of_nodes(
    agents: int, free: Mapping[int, Sequence[int]], gpus: Mapping[int, int]
) -> Counter[int]:
    """Return how many agents each node has, given its free ranks and its GPUs."""
    dealt: Counter[int] = Counter()
    for _ in range(agents):
        roomy = [node for node in free if len(free[node]) > dealt[node]]
        # to the node with the most GPUs, then free ranks, per agent that it would then have
        share = {
            node: (gpus[node] / (dealt[node] + 1), len(free[node]) / (dealt[node] + 1))
            for node in roomy
        }
        dealt[max(roomy, key=share.__getitem__)] += 1
    return dealt


@dataclass(frozen=True)
class Topology:
    """The places of all ranks and this rank's communicators, MPI.COMM_NULL where it has no part.

    Ranks of ``agent_comm`` are team indices; of ``learner_comm``, in the order of the world; rank 0
    of ``team_comm`` is the agent.
    """

    world: MPI.Intracomm
    plan: Plan
    hosts: tuple[str, ...]  # by rank
    cores: int  # of all ranks together
    threads: int  # this rank's share of the cores it may run on
    owns_core: bool  # there is one for each working rank bound to the cores of this one
    local_agent: int  # index of this agent among the agents of its node
    agent_comm: MPI.Comm
    learner_comm: MPI.Comm
    team_comm: MPI.Comm

    @property
    def places(self) -> tuple[Place, ...]:
        """The places of all ranks."""
        return self.plan.places

    @property
    def place(self) -> Place:
        """The roles of this rank."""
        return self.places[self.world.rank]

    @property
    def agent_ranks(self) -> list[int]:
        """World ranks of the agents, by team index."""
        return [rank for rank, place in enumerate(self.places) if place.agent]

    @property
    def resting_ranks(self) -> list[int]:
        """World ranks without a role."""
        return [rank for rank, place in enumerate(self.places) if not place.roles]

    @property
    def learner_ranks_of_agents(self) -> tuple[int, ...]:
        """Ranks of the agents in ``learner_comm``, by team index."""
        learners = [
            rank for rank, place in enumerate(self.places) if place.principal or place.agent
        ]
        return tuple(learners.index(rank) for rank in self.agent_ranks)

    def team_observers(self, team: int) -> int:
        """Return the number of observers of a team."""
        return self.plan.observers.get(team, 0)

    def stepping_ranks(self, team: int) -> int:
        """Return how many ranks of a team digest tasks and take the outer step."""
        return self.team_observers(team) if self.plan.layout == "team" else 1

    def observers_at_once(self, team: int) -> int:
        """Return the number of observers of a team that have a core each."""
        observers = sum(self.plan.observers.values())
        mine = self.team_observers(team)
        return max(1, min(mine, round(self.cores * mine / observers)))

    def free(self) -> None:
        """Free the communicators."""
        for comm in (self.agent_comm, self.learner_comm, self.team_comm):
            if comm != MPI.COMM_NULL:
                comm.Free()


def build_topology(
    world: MPI.Intracomm,
    agents: int | Literal["auto"],
    layout: Literal["auto", "team", "split"],
    limit: float,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
) -> Topology:
    """Assign the roles on ``world`` and split it; collective. Raises InputError on every rank."""
    hosts = _gather_hosts(world, limit, 0 if device == "cpu" else len(visible_gpus()))
    node_comm = world.Split_type(MPI.COMM_TYPE_SHARED)
    nodes = np.zeros(world.size, np.int64)
    node = np.array([smallest(node_comm, world.rank, limit)], np.int64)
    node_comm.Free()
    wait(world.Iallgather(node, nodes), "the nodes of all ranks", limit)
    seats = [
        Seat(int(nodes[rank]), int(host["affinity"]), int(host["cores"]), int(host["gpus"]))
        for rank, host in enumerate(hosts)
    ]
    try:
        plan = plan_roles(seats, agents, layout, device)
    except InputError as error:
        error.on_every_rank = True
        raise
    places, place, seat = plan.places, plan.places[world.rank], seats[world.rank]

    def split(member: bool, colour: int = 0, key: int = 0) -> MPI.Comm:
        return world.Split(colour if member else MPI.UNDEFINED, key)

    same_node_agents = [
        rank for rank in range(world.size) if places[rank].agent and nodes[rank] == node[0]
    ]
    sharing = sum(
        (other.node, other.cores) == (seat.node, seat.cores)
        for other, role in zip(seats, places, strict=True)
        if role.agent or role.observer
    )
    return Topology(
        world=world,
        plan=plan,
        hosts=tuple(host["name"].decode() for host in hosts),
        cores=count_cores(seats),
        threads=max(1, seat.num_cores // max(1, sharing)),
        owns_core=bool(place.roles) and sharing <= seat.num_cores,
        local_agent=same_node_agents.index(world.rank) if place.agent else 0,
        agent_comm=split(place.agent),
        learner_comm=split(place.principal or place.agent),
        team_comm=split(place.team is not None, place.team or 0, 0 if place.agent else 1),
    )


def smallest(comm: MPI.Comm, value: int, limit: float) -> int:
    """Return the smallest ``value`` on ``comm``; waits passively."""
    result = np.array([value], np.int64)
    wait(comm.Iallreduce(MPI.IN_PLACE, result, MPI.MIN), "all ranks to compare a number", limit)
    return int(result[0])


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names of the GPUs that a process may use, without touching any.

    There are none for a torch that was built for CPUs.
    """
    return () if torch_is_for_cpus() else gpu_devices(environment)


def torch_is_for_cpus() -> bool:
    """Tell whether the version of torch says so; to import it would take seconds."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def gpu_devices(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names of the GPUs of this host that the environment lets a process see."""
    dev = Path("/dev")
    devices = sorted(path.name.removeprefix("nvidia") for path in dev.glob("nvidia[0-9]*"))
    if (dev / "kfd").exists():  # ROCm
        devices = sorted(path.name for path in (dev / "dri").glob("renderD*"))
    elif (dev / "dxg").exists():  # WSL, which does not tell how many
        devices = ["0"]
    if devices and "CUDA_VISIBLE_DEVICES" in environment:
        names = map(str.strip, environment["CUDA_VISIBLE_DEVICES"].split(","))
        return tuple(takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))
    return tuple(devices)


def _gather_hosts(world: MPI.Comm, limit: float, gpus: int) -> np.ndarray:
    """Return a HOST record for every rank."""
    affinity = sorted(os.sched_getaffinity(0))
    mine = np.zeros(1, HOST)
    # The set of cores is only compared, so a hash of it is enough.
    mine[0] = (socket.gethostname(), len(affinity), zlib.crc32(repr(affinity).encode()), gpus)
    everyone = np.zeros(world.size, HOST)
    wait(
        world.Iallgather(
            [mine.view(np.uint8), MPI.BYTE], [everyone.view(np.uint8), HOST.itemsize, MPI.BYTE]
        ),
        "the hosts of all ranks",
        limit,
    )
    return everyone


def rank_ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, ``0-2,5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
