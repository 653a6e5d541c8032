"""The digests of an agent: what is kept of them, and that its memory does not grow."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import start

from hpc_maml.roles.digests import MEMORY, Digests
from hpc_maml.sampling.trajectory import batch_dtype


class Pair(NamedTuple):
    one: np.ndarray
    other: np.ndarray | None


@dataclass
class Nested:
    arrays: list
    by_name: dict
    number: float = 1.0


class Counted:
    """What a network keeps, with a size of its own."""

    nbytes = 30


def numbers(size):
    return np.zeros(size, np.float32)


@pytest.mark.parametrize(
    ("digest", "size"),
    [
        (numbers(10), 40),
        (torch.zeros(10), 40),
        (np.zeros((), np.float32), 4),
        (Pair(numbers(5), None), 20),
        ([numbers(1), (numbers(2), [numbers(3)])], 24),
        (Nested([numbers(2)], {"a": numbers(3), "b": Pair(numbers(4), numbers(1))}), 40),
        ({"state": Counted()}, 30),
        (None, 0),
    ],
)
def test_the_bytes_of_a_digest(digest, size):
    digests = Digests(memory=1000)
    digests.add(lambda: digest)
    assert digests.memory == 1000 - size


@pytest.mark.parametrize("memory", [100, 120])  # the third goes beyond it, or takes all
def test_digests_are_kept_while_there_is_room_and_computed_anew_beyond_it(memory):
    made = []

    def digest(number):
        made.append(number)
        return numbers(10) + number

    digests = Digests(memory)
    for number in range(5):
        digests.add(lambda number=number: digest(number))
    assert made == [0, 1, 2]
    for _ in range(2):
        made.clear()
        assert [int(each[0]) for each in digests] == [0, 1, 2, 3, 4]
        assert made == [3, 4]


def test_there_is_room_for_many_by_default():
    assert Digests().memory == MEMORY == 2**30


TASKS, EPISODES, HORIZON, ITERATIONS, SETTLED = 3, 50, 100, 40, 15


def test_the_memory_of_an_agent_does_not_grow():
    job = start(
        2,
        f"meta_batch_size={TASKS}",
        f"fast_batch_size={EPISODES}",
        f"horizon={HORIZON}",
        f"num_iterations={ITERATIONS}",
        "checkpoint.every=10",
        "policy.hidden_sizes=[8]",  # little work beside the memory
        "algorithm.cg_iters=2",
        "mpi.wait_limit=60",
        "device=cpu",
        "topology.layout=split",
        "metrics.tensorboard=off",
        python=(str(Path(__file__).parent / "resident.py"),),
        OPENBLAS_NUM_THREADS="1",
    )
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, out + err
    words = [line.split() for line in out.splitlines() if line.startswith("resident")]
    resident = [1024 * int(number) for _, number in words]
    assert len(resident) == ITERATIONS
    batches = 2 * TASKS * batch_dtype(HORIZON, EPISODES, (2,), (2,), "f4").itemsize
    settled, later = max(resident[:SETTLED]), max(resident[SETTLED:])
    # what is kept of one batch in ten would show
    assert later - settled < (ITERATIONS - SETTLED) * batches / 10, (settled, later, batches)
