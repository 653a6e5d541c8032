"""Policies: a network and a distribution of actions."""

from hpc_maml.names import find_class
from hpc_maml.policies.distributions import Categorical, Distribution, Gaussian
from hpc_maml.policies.network import Network, NetworkSettings, Sizes
from hpc_maml.policies.policy import Policy

# Import paths, not classes: only networks that are torch modules import torch.
NETWORKS = {"mlp": "hpc_maml.policies.mlp:MLP", "gru": "hpc_maml.policies.gru:GRU"}
TORCH_MODULE = "hpc_maml.policies.torch_module:TorchModule"


def network_class(name: str) -> type[Network]:
    """Return the class of a network; a name that is not in the table is a torch module's."""
    if ":" in name:  # whether there is such a module is seen when the policy is made
        return find_class("network", TORCH_MODULE, {}, Network)
    return find_class("policy", name, NETWORKS, Network)


def make_policy(
    settings: NetworkSettings, observation_size: int, action_size: int, *, discrete: bool
) -> Policy:
    """Return the policy for ``action_size`` actions (discrete) or action components.

    Raises InputError for a network that cannot be made, or does not fit.
    """
    distribution: Distribution = (Categorical if discrete else Gaussian)(action_size)
    sizes = Sizes(observation_size, action_size, discrete, distribution.output_size)
    return Policy(network_class(settings.name).make(settings, sizes), distribution)
