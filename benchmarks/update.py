"""The outer step, against its floating-point floor and against the plain loop over tasks."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from benchmarks.programs import PUBLISHED
from benchmarks.table import Row, compare
from hpc_maml.algorithms import Algorithm, State, Update
from hpc_maml.algorithms.algorithm import THETA
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import Config, load_config
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.parts import make_algorithm, make_env
from hpc_maml.policies.mlp import MLP
from hpc_maml.roles.digests import Digests
from hpc_maml.run.job import prepare
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.trajectory import Samples, Trajectories, samples, trajectories

MAML_TRPO = "maml_trpo"
KRONECKER = ("algorithm.cg_preconditioner=kronecker", "algorithm.cg_iters=4")  # as directions have
SIZE = ("env.name=half_cheetah_vel", "meta_batch_size=40")

Tasks = list[list[Trajectories]]  # the phases of each task, arrays [1, ...]


def measure(rounds: int, algorithm: str) -> list[Row]:
    """Return the seconds of an outer step of half_cheetah_vel on one core."""
    keep_freed_memory()
    return maml_trpo(rounds) if algorithm == MAML_TRPO else beside_maml_trpo(rounds, algorithm)


def maml_trpo(rounds: int) -> list[Row]:
    """Return the rows of MAML-TRPO."""
    import torch

    from benchmarks import plain

    torch.set_num_threads(1)
    config = load_config(None, SIZE)
    algorithm, state, tasks = collected(config)
    preconditioned, published = (
        make_algorithm(other, make_env(other, episodes=1))
        for other in (load_config(None, [*SIZE, *words]) for words in (KRONECKER, PUBLISHED))
    )
    network = algorithm.policy.network
    problem = plain.Problem(
        widths(network),
        network.activation,
        discrete=False,
        step_sizes=(algorithm.settings.fast_lr,),
    )
    arrays = [[samples(one(phase)) for phase in phases] for phases in tasks]
    tensors = [[Samples(*map(torch.as_tensor, each)) for each in phases] for phases in arrays]
    data = [([inner], post) for inner, post in tensors]
    theta = torch.as_tensor(state[THETA])
    ours, few, ten, autograd, floors, products = [], [], [], [], [], []
    for _ in range(rounds):
        seconds, update = timed(lambda: outer_step(algorithm, state, tasks))
        ours.append(seconds)
        few.append(timed(lambda: outer_step(preconditioned, state, tasks))[0])
        ten.append(timed(lambda: outer_step(published, state, tasks))[0])
        step = partial(plain.meta_step, problem, theta, data, algorithm.settings)
        autograd.append(timed(step)[0])
        floors.append(operations(network, arrays, update.metrics) / matrix_product_rate())
        products.append(cost(arrays, update.metrics, product_seconds(network)))
    floor = (
        "floating-point operations at the rate of a matrix product, "
        f"{update.metrics['cg_iterations']} CG iterations, "
        f"{update.metrics['line_search_steps']} line search steps"
    )
    shapes = "the same products alone, in the shapes that they have"
    loop = "one task after another by autograd, one core"
    plainly = "ten products, as published"
    return [
        compare("update", "s", ours, floors, floor),
        compare("update", "s", ours, products, shapes),
        compare("update", "s", ours, autograd, loop),
        compare("update", "s", ours, ten, plainly),
        compare("update, four products by Kronecker factors", "s", few, ten, plainly),
    ]


def beside_maml_trpo(rounds: int, name: str) -> list[Row]:
    """Return the row of another algorithm, beside MAML-TRPO on as many tasks and episodes."""
    ours, theirs = (
        partial(outer_step, *collected(load_config(None, [*SIZE, f"algorithm.name={each}"])))
        for each in (name, MAML_TRPO)
    )
    pairs = [(timed(ours)[0], timed(theirs)[0]) for _ in range(rounds)]
    return [compare(f"update, {name}", "s", *zip(*pairs, strict=True), f"that of {MAML_TRPO}")]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that ``work`` takes, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def collected(
    config: Config, state: State | None = None, iteration: int = 0
) -> tuple[Algorithm, State, Tasks]:
    """Return the algorithm, a state, and what the iteration after ``iteration`` collects with that.

    Without a state, the initial one.
    """
    env = make_env(config, config.fast_batch_size)
    job = prepare(config, env)
    algorithm = job.algorithm
    if state is None:
        state = algorithm.initial_state(stream(config.seed, Purpose.PARAMETERS))
    drawn = env.sample_tasks(stream(config.seed, Purpose.TASKS, iteration), config.meta_batch_size)
    tasks = []
    for index, task in enumerate(drawn):
        phases = collect(
            algorithm,
            env,
            algorithm.played(state),
            task[None],
            keys=[(config.seed, iteration, index)],
            evaluation=False,
            dtype=job.dtype,
        )
        tasks.append([trajectories(batches) for batches, _ in phases])
    return algorithm, state, tasks


def outer_step(algorithm: Algorithm, state: State, tasks: Tasks) -> Update:
    """Take the outer step as one agent does."""
    digests, rng = digested(algorithm, state, tasks), np.random.default_rng(1)
    return algorithm.update(state, digests, len(tasks), sum_alone(), rng)


def digested(algorithm: Algorithm, state: State, tasks: Tasks) -> Digests:
    """Return the digests of tasks, as an agent keeps them."""
    digests = Digests()
    for phases in tasks:
        digests.add(partial(algorithm.digest, state, phases))
    return digests


def sum_alone() -> ExactSum:
    """Return the sum over agents, of which there is one."""
    return ExactSum(MPI.COMM_SELF, limit=60.0)


def one(phase: Trajectories) -> Trajectories:
    """Return the only task of arrays ``[1, ...]``."""
    return Trajectories(*(field[0] for field in phase))


def widths(network: MLP) -> tuple[int, ...]:
    """Return the numbers of inputs, hidden units and outputs."""
    return (network.observation_size, *network.hidden_sizes, network.output_size)


class Products(NamedTuple):
    """What the three products of a layer with some samples cost, in operations or in seconds."""

    forward: float  # inputs by weights
    back: float  # deltas by transposed weights
    gradient: float  # transposed inputs by deltas


Costs = Callable[[int], Sequence[Products]]  # of each layer, with so many samples


def operations(
    network: MLP, tasks: Iterable[Sequence[Samples]], measured: Mapping[str, float]
) -> float:
    """Return the floating-point operations in the matrix products of an exact outer step."""

    def costs(number: int) -> Sequence[Products]:
        layers = pairwise(widths(network))
        return [Products(*[2.0 * number * rows * columns] * 3) for rows, columns in layers]

    return cost(tasks, measured, costs)


def cost(tasks: Iterable[Sequence[Samples]], measured: Mapping[str, float], costs: Costs) -> float:
    """Return the cost of the matrix products of an exact outer step.

    Each task has samples before and after one inner step. The derivative along a vector takes a
    forward pass and, in all layers but the first, one product more; a backward pass takes two, and
    its derivative two more. What is linearised once is not counted again.
    """
    total = 0.0
    for phases in tasks:
        inner, post = (_passes(costs(len(each.weights))) for each in phases)
        once = 2 * inner.forward + inner.backward + inner.hessian + post.forward + post.backward
        product = 2 * inner.hessian + post.tangent + post.backward
        candidate = inner.forward + inner.backward + post.forward
        total += once + measured["cg_iterations"] * product
        total += measured["line_search_steps"] * candidate
    return total


class Passes(NamedTuple):
    """What the passes through a network cost."""

    forward: float
    tangent: float
    backward: float
    hessian: float  # a tangent, and the derivative of the backward pass along it


def _passes(layers: Sequence[Products]) -> Passes:
    every, later = (Products(*map(sum, zip(*some, strict=True))) for some in (layers, layers[1:]))
    tangent, backward = every.forward + later.forward, every.gradient + later.back
    return Passes(
        every.forward, tangent, backward, tangent + backward + later.gradient + later.back
    )


def matrix_product_rate(size: int = 512, repeats: int = 20) -> float:
    """Return the floating-point operations per second of a float32 matrix product."""
    a = np.ones((size, size), np.float32)
    return 2 * size**3 / min(timed(lambda: a @ a)[0] for _ in range(repeats))


def product_seconds(network: MLP, repeats: int = 20) -> Costs:
    """Return what the products of a network's layers take, each by itself and in its shape."""

    def fastest(a: np.ndarray, b: np.ndarray) -> float:
        return min(timed(lambda: a @ b)[0] for _ in range(repeats))

    @cache
    def costs(number: int) -> Sequence[Products]:
        found = []
        for rows, columns in pairwise(widths(network)):
            shapes = (number, rows), (number, columns), (rows, columns)
            inputs, deltas, weights = (np.ones((1, *shape), np.float32) for shape in shapes)
            seconds = fastest(inputs, weights), fastest(deltas, weights.mT)
            found.append(Products(*seconds, fastest(inputs.mT, deltas)))
        return found

    return costs
