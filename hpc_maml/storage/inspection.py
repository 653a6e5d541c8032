"""What is in a run folder, in words: for ``python -m hpc_maml inspect``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from hpc_maml.errors import InputError
from hpc_maml.storage.archive_schema import iteration_path
from hpc_maml.storage.checkpoint import checkpoint_path
from hpc_maml.storage.atomic_files import size_text
from hpc_maml.storage.meta_tests import MetaTest, meta_test_files
from hpc_maml.storage.reader import DamagedError, Run, read_evaluation
from hpc_maml.storage.run_folder import CHECKPOINTS, EVALUATIONS, METRICS, ROLLOUTS


def describe(run: Run) -> Iterator[str]:
    """Yield lines that say what a run is, how far it got, how large it is and what made it.

    What is damaged is left out: see ``damages``.
    """
    config = run.config
    yield f"run         {run.path}"
    yield (
        f"experiment  {config['env']['name']}, seed {config['seed']}: "
        f"{config['meta_batch_size']} tasks x {config['fast_batch_size']} episodes x "
        f"{config['horizon']} steps, {config['num_inner_steps']} inner step(s)"
    )
    versions = {}
    try:
        versions = run.versions
        done = f"{run.committed_iterations} of {config['num_iterations']} iterations"
    except InputError:
        done = "unknown"
    yield f"committed   {done}"
    yield f"checkpoints {_list(run.checkpoints)}, {_size(run.path / CHECKPOINTS)}"
    yield f"rollouts    {_list(run.rollouts.iterations)}, {_size(run.path / ROLLOUTS)}"
    tested = dict.fromkeys(each.iteration for each in _readable_evaluations(run))
    yield f"meta-tests  {_list(list(tested))}"
    yield f"in all      {_size(run.path)}"
    for name, version in versions.items():
        yield f"{name:11} {version or 'unknown'}"


def damages(run: Run, *, verify: bool) -> list[InputError]:
    """Return what is wrong with the files of a run; ``verify`` also reads all rollouts."""
    found = []
    try:
        if run.committed_iterations != len(run.tasks):
            found.append(DamagedError(run.path / METRICS, "it has rows too many or too few"))
    except InputError as error:
        found.append(error)
    for iteration in run.checkpoints:
        try:
            run.checkpoint(iteration)
        except InputError as error:
            found.append(error)
    for path in meta_test_files(run.path / EVALUATIONS):
        try:
            read_evaluation(path)
        except InputError as error:
            found.append(error)
    return found + run.rollouts.damages(verify=verify)


def _readable_evaluations(run: Run) -> Iterator[MetaTest]:
    for path in meta_test_files(run.path / EVALUATIONS):
        with contextlib.suppress(InputError):
            yield read_evaluation(path)


def tree(run: Run) -> Iterator[str]:
    """Yield the HDF5 layout: metrics, and last checkpoint, meta-test and archived iteration."""
    files = [run.path / METRICS]
    files += [checkpoint_path(run.path / CHECKPOINTS, k) for k in run.checkpoints[-1:]]
    files += meta_test_files(run.path / EVALUATIONS)[-1:]
    for iteration in run.rollouts.iterations[-1:]:
        path = iteration_path(run.path / ROLLOUTS, iteration)
        files += [path, *sorted(path.with_suffix("").glob("*.h5"))[:1]]
    for path in files:
        yield ""
        yield str(path.relative_to(run.path))
        try:
            with h5py.File(path, "r") as file:
                lines: list[str] = []
                file.visititems(lambda name, item, lines=lines: lines.append(_line(name, item)))
                yield from lines
        except OSError as error:
            yield f"  {' '.join(str(error).split())}"


def _line(name: str, item: h5py.Group | h5py.Dataset) -> str:
    if isinstance(item, h5py.Group):
        return f"  {name}/"
    shape = " x ".join(map(str, item.shape)) or "scalar"
    return f"  {name:38} {shape:24} {item.dtype!s:8} {item.attrs.get('unit', '')}".rstrip()


def _list(iterations: list[int]) -> str:
    if not iterations:
        return "none"
    if len(iterations) == 1:
        return f"of iteration {iterations[0]}"
    return f"of {len(iterations)} iterations, {iterations[0]} to {iterations[-1]}"


def _size(folder: Path) -> str:
    return size_text(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
