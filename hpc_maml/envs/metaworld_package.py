"""The package metaworld, made to work on the MuJoCo that is installed; it stays as it is."""

import importlib.metadata
import pickle
from functools import cache
from types import ModuleType
from typing import Any

import mujoco
import numpy as np

VERSION = "3.1.1"
INSTALL = f"pip install 'hpc_maml[metaworld]' and pip install --no-deps metaworld=={VERSION}"
# What every weld of the arm to its mocap body is set to: anchor, relative pose, torque scale.
WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
MOST_DRAWS = 100  # of a goal, after which it counts as refused
SUFFIX = "-v3"  # of the package's names of its environments


@cache
def load() -> ModuleType:
    """Return the package's module ``env_dict``; ValueError if it cannot be used here."""
    try:
        version = importlib.metadata.version("metaworld")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"Meta-World is not installed: {INSTALL} (without dependencies, as it asks for an "
            "older MuJoCo)"
        ) from None
    if version != VERSION:
        raise ValueError(f"metaworld {version} is installed, but {VERSION} is needed: {INSTALL}")
    try:
        from metaworld import env_dict
        from metaworld.sawyer_xyz_env import SawyerMocapBase
    except ImportError as error:
        raise ValueError(f"metaworld cannot be imported ({error}): {INSTALL}") from None
    SawyerMocapBase.reset_mocap_welds = reset_mocap_welds
    return env_dict


def reset_mocap_welds(env: Any) -> None:
    """Set the welds of an environment, in place of ``SawyerMocapBase.reset_mocap_welds``.

    That writes whole rows of ``eq_data``, which have had a twelfth column since MuJoCo 4. Raises
    ValueError where rows are shorter.
    """
    data = env.model.eq_data
    if data.shape[1] < len(WELD):
        raise ValueError(f"Meta-World does not work on MuJoCo {mujoco.__version__}")
    data[env.model.eq_type == mujoco.mjtEq.mjEQ_WELD, : len(WELD)] = WELD


def task_names() -> tuple[str, ...]:
    """Return the names of all fifty environments."""
    return tuple(map(short, load().ALL_V3_ENVIRONMENTS))


def short(name: str) -> str:
    """Return the package's name of an environment without its version."""
    return name.removesuffix(SUFFIX)


def make(name: str) -> Any:
    """Return a new environment of the package, by its name without version."""
    return load().ALL_V3_ENVIRONMENTS[f"{name}{SUFFIX}"]()


def started(name: str, goal: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return a new environment after its reset with a goal ``[n]``, and its observation ``[39]``.

    The goal stays hidden. What follows its numbers is not looked at. Nothing else of the process
    affects the result. Raises ValueError for a goal that it refuses.
    """
    env = make(name)
    goal = goal[: env._random_reset_space.low.size]
    task = {"rand_vec": goal, "env_cls": type(env), "partially_observable": True}
    env.set_task(load_task(name, task))
    _limit_draws(env, name)
    seen, _ = env.reset()
    del env._get_state_rand_vec  # a cycle would keep its 20 MB until Python looks for cycles
    return env, seen


def load_task(name: str, data: dict[str, Any]) -> Any:
    """Return the package's form of a task."""
    from metaworld.types import Task

    return Task(env_name=f"{name}{SUFFIX}", data=pickle.dumps(data))


def draw_goals(name: str, generators: list[np.random.Generator]) -> np.ndarray:
    """Draw a goal from each generator ``[len(generators), n]``, as the environment accepts it.

    A goal is the ``rand_vec`` of the package: where objects begin and where they are to go, from
    the environment's own box, without those that it draws again.
    """
    env = make(name)
    env._set_task_called = env.seeded_rand_vec = True
    env._freeze_rand_vec = False

    def leave_hand(steps: int = 0) -> None:
        mujoco.mj_forward(env.model, env.data)
        env.init_tcp = env.tcp_center

    env._reset_hand = leave_hand  # without its 250 steps of physics, which no goal depends on
    goals = []
    for generator in generators:
        env._np_random = generator  # where Gymnasium keeps what the environment draws from
        mujoco.mj_resetData(env.model, env.data)
        env.reset_model()
        goals.append(env._last_rand_vec)
    del env._reset_hand  # likewise
    return np.array(goals)


def _limit_draws(env: Any, name: str) -> None:
    """Have an environment refuse a goal that it would otherwise ask for again, for ever."""
    draw, left = env._get_state_rand_vec, iter(range(MOST_DRAWS))

    def limited() -> np.ndarray:
        if next(left, None) is None:
            raise ValueError(f"{name} refuses the goal {env._last_rand_vec}")
        return draw()

    env._get_state_rand_vec = limited
