"""How well each inner loss estimates the Hessian of the expected return, and the meta-gradient.

    python -m benchmarks.estimators [--horizon 4] [--episodes 10 100 1000] [--picture FILE]

The tasks are processes of three states and three actions, so small that a sum over all trajectories
gives the exact derivatives. Rothfuss et al. (2019, figure 3) and Tang et al. (2021) ask the same.
The estimates are those of the package, on trajectories that its policy samples.

The table has, for each number of episodes of a task and each inner loss: the length of the bias
relative to the exact value, the standard deviation relative to it, and the mean cosine. Those of
the Hessian are of one task, in the mean over all; the meta-gradient is the mean over all tasks. Its
exact value is of an adaptation on infinitely many episodes. ``none`` is first_order=true.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.autograd.functional import hessian, jacobian

from benchmarks.plain import Problem
from hpc_maml.algorithms.adaptation import (
    TakeStep,
    adapt,
    inner_step,
    likelihood_ratio_step,
    loaded_dice_step,
)
from hpc_maml.algorithms.maml_trpo import linearise
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling import baseline
from hpc_maml.sampling.advantages import discounted_sums, generalised_advantages
from hpc_maml.sampling.trajectory import Samples, Trajectories, samples

STATES, ACTIONS, HIDDEN = 3, 3, 3
LARGEST = 200_000  # steps that are computed at once
LOSSES = ("reinforce", "lvc", "dice", "none")
ADVANTAGES = ("baseline", "returns")


class Process(NamedTuple):
    """A Markov decision process that begins in state 0 and pays without noise."""

    transitions: np.ndarray  # [s, a, s']
    rewards: np.ndarray  # [s, a]
    horizon: int


class Exact(NamedTuple):
    """Derivatives of J, the expected reward of a step of a task, at theta."""

    hessian: np.ndarray  # [P, P]
    meta_gradient: np.ndarray  # [P], of J(theta + step_size grad J(theta))


class Found(NamedTuple):
    """Estimates of one inner loss for a task, from batches of some episodes."""

    hessians: np.ndarray  # [repeats, P, P]
    meta_gradients: np.ndarray  # [repeats, P]


class Quality(NamedTuple):
    """How estimates compare with what they estimate, relative to its length."""

    bias: float  # of the mean over repeats, less what chance adds to it
    chance: float  # deviation / sqrt(repeats): a bias below it is not seen
    deviation: float
    cosine: float

    @property
    def error(self) -> float:
        """The root mean square error."""
        return float(np.hypot(self.bias, self.deviation))


class Row(NamedTuple):
    """A row of the table."""

    loss: str
    episodes: int
    hessian: Quality
    meta_gradient: Quality


def draw(seed: int, num_tasks: int, horizon: int) -> tuple[list[Process], Policy, np.ndarray]:
    """Draw processes (Duan et al. 2016, section 3.2), and theta ``[P]`` of a perceptron."""
    rng = np.random.default_rng(seed)
    policy = make_policy(MLPSettings(hidden_sizes=[HIDDEN]), STATES, ACTIONS, discrete=True)
    theta = policy.initial_parameters(rng) + 0.5 * rng.standard_normal(policy.size)
    shape = (STATES, ACTIONS)
    tasks = [
        Process(rng.dirichlet(np.ones(STATES), shape), rng.standard_normal(shape), horizon)
        for _ in range(num_tasks)
    ]
    return tasks, policy, theta


# exact values, of an independent program


def expected_reward(process: Process, theta: torch.Tensor) -> torch.Tensor:
    """Return J, the expected reward of a step, as a sum over all trajectories."""
    problem = Problem((STATES, HIDDEN, ACTIONS), "tanh", discrete=True, step_sizes=())
    log_probs = problem.distribution(theta, torch.eye(STATES, dtype=theta.dtype)).logits
    states, actions, chances = all_trajectories(process)
    returns = process.rewards[states, actions].sum(1)
    played = torch.exp(log_probs[states, actions].sum(1))
    return (played * torch.as_tensor(chances * returns)).sum() / process.horizon


def all_trajectories(process: Process) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states and actions ``[M, T]``, and the product of the transitions' chances ``[M]``."""
    later = process.horizon - 1
    states = np.array([(0, *rest) for rest in itertools.product(range(STATES), repeat=later)])
    actions = np.array(list(itertools.product(range(ACTIONS), repeat=process.horizon)))
    paths = len(states)
    states, actions = states.repeat(len(actions), axis=0), np.tile(actions, (paths, 1))
    steps = process.transitions[states[:, :-1], actions[:, :-1], states[:, 1:]]
    return states, actions, steps.prod(1)


def exact(process: Process, theta: np.ndarray, step_size: float) -> Exact:
    """Return the exact derivatives at theta ``[P]``."""
    at = torch.as_tensor(theta, dtype=torch.float64)
    objective = partial(expected_reward, process)
    curvature = hessian(objective, at)
    adapted = at + step_size * jacobian(objective, at)
    after = jacobian(objective, adapted)
    return Exact(curvature.numpy(), (after + step_size * curvature @ after).numpy())


# estimates, of the package


def play(
    process: Process,
    policy: Policy,
    theta: np.ndarray,
    episodes: int,
    advantages: str,
    rng: np.random.Generator,
) -> Samples:
    """Return the samples ``[R, N]`` of episodes played with theta ``[R, P]``."""
    repeats, horizon = len(theta), process.horizon
    shape = (repeats, horizon, episodes)
    states, actions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    log_probs = np.zeros(shape)
    layers, now = policy.unflatten(theta), np.zeros((repeats, episodes), np.int64)
    for step in range(horizon):
        parameters = policy.forward(layers, np.eye(STATES)[now])
        noise = policy.distribution.noise(rng, now.shape)
        chosen = policy.distribution.sample(parameters, noise)
        log_probs[:, step] = policy.distribution.log_prob(parameters, chosen)
        states[:, step], actions[:, step] = now, chosen
        cumulative = process.transitions[now, chosen].cumsum(-1)
        now = (rng.random(now.shape)[..., None] >= cumulative[..., :-1]).sum(-1)
    observations, rewards = np.eye(STATES)[states], process.rewards[states, actions]
    each = [advantages_of(*pair, advantages) for pair in zip(observations, rewards, strict=True)]
    never = np.zeros(shape, np.bool_)
    lengths = np.full((repeats, episodes), horizon)
    task = np.arange(repeats)
    return samples(
        Trajectories(
            observations, actions, rewards, log_probs, np.stack(each), never, never, lengths, task
        )
    )


def advantages_of(observations: np.ndarray, rewards: np.ndarray, kind: str) -> np.ndarray:
    """Return the advantages ``[T, B]`` of the episodes of one task, undiscounted.

    Not normalised, which would be another step size for each batch.
    """
    returns = discounted_sums(rewards, 1.0)
    if kind == "returns":
        return returns
    valid = np.ones(rewards.shape, np.bool_)
    values = baseline.predict(baseline.fit(observations, returns, valid), observations)
    return generalised_advantages(rewards, values, 1.0, 1.0)


def estimates(
    process: Process,
    policy: Policy,
    theta: np.ndarray,
    step_size: float,
    episodes: int,
    repeats: int,
    advantages: str,
    rng: np.random.Generator,
) -> dict[str, Found]:
    """Return the estimates of every inner loss from the same batches."""
    take_steps: dict[str, TakeStep] = {
        "reinforce": inner_step,
        "lvc": likelihood_ratio_step,
        "dice": partial(loaded_dice_step, num_episodes=episodes),
        "none": inner_step,
    }
    parts: dict[str, list[Found]] = {loss: [] for loss in LOSSES}
    for number in group_sizes(repeats, episodes * process.horizon):
        start = np.broadcast_to(theta, (number, policy.size))
        inner = play(process, policy, start, episodes, advantages, rng)
        adapted = adapt(policy, start, inner, step_size)
        post = play(process, policy, adapted, episodes, advantages, rng)
        for loss in LOSSES:
            tasks = linearise(
                policy,
                theta,
                [inner],
                post,
                [step_size],
                first_order=loss == "none",
                take_step=take_steps[loss],
            )
            hessians = np.zeros((number, policy.size, policy.size))
            if loss != "none":
                (step,) = tasks.curvature.inner.steps
                for index, row in enumerate(np.eye(policy.size)):
                    vector = np.broadcast_to(row, start.shape)
                    hessians[:, index] = step.hessian_product(policy, vector)
            parts[loss].append(Found(hessians, -tasks.gradient))
    return {
        loss: Found(*(np.concatenate(each) for each in zip(*found, strict=True)))
        for loss, found in parts.items()
    }


def group_sizes(repeats: int, steps: int) -> Iterator[int]:
    """Split repeats into groups of at most some steps together."""
    size = max(1, LARGEST // steps)
    while repeats > 0:
        yield min(size, repeats)
        repeats -= size


def quality(found: np.ndarray, expected: np.ndarray) -> Quality:
    """Compare estimates ``[R, ...]`` with what they estimate."""
    rows = found.reshape(len(found), -1) / np.linalg.norm(expected)
    goal = expected.ravel() / np.linalg.norm(expected)
    mean = rows.mean(0)
    variance = ((rows - mean) ** 2).sum(1).sum() / (len(rows) - 1)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows @ goal / np.where(lengths > 0, lengths, 1)
    chance = variance / len(rows)
    bias = np.sqrt(max(0.0, ((mean - goal) ** 2).sum() - chance))
    numbers = (bias, np.sqrt(chance), np.sqrt(variance), cosines.mean())
    return Quality(*map(float, numbers))


def measure(
    *,
    horizon: int,
    episodes: Sequence[int],
    tasks: int,
    repeats: int,
    step_size: float,
    advantages: str,
    seed: int,
) -> list[Row]:
    """Return the rows of the table."""
    processes, policy, theta = draw(seed, tasks, horizon)
    rng = np.random.default_rng([seed, 1])
    expected = [exact(process, theta, step_size) for process in processes]
    meta_gradient = np.mean([each.meta_gradient for each in expected], 0)
    rows = []
    for number in episodes:
        hessians: dict[str, list[Quality]] = {loss: [] for loss in LOSSES}
        sums = dict.fromkeys(LOSSES, np.zeros((repeats, policy.size)))
        for process, goal in zip(processes, expected, strict=True):
            found = estimates(process, policy, theta, step_size, number, repeats, advantages, rng)
            for loss, each in found.items():
                hessians[loss].append(quality(each.hessians, goal.hessian))
                sums[loss] = sums[loss] + each.meta_gradients
        for loss in LOSSES:
            of_one = Quality(*np.mean(hessians[loss], 0).tolist())
            of_all = quality(sums[loss] / tasks, meta_gradient)
            rows.append(Row(loss, number, of_one, of_all))
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(box=box.MARKDOWN)  # for the page of reproduce
    headings = ["episodes", "inner loss", "Hessian: bias", "deviation", "cosine"]
    headings += ["meta-gradient: bias", "deviation", "cosine", "error"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "inner loss" else "right")
    for row in rows:
        cells = [str(row.episodes), row.loss]
        for part in (row.hessian, row.meta_gradient):
            cells += [f"{part.bias:.2f} ± {part.chance:.2f}", f"{part.deviation:.2f}"]
            cells.append(f"{part.cosine:.2f}")
        table.add_row(*cells, f"{row.meta_gradient.error:.2f}")
    Console(width=None if Console().is_terminal else 120).print(table)


def draw_picture(rows: Sequence[Row], path: Path) -> None:
    """Draw bias and deviation over the number of episodes; raises ImportError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("hessian", "meta_gradient"), strict=True):
        for colour, loss in enumerate(LOSSES[: 3 if name == "hessian" else 4]):
            own = [row for row in rows if row.loss == loss]
            parts = [getattr(row, name) for row in own]
            where = [row.episodes for row in own]
            kept = {"color": f"C{colour}", "marker": "o"}
            # what chance alone would give is no bias that was seen
            biases = [part.bias if part.bias > 2 * part.chance else np.nan for part in parts]
            axis.plot(where, biases, label=f"{loss}: bias", **kept)
            deviations = [part.deviation for part in parts]
            axis.plot(where, deviations, "--", label=f"{loss}: deviation", **kept)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="episodes of a task",
            title=name.replace("_", "-").capitalize(),
        )
    axes[0].set_ylabel("relative to the exact value")
    handles = axes[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize="x-small")
    figure.savefig(path, format="svg")


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--horizon", type=int, default=4, help="steps of an episode, some 6 at most"
    )
    parser.add_argument("--episodes", nargs="+", type=int, default=[10, 100, 1000], metavar="B")
    parser.add_argument("--repeats", type=int, default=100, help="batches of each size")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--step-size", type=float, default=1.0)
    parser.add_argument("--advantages", choices=ADVANTAGES, default="baseline")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it, by matplotlib")
    options = vars(parser.parse_args())
    picture = options.pop("picture")
    rows = measure(**options)
    show(rows)
    if picture:
        try:
            draw_picture(rows, picture)
        except ImportError as error:
            print(f"{parser.prog}: --picture needs matplotlib ({error}).", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
