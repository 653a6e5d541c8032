"""What a person sees of a run: a table of the topology, then a line for every iteration."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.errors import InputError
from hpc_maml.mpi.runtime import has_launcher
from hpc_maml.mpi.topology import Topology, rank_ranges
from hpc_maml.roles.messages import Hello
from hpc_maml.storage.meta_tests import RUN, MetaTest, half_width

MOST_PHASES = 4  # in a line


class Reporter:
    """Prints the progress of a run: live on a terminal, plain timestamped lines in a log."""

    def __init__(
        self, first_iteration: int, num_iterations: int, declared: Mapping[str, Metric]
    ) -> None:
        """Begin; ``declared`` are the metrics of the algorithm."""
        self.num_iterations = num_iterations
        self.shown = {name: metric for name, metric in declared.items() if metric.console}
        self.first_iteration = first_iteration
        self.started = time.monotonic()
        self.live: Progress | None = None
        # Some launchers give their processes a terminal of their own, whatever they write to.
        if sys.stdout.isatty() and not has_launcher():
            self.live = Progress(
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = self.live.add_task("", total=num_iterations, completed=first_iteration)
            self.live.start()

    def iteration(self, done: int, row: Mapping[str, Any], reason: str) -> None:
        """Report an iteration: its metrics, and why its update was rejected, if it was."""
        parts = [f"return {_returns(row['return_after_updates'])}"]
        if "success_after_updates" in row:
            parts.append(f"success {_percent(row['success_after_updates'])}")
        for name, metric in self.shown.items():
            parts.append(metric.console.format(row.get(name, math.nan)))
        parts.append(f"{row['iteration_seconds']:.2f} s")
        if row["diverged_episodes"]:
            parts.append(f"{row['diverged_episodes']} EPISODES DIVERGED")
        if reason:
            parts.append(f"UPDATE REJECTED: {reason}")
        text = "   ".join(parts)
        if self.live:
            self.live.update(self.bar, completed=done, description=text)
            if reason:
                self.note(f"iteration {done}: update rejected: {reason}")
            return
        pace = (time.monotonic() - self.started) / (done - self.first_iteration)
        left = timedelta(seconds=round(pace * (self.num_iterations - done)))
        width = len(str(self.num_iterations))
        say(f"iteration {done:{width}}/{self.num_iterations}   {text}   eta {left}")

    def note(self, text: str) -> None:
        """Print a sentence."""
        if self.live:
            self.live.console.print(text, markup=False)
        else:
            say(text)

    def close(self) -> None:
        """End the live display."""
        if self.live:
            self.live.stop()


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}", flush=True)


def print_topology(topology: Topology, hellos: Sequence[Hello]) -> None:
    """Print which ranks hold which roles, where, with how many threads; equal ranks in one row."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank, (place, hello) in enumerate(zip(topology.places, hellos, strict=True)):
        row = (topology.hosts[rank], " + ".join(place.roles), hello.device, str(hello.threads))
        groups.setdefault(row, []).append(rank)
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("ranks", "roles", "host", "device", "threads per rank"):
        table.add_column(name)
    for (host, roles, device, threads), ranks in groups.items():
        table.add_row(rank_ranges(ranks), roles, host, device, threads)
    _print(table)


def test_text(found: MetaTest) -> str:
    """Return a meta-test of a run in a line."""
    returns = found.returns[RUN]
    text = (
        f"meta-test after {found.iteration} iterations, {len(returns)} unseen tasks: return "
        f"{_returns(returns, width=0)} ± {half_width(returns)[-1]:.2f}"
    )
    if found.success:
        success = found.success[RUN]
        text += f", success {_percent(success, 100 * half_width(success)[-1])}"
    return text


def print_meta_test(found: MetaTest, json_file: Path | None) -> None:
    """Print the mean returns of all policies in each phase with their 95 % confidence interval.

    Where the environment tells of success, also the share of successful episodes, and that of the
    last phase in each class of tasks. Also writes them to ``json_file``; raises InputError if that
    fails.
    """
    rows: list[dict[str, Any]] = []

    def cell(values: np.ndarray, name: str, unit: str = "reward") -> str:
        mean, half = float(values.mean()), float(half_width(values))
        name = name.replace(" ", "_")
        rows.append({"name": name, "value": mean, "unit": unit, "confidence_95": half})
        return f"{mean:.2f} ± {half:.2f}" if unit == "reward" else _share(mean, half)

    def add_row(table: Table, label: str, name: str, unit: str, of: PhaseValues) -> None:
        source = found.returns if unit == "reward" else found.success
        cells = []
        for policy in found.returns:
            values = of(source[policy]) if policy in source else None
            own = "" if policy == RUN else f"{policy}_"
            cells.append("" if values is None else cell(values, own + name, unit))
        table.add_row(label, *cells)

    def add_phases(table: Table, what: str, unit: str) -> None:
        for phase in range(max(returns.shape[1] for returns in found.returns.values())):
            number = found.first + phase
            after = f"after_{number}_updates" if found.phase == "updates" else f"episode_{number}"
            add_row(
                table,
                str(number),
                f"{what}_{after}",
                unit,
                lambda values, phase=phase: (  # type: ignore[misc] # of its default
                    values[:, phase] if phase < values.shape[1] else None
                ),
            )

    table = _policies_table(found.phase, found)
    add_phases(table, "return", "reward")
    if found.phase == "episode" and found.returns[RUN].shape[1] > 1:
        add_row(table, "trial", "return_of_trial", "reward", lambda returns: returns.sum(1))
    print(
        f"mean return on {len(found.tasks)} unseen tasks after {found.iteration} iterations, "
        f"± 95 % confidence{f'; {found.how}' if found.how else ''}"
    )
    _print(table)
    if found.success:
        print("successful episodes")
        table = _policies_table(found.phase, found)
        add_phases(table, "success", "1")
        _print(table)
    if found.success and (classes := found.by_class()):
        print("successful episodes of the last phase, by class")
        table = _policies_table("class", found)
        for name, own in classes.items():
            add_row(
                table,
                name,
                f"success_of_{name}",
                "1",
                lambda values, own=own: values[own, -1],  # type: ignore[misc] # of its default
            )
        _print(table)
    for name, values in found.optima.items():
        print(f"{name}: {cell(values, name)}", flush=True)
    if json_file:
        try:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file} cannot be written: {error.strerror}.") from None


PhaseValues = Callable[[np.ndarray], np.ndarray | None]  # of [n, K], some [n]


def _policies_table(first: str, found: MetaTest) -> Table:
    """Return a table with a column for each policy."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(first, justify="left" if first == "class" else "right")
    for name in found.returns:
        table.add_column(name, justify="right")
    return table


def _share(mean: float, half: float) -> str:
    return f"{100 * mean:.1f} ± {100 * half:.1f} %"


def _returns(values: np.ndarray, width: int = 9) -> str:
    """Return the means of ``[tasks, phases]`` as text, like -40.41 -> -11.68.

    Of many phases, the first and the last.
    """
    means = values.mean(0)
    shown = [f"{mean:{width}.2f}" for mean in means]
    if len(shown) > MOST_PHASES:
        shown = [shown[0], "...", shown[-1]]
    return " -> ".join(shown)


def _percent(values: np.ndarray, half: float | None = None) -> str:
    """Return the mean shares of the first and the last of ``[tasks, phases]``, in percent.

    ``half`` is half the confidence interval of the last, in percent.
    """
    first, last = 100 * values.mean(0)[[0, -1]]
    text = f"{first:.1f} -> {last:.1f}" if values.shape[1] > 1 else f"{last:.1f}"
    return f"{text} %" if half is None else f"{text} ± {half:.1f} %"


def _print(table: Table) -> None:
    with StringIO() as text:
        Console(file=text, width=120).print(table)
        print(*(line.rstrip() for line in text.getvalue().splitlines()), sep="\n", flush=True)
