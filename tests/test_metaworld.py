"""Meta-World against the package itself: physics, observations, rewards, goals; and in runs."""

import csv
import gc
import importlib.metadata
import json
import re
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from conftest import BAD_INPUT, HAS_METAWORLD, HERE, checkpoints, run, train_each

from hpc_maml import open_run
from hpc_maml.envs import make, metaworld_package
from hpc_maml.envs.metaworld import GOALS, STATE
from hpc_maml.envs.metaworld_objects import OBJECTS
from hpc_maml.envs.metaworld_rewards import REWARDS

needs_metaworld = pytest.mark.skipif(not HAS_METAWORLD, reason="Meta-World is not installed")
# One of every way in which a class may differ: views of data kept by the reset, attributes of an
# episode, quaternions of bodies, sites and geoms, two objects.
DIFFERENT = ("basketball", "bin-picking", "dial-turn", "faucet-open", "lever-pull", "soccer")
DIFFERENT += ("peg-insert-side", "stick-pull", "door-close", "coffee-button", "reach")
SMALL = (
    "env.name=metaworld_ml10",
    "meta_batch_size=10",
    "fast_batch_size=3",
    "horizon=12",
    "num_iterations=2",
    "policy.hidden_sizes=[8, 8]",
    "mpi.wait_limit=60",
    "device=cpu",
    "metrics.tensorboard=off",
    "evaluation.every=2",
    "evaluation.tasks=5",
)


def ml1(task, num_tasks=1, episodes_per_task=1, **kwargs):
    return make(
        "metaworld_ml1",
        num_tasks=num_tasks,
        episodes_per_task=episodes_per_task,
        task=task,
        **kwargs,
    )


def scripted_actions(name, env, seen):
    """Return what the package's policy does, which sees the goal."""
    from metaworld.policies import ENV_POLICY_MAP

    seen = seen.copy()
    seen[36:] = env._target_pos
    return np.clip(ENV_POLICY_MAP[f"{name}-v3"]().get_action(seen), -1.0, 1.0)


def check_against_the_package(name, steps):
    """Step episodes, from scripted to random, beside the package's own environments."""
    env = ml1(name, num_tasks=2, episodes_per_task=2)
    tasks = env.sample_tasks(np.random.default_rng(0), 2)
    env.set_tasks(tasks)
    observations, _ = env.reset()
    references = [metaworld_package.started(name, task[1:])[0] for task in tasks for _ in range(2)]
    seen = np.array([each.reset()[0] for each in references])
    np.testing.assert_array_equal(observations, seen.astype(np.float32))
    rng = np.random.default_rng(1)
    for _ in range(steps):
        actions = np.array(
            [scripted_actions(name, *each) for each in zip(references, seen, strict=True)]
        )
        actions[1::2] += rng.normal(size=(2, 4))
        actions = actions.astype(np.float32).clip(-1, 1)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        assert not terminated.any()
        assert not truncated.any()
        for row, (reference, action) in enumerate(zip(references, actions, strict=True)):
            seen[row] = reference.step(action)[0]
            # The package computes in the type of the action; ours is float64 always.
            reward, info = reference.evaluate_state(seen[row], action.astype(np.float64))
            assert rewards[row] == pytest.approx(reward, rel=0, abs=1e-9)
            assert infos["success"][row] == info["success"]
            assert np.array_equal(env._of_classes[0].batch.qpos[row], reference.data.qpos)
        np.testing.assert_array_equal(observations, seen.astype(np.float32))


@needs_metaworld
@pytest.mark.parametrize("name", DIFFERENT)
def test_physics_observations_and_scores_are_those_of_the_package(name):
    check_against_the_package(name, 25)


@pytest.mark.slow
@needs_metaworld
@pytest.mark.parametrize("name", OBJECTS)
def test_every_class_is_that_of_the_package(name):
    check_against_the_package(name, 200)


@needs_metaworld
@pytest.mark.parametrize(
    "name",
    [
        name if index % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
        for index, name in enumerate(REWARDS)
    ],
)
def test_batched_rewards_are_those_of_the_package(name):
    episodes = 250
    env = ml1(name, episodes_per_task=episodes)
    env.reset(seed=3)
    own, rng = env._of_classes[0], np.random.default_rng(2)
    arm = 9  # joints, before those of the object
    positions = own.batch.bind("qpos")
    scale = rng.choice([0.001, 0.02, 0.1, 0.5], (episodes, 1))
    positions[:, :arm] += 0.3 * scale * rng.normal(size=(episodes, arm))
    positions[:, arm:] += scale * rng.normal(size=positions[:, arm:].shape)
    if positions.shape[1] == arm + 7:  # a free object: near the fingers, or near the target
        own.batch.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)
        near = own.batch.bind("site_xpos")[:, own.env.data.site("rightEndEffector").id]
        for rows, place in ((slice(0, 100), near[:100]), (slice(100, 180), own.env._target_pos)):
            noise = 0.02 * rng.normal(size=(rows.stop - rows.start, 3))
            positions[rows, arm : arm + 3] = place + noise
    own.batch.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)
    own._look()
    seen, actions = own.observations(), rng.uniform(-1, 1, (episodes, 4))
    rewards, successes = own.score(seen, actions)
    reference = own.env
    for row in range(episodes):
        mujoco.mj_setState(reference.model, reference.data, own.batch.state[row], STATE)
        mujoco.mj_forward(reference.model, reference.data)
        reward, info = reference.evaluate_state(seen[row], actions[row])
        assert rewards[row] == pytest.approx(reward, rel=0, abs=1e-9), row
        assert successes[row] == info["success"], row
    assert np.ptp(rewards) > 0.01  # the states are not all alike


@needs_metaworld
def test_a_scripted_policy_succeeds_in_the_benchmark():
    from benchmarks.against_metaworld import policies

    (row,) = policies(("drawer-close",), 2)
    assert row["success"] == row["episodes"] == 2


@pytest.mark.slow
@needs_metaworld
def test_scripted_policies_succeed():
    from benchmarks.against_metaworld import policies

    rows = policies(tuple(OBJECTS), 2)
    assert sum(row["success"] for row in rows) >= 0.95 * 2 * len(OBJECTS)


# goals and tasks


@needs_metaworld
def test_goals_come_from_our_streams_and_the_boxes_of_the_package():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    env, again = ml1("pick-place"), ml1("pick-place")
    rng = np.random.default_rng(0)
    training, test = (draw(rng, GOALS)[:, 1:] for draw in (env.sample_tasks, env.sample_test_tasks))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert len(np.unique(np.concatenate((training, test)), axis=0)) == 2 * GOALS
    space = metaworld_package.make("pick-place")._random_reset_space
    for goals in (training, test):
        assert ((goals >= space.low) & (goals <= space.high)).all()
        # what the package draws again
        assert (np.linalg.norm(goals[:, :2] - goals[:, 3:5], axis=1) >= 0.15).all()
    rest = np.sort(again.sample_test_tasks(np.random.default_rng(5), GOALS)[:, 1:], axis=0)
    assert np.array_equal(rest, np.sort(test, axis=0))
    other = ml1("pick-place", goal_seed=2).sample_tasks(rng, GOALS)[:, 1:]
    assert not np.isin(other[:, 0], (training[:, 0], test[:, 0])).any()


@needs_metaworld
def test_drawing_goals_without_physics_accepts_the_same_ones():
    for name in ("push", "basketball", "shelf-place", "peg-insert-side", "plate-slide"):
        streams = [[np.random.Generator(np.random.Philox(key)) for key in range(3)] for _ in "ab"]
        goals = metaworld_package.draw_goals(name, streams[0])
        env = metaworld_package.make(name)
        env._set_task_called = env.seeded_rand_vec = True
        env._freeze_rand_vec = False
        for goal, generator in zip(goals, streams[1], strict=True):
            env._np_random = generator
            env.reset_model()
            assert np.array_equal(env._last_rand_vec, goal)


@needs_metaworld
@pytest.mark.parametrize(
    ("name", "kwargs", "number"),
    [
        ("metaworld_ml1", {"task": "push"}, 20),
        pytest.param("metaworld_ml10", {}, 20, marks=pytest.mark.slow),  # the package is slow
    ],
)
def test_training_and_test_are_those_of_the_benchmark(name, kwargs, number):
    import metaworld

    env = make(name, num_tasks=1, episodes_per_task=1, **kwargs)
    reference = metaworld.ML10(seed=0) if name == "metaworld_ml10" else metaworld.ML1("push-v3")
    rng = np.random.default_rng(0)
    for draw, classes in (
        (env.sample_tasks, reference.train_classes),
        (env.sample_test_tasks, reference.test_classes),
    ):
        tasks = draw(rng, number)
        names = [env.classes[int(index)] for index in tasks[:, 0]]
        assert list(dict.fromkeys(names)) == [each.removesuffix("-v3") for each in classes]
        assert {names.count(each) for each in names} == {number // len(classes)}
        assert len(np.unique(tasks, axis=0)) == number
    if name == "metaworld_ml10":
        assert not set(reference.train_classes) & set(reference.test_classes)


@needs_metaworld
def test_nothing_but_the_task_decides_how_episodes_begin():
    env = ml1("push", episodes_per_task=2)
    first, other = env.sample_tasks(np.random.default_rng(1), 2)
    starts = []
    for task in (first, other, first):
        env.set_tasks(task[None])
        starts.append(env.reset()[0])
        for _ in range(5):
            env.step(np.ones((2, 4), np.float32))
        assert np.array_equal(env.reset()[0], starts[-1])
    assert np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])
    assert np.array_equal(starts[0][0], starts[0][1])
    assert np.array_equal(starts[0][:, :18], starts[0][:, 18:36])
    assert not starts[0][:, 36:].any()  # the goal is hidden


@needs_metaworld
def test_an_episode_is_as_long_as_the_horizon_and_then_rests():
    env = ml1("reach", horizon=3)
    env.reset(seed=1)
    ends = [bool(env.step(np.zeros((1, 4), np.float32))[3][0]) for _ in range(3)]
    assert ends == [False, False, True]
    observations, rewards, *_ = env.step(np.zeros((1, 4), np.float32))
    assert not observations.any()
    assert not rewards.any()


@needs_metaworld
@pytest.mark.parametrize(
    ("name", "value"), [("push", 1e12), ("bin-picking", 1e12), ("bin-picking", np.nan)]
)
def test_a_diverged_episode_ends_alone(name, value):
    env, undisturbed = (ml1(name, num_tasks=2, episodes_per_task=2) for _ in "ab")
    for each in (env, undisturbed):
        each.reset(seed=1)
    env._of_classes[0].batch.bind("qvel")[1] = value
    for step in range(3):
        observations, rewards, terminated, _, infos = env.step(np.zeros((4, 4), np.float32))
        expected = undisturbed.step(np.zeros((4, 4), np.float32))
        assert terminated.tolist() == [False, step == 0, False, False]
        assert ("diverged" in infos) == (step == 0)
        assert not observations[1].any()
        assert not rewards[1]
        assert not infos["success"][1]
        assert np.array_equal(observations[[0, 2, 3]], expected[0][[0, 2, 3]])
        assert np.array_equal(rewards[[0, 2, 3]], expected[1][[0, 2, 3]])


@needs_metaworld
def test_tasks_in_any_order_have_the_bits_that_each_has_alone():
    names = ("push", "bin-picking", "push", "dial-turn", "bin-picking", "push")
    together, *alone = (
        make("metaworld_ml45", num_tasks=number, episodes_per_task=2)
        for number in (len(names), *(1 for _ in names))
    )
    tasks = np.zeros((len(names), 7))
    for row, (name, seed) in enumerate(zip(names, (0, 1, 2, 3, 4, 0), strict=True)):
        task = ml1(name).sample_tasks(np.random.default_rng(seed), 1)[0]
        tasks[row, 0], tasks[row, 1:] = together.classes.index(name), task[1:]
    assert np.array_equal(tasks[0], tasks[5])
    together.set_tasks(tasks)
    for env, task in zip(alone, tasks, strict=True):
        env.set_tasks(task[None])
    rng, mask = np.random.default_rng(5), np.arange(12) % 3 == 0
    for step in range(12):
        if step in (0, 8):
            options = {"reset_mask": mask} if step else {}
            found, _ = together.reset(seed=1, options=options)
            for row, env in enumerate(alone):
                own = slice(2 * row, 2 * row + 2)
                options = {"reset_mask": mask[own]} if step else {}
                assert np.array_equal(env.reset(seed=1, options=options)[0], found[own])
        actions = rng.uniform(-1, 1, (12, 4)).astype(np.float32)
        *arrays, infos = together.step(actions)
        for row, env in enumerate(alone):
            own = slice(2 * row, 2 * row + 2)
            *expected, expected_infos = env.step(actions[own])
            for part, other in zip(arrays, expected, strict=True):
                assert np.array_equal(part[own], other)
            assert np.array_equal(infos["success"][own], expected_infos["success"])


# in runs


@pytest.fixture(scope="module")
def ml10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ml10") / "run"
    run(HERE, *SMALL, "--run-dir", str(folder))
    return folder


@needs_metaworld
def test_the_same_on_any_ranks_and_after_a_restart(ml10):
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "continued")
    folders = {Path("four"): (4, (*SMALL, "topology.agents=2"))}
    train_each(4, folders)
    run(HERE, *SMALL, "--run-dir", "continued")
    expected = open_run(ml10)
    for folder in (*folders, Path("continued")):
        assert checkpoints(folder) == checkpoints(ml10)
        found = open_run(folder)
        for name, values in expected.per_task.items():
            assert np.array_equal(found.per_task[name], values)
        tests = {path.name: path.read_bytes() for path in folder.glob("evaluations/*")}
        assert tests == {path.name: path.read_bytes() for path in ml10.glob("evaluations/*")}


@needs_metaworld
def test_training_sees_training_goals_only_and_meta_tests_test_goals(ml10):
    data = open_run(ml10)
    env = make("metaworld_ml10", num_tasks=1, episodes_per_task=1)
    rng = np.random.default_rng(0)
    all_training = {task.tobytes() for task in env.sample_tasks(rng, 10 * GOALS)}
    all_test = {task.tobytes() for task in env.sample_test_tasks(rng, 5 * GOALS)}
    assert not all_training & all_test
    assert {task.tobytes() for task in data.tasks.reshape(-1, 7)} <= all_training
    assert len(data.evaluations) == 2
    for test in data.evaluations:
        assert {task.tobytes() for task in test.tasks} <= all_test
        assert test.success["run"].shape == (5, 2)
        assert list(test.by_class()) == list(env._names[1])


@needs_metaworld
def test_success_has_a_column_for_each_class_of_training(ml10):
    data = open_run(ml10)
    classes = make("metaworld_ml10", num_tasks=1, episodes_per_task=1).training_classes
    assert [
        name.removeprefix("post_update_success_of_")
        for name in data.columns
        if name.startswith("post_update_success_of_")
    ] == list(classes)
    for index, name in enumerate(classes):
        own = data.tasks[..., 0] == index
        expected = (data.per_task["post_update_success"] * own).sum(1) / own.sum(1)
        np.testing.assert_allclose(data.columns[f"post_update_success_of_{name}"], expected)
    assert {"mujoco", "metaworld"} <= set(data.versions)


@needs_metaworld
def test_meta_tests_and_reports_have_it_by_class(ml10):
    test = open_run(ml10).evaluations[-1]
    table = run(HERE, "evaluate", str(ml10), "--json", "t.json", "--tasks", "5").stdout
    assert re.search(r"^drawer-open +\d+\.\d ± nan %", table, re.MULTILINE)  # one goal of each
    rows = {row["name"]: row["value"] for row in json.loads(Path("t.json").read_text())}
    run(HERE, "report", str(ml10), "-o", "report")
    assert Path("report/success.png").exists()
    with Path("report/success.csv").open() as file:
        found = {
            row["class"]: float(row["success_mean"])
            for row in csv.DictReader(file)
            if (row["iteration"], row["policy"], row["number"]) == ("2", "run", "1")
        }
    for name, own in test.by_class().items():
        expected = test.success["run"][own, -1].mean()
        assert rows[f"success_of_{name}"] == found[name] == expected
    assert found[""] == pytest.approx(test.success["run"][:, -1].mean())


# bad input


def test_without_the_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metaworld_package.importlib.metadata, "version", missing)
    metaworld_package.load.cache_clear()
    with pytest.raises(ValueError, match=r"not installed: pip install .*--no-deps metaworld==3"):
        ml1("reach")


def test_with_another_version_of_the_package(monkeypatch):
    monkeypatch.setattr(metaworld_package.importlib.metadata, "version", lambda name: "4.0.0")
    metaworld_package.load.cache_clear()
    with pytest.raises(ValueError, match=r"metaworld 4.0.0 is installed, but 3.1.1 is needed"):
        ml1("reach")


def test_on_the_mujoco_that_the_package_asks_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)
    monkeypatch.setattr(mujoco, "__version__", "3.3.0")
    for name in [name for name in sys.modules if name.startswith("hpc_maml.envs.metaworld")]:
        monkeypatch.delitem(sys.modules, name)
    result = run(HERE, "env.name=metaworld_ml1", code=BAD_INPUT)
    assert re.search(r"MuJoCo 3.3.0 is installed, but 4.0 or newer is needed", result.stderr)
    assert result.stderr.count("\n") == 1


def test_the_welds_on_any_mujoco():
    weld, joint = mujoco.mjtEq.mjEQ_WELD, mujoco.mjtEq.mjEQ_JOINT
    for columns in (11, 12):
        model = SimpleNamespace(eq_data=np.full((2, columns), 7.0), eq_type=np.array([weld, joint]))
        metaworld_package.reset_mocap_welds(SimpleNamespace(model=model))
        assert model.eq_data[0].tolist() == [0] * 6 + [-1, 0, 0, 0, 5] + [7.0] * (columns - 11)
        assert (model.eq_data[1] == 7).all()
    short = SimpleNamespace(eq_data=np.zeros((1, 7)), eq_type=np.array([weld]))
    with pytest.raises(ValueError, match="does not work on MuJoCo"):
        metaworld_package.reset_mocap_welds(SimpleNamespace(model=short))


@needs_metaworld
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("env.name=metaworld_ml1", "env.kwargs.task=pick-plaace"),
            r"Meta-World has no task 'pick-plaace' \(did you mean 'pick-place'\?\)",
        ),
        (("env.name=metaworld_ml1", "env.kwargs.goal_seed=-1"), "goal_seed must be an integer"),
        (
            ("env.name=metaworld_ml1", f"env.kwargs.goal_seed={2**64}"),
            r"goal_seed must be an integer from 0 to 2\^64 - 1",
        ),
        (("env.name=metaworld_ml1", "horizon=501"), "500 steps at most, not 501"),
        (
            ("env.name=metaworld_ml10", "meta_batch_size=15"),
            r"meta_batch_size is 15, which does not cover the 10 classes evenly: take a multiple",
        ),
        (
            ("env.name=metaworld_ml10", "evaluation.tasks=42"),
            r"evaluation.tasks is 42, which does not cover the 5 classes evenly",
        ),
        (
            ("env.name=metaworld_ml1", "evaluation.tasks=60"),
            r"evaluation.tasks is 60, but there are only 50 tasks, 50 goals of each class",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    result = run(HERE, *words, code=BAD_INPUT)
    assert re.search(sentence, result.stderr)
    assert result.stderr.count("\n") == 1
    assert not Path("runs").exists()


@needs_metaworld
def test_a_goal_that_is_refused_does_not_hang():
    env = ml1("push")
    with pytest.raises(ValueError, match="push refuses the goal"):
        env.set_tasks(np.array([[0.0, 0.0, 0.7, 0.02, 0.0, 0.75, 0.02]]))
    with pytest.raises(ValueError, match="there is no class 3"):
        env.set_tasks(np.array([[3.0, 0.0, 0.7, 0.02, 0.0, 0.9, 0.02]]))
    env = ml1("push")
    env.reset(seed=1)
    with pytest.raises(ValueError, match="actions hold NaN"):
        env.step(np.full((1, 4), np.nan, np.float32))


@needs_metaworld
def test_what_was_made_for_a_task_goes_with_it():
    env = ml1("push")
    tasks = env.sample_tasks(np.random.default_rng(0), 2)
    env.set_tasks(tasks[:1])
    own = env._of_classes[0]
    kept = [weakref.ref(each) for each in (own, own.env, own.batch)]
    del own
    gc.disable()  # 30 MB a task cannot wait until Python looks for cycles
    try:
        env.set_tasks(tasks[1:])
        assert [each() for each in kept] == [None] * 3
    finally:
        gc.enable()
