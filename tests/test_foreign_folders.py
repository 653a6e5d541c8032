"""Damaged and foreign run folders, by chance: one sentence or work, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HERE, ROOT, SMALL, TESTS, environment, run

from hpc_maml.storage import metrics


@pytest.fixture
def whole(monkeypatch) -> Path:
    """Return a run folder with a file of every kind, parts of metrics among them."""
    monkeypatch.setattr(metrics, "PART_ROWS", 1)
    run(HERE, *SMALL, "num_iterations=3", "archive.rollouts=every", "--run-dir", "whole")
    run(HERE, "evaluate", "whole", "--tasks", "2", "--updates", "1")
    assert list(Path("whole").glob("metrics/*.h5"))
    return Path("whole")


@pytest.mark.parametrize(
    ("first", "last"), [(0, 12), pytest.param(12, 212, marks=pytest.mark.slow)]
)
def test_a_damaged_folder_is_a_sentence_or_works(first, last, whole):
    words = [sys.executable, str(TESTS / "fuzz_run_folders.py"), str(whole), str(first), str(last)]
    path = {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    done = subprocess.run(
        words, env=environment(**path), capture_output=True, text=True, check=False, timeout=3600
    )
    lines = done.stdout.splitlines()
    findings = [json.loads(line) for line in lines if line.startswith("{")]
    assert not findings, "\n".join(f"{each['what']}: {each['wrong']}" for each in findings)
    assert done.returncode == 0, (lines[-1], done.stderr)  # a crash, at that folder
    assert sum(line.startswith("folder ") for line in lines) == last - first
