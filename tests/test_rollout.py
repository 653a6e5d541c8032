"""The collection of tasks side by side, against one at a time, and the samples of a phase."""

import numpy as np
import pytest
import reference
import torch
from conftest import HAS_METAWORLD

from hpc_maml.algorithms import inner_steps
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import load_config
from hpc_maml.envs import ENVIRONMENTS
from hpc_maml.parts import make_env
from hpc_maml.run.job import prepare
from hpc_maml.sampling.trajectory import (
    Samples,
    Trajectories,
    samples,
    thinned,
    trajectories,
    valid_steps,
)

HORIZON, EPISODES = 15, 3
WORDS = {
    "maml_trpo": ["algorithm.num_inner_steps=2", "policy.hidden_sizes=[8, 8]"],
    "promp": [
        "algorithm.num_inner_steps=2",
        "algorithm.learn_step_sizes=layer",
        "normalise_observations=true",
        "policy.hidden_sizes=[8, 8]",
    ],
    "rl2": ["algorithm.episodes_per_trial=3", "policy.hidden_size=8"],
    "torch module": [
        "algorithm.num_inner_steps=2",
        "policy.name=test_torch_module:Perceptron",
    ],
}


def collected(name, chosen, words=WORDS["maml_trpo"], algorithm="maml_trpo"):
    """Return the algorithm, and the batches ``[phases, G]`` of some of four tasks."""
    sizes = [f"horizon={HORIZON}", f"fast_batch_size={EPISODES}"]
    words = [f"env.name={name}", f"algorithm.name={algorithm}", *sizes, *words]
    config = load_config(None, words)
    env = make_env(config, EPISODES, num_tasks=len(chosen))
    job = prepare(config, env)
    rng = np.random.default_rng(3)
    state = job.algorithm.initial_state(rng)
    phases = collect(
        job.algorithm,
        env,
        job.algorithm.played(state),
        env.sample_tasks(rng, 4)[chosen],
        keys=[(1, 7, task) for task in chosen],
        evaluation=False,
        dtype=job.dtype,
    )
    return job.algorithm, state["theta"], np.stack([batches for batches, _ in phases])


def bits(batches):
    """Return the bytes of every field, but for the time it took."""
    names = set(batches.dtype.names) - {"observer_seconds"}
    return {name: batches[name].tobytes() for name in names}


def check_bits(name, *settings):
    _, _, together = collected(name, [0, 1, 2, 3], *settings)
    assert together.shape == (3, 4)
    assert together["task"].tolist() == [[0, 1, 2, 3]] * 3
    assert together["phase"].tolist() == [[phase] * 4 for phase in range(3)]
    assert together["iteration"].tolist() == [[7] * 4] * 3
    for task in range(4):
        _, _, alone = collected(name, [task], *settings)
        assert bits(alone) == bits(together[:, [task]])
    _, _, others = collected(name, [3, 1], *settings)
    assert bits(others) == bits(together[:, [3, 1]])


@pytest.mark.parametrize(
    "name", [name for name in ENVIRONMENTS if HAS_METAWORLD or not name.startswith("metaworld")]
)
def test_a_task_has_the_same_bits_beside_any_others(name):
    check_bits(name)


@pytest.mark.parametrize("name", ["navigation", "bandit", "lander"])
@pytest.mark.parametrize("words", ["promp", "rl2", "torch module"])
def test_a_task_has_the_same_bits_beside_any_others_with_other_algorithms(name, words):
    check_bits(name, WORDS[words], words if words in ("promp", "rl2") else "maml_trpo")


def test_log_probabilities_are_those_of_the_behaviour_policy():
    algorithm, theta, batches = collected("ant_vel", [0, 1])
    first, policy = batches[0, 1], algorithm.policy
    distribution = policy.forward(policy.unflatten(theta), first["observations"])
    expected = policy.distribution.log_prob(distribution, first["actions"])
    expected[np.arange(HORIZON)[:, None] >= first["lengths"]] = 0
    np.testing.assert_allclose(first["log_probs"], expected, rtol=1e-5, atol=1e-5)


def test_a_task_that_diverges_leaves_the_others_alone(monkeypatch):
    _, _, healthy = collected("navigation", [0, 1, 2, 3])

    adapt = inner_steps.adapt
    calls = iter(range(8))

    def diverging(*arguments):
        adapted = adapt(*arguments)
        return adapted * np.float32(np.nan) if next(calls) == 2 else adapted

    monkeypatch.setattr(inner_steps, "adapt", diverging)
    _, _, batches = collected("navigation", [0, 1, 2, 3])
    assert np.isnan(batches["rewards"][1, 2]).any()
    for task in (0, 1, 3):
        assert bits(batches[:, task]) == bits(healthy[:, task])


# the samples of a phase


def episodes_by_hand():
    """Return two episodes of at most three steps, of 3 and of 1."""
    steps = np.arange(6.0).reshape(3, 2)
    return Trajectories(
        observations=np.stack([steps, 10 + steps], axis=-1),
        actions=steps.astype(np.int64),
        rewards=steps,
        log_probs=-steps,
        advantages=2 * steps,
        terminated=np.zeros((3, 2), bool),
        truncated=np.zeros((3, 2), bool),
        lengths=np.array([3, 1]),
        task=np.asarray(0),
    )


def test_samples_by_hand():
    found = samples(episodes_by_hand())
    assert valid_steps(np.array([3, 1]), 3).tolist() == [[True, True], [True, False], [True, False]]
    # step by step, at each the first episode before the second
    assert found.observations.tolist() == [[n, 10 + n] for n in range(6)]
    assert found.actions.tolist() == list(range(6))
    assert found.log_probs.tolist() == [-n for n in range(6)]
    assert found.advantages.tolist() == [2 * n for n in range(6)]
    assert found.weights.tolist() == [0.25, 0.25, 0.25, 0, 0.25, 0]
    assert found.weights.dtype == np.float32


def test_samples_are_views():
    episodes = episodes_by_hand()
    found = samples(episodes)
    for name in ("observations", "actions", "log_probs", "advantages"):
        assert np.shares_memory(getattr(found, name), getattr(episodes, name)), name


def test_tensors_and_leading_dimensions_give_the_same_samples():
    problem = reference.Problem((3, 2), "tanh", True, ())
    episodes = reference.random_trajectories(np.random.default_rng(0), problem, 4)
    together = samples(Trajectories(*map(torch.as_tensor, episodes)))
    for task in range(4):
        alone = samples(Trajectories(*(field[task] for field in episodes)))
        for one, other in zip(together, alone, strict=True):
            assert one[task].numpy().tobytes() == other.tobytes()


def test_a_fraction_of_the_samples_by_hand():
    weights = np.array([[0.25, 0.25, 0.25, 0, 0.25, 0]])
    fields = [np.arange(6.0)[None]] * 4
    whole = Samples(*fields, weights)
    assert thinned(whole, 1) is whole
    half = thinned(whole, 0.5)  # of two neighbours one, of the first two the first
    kept = half.observations[0].astype(int).tolist()
    assert kept in [[0, second, third] for second in (2, 3) for third in (4, 5)]
    np.testing.assert_allclose(half.weights, weights[:, kept] / weights[:, kept].sum(), rtol=1e-14)
    for number in (100, 300, 1200, 1500):
        many = Samples(*[np.arange(float(number))[None]] * 4, np.full((1, number), 1 / number))
        for percent in range(1, 100):
            some = thinned(many, percent / 100).observations[0]
            assert abs(len(some) - number * percent / 100) <= 1
            assert some[0] == 0
            assert (np.diff(some) > 0).all()
    episodes = thinned(many, 0.25).observations[0] % 20  # where steps of 20 are neighbours
    assert set(episodes.tolist()) == set(range(20))


def test_fields_of_a_batch_are_views():
    _, _, batches = collected("navigation", [0, 1])
    found = trajectories(batches[0])
    assert found.rewards.shape == (2, HORIZON, EPISODES)
    for name in Trajectories._fields:
        assert np.shares_memory(getattr(found, name), batches), name
