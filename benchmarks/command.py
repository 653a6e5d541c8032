"""The benchmarks by name."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Row, check_file, show, write
from hpc_maml.errors import InputError


def bench(
    names: Sequence[str],
    rounds: int,
    build: Path,
    json: Path | None,
    algorithm: str,
    picture: Path | None,
) -> None:
    """Measure, print a table after each benchmark, and write all rows to ``json``.

    ``algorithm`` is the one whose outer step is measured; ``picture`` is where ``scale`` draws.
    """
    rows: list[Row] = []
    if picture and "scale" not in names:
        raise InputError("--picture is of scale: name that, too.")
    for file in (json, picture):
        if file:
            check_file(file)
    for name in names:
        rows += (found := measure(name, rounds, build, algorithm, picture))
        show(found)
        if json:  # what is there already is not lost if a later one fails
            write(rows, json)


def measure(name: str, rounds: int, build: Path, algorithm: str, picture: Path | None) -> list[Row]:
    """Return the rows of one benchmark."""
    if name == "rollout":
        from benchmarks import rollout

        return rollout.measure(rounds, build)
    if name == "update":
        from benchmarks import update

        return update.measure(rounds, algorithm)
    if name == "reduce":
        from benchmarks import reduce

        return reduce.measure(rounds, build)
    if name == "iteration":
        from benchmarks import iteration

        return iteration.measure(rounds)
    from benchmarks import scale

    return scale.measure(rounds, picture)
