"""Environments against Gymnasium's own physics, numbers worked out by hand, and themselves."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from conftest import HAS_METAWORLD
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env
from mujoco.batch import SimulationError

from hpc_maml import envs

LOCOMOTION = [name for name in envs.ENVIRONMENTS if name.startswith(("half_cheetah", "ant"))]
# Every environment, and those of its versions that run other code.
CASES = (
    [(name, {}) for name in envs.ENVIRONMENTS]
    + [
        (name, {"lineage": lineage})
        for name in ("navigation", "half_cheetah_vel", "ant_goal")
        for lineage in ("pytorch", "original")
    ]
    + [("bandit", {"rewards": "gaussian", "arms": 10})]
    + [("lander", {"continuous": False}), ("lander", {"vary_gravity": True})]
)
if sys.version_info >= (3, 14):  # no wheel of Box2D
    CASES = [(name, kwargs) for name, kwargs in CASES if name != "lander"]
if not HAS_METAWORLD:
    CASES = [(name, kwargs) for name, kwargs in CASES if not name.startswith("metaworld")]
each_case = pytest.mark.parametrize(
    ("name", "kwargs"), CASES, ids=["-".join(map(str, [n, *k.values()])) for n, k in CASES]
)
needs_box2d = pytest.mark.skipif(sys.version_info >= (3, 14), reason="no wheel of Box2D")
GYMNASIUM_IDS = {"half_cheetah": "HalfCheetah-v5", "ant": "Ant-v5"}


def registered_id(name):
    return "hpc_maml/" + "".join(word.capitalize() for word in name.split("_")) + "-v0"


def generators(*seeds):
    return [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]


def started(name, *seeds, episodes_per_task=3, **kwargs):
    """Return a batch with one task a seed, each task drawn from its own seed, and reset."""
    env = envs.make(name, num_tasks=len(seeds), episodes_per_task=episodes_per_task, **kwargs)
    env.set_tasks(np.concatenate([env.sample_tasks(rng, 1) for rng in generators(*seeds)]))
    env.reset(options={"generators": generators(*seeds)})
    return env


def random_actions(env, steps, reach=1.0):
    """Draw actions [steps, num_envs, action_dim], up to ``reach`` times the limit, or choices."""
    if isinstance(env.single_action_space, Discrete):
        size = (steps, env.num_envs)
        return np.random.default_rng(0).integers(env.single_action_space.n, size=size)
    limit = reach * env.single_action_space.high[0]
    shape = (steps, *env.action_space.shape)
    return np.random.default_rng(0).uniform(-limit, limit, shape).astype(np.float32)


def gymnasium_env(name, qpos, qvel):
    """Return Gymnasium's own environment of that robot, in the given state."""
    robot = next(robot for robot in GYMNASIUM_IDS if name.startswith(robot))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make(GYMNASIUM_IDS[robot]).unwrapped
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)
    return env


@pytest.mark.parametrize("name", ["half_cheetah_vel", "ant_dir"])
def test_physics_is_bitwise_that_of_gymnasium(name):
    env = started(name, 1, 2, episodes_per_task=2)
    qpos, qvel = env.simulations.qpos, env.simulations.qvel
    references = [gymnasium_env(name, *state) for state in zip(qpos, qvel, strict=True)]
    running = np.ones(4, bool)
    for actions in random_actions(env, 100):
        _, _, terminated, _, _ = env.step(actions)
        for row in np.flatnonzero(running):
            references[row].step(actions[row])
            assert (qpos[row] == references[row].data.qpos).all()
            assert (qvel[row] == references[row].data.qvel).all()
        running &= ~terminated
    assert running.any()  # else fewer than 100 steps were compared


def reward_by_hand(name, task, action, velocity, torso_xy, contact_forces):
    """Work out one reward, number by number."""
    squares = sum(min(max(float(a), -1.0), 1.0) ** 2 for a in action)
    contact = sum(min(max(float(f), -1.0), 1.0) ** 2 for f in contact_forces.ravel())
    ant_cost = 0.005 * squares + 0.0005 * contact
    if name == "half_cheetah_vel":
        return -abs(velocity - task[0]) - 0.05 * squares
    if name == "half_cheetah_dir":
        return task[0] * velocity - 0.05 * squares
    if name == "ant_vel":
        return 1 - abs(velocity - task[0]) - ant_cost + 0.05
    if name == "ant_dir":
        return task[0] * velocity - ant_cost + 0.05
    distance = abs(torso_xy[0] - task[0]) + abs(torso_xy[1] - task[1])
    return 4 - distance - ant_cost + 0.05


def test_the_clock_is_not_read_during_physics():
    try:
        mujoco.set_mjcb_time(None)  # as MuJoCo's package has it
        envs.make("half_cheetah_vel", num_tasks=1, episodes_per_task=1)
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data)
        assert data.timer[mujoco.mjtTimer.mjTIMER_STEP].number == 1
        assert data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration == 0
    finally:
        mujoco.set_mjcb_time(None)


@pytest.mark.parametrize("name", LOCOMOTION)
def test_observations_and_rewards_follow_from_the_simulated_states(name):
    env = started(name, 3, 4, episodes_per_task=1)
    tasks = np.array([[0.7], [-1.0]]) if env.task_dim == 1 else np.array([[0.3, -2.0], [1.0, 0.1]])
    env.set_tasks(tasks)
    qpos, qvel = env.simulations.qpos, env.simulations.qvel
    references = [gymnasium_env(name, *state) for state in zip(qpos, qvel, strict=True)]
    largest_contact, compared, running = 0.0, 0, np.ones(2, bool)
    for actions in random_actions(env, 40, reach=1.5):
        observations, rewards, terminated, _, infos = env.step(actions)
        assert not infos
        assert observations.dtype == np.float32
        assert rewards.dtype == np.float64
        for row in np.flatnonzero(running):
            model, data = references[row].model, references[row].data
            before = data.qpos[0]
            data.ctrl[:] = actions[row].clip(-1, 1)
            mujoco.mj_step(model, data, 4)
            mujoco.mj_forward(model, data)
            mujoco.mj_rnePostConstraint(model, data)
            contact_forces = data.cfrc_ext.copy()  # as the last physics step begins
            mujoco.mj_step(model, data)
            largest_contact = max(largest_contact, abs(contact_forces).max())
            expected = reward_by_hand(
                name,
                tasks[row],
                actions[row],
                (data.qpos[0] - before) / 0.05,
                data.qpos[:2],
                contact_forces,
            )
            assert rewards[row] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            hidden = 1 if name.startswith("half_cheetah") else 2
            shown = [*data.qpos[hidden:], *data.qvel]
            if name == "ant_goal":
                shown += [*data.qpos[:2]]
            assert observations[row].tolist() == np.float32(shown).tolist()
            compared += 1
        running &= ~terminated
    assert observations.shape == (2, {"half": 17, "ant_": 27}[name[:4]] + 2 * (name == "ant_goal"))
    assert compared >= 40
    assert largest_contact > 1  # so that the contact cost and its clipping took part


@pytest.mark.parametrize("name", LOCOMOTION)
def test_reset_shows_the_state_it_set(name):
    env = started(name, 5)
    observations, _ = env.reset(options={"generators": generators(5)})
    rng = generators(5)[0]
    qpos, qvel = env.simulations.qpos, env.simulations.qvel
    noise = rng.uniform(-0.1, 0.1, qpos.shape)
    assert (qpos == env.simulations.model.qpos0 + noise).all()
    assert (qvel == 0.1 * rng.standard_normal(qvel.shape)).all()
    hidden = 1 if name.startswith("half_cheetah") else 2
    assert (observations[:, : qpos.shape[1] - hidden] == qpos[:, hidden:].astype(np.float32)).all()


def test_navigation_by_hand():
    env = envs.make("navigation", num_tasks=2, episodes_per_task=1, horizon=4)
    env.set_tasks([[0.1, 0.05], [-0.3, -0.4]])
    observations, _ = env.reset()
    assert observations.tolist() == [[0, 0], [0, 0]]
    actions = np.array([[7.0, 0.03], [0.0, 0.0]])  # 7 is clipped to 0.1
    observations, rewards, terminated, truncated, infos = env.step(actions)
    assert observations.tolist() == np.float32([[0.1, 0.03], [0, 0]]).tolist()
    assert rewards == pytest.approx([-0.02, -0.5])
    assert not terminated.any()
    assert not truncated.any()
    assert not infos
    # 0.045 and 0.095 are within 0.01 of the goal in both coordinates: the end of the first.
    first = env.step(np.array([[-0.005, 0.015], [-0.1, -0.2]]))
    kept = [array.copy() for array in first[:4]]
    assert first[1] == pytest.approx([-np.hypot(0.005, 0.005), -np.hypot(0.2, 0.3)])
    assert first[2].tolist() == [True, False]
    # The first rests, the other has its last step at the horizon.
    env.step(np.full((2, 2), 0.02))
    observations, rewards, terminated, truncated, _ = env.step(np.full((2, 2), 0.02))
    assert observations[0].tolist() == [0, 0]
    assert rewards[0] == 0
    assert observations[1].tolist() == np.float32([-0.06, -0.06]).tolist()
    assert terminated.tolist() == [False, False]
    assert truncated.tolist() == [False, True]
    assert not any(part.any() for part in env.step(np.full((2, 2), 0.02))[:4])
    assert all((was == is_now).all() for was, is_now in zip(kept, first, strict=False))


def test_navigation_needs_both_coordinates_near_and_prefers_the_goal_to_the_horizon():
    env = envs.make("navigation", num_tasks=2, episodes_per_task=1, horizon=1)
    env.set_tasks([[0.05, 0.05], [0.05, 0.05]])
    env.reset()
    _, _, terminated, truncated, _ = env.step(np.array([[0.05, 0.045], [0.05, 0.035]]))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]


@pytest.mark.parametrize("rewards", ["bernoulli", "gaussian"])
def test_arms_pay_what_the_task_says(rewards):
    env = envs.make("bandit", num_tasks=2, episodes_per_task=2000, arms=3, rewards=rewards)
    means = np.array([[0.2, 0.9, 0.5], [0.6, 0.1, 0.0]])
    env.set_tasks(means)
    observations, _ = env.reset(seed=0)
    assert (observations == 1).all()
    pay = np.zeros((10, 2, 2000))
    for pull in range(10):
        _, received, terminated, truncated, _ = env.step(np.full(4000, pull % 3))
        pay[pull] = received.reshape(2, 2000)
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (pull == 9)
    for arm in range(3):
        assert pay[arm::3].mean((0, 2)) == pytest.approx(means[:, arm], abs=0.05)
    if rewards == "bernoulli":
        assert set(np.unique(pay)) == {0.0, 1.0}
    else:
        assert pay.std(2) == pytest.approx(1.0, abs=0.06)
    # draws of one arm are independent from pull to pull and from episode to episode
    assert np.corrcoef(pay[0, 0], pay[3, 0])[0, 1] == pytest.approx(0, abs=0.08)
    assert np.corrcoef(pay[0, 0, :-1], pay[0, 0, 1:])[0, 1] == pytest.approx(0, abs=0.08)


def test_a_bandit_reset_on_its_own_begins_its_draws_anew():
    env, undisturbed = started("bandit", 1, horizon=6), started("bandit", 1, horizon=6)
    actions = random_actions(env, 6)
    expected = [undisturbed.step(step_actions)[1] for step_actions in actions]
    for step_actions in actions[:2]:
        env.step(step_actions)
    mask = np.array([False, True, False])
    env.reset(options={"generators": generators(1), "reset_mask": mask})
    for taken in range(4):
        mixed = np.where(mask, actions[taken], actions[taken + 2])
        rewards = env.step(mixed)[1]
        assert (rewards == np.where(mask, expected[taken], expected[taken + 2])).all()


def test_tabular_mdp_moves_and_pays_as_the_task_says():
    env = envs.make("tabular_mdp", num_tasks=1, episodes_per_task=8000)
    rng = np.random.default_rng(1)
    transitions, means = rng.dirichlet(np.ones(10), (10, 5)), rng.normal(1, 1, (10, 5))
    env.set_tasks([[*transitions.ravel(), *means.ravel()]])
    observations, _ = env.reset(seed=0)
    assert (observations == np.eye(10)[0]).all()
    visits, pay = np.zeros((10, 5, 10)), [[[] for _ in range(5)] for _ in range(10)]
    for step in range(10):
        states, actions = observations.argmax(1), rng.integers(5, size=8000)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        assert (observations.sum(1) == 1).all()
        np.add.at(visits, (states, actions, observations.argmax(1)), 1)
        for state, action, reward in zip(states, actions, rewards, strict=True):
            pay[state][action].append(reward)
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == 9)
    counts = visits.sum(-1)
    assert counts.min() > 300
    assert abs(visits / counts[..., None] - transitions).max() < 0.1
    for state in range(10):
        for action in range(5):
            error = 5 / len(pay[state][action]) ** 0.5
            assert np.mean(pay[state][action]) == pytest.approx(means[state, action], abs=error)
            assert np.std(pay[state][action]) == pytest.approx(1, abs=error)


@pytest.mark.parametrize("name", LOCOMOTION)
def test_horizon_truncates_every_episode(name):
    env = started(name, 1, horizon=2)
    actions = np.zeros(env.action_space.shape)
    assert not env.step(actions)[3].any()
    _, _, terminated, truncated, _ = env.step(actions)
    assert truncated.all()
    assert not terminated.any()
    assert not any(part.any() for part in env.step(actions)[:4])
    assert env.simulations.bind("time") == pytest.approx(0.1)  # s: two steps, none while at rest


def test_ended_ants_rest_and_the_others_go_on_as_if_alone():
    env, undisturbed = started("ant_vel", 6), started("ant_vel", 6)
    env.simulations.qvel[1, 2] = -20.0  # m/s: squashed below 0.2 m by the end of the step
    env.simulations.qpos[2, 2] = 1.3  # m
    first = True
    for actions in random_actions(env, 20, reach=0.3):
        result, expected = env.step(actions), undisturbed.step(actions)
        for part, other in zip(result[:4], expected[:4], strict=True):
            assert (part[0] == other[0]).all()
        assert result[2].tolist() == [False, first, first]
        assert not result[3].any()
        if first:
            assert result[1].all()
            assert result[0].any(-1).all()
            resting = env.simulations.qpos[1:].copy()
            assert resting[0, 2] < 0.2
            assert resting[1, 2] > 1.0
        else:
            assert not result[0][1:].any()
            assert not result[1][1:].any()
        first = False
    assert (env.simulations.qpos[0] == undisturbed.simulations.qpos[0]).all()
    assert (env.simulations.bind("time")[1:] == 0.05).all()
    assert (env.simulations.qpos[1:] == resting).all()


def test_reset_mask_restarts_only_the_chosen():
    env, undisturbed = started("ant_vel", 6), started("ant_vel", 6)
    env.simulations.qpos[1:, 2] = 1.3  # m: too high
    for actions in random_actions(env, 3, reach=0.3):
        env.step(actions), undisturbed.step(actions)
    mask = np.array([False, True, False])
    options = {"generators": generators(8), "reset_mask": mask}
    observations, _ = env.reset(options=options)
    assert observations.any(-1).tolist() == [True, True, False]
    expected, _ = undisturbed.reset(options={"generators": generators(8)})
    assert (observations[1] == expected[1]).all()
    for number, actions in enumerate(random_actions(env, 100, reach=0.1), start=1):
        _, rewards, terminated, truncated, _ = env.step(actions)
        assert not terminated.any()
        assert truncated.tolist() == [number == 97, number == 100, False]
        assert (rewards != 0).tolist() == [number <= 97, True, False]


@each_case
def test_a_task_does_not_depend_on_its_neighbours_or_the_threads(name, kwargs):
    together = started(name, 1, 2, num_threads=2, **kwargs)
    alone = [started(name, 1, **kwargs), started(name, 2, **kwargs)]
    rewards = []
    for actions in random_actions(together, 25):
        result = together.step(actions)
        parts = [env.step(half) for env, half in zip(alone, np.split(actions, 2), strict=True)]
        for index in range(4):
            expected = np.concatenate([part[index] for part in parts])
            assert result[index].tobytes() == expected.tobytes()
        rewards.append(result[1])
    rewards = np.array(rewards)
    assert not (rewards[:, :3] == rewards[:, 3:]).all(0).any()


@each_case
def test_an_episode_does_not_depend_on_those_before_it(name, kwargs):
    used, fresh = started(name, 9, **kwargs), started(name, 9, **kwargs)
    actions = random_actions(used, 10)
    for step_actions in actions:
        used.step(step_actions)
    used.reset(options={"generators": generators(9)})
    for step_actions in actions:
        for part, other in zip(used.step(step_actions), fresh.step(step_actions), strict=True):
            assert not isinstance(part, np.ndarray) or part.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("navigation", -0.5, 0.5),
        ("half_cheetah_vel", 0, 2),
        ("half_cheetah_dir", -1, 1),
        ("ant_vel", 0, 3),
        ("ant_dir", -1, 1),
        ("ant_goal", -3, 3),
    ],
)
def test_task_distributions(name, lowest, highest):
    env = envs.make(name, num_tasks=1, episodes_per_task=1)
    tasks = env.sample_tasks(np.random.default_rng(0), 2000)
    dimension = 2 if name in ("navigation", "ant_goal") else 1
    assert tasks.shape == (2000, dimension)
    assert tasks.dtype == np.float64
    assert tasks.min() >= lowest
    assert tasks.max() <= highest
    width = highest - lowest
    assert tasks.mean(0) == pytest.approx((lowest + highest) / 2, abs=0.05 * width)
    if name.endswith("_dir"):
        assert set(tasks.ravel()) == {-1.0, 1.0}
    else:  # a uniform distribution's standard deviation
        assert tasks.std(0) == pytest.approx(width / 12**0.5, rel=0.05)


@needs_box2d
@pytest.mark.parametrize("continuous", [True, False])
def test_landers_are_those_of_gymnasium_in_the_wind_of_the_task(continuous):
    env = envs.make("lander", num_tasks=2, episodes_per_task=2, continuous=continuous)
    env.set_tasks([[18.0, 0.3], [4.0, 1.9]])
    env.reset(options={"generators": generators(1, 2)})
    seeds = [rng.integers(2**32, size=(2, 1))[:, 0] for rng in generators(1, 2)]
    references = []
    for row in range(4):
        wind, turbulence = ((18.0, 0.3), (4.0, 1.9))[row // 2]
        reference = gymnasium.make(
            "LunarLander-v3",
            continuous=continuous,
            enable_wind=True,
            wind_power=wind,
            turbulence_power=turbulence,
        )
        reference.reset(seed=int(seeds[row // 2][row % 2]))
        references.append(reference)
    running = np.ones(4, bool)
    for actions in random_actions(env, 60):
        observations, rewards, terminated, _, _ = env.step(actions)
        for row in np.flatnonzero(running):
            seen, reward, ended, _, _ = references[row].step(actions[row])
            assert observations[row].tobytes() == seen.tobytes()
            assert (rewards[row], terminated[row]) == (reward, ended)
        running &= ~terminated
    assert running.any()


@needs_box2d
@pytest.mark.parametrize(
    "other", [(20.0, 0.5, -9.0), (5.0, 2.0, -9.0), (5.0, 0.5, -7.0)], ids=["wind", "turb", "grav"]
)
def test_each_part_of_a_landers_task_matters(other):
    paths = []
    for task in ((5.0, 0.5, -9.0), (5.0, 0.5, -9.0), other):
        env = envs.make("lander", num_tasks=1, episodes_per_task=2, vary_gravity=True)
        env.set_tasks([task])
        observations, _ = env.reset(options={"generators": generators(3)})
        path = [observations]
        path += [env.step(np.zeros((2, 2)))[0] for _ in range(40)]
        paths.append(np.array(path))
    assert (paths[0] == paths[1]).all()
    # x, y, their velocities, angle: both episodes go elsewhere within 40 steps
    assert (abs(paths[0] - paths[2])[-1, :, :5].max(-1) > 0.01).all()


@needs_box2d
def test_distribution_of_landers():
    env = envs.make("lander", num_tasks=1, episodes_per_task=1, vary_gravity=True)
    tasks = env.sample_tasks(np.random.default_rng(0), 2000)
    lowest, highest = np.array([0, 0, -12]), np.array([20, 2, -6])
    assert (tasks >= lowest).all()
    assert (tasks <= highest).all()
    assert tasks.mean(0) == pytest.approx((lowest + highest) / 2, abs=0.3)
    assert tasks.std(0) == pytest.approx((highest - lowest) / 12**0.5, rel=0.05)
    plain = envs.make("lander", num_tasks=1, episodes_per_task=1)
    assert plain.sample_tasks(np.random.default_rng(0), 3).shape == (3, 2)


def test_without_box2d_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^the lander needs Box2D: pip install 'hpc_maml\[box2d"):
        envs.make("lander", num_tasks=1, episodes_per_task=1)


def test_distributions_of_bandits_and_processes():
    bandit = envs.make("bandit", num_tasks=1, episodes_per_task=1, arms=50)
    means = bandit.sample_tasks(np.random.default_rng(0), 500)
    assert means.shape == (500, 50)
    assert (means.min() >= 0, means.max() <= 1) == (True, True)
    assert (means.mean(), means.std()) == pytest.approx((0.5, 12**-0.5), rel=0.02)
    process = envs.make("tabular_mdp", num_tasks=1, episodes_per_task=1)
    tasks = process.sample_tasks(np.random.default_rng(0), 400)
    transitions = tasks[:, :500].reshape(400, 10, 5, 10)
    assert transitions.min() >= 0
    assert transitions.sum(-1) == pytest.approx(1.0)
    # a component of a flat Dirichlet distribution over ten: Beta(1, 9)
    assert transitions.std() == pytest.approx((9 / (100 * 11)) ** 0.5, rel=0.02)
    assert (tasks[:, 500:].mean(), tasks[:, 500:].std()) == pytest.approx((1, 1), rel=0.03)


@pytest.mark.parametrize("name", ["half_cheetah_dir", "ant_goal"])
def test_a_diverged_simulation_ends_with_finite_numbers(name):
    env, undisturbed = started(name, 6), started(name, 6)
    env.simulations.qvel[1] = 1e9
    first = True
    for actions in random_actions(env, 3):
        result, expected = env.step(actions), undisturbed.step(actions)
        assert all(np.isfinite(part).all() for part in result[:4])
        assert result[2].tolist() == [False, first, False]
        assert result[1][1] == 0
        assert not result[0][1].any()
        assert (result[1][[0, 2]] == expected[1][[0, 2]]).all()
        assert (result[0][[0, 2]] == expected[0][[0, 2]]).all()
        assert {key: value.tolist() for key, value in result[4].items()} == (
            {"diverged": [False, True, False]} if first else {}
        )
        first = False
    env.reset(options={"generators": generators(6)})
    undisturbed.reset(options={"generators": generators(6)})
    assert (env.step(actions)[1] == undisturbed.step(actions)[1]).all()


def test_a_simulation_mujoco_gives_up_on_ends(monkeypatch):
    env = started("half_cheetah_vel", 6)

    def step(ids, nstep, stage):
        raise SimulationError(np.array([2]), "arena full")

    with monkeypatch.context() as patch:
        patch.setattr(env.simulations, "step", step)
        with pytest.warns(RuntimeWarning, match="arena full"):
            _, rewards, terminated, _, infos = env.step(np.zeros(env.action_space.shape))
    assert terminated.tolist() == infos["diverged"].tolist() == [False, False, True]
    assert rewards[2] == 0
    _, rewards, terminated, _, infos = env.step(np.zeros(env.action_space.shape))
    assert rewards[:2].all()
    assert rewards[2] == 0
    assert not terminated.any()
    assert not infos


@each_case
def test_gymnasium_accepts_the_single_environment(name, kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Box2D was built with
        env = gymnasium.make(registered_id(name), **kwargs)
        check_env(env.unwrapped)
    messages = [str(warning.message) for warning in caught]
    if name in LOCOMOTION or name.startswith("metaworld"):
        # Positions and velocities have no bounds, in Gymnasium's own either; actions of the PyTorch
        # lineage reach 10.
        expected = ("infinity", "normalized space")
        messages = [each for each in messages if not any(words in each for words in expected)]
    assert messages == []


def test_single_environment_takes_its_task_or_draws_one():
    env = gymnasium.make("hpc_maml/Navigation-v0", horizon=3)
    env.reset(options={"task": [0.3, 0.4]})
    _, reward, terminated, truncated, infos = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, truncated, infos) == (pytest.approx(-0.5), False, False, {})
    env.reset()  # the task stays
    assert env.step(np.zeros(2, np.float32))[1] == pytest.approx(-0.5)
    env.unwrapped.set_task([0.0, 0.2])
    assert env.step(np.zeros(2, np.float32))[1] == pytest.approx(-0.2)
    assert env.step(np.zeros(2, np.float32))[3] is True
    drawing = gymnasium.make("hpc_maml/Navigation-v0")
    rewards = []
    for seed in (1, 1, 2, None):
        drawing.reset(seed=seed)
        rewards.append(drawing.step(np.zeros(2, np.float32))[1])
    assert rewards[0] == rewards[1]
    assert len(set(rewards)) == 3
    drawing.unwrapped.np_random = generators(3)[0]
    drawing.reset()
    goal = drawing.unwrapped.sample_tasks(generators(3)[0], 1)
    assert drawing.step(np.zeros(2, np.float32))[1] == pytest.approx(-((goal**2).sum() ** 0.5))
    assert drawing.unwrapped.sample_tasks(np.random.default_rng(0), 4).shape == (4, 2)


def test_gymnasium_makes_the_batch_with_a_task_each():
    env = gymnasium.make_vec("hpc_maml/HalfCheetahVel-v0", num_envs=3, horizon=5)
    assert (env.num_tasks, env.episodes_per_task, env.horizon) == (3, 1, 5)
    first, again = env.reset(seed=4)[0], env.reset(seed=4)[0]
    assert (first == again).all()
    assert not (first[0] == first[1]).any()
    rewards = env.step(np.zeros((3, 6)))[1]
    env.reset(seed=4)
    assert (env.step(np.zeros((3, 6)))[1] == rewards).all()
    assert not (env.reset(seed=5)[0] == first).any()


def test_unknown_names_are_answered_with_those_there_are():
    sizes = {"num_tasks": 1, "episodes_per_task": 1}
    with pytest.raises(ValueError, match=r"'ant_velocity' \(did you mean 'ant_vel'\?\); there"):
        envs.make("ant_velocity", **sizes)
    with pytest.raises(ValueError, match=r"ant_goal takes the keyword lineage, not frame_skip"):
        envs.make("ant_goal", **sizes, frame_skip=2)
    with pytest.raises(ValueError, match=r"tabular_mdp takes no keyword, not arms"):
        envs.make("tabular_mdp", **sizes, arms=2)
    for name in ("navigation", *LOCOMOTION):
        with pytest.raises(ValueError, match=r"no lineage 'gym'; there is gymnasium, pytorch, or"):
            envs.make(name, **sizes, lineage="gym")
    with pytest.raises(ValueError, match=r"2 to 65536 arms, not 1"):
        envs.make("bandit", **sizes, arms=1)
    with pytest.raises(ValueError, match=r"rewards are bernoulli or gaussian, not 'beta'"):
        envs.make("bandit", **sizes, rewards="beta")
    with pytest.raises(ValueError, match=r"rewards are bernoulli or gaussian, not \['beta'\]"):
        envs.make("bandit", **sizes, rewards=["beta"])
    with pytest.raises(ValueError, match=r"there is no lineage \['original'\]; there is"):
        envs.make("ant_vel", **sizes, lineage=["original"])


def test_wrong_arrays_are_refused():
    env = envs.make("navigation", num_tasks=2, episodes_per_task=3)
    with pytest.raises(ValueError, match=r"tasks must have the shape \(2, 2\), not \(6, 2\)"):
        env.set_tasks(np.zeros((6, 2)))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((6, 2)))
    with pytest.raises(ValueError, match=r"one for each of 2 tasks, not 1"):
        env.reset(options={"generators": generators(1)})
    with pytest.raises(ValueError, match=r"reset_mask must be 6 booleans"):
        env.reset(options={"reset_mask": np.ones(6)})
    env.reset()
    with pytest.raises(ValueError, match=r"actions must have the shape \(6, 2\), not \(2,\)"):
        env.step(np.zeros(2))


@each_case
def test_wrong_actions_are_refused_and_infinite_ones_clipped(name, kwargs):
    env, clipped = started(name, 1, **kwargs), started(name, 1, **kwargs)
    actions = random_actions(env, 1)[0]
    if isinstance(env.single_action_space, Discrete):
        for wrong in (-1, env.single_action_space.n):
            actions[1] = wrong
            with pytest.raises(ValueError, match="actions must be integers from 0 to"):
                env.step(actions)
        with pytest.raises(ValueError, match="actions must be integers from 0 to"):
            env.step(np.zeros(3))
        return
    actions[1, 0], finite = np.inf, actions.copy()
    finite[1, 0] = env.single_action_space.high[0]
    assert (env.step(actions)[1] == clipped.step(finite)[1]).all()
    actions[1, 0] = np.nan
    with pytest.raises(ValueError, match="actions hold NaN"):
        env.step(actions)


def test_the_names_alone_do_not_import_mujoco():
    program = "import sys, hpc_maml.envs; sys.exit('mujoco' in sys.modules)"
    root = Path(envs.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("lineage", ["original", "gymnasium", "pytorch"])
@pytest.mark.parametrize(("name", "height"), [("half_cheetah_vel", 1), ("ant_vel", 2)])
def test_the_arena_of_a_simulation_holds_three_times_the_most_contacts(name, height, lineage):
    env = envs.make(name, num_tasks=1, episodes_per_task=1, lineage=lineage)
    model = env.simulations.model
    data, rng = mujoco.MjData(model), np.random.default_rng(1)
    most = 0
    for _ in range(200):
        mujoco.mj_resetData(model, data)
        data.qpos[height] = -2.0  # all geometry is in the floor
        data.qpos[model.jnt_qposadr[-model.nu :]] += rng.choice([-5, 5], model.nu)  # at its limits
        mujoco.mj_forward(model, data)
        most = max(most, data.maxuse_arena)
    assert data.ncon >= model.ngeom - 1
    assert model.narena / 7 < most < model.narena / 3
