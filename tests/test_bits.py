"""Short runs come to the parameters they always came to: to the bit, on what defines the bits.

A change that alters them on purpose is listed in CHANGELOG, and its new values below, which
``python tests/test_bits.py`` prints.
"""

import ctypes
import hashlib
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import HERE, run

from hpc_maml import open_run

SMALL = ("meta_batch_size=4", "fast_batch_size=5", "horizon=20", "device=cpu")
SMALL += ("num_iterations=3", "archive.rollouts=none", "metrics.tensorboard=off")
CASES = {
    "maml_trpo": ("policy.hidden_sizes=[16, 16]",),
    "promp": ("algorithm.name=promp", "policy.hidden_sizes=[16, 16]"),
    "pretrain": ("algorithm.name=pretrain", "policy.hidden_sizes=[16, 16]"),
    "rl2": (
        "algorithm.name=rl2",
        "env.name=tabular_mdp",
        "algorithm.episodes_per_trial=2",
        "policy.hidden_size=16",
    ),
}
# By what defines the bits: the libraries, and the kernels that they choose on this processor.
BITS = {
    ("2.4.6", "Haswell", "X86_V3"): {
        "maml_trpo": "2f957a8589f69364",
        "promp": "23e06cc76e62dc12",
        "pretrain": "700dbb3a7e0fef65",
        "rl2": "0a43d1126a142461",
    },
    ("2.4.6", "Haswell", "AVX512_ICL"): {
        "maml_trpo": "ee256ec406bd6a95",
        "promp": "23e06cc76e62dc12",
        "pretrain": "700dbb3a7e0fef65",
        "rl2": "0a43d1126a142461",
    },
    ("2.4.6", "SkylakeX", "AVX512_ICL"): {
        "maml_trpo": "b3203772e945d117",
        "promp": "34def4e6f9b90563",
        "pretrain": "21353e8bb3868638",
        "rl2": "49933ea6f9f11040",
    },
    ("2.4.6", "SkylakeX", "AVX512_SPR"): {
        "maml_trpo": "b3203772e945d117",
        "promp": "34def4e6f9b90563",
        "pretrain": "21353e8bb3868638",
        "rl2": "49933ea6f9f11040",
    },
}
# Euclidean norm of the parameters, on any machine: rounding may end a line search elsewhere.
NORMS = {"maml_trpo": 4.83, "promp": 5.12, "pretrain": 4.71, "rl2": 27.11}


def blas_kernels() -> str:
    """Return the kernels that NumPy's own OpenBLAS chose, empty for another library."""
    for library in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*"):
        name = ctypes.CDLL(str(library)).scipy_openblas_get_corename64_
        name.restype = ctypes.c_char_p
        return name().decode()
    return ""


def what_defines_bits() -> tuple[str, str, str]:
    """Return NumPy's version, and the kernels that BLAS and NumPy use."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [""])
    return np.__version__, blas_kernels(), found[-1]


def parameters(name: str) -> np.ndarray:
    """Return the parameters ``[P]`` after a short run."""
    run(HERE, *SMALL, *CASES[name], "--run-dir", name)
    found = open_run(name).checkpoint(3).parameters
    return np.concatenate([values.ravel() for values in found.values()])


def digest(theta: np.ndarray) -> str:
    return hashlib.blake2b(theta.tobytes(), digest_size=8).hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_are_what_they_were(name):
    theta = parameters(name)
    np.testing.assert_allclose(np.linalg.norm(theta), NORMS[name], rtol=0.05)
    if known := BITS.get(what_defines_bits(), {}).get(name):
        assert digest(theta) == known


if __name__ == "__main__":
    print(what_defines_bits())
    with TemporaryDirectory() as folder, chdir(folder):  # a run that is there would go on
        for each in CASES:
            theta = parameters(each)
            print(f'        "{each}": "{digest(theta)}",  # norm {np.linalg.norm(theta):.2f}')
