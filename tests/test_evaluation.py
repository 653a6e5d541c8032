"""Meta-tests: what they say, that training is the same with and without, and what is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, SMALL, checkpoints, run, train_each

from hpc_maml import open_run
from hpc_maml.config import load_config
from hpc_maml.envs import make
from hpc_maml.parts import make_algorithm, make_env
from hpc_maml.sampling.random_streams import Purpose, stream

EVALUATION = ("evaluation.every=2", "evaluation.tasks=5", "evaluation.updates=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with a run that tests itself, one that does not, and a pretrained policy."""
    top = tmp_path_factory.mktemp("runs")
    run(3, *SMALL, *EVALUATION, "--run-dir", str(top / "tested"))
    run(HERE, *SMALL, "--run-dir", str(top / "untested"))
    run(HERE, *SMALL, "algorithm.name=pretrain", "--run-dir", str(top / "pretrained"))
    return top


def test_training_is_the_same_with_meta_tests(runs):
    assert checkpoints(runs / "tested")
    assert checkpoints(runs / "tested") == checkpoints(runs / "untested")


def test_every_second_iteration_is_tested(runs):
    tests = open_run(runs / "tested").evaluations
    assert [each.iteration for each in tests] == [0, 2, 4]
    assert all(each.returns["run"].shape == (5, 3) for each in tests)
    assert all(np.array_equal(each.tasks, tests[0].tasks) for each in tests)
    assert not np.array_equal(tests[0].returns["run"], tests[1].returns["run"])


def test_the_same_meta_tests_on_any_ranks(runs):
    expected = {path.name: path.read_bytes() for path in runs.glob("tested/evaluations/*")}
    assert len(expected) == 3
    folders = {Path(f"run{ranks}"): (ranks, (*SMALL, *EVALUATION)) for ranks in (1, 2, 5)}
    train_each(5, folders)
    for folder in folders:
        found = {path.name: path.read_bytes() for path in folder.glob("evaluations/*")}
        assert found == expected


def test_the_policy_of_iteration_0_is_the_random_one(runs):
    run(HERE, "evaluate", str(runs / "tested"), "--tasks", "5", "--updates", "2")
    tests = open_run(runs / "tested").evaluations
    assert np.array_equal(tests[-1].returns["random"], tests[0].returns["run"])


def test_tasks_are_unseen(runs):
    data = open_run(runs / "tested")
    seen = {task.tobytes() for task in data.tasks.reshape(-1, 2)}
    assert not seen & {task.tobytes() for task in data.evaluations[0].tasks}


@pytest.mark.parametrize("ranks", [HERE, 4])
def test_evaluate_beside_a_baseline(ranks, runs):
    words = ("--tasks", "4", "--updates", "3", "--baseline", runs / "pretrained")
    table = run(ranks, "evaluate", runs / "untested", *words, "--json", "t.json").stdout
    found = json.loads(Path("t.json").read_text())
    policies = ("", "random_", "baseline_pretrained_")
    names = [f"{policy}return_after_{k}_updates" for k in range(4) for policy in policies]
    assert [row["name"] for row in found] == [*names, "optimal_return_with_the_goal_known"]
    for row in found:
        assert f"{row['value']:.2f} ± {row['confidence_95']:.2f}" in table
    (kept,) = open_run(runs / "untested").evaluations
    assert kept.iteration == 5
    assert list(kept.returns) == ["run", "random", "baseline pretrained"]
    assert kept.returns["run"].mean(0)[2] == found[6]["value"]
    assert kept.how == "step sizes 0.1, 0.05, 0.05"


def test_other_numbers_of_episodes_are_tests_of_their_own(runs):
    folder = runs / "pretrained"
    for words in ((), ("--episodes", "7"), ("--episodes", "7", "--step-sizes", "constant")):
        run(HERE, "evaluate", folder, "--tasks", "3", "--updates", "2", *words)
    tests = open_run(folder).evaluations
    assert len(tests) == len(list(folder.glob("evaluations/*"))) == 3
    seen = {test.returns["run"].tobytes() for test in tests}
    assert len(seen) == 3


def test_step_sizes():
    def words(*settings: str) -> tuple[str, list[float]]:
        config = load_config(None, ["algorithm.fast_lr=0.4", *settings])
        algorithm = make_algorithm(config, make_env(config, episodes=2))
        sizes = [algorithm.step_size({}, step, evaluation=True) for step in range(3)]
        assert algorithm.training_step_sizes({}) == [0.4]
        return algorithm.test_words(), sizes

    assert words("evaluation.step_sizes=constant") == ("step sizes 0.4, 0.4, 0.4", [0.4] * 3)
    assert words() == ("step sizes 0.4, 0.2, 0.2", [0.4, 0.2, 0.2])


def test_pretraining_has_no_adaptation(runs):
    data = open_run(runs / "pretrained")
    assert data.per_task["return_after_updates"].shape == (5, 6, 1)
    assert np.array_equal(
        data.metrics["pre_update_return_mean"], data.metrics.post_update_return_mean
    )
    assert len(data.rollouts[1, 0].observations) == 1
    assert data.metrics["kl_before"].abs().max() < 1e-6
    assert data.metrics["accepted"].all()


def refused(*words) -> str:
    result = run(HERE, "evaluate", *words, code=BAD_INPUT)
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_baseline_of_another_world(runs):
    words = ("num_iterations=1", "horizon=9", "policy.activation=relu")
    run(HERE, *SMALL, *words, "--run-dir", "other")
    sentence = "cannot be tested beside"
    assert sentence in (text := refused(runs / "tested", "--baseline", "other"))
    assert "they differ in horizon." in text


def test_two_baselines_of_one_name(runs):
    twice = ("--baseline", runs / "pretrained") * 2
    assert "Two baselines are called pretrained" in refused(runs / "tested", *twice)


def test_a_damaged_meta_test_is_found():
    run(HERE, *SMALL, *EVALUATION, "num_iterations=2", "--run-dir", "run")
    path = Path("run/evaluations/iteration_000002_tasks_5_updates_2.h5")
    path.write_bytes(path.read_bytes()[:500])
    result = run(HERE, "inspect", "run", code=1)
    assert "meta-tests  of iteration 0" in result.stdout
    assert f"{path} is damaged" in result.stderr


def test_a_missing_meta_test_is_made_up_for():
    run(HERE, *SMALL, *EVALUATION, "num_iterations=2", "--run-dir", "run")
    path = Path("run/evaluations/iteration_000002_tasks_5_updates_2.h5")
    content = path.read_bytes()
    path.unlink()
    run(HERE, "--run-dir", "run")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "kwargs", "names"),
    [
        ("navigation", {"lineage": "original"}, {"optimal return with the goal known"}),
        ("tabular_mdp", {}, {"optimal return with the process known"}),
        ("bandit", {}, {"UCB1", "Gittins index"}),
        ("bandit", {"horizon": 500}, {"UCB1"}),
        ("bandit", {"rewards": "gaussian"}, set()),
        ("half_cheetah_dir", {}, set()),
    ],
)
def test_the_best_play_that_is_known(name, kwargs, names):
    env = make(name, num_tasks=1, episodes_per_task=1, **kwargs)
    tasks = env.sample_tasks(stream(1, Purpose.EVALUATION_TASKS), 6)
    found = env.best_play(tasks, stream(1, Purpose.STRATEGIES))
    assert set(found) == names
    assert all(values.shape == (6,) for values in found.values())
