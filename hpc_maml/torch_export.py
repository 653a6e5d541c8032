"""A policy as a ``torch.nn.Module``, and as an ONNX file.

A feed-forward policy maps ``observations`` [N, obs_dim] to the parameters of its distribution of
actions: ``mean`` [N, action_dim] and ``log_std`` [1, action_dim], or ``log_probs`` [N, choices].

A recurrent policy takes ``observations``, a ``memory`` [N, memory_size], at first zeros, and what
came of the step before: ``actions`` [N, action_dim], or int64 [N], ``rewards`` [N] and ``ended``
[N], 1 where an episode ended with it. At first these are zeros, and -1 for a discrete action. It
returns the parameters, then the new memory.
"""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_maml.errors import InputError
from hpc_maml.policies.distributions import Categorical
from hpc_maml.policies.policy import Policy
from hpc_maml.sampling.normalisation import Normaliser


class TorchPolicy(torch.nn.Module):
    """A feed-forward policy."""

    inputs: tuple[str, ...] = ("observations",)

    def __init__(self, policy: Policy, theta: np.ndarray, normaliser: Normaliser | None) -> None:
        """Copy the parameters ``[P]``, and what observations are normalised with."""
        super().__init__()
        self.policy = policy
        layers = {name: torch.tensor(values) for name, values in policy.unflatten(theta).items()}
        self.network: torch.nn.Module | None = None
        if hasattr(policy.network, "module"):  # of a torch module
            self.network = policy.network.module(layers)
            layers = {name: layers[name] for name in policy.distribution.shapes}
        self.layers = torch.nn.ParameterDict(layers)
        self.normalises = normaliser is not None
        for name, values in normaliser._asdict().items() if normaliser else ():
            self.register_buffer(f"observation_{name}", torch.tensor(values))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it returns."""
        return (
            ("log_probs",)
            if isinstance(self.policy.distribution, Categorical)
            else ("mean", "log_std")
        )

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return inputs of two rows."""
        return (torch.zeros(2, self.policy.network.observation_size),)

    def forward(self, observations: torch.Tensor) -> Any:
        """Return the parameters of the distribution."""
        seen = self._seen(observations)
        if self.network is None:
            return self.policy.forward(dict(self.layers), seen)
        return self.policy.distribution.parameters(dict(self.layers), self.network(seen))

    def _seen(self, observations: torch.Tensor) -> torch.Tensor:
        if not self.normalises:
            return observations
        return Normaliser(self.observation_mean, self.observation_deviation)(observations)


class RecurrentTorchPolicy(TorchPolicy):
    """A recurrent policy."""

    inputs = ("observations", "memory", "actions", "rewards", "ended")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it returns."""
        return (*super().outputs, "new_memory")

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return inputs of two rows, as at the beginning of a trial."""
        distribution = self.policy.distribution
        actions = (
            torch.full((2,), -1)
            if isinstance(distribution, Categorical)
            else torch.zeros(2, self.policy.network.action_size)
        )
        memory = torch.zeros(2, self.policy.memory_size)
        return (*super().example(), memory, actions, torch.zeros(2), torch.zeros(2))

    def forward(  # type: ignore[override]
        self,
        observations: torch.Tensor,
        memory: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        ended: torch.Tensor,
    ) -> Any:
        """Return the parameters of the distribution, then the memory."""
        layers, seen = dict(self.layers), self._seen(observations)
        memory = self.policy.network.remember(memory, actions, rewards, ended)
        parameters, memory = self.policy.step(layers, memory, seen)
        single = isinstance(self.policy.distribution, Categorical)
        return (parameters, memory) if single else (*parameters, memory)


def torch_policy(policy: Policy, theta: np.ndarray, normaliser: Normaliser | None) -> TorchPolicy:
    """Return a policy with parameters ``[P]`` as a module, in evaluation mode."""
    kind = RecurrentTorchPolicy if policy.memory_size else TorchPolicy
    return kind(policy, theta, normaliser).eval()


def write_onnx(module: TorchPolicy, path: Path) -> Path:
    """Write a policy as an ONNX file, whole or not at all; raises InputError."""
    example = module.example()
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch about itself
            program = torch.onnx.export(
                module,
                example,
                input_names=module.inputs,
                output_names=module.outputs,
                dynamic_shapes=[{0: batch} for _ in example],
                dynamo=True,
                verbose=False,
            )
    except ImportError as error:
        raise InputError(f"to_onnx needs {error.name}: pip install 'hpc_maml[onnx]'.") from None
    except Exception as error:  # of torch, about a network that it cannot follow
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"torch cannot export this network: {type(error).__name__}: {reason}."
        ) from None
    model: Any = program and program.model_proto
    graph = model.graph
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.name != "log_std" and not (sizes and sizes[0].dim_param):
            raise InputError(
                f"torch cannot export this network for batches of any size: its {value.name} "
                "would always have the rows of the example."
            )
    temporary = path.with_name(f"{path.name}.partial")
    try:
        temporary.write_bytes(model.SerializeToString())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    return path
