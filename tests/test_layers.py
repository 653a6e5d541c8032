"""A package imports from those below it; see docs/design.md, section 8."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, environment

PACKAGE = ROOT / "hpc_maml"

# From the bottom up; a package may import from those on lines above its own, and on its own line.
LAYERS = [
    ["errors", "settings", "names", "yaml_text", "stopping", "standard_streams"],
    ["policies"],
    ["envs"],
    ["sampling"],
    ["algorithms"],
    ["config", "config_page"],
    ["parts", "trained_policy", "torch_export"],
    ["storage"],
    ["mpi"],
    ["report"],
    ["roles"],
    ["run"],
    ["reproduce"],
    ["cli", "scripting", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def package(path: Path) -> str:
    """Return the subpackage, or module, of hpc_maml that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return every module that a file imports anywhere, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def importers(module: str) -> set[str]:
    """Return the files of the package that import a module from elsewhere."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if module in {name.partition(".")[0] for name in imports(path)}
    }


def test_every_package_has_a_layer():
    assert {package(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_imports_go_down(name):
    for path in FILES:
        for module in imports(path) if package(path) == name else ():
            top, _, inner = module.partition(".")
            below = inner.partition(".")[0]
            if top == "hpc_maml" and below in LEVEL:
                assert LEVEL[below] <= LEVEL[name], f"{path} imports {module}"
            assert top != "benchmarks" or name == "cli", f"{path} imports {module}"


def test_algorithms_policies_sampling_and_environments_know_neither_mpi_nor_files():
    for module in ("mpi4py", "h5py"):
        found = {path.partition("/")[0] for path in importers(module)}
        assert not found & {"algorithms", "policies", "sampling", "envs"}


def test_only_networks_of_a_user_agents_with_a_gpu_and_exports_need_torch():
    assert importers("torch") == {"policies/torch_module.py", "mpi/gpu.py", "torch_export.py"}


@pytest.mark.parametrize("part", ["roles", "mpi", "storage", "report", "run/console.py"])
def test_what_runs_and_keeps_names_no_algorithm(part):
    for path in [PACKAGE / part, *(PACKAGE / part).rglob("*.py")]:
        named = path.is_file() and re.search(
            "maml_trpo|promp|rl2|pretrain|cg_|kl_after", path.read_text()
        )
        assert not named, f"{path} names {named[0]}"


@pytest.mark.parametrize("words", [(), ("algorithm.name=rl2", "policy.hidden_size=8")])
def test_a_job_on_cpus_never_imports_torch(words):
    code = (
        "import sys; from mpi4py import MPI; from hpc_maml.cli import main;"
        "assert main(sys.argv[1:]) == 0; assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    small = [word for word in SMALL if not (words and word.startswith("policy."))]
    settings = (*small, *words, "num_iterations=1", "metrics.tensorboard=on")
    subprocess.run([sys.executable, "-c", code, *settings], check=True, env=environment())
