"""Messages between roles: small pickled ones, and trajectory batches straight from their buffer."""

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.mpi.waiting import Until

BATCH_TAG = 1


class Messenger:
    """Small pickled messages on one communicator; a pending request owns its buffer."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self.in_flight: list[MPI.Request] = []
        self.arriving: list[tuple[int, MPI.Request, int]] = []  # tag, request, source

    def send(self, message: Any, dest: int, tag: int) -> None:
        """Send a message without waiting."""
        self.poll()
        self.in_flight.append(self.comm.isend(message, dest, tag))

    async def receive(self, tag: int, what: str, source: int = MPI.ANY_SOURCE) -> tuple[Any, int]:
        """Return the next message with ``tag`` and the rank it came from."""
        status = MPI.Status()
        matched: list[MPI.Message] = []

        def arrived() -> bool:
            message = self.comm.improbe(source, tag, status)
            if message is not None:
                matched.append(message)
            return message is not None

        await Until(arrived, what)
        request = matched[0].irecv()
        received: list[Any] = []

        def complete() -> bool:
            done, message = request.test()
            received.append(message)
            return done

        await Until(complete, what)
        return received[-1], status.Get_source()

    def arrived(self, tag: int) -> list[tuple[Any, int]]:
        """Return the messages with ``tag`` that are here now, each with the rank it came from."""
        status = MPI.Status()
        while (message := self.comm.improbe(MPI.ANY_SOURCE, tag, status)) is not None:
            self.arriving.append((tag, message.irecv(), status.Get_source()))
        whole, arriving = [], []
        for each in self.arriving:
            kind, request, source = each
            done, content = request.test() if kind == tag else (False, None)
            if done:
                whole.append((content, source))
            else:
                arriving.append(each)
        self.arriving = arriving
        return whole

    def poll(self) -> bool:
        """Let go of completed sends; tell whether none is left."""
        self.in_flight = [request for request in self.in_flight if not request.Test()]
        return not self.in_flight


class BatchSender:
    """Nonblocking sends of trajectory batches to rank 0 of a team."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self.in_flight: list[tuple[MPI.Request, np.ndarray]] = []

    def send(self, batch: np.ndarray) -> None:
        """Send a batch ``[1]`` of records; it is kept until sent, and must not change any more."""
        self.poll()
        buffer = batch.view(np.uint8)
        self.in_flight.append((self.comm.Isend([buffer, MPI.BYTE], 0, BATCH_TAG), buffer))

    def poll(self) -> bool:
        """Let go of completed sends; tell whether none is left."""
        self.in_flight = [pair for pair in self.in_flight if not pair[0].Test()]
        return not self.in_flight


def empty_batch(dtype: np.dtype) -> np.ndarray:
    """Return memory for a batch ``[1]``."""
    return np.empty(1, dtype)


class BatchReceiver:
    """Posted receives for trajectory batches: ``depth`` for each observer of a team at any time.

    The observers are the ranks from 1 on, or rank 0 where it is alone. Each receive names its
    source: MPICH 5.0 now and then loses the match of one from any source with a message from
    another node.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        dtype: np.dtype,
        depth: int,
        empty: Callable[[np.dtype], np.ndarray] = empty_batch,
    ) -> None:
        self.comm = comm
        self.dtype = dtype
        self.empty = empty  # memory for a batch [1]
        sources = range(1, comm.size) if comm.size > 1 else [0]
        self.posted = [self._post(source) for source in sources for _ in range(depth)]

    def _post(self, source: int) -> tuple[MPI.Request, np.ndarray, int]:
        batch = self.empty(self.dtype)
        request = self.comm.Irecv([batch.view(np.uint8), MPI.BYTE], source, BATCH_TAG)
        return request, batch, source

    def take(self) -> list[np.ndarray]:
        """Return the batches ``[1]`` that have arrived, and post a receive for each."""
        requests = [request for request, *_ in self.posted]
        done = requests[0].Testsome(requests) or []
        batches = []
        for index in done:
            _, batch, source = self.posted[index]
            batches.append(batch)
            self.posted[index] = self._post(source)
        return batches

    def close(self) -> None:
        """Cancel the receives that nothing will arrive for."""
        for request, *_ in self.posted:
            request.Cancel()
            request.Wait()
        self.posted = []
