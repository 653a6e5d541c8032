"""The meta-test of a run that is done or going on, beside other policies on the same tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms.algorithm import Algorithm, State
from hpc_maml.config import (
    Config,
    EvaluationConfig,
    TopologyConfig,
    check_config,
    differing_keys,
)
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError, printable, reason_of
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.mpi.topology import Topology
from hpc_maml.parts import make_algorithm, make_env
from hpc_maml.roles.principal import Agents, Scores, greet, meta_test, unseen_tasks
from hpc_maml.run import memory
from hpc_maml.run.doctor import warnings_of
from hpc_maml.run.job import Job, prepare, run_job
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.stopping import StopSignal

if TYPE_CHECKING:
    from hpc_maml.storage.meta_tests import MetaTest
    from hpc_maml.storage.states import Which


def test_settings(
    tasks: int | None,
    updates: int | None,
    step_sizes: str | float | Sequence[Any] | None,
    last_actions: str | None,
) -> dict[str, Any]:
    """Return what is asked for as keys of EvaluationConfig; sizes of steps tell their number.

    Raises InputError for numbers among words, or another number of updates than sizes.
    """
    asked: dict[str, Any] = {"tasks": tasks, "updates": updates, "last_actions": last_actions}
    if step_sizes is not None:
        sizes: list[Any] = (
            [step_sizes] if isinstance(step_sizes, str | float | int) else list(step_sizes)
        )
        words = [each for each in sizes if isinstance(each, str)]
        if words and len(sizes) > 1:
            raise InputError("Step sizes are halved, constant, or numbers.")
        if not words and updates not in (None, len(sizes)):
            raise InputError(f"There are {updates} updates, but {len(sizes)} step sizes.")
        asked["step_sizes"] = words[0] if words else [float(each) for each in sizes]
        asked["updates"] = updates if words else len(sizes)
    return {key: value for key, value in asked.items() if value is not None}


class MetaTesting:
    """A meta-test of a checkpoint of a run; rank 0 reads and keeps."""

    def __init__(
        self,
        run_dir: Path,
        settings: Mapping[str, Any],
        episodes: int | None,
        baselines: Sequence[Path],
        which: "Which" = "last",
        *,
        trust: bool = False,
    ) -> None:
        """Keep what is asked for.

        ``settings`` are keys of EvaluationConfig that differ from the run's, ``episodes`` replace
        its ``fast_batch_size``. Runs in ``baselines`` are tested on the same tasks with their last
        checkpoint, as is the policy that the run began with. With ``trust``, what the run folders
        name is imported.
        """
        self.run_dir = run_dir
        self.settings = settings
        self.episodes = episodes
        self.baselines = baselines
        self.which = which
        self.trusted = None if trust else ()
        # on rank 0 only
        self.env: Any = None
        self.iteration = 0
        self.contestants: dict[str, tuple[Algorithm, State]] = {}
        self.found: Any = None  # meta_tests.MetaTest
        self.log: Any = None  # run_log.RunLog

    def evaluate(self, world: MPI.Intracomm) -> None:
        """Make the meta-test on every rank; rank 0 keeps it as ``found``, and in the run folder.

        Raises InputError on every rank.
        """
        job = from_rank_0(world, self._prepare)
        needs = memory.needs_of_test(job)
        warnings_of(world, job.config, needs)  # or what will go wrong, raised

        async def principal(agents: Agents, topology: Topology) -> None:
            await self._lead(job, agents, topology)

        try:
            run_job(world, job, needs, principal, StopSignal())
        except BaseException as error:
            if self.log:
                self.log.write(f"{type(error).__name__}: {error}")
            raise

    def _prepare(self) -> Job:
        """Read the run and the baselines, and return the job."""
        from hpc_maml.storage.meta_tests import RANDOM, RUN
        from hpc_maml.storage.run_folder import read_config
        from hpc_maml.storage.states import chosen_checkpoint, initial_checkpoint, state_of

        run_config = read_config(self.run_dir, self.trusted)
        config = self._tested(run_config, run_config)
        self.env = make_env(config, episodes=1)
        job = prepare(config, self.env)
        # Checkpoints know the configuration that they were written with.
        checkpoint = chosen_checkpoint(self.run_dir, run_config, job.algorithm, self.which)
        self.iteration = checkpoint.iteration
        self.contestants[RUN] = (job.algorithm, state_of(checkpoint))
        random = initial_checkpoint(config, job.algorithm)
        self.contestants[RANDOM] = (job.algorithm, state_of(random))
        for path in self.baselines:
            other = read_config(path, self.trusted)
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
            name = f"baseline {printable(path.resolve().name)}"  # HDF5 cannot keep all bytes
            if name in self.contestants:
                raise InputError(f"Two baselines are called {path.name}: rename a folder.")
            algorithm = make_algorithm(self._tested(other, config), self.env)
            found = chosen_checkpoint(path, other, algorithm)
            self.contestants[name] = (algorithm, state_of(found))
        algorithms = tuple(algorithm for algorithm, _ in self.contestants.values())
        self._check_folder()
        self._begin_log()  # last, as what is refused leaves nothing behind
        return replace(job, algorithms=algorithms)

    def _check_folder(self) -> None:
        """Raise InputError if the result could not be kept, before it is computed."""
        from hpc_maml.storage.run_folder import EVALUATIONS

        folder = self.run_dir / EVALUATIONS
        try:
            with TemporaryFile(dir=folder if folder.exists() else self.run_dir):
                pass
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {reason_of(error)}.") from None

    def _begin_log(self) -> None:
        """Say in the log of the run that a meta-test begins."""
        from hpc_maml.run.record import versions
        from hpc_maml.storage.run_log import LOG, RunLog

        self.log = RunLog(self.run_dir / LOG)
        self.log.begin(versions())

    def _tested(self, config: Config, run: Config) -> Config:
        """Return the configuration of a contestant: episodes and evaluation are the run's."""
        return config.model_copy(
            update={
                # The ranks at hand need not be those of the run, and agents only pass batches on.
                "topology": TopologyConfig(),
                "device": "cpu",
                "archive": config.archive.model_copy(update={"adapted_parameters": False}),
                "evaluation": self._evaluation(run),
                "fast_batch_size": run.fast_batch_size if self.episodes is None else self.episodes,
            }
        )

    def _evaluation(self, run: Config) -> EvaluationConfig:
        """Return the settings of the meta-test, those of the run but for what is asked for."""
        own = run.evaluation.model_dump() | dict(self.settings)
        return check_config(run.model_dump() | {"evaluation": own}).evaluation

    async def _lead(self, job: Job, agents: Agents, topology: Topology) -> None:
        """Test every contestant on the same tasks, and keep the result."""
        from hpc_maml.run.console import meta_test_tables
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
        phases = {name: algorithm.phase for name, (algorithm, _) in self.contestants.items()}
        self.found = found_in_test(
            self.iteration, job, self.env, tasks, scores, optima=optima, phases=phases
        )
        folder = self.run_dir / EVALUATIONS
        path = meta_test_path(folder, self.iteration, config.evaluation, self.episodes)
        save(path, self.found)
        self.log.write(f"{meta_test_tables(self.found)[0]}\nkept in {path}")


def found_in_test(
    iteration: int,
    job: Job,
    env: TaskVectorEnv,
    tasks: np.ndarray,
    scores: Mapping[str, Scores],
    *,
    optima: Mapping[str, np.ndarray] = MappingProxyType({}),
    phases: Mapping[str, str] = MappingProxyType({}),
) -> "MetaTest":
    """Return a meta-test as it is printed and kept; scores and phases are by policy."""
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
        phases,
        {name: each.success for name, each in scores.items() if each.success is not None},
        env.classes,
    )
