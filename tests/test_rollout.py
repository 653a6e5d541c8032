"""The collection of tasks side by side, against one at a time."""

import numpy as np
import pytest

from hpc_maml.sampling import rollout
from hpc_maml.config import load_config
from hpc_maml.envs import ENVIRONMENTS
from hpc_maml.sampling.rollout import collect
from hpc_maml.run.training import make_env, prepare

HORIZON, EPISODES, STEP_SIZES = 15, 3, (0.1, 0.05)


def collected(name, chosen):
    """Return the batches ``[phases, G]`` of some of four tasks."""
    sizes = [f"horizon={HORIZON}", f"fast_batch_size={EPISODES}", "policy.hidden_sizes=[8, 8]"]
    config = load_config(None, [f"env.name={name}", *sizes])
    env = make_env(config, EPISODES, num_tasks=len(chosen))
    job = prepare(config, env)
    policy = job.policy
    rng = np.random.default_rng(3)
    theta = policy.initial_parameters(rng)
    tasks = env.sample_tasks(rng, 4)[chosen]
    phases = collect(
        policy,
        env,
        theta,
        tasks,
        keys=[(1, 7, task) for task in chosen],
        evaluation=False,
        step_sizes=STEP_SIZES,
        gamma=0.99,
        gae_lambda=1.0,
        dtype=job.dtype,
    )
    return policy, theta, np.stack([batches for batches, _ in phases])


def bits(batches):
    """Return the bytes of every field, but for the time it took."""
    names = set(batches.dtype.names) - {"observer_seconds"}
    return {name: batches[name].tobytes() for name in names}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_task_has_the_same_bits_beside_any_others(name):
    _, _, together = collected(name, [0, 1, 2, 3])
    assert together.shape == (3, 4)
    assert together["task"].tolist() == [[0, 1, 2, 3]] * 3
    assert together["phase"].tolist() == [[phase] * 4 for phase in range(3)]
    for task in range(4):
        _, _, alone = collected(name, [task])
        assert bits(alone) == bits(together[:, [task]])
    _, _, others = collected(name, [3, 1])
    assert bits(others) == bits(together[:, [3, 1]])


def test_log_probabilities_are_those_of_the_behaviour_policy():
    policy, theta, batches = collected("ant_vel", [0, 1])
    first = batches[0, 1]
    distribution = policy.forward(policy.unflatten(theta), first["observations"])
    expected = policy.log_prob(distribution, first["actions"])
    expected[np.arange(HORIZON)[:, None] >= first["lengths"]] = 0
    np.testing.assert_allclose(first["log_probs"], expected, rtol=1e-5, atol=1e-5)


def test_a_task_that_diverges_leaves_the_others_alone(monkeypatch):
    _, _, healthy = collected("navigation", [0, 1, 2, 3])

    adapt = rollout.adapt
    calls = iter(range(8))

    def diverging(*arguments):
        adapted = adapt(*arguments)
        return adapted * np.float32(np.nan) if next(calls) == 2 else adapted

    monkeypatch.setattr(rollout, "adapt", diverging)
    _, _, batches = collected("navigation", [0, 1, 2, 3])
    assert np.isnan(batches["rewards"][1, 2]).any()
    for task in (0, 1, 3):
        assert bits(batches[:, task]) == bits(healthy[:, task])
