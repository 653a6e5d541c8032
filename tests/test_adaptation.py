"""Inner adaptation and surrogate loss against autograd and a loop over samples."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch

from hpc_maml.algorithms import adaptation as maml
from hpc_maml.algorithms.adaptation import adapt, inner_step, log_ratio, through
from hpc_maml.policies.policy import make_policy

SIZES = (3, 4, 2)
POLICIES = pytest.mark.parametrize("discrete", [False, True])


def case(discrete, num_tasks=3):
    rng = np.random.default_rng(5)
    policy = make_policy(SIZES[0], SIZES[-1], discrete, SIZES[1:-1], "tanh")
    problem = reference.Problem(SIZES, "tanh", discrete, (0.3,))
    batches = [reference.random_samples(rng, problem, 6, 3) for _ in range(num_tasks)]
    theta = 0.5 * rng.standard_normal((num_tasks, policy.size))
    tensors = reference.stacked([reference.tensors(batch) for batch in batches])
    return policy, problem, batches, theta, tensors


def inner_loss(policy, theta, samples):
    return maml.inner_loss(policy, distribution(policy, theta, samples), samples)


def surrogate_loss(policy, theta, samples):
    return maml.surrogate_loss(policy, distribution(policy, theta, samples), samples)


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
    found = maml.surrogate_gradient(policy, at, tensors)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    at = policy.evaluate(theta[0], batches[0].observations)
    found = maml.surrogate_gradient(policy, at, batches[0])
    np.testing.assert_allclose(found, expected[0], rtol=1e-10, atol=1e-13)


@POLICIES
def test_through_multiplies_by_the_jacobian_of_each_inner_step(discrete):
    policy, problem, batches, theta, _ = case(discrete)
    problem = replace(problem, step_sizes=(0.3, 0.2))
    steps, adapted = [], theta[0]
    for batch, step_size in zip(batches[:2], problem.step_sizes, strict=True):
        steps.append(inner_step(policy, adapted, batch, step_size))
        adapted = adapt(policy, adapted, batch, step_size)
    inner = [reference.tensors(batch) for batch in batches[:2]]

    def jacobian(theta):
        return torch.autograd.functional.jacobian(
            lambda leaf: problem.adapt(leaf, inner), torch.tensor(theta)
        ).numpy()

    np.testing.assert_allclose(
        through(policy, steps, theta[1]), jacobian(theta[0]) @ theta[1], rtol=1e-9
    )
    np.testing.assert_allclose(
        through(policy, reversed(steps), theta[1]), theta[1] @ jacobian(theta[0]), rtol=1e-9
    )


def test_padding_cannot_overflow_the_surrogate_loss():
    policy, _, batches, theta, _ = case(False)
    batch = batches[0]
    padding = batch.weights == 0
    assert padding.any()
    before = surrogate_loss(policy, theta[0], batch)
    extreme = batch._replace(log_probs=np.where(padding, -1e4, batch.log_probs))
    assert surrogate_loss(policy, theta[0], extreme) == before
    assert not log_ratio(policy, distribution(policy, theta[0], batch), extreme)[padding].any()
