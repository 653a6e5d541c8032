"""Episodes of a policy in an environment, and the collection of all phases of a task."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.advantages import task_advantages
from hpc_maml.maml import adapt
from hpc_maml.policy import Policy
from hpc_maml.random_streams import Purpose, stream
from hpc_maml.trajectory import samples, valid_steps

if TYPE_CHECKING:
    from hpc_maml.envs.batched import TaskVectorEnv


def roll_out(
    policy: Policy,
    env: "TaskVectorEnv",
    theta: np.ndarray,
    action_generators: Sequence[np.random.Generator],
    env_generators: Sequence[np.random.Generator],
    batches: np.ndarray,
) -> None:
    """Fill ``batches`` ``[G]`` with one episode per environment, for G tasks side by side.

    ``theta`` is ``[G, P]``; each task has generators of its own, so that its episodes do not depend
    on what stands beside it. Fills everything that comes from the environment and the policy;
    ``advantages`` stay zero.
    """
    num_tasks, horizon, episodes = batches["rewards"].shape
    weights = policy.unflatten(theta)
    noise = np.stack(
        [policy.noise(generator, (horizon, episodes)) for generator in action_generators], axis=1
    )  # [T, G, B, ...]
    observations, _ = env.reset(options={"generators": list(env_generators)})
    alive = np.ones((num_tasks, episodes), bool)
    for step in range(horizon):
        observations = observations.reshape(num_tasks, episodes, -1)
        distribution = policy.forward(weights, observations)
        actions = policy.sample(distribution, noise[step])
        batches["observations"][:, step] = observations
        batches["actions"][:, step] = actions
        batches["log_probs"][:, step] = policy.log_prob(distribution, actions)
        batches["lengths"] += alive
        finite = np.isfinite(actions).all()
        observations, rewards, terminated, truncated, infos = env.step(
            (actions if finite else np.nan_to_num(actions)).reshape(env.action_space.shape)
        )
        if not finite:
            # An inner step has diverged: it must show, and make the agents reject the update.
            rewards = np.full_like(rewards, np.nan)
        if "diverged" in infos:
            batches["diverged"] += infos["diverged"].reshape(alive.shape).sum(1)
        batches["rewards"][:, step] = rewards.reshape(alive.shape)
        batches["terminated"][:, step] = terminated.reshape(alive.shape)
        batches["truncated"][:, step] = truncated.reshape(alive.shape)
        alive &= ~(terminated | truncated).reshape(alive.shape)
        if not alive.any():
            break
    for batch in batches:
        padding = ~valid_steps(batch)
        if padding.any():
            for name in ("observations", "actions", "log_probs"):
                batch[name][padding] = 0


def collect(
    policy: Policy,
    env: "TaskVectorEnv",
    theta: np.ndarray,
    task: np.ndarray,
    *,
    key: tuple[int, int, int],
    evaluation: bool,
    step_sizes: Sequence[float],
    gamma: float,
    gae_lambda: float,
    dtype: np.dtype,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield a batch ``[1]`` for each phase of one task: roll out, adapt, roll out again.

    With it come the parameters ``[P]`` it was collected with. ``key`` is (seed, iteration, index of
    the task). There is one more batch than ``step_sizes``: phase k is collected with the parameters
    after k inner steps.
    """
    seed, iteration, index = key
    purposes = (
        (Purpose.EVALUATION_ACTIONS, Purpose.EVALUATION_ENVIRONMENT)
        if evaluation
        else (Purpose.ACTIONS, Purpose.ENVIRONMENT)
    )
    env.set_tasks(task[None])
    for phase in range(len(step_sizes) + 1):
        started = time.perf_counter()
        batch = np.zeros(1, dtype)
        batch["iteration"], batch["task"], batch["phase"] = iteration, index, phase
        actions, environment = (
            stream(seed, purpose, iteration, index, phase) for purpose in purposes
        )
        one, behaviour = batch[0], theta
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            roll_out(policy, env, theta[None], [actions], [environment], batch)
            one["advantages"][:] = task_advantages(
                one["observations"], one["rewards"], one["lengths"], gamma, gae_lambda
            )
            if phase < len(step_sizes):
                theta = adapt(policy, theta, samples(one), step_sizes[phase])
        batch["observer_seconds"] = time.perf_counter() - started
        yield batch, behaviour
