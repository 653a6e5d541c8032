"""The numbers beside the pictures: a row for each run, one for each experiment, and CSV files."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from string import Formatter
from typing import Any, NamedTuple

import numpy as np

from hpc_maml.report.experiments import Environment, Experiment, RunData, declared, kinds
from hpc_maml.report.phases import EPISODE, FIRST, ends
from hpc_maml.report.statistics import (
    FEW_SEEDS,
    bootstrapped,
    comparable,
    final_scores,
    interquartile_mean,
    probability_of_improvement,
    returns,
    returns_of_trials,
)
from hpc_maml.storage.meta_tests import MetaTest, half_width

Row = dict[str, Any]


class Quantity(NamedTuple):
    """A number that sums up a run; NaN where a run has none."""

    words: str
    unit: str
    of: Callable[[RunData], float]
    layout: str  # of the number, as in a format string


def _in_the_end(phase: str) -> Callable[[RunData], float]:
    return lambda run: float(run.per_task[f"{phase}_return"][run.final].mean())


def _success_in_the_end(phase: str) -> Callable[[RunData], float]:
    return lambda run: (
        float(values[run.final].mean())
        if (values := run.per_task.get(f"{phase}_success")) is not None
        else np.nan
    )


def _of_trial(run: RunData) -> float:
    if run.phase != EPISODE:
        return np.nan
    return float(run.per_task["return_after_updates"][run.final].sum(-1).mean())


def _median(name: str) -> Callable[[RunData], float]:
    def median(run: RunData) -> float:
        values = run.column(name)
        known = values[~np.isnan(values)]  # some updates that are rejected have no KL
        return float(np.median(known)) if len(known) else np.nan

    return median


def _sum(name: str) -> Callable[[RunData], float]:
    return lambda run: float(run.column(name).sum())


# Of every run, whatever the algorithm.
QUANTITIES: dict[str, Quantity] = {
    "rejected_updates": Quantity(
        "rejected updates", "1", lambda run: float((run.column("accepted") == 0).sum()), ",.0f"
    ),
    "diverged_episodes": Quantity("diverged episodes", "1", _sum("diverged_episodes"), ",.0f"),
    "environment_steps": Quantity("environment steps", "1", _sum("environment_steps"), ",.0f"),
    "steps_per_second": Quantity(
        "steps per second",
        "1/s",
        lambda run: _sum("environment_steps")(run) / _sum("iteration_seconds")(run),
        ",.0f",
    ),
    "iteration_seconds": Quantity("iteration, median", "s", _median("iteration_seconds"), ",.2f"),
    "sampling_seconds": Quantity("sampling, median", "s", _median("sampling_seconds"), ",.2f"),
    "update_seconds": Quantity("outer step, median", "s", _median("update_seconds"), ",.2f"),
    "principal_busy": Quantity("principal busy", "1", _median("principal_busy"), ",.2f"),
    "agents_busy": Quantity("agents busy", "1", _median("agents_busy"), ",.2f"),
    "observers_busy": Quantity("observers busy", "1", _median("observers_busy"), ",.2f"),
    "total_seconds": Quantity("total time", "s", _sum("iteration_seconds"), ",.0f"),
}


def quantities(environments: Iterable[Environment]) -> dict[str, Quantity]:
    """Return what sums up the runs of some environments, by column of the CSV files.

    Returns are of the last tenth of the iterations. Of the metrics that algorithms declare, those
    that are printed in every iteration are here, too.
    """
    environments = list(environments)
    experiments = [each for environment in environments for each in environment.experiments]
    of_kinds = kinds(experiments)
    first, last = (f"return, {words}" for words in ends(of_kinds))
    found = {
        "return_before": Quantity(first, "reward", _in_the_end("pre_update"), ",.2f"),
        "return_after": Quantity(last, "reward", _in_the_end("post_update"), ",.2f"),
    }
    if any("post_update_success" in run.per_task for each in environments for run in each.runs):
        found["success_before"] = Quantity(
            first.replace("return", "success"), "1", _success_in_the_end("pre_update"), ",.3f"
        )
        found["success_after"] = Quantity(
            last.replace("return", "success"), "1", _success_in_the_end("post_update"), ",.3f"
        )
    if EPISODE in of_kinds:
        found["return_of_trial"] = Quantity("return of a trial", "reward", _of_trial, ",.2f")
    for name, metric in declared(run for each in environments for run in each.runs).items():
        if metric.console:
            words = f"{name.replace('_', ' ')}, median"
            found[name] = Quantity(words, metric.unit, _median(name), _layout(metric.console))
    return found | QUANTITIES


def _layout(console: str) -> str:
    """Return the layout of the number in a format string such as "kl {:.4f}"."""
    return next(
        layout or "" for _, name, layout, _ in Formatter().parse(console) if name is not None
    )


def run_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return a row for each run."""
    environments = list(environments)
    return [
        {
            **_place(environment, experiment),
            "run": run.name,
            "seed": run.config["seed"],
            "iterations": len(run.metrics),
        }
        | {name: quantity.of(run) for name, quantity in quantities(environments).items()}
        for environment, experiment in _each(environments)
        for run in experiment.runs
    ]


def experiment_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return a row for each quantity of an experiment: mean and confidence over its seeds."""
    rows = []
    for environment in environments:
        for experiment in environment.experiments:
            for name, quantity in quantities([environment]).items():
                values = np.array([quantity.of(run) for run in experiment.even_runs])
                rows.append(
                    {
                        **_place(environment, experiment),
                        "quantity": name,
                        "unit": quantity.unit,
                        "seeds": len(values),
                        "mean": float(values.mean()),
                        "confidence_95": float(half_width(values)),
                    }
                )
    return rows


def aggregate_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return a row for each score of an experiment: mean and interquartile mean of its runs.

    The interval of the latter is at 95 %, by the bootstrap over seeds; fewer than FEW_SEEDS, of
    which it would be too narrow, have none. Every other experiment of the environment with a score
    of the same kind has a column: how likely a run of this one beats its.
    """
    rows = []
    for environment, experiment in _each(environments):
        for name, scores in final_scores(experiment).items():
            interval = (
                bootstrapped(scores[:, None], interquartile_mean)
                if len(scores) >= FEW_SEEDS
                else (np.nan, np.nan)
            )
            row = {
                **_place(environment, experiment),
                "score": name,
                "seeds": len(scores),
                "mean": float(scores.mean()),
                "interquartile_mean": float(interquartile_mean(scores[:, None])),
                "low_95": interval[0],
                "high_95": interval[1],
            }
            for other in environment.experiments:
                theirs = final_scores(other).get(name)
                alike = other is not experiment and comparable(experiment, other, name)
                if theirs is not None and alike:
                    beats = probability_of_improvement(scores, theirs)
                    row[f"probability_above {other.label}"] = beats
            rows.append(row)
    return rows


def curve_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return the points of the learning curves."""
    rows = []
    for environment, experiment in _each(environments):
        bands = {phase: returns(experiment, phase) for phase in ("pre_update", "post_update")}
        for index in range(experiment.iterations):
            row = {
                **_place(environment, experiment),
                "seeds": len(experiment.runs),
                "iteration": index + 1,
            }
            for phase, band in bands.items():
                for name, values in band._asdict().items():
                    row[f"{phase}_return_{name}"] = float(values[index])
            rows.append(row)
    return rows


def test_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return the means of all meta-tests, with their 95 % confidence over the tasks.

    A phase is a number of "updates" or of an "episode"; "trial" is the sum of its episodes. Optimal
    returns have none. Each row has the settings of the "test".
    """
    return [
        {
            **_place(environment, experiment),
            "run": run.name,
            "seed": run.config["seed"],
            "iteration": test.iteration,
            "test": test.settings,
            "tasks": len(test.tasks),
            "policy": policy,
            "phase": phase,
            "number": number,
            "return_mean": float(values.mean()),
            "confidence_95": float(half_width(values)),
        }
        for environment, experiment in _each(environments)
        for run in experiment.runs
        for test in run.evaluations
        for policy, phase, number, values in _tested(test)
    ]


def success_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return the shares of successful episodes of all meta-tests, with 95 % confidence over tasks.

    A row without a class is of all tasks.
    """
    return [
        {
            **_place(environment, experiment),
            "run": run.name,
            "seed": run.config["seed"],
            "iteration": test.iteration,
            "test": test.settings,
            "class": name,
            "tasks": len(values),
            "policy": policy,
            "phase": test.phase_of(policy),
            "number": FIRST[test.phase_of(policy)] + phase,
            "success_mean": float(values[:, phase].mean()),
            "confidence_95": float(half_width(values[:, phase])),
        }
        for environment, experiment in _each(environments)
        for run in experiment.runs
        for test in run.evaluations
        for policy, shares in test.success.items()
        for name, values in [
            ("", shares),
            *((name, shares[own]) for name, own in test.by_class().items()),
        ]
        for phase in range(shares.shape[1])
    ]


def _tested(test: MetaTest) -> Iterator[tuple[str, str, int | str, np.ndarray]]:
    """Yield policy, phase, its number, and the returns of the tasks."""
    for policy, returns_of in test.returns.items():
        for phase, values in enumerate(returns_of.T):
            kind = test.phase_of(policy)
            yield policy, kind, FIRST[kind] + phase, values
        if (totals := returns_of_trials(test, policy)) is not None:
            yield policy, "trial", "", totals
    for name, values in test.optima.items():
        yield name, "", "", values


def metric_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return the metrics of every iteration of every run, as they are recorded."""
    return [
        {"run": run.name, "seed": run.config["seed"], "iteration": int(iteration)} | values
        for _, experiment in _each(environments)
        for run in experiment.runs
        for iteration, values in run.metrics.to_dict("index").items()
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV, with every digit; a number that is not there is left empty."""
    text = StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if _is_missing(value) else value for key, value in row.items()})
    return text.getvalue()


def _place(environment: Environment, experiment: Experiment) -> Row:
    return {
        "environment": environment.name,
        "experiment": experiment.label,
        "settings": experiment.settings,
    }


def _each(environments: Iterable[Environment]) -> list[tuple[Environment, Experiment]]:
    return [(each, experiment) for each in environments for experiment in each.experiments]


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)
