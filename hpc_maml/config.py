"""The configuration of a run: defaults in layers, YAML files, ``key=value`` words, then checked.

Each layer overrides those before it: the defaults of the keys, those of the environment, of its
lineage and of the algorithm, then the files, then the words.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import Field, ValidationError, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

from hpc_maml.algorithms import ALGORITHMS, algorithm_class
from hpc_maml.algorithms.algorithm import AlgorithmSettings
from hpc_maml.envs import DEFAULT_LINEAGE, declared_defaults
from hpc_maml.errors import InputError, nearest, shown
from hpc_maml.names import UntrustedError, is_ones_own
from hpc_maml.policies import NETWORKS, network_class
from hpc_maml.policies.network import NetworkSettings
from hpc_maml.settings import Count, Positive, Section, UnitInterval, broken_rule
from hpc_maml.yaml_text import DEEPEST, Dumper, parse_yaml, read_yaml

OLD_LAYOUT = "colocated"  # before there were teams
MOST_TASKS, MOST_UPDATES = 2**20, 1000  # of a meta-test
OLD_ALGORITHMS = ("maml", "pretrain")  # in files of 0.1, where ``algorithm`` was no section

NAMES = ("env.name", "algorithm.name", "policy.name")  # keys whose values may be imported

Files = str | Path | Sequence[str | Path] | None


class EnvConfig(Section):
    name: str = Field("navigation", description="the environment, see docs/environments.md")
    kwargs: dict[str, Any] = Field(
        {}, description="keyword arguments of the environment, such as {lineage: original}"
    )


class TopologyConfig(Section):
    agents: Count | Literal["auto"] = Field(
        "auto",
        description="number of teams; auto: one for each node, or with GPUs one for each GPU",
    )
    layout: Literal["auto", "team", "split"] = Field(
        "auto",
        description="team: every rank observes and computes; split: agents have ranks of their "
        "own; auto: split where there are GPUs, otherwise team on as many ranks as there are cores",
    )

    @field_validator("layout", mode="before")
    @classmethod
    def _explain_colocated(cls, value: Any) -> Any:
        if value == OLD_LAYOUT:
            raise ValueError("use team, in which every rank observes and computes")
        return value


class CheckpointConfig(Section):
    every: Count = Field(1, description="iterations between checkpoints")
    keep: Count = Field(3, description="number of last checkpoints that are kept")
    keep_every: Count | None = Field(
        None, description="also keep the checkpoint of every n-th iteration; null: no others"
    )
    keep_best: bool = Field(
        True, description="true: also keep the checkpoint of the best meta-test (evaluation.every)"
    )


class MetricsConfig(Section):
    tensorboard: Literal["auto", "on", "off"] = Field(
        "auto", description="event files for TensorBoard: on, off, or auto: if it is installed"
    )
    wandb: Literal["online", "offline", "off"] = Field(
        "off", description="Weights & Biases: online, offline (for wandb sync), or off"
    )


class ArchiveConfig(Section):
    rollouts: Count | Literal["every", "none"] = Field(
        10,
        description="rollouts that are archived: every, none, or n: the first iteration and "
        "every n-th after it",
    )
    compression: Literal["none", "lzf", "gzip"] = Field(
        "none", description="compression of the rollouts"
    )
    adapted_parameters: bool = Field(
        False, description="true: also archive the parameters of every adapted policy"
    )
    max_bytes: Count | None = Field(
        None, description="limit of the rollouts of a run, in bytes; null: no limit"
    )
    when_full: Literal["refuse", "thin"] = Field(
        "refuse",
        description="refuse: do not start a run whose rollouts would exceed the limit (before "
        "compression, without what HDF5 adds); thin: remove the oldest",
    )


class EvaluationConfig(Section):
    every: Count | None = Field(
        None, description="iterations between meta-tests during training; null: no meta-tests"
    )
    tasks: Annotated[int, Field(ge=2, le=MOST_TASKS)] = Field(
        40, description="unseen tasks of a meta-test"
    )
    updates: Annotated[int, Field(ge=1, le=MOST_UPDATES)] = Field(
        3, description="inner steps of a meta-test, each on new episodes"
    )
    step_sizes: Literal["halved", "constant"] | list[Positive] = Field(
        "halved",
        description="inner steps after the first: halved (half of fast_lr, as published), "
        "constant, or a "
        "list with the size of each step",
    )
    last_actions: Literal["sampled", "mean"] = Field(
        "sampled",
        description="actions in the last phase: sampled, or the mean (discrete: the most "
        "probable one)",
    )

    @model_validator(mode="after")
    def _one_size_for_each_update(self) -> Self:
        if not isinstance(self.step_sizes, str) and len(self.step_sizes) != self.updates:
            raise ValueError(f"it has {len(self.step_sizes)} step_sizes for {self.updates} updates")
        return self


class MpiConfig(Section):
    wait_limit: Positive = Field(
        1800.0, description="seconds that a rank waits for another before it ends the job"
    )
    cuda_aware: Literal["auto", "on", "off"] = Field(
        "auto",
        description="give MPI memory of GPUs: on, off, or auto: if a trial shows that MPI can "
        "use it",
    )


class Config(Section):
    """Every key of a run; subclasses have the keys of the chosen algorithm and network."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(1, description="seed of all random numbers")
    # Fewer than published: enough to see the default environment learn in a few minutes.
    num_iterations: Annotated[int, Field(ge=1, le=10**9)] = Field(
        40, description="number of outer steps; may be larger when a run is continued"
    )
    meta_batch_size: Annotated[int, Field(ge=1, le=2**13)] = Field(
        20, description="tasks per iteration"
    )
    fast_batch_size: Annotated[int, Field(ge=2)] = Field(
        20, description="episodes per task and phase"
    )
    gamma: UnitInterval = Field(0.99, description="discount factor")
    gae_lambda: UnitInterval = Field(0.95, description="lambda of generalised advantage estimation")
    horizon: Count = Field(100, description="environment steps of an episode at most")
    normalise_observations: bool = Field(
        False,
        description="true: normalise observations by their running mean and variance over all "
        "tasks",
    )
    env: EnvConfig = EnvConfig()
    policy: NetworkSettings
    algorithm: AlgorithmSettings
    topology: TopologyConfig = TopologyConfig()
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where agents compute: cpu, cuda, or auto: a GPU if torch finds one"
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    archive: ArchiveConfig = ArchiveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mpi: MpiConfig = MpiConfig()

    def __reduce__(self) -> tuple[Callable[..., "Config"], tuple[dict[str, Any]]]:
        """Pickle the values: the class is made anew where they arrive."""
        return _validate, (self.model_dump(),)


# Keys that do not change what is computed: they may differ when a run is continued.
NEUTRAL_KEYS = (
    "num_iterations",
    "topology",
    "device",
    "checkpoint",
    "metrics",
    "archive",
    "evaluation",
    "mpi",
)


class Setting(NamedTuple):
    """The value of a key, and the layer that it comes from."""

    value: Any
    source: str


class Resolved(NamedTuple):
    """A configuration, and where the values come from that are not the default of their key."""

    config: Config
    sources: Mapping[str, str]  # by dotted key


def load_config(
    files: Files = None, words: str | Sequence[str] = (), trusted: Collection[str] | None = None
) -> Config:
    """Return the checked configuration of YAML files, in order, and ``key=value`` words.

    Of names ``module:Class`` in the files only those in ``trusted`` are imported, without it all.
    Raises InputError for a missing or malformed file, an unknown key, a wrong type or range, and
    UntrustedError for a name that is not to be imported.
    """
    return resolve(files, [words] if isinstance(words, str) else words, trusted).config


def resolve(
    files: Files, words: Sequence[str] = (), trusted: Collection[str] | None = None
) -> Resolved:
    """Return ``load_config``, and where its values come from."""
    if files is None:
        files = []
    elif isinstance(files, str | Path):
        files = [files]
    given: dict[str, Setting] = {}
    for file in files:
        given |= _settings(_read_yaml(Path(file)), f"file {file}")
    in_files = dict(given)
    _check_spaces(words)
    for word in words:
        given |= _read_word(word, given)
    untrusted = {
        key: setting.value
        for key, setting in given.items()
        if key in NAMES
        and trusted is not None
        and is_ones_own(setting.value)
        and setting is in_files.get(key)  # a word may give the same
        and setting.value not in trusted
    }
    if untrusted:
        raise UntrustedError(files[-1], untrusted)
    return _resolve(given)


def keys_named(name: str) -> list[str]:
    """Return the dotted keys of this name, or those whose last part it is."""
    sections: dict[str, list[type[Section]]] = {
        "algorithm": [algorithm_class(each).Settings for each in ALGORITHMS],
        "policy": [network_class(each).Settings for each in NETWORKS],
    }
    known = dict.fromkeys(KEYS)
    for section, classes in sections.items():
        for fields in (each.model_fields for each in classes):
            known |= dict.fromkeys(f"{section}.{key}" for key in fields)
    return [key for key in known if name in (key, key.rpartition(".")[2])]


def own_names(config: Config) -> list[str]:
    """Return the names ``module:Class`` in a configuration."""
    names = (getattr(config, key.partition(".")[0]).name for key in NAMES)
    return [name for name in names if is_ones_own(name)]


def check_config(data: Mapping[str, Any]) -> Config:
    """Return the configuration that a nested dictionary describes, or raise InputError."""
    return _resolve(_settings(data, "word")).config


def to_yaml(config: Config, *, neutral: bool = True) -> str:
    """Return the configuration as YAML; without ``neutral``, only the keys that affect results."""
    exclude = set() if neutral else set(NEUTRAL_KEYS)
    return yaml.dump(config.model_dump(exclude=exclude), Dumper=Dumper, sort_keys=False)


def fingerprint(config: Config) -> str:
    """Return a hash of the keys that affect results: equal for runs that continue each other."""
    return hashlib.sha256(to_yaml(config, neutral=False).encode()).hexdigest()


def differing_keys(config: Config, other: Config) -> list[str]:
    """Return the dotted keys, of those that affect results, in which two configurations differ."""
    mine, theirs = (
        dict(leaves(each.model_dump(exclude=set(NEUTRAL_KEYS)))) for each in (config, other)
    )
    return [key for key in mine | theirs if mine.get(key) != theirs.get(key)]


# Layers


def _resolve(given: dict[str, Setting]) -> Resolved:
    """Return the configuration of what files and words give, over the defaults they imply."""
    implied = _of_environment(given)
    algorithm = algorithm_class(_name("algorithm", implied | given))
    implied |= _settings(algorithm.defaults, "algorithm")
    network = network_class(_name("policy", implied | given))
    chosen = {"algorithm": algorithm.Settings, "policy": network.Settings}

    def applies(key: str) -> bool:
        """Tell whether the chosen algorithm or network has the key, if it is for one of them."""
        section, _, inner = key.partition(".")
        return section not in chosen or inner in chosen[section].model_fields

    settings = {key: each for key, each in implied.items() if applies(key)} | given
    config = _validate(_nested(settings))
    return Resolved(config, {key: each.source for key, each in settings.items()})


def _of_environment(given: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the defaults of the chosen environment, and over them those of its lineage."""
    name, kwargs = _name("env", given), given.get("env.kwargs", Setting({}, "")).value
    lineage = kwargs.get("lineage", DEFAULT_LINEAGE) if isinstance(kwargs, dict) else None
    try:
        environment, of_lineage = declared_defaults(name, lineage)
    except ValueError as error:
        raise InputError(f"Config key 'env.name': {error}.") from None
    return _settings(environment, "environment") | _settings(of_lineage, f"lineage {lineage}")


def _name(section: str, settings: Mapping[str, Setting]) -> str:
    """Return the name of the environment, algorithm or policy."""
    key = f"{section}.name"
    name = settings[key].value if key in settings else None
    # a name of another type is reported by the check of the whole
    return name if isinstance(name, str) else KEYS[key].default


def _settings(data: Mapping[str, Any], source: str) -> dict[str, Setting]:
    """Return the settings of a nested dictionary, such as a file's, by dotted key."""
    found = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and (value or key in SECTIONS):
            for inner, each in value.items():
                found[f"{key}.{inner}"] = Setting(each, source)
        elif key in SECTIONS:
            raise InputError(
                f"Config key '{key}' is a section of keys, such as {SECTIONS[key]} "
                f"(got {shown(value)})."
            )
        else:
            found[str(key)] = Setting(value, source)
    return found


def _read_word(word: str, given: Mapping[str, Setting]) -> dict[str, Setting]:
    dotted_key, equals, text = word.partition("=")
    if not equals or not dotted_key:
        raise InputError(f"'{word}' is not understood: settings are written key=value.")
    value = parse_yaml(text, f"the value of {dotted_key}")
    section, *inner = dotted_key.split(".")
    if len(inner) > DEEPEST:
        raise InputError(f"{dotted_key}: keys go {DEEPEST} levels deep at most.")
    if not inner:
        return _settings({section: value}, "word")
    key = f"{section}.{inner[0]}"
    if section in given:
        raise InputError(f"{dotted_key}: '{section}' is not a section of keys.")
    old = given[key].value if key in given else {}
    return {key: Setting(_replaced(old, inner[1:], value, dotted_key), "word")}


def _check_spaces(words: Sequence[str]) -> None:
    """Raise InputError for a setting that spaces around its = have made several words."""
    for before, word in pairwise(words):
        if word.startswith("=") or (before.endswith("=") and "=" not in word):
            meant = re.sub(" *= *", "=", " ".join(words))
            raise InputError(f"Settings are written without spaces around the =: {meant}.")


def _replaced(data: Any, path: Sequence[str], value: Any, dotted_key: str) -> Any:
    """Return nested dictionaries with ``value`` at ``path``."""
    if not path:
        return value
    if not isinstance(data, dict):
        raise InputError(f"{dotted_key}: there are no keys in {shown(data)}.")
    first, *rest = path
    return data | {first: _replaced(data.get(first, {}), rest, value, dotted_key)}


def _nested(settings: Mapping[str, Setting]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, (value, _) in settings.items():
        section, _, inner = key.partition(".")
        if not inner:
            data[section] = value
        elif isinstance(data.setdefault(section, {}), dict):
            data[section][inner] = value
        else:
            raise InputError(f"{key}: '{section}' is not a section of keys.")
    return data


def leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their dotted keys."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Checks


def _validate(data: dict[str, Any]) -> Config:
    """Return the configuration with these values, and with the defaults of keys it lacks."""
    data = {"algorithm": {}, "policy": {}} | data
    names = _settings({section: data[section] for section in ("algorithm", "policy")}, "")
    algorithm = algorithm_class(_name("algorithm", names))
    network = network_class(_name("policy", names))
    chosen = _config_class(algorithm.Settings, network.Settings)
    try:
        return chosen.model_validate(data)
    except ValidationError as error:
        raise InputError(_sentence(error, chosen, names)) from None


@cache
def _config_class(
    algorithm: type[AlgorithmSettings], network: type[NetworkSettings]
) -> type[Config]:
    """Return the class with the keys of an algorithm and of a network."""
    return create_model(
        "Config",
        __base__=Config,
        __module__=__name__,
        algorithm=(algorithm, ...),
        policy=(network, ...),
    )


def _fields(config: type[Config]) -> dict[str, FieldInfo]:
    """Return the fields of all keys, by dotted key."""
    found = {}
    for key, field in config.model_fields.items():
        of_section = getattr(field.annotation, "model_fields", None)
        if of_section is None:
            found[key] = field
        else:
            found |= {f"{key}.{inner}": each for inner, each in of_section.items()}
    return found


KEYS = _fields(Config)  # those of every run
SECTIONS = {key.partition(".")[0]: key for key in reversed(KEYS) if "." in key}  # their first keys


def _sentence(error: ValidationError, config: type[Config], names: Mapping[str, Setting]) -> str:
    """Turn the first complaint of a failed validation into one sentence."""
    known = _fields(config)
    complaint = error.errors()[0]
    path, given = [str(part) for part in complaint["loc"]], complaint["input"]
    if complaint["type"] == "extra_forbidden":
        key = ".".join(path)
        if isinstance(given, dict) and given:  # a section that is not known
            key = next(leaves(given, f"{key}."))[0]
        return f"Unknown config key '{key}'{_hint(key, known, names)}."
    # "agents: int or 'auto'" reports one complaint per alternative, named after the alternative
    while len(path) > 1 and ".".join(path) not in known:
        path.pop()
    key = ".".join(path)
    if complaint["type"] == "missing":
        return f"Config key '{key}' has no default: give it a value."
    rule = broken_rule([e for e in error.errors() if e["loc"][: len(path)] == tuple(path)])
    return f"Config key '{key}' {rule} (got {shown(given)})."


def _hint(key: str, known: Iterable[str], names: Mapping[str, Setting]) -> str:
    """Say which key may be meant by one that is not known."""
    section, dot, inner = key.rpartition(".")
    # Compared without their sections, which would make all keys of a section alike.
    by_inner: dict[str, list[str]] = {}
    for each in known:
        by_inner.setdefault(each.rpartition(".")[2], []).append(each)
    own = [name for name, keys in by_inner.items() if section + dot + name in keys]
    if inner in by_inner:  # it stands in another section
        return f" (did you mean {' or '.join(map(repr, by_inner[inner]))}?)"
    if close := get_close_matches(inner, own, n=1):
        return f" (did you mean '{section}{dot}{close[0]}'?)"
    if section in ("algorithm", "policy"):
        others = ", ".join(name for name in own if name != "name")
        return f": {section} {_name(section, names)} has {others or 'no keys'}"
    if close := get_close_matches(inner, by_inner, n=1):
        return f" (did you mean '{by_inner[close[0]][0]}'?)"
    return nearest(key.partition(".")[0], SECTIONS)


def _read_yaml(file: Path) -> dict[str, Any]:
    data = read_yaml(file)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"The config file {file} must hold 'key: value' lines.")
    if data.get("algorithm") in OLD_ALGORITHMS:
        raise InputError(
            f"The config file {file} was written by an older hpc_maml (0.1 layout): its run can "
            "be read, reported and inspected, but not continued or tested."
        )
    topology = data.get("topology")
    if isinstance(topology, dict) and topology.get("layout") == OLD_LAYOUT:
        topology["layout"] = "team"  # of an older run, whose result no layout changes
    return data
