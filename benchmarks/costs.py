"""What the pieces of an iteration take on the cores of this machine, for ``simulation``.

As a program under mpirun it measures on all ranks at once, so that they get in each other's way as
in a run, and prints the medians over them as JSON: python -m benchmarks.costs NAME
"""

import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

from benchmarks.programs import run
from benchmarks.simulation import Costs, Sum
from benchmarks.update import digested
from benchmarks.virtual_time import Line, MessageCosts
from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import Config, load_config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.mpi.waiting import SPIN, wait
from hpc_maml.parts import make_env
from hpc_maml.roles.messages import Collected, Outcome, Step, TaskResults, agreed
from hpc_maml.roles.principal import summarise
from hpc_maml.run.job import archive_shapes, prepare
from hpc_maml.run.record import RunRecord
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.trajectory import trajectories
from hpc_maml.storage.metrics import METRICS

REPEATS = 3
TURNS, TURN = 30, 30  # and measurements in each
MANY = 10  # tasks
FEW_AND_MANY = (40, 400)  # tasks of an iteration
# Of a network between nodes beyond what messages take within one: a good one, which is assumed.
NETWORK_LATENCY, NETWORK_PER_BYTE = 2e-6, 1e-10  # seconds


def measure(name: str, ranks: int) -> Costs:
    """Return the costs with as many ranks at work, on as many cores."""
    (line,) = run([sys.executable, "-m", "benchmarks.costs", name], ranks, ranks)
    return from_dict(json.loads(line))


def middle(found: Sequence[Costs]) -> Costs:
    """Return the medians of costs."""
    return from_dict(_median([asdict(each) for each in found]))


def from_dict(found: dict[str, Any]) -> Costs:
    """Return costs from nested dictionaries."""
    found = dict(found)

    def line(values: dict[str, float]) -> Line:
        return Line(**values)

    messages = dict(found.pop("messages"))
    for key in ("near", "far", "send", "receive"):
        messages[key] = line(messages[key])
    for key in ("phase", "after", "summary", "record"):
        found[key] = line(found[key])
    sums = tuple(Sum(each["width"], line(each["work"])) for each in found.pop("sums"))
    return Costs(**found, sums=sums, messages=MessageCosts(**messages))


def timed(work: Callable[[], Any], clock: Callable[[], float] = process_time) -> tuple[float, Any]:
    """Return the seconds that ``work`` takes, without what other programs take, and its result."""
    began = clock()
    result = work()
    return clock() - began, result


def usual(
    work: Callable[[], Any], repeats: int = REPEATS, clock: Callable[[], float] = process_time
) -> float:
    """Return the median of the seconds that ``work`` takes."""
    return median(timed(work, clock)[0] for _ in range(repeats))


def undisturbed(measure: Callable[[], float]) -> float:
    """Return the median of what is measured, in the best of many short turns.

    For what needs a core at the right moment, which other programs may have for a while.
    """
    return min(median(measure() for _ in range(TURN)) for _ in range(TURNS))


def through(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the line through two points, whose parts are not negative."""
    each = max(0.0, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0]))
    return Line(max(0.0, seconds[0] - each * sizes[0]), each)


def medians_over(comm: MPI.Comm, value: Any) -> Any:
    """Return the medians over the ranks of all numbers in nested containers, on rank 0."""
    everyone = comm.gather(value)
    return _median(everyone) if everyone else None


def _median(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _median([each[key] for each in values]) for key in first}
    if isinstance(first, list | tuple):
        return [_median(each) for each in zip(*values, strict=True)]
    return values[0] if isinstance(values[0], int) else median(values)


class Watched:
    """A sum over one rank that notes how many numbers it adds, and when it is done."""

    def __init__(self) -> None:
        self.reduce = ExactSum(MPI.COMM_SELF, limit=60.0)
        self.found: list[tuple[int, float]] = []  # numbers, seconds since the one before
        self.last = process_time()

    def __call__(self, terms: np.ndarray) -> np.ndarray:
        """Return the sum."""
        total = self.reduce(terms)
        now = process_time()
        self.found.append((terms.shape[1], now - self.last))
        self.last = now
        return total


class Measured:
    """What the work of one rank takes, with the configuration of a run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.job = prepare(config, make_env(config, episodes=1))
        self.algorithm: Algorithm = self.job.algorithm
        self.state: State = self.algorithm.initial_state(stream(config.seed, Purpose.PARAMETERS))
        self.envs: dict[int, TaskVectorEnv] = {}

    def collect(self, first: int, number: int) -> list[np.ndarray]:
        """Return the batches ``[G]`` of each phase of some tasks side by side."""
        if number not in self.envs:
            self.envs[number] = make_env(self.config, self.config.fast_batch_size, 1, number)
        env, seed = self.envs[number], self.config.seed
        tasks = env.sample_tasks(stream(seed, Purpose.TASKS, 0), self.config.meta_batch_size)
        phases = collect(
            self.algorithm,
            env,
            self.algorithm.played(self.state),
            tasks[first : first + number],
            keys=[(seed, 0, index) for index in range(first, first + number)],
            evaluation=False,
            dtype=self.job.dtype,
        )
        return [batches for batches, _ in phases]

    def collection(self) -> tuple[Line, float]:
        """Return what a phase takes by tasks side by side, and the spread over tasks."""
        self.collect(0, MANY)
        together = usual(lambda: self.collect(0, MANY)) / 2
        self.collect(0, 1)
        each = [
            [timed(lambda task=task: self.collect(task, 1))[0] / 2 for _ in range(REPEATS)]
            for task in range(MANY)
        ]
        # the least of some for each task, as what the machine does beside is no property of a task
        own = np.min(each, axis=1)
        line = through([1, MANY], [median(map(median, each)), together])
        return line, float(own.std(ddof=1) / own.mean())

    def outer_step(self) -> tuple[float, list[dict[str, Any]], Line]:
        """Return the seconds of a digest, the sums of a step, and what follows on the last."""
        batches = self.collect(0, MANY)
        tasks = [
            [trajectories(phase[task : task + 1]) for phase in batches] for task in range(MANY)
        ]
        digests, steps, after = [], [], []
        for _ in range(REPEATS):
            seconds, kept = timed(lambda: digested(self.algorithm, self.state, tasks))
            digests.append(seconds / MANY)
            reduce = Watched()
            self.algorithm.update(self.state, kept, MANY, reduce, np.random.default_rng(1))
            after.append(process_time() - reduce.last)
            steps.append(reduce.found)
        sums = []
        for found in zip(*steps, strict=True):
            width, seconds = found[0][0], median(each for _, each in found)
            alone = ExactSum(MPI.COMM_SELF, limit=60.0)
            nothing = np.zeros((0, width), np.float32)
            fixed = usual(lambda alone=alone, nothing=nothing: alone(nothing), 20)
            work = Line(fixed, max(0.0, seconds - fixed) / MANY)
            sums.append({"width": width, "work": asdict(work)})
        return median(digests), sums, Line(median(after), 0.0)

    def principal(self, number: int) -> tuple[float, float, float]:
        """Return seconds of the principal for so many tasks.

        They are: between two iterations, in the record of one, and until that is on the disk.
        """
        tasks, outcome = np.zeros((number, 1)), self._outcome(number)
        between = usual(lambda: (agreed([outcome.step] * 8), summarise(tasks, [outcome])), 10)
        names = [name for name in METRICS if not name.startswith(("pre_", "post_"))]
        row = summarise(tasks, [outcome]) | dict(outcome.step.metrics)
        row = dict.fromkeys(names, 1) | row
        with tempfile.TemporaryDirectory() as folder:
            shapes = archive_shapes(self.job)
            record = RunRecord(Path(folder) / "run", self.config, self.algorithm, shapes)
            with timed_syncs() as syncs:
                seconds = [
                    timed(lambda done=done: record.record(done, self.state, dict(row), []))[0]
                    for done in range(1, 10)
                ]
            record.close()
        return between, median(seconds), sum(syncs) / len(seconds)

    def _outcome(self, number: int) -> Outcome:
        per_phase = np.ones((number, 2))
        results = TaskResults(
            np.arange(number), *[per_phase] * 2, *[per_phase.astype(int)] * 2, None
        )
        metrics = dict.fromkeys(self.algorithm.metrics, 1.0)
        step = Step(self.state, "", "", metrics, 0.0, stop_requested=False)
        return Outcome(results, step, False, 0.0, 0.0, 0.0, 0.0)


@contextmanager
def timed_syncs() -> Iterator[list[float]]:
    """Note how long files take to be on the disk, which uses no core."""
    seconds: list[float] = []
    fsync = os.fsync

    def timed_fsync(descriptor: int) -> None:
        seconds.append(timed(lambda: fsync(descriptor), perf_counter)[0])

    with patch.object(os, "fsync", timed_fsync):
        yield seconds


def messages() -> tuple[Line, Line, float]:
    """Return what a role takes to send a message, and to receive it, by its bytes, and to look."""
    messenger = Messenger(MPI.COMM_SELF)
    sizes, sends, receives = [], [], []
    for number in (1, 1000):
        per_phase = np.ones((number, 2))
        results = TaskResults(np.arange(number), *[per_phase] * 4, None)
        message = Collected(results, False, 0.0)
        sizes.append(len(pickle.dumps(message)))
        sent, received = [], []
        for _ in range(100):
            sent.append(timed(lambda message=message: messenger.send(message, 0, 4))[0])
            began = process_time()
            while not messenger.arrived(4):
                pass
            received.append(process_time() - began)
        sends.append(median(sent))
        receives.append(median(received))
    messenger.poll()  # lets go of the last
    look = usual(lambda: [messenger.arrived(4) for _ in range(1000)], 5) / 1000
    return through(sizes, sends), through(sizes, receives), look


def link(comm: MPI.Comm) -> Line:
    """Return what a message takes within a node, from sums over all ranks."""
    if comm.size == 1:
        return Line(0.0, 0.0)
    sizes, seconds = [1_000, 100_000], []
    for size in sizes:
        total = np.zeros(size // 8, np.int64)

        def add(total: np.ndarray = total) -> float:
            wait(comm.Ibarrier(), "the other ranks", 60.0, SPIN)
            began = perf_counter()
            wait(comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM), "the other ranks", 60.0, SPIN)
            return perf_counter() - began

        seconds.append(undisturbed(add))
    # between two ranks two messages follow each other, of half of the bytes each
    whole = through(sizes, seconds)
    stages = 2 * (comm.size - 1).bit_length()
    return Line(whole.fixed / stages, whole.each)


def main() -> None:
    """Measure on all ranks, and print."""
    comm = MPI.COMM_WORLD
    (name,) = sys.argv[1:]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[comm.rank % len(cores)]})  # one of its own
    keep_freed_memory()
    here = Measured(load_config(None, [f"env.name={name}", "meta_batch_size=40", "device=cpu"]))
    found: dict[str, Any] = {}
    comm.Barrier()
    phase, spread = here.collection()
    comm.Barrier()
    digest, sums, after = here.outer_step()
    few, many = map(here.principal, FEW_AND_MANY)
    summary, record = (
        through(FEW_AND_MANY, seconds) for seconds in list(zip(few, many, strict=True))[:2]
    )
    send, receive, poll = messages()
    oversleep = undisturbed(lambda: timed(lambda: sleep(1e-4), perf_counter)[0]) - 1e-4
    near = link(comm)
    far = Line(near.fixed + NETWORK_LATENCY, near.each + NETWORK_PER_BYTE)
    found = {
        "steps": here.config.horizon,
        "phase": asdict(phase),
        "spread": spread,
        "digest": digest,
        "sums": sums,
        "after": asdict(after),
        "summary": asdict(summary),
        "record": asdict(record),
        "disk": few[2],
        "parameters": here.algorithm.policy.size,
        "batch_bytes": here.job.dtype.itemsize,
        "messages": {
            "near": asdict(near),
            "far": asdict(far),
            "send": asdict(send),
            "receive": asdict(receive),
            "poll": poll,
            "oversleep": oversleep,
        },
    }
    found = medians_over(comm, found)
    if comm.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
