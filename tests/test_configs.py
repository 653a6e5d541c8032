"""The files in configs/: they load, are complete, and explain every key."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from conftest import ROOT

from hpc_maml.config import Config, load_config
from hpc_maml.envs import ENVIRONMENTS

FILES = sorted((ROOT / "configs").glob("*.yaml"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def keys(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "env.kwargs":
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_environment_has_a_config():
    assert {file.stem for file in FILES} == set(ENVIRONMENTS)


@each_file
def test_loads_for_the_environment_of_its_name(file):
    assert load_config(str(file), []).env.name == file.stem


@each_file
def test_sets_every_key_in_the_order_of_config(file):
    assert list(keys(yaml.safe_load(file.read_text()))) == list(keys(Config().model_dump()))


@each_file
def test_every_key_has_a_comment(file):
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#") and not line.endswith(":"):
            key, _, comment = line.partition("# ")
            assert ":" in key, line
            assert comment, line


def test_defaults_are_the_navigation_experiment():
    file = str(ROOT / "configs" / "navigation.yaml")
    shorter = f"num_iterations={Config().num_iterations}"  # the defaults are for a first look
    assert load_config(file, [shorter]) == Config()
