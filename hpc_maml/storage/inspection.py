"""What is in a run folder, in words: for ``python -m hpc_maml inspect``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from hpc_maml.errors import InputError
from hpc_maml.storage import metrics_parts
from hpc_maml.storage.archive_schema import iteration_path
from hpc_maml.storage.atomic_files import size_text
from hpc_maml.storage.checkpoint import checkpoint_path
from hpc_maml.storage.hdf5_files import DamagedError, damage_of, has_checksum, look_over, verify
from hpc_maml.storage.meta_tests import MetaTest, meta_test_files
from hpc_maml.storage.meta_tests import read as read_evaluation
from hpc_maml.storage.metrics_parts import PARTS
from hpc_maml.storage.reader import JOINED, Run
from hpc_maml.storage.run_folder import (
    CHECKPOINTS,
    EVALUATIONS,
    FOLDERS,
    METRICS,
    ROLLOUTS,
    lost_checkpoints,
)


def describe(run: Run) -> Iterator[str]:
    """Yield lines that say what a run is, how far it got, how large it is and what made it.

    What is damaged is left out: see ``damages``.
    """
    config = run.config
    versions: dict[str, str] = {}
    sizes = [
        f"{config['meta_batch_size']} tasks",
        f"{config['fast_batch_size']} episodes",
        f"{config['horizon']} steps",
    ]
    done, last = "unknown", []
    with contextlib.suppress(InputError):
        versions = run.versions
        done = f"{run.committed_iterations} of {config['num_iterations']} iterations"
        last = list(_last_metrics(run))
        phases = run.per_task["return_after_updates"].shape[-1]
        sizes.insert(1, f"{phases} phase{'s' if phases > 1 else ''}")
    yield f"run         {run.path}"
    yield f"experiment  {config['env']['name']}, seed {config['seed']}: {' x '.join(sizes)}"
    yield f"algorithm   {_name(config['algorithm'])}"
    yield f"network     {_section(config['policy'])}"
    yield f"committed   {done}"
    yield f"checkpoints {_list(run.checkpoints)}, {_size(run.path / CHECKPOINTS)}"
    yield from _state(run)
    yield f"rollouts    {_list(run.rollouts.iterations)}, {_size(run.path / ROLLOUTS)}"
    tested = dict.fromkeys(each.iteration for each in _readable_evaluations(run))
    yield f"meta-tests  {_list(list(tested))}"
    yield f"in all      {_size(run.path)}"
    for name, version in versions.items():
        yield f"{name:11} {version or 'unknown'}"
    yield from last


def _last_metrics(run: Run) -> Iterator[str]:
    """Yield the metrics that the algorithm declares, of the last iteration; raises InputError."""
    columns, declared = run.columns, run.declared
    rows = min((len(columns[name]) for name in declared), default=0)
    if not rows:
        return
    yield f"metrics of the algorithm in iteration {rows}"
    for name, metric in declared.items():
        unit = "" if metric.unit == "1" else f" {metric.unit}"
        yield f"  {name:20} {f'{columns[name][rows - 1]:.6g}{unit}':18} {metric.description}"


def _state(run: Run) -> Iterator[str]:
    """Yield what the algorithm keeps beside the policy, in the last readable checkpoint."""
    for iteration in reversed(run.checkpoints):
        with contextlib.suppress(InputError):
            found = run.checkpoint(iteration)
            size = sum(values.size for values in found.parameters.values())
            state = [f"{name} {list(values.shape)}" for name, values in found.state.items()]
            yield f"state       {', '.join([f'policy of {size} parameters', *state])}"
            return


def _name(section: Any) -> str:
    """Return the name in a section; runs of 0.1 have it in the place of the section."""
    return section["name"] if isinstance(section, dict) else str(section)


def _section(section: dict[str, Any]) -> str:
    """Return the keys of a section in words; runs of 0.1 have no name in it."""
    rest = ", ".join(f"{key} {value}" for key, value in section.items() if key != "name")
    return ": ".join(part for part in (section.get("name"), rest) if part)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def without_checksum(run: Run) -> Iterator[str]:
    """Yield a line if there are files without a checksum: not all damage of these is seen."""
    files = [run.path / METRICS]
    for name in FOLDERS:
        files += run.path.glob(f"{name}/**/*.h5")
    without = 0
    for path in files:
        with contextlib.suppress(OSError):
            without += not has_checksum(path)
    if without:
        yield f"checksums   none in {without} of {len(files)} files: an older program wrote them"


def damages(run: Run, *, verify: bool) -> list[InputError]:
    """Return what is wrong with the files of a run; ``verify`` also reads all rollouts."""
    found: list[InputError] = []
    if (run.path / METRICS).exists():
        found += metrics_parts.damages(run.path / METRICS)
        if lost := lost_checkpoints(run.path):
            found.append(lost)
    elif run.checkpoints:
        found.append(InputError(f"{run.path / METRICS} is missing."))
    for iteration in run.checkpoints:
        try:
            run.checkpoint(iteration)
        except InputError as error:
            if checkpoint_path(run.path / CHECKPOINTS, iteration).exists():  # not removed meanwhile
                found.append(error)
    for path in meta_test_files(run.path / EVALUATIONS):
        try:
            read_evaluation(path)
        except InputError as error:
            found.append(error)
    return found + run.rollouts.damages(verify=verify, done=max(run.checkpoints, default=0))


def _readable_evaluations(run: Run) -> Iterator[MetaTest]:
    for path in meta_test_files(run.path / EVALUATIONS):
        with contextlib.suppress(InputError):
            yield read_evaluation(path)


def tree(run: Run) -> Iterator[str]:
    """Yield the HDF5 layout: metrics, last part of them, checkpoint, meta-test and iteration."""
    files = [run.path / METRICS]
    files += [part.path for part in metrics_parts.parts(run.path / PARTS)[-1:]]
    files += [checkpoint_path(run.path / CHECKPOINTS, k) for k in run.checkpoints[-1:]]
    files += meta_test_files(run.path / EVALUATIONS)[-1:]
    for iteration in run.rollouts.iterations[-1:]:
        path = iteration_path(run.path / ROLLOUTS, iteration)
        files += [path, *sorted(path.with_suffix("").glob("*.h5"))[:1]]
    for path in files:
        yield ""
        yield str(path.relative_to(run.path))
        lines: list[str] = []
        try:
            verify(path)
            with damage_of(path), h5py.File(path, "r") as file:
                look_over(file, JOINED, may_be_compressed=True)
                file.visititems(lambda name, item, lines=lines: lines.append(_line(name, item)))
        except DamagedError as error:
            lines.append(f"  {error.args[1]}")
        yield from lines


def _line(name: str, item: h5py.Group | h5py.Dataset) -> str:
    if isinstance(item, h5py.Group):
        return f"  {name}/"
    shape, unit = _shape(item.shape), item.attrs.get("unit", "")
    return f"  {name:38} {shape:24} {item.dtype!s:8} {unit}".rstrip()


def _list(iterations: list[int]) -> str:
    if not iterations:
        return "none"
    if len(iterations) == 1:
        return f"of iteration {iterations[0]}"
    return f"of {len(iterations)} iterations, {iterations[0]} to {iterations[-1]}"


def _size(folder: Path) -> str:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run that goes on removes files
            size += path.stat().st_size if path.is_file() else 0
    return size_text(size)
