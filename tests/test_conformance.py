"""The promises hold for every algorithm, with every network it can use, and for one's own.

The same bits on any ranks, exact restart, rejected updates that leave the state as it was, and all
commands that read a run. Parameters and state are compared bit by bit, as checkpoint files.
"""

import csv
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from conformance_parts import Spoilable
from conftest import (
    BAD_INPUT,
    HERE,
    ROOT,
    SMALL,
    changed_hdf5,
    checkpoints,
    run,
    start,
    train_each,
)

from hpc_maml import open_run

ITERATIONS = 4
# As SMALL, but for the network, and for tasks of which observers have to share some.
WORDS = tuple(word for word in SMALL if not word.startswith(("policy.", "meta_batch_size")))
WORDS += (
    "meta_batch_size=5",
    f"num_iterations={ITERATIONS}",
    "checkpoint.keep=9",
    "archive.rollouts=2",
)
ALGORITHMS = {
    "maml_trpo": ("algorithm.name=maml_trpo",),
    "step_sizes": ("algorithm.name=maml_trpo", "algorithm.learn_step_sizes=parameter"),
    "kronecker": (
        "algorithm.name=maml_trpo",
        "algorithm.cg_preconditioner=kronecker",
        "algorithm.cg_memory=0",
        "algorithm.ls_interpolate=false",
        "algorithm.inner_loss=lvc",
    ),
    "quasi_newton": (
        "algorithm.name=maml_trpo",
        "algorithm.cg_preconditioner=kronecker",
        "algorithm.cg_memory=3",
        "algorithm.learn_step_sizes=step",
    ),
    "promp": ("algorithm.name=promp",),
    "kl_target": ("algorithm.name=promp", "algorithm.kl_target=0.1"),
    "pretrain": ("algorithm.name=pretrain",),
    "rl2": ("algorithm.name=rl2", "algorithm.episodes_per_trial=2"),
    "own": ("algorithm.name=conformance_parts:Reinforce",),
}
NETWORKS = {
    "mlp": ("policy.name=mlp", "policy.hidden_sizes=[8, 8]"),
    "torch": ("policy.name=conformance_networks:Small", "policy.kwargs={width: 5}"),
    "gru": ("policy.name=gru", "policy.hidden_size=8"),
}
SCALES = {"plain": (), "normalised": ("normalise_observations=true",)}
RUNS = {
    f"{algorithm}-{network}-{scale}": (*ALGORITHMS[algorithm], *NETWORKS[network], *SCALES[scale])
    for algorithm in ALGORITHMS
    for network in NETWORKS
    for scale in SCALES
    if (algorithm == "rl2") == (network == "gru")
}
# One for each algorithm; together they have each network, and both scales.
FEW = [
    "maml_trpo-torch-normalised",
    "step_sizes-mlp-normalised",
    "kronecker-torch-plain",
    "quasi_newton-mlp-plain",
    "promp-mlp-normalised",
    "kl_target-torch-plain",
    "pretrain-mlp-plain",
    "rl2-gru-normalised",
    "own-mlp-plain",
]
EACH = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow, id=name) for name in RUNS
]
LAYOUTS = {
    "split": ("topology.layout=split",),
    "team": ("topology.layout=team",),
    "teams": ("topology.layout=team", "topology.agents=3"),
}
ADAM = {"adam_first_moment", "adam_second_moment", "adam_steps"}
STATISTICS = {"observation_count", "observation_mean", "observation_variance"}


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Mapping[str, Path]:
    """Return the folders of the runs on one rank, by name, each trained when it is asked for."""
    top = tmp_path_factory.mktemp("serial")

    class Folders(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = top / name
            run(HERE, *WORDS, *RUNS[name], "--run-dir", self[name])
            return self[name]

    return Folders()


@pytest.fixture(scope="module")
def on_three_ranks(tmp_path_factory) -> Path:
    """Return the folder with a run on three ranks for each algorithm."""
    top = tmp_path_factory.mktemp("three")
    train_each(3, {top / name: (3, (*WORDS, *RUNS[name])) for name in FEW})
    return top


@pytest.fixture(scope="module")
def on_many_ranks(tmp_path_factory) -> Path:
    """Return the folder with all runs on 3 and on 16 ranks, in all layouts."""
    top = tmp_path_factory.mktemp("many")
    for ranks in (3, 16):
        runs = {
            top / f"{ranks}-{layout}-{name}": (ranks, (*WORDS, *RUNS[name], *LAYOUTS[layout]))
            for layout in LAYOUTS
            for name in RUNS
        }
        train_each(ranks, runs)
    return top


# The same on any ranks


@pytest.mark.parametrize("name", FEW)
def test_the_same_bits_on_one_rank_and_on_three(name, serial, on_three_ranks):
    found = checkpoints(on_three_ranks / name)
    assert len(found) == ITERATIONS
    assert found == checkpoints(serial[name])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [3, 16])
@pytest.mark.parametrize("name", RUNS)
def test_the_same_bits_on_any_ranks(name, ranks, layout, serial, on_many_ranks):
    assert checkpoints(on_many_ranks / f"{ranks}-{layout}-{name}") == checkpoints(serial[name])


@pytest.mark.parametrize("name", EACH)
def test_every_part_of_the_state_is_kept_and_changes(name, serial):
    first, last = (open_run(serial[name]).checkpoint(k) for k in (1, ITERATIONS))
    before, after = ({**each.parameters, **each.state} for each in (first, last))
    assert list(before) == list(after)
    changed = {key for key in before if before[key].tobytes() != after[key].tobytes()}
    assert changed & set(last.parameters)
    assert all(np.isfinite(values).all() for values in after.values())
    expected = {
        "maml_trpo": {"curvature_pairs"},
        "pretrain": {"curvature_pairs"},
        "step_sizes": {"step_sizes", "curvature_pairs"},
        "quasi_newton": {"step_sizes", "curvature_pairs"},
        "promp": ADAM,
        "kl_target": ADAM | {"kl_coefficients"},
        "rl2": ADAM,
        "own": {"velocity"},
    }.get(name.partition("-")[0], set())
    scale = STATISTICS if "normalised" in name else set()
    assert changed - set(last.parameters) == expected | scale


# Restart


def metrics(folder: Path) -> dict[str, bytes]:
    """Return what the metrics hold that does not depend on time and place."""
    with h5py.File(folder / "metrics.h5") as file:
        return {
            f"{group}/{name}": dataset[...].tobytes()
            for group in ("iterations", "tasks")
            for name, dataset in file[group].items()
            if not dataset.attrs["wall_clock"]
        }


@pytest.mark.parametrize("name", EACH)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(name, serial):
    folder = Path("run")
    words = (*WORDS, *RUNS[name], "--run-dir", folder)
    run(HERE, *words, "num_iterations=2")
    assert len(checkpoints(folder)) == 2
    run(HERE, *words)
    assert checkpoints(folder) == checkpoints(serial[name])
    assert metrics(folder) == metrics(serial[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(name, serial):
    folder = Path("run")
    words = (*WORDS, *RUNS[name], "--run-dir", folder)
    job = start(None, *words, "num_iterations=9999")
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints/iteration_000001.h5").exists():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate(timeout=30)
    done = max(open_run(folder).checkpoints)
    run(HERE, *words, f"num_iterations={done + 2}")
    run(HERE, *words[:-1], "undisturbed", f"num_iterations={done + 2}")
    assert checkpoints(Path("undisturbed")).items() >= checkpoints(folder).items()
    assert metrics(folder) == metrics(Path("undisturbed"))


# Rejected updates


@pytest.mark.parametrize("name", EACH)
def test_an_update_that_is_not_finite_leaves_the_state_and_is_shown(name, monkeypatch):
    words = (*WORDS, *RUNS[name], "env.name=conformance_parts:Spoilable", "--run-dir", "run")
    run(HERE, *words, "num_iterations=2")
    monkeypatch.setattr(Spoilable, "spoiled", True)
    shown = run(HERE, *words).stdout
    assert shown.count("UPDATE REJECTED: ") == 2, shown
    left = open_run("run")
    table = left.metrics
    assert table["accepted"].tolist() == [1, 1, 0, 0]
    assert table["rejected_updates"].tolist() == [0, 0, 1, 2]
    good, bad = left.checkpoint(2), left.checkpoint(4)
    assert (good.rejected_updates, bad.rejected_updates) == (0, 2)
    for kind in ("parameters", "state"):
        one, other = getattr(good, kind), getattr(bad, kind)
        assert {key: values.tobytes() for key, values in one.items()} == {
            key: values.tobytes() for key, values in other.items()
        }
    monkeypatch.setattr(Spoilable, "spoiled", False)
    run(HERE, *words, "num_iterations=5")
    assert open_run("run").metrics["accepted"].tolist() == [1, 1, 0, 0, 1]


# What reads a run


@pytest.mark.parametrize("name", EACH)
def test_a_run_can_be_tested_inspected_and_read(name, serial):
    shutil.copytree(serial[name], "run")
    words = ("evaluate", "run", "--trust", "--tasks", "3", "--updates", "2", "--json", "test.json")
    shown = run(HERE, *words).stdout
    assert "mean return on 3 unseen tasks" in shown
    (test,) = open_run("run").evaluations
    phases = {"rl2": 2, "own": 1}.get(name.partition("-")[0], 3)
    assert test.returns["run"].shape == test.returns["random"].shape == (3, phases)
    assert all(np.isfinite(returns).all() for returns in test.returns.values())

    result = run(HERE, "inspect", "run", "--tree", "--verify")
    assert not result.stderr
    assert "4 of 4 iterations" in result.stdout
    config = open_run("run").config
    assert f"algorithm   {config['algorithm']['name']}\n" in result.stdout
    assert f"network     {config['policy']['name']}" in result.stdout

    archive = open_run("run")
    assert archive.rollouts.iterations == [1, 3]
    returns = archive.per_task["return_after_updates"]
    for (iteration, task), rollout in archive.rollouts.items():
        found = rollout.rewards.sum(1, np.float64).mean(1)  # [K, T, B] -> [K]
        np.testing.assert_allclose(found, returns[iteration - 1, task], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *RUNS])
@pytest.mark.usefixtures("few_files")
def test_reports_of_all_side_by_side_and_of_each(name, serial):
    shown = [name] if name else FEW
    run(HERE, "report", *(serial[each] for each in shown), "-o", "report")
    tables = {path.stem: list(csv.reader(path.open())) for path in Path("report").glob("*.csv")}
    assert len(tables["runs"]) == 1 + len(shown)
    header, *rows = tables["metrics"]
    for each in shown:
        assert set(open_run(serial[each]).declared) <= set(header)
        assert sum(each in row[0] for row in rows) == ITERATIONS
    assert Path("report/report.html").exists()


# Bad input: a sentence, and nothing is written


def files() -> dict[str, bytes]:
    return {str(path): path.is_file() and path.read_bytes() for path in Path.cwd().rglob("*")}


def refused(*words: str) -> str:
    """Return the sentence with which a command is refused, having written nothing."""
    before = files()
    result = run(HERE, *words, code=BAD_INPUT)
    assert files() == before
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("hpc_maml: ")
    assert sentence.endswith(".")
    assert not result.stdout
    return sentence


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["algorithm.name=promb"], ["no algorithm 'promb' (did you mean 'promp'?)"]),
        (["policy.name=mpl"], ["no policy 'mpl' (did you mean 'mlp'?)"]),
        (
            ["algorithm.name=conformance_parts:Renforce"],
            ["has no 'Renforce' (did you mean 'Reinforce'?)"],
        ),
        (
            ["algorithm.name=conformance_parts:Unfinished"],
            ["conformance_parts:Unfinished cannot be used as algorithm: it has no update."],
        ),
        (["algorithm.name=conformance_parts:Spoilable"], ["it is not a subclass of Algorithm."]),
        (["algorithm.name=nowhere:Class"], ["'nowhere:Class' cannot be imported"]),
        (
            ["algorithm.name=promp", "algorithm.max_kl=0.1"],
            ["Unknown config key 'algorithm.max_kl': algorithm promp has", "outer_lr", "clip"],
        ),
        (
            ["algorithm.name=conformance_parts:Reinforce", "algorithm.clip=0.1"],
            ["Unknown config key 'algorithm.clip'", "outer_lr, momentum"],
        ),
        (["algorithm.name=conformance_parts:Reinforce", "algorithm.momentum=1"], ["momentum"]),
        (["policy.name=conformance_networks:Wide"], ["[2, 2]", "not [2, 3]"]),
        (["policy.name=conformance_networks:Smal"], ["(did you mean 'Small'?)"]),
        (
            ["policy.name=conformance_networks:Small", "policy.kwargs={hidden: 3}"],
            ["conformance_networks:Small", "hidden"],
        ),
        *(
            ([f"algorithm.name={name}", "policy.name=gru"], [name, "cannot use a recurrent policy"])
            for name in ("maml_trpo", "promp", "pretrain", "conformance_parts:Reinforce")
        ),
        (
            ["algorithm.inner_loss=dice", "algorithm.fisher_fraction=0.5"],
            ["inner_loss=dice needs every step of an episode"],
        ),
        (["algorithm.name=rl2", "policy.name=mlp"], ["needs a policy with a memory", "gru"]),
        (
            ["algorithm.name=rl2", "policy.name=conformance_networks:Small"],
            ["needs a policy with a memory", "gru"],
        ),
        *(
            (
                [f"algorithm.name={name}", "archive.adapted_parameters=true"],
                ["archive.adapted_parameters", name, "adapts no parameters"],
            )
            for name in ("rl2", "pretrain", "conformance_parts:Reinforce")
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].partition(".")[2] else "",
)
def test_what_does_not_fit_is_refused(words, parts):
    for command in ([], ["--run-dir", "run"]):
        sentence = refused("device=cpu", *words, *command)
        assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(("group", "dataset"), [("parameters", "weight_0"), ("state", "velocity")])
def test_a_state_of_another_shape_is_refused(group, dataset, serial):
    name = "own-mlp-plain"
    shutil.copytree(serial[name], "run")
    (Path("run") / ".lock").touch()
    with changed_hdf5(Path("run/checkpoints/iteration_000004.h5")) as file:
        values = file[group][dataset][...]
        del file[group][dataset]
        file[group][dataset] = np.concatenate([values, values])
    for words in ((*WORDS, *RUNS[name], "--run-dir", "run"), ("evaluate", "run", "--trust")):
        sentence = refused(*words)
        assert "iteration_000004.h5" in sentence
        assert f"the {group} have other names or shapes than the algorithm's" in sentence


@pytest.mark.usefixtures("few_files")
def test_a_run_of_the_first_format_can_be_read_but_not_continued_or_tested():
    shutil.copytree(ROOT / "tests" / "data" / "run_format_1", "old")
    shown = run(HERE, "inspect", "old", "--tree", "--verify")
    assert "2 of 2 iterations" in shown.stdout
    assert not shown.stderr
    run(HERE, "report", "old", "-o", "report")
    assert list(Path("report").glob("*.csv"))
    for words in (("--run-dir", "old"), ("evaluate", "old"), ("--run-dir", "old", "seed=1")):
        sentence = refused(*words)
        assert "older hpc_maml" in sentence
        assert "not continued or tested" in sentence
