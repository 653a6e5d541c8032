"""Runs for the tests: in this process on one rank, or as jobs under the mpirun beside Python."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Before NumPy is loaded, as the program itself does: with more threads OpenBLAS gives other bits.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import h5py
import pytest
from mpi4py import MPI

from hpc_maml.cli import main
from hpc_maml.mpi.launcher import alone
from hpc_maml.stopping import SIGNALS
from hpc_maml.storage.hdf5_files import USER_BLOCK, user_block

# Which no extra can bring along, as it pins an older MuJoCo.
HAS_METAWORLD = importlib.util.find_spec("metaworld") is not None
TESTS = Path(__file__).parent
ROOT = TESTS.parent
FAULT = str(TESTS / "fault.py")
MPIRUN = shutil.which(
    "mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
HERE = 0  # ranks of ``run``: in this process, without a job
BAD_INPUT = 2
# A job small enough for any rank count on two cores.
SMALL = (
    "meta_batch_size=6",
    "fast_batch_size=3",
    "horizon=12",
    "num_iterations=5",
    "policy.hidden_sizes=[8, 8]",
    "mpi.wait_limit=60",
    "device=cpu",
    "topology.layout=team",  # every rank works, also where there are few cores
    "metrics.tensorboard=off",  # half a second of imports in each of many jobs
)


def pytest_report_header() -> str:
    library = MPI.Get_library_version().splitlines()[0].strip(" \0")
    return f"MPI: {library} ({MPIRUN})"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Keep the tests that share a fixture of their module together, so that it is made once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        shared = any(each[-1].scope == "module" for each in fixtures if each)
        if shared and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have reports in this process write each picture as SVG alone, which is quicker.

    For tests that look at what else there is of a report.
    """
    from hpc_maml.report import writing

    monkeypatch.setattr(writing, "FILES", ())


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a job: that of this process, without any launcher's variables.

    Classes in tests/ can be named as ``module:Class``.
    """
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return alone() | allowed | {"COLUMNS": "120", "PYTHONPATH": path} | changes


def command(ranks: int | None, arguments: Sequence[str], python: Sequence[str] = ()) -> list[str]:
    """Return the command of a job on ``ranks`` ranks, or without mpirun for None."""
    run = [sys.executable, *(python or ("-m", "hpc_maml")), *map(str, arguments)]
    if ranks is None:
        return run
    oversubscribe = ["--oversubscribe"] if "Open MPI" in MPI.Get_library_version() else []
    return [MPIRUN, *oversubscribe, "-np", str(ranks), *run]


def start(ranks: int | None, *arguments: str, python: Sequence[str] = (), **changes: str):
    """Start a job; its output is text, both streams."""
    return subprocess.Popen(
        command(ranks, arguments, python),
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    ranks: int | None,
    *arguments: str,
    timeout: float = 120,
    code: int = 0,
    python: Sequence[str] = (),
    **changes: str,
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end and check its exit code; for ``HERE``, in this process."""
    if ranks == HERE:
        done = _run_here(*map(str, arguments))
    else:
        job = start(ranks, *arguments, python=python, **changes)
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            job.kill()
            out, err = job.communicate(timeout=10)
            pytest.fail(f"no end after {timeout} s\n{out}\n{err}")
        done = subprocess.CompletedProcess(job.args, job.returncode, out, err)
    problem = f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, problem
    return done


def _run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which takes a tenth of the time of a job."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with _text() as out, _text() as err:
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        texts = [text.buffer.getvalue().decode() for text in (out, err) if not text.flush()]
    return subprocess.CompletedProcess(arguments, code, *texts)


def _text() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def ranks_of(folder: Path) -> dict[int, int]:
    """Return the process of each rank of the job in a run folder, without its launcher."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = dict(
                word.partition(b"=")[::2] for word in (path / "environ").read_bytes().split(b"\0")
            )
        except OSError:
            continue
        if words[0].endswith(b"python") and os.fsencode(folder) in words and b"-np" not in words:
            rank = variables.get(b"PMI_RANK") or variables.get(b"OMPI_COMM_WORLD_RANK") or b"0"
            found[int(rank)] = int(path.name)
    return found


def train_each(ranks: int, runs: Mapping[Path, tuple[int, Sequence[str]]]) -> None:
    """Train many runs in one job, by run folder: each on its first ranks, with its words.

    A job of its own for each would spend its time on imports.
    """
    plan = [[size, str(folder), list(words)] for folder, (size, words) in runs.items()]
    run(ranks, json.dumps(plan), python=(str(TESTS / "many_runs.py"),), timeout=600)


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Return the checkpoint files of a run by name."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("checkpoints/*")}


@contextlib.contextmanager
def changed_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file of a run to change it; it gets the checksum of its new content."""
    with h5py.File(path, "r+") as file:
        yield file
    content = path.read_bytes()[USER_BLOCK:]
    path.write_bytes(user_block(hashlib.sha256(content)) + content)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return the folder of a run of SMALL with all its rollouts; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("archive.rollouts=every", "checkpoint.keep=9", "--run-dir", str(folder))
    run(HERE, *SMALL, *words)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run, at ``run`` in the folder of the test."""
    return Path(shutil.copytree(trained, tmp_path / "run")).relative_to(tmp_path)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own, since jobs write ``runs/``."""
    monkeypatch.chdir(tmp_path)
