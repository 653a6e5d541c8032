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
            f"return {row['pre_update_return_mean']:9.2f} -> "
            f"{row['post_update_return_mean']:9.2f}   kl {row['kl_after']:.4f}   "
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


def print_meta_test(returns: Sequence[np.ndarray], json_file: Path | None) -> None:
    """Print the returns ``[tasks]`` after 0, 1, ... updates: mean, 95 % confidence interval.

    Also writes them to ``json_file``; raises InputError if that fails.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("updates", "mean return", "95 % confidence"):
        table.add_column(name, justify="right")
    rows = []
    for updates, values in enumerate(returns):
        mean = float(values.mean())
        half_width = float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
        table.add_row(str(updates), f"{mean:.2f}", f"± {half_width:.2f}")
        rows.append({"name": f"return_after_{updates}_updates", "value": mean, "unit": "reward"})
        rows[-1]["confidence_95"] = half_width
    _print(table)
    if json_file:
        try:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file} cannot be written: {error.strerror}.") from None


def _print(table: Table) -> None:
    with StringIO() as text:
        Console(file=text, width=120).print(table)
        print(*(line.rstrip() for line in text.getvalue().splitlines()), sep="\n", flush=True)
