"""Whole iterations on different numbers of ranks, against the best of them and the plain way.

"published" is the outer step that the plain way has: ten plain products of conjugate gradient.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import h5py

from benchmarks.programs import PUBLISHED, run
from benchmarks.table import Row, compare

WARM_UP = 1  # iterations
ITERATIONS = 3  # after them, in each round
JOBS = {
    "navigation": [
        "1", "1 cores=1", "2", "2 agents=2", "2 split", "4", "4 split",
        "8", "16", "16 split agents=1",
    ],
    "half_cheetah_vel": ["1", "1 cores=1", "2", "2 split", "16"],
    "ant_vel": ["1 cores=1", "2"],
}  # fmt: skip
PLAIN = "the plain way: SyncVectorEnv and autograd, ten products"
PHASES = (
    "iteration_seconds",
    "sampling_seconds",
    "update_seconds",
    "agents_busy",
    "observers_busy",
)


def measure(rounds: int) -> list[Row]:
    """Return the rows of all environments."""
    return [row for name in JOBS for row in measure_environment(name, rounds)]


def measure_environment(name: str, rounds: int) -> list[Row]:
    """Return the seconds per iteration of all jobs, taken in turn, and the shares of the phases."""
    jobs = [*JOBS[name], "2 published"]
    found = {job: [] for job in jobs}
    plain = []
    for _ in range(rounds):
        for job in jobs:
            found[job].append(phases(name, job))
        words = [name, WARM_UP + ITERATIONS]
        lines = run([sys.executable, "-m", "benchmarks.plain_iteration", *words])
        plain.append(median(map(float, lines[WARM_UP:])))
    seconds = {job: [each["iteration_seconds"] for each in found[job]] for job in jobs}
    best = min(JOBS[name], key=lambda job: median(seconds[job]))
    rows = [compare(f"{name}, np {job}", "s", seconds[job], plain, PLAIN) for job in jobs]
    rows += [
        compare(f"{name}, np {job}", "s", seconds[job], seconds[best], f"np {best}, the best")
        for job in JOBS[name]
    ]
    halves = [each / 2 for each in seconds["1 cores=1"]]
    what = "half of np 1 on one core, the ideal"
    rows.append(compare(f"{name}, np 2", "s", seconds["2"], halves, what))
    for job in jobs:
        for phase in PHASES[1:]:
            shares = [
                each[phase] / (each["iteration_seconds"] if "seconds" in phase else 1)
                for each in found[job]
            ]
            rows.append(compare(f"{name}, np {job}: {phase.replace('_', ' ')}", "of it", shares))
    return rows


def phases(name: str, job: str) -> dict[str, float]:
    """Return the medians of the clock over the iterations of a job like 8 split agents=2."""
    ranks, *words = job.split()
    settings = [
        f"env.name={name}",
        f"meta_batch_size={20 if name == 'navigation' else 40}",
        "archive.rollouts=none",
    ]
    cores = None
    for key, _, value in (word.partition("=") for word in words):
        if key == "cores":
            cores = int(value)
        elif key == "published":
            settings.extend(PUBLISHED)
        elif key in ("split", "team"):
            settings.append(f"topology.layout={key}")
        elif key == "agents":
            settings.append(f"topology.agents={value}")
        else:
            settings.append(f"algorithm.{key}={value}")
    return medians(int(ranks), settings, cores=cores)


def medians(
    ranks: int, settings: Sequence[str], iterations: int = ITERATIONS, cores: int | None = None
) -> dict[str, float]:
    """Return the medians of the clock over the iterations of a job, without the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "hpc_maml", f"--run-dir={folder}/run"),
            *(f"num_iterations={WARM_UP + iterations}", "metrics.tensorboard=off", "device=cpu"),
            *settings,
        ]
        run(command, ranks, cores)
        with h5py.File(Path(folder) / "run" / "metrics.h5") as file:
            return {phase: float(median(file[f"iterations/{phase}"][WARM_UP:])) for phase in PHASES}
