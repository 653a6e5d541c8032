"""Runs on up to 4096 ranks, simulated with the code that runs them and costs measured here."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import asleep, costs
from benchmarks.iteration import ITERATIONS, WARM_UP, phases
from benchmarks.simulation import Costs, Machine, simulate
from benchmarks.table import Row, compare
from hpc_maml.errors import InputError

NAME, TASKS = "half_cheetah_vel", 40
# jobs of ``iteration``; one rank would use all cores, and the costs are those of one
CHECKED = ("1 cores=1", "2", "2 split", "4", "16")
RANKS = (16, 64, 256, 1024, 4096)
WEAK = (1, 4)  # tasks of a rank
MOST_TASKS = 2**13  # for which a sum has room
STRONG = (2, 4, 8, 10, 16, 20, 32, 40)  # ranks
NODE = 64  # ranks and cores of a node, that is of a team
GPUS = 4  # of a node
SLOWNESS = (1.1, 2.0)  # times as long
EVEN = (16, 48)  # ranks and tasks that are even for them

ASSUMPTIONS = f"""\
Simulated in virtual time: roles, balance, messages, layouts, the pattern of sums and how ranks wait
are those of the package. Measured here: seconds of roll-outs and their spread over tasks, digests,
each sum's work in an outer step, the principal's record, messages and sums within a node, a look, a
sleep. Assumed: nodes of {NODE} cores, a rank on each; a message to another node takes
{1e6 * costs.NETWORK_LATENCY:.0f} us and {1e9 * costs.NETWORK_PER_BYTE:.1f} ns a byte more than
one within; with GPUs, {GPUS} a node, each {Machine(1).gpu_speed:.0f} times as fast as a core.
Neglected: that messages share links, ranks that share cores, memory that cores share beyond what
{{}} busy cores show, jitter. The times of tasks have the spread of {NAME}."""


class Study:
    """Simulations with the same costs."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.alone: dict[int, float] = {}  # seconds of one rank, by number of tasks

    def run(self, machine: Machine, num_tasks: int, layout: str = "auto") -> float:
        """Return the seconds of an iteration."""
        return simulate(self.costs, machine, num_tasks, layout=layout).seconds

    def rows(self) -> Iterator[Row]:
        """Yield the figures, as efficiencies where all ranks are alike."""
        for each in WEAK:
            yield from self.weak(f"weak scaling, {each} a rank", each)
        for ranks in STRONG:
            yield self.strong(ranks, TASKS)
        yield self.strong(*EVEN)
        yield from self.weak(f"split, {WEAK[-1]} a rank", WEAK[-1], "split")
        yield from self.weak(f"split, GPUs, {WEAK[-1]} a rank", WEAK[-1], gpus=GPUS)
        for slowness in SLOWNESS:
            machine = Machine(4 * NODE, NODE, NODE)
            slow = replace(machine, slowness={1: slowness})
            seconds, alike = (self.run(one, WEAK[-1] * machine.ranks) for one in (slow, machine))
            name = f"np {machine.ranks}, {WEAK[-1]} a rank, work on one of 4 nodes takes {slowness}"
            yield compare(name, "s", [seconds], [alike], "with all nodes alike")

    def weak(self, what: str, each: int, layout: str = "auto", gpus: int = 0) -> Iterator[Row]:
        """Yield the efficiencies with ``each`` tasks for each rank."""
        for ranks in RANKS:
            if each * ranks > MOST_TASKS:
                break
            seconds = self.run(Machine(ranks, NODE, NODE, gpus), each * ranks, layout)
            yield self.efficiency(f"{what}, np {ranks}", self.of_one_rank(each), seconds)

    def strong(self, ranks: int, number: int) -> Row:
        """Return the efficiency of ranks that share a number of tasks."""
        seconds = self.run(Machine(ranks, NODE, NODE), number)
        name = f"strong scaling, {number} tasks, np {ranks}"
        return self.efficiency(name, self.of_one_rank(number) / ranks, seconds)

    def of_one_rank(self, number: int) -> float:
        """Return the seconds of one rank for so many tasks."""
        if number not in self.alone:
            self.alone[number] = self.run(Machine(1), number)
        return self.alone[number]

    @staticmethod
    def efficiency(name: str, ideal: float, seconds: float) -> Row:
        """Return the row of a time, against what one rank would take for its share."""
        text = f"{seconds:.4g} s; one rank takes {ideal:.4g} s for such a share"
        return Row(name, ideal / seconds, "efficiency", against=text)


def machine_of(job: str) -> tuple[Machine, str]:
    """Return the machine and the layout of a job of ``iteration`` on the cores of this process."""
    words = job.split()
    ranks = int(words[0])
    cores = 1 if "cores=1" in words else len(os.sched_getaffinity(0))
    return Machine(ranks, cores, ranks), "split" if "split" in words else "auto"


def measure(rounds: int, picture: Path | None = None) -> list[Row]:
    """Compare simulations with runs, and simulate what no machine is there for."""
    cores = len(os.sched_getaffinity(0))
    if picture:
        check_matplotlib()
    print(ASSUMPTIONS.format(cores), flush=True)
    slept: dict[tuple, list[tuple[float, float]]] = {job: [] for job in asleep.JOBS}
    found, ran, simulated = [], {job: [] for job in CHECKED}, {job: [] for job in CHECKED}
    for _ in range(rounds):
        one, all_cores = (costs.measure(NAME, ranks) for ranks in (1, cores))
        found.append(all_cores)
        for each in asleep.JOBS:
            slept[each].append((asleep.simulated(all_cores, cores, *each), asleep.ran(*each)))
        for job in CHECKED:
            machine, layout = machine_of(job)
            own = one if machine.cores == 1 else all_cores
            iterations = WARM_UP + ITERATIONS
            run = simulate(own, machine, TASKS, layout=layout, iterations=iterations)
            simulated[job].append(run.seconds)
            ran[job].append(phases(NAME, job)["iteration_seconds"])
    rows = [
        compare(f"simulated, np {job}", "s", simulated[job], ran[job], "measured")
        for job in CHECKED
    ]
    rows += [
        compare(f"simulated, {asleep.name(*job)}", "s", *zip(*slept[job], strict=True), "measured")
        for job in asleep.JOBS
    ]
    study = Study(costs.middle(found))
    rows += study.rows()
    if picture:
        draw(rows, picture)
    return rows


CURVES = (
    *(f"weak scaling, {each} a rank" for each in WEAK),
    f"strong scaling, {TASKS} tasks",
    f"split, {WEAK[-1]} a rank",
    f"split, GPUs, {WEAK[-1]} a rank",
)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the efficiencies over the number of ranks."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none"}):  # text as text keeps the file small
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axis = figure.subplots()
        for curve in CURVES:
            points = [
                (int(row.name.removeprefix(f"{curve}, np ")), row.value)
                for row in rows
                if row.name.startswith(f"{curve}, np ")
            ]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=curve)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="ranks", ylabel="efficiency", ylim=(0, None))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
        figure.savefig(path, format="svg")


def check_matplotlib() -> None:
    """Raise InputError where there is no picture to be had, before hours of measuring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(f"--picture needs matplotlib ({error}).") from None
