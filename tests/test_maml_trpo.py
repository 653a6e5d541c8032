"""The outer step against plain loops over tasks, finite differences and double backward."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reference
import torch
from reference import add
from torch.autograd.functional import hessian

from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.algorithms.algorithm import NO_SIGNAL, THETA
from hpc_maml.algorithms.maml_trpo import (
    MamlTrpo,
    MamlTrpoSettings,
    fisher_vector_product,
    linearise,
    surrogate_and_kl,
)
from hpc_maml.algorithms.pretrain import Pretrain
from hpc_maml.roles.digests import Digests
from hpc_maml.sampling.trajectory import Samples, Trajectories, samples

SIZES = (3, 4, 2)
CASES = pytest.mark.parametrize(
    ("discrete", "activation", "step_sizes", "first_order"),
    [
        (False, "tanh", (0.3,), False),
        (False, "tanh", (0.3, 0.2), False),
        (False, "relu", (0.3,), False),
        (False, "tanh", (0.3, 0.2), True),
        (True, "tanh", (0.3,), False),
        (True, "relu", (0.3, 0.2), False),
        (True, "tanh", (0.3,), True),
        (False, "tanh", (), False),
        (True, "relu", (), False),
    ],
)


def case(discrete, activation, step_sizes, first_order=False, num_tasks=4, sizes=SIZES):
    rng = np.random.default_rng(11)
    problem = reference.Problem(sizes, activation, discrete, step_sizes, first_order)
    policy = reference.policy_of(problem)
    theta = 0.4 * rng.standard_normal(policy.size)
    return policy, problem, theta, [reference.random_task(rng, problem) for _ in range(num_tasks)]


def grouped(
    policy, problem, theta, tasks, group_sizes, convert=torch.as_tensor, fisher_fraction=1.0
):
    """Return the tasks linearised in groups, on tensors or, with ``np.asarray``, on arrays."""
    groups, start = [], 0
    for size in group_sizes:
        inner, post = reference.side_by_side(tasks[start : start + size], convert)
        linearised = linearise(
            policy,
            convert(theta),
            inner,
            post,
            problem.step_sizes,
            first_order=problem.first_order,
            fisher_fraction=fisher_fraction,
        )
        groups.append(linearised)
        start += size
    assert start == len(tasks)
    return groups


def update(problem, theta, digests, num_tasks, reduce=add, **settings):
    """Take an outer step; without inner steps it is that of pretraining."""
    policy = reference.policy_of(problem)
    if problem.step_sizes:
        first, steps = problem.step_sizes[0], len(problem.step_sizes)
        assert problem.step_sizes == (first,) * steps
        settings |= {"fast_lr": first, "num_inner_steps": steps}
        settings = MamlTrpoSettings(first_order=problem.first_order, **settings)
        algorithm = MamlTrpo(settings, policy, reference.SAMPLING)
    else:
        algorithm = Pretrain(Pretrain.Settings(**settings), policy, reference.SAMPLING)
    rng = np.random.default_rng(0)
    drawn = rng.bit_generator.state
    found = algorithm.update({THETA: theta}, digests, num_tasks, reduce, rng)
    assert rng.bit_generator.state == drawn  # it draws nothing
    assert set(found.metrics) <= set(algorithm.metrics)
    return found


def equal_steps(step_sizes):
    """Return as many steps of one size, as a configuration has them."""
    return step_sizes[:1] * len(step_sizes)


@CASES
def test_meta_gradient_agrees_with_autograd_and_finite_differences(
    discrete, activation, step_sizes, first_order
):
    policy, problem, theta, tasks = case(discrete, activation, step_sizes, first_order)
    (group,) = grouped(policy, problem, theta, tasks, [len(tasks)])
    for task, found in zip(tasks, group.gradient, strict=True):
        if first_order:  # its own definition: the gradient at the adapted parameters
            at = torch.tensor(theta, requires_grad=True)
            adapted = problem.adapt(at, task[0]).detach().requires_grad_()
            plain = replace(problem, step_sizes=())
            (expected,) = torch.autograd.grad(plain.surrogate(adapted, ([], task[1])), adapted)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
            continue
        expected = reference.mean_gradient(problem, torch.tensor(theta), [task])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        for index in range(policy.size):
            step = np.zeros(policy.size)
            step[index] = 1e-5
            ends = [torch.tensor(at, requires_grad=True) for at in (theta + step, theta - step)]
            after, before = (problem.surrogate(end, task).item() for end in ends)
            np.testing.assert_allclose(found[index], (after - before) / 2e-5, rtol=1e-5, atol=1e-8)


def check_fisher_vector_product(policy, problem, theta, tasks):
    (group,) = grouped(policy, problem, theta, tasks, [len(tasks)])
    vectors = torch.tensor(np.random.default_rng(1).standard_normal((3, policy.size)))
    for vector in vectors:
        products = fisher_vector_product(policy, group, vector)
        for task, found in zip(tasks, products, strict=True):
            product = reference.mean_fisher_vector_product(problem, torch.tensor(theta), [task])
            expected = product(vector)
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-11)


@CASES
def test_fisher_vector_product_is_the_hessian_of_the_kl(
    discrete, activation, step_sizes, first_order
):
    check_fisher_vector_product(*case(discrete, activation, step_sizes, first_order))


def test_fisher_vector_product_where_one_sigma_is_held_by_the_floor():
    _, problem, theta, tasks = case(False, "tanh", (0.3, 0.2))
    # a mild floor: sigmas of 1e-6 give gradients of 1e12, which leave nothing to compare
    problem = replace(problem, min_log_std=0.0)
    policy = reference.policy_of(problem)
    theta[-2:] = [-2.0, 1.0]
    check_fisher_vector_product(policy, problem, theta, tasks)


@CASES
@pytest.mark.parametrize("fraction", [0.25, 0.3])
def test_curvature_on_a_fraction_of_the_samples(
    discrete, activation, step_sizes, first_order, fraction
):
    policy, problem, theta, tasks = case(discrete, activation, step_sizes, first_order)
    (full,) = grouped(policy, problem, theta, tasks, [len(tasks)])
    (group,) = grouped(policy, problem, theta, tasks, [len(tasks)], fisher_fraction=fraction)
    assert torch.equal(group.gradient, full.gradient)
    candidate = torch.tensor(theta + 0.05)
    losses = [surrogate_and_kl(policy, each, candidate, step_sizes) for each in (group, full)]
    assert torch.equal(*losses)

    adapted = replace(problem, step_sizes=())
    vector = torch.tensor(np.random.default_rng(1).standard_normal(policy.size))
    products = fisher_vector_product(policy, group, vector)
    for (inner, post), found in zip(tasks, products, strict=True):
        at = torch.tensor(theta, requires_grad=True)
        jacobian = torch.eye(policy.size, dtype=torch.float64)  # of the adaptation
        for batch, step_size in zip(inner, step_sizes, strict=True):
            if not first_order:
                few = partial(problem.inner_loss, samples=every(batch, fraction))
                jacobian = jacobian - step_size * hessian(few, at) @ jacobian
            (gradient,) = torch.autograd.grad(problem.inner_loss(at, batch), at)  # on all samples
            at = (at - step_size * gradient).detach().requires_grad_()
        few = every(post, fraction)
        old = reference.detached(problem.distribution(at, few.observations))
        kl = hessian(lambda t, old=old, few=few: adapted.kl(old, t, ([], few)), at)
        expected = jacobian.T @ kl @ jacobian @ vector
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-11)


def every(batch, fraction):
    """Return a part of the samples as ``thinned`` chooses them, weighted to a mean."""
    number = len(batch.weights)
    pieces = math.ceil(number * fraction)
    kept = []
    for piece, place in enumerate(np.random.Generator(np.random.Philox(0)).random(pieces)):
        first, end = piece * number // pieces, (piece + 1) * number // pieces
        kept.append(first + int(place * (end - first)) if piece else 0)
    weights = batch.weights[kept]
    return Samples(*(field[kept] for field in batch))._replace(weights=weights / weights.sum())


@CASES
def test_losses_of_a_candidate_agree_with_torch_distributions(
    discrete, activation, step_sizes, first_order
):
    policy, problem, theta, tasks = case(discrete, activation, step_sizes, first_order)
    (group,) = grouped(policy, problem, theta, tasks, [len(tasks)])
    candidate = theta + 0.05
    found = surrogate_and_kl(policy, group, torch.tensor(candidate), step_sizes)
    old, new = (torch.tensor(each, requires_grad=True) for each in (theta, candidate))
    for index, task in enumerate(tasks):
        kl = problem.kl(problem.adapted(old, task), new, task).item()
        np.testing.assert_allclose(
            found[index], [problem.surrogate(new, task).item(), kl], rtol=1e-10
        )
        inner, post = task
        before = after = 0.0
        if inner:
            before = problem.inner_loss(old, inner[0]).item()
            after = problem.inner_loss(problem.adapt(old, inner), inner[-1]).item()
        np.testing.assert_allclose(group.inner_loss_before[index], before, rtol=1e-10)
        np.testing.assert_allclose(group.inner_loss_after[index], after, rtol=1e-10)
        ratio = torch.exp(problem.adapted(old, task).log_prob(post.actions) - post.log_probs)
        estimate = (post.weights * (ratio - 1 - ratio.log())).sum().item()
        np.testing.assert_allclose(group.behaviour_kl[index], estimate, rtol=1e-10)


@CASES
def test_an_update_agrees_with_the_plain_loop_over_tasks(
    discrete, activation, step_sizes, first_order
):
    step_sizes = equal_steps(step_sizes)
    policy, problem, theta, tasks = case(discrete, activation, step_sizes, first_order)
    settings = {"cg_iters": 6, "cg_damping": 1e-3, "max_kl": 0.05, "ls_interpolate": False}
    before = theta.copy()
    groups = grouped(policy, problem, theta, tasks, [1, 3])
    found = update(problem, theta, groups, len(tasks), **settings)
    expected, measured = reference.meta_step(
        problem, torch.tensor(theta), tasks, MamlTrpoSettings(**settings)
    )
    assert found.accepted
    assert found.reason == ""
    assert set(found.state) == {THETA}
    np.testing.assert_allclose(found.state[THETA], expected, rtol=1e-8)
    for name, value in measured.items():
        np.testing.assert_allclose(found.metrics[name], value, rtol=1e-6, err_msg=name)
    for name, field in (("kl_before", "behaviour_kl"), *((n, n) for n in INNER_LOSSES)):
        each = np.concatenate([getattr(group, field) for group in groups])
        np.testing.assert_allclose(found.metrics[name], each.mean(), rtol=1e-12)
    assert abs(found.state[THETA] - theta).max() > 1e-3
    assert np.array_equal(theta, before)
    assert found.metrics["cg_iterations"] == 6


INNER_LOSSES = ("inner_loss_before", "inner_loss_after")


@pytest.mark.parametrize("discrete", [False, True])
def test_a_digest_of_episodes_is_that_of_their_steps(discrete):
    policy, problem, theta, _ = case(discrete, "tanh", (0.3, 0.3), num_tasks=0)
    rng = np.random.default_rng(2)
    phases = [reference.random_trajectories(rng, problem, 3) for _ in range(3)]
    settings = MamlTrpoSettings(fast_lr=0.3, num_inner_steps=2, inner_loss="reinforce")
    algorithm = MamlTrpo(settings, policy, reference.SAMPLING)
    assert algorithm.num_phases(False) == len(phases)
    vector = rng.standard_normal(policy.size)
    together = algorithm.digest({THETA: theta}, phases)
    for task in range(3):
        own = [Trajectories(*(field[[task]] for field in phase)) for phase in phases]
        alone = algorithm.digest({THETA: theta}, own)
        assert np.array_equal(alone.gradient[0], together.gradient[task])
        *inner, post = (by_loops(phase, task) for phase in phases)
        expected = reference.mean_gradient(problem, torch.tensor(theta), [(inner, post)])
        # weights are in single precision
        np.testing.assert_allclose(alone.gradient[0], expected, rtol=1e-5, atol=1e-7)
        product = reference.mean_fisher_vector_product(
            problem, torch.tensor(theta), [(inner, post)]
        )
        np.testing.assert_allclose(
            fisher_vector_product(policy, alone, vector)[0],
            product(torch.tensor(vector)),
            rtol=1e-5,
            atol=1e-7,
        )
        surrogate = problem.surrogate(torch.tensor(theta, requires_grad=True), (inner, post))
        np.testing.assert_allclose(alone.surrogate[0], surrogate.item(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{"first_order": True}, {"fisher_fraction": 0.3}])
def test_the_settings_of_an_algorithm_are_those_of_its_digests(settings):
    policy, problem, theta, _ = case(False, "tanh", (0.3,), num_tasks=0)
    rng = np.random.default_rng(2)
    phases = [reference.random_trajectories(rng, problem, 2) for _ in range(2)]
    settings_of = MamlTrpoSettings(fast_lr=0.3, inner_loss="reinforce", **settings)
    found = MamlTrpo(settings_of, policy, reference.SAMPLING).digest({THETA: theta}, phases)
    expected = linearise(policy, theta, *_inner_and_post(phases), (0.3,), **settings)
    vector = rng.standard_normal(policy.size)
    products = [fisher_vector_product(policy, each, vector) for each in (found, expected)]
    assert np.array_equal(*products)
    plain = linearise(policy, theta, *_inner_and_post(phases), (0.3,))
    assert not np.allclose(products[0], fisher_vector_product(policy, plain, vector))


def _inner_and_post(phases):
    *inner, post = map(samples, phases)
    return inner, post


def test_pretraining_is_an_outer_step_on_episodes_of_one_policy():
    policy, problem, theta, _ = case(False, "tanh", (), num_tasks=0)
    phase = reference.random_trajectories(np.random.default_rng(2), problem, 3)
    algorithm = Pretrain(Pretrain.Settings(), policy, reference.SAMPLING)
    assert (algorithm.num_phases(False), algorithm.num_phases(True)) == (1, 4)
    digest = algorithm.digest({THETA: theta}, [phase])
    for task in range(3):
        alone = ([], by_loops(phase, task))
        expected = reference.mean_gradient(problem, torch.tensor(theta), [alone])
        np.testing.assert_allclose(digest.gradient[task], expected, rtol=1e-5, atol=1e-7)


def by_loops(episodes, task):
    """Return the real steps of a task, each of the same weight."""
    fields = ("observations", "actions", "log_probs", "advantages")
    steps = [
        (step, episode)
        for episode, length in enumerate(episodes.lengths[task])
        for step in range(length)
    ]
    columns = [np.array([getattr(episodes, name)[task][step] for step in steps]) for name in fields]
    return reference.tensors(Samples(*columns, np.full(len(steps), 1 / len(steps))))


def test_an_agent_without_tasks_takes_part_in_every_reduction_and_has_the_same_result():
    policy, problem, theta, tasks = case(False, "tanh", (0.3,))
    sums = []

    def recording(terms):
        sums.append(add(terms))
        return sums[-1]

    groups = grouped(policy, problem, theta, tasks, [2, 2])
    busy = update(problem, theta, groups, 4, recording)
    replay = iter(sums)

    def replaying(terms):
        total = next(replay)
        assert terms.shape == (0, *total.shape)
        return total

    idle = update(problem, theta, [], 4, replaying)
    assert next(replay, None) is None
    assert busy.accepted
    assert idle.accepted
    assert reference.same_state(idle.state, busy.state)
    assert idle.metrics == busy.metrics


@pytest.mark.parametrize(
    ("discrete", "sizes", "shape"),
    [
        (False, (17, 64, 64, 6), (50, 20)),
        (False, (2, 64, 64, 2), (20, 20)),
        (False, (17, 64, 64, 6), (7, 3)),
        (True, (10, 64, 64, 5), (10, 20)),
    ],
)
def test_a_task_has_the_same_bits_in_any_group(discrete, sizes, shape):
    policy, problem, _, _ = case(discrete, "tanh", (0.1,), num_tasks=0, sizes=sizes)
    rng = np.random.default_rng(4)
    tasks = reference.single([reference.random_task(rng, problem, *shape) for _ in range(4)])
    theta = policy.initial_parameters(rng)
    vector = rng.standard_normal(policy.size).astype(np.float32)

    def per_task(group_sizes):
        groups = grouped(policy, problem, theta, tasks, group_sizes, np.asarray)
        columns = [
            np.concatenate([group.gradient for group in groups]),
            np.concatenate([fisher_vector_product(policy, group, vector) for group in groups]),
            np.concatenate(
                [
                    surrogate_and_kl(policy, each, theta + np.float32(0.01), (0.1,))
                    for each in groups
                ]
            ),
            np.concatenate([group.behaviour_kl for group in groups])[:, None],
        ]
        return np.concatenate(columns, axis=1)

    alone = per_task([1, 1, 1, 1])
    for group_sizes in ([2, 2], [4], [1, 3]):
        assert np.array_equal(per_task(group_sizes), alone), group_sizes


@CASES
def test_arrays_and_tensors_give_the_same_step(discrete, activation, step_sizes, first_order):
    step_sizes = equal_steps(step_sizes)
    policy, problem, theta, tasks = case(discrete, activation, step_sizes, first_order)
    found = []
    for convert in (np.asarray, torch.as_tensor):
        groups = grouped(policy, problem, theta, tasks, [1, 3], convert)
        # many more iterations would magnify the rounding of one product
        found.append(update(problem, theta, groups, 4, cg_iters=5))
    arrays, tensors = found
    assert arrays.accepted
    assert tensors.accepted
    assert isinstance(tensors.state[THETA], np.ndarray)
    np.testing.assert_allclose(arrays.state[THETA], tensors.state[THETA], rtol=1e-6, atol=1e-8)
    assert arrays.metrics["kl_after"] == pytest.approx(tensors.metrics["kl_after"], rel=1e-6)


def test_tasks_without_room_are_linearised_anew_with_the_same_bits():
    policy, problem, theta, tasks = case(False, "tanh", (0.3, 0.3))
    made = []

    def step(memory):
        made.clear()
        digests = Digests(memory)
        for task in tasks:

            def linearised(task=task):
                made.extend(grouped(policy, problem, theta, [task], [1], np.asarray))
                return made[-1]

            digests.add(linearised)
        kept = len(digests.kept)
        assert kept + len(digests.computed_anew) == len(tasks)
        return kept, update(problem, theta, digests, len(tasks))

    kept, expected = step(2**30)
    assert expected.accepted
    assert (kept, len(made)) == (4, 4)
    curvature = made[0].curvature
    arrays = [made[0].gradient, made[0].post.observations, curvature.at.network.activations[1]]
    for memory, fits in ((0, 0), (sum(array.nbytes for array in arrays), 1)):
        kept, found = step(memory)
        assert kept == fits
        assert found.metrics == expected.metrics
        assert reference.same_state(found.state, expected.state)
        passes = 1 + expected.metrics["cg_iterations"] + expected.metrics["line_search_steps"]
        assert len(made) == kept + passes * (4 - kept)


def rejected(found, theta, bits, reason):
    assert not found.accepted
    assert found.reason.startswith(reason)
    assert found.state[THETA] is theta
    assert theta.tobytes() == bits
    return found.metrics


def test_advantages_that_are_not_finite_reject_the_update():
    policy, problem, theta, tasks = case(False, "tanh", (0.3,))
    inner, post = tasks[2]
    post.advantages[0] = np.nan
    tasks[2] = inner, post
    theta, tasks = theta.astype(np.float32), reference.single(tasks)
    bits = theta.tobytes()
    groups = grouped(policy, problem, theta, tasks, [4])
    found = update(problem, theta, groups, 4)
    metrics = rejected(found, theta, bits, "non-finite gradient: an adaptation has diverged")
    assert np.isnan(metrics["surrogate_before"])
    assert np.isnan(metrics["gradient_norm"])
    assert "line_search_steps" not in metrics


def test_a_line_search_that_cannot_succeed_rejects_the_update():
    policy, problem, theta, tasks = case(False, "tanh", (0.3,))
    bits = theta.tobytes()
    groups = grouped(policy, problem, theta, tasks, [4])

    def inflating(terms):  # what a line search candidate is told: a KL that is too large
        return add(terms) + (np.array([0.0, 1e3]) if terms.shape[1] == 2 else 0)

    found = update(problem, theta, groups, 4, inflating, ls_max_steps=3)
    metrics = rejected(found, theta, bits, "line search failed: the KL divergence is 2.5e+02 at")
    assert metrics["line_search_steps"] == 3
    assert metrics["kl_after"] > 1e2

    def worse(terms):  # a loss that is too large
        return add(terms) + (np.array([1.0, 0.0]) if terms.shape[1] == 2 else 0)

    found = update(problem, theta, groups, 4, worse, ls_max_steps=3)
    rejected(found, theta, bits, "line search failed: the surrogate loss does not fall")

    def diverging(terms):
        return add(terms) * (np.nan if terms.shape[1] == 2 else 1)

    found = update(problem, theta, groups, 4, diverging, ls_max_steps=3)
    rejected(found, theta, bits, "line search failed: the adaptation diverges")


def test_a_zero_gradient_or_a_curvature_that_is_not_finite_rejects_the_update():
    policy, problem, theta, tasks = case(False, "tanh", (0.3,))
    bits = theta.tobytes()
    groups = grouped(policy, problem, theta, tasks, [4])

    def diverging(terms):  # Fisher-vector products only
        return add(terms) * (np.nan if terms.shape[1] == policy.size else 1)

    found = update(problem, theta, groups, 4, diverging)
    assert rejected(found, theta, bits, "no finite step")["cg_iterations"] == 0

    for inner, post in tasks:
        for batch in (*inner, post):
            batch.advantages.zero_()
    groups = grouped(policy, problem, theta, tasks, [4])
    found = update(problem, theta, groups, 4)
    assert rejected(found, theta, bits, NO_SIGNAL)["gradient_norm"] == 0


def test_observers_and_agents_adapt_alike_in_float32():
    policy, problem, theta, tasks = case(False, "tanh", (0.3, 0.2))
    theta = theta.astype(np.float32)
    (task,) = reference.single(tasks[:1])
    (group,) = grouped(policy, problem, theta, [task], [1])
    observed = theta
    for batch, step_size in zip(task[0], problem.step_sizes, strict=True):
        arrays = type(batch)(*(field.numpy() for field in batch))
        observed = adapt(policy, observed, arrays, step_size)
    assert observed.dtype == np.float32
    layers = group.curvature.at.layers.values()
    agents = np.concatenate([matrix[0].ravel() for matrix in layers])
    np.testing.assert_allclose(observed, agents, rtol=1e-4, atol=1e-6)
