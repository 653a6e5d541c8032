"""Promise 1: the same checkpoints, bit for bit, on any number of ranks.

Here with whole jobs and many rank counts; tests/mpi/test_invariance.py has every layout, and
test_conformance.py every algorithm.
"""

import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import HERE, SMALL, checkpoints, run, train_each

needs_box2d = pytest.mark.skipif(sys.version_info >= (3, 14), reason="no wheel of Box2D")
slow = pytest.mark.slow


@cache
def serial(settings: tuple[str, ...], folder: Path) -> dict[str, bytes]:
    """Return the checkpoints of a run on one rank."""
    run(HERE, *settings, "checkpoint.keep=9", "--run-dir", str(folder))
    return checkpoints(folder)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serial")


@pytest.mark.parametrize("ranks", [None, 2, *(pytest.param(n, marks=slow) for n in (1, 3, 7, 16))])
def test_whole_jobs(ranks, shared_folder):
    settings = (*SMALL, "num_iterations=2")
    expected = serial(settings, shared_folder / "two")
    run(ranks, *settings, "checkpoint.keep=9", "--run-dir", "run")
    assert len(expected) == 2
    assert checkpoints(Path("run")) == expected


@pytest.mark.parametrize("most", [6, pytest.param(16, marks=slow)])
def test_every_rank_count(most, shared_folder):
    settings = (*SMALL, "num_iterations=1")
    expected = serial(settings, shared_folder / "one")
    runs = {Path(str(ranks)): (ranks, settings) for ranks in range(1, most + 1)}
    train_each(most, runs)
    for folder in runs:
        assert checkpoints(folder) == expected, f"{folder} ranks"


@pytest.mark.parametrize(
    "settings",
    [
        ("algorithm.num_inner_steps=2", "algorithm.first_order=true"),
        ("algorithm.num_inner_steps=2", "algorithm.inner_loss=dice"),
        ("policy.activation=relu", "meta_batch_size=2"),  # fewer tasks than agents
        ("env.name=ant_goal", "horizon=30", "meta_batch_size=3"),  # ragged episodes
        pytest.param(("env.name=half_cheetah_dir", "env.kwargs.lineage=original"), marks=slow),
        pytest.param(("env.name=tabular_mdp", "horizon=8"), marks=slow),
        pytest.param(("env.name=lander", "env.kwargs.continuous=false"), marks=[needs_box2d, slow]),
        # as large as real ones: other paths through the matrix libraries, batches sent in pieces
        pytest.param(
            (
                *("policy.hidden_sizes=[64, 64]", "horizon=100"),
                *("fast_batch_size=20", "meta_batch_size=7"),
            ),
            marks=slow,
        ),
    ],
    ids=["two_steps", "dice", "few_tasks", "ant", "original", "choices", "lander", "large"],
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
    run(HERE, *settings, "seed=2", "--run-dir", "run")
    assert checkpoints(Path("run"))["iteration_000001.h5"] != expected["iteration_000001.h5"]
