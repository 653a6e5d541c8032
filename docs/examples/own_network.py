"""A network of one's own: an ordinary torch module.

    PYTHONPATH=docs/examples python -m hpc_maml policy.name=own_network:ResidualNetwork

It is made with the sizes of the environment and with ``policy.kwargs``, and maps observations
``[N, observation_size]`` to ``[N, output_size]``: the means of a Gaussian whose sigma is learned
beside it, or logits where actions are discrete.
"""

import torch
from torch import nn


class ResidualNetwork(nn.Module):
    """Residual blocks with layer normalisation."""

    def __init__(
        self, observation_size: int, output_size: int, width: int = 64, blocks: int = 2
    ) -> None:
        """Make the layers; ``policy.kwargs={width: 32}`` sets a keyword."""
        super().__init__()
        self.first = nn.Linear(observation_size, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, output_size)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the outputs ``[N, output_size]``."""
        hidden = self.first(observations)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            hidden = hidden + torch.tanh(block(norm(hidden)))
        return self.last(torch.tanh(hidden))
