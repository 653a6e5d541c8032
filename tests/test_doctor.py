"""The doctor: what follows from facts worked out by hand, and what it says of this machine."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import HERE, SMALL, environment, run

from hpc_maml.config import Config, check_config
from hpc_maml.run.doctor import Facts, check_run_folder, examine

LINE = re.compile(r"^(ok|warning|error) +(MPI|CUDA-aware MPI|huge pages|run folder|\S+)  +\S")
CPU = check_config({"device": "cpu", "meta_batch_size": 16})
SPLIT = check_config({"device": "cpu", "topology": {"layout": "split"}})
SUBJECTS = ["MPI", "launcher", "versions", "ranks", "cores", "tasks", "GPUs", "memory"]
SUBJECTS += ["huge pages", "run folder", "HDF5", "MuJoCo", "torch", "Slurm"]


def ranks(host: str, number: int, cores: int, *, of: int = 8, **changes) -> list[Facts]:
    """Return the facts of the ranks of a host, all bound to the same cores."""
    facts = Facts(
        host=host,
        cores=frozenset(range(cores)),
        host_cores=of,
        library="MPICH 4",
        library_file="/lib/libmpi.so.12",
        cuda_aware=False,
        gpus=(),
        versions=("hpc_maml 1",),
        slurm_tasks=None,
    )
    return [replace(facts, **changes)] * number


def findings(facts: list[Facts], config: Config = CPU) -> dict[str, str]:
    """Return level and finding of the last check of each subject."""
    checks = examine(facts, config)
    return {check.subject: f"{check.level}: {check.finding}" for check in checks}


def test_all_is_well_on_two_nodes():
    found = findings(ranks("a", 8, 8) + ranks("b", 8, 8))
    assert all(text.startswith("ok: ") for text in found.values()), found
    assert found["ranks"] == "ok: a: 0-7; b: 8-15"


def test_ranks_bound_to_few_of_the_cores():
    found = findings(ranks("a", 8, 4))["cores"]
    assert found.startswith("warning: a: 8 ranks on 4 of 8 cores, 4 of them rest: unbind them")
    # of 8 ranks are 2 agents and 5 observers, so up to 5 are busy at once
    found = findings(ranks("a", 8, 4), SPLIT)["cores"]
    assert found.startswith("warning: a: 8 ranks on 4 of 8 cores: unbind them")
    assert findings(ranks("a", 8, 5), SPLIT)["cores"] == "ok: a: 8 ranks on 5 of 8 cores"


def test_more_ranks_than_cores():
    found = findings(ranks("a", 8, 4, of=4))["cores"]
    assert found == "ok: a: 8 ranks on 4 of 4 cores: 4 of them rest"
    found = findings(ranks("a", 8, 4, of=4), SPLIT)["cores"]
    assert found.startswith("warning: a: 8 ranks on 4 of 4 cores, 5 of them busy at once")


def test_tasks_that_are_not_even_for_the_ranks():
    assert findings(ranks("a", 8, 8))["tasks"] == "ok: 16 on 8 ranks"
    assert findings(ranks("a", 16, 8))["tasks"] == "ok: 16 on 8 ranks"  # the others rest
    found = findings(ranks("a", 5, 8))["tasks"]
    assert found.startswith(
        "warning: 16 tasks on 5 ranks: ranks are idle for 20 % of the outer step"
    )
    assert "tasks" not in findings(ranks("a", 5, 8), SPLIT)


def test_cores_of_ranks_bound_one_by_one_are_added_up():
    apart = [replace(each, cores=frozenset([n])) for n, each in enumerate(ranks("a", 8, 1))]
    assert findings(apart)["cores"] == "ok: a: 8 ranks on 8 of 8 cores"


def test_huge_pages():
    found = findings(ranks("a", 2, 4, huge_pages="always") + ranks("b", 1, 4, huge_pages="madvise"))
    assert found["huge pages"] == "ok: always, madvise"
    found = findings(ranks("a", 2, 4) + ranks("b", 1, 4, huge_pages="never"))["huge pages"]
    assert found.startswith("ok: never on b: roll-outs and outer steps may take half as long")


def test_an_environment_that_differs_on_one_host():
    other = ranks("b", 2, 8, versions=("hpc_maml 2",), library="Open MPI 5")
    found = findings(ranks("a", 2, 8) + other)
    assert found["versions"].startswith("error: not the same on b: ")
    assert "not the same on b: load one MPI module" in found["MPI"]


def test_gpus():
    one = check_config({"topology": {"agents": 2}})
    with_two = ranks("a", 8, 8, gpus=("0", "1"), cuda_aware=True)
    assert findings(with_two, one)["GPUs"] == "ok: a: 2 agents, 2 GPUs"
    assert findings(with_two, one)["CUDA-aware MPI"] == "ok: yes"
    assert (
        "warning: a: 2 agents, 1 GPUs: agents share"
        in (findings(ranks("a", 8, 8, gpus=("0",)), one)["GPUs"])
    )
    idle = check_config({"topology": {"agents": 1}})
    assert "some are idle" in findings(with_two, idle)["GPUs"]
    assert "not used" in findings(with_two, CPU)["GPUs"]
    cuda = check_config({"device": "cuda", "topology": {"agents": 2}})
    text = findings(ranks("a", 4, 8) + ranks("b", 4, 8), cuda)["GPUs"]
    assert text.startswith("error: device is cuda, but there is no GPU for the agents on a, b")


def test_more_agents_than_ranks():
    many = check_config({"topology": {"agents": 9}})
    assert findings(ranks("a", 2, 8), many)["roles"].startswith("error: topology.agents is 9")


def test_an_allocation_that_is_not_used():
    text = findings(ranks("a", 1, 8, slurm_tasks=16))["launcher"]
    assert text.startswith("warning: 1 of the 16 tasks of the Slurm job run")


@pytest.mark.parametrize("number", [HERE, 3])
def test_a_line_for_every_check(number):
    lines = run(number, "doctor", "device=cpu").stdout.splitlines()
    assert all(LINE.match(line) for line in lines), lines
    assert [line[9:25].strip() for line in lines] == SUBJECTS
    assert f"{number or 1} rank" in lines[1]
    assert list(Path.cwd().iterdir()) == []


def test_a_run_folder_that_cannot_be_written():
    Path("file").touch()
    result = run(HERE, "doctor", "--run-dir", "file/run", code=1)
    assert re.search(r"^error +run folder +file cannot be written", result.stdout, re.MULTILINE)
    assert "ok" in {check.level for check in check_run_folder(Path("new/run"))}


def test_bad_words_are_bad_input():
    assert "Unknown config key 'sed'" in run(HERE, "doctor", "sed=1", code=2).stderr


def test_many_worlds_of_one_rank_are_an_error_said_once():
    code = (
        "import os, sys, runpy; from mpi4py import MPI; MPI.COMM_WORLD.size;"
        "os.environ.update(PMI_SIZE='2', PMI_RANK=sys.argv.pop(1));"
        "runpy.run_module('hpc_maml', run_name='__main__', alter_sys=True)"
    )
    said = ""
    for rank in ("0", "1"):
        words = [sys.executable, "-c", code, rank, "doctor"]
        answer = subprocess.run(
            words, env=environment(), capture_output=True, text=True, check=False
        )
        assert answer.returncode == 1, answer.stderr
        said += answer.stdout
    assert said.count("MPI  ") == 1
    assert re.search(r"^error +launcher +The launcher started 2 processes", said, re.MULTILINE)


def test_the_short_form_at_the_start_of_a_run():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # for what this process starts
    try:
        shown = run(6, *SMALL, "num_iterations=1", "--run-dir", "run").stdout
    finally:
        os.sched_setaffinity(0, cores)
    assert shown.count("warning: ") == 1
    assert re.search(r"  warning: cores: \S+: 6 ranks on 1 of \d+ cores", shown)
    assert "warning" not in run(1, *SMALL, "num_iterations=1", "--run-dir", "run1").stdout
