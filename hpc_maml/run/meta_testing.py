"""The meta-test of a run that is done or going on, beside other policies on the same tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.config import Config, TopologyConfig, differing_keys
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.mpi.topology import Topology
from hpc_maml.roles.principal import Agents, Scores, greet, meta_test, unseen_tasks
from hpc_maml.run.job import DONE, Job, make_algorithm, make_env, prepare, run_job
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.storage.meta_tests import MetaTest


class MetaTesting:
    """A meta-test of the last checkpoint of a run; rank 0 reads, prints and keeps."""

    def __init__(
        self,
        run_dir: Path,
        settings: Mapping[str, Any],
        episodes: int | None,
        baselines: Sequence[Path],
    ) -> None:
        """Keep what is asked for.

        ``settings`` are keys of EvaluationConfig that differ from the run's, ``episodes`` replace
        its ``fast_batch_size``. Runs in ``baselines`` are tested on the same tasks, as is the
        policy that the run began with.
        """
        self.run_dir = run_dir
        self.settings = settings
        self.episodes = episodes
        self.baselines = baselines
        # on rank 0 only
        self.env: Any = None
        self.iteration = 0
        self.contestants: dict[str, tuple[Algorithm, State]] = {}

    def evaluate(self, world: MPI.Intracomm, json: Path | None) -> int:
        """Make the meta-test on every rank; return the exit code.

        Raises InputError on every rank.
        """
        job = from_rank_0(world, self._prepare)

        async def principal(agents: Agents, topology: Topology) -> None:
            await self._lead(job, agents, topology, json)

        run_job(world, job, principal, StopSignal())
        return DONE

    def _prepare(self) -> Job:
        """Read the run and the baselines, and return the job."""
        from hpc_maml.run.record import initial_checkpoint, last_checkpoint, state_of
        from hpc_maml.storage.meta_tests import RANDOM, RUN
        from hpc_maml.storage.run_folder import read_config

        run_config = read_config(self.run_dir)
        config = self._tested(run_config, run_config)
        self.env = make_env(config, episodes=1)
        job = prepare(config, self.env)
        # Checkpoints know the configuration that they were written with.
        checkpoint = last_checkpoint(self.run_dir, run_config, job.algorithm)
        self.iteration = checkpoint.iteration
        self.contestants[RUN] = (job.algorithm, state_of(checkpoint))
        random = initial_checkpoint(config, job.algorithm)
        self.contestants[RANDOM] = (job.algorithm, state_of(random))
        for path in self.baselines:
            other = read_config(path)
            keys = [
                key
                for key in differing_keys(config, other)
                if key == "horizon" or key.startswith("env.")
            ]
            if keys:
                raise InputError(
                    f"The run in {path} cannot be tested beside that in {self.run_dir}: they "
                    f"differ in {', '.join(keys)}."
                )
            name = f"baseline {path.resolve().name}"
            if name in self.contestants:
                raise InputError(f"Two baselines are called {path.name}: rename a folder.")
            algorithm = make_algorithm(self._tested(other, config), self.env)
            if algorithm.phase != job.algorithm.phase:
                raise InputError(
                    f"The run in {path} cannot be tested beside that in {self.run_dir}: one is "
                    "tested after updates, the other in the episodes of a trial; test each by "
                    "itself, and draw both in one report."
                )
            found = last_checkpoint(path, other, algorithm)
            self.contestants[name] = (algorithm, state_of(found))
        algorithms = tuple(algorithm for algorithm, _ in self.contestants.values())
        return Job(job.config, algorithms, job.dtype)

    def _tested(self, config: Config, run: Config) -> Config:
        """Return the configuration of a contestant: episodes and evaluation are the run's."""
        return config.model_copy(
            update={
                # The ranks at hand need not be those of the run, and agents only pass batches on.
                "topology": TopologyConfig(),
                "device": "cpu",
                "archive": config.archive.model_copy(update={"adapted_parameters": False}),
                "evaluation": run.evaluation.model_copy(update=dict(self.settings)),
                "fast_batch_size": self.episodes or run.fast_batch_size,
            }
        )

    async def _lead(self, job: Job, agents: Agents, topology: Topology, json: Path | None) -> None:
        """Test every contestant on the same tasks; print the result and keep it."""
        from hpc_maml.run import console
        from hpc_maml.storage.meta_tests import meta_test_path, save
        from hpc_maml.storage.run_folder import EVALUATIONS

        config = job.config
        await greet(topology.world)
        tasks = unseen_tasks(config, self.env)
        scores = {
            name: await meta_test(agents, tasks, state, contestant)
            for contestant, (name, (_, state)) in enumerate(self.contestants.items())
        }
        await agents.dismiss()
        luck = stream(config.seed, Purpose.STRATEGIES)
        optima = self.env.best_play(tasks, luck)
        found = found_in_test(self.iteration, job, self.env, tasks, scores, optima)
        console.print_meta_test(found, json)
        folder = self.run_dir / EVALUATIONS
        path = meta_test_path(folder, self.iteration, config.evaluation, self.episodes)
        save(path, found)


def found_in_test(
    iteration: int,
    job: Job,
    env: TaskVectorEnv,
    tasks: np.ndarray,
    scores: Mapping[str, Scores],
    optima: Mapping[str, np.ndarray],
) -> "MetaTest":
    """Return a meta-test, by policy and by strategy, as it is printed and kept."""
    from hpc_maml.storage.meta_tests import MetaTest

    words = [job.algorithm.test_words()]
    if job.config.evaluation.last_actions == "mean":
        words.append("the last with the mean action")
    return MetaTest(
        iteration,
        job.algorithm.phase,
        tasks,
        {name: each.returns for name, each in scores.items()},
        optima,
        ", ".join(filter(None, words)),
        {name: each.success for name, each in scores.items() if each.success is not None},
        env.classes,
    )
