"""The command line as a person uses it: help, mistakes, exit codes, and what is printed."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from conftest import BAD_INPUT, HERE, ROOT, SMALL, command, environment, run

from hpc_maml.cli import only_prints

slow = pytest.mark.slow
LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  iteration \d/5 +return +-?[\d.]+ -> +-?[\d.]+ +kl .* eta "
)


@pytest.mark.parametrize("ranks", [HERE, 3])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "-h"]])
def test_help_is_printed_once(ranks, words):
    result = run(ranks, *words)
    assert result.stdout.count("usage:") == 1
    assert not result.stderr


def test_plain_lines_in_a_log():
    result = run(4, *SMALL, "--run-dir", "run")
    lines = result.stdout.splitlines()
    assert sum(bool(LINE.match(line)) for line in lines) == 5, result.stdout
    assert re.search(r"^1-3 +observer ", result.stdout, re.MULTILINE)
    assert lines[-1].endswith("done: 5 iterations in run")
    assert not result.stderr


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ((), "before adaptation -> after      [nat]       took"),
        (("algorithm.name=pretrain",), "mean return        [nat]       took"),
    ],
)
def test_names_stand_above_the_columns(words, columns):
    lines = run(HERE, *SMALL, *words, "num_iterations=2").stdout.splitlines()
    (number,) = [number for number, line in enumerate(lines) if columns in line]
    header, line = lines[number : number + 2]
    assert LINE.match(line.replace("/2", "/5")) or words
    for name, part in (("done", "iteration"), ("[nat]", "kl"), ("left", "eta")):
        assert header.index(name) == line.index(part)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian", "'trian' is not a command (did you mean 'train'?)"),
        ("tran seed=3", "'tran' is not a command (did you mean 'train'?)"),
        ("reproduce --slurm navigation", "name the experiment, before --slurm"),
        ("reproduce --run 0", "name the experiment"),
        (f"reproduce {'x' * 300}.yaml", "cannot be read: File name too long"),
        (f"jobs {'x' * 300}", "cannot be written: File name too long"),
        ("bench --json nowhere/x.json", "nowhere/x.json cannot be written: No such file"),
        ("algorithm.fast_lr = 0.1", "without spaces around the =: algorithm.fast_lr=0.1."),
        ("seed= 2 horizon=3", "without spaces around the =: seed=2 horizon=3."),
        ("seed =2", "without spaces around the =: seed=2."),
        ("--fast_lr 0.1", "settings are written algorithm.fast_lr=value"),
        ("--algorithm.fast-lr=0.1", "settings are written algorithm.fast_lr=value"),
        ("--every 3", "written checkpoint.every or evaluation.every=value"),
        ("--hidden_size 3", "settings are written policy.hidden_size=value"),
        ("--resume runs/x", "give the same --run-dir again, and the run goes on"),
        ("--runs", "unrecognized arguments: --runs"),
    ],
)
def test_hints_for_what_is_written_otherwise(words, sentence):
    refused = run(HERE, *words.split(), code=BAD_INPUT)
    assert sentence in refused.stderr
    assert not refused.stdout


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    program = shlex.join(command(None, ["--version"]))
    line = f"mkdir gone && cd gone && rmdir ../gone && {program}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr == "hpc_maml: the current folder is gone: No such file or directory.\n"


def test_whose_work_is_what_they_print():
    assert all(map(only_prints, (["-h"], ["--version"], ["config", "seed=3"], ["doctor"])))
    kept = ([], ["--config", "f"], ["seed=3"], ["train", "--help"], ["evaluate", "run"])
    assert not any(map(only_prints, kept))


def test_a_hint_comes_from_one_rank():
    assert run(3, "trian", code=BAD_INPUT).stderr.count("did you mean") == 1


def test_a_live_line_on_a_terminal():
    terminal, other_end = pty.openpty()
    job = subprocess.Popen(
        command(None, [*SMALL, "--run-dir", "run"]),
        env=environment(TERM="xterm"),
        stdout=other_end,
        stderr=other_end,
        stdin=subprocess.DEVNULL,
    )
    os.close(other_end)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the job has closed its end
            break
        if not part:
            break
        shown += part
    assert job.wait(30) == 0
    assert b"5/5" in shown
    assert b"\x1b[" in shown


def test_default_run_folder():
    shown = run(HERE, *SMALL).stdout
    assert "busy: principal " in shown
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("navigation-")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "metrics.h5", "checkpoints"}


def test_config_file_and_words_in_any_order():
    configuration = str(ROOT / "configs" / "ant_vel.yaml")
    run(
        HERE,
        *("--config", configuration, "algorithm.max_kl=0.02", "num_iterations=1"),
        *("--run-dir", "runs/x", "meta_batch_size=2", "fast_batch_size=2", "horizon=5"),
        *("metrics.tensorboard=off", "device=cpu"),
    )
    assert "max_kl: 0.02" in Path("runs/x/config.yaml").read_text()


@pytest.mark.parametrize("ranks", [1, 4])
def test_evaluate(ranks, copied):
    words = ("evaluate", copied, "--tasks", "5", "--updates", "2", "--json")
    run(ranks, *words, "t.json")
    rows = json.loads(Path("t.json").read_text())
    run(HERE, *words, "serial.json")
    assert rows == json.loads(Path("serial.json").read_text())


BAD_WORDS = [
    (
        ["algorithm.maxkl=1"],
        "Unknown config key 'algorithm.maxkl' (did you mean 'algorithm.max_kl'?)",
    ),
    (["seed=x"], "Config key 'seed' must be a valid integer (got 'x')"),
    (["--config", "nowhere.yaml"], "The config file nowhere.yaml cannot be read"),
    (["env.name=half_cheeta_vel"], "half_cheetah_vel"),
    (["env.kwargs.colour=red"], "colour"),
    (["env.kwargs.lineage=mine"], "lineage"),
    (["topology.agents=4"], "topology.agents is 4, but there "),
    (["evaluate", "nowhere"], "nowhere is not a run folder"),
    (["inspect", "nowhere"], "nowhere is not a run folder"),
    (["trian"], "settings are written key=value"),
    (["device=cuda", "env.name=ant_vel"], "device is cuda, but"),
    (["horizon=1000000000"], "must be below 2 GB"),
    (["--run-dir", "x" * 300], "cannot be read: File name too long"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD_WORDS)
@pytest.mark.parametrize("ranks", [HERE, pytest.param(None, marks=slow)])
def test_bad_input_is_one_sentence(ranks, words, sentence, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run(ranks, *words, code=BAD_INPUT)
    said = [line for line in result.stderr.splitlines() if line.startswith("hpc_maml:")]
    assert len(said) == 1, result.stderr
    assert sentence in said[0]
    assert "Traceback" not in result.stderr
    if "device=cuda" not in words:  # only agents know, and they start after the run folder is made
        assert list(Path.cwd().iterdir()) == []


# On several ranks: of the command line, of rank 0 that prepares the job, of the agents.
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(*each, marks=() if each[0][0] in ("seed=x", "device=cuda") else slow)
        for each in BAD_WORDS
    ],
)
def test_bad_input_is_one_sentence_on_several_ranks(words, sentence, monkeypatch):
    test_bad_input_is_one_sentence(3, words, sentence, monkeypatch)


def test_evaluate_on_other_ranks_and_devices_than_the_run():
    run(3, *SMALL, "num_iterations=1", "topology.agents=3", "--run-dir", "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    run(HERE, "evaluate", "run", "--tasks", "2", "--updates", "1")


def test_no_mpi_library_is_one_sentence():
    code = BAD_INPUT
    result = run(None, *SMALL, code=code, MPI4PY_LIBMPI="/nonexistent.so")
    assert result.stderr.startswith("hpc_maml: no MPI library can be loaded")
    assert len(result.stderr.splitlines()) == 1


def test_an_answer_that_cannot_be_written_is_one_sentence(copied):
    result = run(2, "evaluate", copied, "--tasks", "2", "--json", "no/t.json", code=BAD_INPUT)
    assert "no/t.json cannot be written: No such file or directory." in result.stderr
    assert "Traceback" not in result.stderr
    assert "at least 2" in run(HERE, "evaluate", copied, "--tasks", "1", code=BAD_INPUT).stderr


def test_a_wrong_flag_is_said_once():
    result = run(3, "--confg", "x", code=BAD_INPUT)
    assert result.stderr.count("error:") == 1


class TestRunFolder:
    """What must not be overwritten."""

    @pytest.fixture(autouse=True, params=[HERE, pytest.param(2, marks=slow)])
    def _on(self, request) -> None:
        self.ranks = request.param

    @pytest.fixture
    def folder(self) -> Path:
        run(HERE, *SMALL, "num_iterations=2", "--run-dir", "run")
        return Path("run")

    def refused(self, *words: str) -> str:
        def content():
            return {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}

        before = content()
        result = run(self.ranks, *SMALL, "--run-dir", "run", *words, code=BAD_INPUT)
        assert content() == before
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("hpc_maml:")]
        return line

    def test_another_configuration(self, folder):
        assert "(seed, algorithm.max_kl)" in self.refused("seed=3", "algorithm.max_kl=0.5")

    def test_fewer_iterations_than_done(self, folder):
        assert "has done 2 iterations already" in self.refused("num_iterations=1")

    def test_a_folder_of_something_else(self):
        Path("run").mkdir()
        Path("run/thesis.tex").write_text("years of work")
        assert "is not a run folder" in self.refused()

    def test_a_file(self):
        Path("run").write_text("x")
        assert "is not a run folder" in self.refused()

    def test_a_damaged_checkpoint(self, folder):
        for path in folder.glob("checkpoints/*"):
            path.write_bytes(path.read_bytes()[:500])
        assert "iteration_000002.h5 is damaged" in self.refused()

    def test_a_checkpoint_of_another_configuration(self, folder):
        run(HERE, *SMALL, "seed=9", "num_iterations=3", "--run-dir", "other")
        last = max(Path("other/checkpoints").iterdir())
        (folder / "checkpoints" / last.name).write_bytes(last.read_bytes())
        assert "belongs to a run with another configuration" in self.refused()

    def test_a_checkpoint_under_another_name(self, folder):
        first, last = sorted(folder.glob("checkpoints/*"))
        first.rename(folder / "checkpoints" / "iteration_000003.h5")
        last.unlink()
        assert "iteration_000003.h5 is damaged: it is of iteration 1; there is" in self.refused()

    def test_other_files_among_the_checkpoints_are_left_alone(self, folder):
        copies = [folder / "checkpoints" / f"iteration_{name}.h5" for name in ("best", "000002_b")]
        for copy in copies:
            copy.write_text("mine")
        run(HERE, *SMALL, "checkpoint.keep=1", "--run-dir", "run")
        assert [copy.read_text() for copy in copies] == ["mine", "mine"]
        assert (folder / "checkpoints" / "iteration_000005.h5").exists()

    def test_damaged_metrics(self, folder):
        (folder / "metrics.h5").write_bytes(b"nonsense")
        assert "metrics.h5 is damaged" in self.refused()

    def test_a_folder_in_use(self, folder):
        code = (
            "import fcntl, time; f = open('run/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
            "print(1, flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        holder.stdout.readline()
        try:
            assert "is in use by another job" in self.refused()
        finally:
            holder.kill()

    def test_leftovers_of_a_kill_are_removed(self, folder):
        (folder / "checkpoints" / "iteration_000003.h5.partial").write_bytes(b"torn")
        run(HERE, *SMALL, "--run-dir", "run")
        assert not list(folder.rglob("*.partial"))
        with h5py.File(folder / "metrics.h5") as file:
            assert file.attrs["committed_iterations"] == 5


@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
    ],
)
def test_a_launcher_of_another_mpi_is_refused(variables):
    rank = next(name for name in variables if name.endswith(("RANK", "PROCID")))
    # mpi4py must not mistake the variables for a real launcher's
    code = (
        "import os, sys, runpy; from mpi4py import MPI; MPI.COMM_WORLD.size;"
        f"os.environ.update({variables!r}); os.environ[{rank!r}] = sys.argv.pop(1);"
        "runpy.run_module('hpc_maml', run_name='__main__', alter_sys=True)"
    )
    said = []
    for number in ("0", "1", "2", "3"):
        result = subprocess.run(
            [sys.executable, "-c", code, number, *SMALL],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == BAD_INPUT
        said += result.stderr.splitlines()
    assert len(said) == 1
    assert "The launcher started 4 processes" in said[0]
    assert "srun --mpi=list" in said[0]
    assert not Path("runs").exists()
