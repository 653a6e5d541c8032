"""Gymnasium environments from elsewhere as batches; subclasses know where the tasks come from."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from hpc_maml.envs.batched import TaskVectorEnv, check_choices
from hpc_maml.errors import InputError

LONGEST_EPISODE = 1000  # where nothing else is said
IMAGES_PER_SECOND = 30
Maker = Callable[..., Any]  # an environment class, or gymnasium.make with an ID


def maker_of_id(env_id: str) -> Maker:
    """Return what makes a registered environment."""
    return partial(gymnasium.make, env_id, disable_env_checker=True)


def creator_of(maker: Maker) -> Callable[..., Any]:
    """Return the class, or the entry point behind an ID, that takes the keyword arguments."""
    if isinstance(maker, partial):
        entry_point = gymnasium.spec(maker.args[0]).entry_point
        return entry_point if callable(entry_point) else load_env_creator(entry_point)
    return maker


def layer_with(env: Any, name: str) -> Any:
    """Return the outermost layer of wrappers that has an attribute, the innermost if none has."""
    while not hasattr(env, name) and isinstance(env, gymnasium.Wrapper):
        env = env.env
    return env


def title(maker: Maker) -> str:
    """Return the name by which messages call an environment."""
    return maker.args[0] if isinstance(maker, partial) else maker.__name__


def make_one(maker: Maker, **kwargs: Any) -> Any:
    """Make one environment; ValueError says what Gymnasium complains about."""
    try:
        return maker(**kwargs)
    except (gymnasium.error.Error, AssertionError) as error:
        raise ValueError(f"{title(maker)}: {' '.join(str(error).split()).rstrip('.')}") from None


class Foreign(TaskVectorEnv):
    """What all adapters share: spaces made flat, and the environment's own truncation.

    All draws of an episode follow from a seed, which comes from the task's generator.
    """

    def __init__(
        self, name: str, observations: spaces.Space, actions: spaces.Space, **sizes: Any
    ) -> None:
        """Make the batch for the spaces of one environment; ValueError for unsuitable ones."""
        self._name = name
        self._original_observations, self._original_actions = observations, actions
        try:
            flat = spaces.flatten_space(observations)
        except NotImplementedError:
            flat = None
        if not isinstance(flat, spaces.Box):
            raise ValueError(f"observations of {name} cannot be made an array: {observations}")
        if isinstance(actions, spaces.Box) and np.issubdtype(actions.dtype, np.floating):
            low, high = (bound.ravel().astype(np.float32) for bound in (actions.low, actions.high))
            flat_actions = spaces.Box(low, high, dtype=np.float32)
        elif isinstance(actions, spaces.Discrete):
            flat_actions = spaces.Discrete(actions.n)
        else:
            raise ValueError(f"actions of {name} must be a Box of floats or Discrete: {actions}")
        super().__init__(
            **sizes | {"horizon": sizes["horizon"] or LONGEST_EPISODE},
            single_observation_space=spaces.Box(
                flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32
            ),
            single_action_space=flat_actions,
        )
        if isinstance(actions, spaces.Discrete):
            self.policy_action_space = spaces.Discrete(actions.n, start=actions.start)
        self._seen = np.zeros(self.observation_space.shape, np.float32)
        self._cut_short = np.zeros(self.num_envs, np.bool_)
        self._succeeded = np.zeros(self.num_envs, np.bool_)

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2**32, size=(self.episodes_per_task, 1))

    def _observations(self) -> np.ndarray:
        return self._seen.copy()

    def _truncated(self) -> np.ndarray:
        return super()._truncated() | self._cut_short

    def _flat(self, observation: Any) -> np.ndarray:
        """Return an observation as an array; raises InputError for one of another shape."""
        found = np.asarray(spaces.flatten(self._original_observations, observation))
        if found.shape != self.single_observation_space.shape:
            raise InputError(
                f"{self._name} returned an observation of {list(found.shape)} numbers, its "
                f"observation_space has {list(self.single_observation_space.shape)}."
            )
        return found

    def _image(self, drawn: Any) -> np.ndarray:
        """Return what ``render`` gave as an array; raises InputError if it is no image."""
        found = np.asarray(drawn)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[-1] != 3:
            what = f"{found.dtype} {list(found.shape)}" if found.ndim else type(drawn).__name__
            raise InputError(
                f"{self._name}: render must return an image, uint8 [height, width, 3], not {what}."
            )
        return found

    def _original(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environments take them, ``[num_envs, ...]``."""
        space = self._original_actions
        if isinstance(space, spaces.Discrete):
            check_choices(actions, space.n)
            return actions + space.start
        if np.isnan(actions).any():
            raise ValueError("actions hold NaN")
        shaped = actions.reshape(-1, *space.shape)
        return shaped.clip(space.low, space.high).astype(space.dtype)

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        self._succeeded[:] = False
        self._step_all(
            self._original(actions), self._active if active is None else active, rewards, terminated
        )
        infos = {"success": self._succeeded.copy()} if self.reports_success else {}
        return self._observations(), rewards, terminated, infos

    @abstractmethod
    def _step_all(
        self, actions: np.ndarray, active: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> None:
        """Step the active episodes; fill rewards and terminated, ``_seen`` and ``_cut_short``.

        Also ``_succeeded``, if the environment ``reports_success``.
        """


class SingleEnvs(Foreign):
    """Single environments, stepped one after the other."""

    def __init__(self, name: str, envs: Sequence[gymnasium.Env], **sizes: Any) -> None:
        """Make the batch of environments of one kind."""
        self._envs = list(envs)
        reporting = layer_with(envs[0], "reports_success")
        self.reports_success = bool(getattr(reporting, "reports_success", False))
        super().__init__(name, envs[0].observation_space, envs[0].action_space, **sizes)

    def image(self, row: int) -> np.ndarray:
        """Return an image of an episode, uint8 ``[height, width, 3]``; needs ``rgb_array``."""
        return self._image(self._envs[row].render())

    @property
    def seconds_per_step(self) -> float:
        """The time that a step takes in a film, where the environment says so."""
        return 1 / float(self._envs[0].metadata.get("render_fps") or IMAGES_PER_SECOND)

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        for row, seed in zip(np.flatnonzero(chosen), starts[:, 0], strict=True):
            found = self._envs[row].reset(seed=int(seed))
            if not (isinstance(found, tuple) and len(found) == 2):
                raise InputError(f"{self._name}: reset must return an observation and infos.")
            self._seen[row] = self._flat(found[0])
        self._cut_short[chosen] = False

    def _step_all(
        self, actions: np.ndarray, active: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> None:
        for row in np.flatnonzero(active):
            found = self._envs[row].step(actions[row])
            if not (isinstance(found, tuple) and len(found) == 5):
                raise InputError(
                    f"{self._name}: step must return an observation, a reward, whether the episode "
                    "terminated and was truncated, and infos."
                )
            observation, reward, terminated[row], self._cut_short[row], info = found
            if np.size(reward) != 1:
                raise InputError(f"{self._name}: step must return one reward, not {reward!r}.")
            rewards[row] = np.asarray(reward).item()
            self._seen[row] = self._flat(observation)
            if self.reports_success:
                if "success" not in info:
                    raise InputError(f"{self._name} reports_success, but infos have no success.")
                self._succeeded[row] = info["success"]


class GivenEnv(SingleEnvs):
    """One environment that somebody made, with whatever task it has."""

    task_dim = 0

    def __init__(self, env: gymnasium.Env, horizon: int) -> None:
        """Keep it; ValueError for spaces that cannot be used."""
        sizes = {"num_tasks": 1, "episodes_per_task": 1, "horizon": horizon, "num_threads": 1}
        super().__init__(type(env.unwrapped).__name__, [env], **sizes)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Return n times nothing, ``[n, 0]``."""
        return np.zeros((n, 0))
