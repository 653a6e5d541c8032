"""Torch modules that tests name as policies, ``conformance_networks:Small``."""

import torch
from torch import nn


class Small(nn.Module):
    """Layers that no network of the package has: normalisation, a residual path, a scale."""

    def __init__(self, observation_size: int, output_size: int, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(observation_size, width)
        self.norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.last = nn.Linear(width, output_size)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.norm(self.first(observations)))
        return self.last(features + self.scale * torch.sin(self.second(features)))


class Wide(Small):
    """Its outputs are one more than the policy needs."""

    def __init__(self, observation_size: int, output_size: int) -> None:
        super().__init__(observation_size, output_size + 1)
