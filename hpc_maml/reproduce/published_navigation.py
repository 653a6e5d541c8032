"""The meta-test of navigation runs with the goals and sampling rule of the published experiment.

    python -m hpc_maml.reproduce.published_navigation RUN [RUN ...] [--step-sizes 0.5 0.25 0.25]

Finn et al. (2017) test on 40 goals drawn with seed 1. They play 40 episodes at a time, start a new
one where one has ended, and stop once those that have ended hold 4,000 steps: the sooner the goal
is reached, the more episodes there are. `python -m hpc_maml evaluate` plays a number of episodes,
on other goals. Prints means over the goals with 95 % confidence intervals, and medians.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.algorithms.algorithm import THETA
from hpc_maml.algorithms.inner_steps import GradientAdaptation
from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.envs.navigation import GOAL_RANGE
from hpc_maml.errors import InputError
from hpc_maml.parts import make_algorithm, make_dtype, make_env
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.sampling.rollout import Play, roll_out
from hpc_maml.sampling.trajectory import samples, trajectories
from hpc_maml.storage.meta_tests import RUN, MetaTest, half_width
from hpc_maml.storage.run_folder import read_config
from hpc_maml.storage.states import chosen_checkpoint, state_of

SAMPLES, STREAMS = 4000, 40
EPISODES = 600  # at first, and twice as many while these are too few


def sampled(lengths: np.ndarray) -> np.ndarray:
    """Return the indices of the episodes that the rule samples; ``lengths`` [E] are in steps.

    Episode e is played in stream e mod STREAMS, after the ones before it there. There are none
    where the episodes of a stream are too short for its part.
    """
    ends = np.concatenate([lengths[first::STREAMS].cumsum() for first in range(STREAMS)])
    order = np.concatenate([np.arange(first, len(lengths), STREAMS) for first in range(STREAMS)])
    by_end = ends.argsort(kind="stable")
    steps = lengths[order[by_end]].cumsum()
    if steps[-1] < SAMPLES:
        return order[:0]
    last = ends[by_end[steps.searchsorted(SAMPLES)]]
    if min(lengths[first::STREAMS].sum() for first in range(STREAMS)) < last:
        return order[:0]
    return order[ends <= last]


def meta_test(path: Path, step_sizes: Sequence[float]) -> MetaTest:
    """Return the meta-test of the last checkpoint of a run.

    InputError if there is no such run of navigation, or no checkpoint, in ``path``.
    """
    config = read_config(path)
    if config.env.name != "navigation":
        raise InputError(f"The run in {path} is of {config.env.name}, not of navigation.")
    algorithm = make_algorithm(config, make_env(config, EPISODES))
    if not isinstance(algorithm, GradientAdaptation):
        raise InputError(
            f"The run in {path} cannot be tested so: it normalises observations, or its algorithm "
            "takes no inner steps."
        )
    checkpoint = chosen_checkpoint(path, config, algorithm)
    theta = state_of(checkpoint)[THETA]
    goals = np.random.RandomState(1).uniform(-GOAL_RANGE, GOAL_RANGE, (40, 2))
    returns = np.zeros((len(goals), len(step_sizes) + 1))
    for index, goal in enumerate(goals):
        adapted = theta
        for phase, step_size in enumerate((*step_sizes, None)):
            batch = _sample(config, algorithm, adapted, goal, (index, phase))
            returns[index, phase] = batch["rewards"].sum(0, dtype=np.float64).mean()
            if step_size:
                batch["advantages"] = algorithm.advantages(trajectories(batch))
                own = samples(trajectories(batch))
                adapted = adapt(algorithm.policy, adapted, own, step_size)
    how = f"inner steps of {', '.join(map(str, step_sizes))}, episodes by the published rule"
    return MetaTest(checkpoint.iteration, "updates", goals, {RUN: returns}, {}, how)


def _sample(
    config: Config,
    algorithm: GradientAdaptation,
    theta: np.ndarray,
    goal: np.ndarray,
    streams: tuple[int, int],
) -> np.ndarray:
    """Return the episodes that the rule samples of the policy theta ``[P]`` with a goal ``[2]``.

    They are a row of trajectories. ``streams`` are the numbers of the task and of the phase.
    """
    chosen, episodes = np.zeros(0, np.int64), EPISODES
    while not len(chosen):
        env = make_env(config, episodes)
        env.set_tasks(goal[None])
        played = _rows(config, env, episodes, 1)
        actions, starts = (
            [stream(config.seed, purpose, 0, *streams)]
            for purpose in (Purpose.EVALUATION_ACTIONS, Purpose.EVALUATION_ENVIRONMENT)
        )
        roll_out(algorithm.policy, env, Play(theta[None]), actions, starts, played)
        chosen = sampled(played[0]["lengths"])
        episodes *= 2
    batch = _rows(config, env, len(chosen))
    batch["lengths"] = played[0]["lengths"][chosen]
    for name in ("observations", "actions", "rewards", "log_probs"):
        batch[name] = played[0][name][:, chosen]
    return batch


def _rows(config: Config, env: TaskVectorEnv, episodes: int, *shape: int) -> np.ndarray:
    return np.zeros(shape, make_dtype(config.model_copy(update={"fast_batch_size": episodes}), env))


def main() -> int:
    """Test each run, and print two lines for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--step-sizes", nargs="+", type=float, default=[0.5, 0.25, 0.25])
    options = parser.parse_args()
    for path in options.runs:
        try:
            returns = meta_test(path, options.step_sizes).returns[RUN]
        except InputError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
        widths = half_width(returns)
        means = [f"{m:.2f} ± {w:.2f}" for m, w in zip(returns.mean(0), widths, strict=True)]
        print(f"{path}: after 0, 1, ... updates {', '.join(means)}")
        print(f"    medians {', '.join(f'{each:.2f}' for each in np.median(returns, 0))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
