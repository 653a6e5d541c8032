"""Success of episodes, from an environment's infos to metrics, meta-tests and reports."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from conftest import HERE, checkpoints, run
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hpc_maml import open_run
from hpc_maml.envs import make
from hpc_maml.envs.own_tasks import success_of
from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import MetaTest, read, save

SETTINGS = (
    "env.name=test_success:Guess",
    "meta_batch_size=4",
    "fast_batch_size=5",
    "horizon=6",
    "num_iterations=3",
    "policy.hidden_sizes=[4]",
    "mpi.wait_limit=60",
    "device=cpu",
    "archive.rollouts=every",
)


class Guess(gymnasium.Env):
    """An action above the task's number succeeds; tasks of meta-tests are beyond 10."""

    reports_success = True

    def __init__(self):
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-9.0, 9.0, (1,), np.float32)

    def sample_tasks(self, rng, n):
        return rng.uniform(0.0, 1.0, n)

    def sample_test_tasks(self, rng, n):
        return rng.uniform(-11.0, -10.0, n)

    def set_task(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        succeeds = bool(action[0] > self.task)
        return np.zeros(1, np.float32), float(action[0]), False, False, {"success": succeeds}


class ManyGuesses(SyncVectorEnv):
    """The same as a vector environment, of the given autoreset."""

    reports_success = True

    def __init__(self, num_envs, mode):
        def limited():
            return gymnasium.wrappers.TimeLimit(Guess(), 3)

        super().__init__([limited] * num_envs, autoreset_mode=AutoresetMode(mode))

    def sample_tasks(self, rng, n):
        return rng.uniform(0.0, 1.0, n)

    def set_task(self, task):
        for env in self.envs:
            env.unwrapped.set_task(task)


@pytest.fixture(scope="module")
def guessed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guessed") / "run"
    words = ("evaluation.every=3", "evaluation.tasks=3", "evaluation.updates=1")
    run(HERE, *SETTINGS, *words, "metrics.tensorboard=on", "--run-dir", str(folder))
    return folder


def test_an_episode_succeeds_at_any_step(guessed):
    data = open_run(guessed)
    for (iteration, task), rollout in data.rollouts.items():
        succeeded = (rollout.actions[..., 0] > rollout.task[0]).any(1)  # [phase, episode]
        found = data.per_task["success_after_updates"][iteration - 1, task]
        assert np.array_equal(found, succeeded.mean(1))
        assert np.array_equal(rollout.success, succeeded)
    shares = data.per_task["success_after_updates"]
    assert 0 < shares.mean() < 1
    assert np.array_equal(data.per_task["pre_update_success"], shares[..., 0])
    assert np.array_equal(data.per_task["post_update_success"], shares[..., -1])
    np.testing.assert_allclose(data.columns["post_update_success_mean"], shares[..., -1].mean(1))
    assert data.units["post_update_success_mean"] == "1"


def test_meta_tests_are_on_the_tasks_that_the_environment_has_for_them(guessed):
    for test in open_run(guessed).evaluations:
        assert ((test.tasks >= -11) & (test.tasks <= -10)).all()
        assert (test.success["run"] == 1).all()  # every action is above


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_same_on_any_ranks_and_after_a_restart(ranks, guessed):
    run(ranks, *SETTINGS, "num_iterations=2", "--run-dir", "run")
    run(ranks, *SETTINGS, "--run-dir", "run")
    assert checkpoints("run") == checkpoints(guessed)
    expected = open_run(guessed).per_task
    for name, values in open_run("run").per_task.items():
        assert np.array_equal(values, expected[name])


def test_evaluate_shows_it_with_confidence(guessed):
    words = ("--tasks", "3", "--updates", "1", "--json", "t", "--trust")
    table = run(HERE, "evaluate", str(guessed), *words)
    assert "successful episodes\n" in table.stdout
    assert "100.0 ± 0.0 %" in table.stdout
    rows = {row["name"]: row for row in json.loads(Path("t").read_text())}
    assert rows["success_after_1_updates"] == {
        "name": "success_after_1_updates",
        "value": 1.0,
        "unit": "1",
        "confidence_95": 0.0,
    }
    assert "random_success_after_0_updates" in rows


@pytest.mark.usefixtures("few_files")
def test_it_is_in_console_tensorboard_and_report(guessed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = run(HERE, *SETTINGS, "num_iterations=1", "--run-dir", "run").stdout
    assert "success " in said
    events = EventAccumulator(str(guessed / "tensorboard")).Reload()
    found = [event.value for event in events.Scalars("success/post_update_success_mean")]
    expected = open_run(guessed).columns["post_update_success_mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "success/post_update_success" in events.Tags()["histograms"]
    tests = events.Scalars("meta_test/success_after_1_updates")
    assert [(test.step, test.value) for test in tests] == [(0, 1.0), (3, 1.0)]
    run(HERE, "report", str(guessed), "-o", "report")
    assert Path("report/success.svg").exists()
    assert "success, after adaptation" in Path("report/report.html").read_text()
    with Path("report/success.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["policy"] == "run"]
    assert {row["success_mean"] for row in rows} == {"1.0"}


@pytest.mark.usefixtures("few_files")
def test_without_success_there_is_no_word_of_it(trained):
    with h5py.File(trained / "metrics.h5") as file:
        names = [*file["iterations"], *file["tasks"]]
    assert not [name for name in names if "success" in name]
    run(HERE, "report", str(trained), "-o", "report")
    assert not list(Path("report").glob("success*"))
    assert "success" not in Path("report/report.html").read_text()
    assert "success" not in run(HERE, "evaluate", str(trained), "--tasks", "2").stdout


@pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])
def test_vector_environments_of_any_autoreset(mode):
    env = make(
        "test_success:ManyGuesses",
        num_tasks=2,
        episodes_per_task=3,
        mode=mode,
    )
    env.set_tasks(np.array([[0.0], [1.0]]))
    env.reset(seed=1)
    actions = np.array([[-1.0], [0.5], [2.0]] * 2, np.float32)
    for step in range(3):
        *_, truncated, infos = env.step(actions)
        assert infos["success"].tolist() == [False, True, True, False, False, True]
        assert truncated.all() == (step == 2)


def test_success_of_an_episode_that_was_reset_stands_apart():
    infos = {"success": np.array([True, True]), "final_info": {"success": np.array([False, True])}}
    assert success_of(infos, np.array([True, False])).tolist() == [False, True]
    assert success_of({}, np.array([True, False])).tolist() == [False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("one",)}, "its tasks are of other classes"),
        ({"success": {"random": np.ones((2, 1))}}, "it has no success of run"),
        (
            {"success": {"run": np.ones((3, 1))}},
            "success of run does not have a value for each task",
        ),
    ],
)
def test_a_meta_test_whose_success_does_not_fit_is_damaged(changes, words):
    test = MetaTest(1, "updates", np.array([[0.0], [1.0]]), {"run": np.ones((2, 1))}, {})
    path = Path("evaluations/iteration_000001_tasks_2_updates_1.h5")
    save(path, replace(test, classes=("one", "two"), success={"run": np.ones((2, 1))}))
    assert set(read(path).by_class()) == {"one", "two"}
    save(path, replace(test, **changes))
    with pytest.raises(InputError, match=words):
        read(path)


def test_the_last_phase_of_a_meta_test_may_be_played_with_the_mean_action(guessed):
    words = ("evaluation.every=3", "evaluation.tasks=3", "evaluation.updates=1")
    run(HERE, *SETTINGS, *words, "evaluation.last_actions=mean", "--run-dir", "run")
    assert checkpoints("run") == checkpoints(guessed)  # meta-tests change nothing
    sampled, mean = open_run(guessed).evaluations, open_run("run").evaluations
    assert "the last with the mean action" in mean[0].how
    for one, other in zip(sampled, mean, strict=True):
        assert np.array_equal(one.returns["run"][:, 0], other.returns["run"][:, 0])
        assert (one.returns["run"][:, 1] != other.returns["run"][:, 1]).all()


def test_the_best_meta_test_is_that_of_most_success_and_then_of_the_highest_return():
    def rank(returns, success):
        table = {"run": np.array(success)[:, None]} if success else {}
        return MetaTest(1, "updates", np.zeros((2, 1)), {"run": returns}, {}, success=table).rank

    low, high = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    assert rank(low, [1.0, 0.5]) > rank(high, [0.5, 0.5])
    assert rank(high, [0.5, 0.5]) > rank(low, [0.5, 0.5])
    assert rank(high, None) > rank(low, None)
