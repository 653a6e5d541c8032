"""Meta-tests: what they say, that training is the same with and without, and what is kept."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, SMALL, checkpoints, run, train_each

from hpc_maml import open_run
from hpc_maml.config import load_config
from hpc_maml.envs import make
from hpc_maml.errors import InputError
from hpc_maml.parts import make_algorithm, make_env
from hpc_maml.roles import principal
from hpc_maml.run.job import STOPPED_EARLY
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


def test_a_result_that_could_not_be_kept_is_not_computed(runs):
    shutil.copytree(runs / "untested", "copy")
    Path("copy/evaluations").write_text("")
    refused = run(HERE, "evaluate", "copy", code=BAD_INPUT)
    assert "copy/evaluations cannot be written: Not a directory." in refused.stderr
    assert "evaluate" not in Path("copy/log.txt").read_text()


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


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Return a run of which the checkpoints of every second iteration and the best are kept."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    words = ("checkpoint.keep=1", "checkpoint.keep_every=2", "checkpoint.every=9")
    words += ("evaluation.every=1", "evaluation.tasks=4", "evaluation.updates=1")
    run(HERE, *SMALL, *words, "--run-dir", folder)
    return folder


def test_the_best_and_every_second_checkpoint_are_kept(kept):
    data = open_run(kept)
    scores = {test.iteration: test.returns["run"][:, -1].mean() for test in data.evaluations}
    assert len(scores) == 6
    best = max(range(1, 6), key=scores.__getitem__)
    before = max(range(1, 5), key=scores.__getitem__)  # 5 is tested after its checkpoint
    assert data.checkpoints == sorted({2, 4, 5, before})
    assert data.policy("best").iteration == best
    assert data.policy(2).iteration == 2
    assert data.policy().iteration == 5


def test_without_keep_best_only_the_last_is_kept():
    words = ("checkpoint.keep=1", "checkpoint.keep_best=false", *EVALUATION)
    run(HERE, *SMALL, *words, "--run-dir", "run")
    assert open_run("run").checkpoints == [5]
    assert len(open_run("run").evaluations) == 3


def test_a_chosen_checkpoint_is_tested(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "copied")
    scheduled = {test.iteration: test for test in open_run(folder).evaluations}
    for which in (2, "best"):
        iteration = open_run(folder).policy(which).iteration
        run(HERE, "evaluate", folder, "--checkpoint", str(which))
        tests = [each for each in open_run(folder).evaluations if "random" in each.returns]
        assert iteration in [each.iteration for each in tests]
        for each in tests:
            expected = scheduled[each.iteration].returns["run"]
            np.testing.assert_array_equal(each.returns["run"], expected)
    there = ", ".join(map(str, open_run(folder).checkpoints))
    sentence = f"no checkpoint of iteration 99; there is {there}"
    assert sentence in refused(folder, "--checkpoint", "99")
    assert "must be last, best" in refused(folder, "--checkpoint", "newest")


def test_no_checkpoint_is_the_best_before_any_is_tested(runs):
    with pytest.raises(InputError, match=r"No checkpoint of the run in .* has been tested"):
        open_run(runs / "pretrained").policy("best")


def test_step_sizes_one_by_one(runs):
    words = ("--tasks", "3", "--step-sizes", "0.1", "0.05", "0.0125")
    out = run(HERE, "evaluate", runs / "untested", *words).stdout
    assert "step sizes 0.1, 0.05, 0.0125" in out
    run(HERE, "evaluate", runs / "untested", "--tasks", "3", "--updates", "3")
    one, other = (
        test.returns["run"]
        for test in open_run(runs / "untested").evaluations
        if len(test.tasks) == 3
    )
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert not np.array_equal(one[:, 3], other[:, 3])
    for sizes, sentence in (
        (["halved", "0.1"], "Step sizes are halved, constant, or numbers."),
        (["0.1", "-0.1"], "must be 'halved' or 'constant' or greater than 0"),
        (["0.1", "--updates", "2"], "There are 2 updates, but 1 step sizes."),
        (["quartered"], "must be halved, constant, or numbers"),
    ):
        assert sentence in refused(runs / "untested", "--step-sizes", *sizes)
    with pytest.raises(InputError, match="it has 2 step_sizes for 3 updates"):
        load_config(None, ["evaluation.step_sizes=[0.1, 0.2]"])


def test_baselines_of_another_kind_of_phases(runs):
    words = ("algorithm.name=rl2", "policy.hidden_size=8", "algorithm.episodes_per_trial=2")
    without = [word for word in SMALL if not word.startswith("policy")]
    run(HERE, *without, *words, "--run-dir", "rl2")
    words = ("--tasks", "4", "--updates", "2", "--json", "t.json")
    several = ("--baseline", "rl2", runs / "pretrained")
    out = run(2, "evaluate", runs / "untested", *words, *several).stdout
    assert "baseline rl2 (episodes 1, 2, ...)" in out
    names = {row["name"] for row in json.loads(Path("t.json").read_text())}
    assert {"baseline_rl2_return_episode_2", "baseline_pretrained_return_after_2_updates"} <= names
    run(HERE, "evaluate", "rl2", "--tasks", "4")
    (alone,) = open_run("rl2").evaluations
    (beside,) = [each for each in open_run(runs / "untested").evaluations if len(each.returns) == 4]
    assert beside.phase_of("baseline rl2") == "episode"
    assert beside.phase_of("run") == beside.phase_of("baseline pretrained") == "updates"
    np.testing.assert_array_equal(beside.returns["baseline rl2"], alone.returns["run"])


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
    said = run(HERE, "report", "run", "-o", "out").stdout
    assert f"{path} is damaged: " in said
    assert "It is left out." in said
    said = run(HERE, "--run-dir", "run", "num_iterations=2").stdout
    assert "It is kept as iteration_000002_tasks_5_updates_2.h5.damaged." in said
    assert [test.iteration for test in open_run("run").evaluations] == [0, 2]  # made again


def test_many_step_sizes_have_a_short_name():
    sizes = [0.1 * 0.9**step for step in range(30)]
    words = (f"evaluation.updates={len(sizes)}", f"evaluation.step_sizes={sizes}")
    words = (*SMALL, "evaluation.every=1", "evaluation.tasks=2", *words, "num_iterations=1")
    run(HERE, *words, "--run-dir", "run")
    kept = sorted(path.name for path in Path("run/evaluations").iterdir())
    assert [test.iteration for test in open_run("run").evaluations] == [0, 1]
    options = ("--tasks", "2", "--updates", "30", "--step-sizes", *map(str, sizes))
    run(HERE, "evaluate", "run", *options)
    assert kept == sorted(path.name for path in Path("run/evaluations").iterdir())
    run(HERE, "evaluate", "run", *options[:-1], "0.5")
    assert len(list(Path("run/evaluations").iterdir())) == len(kept) + 1


def test_a_run_that_stops_before_its_last_meta_test_is_not_done(monkeypatch):
    words = (*SMALL, *EVALUATION, "num_iterations=2", "metrics.tensorboard=on", "--run-dir", "run")
    summarise = principal.summarise
    stopped = []

    def stop_in_the_last_iteration(*parts):
        if (Path("run/metrics.h5")).exists() and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGTERM))
        return summarise(*parts)

    monkeypatch.setattr(principal, "summarise", stop_in_the_last_iteration)
    said = run(HERE, *words, code=STOPPED_EARLY).stdout
    assert "stopped early after 2 iterations" in said
    assert [test.iteration for test in open_run("run").evaluations] == [0]
    before = {path.name for path in Path("run/tensorboard").iterdir()}
    assert "done: 2 iterations" in run(HERE, "--run-dir", "run").stdout
    assert [test.iteration for test in open_run("run").evaluations] == [0, 2]
    assert {path.name for path in Path("run/tensorboard").iterdir()} - before


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
