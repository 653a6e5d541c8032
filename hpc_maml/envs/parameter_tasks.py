"""Tasks for Gymnasium environments that have none: values of their parameters."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpc_maml.envs.foreign import Maker, SingleEnvs, creator_of, make_one, title
from hpc_maml.errors import nearest


class ParameterTasks(SingleEnvs):
    """Environments without tasks: a task is values of constructor arguments, or of attributes."""

    def __init__(
        self,
        maker: Maker,
        sizes: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        task_ranges: Mapping[str, Sequence[float]],
    ) -> None:
        """Make the batch; ``task_ranges`` maps a name to [lowest, highest], drawn uniformly.

        Raises ValueError for a range that is none, or a name the environment does not know.
        """
        self._maker, self._kwargs = maker, dict(kwargs)
        self._names, self._ranges = list(task_ranges), check_ranges(task_ranges)
        self.task_dim = len(self._names)
        count = sizes["num_tasks"] * sizes["episodes_per_task"]
        super().__init__(
            title(maker), [make_one(maker, **self._kwargs) for _ in range(count)], **sizes
        )
        arguments = inspect.signature(creator_of(maker)).parameters
        own = self._envs[0].unwrapped
        for name in self._names:
            if name not in arguments and not hasattr(own, name):
                known = [*arguments, *(each for each in vars(own) if not each.startswith("_"))]
                raise ValueError(
                    f"{title(maker)} has no constructor argument and no attribute {name!r}"
                    f"{nearest(name, known)}"
                )
        self._arguments = [name for name in self._names if name in arguments]
        lowest, highest = self._ranges
        for share in (0.01, 0.99):  # the ends themselves are hardly drawn, and may be excluded
            task = lowest + share * (highest - lowest)
            self._try(dict(zip(self._names, task.tolist(), strict=True)))

    def _try(self, task: Mapping[str, float]) -> None:
        """Raise ValueError if the constructor refuses a task."""
        given = {name: task[name] for name in self._arguments}
        if not given:
            return
        try:
            make_one(self._maker, **self._kwargs | given).close()
        except Exception as error:
            words = ", ".join(f"{name}={value:g}" for name, value in given.items())
            why = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
            raise ValueError(f"{title(self._maker)} refuses {words} ({why})") from error

    def task_words(self, task: np.ndarray) -> str:
        """Return the parameters by name."""
        pairs = zip(self._names, task, strict=True)
        return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in pairs)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n tasks, float64 ``[n, task_dim]``, in the order of ``task_ranges``."""
        return rng.uniform(*self._ranges, (n, self.task_dim))

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Set the tasks, ``[num_tasks, task_dim]``; ValueError for any other shape.

        Constructor arguments make the environments anew: what derives from them follows.
        """
        super().set_tasks(tasks)
        for row, task in enumerate(self._tasks):
            values = dict(zip(self._names, task.tolist(), strict=True))
            if self._arguments:
                self._envs[row].close()
                given = {name: values.pop(name) for name in self._arguments}
                self._envs[row] = make_one(self._maker, **self._kwargs | given)
            for name, value in values.items():
                setattr(self._envs[row].unwrapped, name, value)


def check_ranges(task_ranges: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return lowest and highest values, ``[2, task_dim]``; ValueError if they are no ranges."""
    try:
        ranges = np.array(list(task_ranges.values()), np.float64)
    except (AttributeError, TypeError, ValueError):
        ranges = np.zeros(0)
    valid = ranges.ndim == 2 and ranges.shape[1] == 2 and np.isfinite(ranges).all()
    if not valid or (ranges[:, 0] > ranges[:, 1]).any():
        raise ValueError(f"task_ranges must be name: [lowest, highest], not {task_ranges!r}")
    return ranges.T
