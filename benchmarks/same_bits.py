"""Compare the parameters that MAML-TRPO and pretrain reach with those of an older commit, bitwise.

    python -m benchmarks.same_bits [COMMIT]

Checks COMMIT (by default the last before algorithms were classes) out into a temporary folder, runs
the same short jobs with both programs, and exits with 1 if a parameter differs in one bit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parent.parent
BEFORE = "2b4d926"
NAVIGATION = ("num_iterations=5", "meta_batch_size=8", "fast_batch_size=10")
CHEETAH = ("env.name=half_cheetah_vel", "num_iterations=3", "meta_batch_size=6")
CHEETAH += ("fast_batch_size=4", "horizon=50")
ORIGINAL = (*CHEETAH, "env.kwargs={lineage: original}")
BANDIT = ("env.name=bandit", "horizon=10", "num_iterations=3")
# Words for the old program, where keys of the algorithm stood on the top level, and for this one.
CASES = {
    "navigation": (NAVIGATION, NAVIGATION),
    "half_cheetah_vel": (CHEETAH, CHEETAH),
    "first order": (
        (*NAVIGATION, "first_order=true"),
        (*NAVIGATION, "algorithm.first_order=true"),
    ),
    "two inner steps": (
        (*NAVIGATION, "num_inner_steps=2"),
        (*NAVIGATION, "algorithm.num_inner_steps=2"),
    ),
    "pretrain": ((*NAVIGATION, "algorithm=pretrain"), (*NAVIGATION, "algorithm.name=pretrain")),
    "a quarter of the curvature samples": (
        (*NAVIGATION, "trpo.fisher_fraction=0.25"),
        (*NAVIGATION, "algorithm.fisher_fraction=0.25"),
    ),
    "bandit": (
        (*BANDIT, "fast_lr=1.0"),
        (*BANDIT, "algorithm.fast_lr=1.0", "meta_batch_size=20"),
    ),
    "original lineage, relu": (
        (*ORIGINAL, "policy.hidden_sizes=[100, 100]", "policy.activation=relu"),
        ORIGINAL,
    ),
}


def parameters(program: Path, run: Path, words: tuple[str, ...]) -> np.ndarray:
    """Return the parameters ``[P]`` at the end of a job of the program in a folder."""
    command = [sys.executable, "-m", "hpc_maml", "--run-dir", str(run), "device=cpu"]
    command += ["archive.rollouts=none", "metrics.tensorboard=off", *words]
    environment = os.environ | {"PYTHONPATH": str(program)}
    subprocess.run(command, cwd=run.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
    last = max((run / "checkpoints").glob("iteration_*.h5"))
    with h5py.File(last) as file:
        return np.concatenate([values[...].ravel() for values in file["parameters"].values()])


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default=BEFORE)
    commit = parser.parse_args().commit
    different = 0
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "old"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(old)], check=True)
        subprocess.run(["git", "-C", str(old), "checkout", "-q", commit], check=True)
        for number, (case, (old_words, new_words)) in enumerate(CASES.items()):
            theirs = parameters(old, Path(name) / f"old_{number}", old_words)
            ours = parameters(ROOT, Path(name) / f"new_{number}", new_words)
            same = theirs.tobytes() == ours.tobytes()
            different += not same
            print(f"{'same' if same else 'DIFFERENT':10} {case}", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
