"""Imports go down only; see docs/design.md, section 8."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, environment

PACKAGE = Path(__file__).parent.parent / "hpc_maml"

# From the bottom up; a module may import what stands on lines above its own, and its own line.
LAYERS = [
    ["errors", "config", "trajectory", "random_streams", "files", "stopping"],
    ["mlp", "policy", "baseline", "advantages", "trust_region", "envs"],
    ["maml", "rollout", "gpu"],
    ["mpi", "checkpoint", "metrics", "run_folder", "archive", "evaluation"],
    ["meta_step", "task_groups"],
    ["roles"],
    ["advice", "run", "console", "doctor", "sinks", "report"],
    ["training"],
    ["bench", "demo", "meta_testing"],
    ["cli", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def room(path: Path) -> str:
    """Return the module or subpackage of hpc_maml that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return every module a file imports anywhere, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_a_layer():
    assert {room(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hpc_maml" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[room(path)], f"{path.name} imports {name}"


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", ["maml", "trust_region", "meta_step", "mlp", "policy", "rollout"])
def test_the_algorithm_knows_no_mpi(name):
    assert "mpi4py" not in top_level(PACKAGE / f"{name}.py")
    assert not any(module.startswith("hpc_maml.mpi") for module in imports(PACKAGE / f"{name}.py"))


def test_only_agents_with_a_gpu_need_torch():
    with_torch = {path.relative_to(PACKAGE) for path in FILES if "torch" in top_level(path)}
    assert {path for path in with_torch if path.parent != Path("bench")} == {Path("gpu.py")}


def test_a_job_on_cpus_never_imports_torch():
    code = (
        "import sys; from mpi4py import MPI; from hpc_maml.cli import main;"
        "assert main(sys.argv[1:]) == 0; assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    words = (*SMALL, "num_iterations=1", "device=cpu", "metrics.tensorboard=on")
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment())
