"""Baseline and advantages against numbers worked out by hand, and a loop over episodes."""

import numpy as np
import pytest

from hpc_maml.sampling import baseline
from hpc_maml.sampling.advantages import (
    discounted_sums,
    generalised_advantages,
    normalise,
    task_advantages,
)


def test_features_by_hand():
    observations = np.array([[[0.5, -12.0]], [[2.0, 3.0]]], np.float32)  # [T=2, B=1, d=2]
    expected = [
        [[0.5, -10, 0.25, 100, 0, 0, 0, 1]],
        [[2, 3, 4, 9, 0.01, 0.0001, 0.000001, 1]],
    ]
    np.testing.assert_allclose(baseline.features(observations), expected, rtol=1e-14)


def test_fit_of_a_constant_by_hand():
    # all features but the last are 0 at the first step: minimise sum (y - c)^2 + ridge c^2
    observations, returns = np.zeros((1, 3, 1)), np.array([[1.0, 3.0, 100.0]])
    valid = np.array([[True, True, False]])
    coefficients = baseline.fit(observations, returns, valid)
    np.testing.assert_allclose(coefficients, [0, 0, 0, 0, 0, 4 / (2 + 1e-5)], rtol=1e-14)


def test_ridge_grows_until_the_solution_is_finite(monkeypatch):
    solve, attempts = np.linalg.solve, []

    def failing_twice(matrix, right):
        attempts.append(matrix)
        if len(attempts) == 1:
            raise np.linalg.LinAlgError
        return np.full(len(right), np.inf) if len(attempts) == 2 else solve(matrix, right)

    monkeypatch.setattr(np.linalg, "solve", failing_twice)
    valid = np.ones((1, 2), bool)
    coefficients = baseline.fit(np.zeros((1, 2, 1)), np.array([[1.0, 3.0]]), valid)
    np.testing.assert_allclose(coefficients[-1], 4 / (2 + 1e-3), rtol=1e-14)


def test_fit_recovers_a_function_of_state_and_time():
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((60, 8, 3))
    valid = np.arange(60)[:, None] < rng.integers(20, 61, 8)
    time = np.arange(60)[:, None] / 100
    returns = observations[..., 0] - 2 * observations[..., 2] ** 2 + 3 * time - time**2 + 5
    returns = np.where(valid, returns, 1e6)  # padding must not count
    coefficients = baseline.fit(observations, returns, valid)
    np.testing.assert_allclose(
        baseline.predict(coefficients, observations)[valid], returns[valid], atol=1e-3
    )


def test_of_few_samples_only_time_is_fitted():
    """With as many features as samples the advantages of any actions would be rounding."""
    rng = np.random.default_rng(0)
    observations, rewards = rng.standard_normal((20, 20, 198)), rng.standard_normal((20, 20))
    lengths = np.full(20, 20)
    found = task_advantages(observations, rewards, lengths, 0.99, 0.0)
    assert np.corrcoef(found.ravel(), rewards.ravel())[0, 1] > 0.95
    valid = np.ones((20, 20), bool)
    narrow = observations[..., :48]  # 100 features, four samples for each
    assert baseline.fit(narrow, rewards, valid)[:96].all()
    assert not baseline.fit(narrow[:19], rewards[:19], valid[:19])[:96].any()


def test_discounted_sums_by_hand():
    sums = discounted_sums(np.array([[1.0, 4.0], [2.0, 8.0], [3.0, 0.0]]), 0.5)
    assert sums.tolist() == [[2.75, 8.0], [3.5, 8.0], [3.0, 0.0]]


def test_generalised_advantages_by_hand():
    rewards = np.array([[1.0, 2.0], [1.0, 0.0], [4.0, 0.0]])  # the second episode has one step
    values = np.array([[2.0, 1.0], [4.0, 0.0], [1.0, 0.0]])
    # residuals of the first: 1 + 0.5 * 4 - 2 = 1, 1 + 0.5 * 1 - 4 = -2.5, 4 - 1 = 3
    # summed with 0.5 * 0.5: 3, -2.5 + 0.75 = -1.75, 1 - 0.4375 = 0.5625; of the second: 2 - 1 = 1
    found = generalised_advantages(rewards, values, gamma=0.5, gae_lambda=0.5)
    assert found.tolist() == [[0.5625, 1.0], [-1.75, 0.0], [3.0, 0.0]]


def test_normalise_by_hand():
    valid = np.array([[True, True], [True, False]])
    found = normalise(np.array([[1.0, 2.0], [3.0, 50.0]]), valid)
    deviation = np.sqrt(2 / 3)
    np.testing.assert_allclose(found, [[-1 / deviation, 0], [1 / deviation, 0]], atol=1e-7)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_task_advantages_agree_with_a_loop_over_episodes(gae_lambda):
    rng = np.random.default_rng(3)
    horizon, episodes, gamma = 30, 6, 0.95
    lengths = np.array([30, 1, 17, 30, 4, 29])
    observations = rng.standard_normal((horizon, episodes, 2)).astype(np.float32)
    rewards = rng.standard_normal((horizon, episodes)).astype(np.float32)
    found = task_advantages(observations, rewards, lengths, gamma, gae_lambda)

    rows, targets = [], []
    for episode, length in enumerate(lengths):
        for step in range(length):
            x = observations[step, episode].astype(float)
            t = step / 100
            rows.append([*x, *x**2, t, t * t, t**3, 1])
            later = rewards[step:length, episode].astype(float)
            targets.append(sum(gamma**k * reward for k, reward in enumerate(later)))
    ridge = np.sqrt(1e-5) * np.eye(8)
    coefficients, *_ = np.linalg.lstsq(
        np.concatenate([rows, ridge]), np.concatenate([targets, np.zeros(8)])
    )
    values = iter(rows @ coefficients)
    expected = []
    for episode, length in enumerate(lengths):
        v = [next(values) for _ in range(length)] + [0.0]
        residuals = [
            rewards[step, episode] + gamma * v[step + 1] - v[step] for step in range(length)
        ]
        expected += [
            sum((gamma * gae_lambda) ** k * each for k, each in enumerate(residuals[step:]))
            for step in range(length)
        ]
    expected = (np.array(expected) - np.mean(expected)) / np.std(expected)
    real = np.concatenate([found[:length, episode] for episode, length in enumerate(lengths)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(real, expected, atol=1e-5)
    assert not found[np.arange(horizon)[:, None] >= lengths].any()


def test_a_diverged_episode_gives_nan_and_no_error():
    rewards = np.ones((3, 2), np.float32)
    rewards[1, 0] = np.nan
    observations = np.zeros((3, 2, 1), np.float32)
    found = task_advantages(observations, rewards, np.array([3, 2]), 0.9, 1.0)
    assert np.isnan(found[0, 1])
    assert found[2, 1] == 0
