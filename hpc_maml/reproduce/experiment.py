"""Experiments: which runs are made, how they are tested, and what was published; from YAML."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from hpc_maml.config import MOST_TASKS, MOST_UPDATES, Config, load_config
from hpc_maml.errors import InputError, nearest, reason_of, shown
from hpc_maml.settings import Count, NonNegative, Positive, Section, broken_rule
from hpc_maml.yaml_text import read_yaml

CONFIGS = Path(str(files("hpc_maml"))) / "configs"
FOLDER = CONFIGS / "reproduce"
SCORE = re.compile(r"after_\d+|trial|success|training_success")


class Published(Section):
    """A row of a published table."""

    source: str
    scores: dict[str, FiniteFloat]
    confidence_95: dict[str, NonNegative] = Field({})  # half of the interval
    environment_steps: Count | None = None  # of training, at most

    @model_validator(mode="after")
    def _known_scores(self) -> Self:
        for name in (*self.scores, *self.confidence_95):
            if not SCORE.fullmatch(name):
                raise ValueError(f"there is no score {name}: {SCORE.pattern.replace('|', ', ')}")
        for name in self.confidence_95:
            if name not in self.scores:
                raise ValueError(f"confidence_95 is of {name}, which is not among the scores")
        return self


class MetaTestSettings(Section):
    """What ``evaluate`` is told, as its options are called."""

    rule: Literal["evaluate", "published_navigation"] = "evaluate"
    tasks: Annotated[int, Field(ge=2, le=MOST_TASKS)] = 40
    updates: Annotated[int, Field(ge=1, le=MOST_UPDATES)] = 1
    episodes: Annotated[int, Field(ge=2)] | None = None
    step_sizes: Literal["halved", "constant"] | list[Positive] = "halved"
    last_actions: Literal["sampled", "mean"] = "sampled"

    @model_validator(mode="after")
    def _numbers_for_a_rule(self) -> Self:
        if self.rule != "evaluate" and not self.numbers:
            raise ValueError(f"{self.rule} needs step_sizes that are numbers")
        return self

    @property
    def numbers(self) -> list[float]:
        """The step sizes, empty where they are given in words."""
        return [] if isinstance(self.step_sizes, str) else self.step_sizes

    def evaluation(self) -> dict[str, Any]:
        """Return the keys of ``evaluation`` in a configuration."""
        number = len(self.numbers) or self.updates
        return self.model_dump(exclude={"rule", "episodes"}) | {"updates": number}

    def words(self) -> list[str]:
        """Return the options of ``evaluate``."""
        words = ["--tasks", str(self.tasks), "--last-actions", self.last_actions]
        if self.numbers:
            words += ["--step-sizes", *map(str, self.numbers)]
        else:
            words += ["--updates", str(self.updates), "--step-sizes", str(self.step_sizes)]
        return words + (["--episodes", str(self.episodes)] if self.episodes else [])


class Method(Section):
    """One row of our table: a configuration, trained with several seeds."""

    config: str  # a file in configs/, without .yaml
    settings: list[str] = Field([])  # key=value
    iterations: Count
    stop_at: float | None = None  # training ends at this return after adaptation
    test: MetaTestSettings = MetaTestSettings()
    published: Published

    @property
    def config_file(self) -> Path:
        """The configuration file."""
        return CONFIGS / f"{self.config}.yaml"


class Experiment(Section):
    """A published table: of runs that are trained, or of a benchmark of the checkout."""

    title: str
    about: str
    seeds: Count = 3  # 1, 2, ...
    chunk: Count = 20  # iterations that a run makes before another may go on
    tolerance: dict[str, NonNegative] = Field({})  # by score; otherwise the published interval
    methods: dict[str, Method] = Field({})
    benchmark: list[str] = Field([])  # instead of methods: of benchmarks/, with its options
    remarks: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.methods) == bool(self.benchmark):
            raise ValueError("an experiment has either methods or a benchmark")
        published = {score for each in self.methods.values() for score in each.published.scores}
        for name in self.tolerance:
            if name not in published:
                raise ValueError(f"tolerance is of {name}, which is not among the published scores")
        return self

    def tolerated(self, published: Published, score: str) -> float:
        """Return by how much a mean may be below the published one, and still count as reached."""
        return self.tolerance.get(score, published.confidence_95.get(score, 0.0))


def names() -> list[str]:
    """Return the names of the experiments that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def name_of(experiment: str) -> str:
    """Return the name of an experiment that is given by name or as a file."""
    return Path(experiment).stem


def read(experiment: str) -> Experiment:
    """Return an experiment by its name, or out of a file of one's own; raises InputError."""
    path = Path(experiment) if experiment.endswith(".yaml") else FOLDER / f"{experiment}.yaml"
    try:
        there = path.is_file()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from None
    if not there:
        raise InputError(
            f"There is no experiment {experiment}{nearest(experiment, names())}: there are "
            f"{', '.join(names())}, and files NAME.yaml of your own."
        )
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InputError(f"The experiment {path} must hold 'key: value' lines.")
    try:
        found = Experiment.model_validate(data)
    except ValidationError as error:
        raise InputError(f"The experiment {path}: {_sentence(error)}.") from None
    for name, method in found.methods.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"The experiment {path}: the method {shown(name)} is to name a folder: letters, "
                "digits, _ and - only."
            )
        configuration(method, seed=1)  # is it accepted?
        for score in method.published.scores:
            updates = method.test.evaluation()["updates"]
            if score.startswith("after_") and int(score[6:]) > updates:
                raise InputError(
                    f"The experiment {path}: methods.{name}: a test of {updates} updates has no "
                    f"score {score}."
                )
    return found


def _sentence(error: ValidationError) -> str:
    """Turn the first complaint of a failed validation into a sentence without its end."""
    complaint = error.errors()[0]
    path = [str(part) for part in complaint["loc"]]  # as methods, maml, test, tasks
    sections: dict[str, type[Section]]
    sections = {"": Experiment, "methods": Method, "test": MetaTestSettings, "published": Published}
    if complaint["type"] == "extra_forbidden":
        section = sections.get(path[-2] if len(path) > 1 else "", Method)
        return f"unknown key '{'.'.join(path)}'{nearest(path[-1], section.model_fields)}"
    if complaint["type"] == "missing":
        return f"'{'.'.join(path)}' has no default: give it a value"
    if not path:  # of the whole
        return complaint["msg"].removeprefix("Value error, ")
    # One complaint for each alternative is named after it, behind the key.
    known = {name for each in sections.values() for name in each.model_fields}
    key = ".".join(path[: 1 + max(place for place, part in enumerate(path) if part in known)])
    rule = broken_rule([e for e in error.errors() if ".".join(map(str, e["loc"])).startswith(key)])
    return f"'{key}' {rule} (got {shown(complaint['input'])})"


def configuration(method: Method, seed: int) -> Config:
    """Return the configuration of a run; raises InputError."""
    return load_config(method.config_file, [*method.settings, f"seed={seed}"])
