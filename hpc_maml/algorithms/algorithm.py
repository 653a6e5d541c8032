"""What an algorithm is: a class of one file, which knows neither MPI nor files.

A phase of play ends, the task learns something, and the next phase is played with it: adapted
parameters, or a memory. Then every task is digested, and what outlives the iteration, the state, is
updated from sums over tasks. Observers call ``begin`` and ``adapt``, the ranks that take the outer
step (agents, or all of a team) ``digest`` and ``update``, the principal ``initial_state``.

The promises of a run rest on these rules, which tests/test_conformance.py checks:

- On a CPU ``digest`` sees one task at a time, so that its shapes never depend on the ranks.
- Nothing crosses tasks but through ``reduce``; what follows from a sum is computed elementwise in
  NumPy, by every rank alike.
- Random numbers come from the generator that is handed in, and from nowhere else.
- ``update`` returns a new state and leaves the old one as it was; a rejected update returns it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.advantages import task_advantages
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories
from hpc_maml.settings import Section

State = dict[str, np.ndarray]
"""All that outlives an iteration, by name; ``theta`` [P] are the parameters of the policy."""

Reduce = Callable[[Array], np.ndarray]
"""Sum terms [G, n] of this agent's tasks over the tasks of all agents, exactly: float64 [n]."""

THETA = "theta"


NAME = "maml_trpo, promp, rl2, pretrain, or module:Class"  # what algorithm.name is


class AlgorithmSettings(Section):
    """The keys of every algorithm."""

    name: str = Field("maml_trpo", description=NAME)


@dataclass(frozen=True)
class Metric:
    """A number recorded once per iteration."""

    unit: str
    description: str
    wall_clock: bool = False  # depends on time and place, not on configuration and seed
    dtype: type = np.float64
    shape: str = "[iteration]"
    console: str = ""  # how the line of an iteration shows it, like "kl {:.4f}"; empty: not at all
    limit: str = ""  # the setting of the algorithm that bounds it, for pictures


@dataclass(frozen=True)
class Sampling:
    """What an algorithm is told of the episodes of a task.

    Attributes:
        episodes: of each phase, B
        gamma: the discount of a step
        gae_lambda: lambda of generalised advantage estimation
        test_updates: inner steps of a meta-test
        test_step_sizes: of the inner steps of a meta-test after the first, or the size of each
        last_test_actions: of the last phase of a meta-test
    """

    episodes: int
    gamma: float
    gae_lambda: float
    test_updates: int
    test_step_sizes: Literal["halved", "constant"] | Sequence[float]
    last_test_actions: Literal["sampled", "mean"] = "sampled"


@dataclass(frozen=True)
class Update:
    """The outcome of an outer step.

    Attributes:
        state: the new state, or the old one of a step that is rejected
        reason: why it is rejected; empty where it is accepted
        metrics: values by the names in ``Algorithm.metrics``
    """

    state: State
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Tell whether the state is a new one."""
        return not self.reason


class Algorithm(ABC):
    """An algorithm of meta-reinforcement learning, for one policy."""

    Settings: ClassVar[type[AlgorithmSettings]] = AlgorithmSettings
    metrics: ClassVar[Mapping[str, Metric]] = {}  # the columns it adds to those of every run
    defaults: ClassVar[Mapping[str, Any]] = {}  # of configuration keys outside its own section
    recurrent: ClassVar[bool] = False  # it needs a policy with a memory, and can use no other
    adapts_parameters: ClassVar[bool] = True  # phases of a task are played with other parameters
    # What a phase is called in a meta-test: "updates" before it, or the number of an "episode".
    phase: ClassVar[Literal["updates", "episode"]] = "updates"

    def __init__(self, settings: Any, policy: Policy, sampling: Sampling) -> None:
        """Keep the settings; raises InputError for a policy that the algorithm cannot use."""
        self.settings = settings
        self.policy = policy
        self.sampling = sampling

    @abstractmethod
    def num_phases(self, evaluation: bool) -> int:
        """Return how often the episodes of a task are rolled out, in training or in a meta-test."""

    @abstractmethod
    def digest(self, state: State, phases: Sequence[Trajectories]) -> Any:
        """Return what ``update`` needs of G tasks, whose arrays have the leading dimension G.

        On a CPU G is 1; on a GPU it is the number of tasks of the agent, and all arrays, the state
        included, are torch tensors there. May be called again for the same tasks, so that not all
        digests need be kept in memory.
        """

    @abstractmethod
    def update(
        self,
        state: State,
        digests: Iterable[Any],
        num_tasks: int,
        reduce: Reduce,
        rng: np.random.Generator,
    ) -> Update:
        """Return the outcome of an outer step; ``state`` is on the host.

        ``digests`` are those of this agent's share, possibly none, of the ``num_tasks`` tasks.
        """

    def test_words(self) -> str:
        """Say how tasks of a meta-test are adapted to, where there is something to say."""
        return ""

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with."""
        return {THETA: self.policy.initial_parameters(rng)}

    def played(self, state: State) -> State:
        """Return the part of the state that observers need."""
        return {THETA: state[THETA]}

    def begin(self, played: State, num_tasks: int) -> Play:
        """Return what the first phase of G tasks is played with."""
        return Play(np.repeat(played[THETA][None], num_tasks, axis=0))

    def adapt(
        self, played: State, play: Play, episodes: Trajectories, phase: int, *, evaluation: bool
    ) -> Play:
        """Return what the phase after ``phase`` is played with, from the episodes of G tasks.

        ``play.memory`` is what the episodes left in the memory of a recurrent policy.
        """
        return play

    def advantages(self, episodes: Trajectories) -> np.ndarray:
        """Return the advantages ``[T, B]`` of the episodes of one task, which agents receive.

        Here: of a linear baseline fitted to the episodes, normalised over them.
        """
        return task_advantages(
            episodes.observations,
            episodes.rewards,
            episodes.lengths,
            self.sampling.gamma,
            self.sampling.gae_lambda,
        )


# why an update is rejected whose gradient is not finite, or exactly zero
NOT_FINITE = (
    "non-finite gradient: an adaptation has diverged (a smaller step size may help), or a reward "
    "is not finite"
)
NO_SIGNAL = "no signal: in every task all episodes have the same rewards"

GRADIENT_METRICS = {
    "gradient_norm": Metric("1", "Euclidean norm of the iteration's first meta-gradient"),
    "gradient_snr": Metric(
        "1", "gradient_norm divided by its standard error over tasks; about 1: only noise"
    ),
}


def mean_of(reduce: Reduce, terms: Sequence[Array], width: int, num_tasks: int) -> np.ndarray:
    """Return the mean over all tasks, float64 ``[width]``, of terms ``[G, width]`` of groups.

    An agent without tasks has no terms, and takes part all the same.
    """
    from array_api_compat import array_namespace

    terms = list(terms) or [np.zeros((0, width), np.float32)]
    return reduce(array_namespace(*terms).concat(terms)) / num_tasks


def gradient_metrics(mean: np.ndarray, mean_square: float, num_tasks: int) -> dict[str, float]:
    """Return the ``GRADIENT_METRICS`` of gradients of tasks, from their mean ``[n]``.

    ``mean_square`` is the mean of their squared norms. The standard error of the mean is
    sqrt((mean_square - |mean|^2) / (num_tasks - 1)); where nothing but noise is left, the norm of
    the mean is about as large. The ratio is NaN for a single task.
    """
    length = norm(mean)
    variance = (mean_square - length * length) / max(num_tasks - 1, 1)
    ratio = length / np.sqrt(variance) if num_tasks > 1 and variance > 0 else np.nan
    return {"gradient_norm": length, "gradient_snr": float(ratio)}


def squared_norms(gradients: Array) -> Array:
    """Return the squared norms ``[G, 1]`` of gradients ``[G, n]``."""
    return (gradients * gradients).sum(-1)[..., None]


def norm(vector: np.ndarray) -> float:
    """Return the Euclidean norm; not by BLAS, whose bits depend on the number of threads."""
    return float(np.sqrt((vector * vector).sum()))
