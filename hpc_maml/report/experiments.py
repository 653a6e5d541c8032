"""The runs of a report, put together where they differ in nothing but their seed."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.config import NEUTRAL_KEYS
from hpc_maml.errors import InputError, printable
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.meta_tests import MetaTest, meta_test_files
from hpc_maml.storage.meta_tests import read as read_meta_test
from hpc_maml.storage.reader import Run
from hpc_maml.storage.run_folder import EVALUATIONS, METRICS, has_config

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LABEL = 20  # characters
NEEDED = ("pre_update_return", "post_update_return", "return_after_updates")


@dataclass(frozen=True)
class RunData:
    """What a report needs of one run, read once, so that a run may go on meanwhile."""

    run: Run
    name: str  # of the folder, or its path where names are not unique
    config: dict[str, Any]
    phase: str  # the kind of its phases, see Algorithm.phase
    metrics: "pd.DataFrame"  # a row for each iteration
    per_task: dict[str, np.ndarray]  # by name, [iterations, n, ...]
    declared: Mapping[str, Metric]  # metrics of the algorithm
    versions: dict[str, str]
    evaluations: list[MetaTest]  # meta-tests, by iteration
    trusted: bool  # what the run names as module:Class may be imported

    def column(self, name: str) -> np.ndarray:
        """Return a metric of all iterations, NaN where the run has none of that name."""
        if name not in self.metrics:
            return np.full(len(self.metrics), np.nan)
        return self.metrics[name].to_numpy()

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
        rest = self.settings.removeprefix(self.label).removeprefix(", ")
        return f"{self.label}: {rest}" if rest else self.label

    @property
    def iterations(self) -> int:
        """The iterations that every run has done."""
        return min(len(each.metrics) for each in self.runs)

    @property
    def even_runs(self) -> tuple[RunData, ...]:
        """The runs, each as far as all have got."""
        rows = self.iterations
        return tuple(
            replace(
                run,
                metrics=run.metrics[:rows],
                per_task={name: values[:rows] for name, values in run.per_task.items()},
            )
            for run in self.runs
        )

    @property
    def phase(self) -> str:
        """The kind of the phases, the same in all runs."""
        return self.runs[0].phase


@dataclass(frozen=True)
class Environment:
    """The experiments whose returns can be compared, as they are of the same environment."""

    name: str
    experiments: tuple[Experiment, ...]

    @property
    def runs(self) -> list[RunData]:
        """The runs of all experiments."""
        return [run for each in self.experiments for run in each.runs]


def kinds(experiments: Iterable[Experiment]) -> list[str]:
    """Return the kinds of phases that the experiments have."""
    return list(dict.fromkeys(each.phase for each in experiments))


def declared(runs: Iterable[RunData]) -> dict[str, Metric]:
    """Return the metrics that the algorithms of some runs declare, in their order."""
    found: dict[str, Metric] = {}
    for run in runs:
        for name, metric in run.declared.items():
            # of a name that several have, one that says how it is printed
            if name not in found or (metric.console and not found[name].console):
                found[name] = metric
    return found


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the run folders that are meant, also those in a folder of runs, and what is left out.

    Left out are runs without an iteration; raises InputError if nothing is left.
    """
    found = [run for folder in folders for run in _runs_in(folder)]
    begun = [folder for folder in found if Run(folder).committed_iterations]
    sentences = [
        f"{each / METRICS} is missing"
        if Run(each).checkpoints
        else f"The run in {each} has not done an iteration yet"
        for each in found
    ]
    left_out = [
        sentence for folder, sentence in zip(found, sentences, strict=True) if folder not in begun
    ]
    if not begun:
        raise InputError(f"{'; '.join(left_out)}.")
    return begun, [f"{each}: it is left out." for each in left_out]


def read_runs(folders: Sequence[Path], *, trust: bool = False) -> list[RunData]:
    """Read every run once; raises InputError for a folder without a run, or a damaged one.

    With ``trust``, what they name as ``module:Class`` may be imported.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    names = [printable(folder.resolve().name) for folder in unique]
    return [
        _read(folder, name if names.count(name) == 1 else printable(str(folder)), trust)
        for folder, name in zip(unique, names, strict=True)
    ]


def _runs_in(folder: Path) -> list[Path]:
    """Return a run folder itself, or the runs in a folder of runs, run-2 before run-10."""
    if has_config(folder) or not folder.is_dir():
        return [folder]
    found = (path for path in folder.iterdir() if has_config(path))
    return sorted(found, key=lambda path: _with_numbers(path.name)) or [folder]


def _with_numbers(name: str) -> list[tuple[str, int]]:
    """Return what names are sorted by: letters, and the number after them."""
    return [(letters, int(digits or -1)) for letters, digits in re.findall(r"(\D*)(\d*)", name)]


def by_environment(runs: Sequence[RunData]) -> list[Environment]:
    """Group runs by environment and configuration, in the order they are given.

    A seed given twice makes a second experiment: the two are not independent.
    """
    environments: dict[str, dict[str, list[RunData]]] = {}
    for run in runs:
        groups = environments.setdefault(json.dumps(run.config["env"], sort_keys=True), {})
        settings = json.dumps(settings_of(run), sort_keys=True)
        occurrence = 0
        while run.config["seed"] in [
            each.config["seed"] for each in groups.get(f"{occurrence} {settings}", [])
        ]:
            occurrence += 1
        groups.setdefault(f"{occurrence} {settings}", []).append(run)
    return [
        Environment(_environment_name(json.loads(key)), _experiments(list(groups.values())))
        for key, groups in environments.items()
    ]


def settings_of(run: RunData) -> dict[str, Any]:
    """Return the dotted keys of a run that affect its result, without the seed."""
    kept = {key: value for key, value in run.config.items() if key not in (*NEUTRAL_KEYS, "seed")}
    if isinstance(kept.get("algorithm"), str):  # a run of 0.1, whose other keys are flat
        kept["algorithm"] = {"name": kept["algorithm"]}
    return dict(_leaves(kept))


def _read(folder: Path, name: str, trust: bool) -> RunData:
    run = Run(folder)
    metrics, per_task = run.metrics, run.per_task
    if missing := [each for each in NEEDED if each not in per_task]:
        raise DamagedError(folder / METRICS, f"it has no {', '.join(missing)}")
    rows = min(len(metrics), *(len(values) for values in per_task.values()))
    evaluations = []
    for path in meta_test_files(folder / EVALUATIONS):
        try:
            evaluations.append(read_meta_test(path))
        except DamagedError as error:
            warnings.warn(f"{error} It is left out.", stacklevel=2)
    return RunData(
        run=run,
        name=name,
        config=run.config,
        phase=run.phase,
        metrics=metrics.iloc[:rows],
        per_task={key: values[:rows] for key, values in per_task.items()},
        declared=run.declared,
        versions=run.versions,
        evaluations=evaluations,
        trusted=trust,
    )


def _experiments(groups: list[list[RunData]]) -> tuple[Experiment, ...]:
    settings = [settings_of(runs[0]) for runs in groups]
    keys = dict.fromkeys(key for each in settings for key in each)
    # A key that only some have belongs to their algorithm or network, which the others lack.
    differing = [
        key for key in keys if len({str(each[key]) for each in settings if key in each}) > 1
    ]
    differing.sort(key=lambda key: key != "algorithm.name")
    descriptions = [
        ", ".join(_setting(key, each[key]) for key in differing if key in each) for each in settings
    ]
    algorithms = [str(each.get("algorithm.name")) for each in settings]
    found = []
    for number, (description, runs) in enumerate(zip(descriptions, groups, strict=True)):
        if descriptions.count(description) > 1:  # the same seeds again, or another layout
            names = ", ".join(run.name for run in runs)
            description = f"{description}, {names}" if description else names
        if len(groups) == 1:
            label = runs[0].name if len(runs) == 1 else f"{len(runs)} seeds"
        elif len(description) <= LONGEST_LABEL:
            label = description
        elif len(set(algorithms)) == len(groups) and len(algorithms[number]) <= LONGEST_LABEL:
            label = algorithms[number]
        else:
            label = chr(ord("A") + number) if number < 26 else f"No. {number + 1}"
        found.append(Experiment(label, description, tuple(runs)))
    return tuple(found)


def _setting(key: str, value: Any) -> str:
    """Return a setting in words; the name of an algorithm or a network says what it is."""
    name = key.rpartition(".")[2]
    return str(value) if name == "name" else f"{name} {value}"


def _environment_name(env: dict[str, Any]) -> str:
    kwargs = ", ".join(f"{key} {value}" for key, value in env["kwargs"].items())
    return f"{env['name']} ({kwargs})" if kwargs else env["name"]


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
