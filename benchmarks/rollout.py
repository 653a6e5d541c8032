"""Environment steps per second of one core, against the physics alone and Gymnasium's vector."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from benchmarks.programs import HOW_TO_BUILD, run, yardstick
from benchmarks.table import Row, compare
from hpc_maml.config import Config, load_config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.envs.mujoco_timers import stop_timers
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.parts import make_env
from hpc_maml.policies.policy import Policy
from hpc_maml.roles.agent import MOST_SIDE_BY_SIDE
from hpc_maml.run.job import Job, prepare
from hpc_maml.sampling.rollout import roll_out

TURNS = 3  # of ours and the yardstick in a round: a machine whose speed drifts treats both alike
# name of the figure -> (settings, environment of Gymnasium and its arguments)
CASES = {
    "half_cheetah_vel": (["env.name=half_cheetah_vel"], ("HalfCheetah-v5", {})),
    "ant_vel": (["env.name=ant_vel"], ("Ant-v5", {"include_cfrc_ext_in_observation": False})),
    "half_cheetah_vel, one physics step": (
        ["env.name=half_cheetah_vel", "env.kwargs.lineage=original"],
        None,
    ),
    "navigation": (["env.name=navigation"], None),
}


def measure(rounds: int, build: Path) -> list[Row]:
    """Return the rows of all cases: as many tasks side by side as an observer takes."""
    keep_freed_memory()
    rows = []
    for name, (settings, peer) in CASES.items():
        config = load_config(None, settings)
        env = make_env(config, config.fast_batch_size, num_tasks=MOST_SIDE_BY_SIDE)
        job = prepare(config, env)
        physics = yardstick("physics", build) if hasattr(env, "simulations") else None
        rival = gymnasium_work(config, job.algorithm.policy, *peer) if peer else None
        ours, raw, gymnasium_rates = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            steps = record(job, env, Path(folder)) if physics else episodes(job, env)
            for _ in range(rounds):
                seconds = np.zeros(3)
                for _ in range(TURNS):
                    seconds[0] += timed(lambda env=env, job=job: episodes(job, env))
                    seconds[1] += replay(physics, Path(folder), env) if physics else 0
                    seconds[2] += timed(rival) if rival else 0
                ours.append(TURNS * steps / seconds[0])
                if physics:
                    raw.append(TURNS * steps / seconds[1])
                if rival:
                    number = config.fast_batch_size * config.horizon
                    gymnasium_rates.append(TURNS * number / seconds[2])
        against = "raw mj_step in C" if raw else "" if name == "navigation" else HOW_TO_BUILD
        rows.append(compare(f"rollout, {name}", "steps/s", ours, raw, against))
        if peer:
            against = "SyncVectorEnv of Gymnasium"
            rows.append(compare(f"rollout, {name}", "steps/s", ours, gymnasium_rates, against))
    return rows


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def episodes(job: Job, env: TaskVectorEnv) -> int:
    """Roll out the initial policy in all environments as an observer does; return the steps."""
    rng = np.random.default_rng(1)
    env.set_tasks(env.sample_tasks(rng, env.num_tasks))
    algorithm = job.algorithm
    played = algorithm.played(algorithm.initial_state(rng))
    batches = np.zeros(env.num_tasks, job.dtype)
    generators = [np.random.default_rng(task) for task in range(env.num_tasks)]
    play = algorithm.begin(played, env.num_tasks)
    roll_out(algorithm.policy, env, play, generators, generators, batches)
    return int(batches["lengths"].sum())


def record(job: Job, env: TaskVectorEnv, folder: Path) -> int:
    """Write what the physics of ``episodes`` starts from and is fed; return its steps."""
    starts, controls = [], []
    start, step = env._start, env.simulations.step

    def starting(chosen: np.ndarray, states: np.ndarray) -> None:
        start(chosen, states)
        starts.append(states)

    def stepping(active: np.ndarray | None, **how: int) -> None:
        controls.append(env.simulations.bind("ctrl").copy())
        controls[-1][~(np.ones(env.num_envs, bool) if active is None else active)] = np.nan
        step(active, **how)

    env._start, env.simulations.step = starting, stepping
    steps = episodes(job, env)
    env._start, env.simulations.step = start, step
    mujoco.mj_saveModel(env.simulations.model, str(folder / "model.mjb"), None)
    sizes = np.array([env.num_envs, len(controls), env._lineage.substeps], np.float64)
    positions, velocities = np.split(starts[0], [env.simulations.model.nq], axis=1)
    parts = (sizes, positions, velocities, np.array(controls))
    with (folder / "episodes").open("wb") as file:
        for part in parts:
            np.ascontiguousarray(part, np.float64).tofile(file)
    return steps


def replay(physics: Path, folder: Path, env: TaskVectorEnv) -> float:
    """Return the seconds of the recorded physics in C; RuntimeError if it went elsewhere."""
    seconds, total = run([physics, folder / "model.mjb", folder / "episodes"])
    expected = env.simulations.bind("qpos").sum()
    if not np.isclose(float(total), expected, rtol=1e-9):
        raise RuntimeError(f"the physics in C ended at {total}, ours at {expected}")
    return float(seconds)


def gymnasium_work(
    config: Config, policy: Policy, name: str, arguments: dict
) -> Callable[[], None]:
    """Return what steps Gymnasium's vector environment for a horizon, under the same policy."""
    rng = np.random.default_rng(1)
    layers = policy.unflatten(policy.initial_parameters(rng))
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)  # of Gymnasium's model
    try:
        envs = gymnasium.make_vec(
            name, config.fast_batch_size, vectorization_mode="sync", **arguments
        )
    finally:
        mujoco.set_mju_user_warning(handler)
    observations, _ = envs.reset(seed=1)

    def work() -> None:
        nonlocal observations
        mujoco.set_mjcb_time(None)  # as MuJoCo's package has it: its timers run
        for _ in range(config.horizon):
            given = policy.forward(layers, observations.astype(np.float32))
            noise = policy.distribution.noise(rng, (envs.num_envs,))
            actions = policy.distribution.sample(given, noise)
            observations, *_ = envs.step(actions.clip(-1, 1))
        stop_timers()

    return work
