"""Training and meta-tests from a script or a notebook, in one process.

They are what the command line does without ``mpirun``. Several ranks need the command line, as only
a launcher can start and end them.
"""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_maml import THREADS
from hpc_maml.errors import InputError
from hpc_maml.stopping import SIGNALS, StopSignal
from hpc_maml.storage.reader import Run

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpc_maml.config import Config
    from hpc_maml.storage.meta_tests import MetaTest
    from hpc_maml.storage.states import Which


def train(
    config: "Config | Mapping[str, Any] | None" = None,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callable[[int, Mapping[str, Any]], object]] = (),
) -> Run:
    """Meta-train, or go on with the run in ``run_dir``, and return the run.

    ``config`` comes from ``load_config``, or is a nested dictionary of keys; without one it is that
    of the run folder, whose classes ``module:Class`` are then not imported. After every iteration
    each callback is given the number of iterations done and the metrics of the last one, by name;
    one that returns true stops the run, as Ctrl-C does, with a checkpoint. Raises InputError.
    """
    with _one_process() as world:
        from hpc_maml.config import Config, check_config, load_config
        from hpc_maml.run.training import Training
        from hpc_maml.storage.run_folder import has_config, read_config

        folder = None if run_dir is None else Path(run_dir)
        if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
            raise InputError("Callbacks are functions of iterations done and metrics, in a list.")

        def load_settings() -> Config:
            if isinstance(config, Config):
                return config
            if config is not None and not isinstance(config, Mapping):
                raise InputError(
                    f"The configuration is a dictionary or comes from load_config, not {config!r}."
                )
            if config is not None:
                return check_config(config)
            return read_config(folder) if folder and has_config(folder) else load_config()

        with _stopped_by_signals() as stop:
            training = Training(world, load_settings, folder, stop, callbacks)
            try:
                training.train()
            except BaseException:
                if training.sinks:
                    training.sinks.close()
                raise
            finally:
                if training.run:
                    training.run.close()
        return Run(training.run.path)


def evaluate(
    run: Run | str | Path,
    *,
    tasks: int | None = None,
    updates: int | None = None,
    episodes: int | None = None,
    step_sizes: Any = None,
    last_actions: str | None = None,
    checkpoint: "Which" = "last",
    baselines: Run | str | Path | Sequence[Run | str | Path] = (),
    trust: bool = False,
) -> "MetaTest":
    """Meta-test a checkpoint of a run on unseen tasks, keep the result in its folder, return it.

    What is None is that of the run; see ``evaluation`` of the configuration. ``step_sizes`` are
    ``"halved"`` or ``"constant"`` after the first update, or numbers, one for each update;
    ``last_actions``, in the last phase, ``"sampled"`` or ``"mean"``; ``checkpoint`` is an
    iteration, ``"last"`` or ``"best"``. Runs in ``baselines`` are tested on the same tasks. Classes
    ``module:Class`` that run folders name are imported only with ``trust``. Raises InputError.
    """
    with _one_process() as world:
        from hpc_maml.run.meta_testing import MetaTesting, test_settings

        if episodes is not None and (type(episodes) is not int or episodes < 2):
            raise InputError(f"episodes must be a number from 2 on, not {episodes!r}.")
        settings = test_settings(tasks, updates, step_sizes, last_actions)
        several = [baselines] if isinstance(baselines, Run | str | Path) else baselines
        folders = [_folder(each) for each in several]
        testing = MetaTesting(_folder(run), settings, episodes, folders, checkpoint, trust=trust)
        testing.evaluate(world)
        found: MetaTest = testing.found
        return found


def _folder(run: Run | str | Path) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


@contextmanager
def _one_process() -> Iterator["MPI.Intracomm"]:
    """Load the libraries as the command does, and yield the world of this process."""
    threads = next((os.environ[name] for name in THREADS if name in os.environ), "")
    if threads != "1" and (os.cpu_count() or 1) > 1:
        warnings.warn(
            f"NumPy was loaded without {THREADS[0]}=1: the run may differ in the last bits from "
            "one of the command line, and on other machines.",
            stacklevel=4,
        )
    from hpc_maml.mpi.loading import load_mpi

    world = load_mpi().COMM_WORLD
    if world.size > 1:
        raise InputError(
            f"There are {world.size} ranks: a script trains in one process; start several with "
            "mpirun -np N python -m hpc_maml."
        )
    comm = world.Dup()
    yield comm
    comm.Free()  # not after a failure, which may leave messages on their way


@contextmanager
def _stopped_by_signals() -> Iterator[StopSignal]:
    """Yield what tells of signals to stop; afterwards they mean what they meant before."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # which alone receives them
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop.listen(speaks=True)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
