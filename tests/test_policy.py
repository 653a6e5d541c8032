"""Policies against autograd, torch.distributions and numbers worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from torch.distributions import kl_divergence

from hpc_maml.policies import make_policy
from hpc_maml.policies.distributions import Categorical, Gaussian, MeanAndDeviation
from hpc_maml.policies.mlp import MLPSettings

SIZES = (3, 5, 4, 2)
CASES = [(discrete, activation) for discrete in (False, True) for activation in ("tanh", "relu")]


def case(discrete, activation, **more):
    problem = reference.Problem(SIZES, activation, discrete, (), **more)
    return reference.policy_of(problem), problem


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
        policy.distribution.log_prob(p, samples.actions),
        expected_p.log_prob(tensors.actions),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        policy.distribution.kl_divergence(p, q), kl_divergence(expected_p, expected_q), rtol=1e-11
    )
    assert (policy.distribution.kl_divergence(p, p) == 0).all()


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
    log_probs = policy.distribution.log_prob(distribution, actions)
    distribution = policy.forward(policy.unflatten(tensors[0]), tensors[1])
    np.testing.assert_allclose(
        log_probs, policy.distribution.log_prob(distribution, tensors[2]), rtol=1e-10
    )


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_push_forward_is_the_derivative_and_pull_back_its_transpose(discrete, activation):
    policy, problem = case(discrete, activation)
    theta, tangent = random_theta(policy, 2)
    observations = reference.random_samples(np.random.default_rng(1), problem, 6, 4).observations
    at = policy.evaluate(theta, observations)
    change = policy.push_forward(at, tangent)

    def outputs(theta):
        evaluation = policy.evaluate(theta, observations)
        return (evaluation.network.outputs,) if discrete else evaluation.distribution

    changes = (change,) if discrete else change
    for after, before, found in zip(
        outputs(theta + 1e-6 * tangent), outputs(theta - 1e-6 * tangent), changes, strict=True
    ):
        np.testing.assert_allclose(found, (after - before) / 2e-6, rtol=1e-6, atol=1e-8)

    rng = np.random.default_rng(2)
    cotangents = [rng.standard_normal(each.shape) for each in changes]
    pulled = policy.pull_back(at, cotangents[0] if discrete else MeanAndDeviation(*cotangents))
    inner = sum((c * u).sum() for c, u in zip(changes, cotangents, strict=True))
    np.testing.assert_allclose(pulled @ tangent, inner, rtol=1e-12)


@pytest.mark.parametrize("floor", [float(np.log(1e-6)), 0.0])
@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_score_derivative_is_that_of_the_score_along_a_direction(discrete, activation, floor):
    policy, problem = case(discrete, activation, min_log_std=floor)
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
    policy = make_policy(MLPSettings(hidden_sizes=[64, 64]), 17, 6, discrete=False)
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
    distribution = Categorical(3)
    parameters = np.log(np.array([0.2, 0.5, 0.3]))
    noise = np.array([0.0, 0.19, 0.21, 0.69, 0.71, 0.999])
    assert distribution.sample(parameters[None], noise).tolist() == [0, 0, 1, 1, 2, 2]
    too_small = np.log(np.array([0.2, 0.5, 0.29]))  # as if rounded: the sum is not 1
    assert distribution.sample(too_small[None], np.array([0.999])).tolist() == [2]


def test_gaussian_samples_are_mean_plus_sigma_times_noise():
    distribution = Gaussian(2)
    parameters = MeanAndDeviation(np.array([[1.0, 2.0]]), np.log(np.array([[3.0, 4.0]])))
    actions = distribution.sample(parameters, np.array([[1.0, -0.5]]))
    np.testing.assert_allclose(actions, [[4.0, 0.0]], atol=1e-15)
    noise = distribution.noise(np.random.default_rng(0), (5, 4))
    assert (noise.shape, noise.dtype) == ((5, 4, 2), np.float32)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_observers_do_not_import_torch(network):
    algorithm = "rl2" if network == "gru" else "maml_trpo"
    program = (
        "import sys, numpy as np\n"
        "from hpc_maml.algorithms.collection import collect\n"
        "from hpc_maml.config import load_config\n"
        "from hpc_maml.parts import make_env\n"
        "from hpc_maml.run.job import prepare\n"
        f"words = ['algorithm.name={algorithm}', 'horizon=4', 'fast_batch_size=2']\n"
        "config = load_config(None, words)\n"
        "env = make_env(config, 2)\n"
        "job = prepare(config, env)\n"
        "rng = np.random.default_rng(0)\n"
        "played = job.algorithm.played(job.algorithm.initial_state(rng))\n"
        "tasks, keys = env.sample_tasks(rng, 1), [(0, 0, 0)]\n"
        "more = {'keys': keys, 'evaluation': False, 'dtype': job.dtype}\n"
        "batches = list(collect(job.algorithm, env, played, tasks, **more))\n"
        "assert batches[-1][0]['lengths'].sum() == 8\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert found.returncode == 0, found.stderr
