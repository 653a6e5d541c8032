"""Learned sizes of inner steps against autograd through the adaptation, in double precision."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from reference import add
from torch.autograd.functional import hvp
from torch.distributions import kl_divergence

from hpc_maml.algorithms.adam import FIRST, SECOND
from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.algorithms.algorithm import THETA, Sampling
from hpc_maml.algorithms.maml_trpo import (
    MamlTrpo,
    MamlTrpoSettings,
    fisher_vector_product,
    linearise,
    surrogate_and_kl,
)
from hpc_maml.algorithms.promp import KL_COEFFICIENTS, ProMP, ProMPSettings, collected, objective
from hpc_maml.algorithms.step_sizes import STEP_SIZES, StepSizeGroups
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories, samples

SIZES, TASKS = (3, 4, 2), 3
# parameters of each group, of 12 + 4 + 8 + 2 of the network, and of sigma
COUNTS = {
    ("step", False): [28],
    ("step", True): [26],
    ("layer", False): [12, 4, 8, 2, 2],
    ("layer", True): [12, 4, 8, 2],
    ("parameter", False): [1] * 28,
    ("parameter", True): [1] * 26,
}
each_way = pytest.mark.parametrize("learned", ["step", "layer", "parameter"])
either_kind = pytest.mark.parametrize("discrete", [False, True])
steps_1_and_2 = pytest.mark.parametrize("num_inner_steps", [1, 2])


class Case:
    """Tasks, theta and step sizes, in NumPy and as one vector of outer parameters in torch."""

    def __init__(self, learned, discrete, num_inner_steps, first_order=False):
        rng = np.random.default_rng(12)
        self.learned = learned
        self.problem = reference.Problem(
            SIZES, "tanh", discrete, (None,) * num_inner_steps, first_order
        )
        self.policy = reference.policy_of(self.problem)
        self.counts = torch.tensor(COUNTS[learned, discrete])
        self.groups = StepSizeGroups.of(learned, self.policy.shapes)
        self.theta = 0.4 * rng.standard_normal(self.policy.size)
        self.sizes = rng.uniform(0.1, 0.4, (num_inner_steps, len(self.counts)))
        self.tasks = [reference.random_task(rng, self.problem) for _ in range(TASKS)]
        self.rng = rng

    @property
    def outer(self):
        return np.concatenate([self.theta, self.sizes.ravel()])

    @property
    def state(self):
        return {THETA: self.theta, STEP_SIZES: self.sizes}

    def parts(self, outer):
        """Return theta and the problem with step sizes of outer parameters, for autograd."""
        theta, sizes = outer[: self.policy.size], outer[self.policy.size :]
        rows = sizes.reshape(len(self.sizes), -1).repeat_interleave(self.counts, dim=1)
        return theta, replace(self.problem, step_sizes=tuple(rows))

    def linearised(self, tasks, convert=torch.as_tensor, **more):
        inner, post = reference.side_by_side(tasks, convert)
        return linearise(
            self.policy,
            convert(self.theta),
            inner,
            post,
            [convert(each) for each in self.expanded],
            first_order=self.problem.first_order,
            groups=self.groups,
            **more,
        )

    @property
    def expanded(self):
        return np.repeat(self.sizes, self.counts, axis=1)

    def surrogate(self, outer, task):
        theta, problem = self.parts(outer)
        return problem.surrogate(theta, task)

    def kl(self, outer, task, old):
        theta, problem = self.parts(outer)
        return problem.kl(old, theta, task)

    def old(self, task):
        theta, problem = self.parts(torch.tensor(self.outer, requires_grad=True))
        return reference.detached(problem.adapted(theta, task))


# groups


def test_groups_by_hand():
    shapes = {"weight": (2, 3), "bias": (1, 3), "log_std": (1, 1)}
    expected = {"step": (0, 10), "layer": (0, 6, 9, 10), "parameter": tuple(range(11))}
    for learned, edges in expected.items():
        groups = StepSizeGroups.of(learned, shapes)
        assert groups.edges == edges
        assert groups.number == len(edges) - 1
    groups = StepSizeGroups.of("layer", shapes)
    assert groups.expand(np.array([1.0, 2.0, 3.0])).tolist() == [1] * 6 + [2] * 3 + [3]
    values = np.arange(20.0).reshape(2, 10)
    assert groups.contract(values).tolist() == [[15, 21, 9], [75, 51, 19]]
    for learned, number in (("step", 1), ("parameter", 10)):
        groups = StepSizeGroups.of(learned, shapes)
        rows = values[:, :number]
        assert np.array_equal(groups.expand(rows), np.broadcast_to(rows, (2, 10)))
        summed = values.sum(1, keepdims=True) if number == 1 else values
        assert np.array_equal(groups.contract(values), summed)


@each_way
def test_a_group_of_tensors_is_that_of_arrays(learned):
    groups = StepSizeGroups.of(learned, {"weight": (2, 3), "bias": (1, 3)})
    values = np.random.default_rng(0).standard_normal((2, 9))
    assert np.allclose(groups.contract(torch.tensor(values)), groups.contract(values))
    few = values[:, : groups.number]
    assert np.array_equal(groups.expand(torch.tensor(few)), groups.expand(few))


# MAML-TRPO


@each_way
@either_kind
@steps_1_and_2
@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_and_fisher_vector_product_by_theta_and_step_sizes(
    learned, discrete, num_inner_steps, first_order
):
    case = Case(learned, discrete, num_inner_steps, first_order)
    found = case.linearised(case.tasks)
    vector = torch.tensor(case.rng.standard_normal(len(case.outer)))
    products = fisher_vector_product(case.policy, found, vector)
    for index, task in enumerate(case.tasks):
        outer = torch.tensor(case.outer, requires_grad=True)
        if first_order:
            expected_gradient = first_order_gradient(case, outer, task)
            expected_product = first_order_product(case, outer, task, vector)
        else:
            (expected_gradient,) = torch.autograd.grad(case.surrogate(outer, task), outer)
            old = case.old(task)
            kl = hvp(lambda at, task=task, old=old: case.kl(at, task, old), outer, vector)
            expected_product = kl[1]
        assert len(expected_gradient) == len(case.outer)
        np.testing.assert_allclose(found.gradient[index], expected_gradient, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(products[index], expected_product, rtol=1e-8, atol=1e-11)


def first_order_jacobian(case, outer, task):
    """Return d theta' / d (theta, step sizes), gradients of inner losses taken as constants."""
    theta, problem = case.parts(outer.detach())
    columns = [torch.eye(case.policy.size, dtype=torch.float64)]
    spread = torch.repeat_interleave(
        torch.eye(len(case.counts), dtype=torch.float64), case.counts, dim=0
    )  # [P, groups]
    for batch, size in zip(task[0], problem.step_sizes, strict=True):
        at = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.inner_loss(at, batch), at)
        columns.append(-gradient[:, None] * spread)
        theta = theta - size * gradient
    return theta, torch.cat(columns, dim=1)


def first_order_gradient(case, outer, task):
    adapted, jacobian = first_order_jacobian(case, outer, task)
    at, plain = adapted.clone().requires_grad_(), replace(case.problem, step_sizes=())
    (gradient,) = torch.autograd.grad(plain.surrogate(at, ([], task[1])), at)
    return jacobian.T @ gradient


def first_order_product(case, outer, task, vector):
    adapted, jacobian = first_order_jacobian(case, outer, task)
    plain = replace(case.problem, step_sizes=())
    old = plain.distribution(adapted, task[1].observations)
    _, product = hvp(lambda at: plain.kl(old, at, ([], task[1])), adapted, jacobian @ vector)
    return jacobian.T @ product


@each_way
def test_losses_of_a_candidate_are_those_of_its_own_step_sizes(learned):
    case = Case(learned, False, 2)
    digest = case.linearised(case.tasks)
    settings = MamlTrpoSettings(num_inner_steps=2, learn_step_sizes=learned)
    algorithm = MamlTrpo(settings, case.policy, reference.SAMPLING)
    candidate = case.outer + 0.05 * case.rng.standard_normal(len(case.outer))
    theta, sizes = algorithm.outer_parameters_like(digest.gradient, case.state, candidate)
    found = surrogate_and_kl(case.policy, digest, theta, sizes)
    outer = torch.tensor(candidate, requires_grad=True)
    for index, task in enumerate(case.tasks):
        expected = [case.surrogate(outer, task), case.kl(outer, task, case.old(task))]
        expected = [each.item() for each in expected]
        np.testing.assert_allclose(found[index], expected, rtol=1e-10)


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
@pytest.mark.parametrize("preconditioner", ["none", "kronecker"])
@each_way
def test_an_update_by_trpo_moves_step_sizes_too(learned, preconditioner, convert):
    case = Case(learned, False, 2)
    settings = MamlTrpoSettings(
        cg_preconditioner=preconditioner,
        num_inner_steps=2,
        learn_step_sizes=learned,
        cg_iters=40,
        cg_damping=0.1,
        max_kl=0.01,
        ls_max_steps=1,
    )
    algorithm = MamlTrpo(settings, case.policy, reference.SAMPLING)
    digests = [
        case.linearised(part, convert, preconditioned=preconditioner != "none")
        for part in (case.tasks[:1], case.tasks[1:])
    ]
    before = case.state[THETA].copy(), case.state[STEP_SIZES].copy()
    found = algorithm.update(case.state, digests, TASKS, add, None)
    assert np.array_equal(case.theta, before[0])
    assert np.array_equal(case.sizes, before[1])
    assert found.accepted

    # the step of TRPO with dense matrices
    outer = torch.tensor(case.outer, requires_grad=True)
    gradients = torch.stack(
        [torch.autograd.grad(case.surrogate(outer, each), outer)[0] for each in case.tasks]
    ).numpy()
    gradient = gradients.mean(0)
    fisher = 0.1 * np.eye(len(gradient))
    for task in case.tasks:
        old = case.old(task)
        kl = torch.autograd.functional.hessian(
            lambda at, task=task, old=old: case.kl(at, task, old), outer
        )
        fisher = fisher + kl.detach().numpy() / TASKS
    direction = np.linalg.solve(fisher, gradient)
    full_step = direction * np.sqrt(2 * 0.01 / (direction @ gradient))
    expected = case.outer - full_step
    np.testing.assert_allclose(
        found.state[THETA], expected[: case.policy.size], rtol=1e-3, atol=1e-4
    )
    moved = expected[case.policy.size :].reshape(case.sizes.shape)
    np.testing.assert_allclose(found.state[STEP_SIZES], moved, rtol=1e-3, atol=1e-4)
    assert abs(moved - case.sizes).max() > 1e-3
    assert found.metrics["step_size"] == pytest.approx(case.sizes.mean())
    assert found.metrics["gradient_norm"] == pytest.approx(np.linalg.norm(gradient))
    standard_error = np.sqrt(gradients.var(0, ddof=1).sum() / TASKS)
    ratio = np.linalg.norm(gradient) / standard_error
    assert found.metrics["gradient_snr"] == pytest.approx(ratio, rel=1e-4)


def test_a_rejected_update_leaves_step_sizes():
    case = Case("layer", False, 1)
    settings = MamlTrpoSettings(learn_step_sizes="layer")
    algorithm = MamlTrpo(settings, case.policy, reference.SAMPLING)
    state = case.state
    found = algorithm.update(
        state, [case.linearised(case.tasks)], TASKS, lambda terms: add(terms) * np.nan, None
    )
    assert found.reason.startswith("non-finite gradient")
    assert found.state is state


# ProMP


def promp_loss(case, outer, old_outer, task, clip, coefficients):
    """Return minus J^ProMP by plain loops."""

    def chain(outer):
        theta, problem = case.parts(outer)
        thetas = [theta]
        for batch, size in zip(task[0], problem.step_sizes, strict=True):
            distribution = problem.distribution(thetas[-1], batch.observations)
            ratio = torch.exp(distribution.log_prob(batch.actions) - batch.log_probs)
            gain = (batch.weights * ratio * batch.advantages).sum()
            (gradient,) = torch.autograd.grad(gain, thetas[-1], create_graph=True)
            thetas.append(thetas[-1] + size * gradient)
        return thetas

    *before, adapted = chain(outer)
    olds = [each.detach() for each in chain(old_outer)]
    post = task[1]
    ratio = torch.exp(
        case.problem.distribution(adapted, post.observations).log_prob(post.actions)
        - post.log_probs
    )
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    loss = -(post.weights * torch.minimum(ratio * post.advantages, clipped * post.advantages)).sum()
    for batch, old, new, each in zip(task[0], olds, before, coefficients, strict=False):
        pair = [case.problem.distribution(at, batch.observations) for at in (old, new)]
        kl = (batch.weights * kl_divergence(*pair)).sum()
        loss = loss + each / len(before) * kl
    return loss


@each_way
@either_kind
@steps_1_and_2
def test_gradient_of_promp_by_theta_and_step_sizes(learned, discrete, num_inner_steps):
    case = Case(learned, discrete, num_inner_steps)
    coefficients = (0.7, 1.9)[:num_inner_steps]
    inner, post = reference.side_by_side(case.tasks)
    sizes = list(torch.tensor(case.expanded))
    tasks = collected(case.policy, torch.tensor(case.theta), inner, post, sizes)
    change = 0.1 * case.rng.standard_normal(len(case.outer))
    outer = torch.tensor(case.outer + change, requires_grad=True)
    theta, problem = case.parts(outer.detach())
    found = objective(
        case.policy, theta, tasks, list(problem.step_sizes), 0.2, coefficients, case.groups
    )
    assert found.gradient.shape == (TASKS, len(case.outer))
    for index, task in enumerate(case.tasks):
        old = torch.tensor(case.outer, requires_grad=True)
        loss = promp_loss(case, outer, old, task, 0.2, coefficients)
        (expected,) = torch.autograd.grad(loss, outer)
        np.testing.assert_allclose(found.gradient[index], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
@each_way
def test_an_update_by_promp_moves_step_sizes_too(learned, convert):
    case = Case(learned, True, 2)
    settings = ProMPSettings(
        num_inner_steps=2, learn_step_sizes=learned, outer_lr=0.01, adam_steps=3, kl_coefficient=0.5
    )
    algorithm = ProMP(settings, case.policy, reference.SAMPLING)
    fresh = algorithm.initial_state(np.random.default_rng(0))
    assert fresh[FIRST].shape == fresh[SECOND].shape == case.outer.shape
    state = fresh | case.state
    inner, post = reference.side_by_side(case.tasks, convert)
    sizes = [convert(each) for each in case.expanded]
    tasks = collected(case.policy, convert(case.theta), inner, post, sizes)
    found = algorithm.update(state, [tasks], TASKS, add, None)
    assert found.accepted

    outer = torch.tensor(case.outer, requires_grad=True)
    optimizer = torch.optim.Adam([outer], lr=0.01)
    old = torch.tensor(case.outer, requires_grad=True)
    for _ in range(3):
        optimizer.zero_grad()
        losses = [
            promp_loss(case, outer, old, each, settings.clip, (0.5, 0.5)) for each in case.tasks
        ]
        (sum(losses) / TASKS).backward()
        optimizer.step()
    theta, moved = np.split(outer.detach().numpy(), [case.policy.size])
    np.testing.assert_allclose(found.state[THETA], theta, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.state[STEP_SIZES].ravel(), moved, rtol=1e-8)
    assert abs(found.state[STEP_SIZES] - case.sizes).max() > 0.01
    assert found.state[KL_COEFFICIENTS].tolist() == [0.5, 0.5]


# state and play


@pytest.mark.parametrize("kind", [MamlTrpo, ProMP])
@each_way
@either_kind
def test_the_state_of_a_new_run(kind, learned, discrete):
    case = Case(learned, discrete, 2)
    settings = kind.Settings(num_inner_steps=2, learn_step_sizes=learned, fast_lr=0.25)
    algorithm = kind(settings, case.policy, reference.SAMPLING)
    state = algorithm.initial_state(np.random.default_rng(1))
    sizes = state[STEP_SIZES]
    assert (sizes.shape, sizes.dtype) == ((2, len(case.counts)), np.float32)
    assert (sizes == 0.25).all()
    assert algorithm.played(state).keys() == {THETA, STEP_SIZES}
    outer = algorithm.outer_parameters(state)
    assert (outer.dtype, len(outer)) == (np.float32, case.policy.size + sizes.size)
    assert reference.same_state(algorithm.with_outer_parameters(state, outer), state)
    assert algorithm.mean_step_size(state) == 0.25

    fixed = kind(kind.Settings(num_inner_steps=2), case.policy, reference.SAMPLING)
    state = fixed.initial_state(np.random.default_rng(1))
    assert STEP_SIZES not in state
    assert fixed.played(state).keys() == {THETA}


def sizes_of_a_test(test_step_sizes, learned, steps=4):
    policy = Case("step", True, 1).policy
    sampling = Sampling(4, 0.99, 0.95, steps, test_step_sizes)
    settings = MamlTrpoSettings(num_inner_steps=2, learn_step_sizes=learned, fast_lr=0.8)
    algorithm = MamlTrpo(settings, policy, sampling)
    state = {}
    if learned == "step":
        state = {STEP_SIZES: np.array([[0.3], [0.2]], np.float32)}
    found = [algorithm.step_size(state, step, evaluation=True) for step in range(steps)]
    training = algorithm.training_step_sizes(state)
    values = [np.unique(each).astype(float).tolist() for each in (*training, *found)]
    return algorithm.test_words(), [value for (value,) in values]


@pytest.mark.parametrize(
    ("test_step_sizes", "learned", "words", "sizes"),
    [
        ("constant", "none", "step sizes 0.8, 0.8, 0.8, 0.8", [0.8] * 6),
        ("halved", "none", "step sizes 0.8, 0.4, 0.4, 0.4", [0.8] * 3 + [0.4] * 3),
        ("constant", "step", "learned step sizes", [0.3, 0.2, 0.3, 0.2, 0.2, 0.2]),
        (
            "halved",
            "step",
            "learned step sizes, halved in later steps",
            [0.3, 0.2, 0.3, 0.2, 0.1, 0.1],
        ),
    ],
)
def test_sizes_of_a_meta_test(test_step_sizes, learned, words, sizes):
    found = sizes_of_a_test(test_step_sizes, learned)
    assert found[0] == words
    np.testing.assert_allclose(found[1], sizes, rtol=1e-6)


@each_way
def test_play_adapts_by_the_sizes_of_the_step(learned):
    case = Case(learned, False, 2)
    settings = MamlTrpoSettings(num_inner_steps=2, learn_step_sizes=learned)
    algorithm = MamlTrpo(settings, case.policy, reference.SAMPLING)
    episodes = reference.random_trajectories(case.rng, case.problem, 2)
    play = algorithm.begin(case.state, 2)
    assert np.array_equal(play.parameters, [case.theta] * 2)
    for phase, factor in ((0, 1.0), (1, 1.0), (2, 0.5)):  # later ones than those of training
        row = case.expanded[min(phase, 1)] * factor
        after = algorithm.adapt(case.state, play, episodes, phase, evaluation=phase == 2)
        for task in range(2):
            own = samples(Trajectories(*(field[task] for field in episodes)))
            unit = adapt(case.policy, play.parameters[task], own, 1.0) - play.parameters[task]
            expected = play.parameters[task] + row * unit
            np.testing.assert_allclose(after.parameters[task], expected, rtol=1e-9)
        assert isinstance(after, Play)
        play = after
