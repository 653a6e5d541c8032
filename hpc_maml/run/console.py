"""What a person sees of a run: a table of the topology, then a line for every iteration."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import RUN, Evaluation, half_width
from hpc_maml.mpi.runtime import has_launcher
from hpc_maml.mpi.topology import Topology, rank_ranges
from hpc_maml.roles.messages import Hello


class Reporter:
    """Prints the progress of a run: live on a terminal, plain timestamped lines in a log."""

    def __init__(self, first_iteration: int, num_iterations: int) -> None:
        self.num_iterations = num_iterations
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

    def iteration(self, done: int, row: Mapping[str, Any]) -> None:
        """Report an iteration; ``row`` holds the values of metrics.METRICS."""
        text = (
            f"return {_returns(row['return_after_updates'])}   kl {row['kl_after']:.4f}   "
            f"{row['iteration_seconds']:.2f} s"
        )
        if row["diverged_episodes"]:
            text += f"   {row['diverged_episodes']} EPISODES DIVERGED"
        if not row["accepted"]:
            text += f"   UPDATE REJECTED: {row['reason']}"
        if self.live:
            self.live.update(self.bar, completed=done, description=text)
            if not row["accepted"]:
                self.note(f"iteration {done}: update rejected: {row['reason']}")
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
    """Print which ranks hold which roles, where, with how many threads; like ranks together."""
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


def test_text(found: Evaluation) -> str:
    """Return a meta-test of a run in a line."""
    returns = found.returns[RUN]
    return (
        f"meta-test after {found.iteration} iterations, {len(returns)} unseen tasks: return "
        f"{_returns(returns, width=0)} ± {half_width(returns)[-1]:.2f}"
    )


def print_meta_test(found: Evaluation, json_file: Path | None) -> None:
    """Print the mean returns of all policies after 0, 1, ... updates with 95 % confidence.

    Also writes them to ``json_file``; raises InputError if that fails.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("updates", justify="right")
    for name in found.returns:
        table.add_column(name, justify="right")
    rows = []

    def cell(values: np.ndarray, name: str) -> str:
        mean, half = float(values.mean()), float(half_width(values))
        name = name.replace(" ", "_")
        rows.append({"name": name, "value": mean, "unit": "reward", "confidence_95": half})
        return f"{mean:.2f} ± {half:.2f}"

    for updates in range(len(found.step_sizes) + 1):
        cells = [
            cell(
                returns[:, updates],
                ("" if policy == RUN else f"{policy}_") + f"return_after_{updates}_updates",
            )
            for policy, returns in found.returns.items()
        ]
        table.add_row(str(updates), *cells)
    sizes = ", ".join(f"{size:g}" for size in found.step_sizes)
    print(
        f"mean return on {len(found.tasks)} unseen tasks after {found.iteration} iterations, ± 95 "
        f"% confidence; step sizes {sizes}"
    )
    _print(table)
    for name, values in found.optima.items():
        print(f"{name}: {cell(values, name)}", flush=True)
    if json_file:
        try:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file} cannot be written: {error.strerror}.") from None


def _returns(values: np.ndarray, width: int = 9) -> str:
    """Return the means of ``[tasks, phases]`` as text, like -40.41 -> -11.68."""
    return " -> ".join(f"{mean:{width}.2f}" for mean in values.mean(0))


def _print(table: Table) -> None:
    with StringIO() as text:
        Console(file=text, width=120).print(table)
        print(*(line.rstrip() for line in text.getvalue().splitlines()), sep="\n", flush=True)
