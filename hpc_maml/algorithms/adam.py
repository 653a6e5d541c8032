"""Adam (Kingma and Ba 2015), its moments a part of the state of a run."""

import numpy as np

from hpc_maml.algorithms.algorithm import State

FIRST, SECOND, STEPS = "adam_first_moment", "adam_second_moment", "adam_steps"
DECAY_1, DECAY_2, EPSILON = 0.9, 0.999, 1e-8


def adam_state(size: int) -> State:
    """Return the moments of ``size`` parameters before the first step, float64."""
    return {FIRST: np.zeros(size), SECOND: np.zeros(size), STEPS: np.zeros((), np.int64)}


def adam_step(
    parameters: np.ndarray, gradient: np.ndarray, state: State, learning_rate: float
) -> tuple[np.ndarray, State]:
    """Return the parameters ``[Q]`` and the moments after a step (algorithm 1 of the paper).

    All is elementwise: the same bits on every agent, for any number of threads.
    """
    steps = int(state[STEPS]) + 1
    first = DECAY_1 * state[FIRST] + (1 - DECAY_1) * gradient
    second = DECAY_2 * state[SECOND] + (1 - DECAY_2) * (gradient * gradient)
    unbiased_first = first / (1 - DECAY_1**steps)
    unbiased_second = second / (1 - DECAY_2**steps)
    change = learning_rate * unbiased_first / (np.sqrt(unbiased_second) + EPSILON)
    moments = {FIRST: first, SECOND: second, STEPS: np.asarray(steps, np.int64)}
    return (parameters - change).astype(parameters.dtype), moments
