"""Normalised observations: their statistics against NumPy's, and that play and losses agree."""

import numpy as np
import pytest
import reference
import torch
from mpi4py import MPI
from reference import add, same_state

from hpc_maml.algorithms.algorithm import NOT_FINITE, THETA
from hpc_maml.algorithms.collection import collect
from hpc_maml.algorithms.maml_trpo import MamlTrpo
from hpc_maml.algorithms.normalised import Normalised
from hpc_maml.algorithms.promp import ProMP
from hpc_maml.config import load_config
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.parts import make_env
from hpc_maml.roles.digests import Digests
from hpc_maml.run.job import prepare
from hpc_maml.sampling.normalisation import (
    NAMES,
    UNIT,
    Normaliser,
    initial_statistics,
    moments,
    normaliser,
    updated,
)
from hpc_maml.sampling.trajectory import Trajectories, trajectories, valid_steps

PROBLEM = reference.Problem((3, 4, 2), "tanh", False, (0.1,))
SCALE, SHIFT = np.array([5.0, 0.01, 300.0]), np.array([100.0, -3.0, 0.0])
TASKS = 4


exact = ExactSum(MPI.COMM_SELF, 60.0)


def make(kind=MamlTrpo, **settings):
    algorithm = kind(kind.Settings(**settings), reference.policy_of(PROBLEM), reference.SAMPLING)
    return Normalised(algorithm, 3)


def draw_phases(rng):
    """Draw ragged episodes of two phases, with observations of very different scales."""
    found = []
    for _ in range(2):
        episodes = reference.random_trajectories(rng, PROBLEM, TASKS)
        seen = (episodes.observations * SCALE + SHIFT) * valid(episodes)[..., None]
        found.append(episodes._replace(observations=seen))
    return found


def valid(episodes):
    return np.arange(7)[:, None] < episodes.lengths[:, None]


def real(phases):
    """Return all valid observations ``[n, 3]``."""
    return np.concatenate([phase.observations[valid(phase)] for phase in phases])


def alone(phases, task):
    return [Trajectories(*(field[[task]] for field in phase)) for phase in phases]


def digests(algorithm, state, phases):
    return [algorithm.digest(state, alone(phases, task)) for task in range(TASKS)]


def with_theta(state, rng):
    return state | {THETA: 0.4 * rng.standard_normal(state[THETA].size)}


# statistics


def test_a_scale_by_hand():
    scale = Normaliser(np.array([1.0, 0.0]), np.array([2.0, 1e-4]))
    found = scale(np.array([[5.0, 1e-4], [-100.0, 0.0]]))
    assert found.tolist() == [[2.0, 1.0], [-10.0, 0.0]]


def test_before_the_first_iteration_nothing_changes():
    state = initial_statistics(3)
    observations = np.array([[1.0, -2.0, 3.0]], np.float32)
    found = normaliser(state)(observations)
    assert found.dtype == np.float32
    assert np.array_equal(found, observations)
    assert {name: value.dtype.name for name, value in state.items()} == dict.fromkeys(
        NAMES, "float64"
    )


def test_a_number_that_never_changes_is_divided_by_the_smallest_deviation():
    state = initial_statistics(1) | {"observation_variance": np.zeros(1)}
    assert normaliser(state)(np.array([[5e-4]])) == pytest.approx(5.0)


@pytest.mark.parametrize("constant", [9.81, -0.7, 0.3])
def test_the_variance_of_a_number_that_never_changes_is_not_negative(constant):
    rng = np.random.default_rng(0)
    for steps, episodes, tasks in ((37, 7, 11), (100, 20, 20), (5, 3, 2)):
        changing = rng.standard_normal((tasks, steps, episodes, 1))
        seen = np.concatenate([changing, np.full_like(changing, constant)], axis=-1)
        phase = Trajectories(*[None] * 9)._replace(
            observations=seen.astype(np.float32),
            rewards=np.zeros((tasks, steps, episodes)),
            lengths=np.full((tasks, episodes), steps),
        )
        state = initial_statistics(2)
        for _ in range(3):
            state = updated(state, moments([phase], state["observation_mean"]).sum(0))
            assert (state["observation_variance"] >= 0).all()
            assert np.isfinite(normaliser(state)(seen.astype(np.float32))).all()


def test_moments_by_hand():
    # one task, two steps of two episodes, the second of which has one step
    episodes = Trajectories(*[None] * 9)._replace(
        observations=np.array([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [99.0, 99.0]]]]),
        rewards=np.zeros((1, 2, 2)),
        lengths=np.array([[2, 1]]),
    )
    found = moments([episodes, episodes], np.array([1.0, 2.0]))
    # differences from the mean: 0, 2, 4 for either number; of two phases
    assert (found * UNIT).tolist() == [[6, 12, 12, 40, 40]]


@pytest.mark.parametrize("reduce", [add, exact])
def test_statistics_are_those_of_all_valid_steps_so_far(reduce):
    rng, algorithm = np.random.default_rng(0), make()
    state, seen = with_theta(algorithm.initial_state(rng), rng), np.empty((0, 3))
    for _ in range(4):
        phases = draw_phases(rng)
        outcome = algorithm.update(state, digests(algorithm, state, phases), TASKS, reduce, rng)
        assert outcome.accepted, outcome.reason
        assert not np.array_equal(outcome.state[THETA], state[THETA])
        state, seen = outcome.state, np.concatenate([seen, real(phases)])
        assert state["observation_count"] == len(seen)
        np.testing.assert_allclose(state["observation_mean"], seen.mean(0), rtol=1e-10)
        np.testing.assert_allclose(state["observation_variance"], seen.var(0), rtol=1e-8)
    scaled = normaliser(state)(seen.astype(np.float32))
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_padding_counts_for_nothing():
    rng, algorithm = np.random.default_rng(1), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    changed = [
        phase._replace(observations=np.where(valid(phase)[..., None], phase.observations, 1e5))
        for phase in phases
    ]
    assert not all(valid(phase).all() for phase in phases)
    for number in range(2):  # of iterations: with statistics of none, and of one
        found, expected = (
            algorithm.update(state, digests(algorithm, state, each), TASKS, add, rng)
            for each in (changed, phases)
        )
        assert expected.accepted, number
        assert same_state(found.state, expected.state)
        state = expected.state


def test_statistics_have_the_same_bits_however_tasks_are_grouped():
    rng, algorithm = np.random.default_rng(2), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    together = algorithm.digest(state, phases)
    each = digests(algorithm, state, phases)
    rows = np.concatenate([digest.moments for digest in each])
    assert np.array_equal(together.moments, rows)
    found, expected = (
        algorithm.update(state, some, TASKS, exact, rng) for some in ([together], each[::-1])
    )
    assert same_state(found.state, expected.state)


def test_an_agent_without_tasks_has_the_same_statistics():
    rng, algorithm, sums = np.random.default_rng(3), make(), []
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)

    def recording(terms):
        sums.append(add(terms))
        return sums[-1]

    busy = algorithm.update(state, digests(algorithm, state, phases), TASKS, recording, rng)
    replay = iter(sums)

    def replaying(terms):
        total = next(replay)
        assert terms.shape == (0, *total.shape)
        return total

    idle = algorithm.update(state, [], TASKS, replaying, rng)
    assert next(replay, None) is None
    assert busy.accepted
    assert same_state(idle.state, busy.state)
    assert idle.metrics == busy.metrics


def test_tensors_give_what_arrays_give():
    rng, algorithm = np.random.default_rng(4), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    state |= updated(state, add(moments(phases, state["observation_mean"])))
    tensors = {name: torch.as_tensor(value) for name, value in state.items()}
    on_gpu = [Trajectories(*map(torch.as_tensor, phase)) for phase in phases]
    found = algorithm.digest(tensors, on_gpu)
    expected = algorithm.digest(state, phases)
    assert isinstance(found.moments, torch.Tensor)
    np.testing.assert_allclose(found.moments, expected.moments, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.inner.gradient, expected.inner.gradient, rtol=1e-6, atol=1e-9)
    outcomes = [algorithm.update(state, [each], TASKS, add, rng) for each in (found, expected)]
    for name in NAMES:
        one, other = (outcome.state[name] for outcome in outcomes)
        np.testing.assert_allclose(one, other, rtol=1e-10)


# the algorithm


@pytest.mark.parametrize("kind", [MamlTrpo, ProMP])
def test_an_update_is_that_of_the_algorithm_on_scaled_observations(kind):
    rng, algorithm = np.random.default_rng(5), make(kind)
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    mean, deviation = SHIFT + 0.5, SCALE * 1.5
    state |= {
        "observation_count": np.asarray(50.0),
        "observation_mean": mean,
        "observation_variance": deviation**2,
    }
    scaled = [
        phase._replace(
            observations=np.clip((phase.observations - mean) / deviation, -10, 10)
            * valid(phase)[..., None]
        )
        for phase in phases
    ]
    inner = algorithm.algorithm
    own = {name: value for name, value in state.items() if name not in NAMES}
    expected = inner.update(own, [inner.digest(own, scaled)], TASKS, add, rng)
    found = algorithm.update(state, [algorithm.digest(state, phases)], TASKS, add, rng)
    assert expected.accepted
    # the scale is in single precision
    np.testing.assert_allclose(found.state[THETA], expected.state[THETA], rtol=1e-3, atol=1e-4)
    assert abs(expected.state[THETA] - state[THETA]).max() > 1e-3
    assert found.metrics.keys() == expected.metrics.keys()
    assert found.state.keys() == state.keys()
    assert algorithm.played(state).keys() == {THETA, *NAMES}


def test_a_digest_that_is_computed_anew_gives_the_same():
    rng, algorithm = np.random.default_rng(6), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    outcomes = []
    for memory in (0, 2**30):
        kept = Digests(memory)
        for task in range(TASKS):
            kept.add(lambda task=task: algorithm.digest(state, alone(phases, task)))
        assert len(kept.kept) == (TASKS if memory else 0)
        outcomes.append(algorithm.update(state, kept, TASKS, add, rng))
    assert outcomes[0].metrics == outcomes[1].metrics
    assert same_state(outcomes[0].state, outcomes[1].state)


def test_a_rejected_update_leaves_the_statistics():
    rng, algorithm = np.random.default_rng(7), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    state = algorithm.update(state, digests(algorithm, state, phases), TASKS, add, rng).state
    kept = {name: value.copy() for name, value in state.items()}
    phases[1].advantages[2, 0, 0] = np.nan
    found = algorithm.update(state, digests(algorithm, state, phases), TASKS, add, rng)
    assert found.reason == NOT_FINITE
    assert found.state is state
    assert same_state(state, kept)


def test_observations_that_are_too_large_reject_the_update():
    rng, algorithm = np.random.default_rng(12), make()
    state, phases = with_theta(algorithm.initial_state(rng), rng), draw_phases(rng)
    kept = {name: value.copy() for name, value in state.items()}
    phases[0].observations[1, 0, 0] = 1e7  # its square cannot be summed
    found = algorithm.update(state, digests(algorithm, state, phases), TASKS, exact, rng)
    assert found.reason == "observations too large to be normalised"
    assert found.metrics["line_search_steps"] >= 1
    assert found.state is state
    assert same_state(state, kept)


def test_what_is_asked_of_the_algorithm_is_asked_of_it():
    algorithm = make(ProMP, num_inner_steps=2)
    inner = algorithm.algorithm
    assert algorithm.metrics is inner.metrics
    assert algorithm.settings is inner.settings
    for name in ("recurrent", "adapts_parameters", "phase"):
        assert getattr(algorithm, name) == getattr(inner, name)
    for evaluation in (False, True):
        assert algorithm.num_phases(evaluation) == inner.num_phases(evaluation)
    assert algorithm.test_words() == inner.test_words() != ""


# play


def played(words, statistics, num_tasks=2):
    """Return the algorithm, its state, and the phases of some tasks."""
    config = load_config(None, ["normalise_observations=true", "fast_batch_size=3", *words])
    env = make_env(config, 3, num_tasks=num_tasks)
    job = prepare(config, env)
    algorithm, rng = job.algorithm, np.random.default_rng(0)
    assert isinstance(algorithm, Normalised)
    state = algorithm.initial_state(rng) | statistics(algorithm.observation_size)
    batches = [
        batches
        for batches, _ in collect(
            algorithm,
            env,
            algorithm.played(state),
            env.sample_tasks(rng, num_tasks),
            keys=[(1, 0, task) for task in range(num_tasks)],
            evaluation=False,
            dtype=job.dtype,
        )
    ]
    return algorithm, state, [trajectories(each) for each in batches]


def scale_of(size):
    rng = np.random.default_rng(9)
    return {
        "observation_count": np.asarray(100.0),
        "observation_mean": rng.standard_normal(size),
        "observation_variance": rng.uniform(0.01, 4, size),
    }


CARTPOLE = ["env.name=CartPole-v1", "env.kwargs={task_ranges: {length: [0.3, 0.8]}}", "horizon=16"]
HIDDEN = "policy.hidden_sizes=[8]"


@pytest.mark.parametrize(
    "words",
    [
        ["horizon=8", HIDDEN],
        ["horizon=8", HIDDEN, "algorithm.name=promp"],
        [*CARTPOLE, HIDDEN],
        ["env.name=half_cheetah_vel", "horizon=8", HIDDEN],
    ],
    ids=["navigation", "promp", "cartpole", "half_cheetah"],
)
def test_play_and_losses_see_the_same_observations(words):
    algorithm, state, phases = played(words, scale_of)
    mean, deviation = state["observation_mean"], np.sqrt(state["observation_variance"])
    first, policy = phases[0], algorithm.policy
    horizon = first.rewards.shape[1]
    flat = first.observations.reshape(2, horizon * 3, -1).astype(np.float64)
    seen = np.clip((flat - mean) / deviation, -10, 10)
    layers = policy.unflatten(state[THETA].astype(np.float64))
    actions = first.actions.reshape(2, horizon * 3, *first.actions.shape[3:])
    log_probs = policy.distribution.log_prob(policy.forward(layers, seen), actions)
    steps = valid_steps(first.lengths, horizon)
    np.testing.assert_allclose(
        first.log_probs[steps], log_probs.reshape(steps.shape)[steps], rtol=1e-3, atol=1e-4
    )
    plain = policy.distribution.log_prob(policy.forward(layers, flat), actions)
    assert not np.allclose(first.log_probs[steps], plain.reshape(steps.shape)[steps], atol=1e-3)
    # the adapted policies of agents are those that played
    digest = algorithm.digest(state, phases)
    outcome = algorithm.update(state, [digest], 2, add, np.random.default_rng(0))
    assert 0 <= outcome.metrics["kl_before"] < 1e-8
    # what is recorded are the observations themselves
    assert abs(first.observations[:, 0]).max() < 1


def test_trials_of_a_recurrent_policy_see_the_same_observations():
    words = ["algorithm.name=rl2", "algorithm.episodes_per_trial=2", "policy.hidden_size=8"]
    algorithm, state, phases = played([*words, *CARTPOLE], scale_of)
    trials = algorithm.digest(state, phases).inner
    policy = algorithm.policy
    at = policy.network.unroll(policy.unflatten(state[THETA]), trials.inputs, trials.valid)
    rows = at.outputs.reshape(2, -1, 2)
    found = policy.distribution.log_prob(
        policy.distribution.parameters(at.layers, rows), trials.actions.reshape(2, -1)
    ).reshape(trials.valid.shape)
    recorded = np.concatenate([phase.log_probs for phase in phases], axis=1)
    np.testing.assert_allclose(found[trials.valid], recorded[trials.valid], rtol=1e-4, atol=1e-5)
    mean, deviation = state["observation_mean"], np.sqrt(state["observation_variance"])
    size = algorithm.observation_size
    expected = np.clip((phases[0].observations - mean) / deviation, -10, 10)
    steps = valid_steps(phases[0].lengths, 16)
    np.testing.assert_allclose(
        trials.inputs[:, :16, :, :size][steps], expected[steps], rtol=1e-4, atol=1e-5
    )
