"""What a policy has learned, to look at: a picture of episodes, or a film of them."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hpc_maml.algorithms.algorithm import State
from hpc_maml.algorithms.collection import collect
from hpc_maml.config import Config
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import InputError
from hpc_maml.report.phases import ends_by_index
from hpc_maml.roles.principal import unseen_tasks
from hpc_maml.run.job import Job, make_env, prepare
from hpc_maml.run.record import last_checkpoint, state_of
from hpc_maml.storage.atomic_files import write_whole
from hpc_maml.storage.run_folder import read_config

PICTURED, FILMED = 6, 2  # tasks
SIZE = (320, 240)  # pixels of a film of one task
FRAMES_PER_SECOND = 20


def demo(run_dir: Path, to: Path | None) -> Path:
    """Show the last policy of a run on unseen tasks, in their first and last phases.

    An environment that draws pictures becomes a picture, one that can be filmed an animated GIF;
    return the file. Raises InputError for any other environment, without a checkpoint, a renderer
    or a library, or if the file cannot be written.
    """
    config = read_config(run_dir)
    env = make_env(config, config.fast_batch_size)
    if not (env.picture or env.film):
        raise InputError(
            f"demo has nothing to show of {config.env.name}: it has no picture and no film."
        )
    number, show, name = (
        (PICTURED, _picture, "demo.png") if env.picture else (FILMED, _film, "demo.gif")
    )
    env = make_env(config, config.fast_batch_size, num_tasks=number)
    job = prepare(config, env)
    # as often as in training
    updates = max(1, job.algorithm.num_phases(False) - 1)
    evaluation = config.evaluation.model_copy(update={"updates": updates})
    job = prepare(config.model_copy(update={"evaluation": evaluation}), env)
    state = state_of(last_checkpoint(run_dir, config, job.algorithm))
    drawn = unseen_tasks(config, env)
    # different ones first, where there are only two directions
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    order = dict.fromkeys((*first, *range(len(drawn))))
    tasks = drawn[list(order)[:number]]
    if len(tasks) < number:
        raise InputError(f"demo needs evaluation.tasks of at least {number}.")
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
        (f"task {_text(task)}", task, batch["observations"], batch["lengths"])
        for task, batch in zip(tasks, batches, strict=True)
    ]
    figure = episodes_of_tasks(env, panels, job.algorithm.phase)
    kind = to.suffix[1:]
    write_whole(to, lambda file: figure.savefig(file, format=kind, dpi=160), durable=False)


def _film(
    config: Config, job: Job, env: TaskVectorEnv, state: State, tasks: np.ndarray, to: Path
) -> None:
    """Write the first episode of every task, a row for each, in its first and last phases."""
    from PIL import Image, ImageDraw, ImageFont

    filmed = _Filmed(env)
    states, returns = [], []  # by phase: of the first episode of each task [T, G, ...], and [G]
    for batches in _phases(config, job, filmed, state, tasks):
        states.append(np.stack(filmed.states)[:, :: config.fast_batch_size])
        returns.append(batches["rewards"].sum(1).mean(-1))
    font = ImageFont.load_default(14)
    width, height = SIZE
    every = max(1, round(1 / (FRAMES_PER_SECOND * env.seconds_per_step)))
    names = ends_by_index(job.algorithm.phase, len(states))
    steps = range(0, max(map(len, states)), every)
    shown = np.concatenate(
        [states[phase][min(step, len(states[phase]) - 1)] for step in steps for phase in names]
    )  # [steps * phases * G, ...]
    size = (len(names) * width, len(tasks) * height)
    images = [Image.new("RGB", size) for _ in steps]
    places = product(enumerate(steps), enumerate(names), range(len(tasks)))
    for view, ((number, step), (column, phase), row) in zip(
        env.film(shown, width, height), places, strict=True
    ):
        left, top = column * width, row * height
        images[number].paste(Image.fromarray(view), (left, top))
        ImageDraw.Draw(images[number]).text(
            (left + 8, top + 6),
            f"task {_text(tasks[row])}, {names[phase]}\n"
            f"return {returns[phase][row]:.1f}, {step * env.seconds_per_step:.1f} s",
            "white",
            font,
            stroke_width=1,
            stroke_fill="black",
        )
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
    """An environment whose states are kept, ``[num_envs, ...]`` at each time of an episode."""

    def __init__(self, env: TaskVectorEnv) -> None:
        self._env = env
        self.states: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, **options: Any) -> Any:
        found = self._env.reset(**options)
        self.states = [self._env.visible_states()]
        return found

    def step(self, actions: np.ndarray) -> Any:
        found = self._env.step(actions)
        self.states.append(self._env.visible_states())
        return found
