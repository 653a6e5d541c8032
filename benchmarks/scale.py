"""A model of an iteration, fitted to measured pieces: what more ranks would give."""

import math
import os
from dataclasses import dataclass

from benchmarks import reduce
from benchmarks.iteration import phases
from benchmarks.table import Row, compare
from hpc_maml.config import load_config
from hpc_maml.parts import make_env
from hpc_maml.run.job import prepare

NAME, TASKS = "half_cheetah_vel", 40
# ranks -> job; one rank would use all cores, and the pieces are those of one
MEASURED = {1: "1 cores=1", 2: "2", 4: "4", 8: "8", 16: "16"}
PREDICTED = (64, 256, 1024, 4096)
NODE = 64  # ranks of a node, that is of a team

ASSUMPTIONS = f"""\
assumptions: a task takes the same time to collect, and the same in the outer step, on every core;
all ranks that have a core share both, and neither overlaps the other; a sum over n ranks takes
2 log2(n) messages of its latency and moves twice its bytes (recursive halving and doubling), first
in each team, then among the agents, as fast as between the ranks measured here, also from node to
node; a node has {NODE} cores, and from {NODE} ranks on a meta-batch has as many tasks as there are
ranks."""


@dataclass(frozen=True)
class Model:
    """Seconds of the pieces of an iteration."""

    collect: float  # of a task
    update: float  # of a task, in the outer step
    latency: float  # of a message of a reduction
    per_byte: float  # of a reduction
    num_reductions: int  # of an outer step
    reduction_bytes: int

    def seconds(self, ranks: int, num_tasks: int) -> float:
        """Return the seconds of an iteration on ranks that have a core each."""
        most = math.ceil(num_tasks / ranks)
        return most * (self.collect + self.update) + self.num_reductions * self.reduction(ranks)

    def reduction(self, ranks: int) -> float:
        """Return the seconds of a sum over teams, and in each of them."""
        return self._sum(min(ranks, NODE)) + self._sum(teams(ranks))

    def _sum(self, ranks: int) -> float:
        if ranks == 1:
            return 0.0
        share = 2 * (ranks - 1) / ranks * self.reduction_bytes
        return 2 * math.ceil(math.log2(ranks)) * self.latency + share * self.per_byte


def teams(ranks: int) -> int:
    """Return the number of teams, one a node."""
    return math.ceil(ranks / NODE)


def measure(rounds: int) -> list[Row]:
    """Fit the model, compare it with what was measured, and predict."""
    cores = len(os.sched_getaffinity(0))
    found = {ranks: [phases(NAME, job) for _ in range(rounds)] for ranks, job in MEASURED.items()}
    alone = found[1]
    small, large = (
        reduce.middle(reduce.command(size), max(2, cores)) for size in reduce.SIZES.values()
    )
    sizes = list(reduce.SIZES.values())
    # 16 bytes for each 4
    per_byte = max(0.0, (large - small) / (sizes[1] - sizes[0]) / 4)
    config = load_config(None, [f"env.name={NAME}", f"meta_batch_size={TASKS}"])
    job = prepare(config, make_env(config, episodes=1))
    middle = sorted(alone, key=lambda each: each["iteration_seconds"])[len(alone) // 2]
    model = Model(
        # what one rank alone linearises while it collects belongs to the step
        collect=middle["observers_busy"] * middle["iteration_seconds"] / TASKS,
        update=middle["agents_busy"] * middle["iteration_seconds"] / TASKS,
        latency=max(0.0, small / 2 - sizes[0] * 4 * per_byte / 2),
        per_byte=per_byte,
        num_reductions=1 + job.algorithm.settings.cg_iters + 3,
        reduction_bytes=16 * job.algorithm.policy.size,
    )
    rows = []
    for ranks, runs in found.items():
        predicted = [model.seconds(min(cores, ranks), TASKS)] * rounds
        seconds = [each["iteration_seconds"] for each in runs]
        rows.append(compare(f"model at np {MEASURED[ranks]}", "s", predicted, seconds, "measured"))
    one_core = model.seconds(1, 1)
    for ranks in PREDICTED:
        seconds, sums = model.seconds(ranks, ranks), model.reduction(ranks)
        what = f"one core's work on {ranks} tasks, shared by {ranks} cores"
        rows += [
            compare(f"model at np {ranks}", "s", [seconds], [one_core], what),
            compare(f"np {ranks}: reductions", "s", [model.num_reductions * sums]),
            compare(
                f"np {ranks}: reductions, each agent to others",
                "bytes",
                [model.num_reductions * 2 * (1 - 1 / teams(ranks)) * model.reduction_bytes],
            ),
            compare(f"np {ranks}: orders and outcomes", "messages", [2 * teams(ranks)]),
        ]
    return rows
