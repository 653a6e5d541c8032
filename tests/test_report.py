"""Reports of real runs: the files are there, and their numbers are those of metrics.h5."""

import base64
import csv
import dataclasses
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, ROOT, SMALL, changed_hdf5, environment, run

from hpc_maml import open_run
from hpc_maml.report import figures, statistics, tables, writing
from hpc_maml.report.experiments import RunData, by_environment, find_runs, read_runs
from hpc_maml.report.tables import quantities
from hpc_maml.report.writing import write_report
from hpc_maml.storage.meta_tests import T_QUANTILES, half_width
from hpc_maml.storage.metrics import METRICS

NAMES = {
    "learning_curves",
    "sample_efficiency",
    "adaptation_curve",
    "task_returns",
    "outer_step",
    "time_use",
    "speed",
}
TABLES = {
    f"{name}.csv"
    for name in ("runs", "experiments", "aggregates", "learning_curves", "meta_tests", "metrics")
}
OLD = ROOT / "tests" / "data" / "run_format_1"  # of the 0.1 layout
TESTED = ("evaluation.every=2", "evaluation.tasks=4", "num_iterations=4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return runs by name.

    Three seeds, one of them shorter; another step size; another robot; other algorithms.
    """
    top = tmp_path_factory.mktemp("runs")
    maml = ("algorithm.num_inner_steps=2",)
    rl2 = ("policy.name=gru", "algorithm.episodes_per_trial=3", "algorithm.minibatches=2")
    words = {
        "one": ["seed=1", *maml],
        "two": ["seed=2", *maml, "num_iterations=4"],
        "three": ["seed=3", *maml],
        "faster": ["seed=1", *maml, "algorithm.fast_lr=0.2", "archive.rollouts=none"],
        "<robot> & co": ["env.name=half_cheetah_vel", "num_iterations=2", "archive.rollouts=none"],
        "promp": ["algorithm.name=promp", *TESTED],
        "rl2": ["algorithm.name=rl2", "policy.hidden_size=8", *rl2, *TESTED],
    }
    for name, settings in words.items():
        small = [word for word in SMALL if name != "rl2" or "hidden_sizes" not in word]
        run(HERE, *small, *settings, "--run-dir", str(top / name))
    run(
        *(HERE, "evaluate", str(top / "one"), "--tasks", "4", "--updates", "3"),
        *("--baseline", str(top / "faster")),
    )
    return {name: top / name for name in words}


@pytest.fixture
def changed(folders, tmp_path) -> Path:
    """Return a copy of the first run."""
    return Path(shutil.copytree(folders["one"], tmp_path / "changed"))


COMPARED = ("one", "two", "three", "faster", "<robot> & co")


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory) -> Path:
    """Return the folder of a report on all runs."""
    folder = tmp_path_factory.mktemp("report") / "new"
    compared = [str(folders[name]) for name in COMPARED]
    result = run(None, "report", *compared, "-o", str(folder))
    assert result.stdout == f"{folder / 'report.html'}\n"
    assert not result.stderr
    return folder


@pytest.fixture(scope="module")
def mixed(folders, tmp_path_factory) -> Path:
    """Return the folder of a report on three algorithms and a run of an older program."""
    folder = tmp_path_factory.mktemp("report") / "mixed"
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(writing, "FILES", ())  # as few_files does
        runs = [*(folders[name] for name in ("one", "promp", "rl2")), OLD]
        assert write_report(runs, folder) == []
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
    pictures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf")}
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
    for name in COMPARED:
        found = [row for row in table if row["run"] == name]
        metrics = open_run(folders[name]).metrics
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
        assert float(row["kl_after"]) == np.median(metrics["kl_after"])


def test_meta_tests(folders, report):
    (test,) = open_run(folders["one"]).evaluations
    assert {"run", "random", "baseline faster"} == set(test.returns)
    found = {
        (row["policy"], row["phase"], row["number"]): float(row["return_mean"])
        for row in rows(report / "meta_tests.csv")
    }
    expected = {
        (policy, "updates", str(updates)): mean
        for policy, returns in test.returns.items()
        for updates, mean in enumerate(returns.mean(0))
    }
    optimal = "optimal return with the goal known"
    assert found == expected | {(optimal, "", ""): test.optima[optimal].mean()}


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
    ends = [each["post_update_return_mean"].iloc[3] for each in metrics]  # which all have done
    assert np.isclose(float(summary["fast_lr 0.1", "return_after"]["mean"]), np.mean(ends))
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
    again = Path(shutil.copytree(folders["one"], tmp_path / "again"))
    runs = read_runs([folders["one"], folders["three"], again, folders["one"]])
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
    for number, quantile in ((32, 2.0395), (40, 2.0227), (101, 1.9840)):
        values = np.random.default_rng(0).standard_normal(number)
        expected = quantile * values.std(ddof=1) / number**0.5
        assert np.isclose(half_width(values), expected, rtol=6e-4)
    assert np.isnan(half_width(np.array([1.0])))


def test_a_run_that_goes_on_can_be_reported(folders, report):
    again = run(3, "report", str(folders["one"]), "-o", str(report.parent / "again"))
    assert not again.stderr
    assert again.stdout.count("report.html") == 1
    names = {path.stem for path in (report.parent / "again").glob("*.svg")}
    assert names == NAMES | {"trajectories", "meta_test"}


def test_no_mpi_and_no_torch(folders):
    code = (
        "import sys; from pathlib import Path; from hpc_maml.report import writing;"
        "writing.FILES = ();"
        "writing.write_report([Path(each) for each in sys.argv[1:]], Path('out'));"
        "assert not {'mpi4py', 'torch'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, str(folders["one"]), str(folders["rl2"]), str(OLD)]
    subprocess.run(words, check=True, env=environment())
    assert Path("out/report.html").exists()


class TestAlgorithms:
    """A report names no algorithm: it shows what each declares, and phases of either kind."""

    @pytest.fixture
    def experiments(self, folders):
        names = ("one", "promp", "rl2")
        (only,) = by_environment(read_runs([*(folders[name] for name in names), OLD]))
        return only.experiments

    def test_experiments_are_called_by_their_algorithms(self, experiments):
        assert [each.label for each in experiments] == ["maml_trpo", "promp", "rl2", "maml"]
        assert [each.phase for each in experiments] == ["updates", "updates", "episode", "updates"]
        # what only some have is none of the differences
        assert "episodes_per_trial" not in experiments[2].settings
        assert experiments[0].key.startswith("maml_trpo: ")

    def test_every_declared_metric_has_a_panel(self, folders, experiments):
        picture = figures.outer_step(experiments)
        assert picture.title == "Outer step"
        panels = {axis.get_title(): axis for axis in picture.figure.axes if axis.get_visible()}
        declared = {name: set(open_run(folders[name]).declared) for name in ("one", "promp", "rl2")}
        names = set.union(*declared.values())
        assert set(panels) == {name.replace("_", " ") for name in names}
        assert not names & set(METRICS)

        def lines(name: str) -> list[int]:
            return [len(line.get_xdata()) for line in panels[name].lines]

        assert lines("entropy") == [4]  # of RL^2 only
        assert lines("cg iterations") == [5, 2]  # of MAML, new and old
        assert sorted(lines("kl after")) == [2, 2, 4, 4, 5]  # of all, and a limit
        (limit,) = [line for line in panels["kl after"].lines if line.get_linestyle() == "--"]
        assert set(limit.get_ydata()) == {0.03}  # algorithm.max_kl
        (kl, *_) = panels["kl after"].lines
        assert np.array_equal(kl.get_ydata(), open_run(folders["one"]).metrics["kl_after"])

    def test_rejected_updates_are_marked(self, changed):
        with changed_hdf5(changed / "metrics.h5") as file:
            file["iterations/accepted"][1:3] = 0
        (only,) = by_environment(read_runs([changed]))
        picture = figures.outer_step(only.experiments)
        assert "there are 2." in picture.caption
        axis = next(each for each in picture.figure.axes if each.get_title() == "kl after")
        line, crosses, limit = axis.lines
        assert np.isnan(line.get_ydata()).tolist() == [False, True, True, False, False]
        assert crosses.get_marker() == "x"
        assert list(crosses.get_xdata()) == [2, 3]
        assert limit.get_linestyle() == "--"

    def test_a_limit_that_is_no_number_is_not_drawn(self, experiments):
        (run_of_promp,) = experiments[1].runs
        assert run_of_promp.declared["inner_kl"].limit == "kl_target"
        assert run_of_promp.config["algorithm"]["kl_target"] is None
        picture = figures.outer_step(experiments)
        axis = next(each for each in picture.figure.axes if each.get_title() == "inner kl")
        assert [line.get_linestyle() for line in axis.lines] == ["-"]

    def test_an_algorithm_that_declares_nothing(self, experiments):
        (silent,) = [dataclasses.replace(each, declared={}) for each in experiments[0].runs]
        assert figures.outer_step([dataclasses.replace(experiments[0], runs=(silent,))]) is None

    def test_medians_of_what_is_printed(self, folders, mixed):
        found = {row["run"]: row for row in rows(mixed / "runs.csv")}
        for name in ("one", "promp", "rl2"):
            metrics = open_run(folders[name]).metrics
            assert float(found[name]["kl_after"]) == metrics["kl_after"].median()
        trial = open_run(folders["rl2"]).metrics["trial_return"].median()
        assert float(found["rl2"]["trial_return"]) == trial
        assert found["one"]["trial_return"] == ""
        old = np.median(open_run(OLD).columns["kl_after"])
        assert float(found["run_format_1"]["kl_after"]) == old
        (only,) = by_environment(read_runs([folders["one"]]))
        assert quantities([only])["kl_after"].layout == ".4f"  # as the line of an iteration
        page = Page((mixed / "report.html").read_text(encoding="utf-8"))
        assert "kl after, median [nat]" in page.shown

    def test_phases_are_updates_or_episodes(self, experiments):
        figure = figures.adaptation_curve(experiments).figure
        updates, episodes = figure.axes
        assert (updates.get_xlabel(), episodes.get_xlabel()) == ("updates", "episode of a trial")
        middle = {len(each.lines[0].get_xdata()) for each in updates.containers}
        assert middle == {3, 2}  # of MAML with two inner steps, and of the others with one
        assert round(min(updates.containers[0].lines[0].get_xdata())) == 0
        (trial,) = episodes.containers
        assert list(trial.lines[0].get_xdata()) == [1, 2, 3]
        assert updates.get_ylim() == episodes.get_ylim()

    def test_meta_tests_of_either_kind(self, folders, mixed):
        tests = open_run(folders["rl2"]).evaluations
        assert [each.iteration for each in tests] == [0, 2, 4]
        found = {
            (int(row["iteration"]), row["phase"], row["number"]): row
            for row in rows(mixed / "meta_tests.csv")
            if row["run"] == "rl2"
        }
        episodes = [("episode", "1"), ("episode", "2"), ("episode", "3"), ("trial", "")]
        assert list(found) == [(each.iteration, *phase) for each in tests for phase in episodes]
        trials = tests[-1].returns["run"].sum(1)
        row = found[4, "trial", ""]
        assert float(row["return_mean"]) == trials.mean()
        assert np.isclose(float(row["confidence_95"]), half_width(trials))
        shown = Page((mixed / "report.html").read_text(encoding="utf-8")).shown
        assert "return on unseen tasks after updates0123" in shown
        assert "return on unseen tasks in each episode of a trial123whole trial" in shown
        total = f"{trials.mean():,.2f} ± {half_width(trials):,.2f}".replace("-", "−")
        assert total in shown

    def test_panels_of_meta_tests(self, experiments):
        axes = figures.meta_test(experiments).figure.axes
        labels = [axis.get_xlabel() for axis in axes]
        assert labels == ["updates", "iteration", "episode of a trial", "iteration"]
        titles = [axis.get_legend().get_title().get_text() for axis in axes[1::2]]
        assert titles == ["updates", "episode of a trial"]
        numbers = [
            [text.get_text() for text in axis.get_legend().get_texts()] for axis in axes[1::2]
        ]
        assert numbers == [["0", "1", "3"], ["1", "3"]]

    def test_the_return_of_a_trial(self, folders, mixed):
        found = {row["run"]: row["return_of_trial"] for row in rows(mixed / "runs.csv")}
        last = open_run(folders["rl2"]).per_task["return_after_updates"][-1]
        assert float(found["rl2"]) == last.sum(-1).mean()
        assert found["one"] == found["promp"] == found["run_format_1"] == ""

    def test_words_of_one_kind(self, folders):
        (only,) = by_environment(read_runs([folders["rl2"]]))
        assert quantities([only])["return_before"].words == "return, first episode"
        picture = figures.learning_curves(only.experiments)
        legend = picture.figure.axes[0].get_legend()
        words = [text.get_text() for text in legend.get_texts()]
        assert words == ["first episode", "last episode"]
        assert "adaptation" not in picture.caption
        (updates,) = by_environment(read_runs([folders["promp"]]))
        assert quantities([updates])["return_after"].words == "return, after adaptation"

    def test_many_episodes(self, folders):
        """Ten episodes of a trial: every number is there, and nothing overlaps."""
        (run_of_rl2,) = read_runs([folders["rl2"]])
        (only,) = by_environment([_with_episodes(run_of_rl2, 10)])
        figure = figures.meta_test(only.experiments).figure
        figure.canvas.draw()
        ticks = [round(tick) for tick in figure.axes[0].get_xticks()]
        assert set(range(1, 11)) <= set(ticks)
        (curve,) = figure.axes[0].containers
        assert list(curve.lines[0].get_xdata()) == list(range(1, 11))

    def test_the_environment_draws_its_picture(self, experiments):
        picture = figures.trajectories(experiments)
        assert "before adaptation and after adaptation" in picture.caption
        axis = picture.figure.axes[0]
        assert [line.get_label() for line in axis.lines if line.get_label()[0] != "_"] == [
            "before adaptation",
            "after adaptation",
            "start",
            "goal",
        ]
        trials = figures.trajectories(experiments[2:3])
        assert "The first 2 trials" in trials.caption
        assert "first episode and last episode" in trials.caption


def _with_episodes(run: RunData, number: int) -> RunData:
    """Return a run whose trials have more episodes."""

    def longer(returns: np.ndarray) -> np.ndarray:
        return np.resize(returns, (*returns.shape[:-1], number))

    return dataclasses.replace(
        run,
        per_task=run.per_task
        | {"return_after_updates": longer(run.per_task["return_after_updates"])},
        evaluations=[
            dataclasses.replace(
                test, returns={name: longer(values) for name, values in test.returns.items()}
            )
            for test in run.evaluations
        ],
    )


def told(text: str) -> dict[str, str]:
    """Return what is said of each thing in the lines of inspect."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)


class TestOldRuns:
    """Folders of the 0.1 layout stay readable; what they lack is missing, not damage."""

    def test_a_report_of_their_own(self, tmp_path):
        assert write_report([OLD], tmp_path / "out") == []
        names = {path.stem for path in (tmp_path / "out").glob("*.png")}
        assert names == NAMES | {"trajectories"}
        (row,) = rows(tmp_path / "out" / "runs.csv")
        assert float(row["return_after"]) == open_run(OLD).per_task["post_update_return"][-1].mean()
        assert "kl_after" not in row  # nothing says that it is printed

    @pytest.mark.usefixtures("few_files")
    def test_metrics_that_are_not_there(self, changed, folders, tmp_path):
        with changed_hdf5(changed / "metrics.h5") as file:
            for name in ("kl_after", "principal_busy", "sampling_seconds", "diverged_episodes"):
                del file["iterations"][name]
        write_report([changed, folders["two"]], tmp_path / "out")
        found = {row["run"]: row for row in rows(tmp_path / "out" / "runs.csv")}
        assert found["changed"]["kl_after"] == found["changed"]["principal_busy"] == ""
        assert found["two"]["kl_after"]
        inspected = run(HERE, "inspect", changed)
        assert "cg_residual" in inspected.stdout
        assert not inspected.stderr

    def test_the_reader(self):
        archive = open_run(OLD)
        assert set(archive.declared) == set(archive.columns) - set(METRICS)
        assert {"kl_after", "cg_residual"} <= set(archive.declared)
        assert archive.declared["kl_after"].console == archive.declared["kl_after"].limit == ""
        assert archive.descriptions["cg_residual"].startswith("Euclidean norm")
        assert archive.checkpoint(2).state == {}

    def test_a_meta_test_without_a_kind(self, changed):
        (path,) = (changed / "evaluations").iterdir()
        with changed_hdf5(path) as file:  # as format 1 had them
            file.attrs["format_version"] = 1
            del file.attrs["phase"], file.attrs["how"]
            file.attrs["step_sizes"] = [0.1, 0.05, 0.05]
        (test,) = open_run(changed).evaluations
        assert (test.phase, test.first, test.how) == ("updates", 0, "")

    def test_what_inspect_says(self):
        said = told(run(HERE, "inspect", OLD, "--tree", "--verify").stdout)
        assert said["experiment"] == (
            "navigation, seed 1: 2 tasks x 2 phases x 2 episodes x 3 steps"
        )
        assert said["algorithm"] == "maml"
        assert said["network"] == "hidden_sizes [2], activation tanh"
        assert said["state"] == "policy of 14 parameters"


class TestReader:
    """What the reader and inspect say of the algorithm of a run."""

    def test_declared_metrics(self, folders):
        archive = open_run(folders["rl2"])
        assert set(archive.declared) == set(archive.metrics) - set(METRICS)
        assert archive.declared["trial_return"].console == "trial {:.2f}"
        assert archive.descriptions["trial_return"].startswith("undiscounted return of a trial")
        assert archive.descriptions["accepted"] == METRICS["accepted"].description
        assert archive.descriptions["task"] == "what distinguishes the task"
        assert archive.units["entropy"] == "nat"
        maml = open_run(folders["one"]).declared
        assert maml["kl_after"].limit == "max_kl"
        assert maml["cg_iterations"].dtype == np.int64

    def test_state_of_a_checkpoint(self, folders):
        found = open_run(folders["rl2"]).checkpoint(4)
        assert found.state["adam_first_moment"].shape == (
            sum(values.size for values in found.parameters.values()),
        )
        assert set(open_run(folders["one"]).checkpoint(5).state) == {"curvature_pairs"}

    def test_inspect(self, folders):
        shown = run(HERE, "inspect", folders["rl2"]).stdout
        said = told(shown)
        assert said["experiment"].endswith("6 tasks x 3 phases x 3 episodes x 12 steps")
        assert said["algorithm"] == "rl2"
        assert said["network"] == "gru: hidden_size 8, selective False"
        found = open_run(folders["rl2"])
        size = sum(values.size for values in found.checkpoint(4).parameters.values())
        assert said["state"].startswith(
            f"policy of {size} parameters, adam_first_moment [{size}], adam_second_moment [{size}]"
        )
        title = shown.splitlines()[-len(found.declared) - 1]
        assert title == "metrics of the algorithm in iteration 4"
        for name, metric in found.declared.items():
            value = f"{found.columns[name][-1]:.6g}"
            assert re.fullmatch(
                rf"{re.escape(value)}( {metric.unit})? +{re.escape(metric.description)}", said[name]
            )

    def test_inspect_of_a_damaged_run(self, changed):
        content = (changed / "metrics.h5").read_bytes()
        (changed / "metrics.h5").write_bytes(content[: len(content) // 2])
        for path in (changed / "checkpoints").iterdir():
            path.write_bytes(b"")
        result = run(HERE, "inspect", changed, code=1)
        assert "6 tasks x 3 episodes x 12 steps" in result.stdout
        assert "committed   unknown" in result.stdout
        assert all("is damaged" in line for line in result.stderr.splitlines())

    def test_a_dataset_that_says_nothing_is_damage(self, changed):
        with changed_hdf5(changed / "metrics.h5") as file:
            del file["iterations/kl_after"].attrs["unit"]
        with pytest.raises(ValueError, match=r"metrics.h5 is damaged"):
            _ = open_run(changed).declared


def test_a_meta_test_has_the_colour_of_its_run(folders):
    runs = read_runs([folders["faster"], folders["one"]])
    (environment_,) = by_environment(runs)
    figure = figures.meta_test(environment_.experiments).figure
    colours = [
        container.lines[0].get_color() for axis in figure.axes for container in axis.containers
    ]
    assert not environment_.experiments[0].runs[0].evaluations
    assert colours[0] == figures.PALETTE[1]
    assert len(colours) == 3  # the run, the random policy and the baseline
    assert not set(colours[1:]) & set(figures.PALETTE)


def test_few_seeds_are_lines_and_many_a_band(folders):
    (three,) = by_environment(read_runs([folders[name] for name in ("one", "two", "three")]))
    for draw in (figures.learning_curves, figures.sample_efficiency):
        axis = draw(three.experiments).figure.axes[0]
        assert len(axis.lines) == 2 * (1 + 3)
        assert not axis.collections
        (five,) = [
            dataclasses.replace(each, runs=each.runs + each.runs[:2]) for each in three.experiments
        ]
        axis = draw([five]).figure.axes[0]
        assert (len(axis.lines), len(axis.collections)) == (2, 2)


def test_few_seeds_are_dashes_and_many_an_interval_over_the_phases(folders):
    (three,) = by_environment(read_runs([folders[name] for name in ("one", "two", "three")]))
    axis = figures.adaptation_curve(three.experiments).figure.axes[0]
    mean, *seeds = axis.lines
    assert not any(each.has_yerr for each in axis.containers)
    for line, found in zip(seeds, three.experiments[0].runs, strict=True):
        values = found.per_task["return_after_updates"][3].mean(0)  # the last that all have done
        assert np.allclose(line.get_ydata(), values)
        assert line.get_color() == mean.get_color()
    assert np.allclose(mean.get_ydata(), np.mean([each.get_ydata() for each in seeds], axis=0))
    (five,) = [
        dataclasses.replace(each, runs=each.runs + each.runs[:2]) for each in three.experiments
    ]
    axis = figures.adaptation_curve([five]).figure.axes[0]
    (whiskers,) = axis.containers
    assert whiskers.has_yerr


def test_runs_of_a_folder_are_in_the_order_of_their_numbers(folders):
    names = ["a", "run-2", "run-10", "run-10-b"]
    for name in reversed(names):
        shutil.copytree(folders["one"], Path("runs", name))
    assert find_runs([Path("runs")]) == ([Path("runs", name) for name in names], [])


def test_returns_by_environment_steps(folders):
    (only,) = by_environment(read_runs([folders["one"]]))
    line = figures.sample_efficiency(only.experiments).figure.axes[0].lines[-1]
    metrics = open_run(folders["one"]).metrics
    assert line.get_xdata().tolist() == metrics["environment_steps_total"].tolist()
    assert line.get_ydata().tolist() == metrics["post_update_return_mean"].tolist()
    (only,) = by_environment(read_runs([folders["one"], folders["two"]]))
    axis = figures.sample_efficiency(only.experiments).figure.axes[0]
    for name, seed in zip(("one", "two"), axis.lines[-2:], strict=True):
        steps = open_run(folders[name]).metrics["environment_steps_total"].tolist()
        assert seed.get_xdata().tolist() == steps[: len(seed.get_xdata())]


def test_meta_tests_of_other_settings_are_not_mixed(folders):
    for name in ("one", "three"):
        shutil.copytree(folders[name], name)
        for each in Path(name, "evaluations").glob("*.h5"):
            each.unlink()
        run(HERE, "evaluate", name, "--tasks", "3", "--updates", "1")
    run(HERE, "evaluate", "one", "--tasks", "5", "--updates", "2", "--last-actions", "mean")
    run(HERE, "evaluate", "one", "--checkpoint", "4", "--tasks", "3", "--updates", "1")
    (one,) = by_environment(read_runs([Path("one")]))
    way = statistics.tests_on_the_way(one.experiments[0])
    assert [len(band.middle) for band in way.values()] == [2, 2]  # those of one update
    (both,) = by_environment(read_runs([Path("one"), Path("three")]))
    scores = statistics.final_scores(both.experiments[0])["unseen tasks"]
    found = [
        [test for test in open_run(name).evaluations if test.returns["run"].shape == (3, 2)][-1]
        for name in ("one", "three")
    ]
    assert scores.tolist() == [test.score for test in found]
    for each in Path("one/evaluations").glob("*_tasks_3_*"):
        each.unlink()
    (both,) = by_environment(read_runs([Path("one"), Path("three")]))
    assert set(statistics.final_scores(both.experiments[0])) == {"training"}


def test_seeds_tested_after_different_iterations_have_no_curve_of_tests(folders):
    found = {}
    for name, source, tested in (("a", "one", [5]), ("b", "three", [4]), ("c", "one", [4, 5])):
        found[name] = Path(shutil.copytree(folders[source], name))
        for each in (found[name] / "evaluations").glob("*.h5"):
            each.unlink()
        for done in tested:
            words = ("--checkpoint", str(done), "--tasks", "3", "--updates", "1")
            run(HERE, "evaluate", name, *words)
    (pair,) = by_environment(read_runs([found["a"], found["b"]]))
    (alone,) = by_environment(read_runs([found["c"]]))
    picture = figures.meta_test([*pair.experiments, *alone.experiments])
    after, during = picture.figure.axes
    assert len(after.containers + after.lines) > 1
    assert {tuple(line.get_xdata()) for line in during.lines} == {(4, 5)}
    assert statistics.tested_after(pair.experiments[0]) == [5, 4]
    assert set(statistics.final_scores(pair.experiments[0])) == {"training"}
    assert write_report([found["a"], found["b"]], Path("report")) == []
    shown = Page(Path("report/report.html").read_text(encoding="utf-8")).shown
    assert "Tested: 2 of 2 runs after 4, 5 iterations." in shown


def test_of_seeds_the_last_tests_that_all_have_are_compared(folders):
    """Not those of a seed that is ahead, and of all that were tested no interval if they are few.

    Whether one is better is only said of tests of the same kind.
    """
    found = {}
    for name, tested in (("one", [4, 5]), ("two", []), ("three", [4])):
        found[name] = Path(shutil.copytree(folders[name], name))
        for each in (found[name] / "evaluations").glob("*.h5"):
            each.unlink()
        for done in tested:
            words = ("--checkpoint", str(done), "--tasks", "3", "--updates", "1")
            run(HERE, "evaluate", name, *words)
    runs = read_runs([*found.values(), folders["promp"], folders["rl2"]])
    (environment,) = by_environment(runs)
    maml, promp, rl2 = environment.experiments
    assert statistics.tested_after(maml) == [4, 4]
    assert not statistics.comparable(maml, promp, "unseen tasks")  # other numbers of tasks
    assert not statistics.comparable(promp, rl2, "unseen tasks")  # an episode, a trial
    assert statistics.comparable(promp, rl2, "training")
    assert statistics.comparable(promp, promp, "unseen tasks")
    assert write_report(list(found.values()), Path("report")) == []
    shown = Page(Path("report/report.html").read_text(encoding="utf-8")).shown
    assert "Tested: 2 of 3 runs after 4 iterations." in shown
    means = [test.returns["run"][:, 1].mean() for test in map(last_test, ("one", "three"))]
    low, high = (f"{value:,.2f}".replace("-", "−") for value in (min(means), max(means)))
    assert f"({low} to {high})" in shown


def last_test(name: str):
    """Return the test of a run after four iterations."""
    return next(test for test in open_run(name).evaluations if test.iteration == 4)


def test_a_metric_that_some_updates_lack_has_a_median():
    kl = np.array([0.03, np.nan, 0.01])
    run_data = types.SimpleNamespace(column=lambda name: kl if name == "kl_after" else kl * np.nan)
    assert tables._median("kl_after")(run_data) == 0.02
    assert np.isnan(tables._median("other")(run_data))


def test_a_folder_of_runs_of_which_some_have_not_begun(folders):
    Path("runs").mkdir()
    for name in ("one", "two", "three", "promp"):
        shutil.copytree(folders[name], Path("runs", name))
    Path("runs/notes.txt").write_text("")
    Path("runs/promp/metrics.h5").unlink()
    shutil.rmtree("runs/promp/checkpoints")
    done = run(HERE, "report", "runs")
    sentence = "The run in runs/promp has not done an iteration yet: it is left out."
    assert done.stdout == f"{sentence}\nreport/report.html\n"
    assert sentence in Page(Path("report/report.html").read_text(encoding="utf-8")).shown
    assert {row["run"] for row in rows(Path("report/runs.csv"))} == {"one", "two", "three"}
    assert Path("report/learning_curves.pdf").read_bytes().startswith(b"%PDF")
    (row,) = rows(Path("report/aggregates.csv"))  # not all of the seeds were tested
    runs = [open_run(folders[name]).metrics for name in ("one", "two", "three")]
    finals = [each["post_update_return_mean"].iloc[3] for each in runs]  # which all have done
    assert (row["score"], row["seeds"]) == ("training", "3")
    assert float(row["interquartile_mean"]) == pytest.approx(np.mean(finals))
    assert row["low_95"] == row["high_95"] == ""  # three seeds are too few for the bootstrap
    shown = Page(Path("report/report.html").read_text(encoding="utf-8")).shown
    assert "Aggregates over seeds" in shown


class TestMistakes:
    """Each is one sentence and exit code 2."""

    def refused(self, *words: str) -> str:
        result = run(HERE, "report", *words, "-o", "out", code=BAD_INPUT)
        (line,) = [line for line in result.stderr.splitlines() if line]
        assert not Path("out").exists()
        return line

    def test_no_run(self):
        assert self.refused("nowhere") == (
            "hpc_maml: nowhere is not a run folder: it has no config.yaml."
        )

    @pytest.fixture
    def folder(self, folders) -> Path:
        return Path(shutil.copytree(folders["one"], "run"))

    def test_no_iteration_yet(self, folder):
        (folder / "metrics.h5").unlink()
        shutil.rmtree(folder / "checkpoints")
        assert "run has not done an iteration yet." in self.refused("run")

    def test_damaged_metrics(self, folder):
        content = (folder / "metrics.h5").read_bytes()
        (folder / "metrics.h5").write_bytes(content[: len(content) // 2])
        assert "run/metrics.h5 is damaged" in self.refused("run")

    def test_returns_of_tasks_that_are_not_there(self, folder):
        with changed_hdf5(folder / "metrics.h5") as file:
            del file["tasks/pre_update_return"]
        assert "run/metrics.h5 is damaged: it has no pre_update_return." in self.refused("run")

    def test_a_folder_that_cannot_be_written(self, folder):
        Path("taken").write_text("")
        result = run(HERE, "report", "run", "-o", "taken", code=BAD_INPUT)
        assert result.stderr == "hpc_maml: The folder taken cannot be made: File exists.\n"

    @pytest.mark.usefixtures("few_files")
    def test_damaged_rollouts_are_left_out_and_said(self, folder):
        (segment,) = folder.glob("rollouts/iteration_*/*.h5")
        segment.write_bytes(segment.read_bytes()[:100])
        result = run(HERE, "report", "run", "-o", "out")
        assert re.search(r"rank_0000.h5 is damaged: .* It is skipped.", result.stdout)
        assert "It is skipped." in Path("out/report.html").read_text()
        assert not Path("out/trajectories.svg").exists()
