"""Compare the seconds per iteration of one job on different numbers of ranks.

    python benchmarks/ranks.py [--ranks 1 2 4 16] [--rounds 3] [--iterations 6] [key=value ...]

The jobs run in turn, round after round, so that a machine whose speed drifts treats all alike; the
first two iterations of each are left out. A layout can follow a rank count: 2:colocated.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import h5py
import numpy as np

WARM_UP = 2  # iterations


def measure(job: str, iterations: int, settings: list[str]) -> np.ndarray:
    """Return the seconds of each iteration after the warm-up, for a job like 4 or 2:colocated."""
    ranks, _, layout = job.partition(":")
    mpirun = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or "mpirun"
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *settings,
            f"num_iterations={iterations + WARM_UP}",
            f"topology.layout={layout or 'split'}",
            f"--run-dir={folder}/run",
        ]
        command = [mpirun, "-np", ranks, sys.executable, "-m", "hpc_maml", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with h5py.File(f"{folder}/run/metrics.h5") as file:
            return file["iterations/iteration_seconds"][WARM_UP:]


def main() -> None:
    """Measure, and print a table; with --json, write its rows as well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", default=["1", "2", "2:colocated", "4", "8", "16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()

    seconds: dict[str, list[float]] = {job: [] for job in options.ranks}
    for _ in range(options.rounds):
        for job in options.ranks:
            seconds[job] += measure(job, options.iterations, options.settings).tolist()
    best = min(median(values) for values in seconds.values())
    rows = []
    print("ranks          s / iteration   range           times the best")
    for job, values in seconds.items():
        middle = median(values)
        print(
            f"{job:14} {middle:8.3f}        {min(values):.3f}-{max(values):.3f}     "
            f"{middle / best:.2f}"
        )
        row = {"name": f"iteration_at_{job}_ranks", "value": middle, "unit": "s"}
        rows.append(row | {"yardstick": best, "ratio": middle / best})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
