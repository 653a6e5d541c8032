"""A model of an iteration, fitted to measured pieces: what more ranks would give."""

import math
import os
from dataclasses import dataclass

from benchmarks import reduce
from benchmarks.iteration import phases
from benchmarks.table import Row, compare
from hpc_maml.config import load_config
from hpc_maml.mpi.topology import assign_roles
from hpc_maml.parts import make_env
from hpc_maml.run.job import prepare

NAME, TASKS = "half_cheetah_vel", 40
# ranks -> job; one rank would use all cores, and the pieces are those of one
MEASURED = {1: "1 cores=1", 2: "2", 4: "4", 8: "8", 16: "16"}
PREDICTED = (64, 256, 1024, 4096)

ASSUMPTIONS = """\
assumptions: a task takes the same time to collect, and the same in the outer step, on every core;
collecting is shared by the observers, the step by the agents, and neither overlaps the other; with
fewer cores than ranks, the cores share all work evenly; a reduction takes 2 log2(agents) messages
of its latency and moves twice its bytes (recursive halving and doubling), as fast as between the
ranks measured here, also from node to node; from 64 ranks on there is a core for every rank, and a
meta-batch of as many tasks as observers."""


@dataclass(frozen=True)
class Model:
    """Seconds of the pieces of an iteration."""

    collect: float  # of a task
    update: float  # of a task, in the outer step
    latency: float  # of a message of a reduction
    per_byte: float  # of a reduction
    num_reductions: int  # of an outer step
    reduction_bytes: int
    batch_bytes: int  # of a trajectory batch, of which a task has two

    def seconds(self, ranks: int, num_tasks: int, cores: int) -> float:
        """Return the seconds of an iteration."""
        agents, observers = split(ranks, cores)
        collecting = max(
            math.ceil(num_tasks / observers) * self.collect, num_tasks * self.collect / cores
        )
        updating = max(math.ceil(num_tasks / agents) * self.update, num_tasks * self.update / cores)
        return collecting + updating + self.num_reductions * self.reduction(agents)

    def reduction(self, agents: int) -> float:
        """Return the seconds of a reduction."""
        if agents == 1:
            return 0.0
        share = 2 * (agents - 1) / agents * self.reduction_bytes
        return 2 * math.ceil(math.log2(agents)) * self.latency + share * self.per_byte


def split(ranks: int, cores: int) -> tuple[int, int]:
    """Return the numbers of agents and observers."""
    places = assign_roles([0] * ranks, "auto", "split", cores)
    return sum(place.agent for place in places), sum(place.observer for place in places)


def measure(rounds: int) -> list[Row]:
    """Fit the model, compare it with what was measured, and predict."""
    cores = len(os.sched_getaffinity(0))
    found = {ranks: [phases(NAME, job) for _ in range(rounds)] for ranks, job in MEASURED.items()}
    alone = found[1]
    small, large = (
        reduce.middle(reduce.command(size), max(2, cores)) for size in reduce.SIZES.values()
    )
    sizes = list(reduce.SIZES.values())
    per_byte = max(0.0, (large - small) / (sizes[1] - sizes[0]) / 6)  # 24 bytes for each 4
    config = load_config(None, [f"env.name={NAME}", f"meta_batch_size={TASKS}"])
    job = prepare(config, make_env(config, episodes=1))
    middle = sorted(alone, key=lambda each: each["iteration_seconds"])[len(alone) // 2]
    model = Model(
        # what one rank alone linearises while it collects belongs to the step
        collect=middle["observers_busy"] * middle["iteration_seconds"] / TASKS,
        update=middle["agents_busy"] * middle["iteration_seconds"] / TASKS,
        latency=max(0.0, small / 2 - sizes[0] * 6 * per_byte / 2),
        per_byte=per_byte,
        num_reductions=1 + job.algorithm.settings.cg_iters + 3,
        reduction_bytes=24 * job.algorithm.policy.size,
        batch_bytes=job.dtype.itemsize,
    )
    rows = []
    for ranks, runs in found.items():
        predicted = [model.seconds(ranks, TASKS, min(cores, ranks))] * rounds
        seconds = [each["iteration_seconds"] for each in runs]
        rows.append(compare(f"model at np {MEASURED[ranks]}", "s", predicted, seconds, "measured"))
    one_core = model.seconds(1, 1, 1)
    for ranks in PREDICTED:
        agents, observers = split(ranks, ranks)
        tasks = observers
        seconds = model.seconds(ranks, tasks, ranks)
        what = f"one core's work on {tasks} tasks, shared by {ranks} cores"
        rows.append(
            compare(f"model at np {ranks}", "s", [seconds], [tasks * one_core / ranks], what)
        )
        received = 2 * tasks / agents
        rows += [
            compare(f"np {ranks}: batches an agent receives", "messages", [received]),
            compare(f"np {ranks}: to an agent", "bytes", [received * model.batch_bytes]),
            compare(
                f"np {ranks}: reductions, each agent",
                "bytes",
                [model.num_reductions * 2 * (agents - 1) / agents * model.reduction_bytes],
            ),
            compare(
                f"np {ranks}: reductions", "s", [model.num_reductions * model.reduction(agents)]
            ),
            compare(f"np {ranks}: orders and outcomes", "messages", [2 * agents]),
        ]
    return rows
