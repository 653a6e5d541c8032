"""Training and meta-tests from Python: the same as by the command line."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE, ROOT, SMALL, checkpoints, environment, run

import hpc_maml
from hpc_maml.mpi.loading import check_launcher

WORDS = (*SMALL, "evaluation.tasks=3", "evaluation.updates=2")


def test_a_run_from_python_is_that_of_the_command_line():
    run(HERE, *WORDS, "--run-dir", "command")
    seen = []
    before = signal.getsignal(signal.SIGINT)
    trained = hpc_maml.train(
        hpc_maml.load_config(words=WORDS),
        "script",
        [lambda done, metrics: seen.append((done, metrics["post_update_return_mean"]))],
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints("script") == checkpoints("command")
    assert seen == list(enumerate(trained.columns["post_update_return_mean"], 1))
    tested = hpc_maml.evaluate(trained, updates=1, baselines=["command"])
    run(HERE, "evaluate", "command", "--updates", "1")
    (expected,) = hpc_maml.open_run("command").evaluations
    np.testing.assert_array_equal(tested.returns["run"], expected.returns["run"])
    np.testing.assert_array_equal(tested.returns["baseline command"], expected.returns["run"])
    (kept,) = trained.evaluations
    np.testing.assert_array_equal(kept.returns["run"], tested.returns["run"])
    mean = hpc_maml.evaluate(trained, updates=1, last_actions="mean")
    run(HERE, "evaluate", "command", "--updates", "1", "--last-actions", "mean")
    (by_command,) = [
        test for test in hpc_maml.open_run("command").evaluations if "mean action" in test.how
    ]
    np.testing.assert_array_equal(mean.returns["run"], by_command.returns["run"])
    np.testing.assert_array_equal(mean.returns["run"][:, 0], tested.returns["run"][:, 0])
    assert (mean.returns["run"][:, 1] != tested.returns["run"][:, 1]).all()
    assert len(trained.evaluations) == 2


def test_a_callback_stops_a_run_which_then_goes_on(trained):
    settings = dict(word.split("=") for word in SMALL[:4])
    config = {
        **{key: int(value) for key, value in settings.items()},
        "policy": {"hidden_sizes": [8, 8]},
        "metrics": {"tensorboard": "off"},
    }
    stopped = hpc_maml.train(config, "run", [lambda done, metrics: done == 2])
    assert stopped.checkpoints[-1] in (2, 3)  # an iteration is recorded during the next one
    done = hpc_maml.train(run_dir="run")
    assert done.checkpoints == [3, 4, 5]
    for number, content in checkpoints("run").items():
        assert content == checkpoints(trained)[number]


def test_a_callback_that_fails_ends_the_run_which_then_goes_on():
    def fail(done, metrics):
        raise RuntimeError("planted")

    config = hpc_maml.load_config(words=SMALL)
    with pytest.raises(RuntimeError, match="planted"):
        hpc_maml.train(config, "run", [fail])
    assert hpc_maml.train(config, "run").committed_iterations == 5
    assert "RuntimeError: planted" in (hpc_maml.open_run("run").path / "log.txt").read_text()


def test_bad_input_is_one_sentence():
    with pytest.raises(hpc_maml.InputError, match="did you mean"):
        hpc_maml.load_config(words=["algorithm.fast_l=1"])
    with pytest.raises(hpc_maml.InputError, match="is not a run folder"):
        hpc_maml.evaluate("nothing")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        hpc_maml.trian  # noqa: B018
    assert {"train", "evaluate", "load_config", "open_run"} <= set(dir(hpc_maml))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hpc_maml.train("configs/navigation.yaml"), "comes from load_config, not"),
        (lambda: hpc_maml.train({}, "new", callbacks=[5]), "Callbacks are functions"),
        (lambda: hpc_maml.train({}, "new", callbacks=print), "Callbacks are functions"),
        (lambda: hpc_maml.evaluate("x", episodes=0), "episodes must be a number from 2 on, not 0"),
        (lambda: hpc_maml.evaluate("x", updates=2, step_sizes=0.1), "2 updates, but 1 step"),
        (lambda: hpc_maml.evaluate("x", step_sizes=0.1), "x is not a run folder"),
        (lambda: hpc_maml.load_config(words="sed=3"), "did you mean 'seed'"),
    ],
)
def test_mistakes_in_arguments(call, said):
    with pytest.raises(hpc_maml.InputError, match=said):
        call()
    assert not Path("new").exists()


def test_a_bare_script_has_the_bits_of_the_command_line():
    """With layers so wide that OpenBLAS gives other bits with more threads."""
    settings = (*SMALL, "num_iterations=1", "policy.hidden_sizes=[128, 128]", "fast_batch_size=20")
    settings = (*settings, "horizon=100")
    run(None, *settings, "--run-dir", "command")
    code = f"""
import hpc_maml
hpc_maml.train(hpc_maml.load_config(words={settings!r}), "script")
"""
    free = {name: value for name, value in environment().items() if name not in hpc_maml.THREADS}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stderr
    assert checkpoints("script") == checkpoints("command")


def test_a_script_under_mpirun_is_told_to_use_the_command():
    code = "import hpc_maml; hpc_maml.train({})"
    found = run(2, python=("-c", code), code=1)
    assert "There are 2 ranks: a script trains in one process" in found.stderr


def test_numpy_with_threads_is_warned_of():
    code = "import numpy, os, hpc_maml; os.cpu_count = lambda: 4; hpc_maml.evaluate('nothing')"
    words = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "2")
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=environment(**words),
    )
    assert "NumPy was loaded without OPENBLAS_NUM_THREADS=1" in done.stderr
    assert "InputError: nothing is not a run folder" in done.stderr


@pytest.mark.parametrize(
    ("library", "variables", "fits"),
    [
        ("MPICH Version:      5.0.2\nDevice", ["OMPI_COMM_WORLD_SIZE"], False),
        ("Intel(R) MPI Library 2021.10", ["OMPI_COMM_WORLD_SIZE"], False),
        ("Open MPI v5.0.3, package", ["OMPI_COMM_WORLD_SIZE"], True),
        ("IBM Spectrum MPI v10", ["OMPI_COMM_WORLD_SIZE"], True),
        ("MPICH Version:      5.0.2", ["OMPI_COMM_WORLD_SIZE", "PMI_RANK"], True),  # the inner one
        ("MPICH Version:      5.0.2", [], True),
    ],
)
def test_the_launcher_of_another_library_is_noticed(library, variables, fits):
    given = dict.fromkeys(variables, "2")
    if fits:
        check_launcher(library, given)
        return
    with pytest.raises(hpc_maml.InputError, match="mpirun of Open MPI started this job"):
        check_launcher(library, given)


def test_it_is_noticed_before_mpi_starts():
    found = run(None, "num_iterations=1", code=2, OMPI_COMM_WORLD_SIZE="2", PMIX_RANK="0")
    assert "start with the mpirun of that library" in found.stderr
    assert found.stdout == ""


def test_the_notebook_runs():
    """Its code, in a process of its own; what it prints and draws is not compared."""
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    words = environment(MPLBACKEND="agg")
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=words, capture_output=True, text=True
    )
    before, after = map(float, done.stdout.partition("distance from the goal:")[2].split())
    assert after < 0.5 * before
