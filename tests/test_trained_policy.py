"""A trained policy from Python: its actions, adaptation and memory, and what is exported."""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import HERE, environment, run

from hpc_maml import open_run
from hpc_maml.algorithms.collection import collect
from hpc_maml.envs import make
from hpc_maml.errors import InputError
from hpc_maml.parts import make_dtype, make_env
from hpc_maml.sampling.advantages import task_advantages
from hpc_maml.sampling.trajectory import trajectories
from hpc_maml.torch_export import write_onnx
from hpc_maml.trained_policy import TrainedPolicy

WORDS = ("meta_batch_size=3", "fast_batch_size=4", "horizon=9", "num_iterations=2", "device=cpu")
RUNS = {
    "navigation": ("policy.hidden_sizes=[8, 8]",),
    "normalised": (
        "policy.hidden_sizes=[8]",
        "policy.activation=relu",
        "normalise_observations=true",
    ),
    "discrete": ("env.name=tabular_mdp", "policy.hidden_sizes=[8]"),
    "module": ("policy.name=conformance_networks:Small",),
    "rl2": ("algorithm.name=rl2", "policy.hidden_size=6", "algorithm.episodes_per_trial=2"),
    "rl2_discrete": ("env.name=bandit", "algorithm.name=rl2", "policy.hidden_size=6"),
}


BATCH = partial(make, "navigation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        run(HERE, *WORDS, "metrics.tensorboard=off", *words, "--run-dir", folder / name)
    return folder


@pytest.fixture
def policy(runs: Path, request: pytest.FixtureRequest) -> TrainedPolicy:
    return open_run(runs / getattr(request, "param", "navigation")).policy(trust=True)


def observations(policy: TrainedPolicy, *batch: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.standard_normal((*batch, *policy.observation_space.shape)).astype(np.float32)


@pytest.mark.parametrize("name", ["navigation", "rl2_discrete"])
def test_acting_and_adapting_need_neither_mpi_nor_torch(name, runs):
    code = (
        "import sys, numpy as np, hpc_maml; policy = hpc_maml.open_run(sys.argv[1]).policy();"
        "size = np.prod(policy.observation_space.shape); trial = policy.trial(3);"
        "trial.act(np.zeros((3, size)));"
        "env, task = policy.config.env.name, [0.1, 0.2, 0.3, 0.4, 0.5];"
        "policy.adapt(env, task if env == 'bandit' else task[:2]);"
        "assert not {'torch', 'mpi4py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, runs / name], check=True, env=environment())


def test_the_package_is_light():
    code = (
        "import sys, hpc_maml; dir(hpc_maml);"
        "assert not {'torch', 'mpi4py', 'numpy', 'yaml', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_actions_are_those_of_the_network_by_hand(policy, runs):
    values = open_run(runs / "navigation").checkpoint(2).parameters
    seen = observations(policy, 5)
    hidden = seen
    for layer in range(2):
        hidden = np.tanh(hidden @ values[f"weight_{layer}"] + values[f"bias_{layer}"])
    expected = hidden @ values["weight_2"] + values["bias_2"]
    np.testing.assert_allclose(policy(seen), expected, atol=1e-6)
    np.testing.assert_allclose(policy(seen[3].tolist()), expected[3], atol=1e-6)
    assert policy(seen.reshape(5, 1, 2)).shape == (5, 1, 2)


@pytest.mark.parametrize("policy", ["normalised"], indirect=True)
def test_observations_are_normalised_as_in_training(policy, runs):
    kept = open_run(runs / "normalised").checkpoint(2)
    seen = observations(policy, 4)
    scaled = (seen - kept.state["observation_mean"]) / np.sqrt(kept.state["observation_variance"])
    values = kept.parameters
    hidden = (scaled.clip(-10, 10) @ values["weight_0"] + values["bias_0"]).clip(min=0)
    expected = hidden @ values["weight_1"] + values["bias_1"]
    np.testing.assert_allclose(policy(seen), expected, atol=1e-5)


def test_sampled_actions_have_the_mean_and_deviation_of_the_policy(policy, runs):
    seen = np.broadcast_to(observations(policy, 1), (20000, 2))
    drawn = policy(seen, deterministic=False, rng=np.random.default_rng(1))
    again = policy(seen, deterministic=False, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(drawn, again)
    deviation = np.exp(open_run(runs / "navigation").checkpoint(2).parameters["log_std"][0])
    np.testing.assert_allclose(drawn.mean(0), policy(seen[0]), atol=0.03)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.03)


@pytest.mark.parametrize("policy", ["discrete"], indirect=True)
def test_choices_are_the_most_probable_or_drawn(policy):
    (log_probs,) = torch_outputs(policy, np.eye(10, dtype=np.float32))
    assert policy(np.eye(10)).tolist() == log_probs.argmax(1).tolist()
    one = np.broadcast_to(np.eye(10)[2], (20000, 10))
    drawn = policy(one, deterministic=False, rng=np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(drawn) / 20000, np.exp(log_probs[2]), atol=0.02)


@pytest.mark.parametrize("policy", ["navigation", "normalised", "module"], indirect=True)
def test_adaptation_is_that_of_a_meta_test(policy):
    config = policy.config
    env = make_env(config, config.fast_batch_size, num_tasks=2)
    tasks = np.array([[0.3, -0.2], [-0.4, 0.1]])
    played = [
        play.parameters
        for _, play in collect(
            policy.algorithm,
            env,
            policy.algorithm.played(policy.state),
            tasks,
            keys=[(config.seed, 0, 0), (config.seed, 0, 1)],
            evaluation=True,
            dtype=make_dtype(config, env),
        )
    ]
    np.testing.assert_array_equal(policy.parameters, played[0][1])
    both = policy.adapt("navigation", tasks, updates=2)
    np.testing.assert_array_equal(both.parameters, played[2])
    once = policy.adapt("navigation", tasks[0])
    np.testing.assert_array_equal(once.parameters, played[1][0])
    again = policy.adapt("navigation", tasks).adapt("navigation", tasks)
    np.testing.assert_array_equal(again.parameters, played[2])
    seen = observations(policy, 2, 5)
    assert both(seen).shape == (2, 5, 2)
    np.testing.assert_allclose(policy.adapt("navigation", tasks)(seen)[0], once(seen[0]), atol=1e-6)
    assert (once.updates, both.updates, again.updates) == (1, 2, 2)


class Own(gymnasium.Env):
    """An environment of one's own; it keeps observation, action and reward of each step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self) -> None:
        self.goal = np.zeros(2)
        self.episodes: list[list[tuple]] = []

    def set_task(self, task) -> None:
        self.goal = np.asarray(task)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32)
        self.episodes.append([])
        return self.place, {}

    def step(self, action):
        reward = -float(np.linalg.norm(self.place + action - self.goal))
        self.episodes[-1].append((self.place, action, reward))
        self.place = self.place + action
        return self.place, reward, len(self.episodes[-1]) == 7, False, {}


class Unsuitable(Own):
    """Its actions are neither numbers nor a choice."""

    action_space = gymnasium.spaces.MultiBinary(2)


def test_an_environment_of_ones_own_is_played_one_episode_after_another(policy):
    env = Own()
    adapted = policy.adapt(env, [0.3, 0.2], episodes=3)
    assert env.goal.tolist() == [0.3, 0.2]
    seen, actions, rewards = (
        np.array([[step[each] for step in episode] for episode in env.episodes], np.float32)
        .swapaxes(0, 1)
        .copy()
        for each in range(3)
    )  # [T, B, ...]
    assert rewards.shape == (7, 3)
    assert len(np.unique(seen[0])) == 6
    module, discounts = policy.to_torch(), (policy.config.gamma, policy.config.gae_lambda)
    advantages = task_advantages(seen, rewards, np.full(3, 7), *discounts)
    mean, log_std = module(torch.tensor(seen.reshape(-1, 2)))
    normal = torch.distributions.Normal(mean, log_std.exp())
    log_prob = normal.log_prob(torch.tensor(actions.reshape(-1, 2))).sum(-1)
    (-(log_prob * torch.tensor(advantages.ravel())).mean()).backward()
    gradient = policy.algorithm.policy.flatten(
        {name: each.grad.numpy() for name, each in module.layers.items()}
    )
    np.testing.assert_allclose(adapted.parameters, policy.parameters - 0.1 * gradient, atol=1e-6)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.parametrize("policy", ["rl2", "rl2_discrete"], indirect=True)
def test_a_trial_remembers_as_in_training(policy):
    name, config = policy.config.env.name, policy.config
    task = np.linspace(0.1, 0.5, 5 if name == "bandit" else 2)
    adapted = policy.adapt(name, task, updates=1)
    np.testing.assert_array_equal(adapted.parameters, policy.parameters)
    one = config.model_copy(update={"fast_batch_size": 1})
    env = make_env(one, 1)
    algorithm = replace_episodes(policy, 1)
    played = collect(
        algorithm,
        env,
        algorithm.played(policy.state),
        task[None],
        keys=[(config.seed, 0, 0)],
        evaluation=True,
        dtype=make_dtype(one, env),
    )
    batch, _ = next(played)
    episode = trajectories(batch[0])
    trial = policy.trial()
    for step in range(9):
        trial.act(episode.observations[step, 0])
        ended = (episode.terminated | episode.truncated)[step, 0]
        trial.observe(episode.rewards[step, 0], ended, episode.actions[step, 0])
    np.testing.assert_allclose(trial.memory[0], adapted.memory, atol=1e-6)
    assert np.abs(adapted.memory).max() > 0.1
    going_on = adapted.trial()
    np.testing.assert_array_equal(going_on.memory[0], adapted.memory)
    first, second = (each.act(observations(policy)) for each in (trial, going_on))
    np.testing.assert_allclose(first, second, atol=1e-6)


def replace_episodes(policy: TrainedPolicy, episodes: int):
    algorithm = copy.copy(policy.algorithm)
    algorithm.sampling = replace(algorithm.sampling, episodes=episodes)
    return algorithm


@pytest.mark.parametrize("policy", ["rl2_discrete"], indirect=True)
def test_trials_side_by_side_are_those_alone(policy):
    several, alone = policy.trial(3), [policy.trial() for _ in range(3)]
    for step in range(4):
        actions = several.act(np.zeros((3, 1)))
        assert [each.act([0.0]) for each in alone] == actions.tolist()
        rewards = np.arange(3.0) - step
        several.observe(rewards, [False] * 3)
        for each, reward in zip(alone, rewards, strict=True):
            each.observe(reward, False)
    np.testing.assert_allclose(several.memory, np.concatenate([each.memory for each in alone]))


def torch_outputs(policy: TrainedPolicy, *inputs: np.ndarray) -> list[np.ndarray]:
    found = policy.to_torch()(*(torch.tensor(each) for each in inputs))
    parts = found if isinstance(found, tuple) else (found,)
    return [each.detach().numpy() for each in parts]


def recurrent_inputs(policy: TrainedPolicy, rows: int) -> list[np.ndarray]:
    rng, size = np.random.default_rng(4), policy.algorithm.policy.memory_size
    discrete = hasattr(policy.action_space, "n")
    shape = (rows, *policy.action_space.shape)
    actions = rng.integers(5, size=shape) if discrete else rng.standard_normal(shape)
    return [
        rng.standard_normal((rows, size)).astype(np.float32),
        actions if discrete else actions.astype(np.float32),
        rng.standard_normal(rows).astype(np.float32),
        np.array([0, 1] * (rows // 2), np.float32),
    ]


def expected_outputs(policy: TrainedPolicy, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return what an export must give, by the policy in NumPy."""
    own = policy.algorithm.policy
    layers = own.unflatten(policy.parameters)
    rows, memory = policy._rows(inputs[0]), None
    if policy.recurrent:
        memory = own.network.remember(*inputs[1:])
    parameters, after = own.step(layers, memory, rows)
    parts = parameters if isinstance(parameters, tuple) else (parameters,)
    return [*parts, after] if policy.recurrent else list(parts)


@pytest.mark.parametrize("policy", RUNS, indirect=True)
def test_the_torch_module_and_the_onnx_file_agree_with_the_policy(policy):
    policy = policy if policy.recurrent else policy_adapted(policy)
    inputs = [observations(policy, 6), *(recurrent_inputs(policy, 6) if policy.recurrent else ())]
    expected = expected_outputs(policy, inputs)
    for found, wanted in zip(torch_outputs(policy, *inputs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    module = policy.to_torch()
    assert sum(each.numel() for each in module.parameters()) == policy.parameters.size
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    path = policy.to_onnx("policy.onnx")
    named = dict(zip(module.inputs, inputs, strict=True))
    found = reference.ReferenceEvaluator(str(path)).run(list(module.outputs), named)
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(each, wanted, atol=1e-6)


def policy_adapted(policy: TrainedPolicy) -> TrainedPolicy:
    env = make_env(policy.config, 1)
    return policy.adapt(policy.config.env.name, env.sample_tasks(np.random.default_rng(0), 1)[0])


def test_a_torch_module_can_be_trained_on(policy):
    module = policy.to_torch()
    mean, _ = module(torch.zeros(3, 2))
    mean.sum().backward()
    assert all(each.grad is not None for each in module.layers.values() if each.shape[0] > 1)
    with torch.no_grad():
        module.layers["bias_2"] += 1
    found = torch_outputs(policy, np.zeros((1, 2), np.float32))[0][0]
    assert found == pytest.approx(policy([0, 0]), abs=1e-7)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda policy: policy([1, 2, 3]), "must be [..., 2], not [3]"),
        (lambda policy: policy.trial(2).act([0, 0]), "trial is one of [2]"),
        (lambda policy: policy.trial().observe(1, False), "no action yet"),
        (lambda policy: policy.adapt("navigation"), "which task"),
        (
            lambda policy: policy.adapt(make("navigation", num_tasks=1, episodes_per_task=2)),
            "which task",
        ),
        (lambda policy: policy.adapt("navigation", [1, 2, 3]), "The task does not fit"),
        (lambda policy: policy.adapt("navigation", [1, np.nan]), "must be finite"),
        (
            lambda policy: policy.adapt("navigation", [1, 2], updates=-1),
            "updates must be a whole number",
        ),
        (lambda policy: policy.adapt("navigation", [1, 2], updates=1.5), "0 or more, not 1.5"),
        (lambda policy: policy.adapt("navigation", [1, 2], seed="a"), "seed must be a whole num"),
        (lambda policy: policy.adapt("navigation", [1, 2], episodes=2.0), "episodes must be a wh"),
        (lambda policy: policy.adapt("navigation", [[1, 2], [3]]), "The task does not fit: it is"),
        (lambda policy: policy.trial(-1), "batch must be a whole number, 0 or more, not -1"),
        (lambda policy: policy.adapt(5, [1, 2]), "a name or an environment, not 5"),
        (lambda policy: policy.adapt("navigatoin", [1, 2]), "did you mean 'navigation'"),
        (lambda policy: policy.adapt("bandit", [0.5] * 5), "those that the policy learned with"),
        (lambda policy: policy.adapt("navigation", [0, 1], episodes=1), "two episodes"),
        (
            lambda policy: policy.adapt(BATCH(num_tasks=1, episodes_per_task=1), [0, 1]),
            "two episodes",
        ),
        (
            lambda policy: policy.adapt(
                BATCH(num_tasks=1, episodes_per_task=4), [0, 1], episodes=9
            ),
            "has 4 episodes of each task, not 9",
        ),
        (lambda policy: policy.adapt(gymnasium.make("Pendulum-v1"), 1), "has no set_task"),
        (lambda policy: policy.adapt(gymnasium.make("Pendulum-v1")), "of this environment are Box"),
        (lambda policy: policy.adapt(Unsuitable()), "The environment cannot be used: actions of"),
        (
            lambda policy: policy.adapt("navigation", [[0, 1]] * 2).to_torch(),
            "exported task by task",
        ),
        (
            lambda policy: policy.adapt("navigation", [[0, 1]] * 2).adapt("navigation", [0, 1]),
            "a policy of 2 tasks",
        ),
        (lambda policy: policy.adapt("navigation", [[0, 1]] * 2)([0, 0]), "must be [2, ..., 2]"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(call, sentence, policy):
    with pytest.raises(InputError) as error:
        call(policy)
    assert sentence in str(error.value)


@pytest.mark.parametrize("policy", ["rl2"], indirect=True)
def test_a_recurrent_policy_acts_in_trials(policy):
    with pytest.raises(InputError, match=r"policy\.trial"):
        policy([0, 0])
    trial = policy.trial()
    trial.act([0, 0])
    with pytest.raises(InputError, match="The result of the last action is missing"):
        trial.act([0, 0])
    with pytest.raises(InputError, match=r"The rewards must be \[\], not \[2\]"):
        trial.observe([1, 2], False)


@pytest.mark.parametrize("policy", ["rl2_discrete"], indirect=True)
def test_what_a_trial_is_told_is_checked(policy):
    trial = policy.trial((2, 3))
    for rewards, ended, actions, said in (
        (np.zeros((3, 2)), np.zeros((2, 3)), None, "must be [2, 3], not [3, 2]"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), None, "must be finite"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.full((2, 3), 7), "integers from 0 to 4"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.full((2, 3), 1.5), "must be integers"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "left", "are no numbers"),
    ):
        trial._actions = np.zeros(6, np.int64)
        with pytest.raises(InputError) as error:
            trial.observe(rewards, ended, actions)
        assert said in str(error.value)


@pytest.mark.parametrize("policy", ["rl2_discrete"], indirect=True)
def test_choices_are_counted_from_where_the_environment_begins(policy):
    later = replace(policy, action_space=gymnasium.spaces.Discrete(5, start=-2))
    here, there = policy.trial(4), later.trial(4)
    seen = observations(policy, 4)
    for _ in range(3):
        actions = here.act(seen)
        assert np.array_equal(there.act(seen), actions - 2)
        here.observe(np.ones(4), np.zeros(4), actions)
        there.observe(np.ones(4), np.zeros(4), actions - 2)
        assert np.array_equal(here.memory, there.memory)


def test_a_drawn_action_follows_from_a_seed(policy):
    drawn = [policy([0, 0], deterministic=False, rng=rng) for rng in (3, np.random.default_rng(3))]
    assert np.array_equal(*drawn)


class Rows(torch.nn.Module):
    """One row after the other, which an export writes out."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x):
        return torch.stack([self.inner(row) for row in x])


class Branch(Rows):
    """It decides by numbers, which an export cannot."""

    def forward(self, x):
        return self.inner(x) if x.abs().max() < 1e6 else x


@pytest.mark.parametrize(
    ("network", "said"), [(Rows, "for batches of any size"), (Branch, "cannot export this network")]
)
def test_what_cannot_be_exported_leaves_the_file(network, said, policy, tmp_path):
    module = policy.to_torch()
    good = policy.to_onnx(tmp_path / "policy.onnx").read_bytes()
    module.network = network()
    with pytest.raises(InputError, match=said):
        write_onnx(module, tmp_path / "policy.onnx")
    assert [each.read_bytes() for each in tmp_path.glob("policy.onnx*")] == [good]
