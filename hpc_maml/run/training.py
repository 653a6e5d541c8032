"""A job from start to end: what rank 0 prepares, what each rank builds, and who then runs what."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.report.advice import NEEDED, advise
from hpc_maml.storage.archive_plan import Shapes, estimate
from hpc_maml.storage.archive_schema import Segment
from hpc_maml.config import Config
from hpc_maml.run.doctor import warn
from hpc_maml.envs import make
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import RUN, Evaluation, evaluation_path, save
from hpc_maml.mpi.exchange import BatchReceiver, BatchSender, Messenger, empty_batch
from hpc_maml.mpi.gpu_sums import sum_of_agents
from hpc_maml.mpi.runtime import from_rank_0, keep_freed_memory
from hpc_maml.mpi.topology import Topology, assign_roles, build_topology, visible_gpus
from hpc_maml.mpi.waiting import Until, run_roles
from hpc_maml.policies.policy import Policy, make_policy
from hpc_maml.roles.agent import Team, act, choose_gpu
from hpc_maml.roles.messages import REQUESTS_AHEAD, Hello, Tag
from hpc_maml.roles.observer import observe
from hpc_maml.roles.principal import Agents, Segments, greet, lead, sums_of_agents
from hpc_maml.stopping import StopSignal
from hpc_maml.sampling.trajectory import batch_dtype

DONE, BAD_INPUT, STOPPED_EARLY = 0, 2, 75  # exit codes; anything else: failed


@dataclass(frozen=True)
class Job:
    """What every rank needs to know before it can take up its roles."""

    config: Config
    policy: Policy
    dtype: np.dtype  # of a trajectory batch
    rollouts: Path | None = None  # folder of the archive, if there is to be one


def train(
    world: MPI.Intracomm,
    load_settings: Callable[[], Config],
    run_dir: Path | None,
    stop: StopSignal,
) -> int:
    """Meta-train on every rank of ``world``; return the exit code.

    ``load_settings`` is called on rank 0 only. Raises InputError on every rank.
    """
    run = env = sinks = None
    first = 0  # iterations done before

    def prepare_run() -> Job:
        # Only the principal prints and keeps files, so only rank 0 imports what that takes.
        from hpc_maml.run import console
        from hpc_maml.storage.files import size_text
        from hpc_maml.run.record import Run
        from hpc_maml.storage.run_folder import default_path
        from hpc_maml.run.sinks import check_installed

        nonlocal run, env, first
        config = load_settings()
        assign_roles([0] * world.size, config.topology.agents, config.topology.layout)
        check_installed(config.metrics)
        env = make_env(config, episodes=1)
        job = prepare(config, env)
        shapes = archive_shapes(job)
        each, total = estimate(config, shapes)
        run = Run(run_dir or default_path(config), config, job.policy, shapes)
        first = run.checkpoint.iteration
        if total:
            console.say(
                f"rollouts: {size_text(each)} an archived iteration, "
                f"{size_text(total)} for {config.num_iterations} iterations"
                + ("" if config.archive.compression == "none" else ", before compression")
            )
        return replace(job, rollouts=run.archive.folder.absolute()) if total else job

    def say(text: str) -> None:
        from hpc_maml.run import console

        console.say(text)

    job = from_rank_0(world, prepare_run)
    warn(world, job.config, say)

    async def principal(agents: Agents, topology: Topology) -> None:
        from hpc_maml.run import console
        from hpc_maml.run.record import flatten
        from hpc_maml.run.sinks import Sinks

        nonlocal sinks
        console.say(f"run folder {run.path}" + (f", continued at {first}" if first else ""))
        hellos = await greet(topology.world)
        console.print_topology(topology, hellos)
        if sums := sums_of_agents(hellos):
            console.say(f"sums between agents: {sums}")
            run.metrics.versions["sums_of_agents"] = sums
        run.metrics.versions["hosts"] = ", ".join(dict.fromkeys(topology.hosts))
        job_size = {
            "ranks": world.size,
            "agents": len(topology.agent_ranks),
            "observers": sum(agents.observers),
            "cores": topology.cores,
            "gpus": sum(hello.device != "cpu" for hello in hellos),
        }
        segments = Segments(Messenger(topology.world))
        reporter = console.Reporter(first, job.config.num_iterations)
        if first < job.config.num_iterations:
            sinks = Sinks(job.config, run.path, run.metrics.rows, reporter.note)

        class Record:
            """Keeps what lead finds, and tells people."""

            def iteration(
                self, done: int, theta: np.ndarray, row: dict[str, Any], on_disk: Sequence[Segment]
            ) -> None:
                run.record(done, theta, row | job_size, on_disk)
                reporter.iteration(done, row)
                sinks.put(run.metrics.rows[-1])

            def has_test(self, done: int) -> bool:
                return evaluation_path(run.evaluations, done, job.config.evaluation).exists()

            def test(self, done: int, tasks: np.ndarray, returns: np.ndarray) -> None:
                found = Evaluation(done, job.config.test_step_sizes, tasks, {RUN: returns}, {})
                save(evaluation_path(run.evaluations, done, job.config.evaluation), found)
                reporter.note(console.test_text(found))

        try:
            theta = flatten(run.checkpoint)
            await lead(job.config, env, agents, theta, first, segments, Record(), stop)
        except InputError as error:  # a file cannot be written
            raise run.end_early(error) from None
        finally:
            reporter.close()
        if run.checkpoint.iteration < job.config.num_iterations:
            run.write_checkpoint()
        run.archive.write_index()

    run_job(world, job, principal, stop)

    def conclude() -> int:
        from hpc_maml.run import console

        if sinks:
            sinks.close()
        done = run.checkpoint.iteration
        if done > first:
            rows = run.metrics.rows[first:]
            for sentence in advise({name: [row[name] for row in rows] for name in NEEDED}):
                console.say(sentence)
        if done < job.config.num_iterations:
            console.say(
                f"stopped early after {done} iterations, with a checkpoint; "
                f"go on with --run-dir {run.path}"
            )
            return STOPPED_EARLY
        console.say(f"done: {done} iterations in {run.path}")
        return DONE

    return from_rank_0(world, conclude)


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
    except (ValueError, TypeError) as error:
        raise InputError(f"The environment cannot be made: {error}.") from None


def prepare(config: Config, env: TaskVectorEnv) -> Job:
    """Return the job of a configuration and its environment; raises InputError."""
    observations, actions = env.single_observation_space.shape, env.single_action_space.shape
    discrete = hasattr(env.single_action_space, "n")
    policy = make_policy(
        observation_size=int(np.prod(observations)),
        action_size=int(env.single_action_space.n) if discrete else int(np.prod(actions)),
        discrete=discrete,
        hidden_sizes=tuple(config.policy.hidden_sizes),
        activation=config.policy.activation,
    )
    action_dtype = np.int64 if discrete else np.float32
    try:
        dtype = batch_dtype(
            config.horizon, config.fast_batch_size, observations, actions, action_dtype
        )
    except ValueError:
        raise InputError(
            "horizon * fast_batch_size is too large: a batch must be below 2 GB."
        ) from None
    return Job(config, policy, dtype)


def archive_shapes(job: Job) -> Shapes:
    """Return the shapes that the rollouts of a job have in the archive."""
    num_parameters = sum(int(np.prod(shape)) for shape in job.policy.shapes.values())
    return Shapes(job.config, job.dtype, num_parameters)


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
        gpu = choose_gpu(config.device, topology, limit)
        reduce, sums = sum_of_agents(config.mpi.cuda_aware, gpu, topology, limit)
        if gpu:
            hello = Hello(gpu.name, topology.threads, sums)
        observers = topology.team_observers(place.team)
        empty = gpu.empty_batch if gpu else empty_batch
        team = Team(
            Messenger(topology.team_comm),
            BatchReceiver(topology.team_comm, job.dtype, REQUESTS_AHEAD, empty),
            observers,
            topology.observers_at_once(place.team),
        )
        learner = Messenger(topology.learner_comm)
        roles["agent"] = act(config, job.policy, gpu, learner, team, reduce, stop)
    if place.observer:
        archive = None
        if job.rollouts:
            from hpc_maml.storage.archive_writer import SegmentWriter  # others do without h5py

            archive = SegmentWriter(job.rollouts, config.archive, archive_shapes(job), world.rank)
        roles["observer"] = observe(
            config,
            job.policy,
            cache(partial(make_env, config, config.fast_batch_size, topology.threads)),
            job.dtype,
            Messenger(topology.team_comm),
            BatchSender(topology.team_comm),
            archive,
            Messenger(topology.world),
            stop,
        )
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
