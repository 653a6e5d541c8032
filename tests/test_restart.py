"""Promises 2 and 5: a run that was killed or stopped ends as if it had not been."""

import random
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAULT, HERE, ROOT, SMALL, run, start

from hpc_maml import open_run
from hpc_maml.storage.archive_schema import FIELDS
from hpc_maml.storage.metrics import METRICS, PER_TASK
from hpc_maml.storage.metrics_parts import read_columns

slow = pytest.mark.slow
SETTINGS = (*SMALL, "num_iterations=16", "checkpoint.keep=99", "horizon=40", "archive.rollouts=5")
SETTINGS += ("evaluation.every=4", "evaluation.tasks=2", "evaluation.updates=2")
STOPPED_EARLY = 75


def state(folder: Path) -> dict[str, bytes]:
    """Return everything a run leaves that must not depend on its history, by name."""
    found = {path.name: path.read_bytes() for path in folder.glob("checkpoints/*")}
    file = folder / "metrics.h5"
    columns = {group: read_columns(file, group) for group in ("iterations", "tasks")}
    assert set(columns["iterations"]) > set(METRICS)
    assert set(columns["tasks"]) == set(PER_TASK)
    with h5py.File(file) as last:  # the rows before are in parts
        assert last.attrs["committed_iterations"] == len(columns["iterations"]["accepted"])
        for group, each in columns.items():
            for name, values in each.items():
                if not last[group][name].attrs["wall_clock"]:
                    found[f"{group}/{name}"] = values.tobytes()
    found |= {f"tests/{path.name}": path.read_bytes() for path in folder.glob("evaluations/*")}
    for (iteration, task), rollout in open_run(folder).rollouts.items():
        for name in FIELDS:
            found[f"rollouts/{iteration}/{task}/{name}"] = getattr(rollout, name).tobytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(3, *SETTINGS, "--run-dir", str(folder))
    return state(folder)


def processes_of(folder: Path) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def wait_for_checkpoint(folder: Path, iteration: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(f"checkpoints/*{iteration:03d}.h5")):
        assert time.monotonic() < deadline, "no checkpoint came"
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=slow) for n in (0, 2, 3, 4, 5))])
def test_sigkill_at_random_moments(number, undisturbed, tmp_path):
    folder = tmp_path / "run"
    chance = random.Random(number)
    for _ in range(2):
        job = start(3, *SETTINGS, "--run-dir", str(folder))
        done = len(list(folder.glob("checkpoints/*.h5")))
        if number:  # the others: at any moment of the start
            wait_for_checkpoint(folder, done + 1, job)
            time.sleep(chance.uniform(0, 0.2))
        else:
            time.sleep(chance.uniform(0.3, 1.5))
        victims = processes_of(folder)
        assert victims
        for victim in chance.sample(victims, len(victims)):
            subprocess.run(["kill", "-9", str(victim)], check=False, capture_output=True)
        job.communicate(timeout=20)
        assert job.returncode
    layout = chance.choice(["topology.layout=split", "topology.layout=team"])
    run(chance.choice([None, 2, 4]), *SETTINGS, layout, "--run-dir", str(folder))
    assert state(folder) == undisturbed


@pytest.mark.parametrize(
    ("number", "every"),
    [
        (signal.SIGTERM, 5),
        pytest.param(signal.SIGTERM, 1, marks=slow),
        *(
            pytest.param(number, every, marks=slow)
            for number in (signal.SIGUSR1, signal.SIGINT)
            for every in (1, 5)
        ),
    ],
)
def test_signals_stop_at_an_iteration_with_a_checkpoint(number, every, undisturbed, tmp_path):
    folder = tmp_path / "run"
    settings = (*SETTINGS, f"checkpoint.every={every}", "--run-dir", str(folder))
    job = start(4, *settings)
    while not (folder / "metrics.h5").exists():
        assert job.poll() is None
        time.sleep(0.005)
    job.send_signal(number)  # to mpirun, which passes it on to every rank
    out, err = job.communicate(timeout=30)
    assert job.returncode == STOPPED_EARLY, out + err
    assert "stopped early after" in out
    assert err.count("stopping after this iteration") == 1
    assert "Traceback" not in err
    with h5py.File(folder / "metrics.h5") as file:
        done = int(file.attrs["committed_iterations"])
    assert 0 < done < 16
    assert max(folder.glob("checkpoints/*")).name == f"iteration_{done:06d}.h5"
    run(2, *settings)
    left = state(folder)
    for name, content in left.items():
        assert undisturbed[name] == content


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=slow)])
def test_a_signal_during_the_start_stops_the_run_too(number, undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = start(None, *SETTINGS, "--run-dir", str(folder))
    while not folder.exists():
        assert job.poll() is None
        time.sleep(0.005)
    job.send_signal(number)
    out, err = job.communicate(timeout=30)
    assert job.returncode == STOPPED_EARLY, out + err
    run(HERE, "--run-dir", str(folder))
    assert state(folder).items() >= undisturbed.items()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=slow)])
def test_a_kill_while_the_folder_is_made(count, undisturbed, tmp_path):
    folder = tmp_path / "run"
    words = ("0", "hpc_maml.storage.atomic_files", "_sync", str(count), "kill", *SETTINGS)
    job = start(None, *words, "--run-dir", str(folder), python=(FAULT,))
    job.communicate(timeout=30)
    assert job.returncode
    assert (folder / "checkpoints").exists()
    run(HERE, *SETTINGS, "--run-dir", str(folder))
    assert state(folder) == undisturbed


def test_the_run_folder_alone_is_enough_to_go_on(undisturbed, tmp_path):
    folder = tmp_path / "run"
    run(HERE, *SETTINGS, "num_iterations=3", "--run-dir", str(folder))
    run(3, "num_iterations=16", "--run-dir", str(folder))
    assert state(folder) == undisturbed


@pytest.mark.parametrize("layout", ["team", pytest.param("split", marks=slow)])
@pytest.mark.parametrize("rank", [2, *(pytest.param(n, marks=slow) for n in (0, 1, 3))])
def test_a_signal_to_any_single_rank_stops_the_run(rank, layout, tmp_path):
    folder = tmp_path / "run"
    words = (f"topology.layout={layout}", "num_iterations=500", "--run-dir", str(folder))
    job = start(4, *SETTINGS, *words)
    wait_for_checkpoint(folder, 1, job)
    for process in processes_of(folder):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if {b"PMI_RANK=%d" % rank, b"OMPI_COMM_WORLD_RANK=%d" % rank} & set(variables):
            subprocess.run(["kill", "-TERM", str(process)], check=True)
    job.communicate(timeout=30)
    assert job.returncode == STOPPED_EARLY


def test_a_finished_run_is_left_alone_and_can_be_extended(undisturbed):
    short = (*SETTINGS, "num_iterations=5", "--run-dir", "run")
    run(HERE, *short)
    before = {path: path.stat().st_mtime_ns for path in Path("run").glob("checkpoints/*")}
    again = run(HERE, *short)
    assert "done: 5 iterations" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").glob("checkpoints/*")}
    run(3, *SETTINGS, "--run-dir", "run")
    assert state(Path("run")) == undisturbed


def test_old_checkpoints_are_removed():
    run(HERE, *SMALL, "checkpoint.keep=2", "checkpoint.every=2", "--run-dir", "run")
    names = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert names == ["iteration_000004.h5", "iteration_000005.h5"]


def test_a_checkpoint_that_a_stop_left_goes_when_others_come():
    words = (*SMALL, "checkpoint.keep=3", "checkpoint.every=4", "--run-dir", "run")
    for iterations, left in ((6, [4, 6]), (10, [4, 8, 10]), (13, [8, 12, 13])):
        run(HERE, *words, f"num_iterations={iterations}")
        assert open_run("run").checkpoints == left


def test_metrics_mean_what_they_say(trained):
    with h5py.File(trained / "metrics.h5") as file:
        table = {name: dataset[...] for name, dataset in file["iterations"].items()}
        returns = file["tasks/post_update_return"][...]
        assert file["iterations/sampling_seconds"].attrs["unit"] == "s"
        assert file.attrs["hpc_maml"]
        assert file.attrs["git_commit"] or not (ROOT / ".git").exists()
        assert "MPI" in file.attrs["mpi"] or "MPICH" in file.attrs["mpi"]
    assert returns.shape == (5, 6)
    assert np.array_equal(table["post_update_return_mean"], returns.mean(1))
    assert np.array_equal(table["post_update_return_min"], returns.min(1))
    assert (table["environment_steps"] <= 6 * 3 * 12 * 2).all()
    assert np.array_equal(table["environment_steps_total"], table["environment_steps"].cumsum())
    assert (table["kl_after"][table["accepted"] == 1] <= 3e-2).all()
    assert (abs(table["kl_before"]) < 1e-5).all()
    assert (table["surrogate_after"] < table["surrogate_before"])[table["accepted"] == 1].all()
    for name in ("principal_busy", "agents_busy", "observers_busy"):
        assert ((table[name] > 0) & (table[name] < 1.05)).all()
