"""A job: what each rank builds for its roles, and who then runs what."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms import Algorithm
from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.exchange import BatchReceiver, BatchSender, Messenger, empty_batch
from hpc_maml.mpi.gpu_sums import sum_of_agents
from hpc_maml.mpi.runtime import keep_freed_memory
from hpc_maml.mpi.topology import Topology, build_topology
from hpc_maml.mpi.waiting import SPIN, Roles, Until
from hpc_maml.parts import make_algorithm, make_dtype, make_env
from hpc_maml.roles.agent import SplitAgent, Team, TeamAgent, choose_gpu
from hpc_maml.roles.messages import REQUESTS_AHEAD, Hello, Tag
from hpc_maml.roles.observer import Observer, SplitObserver, TeamObserver
from hpc_maml.roles.outer_step import OuterStep
from hpc_maml.roles.principal import Agents, Resting, rest
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import Shapes

if TYPE_CHECKING:
    from hpc_maml.run.memory import Needs

DONE, BAD_INPUT, STOPPED_EARLY = 0, 2, 75  # exit codes; anything else: failed


@dataclass(frozen=True)
class Job:
    """What every rank needs to know before it can take up its roles."""

    config: Config
    algorithms: tuple[Algorithm, ...]  # one, or in a meta-test those that are compared
    dtype: np.dtype  # of a trajectory batch
    rollouts: Path | None = None  # folder of the archive, if there is to be one
    episodes_apart: bool = True  # ranks can share the episodes of a task
    bytes_per_env: float = 0.0  # memory of a simulation

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the run."""
        return self.algorithms[0]


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
    dtype = make_dtype(config, env)
    return Job(
        config,
        (algorithm,),
        dtype,
        episodes_apart=env.episodes_apart,
        bytes_per_env=env.bytes_per_env,
    )


def archive_shapes(job: Job) -> Shapes:
    """Return the shapes that the rollouts of a job have in the archive."""
    phases = job.algorithm.num_phases(False)
    adapted = job.config.archive.adapted_parameters
    return Shapes(job.dtype, phases, job.algorithm.policy.size, adapted=adapted)


Principal = Callable[[Agents, Topology], Coroutine[Until, None, None]]


def run_job(
    world: MPI.Intracomm, job: Job, needs: "Needs", principal: Principal, stop: StopSignal
) -> None:
    """Take up the roles of this rank and run them to their end; ``principal`` runs on rank 0.

    ``needs`` is the memory of the job.
    """
    config = job.config
    limit = config.mpi.wait_limit
    asked = config.topology
    topology = build_topology(world, asked.agents, asked.layout, limit, config.device)
    place, in_team = topology.place, topology.plan.layout == "team"
    greeting = Messenger(topology.world)
    keep_freed_memory(int(needs.of_rank(place, topology.plan)[1]))
    spin = SPIN if topology.owns_core else 0.0
    running = Roles(limit, spin)
    hello = Hello("cpu", topology.threads)
    roles: dict[str, Coroutine[Until, None, None]] = {}
    if place.agent and in_team:
        roles["agent"] = _team_agent(job, topology, stop).run()
    elif place.agent:
        agent, hello = _split_agent(job, topology, stop, spin)
        roles["agent"] = agent.run()
    if place.observer:
        roles["observer"] = _observer(job, topology, stop, running.give_way, spin).run()
    greeting.send(hello, 0, Tag.HELLO)
    if place.principal:
        teams = range(len(topology.agent_ranks))
        agents = Agents(
            Messenger(topology.learner_comm),
            topology.learner_ranks_of_agents,
            tuple(map(topology.team_observers, teams)),
            tuple(map(topology.stepping_ranks, teams)),
            Resting(Messenger(topology.world), topology.resting_ranks, limit),
        )
        roles["principal"] = principal(agents, topology)
    running.run(roles or {"no role": rest(Messenger(topology.world))})
    greeting.poll()
    topology.free()


def _team(topology: Topology, messenger: Messenger, *, in_team: bool) -> Team:
    """Return the team of this agent."""
    number: Any = topology.place.team  # every agent has a team
    size = topology.team_comm.size
    if in_team:
        return Team(messenger, range(size), size, kept_back=size)
    observers = range(1, size) if size > 1 else [0]
    return Team(messenger, observers, topology.observers_at_once(number), kept_back=0)


def _team_agent(job: Job, topology: Topology, stop: StopSignal) -> TeamAgent:
    team = _team(topology, Messenger(topology.team_comm), in_team=True)
    learner = Messenger(topology.learner_comm)
    limit = job.config.mpi.wait_limit
    episodes = job.dtype["lengths"].shape[0] if job.episodes_apart else 0
    return TeamAgent(job.algorithms, learner, team, stop, limit, episodes)


def _split_agent(
    job: Job, topology: Topology, stop: StopSignal, spin: float
) -> tuple[SplitAgent, Hello]:
    config, limit = job.config, job.config.mpi.wait_limit
    hello = Hello("cpu", topology.threads)
    gpu = choose_gpu(config.device, topology)
    reduce, sums = sum_of_agents(config.mpi.cuda_aware, gpu, topology, limit, spin)
    if gpu:
        hello = Hello(gpu.name, topology.threads, sums)
    empty = gpu.empty_batch if gpu else empty_batch
    agent = SplitAgent(
        job.algorithms,
        Messenger(topology.learner_comm),
        _team(topology, Messenger(topology.team_comm), in_team=False),
        stop,
        limit,
        BatchReceiver(topology.team_comm, job.dtype, REQUESTS_AHEAD, empty),
        OuterStep(config.seed, reduce),
        gpu,
        config.archive,
    )
    return agent, hello


def _observer(
    job: Job, topology: Topology, stop: StopSignal, give_way: Callable[[], None], spin: float
) -> Observer:
    config, archive = job.config, None
    if job.rollouts:
        from hpc_maml.storage.archive_writer import SegmentWriter  # others do without h5py

        rank = topology.world.rank
        archive = SegmentWriter(job.rollouts, config.archive, archive_shapes(job), rank)

    def make_envs(num_tasks: int) -> TaskVectorEnv:
        return make_env(config, config.fast_batch_size, topology.threads, num_tasks)

    shared = (
        config.seed,
        job.algorithms,
        cache(make_envs),
        job.dtype,
        Messenger(topology.team_comm),
        archive,
        Messenger(topology.world),
        stop,
        give_way,
    )
    if topology.plan.layout == "split":
        return SplitObserver(*shared, sender=BatchSender(topology.team_comm))
    reduce = _sum_of_teams(topology, config.mpi.wait_limit, spin)
    return TeamObserver(*shared, outer_step=OuterStep(config.seed, reduce))


def _sum_of_teams(topology: Topology, limit: float, spin: float) -> ExactSum:
    """Return the sum over all ranks of all teams: a level that has one rank is left out."""
    teams = range(len(topology.agent_ranks))
    if len(teams) == 1:
        return ExactSum(topology.team_comm, limit, spin=spin)
    if max(map(topology.team_observers, teams)) == 1:
        return ExactSum(topology.agent_comm, limit, spin=spin)
    return ExactSum(topology.agent_comm, limit, team=topology.team_comm, spin=spin)
