"""Inner losses with likelihood ratios (lvc, dice), against loops over episodes and autograd."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import reference
import torch
from test_maml_trpo import every
from test_torch_module import episodes, maml, perceptrons
from torch.autograd.functional import hessian, hvp, jacobian

from hpc_maml.algorithms.adaptation import (
    adapt,
    inner_step,
    likelihood_ratio_step,
    loaded_dice_step,
)
from hpc_maml.algorithms.algorithm import THETA
from hpc_maml.algorithms.maml_trpo import (
    MamlTrpo,
    MamlTrpoSettings,
    fisher_vector_product,
    linearise,
    surrogate_and_kl,
)
from hpc_maml.algorithms.pretrain import Pretrain
from hpc_maml.algorithms.step_sizes import StepSizeGroups
from hpc_maml.errors import InputError
from hpc_maml.sampling.trajectory import Samples, samples

SIZES, HORIZON, EPISODES = (3, 4, 2), 7, 4
DISCRETE = pytest.mark.parametrize("discrete", [False, True])
CONVERT = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
STEPS = {
    "reinforce": inner_step,
    "lvc": likelihood_ratio_step,
    "dice": partial(loaded_dice_step, num_episodes=EPISODES),
}
EACH = pytest.mark.parametrize("loss", ["lvc", "dice"])


def magic_box(values):
    """Return 1 with the derivatives of the exponential (Foerster et al. 2018, section 3.3)."""
    return torch.exp(values - values.detach())


@dataclass(frozen=True)
class Ratios(reference.Problem):
    """A problem whose inner loss has ratios: of each step (lvc), or of all steps so far (dice)."""

    loss: str = "dice"

    def inner_loss(self, theta, samples):
        log_probs = self.distribution(theta, samples.observations).log_prob(samples.actions)
        if self.loss == "lvc":
            ratio = torch.exp(log_probs - samples.log_probs)
            return -(samples.weights * ratio * samples.advantages).sum()
        return self.over_episodes(log_probs - samples.log_probs, torch.exp, samples)

    def over_episodes(self, log_probs, box, samples):
        """Return minus the sum of w_t A_t (box of the steps up to t, less that of those before)."""
        loss = 0.0
        weights = (samples.weights * samples.advantages).reshape(HORIZON, EPISODES)
        real = samples.weights.reshape(HORIZON, EPISODES) > 0
        for episode in range(EPISODES):
            so_far = torch.zeros((), dtype=torch.float64)
            for step in range(int(real[:, episode].sum())):
                before = so_far
                so_far = so_far + log_probs.reshape(HORIZON, EPISODES)[step, episode]
                loss = loss - weights[step, episode] * (box(so_far) - box(before))
        return loss


def case(discrete, loss="dice", step_sizes=(0.3,), num_tasks=3, first_order=False):
    rng = np.random.default_rng(7)
    problem = Ratios(SIZES, "tanh", discrete, step_sizes, first_order, loss=loss)
    policy = reference.policy_of(problem)
    theta = 0.4 * rng.standard_normal(policy.size)
    tasks = [reference.random_task(rng, problem, HORIZON, EPISODES) for _ in range(num_tasks)]
    return policy, problem, theta, tasks


def played_by(problem, theta, batch):
    """Return the samples, as if the policy at theta had played them."""
    log_probs = problem.distribution(torch.tensor(theta), batch.observations)
    real = batch.weights > 0
    assert not real.all()  # episodes differ in length
    return batch._replace(log_probs=log_probs.log_prob(batch.actions) * real)


@CONVERT
@DISCRETE
def test_dice_has_the_gradient_of_reinforce_and_the_hessian_of_the_magic_box(discrete, convert):
    policy, problem, theta, tasks = case(discrete)
    batch = played_by(problem, theta, tasks[0][0][0])
    own = type(batch)(*map(convert, batch))
    step = loaded_dice_step(policy, convert(theta), own, 0.3, num_episodes=EPISODES)
    plain = inner_step(policy, convert(theta), own, 0.3)
    np.testing.assert_allclose(step.score.gradient, plain.score.gradient, rtol=1e-12, atol=1e-14)

    def objective(at):
        log_probs = problem.distribution(at, batch.observations).log_prob(batch.actions)
        return -problem.over_episodes(log_probs, magic_box, batch)

    at = torch.tensor(theta)
    (gradient,) = torch.autograd.grad(objective(at.requires_grad_()), at)
    np.testing.assert_allclose(step.score.gradient, gradient, rtol=1e-10, atol=1e-13)
    rows = np.eye(policy.size)
    found = np.stack([step.hessian_product(policy, convert(row)) for row in rows])
    for row, product in zip(rows, found, strict=True):
        expected = hvp(objective, at.detach(), torch.tensor(row))[1]
        np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found, found.T, rtol=1e-10, atol=1e-12)
    other = likelihood_ratio_step(policy, convert(theta), own, 0.3)
    lvc = np.stack([other.hessian_product(policy, convert(row)) for row in rows])
    assert abs(found - lvc).max() > 1e-3  # the products of scores of different steps


def test_the_hessian_of_dice_by_hand():
    # two actions of probability 1/2, one observation of 1 and no bias: log pi has the slope
    # s = (1, -1) / 2 by the two weights, or minus that, and always the curvature H = -s s^T
    problem = Ratios((1, 2), "tanh", True, ())
    policy = reference.policy_of(problem)
    theta, size = np.zeros(policy.size), policy.size
    batch = reference.random_samples(np.random.default_rng(0), problem, 2, 1)
    batch = batch._replace(
        observations=np.ones((2, 1)),
        actions=np.array([0, 1]),
        log_probs=np.full(2, np.log(0.5)),
        advantages=np.array([3.0, 5.0]),
        weights=np.array([0.5, 0.5]),
    )
    outer = np.full((2, 2), 0.25) * [[1, -1], [-1, 1]]  # s s^T
    found = {}
    for loss, step in {**STEPS, "dice": partial(loaded_dice_step, num_episodes=1)}.items():
        taken = step(policy, theta, batch, 1.0)
        columns = [taken.hessian_product(policy, row)[:2] for row in np.eye(size)[:2]]
        found[loss] = np.stack(columns)
    np.testing.assert_allclose(found["reinforce"], -4 * outer, atol=1e-12)
    np.testing.assert_allclose(found["lvc"], 0 * outer, atol=1e-12)
    # the second score is minus the first: A_2 (s_2 s_1^T + s_1 s_2^T) / 2 = -5 s s^T
    np.testing.assert_allclose(found["dice"], -5 * outer, atol=1e-12)


def test_reinforce_takes_less_noise_for_a_larger_step():
    # one normal action whose advantage is c a: the inner step moves its mean by alpha c whatever
    # the standard deviation is, but reinforce keeps the actions and sees them grow rarer
    problem = Ratios((1, 1), "tanh", False, ())
    policy = reference.policy_of(problem)
    assert policy.size == 3  # weight, bias and the logarithm of the standard deviation
    mean, deviation, slope = 0.4, 0.7, 3.0
    nodes, chances = np.polynomial.hermite_e.hermegauss(9)  # exact for polynomials of its moments
    batch = reference.random_samples(np.random.default_rng(0), problem, 9, 1)
    batch = batch._replace(
        observations=np.zeros((9, 1)),
        actions=(mean + deviation * nodes)[:, None],
        log_probs=-0.5 * nodes**2 - np.log(deviation * np.sqrt(2 * np.pi)),
        advantages=slope * (mean + deviation * nodes),
        weights=chances / np.sqrt(2 * np.pi),
    )
    theta = np.array([0.0, mean, np.log(deviation)])
    for take_step, expected in ((inner_step, -2 * slope), (likelihood_ratio_step, 0.0)):
        taken = take_step(policy, theta, batch, 1.0)
        np.testing.assert_allclose(taken.score.gradient[1], slope, rtol=1e-12)
        change = taken.hessian_product(policy, np.array([0.0, 0.0, 1.0]))[1]
        np.testing.assert_allclose(change, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("each_parameter", [False, True])
@DISCRETE
@EACH
def test_the_jacobian_away_from_the_behaviour_policy(discrete, loss, each_parameter):
    policy, problem, theta, tasks = case(discrete, loss)
    rng = np.random.default_rng(1)
    size = rng.uniform(0.1, 0.4, policy.size) if each_parameter else 0.3
    problem = replace(problem, step_sizes=(torch.as_tensor(size, dtype=torch.float64),))
    (batch,), _ = tasks[0]
    step = STEPS[loss](policy, theta, Samples(*map(np.asarray, batch)), size)
    at = torch.tensor(theta, requires_grad=True)
    after = problem.adapt(at, [batch]).detach()
    np.testing.assert_allclose(theta + size * step.score.gradient, after, rtol=1e-11)
    expected = jacobian(lambda leaf: problem.adapt(leaf, [batch]), torch.tensor(theta)).numpy()
    vector = rng.standard_normal(policy.size)
    np.testing.assert_allclose(step.push(policy, vector), expected @ vector, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(step.pull(policy, vector), vector @ expected, rtol=1e-9, atol=1e-11)


def linearised(policy, problem, theta, tasks, convert=torch.as_tensor, **more):
    inner, post = reference.side_by_side(tasks, convert)
    more = {"take_step": STEPS[problem.loss], "first_order": problem.first_order} | more
    return linearise(policy, convert(theta), inner, post, problem.step_sizes, **more)


@CONVERT
@pytest.mark.parametrize("step_sizes", [(0.3,), (0.3, 0.2)])
@DISCRETE
@EACH
def test_gradient_curvature_and_losses_agree_with_autograd(discrete, loss, step_sizes, convert):
    policy, problem, theta, tasks = case(discrete, loss, step_sizes)
    group = linearised(policy, problem, theta, tasks, convert)
    vector = np.random.default_rng(3).standard_normal(policy.size)
    products = fisher_vector_product(policy, group, convert(vector))
    candidate = theta + 0.05
    losses = surrogate_and_kl(policy, group, convert(candidate), step_sizes)
    old, new = (torch.tensor(each, requires_grad=True) for each in (theta, candidate))
    for index, task in enumerate(tasks):
        expected = reference.mean_gradient(problem, torch.tensor(theta), [task])
        np.testing.assert_allclose(group.gradient[index], expected, rtol=1e-9, atol=1e-11)
        product = reference.mean_fisher_vector_product(problem, torch.tensor(theta), [task])
        expected = product(torch.tensor(vector))
        np.testing.assert_allclose(products[index], expected, rtol=1e-8, atol=1e-10)
        kl = problem.kl(problem.adapted(old, task), new, task).item()
        expected = [problem.surrogate(new, task).item(), kl]
        np.testing.assert_allclose(losses[index], expected, rtol=1e-9)


@pytest.mark.parametrize("first_order", [False, True])
@EACH
def test_an_update_agrees_with_the_plain_loop_over_tasks(loss, first_order):
    policy, problem, theta, tasks = case(False, loss, (0.3, 0.3), first_order=first_order)
    settings = {"cg_iters": 6, "cg_damping": 1e-3, "max_kl": 0.05, "ls_interpolate": False}
    group = linearised(policy, problem, theta, tasks, np.asarray)
    algorithm = MamlTrpo(
        MamlTrpoSettings(fast_lr=0.3, num_inner_steps=2, inner_loss=loss, **settings),
        policy,
        reference.SAMPLING,
    )
    rng = np.random.default_rng(0)
    found = algorithm.update({THETA: theta}, [group], len(tasks), reference.add, rng)
    expected, _ = reference.meta_step(
        problem, torch.tensor(theta), tasks, MamlTrpoSettings(**settings)
    )
    assert found.accepted
    np.testing.assert_allclose(found.state[THETA], expected, rtol=1e-8)


@DISCRETE
@EACH
def test_learned_step_sizes(discrete, loss):
    policy, problem, theta, tasks = case(discrete, loss, (None, None))
    groups = StepSizeGroups.of("layer", policy.shapes)
    rng = np.random.default_rng(4)
    sizes = rng.uniform(0.1, 0.4, (2, groups.number))
    counts = torch.tensor(np.diff(groups.edges))
    problem = replace(problem, step_sizes=tuple(groups.expand(sizes)))
    group = linearised(policy, problem, theta, tasks, np.asarray, groups=groups)

    def parts(outer):
        rows = outer[policy.size :].reshape(2, -1).repeat_interleave(counts, dim=1)
        return outer[: policy.size], replace(problem, step_sizes=tuple(rows))

    outer = torch.tensor(np.concatenate([theta, sizes.ravel()]), requires_grad=True)
    vector = torch.tensor(rng.standard_normal(len(outer)))
    products = fisher_vector_product(policy, group, vector.numpy())
    for index, task in enumerate(tasks):
        at, moved = parts(outer)
        (expected,) = torch.autograd.grad(moved.surrogate(at, task), outer)
        np.testing.assert_allclose(group.gradient[index], expected, rtol=1e-9, atol=1e-11)
        old = reference.detached(moved.adapted(at, task))

        def kl(outer, task=task, old=old):
            at, moved = parts(outer)
            return moved.kl(old, at, task)

        expected = hvp(kl, outer.detach(), vector)[1]
        np.testing.assert_allclose(products[index], expected, rtol=1e-8, atol=1e-10)


def test_curvature_on_a_fraction_of_the_samples():
    policy, problem, theta, tasks = case(False, "lvc")
    group = linearised(policy, problem, theta, tasks, np.asarray, fisher_fraction=0.5)
    vector = np.random.default_rng(3).standard_normal(policy.size)
    products = fisher_vector_product(policy, group, vector)
    for ((batch,), post), found in zip(tasks, products, strict=True):
        few, few_post = (every(each, 0.5) for each in (batch, post))
        start = torch.tensor(theta, requires_grad=True)
        # the step on all samples, its Jacobian and the KL on half of them
        at = problem.adapt(start, [batch]).detach()
        through = jacobian(lambda leaf, few=few: problem.adapt(leaf, [few]), start.detach())
        old = reference.detached(problem.distribution(at, few_post.observations))
        kl = partial(replace(problem, step_sizes=()).kl, old, task=([], few_post))
        metric = hessian(kl, at)
        expected = through.T @ metric @ through @ torch.tensor(vector)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def settings_of(loss, **more):
    return MamlTrpoSettings(fast_lr=0.3, inner_loss=loss, **more)


@EACH
def test_a_digest_knows_which_steps_belong_together(loss):
    policy, problem, theta, _ = case(True, loss)
    phases = [
        reference.random_trajectories(np.random.default_rng(2), problem, 3, HORIZON, EPISODES)
        for _ in range(2)
    ]
    found = MamlTrpo(settings_of(loss), policy, reference.SAMPLING).digest({THETA: theta}, phases)
    inner, post = map(samples, phases)
    expected = linearise(policy, theta, [inner], post, (0.3,), take_step=STEPS[loss])
    assert np.array_equal(found.gradient, expected.gradient)
    plain = linearise(policy, theta, [inner], post, (0.3,))
    assert abs(found.gradient - plain.gradient).max() > 1e-4
    # what observers do: at the behaviour policy the step itself is that of reinforce
    own = Samples(*(field[0] for field in inner))
    distribution = policy.forward(policy.unflatten(theta), own.observations)
    log_probs = policy.distribution.log_prob(distribution, own.actions)
    own = own._replace(log_probs=log_probs * (own.weights > 0))
    with_ratios = adapt(policy, theta, own, 0.3, STEPS[loss])
    np.testing.assert_allclose(with_ratios, adapt(policy, theta, own, 0.3), rtol=1e-12)


def test_pretraining_and_the_linearisation_alone_have_reinforce():
    policy, _, theta, tasks = case(False)
    assert MamlTrpoSettings().inner_loss == "lvc"
    assert Pretrain(Pretrain.Settings(), policy, reference.SAMPLING).inner_loss == "reinforce"
    inner, post = reference.side_by_side(tasks, np.asarray)
    found, expected = (
        linearise(policy, theta, inner, post, (0.3,), **more).gradient
        for more in ({}, {"take_step": inner_step})
    )
    assert np.array_equal(found, expected)


def test_dice_refuses_to_leave_steps_out():
    policy, *_ = case(False)
    with pytest.raises(InputError, match="inner_loss=dice needs every step"):
        MamlTrpo(settings_of("dice", fisher_fraction=0.5), policy, reference.SAMPLING)
    MamlTrpo(settings_of("lvc", fisher_fraction=0.5), policy, reference.SAMPLING)


@DISCRETE
@EACH
def test_a_task_has_the_same_bits_in_any_group(loss, discrete):
    problem = Ratios((10, 64, 64, 5), "tanh", discrete, (0.1,), loss=loss)
    policy, rng = reference.policy_of(problem), np.random.default_rng(4)
    tasks = reference.single(
        [reference.random_task(rng, problem, HORIZON, EPISODES) for _ in range(4)]
    )
    theta = policy.initial_parameters(rng)
    vector = rng.standard_normal(policy.size).astype(np.float32)

    def per_task(group_sizes):
        columns, start = [], 0
        for size in group_sizes:
            part = tasks[start : start + size]
            group = linearised(policy, problem, theta, part, np.asarray)
            assert group.gradient.dtype == np.float32
            products = fisher_vector_product(policy, group, vector)
            losses = surrogate_and_kl(policy, group, theta + np.float32(0.01), (0.1,))
            columns.append(np.concatenate([group.gradient, products, losses], axis=1))
            start += size
        return np.concatenate(columns)

    alone = per_task([1, 1, 1, 1])
    assert all(np.array_equal(per_task(each), alone) for each in ([2, 2], [4], [1, 3]))


@DISCRETE
@EACH
def test_a_torch_module_agrees_with_the_closed_form(loss, discrete):
    closed, module, order = perceptrons(discrete)
    rng = np.random.default_rng(11)
    theta = 0.4 * rng.standard_normal(closed.size)
    phases = [episodes(discrete, 3) for _ in range(3)]
    vector = rng.standard_normal(closed.size)
    digests, images = [], []
    for policy, at in ((closed, slice(None)), (module, order)):
        algorithm = maml(policy, num_inner_steps=2, inner_loss=loss)
        digests.append(algorithm.digest({THETA: theta[at]}, phases))
        images.append(fisher_vector_product(policy, digests[-1], vector[at]))
    expected, found = (each.gradient for each in digests)
    np.testing.assert_allclose(found, expected[:, order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(images[1], images[0][:, order], rtol=1e-9, atol=1e-12)
