"""Counter-based random streams, so that no draw depends on which rank makes it."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; streams of different purpose never overlap."""

    PARAMETERS = 0
    TASKS = 1
    ENVIRONMENT = 2
    ACTIONS = 3
    EVALUATION_TASKS = 4
    EVALUATION_ENVIRONMENT = 5
    EVALUATION_ACTIONS = 6
    STRATEGIES = 7  # of play that needs no learning, see TaskVectorEnv.best_play
    UPDATE = 8


def stream(
    seed: int, purpose: Purpose, iteration: int = 0, task: int = 0, phase: int = 0
) -> np.random.Generator:
    """Return the generator of one (seed, purpose, iteration, task, phase).

    The five numbers are the key and the upper words of the counter of a Philox generator (Salmon
    et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the lowest counter word is
    left to the draws themselves, 2^64 of them. Episodes are rows of what is drawn.
    """
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose], counter=[0, phase, task, iteration])
    )
