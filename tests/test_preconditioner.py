"""Approximate inverses of the Fisher matrix against dense ones, in double precision."""

from itertools import pairwise

import numpy as np
import pytest
import reference
import torch
from conformance_networks import Small

from hpc_maml.policies import make_policy
from hpc_maml.policies.preconditioner import (
    blockwise,
    diagonal_inverse,
    kronecker_inverse,
    second_moments,
    triangle_size,
)
from hpc_maml.policies.torch_module import TorchModuleSettings

SIZES = (3, 5, 4, 2)
TASKS, SAMPLES = 3, 7
CASES = [(discrete, activation) for discrete in (False, True) for activation in ("tanh", "relu")]


def policy_and_theta(discrete, activation="tanh"):
    policy = reference.policy_of(reference.Problem(SIZES, activation, discrete, ()))
    return policy, 0.7 * np.random.default_rng(7).standard_normal(policy.size)


def small_module(discrete):
    name = f"{Small.__module__}:{Small.__name__}"
    settings = TorchModuleSettings(name=name, kwargs={"width": 4})
    return make_policy(settings, SIZES[0], SIZES[-1], discrete=discrete)


def fisher_matrix(policy, theta, observations, weights):
    """Return the dense Fisher matrix ``[P, P]`` of one task, column by column."""
    at = policy.evaluate(theta, observations)
    distribution = policy.distribution
    return np.stack(
        [
            policy.pull_back(
                at,
                distribution.fisher_metric(at.distribution, policy.push_forward(at, unit), weights),
            )
            for unit in np.eye(policy.size)
        ]
    )


def test_the_inverse_of_a_layer_is_that_of_the_kronecker_product():
    rng = np.random.default_rng(0)
    moments = []
    for width in (4, 3):
        rows, weights = rng.standard_normal((9, width)), rng.random(9)
        upper = second_moments(rows, weights)
        assert upper.shape == (triangle_size(width),)
        dense = (rows * weights[:, None]).T @ rows
        assert np.allclose(upper, dense[np.triu_indices(width)])
        moments.append((upper, dense + 0.1 * np.trace(dense) / width * np.eye(width)))
    (inputs, left), (outputs, right) = moments
    found = kronecker_inverse(inputs, outputs, 0.1)
    vector = rng.standard_normal(12)
    np.testing.assert_allclose(
        found(vector), np.linalg.solve(np.kron(left, right), vector), rtol=1e-12
    )


def test_a_layer_that_nothing_reaches_is_left_alone():
    found = kronecker_inverse(np.zeros(3), np.zeros(1), 0.1)
    assert found(np.array([1.0, 2.0])).tolist() == [1, 2]


def test_blocks_and_diagonals_by_hand():
    found = blockwise([(2, diagonal_inverse(np.array([1.0, 3.0]), 0.5)), (1, lambda v: v / 4)])
    assert found(np.array([2.0, 4.0, 8.0])).tolist() == [1, 1, 2]


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_roots_of_the_fisher_metric(discrete, activation):
    policy, theta = policy_and_theta(discrete, activation)
    observations = np.random.default_rng(1).standard_normal((SAMPLES, SIZES[0]))
    parameters = policy.evaluate(theta, observations).distribution
    roots = np.stack(policy.distribution.fisher_roots(parameters))  # [roots, N, outputs]
    metric = np.einsum("rni,rnj->nij", roots, roots)
    for sample in range(SAMPLES):
        one = type(parameters)(*parameters) if not discrete else parameters
        weights = (np.arange(SAMPLES) == sample).astype(float)
        for output in range(SIZES[-1]):
            tangent = np.zeros((SAMPLES, SIZES[-1]))
            tangent[:, output] = 1
            if not discrete:
                tangent = one._replace(mean=tangent, log_std=np.zeros_like(one.log_std))
            found = policy.distribution.fisher_metric(one, tangent, weights)
            found = found if discrete else found.mean
            np.testing.assert_allclose(found[sample], metric[sample, output], atol=1e-12)


@pytest.mark.parametrize(("discrete", "activation"), CASES)
def test_of_one_observation_the_blocks_of_the_fisher_matrix_are_kronecker_products(
    discrete, activation
):
    policy, theta = policy_and_theta(discrete, activation)
    observations, weights = np.random.default_rng(1).standard_normal((1, SIZES[0])), np.ones(1)
    at = policy.evaluate(theta, observations)
    terms = policy.curvature_terms(at, weights)
    assert terms.shape == (policy.num_curvature_terms,)
    fisher, damping, start = fisher_matrix(policy, theta, observations, weights), 0.2, 0
    inverse = policy.preconditioner(terms, damping)
    vector = np.random.default_rng(2).standard_normal(policy.size)
    found = inverse(vector)
    for rows, columns in pairwise(SIZES):
        block = slice(start, start + (rows + 1) * columns)
        # of a Kronecker product the factors are known up to scale; the last input is the bias's 1
        right = fisher[block, block][-columns:, -columns:]
        a = fisher[block, block].reshape(rows + 1, columns, rows + 1, columns)
        trace = np.trace(right)
        left = np.einsum("icjc->ij", a) / trace
        assert np.allclose(np.kron(left, right), fisher[block, block])
        left += damping * np.trace(left) / len(left) * np.eye(len(left))
        right = right + damping * trace / columns * np.eye(columns)
        expected = np.linalg.solve(np.kron(left, right), vector[block])
        np.testing.assert_allclose(found[block], expected, rtol=1e-9)
        start = block.stop
    np.testing.assert_allclose(found[start:], vector[start:] / np.diagonal(fisher)[start:])


@pytest.mark.parametrize("discrete", [False, True])
def test_the_diagonal_of_a_torch_module(discrete):
    policy = small_module(discrete)
    rng = np.random.default_rng(3)
    theta = policy.initial_parameters(rng).astype(np.float64)
    theta += 0.3 * rng.standard_normal(policy.size)
    observations = rng.standard_normal((200, SIZES[0]))
    weights = np.full(200, 1 / 200)
    terms = policy.curvature_terms(policy.evaluate(theta, observations), weights)
    assert terms.shape == (policy.num_curvature_terms,)
    diagonal = np.diagonal(fisher_matrix(policy, theta, observations, weights))[: len(terms)]
    # an estimate of eight products: the errors of many parameters average out
    ratios = terms[diagonal > 1e-6] / diagonal[diagonal > 1e-6]
    assert 0.6 < np.median(ratios) < 1.2
    assert abs(np.log(terms.sum() / diagonal.sum())) < 0.4
    inverse = policy.preconditioner(terms, 0.5)
    damped = terms + 0.5 * terms.mean()
    vector = rng.standard_normal(policy.size)
    np.testing.assert_allclose(inverse(vector)[: len(terms)], vector[: len(terms)] / damped)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_task_has_the_same_bits_beside_others_and_tensors_agree(discrete):
    policy, theta = policy_and_theta(discrete)
    rng = np.random.default_rng(4)
    thetas = (theta + 0.1 * rng.standard_normal((TASKS, policy.size))).astype(np.float32)
    observations = rng.standard_normal((TASKS, SAMPLES, SIZES[0])).astype(np.float32)
    weights = rng.random((TASKS, SAMPLES)).astype(np.float32)
    together = policy.curvature_terms(policy.evaluate(thetas, observations), weights)
    for task in range(TASKS):
        own = [each[task : task + 1] for each in (thetas, observations, weights)]
        alone = policy.curvature_terms(policy.evaluate(*own[:2]), own[2])
        assert np.array_equal(alone[0], together[task])
    as_tensors = [torch.tensor(each) for each in (thetas, observations, weights)]
    found = policy.curvature_terms(policy.evaluate(*as_tensors[:2]), as_tensors[2])
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, together, rtol=1e-4, atol=1e-5)
