"""A run goes on when its standard output or standard error is lost."""

import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import SMALL, checkpoints, command, environment

from hpc_maml.standard_streams import LastingFile

slow = pytest.mark.slow
FULL = Path("/dev/full")
LOST = "hpc_maml: standard output is lost"


def shell(line, *words, ranks=None):
    """Run ``line`` in a shell, with the program in place of RUN; return it and its stderr."""
    program = shlex.join(command(ranks, words))
    job = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", line.replace("RUN", program)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = job.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)  # the shell's children hold the pipes
        raise
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("RUN >/dev/full", "No space left on device"),
        ("RUN >&-", "it is closed"),
        ("RUN | head -1", "Broken pipe"),
    ],
)
def test_training_goes_on_without_its_output(line, reason):
    done = shell(line, *SMALL, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert max(checkpoints("run")) == "iteration_000005.h5"
    assert done.stderr.count(LOST) == 1
    assert f"{LOST} ({reason}); the work goes on without it." in done.stderr


@pytest.mark.parametrize("line", ["RUN >&- 2>&- <&-", pytest.param("RUN 2>/dev/full", marks=slow)])
def test_training_goes_on_where_nothing_can_be_said(line):
    done = shell(line, *SMALL, "num_iterations=1", "--run-dir", "run")
    assert done.returncode == 0
    assert not done.stderr
    assert checkpoints("run")


@slow
def test_of_several_ranks_the_first_says_it():
    """The streams of the ranks, not those of mpirun, which ends when it cannot write."""
    program = shlex.join(command(None, [*SMALL, "--run-dir", "run"]))
    launcher = shlex.join(command(3, [])[:3])
    done = shell(f"{launcher} bash -c {shlex.quote(f'{program} >/dev/full')}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(LOST) == 1
    assert max(checkpoints("run")) == "iteration_000005.h5"


def test_a_command_whose_work_is_to_print_has_failed():
    done = shell("RUN >/dev/full", "config")
    assert done.returncode == 1
    assert done.stderr.count(LOST) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_reported_once():
    said = []
    with FULL.open("w") as full:
        file = LastingFile(full.fileno(), said.append)
        assert [file.write(b"abc"), file.write(memoryview(b"de"))] == [3, 2]
    assert said == ["No space left on device"]
    assert file.lost


def test_a_pipe_that_does_not_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    file = LastingFile(writer, pytest.fail)
    received = bytearray()

    def read():
        time.sleep(0.1)
        while part := os.read(reader, 2**16):
            received.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    sent = bytes(2**20)
    rest = memoryview(sent)
    while rest:
        rest = rest[file.write(rest) :]
    os.close(writer)
    thread.join()
    os.close(reader)
    assert bytes(received) == sent
    assert not file.lost
