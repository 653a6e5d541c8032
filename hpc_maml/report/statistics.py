"""Means and the bands around them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpc_maml.storage.meta_tests import RUN, MetaTest, half_width
from hpc_maml.report.experiments import Experiment


class Band(NamedTuple):
    """A curve and what lies around it, each ``[n]``."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_band(values: np.ndarray) -> Band:
    """Return mean and 95 % confidence interval over the first axis of ``[samples, n]``."""
    mean, half = values.mean(0), half_width(values)
    return Band(mean, mean - half, mean + half)


def metric(experiment: Experiment, name: str) -> np.ndarray:
    """Return a metric of every run, ``[seeds, iterations]``, as far as all have got."""
    rows = experiment.iterations
    return np.stack([run.metrics[name].to_numpy()[:rows] for run in experiment.runs])


def returns(experiment: Experiment, phase: str) -> Band:
    """Return the return of an iteration, ``[iterations]``.

    Over seeds: mean and 95 % confidence interval. For one run: mean and middle half of its tasks.
    """
    if len(experiment.runs) > 1:
        return mean_band(metric(experiment, f"{phase}_return_mean"))
    tasks = experiment.runs[0].per_task[f"{phase}_return"]
    low, high = np.quantile(tasks, [0.25, 0.75], axis=1)
    return Band(tasks.mean(1), low, high)


def returns_after_updates(experiment: Experiment) -> Band:
    """Return the return after 0, 1, ... updates, ``[updates]``, in the end.

    Means with 95 % confidence intervals: over seeds, or over the tasks of one run.
    """
    per_run = [
        (values := run.per_task["return_after_updates"][run.final]).reshape(-1, values.shape[-1])
        for run in experiment.runs
    ]  # each [iterations * tasks, updates]
    return _over_seeds_or_tasks(per_run)


def policies(experiment: Experiment) -> list[str]:
    """Return the policies in the last meta-tests of all runs that have one, none without."""
    tests = _last_tests(experiment)
    names = tests[0].returns if tests else ()
    return [name for name in names if all(name in test.returns for test in tests)]


def test_returns(experiment: Experiment, policy: str) -> Band:
    """Return what a policy gets on unseen tasks after 0, 1, ... updates, ``[updates]``."""
    return _over_seeds_or_tasks([test.returns[policy] for test in _last_tests(experiment)])


def tests_on_the_way(experiment: Experiment) -> dict[int, Band]:
    """Return what the run gets on unseen tasks after 0, 1, ... updates, by iteration."""
    runs = [
        {each.iteration: each.returns[RUN] for each in run.evaluations}
        for run in experiment.runs
        if run.evaluations
    ]
    common = [each for each in runs[0] if all(each in run for run in runs)] if runs else []
    return {
        iteration: _over_seeds_or_tasks([run[iteration] for run in runs]) for iteration in common
    }


def optima(experiment: Experiment) -> dict[str, float]:
    """Return the mean return of the best play that is known, by its name."""
    tests = _last_tests(experiment)
    return {
        name: float(np.mean([test.optima[name].mean() for test in tests]))
        for name in tests[0].optima
        if all(name in test.optima for test in tests)
    }


def _last_tests(experiment: Experiment) -> list[MetaTest]:
    return [run.evaluation for run in experiment.runs if run.evaluation]


def _over_seeds_or_tasks(per_run: Sequence[np.ndarray]) -> Band:
    """Return means and 95 % confidence of ``[n, updates]``: over runs, or over the tasks of one."""
    if len(per_run) == 1:
        return mean_band(per_run[0])
    updates = min(values.shape[1] for values in per_run)
    return mean_band(np.stack([values.mean(0)[:updates] for values in per_run]))
