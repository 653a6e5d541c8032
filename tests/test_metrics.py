"""The metrics file and its parts: one table, written at the same cost after any number of rows."""

import random
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import HERE, SMALL, changed_hdf5, checkpoints, run

from hpc_maml import open_run
from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.storage import metrics as module
from hpc_maml.storage.hdf5_files import DamagedError
from hpc_maml.storage.inspection import damages
from hpc_maml.storage.metrics import METRICS, PER_TASK, Metrics
from hpc_maml.storage.metrics_parts import part_rows, parts, read_columns
from hpc_maml.storage.run_folder import begin, open_folder

CONFIG = load_config(None, SMALL)
DECLARED = {"kl": Metric("nat", "KL")}
COLUMNS = {name: METRICS[name] for name in ("accepted", "iteration_seconds")}


def new(folder: Path) -> Metrics:
    return Metrics(folder / "metrics.h5", {"python": "3"}, DECLARED, "updates")


def row(iteration: int, task_dim: int = 2) -> dict:
    """Return a row whose every value tells its iteration."""
    per_task = {"task": np.full((3, task_dim), iteration + 0.5)}
    per_task |= {name: np.full(3, iteration + 0.25) for name in PER_TASK if "update_" in name}
    return (
        dict.fromkeys((*METRICS, "kl"), iteration)
        | per_task
        | {"return_after_updates": np.full((3, 2), iteration + 0.75)}
    )


def write(folder: Path, iterations: int, start: int = 0) -> Metrics:
    metrics = new(folder)
    metrics.read(start)
    metrics.begin()
    for iteration in range(start + 1, iterations + 1):
        metrics.add(row(iteration))
        metrics.write(durable=False)
    return metrics


@pytest.fixture
def folder(monkeypatch) -> Path:
    """Return a run folder without metrics; they have few columns, which take most of the time."""
    monkeypatch.setattr(module, "METRICS", COLUMNS)
    monkeypatch.setattr("hpc_maml.storage.atomic_files._sync", lambda path: None)
    folder = Path("run")
    open_folder(folder, CONFIG).close()
    begin(folder, CONFIG)
    return folder


def assert_holds(folder: Path, iterations: int) -> None:
    """Check that readers see the rows 1 to ``iterations``, each once and as written."""
    found = open_run(folder)
    assert found.committed_iterations == iterations
    numbers = np.arange(1, iterations + 1)
    assert set(found.columns) == {*COLUMNS, "kl"}
    for name, column in found.columns.items():
        assert np.array_equal(column, numbers), name
    assert np.array_equal(found.tasks[:, 2, 1], numbers + 0.5)
    assert np.array_equal(found.per_task["return_after_updates"][:, 2, 1], numbers + 0.75)
    assert damages(found, verify=True) == []


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.h5")}


def test_readers_see_one_table(folder, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 3)
    metrics = new(folder)
    for iteration in range(1, 201):
        metrics.add(row(iteration))
        metrics.write(durable=False)
        if iteration in (1, 5, 6, 35, 36, 199, 200):
            assert_holds(folder, iteration)
    assert len(metrics) == 200
    # 198 rows: 60 at most in metrics.h5 and parts of 3, the rest in parts of 30
    assert [part.rows for part in parts(folder / "metrics")] == [30] * 6 + [3] * 5
    assert [each["kl"] for each in metrics.all_rows()] == list(range(1, 201))
    assert np.array_equal(metrics.read_columns(["kl", "none"])["kl"], np.arange(1, 201))
    with h5py.File(folder / "metrics.h5") as file:  # the last rows, for who opens only this
        assert file["iterations/kl"][-1] == 200
        assert len(file["iterations/kl"]) == file.attrs["committed_iterations"] - 195


def test_success_is_in_the_parts_too_and_read_again(folder, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 3)
    classes = {"push": 0, "pull": 4}
    metrics = Metrics(folder / "metrics.h5", {}, DECLARED, "updates", classes)
    for iteration in range(1, 42):
        share = iteration / 64
        values = row(iteration) | {
            "task": np.array([[0, 1], [4, 1], [4, 2]]),
            "post_update_success": np.array([0, share, 2 * share]),
            "pre_update_success": np.full(3, share),
            "success_after_updates": np.full((3, 2), share),
        }
        metrics.add(values)
        metrics.write(durable=False)
    assert len(parts(folder / "metrics")) > 2
    shares = np.arange(1, 42) / 64
    found = open_run(folder)
    assert np.array_equal(found.columns["post_update_success_of_pull"], 1.5 * shares)
    assert not found.columns["post_update_success_of_push"].any()
    assert np.array_equal(found.per_task["post_update_success"][:, 1], shares)
    assert np.array_equal(found.per_task["success_after_updates"][:, 2, 1], shares)
    assert damages(found, verify=True) == []
    again = Metrics(folder / "metrics.h5", {}, DECLARED, "updates", classes)
    again.read(38)
    rows = list(again.all_rows())
    assert [each["post_update_success"][1] for each in rows] == shares[:38].tolist()


def test_large_rows_are_closed_sooner_and_large_parts_are_not_joined(folder, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_PART", 2**21)
    metrics = new(folder)
    for iteration in range(1, 42):
        metrics.add(row(iteration, task_dim=2**14))  # 393 kB
        metrics.write(durable=False)
        assert len(metrics.rows) == 1
    assert {part.rows for part in parts(folder / "metrics")} == {1}
    assert_holds(folder, 41)


@pytest.mark.parametrize("task_dim", [2, 550])
def test_the_cost_of_a_row_does_not_grow(task_dim, folder, monkeypatch):
    """The mean over as many rows as make one joined part, early and late."""
    monkeypatch.setattr(module, "METRICS", METRICS)
    metrics = new(folder)

    def cost(rows: int) -> tuple[float, float]:
        written = 0
        began = time.process_time()
        for _ in range(rows):
            metrics.add(row(len(metrics) + 1, task_dim))
            metrics.write(durable=False)
            written += metrics.path.stat().st_size
        return written / rows, (time.process_time() - began) / rows

    early = cost(100)
    for _ in range(1500 if task_dim == 2 else 300):
        metrics.add(row(len(metrics) + 1, task_dim))
    metrics.write(durable=False)
    late = cost(100)
    assert late[0] < 1.1 * early[0]
    assert late[1] < 2 * early[1]
    assert late[0] < 450e3
    assert len(metrics.rows) < 40
    assert len(list(metrics.folder.iterdir())) < 30


@pytest.mark.parametrize("done", [0, 1, 29, 30, 31, 99])
def test_a_continued_run_drops_what_came_after_its_checkpoint(done, folder, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 3)
    write(folder, 99)
    expected = files(folder)
    metrics = new(folder)
    metrics.read(done)
    assert files(folder) == expected  # a refusal changes nothing
    assert [each["kl"] for each in metrics.all_rows()] == list(range(1, done + 1))
    assert metrics.begin() == []
    write(folder, 99, start=done)
    assert_holds(folder, 99)
    write(folder, 120, start=99)
    assert_holds(folder, 120)


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_moment_loses_no_row(seed, folder, monkeypatch):
    """Die before any rename or removal: each row that was written is there, once."""
    monkeypatch.setattr(module, "PART_ROWS", 2)
    chance, left = random.Random(seed), [0]

    class Killed(BaseException):
        pass

    def may_die(method):
        def called(self, *words, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return method(self, *words, **options)

        return called

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, may_die(getattr(Path, name)))
    written = 0
    for _ in range(20):
        left[0] = chance.randint(1, 40)
        known = written
        try:
            metrics = new(folder)
            known = chance.randint(max(0, written - 3 * chance.randint(0, 5)), written)
            metrics.read(known)
            metrics.begin()
            written = known
            while True:
                metrics.add(row(written + 1))
                metrics.write(durable=False)
                written += 1
        except Killed:
            left[0] = 0
        there = open_run(folder).committed_iterations if metrics.path.exists() else 0
        assert there >= known
        if there:
            assert_holds(folder, there)
        written = there


def test_a_reader_beside_a_run_sees_one_table(folder, monkeypatch):
    """Parts are joined between two looks of a reader."""
    monkeypatch.setattr(module, "PART_ROWS", 1)
    metrics = write(folder, 20)
    earlier = part_rows(metrics.folder, metrics.earlier)
    first = [next(earlier)["kl"] for _ in range(4)]
    for iteration in range(21, 150):
        metrics.add(row(iteration))
        metrics.write(durable=False)
    assert parts(metrics.folder)[0].rows == 100
    assert first + [each["kl"] for each in earlier] == list(range(1, 20))


class TestDamage:
    """Parts that are damaged, lost or somebody else's."""

    @pytest.fixture(autouse=True)
    def _parts_of_three(self, folder, monkeypatch):
        monkeypatch.setattr(module, "PART_ROWS", 3)
        write(folder, 50)

    def test_a_flipped_bit(self, folder):
        path = folder / "metrics" / "iterations_000031_000033.h5"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        (found,) = damages(open_run(folder), verify=False)
        assert str(found).startswith(f"{path} is damaged: its content does not match its checksum")
        for read in (lambda: open_run(folder).columns, lambda: new(folder).read(50)):
            with pytest.raises(DamagedError, match=r"000031_000033\.h5 is damaged"):
                read()

    def test_a_lost_part(self, folder):
        (folder / "metrics" / "iterations_000031_000033.h5").unlink()
        for read in (lambda: open_run(folder).columns, lambda: new(folder).read(50)):
            with pytest.raises(
                InputError, match="iterations 31 to 45 are missing: there is no file"
            ):
                read()
        (found,) = damages(open_run(folder), verify=False)
        assert "are missing" in str(found)

    def test_a_part_under_another_name(self, folder):
        names = [f"iterations_{a:06d}_{a + 2:06d}.h5" for a in (31, 34)]
        shutil.copy(folder / "metrics" / names[0], folder / "metrics" / names[1])
        with pytest.raises(DamagedError, match="it has the iterations 31 to 33"):
            _ = open_run(folder).columns

    def test_files_of_others_are_left_alone_or_set_aside(self, folder):
        kept = folder / "metrics" / "iterations_of_mine.h5"
        mistaken = folder / "metrics" / "iterations_000046_000048.h5"
        for path in (kept, mistaken):
            path.write_text("mine")
        metrics = new(folder)
        metrics.read(50)
        assert metrics.begin() == [
            f"{mistaken} is damaged: it is kept as iterations_000046_000048.h5.damaged."
        ]
        assert kept.read_text() == "mine"
        assert mistaken.with_name(f"{mistaken.name}.damaged").read_text() == "mine"
        assert_holds(folder, 50)

    @pytest.mark.parametrize("shape", [(), (11, 2)])
    @pytest.mark.parametrize("name", ["iterations/kl", "tasks/task"])
    def test_a_column_of_another_shape(self, name, shape, folder):
        with changed_hdf5(folder / "metrics.h5") as file:
            del file[name]
            file[name] = np.zeros(shape)
        with pytest.raises(DamagedError, match=f"{name.split('/')[1]} has not the shape of a"):
            new(folder).read(50)

    def test_metrics_of_another_shape(self, folder):
        metrics = new(folder)
        metrics.read(50)
        for each in metrics.rows:
            each["task"] = np.zeros((3, 5))
        metrics.write(durable=False)
        assert len(read_columns(metrics.path, "iterations")["kl"]) == 50
        with pytest.raises(DamagedError, match="rows do not have the shape of those in metrics"):
            _ = open_run(folder).tasks


def test_a_continued_run_says_where_it_runs():
    """Of 42 iterations, and of 45, the first 20 are in a part that the first job had written."""
    words = [*SMALL, "archive.rollouts=none", "checkpoint.every=15", "checkpoint.keep=9"]
    run(HERE, *words, "--run-dir", "run", "num_iterations=42")
    Path("run/checkpoints/iteration_000042.h5").unlink()
    Path("run/checkpoints/iteration_000030.h5").unlink()
    said = run(HERE, *words, "--run-dir", "run", "num_iterations=17").stdout
    assert "continued at 15" in said
    assert {"hosts", "layout"} <= set(open_run("run").versions)


@pytest.mark.usefixtures("few_files")
def test_a_run_with_parts_is_killed_continued_and_reported():
    """Of 45 iterations the first 20 are in a part; a kill before the checkpoint drops some."""
    words = [*SMALL, "num_iterations=45", "archive.rollouts=none", "checkpoint.keep=9"]
    run(HERE, *words, "--run-dir", "whole")
    run(HERE, *words, "--run-dir", "cut", "num_iterations=43")
    for done in range(16, 44):  # as if it had written no checkpoint since
        Path(f"cut/checkpoints/iteration_{done:06d}.h5").unlink(missing_ok=True)
    shutil.copy("whole/checkpoints/iteration_000037.h5", "cut/checkpoints/iteration_000037.h5")
    said = run(HERE, *words, "--run-dir", "cut").stdout
    assert "continued at 37" in said
    whole, cut = open_run("whole"), open_run("cut")
    assert [part.last for part in parts(Path("whole/metrics"))] == [20]
    for name, column in whole.columns.items():
        if name not in METRICS or not METRICS[name].wall_clock:
            assert np.array_equal(column, cut.columns[name]), name
    assert np.array_equal(whole.tasks, cut.tasks)
    assert checkpoints(Path("whole"))["iteration_000045.h5"] == (
        Path("cut/checkpoints/iteration_000045.h5").read_bytes()
    )
    assert "iterations/" in run(HERE, "inspect", "cut", "--tree", "--verify").stdout
    run(HERE, "report", "cut", "-o", "out")
    curve = Path("out/learning_curves.csv").read_text().splitlines()
    assert len(curve) == 1 + 45
