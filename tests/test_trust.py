"""Somebody else's run folder: the code that it names runs only where the user says so."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import BAD_INPUT, HERE, SMALL, run

from hpc_maml import open_run

slow = pytest.mark.slow
NAMES = {
    "env.name": "planted:Env",
    "algorithm.name": "planted:Own",
    "policy.name": "planted:Network",
}
MODULE = """
from pathlib import Path
Path("PLANTED").touch()
from conformance_parts import Reinforce
from hpc_maml.envs.navigation import Navigation
class Env(Navigation):
    pass
class Own(Reinforce):
    pass
"""


@pytest.fixture
def theirs(copied: Path) -> Path:
    """Return a run folder of somebody else, beside a module that tells if it was imported."""
    Path("planted.py").write_text(MODULE)
    return copied.rename("theirs")


def name_in(folder: Path, key: str) -> None:
    """Make the run folder name code under a key."""
    config = open_run(folder).config
    section, _, inner = key.partition(".")
    config[section][inner] = NAMES[key]
    (folder / "config.yaml").write_text(yaml.dump(config, sort_keys=False))


@pytest.mark.parametrize(
    "key", ["env.name", *(pytest.param(key, marks=slow) for key in NAMES if key != "env.name")]
)
@pytest.mark.usefixtures("few_files")
def test_nothing_is_imported_that_only_the_run_folder_names(key, theirs):
    folder = theirs
    shutil.copy(folder / "config.yaml", "mine.yaml")
    name_in(folder, key)
    before = (folder / "config.yaml").read_bytes()
    commands = {
        "evaluate": ("evaluate", folder, "--tasks", "2", "--updates", "1"),
        "demo": ("demo", folder),
        "resume": ("--run-dir", folder),
        "resume with words": ("--run-dir", folder, "num_iterations=2"),
        "config": ("config", "--run-dir", folder),
        "doctor": ("doctor", "--run-dir", folder),
    }
    for what, words in commands.items():
        error = run(HERE, *words, code=BAD_INPUT).stderr
        assert error.count("\n") == 1, what
        assert f"theirs/config.yaml names {key} {NAMES[key]}: to import that runs code" in error
        assert (
            "Give --trust, or trust=True in Python, if you know who wrote the run folder" in error
        )
    other = run(HERE, "--config", "mine.yaml", "--run-dir", folder, code=BAD_INPUT).stderr
    assert "was started with another configuration" in other
    assert key in other
    run(HERE, "inspect", folder)
    said = run(HERE, "report", folder, "-o", "out").stdout
    assert ("There is no picture of trajectories: theirs names env.name" in said) == (
        key == "env.name"
    )
    assert not Path("PLANTED").exists()
    assert (folder / "config.yaml").read_bytes() == before


def test_a_baseline_is_not_trusted_either(theirs):
    name_in(theirs, "env.name")
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "mine")
    words = ("evaluate", "mine", "--tasks", "2", "--updates", "1", "--baseline", theirs)
    assert "theirs/config.yaml names" in run(HERE, *words, code=BAD_INPUT).stderr
    assert not Path("PLANTED").exists()


@pytest.mark.parametrize("key", ["env.name", pytest.param("algorithm.name", marks=slow)])
def test_what_the_user_names_or_trusts_is_imported(key):
    """A job script that gives the same words again needs no --trust."""
    Path("planted.py").write_text(MODULE)
    folder, first = Path("run"), (*SMALL, "num_iterations=1", f"{key}={NAMES[key]}")
    run(None, *first, "--run-dir", folder)
    Path("PLANTED").unlink()
    for words in (
        ("evaluate", folder, "--tasks", "2", "--updates", "1", "--trust"),
        (*first, "--run-dir", folder, "num_iterations=2"),
        ("--run-dir", folder, f"{key}={NAMES[key]}", "num_iterations=3"),
        ("--run-dir", folder, "--trust", "num_iterations=4"),
        ("config", "--run-dir", folder, "--trust"),
    ):
        run(None, *words)
        assert Path("PLANTED").exists(), words
        Path("PLANTED").unlink()
    Path("mine.yaml").write_text((folder / "config.yaml").read_text())
    run(None, "--config", "mine.yaml", "--run-dir", folder, "num_iterations=5")
    assert Path("PLANTED").exists()


def test_what_the_package_names_needs_no_trust(copied):
    run(HERE, "evaluate", copied, "--tasks", "2", "--updates", "1")
    assert "done: 5 iterations" in run(HERE, "--run-dir", copied).stdout
