"""Means and the bands around them."""

from typing import NamedTuple

import numpy as np

from hpc_maml.report.experiments import Experiment

# Student's t at 97.5 %, for 1 to 30 degrees of freedom
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Band(NamedTuple):
    """A curve and what lies around it, each ``[n]``."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def half_width(values: np.ndarray) -> np.ndarray:
    """Return half the 95 % confidence interval of the mean over the first axis; NaN for one."""
    number = len(values)
    if number < 2:
        return np.full(values.shape[1:], np.nan)
    quantile = T_QUANTILES[number - 2] if number <= len(T_QUANTILES) + 1 else 1.96
    return quantile * values.std(0, ddof=1) / np.sqrt(number)


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
        run.per_task["return_after_updates"][run.final].reshape(
            -1, run.config["num_inner_steps"] + 1
        )
        for run in experiment.runs
    ]  # each [iterations * tasks, updates]
    if len(per_run) == 1:
        return mean_band(per_run[0])
    return mean_band(np.stack([values.mean(0) for values in per_run]))
