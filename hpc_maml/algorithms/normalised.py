"""Any algorithm on normalised observations: their statistics become a part of its state."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from hpc_maml.algorithms.algorithm import Algorithm, Reduce, State, Update
from hpc_maml.policies.network import Array
from hpc_maml.sampling.normalisation import (
    NAMES,
    initial_statistics,
    moments,
    normaliser,
    updated,
)
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories


class NormalisedDigest(NamedTuple):
    """The digest of the algorithm, and what the statistics need."""

    inner: Any
    moments: Array  # [G, 1 + 2 obs_dim]


class Normalised(Algorithm):
    """An algorithm whose policy sees observations on a common scale, alike in play and in losses.

    The statistics are those of the iterations before; a rejected update leaves them too.
    """

    def __init__(self, algorithm: Algorithm, observation_size: int) -> None:
        """Wrap an algorithm."""
        super().__init__(algorithm.settings, algorithm.policy, algorithm.sampling)
        self.algorithm = algorithm
        self.observation_size = observation_size
        for name in ("metrics", "recurrent", "adapts_parameters", "phase"):
            setattr(self, name, getattr(algorithm, name))

    def num_phases(self, evaluation: bool) -> int:
        """Return that of the algorithm."""
        return self.algorithm.num_phases(evaluation)

    def test_words(self) -> str:
        """Say what the algorithm says."""
        return self.algorithm.test_words()

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with, and statistics of no observations."""
        return self.algorithm.initial_state(rng) | initial_statistics(self.observation_size)

    def played(self, state: State) -> State:
        """Return the part of the state that observers need."""
        return self.algorithm.played(state) | {name: state[name] for name in NAMES}

    def begin(self, played: State, num_tasks: int) -> Play:
        """Return what the first phase of G tasks is played with."""
        return self.algorithm.begin(played, num_tasks)._replace(normaliser=normaliser(played))

    def adapt(
        self, played: State, play: Play, episodes: Trajectories, phase: int, *, evaluation: bool
    ) -> Play:
        """Return what the phase after ``phase`` is played with."""
        seen = _seen(played, episodes)
        return self.algorithm.adapt(played, play, seen, phase, evaluation=evaluation)

    def advantages(self, episodes: Trajectories) -> np.ndarray:
        """Return those of the algorithm, whose baseline sees the observations as they are."""
        return self.algorithm.advantages(episodes)

    def digest(self, state: State, phases: Sequence[Trajectories]) -> NormalisedDigest:
        """Return the digest of the algorithm, with the moments of the observations."""
        inner = self.algorithm.digest(state, [_seen(state, phase) for phase in phases])
        return NormalisedDigest(inner, moments(phases, state["observation_mean"]))

    def update(
        self,
        state: State,
        digests: Iterable[NormalisedDigest],
        num_tasks: int,
        reduce: Reduce,
        rng: np.random.Generator,
    ) -> Update:
        """Return the outcome of the algorithm's outer step, then with newer statistics."""
        terms = [digest.moments for digest in digests]
        terms = terms or [np.zeros((0, 1 + 2 * self.observation_size))]
        sums = reduce(array_namespace(*terms).concat(terms))
        outcome = self.algorithm.update(state, _Inner(digests), num_tasks, reduce, rng)
        if not outcome.accepted:
            return outcome
        if not np.isfinite(sums).all():
            return Update(state, "observations too large to be normalised", outcome.metrics)
        return Update(outcome.state | updated(state, sums), "", outcome.metrics)


class _Inner:
    """The digests of the algorithm, to go through more than once."""

    def __init__(self, digests: Iterable[NormalisedDigest]) -> None:
        self.digests = digests

    def __iter__(self) -> Iterator[Any]:
        return (digest.inner for digest in self.digests)


def _seen(state: State, episodes: Trajectories) -> Trajectories:
    """Return episodes with the observations that the policy sees."""
    flat = episodes.observations.reshape(*episodes.rewards.shape, -1)
    return episodes._replace(observations=normaliser(state)(flat))
