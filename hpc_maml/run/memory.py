"""How much memory the ranks of a node need, at least and probably, and how much there is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_maml.mpi.topology import Place, Plan
from hpc_maml.roles.agent import MOST_SIDE_BY_SIDE
from hpc_maml.roles.messages import REQUESTS_AHEAD
from hpc_maml.run.job import Job

# Bytes of a rank that holds no data: Python, NumPy and MPI. Half of it are libraries, of which the
# ranks of a node have one copy, and which the kernel can read again.
PROGRAM, PROGRAM_ALONE = 100e6, 40e6
# What a rank keeps of a task for the products of an outer step, times its trajectory batches
# (docs/design.md, section 4); of all tasks together it is KEPT_DIGESTS at most.
DIGEST, KEPT_DIGESTS = 10, 1e9
MEGABYTE = 2**20


@dataclass(frozen=True)
class Needs:
    """The sizes of a job that its memory follows from, in bytes."""

    tasks: int  # of an iteration, a number
    task: int  # the trajectory batches of all phases of a task
    batch: int  # those of one phase
    state: int  # parameters and all else that the algorithm keeps
    simulations: float = 0.0  # those of as many tasks as an observer plays side by side

    def of_rank(self, place: Place, plan: Plan) -> tuple[float, float]:
        """Return the bytes of a rank, what it surely needs and what it probably needs."""
        least, probable = PROGRAM_ALONE, PROGRAM
        stepping = [each for each in plan.places if plan.takes_step(each)]
        if plan.takes_step(place):
            # in a team tasks are handed out on demand: this is an even share
            own = -(-self.tasks // len(stepping)) * self.task
            least += own
            probable += own + min(KEPT_DIGESTS, DIGEST * own) + DIGEST * self.task + 8 * self.state
        if place.observer:
            least += self.batch
            probable += (1 + REQUESTS_AHEAD) * self.task + 2 * self.state
            probable += 2 * self.simulations  # of the most tasks, and of some other numbers
        if place.principal:
            probable += 4 * self.state
        return least, probable


def needs(job: Job) -> Needs:
    """Return the sizes of a training job."""
    tasks, batch = job.config.meta_batch_size, job.dtype.itemsize
    phases = job.algorithm.num_phases(False)
    state = 4 * job.algorithm.policy.size
    return Needs(tasks, phases * batch, batch, state, _simulations(job, tasks))


def needs_of_test(job: Job) -> Needs:
    """Return the sizes of a meta-test: an observer has all phases of a task, and keeps none."""
    phases = max(algorithm.num_phases(True) for algorithm in job.algorithms)
    task = phases * job.dtype.itemsize
    state = 4 * sum(each.policy.size for each in job.algorithms)
    return Needs(0, task, task, state, _simulations(job, job.config.evaluation.tasks))


def _simulations(job: Job, tasks: int) -> float:
    episodes = job.config.fast_batch_size
    return min(tasks, MOST_SIDE_BY_SIDE) * episodes * job.bytes_per_env


def of_node(needs: Needs, plan: Plan, here: Sequence[int]) -> tuple[float, float]:
    """Return the bytes of the ranks ``here``, what they surely need and what they probably need."""
    each = [needs.of_rank(plan.places[rank], plan) for rank in here]
    return sum(least for least, _ in each), sum(probable for _, probable in each)


def available(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> tuple[int, str]:
    """Return the bytes that the processes of a job may use on this node, and who sets the limit.

    ``root`` is where /proc and /sys are looked for.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(physical, "physical memory"), *_of_cgroups(root)]
    per_node, per_cpu = (environment.get(f"SLURM_MEM_PER_{each}", "") for each in ("NODE", "CPU"))
    cpus = environment.get("SLURM_CPUS_ON_NODE", "")
    if per_node.isdecimal() and int(per_node):  # 0: all of the node
        limits.append((int(per_node) * MEGABYTE, "Slurm, --mem"))
    if per_cpu.isdecimal() and cpus.isdecimal() and int(per_cpu):
        limits.append((int(per_cpu) * int(cpus) * MEGABYTE, "Slurm, --mem-per-cpu"))
    return min(limits)


def _of_cgroups(root: Path) -> list[tuple[int, str]]:
    """Return the limits of the control groups that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            top, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / name.lstrip("/")
        for group in (inner, *inner.parents):
            try:
                limit = (group / file).read_text().strip()
            except OSError:  # in a container only some of them are there
                limit = ""
            if limit.isdecimal():
                found.append((int(limit), "control group"))
            if group == top:
                break
    return found
