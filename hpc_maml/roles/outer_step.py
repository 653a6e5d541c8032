"""A rank's part of the outer step: the digests of its tasks, and the update with the others."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.roles.digests import Digests
from hpc_maml.roles.messages import Step, state_digest
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.trajectory import Trajectories, trajectories

if TYPE_CHECKING:
    from hpc_maml.mpi.gpu import Gpu


class OuterStep:
    """Digests the tasks of this rank, then updates the state in lockstep with other ranks."""

    def __init__(self, seed: int, reduce: ExactSum) -> None:
        self.seed = seed
        self.reduce = reduce
        self.state: State = {}  # after the last step, or what an iteration began with
        self.digests = Digests()
        self.seconds = 0.0  # spent working since ``begin``

    def begin(self, state: Mapping[str, np.ndarray]) -> None:
        """Begin an iteration with ``state``, without tasks."""
        self.state = dict(state)
        self.digests = Digests()
        self.seconds = 0.0

    def digest(self, algorithm: Algorithm, phases: Sequence[np.ndarray]) -> None:
        """Digest a task, given the trajectory batch ``[1]`` of each phase."""
        began = time.perf_counter()
        own = [trajectories(batch) for batch in phases]
        self._add(partial(algorithm.digest, self.state, own))
        self.seconds += time.perf_counter() - began

    def digest_on_gpu(
        self, algorithm: Algorithm, gpu: "Gpu", phases: Sequence[Trajectories]
    ) -> None:
        """Digest all tasks together, given the episodes ``[G, ...]`` of each phase on a GPU."""
        began = time.perf_counter()
        state: dict[str, Any] = {name: gpu.array(values) for name, values in self.state.items()}
        self._add(partial(algorithm.digest, state, phases))
        self.seconds += time.perf_counter() - began

    def _add(self, digest: Callable[[], Any]) -> None:
        with quiet_divergence():
            self.digests.add(digest)

    def take(
        self, algorithm: Algorithm, iteration: int, num_tasks: int, *, stop_requested: bool
    ) -> Step:
        """Update the state with the other ranks, and report it.

        Raises TimeoutError if they do not come.
        """
        began, waited_before = time.perf_counter(), self.reduce.waited
        rng = stream(self.seed, Purpose.UPDATE, iteration)
        with quiet_divergence():
            update = algorithm.update(self.state, self.digests, num_tasks, self.reduce, rng)
        self.state, self.digests = update.state, Digests()
        waited = self.reduce.waited - waited_before
        self.seconds += time.perf_counter() - began - waited
        return Step(
            state=update.state,
            digest=state_digest(update.state),
            reason=update.reason,
            metrics=dict(update.metrics),
            seconds=self.seconds,
            stop_requested=stop_requested,
        )


def quiet_divergence() -> np.errstate:
    """Return a context without NumPy's warnings: a divergence makes the update be rejected."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
