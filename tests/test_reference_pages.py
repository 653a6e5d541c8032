"""The generated pages of the documentation: every key, metric and command is in them."""

import sys

import pytest
from conftest import ROOT

from hpc_maml import cli
from hpc_maml.algorithms import ALGORITHMS, algorithm_class
from hpc_maml.config import KEYS, load_config
from hpc_maml.envs import ENVIRONMENTS
from hpc_maml.policies import NETWORKS, TORCH_MODULE, network_class
from hpc_maml.storage.metrics import METRICS, PER_TASK, SUCCESS_PER_TASK, success_metrics
from hpc_maml.yaml_text import parse_yaml

sys.path.insert(0, str(ROOT / "docs"))

import reference_pages


def cells(text: str, name: str, heading: str) -> list[str]:
    """Return the cells of the row of a name, in the tables between a heading and the next."""
    own = text.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    (row,) = (line for line in own.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in row.strip("|").replace(r"\|", "/").split(" | ")]


def test_every_key_of_every_run_is_there_with_all_that_is_known_of_it():
    text = reference_pages.configuration()
    for key, field in KEYS.items():
        section = key.partition(".")[0] if "." in key else ""
        heading = f"`{section}`" if section else "Keys without a section"
        name, default, values, meaning = cells(text, key, heading)
        assert name.startswith(f"`{key}`{{ #{key} }}")
        assert default.strip("`")
        assert values
        assert meaning
        assert field.description.split()[0].strip("`") in meaning
        config = load_config(words=[f"{key}={default.strip('`')}"])  # it is valid YAML, too
        assert config == load_config()


@pytest.mark.parametrize(
    ("section", "classes"),
    [
        ("algorithm", {name: algorithm_class(name) for name in ALGORITHMS}),
        (
            "policy",
            {name: network_class(name) for name in NETWORKS}
            | {"module:Class": network_class(TORCH_MODULE)},
        ),
    ],
)
def test_every_key_of_an_algorithm_or_network_is_in_its_table(section, classes):
    text = reference_pages.configuration()
    for name, found in classes.items():
        own = set(found.Settings.model_fields) - {"name"}
        assert own
        for key in own:
            row = cells(text, f"{section}.{key}", f"`{section}.name={name}`")
            assert f"{{ #{name}.{key} }}" in row[0]
            assert all(row)


def test_values_and_bounds_in_words():
    text = reference_pages.configuration()
    assert cells(text, "gamma", "Keys without a section")[2] == "number ≥ 0, ≤ 1"
    assert cells(text, "seed", "Keys without a section")[2] == "integer ≥ 0, < 2⁶³"
    assert cells(text, "topology.agents", "`topology`")[2] == "integer ≥ 1 or `auto`"
    assert cells(text, "device", "Keys without a section")[2] == "`auto`, `cpu` or `cuda`"
    assert cells(text, "checkpoint.keep_every", "`checkpoint`")[1:3] == [
        "`null`",
        "integer ≥ 1 or `null`",
    ]
    step_sizes = "`halved` or `constant` or list of: number > 0"
    assert cells(text, "evaluation.step_sizes", "`evaluation`")[2] == step_sizes
    assert cells(text, "algorithm.cg_damping", "`algorithm.name=maml_trpo`")[1] == "`1e-05`"
    assert "↻" in cells(text, "num_iterations", "Keys without a section")[0]
    assert "↻" not in cells(text, "horizon", "Keys without a section")[0]


def test_defaults_of_environments_and_algorithms_are_those_that_a_run_gets():
    text = reference_pages.configuration().split("## Defaults of environments and algorithms")[1]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > len(ENVIRONMENTS)
    for where, defaults in rows:
        config = load_config(words=where.strip("`").split("` `")).model_dump()
        for word in defaults.strip("`").split("`, `"):
            key, value = word.split("=")
            section, _, inner = key.partition(".")
            found = config[section][inner] if inner else config[section]
            assert found == parse_yaml(value, key)


def test_every_metric_is_there_with_unit_shape_and_meaning():
    text = reference_pages.metrics()
    tables = {
        "Of every run": METRICS,
        "Of environments that report success": success_metrics(["CLASS"]),
        "Of every task": PER_TASK | SUCCESS_PER_TASK,
        **{f"`algorithm.name={name}`": algorithm_class(name).metrics for name in ALGORITHMS},
    }
    for heading, declared in tables.items():
        for name, metric in declared.items():
            row = cells(text, name, heading)
            assert ("†" in row[0]) == metric.wall_clock
            assert row[2] == f"`{metric.shape}`"
            assert row[3] == metric.description
            assert row[1] == metric.unit or "environments.md" in row[1]


def test_every_command_and_option_is_there():
    text = reference_pages.commands()
    for name in cli.COMMANDS:
        assert f"### {name}\n\n```text\nusage: hpc_maml {name} " in text
    assert "--last-actions {sampled,mean}" in text


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_a_page_of_the_documentation_shows_it(name):
    assert f"<!-- generated: {name}\n" in (ROOT / "docs" / f"{name}.md").read_text()
