"""Roles by rank: how they compose where ranks are few, and how teams keep to their nodes."""

import pytest

from hpc_maml.errors import InputError
from hpc_maml.mpi.topology import assign_roles, rank_ranges


def names(nodes, agents="auto", layout="split"):
    return [
        "+".join(role[0] for role in place.roles) for place in assign_roles(nodes, agents, layout)
    ]


@pytest.mark.parametrize(
    ("size", "agents", "expected"),
    [
        (1, 1, ["p+a+o"]),
        (2, 1, ["p+a", "o"]),
        (3, 1, ["p", "a", "o"]),
        (4, "auto", ["p", "a", "o", "o"]),
        (2, 2, ["p+a+o", "a+o"]),
        (4, 2, ["p+a", "a", "o", "o"]),
        (5, 3, ["p+a", "a", "a+o", "o", "o"]),
        (5, 2, ["p", "a", "a", "o", "o"]),
    ],
)
def test_composition(size, agents, expected):
    assert names([0] * size, agents) == expected


def test_auto_makes_no_more_agents_than_cores():
    for cores, expected in ((2, 2), (3, 3), (64, 4), (None, 4)):
        places = assign_roles([0] * 16, "auto", "split", cores)
        assert sum(place.agent for place in places) == expected


@pytest.mark.parametrize("agents", [2, "auto"])
def test_agents_go_to_the_nodes_with_gpus(agents):
    nodes, gpus = [0] * 3 + [1] * 8 + [2] * 8, [2] * 3 + [0] * 16
    places = assign_roles(nodes, agents, "split", cores=64, gpus=gpus)
    assert [place.roles for place in places[:3]] == [("principal",), ("agent",), ("agent",)]
    assert all(place.roles == ("observer",) for place in places[3:])
    places = assign_roles([0] * 8 + [1] * 8, "auto", "split", gpus=[1] * 8 + [3] * 8)
    assert [rank for rank, place in enumerate(places) if place.agent] == [1, 8, 9, 10]
    assert sum(p.agent for p in assign_roles([0] * 4, "auto", "split", gpus=[8] * 4)) == 2


def test_colocated_ranks_are_agent_and_observer():
    assert names([0, 0, 0], "auto", "colocated") == ["p+a+o", "a+o", "a+o"]


@pytest.mark.parametrize(
    ("size", "agents"),
    [(size, agents) for size in range(1, 40) for agents in (1, 2, 3) if agents <= size]
    + [(size, "auto") for size in range(1, 40)],
)
def test_every_team_has_an_agent_and_an_observer(size, agents):
    places = assign_roles([rank // 4 for rank in range(size)], agents, "split")
    count = sum(place.agent for place in places)
    assert agents in ("auto", count)
    assert sum(place.principal for place in places) == 1
    assert places[0].principal
    for team in range(count):
        assert sum(place.agent and place.team == team for place in places) == 1
        assert any(place.observer and place.team == team for place in places)
    for place in places:
        assert place.roles


def test_teams_stay_on_their_nodes():
    nodes = [0] * 4 + [1] * 4 + [2] * 4
    places = assign_roles(nodes, 3, "split")
    for team in range(3):
        assert len({nodes[r] for r, place in enumerate(places) if place.team == team}) == 1


def test_a_node_without_agent_helps_the_smallest_teams():
    places = assign_roles([0, 0, 0, 0, 1, 1], 1, "split")
    assert [place.team for place in places] == [None, 0, 0, 0, 0, 0]
    places = assign_roles([0] * 4 + [1] * 3 + [2], 2, "split")
    assert places[7].observer
    sizes = [sum(place.observer and place.team == team for place in places) for team in (0, 1)]
    assert sizes == [2, 3] or sizes == [3, 2]


def test_teams_are_even():
    for size in (16, 33, 64):
        places = assign_roles([0] * size, 4, "split")
        sizes = [sum(p.observer and p.team == team for p in places) for team in range(4)]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("size", "agents", "layout", "sentence"),
    [
        (2, 3, "split", "topology.agents is 3, but there are only 2 MPI ranks."),
        (4, 2, "colocated", "topology.agents must be auto, not 2."),
    ],
)
def test_impossible_topologies(size, agents, layout, sentence):
    with pytest.raises(InputError) as caught:
        assign_roles([0] * size, agents, layout)
    assert sentence in str(caught.value)


def test_rank_ranges():
    assert rank_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
