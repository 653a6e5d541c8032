"""The files in configs/: each resolves to its experiment, holds little, and runs."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from conftest import HAS_METAWORLD, ROOT
from mpi4py import MPI

from hpc_maml.config import load_config, resolve
from hpc_maml.config_page import config_text
from hpc_maml.envs import ENVIRONMENTS

FILES = sorted((ROOT / "configs").glob("*.yaml"))
ROBOTS = ("half_cheetah_vel", "half_cheetah_dir", "ant_vel", "ant_dir", "ant_goal")
LINEAGES = ("pytorch", "original")
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_file_of_maml = pytest.mark.parametrize(
    "file",
    [file for file in FILES if not (file.stem.endswith("_rl2") or "metaworld" in file.stem)],
    ids=lambda file: file.stem,
)

TANH, RELU = ([64, 64], "tanh"), ([100, 100], "relu")
# iterations, tasks, horizon, fast_lr, network, env.name, env.kwargs
EXPECTED = {
    "navigation": (100, 10, 100, 0.1, TANH, "navigation", {}),
    "navigation_pytorch": (100, 20, 100, 0.1, TANH, "navigation", {"lineage": "pytorch"}),
    "navigation_original": (100, 20, 100, 0.5, RELU, "navigation", {"lineage": "original"}),
    "bandit": (100, 40, 10, 1.0, TANH, "bandit", {"arms": 5, "rewards": "bernoulli"}),
    "bandit_gaussian": (100, 40, 10, 1.0, TANH, "bandit", {"arms": 5, "rewards": "gaussian"}),
    "tabular_mdp": (100, 40, 10, 1.0, TANH, "tabular_mdp", {}),
    "lander": (300, 40, 300, 0.1, TANH, "lander", {"continuous": True}),
    "lander_discrete": (300, 40, 300, 0.1, TANH, "lander", {"continuous": False}),
    "pendulum": (200, 20, 200, 0.1, TANH, "Pendulum-v1", {"task_ranges": {"g": [5.0, 15.0]}}),
}
for name in ROBOTS:
    EXPECTED |= {
        name: (500, 40, 100, 0.1, TANH, name, {}),
        f"{name}_pytorch": (500, 40, 100, 0.1, TANH, name, {"lineage": "pytorch"}),
        f"{name}_original": (800, 40, 200, 0.1, RELU, name, {"lineage": "original"}),
    }
# iterations, tasks, trials of a task, steps of an episode, episodes of a trial, hidden units
EXPECTED_OF_RL2 = {
    "bandit_rl2": (300, 100, 10, 10, 1, 64),
    "tabular_mdp_rl2": (500, 200, 4, 10, 10, 128),
}
# iterations, tasks, episodes of a task, tasks of a meta-test, env.name, env.kwargs
EXPECTED_OF_METAWORLD = {
    "metaworld_ml1_reach": (100, 20, 10, 40, "metaworld_ml1", {"task": "reach"}),
    "metaworld_ml1_push": (100, 20, 10, 40, "metaworld_ml1", {"task": "push"}),
    "metaworld_ml1_pick_place": (100, 20, 10, 40, "metaworld_ml1", {"task": "pick-place"}),
    "metaworld_ml10": (100, 20, 10, 200, "metaworld_ml10", {}),
    "metaworld_ml45": (200, 45, 20, 200, "metaworld_ml45", {}),
}


def test_every_environment_and_lineage_has_a_config():
    known = set(EXPECTED) | set(EXPECTED_OF_RL2) | set(EXPECTED_OF_METAWORLD)
    assert {file.stem for file in FILES} == known
    assert {load_config(file).env.name for file in FILES} >= set(ENVIRONMENTS)


@pytest.mark.parametrize("name", EXPECTED_OF_METAWORLD)
def test_resolves_to_its_experiment_of_metaworld(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert EXPECTED_OF_METAWORLD[name] == (
        config.num_iterations,
        config.meta_batch_size,
        config.fast_batch_size,
        config.evaluation.tasks,
        config.env.name,
        config.env.kwargs,
    )
    assert (config.horizon, config.algorithm.fast_lr, config.algorithm.max_kl) == (500, 0.1, 0.01)
    assert (config.policy.hidden_sizes, config.policy.activation) == ([128, 128], "tanh")
    assert (config.evaluation.updates, config.evaluation.last_actions) == (1, "mean")


@pytest.mark.parametrize("name", EXPECTED_OF_RL2)
def test_resolves_to_its_experiment_of_rl2(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert EXPECTED_OF_RL2[name] == (
        config.num_iterations,
        config.meta_batch_size,
        config.fast_batch_size,
        config.horizon,
        config.algorithm.episodes_per_trial,
        config.policy.hidden_size,
    )
    assert (config.env.name, config.algorithm.name, config.policy.name) == (
        name.removesuffix("_rl2"),
        "rl2",
        "gru",
    )


@each_file_of_maml
def test_resolves_to_its_experiment(file):
    config = load_config(file)
    assert EXPECTED[file.stem] == (
        config.num_iterations,
        config.meta_batch_size,
        config.horizon,
        config.algorithm.fast_lr,
        (config.policy.hidden_sizes, config.policy.activation),
        config.env.name,
        config.env.kwargs,
    )


def test_what_environments_and_files_declare_of_the_outer_step():
    for name, expected in {
        "navigation": (0.03, "none", 2, "lvc"),
        "navigation_original": (0.003, "none", 2, "lvc"),
        "ant_vel_original": (0.03, "none", 2, "reinforce"),
        "half_cheetah_dir": (0.03, "kronecker", 4, "reinforce"),
    }.items():
        found = load_config(ROOT / "configs" / f"{name}.yaml").algorithm
        keys = ("max_kl", "cg_preconditioner", "cg_iters", "inner_loss")
        assert tuple(getattr(found, key) for key in keys) == expected


@each_file_of_maml
def test_the_other_keys_have_their_defaults(file):
    config, default = load_config(file).model_dump(), load_config(None).model_dump()
    for section, key in (
        ("algorithm", "fast_lr"),
        ("policy", "hidden_sizes"),
        ("policy", "activation"),
    ):
        del config[section][key], default[section][key]
    for key in ("max_kl", "cg_preconditioner", "cg_iters", "inner_loss"):
        del config["algorithm"][key], default["algorithm"][key]
    for key in ("num_iterations", "meta_batch_size", "horizon", "env"):
        del config[key], default[key]
    assert config == default


@each_file
def test_holds_only_what_differs_from_the_defaults(file):
    text = file.read_text()
    assert text.startswith("# ")
    given = yaml.safe_load(text)
    words = [f"env.name={given['env']['name']}"]
    if "lineage" in given["env"].get("kwargs", {}):
        words.append(f"env.kwargs.lineage={given['env']['kwargs']['lineage']}")
    implied, found = load_config(None, words), load_config(file)
    for key in given:
        assert key == "env" or getattr(found, key) != getattr(implied, key), key


@each_file
def test_is_named_after_its_environment_and_lineage(file):
    env = load_config(file).env
    assert file.stem.startswith(env.name.partition("-")[0].lower())
    lineage = file.stem.rpartition("_")[2]
    assert env.kwargs.get("lineage") == (lineage if lineage in LINEAGES else None)


@each_file
def test_its_page_loads_back_equal(file):
    Path("page.yaml").write_text(config_text(file))
    assert load_config("page.yaml") == load_config(file)


def test_where_values_come_from():
    file = ROOT / "configs" / "navigation_original.yaml"
    assert resolve(file).sources == {
        "horizon": "lineage original",
        "policy.hidden_sizes": "lineage original",
        "policy.activation": "lineage original",
        "algorithm.fast_lr": "lineage original",
        "algorithm.max_kl": f"file {file}",
        "num_iterations": f"file {file}",
        "env.name": f"file {file}",
        "env.kwargs": f"file {file}",
    }


@each_file
def test_runs(file):
    from hpc_maml.run.job import DONE
    from hpc_maml.run.training import Training
    from hpc_maml.stopping import StopSignal

    if file.stem.startswith("lander") and sys.version_info >= (3, 14):
        pytest.skip("no wheel of Box2D")
    tasks = 2
    words = ["num_iterations=2", "fast_batch_size=3", "device=cpu"]
    if file.stem.startswith("metaworld"):
        if not HAS_METAWORLD:
            pytest.skip("Meta-World is not installed")
        tasks = {"ml10": 10, "ml45": 45}.get(file.stem.partition("_")[2], 2)
        words.append("horizon=20")
    words.append(f"meta_batch_size={tasks}")
    run = Training(MPI.COMM_SELF, lambda: load_config(file, words), Path("run"), StopSignal())
    assert run.train() == DONE
    with h5py.File("run/metrics.h5") as metrics:
        for phase in ("pre_update", "post_update"):
            returns = metrics[f"tasks/{phase}_return"][()]
            assert returns.shape == (2, tasks)
            assert np.isfinite(returns).all()
