"""Messages between coroutines of any ranks, the own rank among them."""

import time
from functools import partial

import numpy as np
import pytest
from mpi4py import MPI

from hpc_maml.mpi.exchange import BatchReceiver, BatchSender, Messenger
from hpc_maml.mpi.waiting import GIVE_WAY, OF_A_REQUEST, SPIN, Idle, Roles, Until, in_thread
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
    Roles(20).run(roles)
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

    Roles(20).run({"ring": around()})


def test_a_wait_without_end_is_a_timeout_that_says_for_what(comm):
    async def wait_for_ever():
        await Messenger(comm).receive(9, "a message that nobody sends", MPI.ANY_SOURCE)

    started = time.monotonic()
    with pytest.raises(TimeoutError, match="for a message that nobody sends") as caught:
        Roles(0.3).run({"observer": wait_for_ever()})
    assert 0.3 <= time.monotonic() - started < 5
    assert caught.value.role == "observer"


def test_an_exception_names_its_role(comm):
    async def good():
        await Until(lambda: False, "ever")

    async def bad():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        Roles(10).run({"principal": good(), "agent": bad()})
    assert caught.value.role == "agent"


def test_waiting_costs_next_to_nothing(comm):
    async def wait(end):
        await Until(lambda: time.monotonic() > end, "the time")

    comm.Barrier()
    cpu = time.process_time()
    Roles(10, SPIN).run({"observer": wait(time.monotonic() + 1.5)})
    assert time.process_time() - cpu < 0.15


def test_a_role_that_works_for_long_gives_way(comm):
    """Another role of its rank answers messages meanwhile, and what it raises is its own."""
    roles = Roles(10)
    messenger = Messenger(comm)
    answered: list[int] = []

    async def answer():
        for number in range(5):
            messenger.send(number, comm.rank, 5)
            message, _ = await messenger.receive(5, "a message", comm.rank)
            answered.append(message)
        raise ValueError("enough")

    async def work():
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(GIVE_WAY / 4)
            roles.give_way()
        pytest.fail("it did not give way")

    with pytest.raises(ValueError, match="enough") as caught:
        roles.run({"observer": work(), "agent": answer()})
    assert answered == [0, 1, 2, 3, 4]
    assert caught.value.role == "agent"


def test_a_rank_with_a_core_of_its_own_polls_before_it_sleeps(comm, monkeypatch):
    if comm.rank:
        return
    slept: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))

    def looks(spin):
        idle, looks = Idle(10, OF_A_REQUEST, spin), 0
        slept.clear()
        while not slept:
            idle.sleep("nothing")
            looks += 1
        return looks

    assert looks(0.0) == 1
    assert looks(SPIN) > 10
    shared, own = Idle(10, OF_A_REQUEST), Idle(10, OF_A_REQUEST, SPIN)
    assert shared.pause(0.1) == pytest.approx(10 * own.pause(0.1)) == 0.005
    assert shared.pause(100) == 0.5
    assert own.pause(0) == shared.pause(0) == 1e-4


def test_roles_go_on_while_a_thread_works(comm):
    seen: list[int] = []

    def work(answer: int) -> int:
        while len(seen) < 3:
            time.sleep(1e-4)
        if answer < 0:
            raise ValueError("no answer")
        return answer

    async def asks(answer: int) -> None:
        seen.append(await in_thread(partial(work, answer), "a thread"))

    async def counts() -> None:
        for number in range(3):
            await Until(lambda: True, "nothing")
            seen.append(number)

    Roles(20).run({"asks": asks(7), "counts": counts()})
    assert seen == [0, 1, 2, 7]
    seen.clear()
    with pytest.raises(ValueError, match="no answer") as caught:
        Roles(20).run({"asks": asks(-1), "counts": counts()})
    assert caught.value.role == "asks"


def test_messages_that_have_arrived_are_told_apart(comm):
    messenger = Messenger(comm)
    following, previous = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    content = np.arange(200_000)
    found: dict[int, list] = {3: [], 4: []}

    async def around():
        for tag in (4, 3, 4):
            messenger.send((tag, content), following, tag)
        for tag, number in ((3, 1), (4, 2)):

            def complete(tag=tag, number=number) -> bool:
                found[tag] += messenger.arrived(tag)
                return len(found[tag]) == number

            await Until(complete, "a neighbour")
        await Until(messenger.poll, "the neighbour")

    Roles(20).run({"ring": around()})
    for tag, messages in found.items():
        for (sent, received), source in messages:
            assert (sent, source) == (tag, previous)
            assert np.array_equal(received, content)
