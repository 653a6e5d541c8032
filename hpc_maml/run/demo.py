"""What a policy has learned, to look at: a picture of episodes, or a film of them."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.algorithms.algorithm import State
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import Config, EnvConfig, TopologyConfig
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.parts import make_env
from hpc_maml.report.phases import ends_by_index
from hpc_maml.roles.principal import unseen_tasks
from hpc_maml.run.doctor import warnings_of
from hpc_maml.run.job import Job, prepare
from hpc_maml.run.memory import Needs
from hpc_maml.storage.atomic_files import write_whole
from hpc_maml.storage.run_folder import read_config
from hpc_maml.storage.states import chosen_checkpoint, state_of

PICTURED, FILMED = 6, 2  # tasks
SIZE = (320, 240)  # pixels of a film of one task
FRAMES_PER_SECOND = 20


def demo(run_dir: Path, to: Path | None, *, trust: bool = False) -> Path:
    """Show the last policy of a run on unseen tasks, in their first and last phases.

    An environment that draws pictures becomes a picture, one that can be filmed an animated GIF, or
    MP4 where the file is called so; return the file. Raises InputError for any other environment,
    without a checkpoint, a renderer or a library, or if the file cannot be written; and, without
    ``trust``, for a run folder that names code of its own.
    """
    config = run_config = read_config(run_dir, None if trust else ())
    env = make_env(config, config.fast_batch_size)
    number, show, name = PICTURED, _picture, "demo.png"
    if not env.picture:
        number, show, name = FILMED, _film, "demo.gif"
        config = config if env.film else _drawing(config)
    number = min(number, config.evaluation.tasks)
    env = make_env(config, config.fast_batch_size, num_tasks=number)
    job = prepare(config, env)
    # as often as in training
    updates = max(1, job.algorithm.num_phases(False) - 1)
    evaluation = config.evaluation.model_copy(update={"updates": updates})
    alone = {"topology": TopologyConfig(), "device": "cpu", "evaluation": evaluation}
    job = prepare(config.model_copy(update=alone), env)
    played = number * job.dtype.itemsize  # bytes of a phase of all tasks
    needs = Needs(0, played, played, 4 * job.algorithm.policy.size)
    warnings_of(MPI.COMM_SELF, job.config, needs)  # or what will go wrong, raised
    state = state_of(chosen_checkpoint(run_dir, run_config, job.algorithm))
    drawn = unseen_tasks(config, env)
    # different ones first, where there are only two directions
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    order = dict.fromkeys((*first, *range(len(drawn))))
    tasks = drawn[list(order)[:number]]
    to = to or run_dir / name
    try:
        show(config, job, env, state, tasks, to)
    except ImportError as error:
        raise InputError(f"demo needs {error.name}: pip install 'hpc_maml[report]'.") from None
    except InputError:
        raise
    except ValueError as error:  # a kind of file that cannot be written
        raise InputError(f"{to} cannot be written: {error}.") from None
    return to


def _drawing(config: Config) -> Config:
    """Return a configuration whose environment draws images; raises InputError if it does not."""
    kwargs = config.env.kwargs | {"render_mode": "rgb_array"}
    drawing = config.model_copy(update={"env": EnvConfig(name=config.env.name, kwargs=kwargs)})
    nothing = InputError(
        f"demo has nothing to show of {config.env.name}: it has no picture, no film, and no images "
        "(render_mode rgb_array)."
    )
    try:
        env = make_env(drawing, 2)
    except InputError:  # it knows no render_mode
        raise nothing from None
    if not hasattr(env, "image"):
        raise nothing
    return drawing


def _phases(
    config: Config, job: Job, env: Any, state: State, tasks: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the batches ``[G]`` of the tasks in each phase."""
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


def _picture(
    config: Config, job: Job, env: TaskVectorEnv, state: State, tasks: np.ndarray, to: Path
) -> None:
    from hpc_maml.report.figures import episodes_of_tasks

    batches = np.stack(list(_phases(config, job, env, state, tasks)), axis=1)  # [G, K]
    panels = [
        (env.task_words(task), task, batch["observations"], batch["lengths"])
        for task, batch in zip(tasks, batches, strict=True)
    ]
    figure = episodes_of_tasks(env, panels, job.algorithm.phase)
    kind = to.suffix[1:]
    write_whole(to, lambda file: figure.savefig(file, format=kind, dpi=160), durable=False)


def _film(
    config: Config, job: Job, env: TaskVectorEnv, state: State, tasks: np.ndarray, to: Path
) -> None:
    """Write the first episode of every task, a row for each, in its first and last phases."""
    kind = to.suffix.lower()
    if kind not in (".gif", ".mp4"):
        raise ValueError(f"a film is a .gif or an .mp4, not {kind or 'without an ending'}")
    every = max(1, round(1 / (FRAMES_PER_SECOND * env.seconds_per_step)))
    filmed = _Filmed(env, every)
    states, returns = [], []  # by phase: of the first episode of each task [T, G, ...], and [G]
    with _progress() as progress:
        playing = progress.add_task("playing", total=job.algorithm.num_phases(True))
        for batches in _phases(config, job, filmed, state, tasks):
            states.append(np.stack(filmed.states))
            returns.append(batches["rewards"].sum(1)[:, 0])
            progress.advance(playing)
        images = _images(env, filmed, states, returns, tasks, job.algorithm.phase, progress)
    milliseconds = round(1000 * every * env.seconds_per_step)
    if kind == ".gif":
        write_whole(
            to,
            lambda file: images[0].save(
                file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0
            ),
            durable=False,
        )
        return
    content = _mp4([np.asarray(image) for image in images], 1000 / milliseconds)
    write_whole(to, lambda file: file.write(content), durable=False)


def _images(
    env: Any,
    filmed: "_Filmed",
    states: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
    tasks: np.ndarray,
    phase: str,
    progress: Any,
) -> list[Any]:
    """Return the images of a film: a row for each task, a column for the first and last phases."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    width, height = SIZE
    names = ends_by_index(phase, len(states))
    steps = range(max(map(len, states)))
    shown = np.concatenate(
        [states[phase][min(step, len(states[phase]) - 1)] for step in steps for phase in names]
    )  # [steps * phases * G, ...]
    size = (len(names) * width, len(tasks) * height)
    images = [Image.new("RGB", size) for _ in steps]
    places = product(steps, enumerate(names), range(len(tasks)))
    views = env.film(shown, width, height) if env.film else shown
    drawing = progress.add_task("drawing", total=len(shown))
    for view, (step, (column, phase_index), row) in zip(views, places, strict=True):
        left, top = column * width, row * height
        images[step].paste(Image.fromarray(view), (left, top))
        ImageDraw.Draw(images[step]).text(
            (left + 8, top + 6),
            f"{env.task_words(tasks[row])}\n"
            f"{names[phase_index]}, return {returns[phase_index][row]:.1f}, "
            f"{step * filmed.every * env.seconds_per_step:.1f} s",
            "white",
            font,
            stroke_width=1,
            stroke_fill="black",
        )
        progress.advance(drawing)
    return images


def _progress() -> Any:
    """Return a progress bar on standard error, which shows on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    screen = Console(stderr=True)
    return Progress(console=screen, transient=True, disable=not screen.is_terminal)


def _mp4(frames: Sequence[np.ndarray], per_second: float) -> bytes:
    """Return a film as the content of an MP4 file; raises InputError without a library."""
    import imageio.v3

    try:
        content: bytes = imageio.v3.imwrite(
            "<bytes>", frames, extension=".mp4", fps=per_second, plugin="FFMPEG"
        )
    except ImportError:
        raise InputError("MP4 needs imageio-ffmpeg: pip install 'hpc_maml[video]'.") from None
    return content


class _Filmed:
    """An environment whose states, or images, are kept of the first episode of each task.

    Those of every n-th step, ``[G, ...]``.
    """

    def __init__(self, env: Any, every: int) -> None:
        self._env = env
        self.every = every
        self.states: list[np.ndarray] = []
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, **options: Any) -> Any:
        found = self._env.reset(**options)
        self.states, self._steps = [self._see()], 0
        return found

    def step(self, actions: np.ndarray) -> Any:
        found = self._env.step(actions)
        self._steps += 1
        if self._steps % self.every == 0:
            self.states.append(self._see())
        return found

    def _see(self) -> np.ndarray:
        each = self._env.episodes_per_task
        if self._env.film:
            return self._env.visible_states()[::each]
        from PIL import Image

        rows = range(0, self._env.num_envs, each)
        images = (Image.fromarray(self._env.image(row)).resize(SIZE) for row in rows)
        return np.stack([np.asarray(image.convert("RGB")) for image in images])
