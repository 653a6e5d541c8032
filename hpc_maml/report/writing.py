"""From run folders to the files of a report."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_maml.errors import InputError, reason_of
from hpc_maml.report import tables
from hpc_maml.report.experiments import by_environment, find_runs, read_runs
from hpc_maml.storage.atomic_files import write_whole

PAGE = "report.html"
FILES = ("png", "pdf")  # of a picture, beside SVG, which the page shows
TABLES = {
    "runs.csv": tables.run_rows,
    "experiments.csv": tables.experiment_rows,
    "aggregates.csv": tables.aggregate_rows,
    "learning_curves.csv": tables.curve_rows,
    "meta_tests.csv": tables.test_rows,
    "success.csv": tables.success_rows,
    "metrics.csv": tables.metric_rows,
}


def write_report(folders: Sequence[Path], to: Path, *, trust: bool = False) -> list[str]:
    """Write the page, pictures and tables of some runs into a folder; return what was left out.

    With ``trust``, environments that runs name as ``module:Class`` are imported, for pictures.
    Raises InputError for a run that cannot be read, or a folder that cannot be written.
    """
    try:
        from hpc_maml.report.figures import pictures, render
        from hpc_maml.report.page import page
    except ImportError:
        raise InputError("The report needs matplotlib: pip install 'hpc_maml[report]'.") from None
    begun, left_out = find_runs(folders)
    with warnings.catch_warnings(record=True) as damaged:
        warnings.simplefilter("always", UserWarning)
        environments = by_environment(read_runs(begun, trust=trust))
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {to} cannot be made: {reason_of(error)}.") from None
    drawn: dict[str, list[tuple[Any, bytes]]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for number, environment in enumerate(environments):
            prefix = f"{number + 1}_" if len(environments) > 1 else ""
            drawn[environment.name] = []
            for picture in pictures(environment):
                svg = render(picture, "svg")
                _write(to / f"{prefix}{picture.name}.svg", svg)
                for kind in FILES:
                    _write(to / f"{prefix}{picture.name}.{kind}", render(picture, kind))
                drawn[environment.name].append((picture, svg))
    notes = [*left_out, *dict.fromkeys(str(each.message) for each in (*damaged, *caught))]
    for name, rows in TABLES.items():
        if found := rows(environments):
            _write(to / name, tables.to_csv(found).encode())
    _write(to / PAGE, page(environments, drawn, notes).encode())
    return notes


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content), durable=False)
