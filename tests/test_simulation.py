"""Runs on many ranks in virtual time: the real roles, and what stands in for MPI and for work."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, start

from benchmarks import scale
from benchmarks.costs import Measured, from_dict, middle, through
from benchmarks.simulation import Costs, Machine, Sum, comms, simulate
from benchmarks.virtual_time import Idle, Line, MessageCosts, World, virtual_time
from hpc_maml.config import load_config
from hpc_maml.mpi import waiting
from hpc_maml.mpi.waiting import SPIN, Roles, Until, wait

MESSAGES = MessageCosts(
    near=Line(1e-6, 1e-9),
    far=Line(5e-6, 2e-9),
    send=Line(1e-5, 0.0),
    receive=Line(1e-5, 0.0),
    poll=1e-7,
    oversleep=6e-5,
)
COSTS = Costs(
    steps=100,
    phase=Line(0.005, 0.05),
    spread=0.03,
    digest=0.01,
    sums=(
        Sum(105, Line(1e-5, 1e-4)),
        *[Sum(100, Line(1e-5, 0.006))] * 10,
        Sum(2, Line(0.0, 0.002)),
    ),
    after=Line(1e-4, 0.0),
    summary=Line(1e-4, 1e-8),
    record=Line(0.002, 0.0),
    disk=0.03,
    parameters=100,
    batch_bytes=200_000,
    messages=MESSAGES,
)
STEP = 0.0621  # seconds of a task in the outer step


@pytest.mark.parametrize(
    ("ranks", "layout", "gpus"),
    [(16, "team", 0), (64, "team", 0), (16, "split", 0), (16, "auto", 2)],
)
def test_every_task_is_done_once(ranks, layout, gpus):
    machine = Machine(ranks, 8, 8, gpus)
    found = simulate(COSTS, machine, 3 * ranks, layout=layout)
    assert Counter(found.tasks) == Counter((k, task) for k in range(3) for task in range(3 * ranks))
    assert found.layout == ("team" if layout == "team" else "split")
    # no rank collects faster than the mean of the tasks, side by side
    assert found.seconds > 3 * 2 * 0.05 * 0.98
    if layout == "team":
        alone = 3 * (2 * 0.055 + 0.01 + STEP)
        assert alone - 2 * 2 * 0.005 < found.seconds < 1.15 * alone
    again = simulate(COSTS, machine, 3 * ranks, layout=layout)
    assert [row["iteration_seconds"] for row in again.rows] == [
        row["iteration_seconds"] for row in found.rows
    ]
    assert again.tasks == found.tasks


def test_one_rank_by_hand():
    """Without a spread: five tasks are handed out as 3, 1 and 1."""
    found = simulate(replace(COSTS, spread=0.0), Machine(1), 5)
    collecting = 2 * (3 * 0.005 + 5 * 0.05)
    assert found.seconds == pytest.approx(collecting + 5 * (0.01 + STEP) + 0.002, rel=2e-3)
    row = found.rows[-1]
    assert row["observers_busy"] * found.seconds == pytest.approx(collecting, rel=0.01)
    assert row["update_seconds"] == pytest.approx(5 * STEP, rel=0.01)


def test_all_get_one_task_where_there_are_as_many():
    """A rank that is told early is not given what others have not got yet."""
    found = simulate(COSTS, Machine(40, 40, 40), 40)
    assert found.seconds < 1.2 * (2 * 0.055 + 0.01 + STEP)


@pytest.mark.parametrize(("ranks", "number"), [(16, 40), (64, 40)])
def test_the_episodes_of_tasks_that_are_left_over_are_shared(ranks, number):
    found = simulate(COSTS, Machine(ranks, ranks, ranks), number)
    assert Counter(found.tasks) == Counter((k, task) for k in range(3) for task in range(number))
    collecting = 2 * (0.005 + number / ranks * 0.05)
    most = -(-number // ranks) * (0.01 + STEP)  # a rank digests whole tasks
    assert collecting + most < found.seconds < 1.15 * (collecting + most)


def test_what_a_slow_node_costs():
    machine = Machine(32, 8, 8)
    alike, slow = (
        simulate(COSTS, replace(machine, slowness=nodes), 4 * 32).seconds
        for nodes in ({}, {2: 1.5})
    )
    # shares are even for the nodes, and all wait for it
    assert 1.4 < slow / alike < 1.5


def test_ranks_beyond_the_cores_rest():
    two, sixteen = (simulate(COSTS, Machine(ranks, 2, 16), 6) for ranks in (2, 16))
    assert (two.working, sixteen.working) == (2, 2)
    assert sixteen.seconds == pytest.approx(two.seconds, rel=0.01)
    shared = simulate(COSTS, Machine(4, 2, 16), 6, layout="team")
    assert shared.working == 4


def test_as_many_messages_as_under_mpi():
    sizes = ["meta_batch_size=6", "num_iterations=3", "archive.rollouts=none"]
    job = start(3, *SMALL, *sizes, "--run-dir", "run", python=["-m", "counted"])
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    sent = sum(
        (Counter(json.loads(path.read_text())) for path in Path().glob("m*.json")), Counter()
    )
    found = simulate(COSTS, Machine(3, 3, 3), 6, layout="team").messages
    assert {kind: number for kind, number in found.items() if kind != "Iallreduce"} == sent
    assert found["Iallreduce"] == 3 * 3 * len(COSTS.sums)


# Virtual time


def world_of(ranks: int) -> World:
    return World([0] * ranks, MESSAGES, lambda node: 1.0)


def test_when_a_wait_ends():
    world = world_of(1)
    with virtual_time(world):
        at_once, spinning = (waiting.Idle(60, 1 / 20, spin) for spin in (0.0, SPIN))
    assert isinstance(at_once, Idle)
    # polls after sleeps of 100 us that last 160: at 160.1, 320.2 ... us
    assert at_once.notices(0.0, 0.0) == pytest.approx(160.1e-6)
    assert at_once.notices(0.0, 170e-6) == pytest.approx(320.2e-6)
    assert spinning.notices(0.0, 170e-6) == pytest.approx(170.1e-6)
    assert SPIN + 100e-6 < spinning.notices(0.0, SPIN + 1e-9) < SPIN + 200e-6
    at_once.waited = 1.0
    assert at_once.notices(5.0, 5.0) == pytest.approx(5.02006, abs=1e-5)


@pytest.mark.parametrize("call", ["Iallreduce", "Ireduce", "Ibcast"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 13])
def test_collective_calls_end_on_all_ranks_after_the_last_has_come(ranks, call):
    world, total, ended = world_of(ranks), np.zeros(1000), {}
    handles = comms(world, range(ranks))

    def main(rank: int) -> None:
        for late in (ranks - 1, 0):  # one rank comes 50 ms after the others
            world.work(0.05 if rank == late else 0.0)
            given = {
                "Iallreduce": (None, total, None),
                "Ireduce": (None, total, None, 0) if rank == 0 else (total, None, None, 0),
                "Ibcast": (total, 0),
            }[call]
            wait(getattr(handles[rank], call)(*given), "the others", 60.0, SPIN)
            ended[rank, late] = world.current.now

    with virtual_time(world):
        world.run(main)
    assert len(ended) == ranks * len({0, ranks - 1})
    if call == "Iallreduce":
        assert min(ended[rank, ranks - 1] for rank in range(ranks)) >= 0.05
        assert min(ended[rank, 0] for rank in range(ranks)) >= 0.1
    if (ranks, call) == (2, "Iallreduce"):  # two messages of half of the bytes, one after another
        assert ended[1, 1] == pytest.approx(0.05 + 2 * (1e-6 + 4000 * 1e-9), abs=1e-3)


def test_a_wait_for_nothing_is_an_error():
    world = world_of(3)

    async def hopeless():
        await Until(lambda: False, "what nobody sends")

    def main(rank: int) -> None:
        if rank:
            Roles(60).run({"role": hopeless()})

    with virtual_time(world), pytest.raises(RuntimeError, match="1: 'what nobody sends'"):
        world.run(main)


def test_an_error_of_one_rank_ends_all():
    world = world_of(3)

    async def hopeless():
        await Until(lambda: False, "what nobody sends")

    def main(rank: int) -> None:
        if rank == 2:
            raise ValueError("enough")
        Roles(60).run({"role": hopeless()})

    with virtual_time(world), pytest.raises(ValueError, match="enough"):
        world.run(main)


# What is measured, and what is said of it


def test_costs_of_this_machine():
    small = ["env.name=navigation", "meta_batch_size=12", "fast_batch_size=3", "horizon=8"]
    here = Measured(load_config(None, small))
    line, spread = here.collection()
    assert 0 < line(1) <= line(10)
    assert spread >= 0
    digest, sums, after = here.outer_step()
    assert digest > 0
    parameters = here.algorithm.policy.size
    widths = [each["width"] for each in sums]
    assert (widths[0], set(widths[1:])) == (5 + parameters, {parameters, 2})
    assert all(each["work"]["fixed"] > 0 for each in sums)
    assert after.fixed > 0
    assert all(seconds > 0 for seconds in here.principal(5))


def test_costs_as_text():
    assert from_dict(json.loads(json.dumps(asdict(COSTS)))) == COSTS
    assert middle([COSTS, replace(COSTS, digest=0.5), replace(COSTS, digest=0.02)]).digest == 0.02
    assert through([1, 11], [3.0, 23.0]) == Line(1.0, 2.0)
    assert through([1, 11], [3.0, 1.0]) == Line(3.0, 0.0)


@pytest.mark.slow
def test_the_table_of_scale(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "RANKS", (4, 8))
    monkeypatch.setattr(scale, "STRONG", (5, 40))
    rows = {row.name: row for row in scale.Study(COSTS).rows()}
    assert 0.8 < rows["weak scaling, 1 a rank, np 8"].value < 1
    assert 0.9 < rows["strong scaling, 40 tasks, np 5"].value < 1
    assert rows["split, 4 a rank, np 8"].value < 0.7
    assert rows["np 256, 4 a rank, work on one of 4 nodes takes 2.0"].ratio > 1.8
    pytest.importorskip("matplotlib")
    scale.draw(list(rows.values()), tmp_path / "scale.svg")
    assert "strong scaling, 40 tasks" in (tmp_path / "scale.svg").read_text()


def test_the_machine_of_a_job(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert scale.machine_of("1 cores=1") == (Machine(1, 1, 1), "auto")
    assert scale.machine_of("16") == (Machine(16, 2, 16), "auto")
    assert scale.machine_of("2 split") == (Machine(2, 2, 2), "split")
