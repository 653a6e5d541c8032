"""The communicators of the roles, on the real ranks."""

import os

import pytest
from mpi4py import MPI

from hpc_maml.errors import InputError
from hpc_maml.mpi.topology import build_topology


def cases(size):
    yield "auto", "auto"
    for agents in {1, min(2, size), size}:
        yield agents, "split"
        yield agents, "team"


def test_communicators_hold_the_ranks_of_their_roles(comm):
    for agents, layout in cases(comm.size):
        topology = build_topology(comm, agents, layout, 20)
        places = topology.places
        place = topology.place
        expected = {
            "agent_comm": lambda other: other.agent,
            "learner_comm": lambda other: other.principal or other.agent,
        }
        for name, member in expected.items():
            communicator = getattr(topology, name)
            if not member(place):
                assert communicator == MPI.COMM_NULL
                continue
            ranks = communicator.allgather(comm.rank)
            assert ranks == [rank for rank, other in enumerate(places) if member(other)]
        if place.team is None:
            assert topology.team_comm == MPI.COMM_NULL
        else:
            ranks = topology.team_comm.allgather(comm.rank)
            team = {rank for rank, other in enumerate(places) if other.team == place.team}
            assert set(ranks) == team
            assert places[ranks[0]].agent
        if place.agent:
            assert topology.agent_comm.rank == place.team
            world_ranks = topology.learner_comm.allgather(comm.rank)
            found = [world_ranks[rank] for rank in topology.learner_ranks_of_agents]
            assert found == topology.agent_ranks
        elif place.principal:
            topology.learner_comm.allgather(comm.rank)
        working = sum(other.agent or other.observer for other in places)
        cores = len(os.sched_getaffinity(0))
        assert topology.threads == max(1, cores // working)
        assert topology.owns_core == (bool(place.roles) and working <= cores)
        assert topology.resting_ranks == (list(range(cores, comm.size)) if layout == "auto" else [])
        topology.free()


@pytest.mark.parametrize("cores", [range(128), range(64, 128), range(3)])
def test_any_set_of_cores_is_shared_by_those_bound_to_it(comm, cores, monkeypatch):
    mine = set(cores) if comm.rank else set(range(4))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mine)
    topology = build_topology(comm, "auto", "team", 20)
    assert topology.threads == max(1, len(cores) // (comm.size - 1)) if comm.rank else 4
    topology.free()


def test_too_many_agents(comm):
    with pytest.raises(InputError, match="MPI ranks"):
        build_topology(comm, comm.size + 1, "split", 20)
