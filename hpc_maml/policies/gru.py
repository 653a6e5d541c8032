"""A gated recurrent unit over one parameter vector, with its gradient in closed form.

The recurrent network of RL^2 (Duan et al. 2016; Wang et al. 2016): what it has seen of a trial is
in its hidden state, which lives on from one episode to the next. As NumPy arrays, a task gets the
same bits beside any others.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from hpc_maml.policies.network import NAME, Array, Layers, Network, NetworkSettings, Sizes
from hpc_maml.policies.sums import sum_rows
from hpc_maml.settings import Count

INITIAL_INPUT_LIMIT = 1.0  # few inputs differ from 0: what is one-hot must combine
LONGEST_MEMORY = 100  # steps: units initially forget over 1 to so many of them
SELECTIVE_INPUT_LIMIT = 4.0  # of update gates that open after few of the last steps
SELECTIVE_BIAS = -2.0  # which are mostly closed
WEAK_INPUT_LIMIT = 0.3  # what such a unit remembers is mostly the reward
INITIAL_OUTPUT_SCALE = 0.01  # the first actions are nearly uniform


class GRUSettings(NetworkSettings):
    """The keys of a gated recurrent unit."""

    name: str = Field("gru", description=NAME)
    hidden_size: Count = Field(128, description="units of the hidden state")
    selective: bool = Field(
        False,
        description="true: at first, a unit remembers rewards that came after few of the pairs of "
        "observation and action; for one-hot observations",
    )


class Unrolled(NamedTuple):
    """A GRU on the T steps of B trials, with what its gradient needs."""

    layers: Layers
    inputs: Array  # [..., T, B, input_size]
    valid: Array  # [..., T, B]
    states: Array  # [..., T + 1, B, hidden_size], before each step, and after the last
    gates: Array  # [..., T, B, 2 * hidden_size], reset and update; padding updates nothing
    recurrent: Array  # [..., T, B, hidden_size], what the reset gate is multiplied with
    candidates: Array  # [..., T, B, hidden_size]
    read: Array  # [..., T * B, hidden_size + input_size], what the readout sees
    features: Array  # [..., T * B, hidden_size], of the readout
    outputs: Array  # [..., T, B, output_size]
    values: Array  # [..., T, B]


@dataclass(frozen=True)
class GRU(Network):
    """A GRU, a layer that reads its state, and two heads: an action distribution, and the value.

    With x_t the input of a step, h_t the state after it, and * by components (Cho et al. 2014, with
    the reset gate after the product, so that a step has one product with its state):
    r, z = sigmoid(x_t W_rz + h_t-1 U_rz + b_rz); n = tanh(x_t W_n + r * (h_t-1 U_n) + b_n);
    h_t = h_t-1 + z * (n - h_t-1); features = tanh([h_t, x_t] R + b).

    A memory ``[..., memory_size]`` is all that a trial carries from step to step: the hidden state,
    then the last step: its observation, action (one-hot if discrete), reward, and whether an
    episode ended with it. It starts as zeros. With the last observation at hand, an input tells by
    itself what some action gained where; without, the state must carry it over one step, and
    learning takes longer (docs/results/algorithms.md).
    """

    observation_size: int
    action_size: int
    discrete: bool
    output_size: int
    hidden_size: int
    selective: bool = False

    Settings: ClassVar[type[Any]] = GRUSettings

    @classmethod
    def make(cls, settings: GRUSettings, sizes: Sizes) -> Self:
        """Return the network of a configuration."""
        hidden, selective = settings.hidden_size, settings.selective
        return cls(sizes.observation, sizes.action, sizes.discrete, sizes.output, hidden, selective)

    @cached_property
    def input_size(self) -> int:
        """The size of a step's input: the observation, and the step before."""
        return self.observation_size + self.last_step_size

    @cached_property
    def memory_size(self) -> int:  # type: ignore[override]
        """The size of what a trial carries from step to step."""
        return self.hidden_size + self.last_step_size

    @cached_property
    def last_step_size(self) -> int:
        """The size of what is told of the step before."""
        return self.observation_size + self.action_size + 2

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter matrix, in the order of theta; gates are reset, update, n."""
        hidden = self.hidden_size
        return {
            "input_weight": (self.input_size, 3 * hidden),
            "input_bias": (1, 3 * hidden),
            "recurrent_weight": (hidden, 3 * hidden),
            "readout_weight": (hidden + self.input_size, hidden),
            "readout_bias": (1, hidden),
            "output_weight": (hidden, self.output_size),
            "output_bias": (1, self.output_size),
            "value_weight": (hidden, 1),
            "value_bias": (1, 1),
        }

    def initialise(self, layers: Layers, rng: np.random.Generator) -> None:
        """Fill views of a zero theta: weights uniform, times to forget from 1 to many steps.

        The biases of the update gate are chrono initialisation (Tallec and Ollivier 2018, eq. 15),
        but with times uniform in their logarithm: some units remember, some read what these know.
        """
        hidden, wide = self.hidden_size, INITIAL_INPUT_LIMIT
        layers["input_weight"][:] = rng.uniform(-wide, wide, self.shapes["input_weight"])
        if self.selective:
            self._make_selective(layers)
        limit = math.sqrt(3 / hidden)
        layers["recurrent_weight"][:] = rng.uniform(-limit, limit, (hidden, 3 * hidden))
        memories = rng.uniform(0, math.log(LONGEST_MEMORY), hidden)
        layers["input_bias"][:, hidden : 2 * hidden] -= memories
        readout = layers["readout_weight"]
        readout[:hidden] = rng.uniform(-limit, limit, (hidden, hidden))
        readout[hidden:] = rng.uniform(-wide, wide, (self.input_size, hidden))
        limit = INITIAL_OUTPUT_SCALE * math.sqrt(6 / (hidden + self.output_size))
        layers["output_weight"][:] = rng.uniform(-limit, limit, (hidden, self.output_size))

    def _make_selective(self, layers: Layers) -> None:
        """Have update gates depend on the last observation and action, candidates on the reward."""
        hidden, seen = self.hidden_size, self.observation_size
        update, candidate = np.split(layers["input_weight"], 3, axis=1)[1:]
        update[:seen] = 0
        update[seen:] *= SELECTIVE_INPUT_LIMIT / INITIAL_INPUT_LIMIT
        update[-2] *= 0.1  # hardly on the reward
        reward = candidate[-2].copy()
        candidate *= WEAK_INPUT_LIMIT / INITIAL_INPUT_LIMIT
        candidate[-2] = reward
        layers["input_bias"][:, hidden : 2 * hidden] = SELECTIVE_BIAS

    def step(self, layers: Layers, memory: Array, observations: Array) -> tuple[Array, Array]:
        """Return outputs ``[..., B, output_size]`` and the new memory, for one step of B trials."""
        xp = array_namespace(memory)
        state, last_step = memory[..., : self.hidden_size], memory[..., self.hidden_size :]
        inputs = xp.concat([observations, last_step], axis=-1)
        projected = inputs @ layers["input_weight"] + layers["input_bias"]
        state = self._advance(state, projected, layers["recurrent_weight"])[0]
        features = _readout(layers, state, inputs)[1]
        outputs = features @ layers["output_weight"] + layers["output_bias"]
        results = last_step[..., self.observation_size :]
        return outputs, xp.concat([state, observations, results], axis=-1)

    def remember(self, memory: Array, actions: Array, rewards: Array, ended: Array) -> Array:
        """Return the memory with actions ``[..., B(, a)]`` and results ``[..., B]`` of the step.

        It has the observations of the step already.
        """
        xp = array_namespace(memory)
        kept = memory[..., : self.hidden_size + self.observation_size]
        return xp.concat([kept, self._results(actions, rewards, ended, memory)], axis=-1)

    def inputs(
        self, observations: Array, actions: Array, rewards: Array, ended: Array, valid: Array
    ) -> Array:
        """Return the inputs ``[..., T, B, input_size]`` of all steps of B trials.

        ``observations`` are ``[..., T, B, observation_size]``, ``actions`` ``[..., T, B(, a)]``,
        the others ``[..., T, B]``. A step after padding, where ``valid`` is false, is told of the
        last valid step.
        """
        xp = array_namespace(observations)
        results = self._results(actions, rewards, ended, observations)
        steps = xp.concat([observations, results], axis=-1)
        inputs = xp.concat([observations, xp.zeros_like(steps)], axis=-1)
        told = inputs[..., self.observation_size :]
        for step in range(1, inputs.shape[-3]):
            came = valid[..., step - 1, :, None]
            told[..., step, :, :] = xp.where(
                came, steps[..., step - 1, :, :], told[..., step - 1, :, :]
            )
        return inputs

    def unroll(self, layers: Layers, inputs: Array, valid: Array) -> Unrolled:
        """Return the network on ``inputs`` ``[..., T, B, input_size]`` of whole trials.

        Where ``valid`` ``[..., T, B]`` is false, the state stays as it is, to the bit.
        """
        xp = array_namespace(inputs)
        *leading, steps, trials, _ = inputs.shape
        hidden = self.hidden_size

        def empty(length: int, width: int) -> Array:
            shape = (*leading, length, trials, width)
            return xp.empty(shape, dtype=inputs.dtype, device=device(inputs))

        projected = _rows(inputs) @ layers["input_weight"] + layers["input_bias"]
        projected = projected.reshape(*leading, steps, trials, 3 * hidden)
        update = projected[..., hidden : 2 * hidden]
        update[...] = xp.where(valid[..., None], update, -math.inf)
        states, gates = empty(steps + 1, hidden), empty(steps, 2 * hidden)
        recurrent, candidates = empty(steps, hidden), empty(steps, hidden)
        state = xp.zeros_like(states[..., 0, :, :])
        states[..., 0, :, :] = state
        for step in range(steps):
            here = (..., step, slice(None), slice(None))
            state, gates[here], recurrent[here], candidates[here] = self._advance(
                state, projected[here], layers["recurrent_weight"]
            )
            states[..., step + 1, :, :] = state
        read, features = _readout(layers, _rows(states[..., 1:, :, :]), _rows(inputs))
        outputs = features @ layers["output_weight"] + layers["output_bias"]
        values = features @ layers["value_weight"] + layers["value_bias"]
        return Unrolled(
            layers,
            inputs,
            valid,
            states,
            gates,
            recurrent,
            candidates,
            read,
            features,
            outputs.reshape(*leading, steps, trials, self.output_size),
            values.reshape(*leading, steps, trials),
        )

    def pull_back(
        self, at: Unrolled, output_cotangent: Array, value_cotangent: Array
    ) -> list[Array]:
        """Return the gradients, flat, by each of ``shapes``: backpropagation through time.

        (Werbos 1990.)

        The cotangents, ``[..., T, B, output_size]`` and ``[..., T, B]``, are of outputs and values;
        in padding they count for nothing.
        """
        xp = array_namespace(at.inputs)
        *leading, steps, trials, _ = at.inputs.shape
        hidden = self.hidden_size
        layers, before = at.layers, at.states[..., :-1, :, :]
        outputs = _rows(xp.where(at.valid[..., None], output_cotangent, 0))
        values = _rows(xp.where(at.valid, value_cotangent, 0)[..., None])
        by_features = outputs @ layers["output_weight"].mT + values @ layers["value_weight"].mT
        by_features *= 1 - at.features * at.features
        pulls = by_features @ layers["readout_weight"][..., :hidden, :].mT
        pulls = pulls.reshape(*leading, steps, trials, hidden)

        # all that the gradient by a step's state is multiplied with, on the way to the step before
        reset, update = at.gates[..., :hidden], at.gates[..., hidden:]
        kept = 1 - update
        slope_n = update * (1 - at.candidates * at.candidates)
        slope_z = (at.candidates - before) * update * kept
        slope_r = slope_n * at.recurrent * reset * (1 - reset)
        slopes = xp.stack([slope_r, slope_z, slope_n * reset], axis=-2)  # by h_t-1 U
        # a copy in its own order: products of few rows take up to four times as long with a view
        transposed = layers["recurrent_weight"].mT
        transposed = transposed.reshape(-1).reshape(transposed.shape)
        pull = xp.zeros_like(pulls[..., 0, :, :])
        for step in reversed(range(steps)):
            pull = pull + pulls[..., step, :, :]
            pulls[..., step, :, :] = pull
            through_gates = pull[..., None, :] * slopes[..., step, :, :, :]
            pull = pull * kept[..., step, :, :]
            pull += through_gates.reshape(*leading, trials, 3 * hidden) @ transposed

        slopes *= pulls[..., None, :]
        by_recurrent = slopes.reshape(*leading, steps * trials, 3 * hidden)
        recurrent_weight = _rows(before).mT @ by_recurrent
        slopes[..., 2, :] = pulls * slope_n
        by_inputs = slopes.reshape(*leading, steps * trials, 3 * hidden)
        gradients = {
            "input_weight": _rows(at.inputs).mT @ by_inputs,
            "input_bias": sum_rows(by_inputs),
            "recurrent_weight": recurrent_weight,
            "readout_weight": at.read.mT @ by_features,
            "readout_bias": sum_rows(by_features),
            "output_weight": at.features.mT @ outputs,
            "output_bias": sum_rows(outputs),
            "value_weight": at.features.mT @ values,
            "value_bias": sum_rows(values),
        }
        return [gradients[name].reshape(*leading, -1) for name in self.shapes]

    def _advance(
        self, state: Array, projected: Array, recurrent_weight: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Return the new state, both gates, what the reset gate multiplies, and the candidate."""
        xp = array_namespace(state)
        hidden = self.hidden_size
        products = state @ recurrent_weight
        gates = products[..., : 2 * hidden] + projected[..., : 2 * hidden]
        # sigmoid(a) = (1 + tanh(a / 2)) / 2, which never overflows and is 0 at minus infinity
        gates *= 0.5
        gates = xp.tanh(gates)
        gates *= 0.5
        gates += 0.5
        recurrent = products[..., 2 * hidden :]
        candidate = gates[..., :hidden] * recurrent
        candidate += projected[..., 2 * hidden :]
        candidate = xp.tanh(candidate)
        change = candidate - state
        change *= gates[..., hidden:]
        change += state
        return change, gates, recurrent, candidate

    def _results(self, actions: Array, rewards: Array, ended: Array, like: Array) -> Array:
        xp = array_namespace(like)
        if self.discrete:
            choices = xp.arange(self.action_size, device=device(like))
            actions = actions[..., None] == choices
        parts = (actions, rewards[..., None], ended[..., None])
        return xp.concat([xp.astype(part, like.dtype) for part in parts], axis=-1)


def _readout(layers: Layers, state: Array, inputs: Array) -> tuple[Array, Array]:
    """Return what the readout sees, and its features ``[..., N, hidden_size]``."""
    xp = array_namespace(state)
    read = xp.concat([state, inputs], axis=-1)
    return read, xp.tanh(read @ layers["readout_weight"] + layers["readout_bias"])


def _rows(array: Array) -> Array:
    """Return the steps and trials ``[..., T, B, n]`` as rows ``[..., T * B, n]``."""
    *leading, steps, trials, width = array.shape
    return array.reshape(*leading, steps * trials, width)
