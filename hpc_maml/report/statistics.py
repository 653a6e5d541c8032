"""Means and the bands around them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hpc_maml.report.experiments import Experiment
from hpc_maml.report.phases import EPISODE
from hpc_maml.storage.meta_tests import RUN, MetaTest, half_width
from hpc_maml.storage.metrics import CLASS_SUCCESS

BOOTSTRAPS = 10_000  # samples
UNSEEN = "unseen tasks"  # the score of meta-tests
FEW_SEEDS = 5  # of fewer, an interval says little: their range is shown, or each of them


class Band(NamedTuple):
    """A curve and what lies around it, each ``[n]``."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_band(values: np.ndarray) -> Band:
    """Return mean and 95 % confidence interval over the first axis of ``[samples, n]``."""
    mean, half = values.mean(0), half_width(values)
    return Band(mean, mean - half, mean + half)


def over_seeds(values: np.ndarray) -> Band:
    """Return the mean over seeds of ``[seeds, n]`` with its 95 % confidence interval.

    Of fewer than FEW_SEEDS, with the lowest and the highest instead.
    """
    if 1 < len(values) < FEW_SEEDS:
        return Band(values.mean(0), values.min(0), values.max(0))
    return mean_band(values)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of scores ``[..., runs, tasks]``, all taken together.

    A quarter, rounded down, is dropped at either end (Agarwal et al. 2021, section 4.3). NaN where
    a score is NaN.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    dropped = flat.shape[-1] // 4
    means = flat[..., dropped : flat.shape[-1] - dropped].mean(-1)
    return np.where(np.isnan(flat).any(-1), np.nan, means)


def bootstrapped(
    scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], samples: int = BOOTSTRAPS
) -> tuple[float, float]:
    """Return the 95 % confidence interval of a statistic of scores ``[runs, tasks]``.

    By the stratified percentile bootstrap: the runs of each task are drawn anew by themselves
    (Agarwal et al. 2021, section 4.1). The draws are always the same.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(scores), size=(samples, *scores.shape))
    low, high = np.quantile(statistic(np.take_along_axis(scores[None], drawn, 1)), [0.025, 0.975])
    return float(low), float(high)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how likely a run of ours ``[n]`` has a higher score than one of theirs ``[m]``.

    Equal ones count half (Agarwal et al. 2021, section 4.3).
    """
    return float(np.mean(np.sign(ours[:, None] - theirs) / 2 + 0.5))


def final_scores(experiment: Experiment) -> dict[str, np.ndarray]:
    """Return the scores of every run ``[runs]``, by what they are of.

    Mean return in the last phase of the last tenth of the iterations that all have done, and that
    of the last meta-test, if all runs have one after the same iteration with the same settings.
    """
    training = [
        run.per_task["post_update_return"][run.final].mean() for run in experiment.even_runs
    ]
    found = {"training": np.array(training)}
    tests = _last_tests(experiment)
    if len(tests) == len(experiment.runs) and len({test.iteration for test in tests}) == 1:
        found[UNSEEN] = np.array([test.score for test in tests])
    return found


def comparable(ours: Experiment, theirs: Experiment, score: str) -> bool:
    """Return whether a score of two experiments is of the same: phases and meta-tests alike."""
    if score != UNSEEN:
        return True
    kinds = {(test.phase, test.settings) for each in (ours, theirs) for test in _last_tests(each)}
    return len(kinds) == 1


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

    As ``over_seeds``; for one run, mean and 95 % confidence interval over its tasks.
    """
    if any(f"{phase}_success" not in run.per_task for run in experiment.runs):
        return None
    if len(experiment.runs) > 1:
        return over_seeds(metric(experiment, f"{phase}_success_mean"))
    return mean_band(experiment.runs[0].per_task[f"{phase}_success"].T)


def training_class_success(experiment: Experiment) -> dict[str, Band]:
    """Return the share of successful episodes at the end of training, by class ``[1]``.

    Means with 95 % confidence intervals: over seeds, or over the iterations of one run.
    """
    prefix = CLASS_SUCCESS.format("")
    names = [name for name in experiment.runs[0].metrics if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): over_seeds_or_tasks(
            [run.column(name)[run.final, None] for run in experiment.even_runs]
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
        found[name] = over_seeds_or_tasks(
            [test.success[RUN][own, -1:] for test, own in zip(tests, chosen, strict=True)]
        )
    return found


def phase_returns_of_runs(experiment: Experiment) -> list[np.ndarray]:
    """Return the returns in each phase at the end of each run, ``[iterations * tasks, phases]``."""
    return [
        (values := run.per_task["return_after_updates"][run.final]).reshape(-1, values.shape[-1])
        for run in experiment.even_runs
    ]


def policies(experiment: Experiment) -> list[str]:
    """Return the policies in the last meta-tests of all runs that have one, none without."""
    tests = _last_tests(experiment)
    names = tests[0].returns if tests else ()
    kind = experiment.phase  # a baseline whose phases are of the other kind is in the CSV file
    return [
        name
        for name in names
        if all(name in test.returns and test.phase_of(name) == kind for test in tests)
    ]


def tested_after(experiment: Experiment) -> list[int]:
    """Return the iteration after which each run was tested that was."""
    return [test.iteration for test in _last_tests(experiment)]


def test_returns(experiment: Experiment, policy: str) -> Band:
    """Return what a policy gets on unseen tasks in each phase, ``[phases]``."""
    return over_seeds_or_tasks(test_returns_of_runs(experiment, policy))


def test_returns_of_runs(experiment: Experiment, policy: str) -> list[np.ndarray]:
    """Return the same of every run that was tested: ``[tasks, phases]``."""
    return [test.returns[policy] for test in _last_tests(experiment)]


def trial_returns(experiment: Experiment, policy: str) -> Band | None:
    """Return what a policy gets in a whole trial of an unseen task, ``[1]``, if it plays trials."""
    found = [returns_of_trials(test, policy) for test in _last_tests(experiment)]
    totals = [total for total in found if total is not None]
    if len(totals) < len(found):
        return None
    return over_seeds_or_tasks([total[:, None] for total in totals])


def returns_of_trials(test: MetaTest, policy: str) -> np.ndarray | None:
    """Return the sums over the episodes of trials ``[n]``, if the phases are episodes."""
    return test.returns[policy].sum(1) if test.phase_of(policy) == EPISODE else None


def tests_on_the_way(experiment: Experiment) -> dict[int, Band]:
    """Return what the run gets on unseen tasks in each phase, by iteration.

    Of tests with the same settings, those of which all runs have most.
    """
    tested = [run.evaluations for run in experiment.runs if run.evaluations]
    found: dict[int, Band] = {}
    for settings in dict.fromkeys(test.settings for tests in tested for test in tests):
        runs = [
            {each.iteration: each.returns[RUN] for each in tests if each.settings == settings}
            for tests in tested
        ]
        common = [each for each in runs[0] if all(each in run for run in runs)]
        if len(common) > len(found):
            found = {each: over_seeds_or_tasks([run[each] for run in runs]) for each in common}
    return found


def optima(experiment: Experiment) -> dict[str, float]:
    """Return the mean optimal returns, by name."""
    tests = _last_tests(experiment)
    return {
        name: float(np.mean([test.optima[name].mean() for test in tests]))
        for name in tests[0].optima
        if all(name in test.optima for test in tests)
    }


def _last_tests(experiment: Experiment) -> list[MetaTest]:
    """Return the last meta-test of every run that has one.

    All are of the same settings, and of the last iteration after which all of these runs were
    tested; where there is none, of the last of each. Of several settings those with most policies.
    """
    tested = [run.evaluations for run in experiment.runs if run.evaluations]
    if not tested:
        return []
    after = [{test.iteration for test in tests} for tests in tested]
    last = set.intersection(*after)
    iterations = [max(last or own) for own in after]
    by_settings = [
        {test.settings: test for test in tests if test.iteration == iteration}
        for tests, iteration in zip(tested, iterations, strict=True)
    ]
    common = [each for each in by_settings[0] if all(each in tests for tests in by_settings)]
    if not common:
        return []
    chosen = max(common, key=lambda each: min(len(tests[each].returns) for tests in by_settings))
    return [tests[chosen] for tests in by_settings]


def over_seeds_or_tasks(per_run: Sequence[np.ndarray]) -> Band:
    """Return means of ``[n, phases]`` as ``over_seeds``, or with 95 % confidence over tasks."""
    return mean_band(per_run[0]) if len(per_run) == 1 else over_seeds(seed_means(per_run))


def seed_means(per_run: Sequence[np.ndarray]) -> np.ndarray:
    """Return the means over tasks of ``[n, phases]``, ``[runs, phases]``; phases that all have."""
    phases = min(values.shape[1] for values in per_run)
    return np.stack([values.mean(0)[:phases] for values in per_run])
