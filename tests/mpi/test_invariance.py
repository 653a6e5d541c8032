"""Promise 1: the same checkpoints, bit for bit, on any number of ranks and in any layout.

One job per rank count would spend its time on imports, so all of them run on the first ranks of
one job. tests/test_invariance.py runs whole jobs.
"""

import tempfile
from functools import cache
from pathlib import Path

import pytest
from mpi4py import MPI

from hpc_maml.config import load_config
from hpc_maml.mpi.exchange import BatchReceiver
from hpc_maml.mpi.waiting import wait
from hpc_maml.run.training import Training
from hpc_maml.stopping import StopSignal

NAVIGATION = ("num_iterations=5", "meta_batch_size=6", "fast_batch_size=3", "horizon=12")
HALF_CHEETAH = (
    "num_iterations=2",
    "env.name=half_cheetah_vel",
    "meta_batch_size=4",
    "fast_batch_size=3",
    "horizon=10",
)
SMALL = ("meta_batch_size=4", "fast_batch_size=3", "horizon=10")
PROMP = (
    "num_iterations=3",
    *SMALL,
    "algorithm.name=promp",
    "algorithm.learn_step_sizes=layer",
    "normalise_observations=true",
)
RL2 = (
    "num_iterations=3",
    *SMALL,
    "algorithm.name=rl2",
    "algorithm.minibatches=2",
    "algorithm.episodes_per_trial=2",
    "policy.hidden_size=8",
    "env.name=bandit",
)
SIZES = [size for size in (1, 2, 3, 5, 8, 16) if size <= MPI.COMM_WORLD.size]
TOPOLOGIES = [
    *((size, "split", agents) for agents in (1, 3) for size in SIZES if size >= agents),
    *((size, "team", agents) for agents in (1, 3) for size in SIZES if size >= agents),
    *((size, "team", size) for size in SIZES[-1:]),
    *((size, "auto", "auto") for size in SIZES),
]
OTHERS = [each for each in TOPOLOGIES if each[0] == SIZES[-1]]  # of other algorithms, the largest
CASES = {
    f"{name}-{size}-{layout}-{agents}": (
        settings,
        size,
        (f"topology.layout={layout}", f"topology.agents={agents}"),
    )
    for name, settings, topologies in (
        ("navigation", NAVIGATION, TOPOLOGIES),
        ("cheetah", HALF_CHEETAH, TOPOLOGIES),
        ("promp", PROMP, OTHERS),
        ("rl2", RL2, OTHERS),
    )
    for size, layout, agents in topologies
}
LIMIT = 120.0


def checkpoints(comm, size: int, settings: tuple[str, ...]) -> dict[str, bytes]:
    """Train on the first ranks of ``comm``; return the checkpoint files by name on rank 0."""
    found = {}
    part = comm.Split(0 if comm.rank < size else MPI.UNDEFINED)
    if part != MPI.COMM_NULL:
        with tempfile.TemporaryDirectory() as folder:
            words = [*settings, "checkpoint.keep=9", f"mpi.wait_limit={LIMIT}", "device=cpu"]
            run_dir = Path(folder) / "run"
            run = Training(part, lambda: load_config(None, words), run_dir, StopSignal())
            assert run.train() == 0
            found = {path.name: path.read_bytes() for path in run_dir.glob("checkpoints/*")}
        part.Free()
    wait(comm.Ibarrier(), "the ranks that train", LIMIT)
    return found


@cache
def serial(settings: tuple[str, ...]) -> dict[str, bytes]:
    return checkpoints(MPI.COMM_WORLD, 1, settings)


@pytest.mark.parametrize(("settings", "size", "topology"), CASES.values(), ids=CASES)
def test_same_bits(comm, settings, size, topology):
    expected = serial(settings)
    found = checkpoints(comm, size, (*settings, *topology))
    if comm.rank == 0:
        assert len(expected) == int(settings[0].partition("=")[2])
        assert found == expected


def test_batches_may_arrive_in_any_order(comm, monkeypatch):
    expected = serial(NAVIGATION)
    take, held = BatchReceiver.take, []

    def take_late_and_reversed(self):
        held.extend(take(self))
        if len(held) < 2:
            return []
        batches = held[::-1]
        held.clear()
        return batches

    monkeypatch.setattr(BatchReceiver, "take", take_late_and_reversed)
    found = checkpoints(comm, 1, (*NAVIGATION, "topology.layout=split"))
    if comm.rank == 0:
        assert found == expected
