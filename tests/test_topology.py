"""Roles by rank: how they compose where ranks are few, and how teams keep to their nodes."""

import pytest

from hpc_maml.errors import InputError
from hpc_maml.mpi import topology
from hpc_maml.mpi.topology import Seat, plan_roles, rank_ranges


def assign_roles(nodes, agents="auto", layout="split", gpus=None, **seat):
    """Return the places of ranks on ``nodes``, with ``gpus`` each."""
    gpus = gpus or [0] * len(nodes)
    seats = [Seat(node, gpus=number, **seat) for node, number in zip(nodes, gpus, strict=True)]
    return plan_roles(seats, agents, layout, "auto").places


def names(nodes, agents="auto", layout="split", **seat):
    places = assign_roles(nodes, agents, layout, **seat)
    return ["+".join(role[0] for role in place.roles) for place in places]


def teams(places):
    """Return the ranks of each team; the first is its agent."""
    found = {}
    for rank, place in enumerate(places):
        if place.team is not None:
            found.setdefault(place.team, []).append(rank)
    for ranks in found.values():
        assert [places[rank].agent for rank in ranks] == [True] + [False] * (len(ranks) - 1)
    return [found[index] for index in range(len(found))]


# Split


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
    for cores, expected in ((2, 2), (3, 3), (64, 4)):
        places = assign_roles([0] * 16, num_cores=cores)
        assert sum(place.agent for place in places) == expected


@pytest.mark.parametrize("agents", [2, "auto"])
def test_agents_go_to_the_nodes_with_gpus(agents):
    nodes, gpus = [0] * 3 + [1] * 8 + [2] * 8, [2] * 3 + [0] * 16
    places = assign_roles(nodes, agents, gpus=gpus, num_cores=32)
    assert [place.roles for place in places[:3]] == [("principal",), ("agent",), ("agent",)]
    assert all(place.roles == ("observer",) for place in places[3:])
    places = assign_roles([0] * 8 + [1] * 8, gpus=[1] * 8 + [3] * 8)
    assert [rank for rank, place in enumerate(places) if place.agent] == [1, 8, 9, 10]
    assert sum(p.agent for p in assign_roles([0] * 4, gpus=[8] * 4)) == 2


SIZES_AND_AGENTS = [
    *((size, agents) for size in range(1, 40) for agents in (1, 2, 3) if agents <= size),
    *((size, "auto") for size in range(1, 40)),
]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [(None, "0 1"), ("1", "1"), ("", ""), ("-1", ""), ("NoDevFiles", ""), ("1,-1,0", "1")],
)
def test_the_gpus_that_a_process_may_use(asked, seen, monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(topology, "Path", lambda _: tmp_path)
    environment = {} if asked is None else {"CUDA_VISIBLE_DEVICES": asked}
    for version, found in (("2.13.0", seen), ("2.13.0+cu128", seen), ("2.13.0+cpu", "")):
        monkeypatch.setattr(topology, "version", lambda _, version=version: version)
        assert " ".join(topology.visible_gpus(environment)) == found


@pytest.mark.parametrize("layout", ["split", "team", "auto"])
@pytest.mark.parametrize(("size", "agents"), SIZES_AND_AGENTS)
def test_every_team_has_an_agent_and_an_observer(size, agents, layout):
    places = assign_roles([rank // 4 for rank in range(size)], agents, layout, num_cores=3)
    count = sum(place.agent for place in places)
    assert agents in ("auto", count)
    assert sum(place.principal for place in places) == 1
    assert places[0].principal
    for team in range(count):
        assert sum(place.agent and place.team == team for place in places) == 1
        assert any(place.observer and place.team == team for place in places)
    for place in places:
        assert place.roles or layout == "auto"
        assert place.observer or layout == "split" or not place.roles


def test_teams_stay_on_their_nodes():
    nodes = [0] * 4 + [1] * 4 + [2] * 4
    places = assign_roles(nodes, 3)
    for team in range(3):
        assert len({nodes[r] for r, place in enumerate(places) if place.team == team}) == 1


def test_a_node_without_agent_helps_the_smallest_teams():
    places = assign_roles([0, 0, 0, 0, 1, 1], 1)
    assert [place.team for place in places] == [None, 0, 0, 0, 0, 0]
    places = assign_roles([0] * 4 + [1] * 3 + [2], 2)
    assert places[7].observer
    sizes = [sum(place.observer and place.team == team for place in places) for team in (0, 1)]
    assert sizes == [2, 3] or sizes == [3, 2]


def test_split_teams_are_even():
    for size in (16, 33, 64):
        places = assign_roles([0] * size, 4)
        sizes = [sum(p.observer and p.team == team for p in places) for team in range(4)]
        assert max(sizes) - min(sizes) <= 1


# Team


def test_every_rank_of_a_team_observes():
    assert names([0, 0, 0], layout="team") == ["p+a+o", "o", "o"]
    assert names([0, 0, 0], 3, "team") == ["p+a+o", "a+o", "a+o"]


def test_a_team_is_the_ranks_of_a_node_or_a_part_of_one():
    nodes = [0] * 4 + [1] * 3
    assert teams(assign_roles(nodes, layout="team")) == [[0, 1, 2, 3], [4, 5, 6]]
    assert teams(assign_roles(nodes, 3, "team")) == [[0, 1], [2, 3], [4, 5, 6]]
    assert teams(assign_roles([0, 1, 0, 1], layout="team")) == [[0, 2], [1, 3]]
    assert teams(assign_roles([0] * 7, 3, "team")) == [[0, 1], [2, 3], [4, 5, 6]]


def test_the_ranks_of_a_node_without_agent_go_to_the_smallest_teams():
    assert teams(assign_roles([0] * 3 + [1] * 2 + [2], 2, "team")) == [[0, 1, 2], [3, 4, 5]]
    # rank 0, the principal, is an agent wherever it goes
    assert teams(assign_roles([0, 1, 1, 1], 1, "team")) == [[0, 1, 2, 3]]


# Auto


def test_without_gpus_all_with_a_core_work_and_the_others_rest():
    assert names([0] * 5, layout="auto", num_cores=2) == ["p+a+o", "o", "", "", ""]
    assert names([0] * 3, layout="auto", num_cores=8) == ["p+a+o", "o", "o"]
    found = names([0, 0, 0, 1, 1, 1], layout="auto", num_cores=2)
    assert found == ["p+a+o", "o", "", "a+o", "o", ""]
    plan = plan_roles([Seat(0, num_cores=2)] * 5, "auto", "auto")
    assert plan.layout == "team"
    assert "3 of 5 ranks rest" in plan.reason


def test_ranks_bound_to_cores_of_their_own_all_work():
    seats = [Seat(0, cores=rank // 2, num_cores=1) for rank in range(6)]
    places = plan_roles(seats, "auto", "auto").places
    assert [bool(place.roles) for place in places] == [True, False] * 3


def test_there_is_a_rank_for_each_agent_that_is_asked_for():
    assert names([0] * 4, 3, "auto", num_cores=1) == ["p+a+o", "a+o", "a+o", ""]


def test_agents_and_observers_are_apart_where_there_are_gpus():
    seats = [Seat(0, num_cores=2, gpus=1)] * 4
    for device, layout in (("auto", "split"), ("cuda", "split"), ("cpu", "team")):
        plan = plan_roles(seats, "auto", "auto", device)
        assert (plan.layout, all(place.roles for place in plan.places)) == (
            layout,
            layout == "split",
        )
    # where there is none, agents say so
    assert plan_roles([Seat(0)] * 4, "auto", "auto", "cuda").layout == "split"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((3, "split"), "topology.agents is 3, but there are only 2 MPI ranks."),
        ((3, "auto"), "topology.agents is 3, but there are only 2 MPI ranks."),
        (("auto", "team", "cuda"), "device=cuda needs topology.layout=split."),
    ],
)
def test_impossible_topologies(words, sentence):
    with pytest.raises(InputError) as caught:
        plan_roles([Seat(0)] * 2, *words)
    assert sentence in str(caught.value)


def test_rank_ranges():
    assert rank_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
