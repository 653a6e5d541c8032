"""Strategies for Bernoulli arms that need no learning, to compare a policy with."""

from collections.abc import Callable

import numpy as np

EPISODES = 20  # of each task
LONGEST_GITTINS = 100  # pulls; beyond, its tables take minutes
CALIBRATION = 200  # payoffs that a Gittins index is compared with: its resolution

# Index of every arm, given its rewards so far, its pulls and the number of pulls that are left.
Index = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def strategies(pulls: int) -> dict[str, Index]:
    """Return the best strategies for episodes of so many pulls, by name."""
    found = {"UCB1": ucb1_index()}
    if pulls <= LONGEST_GITTINS:
        found["Gittins index"] = gittins_index(pulls)
    return found


def strategy_returns(
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
