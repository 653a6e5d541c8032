"""Which iterations are archived, and how large that is: known before anything is written."""

import numpy as np

from hpc_maml.config import ArchiveConfig, Config
from hpc_maml.errors import InputError
from hpc_maml.storage.archive_schema import ADAPTED, FIELDS, SUCCESS


def is_archived(settings: ArchiveConfig, iteration: int) -> bool:
    """Tell whether the rollouts of an iteration, counted from 1, are kept."""
    if settings.rollouts == "none":
        return False
    return settings.rollouts == "every" or (iteration - 1) % settings.rollouts == 0


class Shapes:
    """The arrays of one task in the archive: their types, and shapes [K, ...]."""

    def __init__(self, batch: np.dtype, phases: int, num_parameters: int, *, adapted: bool) -> None:
        """Keep the shapes; ``adapted``: with the parameters after each phase but the last."""
        names = [*FIELDS, *({SUCCESS} & set(batch.names or ()))]
        self.arrays = {name: (batch[name].base, (phases, *batch[name].shape)) for name in names}
        if adapted:
            self.arrays[ADAPTED] = (np.dtype(np.float32), (phases - 1, num_parameters))

    @property
    def task_bytes(self) -> int:
        """Bytes of one task, before compression."""
        return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in self.arrays.values())


def _number_archived(settings: ArchiveConfig, iterations: int) -> int:
    """Return how many of the first ``iterations`` are archived."""
    if settings.rollouts == "none":
        return 0
    return iterations if settings.rollouts == "every" else -(-iterations // settings.rollouts)


def estimate(config: Config, shapes: Shapes, done: int = 0, kept: int = 0) -> tuple[int, int]:
    """Return the bytes of an archived iteration and of the whole run, before compression.

    Of the first ``done`` iterations ``kept`` are archived. Raises InputError if the bytes are more
    than archive.max_bytes allows.
    """
    settings = config.archive
    each = config.meta_batch_size * shapes.task_bytes
    more = _number_archived(settings, config.num_iterations) - _number_archived(settings, done)
    number = kept + more
    limit = settings.max_bytes
    if limit and more and each > limit:
        raise InputError(
            f"The rollouts of one iteration take {each} bytes, more than archive.max_bytes = "
            f"{limit}."
        )
    if limit and more and settings.when_full == "refuse" and number * each > limit:
        raise InputError(
            f"The rollouts of {number} iterations take {number * each} bytes, more than "
            f"archive.max_bytes = {limit}: archive fewer (archive.rollouts), or set "
            "archive.when_full=thin to keep the newest."
        )
    return each, number * each
