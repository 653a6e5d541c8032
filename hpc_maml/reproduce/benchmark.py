"""Experiments that train nothing: a benchmark of the checkout."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_maml.errors import InputError
from hpc_maml.stopping import StopSignal


def checkout() -> Path:
    """Return the folder that holds the benchmarks; raises InputError if there is none."""
    for folder in (Path(__file__).parents[2], Path.cwd()):
        if (folder / "benchmarks" / "command.py").exists():
            return folder
    raise InputError("The benchmarks come with the checkout: call this in its folder.")


def command(words: Sequence[str]) -> str:
    """Return the command of a benchmark, as one would give it in a checkout."""
    name, *options = words
    return shlex.join(["python", "-m", f"benchmarks.{name}", *options])


def measured(
    words: Sequence[str], picture: Path, stop: StopSignal, say: Callable[[str], None]
) -> tuple[str, float] | None:
    """Return what a benchmark prints, and its seconds; None if it was stopped.

    ``words`` are its name and options. It draws ``picture``, as SVG by the name of the file. Raises
    InputError if there is no such benchmark, or if it fails.
    """
    folder = checkout()
    name, *options = words
    if not (folder / "benchmarks" / f"{name}.py").exists():
        raise InputError(f"There is no benchmark {name} in {folder / 'benchmarks'}.")
    say(command(words))
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *options, "--picture", str(picture.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    printed = None
    while printed is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            printed, _ = process.communicate(timeout=0.1)
        if stop.requested:
            process.terminate()
            process.wait()
            return None
    if process.returncode:
        raise InputError(f"{command(words)} failed with exit code {process.returncode}.")
    return printed, time.monotonic() - start
