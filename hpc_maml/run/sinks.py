"""Copies of the metrics for TensorBoard and Weights & Biases; training never waits for them.

Each sink is a function of an iterator of rows, in a thread of its own. At every start it is given
all rows of the run, so that what it holds has no gap, whatever an earlier job was killed in.
"""

import importlib.util
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.config import NEUTRAL_KEYS, Config, MetricsConfig, leaves
from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import RUN, MetaTest
from hpc_maml.storage.metrics import METRICS as OF_EVERY_RUN
from hpc_maml.storage.metrics import Metrics

TENSORBOARD = "tensorboard"  # folder of the event files in a run folder
LONGEST_QUEUE = 1000  # rows a sink may be behind
HISTOGRAM_BINS = 30
CLOSE_LIMIT = 30.0  # seconds the end of a run waits for its sinks
SERVER_LIMIT = 20.0  # seconds for the W&B server to answer, at the start and at the end

Row = Mapping[str, Any]  # values of the columns and of each task, by name


class Shown(NamedTuple):
    """What the sinks show: numbers of each iteration, and of its tasks as histograms."""

    columns: Mapping[str, Metric]
    distributions: Mapping[str, Metric]


def shown(metrics: Metrics) -> Shown:
    """Return what there is to show; tasks and arrays of returns stay in metrics.h5."""
    per_task = metrics.per_task.items()
    distributions = {name: each for name, each in per_task if each.shape == "[iteration, task]"}
    return Shown(metrics.columns, distributions)


class Entry(NamedTuple):
    """What is known after an iteration, on its way to a sink: its metrics, or a meta-test."""

    iteration: int  # counted from 1; a meta-test may be of 0
    time: float  # seconds since the epoch
    found: "Row | MetaTest"


class Sink:
    """A thread that hands rows to ``write``; what goes wrong there ends the sink, not the run."""

    def __init__(
        self, name: str, write: Callable[[Iterator[Entry]], None], earlier: Iterable[Entry]
    ) -> None:
        self.name = name
        self.failure = ""  # why there will be no more rows
        self._write = write
        self._queue: queue.Queue[Entry | None] = queue.Queue(LONGEST_QUEUE)
        # A daemon: a rank that fails must be able to end the job at once.
        self._thread = threading.Thread(target=self._run, args=(earlier,), name=name, daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Leave a row to the thread; never waits."""
        self._offer(entry)

    def close(self, limit: float) -> None:
        """Wait until every row is written, ``limit`` seconds at most."""
        self._offer(None)
        if not self.failure:
            self._thread.join(limit)
        if self._thread.is_alive():
            self.failure = self.failure or f"it has not ended after {limit:.0f} s"

    def _offer(self, entry: Entry | None) -> None:
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self.failure = self.failure or f"it is {LONGEST_QUEUE} iterations behind"

    def _run(self, earlier: Iterable[Entry]) -> None:
        try:
            self._write(chain(earlier, iter(self._queue.get, None)))
        except Exception as error:
            self.failure = " ".join(f"{type(error).__name__}: {error}".split())


class Sinks:
    """The sinks of a run; one that fails is reported once, and dropped."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        metrics: Metrics,
        tests: Sequence[MetaTest],
        report: Callable[[str], None],
    ) -> None:
        """Start the sinks of a configuration; metrics and scheduled tests are those so far."""
        self._report = report
        self._iteration = len(metrics)
        (seconds,) = metrics.read_columns(["iteration_seconds"]).values()
        # dated as if the run had gone on without a break, before anything new is
        ended = time.time() - seconds.sum() + np.cumsum([0.0, *seconds])
        what = shown(metrics)
        writers: dict[str, Callable[[Iterator[Entry]], None]] = {}
        if config.metrics.tensorboard != "off" and _is_installed("tensorboard"):
            writers["TensorBoard"] = partial(write_tensorboard, folder / TENSORBOARD, config, what)
        if config.metrics.wandb != "off":
            writers["Weights & Biases"] = partial(write_wandb, folder, config, what)
        self._sinks = [
            Sink(name, write, _entries(ended, metrics.all_rows(), tests))
            for name, write in writers.items()
        ]

    def put(self, row: Row) -> None:
        """Hand the row of the next iteration to every sink."""
        self._iteration += 1
        self._put(Entry(self._iteration, time.time(), row))

    def put_test(self, test: MetaTest) -> None:
        """Hand a meta-test to every sink."""
        self._put(Entry(test.iteration, time.time(), test))

    def _put(self, entry: Entry) -> None:
        for sink in self._sinks:
            sink.put(entry)
        self._drop_failed()

    def close(self) -> None:
        """Wait for what is still to be written, for a limited time."""
        deadline = time.monotonic() + CLOSE_LIMIT
        for sink in self._sinks:
            sink.close(max(0.0, deadline - time.monotonic()))
        self._drop_failed()

    def _drop_failed(self) -> None:
        for sink in self._sinks:
            if sink.failure:
                self._report(
                    f"{sink.name} gets no more metrics: {sink.failure}. The run goes on; "
                    "metrics.h5 holds everything."
                )
        self._sinks = [sink for sink in self._sinks if not sink.failure]


def check_sinks(config: MetricsConfig) -> None:
    """Raise InputError for a library that is not installed, and for a missing login."""
    for name, setting in (("tensorboard", config.tensorboard), ("wandb", config.wandb)):
        if setting not in ("auto", "off") and not _is_installed(name):
            raise InputError(
                f"metrics.{name} is {setting}, but {name} is not installed: "
                f"pip install 'hpc_maml[{name}]'."
            )
    if config.wandb == "online":
        import wandb

        # Whether the server accepts it is seen later: a run starts without the network, too.
        if not wandb.login(prompt=False, verify=False):
            raise InputError(
                "metrics.wandb is online, but Weights & Biases has no account here: call wandb "
                "login, set WANDB_API_KEY, or choose metrics.wandb=offline."
            )


def tags(columns: Mapping[str, Metric]) -> dict[str, str]:
    """Return what metrics are called, by name: in groups, as people look at them."""
    return {name: f"{_group(name, metric)}/{name}" for name, metric in columns.items()}


def _group(name: str, metric: Metric) -> str:
    if metric.unit == "s" or name.endswith("_busy"):
        return "time"
    if "success" in name:
        return "success"
    if "return" in name:
        return "return"
    return "run" if name in OF_EVERY_RUN else "outer_step"


def scalars_of_test(test: MetaTest) -> dict[str, float]:
    """Return the mean return of a meta-test in each phase, and of a trial, by tag.

    Where the environment tells of success, also the share of successful episodes in each phase.
    """
    words = "{}_after_{}_updates" if test.phase == "updates" else "{}_episode_{}"
    kinds = {"return": test.returns[RUN]}
    if test.success:
        kinds["success"] = test.success[RUN]
    found = {
        f"meta_test/{words.format(kind, test.first + phase)}": float(mean)
        for kind, values in kinds.items()
        for phase, mean in enumerate(values.mean(0))
    }
    return found if test.phase == "updates" else found | {"meta_test/return_of_trial": test.score}


def write_tensorboard(folder: Path, config: Config, what: Shown, entries: Iterator[Entry]) -> None:
    """Write entries to a new event file, which replaces what earlier files of the folder show."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    # The older kinds of value, as PyTorch writes them: all readers know these, and purge them.
    def summary(row: Row, *, described: bool) -> Summary:
        values = Summary()
        for metrics, kind in ((what.columns, "scalars"), (what.distributions, "histograms")):
            for name, tag in tags(metrics).items():
                metric = metrics[name]
                value = values.value.add(tag=tag)
                if described:
                    value.metadata.summary_description = f"{metric.description} [{metric.unit}]"
                    value.metadata.plugin_data.plugin_name = kind
                if kind == "histograms":
                    value.histo.CopyFrom(histogram(row[name]))
                else:
                    value.simple_value = float(row[name])
        return values

    def histogram(values: np.ndarray) -> HistogramProto:
        finite = values[np.isfinite(values)]
        if not len(finite):
            return HistogramProto()
        counts, edges = np.histogram(finite, HISTOGRAM_BINS)
        return HistogramProto(
            min=finite.min(),
            max=finite.max(),
            num=len(finite),
            sum=finite.sum(),
            sum_squares=(finite * finite).sum(),
            bucket_limit=edges[1:],
            bucket=counts,
        )

    folder.mkdir(exist_ok=True)
    # Not EventFileWriter: it has a thread of its own, whose failures are tracebacks, and imports
    # TensorFlow where that is installed. TensorBoard reads files in the order of their names.
    name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
    with (folder / name).open("xb") as file:
        records = RecordWriter(file)

        def write(**content: Any) -> None:
            records.write(Event(**content).SerializeToString())
            records.flush()

        write(wall_time=time.time(), file_version="brain.Event:2")
        purge = SessionLog(status=SessionLog.START)  # forget this step and all later ones
        write(wall_time=time.time(), step=0, session_log=purge)
        write(wall_time=time.time(), summary=hparams_pb(hyperparameters(config)))
        described = False
        for iteration, seconds, found in entries:
            if isinstance(found, MetaTest):
                means = Summary()
                for tag, mean in scalars_of_test(found).items():
                    means.value.add(tag=tag, simple_value=mean)
            else:
                means, described = summary(found, described=not described), True
            write(wall_time=seconds, step=iteration, summary=means)


def write_wandb(folder: Path, config: Config, what: Shown, entries: Iterator[Entry]) -> None:
    """Log rows to Weights & Biases; continues the run that an earlier job of this folder began."""
    import wandb

    earlier = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
    run = wandb.init(
        mode=config.metrics.wandb,  # type: ignore[arg-type] # not off here
        dir=folder,
        project=os.environ.get("WANDB_PROJECT", "hpc_maml"),
        name=folder.name,
        id=earlier[-1].name.rsplit("-", 1)[-1] if earlier else secrets.token_hex(4),
        resume="allow",
        config=config.model_dump(),
        settings=wandb.Settings(
            console="off", silent=True, init_timeout=SERVER_LIMIT, finish_timeout=SERVER_LIMIT
        ),
    )
    for iteration, _, found in entries:
        if iteration < run.starting_step:  # an earlier job has sent it
            continue
        if isinstance(found, MetaTest):
            run.log(scalars_of_test(found), step=iteration)
            continue
        scalars, histograms = tags(what.columns), tags(what.distributions)
        values: dict[str, Any] = {tag: float(found[name]) for name, tag in scalars.items()}
        for name, tag in histograms.items():
            finite = found[name][np.isfinite(found[name])]
            values[tag] = wandb.Histogram(finite, num_bins=HISTOGRAM_BINS)
        run.log(values, step=iteration)
    run.finish()


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the keys that affect the result, dotted, as numbers, truth values and texts."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in leaves(config.model_dump(exclude=set(NEUTRAL_KEYS)))
    }


def _entries(ended: np.ndarray, rows: Iterator[Row], tests: Sequence[MetaTest]) -> Iterator[Entry]:
    """Yield entries for the start and each iteration so far; ``ended`` are their times, in s."""
    at = {test.iteration: test for test in tests}
    for iteration, end in enumerate(ended.tolist()):
        if iteration:
            yield Entry(iteration, end, next(rows))
        if iteration in at:
            yield Entry(iteration, end, at[iteration])


def _is_installed(name: str) -> bool:
    """Tell whether a package is installed; a mere folder of that name does not count."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
