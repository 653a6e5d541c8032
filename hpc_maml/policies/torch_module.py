"""A ``torch.nn.Module`` of one's own as network, with its derivatives by autograd.

The class is constructed as ``MyModule(observation_size, output_size, **kwargs)`` and maps
observations ``[N, observation_size]`` to outputs ``[N, output_size]``: means of a Gaussian, or
numbers for the softmax of discrete actions. It is used in evaluation mode. Its parameters that
require a gradient are learned. What else it needs, buffers and frozen parameters, is as the class
constructs it with the seed of torch, NumPy and Python at 0, the same in every process.

On a CPU each task is computed alone, from copies of its arrays: the bits of a matrix product may
depend on how its operands lie in memory, and torch aligns what it allocates. On a GPU all tasks
are one ``torch.vmap``.

Products with derivatives go through graphs that are built once. The gradient J^T c of the sum of
outputs times c is linear in c. Hence its own graph also gives the derivative J t of the outputs,
as the gradient of (J^T c) . t by c. Forward mode would compute the network anew each time.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch.func import functional_call

from hpc_maml.errors import InputError
from hpc_maml.names import find_class
from hpc_maml.policies.distributions import Gaussian
from hpc_maml.policies.network import Array, FeedForward, Layers, NetworkSettings, Sizes

torch.set_num_threads(1)  # a rank owns one core
# fused kernels of attention have no second derivatives: there remains the plain formula
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_mem_efficient_sdp(False)
torch.backends.cuda.enable_cudnn_sdp(False)
torch.backends.mha.set_fastpath_enabled(False)

Shape = tuple[int, ...]
Tensors = Sequence[torch.Tensor]


class TorchModuleSettings(NetworkSettings):
    """The keys of a network that is a torch module."""

    kwargs: dict[str, Any] = Field(
        {}, description="keyword arguments of the class, after observation_size and output_size"
    )


@dataclass(frozen=True)
class Tasks:
    """How arrays with leading task dimensions become tensors: one for each graph, and back."""

    lead: Shape
    dtype: torch.dtype
    device: torch.device
    as_numpy: bool

    @property
    def side_by_side(self) -> bool:
        """Whether all tasks are one graph, whose tensors have a leading dimension ``[G]``."""
        return self.device.type != "cpu"

    def split(self, array: Array, shape: Shape) -> list[torch.Tensor]:
        """Return an array ``[..., *shape]`` as a tensor for each graph."""
        full = (*self.lead, *shape)
        if self.side_by_side:
            rows = array.detach().expand(full).reshape(-1, *shape)
            return [rows.to(self.dtype).contiguous()]
        if not self.as_numpy:
            rows = array.detach().expand(full).reshape(-1, *shape)
        else:  # much of an observer's time is spent here: no call that is not needed
            whole = array if array.shape == full else np.broadcast_to(array, full)
            rows = whole.reshape(-1, *shape)
            if not rows.flags.writeable:  # of which torch would warn
                return [torch.tensor(row, dtype=self.dtype) for row in rows]
            rows = map(torch.from_numpy, rows)
        return [row.clone(memory_format=torch.contiguous_format).to(self.dtype) for row in rows]

    def join(self, tensors: Tensors, shape: Shape) -> Array:
        """Return a tensor for each graph as one array ``[..., *shape]``."""
        whole = tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))
        whole = whole.detach().reshape(*self.lead, *shape)
        return whole.numpy() if self.as_numpy else whole


class Graph:
    """Outputs as a function of parameters, of one task or of all side by side."""

    def __init__(self, parameters: Tensors, outputs: torch.Tensor) -> None:
        self.parameters = parameters
        self.outputs = outputs  # [N, output], or [G, N, output]

    def pull(self, cotangent: torch.Tensor, *, again: bool) -> Tensors:
        """Return the gradients by the parameters; with ``again`` they have a graph as well."""
        return _gradients([self.outputs], self.parameters, [cotangent], again=again)

    def push(self, tangents: Tensors) -> torch.Tensor:
        """Return the derivative of the outputs along ``tangents``."""
        cotangent, gradients = self._transposed
        (change,) = _gradients(gradients, [cotangent], tangents)
        return change

    def pull_derivative(
        self, gradients: Tensors, tangents: Tensors, cotangent: torch.Tensor
    ) -> Tensors:
        """Return the derivative of ``gradients`` along tangents and a change of the cotangent."""
        # the second derivatives are symmetric, so this is the gradient of a sum of two terms
        outputs = [*gradients, self.outputs]
        return _gradients(outputs, self.parameters, [*tangents, cotangent])

    @cached_property
    def _transposed(self) -> tuple[torch.Tensor, Tensors]:
        """A cotangent, whose value does not matter, and the gradients with their graph."""
        cotangent = torch.zeros_like(self.outputs, requires_grad=True)
        return cotangent, self.pull(cotangent, again=True)


class Linearised(NamedTuple):
    """A module on N observations of each task."""

    tasks: Tasks
    outputs: Array  # [..., N, output]
    graphs: list[Graph]

    @property
    def nbytes(self) -> int:
        """The memory that it keeps; the graph of the first ``push`` takes as much again."""
        return 2 * _saved_bytes(graph.outputs for graph in self.graphs)


class Pushed(NamedTuple):
    """A derivative of the outputs along a tangent of the parameters."""

    outputs: Array  # [..., N, output]


class Pulled(NamedTuple):
    """A gradient, with its graphs if it is to be differentiated again."""

    gradients: list[Array]  # [..., n], by each parameter array
    graphs: list[Tensors]  # the same, for each graph of ``Linearised``

    @property
    def nbytes(self) -> int:
        """The memory that it keeps, with that of the outputs."""
        return _saved_bytes(gradient for gradients in self.graphs for gradient in gradients)


@dataclass(frozen=True)
class TorchModule(FeedForward):
    """A network that is a torch module, which each process constructs for itself."""

    name: str  # module:Class
    observation_size: int
    output_size: int
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    Settings = TorchModuleSettings

    @classmethod
    def make(cls, settings: TorchModuleSettings, sizes: Sizes) -> Self:
        """Return the network of a configuration; raises InputError if it cannot be learned."""
        network = cls(settings.name, sizes.observation, sizes.output, settings.kwargs)
        _check(network)
        own = {} if sizes.discrete else Gaussian(sizes.action).shapes
        if taken := sorted(network.shapes.keys() & own.keys()):
            raise InputError(
                f"{network.name} has a parameter {taken[0]!r}, a name that the policy itself "
                "needs: leave it out, or give it another name."
            )
        return network

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each parameter that is learned, in the order of theta."""
        # a single number becomes an array of one, as it is a slice of theta
        learned = _learned(_module(self, torch.float32, torch.device("cpu")))
        return {name: tuple(parameter.shape) or (1,) for name, parameter in learned.items()}

    def initialise(self, layers: Layers, rng: np.random.Generator) -> None:
        """Set the parameters as the class does, with torch's seed drawn from ``rng``."""
        for name, parameter in _learned(_construct(self, int(rng.integers(2**63)))).items():
            layers[name][:] = parameter.detach().numpy().reshape(self.shapes[name])

    def module(self, layers: Layers) -> torch.nn.Module:
        """Return a new module with these parameters, tensors ``[*shape]``."""
        module = _construct(self, seed=0)
        with torch.no_grad():
            for name, parameter in _learned(module).items():
                parameter.copy_(layers[name].reshape(parameter.shape))
        return module

    def forward(self, layers: Layers, observations: Array) -> Array:
        """Return the outputs ``[..., N, output]``."""
        tasks = self._tasks(layers, observations)
        with torch.no_grad():
            outputs = [
                self._outputs(tasks, parameters, inputs)
                for parameters, inputs in self._arguments(tasks, layers, observations)
            ]
        return tasks.join(outputs, (observations.shape[-2], self.output_size))

    def linearise(self, layers: Layers, observations: Array) -> Linearised:
        """Return the outputs, with their graphs."""
        tasks = self._tasks(layers, observations)
        graphs = []
        with torch.enable_grad():
            for parameters, inputs in self._arguments(tasks, layers, observations):
                for parameter in parameters:
                    parameter.requires_grad_()
                graphs.append(Graph(parameters, self._outputs(tasks, parameters, inputs)))
        shape = (observations.shape[-2], self.output_size)
        return Linearised(tasks, tasks.join([graph.outputs for graph in graphs], shape), graphs)

    def push(self, at: Linearised, tangents: Layers) -> Pushed:
        """Return the derivative of the outputs along ``tangents``."""
        parts = zip(at.graphs, self._split(at.tasks, tangents), strict=True)
        changes = [graph.push(own) for graph, own in parts]
        return Pushed(at.tasks.join(changes, at.outputs.shape[-2:]))

    def pull(self, at: Linearised, cotangent: Array, *, again: bool = False) -> Pulled:
        """Return the gradients by the parameters."""
        cotangents = at.tasks.split(cotangent, at.outputs.shape[-2:])
        parts = zip(at.graphs, cotangents, strict=True)
        gradients = [graph.pull(own, again=again) for graph, own in parts]
        return Pulled(self._flat(at.tasks, gradients), gradients if again else [])

    def pull_derivative(
        self, at: Linearised, pulled: Pulled, tangents: Layers, pushed: Pushed, cotangent: Array
    ) -> list[Array]:
        """Return the derivative of the gradients along ``tangents``."""
        cotangents = at.tasks.split(cotangent, at.outputs.shape[-2:])
        parts = zip(pulled.graphs, self._split(at.tasks, tangents), cotangents, strict=True)
        gradients = [
            graph.pull_derivative(*own) for graph, own in zip(at.graphs, parts, strict=True)
        ]
        return self._flat(at.tasks, gradients)

    def _tasks(self, layers: Layers, observations: Array) -> Tasks:
        name, shape = next(iter(self.shapes.items()))
        parameter = layers[name]
        lead = np.broadcast_shapes(parameter.shape[: -len(shape)], observations.shape[:-2])
        dtype = torch.promote_types(_dtype(parameter), _dtype(observations))
        if isinstance(observations, np.ndarray):
            return Tasks(lead, dtype, torch.device("cpu"), as_numpy=True)
        return Tasks(lead, dtype, observations.device, as_numpy=False)

    def _arguments(
        self, tasks: Tasks, layers: Layers, observations: Array
    ) -> Iterator[tuple[Tensors, torch.Tensor]]:
        """Return the parameters and the observations of each graph."""
        inputs = tasks.split(observations, observations.shape[-2:])
        return zip(self._split(tasks, layers), inputs, strict=True)

    def _split(self, tasks: Tasks, layers: Layers) -> list[Tensors]:
        """Return parameters, or tangents, of each graph, in the shapes of the module."""
        numbers = self._numbers
        by_name = []
        for name, shape in self.shapes.items():
            tensors = tasks.split(layers[name], shape)
            by_name.append([each[..., 0] for each in tensors] if name in numbers else tensors)
        return list(zip(*by_name, strict=True))

    @cached_property
    def _numbers(self) -> frozenset[str]:
        """The parameters that are single numbers in the module."""
        learned = _learned(_module(self, torch.float32, torch.device("cpu")))
        return frozenset(name for name, parameter in learned.items() if not parameter.ndim)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """The position in ``shapes`` for every name of a parameter; tied ones have several."""
        module = _module(self, torch.float32, torch.device("cpu"))
        first = {
            id(parameter): position for position, parameter in enumerate(_learned(module).values())
        }
        named = module.named_parameters(remove_duplicate=False)
        return {name: first[id(each)] for name, each in named if id(each) in first}

    def _outputs(
        self, tasks: Tasks, parameters: Tensors, observations: torch.Tensor
    ) -> torch.Tensor:
        """Return the outputs of one graph."""
        module = _module(self, tasks.dtype, tasks.device)

        def call(parameters: Tensors, observations: torch.Tensor) -> torch.Tensor:
            named = {name: parameters[position] for name, position in self._positions.items()}
            outputs: torch.Tensor = functional_call(
                module, named, (observations,), tie_weights=False
            )
            return outputs

        if not tasks.side_by_side:
            return call(parameters, observations)
        try:
            return torch.vmap(call)(parameters, observations)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.name} cannot be used on a GPU, where torch.vmap runs all tasks at once "
                f"({_first_line(error)}): choose device=cpu, or change the module."
            ) from error

    def _flat(self, tasks: Tasks, gradients: list[Tensors]) -> list[Array]:
        """Return gradients of each graph as arrays ``[..., n]``, by each parameter array."""
        by_name = zip(self.shapes.values(), zip(*gradients, strict=True), strict=True)
        return [tasks.join(own, (int(np.prod(shape)),)) for shape, own in by_name]


@lru_cache(maxsize=16)
def _module(network: TorchModule, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return the module that gives all but the learned parameters."""
    return _construct(network, seed=0).to(device=device, dtype=dtype)


def _construct(network: TorchModule, seed: int) -> torch.nn.Module:
    """Return a new module in evaluation mode, whose draws depend only on ``seed``."""
    module_class = find_class("policy", network.name, {}, torch.nn.Module)
    sizes = network.observation_size, network.output_size
    with _draws_from(seed), torch.no_grad():
        with _explained(f"{network.name} cannot be constructed with {sizes} and policy.kwargs"):
            module = module_class(*sizes, **network.kwargs).eval()
        _apply(network, module, torch.zeros(2, sizes[0]))  # lazy layers take their shapes from it
    return module


@contextmanager
def _draws_from(seed: int) -> Iterator[None]:
    """Have torch draw from a seed on the CPU, and NumPy and Python too; then all is as it was."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


@contextmanager
def _explained(sentence: str) -> Iterator[None]:
    """Raise InputError, with the reason, for anything that the user's class raises."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{sentence}: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__


def _learned(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def _apply(
    network: TorchModule, module: torch.nn.Module, observations: torch.Tensor
) -> torch.Tensor:
    """Return the outputs of a module; raises InputError if they are not of the right shape."""
    shape = list(observations.shape)
    dtype = str(observations.dtype).removeprefix("torch.")
    with _explained(f"{network.name} cannot be applied to observations {shape} of {dtype}"):
        outputs = module(observations)
    expected = [shape[0], network.output_size]
    if not isinstance(outputs, torch.Tensor):
        found = type(outputs).__name__
    elif list(outputs.shape) != expected:
        found = str(list(outputs.shape))
    else:
        return outputs
    raise InputError(
        f"{network.name} must return a tensor {expected} for observations {shape}, not {found}."
    )


def _check(network: TorchModule) -> None:
    """Raise InputError unless a network has what gradient-based adaptation needs.

    All but one application, as runs have it, is done in float64, in which finite differences are
    exact enough.
    """
    module = _construct(network, seed=0)
    with _draws_from(0), torch.no_grad():
        outputs = _apply(network, module, torch.randn(3, network.observation_size))
    if outputs.dtype != torch.float32:
        raise InputError(
            f"{network.name} must keep the type of its input: float32 gave {outputs.dtype}."
        )
    module = module.double()
    with _draws_from(0):
        observations = torch.randn(3, network.observation_size, dtype=torch.float64)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        outputs, again = (_apply(network, module, observations) for _ in range(2))
        two = _apply(network, module, observations[:2])
        for name, buffer in module.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise InputError(
                    f"{network.name} changes its buffer {name!r} when it is applied, but a policy "
                    "must not remember anything."
                )
        if not torch.allclose(outputs, again, equal_nan=True):
            raise InputError(f"{network.name} gives other outputs for the same observations.")
        if not torch.allclose(outputs[:2], two, equal_nan=True):
            raise InputError(
                f"The outputs of {network.name} for one observation must not depend on the others."
            )
        if not network.shapes:
            raise InputError(f"{network.name} has no parameters to learn.")
        if not outputs.requires_grad:
            raise InputError(f"The outputs of {network.name} do not depend on its parameters.")
        _check_derivatives(network, module, observations)


def _check_derivatives(
    network: TorchModule, module: torch.nn.Module, observations: torch.Tensor
) -> None:
    """Raise InputError unless derivatives exist, at padding too, and are those of each other."""

    def moved(start: Layers, tangents: Layers, by: float) -> Layers:
        return {name: start[name] + by * tangents[name] for name in start}

    def flat(arrays: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([array.ravel() for array in arrays])

    shapes, learned = network.shapes, _learned(module)
    initial = {name: learned[name].detach().reshape(shapes[name]) for name in shapes}
    tangents = {name: torch.randn_like(array) for name, array in initial.items()}
    layers = moved(initial, tangents, 1e-2)  # away from zeros, at which a ReLU has no derivative
    cotangent, change = torch.randn(2, len(observations), network.output_size).double()

    def pull(layers: Layers, cotangent: torch.Tensor) -> torch.Tensor:
        return flat(network.pull(network.linearise(layers, observations), cotangent).gradients)

    def products(layers: Layers, observations: torch.Tensor) -> Tensors:
        at = network.linearise(layers, observations)
        pulled = network.pull(at, cotangent, again=True)
        pushed = network.push(at, tangents)
        second = network.pull_derivative(at, pulled, tangents, pushed, change)
        return at.outputs, flat(pulled.gradients), pushed.outputs, flat(second)

    with _explained(f"torch cannot differentiate {network.name} twice"):
        own = torch.autograd.grad(
            module(observations), list(learned.values()), cotangent, materialize_grads=True
        )
        padding = products(initial, torch.zeros_like(observations))
        _, gradient, pushed, second = products(layers, observations)
    if not all(part.isfinite().all() for part in padding):
        raise InputError(
            f"The outputs of {network.name} and their derivatives must be finite for observations "
            "of 0 too, which follow the end of an episode."
        )
    if not torch.allclose(pull(initial, cotangent), flat(own)):
        raise InputError(
            f"torch.func.functional_call cannot replace all parameters of {network.name}: it keeps "
            "them, or values computed from them, in places of its own."
        )
    step = 1e-6
    after = pull(moved(layers, tangents, step), cotangent + step * change)
    before = pull(moved(layers, tangents, -step), cotangent - step * change)
    expected = (after - before) / (2 * step)
    forward, backward = (cotangent * pushed).sum(), gradient @ flat(tangents.values())
    rounding = 1e-6 * (gradient.norm() * flat(tangents.values()).norm())
    if not (
        abs(forward - backward) <= rounding
        and (second - expected).norm() <= 1e-4 * expected.norm() + rounding
    ):
        raise InputError(
            f"The second derivatives of {network.name} are not those of its gradients: a part of "
            "it cannot be differentiated twice, or is computed outside autograd."
        )


def _gradients(
    outputs: Tensors, inputs: Tensors, cotangents: Tensors, *, again: bool = False
) -> Tensors:
    """Return the gradients of outputs times cotangents by ``inputs``; graphs are kept."""
    pairs = zip(outputs, cotangents, strict=True)
    outputs, cotangents = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
    with torch.enable_grad():
        return torch.autograd.grad(
            outputs,
            inputs,
            cotangents,
            retain_graph=True,
            create_graph=again,
            materialize_grads=True,
        )


def _dtype(array: Array) -> torch.dtype:
    if isinstance(array, torch.Tensor):
        return array.dtype
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _saved_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all that is saved in the graphs of tensors."""
    nodes, seen, storages = [tensor.grad_fn for tensor in tensors], set(), {}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(after for after, _ in node.next_functions)
        for name in dir(node):
            saved = getattr(node, name) if name.startswith("_saved_") else None
            for part in saved if isinstance(saved, tuple) else (saved,):
                if isinstance(part, torch.Tensor):
                    storage = part.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
