"""The log in a run folder; and that what is refused leaves no folder behind."""

import os
import signal
from pathlib import Path

import pytest
from conftest import BAD_INPUT, HERE, SMALL, environment, run, start

from hpc_maml.storage.run_log import RunLog


def test_the_log_has_every_start_and_all_that_was_said():
    first = run(None, *SMALL, "num_iterations=2", "--run-dir", "run")
    second = run(None, "--run-dir", "run", "num_iterations=4")
    text = Path("run/log.txt").read_text()
    lines = text.splitlines()
    starts = [line.partition("started: ")[2] for line in lines if "  started: " in line]
    assert len(starts) == 2
    assert all("-m hpc_maml" in each for each in starts)
    assert starts[1].endswith("--run-dir run num_iterations=4")
    assert text.count(f"on {os.uname().nodename}, process ") == 2
    assert text.count("  hpc_maml 0.1.0, mujoco ") == 2
    for said in (first, second):
        assert said.stdout
        assert said.stdout in text


def test_a_failure_is_logged():
    Path("failing.py").write_text(
        "from hpc_maml.envs.navigation import Navigation\n"
        "class Failing(Navigation):\n"
        "    def sample_tasks(self, rng, n):\n"
        "        raise RuntimeError('planted')\n"
    )
    words = (*SMALL, "env.name=failing:Failing", "--run-dir", "run")
    path = os.pathsep.join([str(Path.cwd()), environment()["PYTHONPATH"]])
    run(None, *words, code=1, python=("-m", "hpc_maml"), PYTHONPATH=path)
    assert Path("run/log.txt").read_text().splitlines()[-1] == "RuntimeError: planted"


def test_a_stop_is_logged():
    job = start(None, *SMALL, "num_iterations=100000", "--run-dir", "run")
    for line in job.stdout:
        if "iteration" in line and "/100000" in line:
            break
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == 75
    assert "stopped early after" in Path("run/log.txt").read_text().splitlines()[-1]


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    log = RunLog(tmp_path / "log.txt")
    log.write("one")
    log.write("two")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert capsys.readouterr().err.count("the run goes on without it") == 1


def test_a_pipe_in_the_place_of_the_log_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "log.txt")
    RunLog(tmp_path / "log.txt").write("one")
    assert capsys.readouterr().err.count("the run goes on without it") == 1


@pytest.mark.parametrize("folder", [None, "new", "empty"])
@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("device=cuda", "there is no GPU"),
        ("archive.max_bytes=10", "archive.max_bytes"),
        ("env.name=nothing", "there is no environment"),
        ("horizon=1000000000", "too large"),
        ("metrics.wandb=online", "has no account here"),
        ("topology.agents=7", "agents"),
        ("policy.name=os:path", "cannot be used as policy"),
    ],
)
def test_what_is_refused_leaves_no_run_folder(word, sentence, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))  # of nobody who is logged in
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    Path("empty").mkdir()
    where = ("--run-dir", folder) if folder else ()
    refused = run(HERE, "num_iterations=1", word, *where, code=BAD_INPUT)
    assert sentence in refused.stderr
    assert not refused.stdout
    assert not Path("runs").exists()
    assert not Path("new").exists()
    assert not list(Path("empty").iterdir())


@pytest.mark.parametrize("ranks", [None, 3])
def test_an_agent_without_a_usable_gpu_is_refused_before_there_is_a_folder(ranks):
    """The driver is there, but torch sees no GPU: only the agents, here of any rank, know."""
    Path("driver.py").write_text(
        "import runpy\n"
        "from hpc_maml.mpi import topology\n"
        "from hpc_maml.run import doctor\n"
        "doctor.visible_gpus = lambda environment: ('0',)\n"
        "topology.visible_gpus = lambda: ('0',)\n"
        "runpy.run_module('hpc_maml', run_name='__main__', alter_sys=True)\n"
    )
    words = (*SMALL, "topology.layout=split", "device=cuda", "--run-dir", "new")
    refused = run(ranks, *words, code=BAD_INPUT, python=("driver.py",))
    assert refused.stderr.count("torch finds no GPU on") == 1
    assert not Path("new").exists()


def test_a_meta_test_is_logged():
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "run")
    before = Path("run/log.txt").read_text()
    found = run(None, "evaluate", "run", "--tasks", "3", "--updates", "1")
    text = Path("run/log.txt").read_text()
    assert text.startswith(before)
    begun, on, versions, *results = text.removeprefix(before).splitlines()
    assert begun.endswith("-m hpc_maml evaluate run --tasks 3 --updates 1")
    assert on.startswith(f"  on {os.uname().nodename}, process ")
    assert versions.startswith("  hpc_maml ")
    assert results[:-1] == found.stdout.splitlines()
    assert results[-1] == "kept in run/evaluations/iteration_000001_tasks_3_updates_1.h5"


def test_a_meta_test_that_is_refused_leaves_the_log_as_it_was():
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "run")
    before = Path("run/log.txt").read_text()
    run(HERE, "evaluate", "run", "--checkpoint", "7", code=BAD_INPUT)
    assert Path("run/log.txt").read_text() == before
