"""Measure and check what takes a GPU; one call, on a machine with a GPU and 16 cores.

    python -m benchmarks.gpu [--json FILE] [--parts outer_step agreement reduction sampling]

- outer_step: one outer step at half_cheetah sizes, 40 tasks x (2000 + 2000) samples, exact
  curvature; the upload of its batches; memory of the GPU.
- agreement: gradient, Fisher-vector product and step against the plain one in float64 on the CPU.
- reduction: two agents on one GPU, sums in its memory against sums through the host: equal bits.
  Needs an MPI that takes memory of GPUs (CUDA-aware).
- sampling: 15 observers against 15 times one.

Prints rows as JSON, progress to stderr; ends with 1 if a target is missed. ``--device cpu`` runs
the same lines on tensors in memory of the host, which proves nothing about a GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms import Sampling, Update
from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.algorithms.algorithm import THETA
from hpc_maml.algorithms.maml_trpo import (
    LinearisedTasks,
    MamlTrpo,
    MamlTrpoSettings,
    fisher_vector_product,
)
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.gpu import Gpu, count_gpus
from hpc_maml.mpi.gpu_sums import sum_of_agents
from hpc_maml.mpi.topology import build_topology
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.trajectory import Samples, batch_dtype, samples, trajectories

OBSERVATION, ACTION = 17, 6  # of half_cheetah_vel
SETTINGS = MamlTrpoSettings(ls_interpolate=False, inner_loss="reinforce")  # as the yardstick does
NETWORK = MLPSettings()
OUTER_STEP_SECONDS = 0.040
REPEATS, WARM_UP = 7, 2
REDUCED = {"23_KB": 5708, "86_KB": 21_500}  # float32 numbers
# relative errors in float32: rounding alone stays far below, products in TF32 do not
BOUNDS = {"gradient": 1e-5, "fisher_vector_product": 1e-5, "kl_after": 1e-4, "step": 1e-3}
SAMPLING_TARGET = 0.9

Row = dict[str, Any]


def row(name: str, value: float, unit: str, yardstick: float, target: str = "") -> Row:
    """Return a row of the result; ``target`` is a bound on the ratio, like <= 1."""
    found = {"name": name, "value": value, "unit": unit, "yardstick": yardstick}
    found["ratio"] = value / yardstick if yardstick else 0.0
    return found | ({"target": target} if target else {})


def is_missed(each: Row) -> bool:
    """Tell whether a row has a target and misses it; NaN does."""
    if "target" not in each:
        return False
    sign, bound = each["target"].split()
    return not (each["ratio"] <= float(bound) if sign == "<=" else each["ratio"] >= float(bound))


def make_batches(
    policy: Policy, theta: np.ndarray, tasks: int, horizon: int, episodes: int
) -> list[list[np.ndarray]]:
    """Return a batch ``[1]`` for both phases of each task: actions of the policy, random rest."""
    rng = np.random.default_rng(1)
    dtype = batch_dtype(horizon, episodes, (OBSERVATION,), (ACTION,), np.float32)

    def batch(parameters: np.ndarray) -> np.ndarray:
        found = np.zeros(1, dtype)
        one = found[0]
        one["lengths"][:] = horizon
        one["observations"][:] = rng.standard_normal(one["observations"].shape)
        one["advantages"][:] = rng.standard_normal(one["advantages"].shape)
        observations = one["observations"].reshape(-1, OBSERVATION)
        given = policy.forward(policy.unflatten(parameters), observations)
        noise = policy.distribution.noise(rng, (len(observations),))
        actions = policy.distribution.sample(given, noise)
        one["actions"][:] = actions.reshape(one["actions"].shape)
        log_probs = policy.distribution.log_prob(given, actions)
        one["log_probs"][:] = log_probs.reshape(one["log_probs"].shape)
        return found

    found = []
    for _ in range(tasks):
        before = batch(theta)
        adapted = adapt(policy, theta, samples(trajectories(before[0])), SETTINGS.fast_lr)
        found.append([before, batch(adapted)])
    return found


class Step:
    """An outer step on a GPU, in the pieces that an agent does it in."""

    def __init__(self, device: str, tasks: int, horizon: int, episodes: int) -> None:
        self.policy = make_policy(NETWORK, OBSERVATION, ACTION, discrete=False)
        sampling = Sampling(episodes, 0.99, 1.0, test_updates=1, test_step_sizes="halved")
        self.algorithm = MamlTrpo(SETTINGS, self.policy, sampling)
        self.state = self.algorithm.initial_state(np.random.default_rng(0))
        self.theta = self.state[THETA]
        self.gpu = Gpu(device)
        self.batches = make_batches(self.policy, self.theta, tasks, horizon, episodes)
        # as they are received
        self.pinned = [[self._received(batch) for batch in task] for task in self.batches]
        self.reduce = ExactSum(MPI.COMM_SELF, 60, self.gpu)

    def _received(self, batch: np.ndarray) -> np.ndarray:
        found = self.gpu.empty_batch(batch.dtype)
        found[:] = batch
        return found

    def upload(self) -> None:
        """Copy all batches, and wait for that."""
        self.gpu.expect(self.batches[0][0].dtype, len(self.batches), 2)
        for task, phases in enumerate(self.pinned):
            for phase, batch in enumerate(phases):
                self.gpu.upload(batch, task, phase)
        self.gpu.trajectories()

    def linearised(self) -> LinearisedTasks:
        """Return all tasks in one group."""
        state = {name: self.gpu.array(values) for name, values in self.state.items()}
        return self.algorithm.digest(state, self.gpu.trajectories())

    def take(self) -> Update:
        """Return the outcome of the outer step."""
        digests, rng = [self.linearised()], np.random.default_rng(1)
        return self.algorithm.update(self.state, digests, len(self.batches), self.reduce, rng)


def seconds(work: Callable[[], Any], gpu: Gpu, repeats: int = REPEATS) -> float:
    """Return the median time of ``work``, its end on the GPU included."""
    times = []
    for _ in range(WARM_UP + repeats):
        began = time.perf_counter()
        work()
        gpu.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[WARM_UP:])


def outer_step(options: argparse.Namespace) -> Iterator[Row]:
    """Time an outer step and its pieces."""
    step = Step(options.device, options.tasks, options.horizon, options.episodes)
    num_bytes = 2 * options.tasks * step.batches[0][0].nbytes
    upload = seconds(step.upload, step.gpu)
    yield row("upload_bytes_per_second", num_bytes / upload, "B/s", 0)
    taken = step.take()
    assert taken.accepted, taken
    assert taken.metrics["cg_iterations"] == SETTINGS.cg_iters, taken
    total = seconds(step.take, step.gpu)
    yield row("outer_step", total, "s", OUTER_STEP_SECONDS, "<= 1")
    yield row("linearise", seconds(step.linearised, step.gpu), "s", total)
    group, vector = step.linearised(), step.gpu.array(step.theta)
    product = seconds(lambda: fisher_vector_product(step.policy, group, vector), step.gpu)
    yield row("fisher_vector_product", product, "s", total)
    if step.gpu.device.type == "cuda":
        import torch

        yield row("gpu_memory", torch.cuda.max_memory_allocated(), "B", num_bytes)


def agreement(options: argparse.Namespace) -> Iterator[Row]:
    """Compare with the plain step, task after task by autograd, in float64 on the CPU."""
    import torch

    from benchmarks import plain

    step = Step(options.device, options.agreement_tasks, options.horizon, options.episodes)
    step.upload()
    sizes = (OBSERVATION, *NETWORK.hidden_sizes, ACTION)
    problem = plain.Problem(sizes, NETWORK.activation, False, (SETTINGS.fast_lr,))

    def double(batch: np.ndarray) -> Samples:
        fields = samples(trajectories(batch[0]))
        return Samples(*(torch.tensor(field, dtype=torch.float64) for field in fields))

    tasks = [([double(before)], double(after)) for before, after in step.batches]
    theta = torch.tensor(step.theta, dtype=torch.float64)
    group = step.linearised()

    def error(found: Any, expected: Any) -> float:
        found = np.asarray(found.cpu() if hasattr(found, "cpu") else found, np.float64)
        expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    gradient = plain.mean_gradient(problem, theta, tasks)
    product = plain.mean_fisher_vector_product(problem, theta, tasks)(gradient)
    vector = step.gpu.array(gradient.numpy().astype(np.float32))
    found_product = fisher_vector_product(step.policy, group, vector).double().mean(0)
    expected, measured = plain.meta_step(problem, theta, tasks, SETTINGS)
    taken = step.take()
    assert expected is not None
    assert taken.accepted, taken
    errors = {
        "gradient": error(group.gradient.double().mean(0), gradient),
        "fisher_vector_product": error(found_product, product),
        "kl_after": error([taken.metrics["kl_after"]], [measured["kl_after"]]),
        "step": error(taken.state[THETA].astype(np.float64) - step.theta, expected - theta),
    }
    for name, value in errors.items():
        yield row(f"relative_error_of_{name}", value, "1", BOUNDS[name], "<= 1")


def reduction(options: argparse.Namespace) -> Iterator[Row]:
    """Have two processes sum tensors of one GPU; they print the rows."""
    words = ["-m", "benchmarks.gpu", "--reduce", "--device", options.device]
    job = subprocess.run([*mpirun(2), sys.executable, *words], stdout=subprocess.PIPE, check=True)
    found = json.loads(job.stdout)
    if isinstance(found, str):
        say(f"reduction: not in memory of the GPU, but {found}")
        found = [row("device_reduction", 0, "1", 1, ">= 1")]
    yield from found


def reduce(device: str) -> None:
    """Compare both ways through memory, on this rank; rank 0 prints rows, or why there are none."""
    world = MPI.COMM_WORLD
    gpu = Gpu(device)
    topology = build_topology(world, world.size, "split", 60)
    if device == "cpu":
        direct, words = ExactSum(world, 60, gpu, direct=True), ""
    else:
        direct, words = sum_of_agents("auto", gpu, topology, 300)
    if not direct.direct:
        if world.rank == 0:
            print(json.dumps(words))
        return
    through_host = ExactSum(world, 60, gpu)
    rows = []
    for name, width in REDUCED.items():
        terms = np.random.default_rng(world.rank).standard_normal((20, width), np.float32)
        terms[0, 5] = np.nan
        tensors = gpu.array(terms)
        arrays = ExactSum(world, 60)(terms)
        for kind, add in (("device", direct), ("host", through_host)):
            equal = add(tensors).tobytes() == arrays.tobytes()
            rows.append(row(f"{kind}_reduction_bits_{name}", float(equal), "1", 1, ">= 1"))
        times = [seconds(partial(add, tensors), gpu, repeats=50) for add in (direct, through_host)]
        rows.append(row(f"device_reduction_{name}", times[0], "s", times[1]))
    if world.rank == 0:
        print(json.dumps(rows))


def sampling(options: argparse.Namespace) -> Iterator[Row]:
    """Compare the environment steps per second of many observers with those of one."""
    many = options.observers
    rates = {count: sampling_rate(count, options) for count in (1, many)}
    yield row("sampling_at_1_observer", rates[1], "steps/s", 0)
    target = f">= {SAMPLING_TARGET}"
    yield row(f"sampling_at_{many}_observers", rates[many], "steps/s", many * rates[1], target)


def sampling_rate(observers: int, options: argparse.Namespace) -> float:
    """Return the environment steps per second of a job, one core for the agent and each observer.

    The principal has no core of its own: it sleeps. Every observer has four tasks to do.
    """
    import h5py

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < observers + 1:
        sys.exit(f"benchmarks/gpu.py: {observers} observers need {observers + 1} cores.")
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "env.name=half_cheetah_vel",
            "topology.agents=1",
            f"meta_batch_size={4 * observers}",
            f"fast_batch_size={options.episodes}",
            f"horizon={options.horizon}",
            f"num_iterations={WARM_UP + REPEATS}",
            f"device={'cpu' if options.device == 'cpu' else 'cuda'}",
            f"--run-dir={folder}/run",
        ]
        subprocess.run(
            [*mpirun(observers + 2), sys.executable, "-m", "hpc_maml", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores[: observers + 1]),
        )
        with h5py.File(f"{folder}/run/metrics.h5") as file:
            steps = file["iterations/environment_steps"][WARM_UP:]
            times = file["iterations/sampling_seconds"][WARM_UP:]
    return float(np.median(steps / times))


def mpirun(ranks: int) -> list[str]:
    """Return the command that starts so many ranks, free to run on any core."""
    program = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or "mpirun"
    flags = ["--oversubscribe", "--bind-to", "none"] if "Open MPI" in library() else []
    return [program, *flags, "-np", str(ranks)]


def library() -> str:
    """Return the name and version of the MPI library."""
    return MPI.Get_library_version().splitlines()[0].strip(" \0")


def say(text: str) -> None:
    """Tell what goes on."""
    print(text, file=sys.stderr, flush=True)


PARTS = {each.__name__: each for each in (outer_step, agreement, reduction, sampling)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--agreement-tasks", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--observers", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--reduce", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not count_gpus():
        sys.exit("benchmarks/gpu.py: torch finds no GPU here, so there is nothing to measure.")
    if options.reduce:
        reduce(options.device)
        return 0
    rows: list[Row] = []
    for part in options.parts:
        for each in PARTS[part](options):
            rows.append(each)
            say(f"{each['name']}: {each['value']:.4g} {each['unit']}, ratio {each['ratio']:.3g}")
    text = json.dumps(rows, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    missed = [each["name"] for each in rows if is_missed(each)]
    if missed:
        say(f"missed: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
