"""Optimal returns against published numbers, brute force, and play in the environments."""

import numpy as np
import pytest

from hpc_maml import envs
from hpc_maml.envs import bandit_strategies, navigation, tabular_mdp
from hpc_maml.sampling.random_streams import Purpose, stream

PULLS = 10


def bandit_mean(index, pulls=PULLS, tasks=4000, arms=5):
    rng = np.random.default_rng(0)
    return bandit_strategies.strategy_returns(
        rng.random((tasks, arms)), pulls, 2, index, rng
    ).mean()


# Duan et al. 2016, "RL^2", table 1: five arms, ten pulls. The standard error here is 0.03.
def test_random_arms():
    assert bandit_mean(bandit_strategies.random_index(np.random.default_rng(1))) == pytest.approx(
        5.0, abs=0.1
    )


def test_gittins():
    assert bandit_mean(bandit_strategies.gittins_index(PULLS)) == pytest.approx(6.6, abs=0.12)


def test_ucb1():
    assert bandit_mean(bandit_strategies.ucb1_index()) == pytest.approx(6.7, abs=0.12)


def test_gittins_on_a_hundred_pulls_is_near_the_published():
    index = bandit_strategies.gittins_index(100)
    assert bandit_mean(index, pulls=100, tasks=1000) == pytest.approx(78.3, abs=1.5)


def bayes_optimum(pulls, arms):
    """Return the expected total reward of the best strategy, over all that may happen."""
    if not pulls:
        return 0.0
    values = []
    for number, (won, lost) in enumerate(arms):
        p = (won + 1) / (won + lost + 2)
        after = [list(arms), list(arms)]
        after[0][number], after[1][number] = (won + 1, lost), (won, lost + 1)
        win, lose = (bayes_optimum(pulls - 1, tuple(sorted(each))) for each in after)
        values.append(p * (1 + win) + (1 - p) * lose)
    return max(values)


def test_gittins_is_the_bayes_optimum_of_two_arms():
    expected = bayes_optimum(4, ((0, 0), (0, 0)))
    mean = bandit_mean(bandit_strategies.gittins_index(4), pulls=4, tasks=100_000, arms=2)
    assert mean == pytest.approx(expected, abs=0.01)


def test_gittins_of_the_last_pulls_by_hand():
    index = bandit_strategies.gittins_index(2)
    # With one pull left, the mean, 1/2. With two, one goes on after a win only, to the mean 2/3:
    # 1/2 - m + 1/2 (2/3 - m) = 0 for m = 5/9.
    none = np.zeros(1)
    assert index(none, none, 1) / bandit_strategies.CALIBRATION == pytest.approx(1 / 2, abs=0.005)
    assert index(none, none, 2) / bandit_strategies.CALIBRATION == pytest.approx(5 / 9, abs=0.005)


def test_navigation_optimum_is_what_the_environment_pays_for_it():
    env = envs.make("navigation", num_tasks=50, episodes_per_task=1)
    goals = env.sample_tasks(np.random.default_rng(0), 50)
    env.set_tasks(goals)
    env.reset()
    returns = np.zeros(50)
    for _ in range(100):
        offsets = goals - env._positions
        _, rewards, _, _, _ = env.step(offsets)  # clipped to 0.1
        returns += rewards
    assert navigation.optimal_returns(goals, 100) == pytest.approx(returns, abs=1e-9)
    # by hand: 0.15, 0.05 and 0 left in x, 0.1 and 0 in y
    expected = -(np.hypot(0.15, 0.1) + 0.05)
    assert navigation.optimal_returns(np.array([[-0.25, 0.2]]), 100) == pytest.approx([expected])
    assert navigation.optimal_returns(np.array([[-0.25, 0.2]]), 1) == pytest.approx(
        [-np.hypot(0.15, 0.1)]
    )


def test_tabular_mdp_optimum_is_the_best_of_all_plans():
    env = envs.make("tabular_mdp", num_tasks=1, episodes_per_task=1)
    task = env.sample_tasks(np.random.default_rng(0), 1)
    transitions, rewards = task[0, :500].reshape(10, 5, 10), task[0, 500:].reshape(10, 5)
    # Two steps: the first action, then for each state the second.
    best = max(
        rewards[0, first] + sum(transitions[0, first, s] * max(rewards[s]) for s in range(10))
        for first in range(5)
    )
    assert tabular_mdp.optimal_returns(task, 2) == pytest.approx([best])


def test_tabular_mdp_optimum_is_earned_by_its_own_policy():
    env = envs.make("tabular_mdp", num_tasks=2, episodes_per_task=4000)
    tasks = env.sample_tasks(np.random.default_rng(1), 2)
    env.set_tasks(tasks)
    observations, _ = env.reset(seed=0)
    transitions, rewards = tasks[:, :500].reshape(2, 10, 5, 10), tasks[:, 500:].reshape(2, 10, 5)
    values, plan = np.zeros((2, 10)), []
    for _ in range(10):
        worth = rewards + np.einsum("nsat,nt->nsa", transitions, values)
        values = worth.max(-1)
        plan.insert(0, worth.argmax(-1))
    returns = np.zeros(8000)
    for step in range(10):
        actions = plan[step].repeat(4000, 0)[np.arange(8000), observations.argmax(1)]
        observations, received, _, _, _ = env.step(actions)
        returns += received
    means = returns.reshape(2, 4000).mean(1)
    assert tabular_mdp.optimal_returns(tasks, 10) == pytest.approx(means, abs=0.3)


@pytest.mark.parametrize(
    ("name", "kwargs", "names"),
    [
        ("navigation", {"lineage": "original"}, ["optimal return with the goal known"]),
        ("tabular_mdp", {}, ["optimal return with the process known"]),
        ("bandit", {}, ["UCB1", "Gittins index"]),
        ("bandit", {"horizon": 500}, ["UCB1"]),
        ("bandit", {"rewards": "gaussian"}, []),
        ("half_cheetah_dir", {}, []),
        ("CartPole-v1", {"task_ranges": {"length": [0.5, 1.0]}}, []),
    ],
)
def test_environments_know_their_best_play(name, kwargs, names):
    env = envs.make(name, num_tasks=1, episodes_per_task=1, **kwargs)
    tasks = env.sample_tasks(stream(1, Purpose.EVALUATION_TASKS), 6)
    found, again = (env.best_play(tasks, stream(1, Purpose.STRATEGIES)) for _ in range(2))
    assert list(found) == names
    for key, values in found.items():
        assert values.shape == (6,)
        assert np.array_equal(values, again[key])
