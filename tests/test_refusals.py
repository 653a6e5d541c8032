"""What cannot be used is said in one sentence, and a run without a signal stays where it is."""

import time
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, SMALL, checkpoints, run

from hpc_maml import open_run
from hpc_maml.errors import InputError, reason_of
from hpc_maml.sampling.advantages import task_advantages

MODULES = {
    "syntax": (
        "class Env:\n    def (:\n",
        "SyntaxError: invalid syntax (broken_syntax.py, line 2)",
    ),
    "raises": ("x = {}\ny = x['missing']\n", "broken_raises.py, line 2"),
    "constructor": (
        "import gymnasium\nclass Env(gymnasium.Env):\n    def __init__(self, **_):\n"
        "        raise KeyError('map')\n",
        "broken_constructor.py, line 4",
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_code_of_the_user_that_fails_is_named_with_its_line(kind):
    text, place = MODULES[kind]
    Path(f"broken_{kind}.py").write_text(text)
    error = run(None, *SMALL, f"env.name=broken_{kind}:Env", code=BAD_INPUT).stderr
    assert error.count("\n") == 1
    assert place in error
    assert not Path("runs").exists()


def test_a_keyword_that_an_environment_does_not_know():
    words = ("env.name=FrozenLake-v1", "env.kwargs={map_name: nowhere, task_ranges: {x: [0, 1]}}")
    error = run(HERE, *SMALL, *words, code=BAD_INPUT).stderr
    assert "The environment cannot be made: KeyError: 'nowhere', raised in " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "word",
    [
        'seed=!!int ""',
        "seed=!!map [1]",
        "seed=!!set [1]",
        "seed=!!timestamp x",
        f"seed=0x{5000 * 'f'}",
        "env.kwargs={<<: {a: 1}}",
        "env.kwargs={[1]: 2}",
        f"env.name={400_000 * 'x'}",
        f"{400_000 * 'x'}=1",
        f"policy.hidden_sizes={100_000 * '['}",
        f"env.kwargs={{{', '.join(f'a{n}: 1' for n in range(2000))}, a7: 1}}",
        f"env.kwargs={{a: [{100_000 * '1,'}]}}",
    ],
)
def test_words_that_are_no_values(word):
    began = time.process_time()
    error = run(HERE, word, code=BAD_INPUT).stderr
    assert time.process_time() - began < 1
    assert error.count("\n") == 1
    assert len(error) < 1200


def test_a_refused_run_folder_keeps_its_configuration(copied):
    """Words may change neutral keys, but not in a run that does not go on."""
    before = (copied / "config.yaml").read_bytes()
    (copied / "rollouts").rename("elsewhere")
    (copied / "rollouts").write_text("mine")
    error = run(HERE, "--run-dir", copied, "num_iterations=9", code=BAD_INPUT).stderr
    assert f"The archive {copied}/rollouts cannot be used: File exists." in error
    assert (copied / "config.yaml").read_bytes() == before


def test_a_reason_is_never_none():
    assert reason_of(OSError("unable to lock file")) == "unable to lock file"
    assert reason_of(OSError(2, "No such file")) == "No such file"
    assert reason_of(OSError()) == "OSError"
    assert len(str(InputError(10**6 * "x"))) < 1100


def test_advantages_of_constant_rewards_are_zero():
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((50, 4, 3)).astype(np.float32)
    lengths = np.full(4, 50)
    for rewards in (np.full((50, 4), 0.1), np.repeat(rng.standard_normal((50, 1)), 4, 1)):
        found = task_advantages(observations, rewards, lengths, 0.99, 1.0)
        assert found.dtype == np.float32
        assert not found.any()
    assert task_advantages(observations, rewards, lengths - [0, 1, 0, 0], 0.99, 1.0).any()
    rewards[7, 2] += 1e-3
    assert task_advantages(observations, rewards, lengths, 0.99, 1.0).any()


@pytest.mark.parametrize("name", ["maml_trpo", "promp", "pretrain", "rl2"])
def test_a_run_without_a_signal_says_so_and_stays(name):
    small = [word for word in SMALL if name != "rl2" or not word.startswith("policy.")]
    # too few steps for an episode to reach the goal, and to be shorter than others
    words = (*small, "env.name=conformance_parts:Constant", f"algorithm.name={name}", "horizon=5")
    said = run(HERE, *words, "num_iterations=2", "--run-dir", "run").stdout
    reason = "UPDATE REJECTED: no signal: in every task all episodes have the same rewards"
    assert said.count(reason) == 2
    found = open_run("run")
    assert found.columns["accepted"].tolist() == [0, 0]
    one, two = (found.checkpoint(k).parameters for k in (1, 2))
    assert all(np.array_equal(one[each], two[each]) for each in one)
    assert len(checkpoints(Path("run"))) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("note: !!binary AAAA", "could not determine a constructor for the tag"),
        ("1: a", "holds other things than texts and numbers"),
        ("note: {1: a}", "holds other things than texts and numbers"),
    ],
)
def test_a_configuration_of_other_things_than_texts_and_numbers(line, said, copied):
    file = copied / "config.yaml"
    file.write_text(f"{file.read_text()}{line}\n")
    for words in (("inspect", copied), ("report", copied, "-o", "out")):
        error = run(HERE, *words, code=BAD_INPUT).stderr
        assert said in error
        assert str(file) in error
        assert error.count("\n") == 1
