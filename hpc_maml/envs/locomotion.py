"""Half-cheetah and ant tasks on batched MuJoCo physics, with the models Gymnasium brings along."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import mujoco
import numpy as np
from gymnasium.spaces import Box
from mujoco.batch import Batch, SimulationError

from hpc_maml.envs.batched import TaskVectorEnv, lineage_row

RESET_VELOCITY_NOISE = 0.1  # standard deviation
HEALTHY_HEIGHT = (0.2, 1.0)  # of the ant's torso, in m
CONTACT_COST = 5.0e-4


class Lineage(NamedTuple):
    """What differs between published versions of a robot; a part of an array is (field, index)."""

    horizon: int
    substeps: int  # physics steps per environment step
    observation: tuple[tuple[str, slice], ...]
    travel: tuple[str, int]  # m; the velocity v is its change over an environment step
    action_limit: float  # actions are clipped to this, either way, and divided by it
    position_noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def uniform_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw from U(-0.1, 0.1)."""
    return rng.uniform(-0.1, 0.1, shape)


HALF_CHEETAH_LINEAGES = {
    "gymnasium": Lineage(
        horizon=100,
        substeps=5,
        observation=(("qpos", slice(1, None)), ("qvel", slice(None))),
        travel=("qpos", 0),
        action_limit=1.0,
        position_noise=uniform_noise,
    )
}
ANT_LINEAGES = {
    "gymnasium": Lineage(
        horizon=100,
        substeps=5,
        observation=(("qpos", slice(2, None)), ("qvel", slice(None))),
        travel=("qpos", 0),
        action_limit=1.0,
        position_noise=uniform_noise,
    )
}


class Locomotion(TaskVectorEnv):
    """A robot, its physics and the bookkeeping around it; families add tasks and rewards."""

    model_file: str
    lineages: dict[str, Lineage]
    task_observation: tuple[tuple[str, slice], ...] = ()  # what the family shows besides

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        lineage: str = "gymnasium",
    ) -> None:
        """Make the batch; ValueError for an unknown lineage."""
        self._lineage = row = lineage_row(self.lineages, lineage)
        model = self._compile()
        self.simulations = Batch(model, num_tasks * episodes_per_task, num_threads)
        self._bind()
        self._initial_positions = model.qpos0.copy()
        self._seconds_per_step = row.substeps * model.opt.timestep
        observation_dim = sum(part.shape[1] for part in self._observed)
        super().__init__(
            num_tasks=num_tasks,
            episodes_per_task=episodes_per_task,
            horizon=horizon or row.horizon,
            num_threads=num_threads,
            single_observation_space=Box(-np.inf, np.inf, (observation_dim,), np.float32),
            single_action_space=Box(-row.action_limit, row.action_limit, (model.nu,), np.float32),
        )

    def _compile(self) -> mujoco.MjModel:
        assets = resources.files("gymnasium") / "envs" / "mujoco" / "assets"
        with resources.as_file(assets / self.model_file) as path:
            spec = mujoco.MjSpec.from_file(str(path))
        self._edit(spec)
        with warnings.catch_warnings():
            # The advised replacement leaves another mean inertia, on which the solver's tolerance
            # depends.
            warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'")
            return spec.compile()

    def _edit(self, spec: mujoco.MjSpec) -> None:
        """Change the model before it is compiled."""

    def _bind(self) -> None:
        """Take live views into the batch, which MuJoCo reads and writes at every step."""
        batch, row = self.simulations, self._lineage
        self._positions, self._velocities = batch.bind("qpos"), batch.bind("qvel")
        self._controls = batch.bind("ctrl")
        self._travelled = batch.bind(row.travel[0])[:, row.travel[1]]
        self._observed = [
            batch.bind(field)[:, index] for field, index in row.observation + self.task_observation
        ]
        # MuJoCo resets a simulation that diverges and goes on, and sets NaN controls to 0; only
        # these counters tell.
        self._divergences = batch.warning[
            :, mujoco.mjtWarning.mjWARN_BADQPOS : mujoco.mjtWarning.mjWARN_BADCTRL + 1, 1
        ]

    @abstractmethod
    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        """Return the rewards ``[num_envs]`` of a step at these velocities, in m/s."""

    def _terminated(self) -> np.ndarray:
        return np.zeros(self.num_envs, np.bool_)

    def _draw_starts(self, rng: np.random.Generator) -> np.ndarray:
        episodes = self.episodes_per_task
        noise = self._lineage.position_noise(rng, (episodes, self._positions.shape[1]))
        velocities = RESET_VELOCITY_NOISE * rng.standard_normal(
            (episodes, self._velocities.shape[1])
        )
        return np.concatenate((self._initial_positions + noise, velocities), axis=1)

    def _start(self, chosen: np.ndarray, starts: np.ndarray) -> None:
        self.simulations.reset(chosen, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._positions[chosen], self._velocities[chosen] = np.split(
            starts, [self._positions.shape[1]], axis=1
        )

    def _observations(self) -> np.ndarray:
        return np.concatenate(self._observed, axis=1, dtype=np.float32)

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        limit = self._lineage.action_limit
        np.divide(actions.clip(-limit, limit), limit, out=self._controls)
        before = self._travelled.copy()
        try:
            self.simulations.step(active, nstep=self._lineage.substeps)
        except SimulationError as error:
            # The other simulations ran to completion; these kept their state and end here.
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
            self._divergences[error.ids] = 1
        rewards = self._rewards((self._travelled - before) / self._seconds_per_step)
        observations = self._observations()
        terminated = self._terminated()
        # count_nonzero takes half the time of any().
        if np.count_nonzero(self._divergences) or not np.isfinite(self.simulations.state).all():
            if np.isnan(actions).any():
                raise ValueError("actions hold NaN")
            return self._end_diverged(observations, rewards, terminated)
        return observations, rewards, terminated, {}

    def _end_diverged(
        self, observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Terminate diverged simulations with reward 0; ``infos["diverged"]`` tells which."""
        diverged = self._divergences.any(-1) | ~np.isfinite(self.simulations.state).all(-1)
        self.simulations.reset(diverged, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        return (
            np.where(diverged[:, None], np.float32(0), observations),
            np.where(diverged, 0.0, rewards),
            terminated | diverged,
            {"diverged": diverged},
        )


class TargetVelocity:
    """The task is a velocity, in m/s, drawn from U[0, fastest]."""

    task_dim = 1
    fastest: float

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n velocities, float64 ``[n, 1]``."""
        return rng.uniform(0.0, self.fastest, (n, 1))


class TargetDirection:
    """The task is a direction: forwards, 1, or backwards, -1."""

    task_dim = 1

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n directions, float64 ``[n, 1]``."""
        return rng.choice([-1.0, 1.0], (n, 1))


class HalfCheetah(Locomotion):
    """The planar robot with two legs and six joints."""

    model_file = "half_cheetah.xml"
    lineages = HALF_CHEETAH_LINEAGES

    def _cost(self) -> np.ndarray:
        return 0.05 * (self._controls * self._controls).sum(-1)


class HalfCheetahVel(TargetVelocity, HalfCheetah):
    """Run at the task's velocity."""

    fastest = 2.0

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        return -abs(velocities - self._tasks[:, 0]) - self._cost()


class HalfCheetahDir(TargetDirection, HalfCheetah):
    """Run in the task's direction."""

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        return self._tasks[:, 0] * velocities - self._cost()


class Ant(Locomotion):
    """The robot with four legs and eight joints; an episode ends when its torso leaves 0.2-1 m."""

    model_file = "ant.xml"
    lineages = ANT_LINEAGES

    def _bind(self) -> None:
        super()._bind()
        self._contact_forces = self.simulations.bind("cfrc_ext")  # [num_envs, bodies, 6]

    def _edit(self, spec: mujoco.MjSpec) -> None:
        # MuJoCo computes contact forces per body only if a sensor needs them, and then with the
        # sensors, which RK4 evaluates at the state before the last physics step. Gymnasium calls
        # mj_rnePostConstraint after the step and gets the force of the last RK4 stage instead: the
        # one quantity here that is not bitwise Gymnasium's.
        spec.body("torso").add_site(name="torso_center")
        spec.add_sensor(
            name="torso_force",
            type=mujoco.mjtSensor.mjSENS_FORCE,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="torso_center",
        )

    def _cost(self) -> np.ndarray:
        contact_forces = self._contact_forces.clip(-1.0, 1.0)
        return 0.005 * (self._controls * self._controls).sum(-1) + CONTACT_COST * (
            contact_forces * contact_forces
        ).sum((-2, -1))

    def _terminated(self) -> np.ndarray:
        lowest, highest = HEALTHY_HEIGHT
        heights = self._positions[:, 2]
        return (heights < lowest) | (heights > highest)


class AntVel(TargetVelocity, Ant):
    """Run at the task's velocity."""

    fastest = 3.0

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        return 1.0 - abs(velocities - self._tasks[:, 0]) - self._cost() + 0.05


class AntDir(TargetDirection, Ant):
    """Run in the task's direction."""

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        return self._tasks[:, 0] * velocities - self._cost() + 0.05


class AntGoal(Ant):
    """Run to the task's point, in [-3, 3]^2 m; the observation ends with the torso's x and y."""

    task_dim = 2
    task_observation = (("qpos", slice(0, 2)),)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n points, float64 ``[n, 2]``, in m."""
        return rng.uniform(-3.0, 3.0, (n, 2))

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        offsets = self._positions[:, :2] - self._tasks
        return 4.0 - abs(offsets).sum(-1) - self._cost() + 0.05
