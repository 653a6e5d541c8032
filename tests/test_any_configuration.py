"""Whatever a configuration says: it runs, or it is refused in one sentence."""

import shutil
import time
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import yaml
from conftest import BAD_INPUT, HERE, _run_here, checkpoints, run
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from hpc_maml.algorithms import ALGORITHMS, algorithm_class
from hpc_maml.algorithms.pretrain import Pretrain
from hpc_maml.config import KEYS, load_config
from hpc_maml.errors import InputError
from hpc_maml.policies import NETWORKS, network_class
from hpc_maml.sampling.trajectory import batch_dtype
from hpc_maml.storage.archive_plan import Shapes, estimate, is_archived
from hpc_maml.yaml_text import Loader

# Environments that need no package beside those of hpc_maml, with keywords they take.
KWARGS: dict[str, list[str]] = {
    "navigation": ["{}", "{lineage: original}", "{lineage: pytorch}", "{lineage: none}"],
    "half_cheetah_vel": ["{lineage: original}", "{}"],
    "half_cheetah_dir": ["{}", "{lineage: pytorch}"],
    "ant_vel": ["{}", "{lineage: original}"],
    "ant_dir": ["{lineage: pytorch}"],
    "ant_goal": ["{}"],
    "bandit": ["{}", "{arms: 1}", "{arms: 0}", "{arms: -1}"],
    "tabular_mdp": ["{}", "{no_such_keyword: 1}"],
    "Pendulum-v1": ["{task_ranges: {g: [8, 12]}}", "{task_ranges: {m: [1, 2]}}", "{}"],
    "MountainCar-v0": ["{task_ranges: {goal_velocity: [0, 0.01]}}", "{task_ranges: {x: [0, 1]}}"],
}
# Sizes that keep a run small, and names; all other keys follow from their types.
WORDS: dict[str, st.SearchStrategy[Any]] = {
    "num_iterations": st.just(1),
    "meta_batch_size": st.integers(1, 4),
    "fast_batch_size": st.integers(2, 3),
    "horizon": st.integers(1, 6),
    "seed": st.one_of(st.integers(-1, 3), st.just(2**63 - 1), st.just(2**63)),
    "policy.hidden_sizes": st.lists(st.integers(1, 5), max_size=3),
    "algorithm.episodes_per_trial": st.integers(1, 3),
    "evaluation.tasks": st.integers(2, 4),
    "metrics.tensorboard": st.sampled_from(["on", "off"]),
    "metrics.wandb": st.just("off"),  # a server of its own for each run
    "mpi.wait_limit": st.sampled_from([60, 1.0e9]),
    "archive.max_bytes": st.one_of(st.just("null"), st.sampled_from([1, 100_000, 10**12])),
}
NUMBERS = [0, 1.0e-30, 1.0e-3, 0.3, 1, 1.5, 50, 1.0e30, -1, ".inf", ".nan"]
COUNTS = [1, 2, 3, 7, 0, "auto"]
RECURRENT = {"rl2", "gru"}  # the algorithm and the network that need each other
# Without these a run would not be small.
REQUIRED = {key for key in WORDS if not key.startswith(("seed", "archive"))}
SECTIONS = {"algorithm": (ALGORITHMS, algorithm_class), "policy": (NETWORKS, network_class)}


def words_of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values for a key of a type, some of which it does not take."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return st.sampled_from([str(value) for value in parts])
    if get_origin(annotation) in (Union, types.UnionType):
        return st.one_of(*(words_of_type(part) for part in parts))
    if get_origin(annotation) is list:
        return st.lists(words_of_type(parts[0]), max_size=3)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return words_of_type(parts[0])
    choices = {
        bool: ["true", "false"],
        int: COUNTS,
        float: NUMBERS,
        type(None): ["null"],
    }
    return st.sampled_from(choices[annotation])


def words_of(key: str, field: FieldInfo, *, valid: bool) -> st.SearchStrategy[str]:
    """Return words for a key, only such as it takes by itself if they are to be ``valid``."""
    values = WORDS[key] if key in WORDS else words_of_type(field.annotation)
    adapter = TypeAdapter(field.rebuild_annotation())

    def is_taken(value: Any) -> bool:
        try:
            adapter.validate_python(yaml.load(str(value), Loader), strict=True)
        except ValidationError:
            return False
        return True

    return (values.filter(is_taken) if valid else values).map(lambda value: f"{key}={value}")


@st.composite
def configurations(draw: st.DrawFn) -> list[str]:
    """Draw the words of a configuration: every key may be set."""
    valid = draw(st.sampled_from([True, True, True, False]))
    environment = draw(st.sampled_from(sorted(KWARGS)))
    kwargs = KWARGS[environment][: 1 if valid else None]
    words = [f"env.name={environment}", f"env.kwargs={draw(st.sampled_from(kwargs))}"]
    fields = {key: field for key, field in KEYS.items() if not key.endswith(".name")}
    del fields["env.kwargs"]
    kind = draw(st.sampled_from(["recurrent", "feed-forward", "any"]))
    for section, (table, class_of) in SECTIONS.items():
        names = {"recurrent": RECURRENT, "any": table}.get(kind, sorted({*table} - RECURRENT))
        name = draw(st.sampled_from(sorted({*names} & {*table})))
        words.append(f"{section}.name={name}")
        own = class_of(name).Settings.model_fields.items()
        fields |= {f"{section}.{key}": field for key, field in own if key != "name"}
    required = REQUIRED & set(fields)
    others = sorted(set(fields) - required)
    chosen = draw(st.lists(st.sampled_from(others), unique=True, max_size=8))
    keys = sorted(required) + chosen
    return words + [draw(words_of(key, fields[key], valid=valid)) for key in keys]


def runs_or_is_refused(words: list[str]) -> None:
    """Run a configuration in this process; check how it ends."""
    folder = Path.cwd() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    note(" ".join(f"'{word}'" for word in words))
    done = _run_here(*words, "--run-dir", str(folder))
    if done.returncode == 0:
        assert list(checkpoints(folder)) == ["iteration_000001.h5"]
    else:
        assert done.returncode == BAD_INPUT, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("hpc_maml: ")
        assert line.endswith(".")


# Values that no key takes, or none as large or as long.
HOSTILE = [
    *("1e400", "-0", "0x" + 5000 * "f", str(10**30), str(2**63), "1e-320", ".nan", "-.inf"),
    *("null", "~", "''", "{}", "[]", "[[]]", "{a: {b: [1, {c: d}]}}", "2020-01-01", "1:30:00"),
    *('!!int ""', "!!map [1]", "!!set [1]", "!!binary AAAA", "!!python/name:os.system ''"),
    *("&a [*a]", "{<<: {a: 1}}", "? x", "a: b: c", "\\x00", "\x00", "\u202e", "$HOME", "`id`"),
    *(2000 * "[", 2000 * "{", 100_000 * "x", f"[{'1,' * 20_000}1]", "os:system", "a:B", ":", "a:"),
    "{" + ", ".join(f"a{n}: 1" for n in range(5000)) + "}",
]


@st.composite
def hostile_configurations(draw: st.DrawFn) -> tuple[list[str], bool]:
    """Draw words of a configuration, mostly with one or two of which no key has the like.

    Also tell whether there are none of these, so that it is small enough to run.
    """
    words = draw(configurations())
    number = len(words)
    keys = [*sorted(KEYS), "algorithm.clip", "policy.hidden_sizes", "env.kwargs.x", "x", "", "."]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        words.append(f"{draw(st.sampled_from(keys))}={draw(st.sampled_from(HOSTILE))}")
    return words, len(words) == number


def load(words: list[str]) -> tuple[str, float]:
    """Load a configuration; return the sentence that refuses it, if one does, and CPU seconds.

    Whatever else is raised than InputError, or one that is no sentence, is a failure.
    """
    began, refusal = time.process_time(), ""
    try:
        load_config(None, words)
    except InputError as error:
        refusal = str(error)
    seconds = time.process_time() - began
    assert not refusal or refusal[-1] in ".?", refusal
    assert "\n" not in refusal, refusal
    assert len(refusal) < 1300, refusal
    return refusal, seconds


TINY = ["num_iterations=1", "meta_batch_size=2", "fast_batch_size=2", "horizon=3"]
HUGE = 10**30


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["algorithm.name=pretrain", "archive.adapted_parameters=true"], "adapts no parameters"),
        ([f"num_iterations={HUGE}"], "must be less than or equal to 1000000000"),
        ([f"evaluation.tasks={HUGE}", "evaluation.every=1"], "must be less than or equal to"),
        ([f"policy.hidden_sizes=[{HUGE}]"], "there may be 536870912 at most"),
        (["policy.hidden_sizes=[4, 1000000000000]"], "there may be 536870912 at most"),
        (["algorithm.name=rl2", "policy.name=gru", f"policy.hidden_size={HUGE}"], "may be 53687"),
        (["env.name=bandit", f"env.kwargs={{arms: {HUGE}}}"], "environment cannot be made"),
        (
            ["env.name=Pendulum-v1", f"env.kwargs={{task_ranges: {{g: [1, {10**400}]}}}}"],
            "environment cannot be made",
        ),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) else "",
)
def test_what_was_accepted_and_then_failed(words, sentence):
    assert sentence in run(HERE, *TINY, *words, code=BAD_INPUT).stderr


def test_one_phase_leaves_nothing_adapted_to_archive(monkeypatch):
    """An algorithm of a user's own may not say so: HDF5 then refused chunks of no phase."""
    monkeypatch.setattr(Pretrain, "adapts_parameters", True)
    words = ["algorithm.name=pretrain", "archive.adapted_parameters=true"]
    assert "adapts no parameters" in run(HERE, *TINY, *words, code=BAD_INPUT).stderr


@pytest.mark.parametrize("rollouts", ["none", "every", 1, 3, 7])
@pytest.mark.parametrize("iterations", [1, 6, 7, 8])
def test_the_archived_iterations_are_counted_without_a_loop(rollouts, iterations):
    """A sum over them took minutes for 10**9."""
    words = [*TINY[1:], f"archive.rollouts={rollouts}", f"num_iterations={iterations}"]
    config = load_config(None, words)
    shapes = Shapes(batch_dtype(3, 2, (2,), (2,), np.float32), 2, 9, adapted=False)
    each, total = estimate(config, shapes)
    number = sum(is_archived(config.archive, k + 1) for k in range(iterations))
    assert total == number * each


def campaign(examples: int):
    """Return the settings of the tests: the same examples at every call, none kept."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@campaign(40)
@given(configurations())
def test_it_runs_or_is_refused(words):
    runs_or_is_refused(words)


def test_it_is_loaded_or_refused_in_a_second():
    for name in ("ant_vel", "Pendulum-v1"):  # which are imported now
        load([f"env.name={name}"])

    @campaign(300)
    @given(hostile_configurations())
    def in_a_second(case):
        assert load(case[0])[1] < 1

    in_a_second()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@campaign(400)
@given(configurations())
def test_many_run_or_are_refused(words):
    runs_or_is_refused(words)
