"""RL^2 (Duan et al. 2016; Wang et al. 2016): PPO on whole trials of a recurrent policy.

A trial is one or more episodes of a task. The policy sees what it did and the result, and its
memory lives on from one episode to the next: learning a task is what its memory does. Whatever
concerns several tasks is a sum of terms of each.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVarTuple

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from hpc_maml.algorithms.adam import adam_state, adam_step
from hpc_maml.algorithms.algorithm import (
    GRADIENT_METRICS,
    NAME,
    NO_SIGNAL,
    THETA,
    Algorithm,
    AlgorithmSettings,
    Metric,
    Reduce,
    State,
    Update,
    gradient_metrics,
    norm,
    squared_norms,
)
from hpc_maml.policies.gru import Unrolled
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories, valid_steps
from hpc_maml.settings import NonNegative, Positive

Rest = TypeVarTuple("Rest")

SIDE_BY_SIDE = 10  # tasks whose terms are computed together; no bit depends on it
SQUARES = 2.0**-16  # unit of sums of squares: they must stay within what exact sums can hold
SMALLEST_DEVIATION = 1e-6
OF_ALL_STEPS = 0.1  # of their deviation, a step that few trials reach has at least


class RL2Settings(AlgorithmSettings):
    """The keys of RL^2."""

    name: str = Field("rl2", description=NAME)
    episodes_per_trial: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="episodes of a trial, from one to the next of which the memory is kept"
    )
    outer_lr: Positive = Field(1.0e-3, description="learning rate of Adam")
    epochs: Annotated[int, Field(ge=1, le=10000)] = Field(
        3, description="passes over the trials of one iteration"
    )
    minibatches: Annotated[int, Field(ge=1, le=8192)] = Field(
        10, description="steps of Adam in each pass, each on a part of the tasks"
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="importance ratios are clipped to 1 - clip and 1 + clip"
    )
    value_coefficient: NonNegative = Field(0.5, description="coefficient of the value loss")
    entropy_coefficient: NonNegative = Field(0.01, description="coefficient of the entropy bonus")
    max_gradient_norm: Positive = Field(
        0.5, description="gradients with a larger norm are scaled to this norm"
    )


METRICS = {
    "trial_return": Metric(
        "reward", "undiscounted return of a trial, mean of tasks", console="trial {:.2f}"
    ),
    "surrogate_loss": Metric("1", "clipped surrogate loss, of the last minibatch"),
    "value_loss_before": Metric("1", "loss of the standardised value, of the first minibatch"),
    "value_loss": Metric("1", "loss of the standardised value, of the last minibatch"),
    "entropy": Metric("nat", "entropy of the policy, of the last minibatch"),
    "kl_after": Metric(
        "nat", "estimated KL, old to new policy, of the last minibatch", console="kl {:.4f}"
    ),
    "clip_fraction": Metric(
        "1", "fraction of the steps whose ratio is clipped, of the last minibatch"
    ),
    **GRADIENT_METRICS,
}


class Trials(NamedTuple):
    """The trials of G tasks: T steps, all episodes of a trial one after the other, of B trials."""

    task: Array  # [G], index within the iteration
    inputs: Array  # [G, T, B, input_size], see GRU.inputs
    actions: Array  # [G, T, B], or [G, T, B, action_size]
    rewards: Array  # [G, T, B], 0 in padding
    valid: Array  # [G, T, B], false in padding


class Targets(NamedTuple):
    """What the updates of an iteration hold fixed."""

    log_probs: Array  # [G, T, B], of the policy before them
    advantages: Array  # [G, T, B]
    returns: Array  # [G, T, B], standardised


class Standard(NamedTuple):
    """Mean and deviation over all trials of the discounted returns from each step, ``[T]``."""

    mean: np.ndarray
    deviation: np.ndarray


class RL2(Algorithm):
    """RL^2 with PPO."""

    Settings: ClassVar[type[Any]] = RL2Settings
    metrics = METRICS
    recurrent = True
    adapts_parameters = False
    phase = "episode"
    defaults: ClassVar[Any] = {"policy": {"name": "gru"}, "gae_lambda": 0.3}

    settings: RL2Settings

    def num_phases(self, evaluation: bool) -> int:
        """Return the episodes of a trial, in training and in meta-tests."""
        return self.settings.episodes_per_trial

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with: the policy, and moments of Adam."""
        return super().initial_state(rng) | adam_state(self.policy.size)

    def begin(self, played: State, num_tasks: int) -> Play:
        """Return an empty memory for each trial."""
        shape = (num_tasks, self.sampling.episodes, self.policy.memory_size)
        return super().begin(played, num_tasks)._replace(memory=np.zeros(shape, np.float32))

    def advantages(self, episodes: Trajectories) -> np.ndarray:
        """Return zeros ``[T, B]``: the agents compute them, of whole trials."""
        return np.zeros_like(episodes.rewards)

    def digest(self, state: State, phases: Sequence[Trajectories]) -> Trials:
        """Return the episodes of each trial one after the other."""
        xp = array_namespace(phases[0].rewards)
        horizon = phases[0].rewards.shape[-2]

        def joined(of: Callable[[Trajectories], Array]) -> Array:
            return xp.concat([of(phase) for phase in phases], axis=1)

        valid = joined(lambda phase: valid_steps(phase.lengths, horizon))
        actions = joined(lambda phase: phase.actions)
        rewards = joined(lambda phase: phase.rewards)
        inputs = self.policy.network.inputs(
            joined(lambda phase: phase.observations),
            actions,
            rewards,
            joined(lambda phase: phase.terminated | phase.truncated),
            valid,
        )
        return Trials(phases[0].task, inputs, actions, rewards, valid)

    def update(
        self,
        state: State,
        digests: Iterable[Trials],
        num_tasks: int,
        reduce: Reduce,
        rng: np.random.Generator,
    ) -> Update:
        """Take the steps of Adam of all epochs (Schulman et al. 2017, algorithm 1)."""
        settings = self.settings
        found: dict[str, float] = {}
        groups = [trials for (trials,) in side_by_side((each,) for each in digests)]

        def total(terms: Iterable[Array], width: int) -> np.ndarray:
            listed = list(terms) or [np.zeros((0, width), np.float32)]
            return reduce(array_namespace(*listed).concat(listed))

        # what every agent must know, also one without tasks
        lengths, differing = total([trial_terms(group) for group in groups], 2)
        steps = int(lengths / num_tasks)
        sums = total([return_terms(group, self.sampling.gamma) for group in groups], 1 + 3 * steps)
        found["trial_return"] = float(sums[0] / num_tasks)
        if not np.isfinite(sums).all():
            return Update(state, "non-finite returns", found)
        if not differing:  # advantages would be rounding, or what the value does not fit
            return Update(state, NO_SIGNAL, found)
        targets = self._targets(state[THETA], groups, standard_of(sums[1:]), total)

        theta, moments = state[THETA], state
        for _ in range(settings.epochs):
            parts = np.array_split(rng.permutation(num_tasks), min(settings.minibatches, num_tasks))
            for part in parts:
                terms = (
                    ppo_terms(self.policy, like(trials, theta), trials, fixed, settings)
                    for trials, fixed in side_by_side(chosen(groups, targets, part))
                )
                sums = total(terms, 7 + theta.size)
                means = sums / sums[0]
                gradient, length = means[7:], norm(means[7:])
                if "gradient_norm" not in found:
                    of_tasks = sums[6:] / len(part)
                    square = float(of_tasks[0]) / SQUARES
                    found |= gradient_metrics(of_tasks[1:], square, len(part))
                    found["gradient_norm"] = length
                last = dict(zip(LOSSES, means[1:6].tolist(), strict=True))
                found.setdefault("value_loss_before", last["value_loss"])
                found |= last
                if not np.isfinite(gradient).all():
                    return Update(state, "non-finite gradient", found)
                gradient = gradient * min(1.0, settings.max_gradient_norm / (length + 1e-12))
                theta, moments = adam_step(theta, gradient, moments, settings.outer_lr)
        return Update(state | moments | {THETA: theta}, "", found)

    def _targets(
        self,
        theta: np.ndarray,
        groups: Sequence[Trials],
        standard: Standard,
        total: Callable[[Iterable[Array], int], np.ndarray],
    ) -> list[Targets]:
        """Return what the updates hold fixed, with advantages normalised over all tasks."""
        gamma, gae_lambda = self.sampling.gamma, self.sampling.gae_lambda
        found = [
            targets(self.policy, like(trials, theta), trials, standard, gamma, gae_lambda)
            for trials in groups
        ]
        pairs = list(zip(found, groups, strict=True))
        sums = total([advantage_terms(fixed, trials.valid) for fixed, trials in pairs], 3)
        return [normalised(fixed, trials.valid, sums) for fixed, trials in pairs]


LOSSES = ("surrogate_loss", "value_loss", "entropy", "kl_after", "clip_fraction")


def side_by_side(parts: Iterable[tuple[Trials, *Rest]]) -> Iterable[tuple[Trials, *Rest]]:
    """Yield some tasks together: a step of time in Python costs as much for them as for one."""
    waiting: list[tuple[Trials, *Rest]] = []
    for part in parts:
        waiting.append(part)
        if sum(len(trials.task) for trials, *_ in waiting) >= SIDE_BY_SIDE:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[tuple[Any, ...]]) -> Any:
    """Return named tuples of arrays ``[G, ...]`` joined over G, each kind by itself."""
    xp = array_namespace(parts[0][0].rewards)
    return tuple(
        type(kind[0])(*(xp.concat(list(fields)) for fields in zip(*kind, strict=True)))
        for kind in zip(*parts, strict=True)
    )


def chosen(
    groups: Sequence[Trials], targets: Sequence[Targets], tasks: np.ndarray
) -> Iterable[tuple[Trials, Targets]]:
    """Yield those tasks of each group that are among the chosen."""
    for trials, fixed in zip(groups, targets, strict=True):
        rows = [row for row, task in enumerate(trials.task.tolist()) if task in tasks]
        if rows:
            yield (
                Trials(*(field[rows] for field in trials)),
                Targets(*(field[rows] for field in fixed)),
            )


def discounted_sums(terms: Array, valid: Array, factor: float) -> Array:
    """Return sums ``[..., T, B]`` over this and all later steps, discounted by ``factor``.

    In padding they are 0, and a trial stands still.
    """
    xp = array_namespace(terms)
    sums = xp.zeros_like(terms)
    total = sums[..., 0, :]
    for step in reversed(range(terms.shape[-2])):
        real = valid[..., step, :]
        total = xp.where(real, terms[..., step, :] + factor * total, total)
        sums[..., step, :] = xp.where(real, total, 0)
    return sums


def trial_terms(trials: Trials) -> Array:
    """Return the steps of a trial, T, and 1 where the trials of a task differ in their rewards.

    For each task, ``[G, 2]``. A trial that ends sooner differs too.
    """
    xp = array_namespace(trials.rewards)
    differ = (trials.rewards != trials.rewards[..., :1]) | (trials.valid != trials.valid[..., :1])
    differing = xp.astype(xp.any(differ, axis=(1, 2)), trials.rewards.dtype)
    return xp.stack([xp.zeros_like(differing) + trials.rewards.shape[-2], differing], axis=-1)


def return_terms(trials: Trials, gamma: float) -> Array:
    """Return mean return, and count, sum and squares of the returns from each step ``[G, 1 + 3T]``.

    The mean is undiscounted. The squares are in units of ``1 / SQUARES``.
    """
    xp = array_namespace(trials.rewards)
    plain = xp.astype(trials.rewards, xp.float64).sum(-2).mean(-1)[..., None]
    returns = discounted_sums(trials.rewards, trials.valid, gamma)
    counts = xp.astype(trials.valid, returns.dtype).sum(-1)
    parts = (counts, returns.sum(-1), (returns * returns).sum(-1) * SQUARES)
    return xp.concat([plain, *(xp.astype(part, xp.float64) for part in parts)], axis=-1)


def standard_of(sums: np.ndarray) -> Standard:
    """Return the standard of sums ``[3T]``.

    Of a step that not all trials reach, few returns would have a deviation by chance, and a single
    one has none.
    """
    counts = sums[: len(sums) // 3]
    mean, deviation = _mean_and_deviation(*np.split(sums, 3))
    of_all = np.sqrt((counts * deviation**2).sum() / counts.sum())
    least = np.where(counts < counts.max(), OF_ALL_STEPS * of_all, 0)
    return Standard(mean, np.maximum(deviation, least))


def targets(
    policy: Policy,
    theta: Array,
    trials: Trials,
    standard: Standard,
    gamma: float,
    gae_lambda: float,
) -> Targets:
    """Return the targets, with advantages that are not yet normalised.

    The network's value is that of the return less its mean, over its deviation: so its target is
    of order 1 in any environment, and does not depend on how much of the trial is left.
    """
    xp = array_namespace(trials.rewards)
    at = policy.network.unroll(policy.unflatten(theta), trials.inputs, trials.valid)
    mean, deviation = (
        xp.asarray(part[:, None], dtype=at.values.dtype, device=device(at.values))
        for part in standard
    )
    values = (mean + deviation * at.values) * trials.valid
    found = trial_advantages(trials.rewards, values, trials.valid, gamma, gae_lambda)
    returns = xp.where(trials.valid, (found + values - mean) / deviation, 0)
    return Targets(_log_probs(policy, at, trials.actions), found, returns)


def trial_advantages(
    rewards: Array, values: Array, valid: Array, gamma: float, gae_lambda: float
) -> Array:
    """Return advantages over whole trials ``[..., T, B]`` (Schulman et al. 2016, eq. 16).

    Nothing is to come after the last step. In padding a trial stands still.
    """
    xp = array_namespace(rewards)
    advantages = xp.zeros_like(rewards)
    next_value = advantage = xp.zeros_like(rewards[..., 0, :])
    for step in reversed(range(rewards.shape[-2])):
        value, real = values[..., step, :], valid[..., step, :]
        residual = rewards[..., step, :] + gamma * next_value - value
        here = residual + gamma * gae_lambda * advantage
        advantages[..., step, :] = xp.where(real, here, 0)
        advantage = xp.where(real, here, advantage)
        next_value = xp.where(real, value, next_value)
    return advantages


def advantage_terms(targets: Targets, valid: Array) -> Array:
    """Return count, sum and squares of the advantages, ``[G, 3]``."""
    xp = array_namespace(valid)
    advantages = targets.advantages
    squares = advantages * advantages * SQUARES
    parts = (xp.astype(valid, advantages.dtype), advantages, squares)
    return xp.stack([_sum(part) for part in parts], axis=-1)


def normalised(targets: Targets, valid: Array, sums: np.ndarray) -> Targets:
    """Return the targets with advantages of mean 0 and deviation 1 over all tasks."""
    xp = array_namespace(valid)
    mean, deviation = (float(part) for part in _mean_and_deviation(*sums))
    advantages = xp.where(valid, (targets.advantages - mean) / deviation, 0)
    return targets._replace(advantages=advantages)


def ppo_terms(
    policy: Policy, theta: Array, trials: Trials, targets: Targets, settings: RL2Settings
) -> Array:
    """Return sums over steps ``[G, 7 + P]`` of PPO's loss (Schulman et al. 2017, eq. 9).

    Before the gradient stand the count, surrogate loss, value loss, entropy, KL divergence from the
    policy before the updates (estimated), how many ratios are clipped, and the gradient's squared
    norm in units of ``1 / SQUARES``.
    """
    xp = array_namespace(trials.rewards)
    clip, layers = settings.clip, policy.unflatten(theta)
    at = policy.network.unroll(layers, trials.inputs, trials.valid)
    valid = xp.astype(trials.valid, at.values.dtype)
    change = (_log_probs(policy, at, trials.actions) - targets.log_probs) * valid
    ratio, advantages = xp.exp(change), targets.advantages
    bounded = xp.clip(ratio, 1 - clip, 1 + clip)
    counts = ratio * advantages <= bounded * advantages  # the smaller of the two
    surrogate = xp.where(counts, ratio, bounded) * advantages
    error = (at.values - targets.returns) * valid

    parameters = _parameters(policy, at)
    entropy = policy.distribution.entropy(parameters)
    entropy = (entropy + xp.zeros_like(_rows(valid))).reshape(valid.shape)
    by_parameters = policy.distribution.sum(
        policy.distribution.log_prob_gradient(
            parameters,
            _rows(trials.actions, valid.ndim),
            _rows(xp.where(counts, -ratio * advantages, 0)),
        ),
        policy.distribution.entropy_gradient(
            parameters, -settings.entropy_coefficient * _rows(valid)
        ),
    )
    outputs, own = policy.distribution.split(layers, by_parameters)
    gradients = policy.network.pull_back(
        at, outputs.reshape(at.outputs.shape), settings.value_coefficient * error
    )
    # the distribution's own parameters have no task dimension
    own = [each + xp.zeros_like(gradients[0][..., :1]) for each in own]
    parts = (
        valid,
        -surrogate,
        0.5 * error * error,
        entropy * valid,
        xp.expm1(change) - change,
        xp.astype(xp.abs(ratio - 1) > clip, valid.dtype),
    )
    sums = [_sum(part)[..., None] for part in parts]
    gradient = xp.concat([*gradients, *own], axis=-1)
    return xp.concat([*sums, squared_norms(gradient) * SQUARES, gradient], axis=-1)


def like(trials: Trials, theta: np.ndarray) -> Array:
    """Return theta ``[P]`` in the type and on the device of the trials."""
    xp = array_namespace(trials.inputs)
    return xp.asarray(theta, dtype=trials.inputs.dtype, device=device(trials.inputs))


def _parameters(policy: Policy, at: Unrolled) -> Any:
    """Return the parameters of the distribution at all steps, as rows ``[G, T * B]``."""
    return policy.distribution.parameters(at.layers, _rows(at.outputs, at.values.ndim))


def _log_probs(policy: Policy, at: Unrolled, actions: Array) -> Array:
    rows = _rows(actions, at.values.ndim)
    return policy.distribution.log_prob(_parameters(policy, at), rows).reshape(at.values.shape)


def _rows(array: Array, dimensions: int | None = None) -> Array:
    """Return ``[..., T, B, *rest]`` as ``[..., T * B, *rest]``; ``dimensions`` without the rest."""
    dimensions = dimensions or array.ndim
    leading, rest = array.shape[: dimensions - 2], array.shape[dimensions:]
    return array.reshape(*leading, -1, *rest)


def _sum(array: Array) -> Array:
    """Return the sums ``[...]`` over the steps of arrays ``[..., T, B]``."""
    return array.reshape(*array.shape[:-2], -1).sum(-1)


def _mean_and_deviation(
    count: np.ndarray, total: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    count = np.maximum(count, 1)
    mean = total / count
    variance = np.maximum(squares / SQUARES / count - mean * mean, 0)
    return mean, np.sqrt(variance) + SMALLEST_DEVIATION
