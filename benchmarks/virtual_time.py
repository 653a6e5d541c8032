"""Many ranks in one process, in virtual time: their clocks, their waits, their messages.

A discrete-event simulation. Each rank runs ordinary code that knows nothing of it, in a thread of
its own, of which only one runs at any time: the one whose clock is furthest behind, wherever
a rank looks at what others do. So what it sees is what had been sent by then, and a simulation is
the same every time. Work takes the virtual time that it is said to take.
"""

import heapq
import os
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

from hpc_maml.mpi import waiting

STACK = 256 * 1024  # bytes of a rank's thread
EAGER = 64 * 1024  # bytes; the sender of a larger message waits until it has arrived


@dataclass(frozen=True)
class Line:
    """A cost that grows with a size."""

    fixed: float  # seconds
    each: float  # seconds

    def __call__(self, size: float) -> float:
        """Return the seconds for a size."""
        return self.fixed + self.each * size


@dataclass(frozen=True)
class MessageCosts:
    """Seconds that messages take."""

    near: Line  # from start to arrival, by bytes, within a node
    far: Line  # between nodes
    send: Line  # of the sender's core for a pickled message, by bytes
    receive: Line  # of the receiver's core
    poll: float  # of a look whether something has arrived
    oversleep: float  # that a sleep lasts longer than it should


@dataclass(eq=False)
class Rank:
    """A simulated rank."""

    index: int
    node: int
    slowness: float  # what its work takes, relative to a core without a flaw
    now: float = 0.0  # seconds
    turn: threading.Lock = field(default_factory=threading.Lock)
    arrivals: list[float] = field(default_factory=list)  # heap: times at which a look is worthwhile
    ticket: int = 0  # of its valid entry among those who wait for their turn
    idle: "Idle | None" = None  # while it sleeps
    next_arrival: float = np.inf  # the one it will wake up for
    awaited: str = ""


class Unwound(BaseException):
    """Ends the thread of a rank after another has failed."""


class World:
    """All ranks, and whose turn it is."""

    def __init__(
        self, nodes: Sequence[int], costs: MessageCosts, slowness: Callable[[int], float]
    ) -> None:
        """Make a rank on each of ``nodes``; ``slowness`` is of a node."""
        self.costs = costs
        self.ranks = [Rank(index, node, slowness(node)) for index, node in enumerate(nodes)]
        self.current = self.ranks[0]
        self.queue: list[tuple[float, int, int, Rank]] = []
        self.order = count()
        self.failure: BaseException | None = None
        self.ended = threading.Semaphore(0)
        self.messages: Counter[str] = Counter()  # by kind

    def run(self, main: Callable[[int], None]) -> None:
        """Run ``main(rank)`` on every rank; raises what one of them raised."""

        def body(rank: Rank) -> None:
            rank.turn.acquire()
            try:
                if not self.failure:
                    main(rank.index)
            except Unwound:
                pass
            except BaseException as error:
                self.failure = self.failure or error
            finally:
                self._leave()

        before = threading.stack_size(STACK)
        try:
            threads = [threading.Thread(target=body, args=[rank]) for rank in self.ranks]
            for thread, rank in zip(threads, self.ranks, strict=True):
                rank.turn.acquire()
                thread.start()
                self._queue(rank, 0.0)
        finally:
            threading.stack_size(before)
        self._next().turn.release()
        self.ended.acquire()
        for rank in self.ranks if self.failure else ():
            if rank.turn.locked():
                rank.turn.release()
        for thread in threads:
            thread.join()
        if self.failure:
            raise self.failure

    def work(self, seconds: float) -> None:
        """Have the rank whose turn it is work for so long."""
        self.current.now += seconds * self.current.slowness

    def look(self) -> float:
        """Let all ranks go on that are behind; return the time."""
        rank = self.current
        if self.queue and self.queue[0][0] < rank.now:
            self._queue(rank, rank.now)
            self._yield(rank)
        rank.now += self.costs.poll
        return rank.now

    def sleep(self, idle: "Idle", what: str) -> None:
        """Have the rank whose turn it is wait until it has noticed that something has arrived."""
        rank = self.current
        while rank.arrivals and rank.arrivals[0] <= idle.looked:
            heapq.heappop(rank.arrivals)
        began, rank.idle, rank.awaited, rank.next_arrival = rank.now, idle, what, np.inf
        rank.ticket += 1
        if rank.arrivals:
            self._wake(rank, rank.arrivals[0])
        self._yield(rank)
        rank.idle = None
        idle.waited += rank.now - began
        idle.looked = rank.now

    def arrive(self, rank: Rank, when: float) -> None:
        """Say that something arrives at a rank, for which it may be waiting."""
        heapq.heappush(rank.arrivals, when)
        if rank.idle and when < rank.next_arrival:
            self._wake(rank, when)

    def _wake(self, rank: Rank, arrival: float) -> None:
        rank.next_arrival = arrival
        self._queue(rank, rank.idle.notices(rank.now, arrival))

    def _queue(self, rank: Rank, when: float) -> None:
        rank.ticket += 1
        heapq.heappush(self.queue, (when, next(self.order), rank.ticket, rank))

    def _next(self) -> Rank | None:
        """Choose whose turn it is, None if nobody can go on."""
        while self.queue:
            when, _, ticket, rank = heapq.heappop(self.queue)
            if ticket == rank.ticket:
                rank.now = when
                self.current = rank
                return rank
        return None

    def _yield(self, rank: Rank) -> None:
        """Give up the turn until it comes again."""
        chosen = self._next()
        if chosen is None:
            waits = {each.index: each.awaited for each in self.ranks if each.idle}
            self.failure = RuntimeError(f"nothing will arrive, and ranks wait: {waits}")
            raise self.failure
        if chosen is not rank:
            chosen.turn.release()
            rank.turn.acquire()
            if self.failure:
                raise Unwound

    def _leave(self) -> None:
        """Pass on the turn of a rank that has ended."""
        self.current.ticket += 1
        chosen = None if self.failure else self._next()
        if chosen:
            chosen.turn.release()
        else:
            waits = {each.index: each.awaited for each in self.ranks if each.idle}
            if waits and not self.failure:
                self.failure = RuntimeError(f"nothing will arrive, and ranks wait: {waits}")
            self.ended.release()


class Idle(waiting.Idle):
    """The waiting of a simulated rank: the same polls and sleeps, without doing each."""

    world: World

    def __init__(self, limit: float, fraction: float, spin: float = 0.0) -> None:
        super().__init__(limit, fraction, spin)

    def sleep(self, what: str) -> None:
        """Sleep until a poll finds something new."""
        self.world.sleep(self, what)
        if self.waited > self.limit:
            raise TimeoutError(f"waited {self.waited:.0f} s for {what}")

    def notices(self, now: float, arrival: float) -> float:
        """Return when it notices what arrives, having waited until ``now`` in vain."""
        waited, costs = self.waited, self.world.costs
        if waited < self.spin:
            spun = now + self.spin - waited
            if arrival <= spun:
                return max(now, arrival) + costs.poll
            now, waited = spun, self.spin
        while True:
            pause = self.pause(waited) + costs.oversleep + costs.poll
            now += pause
            waited += pause
            if now >= arrival:
                return now


@contextmanager
def virtual_time(world: World) -> Iterator[None]:
    """Have all code of this process see the clock of the rank whose turn it is."""

    def clock() -> float:
        return world.current.now

    idle = type("Idle", (Idle,), {"world": world})
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        for name in ("monotonic", "perf_counter"):
            stack.enter_context(patch.object(time, name, clock))
        stack.enter_context(patch.object(waiting, "Idle", idle))
        # threads that take turns are handed over faster on one core
        os.sched_setaffinity(0, [min(cores)])
        stack.callback(os.sched_setaffinity, 0, cores)
        yield


class Envelope:
    """A message on its way."""

    def __init__(self, arrival: float, content: Any, size: int) -> None:
        self.arrival = arrival
        self.content = content
        self.size = size


class Group:
    """The ranks of a communicator, and the messages between them."""

    def __init__(self, world: World, ranks: Sequence[int]) -> None:
        self.world = world
        self.ranks = [world.ranks[rank] for rank in ranks]
        # of each member, by tag and source; tags of collective calls are (call, stage)
        self.boxes: list[dict[Any, dict[int, deque[Envelope]]]] = [{} for _ in ranks]
        self.last: dict[tuple[int, int], float] = {}  # arrival from one to another
        self.calls = [0] * len(ranks)  # collective calls of each member

    def post(self, source: int, dest: int, tag: Any, content: Any, size: int) -> float:
        """Send a message; return when it arrives. None overtakes another."""
        world, sender, receiver = self.world, self.ranks[source], self.ranks[dest]
        costs = world.costs
        seconds = (costs.near if sender.node == receiver.node else costs.far)(size)
        arrival = max(sender.now + seconds, self.last.get((source, dest), 0.0))
        self.last[source, dest] = arrival
        box = self.boxes[dest].setdefault(tag, {}).setdefault(source, deque())
        box.append(Envelope(arrival, content, size))
        world.arrive(receiver, arrival)
        return arrival

    def take(self, dest: int, tag: Any, source: int, now: float) -> tuple[Envelope, int] | None:
        """Take the first message that has arrived, and its source."""
        boxes = self.boxes[dest].get(tag)
        if not boxes:
            return None
        if source == MPI.ANY_SOURCE:
            source = min(boxes, key=lambda each: boxes[each][0].arrival)
        box = boxes.get(source)
        if not box or box[0].arrival > now:
            return None
        envelope = box.popleft()
        if not box:
            del boxes[source]
            if not boxes:
                del self.boxes[dest][tag]
        return envelope, source


class Comm:
    """What the roles use of a communicator of mpi4py, on one of its ranks.

    Collective calls exchange messages of the sizes that a library would, by recursive halving and
    doubling, and along binomial trees. They add no numbers up: none of what is simulated depends on
    them.
    """

    def __init__(self, group: Group, rank: int) -> None:
        self.group = group
        self.rank = rank
        self.size = len(group.ranks)
        self.world = group.world

    def isend(self, message: Any, dest: int, tag: int) -> "Request":
        """Send a pickled message."""
        content = pickle.dumps(message)
        self.world.work(self.world.costs.send(len(content)))
        return self._send(dest, tag, content, len(content), type(message).__name__)

    def Isend(self, buffer: Sequence[Any], dest: int, tag: int) -> "Request":  # noqa: N802
        """Send memory."""
        self.world.work(self.world.costs.send(0))
        return self._send(dest, tag, buffer[0], buffer[0].nbytes, "batch")

    def _send(self, dest: int, tag: int, content: Any, size: int, kind: str) -> "Request":
        arrival = self.group.post(self.rank, dest, tag, content, size)
        self.world.messages[kind] += 1
        if size > EAGER:
            self.world.arrive(self.world.current, arrival)
        return Request(self.world, arrival if size > EAGER else 0.0)

    def improbe(self, source: int, tag: int, status: MPI.Status) -> "Arrived | None":
        """Return a message that has arrived."""
        found = self.group.take(self.rank, tag, source, self.world.look())
        if not found:
            return None
        envelope, sender = found
        status.Set_source(sender)
        return Arrived(self.world, envelope)

    def Irecv(self, buffer: Sequence[Any], source: int, tag: int) -> "Receive":  # noqa: N802
        """Receive memory."""
        return Receive(self, buffer[0], source, tag)

    def Iallreduce(self, _: Any, total: np.ndarray, operation: Any) -> "Collective":  # noqa: N802
        """Add up on all ranks."""
        return Collective(self, "Iallreduce", all_reduce(self.rank, self.size, total.nbytes))

    def Ireduce(  # noqa: N802
        self, send: Any, receive: np.ndarray | None, operation: Any, root: int
    ) -> "Collective":
        """Add up on rank 0."""
        size = (send if receive is None else receive).nbytes
        return Collective(self, "Ireduce", reduce(self.rank, self.size, size))

    def Ibcast(self, values: np.ndarray, root: int) -> "Collective":  # noqa: N802
        """Send from rank 0 to all."""
        return Collective(self, "Ibcast", broadcast(self.rank, self.size, values.nbytes))

    def Free(self) -> None:  # noqa: N802
        """Do nothing: a group ends with its world."""


class Request:
    """A send; complete at a known time."""

    def __init__(self, world: World, complete: float) -> None:
        self.world = world
        self.complete = complete

    def Test(self) -> bool:  # noqa: N802
        """Tell whether the message has left."""
        return self.world.current.now >= self.complete


class Arrived:
    """A message that has arrived, and the request to receive it."""

    def __init__(self, world: World, envelope: Envelope) -> None:
        self.world = world
        self.envelope = envelope

    def irecv(self) -> "Arrived":
        """Return the request, which is complete."""
        return self

    def test(self) -> tuple[bool, Any]:
        """Return the content."""
        self.world.work(self.world.costs.receive(self.envelope.size))
        return True, pickle.loads(self.envelope.content)


class Receive:
    """A posted receive."""

    def __init__(self, comm: Comm, buffer: np.ndarray, source: int, tag: int) -> None:
        self.comm = comm
        self.buffer = buffer
        self.source = source
        self.tag = tag

    @staticmethod
    def Testsome(requests: Sequence["Receive"]) -> list[int]:  # noqa: N802
        """Return the indices of those that are complete."""
        now = requests[0].comm.world.look()
        return [index for index, request in enumerate(requests) if request.complete(now)]

    def complete(self, now: float) -> bool:
        """Take the message, if it has arrived."""
        found = self.comm.group.take(self.comm.rank, self.tag, self.source, now)
        if found:
            self.buffer[:] = found[0].content
        return found is not None

    def Cancel(self) -> None:  # noqa: N802
        """Do nothing: nothing will arrive."""

    def Wait(self) -> None:  # noqa: N802
        """Do nothing: it is cancelled."""


# What a rank does in a collective call: ("send" | "receive", peer, bytes), in this order.
Stage = tuple[str, int, int]


def all_reduce(rank: int, size: int, number: int) -> Iterator[Stage]:
    """Yield the stages of Rabenseifner's all-reduce (Thakur et al. 2005) of some bytes."""
    power = 1 << (size.bit_length() - 1)
    surplus = size - power
    if rank < 2 * surplus:  # pairs, of which one goes on for both
        if rank % 2 == 0:
            yield "send", rank + 1, number
            yield "receive", rank + 1, number
            return
        yield "receive", rank - 1, number
    place = rank // 2 if rank < 2 * surplus else rank - surplus

    def of(place: int) -> int:
        return 2 * place + 1 if place < surplus else place + surplus

    masks = [1 << bit for bit in range(power.bit_length() - 1)]
    part = number
    for mask in reversed(masks):
        part //= 2
        yield "send", of(place ^ mask), part
        yield "receive", of(place ^ mask), part
    for mask in masks:
        yield "send", of(place ^ mask), part
        yield "receive", of(place ^ mask), part
        part *= 2
    if rank < 2 * surplus:
        yield "send", rank - 1, number


def reduce(rank: int, size: int, number: int) -> Iterator[Stage]:
    """Yield the stages of a reduction to rank 0 along a binomial tree."""
    mask = 1
    while mask < size:
        if rank & mask:
            yield "send", rank - mask, number
            return
        if rank + mask < size:
            yield "receive", rank + mask, number
        mask *= 2


def broadcast(rank: int, size: int, number: int) -> Iterator[Stage]:
    """Yield the stages of a broadcast from rank 0 along a binomial tree."""
    mask = 1
    while mask < size and not rank & mask:
        mask *= 2
    if rank:
        yield "receive", rank - mask, number
    while mask > 1:
        mask //= 2
        if rank + mask < size:
            yield "send", rank + mask, number


class Collective:
    """A collective call that goes on whenever it is tested, as in MPI libraries."""

    def __init__(self, comm: Comm, name: str, stages: Iterator[Stage]) -> None:
        self.comm = comm
        self.stages = stages
        self.call = comm.group.calls[comm.rank]
        comm.group.calls[comm.rank] += 1
        comm.world.messages[name] += 1
        self.awaited: int | None = None
        self.done = False
        self._go_on(comm.world.current.now)

    def Test(self) -> bool:  # noqa: N802
        """Go on; tell whether it is complete."""
        if not self.done:
            self._go_on(self.comm.world.look())
        return self.done

    def _go_on(self, now: float) -> None:
        group, rank = self.comm.group, self.comm.rank
        while True:
            if self.awaited is not None:
                if not group.take(rank, ("call", self.call), self.awaited, now):
                    return
                self.awaited = None
            stage = next(self.stages, None)
            if stage is None:
                self.done = True
                return
            kind, peer, number = stage
            if kind == "send":
                group.post(rank, peer, ("call", self.call), None, number)
            else:
                self.awaited = peer
