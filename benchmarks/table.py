"""The rows of a benchmark, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from hpc_maml.errors import InputError, reason_of


@dataclass(frozen=True)
class Row:
    """A figure, and what it is measured against."""

    name: str
    value: float
    unit: str
    yardstick: float | None = None
    ratio: float | None = None  # value / yardstick: the median over rounds, each taken side by side
    ratio_range: tuple[float, float] | None = None  # smallest and largest of these
    against: str = ""  # what the yardstick is, or why there is none


def compare(
    name: str,
    unit: str,
    values: Sequence[float],
    yardsticks: Sequence[float] = (),
    against: str = "",
) -> Row:
    """Return the row of a figure that was measured in turn with its yardstick, round by round."""
    if not yardsticks:
        return Row(name, median(values), unit, against=against)
    ratios = [value / other for value, other in zip(values, yardsticks, strict=True)]
    return Row(
        name,
        median(values),
        unit,
        median(yardsticks),
        median(ratios),
        (min(ratios), max(ratios)),
        against,
    )


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("figure", "value", "unit", "ratio", "range", "yardstick", "which is"):
        table.add_column(
            column, justify="left" if column in ("figure", "unit", "which is") else "right"
        )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.value:.4g}",
            row.unit,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.ratio_range is None else "{:.2f}-{:.2f}".format(*row.ratio_range),
            "" if row.yardstick is None else f"{row.yardstick:.4g}",
            row.against,
        )
    Console(width=None if Console().is_terminal else 160).print(table)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def check_file(path: Path) -> None:
    """Raise InputError if a file cannot be written, before anything is measured."""
    try:
        path.open("a").close()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}.") from None
