"""The command: list the experiments, or make one, here or as a job array of Slurm."""

import math
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from hpc_maml.errors import InputError
from hpc_maml.reproduce.benchmark import measured
from hpc_maml.reproduce.experiment import Experiment, name_of, names, read
from hpc_maml.reproduce.page import make_pages_folder, write_measured, write_page
from hpc_maml.reproduce.runs import PlannedRun, next_words, planned
from hpc_maml.reproduce.work import STOPPED, Work, test_by_rule
from hpc_maml.stopping import StopSignal
from hpc_maml.storage.run_folder import take_lock

DONE, FAILED = 0, 1
SCRIPT = Path("jobs/slurm_reproduce.sh")


def list_experiments() -> None:
    """Print a line for each experiment that comes with the package."""
    for name in names():
        experiment = read(name)
        print(f"{name:24}{experiment.title}; {_work(experiment)}")


def _work(experiment: Experiment) -> str:
    """Say what it takes."""
    if experiment.benchmark:
        return f"the benchmark {experiment.benchmark[0]}"
    methods = ", ".join(
        f"{label} {method.iterations} iterations" for label, method in experiment.methods.items()
    )
    return f"{experiment.seeds} seed{'s' * (experiment.seeds > 1)} of {methods}"


class Reproduction:
    """An experiment, its runs in a folder, and the page that they come to."""

    def __init__(
        self, experiment: str, folder: Path, pages: Path | None, seeds: int | None
    ) -> None:
        """Read the experiment, given by name or as a file; raises InputError."""
        self.given = experiment
        self.name = name_of(experiment)
        self.experiment: Experiment = read(experiment)
        self.asked_seeds = seeds
        self.seeds = seeds or self.experiment.seeds
        self.folder = folder
        self.pages = pages or folder
        self.runs: list[PlannedRun] = planned(self.experiment, folder / self.name, self.seeds)

    def make(self, side_by_side: int | None, budget: float, stop: StopSignal) -> int:
        """Train and test what is missing, write the page, and return the exit code."""
        if self.experiment.benchmark:
            if self.asked_seeds or side_by_side or budget < math.inf:
                raise InputError(
                    f"{self.name} is a benchmark: it has no --seeds, --side-by-side and --budget."
                )
            return self._measure(stop)
        with self._locked_folder():
            return self._make(side_by_side, budget, stop)

    def _make(self, side_by_side: int | None, budget: float, stop: StopSignal) -> int:
        self._say(f"{len(self.runs)} runs in {self.folder / self.name}")
        work = Work(self.runs, side_by_side, budget, stop, self._say)
        work.work()
        if not stop.requested:
            test_by_rule(self.runs, self._say)
        page = write_page(self.name, self.experiment, self.runs, self.pages, self._how())
        if page:
            print(page, flush=True)
        if work.failed:
            return FAILED
        if unfinished := [run.name for run in self.runs if next_words(run)]:
            print(
                f"{self.name}: {len(unfinished)} of {len(self.runs)} runs are not finished; the "
                "same command goes on with them.",
                flush=True,
            )
            return STOPPED
        return DONE

    def next_words(self, number: int) -> list[str]:
        """Return the next command of a run, by its number from 0; empty when it is finished."""
        self._check_has_runs()
        if number >= len(self.runs):
            raise InputError(f"{self.name} has the runs 0 to {len(self.runs) - 1}, not {number}.")
        self._make_folder()
        return next_words(self.runs[number])

    def submit(self, words: Sequence[str]) -> int:
        """Submit the runs to Slurm as a job array; ``words`` are more options of sbatch."""
        self._check_has_runs()
        if not shutil.which("sbatch"):
            raise InputError("There is no sbatch here: --slurm is for a machine with Slurm.")
        if not SCRIPT.exists():
            raise InputError(f"{SCRIPT} is not here: copy the job scripts by hpc_maml jobs .")
        waiting = [index for index, run in enumerate(self.runs) if next_words(run)]
        if not waiting:
            print(f"{self.name}: all runs are finished.")
            return DONE
        own = [self.given, "-o", str(self.folder), "--seeds", str(self.seeds)]
        array = ",".join(map(str, waiting))
        command = ["sbatch", f"--array={array}", *words, str(SCRIPT), *own]
        print(shlex.join(command), flush=True)
        return FAILED if subprocess.run(command, check=False).returncode else DONE

    def _check_has_runs(self) -> None:
        if not self.runs:
            raise InputError(f"{self.name} has no runs: make it without --run and --slurm.")

    def _measure(self, stop: StopSignal) -> int:
        """Run the benchmark, write the page, and return the exit code."""
        make_pages_folder(self.pages)
        picture = self.pages / f"{self.name}.svg"
        found = measured(self.experiment.benchmark, picture, stop, self._say)
        if found is None:
            return STOPPED
        print(write_measured(self.name, self.experiment, *found, self.pages, self._how()))
        return DONE

    def _make_folder(self) -> Path:
        folder = self.folder / self.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error.strerror}.") from None
        return folder

    def _locked_folder(self) -> IO[str]:
        """Return the lock of the folder, held while it is open: two would write one page."""
        folder = self._make_folder()
        try:
            return take_lock(folder, "folder of runs")
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be used: {error.strerror}.") from None

    def _how(self) -> str:
        """Return the command of the page."""
        seeds = f" --seeds {self.seeds}" if self.runs else ""
        return f"python -m hpc_maml reproduce {self.given}{seeds}"

    def _say(self, line: str) -> None:
        print(f"{self.name}: {line}", flush=True)
