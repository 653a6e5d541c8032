"""Distributions of actions and their derivatives against torch.distributions and autograd."""

import numpy as np
import pytest
import torch
from torch import distributions
from torch.autograd.functional import jvp

from hpc_maml.policies.distributions import Categorical, Gaussian, MeanAndDeviation

ACTIONS, STEPS = 3, 6


class Case:
    """A distribution, and the same in torch over one vector of its parameters."""

    def __init__(self, discrete):
        self.discrete = discrete
        self.own = Categorical(ACTIONS) if discrete else Gaussian(ACTIONS)
        self.rng = np.random.default_rng(4)
        self.weights = self.rng.standard_normal(STEPS)
        self.actions = (
            self.rng.integers(ACTIONS, size=STEPS)
            if discrete
            else self.rng.standard_normal((STEPS, ACTIONS))
        )

    def draw(self):
        """Return outputs of a network ``[STEPS * ACTIONS]``, and log sigma if there is one."""
        return self.rng.standard_normal((STEPS + (not self.discrete)) * ACTIONS)

    def parameters(self, vector):
        """Return what the vector stands for."""
        if self.discrete:
            return self.own.parameters({}, vector.reshape(STEPS, ACTIONS))
        return self.own.parameters({"log_std": vector[None, -ACTIONS:]}, self.outputs(vector))

    def outputs(self, vector):
        return vector[: STEPS * ACTIONS].reshape(STEPS, ACTIONS)

    def direction(self, vector):
        """Return a vector as a change of the parameters."""
        if self.discrete:
            return self.outputs(vector)
        return MeanAndDeviation(self.outputs(vector), vector[None, -ACTIONS:])

    def flat(self, cotangent):
        """Return a cotangent as a vector."""
        parts = (cotangent,) if self.discrete else cotangent
        return np.concatenate([np.asarray(part).ravel() for part in parts])

    def plain(self, vector):
        """Return torch's distribution."""
        if self.discrete:
            return distributions.Categorical(logits=self.outputs(vector))
        normal = distributions.Normal(self.outputs(vector), vector[-ACTIONS:].exp())
        return distributions.Independent(normal, 1)

    def gradient(self, scalar, vector):
        leaf = torch.tensor(vector, requires_grad=True)
        return torch.autograd.grad(scalar(leaf), leaf)[0]


@pytest.fixture(params=[False, True], ids=["gaussian", "categorical"])
def case(request):
    return Case(request.param)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_values(case):
    one, other = case.draw(), case.draw()
    p, q = case.parameters(one), case.parameters(other)
    plain_p, plain_q = case.plain(torch.tensor(one)), case.plain(torch.tensor(other))
    close(case.own.log_prob(p, case.actions), plain_p.log_prob(torch.tensor(case.actions)))
    close(case.own.kl_divergence(p, q), distributions.kl_divergence(plain_p, plain_q))
    assert (case.own.kl_divergence(p, p) == 0).all()
    close(case.own.entropy(p) + np.zeros(STEPS), plain_p.entropy())


def test_log_prob_gradient(case):
    vector = case.draw()

    def weighted(leaf):
        log_probs = case.plain(leaf).log_prob(torch.tensor(case.actions))
        return (torch.tensor(case.weights) * log_probs).sum()

    found = case.own.log_prob_gradient(case.parameters(vector), case.actions, case.weights)
    close(case.flat(found), case.gradient(weighted, vector))


def test_log_prob_tangent(case):
    vector, tangent = case.draw(), case.draw()

    def log_probs(leaf):
        return case.plain(leaf).log_prob(torch.tensor(case.actions))

    _, expected = jvp(log_probs, torch.tensor(vector), torch.tensor(tangent))
    found = case.own.log_prob_tangent(
        case.parameters(vector), case.actions, case.direction(tangent)
    )
    assert found.shape == (STEPS,)
    close(found, expected)


def test_log_prob_curvature(case):
    vector, tangent = case.draw(), case.draw()

    def weighted(leaf):
        log_probs = case.plain(leaf).log_prob(torch.tensor(case.actions))
        return (torch.tensor(case.weights) * log_probs).sum()

    _, expected = torch.autograd.functional.hvp(
        weighted, torch.tensor(vector), torch.tensor(tangent)
    )
    parameters = case.parameters(vector)
    gradient = case.own.log_prob_gradient(parameters, case.actions, case.weights)
    found = case.own.log_prob_curvature(parameters, gradient, case.weights, case.direction(tangent))
    close(case.flat(found), expected)


def test_kl_gradient(case):
    one, other = case.draw(), case.draw()
    old = case.plain(torch.tensor(one))

    def weighted(leaf):
        kls = distributions.kl_divergence(old, case.plain(leaf))
        return (torch.tensor(case.weights) * kls).sum()

    found = case.own.kl_gradient(case.parameters(one), case.parameters(other), case.weights)
    close(case.flat(found), case.gradient(weighted, other))
    nothing = case.own.kl_gradient(case.parameters(one), case.parameters(one), case.weights)
    assert not case.flat(nothing).any()


def test_entropy_gradient(case):
    vector = case.draw()

    def weighted(leaf):
        return (torch.tensor(case.weights) * case.plain(leaf).entropy()).sum()

    found = case.own.entropy_gradient(case.parameters(vector), case.weights)
    close(case.flat(found), case.gradient(weighted, vector))


def test_fisher_metric_is_the_hessian_of_the_kl_divergence(case):
    vector, tangent = case.draw(), case.draw()
    old = case.plain(torch.tensor(vector))

    def weighted(leaf):
        kls = distributions.kl_divergence(old, case.plain(leaf))
        return (torch.tensor(case.weights) * kls).sum()

    _, expected = torch.autograd.functional.hvp(
        weighted, torch.tensor(vector), torch.tensor(tangent)
    )
    found = case.own.fisher_metric(case.parameters(vector), case.direction(tangent), case.weights)
    close(case.flat(found), expected)


def test_sums_of_cotangents(case):
    one, other = case.draw(), case.draw()
    found = case.own.sum(case.direction(one), case.direction(other))
    assert type(found) is type(case.direction(one))
    assert np.array_equal(case.flat(found), one + other)


def test_tensors_and_tasks_side_by_side(case):
    """Each method on tensors ``[2, ...]`` gives what it gives on arrays of each task."""
    ones, others, tangents = (np.stack([case.draw(), case.draw()]) for _ in range(3))
    weights = np.stack([case.weights, -2 * case.weights])

    def results(at, convert):
        def stacked(parts):
            parts = [parts(task) for task in at]
            if case.discrete:
                return convert(np.stack(parts))
            return MeanAndDeviation(*map(convert, case.own.stacked(parts, 0)))

        p = stacked(lambda task: case.parameters(ones[task]))
        q = stacked(lambda task: case.parameters(others[task]))
        change = stacked(lambda task: case.direction(tangents[task]))
        actions, w = convert(np.stack([case.actions] * len(at))), convert(weights[at])
        gradient = case.own.log_prob_gradient(p, actions, w)
        return [
            case.own.log_prob(p, actions),
            case.own.entropy(p),
            case.own.kl_divergence(p, q),
            case.own.log_prob_tangent(p, actions, change),
            *(
                part
                for each in (
                    gradient,
                    case.own.kl_gradient(p, q, w),
                    case.own.entropy_gradient(p, w),
                    case.own.log_prob_curvature(p, gradient, w, change),
                    case.own.fisher_metric(p, change, w),
                )
                for part in ((each,) if case.discrete else each)
            ),
        ]

    together = results([0, 1], torch.as_tensor)
    for task in (0, 1):
        for whole, alone in zip(together, results([task], np.asarray), strict=True):
            assert isinstance(whole, torch.Tensor)
            close(whole[task], alone[0])


def test_sigma_has_a_floor():
    distribution = Gaussian(2)
    layers = {"log_std": np.array([[-20.0, 0.5]])}
    mean = np.zeros((1, 2))
    at = distribution.parameters(layers, mean)
    np.testing.assert_allclose(np.exp(at.log_std), [[1e-6, np.exp(0.5)]], rtol=1e-12)
    tangent = distribution.change(layers, {"log_std": np.array([[3.0, 4.0]])}, mean)
    assert tangent.log_std.tolist() == [[0.0, 4.0]]
    _, (gradient,) = distribution.split(layers, MeanAndDeviation(mean, np.array([[3.0, 4.0]])))
    assert gradient.tolist() == [0.0, 4.0]
