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
from hpc_maml.mpi.topology import Seat, Topology, plan_roles
from hpc_maml.parts import make_env
from hpc_maml.report.advice import NEEDED, advise
from hpc_maml.report.unlearning import USED, Watch
from hpc_maml.roles.principal import (
    Agents,
    IterationResult,
    Principal,
    Scores,
    Segments,
    greet,
    sums_of_agents,
)
from hpc_maml.run import memory
from hpc_maml.run.doctor import warnings_of
from hpc_maml.run.job import DONE, STOPPED_EARLY, Job, archive_shapes, prepare, run_job
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.archive_plan import estimate
from hpc_maml.storage.archive_schema import Segment

# Told of the iterations done and the metrics of the last; it returns true to stop the run.
Callback = Callable[[int, Mapping[str, Any]], object]


class Training:
    """A training run; the principal's rank, 0, also prints and keeps the files."""

    def __init__(
        self,
        world: MPI.Intracomm,
        load_settings: Callable[[], Config],
        run_dir: Path | None,
        stop: StopSignal,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Keep what the run needs; what can be called is called on rank 0 only."""
        self.world = world
        self.load_settings = load_settings
        self.run_dir = run_dir
        self.stop = stop
        self.callbacks = callbacks
        # on rank 0 only
        self.run: Any = None  # record.RunRecord
        self.env: Any = None
        self.sinks: Any = None
        self.reporter: Any = None
        self.voice: Any = None  # console.Voice
        self.watch: Any = None  # unlearning.Watch
        self.first = 0  # iterations done before
        self.layout = ""
        self.job_size: dict[str, int] = {}  # metrics that are the same for all iterations

    def train(self) -> int:
        """Meta-train on every rank; return the exit code. Raises InputError on every rank."""
        job = from_rank_0(self.world, self._prepare)
        needs = memory.needs(job)
        for warning in warnings_of(self.world, job.config, needs):
            if self.world.rank == 0:
                self._say(f"warning: {warning}")
        job = from_rank_0(self.world, lambda: self._open(job))

        async def principal(agents: Agents, topology: Topology) -> None:
            await self._lead(job, agents, topology)

        try:
            run_job(self.world, job, needs, principal, self.stop)
        except BaseException as error:
            self._note_failure(error)
            raise
        return from_rank_0(self.world, lambda: self._conclude(job))

    def _prepare(self) -> Job:
        """Return the job; whatever is refused here leaves no run folder behind."""
        # Only the principal prints and keeps files, so only rank 0 imports what that takes.
        from hpc_maml.run.console import Voice
        from hpc_maml.run.sinks import check_sinks

        self.voice = Voice()
        config = self.load_settings()
        asked = config.topology
        plan_roles([Seat(0)] * self.world.size, asked.agents, asked.layout, config.device)
        check_sinks(config.metrics)
        self.env = make_env(config, episodes=1)
        job = prepare(config, self.env)
        estimate(config, archive_shapes(job))
        return job

    def _open(self, job: Job) -> Job:
        """Open the run folder; return the job with the folder of its rollouts."""
        from hpc_maml.run.record import RunRecord
        from hpc_maml.storage.atomic_files import size_text
        from hpc_maml.storage.run_folder import default_path
        from hpc_maml.storage.run_log import LOG, RunLog

        config, shapes = job.config, archive_shapes(job)
        path = self.run_dir or default_path(config)
        names = self.env.training_classes
        success_of = {name: self.env.classes.index(name) for name in names}
        self.run = RunRecord(
            path, config, job.algorithm, shapes, success_of if self.env.reports_success else None
        )
        self.first = self.run.checkpoint.iteration
        self.voice.begin_log(RunLog(path / LOG), self.run.metrics.versions)
        each, total = estimate(config, shapes)
        if not total:
            return job
        self._say(
            f"rollouts: {size_text(each)} an archived iteration, "
            f"{size_text(total)} for {config.num_iterations} iterations"
            + ("" if config.archive.compression == "none" else ", before compression")
        )
        return replace(job, rollouts=self.run.archive.folder.absolute())

    def _note_failure(self, error: BaseException) -> None:
        """Log why the run ends; one that was refused before it did anything leaves no folder."""
        if not self.run:  # another rank than the principal's
            return
        self.voice.note(f"{type(error).__name__}: {error}")
        if isinstance(error, InputError) and self.run.is_new and not len(self.run.metrics):
            self.run.remove()

    def _say(self, text: str) -> None:
        """Print a line, on rank 0, which alone says anything."""
        self.voice.say(text)

    async def _lead(self, job: Job, agents: Agents, topology: Topology) -> None:
        """Lead the run, with everything that people see of it."""
        from hpc_maml.run import console
        from hpc_maml.run.sinks import Sinks

        run, config = self.run, job.config
        self._say(f"run folder {run.path}" + (f", continued at {self.first}" if self.first else ""))
        for sentence in run.notes:
            self._say(sentence)
        hellos = await greet(topology.world)
        self.voice.print(console.topology_table(topology, hellos))
        if sums := sums_of_agents(hellos):
            self._say(f"sums between agents: {sums}")
            run.metrics.versions["sums_of_agents"] = sums
        self.layout = topology.plan.layout
        run.metrics.versions["layout"] = self.layout
        run.metrics.versions["hosts"] = ", ".join(dict.fromkeys(topology.hosts))
        self.job_size = {
            "ranks": self.world.size,
            "agents": len(topology.agent_ranks),
            "observers": sum(agents.observers),
            "cores": topology.cores,
            "gpus": sum(hello.device != "cpu" for hello in hellos),
        }
        self.reporter = console.Reporter(
            self.voice,
            self.first,
            config.num_iterations,
            job.algorithm.metrics,
            job.algorithm.phase,
        )
        self.watch = Watch(run.metrics.read_columns(USED))
        if self.first < config.num_iterations or run.lacks_test(self.first):
            tests = [test for each in range(self.first + 1) if (test := run.scheduled_test(each))]
            self.sinks = Sinks(config, run.path, run.metrics, tests, self.reporter.note)
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
            columns = run.metrics.read_columns(NEEDED)
            columns = {name: each[self.first :] for name, each in columns.items()}
            for sentence in advise(columns, job.config.meta_batch_size, self.layout):
                self._say(sentence)
        if done < job.config.num_iterations or run.lacks_test(done):
            self._say(
                f"stopped early after {done} iterations, with a checkpoint; "
                f"go on with --run-dir {run.path}"
            )
            return STOPPED_EARLY
        self._say(f"done: {done} iterations in {run.path}")
        return DONE


class _Record:
    """Keeps what the principal finds, and tells people."""

    def __init__(self, training: Training, job: Job) -> None:
        self.training = training
        self.job = job

    def write(self, result: IterationResult, segments: Sequence[Segment]) -> None:
        """Write the files of an iteration."""
        row = result.row | self.training.job_size
        self.training.run.record(result.done, result.state, row, segments)

    def iteration(self, result: IterationResult) -> None:
        """Tell of an iteration that is written."""
        training = self.training
        training.reporter.iteration(result.done, result.row, result.reason)
        row = training.run.metrics.rows[-1]
        if sentence := training.watch.sentence(row):
            training.reporter.note(f"iteration {result.done}: {sentence}")
        training.sinks.put(row)
        if (kept := training.run.scheduled_test(result.done)) is not None:  # of an earlier job
            training.sinks.put_test(kept)
        for callback in training.callbacks:
            if callback(result.done, row):
                training.stop.request()

    def lacks_test(self, done: int) -> bool:
        """Tell whether there is to be a meta-test after ``done`` iterations, and is none."""
        return bool(self.training.run.lacks_test(done))

    def test(self, done: int, tasks: np.ndarray, scores: Scores) -> None:
        """Keep a meta-test."""
        from hpc_maml.run import console
        from hpc_maml.run.meta_testing import found_in_test
        from hpc_maml.storage.meta_tests import RUN, meta_test_path, save

        env = self.training.env
        found = found_in_test(done, self.job, env, tasks, {RUN: scores})
        run = self.training.run
        save(meta_test_path(run.evaluations, done, self.job.config.evaluation), found)
        self.training.reporter.note(console.test_text(found))
        self.training.sinks.put_test(found)
