"""Means and the bands around them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpc_maml.report.experiments import Experiment
from hpc_maml.report.phases import EPISODE
from hpc_maml.storage.meta_tests import RUN, MetaTest, half_width
from hpc_maml.storage.metrics import CLASS_SUCCESS


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
    return np.stack([run.column(name)[:rows] for run in experiment.runs])


def returns(experiment: Experiment, phase: str) -> Band:
    """Return the return of an iteration, ``[iterations]``.

    Over seeds: mean and 95 % confidence interval. For one run: mean and middle half of its tasks.
    """
    if len(experiment.runs) > 1:
        return mean_band(metric(experiment, f"{phase}_return_mean"))
    tasks = experiment.runs[0].per_task[f"{phase}_return"]
    low, high = np.quantile(tasks, [0.25, 0.75], axis=1)
    return Band(tasks.mean(1), low, high)


def success(experiment: Experiment, phase: str) -> Band | None:
    """Return the share of successful episodes of an iteration, ``[iterations]``, if it is known.

    Over seeds: mean and 95 % confidence interval. For one run: over its tasks.
    """
    if any(f"{phase}_success" not in run.per_task for run in experiment.runs):
        return None
    if len(experiment.runs) > 1:
        return mean_band(metric(experiment, f"{phase}_success_mean"))
    return mean_band(experiment.runs[0].per_task[f"{phase}_success"].T)


def training_class_success(experiment: Experiment) -> dict[str, Band]:
    """Return the share of successful episodes at the end of training, by class ``[1]``.

    Means with 95 % confidence intervals: over seeds, or over the iterations of one run.
    """
    prefix = CLASS_SUCCESS.format("")
    names = [name for name in experiment.runs[0].metrics if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): _over_seeds_or_tasks(
            [run.column(name)[run.final, None] for run in experiment.runs]
        )
        for name in names
    }


def class_success(experiment: Experiment) -> dict[str, Band]:
    """Return the share of successful episodes in the last phase of meta-tests, by class ``[1]``.

    Means with 95 % confidence intervals: over seeds, or over the tasks of one run. Of a single
    kind of tasks, that of all.
    """
    tests = [test for test in _last_tests(experiment) if RUN in test.success]
    if not tests:
        return {}
    names = {name: None for test in tests for name in test.by_class()} or {"all": None}
    found = {}
    for name in names:
        chosen = [test.by_class().get(name, np.ones(len(test.tasks), bool)) for test in tests]
        found[name] = _over_seeds_or_tasks(
            [test.success[RUN][own, -1:] for test, own in zip(tests, chosen, strict=True)]
        )
    return found


def phase_returns(experiment: Experiment) -> Band:
    """Return the return of each phase, ``[phases]``, in the end.

    Means with 95 % confidence intervals: over seeds, or over the tasks of one run.
    """
    per_run = [
        (values := run.per_task["return_after_updates"][run.final]).reshape(-1, values.shape[-1])
        for run in experiment.runs
    ]  # each [iterations * tasks, phases]
    return _over_seeds_or_tasks(per_run)


def policies(experiment: Experiment) -> list[str]:
    """Return the policies in the last meta-tests of all runs that have one, none without."""
    tests = _last_tests(experiment)
    names = tests[0].returns if tests else ()
    return [name for name in names if all(name in test.returns for test in tests)]


def test_returns(experiment: Experiment, policy: str) -> Band:
    """Return what a policy gets on unseen tasks in each phase, ``[phases]``."""
    return _over_seeds_or_tasks([test.returns[policy] for test in _last_tests(experiment)])


def trial_returns(experiment: Experiment, policy: str) -> Band | None:
    """Return what a policy gets in a whole trial of an unseen task, ``[1]``, if it plays trials."""
    found = [returns_of_trials(test, policy) for test in _last_tests(experiment)]
    totals = [total for total in found if total is not None]
    if len(totals) < len(found):
        return None
    return _over_seeds_or_tasks([total[:, None] for total in totals])


def returns_of_trials(test: MetaTest, policy: str) -> np.ndarray | None:
    """Return the sums over the episodes of trials ``[n]``, if the phases are episodes.

    A baseline of another algorithm has phases of its own kind, mostly of another number.
    """
    found = test.returns[policy]
    if test.phase != EPISODE or found.shape[1] != test.returns[RUN].shape[1]:
        return None
    return found.sum(1)


def tests_on_the_way(experiment: Experiment) -> dict[int, Band]:
    """Return what the run gets on unseen tasks in each phase, by iteration.

    Of the phases, as many as all tests have.
    """
    runs = [
        {each.iteration: each.returns[RUN] for each in run.evaluations}
        for run in experiment.runs
        if run.evaluations
    ]
    common = [each for each in runs[0] if all(each in run for run in runs)] if runs else []
    bands = {
        iteration: _over_seeds_or_tasks([run[iteration] for run in runs]) for iteration in common
    }
    phases = min((len(band.middle) for band in bands.values()), default=0)
    return {
        iteration: Band(*(values[:phases] for values in band)) for iteration, band in bands.items()
    }


def optima(experiment: Experiment) -> dict[str, float]:
    """Return the mean optimal returns, by name."""
    tests = _last_tests(experiment)
    return {
        name: float(np.mean([test.optima[name].mean() for test in tests]))
        for name in tests[0].optima
        if all(name in test.optima for test in tests)
    }


def _last_tests(experiment: Experiment) -> list[MetaTest]:
    return [run.evaluation for run in experiment.runs if run.evaluation]


def _over_seeds_or_tasks(per_run: Sequence[np.ndarray]) -> Band:
    """Return means and 95 % confidence of ``[n, phases]``: over runs, or over the tasks of one."""
    if len(per_run) == 1:
        return mean_band(per_run[0])
    phases = min(values.shape[1] for values in per_run)
    return mean_band(np.stack([values.mean(0)[:phases] for values in per_run]))
