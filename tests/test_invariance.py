"""Promise 1 with whole jobs; tests/mpi/test_invariance.py has every rank count and layout."""

import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import SMALL, run

needs_box2d = pytest.mark.skipif(sys.version_info >= (3, 14), reason="no wheel of Box2D")


def checkpoints(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("checkpoints/*")}


@cache
def serial(settings: tuple[str, ...], folder: Path) -> dict[str, bytes]:
    """Return the checkpoints of ``python -m hpc_maml``, without mpirun."""
    run(None, *settings, "checkpoint.keep=9", "--run-dir", str(folder))
    return checkpoints(folder)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serial")


@pytest.mark.parametrize("ranks", range(1, 17))
def test_every_rank_count(ranks, shared_folder):
    settings = (*SMALL, "num_iterations=1")
    expected = serial(settings, shared_folder / "one")
    run(ranks, *settings, "--run-dir", "run")
    assert len(expected) == 1
    assert checkpoints(Path("run")) == expected


@pytest.mark.parametrize(
    "settings",
    [
        ("num_inner_steps=2", "first_order=true"),
        ("policy.activation=relu", "meta_batch_size=2"),  # fewer tasks than agents
        ("env.name=ant_goal", "horizon=30", "meta_batch_size=3"),  # ragged episodes
        ("env.name=half_cheetah_dir", "env.kwargs.lineage=original"),
        ("env.name=tabular_mdp", "horizon=8"),
        pytest.param(("env.name=lander", "env.kwargs.continuous=false"), marks=needs_box2d),
        # as large as real ones: other paths through the matrix libraries, batches sent in pieces
        ("policy.hidden_sizes=[64, 64]", "horizon=100", "fast_batch_size=20", "meta_batch_size=7"),
    ],
    ids=["two_steps", "few_tasks", "ant", "original", "choices", "lander", "large"],
)
def test_variants(settings, shared_folder):
    settings = (*SMALL, "num_iterations=2", *settings)
    expected = serial(settings, shared_folder / "-".join(settings[-2:]))
    run(7, *settings, "topology.agents=3", "checkpoint.keep=9", "--run-dir", "run")
    assert len(expected) == 2
    assert checkpoints(Path("run")) == expected


def test_the_seed_matters(shared_folder):
    settings = (*SMALL, "num_iterations=1")
    expected = serial(settings, shared_folder / "one")
    run(None, *settings, "seed=2", "--run-dir", "run")
    assert checkpoints(Path("run"))["iteration_000001.h5"] != expected["iteration_000001.h5"]
