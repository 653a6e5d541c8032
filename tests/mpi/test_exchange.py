"""Messages between coroutines of any ranks, the own rank among them."""

import time

import numpy as np
import pytest
from mpi4py import MPI

from hpc_maml.mpi.exchange import BatchReceiver, BatchSender, Messenger
from hpc_maml.mpi.waiting import Until, run_roles
from hpc_maml.sampling.trajectory import batch_dtype

DTYPE = batch_dtype(100, 20, (17,), (6,), np.float32)  # 200 kB: a rendezvous message
BATCHES = 5


def filled(rank: int, number: int) -> np.ndarray:
    batch = np.zeros(1, DTYPE)
    rng = np.random.default_rng([rank, number])
    batch["task"], batch["phase"] = rank, number
    batch["observations"] = rng.standard_normal(DTYPE["observations"].shape)
    batch["advantages"] = rng.standard_normal(DTYPE["advantages"].shape)
    return batch


def test_batches_arrive_whole(comm):
    sender, receiver = BatchSender(comm), None
    senders = range(1, comm.size) if comm.size > 1 else [0]
    arrived: dict[int, list[np.ndarray]] = {rank: [] for rank in senders}

    async def send():
        for number in range(BATCHES):
            sender.send(filled(comm.rank, number))
        await Until(sender.poll, "the batches to be received")
        assert not sender.in_flight

    async def receive():
        batches: list[np.ndarray] = []

        def complete() -> bool:
            batches.extend(receiver.take())
            return len(batches) == BATCHES * len(senders)

        await Until(complete, "batches")
        for batch in batches:
            arrived[int(batch["task"][0])].append(batch)

    roles = {"observer": send()} if comm.rank in senders else {}
    if comm.rank == 0:
        receiver = BatchReceiver(comm, DTYPE, depth=3)
        roles["agent"] = receive()
    run_roles(roles, 20)
    if receiver:
        for rank, batches in arrived.items():
            assert len(batches) == BATCHES
            batches.sort(key=lambda batch: batch["phase"][0])  # large ones may overtake each other
            for number, batch in enumerate(batches):
                assert batch.tobytes() == filled(rank, number).tobytes()
        assert len(receiver.posted) == 3 * len(senders)
        receiver.close()
    comm.Barrier()


@pytest.mark.parametrize("size", [3, 200_000])
def test_control_messages_of_any_size(comm, size):
    messenger = Messenger(comm)
    following, previous = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    content = np.arange(size) + comm.rank

    async def around():
        messenger.send(("hello", content), following, 7)
        (word, received), source = await messenger.receive(7, "a neighbour")
        assert (word, source) == ("hello", previous)
        assert np.array_equal(received, np.arange(size) + previous)
        await Until(messenger.poll, "the neighbour")

    run_roles({"ring": around()}, 20)


def test_a_wait_without_end_is_a_timeout_that_says_for_what(comm):
    async def wait_for_ever():
        await Messenger(comm).receive(9, "a message that nobody sends", MPI.ANY_SOURCE)

    started = time.monotonic()
    with pytest.raises(TimeoutError, match="for a message that nobody sends") as caught:
        run_roles({"observer": wait_for_ever()}, 0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert caught.value.role == "observer"


def test_an_exception_names_its_role(comm):
    async def good():
        await Until(lambda: False, "ever")

    async def bad():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        run_roles({"principal": good(), "agent": bad()}, 10)
    assert caught.value.role == "agent"


def test_waiting_costs_next_to_nothing(comm):
    async def wait(end):
        await Until(lambda: time.monotonic() > end, "the time")

    comm.Barrier()
    cpu = time.process_time()
    run_roles({"observer": wait(time.monotonic() + 1.5)}, 10)
    assert time.process_time() - cpu < 0.15
