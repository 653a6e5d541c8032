"""Iterations the plain way: Gymnasium's vector in a process for each core, update by autograd.

The outer step is the published one.

python -m benchmarks.plain_iteration NAME ITERATIONS [key=value ...] prints the seconds of each.
"""

import multiprocessing
import os
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from benchmarks.plain import Problem, Task, meta_step
from benchmarks.programs import PUBLISHED
from hpc_maml.config import Config, load_config
from hpc_maml.policies import make_policy
from hpc_maml.sampling.advantages import task_advantages
from hpc_maml.sampling.trajectory import Samples

CORES = len(os.sched_getaffinity(0))


class Navigation(gymnasium.Env):
    """A point that looks for a goal."""

    observation_space, action_space = Box(-10, 10, (2,)), Box(-0.1, 0.1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Start at the origin."""
        super().reset(seed=seed)
        self.position = np.zeros(2, np.float32)
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step of at most 0.1."""
        self.position = self.position + np.clip(action, -0.1, 0.1)
        offset = self.position - self.goal
        done = bool((abs(offset) < 0.01).all())
        return self.position, -float(np.sqrt((offset**2).sum())), done, False, {}

    def set_task(self, task: np.ndarray) -> None:
        """Set the goal."""
        self.goal = task


class AtVelocity(gymnasium.Wrapper):
    """A robot of Gymnasium, to run at the velocity of the task."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step."""
        action = np.clip(action, -1, 1)
        observation, _, terminated, truncated, info = self.env.step(action)
        reward = self.bonus(np.square(action).sum(), info) - abs(info["x_velocity"] - self.velocity)
        return observation, reward, terminated, truncated, info

    def set_task(self, task: np.ndarray) -> None:
        """Set the velocity."""
        self.velocity = task[0]


class HalfCheetahVelocity(AtVelocity):
    """The half-cheetah."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("HalfCheetah-v5"))

    def bonus(self, squares: float, info: dict) -> float:
        """Return what is paid beside the velocity; ``squares`` are of the action."""
        return -0.05 * squares


class AntVelocity(AtVelocity):
    """The ant, without contact forces in its observation."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False))

    def bonus(self, squares: float, info: dict) -> float:
        """Return what is paid beside the velocity; ``squares`` are of the action."""
        return 1.05 - 0.005 * squares + info["reward_contact"]


ENVIRONMENTS = {
    "navigation": (Navigation, lambda rng: rng.uniform(-0.5, 0.5, 2)),
    "half_cheetah_vel": (HalfCheetahVelocity, lambda rng: rng.uniform(0, 2, 1)),
    "ant_vel": (AntVelocity, lambda rng: rng.uniform(0, 3, 1)),
}


def sample(
    envs: gymnasium.vector.SyncVectorEnv, problem: Problem, theta: torch.Tensor, config: Config
) -> Samples:
    """Return the samples of one task."""
    episodes, horizon = config.fast_batch_size, config.horizon
    observations, _ = envs.reset()
    steps, lengths = [], np.zeros(episodes, np.int64)
    alive = np.ones(episodes, bool)
    for _ in range(horizon):
        seen = torch.as_tensor(observations, dtype=torch.float32)
        with torch.no_grad():
            distribution = problem.distribution(theta, seen)
            actions = distribution.sample()
            log_probs = distribution.log_prob(actions)
        observations, rewards, terminated, truncated, _ = envs.step(actions.numpy())
        steps.append((seen.numpy(), actions.numpy(), log_probs.numpy(), rewards))
        lengths += alive
        alive &= ~(terminated | truncated)
    seen, actions, log_probs, rewards = map(np.stack, zip(*steps, strict=True))
    valid = np.arange(horizon)[:, None] < lengths
    advantages = task_advantages(seen, rewards, lengths, config.gamma, config.gae_lambda)
    weights = (valid / valid.sum()).astype(np.float32)
    arrays = (seen, actions, log_probs, advantages, weights)
    return Samples(
        *(torch.as_tensor(array.reshape(valid.size, *array.shape[2:])) for array in arrays)
    )


def collect(name: str, config: Config, problem: Problem, theta: np.ndarray, task: np.ndarray):
    """Return the batches of one task, before and after adaptation, as arrays."""
    torch.set_num_threads(1)
    global ENVS
    if ENVS is None:
        envs = [ENVIRONMENTS[name][0]] * config.fast_batch_size
        ENVS = gymnasium.vector.SyncVectorEnv(envs)
    for env in ENVS.envs:
        env.set_task(task)
    tensor = torch.as_tensor(theta)
    inner = sample(ENVS, problem, tensor, config)
    adapted = problem.adapt(tensor.requires_grad_(), [inner]).detach()
    post = sample(ENVS, problem, adapted, config)
    return [[array.numpy() for array in batch] for batch in (inner, post)]


ENVS = None  # of this process


def main() -> None:
    """Train for a number of iterations."""
    name, iterations, *settings = sys.argv[1:]
    words = [f"env.name={name}", f"meta_batch_size={20 if name == 'navigation' else 40}"]
    config = load_config(None, [*words, *PUBLISHED, *settings])
    env = ENVIRONMENTS[name][0]()
    observed, actions = env.observation_space.shape[0], env.action_space.shape[0]
    network = config.policy
    sizes = (observed, *network.hidden_sizes, actions)
    problem = Problem(sizes, network.activation, False, (config.algorithm.fast_lr,))
    rng = np.random.default_rng(1)
    policy = make_policy(network, observed, actions, discrete=False)
    theta = policy.initial_parameters(rng)
    torch.set_num_threads(CORES)
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        for _ in range(int(iterations)):
            began = time.perf_counter()
            jobs = [
                (name, config, problem, theta, ENVIRONMENTS[name][1](rng))
                for _ in range(config.meta_batch_size)
            ]
            tasks: list[Task] = []
            for inner, post in pool.starmap(collect, jobs, chunksize=1):
                inner, post = (Samples(*map(torch.as_tensor, batch)) for batch in (inner, post))
                tasks.append(([inner], post))
            found, _ = meta_step(problem, torch.as_tensor(theta), tasks, config.algorithm)
            theta = theta if found is None else found.numpy()
            print(f"{time.perf_counter() - began:.6f}", flush=True)


if __name__ == "__main__":
    main()
