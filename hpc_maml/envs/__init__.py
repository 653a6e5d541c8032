"""The environments by name, and their registration with Gymnasium."""

import importlib
import inspect

import gymnasium

from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import nearest

# Import paths, not classes: only the environments that are made import MuJoCo.
ENVIRONMENTS = {
    "navigation": "hpc_maml.envs.navigation:Navigation",
    "half_cheetah_vel": "hpc_maml.envs.locomotion:HalfCheetahVel",
    "half_cheetah_dir": "hpc_maml.envs.locomotion:HalfCheetahDir",
    "ant_vel": "hpc_maml.envs.locomotion:AntVel",
    "ant_dir": "hpc_maml.envs.locomotion:AntDir",
    "ant_goal": "hpc_maml.envs.locomotion:AntGoal",
    "bandit": "hpc_maml.envs.bandit:Bandit",
    "tabular_mdp": "hpc_maml.envs.tabular_mdp:TabularMdp",
}


def environment_class(name: str) -> type[TaskVectorEnv]:
    """Import the class behind an environment name; ValueError names the nearest ones."""
    if name not in ENVIRONMENTS:
        raise ValueError(
            f"there is no environment {name!r}{nearest(name, ENVIRONMENTS)}; "
            f"there are {', '.join(ENVIRONMENTS)}"
        )
    module, _, attribute = ENVIRONMENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(
    name: str,
    *,
    num_tasks: int,
    episodes_per_task: int,
    horizon: int | None = None,
    num_threads: int = 1,
    **kwargs,
) -> TaskVectorEnv:
    """Make the batched environment of that name; ValueError for a keyword it does not take."""
    env_class = environment_class(name)
    sizes = {
        "num_tasks": num_tasks,
        "episodes_per_task": episodes_per_task,
        "horizon": horizon,
        "num_threads": num_threads,
    }
    taken = [key for key in inspect.signature(env_class).parameters if key not in sizes]
    unknown = [key for key in kwargs if key not in taken]
    if unknown:
        known = f"the keyword {', '.join(taken)}" if taken else "no keyword"
        raise ValueError(f"{name} takes {known}, not {', '.join(unknown)}")
    return env_class(**sizes, **kwargs)


def make_vector(num_envs: int, name: str, **kwargs) -> TaskVectorEnv:
    """Make a batch for ``gymnasium.make_vec``, with a task of its own for each sub-environment."""
    return make(name, num_tasks=num_envs, episodes_per_task=1, **kwargs)


def register() -> None:
    """Register every environment with Gymnasium, ``ant_vel`` as ``hpc_maml/AntVel-v0``."""
    for name, path in ENVIRONMENTS.items():
        env_id = f"hpc_maml/{path.partition(':')[2]}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="hpc_maml.envs.single:SingleTaskEnv",
                vector_entry_point="hpc_maml.envs:make_vector",
                kwargs={"name": name},
            )


register()
