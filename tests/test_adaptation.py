"""Inner adaptation and the losses around it, against autograd and a loop over samples."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch

from hpc_maml.algorithms import adaptation
from hpc_maml.algorithms.adaptation import (
    InnerSteps,
    adapt,
    inner_step,
    likelihood_ratio_step,
    log_ratio,
)

SIZES = (3, 4, 2)
POLICIES = pytest.mark.parametrize("discrete", [False, True])


def case(discrete, num_tasks=3):
    rng = np.random.default_rng(5)
    problem = reference.Problem(SIZES, "tanh", discrete, (0.3,))
    policy = reference.policy_of(problem)
    batches = [reference.random_samples(rng, problem, 6, 3) for _ in range(num_tasks)]
    theta = 0.5 * rng.standard_normal((num_tasks, policy.size))
    tensors = reference.stacked([reference.tensors(batch) for batch in batches])
    return policy, problem, batches, theta, tensors


def inner_loss(policy, theta, samples):
    return adaptation.inner_loss(policy, distribution(policy, theta, samples), samples)


def surrogate_loss(policy, theta, samples):
    return adaptation.surrogate_loss(policy, distribution(policy, theta, samples), samples)


def distribution(policy, theta, samples):
    return policy.forward(policy.unflatten(theta), samples.observations)


@POLICIES
def test_adapt_takes_a_step_down_the_inner_loss(discrete):
    policy, problem, batches, theta, tensors = case(discrete)
    together = adapt(policy, torch.tensor(theta), tensors, 0.3)
    for task, batch in enumerate(batches):
        leaf = torch.tensor(theta[task], requires_grad=True)
        expected = problem.adapt(leaf, [reference.tensors(batch)]).detach()
        np.testing.assert_allclose(adapt(policy, theta[task], batch, 0.3), expected, rtol=1e-11)
        np.testing.assert_allclose(together[task], expected, rtol=1e-11)

    leaf = torch.tensor(theta, requires_grad=True)
    (slope,) = torch.autograd.grad(inner_loss(policy, leaf, tensors).sum(), leaf)
    np.testing.assert_allclose(together, theta - 0.3 * slope.numpy(), rtol=1e-11)


@POLICIES
def test_losses_agree_with_a_loop_over_samples(discrete):
    policy, problem, batches, theta, tensors = case(discrete)
    inner = inner_loss(policy, torch.tensor(theta), tensors)
    surrogate = surrogate_loss(policy, torch.tensor(theta), tensors)
    for task, batch in enumerate(batches):
        expected_inner = expected_surrogate = 0.0
        for observation, action, behaviour, advantage, weight in zip(*batch, strict=True):
            distribution = problem.distribution(
                torch.tensor(theta[task]), torch.tensor(observation)
            )
            log_probability = distribution.log_prob(torch.tensor(action)).item()
            expected_inner -= weight * log_probability * advantage
            expected_surrogate -= weight * np.exp(log_probability - behaviour) * advantage
        np.testing.assert_allclose(inner[task], expected_inner, rtol=1e-11)
        np.testing.assert_allclose(surrogate[task], expected_surrogate, rtol=1e-11)
        np.testing.assert_allclose(inner_loss(policy, theta[task], batch), inner[task], rtol=1e-11)
        np.testing.assert_allclose(
            surrogate_loss(policy, theta[task], batch), surrogate[task], rtol=1e-11
        )


@POLICIES
def test_surrogate_gradient_is_that_of_the_surrogate_loss(discrete):
    policy, _, batches, theta, tensors = case(discrete)
    leaf = torch.tensor(theta, requires_grad=True)
    (expected,) = torch.autograd.grad(surrogate_loss(policy, leaf, tensors).sum(), leaf)
    at = policy.evaluate(torch.tensor(theta), tensors.observations)
    found = adaptation.surrogate_gradient(policy, at, tensors)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    at = policy.evaluate(theta[0], batches[0].observations)
    found = adaptation.surrogate_gradient(policy, at, batches[0])
    np.testing.assert_allclose(found, expected[0], rtol=1e-10, atol=1e-13)


def jacobian(theta, adapt):
    return torch.autograd.functional.jacobian(adapt, torch.tensor(theta)).numpy()


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def draw_step_sizes(policy, each_parameter):
    """Return the sizes of two steps, one number each or one for each parameter."""
    if not each_parameter:
        return 0.3, 0.2
    return tuple(np.random.default_rng(8).uniform(0.05, 0.4, (2, policy.size)))


@pytest.mark.parametrize("each_parameter", [False, True])
@POLICIES
def test_push_multiplies_by_the_jacobian_of_all_inner_steps_and_pull_by_its_transpose(
    discrete, each_parameter
):
    policy, problem, batches, theta, _ = case(discrete)
    sizes = draw_step_sizes(policy, each_parameter)
    problem = replace(problem, step_sizes=tuple(map(tensor, sizes)))
    steps, adapted = [], theta[0]
    for batch, step_size in zip(batches[:2], sizes, strict=True):
        steps.append(inner_step(policy, adapted, batch, step_size))
        adapted = adapt(policy, adapted, batch, step_size)
    inner = [reference.tensors(batch) for batch in batches[:2]]
    expected = jacobian(theta[0], lambda leaf: problem.adapt(leaf, inner))
    assert not np.allclose(expected, expected.T)  # of two steps it is not symmetric
    through = InnerSteps(steps)
    np.testing.assert_allclose(through.push(policy, theta[1]), expected @ theta[1], rtol=1e-9)
    np.testing.assert_allclose(through.pull(policy, theta[1]), theta[1] @ expected, rtol=1e-9)
    first_order = InnerSteps(steps, first_order=True)
    assert np.array_equal(first_order.push(policy, theta[1]), theta[1])
    assert np.array_equal(first_order.pull(policy, theta[1]), theta[1])

    # gradients by the parameters before each step are pulled through those before it alone
    first = replace(problem, step_sizes=problem.step_sizes[:1])
    one = jacobian(theta[0], lambda leaf: first.adapt(leaf, inner[:1]))
    rng = np.random.default_rng(9)
    more = list(rng.standard_normal((2, policy.size)))
    found = through.pull(policy, theta[1], more)
    np.testing.assert_allclose(found, theta[1] @ expected + more[1] @ one + more[0], rtol=1e-9)


@pytest.mark.parametrize("each_parameter", [False, True])
@POLICIES
def test_the_jacobian_of_a_step_on_likelihood_ratios(discrete, each_parameter):
    policy, problem, batches, theta, _ = case(discrete)
    size, _ = draw_step_sizes(policy, each_parameter)
    step = likelihood_ratio_step(policy, theta[0], batches[0], size)
    samples = reference.tensors(batches[0])

    def adapted(leaf):
        log_probs = problem.distribution(leaf, samples.observations).log_prob(samples.actions)
        ratio = torch.exp(log_probs - samples.log_probs)
        objective = (samples.weights * ratio * samples.advantages).sum()
        (gradient,) = torch.autograd.grad(objective, leaf, create_graph=True)
        return leaf + tensor(size) * gradient

    after = adapted(torch.tensor(theta[0], requires_grad=True)).detach()
    np.testing.assert_allclose(theta[0] + size * step.score.gradient, after, rtol=1e-11)
    expected = jacobian(theta[0], adapted)
    np.testing.assert_allclose(step.push(policy, theta[1]), expected @ theta[1], rtol=1e-9)
    np.testing.assert_allclose(step.pull(policy, theta[1]), theta[1] @ expected, rtol=1e-9)
    assert np.allclose(expected, expected.T) is not each_parameter


@POLICIES
def test_a_step_on_likelihood_ratios_of_the_behaviour_policy_is_that_of_reinforce(discrete):
    policy, _, batches, theta, _ = case(discrete)
    behaviour = policy.distribution.log_prob(
        distribution(policy, theta[0], batches[0]), batches[0].actions
    )
    samples = batches[0]._replace(log_probs=behaviour * (batches[0].weights > 0))
    step = likelihood_ratio_step(policy, theta[0], samples, 0.3)
    expected = inner_step(policy, theta[0], samples, 0.3)
    np.testing.assert_allclose(step.score.gradient, expected.score.gradient, rtol=1e-12)
    vector = theta[1]
    difference = step.push(policy, vector) - expected.push(policy, vector)
    assert abs(difference).max() > 1e-4  # but not its derivative


def test_padding_cannot_overflow_the_surrogate_loss():
    policy, _, batches, theta, _ = case(False)
    batch = batches[0]
    padding = batch.weights == 0
    assert padding.any()
    before = surrogate_loss(policy, theta[0], batch)
    extreme = batch._replace(log_probs=np.where(padding, -1e4, batch.log_probs))
    assert surrogate_loss(policy, theta[0], extreme) == before
    assert not log_ratio(policy, distribution(policy, theta[0], batch), extreme)[padding].any()
