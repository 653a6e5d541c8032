"""Adam against torch.optim.Adam, and its first step by hand."""

import numpy as np
import torch

from hpc_maml.algorithms.adam import FIRST, SECOND, STEPS, adam_state, adam_step


def steps_of_torch(parameters, gradients, learning_rate):
    """Yield the parameters after each step of torch's Adam."""
    leaf = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=learning_rate)
    for gradient in gradients:
        leaf.grad = torch.tensor(gradient)
        optimizer.step()
        yield leaf.detach().numpy().copy()


def draw(dtype):
    rng = np.random.default_rng(3)
    scales = 10.0 ** rng.integers(-6, 3, 50)
    return rng.standard_normal(50).astype(dtype), scales * rng.standard_normal((30, 50))


def test_steps_agree_with_torch_in_double_precision():
    parameters, gradients = draw(np.float64)
    state = adam_state(50)
    expected = steps_of_torch(parameters, gradients, 1e-2)
    for gradient, wanted in zip(gradients, expected, strict=True):
        parameters, state = adam_step(parameters, gradient, state, 1e-2)
        np.testing.assert_allclose(parameters, wanted, rtol=1e-12, atol=1e-14)
    assert state[STEPS] == 30


def test_parameters_stay_in_single_precision_and_moments_in_double():
    parameters, gradients = draw(np.float32)
    state = adam_state(50)
    expected = list(steps_of_torch(parameters, gradients, 1e-2))
    for gradient in gradients:
        before = parameters.copy(), {name: np.copy(value) for name, value in state.items()}
        found, after = adam_step(parameters, gradient, state, 1e-2)
        # nothing that was given is changed
        assert np.array_equal(parameters, before[0])
        assert all(np.array_equal(state[name], value) for name, value in before[1].items())
        parameters, state = found, after
    assert parameters.dtype == np.float32
    assert {name: value.dtype.name for name, value in state.items()} == {
        FIRST: "float64",
        SECOND: "float64",
        STEPS: "int64",
    }
    np.testing.assert_allclose(parameters, expected[-1], rtol=1e-5, atol=1e-6)


def test_the_first_step_by_hand():
    # the moments are unbiased: their ratio is the sign of the gradient, whatever its size
    found, state = adam_step(
        np.array([1.0, 1.0, 1.0]), np.array([4.0, -0.5, 0.0]), adam_state(3), 0.1
    )
    np.testing.assert_allclose(found, [0.9, 1.1, 1.0], rtol=1e-8)
    np.testing.assert_allclose(state[FIRST], [0.4, -0.05, 0.0], rtol=1e-12)
    np.testing.assert_allclose(state[SECOND], [0.016, 0.00025, 0.0], rtol=1e-12)
