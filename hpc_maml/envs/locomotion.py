"""Half-cheetah and ant tasks on batched MuJoCo physics, with the models Gymnasium brings along."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any, ClassVar, NamedTuple

import mujoco
import numpy as np
from gymnasium.spaces import Box
from mujoco.batch import Batch, SimulationError

from hpc_maml.envs.batched import TaskVectorEnv, defaults_of_lineages, lineage_row
from hpc_maml.envs.mujoco_timers import stop_timers

RESET_VELOCITY_NOISE = 0.1  # standard deviation
HEALTHY_HEIGHT = (0.2, 1.0)  # of the ant's torso, in m
CONTACT_COST = 5.0e-4
TORSO = 1  # the body every other one hangs on
# Bytes for contacts and the stack of a simulation: three times what the ant needs with all of its
# geometry in the floor. MuJoCo's own 6 to 15 MB would spread simulations over as many huge pages.
ARENA = 2**18
SIMULATION = 600e3  # bytes of a simulation with its arena, about


class Part(NamedTuple):
    """A part of a field of each simulation, clipped to the limit, either way."""

    field: str
    index: slice | int = slice(None)
    limit: float = np.inf


def uniform_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw from U(-0.1, 0.1)."""
    return rng.uniform(-0.1, 0.1, shape)


def normal_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw from N(0, 0.01^2)."""
    return 0.01 * rng.standard_normal(shape)


class Lineage(NamedTuple):
    """What differs between published versions of a robot."""

    observation: tuple[Part, ...]
    horizon: int = 100
    substeps: int = 5  # physics steps per environment step
    timestep: float | None = None  # of the physics, in s; None: the model's
    geom_solimp: tuple[float, float, float] | None = None  # of all contacts; None: the model's
    stage: mujoco.mjtStage = mujoco.mjtStage.mjSTAGE_NONE  # computed at the state after a step
    velocity: Part | None = None  # in m/s; None: the change of the torso's x over a step
    position: Part = Part("qpos", slice(0, 2))  # where the robot is: x, y, in m
    action_limit: float = 1.0  # actions are clipped to this, either way, and divided by it
    initial_positions: str | None = None  # a numeric of the model; None: its reference, qpos0
    position_noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray] = uniform_noise
    training: Mapping[str, Any] = {}  # published settings, as keys of a configuration


def centre_of_mass_lineage(**changes: Any) -> Lineage:
    """Return what the robots of the original experiments have in common."""
    return Lineage(
        horizon=200,
        substeps=1,
        velocity=Part("subtree_linvel", TORSO),
        position=Part("subtree_com", TORSO),
        position_noise=normal_noise,
        training={
            "num_iterations": 800,
            "policy": {"hidden_sizes": [100, 100], "activation": "relu"},
        },
        **changes,
    )


JOINTS = (Part("qpos", slice(1, None)), Part("qvel"))
HALF_CHEETAH_LINEAGES = {
    "gymnasium": Lineage(JOINTS),
    "pytorch": Lineage(
        (*JOINTS, Part("xpos", TORSO)), stage=mujoco.mjtStage.mjSTAGE_POS, action_limit=10.0
    ),
    "original": centre_of_mass_lineage(
        observation=(*JOINTS, Part("subtree_com", TORSO)), stage=mujoco.mjtStage.mjSTAGE_VEL
    ),
}
BODIES = (Part("qpos"), Part("qvel"), Part("cfrc_ext", limit=1.0), Part("xmat", TORSO))
ANT_LINEAGES = {
    "gymnasium": Lineage((Part("qpos", slice(2, None)), Part("qvel"))),
    "pytorch": Lineage(
        (*BODIES, Part("xpos", TORSO)), stage=mujoco.mjtStage.mjSTAGE_ACC, action_limit=10.0
    ),
    "original": centre_of_mass_lineage(
        observation=(*BODIES, Part("subtree_com", TORSO)),
        stage=mujoco.mjtStage.mjSTAGE_ACC,
        timestep=0.02,
        geom_solimp=(0.8, 0.8, 0.01),
        initial_positions="init_qpos",
    ),
}


class Locomotion(TaskVectorEnv):
    """A robot, its physics and the bookkeeping around it; families add tasks and rewards."""

    # Robots at a velocity learn faster with reinforce, and none was seen to unlearn.
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_iterations": 500,
        "meta_batch_size": 40,
        "algorithm": {"inner_loss": "reinforce"},
    }
    model_file: str
    lineages: dict[str, Lineage]

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
        stop_timers()
        # Persistent: a step goes on from the stages computed after the one before, at no cost.
        persistent = row.stage != mujoco.mjtStage.mjSTAGE_NONE
        self.simulations = Batch(model, num_tasks * episodes_per_task, num_threads, persistent)
        if persistent:
            self.bytes_per_env = SIMULATION
        self._bind()
        start = model.numeric(row.initial_positions).data if row.initial_positions else model.qpos0
        self._initial_positions = start.copy()
        self.seconds_per_step = row.substeps * model.opt.timestep
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
        row = self._lineage
        spec.memory = ARENA
        if row.timestep:
            spec.option.timestep = row.timestep
        if row.geom_solimp:
            for geom in spec.geoms:
                geom.solimp[:3] = row.geom_solimp
        if row.velocity:  # MuJoCo computes velocities of subtrees only if a sensor needs them
            spec.add_sensor(
                name="torso_subtree_velocity",
                type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
                objtype=mujoco.mjtObj.mjOBJ_BODY,
                objname="torso",
            )

    def _bind(self) -> None:
        """Take live views into the batch, which MuJoCo reads and writes at every step."""
        batch, row = self.simulations, self._lineage
        self._positions, self._velocities = batch.bind("qpos"), batch.bind("qvel")
        self._controls = batch.bind("ctrl")
        self._torso_x = self._positions[:, 0]
        self._velocity = self._view(row.velocity)[:, 0] if row.velocity else None
        self._observed = [self._view(part) for part in row.observation]
        ends = np.cumsum([view.shape[1] for view in self._observed])
        self._clipped = [
            (slice(end - view.shape[1], end), part.limit)
            for part, view, end in zip(row.observation, self._observed, ends, strict=True)
            if np.isfinite(part.limit)
        ]
        # MuJoCo resets a simulation that diverges and goes on, and sets NaN controls to 0; only
        # these counters tell.
        self._divergences = batch.warning[
            :, mujoco.mjtWarning.mjWARN_BADQPOS : mujoco.mjtWarning.mjWARN_BADCTRL + 1, 1
        ]

    def _view(self, part: Part) -> np.ndarray:
        """Return a live view ``[num_envs, size]`` of a part."""
        field = self.simulations.bind(part.field)
        return field[:, part.index].reshape(len(field), -1)

    def visible_states(self) -> np.ndarray:
        """Return what ``film`` needs to know of the present moment, ``[num_envs, nq]``."""
        return self._positions.copy()

    def film(self, states: np.ndarray, width: int, height: int) -> Iterator[np.ndarray]:
        """Yield an image, uint8 ``[height, width, 3]``, of each state ``[n, nq]``.

        Raises InputError where MuJoCo cannot draw.
        """
        from hpc_maml.envs.mujoco_film import images

        return images(self.simulations.get_model(0), states, width, height)

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
        if self.simulations.persistent:
            self.simulations.forward(chosen, self._lineage.stage.value)

    def _observations(self) -> np.ndarray:
        observations = np.concatenate(self._observed, axis=1, dtype=np.float32)
        for columns, limit in self._clipped:
            np.clip(observations[:, columns], -limit, limit, out=observations[:, columns])
        return observations

    def _advance(
        self, actions: np.ndarray, active: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        row = self._lineage
        limit = row.action_limit
        # two calls of NumPy's core take less than clip(), which is written in Python
        scaled = (np.minimum(np.maximum(actions, -limit), limit) / limit).astype(np.float64)
        self._controls[...] = scaled
        self._effort = (scaled * scaled).sum(-1)  # here, as after the physics no cache has it
        before = self._torso_x.copy()
        try:
            self.simulations.step(active, nstep=row.substeps, stage=row.stage.value)
        except SimulationError as error:
            # The other simulations ran to completion; these kept their state and end here.
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
            self._divergences[error.ids] = 1
        velocities = self._velocity
        if velocities is None:
            velocities = (self._torso_x - before) / self.seconds_per_step
        rewards = self._rewards(velocities)
        observations = self._observations()
        terminated = self._terminated()
        # What is not finite in a state shows here, or at the next step: to look at the state itself
        # takes longer. count_nonzero takes half the time of any().
        finite = np.isfinite(rewards.sum() + observations.sum())
        if np.count_nonzero(self._divergences) or not finite:
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

    def task_words(self, task: np.ndarray) -> str:
        """Return the velocity."""
        return f"velocity {task[0]:.2f} m/s"

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n velocities, float64 ``[n, 1]``."""
        return rng.uniform(0.0, self.fastest, (n, 1))


class TargetDirection:
    """The task is a direction: forwards, 1, or backwards, -1."""

    # Of two tasks the gradients nearly cancel: what is left needs better curvature.
    defaults: ClassVar[Mapping[str, Any]] = Locomotion.defaults | {
        "algorithm": Locomotion.defaults["algorithm"]
        | {"cg_preconditioner": "kronecker", "cg_iters": 4}
    }
    task_dim = 1

    def task_words(self, task: np.ndarray) -> str:
        """Return the direction."""
        return "forwards" if task[0] > 0 else "backwards"

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n directions, float64 ``[n, 1]``."""
        return rng.choice([-1.0, 1.0], (n, 1))


class HalfCheetah(Locomotion):
    """The planar robot with two legs and six joints."""

    model_file = "half_cheetah.xml"
    lineages = HALF_CHEETAH_LINEAGES
    lineage_defaults: ClassVar[Mapping[str, Any]] = defaults_of_lineages(lineages)

    def _cost(self) -> np.ndarray:
        return 0.05 * self._effort


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
    lineage_defaults: ClassVar[Mapping[str, Any]] = defaults_of_lineages(lineages)

    def _bind(self) -> None:
        super()._bind()
        self._contact_forces = self.simulations.bind("cfrc_ext")  # [num_envs, bodies, 6]

    def _edit(self, spec: mujoco.MjSpec) -> None:
        super()._edit(spec)
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
        contact_cost = CONTACT_COST * (contact_forces * contact_forces).sum((-2, -1))
        return 0.005 * self._effort + contact_cost

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
    """Run to the task's point, in [-3, 3]^2 m; the observation ends with where the robot is."""

    task_dim = 2
    lineages = ANT_LINEAGES | {
        "gymnasium": Lineage((*ANT_LINEAGES["gymnasium"].observation, Part("qpos", slice(0, 2))))
    }
    lineage_defaults: ClassVar[Mapping[str, Any]] = defaults_of_lineages(lineages)

    def _bind(self) -> None:
        super()._bind()
        self._place = self._view(self._lineage.position)[:, :2]

    def task_words(self, task: np.ndarray) -> str:
        """Return the goal."""
        return f"goal ({task[0]:.2f}, {task[1]:.2f}) m"

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n points, float64 ``[n, 2]``, in m."""
        return rng.uniform(-3.0, 3.0, (n, 2))

    def _rewards(self, velocities: np.ndarray) -> np.ndarray:
        offsets = self._place - self._tasks
        return 4.0 - abs(offsets).sum(-1) - self._cost() + 0.05
