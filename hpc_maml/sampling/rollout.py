"""Episodes of a policy in an environment, and the collection of all phases of a task."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpc_maml.sampling.advantages import task_advantages
from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.trajectory import samples, valid_steps

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
    distributions = []
    record = {name: batches[name] for name in batches.dtype.names}  # views
    for step in range(horizon):
        observations = observations.reshape(num_tasks, episodes, -1)
        distributions.append(policy.forward(weights, observations))
        actions = policy.sample(distributions[-1], noise[step])
        record["observations"][:, step] = observations
        record["actions"][:, step] = actions
        record["lengths"] += alive
        finite = np.isfinite(actions).all()
        observations, rewards, terminated, truncated, infos = env.step(
            (actions if finite else np.nan_to_num(actions)).reshape(env.action_space.shape)
        )
        if "diverged" in infos:
            record["diverged"] += infos["diverged"].reshape(alive.shape).sum(1)
        record["rewards"][:, step] = rewards.reshape(alive.shape)
        record["terminated"][:, step] = terminated.reshape(alive.shape)
        record["truncated"][:, step] = truncated.reshape(alive.shape)
        ended = terminated | truncated
        if np.count_nonzero(ended):
            alive &= ~ended.reshape(alive.shape)
            if not alive.any():
                break
    # all steps at once, as one step alone is mostly the overhead of NumPy
    taken = slice(step + 1)
    log_probs = policy.log_prob(policy.stacked(distributions, axis=1), record["actions"][:, taken])
    record["log_probs"][:, taken] = log_probs
    # An inner step has diverged: it must show, and make the agents reject the update. Actions would
    # not tell, as choices are integers even where their probabilities are NaN.
    record["rewards"][:, taken][~np.isfinite(log_probs)] = np.nan
    for batch in batches:
        padding = ~valid_steps(batch)
        if padding.any():
            for name in ("observations", "actions", "log_probs"):
                batch[name][padding] = 0


def collect(
    policy: Policy,
    env: "TaskVectorEnv",
    theta: np.ndarray,
    tasks: np.ndarray,
    *,
    keys: Sequence[tuple[int, int, int]],
    evaluation: bool,
    step_sizes: Sequence[float],
    gamma: float,
    gae_lambda: float,
    dtype: np.dtype,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches ``[G]`` for each phase of G tasks: roll out, adapt, roll out again.

    With them come the parameters ``[G, P]`` they were collected with. ``theta`` is ``[P]``,
    ``tasks`` are ``[G, task_dim]``, and each task has a key (seed, iteration, index of the task).
    There is one phase more than ``step_sizes``: phase k is collected with the parameters after k
    inner steps. A task gets the same bits beside any others.
    """
    purposes = (
        (Purpose.EVALUATION_ACTIONS, Purpose.EVALUATION_ENVIRONMENT)
        if evaluation
        else (Purpose.ACTIONS, Purpose.ENVIRONMENT)
    )
    env.set_tasks(tasks)
    thetas = np.repeat(theta[None], len(tasks), axis=0)
    for phase in range(len(step_sizes) + 1):
        started = time.perf_counter()
        batches = np.zeros(len(tasks), dtype)
        actions, environment = (
            [stream(seed, purpose, *of_task, phase) for seed, *of_task in keys]
            for purpose in purposes
        )
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            roll_out(policy, env, thetas, actions, environment, batches)
            behaviour, thetas = thetas, thetas.copy()
            for task, (batch, (_, iteration, index)) in enumerate(zip(batches, keys, strict=True)):
                batch["iteration"], batch["task"], batch["phase"] = iteration, index, phase
                batch["advantages"][:] = task_advantages(
                    batch["observations"], batch["rewards"], batch["lengths"], gamma, gae_lambda
                )
                if phase < len(step_sizes):
                    thetas[task] = adapt(policy, thetas[task], samples(batch), step_sizes[phase])
        batches["observer_seconds"] = (time.perf_counter() - started) / len(tasks)
        yield batches, behaviour
