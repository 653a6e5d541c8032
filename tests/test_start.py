"""The two ways to start the program are one."""

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, environment, run

# What pip makes of the entry point.
COMMAND = "import sys; from hpc_maml.__main__ import start; sys.exit(start())"
REPORT = """
import json, os, mpi4py
from hpc_maml.algorithms.maml_trpo import MamlTrpo

class Own(MamlTrpo):
    def __init__(self, *words):
        threads = [os.environ[name + "_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")]
        print(json.dumps([*threads, mpi4py.rc.thread_level]))
        raise RuntimeError("planted")
"""
WAYS = {"module": ["-m", "hpc_maml"], "command": ["command"]}


@pytest.fixture(params=WAYS)
def way(request, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "command").write_text(COMMAND)
    (tmp_path / "own.py").write_text(REPORT)
    words = WAYS[request.param]
    return [str(tmp_path / "bin" / word) if word == "command" else word for word in words]


def test_both_start_alike(way):
    """Threads, a class of one's own in the current folder, and how a failure ends."""
    words = ["algorithm.name=own:Own", "device=cpu", "archive.rollouts=none"]
    job = subprocess.run(
        [sys.executable, *way, *words],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert job.returncode == 1, job.stderr
    assert json.loads(job.stdout.splitlines()[0]) == ["1", "1", "1", "serialized"]
    assert "rank 0 (start-up)" in job.stderr
    assert "\nRuntimeError: planted\n" in job.stderr


def test_a_warning_before_the_job_listens_waits(way):
    code = "\n".join(
        [
            "import os, runpy, signal, sys",
            "import hpc_maml.cli",
            "def main(words):",
            "    os.kill(os.getpid(), signal.SIGUSR1)",
            "    return 7",
            "hpc_maml.cli.main = main",
            f"sys.argv = {way[-1:]!r}",
            "runpy.run_module('hpc_maml', run_name='__main__')"
            if way[0] == "-m"
            else f"exec({COMMAND!r})",
        ]
    )
    job = subprocess.run([sys.executable, "-c", code], check=False, env=environment())
    assert job.returncode == 7, signal.Signals(-job.returncode)


def test_the_command_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"hpc_maml": "hpc_maml.__main__:start"}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's options")
def test_freed_memory_is_kept_for_the_next_arrays():
    code = (
        "import resource, numpy as np; from hpc_maml.mpi.runtime import keep_freed_memory\n"
        "def faults():\n"
        "    [np.ones(2**20) for _ in range(20)]\n"  # 160 MB side by side, 40,000 pages
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "keep_freed_memory(); first = faults(); print(faults() - first)"
    )
    done = run(None, python=("-c", code))
    assert int(done.stdout) < 1000


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="a kernel without huge pages")
def test_memory_to_come_is_asked_to_be_on_huge_pages():
    code = (
        "import re; from hpc_maml.mpi.runtime import keep_freed_memory\n"
        "def asked():\n"
        "    text = open('/proc/self/smaps').read()\n"
        "    areas = re.findall(r'Size: +(\\d+) kB(?:.*\\n)+?VmFlags:(.*)', text)\n"
        "    return sum(int(size) for size, flags in areas if 'hg' in flags.split())\n"
        "before = asked(); keep_freed_memory(2**28); print(asked() - before)"
    )
    done = run(None, python=("-c", code))
    assert abs(int(done.stdout) - 2**18) < 20  # kB
