"""What can be had at best where it is known: yardsticks for a meta-test."""

from collections.abc import Callable

import numpy as np

from hpc_maml.envs.bandit import Bandit
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.envs.navigation import GOAL_TOLERANCE, Navigation
from hpc_maml.envs.tabular_mdp import TabularMdp, transitions_and_rewards

LONGEST_STEP = 0.1  # of navigation, in each coordinate
BANDIT_EPISODES = 20  # of each task
LONGEST_GITTINS = 100  # pulls; beyond, its tables take minutes
CALIBRATION = 200  # payoffs that a Gittins index is compared with: its resolution

# Index of every arm, given its rewards so far, its pulls and the number of pulls that are left.
Index = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def optima(
    env: TaskVectorEnv, tasks: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the returns ``[n]`` of the best play that is known, if any, by its name."""
    if isinstance(env, Navigation):
        return {"optimum with the goal known": navigation_optimum(tasks, env.horizon)}
    if isinstance(env, TabularMdp):
        return {"optimum with the process known": tabular_mdp_optimum(tasks, env.horizon)}
    if isinstance(env, Bandit) and env.rewards == "bernoulli":
        indices = {"UCB1": ucb1_index()}
        if env.horizon <= LONGEST_GITTINS:
            indices["Gittins index"] = gittins_index(env.horizon)
        return {
            name: bandit_returns(tasks, env.horizon, BANDIT_EPISODES, index, rng)
            for name, index in indices.items()
        }
    return {}


def navigation_optimum(tasks: np.ndarray, horizon: int) -> np.ndarray:
    """Return the highest returns ``[n]`` for known goals ``[n, 2]``.

    Both coordinates can approach at full speed at once, which is best for every step's distance.
    """
    left = abs(tasks)
    returns, running = np.zeros(len(tasks)), np.ones(len(tasks), np.bool_)
    for _ in range(horizon):
        left = np.maximum(left - LONGEST_STEP, 0.0)
        returns -= running * (left * left).sum(-1) ** 0.5
        running = running & (left >= GOAL_TOLERANCE).any(-1)
    return returns


def tabular_mdp_optimum(tasks: np.ndarray, horizon: int) -> np.ndarray:
    """Return the highest expected returns ``[n]`` from state 0, by value iteration."""
    transitions, rewards = transitions_and_rewards(tasks)
    values = np.zeros(rewards.shape[:2])
    for _ in range(horizon):
        values = (rewards + (transitions @ values[:, None, :, None])[..., 0]).max(-1)
    return values[:, 0]


def bandit_returns(
    tasks: np.ndarray, pulls: int, episodes: int, index: Index, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean total reward ``[n]`` of pulling the arm of highest index, Bernoulli arms.

    Each of ``episodes`` episodes begins without any knowledge; of arms that are equal, the first is
    pulled.
    """
    shape = (len(tasks), episodes, tasks.shape[1])
    rewards, taken = np.zeros(shape), np.zeros(shape)
    luck = rng.random((pulls, *shape[:2], 1))
    for pull in range(pulls):
        best = index(rewards, taken, pulls - pull).argmax(-1)[..., None]
        won = luck[pull] < np.take_along_axis(np.broadcast_to(tasks[:, None], shape), best, -1)
        chosen = np.arange(shape[-1]) == best
        rewards, taken = rewards + (chosen & won), taken + chosen
    return rewards.sum(-1).mean(-1)


def random_index(rng: np.random.Generator) -> Index:
    """Return an index that pulls any arm."""
    return lambda rewards, taken, left: rng.random(rewards.shape)


def ucb1_index(scale: float = 0.1) -> Index:
    """Return upper confidence bounds, after UCB1 of Auer et al. 2002.

    An arm that was never pulled has the mean of its prior, 1/2, and the bonus is scaled: for so few
    pulls, the bounds proved there explore too much.
    """

    def index(rewards: np.ndarray, taken: np.ndarray, left: int) -> np.ndarray:
        time = 1 + taken.sum(-1, keepdims=True)
        bonus = np.sqrt(2 * np.log(time) / (taken + 1))
        return (rewards + 1) / (taken + 2) + scale * bonus

    return index


def gittins_index(pulls: int) -> Index:
    """Return the finite-horizon Gittins index of Bernoulli arms with means from U[0, 1].

    It is the sure payoff that makes it all the same whether one goes on with the arm, free to stop,
    for the pulls that are left (Kaufmann et al. 2012, "On Bayesian upper confidence bounds").
    """
    # By pulls left: of the payoffs, how many it is worth to go on for, [successes, failures].
    tables = [np.zeros((pulls - left + 1,) * 2, np.int16) for left in range(pulls + 1)]
    successes, failures = np.ogrid[: pulls + 1, : pulls + 1]
    mean = (successes + 1) / (successes + failures + 2)
    for payoff in (np.arange(CALIBRATION) + 0.5) / CALIBRATION:
        value = np.zeros((pulls + 1,) * 2)  # with nothing left, then with one pull more each time
        for left in range(1, pulls + 1):
            size = pulls - left + 1
            p = mean[:size, :size]
            going_on = p - payoff + p * value[1:, :-1] + (1 - p) * value[:-1, 1:]
            tables[left] += going_on > 0
            value = np.maximum(going_on, 0.0)

    def index(rewards: np.ndarray, taken: np.ndarray, left: int) -> np.ndarray:
        won = rewards.astype(np.int64)
        return tables[left][won, taken.astype(np.int64) - won]

    return index
