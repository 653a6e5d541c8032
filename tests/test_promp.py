"""ProMP against plain loops over tasks with torch.distributions and double backward."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import torch
from reference import add, same_state, side_by_side
from torch.distributions import kl_divergence

from hpc_maml.algorithms.adam import STEPS, adam_state
from hpc_maml.algorithms.adaptation import log_ratio
from hpc_maml.algorithms.algorithm import NOT_FINITE, THETA
from hpc_maml.algorithms.promp import (
    KL_COEFFICIENTS,
    ProMP,
    ProMPSettings,
    adapted_coefficient,
    collected,
    objective,
)
from hpc_maml.sampling.trajectory import Samples

SIZES = (3, 4, 2)
CLIP = 0.2
CASES = pytest.mark.parametrize(
    ("discrete", "activation", "step_sizes", "each_parameter"),
    [
        (False, "tanh", (0.3,), False),
        (False, "tanh", (0.3, 0.2), False),
        (False, "relu", (0.3,), False),
        (False, "tanh", (0.3, 0.2), True),
        (True, "tanh", (0.3,), False),
        (True, "relu", (0.3, 0.2), False),
        (True, "tanh", (0.3, 0.2), True),
    ],
)


@dataclass(frozen=True)
class Plain:
    """ProMP of one task by autograd."""

    problem: reference.Problem
    coefficients: tuple[float, ...]

    def step(self, theta, samples, step_size):
        distribution = self.problem.distribution(theta, samples.observations)
        ratio = torch.exp(distribution.log_prob(samples.actions) - samples.log_probs)
        gain = (samples.weights * ratio * samples.advantages).sum()
        (gradient,) = torch.autograd.grad(gain, theta, create_graph=True)
        return theta + step_size * gradient

    def chain(self, theta, inner, step_sizes):
        """Return the parameters before each inner step, and after the last."""
        thetas = [theta]
        for samples, step_size in zip(inner, step_sizes, strict=True):
            thetas.append(self.step(thetas[-1], samples, step_size))
        return thetas

    def terms(self, theta, task, old):
        """Return loss, KL from the behaviour policy, clipped fraction and KLs of inner steps.

        ``theta`` and ``old``, of the policy that collected, are with the step sizes.
        """
        inner, post = task
        *before, adapted = self.chain(theta[0], inner, theta[1])
        olds = [each.detach() for each in self.chain(old[0], inner, old[1])]
        kls = []
        for samples, first, now in zip(inner, olds[:-1], before, strict=True):
            each = [self.problem.distribution(at, samples.observations) for at in (first, now)]
            kls.append((samples.weights * kl_divergence(*each)).sum())
        distribution = self.problem.distribution(adapted, post.observations)
        ratio = torch.exp(distribution.log_prob(post.actions) - post.log_probs)
        products = [
            each * post.advantages for each in (ratio, torch.clamp(ratio, 1 - CLIP, 1 + CLIP))
        ]
        loss = -(post.weights * torch.minimum(*products)).sum()
        clipped = ((products[0] > products[1]) * post.weights).sum()
        behaviour_kl = (post.weights * (ratio - 1 - ratio.log())).sum()
        return loss, behaviour_kl, clipped, kls

    def loss(self, theta, task, old):
        loss, _, _, kls = self.terms(theta, task, old)
        penalties = [each * kl for each, kl in zip(self.coefficients, kls, strict=True)]
        return loss + sum(penalties) / len(kls)


def leaf(values):
    return values.clone().requires_grad_()


@dataclass(frozen=True)
class Case:
    """Tasks, collected with the old parameters and seen from others."""

    problem: reference.Problem
    plain: Plain
    old: torch.Tensor
    theta: torch.Tensor
    tasks: list
    step_sizes: tuple

    @property
    def policy(self):
        return reference.policy_of(self.problem)

    def objective(self, tasks, convert=torch.as_tensor):
        """Return the objective of some tasks side by side."""
        sizes = [each if isinstance(each, float) else convert(each) for each in self.step_sizes]
        inner, post = side_by_side(tasks, convert)
        before = collected(self.policy, convert(self.old), inner, post, sizes)
        return objective(
            self.policy, convert(self.theta), before, sizes, CLIP, self.plain.coefficients
        )

    def with_sizes(self, theta):
        return theta, self.step_sizes


def draw(discrete, activation, step_sizes, each_parameter=False, num_tasks=4):
    rng = np.random.default_rng(5)
    problem = reference.Problem(SIZES, activation, discrete, step_sizes)
    policy = reference.policy_of(problem)
    old = torch.tensor(0.4 * rng.standard_normal(policy.size))
    theta = old + torch.tensor(0.1 * rng.standard_normal(policy.size))
    tasks = [reference.random_task(rng, problem) for _ in range(num_tasks)]
    if each_parameter:
        step_sizes = [each * torch.tensor(rng.uniform(0.5, 2, policy.size)) for each in step_sizes]
    plain = Plain(problem, (0.7, 1.9)[: len(step_sizes)])
    return Case(problem, plain, old, theta, tasks, tuple(step_sizes))


@CASES
@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
def test_terms_and_gradients_agree_with_autograd(
    discrete, activation, step_sizes, each_parameter, convert
):
    case = draw(discrete, activation, step_sizes, each_parameter)
    found = case.objective(case.tasks, convert)
    for index, task in enumerate(case.tasks):
        at, old = leaf(case.theta), case.with_sizes(leaf(case.old))
        loss = case.plain.loss(case.with_sizes(at), task, old)
        (expected,) = torch.autograd.grad(loss, at)
        np.testing.assert_allclose(found.gradient[index], expected, rtol=1e-9, atol=1e-12)
        *values, kls = case.plain.terms(case.with_sizes(at), task, old)
        for one, other in zip(found[:3], values, strict=True):
            np.testing.assert_allclose(one[index], other.item(), rtol=1e-9, atol=1e-14)
        expected = [kl.item() for kl in kls]
        np.testing.assert_allclose(found.inner_kls[index], expected, rtol=1e-9, atol=1e-14)
    assert 0 < found.clip_fraction.max() < 1
    columns = found.columns()
    assert columns.shape == (len(case.tasks), 4 + len(step_sizes) + case.policy.size)
    assert np.array_equal(columns[:, 0], found.clipped_loss)
    assert np.array_equal(columns[:, -case.policy.size :], found.gradient)


@pytest.mark.parametrize("discrete", [False, True])
def test_derivatives_where_one_sigma_is_held_by_the_floor(discrete):
    case = draw(discrete, "tanh", (0.3, 0.2))
    if not discrete:
        problem = replace(case.problem, min_log_std=0.0)
        case = replace(case, problem=problem, plain=replace(case.plain, problem=problem))
        case.theta[-2:] = torch.tensor([-2.0, 0.5])
        case.old[-2:] = torch.tensor([-2.0, 0.7])
    found = case.objective(case.tasks)
    for index, task in enumerate(case.tasks):
        at, old = leaf(case.theta), case.with_sizes(leaf(case.old))
        loss = case.plain.loss(case.with_sizes(at), task, old)
        (expected,) = torch.autograd.grad(loss, at)
        np.testing.assert_allclose(found.gradient[index], expected, rtol=1e-9, atol=1e-12)


def test_the_ratio_that_counts_by_hand():
    # one step of each task; the ratio is e^change, and it may gain no more than within the clip
    problem = reference.Problem((1, 2), "tanh", True, ())
    policy = reference.policy_of(problem)
    theta = torch.zeros(policy.size, dtype=torch.float64)  # both choices have probability 1/2
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    steps = reference.tensors(
        Samples(
            np.zeros((5, 1, 1)),
            np.zeros((5, 1), np.int64),
            (np.log(0.5) - ratios.log())[:, None],
            advantages[:, None],
            np.ones((5, 1)),
        )
    )
    # an inner step that has no advantages changes nothing
    inner = steps._replace(advantages=torch.zeros(5, 1, dtype=torch.float64))
    before = collected(policy, theta, [inner], steps, [0.1])
    found = objective(policy, theta, before, [0.1], CLIP, [0.0])
    np.testing.assert_allclose(found.clipped_loss, [-2.4, 3.0, -1.0, 1.6, -2.2], rtol=1e-6)
    assert found.clip_fraction.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    moved = abs(found.gradient).sum(-1) > 0
    assert moved.tolist() == [False, True, True, False, True]


def test_a_coefficient_follows_its_target():
    found = [adapted_coefficient(0.5, kl, 0.03) for kl in (0.019, 0.021, 0.044, 0.046)]
    assert found == [0.25, 0.5, 0.5, 1.0]


# the outer step


def algorithm(case, **settings):
    settings = ProMPSettings(
        fast_lr=0.3, num_inner_steps=len(case.plain.coefficients), clip=CLIP, **settings
    )
    return ProMP(settings, case.policy, reference.SAMPLING)


def state_of(case, dtype=np.float64):
    theta = case.old.numpy().astype(dtype)
    return {
        THETA: theta,
        KL_COEFFICIENTS: np.array(case.plain.coefficients),
        **adam_state(theta.size),
    }


def digests(case, group_sizes, convert=torch.as_tensor):
    """Return the tasks in groups, as the old parameters collected them."""
    found, start = [], 0
    for size in group_sizes:
        inner, post = side_by_side(case.tasks[start : start + size], convert)
        found.append(collected(case.policy, convert(case.old), inner, post, case.step_sizes))
        start += size
    assert start == len(case.tasks)
    return found


def update(algorithm, state, digests, num_tasks, reduce=add):
    rng = np.random.default_rng(0)
    drawn = rng.bit_generator.state
    found = algorithm.update(state, digests, num_tasks, reduce, rng)
    assert rng.bit_generator.state == drawn  # it draws nothing
    assert set(found.metrics) <= set(algorithm.metrics)
    return found


def plain_step(case, settings):
    """Return theta after the Adam steps of one collection, with the norm of the first gradient."""
    at, old = leaf(case.old), case.with_sizes(leaf(case.old))
    optimizer = torch.optim.Adam([at], lr=settings.outer_lr)
    norms = []
    for _ in range(settings.adam_steps):
        optimizer.zero_grad()
        losses = [case.plain.loss(case.with_sizes(at), task, old) for task in case.tasks]
        (sum(losses) / len(losses)).backward()
        norms.append(at.grad.norm().item())
        optimizer.step()
    return at.detach(), norms[0]


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray])
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("discrete", [False, True])
def test_an_update_agrees_with_autograd_and_torch_adam(discrete, num_inner_steps, convert):
    case = draw(discrete, "tanh", (0.3,) * num_inner_steps)
    promp = algorithm(case, outer_lr=0.02, adam_steps=4, kl_target=1e-4)
    state = state_of(case)
    before = {name: value.copy() for name, value in state.items()}
    found = update(promp, state, digests(case, [1, 3], convert), 4)
    assert same_state(state, before)
    expected, norm = plain_step(case, promp.settings)
    assert (found.accepted, found.reason) == (True, "")
    assert found.state.keys() == state.keys()
    assert found.state[STEPS] == 4
    np.testing.assert_allclose(found.state[THETA], expected, rtol=1e-8, atol=1e-10)
    assert abs(found.state[THETA] - state[THETA]).max() > 0.05
    metrics, old = found.metrics, case.with_sizes(leaf(case.old))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-8)
    assert metrics["step_size"] == 0.3
    for name, at in (("before", case.old), ("after", expected)):
        *values, kls = zip(
            *(case.plain.terms(case.with_sizes(leaf(at)), task, old) for task in case.tasks),
            strict=True,
        )
        loss, behaviour_kl, clipped = (sum(each).item() / len(case.tasks) for each in values)
        assert metrics[f"clipped_loss_{name}"] == pytest.approx(loss, rel=1e-7)
        assert metrics[f"kl_{name}"] == pytest.approx(behaviour_kl, rel=1e-7)
    assert metrics["clip_fraction"] == pytest.approx(clipped)
    inner_kls = np.mean([[kl.item() for kl in each] for each in kls], 0)
    assert (inner_kls > 1.5e-4).all()
    assert metrics["inner_kl"] == pytest.approx(inner_kls.mean(), rel=1e-7)
    assert metrics["kl_coefficient"] == pytest.approx(np.mean(case.plain.coefficients))
    doubled = [2 * each for each in case.plain.coefficients]
    assert found.state[KL_COEFFICIENTS].tolist() == doubled


def test_coefficients_without_a_target_stay():
    case = draw(False, "tanh", (0.3, 0.3))
    state = state_of(case)
    found = update(algorithm(case), state, digests(case, [4]), 4)
    assert found.accepted
    assert found.state[KL_COEFFICIENTS].tolist() == list(case.plain.coefficients)


def test_moments_go_on_in_the_next_iteration():
    case = draw(False, "tanh", (0.3,))
    promp, groups = algorithm(case, adam_steps=2), digests(case, [4])
    first = update(promp, state_of(case), groups, 4).state
    both = update(promp, first, groups, 4).state
    once = update(algorithm(case, adam_steps=4), state_of(case), groups, 4).state
    assert both[STEPS] == 4
    assert same_state(both, once)


def test_what_a_run_begins_with():
    case = draw(False, "tanh", (0.3, 0.3))
    promp = algorithm(case, kl_coefficient=0.25)
    state = promp.initial_state(np.random.default_rng(3))
    expected = case.policy.initial_parameters(np.random.default_rng(3))
    assert state[THETA].tobytes() == expected.tobytes()
    assert state[KL_COEFFICIENTS].tolist() == [0.25, 0.25]
    assert state.keys() == {THETA, KL_COEFFICIENTS, *adam_state(1)}
    assert promp.played(state).keys() == {THETA}


def test_a_digest_of_episodes_has_the_old_distributions():
    case = draw(False, "tanh", (0.3, 0.3), num_tasks=0)
    rng, policy = np.random.default_rng(2), case.policy
    phases = [reference.random_trajectories(rng, case.problem, 3) for _ in range(3)]
    found = algorithm(case).digest({THETA: case.old.numpy()}, phases)
    assert len(found.inner) == len(found.old) == 2
    for task in range(3):
        inner = [
            reference.tensors(Samples(*(field[task] for field in each))) for each in found.inner
        ]
        thetas = case.plain.chain(leaf(case.old), inner, (0.3, 0.3))
        for samples, theta, old in zip(inner, thetas, found.old, strict=False):
            expected = case.problem.distribution(theta.detach(), samples.observations)
            np.testing.assert_allclose(old.mean[task], expected.mean, rtol=1e-9, atol=1e-12)
    post = Samples(*(field[0] for field in found.post))
    valid = np.arange(7)[:, None] < phases[-1].lengths[0]
    np.testing.assert_allclose(post.weights, (valid / valid.sum()).ravel(), rtol=1e-6)
    distribution = policy.forward(policy.unflatten(case.old.numpy()), post.observations)
    assert not log_ratio(policy, distribution, post)[~valid.ravel()].any()


def test_an_agent_without_tasks_takes_part_in_every_reduction_and_has_the_same_result():
    case, sums = draw(False, "tanh", (0.3,)), []
    promp, state = algorithm(case, kl_target=1e-3), state_of(case)

    def recording(terms):
        sums.append(add(terms))
        return sums[-1]

    busy = update(promp, state, digests(case, [4]), 4, recording)
    assert len(sums) == promp.settings.adam_steps + 1
    replay = iter(sums)

    def replaying(terms):
        total = next(replay)
        assert terms.shape == (0, *total.shape)
        return total

    idle = update(promp, state, [], 4, replaying)
    assert next(replay, None) is None
    assert busy.accepted
    assert idle.accepted
    assert same_state(busy.state, idle.state)
    assert idle.metrics == busy.metrics


@pytest.mark.parametrize(
    ("fails_at", "reason"),
    [(0, NOT_FINITE), (3, NOT_FINITE), (5, "non-finite loss")],
)
def test_what_is_not_finite_rejects_the_whole_update(fails_at, reason):
    case, calls = draw(False, "tanh", (0.3,)), []
    promp, groups = algorithm(case, kl_target=1e-9), digests(case, [4])
    state = update(promp, state_of(case, np.float32), groups, 4).state  # moments are not zero
    kept = {name: value.copy() for name, value in state.items()}

    def failing(terms):
        calls.append(terms)
        return add(terms) * (np.nan if len(calls) > fails_at else 1)

    found = update(promp, state, groups, 4, failing)
    assert (found.accepted, found.reason) == (False, reason)
    assert found.state is state
    assert same_state(state, kept)
    assert np.isnan(found.metrics["gradient_norm"]) == (fails_at == 0)


def test_advantages_that_are_not_finite_reject_the_update():
    case = draw(False, "tanh", (0.3,))
    case.tasks[2][0][0].advantages[0] = np.nan
    state = state_of(case)
    found = update(algorithm(case), state, digests(case, [4]), 4)
    assert (found.accepted, found.reason) == (False, NOT_FINITE)
    assert found.state is state


@pytest.mark.parametrize("discrete", [False, True])
def test_a_task_has_the_same_bits_in_any_group(discrete):
    problem = reference.Problem((10, 64, 64, 5), "tanh", discrete, (0.1,))
    policy, rng = reference.policy_of(problem), np.random.default_rng(4)
    tasks = reference.single([reference.random_task(rng, problem, 10, 20) for _ in range(4)])
    old = policy.initial_parameters(rng)
    theta = old + np.float32(0.01)
    case = Case(problem, Plain(problem, (0.5,)), old, theta, tasks, (0.1,))

    def per_task(group_sizes):
        found, start = [], 0
        for size in group_sizes:
            part = case.objective(tasks[start : start + size], np.asarray)
            assert part.gradient.dtype == np.float32
            found.append(part.columns())
            start += size
        return np.concatenate(found)

    alone = per_task([1, 1, 1, 1])
    assert all(np.array_equal(per_task(each), alone) for each in ([2, 2], [4], [1, 3]))
