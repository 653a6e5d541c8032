"""The GPU of an agent; imports torch, so only agents with a GPU import this.

Trajectory batches are received into pinned memory and copied to the GPU on a stream of their own,
while others are still being collected. There they lie side by side, [task, byte], for each phase:
one copy for each batch, and the episodes of all tasks are views.
"""

import numpy as np
import torch

from hpc_maml.sampling.trajectory import Trajectories


def count_gpus() -> int:
    """Return the number of GPUs that this process may use."""
    return torch.cuda.device_count()


class Gpu:
    """A GPU and what is on its way there; named ``cpu``, the same lines run without one."""

    def __init__(self, name: str) -> None:
        """Make the GPU ``cuda:N`` the current one, before MPI meets memory of it."""
        self.name = name
        self.device = torch.device(name)
        self.copies = None  # the stream of the uploads
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self.copies = torch.cuda.Stream()
        self.dtype = np.dtype(np.uint8)
        self.phases: list[torch.Tensor] = []  # of each phase, the batches of all tasks [G, bytes]
        self.in_flight: list[np.ndarray] = []  # batches that are being copied from

    def empty_batch(self, dtype: np.dtype) -> np.ndarray:
        """Return an uninitialised batch ``[1]`` in pinned memory, to receive into and upload."""
        return self._pinned((dtype.itemsize,), torch.uint8).numpy().view(dtype)

    def expect(self, dtype: np.dtype, num_tasks: int, num_phases: int) -> None:
        """Make room for the batches of an iteration; the memory of the last one, if it fits."""
        self.dtype = dtype
        shape = (num_tasks, dtype.itemsize)
        if [tuple(batches.shape) for batches in self.phases] != [shape] * num_phases:
            self.phases = [
                torch.empty(shape, dtype=torch.uint8, device=self.device) for _ in range(num_phases)
            ]
        if self.copies:
            self.copies.wait_stream(torch.cuda.current_stream())

    def upload(self, batch: np.ndarray, task: int, phase: int) -> None:
        """Copy a batch ``[1]`` to the place of a task, without waiting; it must not change."""
        self.in_flight.append(batch)
        with torch.cuda.stream(self.copies):
            source = torch.from_numpy(batch.view(np.uint8))
            self.phases[phase][task].copy_(source, non_blocking=True)

    def trajectories(self) -> list[Trajectories]:
        """Return the episodes of each phase, tensors ``[G, ...]``, when all have been copied."""
        if self.copies:
            self.copies.synchronize()
        self.in_flight.clear()
        return [_fields(batches, self.dtype) for batches in self.phases]

    def array(self, values: np.ndarray) -> torch.Tensor:
        """Return a copy on the GPU."""
        return torch.from_numpy(values).to(self.device)

    def to_host(self, values: torch.Tensor) -> np.ndarray:
        """Return a copy in pinned memory, when what computes it is done."""
        copy = self._pinned(tuple(values.shape), values.dtype)
        copy.copy_(values, non_blocking=True)
        self.synchronize()
        return copy.numpy()

    def synchronize(self) -> None:
        """Wait for what has been asked of the GPU; MPI does not know of its streams."""
        if self.copies:
            torch.cuda.current_stream().synchronize()

    def _pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # torch keeps freed pinned memory for the next that ask
        return torch.empty(shape, dtype=dtype, pin_memory=self.copies is not None)


def _fields(batches: torch.Tensor, dtype: np.dtype) -> Trajectories:
    """Return the fields of batches ``[G, bytes]`` as views ``[G, ...]``."""
    found, fields = [], dict(dtype.fields or {})
    for name in Trajectories._fields:
        field, start = fields[name][:2]
        values = batches[:, start : start + field.itemsize]
        kind = torch.from_numpy(np.empty(0, field.base)).dtype
        found.append(values.view(kind).reshape(len(batches), *field.shape))
    return Trajectories(*found)
