"""The outer step, against its floating-point floor and against the plain loop over tasks."""

import time
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from benchmarks.table import Row, compare
from hpc_maml.config import Config, load_config
from hpc_maml.algorithms.maml_trpo import MetaStep, linearise, meta_step
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.rollout import collect
from hpc_maml.run.training import make_env, prepare
from hpc_maml.sampling.trajectory import Samples, samples

Data = list[tuple[Samples, Samples]]  # of each task, before and after one inner step


def measure(rounds: int) -> list[Row]:
    """Return the seconds of an outer step of half_cheetah_vel on one core."""
    import torch

    from benchmarks import plain

    torch.set_num_threads(1)
    keep_freed_memory()
    config = load_config(None, ["env.name=half_cheetah_vel", "meta_batch_size=40"])
    policy, theta, data = collected(config)
    problem = plain.Problem(
        (policy.observation_size, *policy.hidden_sizes, policy.action_size),
        policy.activation,
        discrete=False,
        step_sizes=(config.fast_lr,),
    )
    tensors = [
        ([Samples(*map(torch.as_tensor, inner))], Samples(*map(torch.as_tensor, post)))
        for inner, post in data
    ]
    exact, quarter, autograd, floors = [], [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        step = outer_step(config, policy, theta, data, fraction=1.0)
        exact.append(time.perf_counter() - began)
        began = time.perf_counter()
        outer_step(config, policy, theta, data, fraction=0.25)
        quarter.append(time.perf_counter() - began)
        began = time.perf_counter()
        plain.meta_step(problem, torch.as_tensor(theta), tensors, config.trpo)
        autograd.append(time.perf_counter() - began)
        floors.append(operations(policy, data, step) / matrix_product_rate())
    floor = f"floating-point operations at the rate of a matrix product, {step.cg_iterations} CG "
    floor += f"iterations, {step.line_search_steps} line search steps"
    loop = "one task after another by autograd, one core"
    return [
        compare("update, exact", "s", exact, floors, floor),
        compare("update, exact", "s", exact, autograd, loop),
        compare("update, a quarter of the curvature samples", "s", quarter, autograd, loop),
    ]


def collected(config: Config) -> tuple[Policy, np.ndarray, Data]:
    """Return the policy, its initial parameters, and what an iteration collects with them."""
    env = make_env(config, config.fast_batch_size)
    job = prepare(config, env)
    rng = np.random.default_rng(config.seed)
    theta = job.policy.initial_parameters(rng)
    data = []
    for index, task in enumerate(env.sample_tasks(rng, config.meta_batch_size)):
        phases = collect(
            job.policy,
            env,
            theta,
            task[None],
            keys=[(config.seed, 0, index)],
            evaluation=False,
            step_sizes=(config.fast_lr,),
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            dtype=job.dtype,
        )
        inner, post = (samples(batches[0]) for batches, _ in phases)
        data.append((inner, post))
    return job.policy, theta, data


def outer_step(
    config: Config, policy: Policy, theta: np.ndarray, data: Data, fraction: float
) -> MetaStep:
    """Take the outer step as one agent does."""
    reduce = ExactSum(MPI.COMM_SELF, limit=60.0)
    groups = [
        linearise(
            policy,
            theta,
            [Samples(*(field[None] for field in inner))],
            Samples(*(field[None] for field in post)),
            (config.fast_lr,),
            first_order=False,
            fisher_fraction=fraction,
        )
        for inner, post in data
    ]
    return meta_step(policy, theta, groups, len(data), reduce, config.trpo)


def operations(policy: Policy, data: Data, step: MetaStep) -> float:
    """Return the floating-point operations in the matrix products of an exact outer step.

    With w weights in all layers and v in all but the first, a sample takes w multiplications with
    an addition for a forward pass, w + v for its derivative along a vector, w + v for a backward
    pass, and w + 3 v for the derivative of that. What is linearised once is not counted again.
    """
    sizes = (policy.observation_size, *policy.hidden_sizes, policy.action_size)
    layers = [rows * columns for rows, columns in pairwise(sizes)]
    w, v = sum(layers), sum(layers[1:])
    forward, tangent, backward, hessian = w, w + v, w + v, (w + v) + (w + 3 * v)
    inner = sum(len(each.weights) for each, _ in data)
    post = sum(len(each.weights) for _, each in data)
    once = inner * (2 * forward + backward + hessian) + post * (forward + backward)
    product = inner * 2 * hessian + post * (tangent + backward)
    candidate = inner * (forward + backward) + post * forward
    return 2.0 * (once + step.cg_iterations * product + step.line_search_steps * candidate)


def matrix_product_rate(size: int = 512, repeats: int = 20) -> float:
    """Return the floating-point operations per second of a float32 matrix product."""
    a = np.ones((size, size), np.float32)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
