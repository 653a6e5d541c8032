"""Torch modules as networks, against the closed form, autograd and finite differences."""

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hpc_maml.algorithms.algorithm import THETA, Sampling
from hpc_maml.algorithms.maml_trpo import MamlTrpo, MamlTrpoSettings, fisher_vector_product
from hpc_maml.errors import InputError
from hpc_maml.policies import make_policy, torch_module
from hpc_maml.policies.distributions import MeanAndDeviation
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.policies.network import Sizes
from hpc_maml.policies.torch_module import TorchModule, TorchModuleSettings
from hpc_maml.sampling.trajectory import Trajectories

OBSERVATION, HIDDEN, ACTION = 3, (5, 4), 2
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Perceptron(nn.Sequential):
    def __init__(self, observation_size, output_size, hidden_sizes=HIDDEN, activation="tanh"):
        layers = []
        for width in hidden_sizes:
            layers += [nn.Linear(observation_size, width), ACTIVATIONS[activation]()]
            observation_size = width
        super().__init__(*layers, nn.Linear(observation_size, output_size))


class Normalised(nn.Module):
    """Layer normalisation, dropout, a single number, a buffer, frozen and unused parameters."""

    def __init__(self, observation_size, output_size):
        super().__init__()
        self.register_buffer("directions", torch.randn(observation_size, 6))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(6, output_size)

    def forward(self, observations):
        features = torch.sin(observations @ self.directions) * self.frozen
        return self.last(self.dropout(self.norm(features + self.scale)))


class Tied(nn.Module):
    """The same layer twice, under two names."""

    def __init__(self, observation_size, output_size):
        super().__init__()
        self.first = nn.Linear(observation_size, observation_size)
        self.second = self.first
        self.last = nn.Linear(observation_size, output_size)

    def forward(self, observations):
        return self.last(self.second(torch.tanh(self.first(observations))))


class Attention(nn.Module):
    def __init__(self, observation_size, output_size):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.tokens = nn.Linear(1, 4)
        self.last = nn.Linear(4, output_size)

    def forward(self, observations):
        tokens = self.tokens(observations[..., None])
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def perceptrons(discrete=False, activation="tanh", hidden=HIDDEN, sizes=(OBSERVATION, ACTION)):
    """Return the closed form, the same as torch module, and the order of theta in it."""
    closed = make_policy(
        MLPSettings(hidden_sizes=list(hidden), activation=activation), *sizes, discrete=discrete
    )
    kwargs = {"hidden_sizes": list(hidden), "activation": activation}
    module = policy_of("Perceptron", discrete, sizes, **kwargs)
    order = []
    for name, positions in closed.unflatten(np.arange(closed.size)).items():
        order.append((positions.T if name.startswith("weight") else positions).ravel())
    return closed, module, np.concatenate(order)


def policy_of(name, discrete=False, sizes=(OBSERVATION, ACTION), **kwargs):
    settings = TorchModuleSettings(name=f"test_torch_module:{name}", kwargs=kwargs)
    return make_policy(settings, *sizes, discrete=discrete)


def random_samples(discrete, *lead, steps=9):
    rng = np.random.default_rng(3)
    observations = rng.standard_normal((*lead, steps, OBSERVATION))
    if discrete:
        actions = rng.integers(ACTION, size=(*lead, steps))
    else:
        actions = rng.standard_normal((*lead, steps, ACTION))
    return observations, actions, rng.standard_normal((*lead, steps))


def products(policy, theta, tangent, discrete, observations, actions, weights):
    """Return all that algorithms ask of a policy, by name."""
    at = policy.evaluate(theta, observations)
    score = policy.score(at, actions, weights)
    change = policy.push_forward(at, tangent)
    back = change if discrete else MeanAndDeviation(*change)
    found = {
        "forward": policy.forward(policy.unflatten(theta), observations),
        "evaluate": at.distribution,
        "score": score.gradient,
        "score_derivative": policy.score_derivative(at, score, tangent),
        "push_forward": change,
        "pull_back": policy.pull_back(at, back),
    }
    flat = {}
    for name, value in found.items():
        for number, part in enumerate(value if isinstance(value, tuple) else (value,)):
            flat[f"{name} {number}"] = part
    return flat


def check_products(closed, module, order, discrete, lead, as_tensors=False):
    rng = np.random.default_rng(7)
    theta, tangent = 0.7 * rng.standard_normal((2, *lead, closed.size))
    samples = random_samples(discrete, *lead)
    expected = products(closed, theta, tangent, discrete, *samples)
    given = theta[..., order], tangent[..., order], *samples
    if as_tensors:
        given = map(torch.as_tensor, given)
    theta, tangent, *samples = given
    found = products(module, theta, tangent, discrete, *samples)
    for name, array in expected.items():
        assert isinstance(found[name], torch.Tensor if as_tensors else np.ndarray), name
        if as_tensors:
            assert not found[name].requires_grad
            found[name] = found[name].numpy()
        assert found[name].dtype == np.float64
        ordered = array[..., order] if array.shape[-1] == closed.size else array
        np.testing.assert_allclose(found[name], ordered, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("discrete", [False, True])
def test_a_perceptron_agrees_with_the_closed_form(discrete, activation, lead):
    check_products(*perceptrons(discrete, activation), discrete, lead)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("discrete", [False, True])
def test_tensors_give_tensors(discrete, lead):
    check_products(*perceptrons(discrete), discrete, lead, as_tensors=True)


@pytest.fixture
def side_by_side(monkeypatch):
    """Have all tasks in one vmap, as on a GPU."""
    monkeypatch.setattr(torch_module.Tasks, "side_by_side", True)


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("discrete", [False, True])
def test_tasks_side_by_side_agree_with_the_closed_form(discrete, lead):
    check_products(*perceptrons(discrete), discrete, lead, as_tensors=True)


@pytest.mark.filterwarnings("error")
def test_read_only_and_broadcast_arrays():
    closed, module, order = perceptrons()
    rng = np.random.default_rng(7)
    theta, tangent = rng.standard_normal((2, closed.size))
    observations, actions, weights = random_samples(False)
    observations.flags.writeable = False
    found, expected = (
        products(
            policy,
            np.broadcast_to(theta[at], (2, closed.size)),
            np.broadcast_to(tangent[at], (2, closed.size)),
            False,
            observations,
            actions,
            weights,
        )
        for policy, at in ((module, order), (closed, slice(None)))
    )
    np.testing.assert_allclose(
        found["score_derivative 0"], expected["score_derivative 0"][:, order], rtol=1e-10
    )


def test_arrays_and_tensors_that_were_given_are_as_before():
    _, module, order = perceptrons()
    theta = torch.ones(2, len(order), dtype=torch.float64)
    observations = torch.ones(2, 4, OBSERVATION, dtype=torch.float64)
    module.evaluate(theta, observations)
    assert not theta.requires_grad
    assert not observations.requires_grad


# a module of many parts against torch.func, without the adaptor


def plain():
    """Return Normalised with the buffers that every process has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Normalised(OBSERVATION, ACTION).double().eval()


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_module_of_many_parts_agrees_with_autograd(vmapped, request):
    if vmapped:
        request.getfixturevalue("side_by_side")
    policy = policy_of("Normalised", discrete=True)
    assert policy.network.shapes == {
        "scale": (1,),
        "unused.weight": (2, 2),
        "unused.bias": (2,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "last.weight": (ACTION, 6),
        "last.bias": (ACTION,),
    }
    rng = np.random.default_rng(5)
    thetas, tangents = torch.as_tensor(rng.standard_normal((2, 2, policy.size)))
    observations, _, _ = map(torch.as_tensor, random_samples(True, 2))
    cotangents, changes = torch.as_tensor(rng.standard_normal((2, 2, 9, ACTION)))
    network = policy.network
    at = network.linearise(policy.unflatten(thetas), observations)
    pulled = network.pull(at, cotangents, again=True)
    pushed = network.push(at, policy.unflatten(tangents))
    second = network.pull_derivative(at, pulled, policy.unflatten(tangents), pushed, changes)
    module = plain()
    for task in range(2):
        theta, tangent, inputs = thetas[task], tangents[task], observations[task]
        cotangent, change = cotangents[task], changes[task]

        def outputs(theta, inputs=inputs):
            layers = policy.unflatten(theta)
            layers["scale"] = layers["scale"][0]
            return torch.func.functional_call(module, layers, (inputs,))

        def pull(theta, cotangent, outputs=outputs):
            return torch.func.vjp(outputs, theta)[1](cotangent)[0]

        expected, expected_push = torch.func.jvp(outputs, (theta,), (tangent,))
        gradient, derivative = torch.func.jvp(pull, (theta, cotangent), (tangent, change))
        for found, wanted in (
            (at.outputs[task], expected),
            (pushed.outputs[task], expected_push),
            (torch.cat([each[task] for each in pulled.gradients]), gradient),
            (torch.cat([each[task] for each in second]), derivative),
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("side_by_side")
def test_attention_is_the_same_for_observers_and_agents_alone_and_side_by_side(monkeypatch):
    policy = policy_of("Attention")
    thetas = torch.as_tensor(np.random.default_rng(0).standard_normal((2, policy.size)))
    observations = torch.as_tensor(random_samples(False, 2)[0])
    expected = policy.evaluate(thetas, observations).distribution.mean
    monkeypatch.undo()
    found = policy.forward(policy.unflatten(thetas), observations).mean
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_tied_parameters_are_one():
    policy = policy_of("Tied", discrete=True)
    assert list(policy.shapes) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    theta = np.random.default_rng(0).standard_normal(policy.size)
    observations = random_samples(True)[0]
    weight, bias, last, last_bias = policy.unflatten(theta).values()
    hidden = np.tanh(observations @ weight.T + bias) @ weight.T + bias
    expected = hidden @ last.T + last_bias
    found = policy.network.forward(policy.unflatten(theta), observations)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# MAML-TRPO


def episodes(discrete, num_tasks, horizon=7, width=4, sizes=(OBSERVATION, ACTION)):
    """Draw ragged float64 episodes of tasks."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, horizon + 1, (num_tasks, width))
    valid = np.arange(horizon)[:, None] < lengths[:, None]
    shape = (num_tasks, horizon, width)
    observations = rng.standard_normal((*shape, sizes[0])) * valid[..., None]
    if discrete:
        actions = rng.integers(sizes[1], size=shape) * valid
        log_probs = np.full(shape, -np.log(sizes[1])) * valid
    else:
        actions = rng.standard_normal((*shape, sizes[1])) * valid[..., None]
        log_probs = -0.5 * (actions**2 + np.log(2 * np.pi)).sum(-1) * valid
    advantages = rng.standard_normal(shape) * valid
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=advantages,
        log_probs=log_probs,
        advantages=advantages,
        terminated=~valid,
        truncated=~valid,
        lengths=lengths,
        task=np.arange(num_tasks),
    )


def maml(policy, **settings):
    settings = MamlTrpoSettings(fast_lr=0.1, cg_iters=5, **settings)
    return MamlTrpo(settings, policy, Sampling(4, 0.99, 0.95, 2, "constant"))


def reduce(terms):
    return np.asarray(terms, np.float64).sum(0)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_an_outer_step_agrees_with_the_closed_form(discrete, first_order):
    closed, module, order = perceptrons(discrete)
    rng = np.random.default_rng(11)
    theta = 0.4 * rng.standard_normal(closed.size)
    phases = [episodes(discrete, 3) for _ in range(3)]
    vector = rng.standard_normal(closed.size)
    digests, updates, images = [], [], []
    for policy, at in ((closed, slice(None)), (module, order)):
        algorithm = maml(policy, num_inner_steps=2, first_order=first_order)
        state = {THETA: theta[at]}
        digests.append(algorithm.digest(state, phases))
        updates.append(algorithm.update(state, [digests[-1]], 3, reduce, rng))
        images.append(fisher_vector_product(policy, digests[-1], vector[at]))
    expected, found = digests
    for name in ("surrogate", "behaviour_kl", "inner_loss_before", "inner_loss_after"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9)
    np.testing.assert_allclose(found.gradient, expected.gradient[:, order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(images[1], images[0][:, order], rtol=1e-9, atol=1e-12)
    expected, found = updates
    assert expected.accepted
    np.testing.assert_allclose(found.state[THETA], expected.state[THETA][order], rtol=1e-9)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("hidden", [[], [64, 64]])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("tasks", [2, 5])
def test_a_task_has_the_same_bits_alone_and_beside_others(tasks, order, hidden):
    # without a hidden layer, the product of MKL depends on how observations are aligned to 16 bytes
    sizes, steps = (17, 6), 21
    policy = policy_of("Perceptron", sizes=sizes, hidden_sizes=hidden)
    rng = np.random.default_rng(0)
    thetas = np.stack([policy.initial_parameters(rng) for _ in range(tasks)])
    observations = rng.standard_normal((tasks, steps, sizes[0])).astype(np.float32)
    actions = rng.standard_normal((tasks, steps, sizes[1])).astype(np.float32)
    weights = rng.standard_normal((tasks, steps)).astype(np.float32)
    tangents = rng.standard_normal(thetas.shape).astype(np.float32)
    observations = np.asarray(observations, order=order)
    given = thetas, tangents, observations, actions, weights
    for convert in (np.asarray, torch.as_tensor):
        theta, tangent, *samples = map(convert, given)
        together = products(policy, theta, tangent, False, *samples)
        for task in range(tasks):
            for part in (slice(task, task + 1), task):
                own = (convert(each[part].copy()) for each in given)
                theta, tangent, *samples = own
                alone = products(policy, theta, tangent, False, *samples)
                for name, array in alone.items():
                    bits = np.asarray(together[name])[part].tobytes()
                    assert np.asarray(array).tobytes() == bits, (name, task)


# what a process keeps and sends


def test_it_is_pickled_small_and_compares_by_value():
    network = policy_of("Perceptron", hidden_sizes=[64, 64]).network
    assert len(network.shapes) == 6
    sent = pickle.dumps(network)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert received == network
    assert hash(received) == hash(network)
    assert received != policy_of("Perceptron", hidden_sizes=[64]).network


def test_initial_parameters_depend_on_the_given_generator_alone():
    policy = policy_of("Normalised")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = (
        policy.initial_parameters(np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    assert one.dtype == np.float32
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    layers = policy.unflatten(one)
    assert layers["scale"] == np.float32(0.7)
    assert (layers["norm.weight"] == 1).all()
    assert abs(layers["last.weight"]).max() <= 6**-0.5
    assert not layers["log_std"].any()


def test_the_buffers_are_the_same_whoever_constructs_the_module():
    policy = policy_of("Normalised")
    theta = policy.initial_parameters(np.random.default_rng(0))
    observations = np.ones((4, OBSERVATION), np.float32)
    expected = policy.forward(policy.unflatten(theta), observations).mean
    torch_module._module.cache_clear()
    torch.rand(5)
    found = policy.forward(policy.unflatten(theta), observations).mean
    assert found.tobytes() == expected.tobytes()


class Scattered(torch.nn.Module):
    """Its weights and a fixed projection are drawn by NumPy and by Python."""

    def __init__(self, observation_size, output_size):
        super().__init__()
        fixed = [random.gauss(0, 1) for _ in range(observation_size)]
        self.register_buffer("fixed", torch.tensor(fixed))
        self.last = torch.nn.Parameter(torch.tensor(np.random.randn(1, output_size)).float())  # noqa: NPY002

    def forward(self, observations):
        return (observations * self.fixed).sum(-1, keepdim=True) @ self.last


def test_draws_of_numpy_and_python_follow_from_the_seed_too():
    policy = policy_of("Scattered")
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = np.random.rand(), random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    one, same, other = (
        policy.initial_parameters(np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    outputs = []
    for _ in range(2):
        torch_module._module.cache_clear()
        observations = np.ones((4, OBSERVATION), np.float32)
        outputs.append(policy.forward(policy.unflatten(one), observations).mean.tobytes())
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    assert outputs[0] == outputs[1]


def test_what_it_keeps_is_counted():
    _, module, order = perceptrons()
    at = module.evaluate(np.zeros(len(order)), np.zeros((1000, OBSERVATION)))
    activations = 8 * 1000 * (OBSERVATION + sum(HIDDEN))
    assert 2 * activations <= at.network.nbytes <= 2 * activations + 10000


def test_lazy_layers_take_their_shapes_from_the_observations():
    policy = policy_of("Lazy")
    assert policy.network.shapes == {"0.weight": (ACTION, OBSERVATION), "0.bias": (ACTION,)}
    closed, _, order = perceptrons(hidden=())
    check_products(closed, policy, order, False, (2,))


# modules that cannot be used


class Lazy(nn.Sequential):
    def __init__(self, observation_size, output_size):
        super().__init__(nn.LazyLinear(output_size))


class OneTooMany(nn.Linear):
    def __init__(self, observation_size, output_size):
        super().__init__(observation_size, output_size + 1)


class Flat(nn.Linear):
    def forward(self, observations):
        return super().forward(observations)[:, 0]


class WithValue(nn.Linear):
    def forward(self, observations):
        return super().forward(observations), observations.sum(-1)


class FixedBatch(nn.Linear):
    def forward(self, observations):
        return super().forward(observations.view(2, -1))


class InFloat64(nn.Linear):
    def __init__(self, observation_size, output_size):
        super().__init__(observation_size, output_size, dtype=torch.float64)

    def forward(self, observations):
        return super().forward(observations.double())


class WithoutParameters(nn.Module):
    def __init__(self, observation_size, output_size):
        super().__init__()
        self.output_size = output_size

    def forward(self, observations):
        return observations[:, : self.output_size]


class Detached(nn.Linear):
    def forward(self, observations):
        return super().forward(observations).detach()


class Counting(nn.Linear):
    def __init__(self, observation_size, output_size):
        super().__init__(observation_size, output_size)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, observations):
        self.calls += 1
        return super().forward(observations)


class BatchNormalised(nn.Sequential):
    def __init__(self, observation_size, output_size, **kwargs):
        norm = nn.BatchNorm1d(observation_size, **kwargs)
        super().__init__(norm, nn.Linear(observation_size, output_size))


class AlwaysTraining(BatchNormalised):
    def forward(self, observations):
        for module in self:
            observations = module.train()(observations)
        return observations


class Random(nn.Linear):
    def forward(self, observations):
        return nn.functional.dropout(super().forward(observations))


class Normed(nn.Linear):
    def forward(self, observations):
        return super().forward(observations / observations.norm(dim=-1, keepdim=True))


class RootOfZero(nn.Linear):
    def forward(self, observations):
        return torch.sqrt(super().forward(observations - observations).abs() * observations.sum())


class LogStd(nn.Linear):
    def __init__(self, observation_size, output_size):
        super().__init__(observation_size, output_size)
        self.log_std = nn.Parameter(torch.zeros(output_size))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient.clone()


class DifferentiableOnce(nn.Linear):
    def forward(self, observations):
        return Once.apply(super().forward(observations))


class StraightThrough(nn.Linear):
    def forward(self, observations):
        smooth = torch.tanh(super().forward(observations))
        return smooth * smooth.detach()


class InFloat32(nn.Linear):
    def forward(self, observations):
        return super().forward(observations.float())


class Remembering(nn.Linear):
    def forward(self, observations):
        if not hasattr(self, "mine"):
            self.mine = [self.weight, self.bias]
        return nn.functional.linear(observations, *self.mine) + 0 * self.bias


class DataDependent(nn.Linear):
    def forward(self, observations):
        return super().forward(observations) * (1 if observations.sum() > 0 else 2)


def plain_function(observation_size, output_size):
    return nn.Linear(observation_size, output_size)


REFUSED = {
    "Perzeptron": r"has no 'Perzeptron' \(did you mean 'Perceptron'\?\)",
    "Trajectories": "it is not a subclass of Module",
    "plain_function": "it is not a subclass of Module",
    "OneTooMany": r"must return a tensor \[2, 2\] for observations \[2, 3\], not \[2, 3\]",
    "Flat": r"must return a tensor \[2, 2\] for observations \[2, 3\], not \[2\]",
    "WithValue": r"must return a tensor \[2, 2\] for observations \[2, 3\], not tuple",
    "FixedBatch": r"cannot be applied to observations \[3, 3\] of float32: RuntimeError: ",
    "InFloat64": "must keep the type of its input: float32 gave torch.float64",
    "WithoutParameters": "has no parameters to learn",
    "Detached": "do not depend on its parameters",
    "Counting": "changes its buffer 'calls'",
    "AlwaysTraining": "changes its buffer '0.running_mean'",
    "Random": "gives other outputs for the same observations",
    "Normed": "must be finite for observations of 0 too",
    "RootOfZero": "must be finite for observations of 0 too",
    "LogStd": "has a parameter 'log_std', a name that the policy itself needs",
    "DifferentiableOnce": "second derivatives of .* are not those of its gradients",
    "StraightThrough": "second derivatives of .* are not those of its gradients",
    "Remembering": "cannot replace all parameters of",
    "InFloat32": r"cannot be applied to observations \[3, 3\] of float64: RuntimeError: .* dtype",
}


def refused(name, expected, **kwargs):
    with pytest.raises(InputError, match=expected) as caught:
        policy_of(name, **kwargs)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert name in message


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_cannot_be_used_is_one_sentence(name):
    refused(name, REFUSED[name])


def test_a_constructor_that_refuses_is_one_sentence():
    expected = (
        r"cannot be constructed with \(3, 2\) and policy.kwargs: TypeError: .*'width'"  # a typo
    )
    refused("Perceptron", expected, width=3)
    refused("Perceptron", "KeyError: 'swish'", activation="swish")


def test_batch_normalisation_by_the_batch_itself_is_refused():
    refused("BatchNormalised", "must not depend on the others", track_running_stats=False)
    assert "0.weight" in policy_of("BatchNormalised").network.shapes  # by its buffers


def test_a_module_or_package_that_does_not_exist_is_one_sentence():
    with pytest.raises(InputError, match="cannot be imported"):
        make_policy(TorchModuleSettings(name="no_such_module:Net"), 3, 2, discrete=False)


def test_parameters_of_the_name_of_sigma_are_free_for_discrete_actions():
    assert "log_std" in policy_of("LogStd", discrete=True).shapes


def test_what_vmap_cannot_run_is_one_sentence(monkeypatch):
    policy = policy_of("DataDependent")  # on a CPU it is as good as any
    monkeypatch.setattr(torch_module.Tasks, "side_by_side", True)
    tensors = torch.zeros(2, policy.size), torch.zeros(2, 4, OBSERVATION)
    with pytest.raises(InputError, match=r"cannot be used on a GPU.*: choose device=cpu") as caught:
        policy.evaluate(*tensors)
    assert "\n" not in str(caught.value)


def test_sizes_come_from_the_environment():
    sizes = Sizes(observation=5, action=3, discrete=False, output=3)
    settings = SimpleNamespace(name="test_torch_module:Perceptron", kwargs={})
    assert TorchModule.make(settings, sizes).shapes["0.weight"] == (5, 5)
    assert TorchModule.make(settings, sizes).shapes["4.weight"] == (3, 4)
