"""A job: what each rank builds for its roles, and who then runs what."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms import Algorithm, Sampling, algorithm_class
from hpc_maml.algorithms.normalised import Normalised
from hpc_maml.config import Config
from hpc_maml.envs import make
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import BatchReceiver, BatchSender, Messenger, empty_batch
from hpc_maml.mpi.gpu_sums import sum_of_agents
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.mpi.topology import Topology, build_topology, visible_gpus
from hpc_maml.mpi.waiting import Until, run_roles
from hpc_maml.policies import make_policy
from hpc_maml.roles.agent import Agent, Team, choose_gpu
from hpc_maml.roles.messages import REQUESTS_AHEAD, Hello, Tag
from hpc_maml.roles.observer import Observer
from hpc_maml.roles.principal import Agents
from hpc_maml.sampling.trajectory import batch_dtype
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import Shapes

MOST_PARAMETERS = 2**29  # of a policy
DONE, BAD_INPUT, STOPPED_EARLY = 0, 2, 75  # exit codes; anything else: failed


@dataclass(frozen=True)
class Job:
    """What every rank needs to know before it can take up its roles."""

    config: Config
    algorithms: tuple[Algorithm, ...]  # one, or in a meta-test those that are compared
    dtype: np.dtype  # of a trajectory batch
    rollouts: Path | None = None  # folder of the archive, if there is to be one

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the run."""
        return self.algorithms[0]


def make_env(config: Config, episodes: int, threads: int = 1, num_tasks: int = 1) -> TaskVectorEnv:
    """Make the environment of a configuration; raises InputError."""
    try:
        return make(
            config.env.name,
            num_tasks=num_tasks,
            episodes_per_task=episodes,
            horizon=config.horizon,
            num_threads=threads,
            **config.env.kwargs,
        )
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"The environment cannot be made: {error}.") from None


def make_algorithm(config: Config, env: TaskVectorEnv) -> Algorithm:
    """Make the algorithm of a configuration for an environment; raises InputError."""
    found = algorithm_class(config.algorithm.name)
    space: Any = env.single_action_space  # whose shape Gymnasium does not promise
    observed: Any = env.single_observation_space
    discrete = hasattr(space, "n")
    observation_size = int(np.prod(observed.shape))
    policy = make_policy(
        config.policy,
        observation_size,
        int(space.n) if discrete else int(np.prod(space.shape)),
        discrete=discrete,
    )
    if policy.size > MOST_PARAMETERS:
        raise InputError(
            f"The network has {policy.size} parameters: there may be {MOST_PARAMETERS} at most, "
            "which take 2 GB."
        )
    if found.recurrent and not policy.memory_size:
        raise InputError(
            f"algorithm.name={config.algorithm.name} needs a policy with a memory, such as "
            f"policy.name=gru; {config.policy.name} has none."
        )
    if policy.memory_size and not found.recurrent:
        raise InputError(
            f"algorithm.name={config.algorithm.name} cannot use a recurrent policy such as "
            f"policy.name={config.policy.name}; algorithm.name=rl2 can."
        )
    sampling = Sampling(
        episodes=config.fast_batch_size,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        test_updates=config.evaluation.updates,
        test_step_sizes=config.evaluation.step_sizes,
        last_test_actions=config.evaluation.last_actions,
    )
    algorithm = found(config.algorithm, policy, sampling)
    return Normalised(algorithm, observation_size) if config.normalise_observations else algorithm


def prepare(config: Config, env: TaskVectorEnv) -> Job:
    """Return the job of a configuration and its environment; raises InputError."""
    algorithm = make_algorithm(config, env)
    adapts = algorithm.adapts_parameters and algorithm.num_phases(False) > 1
    if config.archive.adapted_parameters and not adapts:
        raise InputError(
            f"archive.adapted_parameters is true, but algorithm.name={config.algorithm.name} "
            "adapts no parameters."
        )
    try:
        env.check_numbers(config.meta_batch_size, config.evaluation.tasks)
    except ValueError as error:
        raise InputError(f"{config.env.name}: {error}.") from None
    actions: Any = env.single_action_space  # whose shape Gymnasium does not promise
    observed: Any = env.single_observation_space
    kind = np.int64 if hasattr(actions, "n") else np.float32
    try:
        dtype = batch_dtype(
            config.horizon,
            config.fast_batch_size,
            observed.shape,
            actions.shape,
            kind,
            success=env.reports_success,
        )
    except ValueError:
        raise InputError(
            "horizon * fast_batch_size is too large: a batch must be below 2 GB."
        ) from None
    return Job(config, (algorithm,), dtype)


def archive_shapes(job: Job) -> Shapes:
    """Return the shapes that the rollouts of a job have in the archive."""
    phases = job.algorithm.num_phases(False)
    adapted = job.config.archive.adapted_parameters
    return Shapes(job.dtype, phases, job.algorithm.policy.size, adapted=adapted)


Principal = Callable[[Agents, Topology], Coroutine[Until, None, None]]


def run_job(world: MPI.Intracomm, job: Job, principal: Principal, stop: StopSignal) -> None:
    """Take up the roles of this rank and run them to their end; ``principal`` runs on rank 0."""
    config = job.config
    limit = config.mpi.wait_limit
    gpus = 0 if config.device == "cpu" else len(visible_gpus())
    topology = build_topology(world, config.topology.agents, config.topology.layout, limit, gpus)
    place = topology.place
    hello = Hello("cpu", topology.threads)
    roles: dict[str, Coroutine[Until, None, None]] = {}
    keep_freed_memory()
    if place.agent:
        agent, hello = _agent(job, topology, stop)
        roles["agent"] = agent.run()
    if place.observer:
        roles["observer"] = _observer(job, topology, stop).run()
    greeting = Messenger(topology.world)
    greeting.send(hello, 0, Tag.HELLO)
    if place.principal:
        agents = Agents(
            Messenger(topology.learner_comm),
            topology.learner_ranks_of_agents,
            tuple(topology.team_observers(team) for team in range(len(topology.agent_ranks))),
        )
        roles["principal"] = principal(agents, topology)
    run_roles(roles, limit)
    greeting.poll()
    topology.free()


def _agent(job: Job, topology: Topology, stop: StopSignal) -> tuple[Agent, Hello]:
    config, limit = job.config, job.config.mpi.wait_limit
    number: Any = topology.place.team  # every agent has a team
    hello = Hello("cpu", topology.threads)
    gpu = choose_gpu(config.device, topology, limit)
    reduce, sums = sum_of_agents(config.mpi.cuda_aware, gpu, topology, limit)
    if gpu:
        hello = Hello(gpu.name, topology.threads, sums)
    empty = gpu.empty_batch if gpu else empty_batch
    team = Team(
        Messenger(topology.team_comm),
        BatchReceiver(topology.team_comm, job.dtype, REQUESTS_AHEAD, empty),
        topology.team_observers(number),
        topology.observers_at_once(number),
    )
    learner = Messenger(topology.learner_comm)
    return Agent(config, job.algorithms, gpu, learner, team, reduce, stop), hello


def _observer(job: Job, topology: Topology, stop: StopSignal) -> Observer:
    config, archive = job.config, None
    if job.rollouts:
        from hpc_maml.storage.archive_writer import SegmentWriter  # others do without h5py

        rank = topology.world.rank
        archive = SegmentWriter(job.rollouts, config.archive, archive_shapes(job), rank)

    def make_envs(num_tasks: int) -> TaskVectorEnv:
        return make_env(config, config.fast_batch_size, topology.threads, num_tasks)

    return Observer(
        config.seed,
        job.algorithms,
        cache(make_envs),
        job.dtype,
        Messenger(topology.team_comm),
        BatchSender(topology.team_comm),
        archive,
        Messenger(topology.world),
        stop,
    )
