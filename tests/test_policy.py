"""Policies against autograd, torch.distributions and numbers worked out by hand."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from torch.distributions import kl_divergence

from hpc_maml.policies.policy import CategoricalMLP, Gaussian, GaussianMLP, make_policy

SIZES = (3, 5, 4, 2)
CASES = [(discrete, activation) for discrete in (False, True) for activation in ("tanh", "relu")]


def case(discrete, activation):
    policy = make_policy(SIZES[0], SIZES[-1], discrete, SIZES[1:-1], activation)
    return policy, reference.Problem(SIZES, activation, discrete, ())


def random_theta(policy, *lead):
    return np.random.default_rng(7).standard_normal((*lead, policy.size)) * 0.7


def score(policy, theta, observations, actions, weights):
    return policy.score(policy.evaluate(theta, observations), actions, weights).gradient


def check_score(policy, problem, theta):
    samples = reference.random_samples(np.random.default_rng(1), problem, 6, 4)
    weights = samples.weights * samples.advantages
    leaf = torch.tensor(theta, requires_grad=True)
    tensors = reference.tensors(samples)
    log_probs = problem.distribution(leaf, tensors.observations).log_prob(tensors.actions)
    (expected,) = torch.autograd.grad((torch.as_tensor(weights) * log_probs).sum(), leaf)
    found = score(policy, theta, samples.observations, samples.actions, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_score_is_the_gradient_of_the_log_probability(discrete, activation):
    policy, problem = case(discrete, activation)
    check_score(policy, problem, random_theta(policy))


@pytest.mark.parametrize("log_std", [-13.9, float(np.log(1e-6)), -13.8])
def test_score_below_at_and_above_the_floor_of_sigma(log_std):
    policy, problem = case(False, "tanh")
    theta = random_theta(policy)
    theta[-2] = log_std  # the other sigma is free
    check_score(policy, problem, theta)


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_log_prob_and_kl_divergence_agree_with_torch_distributions(discrete, activation):
    policy, problem = case(discrete, activation)
    theta, other = random_theta(policy, 2)
    samples = reference.random_samples(np.random.default_rng(1), problem, 6, 4)
    tensors = reference.tensors(samples)
    p, q = (policy.forward(policy.unflatten(each), samples.observations) for each in (theta, other))
    expected_p, expected_q = (
        problem.distribution(torch.tensor(each), tensors.observations) for each in (theta, other)
    )
    np.testing.assert_allclose(
        policy.log_prob(p, samples.actions), expected_p.log_prob(tensors.actions), rtol=1e-12
    )
    np.testing.assert_allclose(
        policy.kl_divergence(p, q), kl_divergence(expected_p, expected_q), rtol=1e-11
    )
    assert (policy.kl_divergence(p, p) == 0).all()


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_numpy_and_torch_agree_for_any_leading_dimensions(discrete, activation):
    policy, problem = case(discrete, activation)
    theta = random_theta(policy, 2, 3)
    rng = np.random.default_rng(1)
    batches = [reference.random_samples(rng, problem, 6, 4) for _ in range(6)]
    stacked = [
        np.stack(arrays).reshape(2, 3, *arrays[0].shape) for arrays in zip(*batches, strict=True)
    ]
    observations, actions, _, _, weights = stacked
    tensors = [torch.as_tensor(array) for array in (theta, observations, actions, weights)]
    found = score(policy, theta, observations, actions, weights)
    np.testing.assert_allclose(found, score(policy, *tensors), rtol=1e-10, atol=1e-13)
    for index, one in enumerate(batches):
        at = np.unravel_index(index, (2, 3))
        alone = score(policy, theta[at], one.observations, one.actions, one.weights)
        np.testing.assert_allclose(found[at], alone, rtol=1e-10, atol=1e-13)

    distribution = policy.forward(policy.unflatten(theta), observations)
    log_probs = policy.log_prob(distribution, actions)
    distribution = policy.forward(policy.unflatten(tensors[0]), tensors[1])
    np.testing.assert_allclose(log_probs, policy.log_prob(distribution, tensors[2]), rtol=1e-10)


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_push_forward_is_the_derivative_and_pull_back_its_transpose(discrete, activation):
    policy, problem = case(discrete, activation)
    theta, tangent = random_theta(policy, 2)
    observations = reference.random_samples(np.random.default_rng(1), problem, 6, 4).observations
    at = policy.evaluate(theta, observations)
    change = policy.push_forward(at, tangent)

    def outputs(theta):
        evaluation = policy.evaluate(theta, observations)
        return evaluation.activations[-1:] if discrete else evaluation.distribution

    changes = (change,) if discrete else change
    for after, before, found in zip(
        outputs(theta + 1e-6 * tangent), outputs(theta - 1e-6 * tangent), changes, strict=True
    ):
        np.testing.assert_allclose(found, (after - before) / 2e-6, rtol=1e-6, atol=1e-8)

    rng = np.random.default_rng(2)
    cotangents = [rng.standard_normal(each.shape) for each in changes]
    pulled = policy.pull_back(at, cotangents[0] if discrete else Gaussian(*cotangents))
    inner = sum((c * u).sum() for c, u in zip(changes, cotangents, strict=True))
    np.testing.assert_allclose(pulled @ tangent, inner, rtol=1e-12)


@pytest.mark.parametrize("floor", [float(np.log(1e-6)), 0.0])
@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_score_derivative_is_that_of_the_score_along_a_direction(discrete, activation, floor):
    policy, problem = case(discrete, activation)
    if not discrete:
        policy, problem = replace(policy, min_log_std=floor), replace(problem, min_log_std=floor)
    theta, tangent = random_theta(policy, 2)
    theta[-2:] = [-1.0, 1.0]  # a sigma on each side of the higher floor
    samples = reference.random_samples(np.random.default_rng(1), problem, 6, 4)
    weights = samples.weights * samples.advantages
    at = policy.evaluate(theta, samples.observations)
    found = policy.score_derivative(at, policy.score(at, samples.actions, weights), tangent)

    tensors = reference.tensors(samples)

    def weighted(theta):
        log_probs = problem.distribution(theta, tensors.observations).log_prob(tensors.actions)
        return (torch.as_tensor(weights) * log_probs).sum()

    _, expected = torch.autograd.functional.hvp(
        weighted, torch.tensor(theta), torch.tensor(tangent)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_initial_parameters_are_glorot_uniform_with_unit_sigma():
    policy = GaussianMLP(17, 6, (64, 64), "tanh")
    theta = policy.initial_parameters(np.random.default_rng(0))
    assert theta.dtype == np.float32
    assert theta.shape == (17 * 64 + 64 + 64 * 64 + 64 + 64 * 6 + 6 + 6,)
    matrices = policy.unflatten(theta)
    limit = np.sqrt(6 / (64 + 64))
    assert 0.99 * limit < abs(matrices["weight_1"]).max() <= limit
    np.testing.assert_allclose(matrices["weight_1"].std(), limit / np.sqrt(3), rtol=0.02)
    for name in ("bias_0", "bias_1", "bias_2", "log_std"):
        assert not matrices[name].any()
    assert np.shares_memory(matrices["weight_1"], theta)


def test_categorical_samples_by_the_inverse_cumulative_distribution():
    policy = CategoricalMLP(1, 3, (), "tanh")
    distribution = np.log(np.array([0.2, 0.5, 0.3]))
    noise = np.array([0.0, 0.19, 0.21, 0.69, 0.71, 0.999])
    assert policy.sample(distribution[None], noise).tolist() == [0, 0, 1, 1, 2, 2]
    too_small = np.log(np.array([0.2, 0.5, 0.29]))  # as if rounded: the sum is not 1
    assert policy.sample(too_small[None], np.array([0.999])).tolist() == [2]


def test_gaussian_samples_are_mean_plus_sigma_times_noise():
    policy = GaussianMLP(1, 2, (), "tanh")
    distribution = Gaussian(np.array([[1.0, 2.0]]), np.log(np.array([[3.0, 4.0]])))
    actions = policy.sample(distribution, np.array([[1.0, -0.5]]))
    np.testing.assert_allclose(actions, [[4.0, 0.0]], atol=1e-15)
    noise = policy.noise(np.random.default_rng(0), (5, 4))
    assert (noise.shape, noise.dtype) == ((5, 4, 2), np.float32)


def test_observers_do_not_import_torch():
    program = (
        "import sys, numpy as np\n"
        "from hpc_maml import advantages, baseline, maml, policy, trust_region\n"
        "from hpc_maml.sampling.trajectory import Samples\n"
        "net = policy.make_policy(1, 2, False, (3,), 'tanh')\n"
        "samples = Samples(np.ones((4, 1)), np.ones((4, 2)), *np.ones((3, 4)))\n"
        "maml.adapt(net, net.initial_parameters(np.random.default_rng(0)), samples, 0.1)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
