"""Runs side by side on the cores there are, a chunk of iterations at a time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from hpc_maml.errors import InputError
from hpc_maml.mpi.launcher import alone
from hpc_maml.reproduce.published_navigation import meta_test
from hpc_maml.reproduce.runs import PlannedRun, next_words
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.meta_tests import save

STOPPED = 75  # exit code of a run that stopped early, with a checkpoint


class Work:
    """Trains and tests planned runs until all are done, or the time is over.

    The run that has done the smallest part of its iterations goes on next, so that all seeds get
    as far when the time is over. A run that fails is left out, and said.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        side_by_side: int | None,
        budget: float,
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> None:
        """Keep what there is to do; ``budget`` is in seconds, ``say`` gets a line for each step."""
        self.runs = runs
        cores = sorted(os.sched_getaffinity(0))
        workers = min(side_by_side or len(cores), len(runs), len(cores))
        share = len(cores) // workers
        self.cores = [cores[first * share : (first + 1) * share] for first in range(workers)]
        self.deadline = time.monotonic() + budget
        self.stop = stop
        self.say = say
        self.failed: list[PlannedRun] = []
        self._busy: dict[PlannedRun, subprocess.Popen[bytes] | None] = {}
        self._stopped: set[PlannedRun] = set()  # for want of time
        self._lock = threading.Lock()

    def work(self) -> None:
        """Do all of it."""
        told = False
        with ThreadPoolExecutor(len(self.cores)) as pool:
            workers = [pool.submit(self._worker, cores) for cores in self.cores]
            while wait(workers, timeout=0.1).not_done:
                if self.stop.requested and not told:
                    told = True
                    with self._lock:
                        for process in self._busy.values():
                            if process:
                                process.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.result()

    def _worker(self, cores: Sequence[int]) -> None:
        os.sched_setaffinity(0, cores)  # of this thread, and of the processes that it starts
        while not self.stop.requested and (taken := self._take()):
            run, words = taken
            try:
                self._execute(run, words, len(cores))
            finally:
                with self._lock:
                    del self._busy[run]

    def _take(self) -> tuple[PlannedRun, list[str]] | None:
        """Return the run that is to go on, and its command."""
        with self._lock:
            waiting = [run for run in self.runs if run not in self._busy and run not in self.failed]
            for run in sorted(waiting, key=lambda run: run.done / run.method.iterations):
                words = next_words(run)
                late = run in self._stopped or time.monotonic() > self.deadline
                if late and words[:1] == ["train"]:  # tested as it is
                    words = [] if run.by_rule or not run.done or run.test() else run.test_words()
                if words:
                    self._busy[run] = None
                    return run, words
        return None

    def _execute(self, run: PlannedRun, words: list[str], ranks: int) -> None:
        trains = words[0] == "train"
        if trains:
            left = max(1.0, self.deadline - time.monotonic())
            words = [*words, "--time-limit", f"{min(left, 10**8):.1f}s"]
        command = [sys.executable, "-m", "hpc_maml", *words]
        launcher = shutil.which("mpirun", path=str(Path(sys.executable).parent))
        launcher = launcher or shutil.which("mpirun")
        if ranks > 1 and launcher:
            command = [launcher, "-np", str(ranks), *command]
        log = run.folder.parent / f"{run.folder.name}.log"
        before, start = run.done, time.monotonic()
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=alone(in_allocation=True),
            )
            with self._lock:
                self._busy[run] = process
            code = process.wait()
        took = time.monotonic() - start
        if code == STOPPED:
            with self._lock:
                self._stopped.add(run)
        elif code:
            with self._lock:
                self.failed.append(run)
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            self.say(f"{run.name}: failed with exit code {code}: {''.join(last)} (see {log})")
            return
        if not trains:
            self.say(f"{run.name}: tested, {took:.0f} s")
        elif run.done:
            per_task = run.run.per_task
            ends = (per_task[f"{each}_update_return"][-1].mean() for each in ("pre", "post"))
            self.say(
                f"{run.name}: iteration {run.done}/{run.method.iterations}   return "
                + " -> ".join(f"{each:.2f}" for each in ends)
                + f"   {took / max(1, run.done - before):.2f} s each"
            )


def test_by_rule(runs: Sequence[PlannedRun], say: Callable[[str], None]) -> None:
    """Make the meta-tests that have a rule of their own, of the last checkpoints."""
    for run in runs:
        if not run.by_rule or not run.done or run.test_path.exists():
            continue
        found = meta_test(run.folder, run.method.test.numbers)
        if found.iteration != run.done:
            raise InputError(f"{run.folder}: its last checkpoint is of {found.iteration}.")
        save(run.test_path, found)
        say(f"{run.name}: tested by the published rule")
