"""Aggregates over seeds, against numbers worked out by hand."""

import numpy as np
import pytest

from hpc_maml.report.statistics import (
    bootstrapped,
    interquartile_mean,
    over_seeds,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[1, 2], [3, 4], [5, 6], [7, 80]], 4.5),  # of 3, 4, 5, 6
        ([[0], [1], [2], [3], [100]], 2.0),  # one of five is dropped at either end
        ([[0], [1], [5]], 2.0),  # none of three is
        ([[7]], 7.0),
    ],
)
def test_the_interquartile_mean(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == expected


def test_the_interquartile_mean_of_many_samples():
    scores = np.random.default_rng(1).standard_normal((5, 4, 3))
    expected = [np.sort(each.ravel())[3:9].mean() for each in scores]
    np.testing.assert_allclose(interquartile_mean(scores), expected)


def test_a_score_that_is_not_known_makes_the_mean_unknown():
    scores = np.array([[np.nan], [-10.0], [-20.0], [-30.0]])
    assert np.isnan(interquartile_mean(scores))
    assert np.isnan(bootstrapped(scores, interquartile_mean)).all()


def test_the_bootstrap_draws_the_runs_of_each_task_by_themselves():
    seen = {}

    def mean(scores):
        values = scores.mean((-2, -1))
        for value in np.unique(values):
            seen[value] = np.mean(values == value)
        return values

    # Two runs of two tasks: 0 or 1, and 10 or 20. The mean of a task is one of three numbers, with
    # probabilities 1/4, 1/2, 1/4; both tasks are at their lowest in 1 of 16 samples.
    low, high = bootstrapped(np.array([[0.0, 10.0], [1.0, 20.0]]), mean)
    assert (low, high) == (5.0, 10.5)
    assert len(seen) == 9
    assert seen[5.0] == pytest.approx(1 / 16, abs=0.01)
    assert seen[(0.5 + 15) / 2] == pytest.approx(1 / 4, abs=0.02)


def test_the_interval_of_few_runs():
    scores = np.array([[0.0], [1.0]])  # means 0, 1/2 and 1 with 1/4, 1/2 and 1/4
    assert bootstrapped(scores, interquartile_mean) == (0.0, 1.0)
    assert bootstrapped(np.ones((5, 1)), interquartile_mean) == (1.0, 1.0)


def test_the_probability_of_improvement():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])
    # 1 > 0; 2 > 0, and 2 = 2 counts half; 3 is above both: 4.5 of 6 pairs
    assert probability_of_improvement(ours, theirs) == pytest.approx(4.5 / 6)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1.5 / 6)


def test_of_few_seeds_the_range_is_shown_and_of_more_an_interval():
    few = np.array([[1.0, 2.0], [3.0, 7.0]])
    band = over_seeds(few)
    assert [each.tolist() for each in band] == [[2.0, 4.5], [1.0, 2.0], [3.0, 7.0]]
    many = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    middle, low, high = over_seeds(many)
    half = 2.776 * np.sqrt(2.5) / np.sqrt(5)  # Student's t of four degrees of freedom
    assert (middle, low, high) == (3.0, pytest.approx(3 - half), pytest.approx(3 + half))
