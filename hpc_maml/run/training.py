"""A training run from start to end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.config import Config
from hpc_maml.errors import InputError
from hpc_maml.mpi.exchange import Messenger
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.mpi.topology import Topology, assign_roles
from hpc_maml.report.advice import NEEDED, advise
from hpc_maml.report.unlearning import USED, unlearning
from hpc_maml.roles.principal import (
    Agents,
    IterationResult,
    Principal,
    Scores,
    Segments,
    greet,
    sums_of_agents,
)
from hpc_maml.run.doctor import warn
from hpc_maml.run.job import DONE, STOPPED_EARLY, Job, archive_shapes, make_env, prepare, run_job
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import estimate
from hpc_maml.storage.archive_schema import Segment


class Training:
    """A training run; the principal's rank, 0, also prints and keeps the files."""

    def __init__(
        self,
        world: MPI.Intracomm,
        load_settings: Callable[[], Config],
        run_dir: Path | None,
        stop: StopSignal,
    ) -> None:
        """Keep what the run needs; ``load_settings`` is called on rank 0 only."""
        self.world = world
        self.load_settings = load_settings
        self.run_dir = run_dir
        self.stop = stop
        # on rank 0 only
        self.run: Any = None  # record.RunRecord
        self.env: Any = None
        self.sinks: Any = None
        self.reporter: Any = None
        self.first = 0  # iterations done before
        self.job_size: dict[str, int] = {}  # metrics that are the same for all iterations

    def train(self) -> int:
        """Meta-train on every rank; return the exit code. Raises InputError on every rank."""
        job = from_rank_0(self.world, self._prepare)
        warn(self.world, job.config, _say)

        async def principal(agents: Agents, topology: Topology) -> None:
            await self._lead(job, agents, topology)

        run_job(self.world, job, principal, self.stop)
        return from_rank_0(self.world, lambda: self._conclude(job))

    def _prepare(self) -> Job:
        """Open the run folder, and return the job."""
        # Only the principal prints and keeps files, so only rank 0 imports what that takes.
        from hpc_maml.run.record import RunRecord
        from hpc_maml.run.sinks import check_installed
        from hpc_maml.storage.atomic_files import size_text
        from hpc_maml.storage.run_folder import default_path

        config = self.load_settings()
        assign_roles([0] * self.world.size, config.topology.agents, config.topology.layout)
        check_installed(config.metrics)
        self.env = make_env(config, episodes=1)
        job = prepare(config, self.env)
        shapes = archive_shapes(job)
        each, total = estimate(config, shapes)
        names = self.env.training_classes
        success_of = {name: self.env.classes.index(name) for name in names}
        folder = self.run_dir or default_path(config)
        self.run = RunRecord(
            folder, config, job.algorithm, shapes, success_of if self.env.reports_success else None
        )
        self.first = self.run.checkpoint.iteration
        if not total:
            return job
        _say(
            f"rollouts: {size_text(each)} an archived iteration, "
            f"{size_text(total)} for {config.num_iterations} iterations"
            + ("" if config.archive.compression == "none" else ", before compression")
        )
        return replace(job, rollouts=self.run.archive.folder.absolute())

    async def _lead(self, job: Job, agents: Agents, topology: Topology) -> None:
        """Lead the run, with everything that people see of it."""
        from hpc_maml.run import console
        from hpc_maml.run.sinks import Sinks

        run, config = self.run, job.config
        _say(f"run folder {run.path}" + (f", continued at {self.first}" if self.first else ""))
        for sentence in run.notes:
            _say(sentence)
        hellos = await greet(topology.world)
        console.print_topology(topology, hellos)
        if sums := sums_of_agents(hellos):
            _say(f"sums between agents: {sums}")
            run.metrics.versions["sums_of_agents"] = sums
        run.metrics.versions["hosts"] = ", ".join(dict.fromkeys(topology.hosts))
        self.job_size = {
            "ranks": self.world.size,
            "agents": len(topology.agent_ranks),
            "observers": sum(agents.observers),
            "cores": topology.cores,
            "gpus": sum(hello.device != "cpu" for hello in hellos),
        }
        self.reporter = console.Reporter(self.first, config.num_iterations, job.algorithm.metrics)
        if self.first < config.num_iterations:
            self.sinks = Sinks(config, run.path, run.metrics, self.reporter.note)
        segments = Segments(Messenger(topology.world))
        record = _Record(self, job)
        principal = Principal(config, self.env, agents, segments, record, self.stop)
        try:
            await principal.run(run.state, self.first)
        except InputError as error:  # a file cannot be written
            raise run.end_early(error) from None
        finally:
            self.reporter.close()
        if run.checkpoint.iteration < config.num_iterations:
            run.write_checkpoint()
        run.archive.write_index()

    def _conclude(self, job: Job) -> int:
        """Say how the run ended; return the exit code."""
        run = self.run
        if self.sinks:
            self.sinks.close()
        done = run.checkpoint.iteration
        if done > self.first:
            for sentence in advise(_columns(run.metrics.rows[self.first :], NEEDED)):
                _say(sentence)
        if done < job.config.num_iterations:
            _say(
                f"stopped early after {done} iterations, with a checkpoint; "
                f"go on with --run-dir {run.path}"
            )
            return STOPPED_EARLY
        _say(f"done: {done} iterations in {run.path}")
        return DONE


class _Record:
    """Keeps what the principal finds, and tells people."""

    def __init__(self, training: Training, job: Job) -> None:
        self.training = training
        self.job = job

    def iteration(self, result: IterationResult, segments: Sequence[Segment]) -> None:
        """Keep what an iteration gave."""
        training = self.training
        training.run.record(result.done, result.state, result.row | training.job_size, segments)
        training.reporter.iteration(result.done, result.row, result.reason)
        if sentence := unlearning(_columns(training.run.metrics.rows, USED), now=True):
            training.reporter.note(f"iteration {result.done}: {sentence}")
        training.sinks.put(training.run.metrics.rows[-1])

    def has_test(self, done: int) -> bool:
        """Tell whether the meta-test after ``done`` iterations is kept."""
        return self._path(done).exists()

    def test(self, done: int, tasks: np.ndarray, scores: Scores) -> None:
        """Keep a meta-test."""
        from hpc_maml.run import console
        from hpc_maml.run.meta_testing import found_in_test
        from hpc_maml.storage.meta_tests import RUN, save

        env = self.training.env
        found = found_in_test(done, self.job, env, tasks, {RUN: scores}, {})
        save(self._path(done), found)
        self.training.reporter.note(console.test_text(found))

    def _path(self, done: int) -> Path:
        from hpc_maml.storage.meta_tests import meta_test_path

        return meta_test_path(self.training.run.evaluations, done, self.job.config.evaluation)


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the metrics of these names that there are, ``[iterations]``."""
    return {name: np.array([row[name] for row in rows]) for name in names if name in rows[0]}


def _say(text: str) -> None:
    from hpc_maml.run import console  # only rank 0 says anything

    console.say(text)
