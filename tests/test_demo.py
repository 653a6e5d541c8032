"""Pictures and films of real runs."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, SMALL, run
from PIL import Image

from hpc_maml import envs
from hpc_maml.envs.mujoco_film import find_platform
from hpc_maml.errors import InputError
from hpc_maml.report.phases import ends_by_index

RL2 = (
    *(word for word in SMALL if "hidden_sizes" not in word),
    *("algorithm.name=rl2", "policy.hidden_size=8", "algorithm.minibatches=1"),
)


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> dict[str, Path]:
    """Return runs by what there is to see of them."""
    top = tmp_path_factory.mktemp("shown")
    words = {
        "navigation": [*SMALL],
        "promp": [*SMALL, "algorithm.name=promp"],
        "trials": [*RL2, "algorithm.episodes_per_trial=3"],
        "bandit": [*SMALL, "env.name=bandit"],
        "robot": [*SMALL, "env.name=half_cheetah_dir"],
        "one episode": [*RL2, "env.name=half_cheetah_dir"],
        "own": [*SMALL, "env.name=drawn:Drawn"],
        "own vector": [*SMALL, "env.name=drawn:DrawnVector"],
        "blind": [*SMALL, "env.name=drawn:Blind"],
    }
    for name, settings in words.items():
        run(HERE, *settings, "num_iterations=1", "--run-dir", str(top / name))
    return {name: top / name for name in words}


@pytest.fixture
def drawn_texts(monkeypatch) -> list[str]:
    """Return the texts of the legends of pictures that are drawn here."""
    from matplotlib.figure import Figure

    texts: list[str] = []
    original = Figure.savefig

    def savefig(figure, *args, **kwargs):
        texts.extend(text.get_text() for text in figure.legends[0].get_texts())
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return texts


@pytest.mark.parametrize("ranks", [HERE, 3])
def test_navigation_is_a_picture(ranks, shown):
    folder = shown["navigation"]
    assert run(ranks, "demo", folder).stdout == f"{folder}/demo.png\n"
    with Image.open(folder / "demo.png") as image:
        assert min(image.size) > 500
    assert run(HERE, "demo", folder, "-o", "other.svg").stdout == "other.svg\n"
    assert "after" in Path("other.svg").read_text()


def test_a_run_with_few_tasks_of_meta_tests_is_shown_on_these(monkeypatch):
    from hpc_maml.report import figures

    panels = []
    draw = figures.episodes_of_tasks
    monkeypatch.setattr(
        figures, "episodes_of_tasks", lambda *given: panels.extend(given[1]) or draw(*given)
    )
    words = (*SMALL, "num_iterations=1", "evaluation.tasks=2")
    run(HERE, *words, "--run-dir", "run")
    run(HERE, "demo", "run")
    assert len(panels) == 2
    assert Path("run/demo.png").exists()


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("promp", ["before adaptation", "after adaptation"]),
        ("trials", ["first episode", "last episode"]),
    ],
)
def test_the_phases_are_those_of_the_algorithm(name, phases, shown, drawn_texts):
    run(HERE, "demo", shown[name], "-o", "a.png")
    assert drawn_texts == [*phases, "start", "goal"]


def test_words_for_phases():
    assert ends_by_index("updates", 3) == {0: "before adaptation", 2: "after adaptation"}
    assert ends_by_index("episode", 2) == {0: "first episode", 1: "last episode"}
    assert ends_by_index("episode", 1) == {0: "only episode"}
    assert ends_by_index("updates", 1) == {0: "without adaptation"}


def test_environments_say_what_can_be_seen():
    def of(name: str) -> tuple[bool, bool]:
        env = envs.make(name, num_tasks=1, episodes_per_task=1)
        return env.picture is not None, env.film is not None

    assert of("navigation") == (True, False)
    assert of("ant_goal") == (False, True)
    assert of("tabular_mdp") == (False, False)


@pytest.mark.parametrize("name", ["own", "own vector"])
def test_an_environment_of_ones_own_that_draws_is_a_film(name, shown):
    done = run(HERE, "demo", shown[name], "-o", "film.gif", "--trust")
    assert (done.stdout, done.stderr) == ("film.gif\n", "")
    with Image.open("film.gif") as film:
        assert film.size == (2 * 320, 2 * 240)
        assert film.n_frames == 7  # the start, then every second of 12 steps: 40 a second
        assert film.info["duration"] == 50
        for number in (0, 6):
            film.seek(number)
            image = np.asarray(film.convert("RGB"), np.int64)
            # the image of a step is red by 20 for each
            assert abs(image[120, 300, 0] - 40 * number) < 8, number
            assert image[120, 300, 2] > 100


def test_a_film_may_be_an_mp4(shown):
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3

    run(HERE, "demo", shown["own"], "-o", "film.mp4", "--trust")
    frames = imageio.v3.imread("film.mp4", plugin="FFMPEG")
    assert frames.shape == (7, 2 * 240, 2 * 320, 3)
    assert imageio.v3.immeta("film.mp4", plugin="FFMPEG")["fps"] == 20


def test_tasks_are_shown_in_words_with_units():
    def words(name, task, **kwargs):
        env = envs.make(name, num_tasks=1, episodes_per_task=1, **kwargs)
        return env.task_words(np.array(task))

    assert words("navigation", [0.3, -0.2]) == "goal (0.30, -0.20)"
    assert words("half_cheetah_vel", [1.5]) == "velocity 1.50 m/s"
    assert words("half_cheetah_dir", [-1]) == "backwards"
    assert words("ant_goal", [1, -2]) == "goal (1.00, -2.00) m"
    assert words("bandit", [0.1] * 5) == "task 0.10, 0.10, 0.10, 0.10, 0.10"
    ranges = {"g": [8, 12]}
    assert words("Pendulum-v1", [9.81], task_ranges=ranges) == "g 9.81"


@pytest.fixture
def _renderer():
    try:
        find_platform()
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_renderer")
def test_a_robot_is_a_film(shown):
    assert run(2, "demo", shown["robot"], "-o", "film.gif").stdout == "film.gif\n"
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


@pytest.mark.usefixtures("_renderer")
def test_a_film_of_one_phase_has_one_column(shown):
    run(HERE, "demo", shown["one episode"], "-o", "film.gif")
    with Image.open("film.gif") as film:
        assert film.size == (320, 2 * 240)


@pytest.mark.usefixtures("_renderer")
def test_a_film_shows_the_positions():
    env = envs.make("half_cheetah_vel", num_tasks=1, episodes_per_task=1)
    env.reset(seed=0)
    start = env.visible_states()
    upside_down = start.copy()
    upside_down[:, 2] += np.pi
    one, same, other = env.film(np.concatenate([start, start, upside_down]), 64, 48)
    assert one.shape == (48, 64, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one[:8].mean() > one[-8:].mean()  # the sky is brighter than the floor


def test_no_renderer_is_one_sentence(shown):
    result = run(2, "demo", shown["robot"], code=BAD_INPUT, MUJOCO_GL="off")
    assert result.stderr.startswith("hpc_maml: MuJoCo cannot draw here (off was tried)")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("demo", "nowhere"), "nowhere is not a run folder"),
        (
            ("demo", "bandit"),
            "demo has nothing to show of bandit: it has no picture, no film, and no images",
        ),
        (("demo", "navigation", "-o", "a.xyz"), "a.xyz cannot be written"),
        (("demo", "blind", "--trust"), "nothing to show of drawn:Blind"),
        (("demo", "own", "-o", "a.png", "--trust"), "a film is a .gif or an .mp4, not .png"),
        (
            ("demo", "navigation", "-o", "no/a.png"),
            "no/a.png cannot be written: No such file",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, shown):
    result = run(HERE, *(shown.get(word, word) for word in words), code=BAD_INPUT)
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
