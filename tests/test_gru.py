"""The gated recurrent unit against torch's autograd, in double precision, with ragged lengths."""

import numpy as np
import pytest
import torch

from hpc_maml.policies import make_policy
from hpc_maml.policies.gru import INITIAL_OUTPUT_SCALE, LONGEST_MEMORY, GRUSettings

TASKS, STEPS, TRIALS, ACTIONS = 3, 9, 4, 3


def policy_of(discrete, hidden_size=5):
    settings = GRUSettings(name="gru", hidden_size=hidden_size)
    return make_policy(settings, 2, ACTIONS, discrete=discrete)


DISCRETE, CONTINUOUS = policy_of(True), policy_of(False)
POLICIES = pytest.mark.parametrize("policy", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
ORDER = ("actions", "rewards", "ended")  # of what is remembered


def draw_fields(rng, discrete):
    """Draw what a collection records of trials of three episodes, each of 1 to 3 steps."""
    shape = (TASKS, STEPS, TRIALS)
    lengths = rng.integers(1, 4, (TASKS, 3, TRIALS))
    lengths[0] = 3
    valid = (np.arange(3)[:, None] < lengths[:, :, None]).reshape(shape)
    return {
        "observations": rng.standard_normal((*shape, 2)),
        "actions": rng.integers(ACTIONS, size=shape)
        if discrete
        else rng.standard_normal((*shape, ACTIONS)),
        "rewards": rng.standard_normal(shape) * valid,
        "ended": rng.random(shape) < 0.3,
        "valid": valid,
    }


def draw_theta(rng, policy):
    """Draw parameters, all of them different from 0."""
    return policy.initial_parameters(rng) + 0.3 * rng.standard_normal(policy.size)


def unrolled(policy, theta, fields):
    return policy.network.unroll(
        policy.unflatten(theta), policy.network.inputs(**fields), fields["valid"]
    )


def gradient(policy, at, by_outputs, by_values):
    """Return the gradient by the network's parameters, as a vector for each task."""
    parts = policy.network.pull_back(at, by_outputs, by_values)
    assert [part.shape[-1] for part in parts] == [
        rows * columns for rows, columns in policy.network.shapes.values()
    ]
    return np.concatenate(parts, axis=-1)


def draw_cotangents(rng):
    shape = (TASKS, STEPS, TRIALS)
    return rng.standard_normal((*shape, ACTIONS)), rng.standard_normal(shape)


def plain_unroll(policy, theta, inputs, valid):
    """Unroll one task in torch, in the order of the formulas; padding leaves the state."""
    layers = policy.unflatten(theta)
    hidden = policy.network.hidden_size
    state = torch.zeros(inputs.shape[1], hidden, dtype=theta.dtype)
    outputs, values = [], []
    for step, here in zip(inputs, valid, strict=True):
        x = step @ layers["input_weight"] + layers["input_bias"]
        u = state @ layers["recurrent_weight"]
        r = torch.sigmoid(x[:, :hidden] + u[:, :hidden])
        z = torch.sigmoid(x[:, hidden : 2 * hidden] + u[:, hidden : 2 * hidden])
        n = torch.tanh(x[:, 2 * hidden :] + r * u[:, 2 * hidden :])
        state = torch.where(here[:, None], (1 - z) * state + z * n, state)
        read = torch.cat([state, step], dim=-1)
        features = torch.tanh(read @ layers["readout_weight"] + layers["readout_bias"])
        outputs.append(features @ layers["output_weight"] + layers["output_bias"])
        values.append((features @ layers["value_weight"] + layers["value_bias"])[:, 0])
    return torch.stack(outputs), torch.stack(values)


@POLICIES
def test_values_and_gradient_are_those_of_autograd(policy):
    rng = np.random.default_rng(0)
    fields = draw_fields(rng, policy is DISCRETE)
    theta, valid = draw_theta(rng, policy), fields["valid"]
    by_outputs, by_values = draw_cotangents(rng)
    at = unrolled(policy, theta, fields)
    found = gradient(policy, at, by_outputs, by_values)
    for task in range(TASKS):
        free, real = torch.tensor(theta, requires_grad=True), torch.tensor(valid[task])
        outputs, values = plain_unroll(policy, free, torch.tensor(at.inputs[task]), real)
        np.testing.assert_allclose(at.outputs[task], outputs.detach(), atol=1e-13)
        np.testing.assert_allclose(at.values[task], values.detach(), atol=1e-13)
        total = (real[..., None] * outputs * torch.tensor(by_outputs[task])).sum()
        total = total + (real * values * torch.tensor(by_values[task])).sum()
        total.backward()
        own = found.shape[-1]
        np.testing.assert_allclose(found[task], free.grad[:own], atol=1e-12)
        assert not free.grad[own:].any()  # sigma


def test_a_step_agrees_with_the_cell_of_torch():
    policy, rng = DISCRETE, np.random.default_rng(1)
    hidden, network = policy.network.hidden_size, policy.network
    cell = torch.nn.GRUCell(network.input_size, hidden, dtype=torch.float64)
    theta = draw_theta(rng, policy)
    layers = policy.unflatten(theta)
    memory = rng.standard_normal((TRIALS, network.memory_size))
    observations = rng.standard_normal((TRIALS, 2))
    # torch's update gate says how much is kept, ours how much is new
    sign = np.repeat([1.0, -1.0, 1.0], hidden)
    with torch.no_grad():
        cell.weight_ih[:] = torch.tensor((layers["input_weight"] * sign).T)
        cell.weight_hh[:] = torch.tensor((layers["recurrent_weight"] * sign).T)
        cell.bias_ih[:] = torch.tensor(layers["input_bias"][0] * sign)
        cell.bias_hh[:] = 0
        inputs = np.concatenate([observations, memory[:, hidden:]], axis=1)
        state = cell(torch.tensor(inputs), torch.tensor(memory[:, :hidden])).numpy()
    outputs, after = network.step(layers, memory, observations)
    np.testing.assert_allclose(after[:, :hidden], state, rtol=1e-12)
    assert np.array_equal(after[:, hidden : hidden + 2], observations)
    assert np.array_equal(after[:, hidden + 2 :], memory[:, hidden + 2 :])
    read = np.concatenate([state, inputs], axis=1)
    features = np.tanh(read @ layers["readout_weight"] + layers["readout_bias"])
    expected = features @ layers["output_weight"] + layers["output_bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)


def test_what_a_step_is_told_by_hand():
    # two trials of two episodes of two steps; of the second trial the first episode has one step
    fields = {
        "observations": np.arange(8.0).reshape(4, 2, 1).repeat(2, -1),
        "actions": np.array([[0, 1], [2, 9], [1, 0], [0, 0]]),
        "rewards": np.array([[0.5, 1.5], [2.5, 0.0], [3.5, 4.5], [5.5, 6.5]]),
        "ended": np.array([[False, True], [True, False], [False, False], [True, True]]),
        "valid": np.array([[True, True], [True, False], [True, True], [True, True]]),
    }
    found = DISCRETE.network.inputs(**fields)
    assert found[..., :2].tolist() == fields["observations"].tolist()
    # of the step before: observation, action (one-hot), reward, and whether an episode ended
    nothing = [0, 0, 0, 0, 0, 0, 0]
    assert found[:, 0, 2:].tolist() == [
        nothing,
        [0, 0, 1, 0, 0, 0.5, 0],
        [2, 2, 0, 0, 1, 2.5, 1],
        [4, 4, 0, 1, 0, 3.5, 0],
    ]
    told_of_the_first = [1, 1, 0, 1, 0, 1.5, 1]  # through the padding
    assert found[:, 1, 2:].tolist() == [
        nothing,
        told_of_the_first,
        told_of_the_first,
        [5, 5, 1, 0, 0, 4.5, 0],
    ]
    memory = np.ones((2, DISCRETE.memory_size))
    memory[:, 5:7] = fields["observations"][0]
    memory = DISCRETE.network.remember(memory, *(fields[name][0] for name in ORDER))
    assert memory.tolist() == [[1] * 5 + [0, 0, 1, 0, 0, 0.5, 0], [1] * 5 + told_of_the_first]


def test_a_theta_for_each_task():
    rng = np.random.default_rng(1)
    fields = draw_fields(rng, True)
    thetas = np.stack([draw_theta(rng, DISCRETE) for _ in range(TASKS)])
    by_outputs, by_values = draw_cotangents(rng)
    at = unrolled(DISCRETE, thetas, fields)
    together = gradient(DISCRETE, at, by_outputs, by_values)
    for task in range(TASKS):
        own = {name: field[task] for name, field in fields.items()}
        at = unrolled(DISCRETE, thetas[task], own)
        alone = gradient(DISCRETE, at, by_outputs[task], by_values[task])
        np.testing.assert_array_equal(together[task], alone)


@POLICIES
def test_padding_leaves_the_state_and_counts_for_nothing(policy):
    rng = np.random.default_rng(2)
    fields = draw_fields(rng, policy is DISCRETE)
    theta, valid = draw_theta(rng, policy), fields["valid"]
    by_outputs, by_values = draw_cotangents(rng)
    at = unrolled(policy, theta, fields)
    assert not valid.all()
    np.testing.assert_array_equal(at.states[:, 1:][~valid], at.states[:, :-1][~valid])
    noise = {
        name: np.where(
            valid.reshape(valid.shape + (1,) * (field.ndim - 3)), field, rng.permutation(field)
        )
        for name, field in fields.items()
        if name != "valid"
    }
    other = unrolled(policy, theta, noise | {"valid": valid})
    np.testing.assert_array_equal(other.outputs[valid], at.outputs[valid])
    np.testing.assert_allclose(
        gradient(policy, other, by_outputs, by_values),
        gradient(policy, at, by_outputs * valid[..., None], np.where(valid, by_values, np.nan)),
        atol=1e-12,
    )


@POLICIES
def test_step_by_step_is_unroll(policy):
    rng = np.random.default_rng(3)
    fields = draw_fields(rng, policy is DISCRETE)
    layers = policy.unflatten(draw_theta(rng, policy))
    at = policy.network.unroll(layers, policy.network.inputs(**fields), fields["valid"])
    memory = np.zeros((TASKS, TRIALS, policy.memory_size))
    for step in range(STEPS):
        outputs, new = policy.network.step(layers, memory, fields["observations"][:, step])
        new = policy.network.remember(new, *(fields[name][:, step] for name in ORDER))
        here = fields["valid"][:, step]
        np.testing.assert_allclose(outputs[here], at.outputs[:, step][here], atol=1e-13)
        memory = np.where(here[..., None], new, memory)
    hidden = policy.network.hidden_size
    np.testing.assert_allclose(memory[..., :hidden], at.states[:, -1], atol=1e-13)


@POLICIES
def test_tensors_give_what_arrays_give(policy):
    rng = np.random.default_rng(5)
    fields = draw_fields(rng, policy is DISCRETE)
    theta, cotangents = draw_theta(rng, policy), draw_cotangents(rng)
    expected = gradient(policy, unrolled(policy, theta, fields), *cotangents)
    tensors = {name: torch.tensor(field) for name, field in fields.items()}
    at = unrolled(policy, torch.tensor(theta), tensors)
    parts = policy.network.pull_back(at, *map(torch.tensor, cotangents))
    assert all(isinstance(part, torch.Tensor) for part in parts)
    np.testing.assert_allclose(torch.cat(parts, -1), expected, atol=1e-12)


def test_initial_parameters():
    policy = policy_of(False, hidden_size=64)
    theta = policy.initial_parameters(np.random.default_rng(0))
    assert theta.dtype == np.float32
    layers = policy.unflatten(theta)
    drawn = {
        "input": (layers["input_weight"], 1.0),
        "recurrent": (layers["recurrent_weight"], np.sqrt(3 / 64)),
        "read state": (layers["readout_weight"][:64], np.sqrt(3 / 64)),
        "read input": (layers["readout_weight"][64:], 1.0),
    }
    for values, limit in drawn.values():
        assert 0.98 * limit < abs(values).max() <= limit
        np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.06)
    limit = INITIAL_OUTPUT_SCALE * np.sqrt(6 / (64 + ACTIONS))
    assert 0.9 * limit < abs(layers["output_weight"]).max() <= limit
    reset, update, candidate = np.split(layers["input_bias"][0], 3)
    assert not reset.any()
    # minus the logarithm of the steps to forget over
    assert -np.log(LONGEST_MEMORY) < update.min() < -0.9 * np.log(LONGEST_MEMORY)
    assert -0.1 * np.log(LONGEST_MEMORY) < update.max() <= 0
    assert not candidate.any()
    for name in ("readout_bias", "output_bias", "value_weight", "value_bias", "log_std"):
        assert not layers[name].any()


def test_selective_units_open_after_few_of_the_last_steps():
    plain, selective = (
        make_policy(GRUSettings(name="gru", hidden_size=64, selective=each), 6, 4, discrete=True)
        for each in (False, True)
    )
    before, after = (
        each.unflatten(each.initial_parameters(np.random.default_rng(0)))
        for each in (plain, selective)
    )
    reset, update, candidate = np.split(after["input_weight"], 3, axis=1)
    was = np.split(before["input_weight"], 3, axis=1)
    assert np.array_equal(reset, was[0])
    assert not update[:6].any()  # the observation that is not acted on yet
    np.testing.assert_allclose(update[6:-2], 4 * was[1][6:-2])
    np.testing.assert_allclose(update[-2], 0.4 * was[1][-2], rtol=1e-6)
    assert np.array_equal(candidate[-2], was[2][-2])
    np.testing.assert_allclose(candidate[:-2], 0.3 * was[2][:-2], rtol=1e-6)
    np.testing.assert_allclose(
        after["input_bias"] - before["input_bias"], [[0] * 64 + [-2] * 64 + [0] * 64], atol=1e-6
    )
    same = after.keys() - {"input_weight", "input_bias"}
    assert all(np.array_equal(after[name], before[name]) for name in same)
