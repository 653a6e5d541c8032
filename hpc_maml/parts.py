"""The parts of a run that follow from its configuration: the environment and the algorithm."""

from typing import Any

import numpy as np

from hpc_maml.algorithms import Algorithm, Sampling, algorithm_class
from hpc_maml.algorithms.normalised import Normalised
from hpc_maml.config import Config
from hpc_maml.envs import ENVIRONMENTS, make
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError, origin_of
from hpc_maml.policies import make_policy
from hpc_maml.sampling.trajectory import batch_dtype

MOST_PARAMETERS = 2**29  # of a policy


def make_env(config: Config, episodes: int, threads: int = 1, num_tasks: int = 1) -> TaskVectorEnv:
    """Make the environment of a configuration; raises InputError."""
    try:
        return make(
            config.env.name,
            num_tasks=num_tasks,
            episodes_per_task=episodes,
            horizon=config.horizon,
            num_threads=threads,
            **config.env.kwargs,
        )
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"The environment cannot be made: {error}.") from None
    except Exception as error:
        if config.env.name in ENVIRONMENTS:  # our own mistake
            raise
        raise InputError(f"The environment cannot be made: {origin_of(error)}.") from None


def make_algorithm(config: Config, env: TaskVectorEnv) -> Algorithm:
    """Make the algorithm of a configuration for an environment; raises InputError."""
    found = algorithm_class(config.algorithm.name)
    space: Any = env.single_action_space  # whose shape Gymnasium does not promise
    observed: Any = env.single_observation_space
    discrete = hasattr(space, "n")
    observation_size = int(np.prod(observed.shape))
    policy = make_policy(
        config.policy,
        observation_size,
        int(space.n) if discrete else int(np.prod(space.shape)),
        discrete=discrete,
    )
    if policy.size > MOST_PARAMETERS:
        raise InputError(
            f"The network has {policy.size} parameters: there may be {MOST_PARAMETERS} at most, "
            "which take 2 GB."
        )
    if found.recurrent and not policy.memory_size:
        raise InputError(
            f"algorithm.name={config.algorithm.name} needs a policy with a memory, such as "
            f"policy.name=gru; {config.policy.name} has none."
        )
    if policy.memory_size and not found.recurrent:
        raise InputError(
            f"algorithm.name={config.algorithm.name} cannot use a recurrent policy such as "
            f"policy.name={config.policy.name}; algorithm.name=rl2 can."
        )
    sampling = Sampling(
        episodes=config.fast_batch_size,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        test_updates=config.evaluation.updates,
        test_step_sizes=config.evaluation.step_sizes,
        last_test_actions=config.evaluation.last_actions,
    )
    algorithm = found(config.algorithm, policy, sampling)
    return Normalised(algorithm, observation_size) if config.normalise_observations else algorithm


def make_dtype(config: Config, env: TaskVectorEnv) -> np.dtype:
    """Return the type of a trajectory batch; raises InputError if it is too large."""
    actions: Any = env.single_action_space  # whose shape Gymnasium does not promise
    observed: Any = env.single_observation_space
    kind = np.int64 if hasattr(actions, "n") else np.float32
    try:
        return batch_dtype(
            config.horizon,
            config.fast_batch_size,
            observed.shape,
            actions.shape,
            kind,
            success=env.reports_success,
        )
    except ValueError:
        raise InputError(
            "horizon * fast_batch_size is too large: a batch must be below 2 GB."
        ) from None
