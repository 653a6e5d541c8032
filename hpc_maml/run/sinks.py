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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.config import Config, MetricsConfig
from hpc_maml.errors import InputError
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
    """The metrics of one iteration on their way to a sink."""

    iteration: int  # counted from 1
    time: float  # seconds since the epoch
    row: Row


class Sink:
    """A thread that hands rows to ``write``; what goes wrong there ends the sink, not the run."""

    def __init__(
        self, name: str, write: Callable[[Iterator[Entry]], None], earlier: Sequence[Entry]
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

    def _run(self, earlier: Sequence[Entry]) -> None:
        try:
            self._write(chain(earlier, iter(self._queue.get, None)))
        except Exception as error:
            self.failure = " ".join(f"{type(error).__name__}: {error}".split())


class Sinks:
    """The sinks of a run; one that fails is reported once, and dropped."""

    def __init__(
        self, config: Config, folder: Path, metrics: Metrics, report: Callable[[str], None]
    ) -> None:
        """Start the sinks of a configuration; ``metrics`` are those of the run so far."""
        self._report = report
        self._iteration = len(metrics.rows)
        earlier = _entries(metrics.rows)
        what = shown(metrics)
        writers: dict[str, Callable[[Iterator[Entry]], None]] = {}
        if config.metrics.tensorboard != "off" and _is_installed("tensorboard"):
            writers["TensorBoard"] = partial(write_tensorboard, folder / TENSORBOARD, what)
        if config.metrics.wandb != "off":
            writers["Weights & Biases"] = partial(write_wandb, folder, config, what)
        self._sinks = [Sink(name, write, earlier) for name, write in writers.items()]

    def put(self, row: Row) -> None:
        """Hand the row of the next iteration to every sink."""
        self._iteration += 1
        for sink in self._sinks:
            sink.put(Entry(self._iteration, time.time(), row))
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


def check_installed(config: MetricsConfig) -> None:
    """Raise InputError if the configuration asks for a library that is not installed."""
    for name, setting in (("tensorboard", config.tensorboard), ("wandb", config.wandb)):
        if setting not in ("auto", "off") and not _is_installed(name):
            raise InputError(
                f"metrics.{name} is {setting}, but {name} is not installed: "
                f"pip install 'hpc_maml[{name}]'."
            )


def write_tensorboard(folder: Path, what: Shown, entries: Iterator[Entry]) -> None:
    """Write rows to a new event file, which replaces what earlier files of the folder show."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # The older kinds of value, as PyTorch writes them: all readers know these, and purge them.
    def summary(row: Row, *, described: bool) -> Summary:
        values = Summary()
        for group, metrics in (("iterations", what.columns), ("tasks", what.distributions)):
            for name, metric in metrics.items():
                value = values.value.add(tag=f"{group}/{name}")
                if described:
                    value.metadata.summary_description = f"{metric.description} [{metric.unit}]"
                    kind = "histograms" if group == "tasks" else "scalars"
                    value.metadata.plugin_data.plugin_name = kind
                if group == "tasks":
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
        for number, (iteration, seconds, row) in enumerate(entries):
            write(wall_time=seconds, step=iteration, summary=summary(row, described=not number))


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
    for iteration, _, row in entries:
        if iteration < run.starting_step:  # an earlier job has sent it
            continue
        values: dict[str, Any] = {f"iterations/{name}": float(row[name]) for name in what.columns}
        for name in what.distributions:
            finite = row[name][np.isfinite(row[name])]
            values[f"tasks/{name}"] = wandb.Histogram(finite, num_bins=HISTOGRAM_BINS)
        run.log(values, step=iteration)
    run.finish()


def _entries(rows: Sequence[Row]) -> list[Entry]:
    """Return entries for earlier rows, dated as if the run had gone on without a break."""
    ended = time.time() - np.cumsum([row["iteration_seconds"] for row in reversed(rows)])[::-1]
    return [
        Entry(iteration, float(ended[iteration - 1] + row["iteration_seconds"]), row)
        for iteration, row in enumerate(rows, 1)
    ]


def _is_installed(name: str) -> bool:
    """Tell whether a package is installed; a mere folder of that name does not count."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
