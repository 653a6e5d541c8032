"""Pictures and films of real runs."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, run
from PIL import Image

from hpc_maml.run.demo import find_renderer
from hpc_maml.errors import InputError

BAD_INPUT = 2
ROBOT = (*SMALL, "env.name=half_cheetah_dir", "num_iterations=1", "--run-dir", "run")


@pytest.mark.parametrize("ranks", [None, 3])
def test_navigation_is_a_picture(ranks):
    run(None, *SMALL, "num_iterations=1", "--run-dir", "run")
    assert run(ranks, "demo", "run").stdout == "run/demo.png\n"
    with Image.open("run/demo.png") as image:
        assert min(image.size) > 500
    assert run(None, "demo", "run", "-o", "other.svg").stdout == "other.svg\n"
    assert "after" in Path("other.svg").read_text()


def test_a_robot_is_a_film(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))  # put back afterwards
    if not os.environ["MUJOCO_GL"]:
        monkeypatch.delenv("MUJOCO_GL")
    try:
        find_renderer()
    except InputError as error:
        pytest.skip(str(error))
    run(None, *ROBOT)
    assert run(2, "demo", "run", "-o", "film.gif").stdout == "film.gif\n"
    with Image.open("film.gif") as film:
        assert film.n_frames == 13  # the start, then a frame for each step
        frames = []
        for number in (0, film.n_frames - 1):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"), np.int64))
    first, last = frames
    assert first.shape == (2 * 240, 2 * 320, 3)
    assert abs(last - first).mean() > 1  # it moves
    before, after = first[:, :320], first[:, 320:]
    assert before.std() > 10  # it is not blank
    assert after.std() > 10


def test_no_renderer_is_one_sentence():
    run(None, *ROBOT)
    result = run(2, "demo", "run", code=BAD_INPUT, MUJOCO_GL="none")
    assert result.stderr.startswith("hpc_maml: MuJoCo cannot draw here (none was tried)")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("demo", "nowhere"), "nowhere is not a run folder"),
        (("demo", "bandit"), "demo shows navigation and the robots; bandit has nothing to see."),
        (("demo", "run", "-o", "a.xyz"), "a.xyz cannot be written"),
        (("demo", "run", "-o", "no/a.png"), "no/a.png cannot be written: No such file"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    run(None, *SMALL, "num_iterations=1", "--run-dir", "run")
    run(None, *SMALL, "num_iterations=1", "env.name=bandit", "--run-dir", "bandit")
    result = run(2, *words, code=BAD_INPUT)
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
