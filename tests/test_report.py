"""Reports of real runs: the files are there, and their numbers are those of metrics.h5."""

import base64
import csv
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import SMALL, environment, run

from hpc_maml import open_run
from hpc_maml.storage.meta_tests import T_QUANTILES, half_width
from hpc_maml.report.experiments import by_environment, read_runs

BAD_INPUT = 2
NAMES = {"learning_curves", "adaptation_curve", "task_returns", "trust_region", "time_use", "speed"}
TABLES = {
    f"{name}.csv" for name in ("runs", "experiments", "learning_curves", "meta_tests", "metrics")
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return runs by name: three seeds, one of them shorter; another step size; another robot."""
    top = tmp_path_factory.mktemp("runs")
    words = {
        "one": ["seed=1", "num_inner_steps=2"],
        "two": ["seed=2", "num_inner_steps=2", "num_iterations=4"],
        "three": ["seed=3", "num_inner_steps=2"],
        "faster": ["seed=1", "num_inner_steps=2", "fast_lr=0.2", "archive.rollouts=none"],
        "<robot> & co": ["env.name=half_cheetah_vel", "num_iterations=2", "archive.rollouts=none"],
    }
    for name, settings in words.items():
        run(None, *SMALL, *settings, "--run-dir", str(top / name))
    run(
        *(None, "evaluate", str(top / "one"), "--tasks", "4", "--updates", "3"),
        *("--baseline", str(top / "faster")),
    )
    return {name: top / name for name in words}


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory) -> Path:
    """Return the folder of a report on all runs."""
    folder = tmp_path_factory.mktemp("report") / "new"
    result = run(None, "report", *map(str, folders.values()), "-o", str(folder))
    assert result.stdout == f"{folder / 'report.html'}\n"
    assert not result.stderr
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


class Page(HTMLParser):
    """What a browser would load, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.shown = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        assert "src" not in named or tag == "img"
        assert named.get("href", "data:").startswith("data:")
        if tag == "img":
            assert named["alt"]
            self.images.append(named["src"])
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.shown += data


def test_files(report):
    drawn = {f"1_{name}" for name in NAMES | {"trajectories", "meta_test"}} | {
        f"2_{name}" for name in NAMES
    }
    pictures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert {path.name for path in report.iterdir()} == pictures | TABLES | {"report.html"}
    for path in report.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in report.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_needs_nothing_else(report):
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    assert len(page.images) == 2 * len(NAMES) + 2
    embedded = set()
    for source in page.images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        embedded.add(base64.b64decode(data))
    assert embedded == {path.read_bytes() for path in report.glob("*.svg")}
    for text in (
        "navigation",
        "fast_lr 0.2",
        "<robot> & co",
        "mean of fast_lr 0.1",
        "busy: principal",
    ):
        assert text in page.shown


def test_every_metric_is_in_the_csv_as_recorded(folders, report):
    table = rows(report / "metrics.csv")
    for name, folder in folders.items():
        found = [row for row in table if row["run"] == name]
        metrics = open_run(folder).metrics
        assert [int(row["iteration"]) for row in found] == list(metrics.index)
        for column in metrics:
            assert np.array_equal([float(row[column]) for row in found], metrics[column]), column


def test_numbers_of_runs(folders, report):
    for row in rows(report / "runs.csv"):
        data = open_run(folders[row["run"]])
        metrics, per_task = data.metrics, data.per_task
        assert int(row["iterations"]) == len(metrics)
        # a tenth of five iterations or fewer is the last one
        assert float(row["return_before"]) == per_task["pre_update_return"][-1].mean()
        assert float(row["return_after"]) == per_task["post_update_return"][-1].mean()
        assert float(row["environment_steps"]) == metrics["environment_steps_total"].iloc[-1]
        assert float(row["rejected_updates"]) == metrics["rejected_updates"].iloc[-1]
        speed = metrics["environment_steps"].sum() / metrics["iteration_seconds"].sum()
        assert np.isclose(float(row["steps_per_second"]), speed)
        assert float(row["agents_busy"]) == np.median(metrics["agents_busy"])


def test_meta_tests(folders, report):
    (test,) = open_run(folders["one"]).evaluations
    assert {"run", "random", "baseline faster"} == set(test.returns)
    found = {
        (row["policy"], int(row["updates"])): float(row["return_mean"])
        for row in rows(report / "meta_tests.csv")
    }
    expected = {
        (policy, updates): mean
        for policy, returns in test.returns.items()
        for updates, mean in enumerate(returns.mean(0))
    }
    assert found == expected | {("optimum with the goal known", 0): test.optima.popitem()[1].mean()}


def test_seeds_are_put_together(folders, report):
    curve = [
        row
        for row in rows(report / "learning_curves.csv")
        if (row["environment"], row["experiment"]) == ("navigation", "fast_lr 0.1")
    ]
    assert len(curve) == 4  # the shortest of the three
    assert {row["seeds"] for row in curve} == {"3"}
    metrics = [open_run(folders[name]).metrics for name in ("one", "two", "three")]
    for index, row in enumerate(curve):
        values = np.array([each["post_update_return_mean"].iloc[index] for each in metrics])
        half = 4.303 * values.std(ddof=1) / 3**0.5
        assert np.isclose(float(row["post_update_return_middle"]), values.mean())
        assert np.isclose(float(row["post_update_return_low"]), values.mean() - half)
        assert np.isclose(float(row["post_update_return_high"]), values.mean() + half)
    summary = {
        (row["experiment"], row["quantity"]): row
        for row in rows(report / "experiments.csv")
        if row["environment"] == "navigation"
    }
    per_run = [row for row in rows(report / "runs.csv") if row["experiment"] == "fast_lr 0.1"]
    values = [float(row["return_after"]) for row in per_run]
    assert np.isclose(float(summary["fast_lr 0.1", "return_after"]["mean"]), np.mean(values))
    assert summary["fast_lr 0.2", "return_after"]["confidence_95"] == ""


def test_one_run_has_the_middle_half_of_its_tasks_as_band(folders, report):
    curve = [
        row for row in rows(report / "learning_curves.csv") if row["experiment"] == "fast_lr 0.2"
    ]
    tasks = open_run(folders["faster"]).per_task["pre_update_return"]
    for row, returns in zip(curve, tasks, strict=True):
        assert np.isclose(float(row["pre_update_return_middle"]), returns.mean())
        assert np.isclose(float(row["pre_update_return_low"]), np.quantile(returns, 0.25))
        assert np.isclose(float(row["pre_update_return_high"]), np.quantile(returns, 0.75))


def test_a_seed_given_twice_is_not_taken_for_two(folders, tmp_path):
    run(None, *SMALL, "seed=1", "num_inner_steps=2", "--run-dir", "again")
    runs = read_runs([folders["one"], folders["three"], Path("again"), folders["one"]])
    (only,) = by_environment(runs)
    found = [(each.label, [run.name for run in each.runs]) for each in only.experiments]
    assert found == [("one, three", ["one", "three"]), ("again", ["again"])]


def test_t_quantiles():
    # P(|t| < q) = 0.95, by the density of Student's t summed up in small steps
    from math import exp, lgamma, pi

    for number, quantile in enumerate(T_QUANTILES, 1):
        steps = np.linspace(0, quantile, 200_001)
        scale = exp(lgamma((number + 1) / 2) - lgamma(number / 2)) / (number * pi) ** 0.5
        density = scale * (1 + steps**2 / number) ** (-(number + 1) / 2)
        assert abs(2 * np.trapezoid(density, steps) - 0.95) < 5e-5
    assert np.isclose(half_width(np.array([1.0, 3.0])), 12.706)
    assert np.isnan(half_width(np.array([1.0])))


def test_a_run_that_goes_on_can_be_reported(folders, report):
    again = run(3, "report", str(folders["one"]), "-o", str(report.parent / "again"))
    assert again.stdout.count("report.html") == 1
    names = {path.stem for path in (report.parent / "again").glob("*.svg")}
    assert names == NAMES | {"trajectories", "meta_test"}


def test_no_mpi_and_no_torch(folders):
    code = (
        "import sys; from pathlib import Path; from hpc_maml.report.writing import write_report;"
        "write_report([Path(sys.argv[1])], Path('out'));"
        "assert not {'mpi4py', 'torch'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, str(folders["one"])]
    subprocess.run(words, check=True, env=environment())
    assert Path("out/report.html").exists()


class TestMistakes:
    """Each is one sentence and exit code 2."""

    def refused(self, *words: str) -> str:
        result = run(2, "report", *words, "-o", "out", code=BAD_INPUT)
        (line,) = [line for line in result.stderr.splitlines() if line]
        assert not Path("out").exists()
        return line

    def test_no_run(self):
        assert self.refused("nowhere") == (
            "hpc_maml: nowhere is not a run folder: it has no config.yaml."
        )

    @pytest.fixture
    def folder(self) -> Path:
        run(None, *SMALL, "num_iterations=1", "--run-dir", "run")
        return Path("run")

    def test_no_iteration_yet(self, folder):
        (folder / "metrics.h5").unlink()
        assert "run has not done an iteration yet." in self.refused("run")

    def test_damaged_metrics(self, folder):
        content = (folder / "metrics.h5").read_bytes()
        (folder / "metrics.h5").write_bytes(content[: len(content) // 2])
        assert "run/metrics.h5 is damaged" in self.refused("run")

    def test_a_damaged_meta_test(self, folder):
        run(None, "evaluate", "run", "--tasks", "2", "--updates", "1")
        (file,) = (folder / "evaluations").iterdir()
        file.write_bytes(b"")
        assert f"{file} is damaged" in self.refused("run")

    def test_a_folder_that_cannot_be_written(self, folder):
        Path("taken").write_text("")
        result = run(None, "report", "run", "-o", "taken", code=BAD_INPUT)
        assert result.stderr == "hpc_maml: The folder taken cannot be made: File exists.\n"

    def test_damaged_rollouts_are_left_out_and_said(self, folder):
        (segment,) = folder.glob("rollouts/iteration_*/*.h5")
        segment.write_bytes(segment.read_bytes()[:100])
        result = run(None, "report", "run", "-o", "out")
        assert re.search(r"rank_0000.h5 is damaged: .* It is skipped.", result.stdout)
        assert "It is skipped." in Path("out/report.html").read_text()
        assert not Path("out/trajectories.svg").exists()
