"""What an outer step costs with a torch module as network, beside the closed form of the same.

    OMP_NUM_THREADS=1 python -m benchmarks.torch_module [--rounds 9]

One task of 2000 samples in each of two phases, 17 observed numbers, 6 components of an action and
two hidden layers of 64 tanh units, float32 on one core: its digest, ten Fisher-vector products, and
what an observer computes for the actions of 20 episodes side by side. Closed form and module are
taken in turn; a ratio is the median over the rounds.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import nn

from benchmarks.table import Row, compare, show
from hpc_maml.algorithms.algorithm import THETA, Sampling, State
from hpc_maml.algorithms.maml_trpo import MamlTrpo, MamlTrpoSettings, fisher_vector_product
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.policies.torch_module import TorchModuleSettings
from hpc_maml.sampling.trajectory import Trajectories, batch_dtype, trajectories

HORIZON, EPISODES, OBSERVATION, ACTION = 100, 20, 17, 6
PRODUCTS = 10


class Perceptron(nn.Sequential):
    """Two hidden layers of 64 tanh units."""

    def __init__(self, observation_size: int, output_size: int) -> None:
        super().__init__(
            *(nn.Linear(observation_size, 64), nn.Tanh()),
            *(nn.Linear(64, 64), nn.Tanh()),
            nn.Linear(64, output_size),
        )


def random_phase(rng: np.random.Generator) -> Trajectories:
    """Draw the episodes of one task, all of full length."""
    dtype = batch_dtype(HORIZON, EPISODES, (OBSERVATION,), (ACTION,), np.float32)
    batch = np.zeros(1, dtype)
    for name in ("observations", "actions", "advantages"):
        batch[name] = rng.standard_normal(batch[name].shape)
    batch["log_probs"] = -0.5 * (batch["actions"] ** 2 + np.log(2 * np.pi)).sum(-1)
    batch["lengths"] = HORIZON
    return trajectories(batch)


@dataclass(frozen=True)
class Case:
    """MAML-TRPO with a policy, and what it is measured on."""

    algorithm: MamlTrpo
    state: State
    phases: Sequence[Trajectories]
    observations: np.ndarray  # [1, B, observation]

    def seconds(self) -> dict[str, float]:
        """Return how long each part takes, once."""
        policy, theta = self.algorithm.policy, self.state[THETA]
        layers = policy.unflatten(theta[None])
        times = [time.perf_counter()]
        tasks = self.algorithm.digest(self.state, self.phases)
        times.append(time.perf_counter())
        for _ in range(PRODUCTS):
            fisher_vector_product(policy, tasks, theta)
        times.append(time.perf_counter())
        for _ in range(HORIZON):
            policy.step(layers, None, self.observations)
        times.append(time.perf_counter())
        digest, products, actions = (end - start for start, end in pairwise(times))
        return {
            "digest of a task": digest,
            f"{PRODUCTS} Fisher-vector products": products,
            "digest and products": digest + products,
            f"{HORIZON} actions in {EPISODES} episodes": actions,
        }


def measure(rounds: int) -> list[Row]:
    """Return the milliseconds with a torch module, against those of the closed form."""
    keep_freed_memory()
    rng = np.random.default_rng(0)
    phases = [random_phase(rng) for _ in range(2)]
    observations = rng.standard_normal((1, EPISODES, OBSERVATION)).astype(np.float32)
    cases = []
    for settings in (MLPSettings(), TorchModuleSettings(name=f"{__name__}:Perceptron")):
        policy = make_policy(settings, OBSERVATION, ACTION, discrete=False)
        sampling = Sampling(EPISODES, 0.99, 0.95, 1, "constant")
        algorithm = MamlTrpo(MamlTrpoSettings(), policy, sampling)
        cases.append(Case(algorithm, algorithm.initial_state(rng), phases, observations))
    taken = [[case.seconds() for case in cases] for _ in range(rounds + 1)][1:]  # one warms up
    rows = []
    for name in taken[0][0]:
        closed, module = ([1e3 * each[which][name] for each in taken] for which in range(2))
        rows.append(compare(name, "ms", module, closed, "the closed form"))
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    show(measure(parser.parse_args().rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
