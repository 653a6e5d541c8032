"""How good the directions of an outer step are: by products, preconditioner, damping and samples.

    OMP_NUM_THREADS=1 python -m benchmarks.step [key=value ...] [--config FILE] [--tasks 20]
        [--products 1 3 5 10 20] [--row key=value ...] [--json FILE] [--picture FILE]
    OMP_NUM_THREADS=1 python -m benchmarks.step --run RUN [--checkpoint K]

Collects two sets of tasks with the policy that a run begins with, or that of a checkpoint. Of a
direction x, made from the first set as the settings of its row say, it prints

    q = g.x / sqrt(x.F x),

which a step along -x of KL delta multiplies by sqrt(2 delta) to improve the surrogate loss, as far
as that is linear: "train" with gradient g and Fisher matrix F of the set that x was made from,
"held" with those of the other. F is of all samples and without damping, and g and F are those of
the configuration, whatever a row says: so all rows are judged alike. The residual is that of F on
the first set, |g - F x| / |g|. The seconds are those of a core for products and preconditioner, and
for what these add to the digests of the tasks.

A row is a group of settings, of algorithm.* or meta_batch_size (of the first set, the tasks that x
is made from), and is repeated for each number of --products if it does not set algorithm.cg_iters.
--row may be given several times, and replaces the rows that are there without it. All rows are
preconditioned by the earlier products that a checkpoint remembers, if it has any.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.update import Tasks, collected, digested, sum_alone
from hpc_maml import open_run
from hpc_maml.algorithms.algorithm import State, gradient_metrics, norm, squared_norms
from hpc_maml.algorithms.maml_trpo import PAIRS, AllTasks, MamlTrpo
from hpc_maml.config import Config, differing_keys, load_config
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.parts import make_algorithm, make_env
from hpc_maml.storage.run_folder import CONFIG
from hpc_maml.storage.states import initial_checkpoint, state_of

DEFAULT = ("env.name=half_cheetah_vel",)
PLAIN = ("algorithm.cg_preconditioner=none", "algorithm.fisher_fraction=1")
PRODUCTS = "algorithm.cg_iters"
# with another of these, other trajectories would have been collected
FIXED = {f"algorithm.{key}" for key in ("name", "fast_lr", "num_inner_steps", "learn_step_sizes")}
REPEATS = 3  # of the digests of a row, whose seconds are the least

Group = tuple[str, ...]  # key=value


@dataclass(frozen=True)
class Direction:
    """A direction, and what it is worth."""

    settings: str
    products: int
    train: float  # q on the tasks that it was made from
    held: float  # q on others
    residual: float  # |g - F x| / |g|
    seconds: float  # of a core
    of_ten: float  # the same, over those of ten products with all tasks and samples


@dataclass(frozen=True)
class Judge:
    """Tasks linearised with all samples."""

    tasks: AllTasks
    gradient: np.ndarray  # [Q]

    def quality(self, x: np.ndarray) -> tuple[float, float]:
        """Return q of a direction ``[Q]``, and its relative residual."""
        product = self.tasks.fisher_vector_product(x)
        q = (self.gradient * x).sum() / np.sqrt((x * product).sum())
        return float(q), norm(self.gradient - product) / norm(self.gradient)


@dataclass(frozen=True)
class Found:
    """What there is to say of a policy."""

    title: str
    gradient_snr: float  # of the first set
    cosine_of_halves: float  # of the gradients of the first set's first and second half
    cosine_of_sets: float  # of the gradients of the two sets
    ten_products: float  # seconds
    rows: list[Direction]


class Point:
    """A policy in a configuration, and two sets of tasks collected with it."""

    def __init__(self, files: Sequence[Path], words: Sequence[str], num_tasks: int) -> None:
        """Read the configuration; raises InputError."""
        self.files = files
        self.words = (*words, f"meta_batch_size={num_tasks}")
        self.num_tasks = num_tasks
        self.config = self.with_group(())
        self.env = make_env(self.config, episodes=1)
        self.algorithm = self.algorithm_of(self.config)
        self.state: State = {}
        self.train: Tasks = []
        self.held: Tasks = []

    def collect(self, state: State | None, iteration: int) -> None:
        """Collect the tasks with a state, or with the initial one."""
        twice = load_config(self.files, [*self.words, f"meta_batch_size={2 * self.num_tasks}"])
        _, self.state, tasks = collected(twice, state, iteration)
        self.train, self.held = tasks[: self.num_tasks], tasks[self.num_tasks :]

    def with_group(self, group: Sequence[str]) -> Config:
        """Return the configuration with more settings; raises InputError."""
        return load_config(self.files, [*self.words, *group])

    def of_row(self, group: Group) -> Config:
        """Return the configuration of a row; raises InputError if it is of other trajectories."""
        config = self.with_group(group)
        for key in differing_keys(config, self.config):
            if key in FIXED or not key.startswith(("algorithm.", "meta_batch_size")):
                raise InputError(f"A row cannot set {key}: it needs other trajectories.")
        if config.meta_batch_size > self.num_tasks:
            raise InputError(f"A row cannot be made from more than {self.num_tasks} tasks.")
        return config

    def algorithm_of(self, config: Config) -> MamlTrpo:
        """Return the algorithm of a configuration; raises InputError for another kind."""
        algorithm = make_algorithm(config, self.env)
        if not isinstance(algorithm, MamlTrpo):
            raise InputError(
                "Only an outer step by TRPO has such a direction: set algorithm.name=maml_trpo or "
                "pretrain, and normalise_observations=false."
            )
        return algorithm

    def linearised(self, config: Config, tasks: Tasks) -> AllTasks:
        """Return the tasks, or as many as the configuration has, as an outer step sees them."""
        algorithm, chosen = self.algorithm_of(config), tasks[: config.meta_batch_size]
        digests = digested(algorithm, self.state, chosen)
        return AllTasks(algorithm.policy, digests, len(chosen), sum_alone())

    def judge(self, tasks: Tasks) -> Judge:
        """Return what judges a direction by tasks."""
        linearised = self.linearised(self.with_group(PLAIN), tasks)
        return Judge(linearised, gradient_of(linearised, self.state, self.algorithm))

    def directions(
        self, group: Group, products: Sequence[int], judges: tuple[Judge, Judge], ten: float
    ) -> list[Direction]:
        """Return the directions of a row, one for each number of products."""
        config = self.of_row(group)
        plain = self.with_group([*group, *PLAIN])
        digesting, tasks = least(partial(self.linearised, config, self.train))
        usual = least(partial(self.linearised, plain, self.train))[0]
        more = max(0.0, digesting - usual) if differing_keys(config, plain) else 0.0
        gradient = gradient_of(tasks, self.state, self.algorithm)
        if any(word.startswith(f"{PRODUCTS}=") for word in group):
            products = [config.algorithm.cg_iters]
        name = " ".join(word for word in group if not word.startswith(f"{PRODUCTS}="))
        rows = []
        for number in products:
            algorithm = self.algorithm_of(self.with_group([*group, f"{PRODUCTS}={number}"]))
            seconds, found = timed(
                partial(algorithm.step_direction, tasks, gradient, self.state.get(PAIRS))
            )
            (train, residual), (held, _) = (judge.quality(found.solution) for judge in judges)
            seconds += more
            row = (found.iterations, train, held, residual, seconds, seconds / ten)
            rows.append(Direction(name or "as configured", *row))
        return rows


def gradient_of(tasks: AllTasks, state: State, algorithm: MamlTrpo) -> np.ndarray:
    """Return the gradient of the surrogate loss ``[Q]``, mean over the tasks."""
    return tasks.mean(lambda each: each.gradient, algorithm.outer_parameters(state).size)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a core that ``work`` takes, waiting not counted, and its result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def least(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least seconds of a core of some repeats, and the last result."""
    taken = [timed(work) for _ in range(REPEATS)]
    return min(seconds for seconds, _ in taken), taken[-1][1]


def default_rows(num_tasks: int) -> list[Group]:
    """Return no preconditioner and three of them; then other changes, with and without one."""
    kronecker = "algorithm.cg_preconditioner=kronecker"
    dampings = [f"algorithm.cg_preconditioner_damping={damping}" for damping in (0.1, 0.3, 1.0)]
    changes = [
        "algorithm.cg_damping=1e-2",
        "algorithm.fisher_fraction=0.25",
        f"meta_batch_size={max(1, num_tasks // 2)}",
    ]
    rows: list[Group] = [(PLAIN[0],), *((kronecker, damping) for damping in dampings)]
    return rows + [(first, change) for change in changes for first in (PLAIN[0], kronecker)]


def point_of(options: argparse.Namespace) -> tuple[Point, str]:
    """Return the point with its tasks, and what it is; raises InputError."""
    files, words = options.config, options.settings
    if options.run is None:
        point = Point(files, words if files else [*DEFAULT, *words], options.tasks)
        point.collect(None, 0)
        return point, f"{point.config.env.name} at the policy that a run begins with"
    run = open_run(options.run)
    if not run.checkpoints:
        raise InputError(f"The run in {run.path} has no checkpoint yet.")
    number = run.checkpoints[-1] if options.checkpoint is None else options.checkpoint
    kept = run.checkpoint(number)
    point = Point([run.path / CONFIG, *files], words, options.tasks)
    like = initial_checkpoint(point.config, point.algorithm)
    if list(kept.parameters) != list(like.parameters):
        raise InputError(f"The run in {run.path} has a policy of other parameters.")
    point.collect(state_of(kept), number)
    return point, f"{run.path} after {number} iterations"


def measure(options: argparse.Namespace) -> Found:
    """Collect, and judge all directions; raises InputError."""
    point, title = point_of(options)
    groups = [tuple(row) for row in options.row or default_rows(options.tasks)]
    for group in groups:  # what is wrong is said before anything is computed
        point.of_row(group)
    judges = point.judge(point.train), point.judge(point.held)
    tasks, gradient = judges[0].tasks, judges[0].gradient
    halves = [
        gradient_of(point.linearised(point.config, each), point.state, point.algorithm)
        for each in (point.train[::2], point.train[1::2])
    ]
    square = tasks.mean(lambda each: squared_norms(each.gradient), 1)
    tasks.fisher_vector_product(gradient)  # warms up
    ten = timed(lambda: [tasks.fisher_vector_product(gradient) for _ in range(10)])[0]
    return Found(
        title=f"{title}, two sets of {options.tasks} tasks",
        gradient_snr=gradient_metrics(gradient, float(square[0]), tasks.number)["gradient_snr"],
        cosine_of_halves=cosine(*halves),
        cosine_of_sets=cosine(*(judge.gradient for judge in judges)),
        ten_products=ten,
        rows=[
            row
            for group in groups
            for row in point.directions(group, options.products, judges, ten)
        ],
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two vectors."""
    return float((a * b).sum() / (norm(a) * norm(b)))


def show(found: Found) -> None:
    """Print what was found as a table."""
    print(found.title)
    print(f"gradient of the first set: signal to noise {found.gradient_snr:.2f}")
    print(
        f"cosine between the gradients of its halves {found.cosine_of_halves:.2f}, "
        f"of both sets {found.cosine_of_sets:.2f}"
    )
    print(f"ten products with all tasks and samples: {found.ten_products:.2f} s")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("direction")
    for column in ("products", "q train", "q held", "residual", "s", "of ten products"):
        table.add_column(column, justify="right")
    for before, row in zip([None, *found.rows], found.rows, strict=False):
        table.add_row(
            short(row.settings) if before is None or before.settings != row.settings else "",
            str(row.products),
            f"{row.train:.4g}",
            f"{row.held:.4g}",
            f"{row.residual:.3f}",
            f"{row.seconds:.3f}",
            f"{row.of_ten:.2f}",
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def short(settings: str) -> str:
    """Return settings without the section of the algorithm."""
    return settings.replace("algorithm.", "")


def draw(found: Found, path: Path) -> None:
    """Draw q over seconds, a line for each row; raises ImportError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    from hpc_maml.report.figures import PALETTE, STYLE, STYLES, Picture, render

    groups: dict[str, list[Direction]] = {}
    for row in found.rows:
        groups.setdefault(row.settings, []).append(row)
    with mpl.rc_context(STYLE):
        size = (9, 4 + 0.22 * -(-len(groups) // 2))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, side in zip(axes, ("train", "held"), strict=True):
            for number, rows in enumerate(groups.values()):
                axis.plot(
                    [row.seconds for row in rows],
                    [getattr(row, side) for row in rows],
                    color=PALETTE[number % len(PALETTE)],
                    linestyle=STYLES[number // len(PALETTE) % len(STYLES)],
                    marker="o",
                    markersize=3,
                    label=short(rows[0].settings) if side == "train" else None,
                )
            axis.set_xscale("log")
            # powers of ten would be mathematics, which is off
            axis.xaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter())
            axis.set_xlabel("seconds of a core")
        axes[0].set_title("q on the tasks that directions are made from")
        axes[1].set_title("q on other tasks")
        axes[0].set_ylabel("improvement of the surrogate loss / sqrt(2 KL)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    picture = Picture(path.stem, found.title, "", figure)
    path.write_bytes(render(picture, path.suffix[1:]))


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options that are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--config", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--run", type=Path, help="take the policy of a run folder")
    parser.add_argument("--checkpoint", type=int, metavar="K", help="of the run; the last without")
    parser.add_argument("--tasks", type=int, default=20, help="in each set")
    parser.add_argument("--products", type=int, nargs="+", default=[1, 3, 5, 10, 20])
    parser.add_argument("--row", nargs="+", action="append", metavar="key=value")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="svg or png")
    return parser.parse_intermixed_args(arguments)


def main() -> int:
    """Print the table, and write what was asked for."""
    options = options_of()
    keep_freed_memory()
    try:
        found = measure(options)
    except InputError as error:
        print(f"step: {error}", file=sys.stderr)
        return 2
    show(found)
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if options.picture:
        try:
            draw(found, options.picture)
        except ImportError as error:
            print(f"step: --picture needs matplotlib ({error}).", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
