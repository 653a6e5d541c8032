"""Teams: how tasks are handed out, who rests, and that what is done is seen at once."""

import heapq
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import FAULT, HERE, SMALL, checkpoints, run, start
from mpi4py import MPI

from hpc_maml.envs.navigation import Navigation
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.roles.agent import MOST_SIDE_BY_SIDE, Team, parts, shared_parts
from hpc_maml.roles.messages import Order, Step, agreed

AUTO = tuple(word for word in SMALL if not word.startswith("topology"))  # as users have it


def order(number: int) -> Order:
    return Order(0, 7, np.arange(number)[:, None], number, {})


def sizes(number: int, observers: int) -> list[int]:
    return [len(part.tasks) for part in parts(order(number), observers)]


def test_the_parts_of_an_order():
    assert sizes(20, 2) == [5, 5, 3, 3, 2, 2]
    assert sizes(20, 3) == [4, 4, 4, 2, 2, 2, 1, 1]
    assert sizes(20, 16) == [1] * 20
    assert sizes(60, 2) == [10, 10, 10, 10, 7, 7, 3, 3]
    assert sizes(0, 2) == []
    found = parts(order(20), 3)
    assert [part.indices[0] for part in found] == [7, 11, 15, 19, 21, 23, 25, 26]
    assert np.array_equal(np.concatenate([part.tasks for part in found])[:, 0], np.arange(20))


def test_equally_fast_observers_come_to_even_shares():
    for number in range(1, 120):
        for observers in range(1, 40):
            shares = [0] * observers
            free = [(0, observer) for observer in range(observers)]
            for size in sizes(number, observers):
                assert 1 <= size <= MOST_SIDE_BY_SIDE
                since, observer = heapq.heappop(free)
                shares[observer] += size
                heapq.heappush(free, (since + size, observer))
            assert max(shares) == -(-number // observers), (number, observers)


def test_every_episode_has_one_player_and_all_play_as_many():
    for number, observers, episodes in (
        (40, 16, 20),
        (40, 64, 20),
        (7, 3, 5),
        (1, 4, 3),
        (3, 2, 1),
    ):
        ranks = range(10, 10 + observers)
        played = Counter()
        owners = Counter()
        for part in shared_parts(order(number), ranks, episodes):
            assert part.observer in ranks
            assert np.array_equal(part.tasks[:, 0] + 7, part.indices)
            shares = {share.place: share.players for share in part.shares}
            mine = 0
            for place, task in enumerate(part.indices):
                players = shares.get(place, [(part.observer, 0, episodes)])
                owners[task, players[0][0]] += players[0][0] == part.observer
                for rank, first, stop in players:
                    if rank == part.observer:
                        mine += stop - first
                        played.update((task, episode) for episode in range(first, stop))
            even = number * episodes / observers
            assert int(even) <= mine <= int(even) + 1
        assert played == Counter((7 + t, e) for t in range(number) for e in range(episodes))
        owners = +owners
        assert len(owners) == number  # each has one
        tasks_of_each = Counter(rank for _, rank in owners).values()
        assert max(tasks_of_each) <= -(-number // observers)


def test_the_part_of_a_certain_observer_waits_for_it():
    team = Team(Messenger(MPI.COMM_SELF), range(3), at_once=3, kept_back=3)
    team.requests.update({0: 2, 2: 1})
    assert not team.has_request(2, observer=1)
    assert team.has_request(2, observer=2)


def test_the_last_parts_are_for_observers_without_work():
    messenger = Messenger(MPI.COMM_SELF)
    team = Team(messenger, range(3), at_once=3, kept_back=3)
    team.requests.update({0: 1, 2: 1})
    assert team.has_request(4)
    assert not team.has_request(3)
    team.requests.update({1: 2})
    assert team.has_request(3)
    assert not Team(messenger, range(3), at_once=3, kept_back=0).has_request(1)


def test_ranks_that_do_not_agree_on_the_state_are_an_error():
    one, other = (Step({}, digest, "", {}, 0.0, stop_requested=False) for digest in "ab")
    assert agreed([one, one]) is one
    with pytest.raises(RuntimeError, match="do not agree on the new state"):
        agreed([one, one, other])


def test_an_observer_with_another_state_ends_the_job():
    words = ("2", "hpc_maml.roles.outer_step", "state_digest", "1", "raise")
    job = start(3, *words, *SMALL, "--run-dir", "run", python=(FAULT,))
    _, err = job.communicate(timeout=60)
    assert "hpc_maml: rank 2 (observer) on " in err
    assert job.returncode not in (0, 2, 75)


# Where ranks have no cores of their own


@pytest.fixture
def one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # for what this process starts
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
def test_ranks_without_a_core_rest():
    shown = run(3, *AUTO, "num_iterations=2", "--run-dir", "run").stdout
    assert "0      principal + agent + observer" in shown
    assert "1-2    rest" in shown
    assert "layout team: without GPUs every rank that observes also computes; 2 of 3 ranks" in shown
    run(None, *AUTO, "num_iterations=2", "--run-dir", "alone")
    assert checkpoints(Path("run")) == checkpoints(Path("alone"))


def cpu_seconds(rank: int, folder: Path) -> float:
    """Return the seconds that a rank of a job has used so far."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        of_rank = {b"PMI_RANK=%d" % rank, b"OMPI_COMM_WORLD_RANK=%d" % rank}
        if str(folder).encode() in words and of_rank & set(variables):
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise AssertionError(f"no rank {rank}")


@pytest.mark.usefixtures("one_core")
def test_resting_ranks_use_no_core_and_outlast_any_wait():
    folder = Path.cwd() / "run"
    words = (*AUTO, "num_iterations=999999", "checkpoint.every=999", "mpi.wait_limit=2")
    job = start(3, *words, "--run-dir", str(folder))
    while not (folder / "metrics.h5").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    time.sleep(1)  # they sleep longer and longer
    before = [cpu_seconds(rank, folder) for rank in (1, 2)]
    time.sleep(3)
    for used, rank in zip(before, (1, 2), strict=True):
        assert cpu_seconds(rank, folder) - used <= 0.02 * 3 + 0.01  # a tick
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=30)
    assert job.returncode == 75, out + err


def test_observers_without_tasks_outlast_any_wait():
    """Two tasks for seven observers: those that never get one are told what goes on."""
    settings = ("env.name=test_team:Slow", *AUTO, "meta_batch_size=2", "num_iterations=12")
    words = ("topology.layout=split", "topology.agents=1", "mpi.wait_limit=3", "--run-dir", "run")
    began = time.monotonic()
    run(9, *settings, *words)
    assert time.monotonic() - began > 3


LONG_TEST = ("horizon=60", "evaluation.every=1", "evaluation.tasks=60", "evaluation.updates=1")


@pytest.mark.parametrize("layout", ["auto", "split"])
def test_who_waits_for_others_outlasts_a_long_meta_test(layout, request):
    """Ranks that rest, and a principal that has a rank of its own."""
    if layout == "auto":
        request.getfixturevalue("one_core")
    settings = ("env.name=test_team:Slow", *AUTO, *LONG_TEST, f"topology.layout={layout}")
    words = ("num_iterations=1", "mpi.wait_limit=2", "--run-dir", "run")
    run(3, *settings, *words)
    seen = [int(line.split()[0]) for line in Path("seen").read_text().splitlines()]
    assert seen.count(0 if layout == "auto" else 2) * 0.005 > 2 * (2 + 1)  # each of two tests


def test_a_run_of_the_layout_before_goes_on():
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "run")
    file = Path("run/config.yaml")
    text = file.read_text()
    assert "layout: team" in text
    file.write_text(text.replace("layout: team", "layout: colocated"))
    assert "done: 2 iterations" in run(HERE, "num_iterations=2", "--run-dir", "run").stdout
    run(HERE, "evaluate", "run", "--tasks", "2", "--updates", "1")


# At once


class Slow(Navigation):
    """Navigation that takes its time for a step, and notes which checkpoints there are."""

    def step(self, actions):
        time.sleep(0.005)
        with Path("seen").open("a") as file:
            number = sum(path.suffix == ".h5" for path in Path("run/checkpoints").iterdir())
            print(self.rank, number, file=file)
        return super().step(actions)

    rank = MPI.COMM_WORLD.rank


@pytest.mark.parametrize(("ranks", "layout"), [(None, "auto"), (2, "team"), (1, "split")])
def test_an_iteration_is_recorded_when_it_ends(ranks, layout):
    """Where the principal shares its rank with an observer, which is at work on the next one."""
    settings = (*AUTO, "meta_batch_size=2", "num_iterations=4", "checkpoint.keep=9", "horizon=40")
    words = (f"topology.layout={layout}", "--run-dir", "run")
    run(ranks, "env.name=test_team:Slow", *settings, *words)
    seen = [tuple(map(int, line.split())) for line in Path("seen").read_text().splitlines()]
    numbers = [number for rank, number in seen if rank == 0]
    steps = len(numbers) // 4  # of an iteration: two phases of forty steps for each task
    assert steps == (80 if ranks == 2 else 160)
    for iteration in (1, 2, 3):
        start = iteration * steps
        assert numbers[start - 1] == iteration - 1, numbers
        # as soon as it is on the disk, which a thread waits for
        assert numbers[start + 3 * steps // 4] == iteration, numbers


def test_the_first_ctrl_c_is_answered_at_once():
    settings = ("env.name=test_team:Slow", *AUTO, "horizon=300", "--run-dir", "run")
    job = start(None, *settings)
    while not Path("seen").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    sent = time.monotonic()
    job.send_signal(signal.SIGINT)
    assert job.stderr.readline() == "stopping after this iteration; again to stop now\n"
    assert time.monotonic() - sent < 0.5
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=10)
    assert "interrupted" in err
    assert job.returncode not in (0, 75)
