"""Promise 1: the same checkpoint, bit for bit, on any number of ranks, in any layout."""

from functools import cache
from pathlib import Path

import pytest
from conftest import SMALL, run

NAVIGATION = SMALL
HALF_CHEETAH = (
    "env.name=half_cheetah_vel",
    "meta_batch_size=4",
    "fast_batch_size=3",
    "horizon=10",
    "num_iterations=2",
    "policy.hidden_sizes=[16, 16]",
    "mpi.wait_limit=60",
)
TOPOLOGIES = [
    *((ranks, "topology.agents=1") for ranks in (2, 3, 5, 8, 16)),
    *((ranks, "topology.agents=3") for ranks in (3, 5, 8, 16)),
    *((ranks, "topology.layout=colocated") for ranks in (1, 2, 3, 5, 8, 16)),
]


def checkpoints(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob("checkpoints/*"))]


@cache
def serial(settings: tuple[str, ...], folder: Path) -> list[tuple[str, bytes]]:
    """Return the checkpoints of ``python -m hpc_maml``, without mpirun."""
    run(None, *settings, "checkpoint.keep=9", "--run-dir", str(folder))
    return checkpoints(folder)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serial")


@pytest.mark.parametrize(("ranks", "topology"), TOPOLOGIES)
def test_navigation(ranks, topology, shared_folder):
    expected = serial(NAVIGATION, shared_folder / "navigation")
    run(ranks, *NAVIGATION, topology, "checkpoint.keep=9", "--run-dir", "run")
    assert len(expected) == 5
    assert checkpoints(Path("run")) == expected


@pytest.mark.parametrize(("ranks", "topology"), TOPOLOGIES)
def test_half_cheetah(ranks, topology, shared_folder):
    expected = serial(HALF_CHEETAH, shared_folder / "half_cheetah")
    run(ranks, *HALF_CHEETAH, topology, "checkpoint.keep=9", "--run-dir", "run")
    assert len(expected) == 2
    assert checkpoints(Path("run")) == expected


@pytest.mark.parametrize(
    "settings",
    [
        ("num_inner_steps=2", "first_order=true"),
        ("policy.activation=relu", "meta_batch_size=2"),  # fewer tasks than agents
        ("env.name=ant_goal", "horizon=30", "meta_batch_size=3"),  # ragged episodes
    ],
    ids=["two_steps", "few_tasks", "ant"],
)
def test_variants(settings, shared_folder):
    settings = (*SMALL, "num_iterations=2", *settings)
    expected = serial(settings, shared_folder / settings[-1].replace("=", "-"))
    run(7, *settings, "topology.agents=3", "checkpoint.keep=9", "--run-dir", "run")
    assert checkpoints(Path("run")) == expected


def test_the_seed_matters(shared_folder):
    expected = serial(NAVIGATION, shared_folder / "navigation")
    run(None, *NAVIGATION, "seed=2", "checkpoint.keep=9", "--run-dir", "run")
    for (_, one), (_, other) in zip(expected, checkpoints(Path("run")), strict=True):
        assert one != other
