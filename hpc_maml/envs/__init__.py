"""The environments by name, and their registration with Gymnasium."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.envs.foreign import title
from hpc_maml.errors import nearest
from hpc_maml.names import import_module

# Import paths, not classes: only the environments that are made import MuJoCo.
ENVIRONMENTS = {
    "navigation": "hpc_maml.envs.navigation:Navigation",
    "half_cheetah_vel": "hpc_maml.envs.locomotion:HalfCheetahVel",
    "half_cheetah_dir": "hpc_maml.envs.locomotion:HalfCheetahDir",
    "ant_vel": "hpc_maml.envs.locomotion:AntVel",
    "ant_dir": "hpc_maml.envs.locomotion:AntDir",
    "ant_goal": "hpc_maml.envs.locomotion:AntGoal",
    "lander": "hpc_maml.envs.lander:Lander",
    "bandit": "hpc_maml.envs.bandit:Bandit",
    "tabular_mdp": "hpc_maml.envs.tabular_mdp:TabularMdp",
    "metaworld_ml1": "hpc_maml.envs.metaworld:MetaworldMl1",
    "metaworld_ml10": "hpc_maml.envs.metaworld:MetaworldMl10",
    "metaworld_ml45": "hpc_maml.envs.metaworld:MetaworldMl45",
}
DEFAULT_LINEAGE = "gymnasium"


def make(
    name: str,
    *,
    num_tasks: int,
    episodes_per_task: int,
    horizon: int | None = None,
    num_threads: int = 1,
    **kwargs,
) -> TaskVectorEnv:
    """Make the batched environment of that name: one of ours, ``module:Class``, or a Gymnasium ID.

    Raises ValueError for an unknown name, a keyword it does not take, an environment without tasks.
    """
    sizes = {
        "num_tasks": num_tasks,
        "episodes_per_task": episodes_per_task,
        "horizon": horizon,
        "num_threads": num_threads,
    }
    found = find(name)
    if not (inspect.isclass(found) and issubclass(found, TaskVectorEnv)):
        return _adapt(found, sizes, **kwargs)
    taken = [key for key in inspect.signature(found).parameters if key not in sizes]
    unknown = [key for key in kwargs if key not in taken]
    if unknown:
        known = f"the keyword {', '.join(taken)}" if taken else "no keyword"
        raise ValueError(f"{name} takes {known}, not {', '.join(unknown)}")
    return found(**sizes, **kwargs)


def _adapt(
    maker: Callable[..., VectorEnv | gymnasium.Env],
    sizes: dict[str, int | None],
    task_ranges: dict[str, list[float]] | None = None,
    **kwargs,
) -> TaskVectorEnv:
    """Return the batch of an environment from elsewhere."""
    if task_ranges is not None:
        from hpc_maml.envs.parameter_tasks import ParameterTasks

        return ParameterTasks(maker, sizes, kwargs, task_ranges)
    from hpc_maml.envs.own_tasks import SingleEnvsWithTasks, VectorEnvsWithTasks

    if inspect.isclass(maker) and issubclass(maker, VectorEnv):
        return VectorEnvsWithTasks(maker, sizes, kwargs)
    return SingleEnvsWithTasks(maker, sizes, kwargs)


def find(name: str) -> Callable[..., TaskVectorEnv | VectorEnv | gymnasium.Env]:
    """Return the class or the maker behind an environment name; ValueError if there is none."""
    module, colon, attribute = ENVIRONMENTS.get(name, name).partition(":")
    if colon:
        try:
            imported = import_module(module)
        except ImportError as error:
            raise ValueError(f"the module of {name!r} cannot be imported: {error}") from None
        found = getattr(imported, attribute, None)
        if inspect.isclass(found) and issubclass(found, gymnasium.Env | VectorEnv):
            return found
        if found is not None:
            raise ValueError(f"{name!r} is not a Gymnasium environment")
    if (attribute or module) in gymnasium.registry:  # importing a module may register its IDs
        from hpc_maml.envs.foreign import maker_of_id

        return maker_of_id(attribute or module)
    if colon:
        raise ValueError(
            f"the module {module} has no {attribute!r}{nearest(attribute, vars(imported))}"
        )
    raise ValueError(
        f"there is no environment {name!r}{nearest(name, [*ENVIRONMENTS, *gymnasium.registry])}; "
        f"there are {', '.join(ENVIRONMENTS)}, module:Class, and the IDs of Gymnasium"
    )


def declared_defaults(name: str, lineage: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the configuration keys that an environment sets, and those that its lineage sets.

    Raises ValueError for an unknown name. An unknown lineage sets none.
    """
    found = find(name)
    if not inspect.isclass(found):
        steps = gymnasium.registry[title(found)].max_episode_steps
        return {"horizon": steps} if steps else {}, {}
    if not issubclass(found, TaskVectorEnv):
        return {}, {}
    return found.defaults, found.lineage_defaults.get(str(lineage), {})


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
