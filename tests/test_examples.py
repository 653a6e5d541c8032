"""The worked examples of the documentation: short, shown as they are, and seen to train."""

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run

from hpc_maml import open_run

EXAMPLES = {
    "own_algorithm": ("algorithm.name=own_algorithm:Reptile", "algorithm.outer_lr=0.5"),
    "own_network": ("policy.name=own_network:ResidualNetwork", "policy.kwargs={width: 16}"),
}
ITERATIONS = {"own_algorithm": 10, "own_network": 3}
SMALL = ("meta_batch_size=3", "fast_batch_size=10", "device=cpu", "metrics.tensorboard=off")


def code(name: str) -> str:
    return (ROOT / "docs" / "examples" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_shows_the_example_which_is_short(name):
    assert len(code(name).splitlines()) < 60
    assert f"```python\n{code(name)}```" in (ROOT / "docs" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns_alike_on_any_ranks(name, tmp_path):
    words = (*EXAMPLES[name], *SMALL, f"num_iterations={ITERATIONS[name]}", "horizon=40")
    states = []
    for ranks in (None, 2):
        folder = tmp_path / f"ranks_{ranks}"
        run(ranks, *words, "--run-dir", folder, PYTHONPATH=str(Path(ROOT, "docs", "examples")))
        states.append(open_run(folder).checkpoint(ITERATIONS[name]).parameters)
    for values, others in zip(states[0].values(), states[1].values(), strict=True):
        np.testing.assert_array_equal(values, others)
    returns = open_run(folder).metrics["post_update_return_mean"]
    assert returns.iloc[-1] > returns.iloc[0]
