"""A policy that a run has learned, to act and to adapt with, from Python.

It needs neither MPI nor, but for networks that are torch modules and for export, torch.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Discrete

from hpc_maml.algorithms import Algorithm
from hpc_maml.algorithms.algorithm import State
from hpc_maml.algorithms.collection import collect_phase
from hpc_maml.config import Config, EnvConfig
from hpc_maml.envs.batched import TaskVectorEnv, check_choices
from hpc_maml.envs.foreign import GivenEnv, layer_with
from hpc_maml.errors import InputError, shown
from hpc_maml.parts import make_algorithm, make_dtype, make_env
from hpc_maml.policies.distributions import Parameters
from hpc_maml.sampling.rollout import Play
from hpc_maml.sampling.trajectory import Trajectories, trajectories

if TYPE_CHECKING:
    from hpc_maml.torch_export import TorchPolicy


@dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """The policy of a checkpoint, or what it became on a task, or on G tasks side by side.

    It does not change: ``adapt`` returns another one. Actions are those of training, that is
    before the environment brings them into its limits.
    """

    config: Config
    algorithm: Algorithm
    observation_space: Space
    action_space: Space
    state: State
    iteration: int  # of the checkpoint
    parameters: np.ndarray  # float32 [P], or [G, P] of G tasks
    memory: np.ndarray | None = None  # [M], or [G, M]: what a recurrent policy has seen of the task
    updates: int = 0  # how often it was adapted: inner steps, or episodes of a trial

    def __repr__(self) -> str:
        of = f" of {len(self.parameters)} tasks" if self.parameters.ndim == 2 else ""
        adapted = f", adapted {self.updates} times" if self.updates else ""
        return f"<policy of iteration {self.iteration}{adapted}{of}>"

    @property
    def recurrent(self) -> bool:
        """Whether it acts by a memory, hence in a ``trial`` only."""
        return bool(self.algorithm.policy.memory_size)

    def __call__(
        self,
        observations: Any,
        *,
        deterministic: bool = True,
        rng: int | np.random.Generator | None = None,
    ) -> np.ndarray:
        """Return actions ``[*batch, *action]`` for observations ``[*batch, *observation]``.

        They are the most probable ones, or drawn by ``rng``, a generator or a seed, where
        ``deterministic`` is false. A policy of G tasks takes ``[G, *batch, *observation]``.
        Raises InputError for another shape and for a recurrent policy.
        """
        if self.recurrent:
            raise InputError(
                "A recurrent policy acts by what it remembers: begin with trial = policy.trial(), "
                "then call trial.act(observation)."
            )
        return self.trial(self._batch(observations)).act(
            observations, deterministic=deterministic, rng=rng
        )

    def trial(self, batch: int | tuple[int, ...] = ()) -> "Trial":
        """Return a new trial, or ``batch`` of them side by side, for each task.

        Raises InputError for numbers that are none.
        """
        each = batch if isinstance(batch, Sequence | np.ndarray) else (batch,)
        return Trial(self, tuple(_whole_number("batch", number) for number in each))

    def adapt(
        self,
        env: str | TaskVectorEnv | gymnasium.Env,
        task: Any = None,
        *,
        updates: int = 1,
        episodes: int | None = None,
        seed: int | None = None,
    ) -> "TrainedPolicy":
        """Return this policy after ``updates`` phases of play on a task, each with an adaptation.

        ``env`` is a name, as in ``env.name``, with a ``task`` ``[task_dim]`` or ``[G, task_dim]``
        of G tasks; a TaskVectorEnv; or a Gymnasium environment, which is played as it is, or given
        the task by its ``set_task``. A phase has as many ``episodes`` as in training. A recurrent
        policy is not changed by a phase, but remembers its one episode. With the ``seed`` of the
        run, the default, everything is drawn as in a meta-test. Raises InputError.
        """
        updates = _whole_number("updates", updates)
        seed = self.config.seed if seed is None else _whole_number("seed", seed)
        least = 1 if self.recurrent else 2
        if episodes is not None and _whole_number("episodes", episodes) < least:
            raise InputError("A policy is adapted on two episodes at least.")
        if self.recurrent and episodes not in (None, 1):
            raise InputError("A recurrent policy remembers one episode of each phase.")
        number = 1 if self.recurrent else episodes or self.config.fast_batch_size
        played = _PlayedEnv(self, env, task, number)
        if played.episodes != number and (episodes is not None or self.recurrent):
            raise InputError(
                f"The environment has {played.episodes} episodes of each task, not {number}."
            )
        if played.episodes < 2 and not self.recurrent:
            raise InputError("A policy is adapted on two episodes at least.")
        if self.parameters.ndim == 2 and len(self.parameters) != played.env.num_tasks:
            raise InputError(f"This is a policy of {len(self.parameters)} tasks: give as many.")
        with_episodes = self.config.model_copy(update={"fast_batch_size": played.episodes})
        algorithm = make_algorithm(with_episodes, played.env)
        state, count = algorithm.played(self.state), played.env.num_tasks
        play = algorithm.begin(state, count)
        parameters = np.broadcast_to(self.parameters, (count, self.parameters.shape[-1]))
        play = play._replace(parameters=parameters.copy())
        if self.memory is not None and play.memory is not None:
            kept = np.broadcast_to(self.memory[..., None, :], play.memory.shape)
            play = play._replace(memory=kept.copy())
        with np.errstate(over="ignore", invalid="ignore"):  # a divergence is seen by its NaN
            for phase in range(self.updates, self.updates + updates):
                batches, memory = played.collect(algorithm, play, phase, seed, with_episodes)
                for batch in batches:
                    batch["advantages"][:] = algorithm.advantages(trajectories(batch))
                play = algorithm.adapt(
                    state,
                    play._replace(memory=memory),
                    trajectories(batches),
                    phase,
                    evaluation=True,
                )
        if not np.isfinite(play.parameters).all():
            raise InputError(
                "The adaptation has diverged: the adapted parameters are not finite; a smaller "
                "algorithm.fast_lr is needed."
            )
        one = played.one and self.parameters.ndim == 1
        after = None if play.memory is None else play.memory[:, 0]
        return replace(
            self,
            parameters=play.parameters[0] if one else play.parameters,
            memory=after[0] if one and after is not None else after,
            updates=self.updates + updates,
        )

    def to_torch(self) -> "TorchPolicy":
        """Return the policy as a ``torch.nn.Module``, with copies of its parameters.

        See hpc_maml/torch_export.py for what it takes and returns. Raises InputError for several
        tasks.
        """
        from hpc_maml.torch_export import torch_policy

        self._check_single()
        return torch_policy(self.algorithm.policy, self.parameters, self._play.normaliser)

    def to_onnx(self, path: str | Path) -> Path:
        """Write the policy as an ONNX file, for batches of any size, and return its path.

        Its inputs and outputs are those of ``to_torch``, by name. Raises InputError.
        """
        from hpc_maml.torch_export import write_onnx

        return write_onnx(self.to_torch(), Path(path))

    def _check_single(self) -> None:
        if self.parameters.ndim > 1:
            raise InputError("A policy of several tasks is exported task by task: adapt to one.")

    @cached_property
    def _play(self) -> Play:
        """What an algorithm plays with, of which the normaliser is of interest."""
        return self.algorithm.begin(self.algorithm.played(self.state), 1)

    @cached_property
    def _layers(self) -> dict[str, Any]:
        return self.algorithm.policy.unflatten(self.parameters)

    @property
    def _tasks(self) -> tuple[int, ...]:
        return self.parameters.shape[:-1]

    def _batch(self, observations: Any) -> tuple[int, ...]:
        """Return the dimensions of observations between tasks and observation."""
        shape, own = np.shape(observations), self.observation_space.shape or ()
        lead = shape[: len(shape) - len(own)]
        if shape[len(lead) :] != own or lead[: len(self._tasks)] != self._tasks:
            expected = ", ".join(map(str, (*self._tasks, "...", *own)))
            raise InputError(f"Observations must be [{expected}], not {list(shape)}.")
        return lead[len(self._tasks) :]

    def _rows(self, observations: Any) -> np.ndarray:
        """Return observations as the network sees them, float32 ``[*tasks, N, obs_dim]``."""
        size = int(np.prod(self.observation_space.shape or ()))
        rows = np.asarray(observations, np.float32).reshape(*self._tasks, -1, size)
        return self._play.normaliser(rows) if self._play.normaliser else rows


class Trial:
    """Episodes of a task, one after the other, in which a policy acts.

    A recurrent policy remembers all of a trial: observations, actions and their results. So
    ``observe`` must follow each ``act``. Others forget, and need not observe.
    """

    def __init__(self, policy: TrainedPolicy, batch: tuple[int, ...]) -> None:
        """Begin ``batch`` trials side by side, of each task of the policy."""
        self.policy = policy
        self.batch = batch
        self.memory: np.ndarray | None = None  # [*tasks, N, M]
        self._actions: np.ndarray | None = None  # [*tasks, N, ...], whose results are not yet known
        self._first_action = int(getattr(policy.action_space, "start", 0))
        if size := policy.algorithm.policy.memory_size:
            shape = (*policy._tasks, int(np.prod(batch)), size)
            begun = np.zeros(size, np.float32) if policy.memory is None else policy.memory
            self.memory = np.broadcast_to(begun[..., None, :], shape).copy()

    def act(
        self,
        observations: Any,
        *,
        deterministic: bool = True,
        rng: int | np.random.Generator | None = None,
    ) -> np.ndarray:
        """Return actions for observations, as the policy does; raises InputError."""
        if self.policy._batch(observations) != self.batch:
            raise InputError(
                f"This trial is one of {list(self.batch)}, the observations are of "
                f"{list(self.policy._batch(observations))}: see policy.trial(batch)."
            )
        if self.memory is not None and self._actions is not None:
            raise InputError(
                "The result of the last action is missing: call trial.observe(reward, ended)."
            )
        policy, distribution = (
            self.policy.algorithm.policy,
            self.policy.algorithm.policy.distribution,
        )
        parameters: Parameters
        rows = self.policy._rows(observations)
        parameters, self.memory = policy.step(self.policy._layers, self.memory, rows)
        if deterministic:
            actions = distribution.most_probable(parameters)
        else:
            noise = distribution.noise(np.random.default_rng(rng), rows.shape[:-1])
            actions = distribution.sample(parameters, noise)
        self._actions = actions
        own = self.policy.action_space.shape or ()
        found: np.ndarray = actions.reshape((*self.policy._tasks, *self.batch, *own))
        return (found + self._first_action)[()] if self._first_action else found[()]

    def observe(self, rewards: Any, ended: Any, actions: Any = None) -> None:
        """Remember the result of the last actions: rewards, and whether the episode ended.

        Both are ``[*tasks, *batch]``; ``actions`` are given if others were taken than the policy
        chose. Raises InputError before the first ``act``, and for another shape.
        """
        if self._actions is None:
            raise InputError("There is no action yet: call trial.act(observation) first.")
        if actions is not None:
            own = self.policy.action_space.shape or ()
            taken = self._shaped(self._actions, actions, own, "actions") - self._first_action
            if isinstance(self.policy.action_space, Discrete):
                try:
                    check_choices(taken, self.policy.action_space.n)
                except ValueError as error:
                    raise InputError(f"The actions do not fit: {error}.") from None
            self._actions = taken.astype(self._actions.dtype)
        if self.memory is not None:
            lead = self.memory.shape[:-1]
            self.memory = self.policy.algorithm.policy.network.remember(
                self.memory,
                self._actions,
                self._shaped(np.empty(lead, np.float32), rewards, (), "rewards"),
                self._shaped(np.empty(lead, np.bool_), ended, (), "ended"),
            )
        self._actions = None

    def _shaped(
        self, expected: np.ndarray, values: Any, own: tuple[int, ...], name: str
    ) -> np.ndarray:
        """Return values ``[*tasks, *batch, *own]`` in the shape of an array; raises InputError."""
        kind = expected.dtype if expected.dtype == np.bool_ else np.float64
        try:
            given = np.asarray(values, kind)
        except (TypeError, ValueError):
            raise InputError(f"The {name} are no numbers: {shown(values)}.") from None
        shape = (*self.policy._tasks, *self.batch, *own)
        if given.shape != shape:
            raise InputError(f"The {name} must be {list(shape)}, not {list(given.shape)}.")
        if not np.isfinite(given).all():
            raise InputError(f"The {name} must be finite.")
        if expected.dtype.kind in "iu" and (given != np.floor(given)).any():
            raise InputError(f"The {name} must be integers.")
        return given.astype(expected.dtype).reshape(expected.shape)


class _PlayedEnv:
    """The environment that a policy is adapted in."""

    def __init__(
        self,
        policy: TrainedPolicy,
        env: str | TaskVectorEnv | gymnasium.Env,
        task: Any,
        episodes: int,
    ) -> None:
        """Find or make it, and set the tasks; raises InputError."""
        own = isinstance(env, gymnasium.Env)  # whose tasks may be of any kind
        if not own and not isinstance(env, str | TaskVectorEnv):
            raise InputError(f"The environment is a name or an environment, not {env!r}.")
        try:
            tasks = None if own or task is None else np.atleast_2d(np.asarray(task, np.float64))
        except (TypeError, ValueError):
            raise InputError(
                "The task does not fit: it is [task_dim] or [G, task_dim] numbers."
            ) from None
        if tasks is not None and not np.isfinite(tasks).all():
            raise InputError("The task does not fit: its numbers must be finite.")
        self.one = own or np.ndim(task) < 2
        self.repeats = 1  # of an environment that plays one episode at a time
        self.episodes = episodes
        if isinstance(env, gymnasium.Env):
            if task is not None:
                _set_task(env, task)
            self.repeats = episodes
            try:
                self.env: TaskVectorEnv = GivenEnv(env, policy.config.horizon)
            except ValueError as error:
                raise InputError(f"The environment cannot be used: {error}.") from None
        elif isinstance(env, TaskVectorEnv):
            if tasks is None and not env.has_tasks:
                raise InputError("Say which task to adapt to: policy.adapt(env, task).")
            self.env = env
            self.one = self.one and env.num_tasks == 1
            self.episodes = env.episodes_per_task
        else:
            if tasks is None:
                raise InputError("Say which task to adapt to: policy.adapt(name, task).")
            self.env = _make(policy.config, env, len(tasks), episodes)
        if tasks is not None:
            try:
                self.env.set_tasks(tasks)
            except ValueError as error:
                raise InputError(f"The task does not fit: {error}.") from None
        for name in ("observation", "action"):
            here, there = (
                getattr(self.env, f"single_{name}_space"),
                getattr(policy, f"{name}_space"),
            )
            if (here.shape, getattr(here, "n", 0)) != (there.shape, getattr(there, "n", 0)):
                raise InputError(
                    f"The {name}s of this environment are {here}, those that the policy learned "
                    f"with {there}."
                )

    def collect(
        self, algorithm: Algorithm, play: Play, phase: int, seed: int, config: Config
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the batches ``[G]`` of a phase and the memory after it."""
        each = config.model_copy(update={"fast_batch_size": self.episodes // self.repeats})
        found = [
            collect_phase(
                algorithm.policy,
                self.env,
                play,
                phase,
                keys=[(seed, repeat, index) for index in range(self.env.num_tasks)],
                evaluation=True,
                dtype=make_dtype(each, self.env),
            )
            for repeat in range(self.repeats)
        ]
        if self.repeats == 1:
            return found[0]
        joined = np.zeros(1, make_dtype(config, self.env))
        for name in Trajectories._fields:
            if name != "task":
                parts = [batches[name] for batches, _ in found]
                joined[name] = np.concatenate(parts, axis=1 if name == "lengths" else 2)
        return joined, found[-1][1]


def _whole_number(name: str, given: Any) -> int:
    """Return a whole number; raises InputError for anything else, and below 0."""
    try:
        number = operator.index(given)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"{name} must be a whole number, 0 or more, not {given!r}.")
    return number


def _make(config: Config, name: str, num_tasks: int, episodes: int) -> TaskVectorEnv:
    """Make an environment by name; that of the run has its keywords."""
    if name != config.env.name:
        config = config.model_copy(update={"env": EnvConfig(name=name)})
    return make_env(config, episodes, num_tasks=num_tasks)


def _set_task(env: gymnasium.Env, task: Any) -> None:
    set_task = getattr(layer_with(env, "set_task"), "set_task", None)
    if set_task is None:
        raise InputError("The environment has no set_task: leave the task out.")
    set_task(task)
