"""What MAML-TRPO, ProMP and pretraining share: tasks adapted by gradient steps."""

from typing import Annotated, Any

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from hpc_maml.algorithms.adaptation import StepSize, adapt
from hpc_maml.algorithms.algorithm import THETA, Algorithm, AlgorithmSettings, Sampling, State
from hpc_maml.algorithms.step_sizes import STEP_SIZES, Learned, StepSizeGroups
from hpc_maml.errors import InputError
from hpc_maml.policies.network import Array
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories, samples
from hpc_maml.settings import Positive


class FastLearningRate(AlgorithmSettings):
    """The key of every algorithm whose meta-test takes gradient steps."""

    fast_lr: Positive = Field(0.1, description="size of an inner step")


class InnerStepSettings(FastLearningRate):
    """The keys of algorithms that train through inner steps."""

    num_inner_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="number of inner steps, each on new episodes"
    )
    learn_step_sizes: Learned = Field(
        "none",
        description="learned inner step sizes, which begin at fast_lr: none, or one for each "
        "step, layer "
        "or parameter (Meta-SGD)",
    )


class GradientAdaptation(Algorithm):
    """An algorithm whose tasks are adapted by inner steps on their own trajectories."""

    settings: Any

    def __init__(self, settings: Any, policy: Policy, sampling: Sampling) -> None:
        """Keep the settings; raises InputError for a recurrent policy."""
        super().__init__(settings, policy, sampling)
        if policy.memory_size:
            raise InputError(
                f"algorithm.name={settings.name} cannot use a recurrent policy: choose another "
                "policy.name, or algorithm.name=rl2."
            )
        learned: Learned = getattr(settings, "learn_step_sizes", "none")
        self.groups = None if learned == "none" else StepSizeGroups.of(learned, policy.shapes)

    @property
    def num_inner_steps(self) -> int:
        """The inner steps of training."""
        return int(self.settings.num_inner_steps)

    def num_phases(self, evaluation: bool) -> int:
        """Return one more than there are inner steps."""
        return 1 + (self.sampling.test_updates if evaluation else self.num_inner_steps)

    def test_words(self) -> str:
        """Say which step sizes a meta-test takes."""
        if self.groups and isinstance(self.sampling.test_step_sizes, str):
            later = ", halved in later steps" if self.sampling.test_step_sizes == "halved" else ""
            return f"learned step sizes{later}"
        steps = range(self.sampling.test_updates)
        sizes = [self.step_size({}, step, evaluation=True) for step in steps]
        return f"step sizes {', '.join(f'{size:g}' for size in sizes)}"

    def initial_state(self, rng: np.random.Generator) -> State:
        """Return what a run begins with: the policy, and step sizes that are to be learned."""
        state = super().initial_state(rng)
        if self.groups:
            shape = (self.num_inner_steps, self.groups.number)
            state[STEP_SIZES] = np.full(shape, self.settings.fast_lr, np.float32)
        return state

    def played(self, state: State) -> State:
        """Return the parameters, and the step sizes if they are learned."""
        return {name: state[name] for name in (THETA, STEP_SIZES) if name in state}

    def step_size(self, state: State, step: int, *, evaluation: bool) -> StepSize:
        """Return the size of an inner step, counted from 0.

        In a meta-test they may be given one by one (``sampling.test_step_sizes``). Otherwise steps
        after the first are halved there if it says so (Finn et al. 2017, appendix A.2); of learned
        sizes, the steps after those of training are.
        """
        sizes = self.sampling.test_step_sizes
        if evaluation and not isinstance(sizes, str):
            return float(sizes[min(step, len(sizes) - 1)])
        halved = evaluation and sizes == "halved"
        if self.groups:
            known = min(step, self.num_inner_steps - 1)
            size = self.groups.expand(state[STEP_SIZES][known])
            return 0.5 * size if halved and step > known else size
        return self.settings.fast_lr / (2 if halved and step else 1)

    def adapt(
        self, played: State, play: Play, episodes: Trajectories, phase: int, *, evaluation: bool
    ) -> Play:
        """Take an inner step on the episodes of each task."""
        size = self.step_size(played, phase, evaluation=evaluation)
        thetas = play.parameters.copy()
        for task in range(len(thetas)):
            own = samples(Trajectories(*(field[task] for field in episodes)))
            thetas[task] = adapt(self.policy, thetas[task], own, size)
        return play._replace(parameters=thetas)

    def training_step_sizes(self, state: State) -> list[StepSize]:
        """Return the sizes of the inner steps of training."""
        steps = range(self.num_inner_steps)
        return [self.step_size(state, step, evaluation=False) for step in steps]

    def mean_step_size(self, state: State) -> float:
        """Return the mean over inner steps and parameters, for the record."""
        return float(state[STEP_SIZES].mean()) if self.groups else self.settings.fast_lr

    def outer_parameters(self, state: State) -> np.ndarray:
        """Return what the outer step changes, ``[Q]``: theta, then step sizes that are learned."""
        if not self.groups:
            return state[THETA]
        return np.concatenate([state[THETA], state[STEP_SIZES].ravel()])

    def with_outer_parameters(self, state: State, outer: np.ndarray) -> State:
        """Return the state with other outer parameters ``[Q]``."""
        if not self.groups:
            return state | {THETA: outer}
        theta, sizes = np.split(outer, [self.policy.size])
        return state | {THETA: theta, STEP_SIZES: sizes.reshape(state[STEP_SIZES].shape)}

    def outer_parameters_like(
        self, array: Array, state: State, outer: np.ndarray
    ) -> tuple[Array, list[StepSize]]:
        """Return theta ``[P]`` and the step sizes of outer parameters, where an array is."""
        changed = self.with_outer_parameters(state, outer)
        there = {name: like(array, changed[name]) for name in self.played(changed)}
        return there[THETA], self.training_step_sizes(there)


def like(array: Array, vector: np.ndarray) -> Array:
    """Return a vector of the host in the type and on the device of an array."""
    xp = array_namespace(array)
    return xp.asarray(vector, dtype=array.dtype, device=device(array))
