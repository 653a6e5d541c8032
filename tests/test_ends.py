"""Exit code 0 is said only by a run whose work is done: other ends say which rank and role."""

import sys
import time
from pathlib import Path

import pytest
from conftest import BAD_INPUT, HERE, SMALL, run

from hpc_maml.errors import InputError
from hpc_maml.names import find_class

LIMIT = 10.0  # seconds from the end of one process to that of the job
# The 20th step, on one rank or on all.
ENDS = """
import os, sys, threading, time
from pathlib import Path
from mpi4py import MPI
from hpc_maml.envs.navigation import Navigation

class Ends(Navigation):
    steps = 0

    def _advance(self, actions, active):
        Ends.steps += 1
        rank, end = os.environ["END"].split(":")
        if Ends.steps == 20 and rank in ("all", str(MPI.COMM_WORLD.rank)):
            Path("ended_at").write_text(repr(time.time()))
            exec(end)
        return super()._advance(actions, active)
"""
IN_A_THREAD = "threading.Thread(target=os._exit, args=[0], name='watch').start(); time.sleep(60)"


def end(ranks, rank, statement, *settings):
    """Run a job that a statement in the environment ends; return what it wrote on stderr."""
    Path("own.py").write_text(ENDS)
    words = ("env.name=own:Ends", *SMALL, *settings)
    result = run(ranks, *words, code=1, END=f"{rank}:{statement}")
    assert time.time() - float(Path("ended_at").read_text()) < LIMIT
    return result.stderr


@pytest.mark.parametrize(
    ("statement", "last"),
    [
        ("sys.exit()", "SystemExit"),
        ("os._exit(0)", "SystemExit: os._exit(0) was called"),
        pytest.param("sys.exit(75)", "SystemExit: 75", marks=pytest.mark.slow),
    ],
)
def test_an_environment_that_exits_is_a_failure(statement, last):
    error = end(None, "all", statement)
    assert "hpc_maml: rank 0 (observer) on " in error
    assert error.count("Traceback (most recent call last)") == 1
    assert f"\n{last}\n" in error


@pytest.mark.parametrize(
    ("rank", "statement"),
    [
        (2, "sys.exit(0)"),
        *(
            pytest.param(rank, statement, marks=pytest.mark.slow)
            for rank, statement in [(0, "sys.exit()"), (0, "os._exit(0)"), (2, "os._exit(0)")]
        ),
    ],
)
def test_on_one_rank_of_three_it_ends_all(rank, statement):
    error = end(3, rank, statement)
    assert f"hpc_maml: rank {rank} (observer) on " in error
    assert error.count("Traceback (most recent call last)") == 1


def test_a_thread_that_ends_the_process_is_a_failure():
    error = end(None, "all", IN_A_THREAD)
    assert "hpc_maml: rank 0 (thread watch) on " in error
    assert "os._exit(0) was called" in error


def test_a_child_of_an_environment_may_end():
    Path("own.py").write_text(ENDS)
    statement = "child = os.fork(); child or os._exit(0); os.waitpid(child, 0)"
    run(None, "env.name=own:Ends", *SMALL, END=f"all:{statement}")


@pytest.mark.parametrize("section", ["env", "algorithm", "policy"])
@pytest.mark.parametrize("statement", ["sys.exit(0)", "sys.exit()"])
def test_a_module_that_exits_is_refused(section, statement, monkeypatch):
    Path("exits_at_import.py").write_text(f"import sys\n{statement}\n")
    monkeypatch.syspath_prepend(Path.cwd())
    word = f"{section}.name=exits_at_import:Own"
    error = run(HERE, word, code=BAD_INPUT).stderr
    assert "exits_at_import:Own' cannot be imported: SystemExit" in error
    assert "exits_at_import" not in sys.modules


def test_the_start_of_the_program_is_no_environment():
    error = run(HERE, "env.name=hpc_maml.__main__:x", code=BAD_INPUT).stderr
    assert "the module hpc_maml.__main__ has no 'x'" in error


def test_import_errors_say_what_the_module_raised(monkeypatch):
    Path("raises_at_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(Path.cwd())
    with pytest.raises(InputError, match="cannot be imported: ZeroDivisionError: division by zero"):
        find_class("policy", "raises_at_import:Own", {}, dict)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_is_work_that_is_done(word):
    assert run(HERE, word).stdout
