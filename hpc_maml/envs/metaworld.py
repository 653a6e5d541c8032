"""Meta-World's benchmarks ML1, ML10 and ML45: a Sawyer arm with fifty tasks, on batched physics.

The models, the resets and the goals' boxes are the package's. A task is one of its environments and
a goal. Every episode of a task begins in the same state, so one reset serves all of them. Tasks of
one class share a batch, in which each has the model that its reset left.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box

try:
    from mujoco.batch import Batch, SimulationError
except ImportError:
    raise ImportError(
        f"MuJoCo {mujoco.__version__} is installed, but 4.0 or newer is needed: pip install "
        "'mujoco>=4,<5' (metaworld asks for an older one: install it with --no-deps)"
    ) from None

from hpc_maml.envs import metaworld_package as package
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.envs.metaworld_objects import OBJECTS, Reader
from hpc_maml.envs.metaworld_rewards import REWARDS, Scene
from hpc_maml.envs.mujoco_timers import stop_timers
from hpc_maml.errors import nearest

GOALS = 50  # of each class, for training and again for meta-tests
GOAL_SIZE = 6  # numbers of the longest goal
TRAINING, TEST = 0, 1  # which of the two sets of goals
HORIZON = 500
SHOWN = 18  # numbers of an observation that show one moment: hand, fingers, objects
LARGEST_OPENING = 0.1  # distance of the fingers that counts as 1, in m
STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class Episodes:
    """B episodes of each of G tasks of one class, task by task: R = G B rows of one batch.

    ``envs`` are the package's environments, one of each task, as their resets left them; ``places``
    says which episodes of the vector environment they are, int64 ``[R]``.
    """

    def __init__(
        self, name: str, goals: np.ndarray, episodes: int, threads: int, places: np.ndarray
    ) -> None:
        """Reset an environment for each goal ``[G, n]``; ValueError for one that is refused."""
        started = [package.started(name, goal) for goal in goals]
        self.envs = [env for env, _ in started]
        self.places = places
        # Not always what the state would show: some resets end without computing positions anew.
        self.first = np.array([seen[:SHOWN] for _, seen in started]).repeat(episodes, 0)
        self.env = env = self.envs[0]  # for what all tasks of the class have in common
        self.batch = batch = Batch(env.model, len(places), threads)
        batch.set_models([each.model for each in self.envs for _ in range(episodes)])
        states = np.empty((len(goals), batch.nstate))
        for each, state in zip(self.envs, states, strict=True):
            mujoco.mj_getState(each.model, each.data, state, STATE)
        self.start = states.repeat(episodes, 0)
        self.low, self.high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self.mocap, self.turn = batch.bind("mocap_pos")[:, 0], batch.bind("mocap_quat")[:, 0]
        self.controls = batch.bind("ctrl")
        self.divergences = batch.warning[
            :, mujoco.mjtWarning.mjWARN_BADQPOS : mujoco.mjtWarning.mjWARN_BADCTRL + 1, 1
        ]
        reader = Reader(batch, env.model)
        self.hand = reader.position("body", "hand")
        self.claws = [reader.position("body", f"{side}claw") for side in ("right", "left")]
        self.objects = [reader.thing(thing) for thing in OBJECTS[name]]
        self.now = np.zeros_like(self.first)
        self.before = np.zeros_like(self.first)
        reward = REWARDS.get(name)
        self.score = (
            reward(Scene(self.envs, episodes, reader))
            if reward
            else PackageReward(self.envs, episodes, batch)
        )

    def begin(self, chosen: np.ndarray) -> None:
        """Put the chosen episodes, bool ``[R]``, into their initial states."""
        if not chosen.any():
            return
        self.batch.reset(chosen, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.batch.state[chosen] = self.start[chosen]
        self.batch.forward(chosen, mujoco.mjtStage.mjSTAGE_POS.value)
        self.before[chosen] = self.now[chosen] = self.first[chosen]
        if isinstance(self.score, PackageReward):
            self.score.begin(chosen)

    def advance(self, actions: np.ndarray, active: np.ndarray | None) -> None:
        """Step the active episodes with actions ``[R, 4]`` in [-1, 1]."""
        env = self.env
        moved = self.mocap + actions[:, :3] * env.action_scale
        np.clip(moved, env.mocap_low, env.mocap_high, out=self.mocap)
        self.turn[:] = (1.0, 0.0, 1.0, 0.0)
        self.controls[:, 0], self.controls[:, 1] = actions[:, 3], -actions[:, 3]
        try:
            self.batch.step(active, nstep=env.frame_skip, stage=mujoco.mjtStage.mjSTAGE_POS.value)
        except SimulationError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            self.divergences[error.ids] = 1
        self.before, self.now = self.now, self.before
        self._look()

    def _look(self) -> None:
        """Read what an observation shows of this moment."""
        now = self.now
        now[:, :3] = self.hand
        apart = self.claws[0] - self.claws[1]
        opening = np.sqrt((apart * apart).sum(1)) / LARGEST_OPENING
        np.clip(opening, 0.0, 1.0, out=now[:, 3])
        for number, write in enumerate(self.objects):
            write(now[:, 4 + 7 * number : 11 + 7 * number])

    def observations(self) -> np.ndarray:
        """Return what is seen ``[R, 39]``: this moment, the one before, and zeros for the goal."""
        seen = np.zeros((len(self.now), len(self.low)))
        seen[:, :SHOWN], seen[:, SHOWN : 2 * SHOWN] = self.now, self.before
        return seen.clip(self.low, self.high)


class PackageReward:
    """The package's own reward and success, computed for one episode after the other."""

    def __init__(self, envs: Sequence[Any], episodes: int, batch: Batch) -> None:
        self.envs = [env for env in envs for _ in range(episodes)]  # of each row
        self.batch = batch
        # Some environments remember something of an episode: each has attributes of its own.
        fresh = [dict(vars(env)) for env in envs]
        self.fresh = [attributes for attributes in fresh for _ in range(episodes)]
        self.attributes = [dict(attributes) for attributes in self.fresh]

    def begin(self, chosen: np.ndarray) -> None:
        """Forget what belongs to the episodes that begin, bool ``[R]``."""
        for row in np.flatnonzero(chosen):
            self.attributes[row] = dict(self.fresh[row])

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rewards and successes ``[R]`` of observations ``[R, 39]`` and actions."""
        states = self.batch.state
        rewards, successes = np.zeros(len(seen)), np.zeros(len(seen), np.bool_)
        sound = np.isfinite(states).all(1)  # of the others, which diverged, the package may raise
        for row in np.flatnonzero(sound):
            env = self.envs[row]
            env.__dict__ = self.attributes[row]
            mujoco.mj_setState(env.model, env.data, states[row], STATE)
            mujoco.mj_forward(env.model, env.data)
            rewards[row], infos = env.evaluate_state(seen[row], actions[row])
            successes[row] = bool(infos["success"])
        return rewards, successes


class Metaworld(TaskVectorEnv):
    """Tasks of the Sawyer arm: an index into ``classes``, then the goal, zeros after its end."""

    task_dim = 1 + GOAL_SIZE
    reports_success = True

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None,
        num_threads: int,
        training_classes: Sequence[str],
        test_classes: Sequence[str],
        goal_seed: int,
    ) -> None:
        """Make the batch for classes by name; ``goal_seed`` decides on their goals."""
        self._names = {TRAINING: tuple(training_classes), TEST: tuple(test_classes)}
        self.classes = tuple(dict.fromkeys((*training_classes, *test_classes)))
        self.training_classes = tuple(training_classes) if len(training_classes) > 1 else ()
        if type(goal_seed) is not int or not 0 <= goal_seed < 2**64:
            raise ValueError(f"goal_seed must be an integer from 0 to 2^64 - 1, not {goal_seed!r}")
        if horizon and horizon > HORIZON:
            raise ValueError(f"an episode of Meta-World has {HORIZON} steps at most, not {horizon}")
        stop_timers()
        self.goal_seed = goal_seed
        self._goals: dict[tuple[str, int], np.ndarray] = {}
        self._of_classes: list[Episodes] = []
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon or HORIZON,
            num_threads=num_threads,
            single_observation_space=Box(-np.inf, np.inf, (2 * SHOWN + 3,), np.float32),
            single_action_space=Box(-1.0, 1.0, (4,), np.float32),
        )

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks of training, float64 ``[n, 7]``, the same number of each class.

        They are sorted by class, and no two are the same. A number that the classes do not divide
        gives some of them one more. Raises ValueError for more than there are.
        """
        return self._sample(rng, n, TRAINING)

    def sample_test_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks of a meta-test likewise, from the test classes and their test goals."""
        return self._sample(rng, n, TEST)

    def check_numbers(self, training: int, test: int) -> None:
        """Raise ValueError for numbers that do not cover the classes evenly, or goals twice."""
        for number, kind, words in (
            (training, TRAINING, "meta_batch_size"),
            (test, TEST, "evaluation.tasks"),
        ):
            classes = len(self._names[kind])
            if number % classes:
                raise ValueError(
                    f"{words} is {number}, which does not cover the {classes} classes evenly: "
                    f"take a multiple of {classes}"
                )
            if number > classes * GOALS:
                raise ValueError(
                    f"{words} is {number}, but there are only {classes * GOALS} tasks, "
                    f"{GOALS} goals of each class"
                )

    def _sample(self, rng: np.random.Generator, n: int, kind: int) -> np.ndarray:
        names = self._names[kind]
        if n > GOALS * len(names):
            raise ValueError(f"there are {GOALS * len(names)} tasks, not {n}")
        counts = np.full(len(names), n // len(names))
        counts[rng.permutation(len(names))[: n % len(names)]] += 1
        tasks = np.zeros((n, self.task_dim))
        end = 0
        for name, count in zip(names, counts, strict=True):
            chosen = rng.permutation(GOALS)[:count]
            if not count:
                continue
            goals = self._goals_of(name, kind)[chosen]
            rows = tasks[end : end + count]
            rows[:, 0], rows[:, 1 : 1 + goals.shape[1]] = self.classes.index(name), goals
            end += count
        return tasks

    def _goals_of(self, name: str, kind: int) -> np.ndarray:
        """Return the goals of a class for training or meta-tests ``[GOALS, n]``."""
        if (name, kind) not in self._goals:
            number = tuple(OBJECTS).index(name)
            generators = [
                np.random.Generator(
                    np.random.Philox(key=[self.goal_seed, kind], counter=[0, goal, number, 0])
                )
                for goal in range(GOALS)
            ]
            self._goals[name, kind] = package.draw_goals(name, generators)
        return self._goals[name, kind]

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, 7]``; ValueError for another shape or an unknown class."""
        super().set_tasks(tasks)
        self._of_classes = []
        classes = self._tasks[:, 0]
        for index in dict.fromkeys(classes.tolist()):
            if index not in range(len(self.classes)):
                raise ValueError(f"there is no class {index:g}: there are {len(self.classes)}")
            places = np.flatnonzero(classes == index)
            goals = self._tasks[places[:: self.episodes_per_task], 1:]
            self._of_classes.append(
                Episodes(
                    self.classes[int(index)],
                    goals,
                    self.episodes_per_task,
                    self.num_threads,
                    places,
                )
            )

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        return np.zeros((self.episodes_per_task, 0))  # nothing is left to chance

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        for own in self._of_classes:
            own.begin(chosen[own.places])

    def _observations(self) -> np.ndarray:
        observations = np.empty(self.observation_space.shape, np.float32)
        for own in self._of_classes:
            observations[own.places] = own.observations()
        return observations

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if np.isnan(actions).any():
            raise ValueError("actions hold NaN")
        actions = actions.astype(np.float32).clip(-1.0, 1.0)
        observations = np.empty(self.observation_space.shape, np.float32)
        rewards, successes = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        diverged = np.zeros(self.num_envs, np.bool_)
        for own in self._of_classes:
            places = own.places
            own_actions = actions[places]
            own.advance(own_actions, None if active is None else active[places])
            seen = own.observations()
            rewards[places], successes[places] = own.score(seen, own_actions.astype(np.float64))
            observations[places] = seen
            if np.count_nonzero(own.divergences) or not np.isfinite(own.batch.state).all():
                ended = own.divergences.any(1) | ~np.isfinite(own.batch.state).all(1)
                diverged[places] = ended
                own.batch.reset(ended, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        if active is not None:
            successes &= active
        infos = {"success": successes}
        if diverged.any():
            observations[diverged], rewards[diverged], successes[diverged] = 0, 0, False
            infos["diverged"] = diverged
        return observations, rewards, diverged, infos


# Meta-World v2 (Yu et al. 2019, arXiv 1910.10897v2, table 9): the network and the KL limit; the
# inner step size is that of its successor's reference implementation. 40 goals of each test class,
# one inner step, and success of the mean action thereafter.
PROTOCOL: dict[str, Any] = {
    "horizon": HORIZON,
    "fast_batch_size": 10,
    "meta_batch_size": 20,
    "num_iterations": 100,
    "policy": {"hidden_sizes": [128, 128], "activation": "tanh"},
    "gae_lambda": 1.0,
    "algorithm": {
        "fast_lr": 0.1,
        "max_kl": 0.01,
        "cg_iters": 10,
        "cg_memory": 0,
        "ls_interpolate": False,
        "inner_loss": "reinforce",
    },
    "evaluation": {"tasks": 200, "updates": 1, "last_actions": "mean"},
}


class MetaworldMl1(Metaworld):
    """One class; meta-tests are on goals of it that training never sees."""

    defaults: ClassVar[Mapping[str, Any]] = PROTOCOL | {
        "evaluation": PROTOCOL["evaluation"] | {"tasks": 40}
    }

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        task: str = "reach",
        goal_seed: int = 1,
    ) -> None:
        """Make the batch; ValueError for an unknown task, or without the package."""
        names = package.task_names()
        if task not in names:
            raise ValueError(f"Meta-World has no task {task!r}{nearest(str(task), names)}")
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon,
            num_threads=num_threads,
            training_classes=[task],
            test_classes=[task],
            goal_seed=goal_seed,
        )


class MetaworldBenchmark(Metaworld):
    """Many classes; meta-tests are on five others."""

    benchmark: ClassVar[str]

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        goal_seed: int = 1,
    ) -> None:
        """Make the batch; ValueError without the package."""
        names = getattr(package.load(), f"{self.benchmark}_V3")
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon,
            num_threads=num_threads,
            training_classes=[package.short(name) for name in names["train"]],
            test_classes=[package.short(name) for name in names["test"]],
            goal_seed=goal_seed,
        )


class MetaworldMl10(MetaworldBenchmark):
    """Ten classes of training, five of meta-tests."""

    benchmark = "ML10"
    defaults: ClassVar[Mapping[str, Any]] = PROTOCOL


class MetaworldMl45(MetaworldBenchmark):
    """Forty-five classes of training, five of meta-tests."""

    benchmark = "ML45"
    defaults: ClassVar[Mapping[str, Any]] = PROTOCOL | {
        "num_iterations": 200,
        "meta_batch_size": 45,
        "fast_batch_size": 20,
    }
