"""The job scripts outside of Slurm, for which see test_slurm.py; and a run's own time limit."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BAD_INPUT, HERE, ROOT, SMALL, environment, run

from hpc_maml import open_run
from hpc_maml.stopping import StopSignal

MPIRUN = str(Path(sys.executable).parent)


def submit(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as its scheduler would, from a folder that `jobs` has filled."""
    words = environment(**{"PATH": f"{MPIRUN}{os.pathsep}{os.environ['PATH']}", **variables})
    return subprocess.run(
        [shutil.which("bash"), script],
        check=False,
        env=words,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def _scripts() -> None:
    assert run(HERE, "jobs", ".").stdout == "jobs\nconfigs\n"


@pytest.mark.usefixtures("_scripts")
def test_the_scripts_and_configurations_are_copied():
    for name in ("jobs", "configs"):
        here, there = (
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
            for folder in (Path(name), ROOT / name)
        )
        assert here == there
    assert os.access("jobs/slurm_ant.sh", os.R_OK)
    refused = run(HERE, "jobs", ".", code=BAD_INPUT)
    assert "jobs is there already" in refused.stderr


def test_every_script_is_valid_and_has_a_place_for_the_account():
    for script in ROOT.glob("jobs/*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        text = script.read_text()
        if not script.name.startswith(("launch", "environment")):
            assert re.search(r"^##(SBATCH --account|PBS -A|BSUB -P)", text, re.MULTILINE), script
            assert "mem" in text
            assert ". jobs/launch.sh" in text


WORDS = " ".join(word for word in SMALL if " " not in word)


@pytest.mark.usefixtures("_scripts")
@pytest.mark.parametrize(
    ("script", "variables", "folder"),
    [
        ("jobs/pbs_ant.sh", {"PBS_JOBID": "12.host", "PBS_NODEFILE": "nodes"}, "runs/ant-12"),
        ("jobs/lsf_ant.sh", {"LSB_JOBID": "13", "LSB_DJOB_NUMPROC": "2"}, "runs/ant-13"),
    ],
)
def test_jobs_of_other_schedulers(script, variables, folder):
    Path("nodes").write_text("localhost\nlocalhost\n")
    Path("jobs/environment.sh").write_text("export SITE=loaded; echo modules loaded\n")
    words = f"{WORDS} env.name=navigation horizon=9 policy.hidden_sizes=[8]"
    done = submit(script, **variables, PBS_O_WORKDIR=str(Path.cwd()), WORDS=words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("modules loaded\n")
    assert re.search(r"job 1[23]\S*, start 1: mpirun -np 2\n", done.stdout)
    assert open_run(folder).columns["ranks"].tolist() == [2] * 5


@pytest.mark.usefixtures("_scripts")
def test_the_launcher_is_not_blamed_for_a_missing_python():
    Path("bin").mkdir()
    for tool in ("timeout", "printf", "tail", "wc", "env"):
        if found := shutil.which(tool):
            Path("bin", tool).symlink_to(found)
    done = submit("jobs/lsf_ant.sh", PATH="bin", LSB_JOBID="1", LSB_DJOB_NUMPROC="2")
    assert done.returncode == 2
    assert "python: command not found" in done.stderr
    assert "see jobs/environment.sh" in done.stderr
    assert "No launcher" not in done.stderr


@pytest.mark.usefixtures("_scripts")
def test_the_last_launcher_speaks_for_itself():
    words = {"LSB_JOBID": "1", "LSB_DJOB_NUMPROC": "2"}
    done = submit("jobs/lsf_ant.sh", **words, LAUNCHER="ls --no-such-option")
    assert done.returncode == 2
    assert "No launcher makes one world of the 2 tasks of this job" in done.stderr
    assert re.search(r"The last one said:\n.*no-such-option", done.stderr)
    done = submit("jobs/lsf_ant.sh", **words, LAUNCHER="env")
    assert "The last one said:\n(nothing: its worlds have another size)" in done.stderr


@pytest.mark.usefixtures("_scripts")
def test_a_job_that_is_ended_before_it_starts_does_not_start():
    Path("bin").mkdir()
    slow = Path("bin/slow")
    slow.write_text('#!/bin/sh\ntouch tried\nsleep 1\nexec "$@"\n')
    slow.chmod(0o755)
    words = {"LSB_JOBID": "13", "LSB_DJOB_NUMPROC": "1", "LAUNCHER": str(slow.absolute())}
    path = f"{MPIRUN}{os.pathsep}{os.environ['PATH']}"
    words = environment(PATH=path, WORDS=WORDS, **words)
    job = subprocess.Popen(
        ["bash", "jobs/lsf_ant.sh"], env=words, stdout=subprocess.PIPE, text=True
    )
    while not Path("tried").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.terminate()
    assert job.communicate(timeout=60)[0] == ""
    assert job.returncode == 75
    assert not Path("runs").exists()


@pytest.mark.usefixtures("_scripts")
@pytest.mark.parametrize(
    ("array", "queued"),
    [({}, "12"), ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3")],
)
def test_what_is_queued_again_is_the_warned_job_alone(array, queued):
    """The last task of an array has the number of the array, which stands for all of it."""
    Path("bin").mkdir()
    for name, text in (
        ("python", 'case "$*" in "-m hpc_maml"*) kill -USR1 $PPID; sleep 1; exit 75;; esac'),
        ("scontrol", 'echo "$@" >asked; exit 1'),
    ):
        Path("bin", name).write_text(f"#!/bin/sh\n{text}\n")
        Path("bin", name).chmod(0o755)
    path = f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}"
    words = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "LAUNCHER": "env", "REQUEUE": "yes"}
    done = submit("jobs/slurm_ant.sh", PATH=path, **words, **array)
    assert (done.returncode, Path("asked").read_text()) == (75, f"requeue {queued}\n"), done.stderr


def test_a_run_stops_before_its_time_limit():
    started = time.monotonic()
    words = (*SMALL, "num_iterations=1000000", "--run-dir", "run", "--time-limit")
    stopped = run(3, *words, "6s", code=75)
    assert time.monotonic() - started < 20
    assert "stopped early after" in stopped.stdout
    done = open_run("run").checkpoints[-1]
    assert done > 1
    run(3, *words, "3s", code=75)
    assert open_run("run").checkpoints[-1] > done


def test_the_next_iteration_must_fit():
    stop = StopSignal()
    stop.limit_time(100)
    stop.expect("an iteration", 60)
    assert not stop.before("an iteration")
    stop.expect("an iteration", 70)  # half of that again is 105
    assert stop.before("an iteration")
    assert not stop.before("a meta-test")
    assert not stop.requested


def test_a_meta_test_must_fit_too(monkeypatch):
    def before(stop, what):
        return what == "a meta-test" and what in stop._needed  # of which one was made

    monkeypatch.setattr(StopSignal, "before", before)
    words = ("evaluation.every=1", "evaluation.tasks=2", "evaluation.updates=1")
    run(HERE, *SMALL, *words, "--run-dir", "run", code=75)
    assert [test.iteration for test in open_run("run").evaluations] == [0]
    assert open_run("run").checkpoints == [1]


@pytest.mark.parametrize("text", ["7", "h", "0h", "1:30", "-3m", "infs"])
def test_a_time_that_is_none(text):
    refused = run(HERE, f"--time-limit={text}", code=BAD_INPUT)
    assert "must be a time such as 7.5h, 30m or 90s" in refused.stderr
