"""The files in configs/: they load, are complete, explain every key, and run."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from conftest import ROOT
from mpi4py import MPI

from hpc_maml.config import Config, load_config
from hpc_maml.envs import ENVIRONMENTS
from hpc_maml.stopping import StopSignal
from hpc_maml.run.training import DONE, train

FILES = sorted((ROOT / "configs").glob("*.yaml"))
if sys.version_info >= (3, 14):  # no wheel of Box2D
    FILES = [file for file in FILES if not file.stem.startswith("lander")]
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def keys(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "env.kwargs":
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


LINEAGES = ("pytorch", "original")


def test_every_environment_and_lineage_has_a_config():
    names = {file.stem for file in FILES}
    assert names >= set(ENVIRONMENTS) - ({"lander"} if sys.version_info >= (3, 14) else set())
    with_lineages = ("navigation", "half_cheetah_vel", "half_cheetah_dir")
    with_lineages += ("ant_vel", "ant_dir", "ant_goal")
    assert names >= {f"{name}_{lineage}" for name in with_lineages for lineage in LINEAGES}


@each_file
def test_is_named_after_its_environment_and_lineage(file):
    env = load_config(str(file), []).env
    assert file.stem.startswith(env.name.partition("-")[0].lower())
    lineage = file.stem.rpartition("_")[2]
    assert env.kwargs.get("lineage") == (lineage if lineage in LINEAGES else None)


@each_file
def test_runs(file):
    words = ["num_iterations=2", "meta_batch_size=2", "fast_batch_size=3", "device=cpu"]
    code = train(MPI.COMM_SELF, lambda: load_config(file, words), Path("run"), StopSignal())
    assert code == DONE
    with h5py.File("run/metrics.h5") as metrics:
        for phase in ("pre_update", "post_update"):
            returns = metrics[f"tasks/{phase}_return"][()]
            assert returns.shape == (2, 2)
            assert np.isfinite(returns).all()


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
