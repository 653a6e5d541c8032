"""The runs of a report, put together where they differ in nothing but their seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_maml.storage.reader import Run
from hpc_maml.config import NEUTRAL_KEYS
from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import MetaTest

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LABEL = 20  # characters


@dataclass(frozen=True)
class RunData:
    """What a report needs of one run, read once, so that a run may go on meanwhile."""

    run: Run
    name: str  # of the folder, or its path where names are not unique
    config: dict[str, Any]
    metrics: "pd.DataFrame"  # a row for each iteration
    per_task: dict[str, np.ndarray]  # by name, [iterations, n, ...]
    units: dict[str, str]
    versions: dict[str, str]
    evaluations: list[MetaTest]  # meta-tests, by iteration

    @property
    def evaluation(self) -> MetaTest | None:
        """The meta-test of the latest checkpoint, of those the one of most policies."""
        if not self.evaluations:
            return None
        return max(self.evaluations, key=lambda each: (each.iteration, len(each.returns)))

    @property
    def final(self) -> slice:
        """The last tenth of the iterations, at least one: how well the run does in the end."""
        return slice(-max(1, round(len(self.metrics) / 10)), None)


@dataclass(frozen=True)
class Experiment:
    """Runs of one configuration and different seeds."""

    label: str  # short enough for a picture
    settings: str  # in which it differs from the others
    runs: tuple[RunData, ...]

    @property
    def key(self) -> str:
        """The label, and what it stands for."""
        return self.label if self.settings in ("", self.label) else f"{self.label}: {self.settings}"

    @property
    def iterations(self) -> int:
        """The iterations that every run has done."""
        return min(len(each.metrics) for each in self.runs)


@dataclass(frozen=True)
class Environment:
    """The experiments whose returns can be compared, as they are of the same environment."""

    name: str
    experiments: tuple[Experiment, ...]


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read every run once; raises InputError for a folder without a run, or a damaged one."""
    unique = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.resolve().name for folder in unique]
    return [
        _read(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(unique, names, strict=True)
    ]


def by_environment(runs: Sequence[RunData]) -> list[Environment]:
    """Group runs by environment and configuration, in the order they are given.

    A seed given twice makes a second experiment: the two are not independent.
    """
    environments: dict[str, dict[str, list[RunData]]] = {}
    for run in runs:
        kinds = environments.setdefault(json.dumps(run.config["env"], sort_keys=True), {})
        settings = json.dumps(settings_of(run), sort_keys=True)
        occurrence = 0
        while run.config["seed"] in [
            each.config["seed"] for each in kinds.get(f"{occurrence} {settings}", [])
        ]:
            occurrence += 1
        kinds.setdefault(f"{occurrence} {settings}", []).append(run)
    return [
        Environment(_environment_name(json.loads(key)), _experiments(list(kinds.values())))
        for key, kinds in environments.items()
    ]


def settings_of(run: RunData) -> dict[str, Any]:
    """Return the dotted keys of a run that affect its result, without the seed."""
    kept = {key: value for key, value in run.config.items() if key not in (*NEUTRAL_KEYS, "seed")}
    return dict(_leaves(kept))


def _read(folder: Path, name: str) -> RunData:
    run = Run(folder)
    metrics, per_task = run.metrics, run.per_task
    if metrics.empty:
        raise InputError(f"The run in {folder} has not done an iteration yet.")
    rows = min(len(metrics), *(len(values) for values in per_task.values()))
    return RunData(
        run=run,
        name=name,
        config=run.config,
        metrics=metrics.iloc[:rows],
        per_task={key: values[:rows] for key, values in per_task.items()},
        units=run.units,
        versions=run.versions,
        evaluations=run.evaluations,
    )


def _experiments(groups: list[list[RunData]]) -> tuple[Experiment, ...]:
    settings = [settings_of(runs[0]) for runs in groups]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if len({str(each.get(key)) for each in settings}) > 1]
    descriptions = [
        ", ".join(f"{key.split('.')[-1]} {each.get(key)}" for key in differing) for each in settings
    ]
    found = []
    for number, (description, runs) in enumerate(zip(descriptions, groups, strict=True)):
        if descriptions.count(description) > 1:  # the same seeds again
            names = ", ".join(run.name for run in runs)
            description = f"{description}, {names}" if description else names
        if len(groups) == 1:
            label = runs[0].name if len(runs) == 1 else f"{len(runs)} seeds"
        elif len(description) <= LONGEST_LABEL:
            label = description
        else:
            label = chr(ord("A") + number) if number < 26 else f"No. {number + 1}"
        found.append(Experiment(label, description, tuple(runs)))
    return tuple(found)


def _environment_name(env: dict[str, Any]) -> str:
    kwargs = ", ".join(f"{key} {value}" for key, value in env["kwargs"].items())
    return f"{env['name']} ({kwargs})" if kwargs else env["name"]


def _leaves(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
