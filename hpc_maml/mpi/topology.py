"""Which rank holds which roles, and the communicators of the roles."""

import os
import socket
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from mpi4py import MPI

from hpc_maml.errors import InputError
from hpc_maml.mpi.waiting import wait

HOST = np.dtype([("name", "S64"), ("cores", np.int64), ("affinity", np.uint64), ("gpus", np.int64)])


@dataclass(frozen=True)
class Place:
    """The roles of one rank; ``team`` is the index of the agent it works with."""

    principal: bool
    agent: bool
    observer: bool
    team: int | None  # None for a principal that is neither agent nor observer

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles this rank holds."""
        return tuple(r for r in ("principal", "agent", "observer") if getattr(self, r))


def assign_roles(
    nodes: Sequence[int],
    agents: int | Literal["auto"],
    layout: Literal["split", "colocated"],
    cores: int | None = None,
    gpus: Sequence[int] = (),
) -> list[Place]:
    """Return the place of every rank; ``nodes[rank]`` is any number that names its node.

    ``auto`` makes one agent for each GPU, at most half of the ranks; without GPUs a quarter of the
    ranks, but not more than there are ``cores``. ``gpus[rank]`` are those that its node has.

    Teams are formed node by node: agents are dealt to nodes in proportion to their GPUs, or without
    any to their free ranks; observers join an agent of their own node, and only those of nodes
    without an agent go to the smallest teams elsewhere. Roles are composed where ranks are few:
    without 1 + 2 agents ranks the principal shares rank 0 with another role, and an agent without
    an observer observes for itself.

    Raises InputError for more agents than ranks.
    """
    size = len(nodes)
    if layout == "colocated":
        if agents not in ("auto", size):
            raise InputError(
                f"The colocated layout makes every rank an agent, {size} here: "
                f"topology.agents must be auto, not {agents}."
            )
        return [Place(rank == 0, True, True, rank) for rank in range(size)]
    gpus_of = dict.fromkeys(nodes, 0)
    for node, number in zip(nodes, gpus, strict=False):
        gpus_of[node] = max(gpus_of[node], number)
    if isinstance(agents, str):
        agents = _default_agents(size, sum(gpus_of.values()), cores)
    if agents > size:
        raise InputError(f"topology.agents is {agents}, but there are only {size} MPI ranks.")

    principal_alone = size >= 1 + 2 * agents
    free: dict[int, list[int]] = {node: [] for node in sorted(set(nodes), key=list(nodes).index)}
    for rank in range(1 if principal_alone else 0, size):
        free[nodes[rank]].append(rank)

    dealt = _agents_of_nodes(agents, free, gpus_of)
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


def _default_agents(size: int, gpus: int, cores: int | None) -> int:
    """Return the number of agents for ``topology.agents: auto``."""
    return max(1, min(size // 2, gpus) if gpus else min(size // 4, cores or size))


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
    places: tuple[Place, ...]
    hosts: tuple[str, ...]  # by rank
    cores: int  # of all ranks together
    threads: int  # this rank's share of the cores it may run on
    local_agent: int  # index of this agent among the agents of its node
    principal_comm: MPI.Comm
    agent_comm: MPI.Comm
    observer_comm: MPI.Comm
    learner_comm: MPI.Comm
    team_comm: MPI.Comm

    @property
    def place(self) -> Place:
        """The roles of this rank."""
        return self.places[self.world.rank]

    @property
    def agent_ranks(self) -> list[int]:
        """World ranks of the agents, by team index."""
        return [rank for rank, place in enumerate(self.places) if place.agent]

    @property
    def learner_ranks_of_agents(self) -> tuple[int, ...]:
        """Ranks of the agents in ``learner_comm``, by team index."""
        learners = [
            rank for rank, place in enumerate(self.places) if place.principal or place.agent
        ]
        return tuple(learners.index(rank) for rank in self.agent_ranks)

    def team_observers(self, team: int) -> int:
        """Return the number of observers of a team."""
        return sum(place.observer and place.team == team for place in self.places)

    def observers_at_once(self, team: int) -> int:
        """Return the number of observers of a team that have a core each."""
        observers = sum(place.observer for place in self.places)
        mine = self.team_observers(team)
        return max(1, min(mine, round(self.cores * mine / observers)))

    def free(self) -> None:
        """Free the communicators."""
        for comm in (
            self.principal_comm,
            self.agent_comm,
            self.observer_comm,
            self.learner_comm,
            self.team_comm,
        ):
            if comm != MPI.COMM_NULL:
                comm.Free()


def build_topology(
    world: MPI.Intracomm,
    agents: int | Literal["auto"],
    layout: Literal["split", "colocated"],
    limit: float,
    gpus: int = 0,
) -> Topology:
    """Assign the roles on ``world`` and split it; collective. Raises InputError on every rank.

    ``gpus`` are those of this host that agents are to use.
    """
    hosts = _gather_hosts(world, limit, gpus)
    node_comm = world.Split_type(MPI.COMM_TYPE_SHARED)
    nodes = np.zeros(world.size, np.int64)
    node = np.array([smallest(node_comm, world.rank, limit)], np.int64)
    node_comm.Free()
    wait(world.Iallgather(node, nodes), "the nodes of all ranks", limit)
    cores = _count_cores(hosts, nodes)
    try:
        places = assign_roles(nodes.tolist(), agents, layout, cores, hosts["gpus"].tolist())
    except InputError as error:
        error.on_every_rank = True
        raise
    place = places[world.rank]

    def split(member: bool, colour: int = 0, key: int = 0) -> MPI.Comm:
        return world.Split(colour if member else MPI.UNDEFINED, key)

    same_node_agents = [
        rank for rank in range(world.size) if places[rank].agent and nodes[rank] == node[0]
    ]
    return Topology(
        world=world,
        places=tuple(places),
        hosts=tuple(host["name"].decode() for host in hosts),
        cores=cores,
        threads=_threads(world.rank, hosts, nodes, places),
        local_agent=same_node_agents.index(world.rank) if place.agent else 0,
        principal_comm=split(place.principal),
        agent_comm=split(place.agent),
        observer_comm=split(place.observer),
        learner_comm=split(place.principal or place.agent),
        team_comm=split(place.team is not None, place.team or 0, 0 if place.agent else 1),
    )


def smallest(comm: MPI.Comm, value: int, limit: float) -> int:
    """Return the smallest ``value`` on ``comm``; waits passively."""
    result = np.array([value], np.int64)
    wait(comm.Iallreduce(MPI.IN_PLACE, result, MPI.MIN), "all ranks to compare a number", limit)
    return int(result[0])


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names of the GPUs of this host that a process may use, without touching any."""
    dev = Path("/dev")
    devices = sorted(path.name.removeprefix("nvidia") for path in dev.glob("nvidia[0-9]*"))
    if (dev / "kfd").exists():  # ROCm
        devices = sorted(path.name for path in (dev / "dri").glob("renderD*"))
    elif (dev / "dxg").exists():  # WSL, which does not tell how many
        devices = ["0"]
    if devices and "CUDA_VISIBLE_DEVICES" in environment:
        return tuple(filter(None, environment["CUDA_VISIBLE_DEVICES"].split(",")))
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


def _count_cores(hosts: np.ndarray, nodes: np.ndarray) -> int:
    """Return the cores of all ranks together, those that ranks share counted once."""
    shared = zip(nodes.tolist(), hosts["affinity"].tolist(), hosts["cores"].tolist(), strict=True)
    return sum(cores for _, _, cores in set(shared))


def _threads(rank: int, hosts: np.ndarray, nodes: np.ndarray, places: Sequence[Place]) -> int:
    """Return the cores a rank may use, shared with the working ranks bound to the same cores."""
    sharing = [
        other
        for other in range(len(places))
        if nodes[other] == nodes[rank]
        and hosts[other]["affinity"] == hosts[rank]["affinity"]
        and (places[other].agent or places[other].observer)
    ]
    return max(1, int(hosts[rank]["cores"]) // max(1, len(sharing)))


def rank_ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, ``0-2,5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
