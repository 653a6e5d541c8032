"""The algorithms, one file each; they know neither MPI nor files."""

from hpc_maml.algorithms.algorithm import Algorithm, Metric, Sampling, State, Update
from hpc_maml.names import find_class

__all__ = ["ALGORITHMS", "Algorithm", "Metric", "Sampling", "State", "Update", "algorithm_class"]

ALGORITHMS = {
    "maml_trpo": "hpc_maml.algorithms.maml_trpo:MamlTrpo",
    "promp": "hpc_maml.algorithms.promp:ProMP",
    "rl2": "hpc_maml.algorithms.rl2:RL2",
    "pretrain": "hpc_maml.algorithms.pretrain:Pretrain",
}


def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of an algorithm, of the table or ``module:Class``; raises InputError."""
    return find_class("algorithm", name, ALGORITHMS, Algorithm)
