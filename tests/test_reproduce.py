"""Published tables made again: what is trained when, what is tested, and what the page says."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import BAD_INPUT, HERE, checkpoints, run, start
from test_success import SETTINGS as GUESSING

from hpc_maml import open_run
from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.reproduce import experiment as experiments
from hpc_maml.reproduce import published_navigation
from hpc_maml.reproduce import runs as runs_module
from hpc_maml.reproduce.command import Reproduction
from hpc_maml.reproduce.experiment import Published
from hpc_maml.reproduce.page import write_page
from hpc_maml.reproduce.runs import WINDOW, planned, scores
from hpc_maml.roles import principal
from hpc_maml.storage.meta_tests import half_width
from hpc_maml.storage.run_folder import take_lock

STOPPED = 75
SETTINGS = [
    *("meta_batch_size=2", "fast_batch_size=2", "horizon=5", "policy.hidden_sizes=[4]"),
    *("archive.rollouts=none", "metrics.tensorboard=off", "device=cpu", "mpi.wait_limit=60"),
]
METHOD = {
    "config": "navigation",
    "settings": SETTINGS,
    "iterations": 4,
    "test": {"tasks": 3, "updates": 2},
    "published": {
        "source": "Somebody 2020",
        "scores": {"after_1": -1000.0, "after_2": -0.01},
        "confidence_95": {"after_2": 0.005},
        "environment_steps": 12345678,
    },
}
EXPERIMENT = {"title": "Tiny", "about": "A table.", "seeds": 2, "chunk": 2}


def write(path: str = "tiny.yaml", **changes) -> Path:
    """Write the file of an experiment with one method, changed."""
    top = {key: changes.pop(key) for key in list(changes) if key in EXPERIMENT}
    data = EXPERIMENT | top | {"methods": {"maml": METHOD | changes}}
    Path(path).write_text(yaml.safe_dump(data))
    return Path(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of an experiment that has been made, and what was printed."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write()
        return folder, run(HERE, "reproduce", "tiny.yaml", "-o", "out").stdout
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_whole(name):
    found = experiments.read(name)
    for method in found.methods.values():
        config = load_config(method.config_file, method.settings)
        assert config.num_iterations
        assert method.iterations % found.chunk == 0
        test = method.test
        assert len(test.words()) % 2 == 0 or not isinstance(test.step_sizes, str)


def test_they_are_listed():
    lines = run(HERE, "reproduce").stdout.splitlines()
    assert [line.split()[0] for line in lines] == experiments.names()
    assert "5 seeds of MAML 100 iterations" in next(each for each in lines if "navigation" in each)


def test_all_runs_are_trained_and_tested_as_by_hand(made, tmp_path):
    folder, printed = made
    words = ["--config", "configs/navigation.yaml", *SETTINGS, "seed=2", "num_iterations=4"]
    run(HERE, "jobs", ".")
    run(HERE, *words, "--run-dir", "by-hand")
    assert checkpoints(folder / "out/tiny/maml-2") == checkpoints(tmp_path / "by-hand")
    run(HERE, "evaluate", "by-hand", "--tasks", "3", "--updates", "2")
    mine, theirs = (
        open_run(each).evaluations[-1].returns["run"]
        for each in (folder / "out/tiny/maml-2", tmp_path / "by-hand")
    )
    np.testing.assert_array_equal(mine, theirs)
    for seed in (1, 2):
        assert f"tiny: maml, seed {seed}: iteration 2/4" in printed
        assert f"tiny: maml, seed {seed}: iteration 4/4" in printed
        assert f"tiny: maml, seed {seed}: tested" in printed
    assert printed.splitlines()[-1] == "out/tiny.md"


def test_the_page_has_our_table_beside_the_published_one(made):
    folder, _ = made
    page = (folder / "out/tiny.md").read_text()
    tests = [open_run(folder / f"out/tiny/maml-{seed}").evaluations[-1] for seed in (1, 2)]
    means = np.array([test.returns["run"].mean(0) for test in tests])  # [seeds, 3]
    for seed, row in enumerate(means):
        cells = " | ".join(f"{each:.2f}".replace("-", "−") for each in row[1:])
        assert f"| maml, seed {seed + 1} | {cells} |" in page
    middle, half = means.mean(0), half_width(means)
    text = f"{middle[2]:.2f} ± {half[2]:.2f}".replace("-", "−")
    assert text in page
    assert "| −1,000 | " in page
    assert "| 2 of 2 | **reached** |" in page
    short = f"{-0.01 - middle[2]:.2f}"
    assert f"| 0 of 2 | **short by {short}** |" in page
    steps = open_run(folder / "out/tiny/maml-1").columns["environment_steps"].sum()
    assert f"| maml, seed 1 | 4 of 4 | {steps:,} |" in page
    assert "up to 12.3 M" in page
    assert "seed=1 num_iterations=4\npython -m hpc_maml evaluate out/tiny/maml-1 --tasks 3" in page
    assert (folder / "out/tiny.svg").read_bytes().startswith(b"<?xml")


def test_made_again_nothing_is_left_to_do(made, monkeypatch):
    folder, _ = made
    monkeypatch.chdir(folder)
    before = checkpoints(folder / "out/tiny/maml-1")
    printed = run(HERE, "reproduce", "tiny.yaml", "-o", "out", "--pages", "elsewhere").stdout
    assert printed.splitlines() == ["tiny: 2 runs in out/tiny", "elsewhere/tiny.md"]
    assert checkpoints(folder / "out/tiny/maml-1") == before


def test_when_the_time_is_over_it_is_tested_as_it_is_and_goes_on_later():
    path = write(iterations=10**6, chunk=10**6, seeds=1)
    printed = run(HERE, "reproduce", path, "--budget", "4s", code=STOPPED).stdout
    done = open_run("reproduced/tiny/maml-1").committed_iterations
    assert done > 0
    assert open_run("reproduced/tiny/maml-1").evaluations[-1].iteration == done
    assert "1 of 1 runs are not finished" in printed
    assert f"{done} of 1000000, goes on" in Path("reproduced/tiny.md").read_text()
    run(HERE, "reproduce", path, "--budget", "4s", code=STOPPED)
    assert open_run("reproduced/tiny/maml-1").committed_iterations > done


def test_a_signal_stops_all_runs_with_their_checkpoints():
    path = write(iterations=10**6, chunk=10**6)
    job = start(None, "reproduce", str(path))
    folders = [Path(f"reproduced/tiny/maml-{seed}") for seed in (1, 2)]
    end = time.monotonic() + 60
    while not all(checkpoints(folder) for folder in folders) and time.monotonic() < end:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert job.returncode == STOPPED, out + err
    assert "2 of 2 runs are not finished" in out
    for folder in folders:
        found = open_run(folder)
        assert found.checkpoints[-1] == found.committed_iterations > 0


def test_a_signal_in_the_last_iteration_of_a_chunk_is_not_lost(monkeypatch):
    write(iterations=6)
    summarise = principal.summarise
    calls = []

    def stop_in_the_second(*parts):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return summarise(*parts)

    monkeypatch.setattr(principal, "summarise", stop_in_the_second)
    run(HERE, "reproduce", "tiny.yaml", "--run", "0", code=STOPPED)
    assert open_run("reproduced/tiny/maml-1").committed_iterations == 2
    run(HERE, "reproduce", "tiny.yaml", "--run", "0")
    assert open_run("reproduced/tiny/maml-1").committed_iterations == 6
    assert open_run("reproduced/tiny/maml-1").evaluations


def test_training_ends_at_the_return_that_was_asked_for(made, monkeypatch):
    folder, _ = made
    monkeypatch.chdir(folder)
    for level, ends in ((-1000.0, True), (1000.0, False)):
        path = write(f"{ends}.yaml", iterations=6, stop_at=level)
        done = planned(experiments.read(str(path)), folder / "out/tiny", 1)[0]
        assert done.done == 4
        assert not done.is_trained()  # there is no mean of ten iterations yet
        with monkeypatch.context() as shorter:
            shorter.setattr(runs_module, "WINDOW", 4)
            assert done.is_trained() == ends
    monkeypatch.setattr(runs_module, "WINDOW", 2)
    path = write("odd.yaml", iterations=6, stop_at=-1000.0, chunk=3)  # not in the middle of one
    assert not planned(experiments.read(str(path)), folder / "out/tiny", 1)[0].is_trained()


def test_returns_in_training_are_means_of_some_iterations(made):
    folder, _ = made
    (first, *_) = planned(experiments.read(str(folder / "tiny.yaml")), folder / "out/tiny", 1)
    values = open_run(first.folder).per_task["post_update_return"].mean(1)
    for index in range(len(values)):
        mean = values[max(0, index + 1 - WINDOW) : index + 1].mean()
        assert first.returns[index] == pytest.approx(mean, rel=1e-12)
    assert first.first_at(-1e9) is None  # it is not so long yet
    values = np.arange(30.0)
    values[5] = np.nan  # an iteration whose update diverged
    assert np.flatnonzero(np.isnan(runs_module.averaged(values))).tolist() == [*range(5, 15)]


def test_of_trials_the_sum_of_the_episodes_counts():
    settings = [each for each in SETTINGS if not each.startswith("policy.")]
    write(
        config="tabular_mdp_rl2",
        settings=[*settings, "algorithm.minibatches=1", "policy.hidden_size=4"],
        iterations=2,
        seeds=1,
        test={"tasks": 3},
        published={"source": "x", "scores": {"trial": -5.0}},
    )
    run(HERE, "reproduce", "tiny.yaml")
    (found,) = planned(experiments.read("tiny.yaml"), Path("reproduced/tiny"), 1)
    own = open_run("reproduced/tiny/maml-1")
    assert scores(found)["trial"] == own.evaluations[-1].returns["run"].sum(1).mean()
    assert found.returns[0] == pytest.approx(own.per_task["return_after_updates"][0].sum(1).mean())
    assert "trial" in Path("reproduced/tiny.md").read_text()


def test_success_is_shown_and_drawn_though_none_was_published(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the ranks
    write(
        settings=[each for each in GUESSING if not each.startswith("num_iterations")],
        iterations=2,
        seeds=1,
        published={"source": "curves only", "scores": {}},
    )
    run(HERE, "reproduce", "tiny.yaml")
    (found,) = planned(experiments.read("tiny.yaml"), Path("reproduced/tiny"), 1)
    own = open_run("reproduced/tiny/maml-1")
    succeeded = 100 * own.per_task["post_update_success"].mean(1)
    assert found.curve == pytest.approx([succeeded[0], succeeded.mean()], rel=1e-12)
    page = Path("reproduced/tiny.md").read_text()
    assert "| | success, training tasks [%] | success, unseen tasks [%] |" in page
    assert scores(found)["training_success"] == succeeded[-1]
    assert "| maml, seed 1 | 100.0 | 100.0 |" in page
    assert "published" not in page.partition("## Cost")[0]


def test_a_trial_of_updates_is_the_sum_over_all_its_episodes(made):
    folder, _ = made
    own = write(str(folder / "trial.yaml"), published={"source": "x", "scores": {"trial": -5.0}})
    (first, *_) = planned(experiments.read(str(own)), folder / "out/tiny", 1)
    tested = open_run(first.folder)
    episodes = 2
    test, trained = tested.evaluations[-1].returns["run"], tested.per_task["return_after_updates"]
    assert scores(first)["trial"] == pytest.approx(episodes * test.sum(1).mean())
    assert first.returns[0] == pytest.approx(episodes * trained[0].sum(1).mean())


def test_a_run_that_fails_is_said_and_the_others_go_on():
    write(iterations=2, test={"tasks": 3, "updates": 2})
    Path("reproduced/tiny/maml-1").mkdir(parents=True)
    Path("reproduced/tiny/maml-1/of-somebody.txt").write_text("kept")
    printed = run(HERE, "reproduce", "tiny.yaml", code=1).stdout
    assert "maml, seed 1: failed with exit code 2: hpc_maml: " in printed
    assert "is not a run folder" in printed
    assert "| maml, seed 1 | 0 of 2 | | | | not begun |" in Path("reproduced/tiny.md").read_text()
    assert open_run("reproduced/tiny/maml-2").committed_iterations == 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_one_run_on_the_ranks_of_a_job(ranks, made):
    folder, _ = made
    write()
    run(ranks, "reproduce", "tiny.yaml", "--run", "1")
    assert checkpoints(Path("reproduced/tiny/maml-2")) == checkpoints(folder / "out/tiny/maml-2")
    assert open_run("reproduced/tiny/maml-2").evaluations
    assert not Path("reproduced/tiny/maml-1").exists()


def test_the_published_rule_is_kept_beside_the_runs():
    method = {"rule": "published_navigation", "step_sizes": [0.1, 0.1]}
    write(settings=[each for each in SETTINGS if "horizon" not in each], test=method, seeds=1)
    run(HERE, "reproduce", "tiny.yaml")
    (kept,) = Path("reproduced/tiny/published_rule").iterdir()
    (found,) = planned(experiments.read("tiny.yaml"), Path("reproduced/tiny"), 1)
    returns = published_navigation.meta_test(found.folder, [0.1, 0.1]).returns["run"]
    assert kept == found.test_path
    assert scores(found)["after_1"] == returns.mean(0)[1]


class TestRefusals:
    def test_an_unknown_name(self):
        said = run(HERE, "reproduce", "navigatoin", code=BAD_INPUT).stderr
        assert "There is no experiment navigatoin (did you mean 'navigation'?)" in said

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"iterations": 0}, "'methods.maml.iterations' must be greater than or equal to 1"),
            ({"itertions": 3}, "'methods.maml.itertions' (did you mean 'iterations'?)"),
            ({"published": {"source": "x"}}, "'methods.maml.published.scores' has no default"),
            (
                {"test": {"step_sizes": "halvd"}},
                "step_sizes' must be 'halved' or 'constant' or a valid list (got 'halvd').",
            ),
            ({"config": "nowhere"}, "nowhere"),
            ({"settings": ["horizn=3"]}, "Unknown config key 'horizn'"),
            ({"published": {"source": "x", "scores": {"before": 1.0}}}, "no score before"),
            ({"published": {"source": "x", "scores": {"after_3": 1}}}, "of 2 updates has no score"),
            ({"speed": 3}, "unknown key 'methods.maml.speed'."),
            ({"test": {"rule": "published_navigation"}}, "step_sizes that are numbers"),
            (
                {"published": {"source": "x", "scores": {"after_1": float("nan")}}},
                "'methods.maml.published.scores' must be a finite number",
            ),
            (
                {"published": {"source": "x", "scores": {}, "confidence_95": {"after_1": 1}}},
                "confidence_95 is of after_1, which is not among the scores",
            ),
        ],
    )
    def test_a_file_that_is_wrong(self, changes, said):
        write(**changes)
        assert said in run(HERE, "reproduce", "tiny.yaml", code=BAD_INPUT).stderr

    def test_a_tolerance_of_nothing(self):
        data = EXPERIMENT | {"methods": {"maml": METHOD}, "tolerance": {"afer_1": 1.0}}
        Path("tiny.yaml").write_text(yaml.safe_dump(data))
        said = run(HERE, "reproduce", "tiny.yaml", code=BAD_INPUT).stderr
        assert "tolerance is of afer_1, which is not among the published scores" in said

    def test_a_number_that_there_is_not(self):
        write()
        said = run(HERE, "reproduce", "tiny.yaml", "--run", "2", code=BAD_INPUT).stderr
        assert "has the runs 0 to 1, not 2" in said

    def test_what_another_one_makes(self):
        write()
        folder = Path("reproduced/tiny")
        folder.mkdir(parents=True)
        with take_lock(folder, "folder"):
            said = run(HERE, "reproduce", "tiny.yaml", code=BAD_INPUT).stderr
        assert f"The folder of runs {folder} is in use by another job." in said
        assert [each.name for each in folder.iterdir()] == [".lock"]

    def test_under_mpirun(self):
        said = run(2, "reproduce", "navigation", code=BAD_INPUT).stderr
        assert said.count("call it without mpirun") == 1

    def test_no_slurm(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        said = run(HERE, "reproduce", "navigation", "--slurm", code=BAD_INPUT).stderr
        assert "There is no sbatch here" in said


def test_no_page_without_a_run():
    write()
    made = Reproduction("tiny.yaml", Path("out"), None, None)
    assert write_page("tiny", made.experiment, made.runs, Path("out"), "") is None


def test_the_interval_is_what_is_tolerated_where_nothing_else_is_said():
    published = Published(source="x", scores={"after_1": 1.0}, confidence_95={"after_1": 0.5})
    found = experiments.read(str(write()))
    assert found.tolerated(published, "after_1") == 0.5
    assert found.tolerated(published, "after_2") == 0.0
    changed = found.model_copy(update={"tolerance": {"after_1": 3.0}})
    assert changed.tolerated(published, "after_1") == 3.0


@pytest.mark.parametrize(("odd", "episodes"), [(100, 40), (50, 60)])
def test_the_published_rule_counts_the_steps_of_ended_episodes(odd, episodes):
    lengths = np.where(np.arange(600) % 2, odd, 100)  # 40 streams, every other of these lengths
    chosen = published_navigation.sampled(lengths)
    assert len(set(chosen)) == len(chosen) == episodes
    assert lengths[chosen].sum() == 4000
    assert chosen.max() < 80


def test_the_published_rule_samples_nothing_of_too_few_steps():
    assert not len(published_navigation.sampled(np.full(600, 6)))
    lengths = np.full(600, 7)  # 4200 steps, but those of the first stream end too early
    assert len(published_navigation.sampled(lengths))
    lengths[::40] = 1
    assert lengths.sum() > 4000
    assert not len(published_navigation.sampled(lengths))


def test_the_published_meta_test_of_a_run(tmp_path, monkeypatch):
    sizes = ["num_iterations=1", "meta_batch_size=2", "fast_batch_size=2", "device=cpu"]
    run(HERE, *sizes, "--run-dir", "run", "archive.rollouts=none", "metrics.tensorboard=off")
    found = published_navigation.meta_test(tmp_path / "run", [0.1]).returns["run"]
    assert found.shape == (40, 2)
    assert (found < 0).all()
    again = []
    for episodes in (30, 60):  # 30 are too few, so 60 are played after them
        monkeypatch.setattr(published_navigation, "EPISODES", episodes)
        again.append(published_navigation.meta_test(tmp_path / "run", [0.1]).returns["run"])
    assert np.array_equal(*again)
    run(HERE, *sizes, "--run-dir", "other", "archive.rollouts=none", "algorithm.name=rl2")
    with pytest.raises(InputError, match="takes no inner steps"):
        published_navigation.meta_test(tmp_path / "other", [0.1])


def write_benchmark(words: list[str]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"benchmark": words}))


def test_a_benchmark_of_the_checkout_makes_a_page():
    words = ["estimators", "--horizon", "2", "--episodes", "5", "--repeats", "3", "--tasks", "2"]
    write_benchmark(words)
    printed = run(HERE, "reproduce", "tiny.yaml").stdout
    assert f"python -m benchmarks.{' '.join(words)}" in printed
    page = Path("reproduced/tiny.md").read_text()
    assert page.startswith("# Tiny\n\nA table.\n")
    (row,) = (line for line in page.splitlines() if "| lvc " in line)
    cells = [each.strip() for each in row.strip("| ").split("|")]
    assert cells[:2] == ["5", "lvc"]
    assert len(cells) == 9
    assert float(cells[-1]) > 0
    assert Path("reproduced/tiny.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["estimators"], ["--run", "0"], "tiny has no runs: make it without --run and --slurm."),
        (["estimators"], ["--budget", "5s"], "it has no --seeds, --side-by-side and --budget"),
        (["estimators"], ["--seeds", "2"], "it has no --seeds, --side-by-side and --budget"),
        (["nothing"], [], "There is no benchmark nothing in "),
        (["estimators", "--horizon", "two"], [], "failed with exit code 2."),
    ],
)
def test_a_benchmark_that_cannot_be_made_is_one_sentence(words, options, said):
    write_benchmark(words)
    assert said in run(HERE, "reproduce", "tiny.yaml", *options, code=BAD_INPUT).stderr


def test_an_experiment_has_methods_or_a_benchmark():
    Path("tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    error = run(HERE, "reproduce", "tiny.yaml", code=BAD_INPUT).stderr
    assert "an experiment has either methods or a benchmark" in error
