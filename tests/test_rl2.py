"""RL^2's PPO against plain loops and torch's autograd, in double precision, with ragged lengths."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from mpi4py import MPI
from reference import add, same_state
from test_gru import (
    ACTIONS,
    CONTINUOUS,
    DISCRETE,
    POLICIES,
    STEPS,
    TASKS,
    TRIALS,
    draw_fields,
    draw_theta,
    plain_unroll,
)

from hpc_maml.algorithms import rl2
from hpc_maml.algorithms.adam import STEPS as ADAM_STEPS
from hpc_maml.algorithms.adam import adam_state
from hpc_maml.algorithms.algorithm import NO_SIGNAL, THETA
from hpc_maml.algorithms.collection import collect
from hpc_maml.algorithms.rl2 import RL2, RL2Settings, Trials
from hpc_maml.config import load_config
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.parts import make_env
from hpc_maml.run.job import prepare
from hpc_maml.sampling.trajectory import Trajectories, trajectories

GAMMA, GAE_LAMBDA = 0.9, 0.7
SAMPLING = replace(reference.SAMPLING, gamma=GAMMA, gae_lambda=GAE_LAMBDA, episodes=TRIALS)
SETTINGS = RL2Settings(
    clip=0.1, entropy_coefficient=0.03, value_coefficient=0.4, episodes_per_trial=3
)


def draw_trials(rng, policy, **more):
    """Return trials, with the fields that they come from."""
    fields = draw_fields(rng, policy is DISCRETE) | more
    inputs = policy.network.inputs(**fields)
    names = ("actions", "rewards", "valid")
    trials = Trials(np.arange(len(inputs)), inputs, *(fields[name] for name in names))
    return trials, fields


def in_torch(trials):
    return Trials(*map(torch.as_tensor, trials))


def part_of(trials, rows):
    return Trials(*(field[rows] for field in trials))


def targets_of(policy, theta, trials):
    """Return the targets of trials, with advantages normalised over all of them."""
    standard = rl2.standard_of(add(rl2.return_terms(trials, GAMMA))[1:])
    found = rl2.targets(policy, theta, trials, standard, GAMMA, GAE_LAMBDA)
    return rl2.normalised(found, trials.valid, add(rl2.advantage_terms(found, trials.valid)))


# plain loops


def plain_distribution(policy, theta, outputs):
    """Return the distribution of actions as torch has it."""
    if policy is DISCRETE:
        return torch.distributions.Categorical(logits=outputs)
    deviation = policy.unflatten(theta)["log_std"].exp()
    normal = torch.distributions.Normal(outputs, deviation)
    return torch.distributions.Independent(normal, 1)


class PlainTask:
    """The loss of PPO on the trials of one task by autograd."""

    def __init__(self, policy, trials, task):
        self.policy = policy
        self.inputs, self.actions, self.rewards, self.real = (
            torch.tensor(field[task]) for field in trials[1:]
        )

    def log_probs_and_values(self, theta):
        outputs, values = plain_unroll(self.policy, theta, self.inputs, self.real)
        distribution = plain_distribution(self.policy, theta, outputs)
        return distribution.log_prob(self.actions), values, distribution.entropy()

    def terms(self, theta, fixed, settings):
        """Return the sums over steps, and the loss."""
        old, advantages, returns = fixed
        log_probs, values, entropy = self.log_probs_and_values(theta)
        ratio, real = (log_probs - old).exp(), self.real
        clipped = ratio.clip(1 - settings.clip, 1 + settings.clip)
        surrogate = -(real * torch.minimum(ratio * advantages, clipped * advantages)).sum()
        value_loss = 0.5 * (real * (values - returns) ** 2).sum()
        entropy = (real * entropy).sum()
        kl = (real * (ratio - 1 - ratio.log())).sum()
        far = (real * ((ratio - 1).abs() > settings.clip)).sum()
        loss = surrogate + settings.value_coefficient * value_loss
        loss = loss - settings.entropy_coefficient * entropy
        return (real.sum(), surrogate, value_loss, entropy, kl, far), loss


def plain_targets(policy, theta, trials):
    """Return log-probabilities, normalised advantages and standardised returns of each task."""
    rewards, valid = trials.rewards, trials.valid
    returns = np.zeros(rewards.shape)
    for task, trial in np.ndindex(len(rewards), rewards.shape[2]):
        real = valid[task, :, trial]
        left = rewards[task, real, trial]
        factors = GAMMA ** np.arange(len(left))
        returns[task, real, trial] = [
            left[step:] @ factors[: len(left) - step] for step in range(len(left))
        ]
    mean, deviation = np.zeros(STEPS), np.full(STEPS, 1e-6)
    for step in range(STEPS):
        real = returns[:, step][valid[:, step]]
        mean[step], deviation[step] = real.mean(), real.std() + 1e-6
    reached = valid.sum((0, 2))
    of_all = (np.average(deviation**2, weights=reached)) ** 0.5
    deviation[reached < reached.max()] = np.maximum(
        deviation[reached < reached.max()], 0.1 * of_all
    )
    found, everywhere = [], []
    for task in range(len(rewards)):
        plain = PlainTask(policy, trials, task)
        with torch.no_grad():
            log_probs, standardised, _ = plain.log_probs_and_values(torch.tensor(theta))
        values = mean[:, None] + deviation[:, None] * standardised.numpy()
        advantages = plain_advantages(rewards[task], values, valid[task])
        everywhere.extend(advantages[valid[task]])
        targets = (advantages + values - mean[:, None]) / deviation[:, None]
        found.append((log_probs, advantages, torch.tensor(targets)))
    scale = np.std(everywhere) + 1e-6
    return [
        (log_probs, torch.tensor((advantages - np.mean(everywhere)) / scale), targets)
        for log_probs, advantages, targets in found
    ]


def plain_advantages(rewards, values, valid):
    """Return the advantages of trials: only real steps are there, one after the other."""
    found = np.zeros(rewards.shape)
    for trial in range(rewards.shape[1]):
        real = valid[:, trial]
        value = np.append(values[real, trial], 0)
        residuals = rewards[real, trial] + GAMMA * value[1:] - value[:-1]
        factors = (GAMMA * GAE_LAMBDA) ** np.arange(len(residuals))
        found[real, trial] = [
            residuals[t:] @ factors[: len(residuals) - t] for t in range(len(residuals))
        ]
    return found


# terms of a task


def test_discounted_sums_by_hand():
    terms = np.array([[[1.0, 4.0], [2.0, 8.0], [3.0, 0.0]]])
    valid = np.ones(terms.shape, bool)
    sums = rl2.discounted_sums(terms, valid, 0.5)
    assert sums.tolist() == [[[2.75, 8.0], [3.5, 8.0], [3.0, 0.0]]]
    valid[0, 1, 0] = valid[0, 2, 1] = False  # where a trial stands still
    sums = rl2.discounted_sums(terms, valid, 0.5)
    assert sums.tolist() == [[[2.5, 8.0], [0.0, 8.0], [3.0, 0.0]]]


def test_return_terms_by_hand():
    # two trials of two steps, of the second of which the last step is padding
    fields = [np.array([[[1.0, 2.0], [4.0, 0.0]]]), np.array([[[True, True], [True, False]]])]
    trials = Trials(np.zeros(1), None, None, *fields)
    found = rl2.return_terms(trials, 0.5)
    # mean of the returns 5 and 2; counts; discounted returns 3 and 2, then 4; their squares
    assert (found * [1, 1, 1, 1, 1, 2**16, 2**16]).tolist() == [[3.5, 2, 1, 5, 4, 13, 16]]
    standard = rl2.standard_of(found[0, 1:])
    np.testing.assert_allclose(standard.mean, [2.5, 4.0])
    # the second step is reached by one trial only: a tenth of the deviation of all steps
    np.testing.assert_allclose(standard.deviation, [0.5, 0.1 * 0.5 * (2 / 3) ** 0.5], atol=2e-6)


def test_advantages_skip_padding():
    rng = np.random.default_rng(7)
    trials, _ = draw_trials(rng, DISCRETE)
    values = rng.standard_normal(trials.valid.shape) * trials.valid
    found = rl2.trial_advantages(trials.rewards, values, trials.valid, GAMMA, GAE_LAMBDA)
    for task in range(TASKS):
        expected = plain_advantages(trials.rewards[task], values[task], trials.valid[task])
        np.testing.assert_allclose(found[task], expected, atol=1e-12)
    assert not found[~trials.valid].any()


@POLICIES
def test_targets_agree_with_plain_loops(policy):
    rng = np.random.default_rng(8)
    trials, _ = draw_trials(rng, policy)
    theta = draw_theta(rng, policy)
    found = targets_of(policy, theta, trials)
    for task, expected in enumerate(plain_targets(policy, theta, trials)):
        real = trials.valid[task]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[task][real], other[torch.tensor(real)], atol=1e-9)
        assert not found.advantages[task][~real].any()
        assert not found.returns[task][~real].any()
    np.testing.assert_allclose(found.advantages[trials.valid].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(found.advantages[trials.valid].std(), 1, atol=1e-4)


@POLICIES
def test_the_gradient_of_ppo_is_that_of_autograd(policy):
    rng = np.random.default_rng(6)
    trials, _ = draw_trials(rng, policy)
    old = draw_theta(rng, policy)
    fixed = targets_of(policy, old, trials)
    theta = old + 0.1 * rng.standard_normal(old.size)
    terms = rl2.ppo_terms(policy, theta, trials, fixed, SETTINGS)
    assert 0 < terms[:, 5].sum() < trials.valid.sum()  # some ratios are clipped, some are not
    for task in range(TASKS):
        free = torch.tensor(theta, requires_grad=True)
        own = tuple(torch.tensor(field[task]) for field in fixed)
        expected, loss = PlainTask(policy, trials, task).terms(free, own, SETTINGS)
        loss.backward()
        np.testing.assert_allclose(terms[task, :6], [each.item() for each in expected], rtol=1e-9)
        np.testing.assert_allclose(terms[task, 7:], free.grad, atol=1e-11)
    squares = (terms[:, 7:] ** 2).sum(-1)
    np.testing.assert_allclose(terms[:, 6] * 2**16, squares, rtol=1e-12)


@POLICIES
def test_padding_counts_for_nothing(policy):
    rng = np.random.default_rng(9)
    trials, fields = draw_trials(rng, policy)
    theta = draw_theta(rng, policy)
    expected = rl2.ppo_terms(
        policy, 1.1 * theta, trials, targets_of(policy, theta, trials), SETTINGS
    )
    for name in ("observations", "actions"):
        padding = ~fields["valid"]
        fields[name][padding] = 1 if fields[name].dtype == np.int64 else 1e3
    other, _ = draw_trials(np.random.default_rng(9), policy, **fields)
    found = rl2.ppo_terms(policy, 1.1 * theta, other, targets_of(policy, theta, other), SETTINGS)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@POLICIES
def test_tensors_give_what_arrays_give(policy):
    rng = np.random.default_rng(5)
    trials, _ = draw_trials(rng, policy)
    theta = draw_theta(rng, policy)
    expected = rl2.ppo_terms(
        policy, 1.1 * theta, trials, targets_of(policy, theta, trials), SETTINGS
    )
    tensors = in_torch(trials)
    found = rl2.ppo_terms(
        policy,
        torch.tensor(1.1 * theta),
        tensors,
        targets_of(policy, torch.tensor(theta), tensors),
        SETTINGS,
    )
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("hidden", [64, 128])
@pytest.mark.parametrize("batch", [2, 3, 20])
@POLICIES
def test_single_precision_bits_of_a_task_do_not_depend_on_the_others(policy, batch, hidden):
    rng = np.random.default_rng(4)
    policy = replace(policy, network=replace(policy.network, hidden_size=hidden))
    discrete = policy.distribution is DISCRETE.distribution
    theta = policy.initial_parameters(rng)
    steps, tasks = 30, 13
    fields = {
        "observations": rng.standard_normal((tasks, steps, batch, 2), np.float32),
        "actions": rng.standard_normal((tasks, steps, batch, ACTIONS), np.float32),
        "rewards": rng.standard_normal((tasks, steps, batch), np.float32),
        "ended": rng.random((tasks, steps, batch)) < 0.1,
        "valid": rng.random((tasks, steps, batch)) < 0.9,
    }
    if discrete:
        fields["actions"] = fields["actions"].argmax(-1)
    memory = rng.standard_normal((tasks, batch, policy.memory_size), np.float32)
    sums = np.array([steps * batch, 1.0, 2.0 * rl2.SQUARES])

    def everything(chosen):
        some = {name: field[chosen] for name, field in fields.items()}
        trials = Trials(
            np.arange(tasks)[chosen],
            policy.network.inputs(**some),
            *(some[name] for name in ("actions", "rewards", "valid")),
        )
        returns = rl2.return_terms(trials, GAMMA)
        standard = rl2.Standard(np.zeros(steps), np.ones(steps))
        fixed = rl2.targets(policy, theta, trials, standard, GAMMA, GAE_LAMBDA)
        moments = rl2.advantage_terms(fixed, trials.valid)
        fixed = rl2.normalised(fixed, trials.valid, sums)
        terms = rl2.ppo_terms(policy, theta * np.float32(1.1), trials, fixed, SETTINGS)
        layers = policy.unflatten(theta)
        stepped = policy.network.step(layers, memory[chosen], some["observations"][:, 0])
        assert terms.dtype == np.float32
        return (trials.inputs, returns, *fixed, moments, terms, *stepped)

    together = everything(slice(None))
    for groups in ([slice(i, i + 1) for i in range(13)], [slice(0, 5), slice(5, 6), slice(6, 13)]):
        apart = [np.concatenate(parts) for parts in zip(*map(everything, groups), strict=True)]
        for whole, parts in zip(together, apart, strict=True):
            np.testing.assert_array_equal(whole, parts)


# the outer step


def algorithm(policy, **settings):
    return RL2(SETTINGS.model_copy(update=settings), policy, SAMPLING)


def state_of(theta):
    return {THETA: theta} | adam_state(theta.size)


def update(found, state, digests, reduce=add, seed=3, num_tasks=TASKS):
    outcome = found.update(state, digests, num_tasks, reduce, np.random.default_rng(seed))
    assert set(outcome.metrics) <= set(found.metrics)
    return outcome


def each_alone(trials):
    return [part_of(trials, [task]) for task in range(len(trials.task))]


def plain_update(policy, theta, trials, settings, seed=3):
    """Return theta after all epochs, and the terms of the last minibatch."""
    fixed = plain_targets(policy, theta, trials)
    rng, lengths = np.random.default_rng(seed), []
    at = torch.tensor(theta, requires_grad=True)
    optimizer = torch.optim.Adam([at], lr=settings.outer_lr)
    for _ in range(settings.epochs):
        order = rng.permutation(TASKS)
        for part in np.array_split(order, min(settings.minibatches, TASKS)):
            optimizer.zero_grad()
            columns, losses = zip(
                *(
                    PlainTask(policy, trials, task).terms(at, fixed[task], settings)
                    for task in part
                ),
                strict=True,
            )
            sums = [sum(column).item() for column in zip(*columns, strict=True)]
            (sum(losses) / sums[0]).backward()
            lengths.append(at.grad.norm().item())
            at.grad *= min(1.0, settings.max_gradient_norm / lengths[-1])
            optimizer.step()
    return at.detach(), [each / sums[0] for each in sums[1:]], lengths


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("minibatches", [1, 2, 10])
@POLICIES
def test_an_update_agrees_with_autograd_and_torch_adam(policy, minibatches, convert):
    rng = np.random.default_rng(10)
    trials, _ = draw_trials(rng, policy)
    theta = draw_theta(rng, policy)
    longest = 0.3 if policy is DISCRETE else 0.6
    ours = algorithm(policy, minibatches=minibatches, outer_lr=0.01, max_gradient_norm=longest)
    state = state_of(theta)
    before = {name: value.copy() for name, value in state.items()}
    digests = [Trials(*map(convert, each)) for each in each_alone(trials)]
    found = update(ours, state, digests)
    assert same_state(state, before)
    expected, last, lengths = plain_update(policy, theta, trials, ours.settings)
    assert min(lengths) < longest < max(lengths) or minibatches == 1  # some are scaled
    assert (found.accepted, found.reason) == (True, "")
    assert found.state[ADAM_STEPS] == len(lengths)
    np.testing.assert_allclose(found.state[THETA], expected, rtol=1e-6, atol=1e-8)
    assert abs(found.state[THETA] - theta).max() > 0.01
    names = ("surrogate_loss", "value_loss", "entropy", "kl_after", "clip_fraction")
    for name, value in zip(names, last, strict=True):
        assert found.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert found.metrics["gradient_norm"] == pytest.approx(lengths[0], rel=1e-6)
    mean_return = trials.rewards.sum(1).mean()
    assert found.metrics["trial_return"] == pytest.approx(mean_return)


exact = ExactSum(MPI.COMM_SELF, 60.0)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_an_update_has_the_same_bits_for_any_order_and_any_tasks_side_by_side(
    together, monkeypatch
):
    rng = np.random.default_rng(11)
    trials, _ = draw_trials(rng, CONTINUOUS)
    trials = Trials(
        *(each.astype(np.float32) if each.dtype == np.float64 else each for each in trials)
    )
    theta = CONTINUOUS.initial_parameters(rng)
    ours, state = algorithm(CONTINUOUS, minibatches=2), state_of(theta)
    expected = update(ours, state, each_alone(trials), exact)
    assert expected.accepted
    monkeypatch.setattr(rl2, "SIDE_BY_SIDE", together)
    found = update(ours, state, each_alone(trials)[::-1], exact)
    assert found.metrics == expected.metrics
    assert same_state(found.state, expected.state)


def test_agents_that_share_the_tasks_have_the_same_result():
    rng = np.random.default_rng(12)
    trials, _ = draw_trials(rng, DISCRETE)
    theta, ours, sums = draw_theta(rng, DISCRETE), algorithm(DISCRETE, minibatches=2), []

    def recording(terms):
        sums.append(add(terms))
        return sums[-1]

    whole = update(ours, state_of(theta), each_alone(trials), recording)
    assert whole.accepted
    # of agents with one task and with none, the terms are in part of the minibatches only
    for mine in ([1], []):
        replay, added = iter(sums), []

        def replaying(terms, replay=replay, added=added):
            total = next(replay)
            assert terms.shape[1:] == total.shape
            added.append(len(terms))
            return total

        digests = [part_of(trials, [task]) for task in mine]
        found = update(ours, state_of(theta), digests, replaying)
        assert next(replay, None) is None
        assert found.metrics == whole.metrics
        assert same_state(found.state, whole.state)
        epochs = [sum(added[3 + 2 * epoch : 5 + 2 * epoch]) for epoch in range(3)]
        assert epochs == [len(mine)] * 3


@pytest.mark.parametrize(
    ("fails_at", "reason"),
    [(1, "non-finite returns"), (3, "non-finite gradient"), (7, "non-finite gradient")],
)
def test_what_is_not_finite_rejects_the_whole_update(fails_at, reason):
    rng = np.random.default_rng(13)
    trials, _ = draw_trials(rng, CONTINUOUS)
    ours = algorithm(CONTINUOUS, minibatches=2)
    state = update(ours, state_of(draw_theta(rng, CONTINUOUS)), each_alone(trials)).state
    kept, calls = {name: value.copy() for name, value in state.items()}, []

    def failing(terms):
        calls.append(terms)
        bad = len(calls) - 1 == fails_at
        return add(terms) * (np.nan if bad else 1)

    found = update(ours, state, each_alone(trials), failing)
    assert (found.accepted, found.reason) == (False, reason)
    assert found.state is state
    assert same_state(state, kept)


def test_rewards_that_are_not_finite_reject_the_update():
    trials, fields = draw_trials(np.random.default_rng(13), DISCRETE)
    trials.rewards[1, 4, 0] = np.nan
    state = state_of(draw_theta(np.random.default_rng(0), DISCRETE))
    found = update(algorithm(DISCRETE), state, each_alone(trials), exact)
    assert (found.accepted, found.reason) == (False, "non-finite returns")
    assert found.state is state
    assert fields["rewards"] is trials.rewards


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_trials_that_differ_in_nothing_reject_the_update(convert):
    """Rewards of tasks and steps may differ: what was done made no difference."""
    trials, _ = draw_trials(np.random.default_rng(15), DISCRETE)
    tasks, steps, number = trials.rewards.shape
    rewards = np.random.default_rng(16).normal(size=(tasks, steps, 1)).astype(np.float32)
    rewards = np.repeat(rewards, number, 2)
    state = state_of(draw_theta(np.random.default_rng(0), DISCRETE))

    def updated(rewards, valid):
        changed = trials._replace(rewards=rewards * valid, valid=valid)
        arrays = Trials(*map(convert, changed))
        return update(algorithm(DISCRETE), state, each_alone(arrays))

    whole = np.ones_like(trials.valid)
    found = updated(rewards, whole)
    assert (found.accepted, found.reason) == (False, NO_SIGNAL)
    assert found.state is state
    shorter, other = whole.copy(), rewards.copy()
    shorter[1, -1, 0] = False
    other[1, 2, 0] += 1e-6
    assert updated(np.zeros_like(rewards), shorter).accepted
    assert updated(other, whole).accepted


def test_large_returns_can_be_summed():
    # squares of sums of rewards of 1000 would not fit, were it not for their unit
    trials, _ = draw_trials(np.random.default_rng(14), DISCRETE)
    trials = trials._replace(rewards=trials.rewards + 1e4 * trials.valid)
    state = state_of(draw_theta(np.random.default_rng(0), DISCRETE))
    found = update(algorithm(DISCRETE), state, each_alone(trials), exact)
    assert found.accepted
    assert found.metrics["trial_return"] == pytest.approx(trials.rewards.sum(1).mean())


# trials as they are played


def test_a_digest_is_the_episodes_one_after_the_other():
    problem = reference.Problem((2, ACTIONS), "tanh", True, ())
    rng = np.random.default_rng(15)
    phases = [reference.random_trajectories(rng, problem, TASKS, 3, TRIALS) for _ in range(3)]
    ours = algorithm(DISCRETE)
    assert (ours.num_phases(False), ours.num_phases(True)) == (3, 3)
    state = ours.initial_state(np.random.default_rng(0))
    found = ours.digest(state, phases)
    assert found.task.tolist() == [0, 1, 2]
    for task, phase, trial in np.ndindex(TASKS, 3, TRIALS):
        episode, length = phases[phase], phases[phase].lengths[task, trial]
        for step in range(3):
            at = (task, 3 * phase + step, trial)
            assert found.valid[at] == (step < length)
            assert found.actions[at] == episode.actions[task, step, trial]
            assert found.rewards[at] == episode.rewards[task, step, trial]
            seen = episode.observations[task, step, trial].tolist()
            assert found.inputs[at][:2].tolist() == seen
            if step or not phase:
                continue
            # the first step of an episode is told of the end of the one before
            before = phases[phase - 1]
            last = before.lengths[task, trial] - 1
            told = np.zeros(2 + ACTIONS + 2)
            told[:2] = before.observations[task, last, trial]
            told[2 + before.actions[task, last, trial]] = 1
            told[2 + ACTIONS :] = before.rewards[task, last, trial], 1
            assert found.inputs[at][2:].tolist() == told.tolist()
    alone = ours.digest(state, [Trajectories(*(field[[1]] for field in each)) for each in phases])
    assert np.array_equal(alone.inputs[0], found.inputs[1])


@pytest.mark.parametrize(
    "env",
    [
        ["env.name=navigation", "horizon=6"],
        ["env.name=tabular_mdp", "horizon=6"],
        ["env.name=CartPole-v1", "env.kwargs={task_ranges: {length: [0.3, 0.8]}}", "horizon=14"],
    ],
    ids=["navigation", "tabular_mdp", "cartpole"],
)
def test_what_agents_compute_of_trials_is_what_was_played(env):
    words = ["algorithm.name=rl2", "algorithm.episodes_per_trial=3", "policy.hidden_size=16"]
    config = load_config(None, [*words, *env, "fast_batch_size=4"])
    environment = make_env(config, 4, num_tasks=2)
    job = prepare(config, environment)
    ours, rng = job.algorithm, np.random.default_rng(0)
    state = ours.initial_state(rng)
    state[THETA] += 0.3 * rng.standard_normal(state[THETA].size).astype(np.float32)
    tasks = environment.sample_tasks(rng, 2)
    phases = [
        trajectories(batches)
        for batches, _ in collect(
            ours,
            environment,
            ours.played(state),
            tasks,
            keys=[(0, 0, 0), (0, 0, 1)],
            evaluation=False,
            dtype=job.dtype,
        )
    ]
    if "CartPole" in env[0]:
        assert len(np.unique([phase.lengths for phase in phases])) > 2
    trials = ours.digest(state, phases)
    standard = rl2.Standard(np.zeros(trials.valid.shape[1]), np.ones(trials.valid.shape[1]))
    fixed = rl2.targets(ours.policy, state[THETA], trials, standard, 0.9, 0.9)
    played = np.concatenate([phase.log_probs for phase in phases], axis=1)
    assert played[trials.valid].std() > 0.01
    np.testing.assert_allclose(
        fixed.log_probs[trials.valid], played[trials.valid], rtol=1e-4, atol=1e-5
    )
    assert not any(phase.advantages.any() for phase in phases)  # agents compute them
