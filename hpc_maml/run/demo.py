"""What a policy has learned, to look at: a picture of paths, or a film of robots."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpc_maml.algorithms.algorithm import State
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import Config
from hpc_maml.errors import InputError
from hpc_maml.run.job import Job, make_env, prepare
from hpc_maml.run.record import last_checkpoint, state_of
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.storage.atomic_files import write_whole
from hpc_maml.storage.run_folder import read_config

PICTURED, FILMED = 6, 2  # tasks
SIZE = (320, 240)  # pixels of a robot's window
FRAMES_PER_SECOND = 20
RENDERERS = ("egl", "osmesa")  # that need no screen


def demo(run_dir: Path, to: Path | None) -> Path:
    """Show the last policy of a run on unseen tasks, before and after adaptation; return the file.

    Navigation becomes a picture, a robot an animated GIF. Raises InputError for another
    environment, without a checkpoint, a renderer or a library, or if the file cannot be written.
    """
    config = read_config(run_dir)
    name = config.env.name
    filmed = name.startswith(("half_cheetah", "ant"))
    if not filmed and name != "navigation":
        raise InputError(f"demo shows navigation and the robots; {name} has nothing to see.")
    if filmed:
        find_renderer()  # before MuJoCo is imported
    env = make_env(config, config.fast_batch_size, num_tasks=FILMED if filmed else PICTURED)
    job = prepare(config, env)
    # as often as in training
    updates = max(1, job.algorithm.num_phases(False) - 1)
    evaluation = config.evaluation.model_copy(update={"updates": updates})
    job = prepare(config.model_copy(update={"evaluation": evaluation}), env)
    state = state_of(last_checkpoint(run_dir, config, job.algorithm))
    drawn = env.sample_tasks(stream(config.seed, Purpose.EVALUATION_TASKS), config.evaluation.tasks)
    # different ones first, where there are only two directions
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    order = dict.fromkeys((*first, *range(len(drawn))))
    tasks = drawn[list(order)[: env.num_tasks]]
    if len(tasks) < env.num_tasks:
        raise InputError(f"demo needs evaluation.tasks of at least {env.num_tasks}.")
    to = to or run_dir / ("demo.gif" if filmed else "demo.png")
    try:
        (_film if filmed else _picture)(config, job, env, state, tasks, to)
    except ImportError as error:
        raise InputError(f"demo needs {error.name}: pip install 'hpc_maml[report]'.") from None
    except ValueError as error:  # a kind of file that cannot be written
        raise InputError(f"{to} cannot be written: {error}.") from None
    return to


def find_renderer() -> None:
    """Choose how MuJoCo draws without a screen, by trying; raises InputError if nothing works."""
    wanted = os.environ.get("MUJOCO_GL")
    code = "from mujoco import *; Renderer(MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"
    for name in (wanted,) if wanted else RENDERERS:  # tried apart, as a failure may abort
        trial = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"MUJOCO_GL": name},
            capture_output=True,
            check=False,
        )
        if trial.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return
    raise InputError(
        f"MuJoCo cannot draw here ({f'{wanted} was' if wanted else 'egl and osmesa were'} tried): "
        "install libegl1 with the driver of a GPU or Mesa's (libegl-mesa0), or libosmesa6."
    )


def _phases(
    config: Config, job: Job, env: Any, state: State, tasks: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the batches ``[G]`` of the tasks, before adaptation and after each inner step."""
    for batches, _ in collect(
        job.algorithm,
        env,
        job.algorithm.played(state),
        tasks,
        keys=[(config.seed, 0, index) for index in range(len(tasks))],
        evaluation=True,
        dtype=job.dtype,
    ):
        yield batches


def _picture(config: Config, job: Job, env: Any, state: State, tasks: np.ndarray, to: Path) -> None:
    from hpc_maml.report.figures import paths

    batches = np.stack(list(_phases(config, job, env, state, tasks)), axis=1)  # [G, K]
    panels = [
        (f"goal {_text(task)}", task, batch["observations"], batch["lengths"])
        for task, batch in zip(tasks, batches, strict=True)
    ]
    kind = to.suffix[1:]
    figure = paths(panels)
    write_whole(to, lambda file: figure.savefig(file, format=kind, dpi=160), durable=False)


def _film(config: Config, job: Job, env: Any, state: State, tasks: np.ndarray, to: Path) -> None:
    """Write the first episode of every task, a row for each: before adaptation, and after."""
    import mujoco
    from PIL import Image, ImageDraw, ImageFont

    filmed = _Filmed(env)
    films = []  # by phase, of the first episode of each task: [T, G, nq]
    returns = []  # by phase, [G]
    for batches in _phases(config, job, filmed, state, tasks):
        films.append(np.stack(filmed.film)[:, :: config.fast_batch_size])
        returns.append(batches["rewards"].sum(1).mean(-1))
    model = env.simulations.get_model(0)
    data = mujoco.MjData(model)
    font = ImageFont.load_default(14)
    width, height = SIZE
    every = max(1, round(1 / (FRAMES_PER_SECOND * env.seconds_per_step)))
    steps = range(0, max(map(len, films)), every)
    images = []
    with mujoco.Renderer(model, height, width) as renderer:
        for step in steps:
            image = Image.new("RGB", (2 * width, len(tasks) * height))
            draw = ImageDraw.Draw(image)
            for column, phase in enumerate((0, -1)):
                for row, task in enumerate(tasks):
                    data.qpos = films[phase][min(step, len(films[phase]) - 1), row]
                    mujoco.mj_forward(model, data)
                    renderer.update_scene(data, camera="track")
                    place = (column * width, row * height)
                    image.paste(Image.fromarray(renderer.render()), place)
                    words = f"task {_text(task)}, {('before', 'after')[column]} adaptation"
                    words += (
                        f"\nreturn {returns[phase][row]:.1f}, {step * env.seconds_per_step:.1f} s"
                    )
                    draw.text(
                        (place[0] + 8, place[1] + 6),
                        words,
                        "white",
                        font,
                        stroke_width=1,
                        stroke_fill="black",
                    )
            images.append(image)
    milliseconds = round(1000 * every * env.seconds_per_step)
    write_whole(
        to,
        lambda file: images[0].save(
            file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0
        ),
        durable=False,
    )


def _text(task: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in task)


class _Filmed:
    """An environment whose positions are kept, ``[num_envs, nq]`` at each time of an episode."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._positions = env.simulations.bind("qpos")
        self.film: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, **options: Any) -> Any:
        found = self._env.reset(**options)
        self.film = [self._positions.copy()]
        return found

    def step(self, actions: np.ndarray) -> Any:
        found = self._env.step(actions)
        self.film.append(self._positions.copy())
        return found
