"""The configuration of a run: a YAML file, then ``key=value`` words, checked as a whole."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpc_maml.errors import InputError, nearest

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]

BOOLEAN = "tag:yaml.org,2002:bool"


class Section(BaseModel):
    """A group of keys; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EnvConfig(Section):
    name: str = Field("navigation", description="environment, see docs/environments.md")
    kwargs: dict[str, Any] = Field({}, description="keyword arguments of the environment")


class PolicyConfig(Section):
    hidden_sizes: list[Count] = Field([64, 64], description="units of each hidden layer")
    activation: Literal["tanh", "relu"] = Field("tanh", description="tanh or relu")


class TrpoConfig(Section):
    max_kl: Positive = Field(1.0e-2, description="trust region: mean KL after adaptation")
    cg_iters: Count = Field(10, description="conjugate gradient iterations")
    cg_damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0e-5, description="added to the diagonal of the Fisher matrix"
    )
    fisher_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="fraction of the samples that the Fisher matrix is computed on"
    )
    ls_max_steps: Count = Field(15, description="line search steps before the update is rejected")
    ls_backtrack_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="line search step ratio"
    )


class TopologyConfig(Section):
    agents: Count | Literal["auto"] = Field("auto", description="agents, or auto")
    layout: Literal["split", "colocated"] = Field(
        "split", description="split: ranks of their own; colocated: every rank agent and observer"
    )


class CheckpointConfig(Section):
    every: Count = Field(1, description="iterations between checkpoints")
    keep: Count = Field(3, description="checkpoints kept")


class MetricsConfig(Section):
    tensorboard: Literal["auto", "on", "off"] = Field(
        "auto", description="event files for TensorBoard; auto: where it is installed"
    )
    wandb: Literal["online", "offline", "off"] = Field(
        "off", description="Weights & Biases; offline: kept in the run folder, for wandb sync"
    )


class ArchiveConfig(Section):
    rollouts: Count | Literal["every", "none"] = Field(
        10, description="every, none, or n: the first iteration and every n-th after it"
    )
    compression: Literal["none", "lzf", "gzip"] = Field("none", description="filter")
    adapted_parameters: bool = Field(False, description="also the adapted policies of every task")
    max_bytes: Count | None = Field(None, description="limit of the rollouts, null for none")
    when_full: Literal["refuse", "thin"] = Field(
        "refuse", description="refuse: at the start, if they could exceed it; thin: drop the oldest"
    )


class EvaluationConfig(Section):
    every: Count | None = Field(
        None, description="iterations from one meta-test on unseen tasks to the next; null: never"
    )
    tasks: Annotated[int, Field(ge=2)] = Field(40, description="unseen tasks")
    updates: Count = Field(3, description="inner steps, each on fresh trajectories")
    step_sizes: Literal["halved", "constant"] = Field(
        "halved", description="inner steps after the first: halved, as published, or all the same"
    )


class MpiConfig(Section):
    wait_limit: Positive = Field(
        1800.0, description="seconds a rank waits for another before it ends the job"
    )
    cuda_aware: Literal["auto", "on", "off"] = Field(
        "auto", description="hand the MPI library memory of GPUs; auto: if it can take it"
    )


class Config(Section):
    """Every key of a run; defaults are those of the PyTorch MAML lineage on 2-D navigation.

    But for ``num_iterations``: enough to see it learn in a few minutes.
    """

    algorithm: Literal["maml", "pretrain"] = Field(
        "maml", description="maml, or pretrain: one policy for all tasks, without inner steps"
    )
    aggregation: Literal["exact"] = Field(
        "exact", description="exact: one trust-region step on the whole meta-batch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(1, description="of every random draw")
    num_iterations: Count = Field(40, description="outer steps")
    meta_batch_size: Annotated[int, Field(ge=1, le=2**13)] = Field(
        20, description="tasks per iteration"
    )
    fast_batch_size: Annotated[int, Field(ge=2)] = Field(20, description="episodes per task")
    fast_lr: Positive = Field(0.1, description="inner step size")
    num_inner_steps: Count = Field(1, description="inner steps, each on fresh trajectories")
    first_order: bool = Field(False, description="drop the second derivatives (FOMAML)")
    gamma: UnitInterval = Field(0.99, description="discount factor")
    gae_lambda: UnitInterval = Field(1.0, description="lambda of generalised advantages")
    horizon: Count = Field(100, description="environment steps per episode at most")
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    trpo: TrpoConfig = TrpoConfig()
    topology: TopologyConfig = TopologyConfig()
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where agents compute")
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    archive: ArchiveConfig = ArchiveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mpi: MpiConfig = MpiConfig()

    @property
    def inner_step_sizes(self) -> tuple[float, ...]:
        """The size of each inner step in training."""
        return (self.fast_lr,) * (self.num_inner_steps if self.algorithm == "maml" else 0)

    @property
    def test_step_sizes(self) -> tuple[float, ...]:
        """The size of each inner step in a meta-test (Finn et al. 2017, appendix A.2)."""
        later = self.fast_lr / (2 if self.evaluation.step_sizes == "halved" else 1)
        return (self.fast_lr, *(later for _ in range(1, self.evaluation.updates)))


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


def load_config(file: str | Path | None, overrides: Sequence[str]) -> Config:
    """Return the checked configuration of a YAML file (or the defaults) and ``key=value`` words.

    Raises InputError for a missing or malformed file, an unknown key, a wrong type or range.
    """
    data = {} if file is None else _read_yaml(Path(file))
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"'{word}' is not understood: settings are written key=value.")
        _set(data, key, _parse(value, f"the value of {key}"))
    return check_config(data)


def check_config(data: dict[str, Any]) -> Config:
    """Return the configuration that a nested dictionary describes, or raise InputError."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def to_yaml(config: Config, *, neutral: bool = True) -> str:
    """Return the configuration as YAML; without ``neutral``, only the keys that affect results."""
    exclude = set() if neutral else set(NEUTRAL_KEYS)
    return yaml.safe_dump(config.model_dump(exclude=exclude), sort_keys=False)


def fingerprint(config: Config) -> str:
    """Return a hash of the keys that affect results: equal for runs that continue each other."""
    return hashlib.sha256(to_yaml(config, neutral=False).encode()).hexdigest()


def differing_keys(config: Config, other: Config) -> list[str]:
    """Return the dotted keys, of those that affect results, in which two configurations differ."""
    mine, theirs = (
        dict(_leaves(each.model_dump(exclude=set(NEUTRAL_KEYS)))) for each in (config, other)
    )
    return [key for key in mine | theirs if mine.get(key) != theirs.get(key)]


class _Loader(yaml.SafeLoader):
    """YAML 1.2: ``1e-2`` is a number, ``on`` and ``off`` are words; and no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (where PyYAML looks for them)
        first: [each for each in resolvers if each[0] != BOOLEAN or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping; raises ConstructorError for a key that stands there twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [str(key) for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice[0]}' stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"The config file {file} cannot be read: {reason}.") from None
    data = _parse(text, f"The config file {file}")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"The config file {file} must hold 'key: value' lines.")
    return data


def _set(data: dict[str, Any], dotted_key: str, value: Any) -> None:
    *sections, key = dotted_key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise InputError(f"{dotted_key}: '{section}' is not a section of keys.")
    data[key] = value


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sentence(error: ValidationError) -> str:
    """Turn the first complaint of a failed validation into one sentence."""
    complaint = error.errors()[0]
    # "agents: int or 'auto'" reports one complaint per alternative, named after the alternative
    path = [str(part) for part in complaint["loc"]]
    known = {key for key, _ in _leaves(Config().model_dump())}
    while len(path) > 1 and ".".join(path) not in known and complaint["type"] != "extra_forbidden":
        path.pop()
    key = ".".join(path)
    if complaint["type"] == "extra_forbidden":
        sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
        return f"Unknown config key '{key}'{nearest(key, known | sections)}."
    rule = complaint["msg"].replace("Input should be", "must be", 1)
    alternatives = [e["msg"] for e in error.errors() if e["loc"][: len(path)] == tuple(path)]
    if len(alternatives) > 1:
        rule = " or ".join(alternatives).replace("Input should be", "must be", 1)
        rule = rule.replace("Input should be ", "")
    return f"Config key '{key}' {rule} (got {complaint['input']!r})."
