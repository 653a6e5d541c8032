"""What a person sees of a run: a table of the topology, then a line for every iteration."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.errors import InputError, printable, reason_of
from hpc_maml.mpi.launcher import has_launcher
from hpc_maml.mpi.topology import Topology, rank_ranges
from hpc_maml.report.phases import ends_by_index
from hpc_maml.roles.messages import Hello
from hpc_maml.storage.meta_tests import PHASES, RUN, MetaTest, half_width
from hpc_maml.storage.run_log import RunLog, stamp

MOST_PHASES = 4  # in a line
# The phases of a policy, where those of the run are of the other kind.
NUMBERED = {"updates": " (0, 1, ... updates)", "episode": " (episodes 1, 2, ...)"}


class Voice:
    """Prints what a run says, and keeps it for the log of the run, once there is one."""

    def __init__(self) -> None:
        self.kept: list[str] = []  # said before there was a log
        self.log: RunLog | None = None

    def begin_log(self, log: RunLog, versions: Mapping[str, str]) -> None:
        """Log what was said so far, and all that will be."""
        self.log = log
        log.begin(versions)
        for line in self.kept:
            log.write(line)

    def say(self, text: str) -> None:
        """Print a line with the time."""
        self.print(f"{stamp()}  {printable(text)}")

    def print(self, text: str) -> None:
        """Print lines as they are."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Log lines that are not printed."""
        if self.log:
            self.log.write(text)
        else:
            self.kept.append(text)


class Reporter:
    """Prints the progress of a run: live on a terminal, plain timestamped lines in a log."""

    def __init__(
        self,
        voice: Voice,
        first_iteration: int,
        num_iterations: int,
        declared: Mapping[str, Metric],
        phase: str,
    ) -> None:
        """Begin; ``declared`` are the metrics of the algorithm, a task has phases of a kind."""
        self.voice = voice
        self.phase = phase
        self.header = ""  # of the lines, once it is shown
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
                TextColumn("{task.description}", markup=False),
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
        if not self.header:
            self.header = self._header(parts, row)
            (self.voice.note if self.live else self.voice.print)(self.header)
        text = "   ".join(parts)
        pace = (time.monotonic() - self.started) / (done - self.first_iteration)
        left = timedelta(seconds=round(pace * (self.num_iterations - done)))
        width = len(str(self.num_iterations))
        line = f"iteration {done:{width}}/{self.num_iterations}   {text}   eta {left}"
        if not self.live:
            self.voice.say(line)
            return
        self.live.update(self.bar, completed=done, description=text)
        self.voice.note(f"{stamp()}  {line}")
        if reason:
            self.live.console.print(f"iteration {done}: update rejected: {reason}", markup=False)

    def _header(self, parts: Sequence[str], row: Mapping[str, Any]) -> str:
        """Return the names of the columns above the parts of a line."""
        first, *last = ends_by_index(self.phase, row["return_after_updates"].shape[1]).values()
        width = len(str(self.num_iterations))
        names = [f"{first} -> {last[0].removesuffix(' adaptation')}" if last else "mean return"]
        names += ["successful episodes"] if "success_after_updates" in row else []
        names += [f"[{each.unit}]" if each.unit != "1" else "" for each in self.shown.values()]
        cells = [name.ljust(len(part)) for name, part in zip(names, parts, strict=False)]
        done = "done".ljust(len("iteration /") + 2 * width)
        return "   ".join([f"{'time':19}  {done}", *cells, "took", "  left"])

    def note(self, text: str) -> None:
        """Print a sentence."""
        if self.live:
            self.live.console.print(printable(text), markup=False)
            self.voice.note(f"{stamp()}  {printable(text)}")
        else:
            self.voice.say(text)

    def close(self) -> None:
        """End the live display."""
        if self.live:
            self.live.stop()


def topology_table(topology: Topology, hellos: Sequence[Hello]) -> str:
    """Return which ranks hold which roles, where, with how many threads, and why.

    Equal ranks are in one row.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank, (place, hello) in enumerate(zip(topology.places, hellos, strict=True)):
        row = (topology.hosts[rank], " + ".join(place.roles), hello.device, str(hello.threads))
        if not place.roles:
            row = (topology.hosts[rank], "rest", "", "")
        groups.setdefault(row, []).append(rank)
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("ranks", "roles", "host", "device", "threads per rank"):
        table.add_column(name)
    for (host, roles, device, threads), ranks in groups.items():
        table.add_row(rank_ranges(ranks), roles, escape(printable(host)), device, threads)
    plan = topology.plan
    return f"{_text(table)}\nlayout {plan.layout}: {plan.reason}"


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
    """Print the tables of a meta-test, and write their numbers to ``json_file``.

    Raises InputError if that fails.
    """
    text, rows = meta_test_tables(found)
    print(text, flush=True)
    if json_file:
        try:
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json_file} cannot be written: {reason_of(error)}.") from None


def meta_test_tables(found: MetaTest) -> tuple[str, list[dict[str, Any]]]:
    """Return the mean returns of all policies in each phase with their 95 % confidence interval.

    Where the environment tells of success, also the share of successful episodes, and that of the
    last phase in each class of tasks. They are returned as text and as named numbers.
    """
    rows: list[dict[str, Any]] = []
    lines: list[str] = []

    def cell(values: np.ndarray, name: str, unit: str = "reward") -> str:
        mean, half = float(values.mean()), float(half_width(values))
        name = name.replace(" ", "_")
        rows.append(
            {
                "name": name,
                "value": mean,
                "unit": unit,
                "confidence_95": None if np.isnan(half) else half,
            }
        )
        return f"{mean:.2f} ± {half:.2f}" if unit == "reward" else _share(mean, half)

    def add_row(
        table: Table,
        label: str,
        source: Mapping[str, np.ndarray],
        names: Mapping[str, str],
        unit: str,
        of: PhaseValues,
    ) -> None:
        cells = []
        for policy in found.returns:
            kind = found.phase_of(policy)
            values = of(source[policy], kind) if policy in source else None
            own = "" if policy == RUN else f"{policy}_"
            cells.append("" if values is None else cell(values, own + names[kind], unit))
        table.add_row(label, *cells)

    def add_phases(
        table: Table, what: str, source: Mapping[str, np.ndarray], unit: str = "reward"
    ) -> None:
        for phase in range(max(values.shape[1] for values in source.values())):
            names = {"updates": f"after_{phase}_updates", "episode": f"episode_{phase + 1}"}
            add_row(
                table,
                str(found.first + phase),
                source,
                {kind: f"{what}_{name}" for kind, name in names.items()},
                unit,
                lambda values, kind, phase=phase: (  # type: ignore[misc] # of its default
                    values[:, phase] if phase < values.shape[1] else None
                ),
            )

    table = _policies_table(found.phase, found)
    add_phases(table, "return", found.returns)
    if found.phase == "episode" and found.returns[RUN].shape[1] > 1:
        add_row(
            table,
            "trial",
            found.returns,
            {"episode": "return_of_trial"},
            "reward",
            lambda returns, kind: returns.sum(1) if kind == "episode" else None,
        )
    lines.append(
        f"mean return on {len(found.tasks)} unseen tasks after {found.iteration} iterations, "
        f"± 95 % confidence{f'; {found.how}' if found.how else ''}"
    )
    lines.append(_text(table))
    if found.success:
        lines.append("successful episodes")
        table = _policies_table(found.phase, found)
        add_phases(table, "success", found.success, "1")
        lines.append(_text(table))
    if found.success and (classes := found.by_class()):
        lines.append("successful episodes of the last phase, by class")
        table = _policies_table("class", found)
        for name, own in classes.items():
            add_row(
                table,
                escape(printable(name)),
                found.success,
                dict.fromkeys(PHASES, f"success_of_{name}"),
                "1",
                lambda values, kind, own=own: values[own, -1],  # type: ignore[misc] # of its default
            )
        lines.append(_text(table))
    for name, values in found.optima.items():
        lines.append(f"{name}: {cell(values, name)}")
    return "\n".join(lines), rows


# Of [n, K] and what a phase is, some [n].
PhaseValues = Callable[[np.ndarray, str], np.ndarray | None]


def _policies_table(first: str, found: MetaTest) -> Table:
    """Return a table with a column for each policy."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(first, justify="left" if first == "class" else "right")
    for name in found.returns:
        same = found.phase_of(name) == found.phase
        words = name if same else f"{name}{NUMBERED[found.phase_of(name)]}"
        table.add_column(escape(printable(words)), justify="right")
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


def _text(table: Table) -> str:
    with StringIO() as text:
        Console(file=text, width=120, force_jupyter=False).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
