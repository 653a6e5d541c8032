"""Damaged and foreign run folders, by chance: one sentence or work, in bounded time and memory."""

from pathlib import Path

import pytest
from fuzz_run_folders import findings, make_run


@pytest.mark.parametrize(("first", "last"), [(0, 8), pytest.param(8, 120, marks=pytest.mark.slow)])
def test_a_damaged_folder_is_a_sentence_or_works(first, last):
    make_run(Path("whole"))
    found = findings(Path("whole"), first, last)
    assert not found, "\n".join(f"{each['what']}: {each['wrong']}" for each in found)
