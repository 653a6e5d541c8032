"""What it costs to keep the metrics of an iteration, after few and after many iterations.

    python -m benchmarks.metrics

For rows of 40 tasks of a robot, and of 200 tasks of the tabular MDP, whose tasks are 550 numbers
each: bytes written and seconds for each iteration, mean of 200 around the given one. The rows
between are written a hundred at a time. Needs some 1 GB of disk in the present folder.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from hpc_maml.algorithms.maml_trpo import METRICS as DECLARED
from hpc_maml.storage.metrics import METRICS, PER_TASK, Metrics

MEASURED = 200  # iterations
KINDS = {"40 robots": (40, 1, (10, 1000, 100_000)), "200 tabular MDPs": (200, 550, (10, 500))}


def row(tasks: int, task_dim: int) -> dict:
    """Return a row of chance."""
    chance = np.random.default_rng(1)
    values = dict.fromkeys((*METRICS, *DECLARED), 1)
    shapes = dict.fromkeys(PER_TASK, (tasks,))
    shapes |= {"task": (tasks, task_dim), "return_after_updates": (tasks, 2)}
    return values | {name: chance.normal(size=shape) for name, shape in shapes.items()}


def written() -> int:
    """Return the bytes that this process has handed to files so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def main() -> None:
    """Print a line for each kind of rows and number of iterations."""
    argparse.ArgumentParser(description=__doc__, prog="benchmarks.metrics").parse_args()
    print(f"{'rows':18} {'after':>8} {'kB written':>11} {'ms':>7} {'files':>6} {'MB in all':>10}")
    for kind, (tasks, task_dim, ends) in KINDS.items():
        with tempfile.TemporaryDirectory(dir=os.curdir) as folder:
            metrics = Metrics(Path(folder) / "metrics.h5", {}, DECLARED, "updates")
            values = row(tasks, task_dim)
            for end in ends:
                while len(metrics) < end - MEASURED // 2:
                    for _ in range(min(100, end - MEASURED // 2 - len(metrics))):
                        metrics.add(values)
                    metrics.write(durable=False)
                number = min(MEASURED, 2 * end) if len(metrics) else end
                before, began = written(), time.perf_counter()
                for _ in range(number):
                    metrics.add(values)
                    metrics.write(durable=False)
                each = (time.perf_counter() - began) / number
                size = (written() - before) / number
                sizes = [path.stat().st_size for path in Path(folder).rglob("*.h5")]
                print(
                    f"{kind:18} {end:8} {size / 1e3:11.0f} {1e3 * each:7.1f} {len(sizes):6} "
                    f"{sum(sizes) / 1e6:10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
