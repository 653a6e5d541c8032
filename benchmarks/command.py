"""The benchmarks by name."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Row, show, write


def bench(names: Sequence[str], rounds: int, build: Path, json: Path | None) -> None:
    """Measure, print a table after each benchmark, and write all rows to ``json``."""
    rows: list[Row] = []
    for name in names:
        rows += (found := measure(name, rounds, build))
        show(found)
        if json:  # what is there already is not lost if a later one fails
            write(rows, json)


def measure(name: str, rounds: int, build: Path) -> list[Row]:
    """Return the rows of one benchmark."""
    if name == "rollout":
        from benchmarks.rollout import measure

        return measure(rounds, build)
    if name == "update":
        from benchmarks.update import measure

        return measure(rounds)
    if name == "reduce":
        from benchmarks.reduce import measure

        return measure(rounds, build)
    if name == "iteration":
        from benchmarks.iteration import measure

        return measure(rounds)
    from benchmarks.scale import ASSUMPTIONS, measure

    print(ASSUMPTIONS)
    return measure(rounds)
