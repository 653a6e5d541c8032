"""Episodes of a policy in an environment."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hpc_maml.policies.distributions import Distribution, Parameters
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.normalisation import Normaliser
from hpc_maml.sampling.trajectory import valid_steps

if TYPE_CHECKING:  # what reads a run imports no environment
    from hpc_maml.envs.batched import TaskVectorEnv


class Play(NamedTuple):
    """What the episodes of G tasks are played with.

    Attributes:
        parameters: of the policies, ``[G, P]``
        memory: of a recurrent policy, ``[G, B, M]``
        normaliser: of observations, before the policy sees them
    """

    parameters: np.ndarray
    memory: np.ndarray | None = None
    normaliser: Normaliser | None = None


def roll_out(
    policy: Policy,
    env: "TaskVectorEnv",
    play: Play,
    action_generators: Sequence[np.random.Generator],
    env_generators: Sequence[np.random.Generator],
    batches: np.ndarray,
    give_way: Callable[[], None] = lambda: None,
    *,
    mean_actions: bool = False,
    chosen: np.ndarray | None = None,
) -> np.ndarray | None:
    """Fill ``batches`` ``[G]`` with one episode per environment, for G tasks side by side.

    Returns the memory ``[G, B, M]`` of a recurrent policy after the episodes. Each task has
    generators of its own, so that its episodes do not depend on what stands beside it. With
    ``mean_actions`` the policy does not sample. Of episodes that are not ``chosen``, bool
    ``[G, B]``, all stays zero. Fills everything that comes from the environment
    and the policy; ``advantages`` stay zero. Calls ``give_way`` after every step.
    """
    num_tasks, horizon, episodes = batches["rewards"].shape
    distribution = policy.distribution
    layers, memory = policy.unflatten(play.parameters), play.memory
    noise = np.stack(
        [distribution.noise(generator, (horizon, episodes)) for generator in action_generators],
        axis=1,
    )  # [T, G, B, ...]
    played = np.ones((num_tasks, episodes), bool) if chosen is None else chosen
    options = {"generators": list(env_generators), "reset_mask": played.ravel()}
    observations, _ = env.reset(options=options)
    alive = played.copy()
    given = []  # the parameters of the distribution at each step
    record = {name: batches[name] for name in batches.dtype.fields or ()}  # views
    for step in range(horizon):
        observations = observations.reshape(num_tasks, episodes, -1)
        seen = play.normaliser(observations) if play.normaliser else observations
        parameters, after = policy.step(layers, memory, seen)
        given.append(parameters)
        actions = (
            distribution.most_probable(parameters)
            if mean_actions
            else distribution.sample(parameters, noise[step])
        )
        record["observations"][:, step] = observations
        record["actions"][:, step] = actions
        finite = np.isfinite(actions.sum())  # one pass; no harm where the sum overflows
        observations, rewards, terminated, truncated, infos = env.step(
            (actions if finite else np.nan_to_num(actions)).reshape(env.action_space.shape)
        )
        if "diverged" in infos:
            record["diverged"] += infos["diverged"].reshape(alive.shape).sum(1)
        if "success" in record:
            record["success"] |= alive & infos["success"].reshape(alive.shape)
        record["rewards"][:, step] = rewards.reshape(alive.shape)
        record["terminated"][:, step] = terminated.reshape(alive.shape)
        record["truncated"][:, step] = truncated.reshape(alive.shape)
        ended = (terminated | truncated).reshape(alive.shape)
        if after is not None:  # what an episode that has ended keeps does not change
            after = policy.network.remember(after, actions, rewards.reshape(alive.shape), ended)
            memory = np.where(alive[..., None], after, memory)  # type: ignore[assignment]
        if np.count_nonzero(ended):
            alive &= ~ended
            if not alive.any():
                break
        give_way()
    _complete(record, distribution, given, played)
    return memory


def _complete(
    record: Mapping[str, np.ndarray],
    distribution: Distribution,
    given: Sequence[Parameters],
    played: np.ndarray,
) -> None:
    """Fill in lengths, the log-probabilities of the steps taken, and zeros after each episode."""
    # all steps at once, as one step alone is mostly the overhead of NumPy
    taken = slice(len(given))
    ended = (record["terminated"] | record["truncated"])[:, taken]
    record["lengths"][...] = played * np.where(ended.any(1), ended.argmax(1) + 1, len(given))
    log_probs = distribution.log_prob(
        distribution.stacked(given, axis=1), record["actions"][:, taken]
    )
    record["log_probs"][:, taken] = log_probs
    # An inner step has diverged: it must show, and make the agents reject the update. Actions would
    # not tell, as choices are integers even where their probabilities are NaN.
    record["rewards"][:, taken][~np.isfinite(log_probs)] = np.nan
    padding = ~valid_steps(record["lengths"], record["rewards"].shape[1])
    if padding.any():
        for name in ("observations", "actions", "log_probs"):
            record[name][padding] = 0
