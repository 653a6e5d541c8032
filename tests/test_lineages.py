"""The lineages against one simulation after another, with what follows worked out by hand."""

import warnings
from importlib import resources

import mujoco
import numpy as np
import pytest

from hpc_maml import envs

FAMILIES = ("half_cheetah_vel", "half_cheetah_dir", "ant_vel", "ant_dir", "ant_goal")
OBSERVATION_SIZES = {
    ("half_cheetah", "pytorch"): 20,
    ("half_cheetah", "original"): 20,
    ("ant", "pytorch"): 125,
    ("ant", "original"): 125,
}


def robot_of(name):
    return name.rpartition("_")[0]


def reference_model(name, lineage):
    """Return the model compiled from the file Gymnasium brings, changed as the lineage says."""
    file = resources.files("gymnasium") / "envs" / "mujoco" / "assets" / f"{robot_of(name)}.xml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mujoco.MjModel.from_xml_path(str(file))
    if (robot_of(name), lineage) == ("ant", "original"):
        model.opt.timestep = 0.02
        model.geom_solimp[:, :3] = 0.8, 0.8, 0.01
    return model


def after_forward(model, data):
    """Return what MuJoCo computes at the present state and controls."""
    copy = mujoco.MjData(model)
    mujoco.mj_copyData(copy, model, data)
    mujoco.mj_forward(model, copy)
    mujoco.mj_rnePostConstraint(model, copy)
    return copy


def centre_of_mass(model, data):
    """Return position and velocity of the whole robot's centre of mass, body by body."""
    momentum, moment = np.zeros(3), np.zeros(3)
    for body in range(1, model.nbody):
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
        momentum += model.body_mass[body] * velocity[3:]
        moment += model.body_mass[body] * data.xipos[body]
    return moment / model.body_mass.sum(), momentum / model.body_mass.sum()


def observation_by_hand(name, lineage, model, data):
    now = after_forward(model, data)
    torso = now.body("torso")
    position = torso.xpos if lineage == "pytorch" else centre_of_mass(model, now)[0]
    if robot_of(name) == "half_cheetah":
        return [*now.qpos[1:], *now.qvel, *position]
    contact_forces = np.clip(now.cfrc_ext.ravel(), -1, 1)
    return [*now.qpos, *now.qvel, *contact_forces, *torso.xmat.ravel(), *position]


def reward_by_hand(name, lineage, task, control, model, data, x_before):
    now = after_forward(model, data)
    place, momentary = centre_of_mass(model, now)
    if lineage == "pytorch":
        place, velocity = data.qpos, (data.qpos[0] - x_before) / 0.05
    else:
        velocity = momentary[0]
    ant_cost = 0.005 * (control**2).sum() + 0.0005 * (np.clip(now.cfrc_ext, -1, 1) ** 2).sum()
    return {
        "half_cheetah_vel": -abs(velocity - task[0]) - 0.05 * (control**2).sum(),
        "half_cheetah_dir": task[0] * velocity - 0.05 * (control**2).sum(),
        "ant_vel": 1 - abs(velocity - task[0]) - ant_cost + 0.05,
        "ant_dir": task[0] * velocity - ant_cost + 0.05,
        "ant_goal": 4 - abs(place[:2] - task[:2]).sum() - ant_cost + 0.05,
    }[name]


@pytest.mark.parametrize("lineage", ["pytorch", "original"])
@pytest.mark.parametrize("name", FAMILIES)
def test_observations_and_rewards_follow_from_the_simulated_states(name, lineage):
    env = envs.make(name, num_tasks=2, episodes_per_task=1, lineage=lineage, horizon=30)
    tasks = np.array([[0.7, 0.2], [-1.0, 1.5]])[:, : env.task_dim]
    env.set_tasks(tasks)
    observations, _ = env.reset(seed=3)
    model = reference_model(name, lineage)
    references = [mujoco.MjData(model) for _ in range(2)]
    for data, qpos, qvel in zip(
        references, env.simulations.qpos, env.simulations.qvel, strict=True
    ):
        data.qpos[:], data.qvel[:] = qpos, qvel
    size = OBSERVATION_SIZES[robot_of(name), lineage]
    assert observations.shape == (2, size)
    substeps = 5 if lineage == "pytorch" else 1
    scale = 10.0 if lineage == "pytorch" else 1.0
    assert env.single_action_space.high.tolist() == [scale] * model.nu
    rng = np.random.default_rng(0)
    running, compared, largest_contact = np.ones(2, bool), 0, 0.0
    for _ in range(30):
        for row in np.flatnonzero(running):
            expected = observation_by_hand(name, lineage, model, references[row])
            assert observations[row] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        actions = rng.uniform(-1.5 * scale, 1.5 * scale, (2, model.nu)).astype(np.float32)
        observations, rewards, terminated, _, infos = env.step(actions)
        assert not infos
        for row in np.flatnonzero(running):
            data = references[row]
            control = actions[row].clip(-scale, scale) / scale
            x_before = data.qpos[0]
            data.ctrl[:] = control
            mujoco.mj_step(model, data, substeps)
            assert (env.simulations.qpos[row] == data.qpos).all()
            assert (env.simulations.qvel[row] == data.qvel).all()
            expected = reward_by_hand(name, lineage, tasks[row], control, model, data, x_before)
            assert rewards[row] == pytest.approx(expected, rel=1e-6, abs=1e-6)
            if robot_of(name) == "ant":
                assert terminated[row] == (not 0.2 <= data.qpos[2] <= 1.0)
                largest_contact = max(largest_contact, abs(observations[row, 29:113]).max())
            compared += 1
        running &= ~terminated
    assert compared >= 30
    assert largest_contact == (1.0 if robot_of(name) == "ant" else 0.0)


@pytest.mark.parametrize("lineage", ["pytorch", "original"])
def test_a_reset_of_some_leaves_the_others_alone(lineage):
    pair = []
    for _ in range(2):
        env = envs.make("ant_vel", num_tasks=1, episodes_per_task=3, lineage=lineage)
        env.set_tasks([[1.0]])
        started, _ = env.reset(options={"generators": [np.random.default_rng(1)]})
        pair.append(env)
    env, undisturbed = pair
    actions = 0.1 * np.random.default_rng(0).standard_normal((6, 3, 8))
    expected = [undisturbed.step(each) for each in actions]
    for each in actions[:3]:
        env.step(each)
    mask = np.array([False, True, False])
    options = {"generators": [np.random.default_rng(1)], "reset_mask": mask}
    observations, _ = env.reset(options=options)
    assert (observations == np.where(mask[:, None], started, expected[2][0])).all()
    for step in range(3):
        results = env.step(np.where(mask[:, None], actions[step], actions[step + 3]))
        for part, anew, going_on in zip(
            results[:4], expected[step][:4], expected[step + 3][:4], strict=True
        ):
            assert part[1].tobytes() == anew[1].tobytes()
            assert part[[0, 2]].tobytes() == going_on[[0, 2]].tobytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_where_the_original_lineage_starts(name):
    env = envs.make(name, num_tasks=1, episodes_per_task=2000, lineage="original")
    env.reset(seed=0)
    model = env.simulations.model
    start = model.numeric("init_qpos").data if robot_of(name) == "ant" else model.qpos0
    offsets = env.simulations.qpos - start
    assert abs(offsets.mean(0)).max() < 0.001
    assert offsets.std(0) == pytest.approx(0.01, rel=0.07)
    assert env.simulations.qvel.std(0) == pytest.approx(0.1, rel=0.07)


@pytest.mark.parametrize(
    ("name", "lineage", "horizon", "seconds"),
    [
        ("half_cheetah_vel", "gymnasium", 100, 0.05),
        ("half_cheetah_vel", "pytorch", 100, 0.05),
        ("half_cheetah_vel", "original", 200, 0.01),
        ("ant_dir", "gymnasium", 100, 0.05),
        ("ant_dir", "pytorch", 100, 0.05),
        ("ant_dir", "original", 200, 0.02),
    ],
)
def test_horizon_and_time_step(name, lineage, horizon, seconds):
    env = envs.make(name, num_tasks=1, episodes_per_task=2, lineage=lineage)
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape))
    assert env.horizon == horizon
    assert env.simulations.bind("time") == pytest.approx(seconds)


@pytest.mark.parametrize(("lineage", "scale"), [("pytorch", 1.0), ("original", 0.1)])
def test_navigation_steps(lineage, scale):
    env = envs.make("navigation", num_tasks=1, episodes_per_task=1, lineage=lineage)
    env.set_tasks([[0.3, -0.4]])
    env.reset()
    observations, rewards, _, _, _ = env.step(np.array([[0.05, -7.0]]))
    assert observations.tolist() == np.float32([[0.05 * scale, -0.1]]).tolist()
    assert rewards == pytest.approx([-np.hypot(0.3 - 0.05 * scale, 0.3)])
    assert env.horizon == 100
