"""The numbers beside the pictures: a row for each run, one for each experiment, and CSV files."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

import numpy as np

from hpc_maml.report.experiments import Environment, Experiment, RunData
from hpc_maml.report.statistics import half_width, returns

Row = dict[str, Any]


class Quantity(NamedTuple):
    """A number that sums up a run."""

    words: str
    unit: str
    of: Callable[[RunData], float]
    digits: int


def _in_the_end(phase: str) -> Callable[[RunData], float]:
    return lambda run: float(run.per_task[f"{phase}_return"][run.final].mean())


def _median(name: str) -> Callable[[RunData], float]:
    return lambda run: float(run.metrics[name].median())


def _sum(name: str) -> Callable[[RunData], float]:
    return lambda run: float(run.metrics[name].sum())


# Returns are of the last tenth of the iterations.
QUANTITIES: dict[str, Quantity] = {
    "return_before": Quantity("return before", "reward", _in_the_end("pre_update"), 2),
    "return_after": Quantity("return after", "reward", _in_the_end("post_update"), 2),
    "kl": Quantity("KL, median", "nat", _median("kl_after"), 4),
    "rejected_updates": Quantity(
        "rejected updates", "1", lambda run: float((run.metrics["accepted"] == 0).sum()), 0
    ),
    "diverged_episodes": Quantity("diverged episodes", "1", _sum("diverged_episodes"), 0),
    "environment_steps": Quantity("environment steps", "1", _sum("environment_steps"), 0),
    "steps_per_second": Quantity(
        "steps per second",
        "1/s",
        lambda run: _sum("environment_steps")(run) / _sum("iteration_seconds")(run),
        0,
    ),
    "iteration_seconds": Quantity("iteration, median", "s", _median("iteration_seconds"), 2),
    "sampling_seconds": Quantity("sampling, median", "s", _median("sampling_seconds"), 2),
    "update_seconds": Quantity("outer step, median", "s", _median("update_seconds"), 2),
    "principal_busy": Quantity("principal busy", "1", _median("principal_busy"), 2),
    "agents_busy": Quantity("agents busy", "1", _median("agents_busy"), 2),
    "observers_busy": Quantity("observers busy", "1", _median("observers_busy"), 2),
    "total_seconds": Quantity("total time", "s", _sum("iteration_seconds"), 0),
}


def run_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return a row for each run."""
    return [
        {
            **_place(environment, experiment),
            "run": run.name,
            "seed": run.config["seed"],
            "iterations": len(run.metrics),
        }
        | {name: quantity.of(run) for name, quantity in QUANTITIES.items()}
        for environment, experiment in _each(environments)
        for run in experiment.runs
    ]


def experiment_rows(environments: Iterable[Environment]) -> list[Row]:
    """Return a row for each quantity of an experiment: mean and confidence over its seeds."""
    rows = []
    for environment, experiment in _each(environments):
        for name, quantity in QUANTITIES.items():
            values = np.array([quantity.of(run) for run in experiment.runs])
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
    """Return the means of all meta-tests, with their 95 % confidence over the tasks."""
    return [
        {
            **_place(environment, experiment),
            "run": run.name,
            "seed": run.config["seed"],
            "iteration": test.iteration,
            "tasks": len(test.tasks),
            "policy": policy,
            "updates": updates,
            "return_mean": float(values.mean()),
            "confidence_95": float(half_width(values)),
        }
        for environment, experiment in _each(environments)
        for run in experiment.runs
        for test in run.evaluations
        for policy, returns_of in (test.returns | test.optima).items()
        for updates, values in enumerate(np.atleast_2d(returns_of.T))
    ]


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
